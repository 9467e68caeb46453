"""Detections as COCO results, and COCO's metrics on them (pycocotools)."""

import contextlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from src.errors import UserError
from src.evaluation.masks import Convention, paste_masks

__all__ = ["EvaluationError", "Summary", "coco_results", "evaluate", "load_results", "save_results", "saved_results"]

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class EvaluationError(UserError):
    """Results or annotations that can't be used; the message names the file and the remedy."""


class DamagedResultsError(EvaluationError):
    """A results file that isn't whole JSON."""


@dataclass
class Summary:
    """COCO's twelve numbers of each IoU type ("bbox", "segm"), the AP of each class, and the printed tables.

    precision: (IoU thresholds, recalls, classes) of objects of all sizes; -1 for a class without objects.
    """

    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    precision: dict[str, np.ndarray] = field(default_factory=dict)
    text: str = ""


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
    sy, sx = (float(v) for v in scale)
    unknown = sorted(set(np.asarray(labels).tolist()) - category_ids.keys())
    if unknown:
        raise EvaluationError(f"image {image_id}: label {unknown[0]} has no category id; another data set's classes?")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise EvaluationError(f"image {image_id}: a detection isn't finite; did the training diverge?")
    boxes = boxes / np.array([sx, sy, sx, sy], np.float32)
    encoded = [None] * len(boxes)
    if masks is not None:
        # over the box that the mask head saw: clipping first would squeeze the mask
        encoded = paste_masks(masks, boxes, height, width, mask_threshold, mask_convention)
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    out = []
    for box, score, label, mask in zip(boxes.astype(np.float64), scores, labels, encoded, strict=True):
        xywh = np.round([box[0], box[1], box[2] - box[0], box[3] - box[1]], 2).tolist()
        result = {
            "image_id": int(image_id),
            "category_id": category_ids[int(label)],
            "bbox": xywh,
            "score": round(float(score), 6),
        }
        if mask is not None:
            result["segmentation"] = mask
        out.append(result)
    return out


def save_results(path: str | Path, results: list[dict]) -> None:
    """Writes a COCO results file (compact JSON): beside, then renamed, so that it is whole or not there.

    Raises EvaluationError.
    """
    path = Path(path)
    beside = path.with_name(path.name + ".writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(results, separators=(",", ":")))
        os.replace(beside, path)
    except OSError as e:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise EvaluationError(f"{path}: can't write the results: {e.strerror}; free space or name another") from None


def load_results(path: str | Path) -> list[dict]:
    """Reads a COCO results file: [{"image_id", "category_id", "bbox", "score", "segmentation"?}, ...].

    Raises EvaluationError.
    """
    try:
        results = json.loads(Path(path).read_bytes())
    except OSError as e:
        raise EvaluationError(f"{path}: can't read the results: {e.strerror}") from None
    except ValueError as e:
        at = f" (line {e.lineno} column {e.colno})" if isinstance(e, json.JSONDecodeError) else ""
        raise DamagedResultsError(f"{path}: not whole JSON{at}; remove it and evaluate again") from None
    needed = {"image_id", "category_id", "bbox", "score"}
    if not isinstance(results, list):
        raise EvaluationError(f"{path}: not a list of COCO results")
    for i, r in enumerate(results):
        if not (isinstance(r, dict) and needed <= r.keys() and isinstance(r["bbox"], list) and len(r["bbox"]) == 4):
            raise EvaluationError(f"{path}: entry {i} isn't a COCO result (image_id, category_id, bbox of 4, score)")
    return results


def saved_results(path: str | Path) -> list[dict] | None:
    """The results in `path`, or None if it isn't there or was cut short, which one line tells: then write it anew.

    Raises EvaluationError for anything else, which may not be overwritten.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        return load_results(path)
    except DamagedResultsError:
        if path.read_bytes()[:1] not in (b"", b"["):
            raise
        print(f"{path}: not whole; the network runs again and replaces it")
        return None


def read_annotations(path: str | Path, with_masks: bool = True) -> COCO:
    """pycocotools' index of an annotation file, without its chatter. Raises EvaluationError."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(path))
        needed = {"image_id", "category_id", "bbox"} | ({"segmentation"} if with_masks else set())
        for a in truth.dataset["annotations"]:
            if not needed <= a.keys():
                lacks = ", ".join(sorted(needed - a.keys()))
                raise EvaluationError(f"{path}: annotation {a.get('id')} lacks {lacks}")
            # COCOeval can't do without, though other tools leave them out
            a.setdefault("iscrowd", 0)
            a.setdefault("area", a["bbox"][2] * a["bbox"][3])
        if not (truth.dataset["images"] and truth.dataset["categories"]):
            raise EvaluationError(f"{path}: has no images or no categories")
    except OSError as e:
        raise EvaluationError(f"{path}: can't read the annotations: {e.strerror}") from None
    except EvaluationError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, AssertionError):
        raise EvaluationError(f"{path}: not a COCO instances file") from None
    return truth


