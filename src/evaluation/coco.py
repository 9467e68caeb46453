"""COCO's metrics on COCO results (pycocotools)."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from src.evaluation.classes import ClassNumbers, OperatingPoint, curves, mean_of, pooled
from src.evaluation.kinds import KINDS, Kind, needed_branches
from src.evaluation.kinds.base import STANDARD, Number
from src.evaluation.results import checked_results
from src.evaluation.truth import EvaluationError, Truth, read_annotations
from src.runtime.newer import zip_equal

__all__ = [
    "EvaluationError",
    "Summary",
    "chosen",
    "evaluate",
]


@dataclass
class Summary:
    """COCO's numbers of each IoU type ("bbox", "segm"), each class's numbers, and the printed tables.

    max_dets: detections that count; standard: the numbers with COCO's own limit, of IoU types where they differ.
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
                out[kind][f"metrics_at_{KINDS[kind].standard}"] = _plain(plain)
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
    truth = annotations if isinstance(annotations, Truth) else read_annotations(annotations, needed_branches(iou_types))
    results = checked_results(results, truth, "results", computed=True)
    image_ids, categories = chosen(truth, image_ids, class_names)
    for name in iou_types:
        KINDS[name].demand(truth, results)
    summary = Summary(max_dets=max(max_per_img or 0, STANDARD), score=score, iou=iou)
    summary.images, summary.detections = len(image_ids), len(results)
    summary.notes = [*foreign_classes(truth, results), *crowded_images(truth, image_ids, categories, max_per_img)]
    names = truth.class_names()
    for name in iou_types:
        kind = KINDS[name]
        summary.notes += kind.notes(truth, categories)
        max_dets = kind.limit(max_per_img or 0)
        run = cocoeval(truth, results, kind, image_ids, categories, max_dets)
        numbers, standard = kind.numbers(max_dets), kind.numbers(kind.standard)
        summary.metrics[name] = values_of(run, numbers)
        summary.text += f"{name}:\n{table(run, numbers)}"
        at_standard = values_of(run, standard)
        if list(at_standard.values()) != list(summary.metrics[name].values()):
            summary.standard[name] = at_standard
            whole = [n for n in standard if (n.max_dets, n.iou, n.area) == (kind.standard, None, "all")]
            summary.text += f" with COCO's own limit:\n{table(run, whole)}"
        summary.precision[name] = run.eval["precision"][:, :, :, 0, -1]
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
    truth: Truth, results: list[dict], kind: Kind, image_ids: list[int], categories: list[int], max_dets: int
) -> COCOeval:
    """pycocotools' evaluation of a kind, run, on some images and categories."""
    rows = []
    for i, r in enumerate(results, 1):
        row = {k: r[k] for k in ("image_id", "category_id", "score")} | {"id": i, "iscrowd": 0}
        rows.append(row | kind.measured(r))
    with contextlib.redirect_stdout(io.StringIO()):
        found = COCO()
        found.dataset = {k: truth.dataset[k] for k in ("images", "categories")} | {"annotations": rows}
        found.createIndex()
        run = COCOeval(truth, found, kind.name)
        kind.set_up(run)
        run.params.imgIds, run.params.catIds = image_ids, categories
        run.params.maxDets = list(kind.counted(max_dets))
        run.evaluate()
        run.accumulate()
    return run


def value_of(run: COCOeval, number: Number) -> float:
    """The number; -1 without objects."""
    p = run.params
    values = run.eval[number.of][..., p.areaRngLbl.index(number.area), p.maxDets.index(number.max_dets)]
    if number.iou is not None:
        values = values[np.flatnonzero(number.iou == p.iouThrs)]
    values = values[values > -1]
    return float(np.mean(values)) if values.size else -1.0


def values_of(run: COCOeval, numbers: Iterable[Number]) -> dict[str, float]:
    """A kind's numbers by name."""
    return {n.name: value_of(run, n) for n in numbers}


def table(run: COCOeval, numbers: Iterable[Number]) -> str:
    """The numbers as pycocotools prints them."""
    lines = []
    for n in numbers:
        title, short = ("Average Precision", "(AP)") if n.of == "precision" else ("Average Recall", "(AR)")
        ious = "0.50:0.95" if n.iou is None else f"{n.iou:.2f}"
        where = f"IoU={ious:<9} | area={n.area:>6s} | maxDets={n.max_dets:>3d}"
        lines.append(f" {title:<18} {short} @[ {where} ] = {value_of(run, n):0.3f}")
    return "\n".join(lines) + "\n"


def measure_classes(summary: Summary, kind: Kind, run: COCOeval, names: list[str]) -> None:
    """Fills in the numbers of each class of `run`, and the totals."""
    matched = run
    if not np.isclose(run.params.iouThrs, summary.iou).any():
        matched = COCOeval(run.cocoGt, run.cocoDt, kind.name)
        kind.set_up(matched)
        matched.params.imgIds, matched.params.catIds = run.params.imgIds, run.params.catIds
        matched.params.iouThrs, matched.params.maxDets = np.array([summary.iou]), run.params.maxDets[-1:]
        matched.params.areaRng, matched.params.areaRngLbl = matched.params.areaRng[:1], ["all"]
        with contextlib.redirect_stdout(io.StringIO()):
            matched.evaluate()
    found = Counter(d["category_id"] for d in run.cocoDt.dataset["annotations"])
    rows = curves(matched, summary.iou)
    summary.classes[kind.name] = {
        name: ClassNumbers(
            curve.objects,
            found[category],
            mean_measured(run.eval["precision"][:, :, k, 0, -1]),
            mean_measured(run.eval["precision"][0, :, k, 0, -1]),
            mean_measured(run.eval["recall"][:, k, 0, -1]),
            curve.best(),
            curve.at(summary.score),
        )
        for k, (name, category, curve) in enumerate(zip_equal(names, run.params.catIds, rows))
    }
    together = pooled(rows)
    with_objects = [c for c in summary.classes[kind.name].values() if c.objects]
    summary.totals[kind.name] = {
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
    wide = {k: max(8, len(k) + 3) for k in kinds}
    lines = [f"{'class':{width}s} " + " ".join(f"{k + ' AP':>8s}" for k in kinds)]
    for n in names:
        values = ("-" if (v := per_class[k][n]) != v else f"{v:.3f}" for k in kinds)
        lines.append(f"{n:{width}s} " + " ".join(f"{v:>{w}s}" for v, w in zip_equal(values, wide.values())))
    return "\n".join(lines) + "\n"
