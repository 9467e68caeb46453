"""What a detector found in one picture: arrays, in pixels of the picture. All that is told of it is made of these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from pycocotools import mask as rle

from src.data.sources import Source, read_source
from src.drawing.objects import draw_detections
from src.evaluation.kinds import Kind, branch_kinds, layers_of
from src.runtime.errors import UserError
from src.runtime.newer import zip_equal

__all__ = ["Detections"]


@dataclass(init=False)
class Detections:
    """What was found in one image, best first: N objects.

    height, width: of the image, pixels. boxes (N, 4) float32 x1 y1 x2 y2 in its pixels, inside it; scores (N,) float32;
    labels (N,) int32; names: N class names; category_ids: N ids of the data set, None where unknown. orientation: the
    EXIF orientation by which viewers turn the picture further; 1 where these are of the upright. fields: of each of the
    detector's branches the N objects' values, as src.evaluation.kinds makes them; masks: those of the branch "mask", N
    RLEs ({"size": [height, width], "counts": text}), None for a detector without masks.

    A label is a place in the config's coco_classes, here and in to_dict: the first class has 1, as 0 is the background.
    Two kinds of files have numbers of their own: COCO results (to_coco) the data set's category ids, and
    predictions.json (to_entry) labels that count from 0, without the background.
    """

    height: int
    width: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[str]
    category_ids: list[int | str | None]
    orientation: int
    fields: dict[str, list]

    def __init__(
        self,
        height: int,
        width: int,
        boxes: np.ndarray,
        scores: np.ndarray,
        labels: np.ndarray,
        names: list[str],
        category_ids: list[int | str | None],
        masks: list[dict] | None = None,
        orientation: int = 1,
        fields: Mapping[str, list] | None = None,
    ):
        self.height, self.width, self.orientation = height, width, orientation
        self.boxes, self.scores, self.labels = boxes, scores, labels
        self.names, self.category_ids = names, category_ids
        self.fields = dict(fields or {})
        if masks is not None:
            self.masks = masks

    @property
    def masks(self) -> list[dict] | None:
        return self.fields.get("mask")

    @masks.setter
    def masks(self, masks: list[dict] | None) -> None:
        self.fields.pop("mask", None)
        self.fields |= {} if masks is None else {"mask": masks}

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float, by_class: Mapping[str, float] | None = None) -> Detections:
        """Those of at least this score, or of classes named in `by_class` of at least that one. Raises UserError for
        what is no score."""
        for value in (score, *(by_class or {}).values()):
            if not isinstance(value, (int, float, np.number)) or math.isnan(value):
                raise UserError(f"above: {value!r} is no score; a score lies in 0..1")
        least = [(by_class or {}).get(name, score) for name in self.names]
        kept = np.flatnonzero(self.scores >= np.array(least, np.float32))
        return replace(
            self,
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            labels=self.labels[kept],
            names=[self.names[i] for i in kept],
            category_ids=[self.category_ids[i] for i in kept],
            fields={branch: [values[i] for i in kept] for branch, values in self.fields.items()},
        )

    def bitmaps(self) -> np.ndarray:
        """Masks as (N, height, width) bool. Raises UserError for a detector without masks."""
        if self.masks is None:
            raise UserError("this detector has no masks; use one with detector: mask_rcnn or cascade_mask_rcnn")
        out = np.zeros((len(self), self.height, self.width), bool)
        for bitmap, mask in zip_equal(out, self.masks):
            bitmap[:] = rle.decode(mask)
        return out

    def draw(self, image: Source, score_thr: float = 0.5, zoom: float = 1.0) -> np.ndarray:
        """The image as (height, width, 3) uint8 RGB, enlarged `zoom` times, with masks, boxes, names, scores.

        image: the one that these are of, as a Predictor takes it: path, array or PIL image; it stays as it is. Raises
        UserError for one that can't be read, or of another size.
        """
        bgr = read_source(image, "upright" if self.orientation == 1 else "stored")[0]
        if bgr.shape[:2] != (self.height, self.width):
            raise UserError(
                f"an image of {bgr.shape[1]} x {bgr.shape[0]} pixels; these detections are of one of"
                f" {self.width} x {self.height}"
            )
        names = dict(zip_equal(self.labels.tolist(), self.names))
        layers = layers_of(self.fields)
        drawn = draw_detections(bgr, self.boxes, self.scores, self.labels, layers, names, score_thr, zoom)
        return np.ascontiguousarray(drawn[:, :, ::-1])

    def to_dict(self) -> dict:
        """{"height", "width", "predictions": [{"bbox": {"x_min", "y_min", "width", "height"}, "class": {"label",
        "category_id", "name"}, "mask": {"size", "counts"}, "score"}]}, as numbers and text.

        category_id is "unknown" where it is. No "mask" for a detector without them.
        """
        rows = []
        for i, (x1, y1, x2, y2) in enumerate(self.boxes.tolist()):
            category = self.category_ids[i]
            row = {
                "bbox": {"x_min": x1, "y_min": y1, "width": x2 - x1, "height": y2 - y1},
                "class": {
                    "label": int(self.labels[i]),
                    "category_id": "unknown" if category is None else category,
                    "name": self.names[i],
                },
            }
            for kind, values in self._values():
                row |= kind.entry(values[i])
            rows.append(row | {"score": float(self.scores[i])})
        return {"height": self.height, "width": self.width, "predictions": rows}

    def to_entry(self) -> dict:
        """What predictions.json holds of an image: to_dict with labels from 0, without the background, and numbers
        rounded as in COCO results."""
        kinds = branch_kinds(self.fields)
        rounded = {branch: [kind.rounded(v) for v in self.fields[branch]] for branch, kind in kinds.items()}
        entry = replace(self, fields=rounded).to_dict()
        for row, result in zip_equal(entry["predictions"], self.to_coco(0)):
            row["bbox"] = dict(zip_equal(row["bbox"], result["bbox"]))
            row["class"]["label"] -= 1
            row["score"] = result["score"]
        return entry

    def to_coco(self, image_id: int | str) -> list[dict]:
        """COCO results, as eval.py writes them: boxes rounded to a hundredth, scores to six digits. A class without a
        known id counts by its label."""
        labels = self.labels.tolist()
        ids = [label if known is None else known for label, known in zip_equal(labels, self.category_ids)]
        out = []
        for i, (x1, y1, x2, y2) in enumerate(np.asarray(self.boxes, np.float64)):
            row = {
                "image_id": image_id,
                "category_id": ids[i],
                "bbox": np.round([x1, y1, x2 - x1, y2 - y1], 2).tolist(),
                "score": round(float(self.scores[i]), 6),
            }
            for kind, values in self._values():
                row |= kind.result(kind.rounded(values[i]))
            out.append(row)
        return out

    def _values(self) -> list[tuple[Kind, list]]:
        """The objects' values of each kind that these have."""
        return [(kind, self.fields[branch]) for branch, kind in branch_kinds(self.fields).items()]