def evaluate(
    annotations: str | Path,
    results: list[dict],
    iou_types: Sequence[str] = ("bbox", "segm"),
    image_ids: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
) -> Summary:
    """COCO's metrics of `results` against an annotation file.

    On `image_ids` alone, or all images of the file; on the classes `class_names` alone, or all of them. A metric
    without objects to measure is -1, as COCO has it; with no detection at all every other one is 0.

    Raises EvaluationError.
    """
    truth = read_annotations(annotations, "segm" in iou_types)
    known = set(truth.getImgIds())
    foreign = sorted({r["image_id"] for r in results} - known)
    if foreign:
        raise EvaluationError(f"{annotations}: has no image {foreign[0]}, which the results name; not its results?")
    foreign = sorted(set(image_ids or ()) - known)
    if foreign:
        raise EvaluationError(f"{annotations}: has no image {foreign[0]}, on which to evaluate")
    named = {c["name"]: c["id"] for c in truth.dataset["categories"]}
    foreign = sorted(set(class_names or ()) - named.keys())
    if foreign:
        raise EvaluationError(f"{annotations}: has no class {foreign[0]!r}; it has {', '.join(named)}")
    if "segm" in iou_types and not all("segmentation" in r for r in results):
        raise EvaluationError(f"{annotations}: the results have no masks ('segmentation') to evaluate; bbox alone?")
    summary = Summary()
    for kind in iou_types:
        run = cocoeval(truth, results, kind)
        if image_ids is not None:
            run.params.imgIds = sorted(int(i) for i in image_ids)
        if class_names is not None:
            run.params.catIds = sorted(named[n] for n in class_names)
        table = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()):
            run.evaluate()
            run.accumulate()
        with contextlib.redirect_stdout(table):
            run.summarize()
        summary.metrics[kind] = dict(zip(METRICS, (float(v) for v in run.stats), strict=True))
        summary.per_class[kind] = class_ap(run, truth)
        summary.precision[kind] = run.eval["precision"][:, :, :, 0, -1]
        summary.text += f"{kind}:\n{table.getvalue()}"
    summary.text += class_table(summary.per_class)
    return summary


def cocoeval(truth: COCO, results: list[dict], kind: str) -> COCOeval:
    """pycocotools' evaluator of "bbox" or "segm", also for an empty list, which COCO.loadRes refuses."""
    with contextlib.redirect_stdout(io.StringIO()):
        if not results:
            found = COCO()
            found.dataset = {k: truth.dataset[k] for k in ("images", "categories")} | {"annotations": []}
            found.createIndex()
        elif kind == "segm":
            # with a box at hand loadRes would take its area, not the mask's, for small, medium and large
            found = truth.loadRes([{k: v for k, v in r.items() if k != "bbox"} for r in results])
        else:
            found = truth.loadRes([dict(r) for r in results])
    return COCOeval(truth, found, kind)


def class_ap(run: COCOeval, truth: COCO) -> dict[str, float]:
    """AP of each class; NaN for one without objects."""
    # precision: IoU thresholds, recalls, classes, areas, detection limits
    precision = run.eval["precision"][:, :, :, 0, -1]
    out = {}
    for k, category in enumerate(run.params.catIds):
        p = precision[:, :, k]
        out[truth.cats[category]["name"]] = float(p[p > -1].mean()) if (p > -1).any() else float("nan")
    return out


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
