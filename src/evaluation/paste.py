"""A network's outputs of one picture as Detections: the one way, for Predictor, evaluation, ONNX and the C++ program.

found_in, or Found itself, holds what was found in the picture's pixels, before boxes are clipped: so that parts of a
picture can be put together. paste makes Detections of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from src.config import Config
from src.evaluation.detections import Detections
from src.evaluation.kinds import branch_kinds
from src.evaluation.truth import EvaluationError

__all__ = ["Found", "found_in", "paste", "paste_options", "results_of"]

Options = Mapping[str, Mapping[str, Any]]  # of each branch, as its kind's `options` gives them


@dataclass
class Found:
    """N detections: boxes (N, 4) float32 x1 y1 x2 y2 in pixels of the picture, which they may leave; scores (N,);
    labels (N,) int; fields: of each branch its output's N rows; scale (N, 2) float32 (y, x): pixels of the canvas on
    which each was found, a pixel of the picture (default: 1).
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    fields: dict[str, np.ndarray]
    scale: np.ndarray = field(default_factory=lambda: np.ones((0, 2), np.float32))

    def __post_init__(self) -> None:
        if len(self.scale) != len(self.boxes):
            self.scale = np.ones((len(self.boxes), 2), np.float32)

    def take(self, places: np.ndarray) -> Found:
        """Those at these places."""
        fields = {branch: rows[places] for branch, rows in self.fields.items()}
        return Found(self.boxes[places], self.scores[places], self.labels[places], fields, self.scale[places])

    @staticmethod
    def joined(parts: Sequence[Found]) -> Found:
        """Those of all parts, one after the other."""
        boxes, scores, labels, scale = (
            np.concatenate([getattr(p, name) for p in parts]) for name in ("boxes", "scores", "labels", "scale")
        )
        fields = {branch: np.concatenate([p.fields[branch] for p in parts]) for branch in parts[0].fields}
        return Found(boxes, scores, labels, fields, scale)

    def in_original(self, scale: Sequence[float] | np.ndarray, name: str) -> Found:
        """These, of a canvas, in pixels of the original; scale (y, x): canvas = original * scale.

        Raises EvaluationError, of the image `name`, for a box or score that isn't finite.
        """
        if not (np.isfinite(self.boxes).all() and np.isfinite(self.scores).all()):
            raise EvaluationError(f"{name}: a detection isn't finite; did the training diverge?")
        sy, sx = (float(v) for v in scale)
        boxes = self.boxes / np.array([sx, sy, sx, sy], np.float32)
        return Found(boxes, self.scores, self.labels, self.fields, self.scale * np.array([sy, sx], np.float32))


def found_in(
    out: Sequence[np.ndarray],
    row: int,
    branches: Sequence[str],
    scale: Sequence[float] | np.ndarray,
    name: str,
    least: np.ndarray | None = None,
) -> Found:
    """What a network found in one image of a batch, in pixels of the original; without boxes that have no area, which
    Detectron2 leaves out of the best max_per_img, too.

    out: boxes (B, D, 4) in canvas pixels, scores, labels, valid (B, D), and of each of `branches` (B, D, ...), as far
    as it gave them; row: the image's; scale, name: as Found.in_original; least: each label's least score.

    Raises EvaluationError for a box or score that isn't finite.
    """
    boxes, scores, labels, valid = (x[row] for x in out[:4])
    valid = valid & ~(boxes[:, 2:] <= boxes[:, :2]).any(1)
    kept = np.flatnonzero(valid if least is None else valid & (scores >= least[labels]))
    fields = {branch: x[row] for branch, x in zip(branches, out[4:])}
    return Found(boxes, scores, labels, fields).take(kept).in_original(scale, name)


def paste_options(config: Config) -> dict[str, dict[str, Any]]:
    """How the detector's branches are pasted."""
    return {branch: kind.options(config) for branch, kind in branch_kinds(config.branches).items()}


def paste(
    found: Found,
    height: int,
    width: int,
    class_names: Sequence[str],
    category_ids: Mapping[int, int | str],
    options: Options,
) -> Detections:
    """Detections of a picture (height, width), in pixels.

    class_names: of the labels, the background first; category_ids: the data set's id of each label, as far as known;
    options: see paste_options.
    """
    kinds, labels = branch_kinds(found.fields), found.labels.tolist()
    return Detections(
        height=height,
        width=width,
        boxes=np.clip(found.boxes, 0, np.array([width, height, width, height], np.float32)),
        scores=found.scores,
        labels=found.labels,
        names=[class_names[i] for i in labels],
        category_ids=[category_ids.get(i) for i in labels],
        # over the box that the head saw
        fields={
            b: k.values(found.fields[b], found.boxes, found.scale, height, width, options[b]) for b, k in kinds.items()
        },
    )


def results_of(
    found: Found,
    image_id: int,
    size: Sequence[int],
    class_names: Sequence[str],
    category_ids: Mapping[int, int],
    options: Options,
) -> list[dict]:
    """COCO results of a data set's image (height, width); the rest as `paste` takes it.

    Raises EvaluationError for a label without a category.
    """
    unknown = sorted(set(found.labels.tolist()) - category_ids.keys())
    if unknown:
        raise EvaluationError(f"image {image_id}: label {unknown[0]} has no category id; another data set's classes?")
    height, width = (int(v) for v in size)
    return paste(found, height, width, class_names, category_ids, options).to_coco(int(image_id))
