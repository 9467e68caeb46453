"""Masks: COCO's run-length encodings of the whole picture ({"size": [height, width], "counts": text})."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle

from src.config import Config
from src.data.polygons import mask_polygons
from src.data.segmentations import as_rle, normal_segmentation, run_totals
from src.drawing.objects import Layer, mask_layer
from src.evaluation.kinds.base import Kind, Shape
from src.evaluation.masks import paste_masks
from src.evaluation.truth import EvaluationError, Truth

__all__ = ["Masks"]

TOLERANCE = 0.5  # pixels that a corner may lie beside the mask's edge, so that corners are few


class Masks(Kind):
    """options: "threshold" (0..1) and "convention", as paste_masks takes them. rows (N, M, M), as there."""

    name, branch, noun, key = "segm", "mask", "masks", "segmentation"
    told_by = "mask_paste"

    def options(self, config: Config) -> dict[str, Any]:
        return {"threshold": config.test_cfg.rcnn.mask_thr_binary, "convention": config.mask_paste}

    def tells(self, summary: Mapping[str, Any]) -> bool:
        if self.told_by not in summary:
            return True
        paste = summary[self.told_by]
        threshold = paste.get("threshold") if isinstance(paste, dict) else None
        number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool) and 0 <= threshold <= 1
        return number and paste.get("convention") in ("torchvision", "grid")

    def values(
        self,
        rows: np.ndarray,
        boxes: np.ndarray,
        scale: np.ndarray,
        height: int,
        width: int,
        options: Mapping[str, Any],
    ) -> list:
        return paste_masks(rows, boxes, height, width, options["threshold"], options["convention"])

    def resized(self, value: dict, height: int, width: int, to: tuple[int, int]) -> dict:
        if height <= to[0]:
            return value  # is enlarged where it's drawn, smoothly
        # pycocotools' bitmaps lie in memory by columns
        small = cv2.resize(rle.decode(value).T, to, interpolation=cv2.INTER_NEAREST)
        return rle.encode(np.asfortranarray(small.T))

    def entry(self, value: dict) -> dict[str, Any]:
        return {"mask": value}

    def annotation(self, value: dict) -> dict[str, Any]:
        polygons = [p.ravel().tolist() for p in mask_polygons(rle.decode(value), TOLERANCE)]
        return {"area": int(rle.area(value)), "segmentation": polygons} if polygons else {}

    def shapes(self, value: dict) -> list[Shape]:
        return [Shape(p, "polygon") for p in mask_polygons(rle.decode(value), TOLERANCE)]

    def checked(self, value: Any, image: Mapping[str, Any], category: Mapping[str, Any]) -> dict:
        height, width = image.get("height"), image.get("width")
        if not (isinstance(height, int) and height > 0 and isinstance(width, int) and width > 0):
            raise ValueError("it has a mask, but the annotations don't say the image's height and width")
        return as_rle(normal_segmentation(value, height, width, "its segmentation", check_runs=False), height, width)

    def faults(self, values: Sequence[dict]) -> Iterator[tuple[int, str]]:
        totals = run_totals([v["counts"] for v in values])
        for i, total in enumerate(totals.tolist()):
            height, width = values[i]["size"]
            if total != height * width:
                covered = f": they cover {total} pixels" if total >= 0 else ""
                yield i, f"RLE counts that can't be decoded to {height} x {width} pixels{covered}"

    def box(self, value: dict) -> list[float]:
        return rle.toBbox(value).tolist()

    def annotated(self, truth: Truth) -> bool:
        objects = [a for a in truth.dataset["annotations"] if not a["iscrowd"]]
        return not objects or any(self.held(a) for a in objects)

    def converted(self, index: Mapping[str, Any]) -> bool:
        return index["with_masks"]

    def demand(self, truth: Truth, results: Sequence[dict] = ()) -> None:
        for a in truth.dataset["annotations"]:
            if not self.held(a):
                if not a["iscrowd"]:
                    lacks = f"annotation {a['id']} (of image {a['image_id']}) lacks segmentation"
                    raise EvaluationError(f"{truth.path}: {lacks}; evaluate boxes alone (--iou_types bbox)")
                # a crowd is only left out of account, which its box says, too
                x, y, w, h = a["bbox"]
                a["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        for i, r in enumerate(results):
            if "segmentation" not in r:
                raise EvaluationError(
                    f"{truth.path}: the results have no masks to evaluate: entry {i} lacks 'segmentation'; evaluate"
                    " boxes alone (--iou_types bbox)"
                )

    def measured(self, result: Mapping[str, Any]) -> dict[str, Any]:
        # the mask's own area, not its box's
        return {"segmentation": result["segmentation"], "area": int(rle.area(result["segmentation"]))}

    def layer(self, values: Sequence[Any]) -> Layer:
        return mask_layer(values)

    def drawable(self, entry: Mapping[str, Any], category: Mapping[str, Any], height: int, width: int) -> dict | None:
        segmentation = entry.get("segmentation")
        if not segmentation:
            return None
        if isinstance(segmentation, list):
            # COCO holds stray polygons of one or two points, which pycocotools would take for boxes
            whole = [p for p in segmentation if len(p) >= 6]
            return rle.merge(rle.frPyObjects(whole, height, width)) if whole else None
        runs = isinstance(segmentation["counts"], list)
        return rle.frPyObjects(segmentation, height, width) if runs else segmentation
