"""Detections as COCO results, and COCO's metrics on them (pycocotools)."""

import contextlib
import dataclasses
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from src.evaluation.classes import ClassNumbers, OperatingPoint, curves, mean_of, pooled
from src.evaluation.masks import Convention, paste_masks
from src.evaluation.results import checked_results
from src.evaluation.truth import EvaluationError, Truth, read_annotations

__all__ = [
    "EvaluationError",
    "Summary",
    "choose_kinds",
    "chosen",
    "coco_results",
    "demand_masks",
    "evaluate",
    "metric_names",
]

STANDARD = 100  # detections of a class in an image that COCO's metrics count


def metric_names(max_dets: int = STANDARD) -> tuple[str, ...]:
    """Names of COCO's twelve numbers, where `max_dets` detections count."""
    return ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", f"AR{max_dets}", "ARs", "ARm", "ARl")


METRICS = metric_names()


@dataclass
class Summary:
    """COCO's twelve numbers of each IoU type ("bbox", "segm"), each class's numbers, and the printed tables.

    max_dets: detections that count; standard: the twelve numbers with COCO's 100, of IoU types where they differ.
    score, iou: of the numbers at a given score, and of a match in them; best: at the best score instead. micro: of
    all detections together; macro: mean of the classes. precision: (IoU thresholds, recalls, classes) of objects of
    all sizes; -1 for a class without objects. notes: what a reader of the numbers must know, a line each.
    """

    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    classes: dict[str, dict[str, ClassNumbers]] = field(default_factory=dict)
    totals: dict[str, dict[str, dict[str, OperatingPoint]]] = field(default_factory=dict)
    standard: dict[str, dict[str, float]] = field(default_factory=dict)
    precision: dict[str, np.ndarray] = field(default_factory=dict)
    max_dets: int = STANDARD
    score: float = 0.5
    iou: float = 0.5
    images: int = 0
    detections: int = 0
    notes: list[str] = field(default_factory=list)
    text: str = ""

    @property
    def per_class(self) -> dict[str, dict[str, float]]:
        """The AP of each class; NaN for one without objects."""
        return {kind: {name: c.AP for name, c in rows.items()} for kind, rows in self.classes.items()}

    def by_class(self) -> dict[str, dict[str, dict]]:
        """Each class's numbers as JSON has them, by IoU type and class: None where not measurable."""
        return {
            kind: {name: _plain(dataclasses.asdict(c)) for name, c in rows.items()}
            for kind, rows in self.classes.items()
        }

    def to_dict(self) -> dict:
        """Everything as JSON has it: None where not measurable."""
        out = {k: getattr(self, k) for k in ("images", "detections", "max_dets", "score", "iou", "notes")}
        for kind, rows in self.by_class().items():
            out[kind] = {"metrics": _plain({k: v if v > -1 else math.nan for k, v in self.metrics[kind].items()})}
            if kind in self.standard:
                plain = {k: v if v > -1 else math.nan for k, v in self.standard[kind].items()}
                out[kind][f"metrics_at_{STANDARD}"] = _plain(plain)
            totals = {
                name: {k: dataclasses.asdict(p) for k, p in points.items()}
                for name, points in self.totals[kind].items()
            }
            out[kind] |= _plain(totals) | {"classes": rows}
        return out


