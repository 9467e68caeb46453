"""Precision, recall and F1 of each class and of all, at the score that suits best and at a given one."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.cocoeval import COCOeval

__all__ = ["ClassNumbers", "Curve", "OperatingPoint", "curves", "mean_of", "pooled"]


@dataclass(frozen=True)
class OperatingPoint:
    """What detections of at least `score` are worth. NaN where there is nothing to measure: a precision without
    detections, a recall without objects, a best score where none finds anything."""

    score: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ClassNumbers:
    """One class: COCO's AP, AP50 and AR (the recall with all detections that count, mean over IoU 0.50 to 0.95), NaN
    without objects; best: at the score of the highest F1; at_score: at the one asked for."""

    objects: int
    detections: int
    AP: float
    AP50: float
    AR: float
    best: OperatingPoint
    at_score: OperatingPoint


@dataclass(frozen=True)
class Curve:
    """Detections matched at one IoU, by falling score: scores (D,) float64, hits (D,) bool. objects: how many there are
    to find. Crowds, and detections that match one, are in neither."""

    scores: np.ndarray
    hits: np.ndarray
    objects: int

    def at(self, score: float) -> OperatingPoint:
        """With detections of at least `score`."""
        kept = int(np.searchsorted(-self.scores, -score, side="right"))
        return self._point(score, kept, int(self.hits[:kept].sum()))

    def best(self) -> OperatingPoint:
        """At the score whose F1 is the highest; of several, the highest score."""
        # a threshold keeps all detections of one score or none
        last = (
            np.flatnonzero(np.append(self.scores[1:] != self.scores[:-1], True))
            if len(self.scores)
            else np.zeros(0, int)
        )
        found = np.cumsum(self.hits)[last] if len(self.scores) else np.zeros(0)
        if not self.objects or not found.any():
            return self._point(float("nan"), 0, 0)
        i = int(np.argmax(2 * found / (last + 1 + self.objects)))
        return self._point(float(self.scores[last[i]]), int(last[i]) + 1, int(found[i]))

    def _point(self, score: float, kept: int, found: int) -> OperatingPoint:
        nan = float("nan")
        if not self.objects:
            return OperatingPoint(score, nan, nan, nan)
        f1 = 2 * found / (kept + self.objects)
        return OperatingPoint(score, found / kept if kept else nan, found / self.objects, f1)


def curves(run: COCOeval, iou: float) -> list[Curve]:
    """The curve of each class of an evaluation that ran, with COCO's matching at `iou`, one of run.params.iouThrs."""
    place = int(np.argmin(np.abs(np.asarray(run.params.iouThrs) - iou)))
    images, areas = len(run.params.imgIds), len(run.params.areaRng)
    out = []
    for k in range(len(run.params.catIds)):
        # evalImgs lies by class, area (the first: all) and image
        begin = k * areas * images
        rows = [e for e in run.evalImgs[begin : begin + images] if e is not None]
        scores = np.array([s for e in rows for s in e["dtScores"]], np.float64)
        ignored = np.concatenate([e["dtIgnore"][place] for e in rows] or [[]]).astype(bool)
        hits = np.concatenate([e["dtMatches"][place] for e in rows] or [[]]) > 0
        objects = sum(int((e["gtIgnore"] == 0).sum()) for e in rows)
        out.append(_sorted(scores[~ignored], hits[~ignored], objects))
    return out


def pooled(parts: Iterable[Curve]) -> Curve:
    """All classes with objects as one: of it come the micro totals."""
    parts = [c for c in parts if c.objects]
    if not parts:
        return Curve(np.zeros(0), np.zeros(0, bool), 0)
    scores, hits = (np.concatenate([getattr(c, name) for c in parts]) for name in ("scores", "hits"))
    return _sorted(scores, hits, sum(c.objects for c in parts))


def mean_of(points: Sequence[OperatingPoint]) -> OperatingPoint:
    """The macro totals: the mean of each number over the classes where it is measured."""
    values = np.array([dataclasses.astuple(p) for p in points]).reshape(-1, 4)
    means = [float(v[~np.isnan(v)].mean()) if (~np.isnan(v)).any() else float("nan") for v in values.T]
    return OperatingPoint(*means)


def _sorted(scores: np.ndarray, hits: np.ndarray, objects: int) -> Curve:
    order = np.argsort(-scores, kind="mergesort")
    return Curve(scores[order], hits[order], objects)
