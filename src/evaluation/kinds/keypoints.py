"""Keypoints: points of an object that have names, told apart by their places."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval, Params

from src.config import Config
from src.config.keys import COCO_KEYPOINTS
from src.drawing.objects import Layer, Shade
from src.drawing.skeletons import skeleton_layer, surely
from src.evaluation.keypoints import Points, decode_heatmaps
from src.evaluation.kinds.base import Kind, Number, Shape
from src.evaluation.kinds.box import is_finite
from src.evaluation.truth import EvaluationError, Truth
from src.runtime.newer import zip_equal

__all__ = ["Keypoints"]

SIGMA = 0.05  # how far annotators differ, as a share of the object's size: of points that COCO hasn't measured
NEAR = 1e-3  # pixels of the canvas; beside dividing and multiplying by a scale
COCO_SIGMAS = dict(zip_equal(COCO_KEYPOINTS, Params("keypoints").kpt_oks_sigmas.tolist()))


class Keypoints(Kind):
    """options: "names" of the K points, "skeleton" if it is known, and to decode heatmaps "score" and "half_pixel", as
    the config's. rows (N, K, S, S), logits of heatmaps, or (N, K, 3), as a value is. A value: Points (K, 3), scores as
    the options have them.

    The IoU of its metrics is COCO's object keypoint similarity (OKS).
    """

    name, branch, noun, key, standard = "keypoints", "keypoint", "keypoints", "keypoints", 20
    told_by = "keypoints"

    def options(self, config: Config) -> dict[str, Any]:
        head = config.keypoint_head
        known = {"names": list(head.names), "score": head.score, "half_pixel": head.half_pixel}
        return known | ({"skeleton": head.skeleton} if head.skeleton else {})

    def tells(self, summary: Mapping[str, Any]) -> bool:
        if self.told_by not in summary:
            return True
        told = summary[self.told_by]
        names = told.get("names") if isinstance(told, dict) else None
        return isinstance(names, list) and bool(names) and all(isinstance(n, str) for n in names)

    def values(
        self,
        rows: np.ndarray,
        boxes: np.ndarray,
        scale: np.ndarray,
        height: int,
        width: int,
        options: Mapping[str, Any],
    ) -> list:
        if not np.isfinite(rows).all():
            raise EvaluationError("a detection's keypoints aren't finite; did the training diverge?")
        if rows.ndim == 4:
            scale = np.asarray(scale, np.float32)[:, [1, 0]]
            boxes = boxes * np.concatenate([scale, scale], 1)
            # corners on the canvas's edge were whole numbers, and a side's fraction decides how far a map is enlarged
            boxes = np.where(np.abs(boxes - np.round(boxes)) < NEAR, np.round(boxes), boxes)
            rows = decode_heatmaps(rows, boxes, options["score"])
            rows[:, :, :2] /= scale[:, None]
            if options["half_pixel"]:
                rows[:, :, :2] -= 0.5
        return [Points(row, options["names"], options.get("skeleton")) for row in rows]

    def resized(self, value: Points, height: int, width: int, to: tuple[int, int]) -> Points:
        return value.like(value * np.array([to[1] / width, to[0] / height, 1]))

    def rounded(self, value: Points) -> Points:
        plain = np.array(value, np.float64)
        return value.like(np.column_stack([plain[:, :2].round(2), plain[:, 2].round(4)]))

    def result(self, value: Points) -> dict[str, Any]:
        return {"keypoints": np.asarray(value).ravel().tolist(), "num_keypoints": len(value)}

    def entry(self, value: Points) -> dict[str, Any]:
        rows = zip_equal(value.names, np.asarray(value).tolist())
        return {"keypoints": [{"name": name, "x": x, "y": y, "score": score} for name, (x, y, score) in rows]}

    def annotation(self, value: Points) -> dict[str, Any]:
        # a point of which the detector isn't sure isn't labelled, so that nobody learns from it
        sure = surely(value).tolist()
        points = zip_equal(self.rounded(value).tolist(), sure)
        numbers = [n for (x, y, _), seen in points for n in ((x, y, 2) if seen else (0, 0, 0))]
        return {"keypoints": numbers, "num_keypoints": sum(sure)} if any(sure) else {}

    def category(self, value: Points) -> dict[str, Any]:
        names = {"keypoints": list(value.names)}
        return names if value.skeleton is None else names | {"skeleton": value.skeleton}

    def shapes(self, value: Points) -> list[Shape]:
        named = zip_equal(np.asarray(value), value.names, surely(value))
        return [Shape(point[None, :2], "point", name) for point, name, sure in named if sure]

    def checked(self, value: Any, image: Mapping[str, Any], category: Mapping[str, Any]) -> list[float]:
        if not isinstance(value, list) or len(value) % 3:
            raise ValueError(f"keypoints {str(value)[:60]} aren't a list of x, y and a number for each point")
        if not all(map(is_finite, value)):
            raise ValueError(f"keypoints {str(value)[:60]} aren't finite numbers")
        names = category.get("keypoints")
        if names and len(value) != 3 * len(names):
            of = f"the annotations' category {category.get('name', category['id'])!r} has {len(names)}"
            raise ValueError(f"{len(value) // 3} keypoints, where {of}; results of another detector?")
        return list(map(float, value))

    def box(self, value: list[float]) -> list[float]:
        points = np.reshape(value, (-1, 3))[:, :2]
        return [*points.min(0).tolist(), *np.ptp(points, axis=0).tolist()]

    def annotated(self, truth: Truth) -> bool:
        return any_labelled(truth.dataset["annotations"])

    def converted(self, index: Mapping[str, Any]) -> bool:
        # the truth has an annotation a line, and one of the first tells
        with Path(index["annotations"]).open() as f:
            rows = (json.loads(line.rstrip(",\n")) for line in f if line.startswith('{"id":'))
            return any_labelled(row for row in rows if "image_id" in row)

    def demand(self, truth: Truth, results: Sequence[dict] = ()) -> None:
        objects = truth.dataset["annotations"]
        if not any_labelled(objects):
            raise EvaluationError(f"{truth.path}: no object has a keypoint; evaluate boxes alone (--iou_types bbox)")
        for i, r in enumerate(results):
            if "keypoints" not in r:
                raise EvaluationError(
                    f"{truth.path}: the results have no keypoints to evaluate: entry {i} lacks 'keypoints'; evaluate"
                    " boxes alone (--iou_types bbox)"
                )
        # objects without any, of which COCO's annotations of boxes are full, count neither for nor against
        length = {r["category_id"]: len(r["keypoints"]) for r in results}
        length |= {a["category_id"]: len(a["keypoints"]) for a in objects if self.held(a)}
        for a in objects:
            if not self.held(a):
                a["keypoints"] = [0] * length.get(a["category_id"], 0)
            a.setdefault("num_keypoints", labelled(a))
        for i, r in enumerate(results):
            count = length[r["category_id"]]
            if len(r["keypoints"]) != count:
                several = f"{len(r['keypoints']) // 3} keypoints, where others of its category have {count // 3}"
                raise EvaluationError(f"{truth.path}: entry {i} of the results has {several}")

    def measured(self, result: Mapping[str, Any]) -> dict[str, Any]:
        # as pycocotools takes results of keypoints alone: the points' extent, not the box's
        _, _, width, height = self.box(result["keypoints"])
        return {"keypoints": result["keypoints"], "area": width * height}

    def set_up(self, run: COCOeval) -> None:
        similarity = run.computeOks

        def of_category(image: int, category: int) -> Any:
            found = run._dts[image, category]
            names = run.cocoGt.cats[category].get("keypoints") or ()
            run.params.kpt_oks_sigmas = sigmas(names, len(found[0]["keypoints"]) // 3 if found else len(names))
            return similarity(image, category)

        run.computeOks = of_category

    def notes(self, truth: Truth, categories: Collection[int]) -> list[str]:
        named = truth.class_names()
        used = {a["category_id"] for a in truth.dataset["annotations"] if labelled(a)}
        others = [named[c] for c in categories if c in used and not known(truth.cats[c].get("keypoints") or [""])]
        what = f"keypoints of {', '.join(others)}: COCO hasn't measured how well these can be told"
        return [f"{what}; OKS takes {SIGMA} for each"] if others else []

    def limit(self, max_per_img: int) -> int:
        return self.standard

    def numbers(self, max_dets: int) -> tuple[Number, ...]:
        return (
            Number("AP", "precision", max_dets),
            Number("AP50", "precision", max_dets, 0.5),
            Number("AP75", "precision", max_dets, 0.75),
            Number("APm", "precision", max_dets, None, "medium"),
            Number("APl", "precision", max_dets, None, "large"),
            Number("AR", "recall", max_dets),
            Number("AR50", "recall", max_dets, 0.5),
            Number("AR75", "recall", max_dets, 0.75),
            Number("ARm", "recall", max_dets, None, "medium"),
            Number("ARl", "recall", max_dets, None, "large"),
        )

    def layer(self, values: Sequence[Points | None]) -> Layer:
        layers = [None if v is None else skeleton_layer([v], v.names, v.skeleton) for v in values]

        def paint(canvas: np.ndarray, i: int, shade: Shade, line: int, zoom: float) -> None:
            if (layer := layers[i]) is not None:
                layer(canvas, 0, shade, line, zoom)

        return paint

    def drawable(self, entry: Mapping[str, Any], category: Mapping[str, Any], height: int, width: int) -> Points | None:
        if not self.held(entry):
            return None
        points = np.array(entry["keypoints"], np.float64).reshape(-1, 3)
        names = category.get("keypoints") or [""] * len(points)
        return Points(points, names, category.get("skeleton"))


def labelled(annotation: Mapping[str, Any]) -> int:
    """How many of an annotation's points are labelled."""
    return sum(v > 0 for v in (annotation.get("keypoints") or ())[2::3])


def any_labelled(annotations: Iterable[Mapping[str, Any]]) -> bool:
    """Whether an object has a labelled point, if there are objects."""
    none = True
    for a in annotations:
        if not a["iscrowd"]:
            if labelled(a):
                return True
            none = False
    return none


def known(names: Sequence[str]) -> bool:
    """Whether COCO has measured these."""
    return all(name in COCO_SIGMAS for name in names)


def sigmas(names: Sequence[str], count: int) -> np.ndarray:
    """The `count` points' sigmas, which OKS needs."""
    return np.array([COCO_SIGMAS[n] for n in names] if len(names) == count and known(names) else [SIGMA] * count)