def _plain(values: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(values, dict):
        return {k: _plain(v) for k, v in values.items()}
    return None if isinstance(values, float) and math.isnan(values) else values


def coco_results(
    image_id: int,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    masks: np.ndarray | None,
    original_size: Sequence[int],
    scale: Sequence[float],
    category_ids: dict[int, int],
    mask_threshold: float = 0.5,
    mask_convention: Convention = "torchvision",
) -> list[dict]:
    """One image's detections as COCO results.

    boxes (N, 4) float32 x1 y1 x2 y2 in canvas pixels, scores (N,), labels (N,) int, masks (N, M, M) probabilities or
    None; original_size (height, width) in pixels, scale (y, x) with canvas = original * scale. Boxes come out as
    [x, y, width, height] in pixels of the original, clipped to it, to a hundredth; scores to six digits after the
    point. category_ids turns a label into the data set's category id.

    Raises EvaluationError for a label without a category, and for a box or score that isn't finite.
    """
    height, width = (int(v) for v in original_size)
    size, labels = (height, width), np.asarray(labels)
    unknown = sorted(set(labels.tolist()) - category_ids.keys())
    if unknown:
        raise EvaluationError(f"image {image_id}: label {unknown[0]} has no category id; another data set's classes?")
    boxes = in_original(boxes, scores, scale, f"image {image_id}")
    # over the box that the mask head saw: clipping first would squeeze the mask
    encoded = None if masks is None else paste_masks(masks, boxes, *size, mask_threshold, mask_convention)
    return result_rows(
        int(image_id), clip_to_picture(boxes, *size), scores, [category_ids[i] for i in labels.tolist()], encoded
    )


def in_original(boxes: np.ndarray, scores: np.ndarray, scale: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
    """Boxes (N, 4) float32 in canvas pixels in those of the original, which they may leave; scale: as coco_results.

    Raises EvaluationError, of the image `name`, for a box or score (N,) that isn't finite.
    """
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise EvaluationError(f"{name}: a detection isn't finite; did the training diverge?")
    sy, sx = (float(v) for v in scale)
    return boxes / np.array([sx, sy, sx, sy], np.float32)


def clip_to_picture(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes (N, 4) float32 cut where they leave a picture of this size."""
    return np.clip(boxes, 0, np.array([width, height, width, height], np.float32))


def result_rows(
    image_id: int | str,
    boxes: np.ndarray,
    scores: np.ndarray,
    category_ids: Sequence[int | str],
    masks: Sequence[dict] | None,
) -> list[dict]:
    """COCO results of boxes (N, 4) x1 y1 x2 y2 in pixels of the image: rounded as coco_results says; masks: N RLEs."""
    out = []
    for i, (x1, y1, x2, y2) in enumerate(np.asarray(boxes, np.float64)):
        result = {
            "image_id": image_id,
            "category_id": category_ids[i],
            "bbox": np.round([x1, y1, x2 - x1, y2 - y1], 2).tolist(),
            "score": round(float(scores[i]), 6),
        }
        if masks is not None:
            result["segmentation"] = masks[i]
        out.append(result)
    return out


def choose_kinds(masks: dict[str, bool], asked: Sequence[str] | None = None) -> tuple[tuple[str, ...], str]:
    """What to measure, of "bbox" and "segm": what is asked for, else what there is, and a line on what is left out.

    masks: whether each of those that must have masks for it has some, {"annotations": True, "detections": False}.
    """
    if asked:
        return tuple(k for k in ("bbox", "segm") if k in asked), ""
    lacking = [who for who, some in masks.items() if not some]
    if lacking:
        return ("bbox",), f"boxes alone are measured: the {' and the '.join(lacking)} have no masks (segm left out)"
    return ("bbox", "segm"), ""


def evaluate(
    annotations: str | Path | Truth,
    results: list[dict],
    iou_types: Sequence[str] = ("bbox", "segm"),
    image_ids: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    max_per_img: int | None = None,
    score: float = 0.5,
    iou: float = 0.5,
) -> Summary:
    """COCO's metrics of `results` against an annotation file.

    On `image_ids` alone, or all images of the file; on the classes `class_names` alone, or all of them. A metric
    without objects to measure is -1, as COCO has it; with no detection at all every other one is 0. max_per_img: most
    detections that an image can have, which all count where that is more than COCO's 100 a class. score, iou: of the
    numbers of each class at a given score.

    Raises EvaluationError.
    """
    truth = annotations if isinstance(annotations, Truth) else read_annotations(annotations, "segm" in iou_types)
    results = checked_results(results, truth, "results", computed=True)
    image_ids, categories = chosen(truth, image_ids, class_names)
    if "segm" in iou_types:
        demand_masks(truth, results)
    summary = Summary(max_dets=max(max_per_img or 0, STANDARD), score=score, iou=iou)
    summary.images, summary.detections = len(image_ids), len(results)
    summary.notes = [*foreign_classes(truth, results), *crowded_images(truth, image_ids, categories, max_per_img)]
    names = truth.class_names()
    for kind in iou_types:
        run = cocoeval(truth, results, kind, image_ids, categories, summary.max_dets)
        summary.metrics[kind] = twelve_numbers(run, summary.max_dets)
        summary.text += f"{kind}:\n{table(run, summary.max_dets)}"
        standard = twelve_numbers(run, STANDARD)
        if list(standard.values()) != list(summary.metrics[kind].values()):
            summary.standard[kind] = standard
            lines = table(run, STANDARD).splitlines()
            summary.text += f" with COCO's own limit:\n{lines[0]}\n{lines[8]}\n"
        summary.precision[kind] = run.eval["precision"][:, :, :, 0, -1]
        measure_classes(summary, kind, run, [names[c] for c in categories])
    summary.text = "".join(f"{n}\n" for n in summary.notes) + summary.text + class_table(summary.per_class)
    return summary


def chosen(
    truth: Truth, image_ids: Sequence[int] | None, class_names: Sequence[str] | None
) -> tuple[list[int], list[int]]:
    """Ids of the images and of the categories to measure. Raises EvaluationError for those that aren't there."""
    foreign = sorted(set(image_ids or ()) - truth.imgs.keys())
    if foreign:
        raise EvaluationError(f"{truth.path}: has no image {foreign[0]}, on which to evaluate")
    named = {name: category for category, name in truth.class_names().items()}
    foreign = sorted(set(class_names or ()) - named.keys())
    if foreign:
        raise EvaluationError(f"{truth.path}: has no class {foreign[0]!r}; it has {', '.join(named)}")
    images = truth.imgs if image_ids is None else {int(i) for i in image_ids}
    categories = truth.cats if class_names is None else {named[n] for n in class_names}
    return sorted(images), sorted(categories)


def demand_masks(truth: Truth, results: Sequence[dict] = ()) -> None:
    """Raises EvaluationError where an object or a detection lacks its mask; a crowd without gets its box."""
    for a in truth.dataset["annotations"]:
        if not a.get("segmentation"):
            if not a["iscrowd"]:
                lacks = f"annotation {a['id']} (of image {a['image_id']}) lacks segmentation"
                raise EvaluationError(f"{truth.path}: {lacks}; evaluate boxes alone (--iou_types bbox)")
            # a crowd is only left out of account, which its box says, too
            x, y, w, h = a["bbox"]
            a["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    for i, r in enumerate(results):
        if "segmentation" not in r:
            raise EvaluationError(
                f"{truth.path}: the results have no masks to evaluate: entry {i} lacks 'segmentation'; evaluate boxes"
                " alone (--iou_types bbox)"
            )


def foreign_classes(truth: Truth, results: list[dict]) -> list[str]:
    """A line on detections of classes that the truth doesn't have."""
    count = Counter(r["category_id"] for r in results if r["category_id"] not in truth.cats)
    if not count:
        return []
    which = ", ".join(map(str, sorted(count)))
    return [f"{sum(count.values())} detections of categories that the annotations lack ({which}) count for nothing"]


def crowded_images(truth: Truth, image_ids: list[int], categories: list[int], max_per_img: int | None) -> list[str]:
    """A line on images with more objects than detections can count: of an image, or where none of these is set, of a
    class in it."""
    images, classes = set(image_ids), set(categories)
    count: Counter = Counter()
    for a in truth.dataset["annotations"]:
        if not a["iscrowd"] and a["image_id"] in images and a["category_id"] in classes:
            count[(a["image_id"], None if max_per_img else a["category_id"])] += 1
    limit = max_per_img or STANDARD
    beyond = {key: n for key, n in count.items() if n > limit}
    if not beyond:
        return []
    (image, _), most = max(beyond.items(), key=lambda item: item[1])
    name = truth.imgs[image].get("file_name", f"image {image}")
    of = "an image, test_cfg.rcnn.max_per_img" if max_per_img else "of a class in an image"
    held = len({key[0] for key in beyond})
    return [f"images with more objects than detections that count ({limit} {of}): {held}; {name} has the most, {most}"]


def cocoeval(
    truth: Truth, results: list[dict], kind: str, image_ids: list[int], categories: list[int], max_dets: int
) -> COCOeval:
    """pycocotools' evaluation of "bbox" or "segm", run, on some images and categories."""
    rows = []
    for i, r in enumerate(results, 1):
        row = {k: r[k] for k in ("image_id", "category_id", "score")} | {"id": i, "iscrowd": 0}
        if kind == "segm":
            # the mask's own area, not its box's, for small, medium and large
            rows.append(row | {"segmentation": r["segmentation"], "area": int(rle.area(r["segmentation"]))})
        else:
            rows.append(row | {"bbox": r["bbox"], "area": r["bbox"][2] * r["bbox"][3]})
    with contextlib.redirect_stdout(io.StringIO()):
        found = COCO()
        found.dataset = {k: truth.dataset[k] for k in ("images", "categories")} | {"annotations": rows}
        found.createIndex()
        run = COCOeval(truth, found, kind)
        run.params.imgIds, run.params.catIds = image_ids, categories
        run.params.maxDets = sorted({1, 10, STANDARD, max_dets})
        run.evaluate()
        run.accumulate()
    return run


def number(run: COCOeval, name: str, max_dets: int, iou: float | None = None, area: str = "all") -> float:
    """The mean "precision" or "recall" over classes and IoUs, or at one IoU; -1 without objects."""
    values = run.eval[name][..., run.params.areaRngLbl.index(area), run.params.maxDets.index(max_dets)]
    if iou is not None:
        values = values[np.flatnonzero(iou == run.params.iouThrs)]
    values = values[values > -1]
    return float(np.mean(values)) if values.size else -1.0


def twelve(max_dets: int) -> list[tuple[str, int, float | None, str]]:
    """What COCO's twelve numbers are: precision or recall, detections that count, IoU, area of the objects."""
    sizes = ("small", "medium", "large")
    return [
        *(("precision", max_dets, iou, "all") for iou in (None, 0.5, 0.75)),
        *(("precision", max_dets, None, size) for size in sizes),
        *(("recall", n, None, "all") for n in (1, 10, max_dets)),
        *(("recall", max_dets, None, size) for size in sizes),
    ]


def twelve_numbers(run: COCOeval, max_dets: int) -> dict[str, float]:
    """COCO's twelve numbers by name."""
    return {n: number(run, *what) for n, what in zip(metric_names(max_dets), twelve(max_dets), strict=True)}


def table(run: COCOeval, max_dets: int) -> str:
    """The twelve numbers as pycocotools prints them."""
    lines = []
    for name, limit, iou, area in twelve(max_dets):
        title, short = ("Average Precision", "(AP)") if name == "precision" else ("Average Recall", "(AR)")
        ious = "0.50:0.95" if iou is None else f"{iou:.2f}"
        value = number(run, name, limit, iou, area)
        lines.append(f" {title:<18} {short} @[ IoU={ious:<9} | area={area:>6s} | maxDets={limit:>3d} ] = {value:0.3f}")
    return "\n".join(lines) + "\n"


def measure_classes(summary: Summary, kind: str, run: COCOeval, names: list[str]) -> None:
    """Fills in the numbers of each class of `run`, and the totals."""
    matched = run
    if not np.isclose(run.params.iouThrs, summary.iou).any():
        matched = COCOeval(run.cocoGt, run.cocoDt, kind)
        matched.params.imgIds, matched.params.catIds = run.params.imgIds, run.params.catIds
        matched.params.iouThrs, matched.params.maxDets = np.array([summary.iou]), [summary.max_dets]
        matched.params.areaRng, matched.params.areaRngLbl = matched.params.areaRng[:1], ["all"]
        with contextlib.redirect_stdout(io.StringIO()):
            matched.evaluate()
    found = Counter(d["category_id"] for d in run.cocoDt.dataset["annotations"])
    rows = curves(matched, summary.iou)
    summary.classes[kind] = {
        name: ClassNumbers(
            curve.objects,
            found[category],
            mean_measured(run.eval["precision"][:, :, k, 0, -1]),
            mean_measured(run.eval["precision"][0, :, k, 0, -1]),
            mean_measured(run.eval["recall"][:, k, 0, -1]),
            curve.best(),
            curve.at(summary.score),
        )
        for k, (name, category, curve) in enumerate(zip(names, run.params.catIds, rows, strict=True))
    }
    together = pooled(rows)
    with_objects = [c for c in summary.classes[kind].values() if c.objects]
    summary.totals[kind] = {
        "micro": {"best": together.best(), "at_score": together.at(summary.score)},
        "macro": {name: mean_of([getattr(c, name) for c in with_objects]) for name in ("best", "at_score")},
    }


def mean_measured(values: np.ndarray) -> float:
    """The mean where measured, NaN without objects."""
    return float(values[values > -1].mean()) if (values > -1).any() else math.nan


def class_table(per_class: dict[str, dict[str, float]]) -> str:
    """The AP of each class as lines of text."""
    kinds = list(per_class)
    names = list(per_class[kinds[0]]) if kinds else []
    width = max([len(n) for n in names] + [5])
    lines = [f"{'class':{width}s} " + " ".join(f"{k + ' AP':>8s}" for k in kinds)]
    for n in names:
        values = (per_class[k][n] for k in kinds)
        lines.append(f"{n:{width}s} " + " ".join(f"{'-':>8s}" if v != v else f"{v:8.3f}" for v in values))
    return "\n".join(lines) + "\n"
