"""Precision, recall and F1 of each class: counted anew from the boxes, and against pycocotools' own arrays."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from src.evaluation.classes import Curve, pooled
from src.evaluation.coco import evaluate

SIDE = 200


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """30 images of three classes, of which one has no objects, with a crowd; and detections near, off and twice."""
    random = np.random.RandomState(4)
    images = [{"id": i, "file_name": f"{i}.png", "height": SIDE, "width": SIDE} for i in range(1, 31)]
    annotations, results = [], []
    for image in images:
        for _ in range(random.randint(0, 5)):
            x, y = random.randint(0, 150, 2).tolist()
            w, h = random.randint(8, 50, 2).tolist()
            crowd = int(random.rand() < 0.1)
            annotation = {"image_id": image["id"], "category_id": int(random.randint(1, 4)), "bbox": [x, y, w, h]}
            annotations.append(annotation | {"id": len(annotations) + 1, "area": w * h, "iscrowd": crowd})
            for _ in range(random.randint(0, 3)):
                moved = [x + int(random.randint(-6, 7)), y + int(random.randint(-6, 7)), w, h]
                category = annotation["category_id"] if random.rand() < 0.8 else int(random.randint(1, 5))
                found = {"image_id": image["id"], "category_id": category, "bbox": moved}
                # tenths, so that several have the same
                results.append(found | {"score": round(float(random.rand()), 1)})
    categories = [{"id": i, "name": name} for i, name in enumerate(("ant", "bee", "cow", "unseen"), 1)]
    path = tmp_path_factory.mktemp("classes") / "truth.json"
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    return path, annotations, results


def count(
    annotations: list[dict], results: list[dict], category: int, score: float, iou: float
) -> tuple[int, int, int]:
    """Matched and unmatched detections of at least `score`, and objects, of a category: each detection in the order of
    scores takes the free object that it overlaps most; those in a crowd aren't counted."""
    hits = misses = 0
    objects = [a for a in annotations if a["category_id"] == category]
    for image in {r["image_id"] for r in results}:
        here = [a for a in objects if a["image_id"] == image]
        free = [a for a in here if not a["iscrowd"]]
        crowds = [a["bbox"] for a in here if a["iscrowd"]]
        found = [r for r in results if r["image_id"] == image and r["category_id"] == category and r["score"] >= score]
        for r in sorted(found, key=lambda r: -r["score"]):
            ious = [float(rle.iou([r["bbox"]], [a["bbox"]], [0])[0, 0]) for a in free]
            if ious and max(ious) >= iou:
                # of equals the last, as COCO has it
                del free[len(ious) - 1 - int(np.argmax(ious[::-1]))]
                hits += 1
            elif not crowds or rle.iou([r["bbox"]], crowds, [1] * len(crowds)).max() < iou:
                misses += 1
    return hits, misses, sum(not a["iscrowd"] for a in objects)


@pytest.mark.parametrize(("score", "iou"), [(0.5, 0.5), (0.3, 0.75), (0.0, 0.3), (0.71, 0.62)])
def test_numbers_at_a_score_are_those_counted(case, score, iou):
    path, annotations, results = case
    summary = evaluate(path, results, ("bbox",), score=score, iou=iou)
    sums = np.zeros(3, int)
    rows = []
    for category, name in enumerate(("ant", "bee", "cow"), 1):
        hits, misses, objects = count(annotations, results, category, score, iou)
        sums += [hits, misses, objects]
        got = summary.classes["bbox"][name]
        assert got.objects == objects > 0
        assert got.detections == sum(r["category_id"] == category for r in results)
        rows.append([hits / (hits + misses), hits / objects, 2 * hits / (hits + misses + objects)])
        assert [got.at_score.precision, got.at_score.recall, got.at_score.f1] == pytest.approx(rows[-1])
        assert got.at_score.score == score
    micro, macro = (summary.totals["bbox"][k]["at_score"] for k in ("micro", "macro"))
    hits, misses, objects = sums
    assert [micro.precision, micro.recall] == pytest.approx([hits / (hits + misses), hits / objects])
    assert micro.f1 == pytest.approx(2 * hits / (hits + misses + objects))
    assert [macro.precision, macro.recall, macro.f1] == pytest.approx(np.mean(rows, axis=0))


def test_the_best_score_has_the_highest_f1(case):
    path, annotations, results = case
    summary = evaluate(path, results, ("bbox",))
    for category, name in enumerate(("ant", "bee", "cow"), 1):
        f1 = {}
        for score in {r["score"] for r in results if r["category_id"] == category}:
            hits, misses, objects = count(annotations, results, category, score, 0.5)
            f1[score] = 2 * hits / (hits + misses + objects)
        best = summary.classes["bbox"][name].best
        assert best.f1 == pytest.approx(max(f1.values()))
        assert f1[best.score] == pytest.approx(best.f1)
        hits, misses, objects = count(annotations, results, category, best.score, 0.5)
        assert [best.precision, best.recall] == pytest.approx([hits / (hits + misses), hits / objects])


def test_ap_and_ar_of_a_class_are_those_of_pycocotools(case):
    path, _, results = case
    summary = evaluate(path, results, ("bbox",))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        run = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), "bbox")
        run.evaluate()
        run.accumulate()
    for k, name in enumerate(("ant", "bee", "cow")):
        got = summary.classes["bbox"][name]
        precision, recall = run.eval["precision"][:, :, k, 0, -1], run.eval["recall"][:, k, 0, -1]
        assert (precision.mean(), precision[0].mean(), recall.mean()) == (got.AP, got.AP50, got.AR)
        # with all detections the recall is the one of pycocotools at IoU 0.5
        everything = evaluate(path, results, ("bbox",), score=0.0).classes["bbox"][name].at_score
        assert everything.recall == recall[0]
    # the mean over classes is COCO's AP
    mean = np.mean([summary.classes["bbox"][n].AP for n in ("ant", "bee", "cow")])
    assert mean == pytest.approx(summary.metrics["bbox"]["AP"], rel=1e-12)  # another order of summation


def test_a_class_without_objects_has_no_numbers(case):
    path, _, results = case
    row = evaluate(path, results, ("bbox",)).to_dict()["bbox"]["classes"]["unseen"]
    assert row["objects"] == 0 and row["detections"] > 0
    assert row["AP"] is row["AP50"] is row["AR"] is row["best"]["f1"] is row["at_score"]["precision"] is None


def test_json_holds_what_was_measured(case):
    path, annotations, results = case
    summary = evaluate(path, results, ("bbox",), score=0.4)
    text = json.dumps(summary.to_dict(), allow_nan=False)
    found = json.loads(text)
    assert (found["images"], found["detections"], found["score"], found["iou"]) == (30, len(results), 0.4, 0.5)
    assert found["bbox"]["metrics"]["AP"] == summary.metrics["bbox"]["AP"]
    assert found["bbox"]["metrics"]["APl"] is None  # there are no large objects
    assert set(found["bbox"]["classes"]) == {"ant", "bee", "cow", "unseen"}
    ant = found["bbox"]["classes"]["ant"]
    assert set(ant) == {"objects", "detections", "AP", "AP50", "AR", "best", "at_score"}
    assert set(ant["best"]) == set(found["bbox"]["macro"]["at_score"]) == {"score", "precision", "recall", "f1"}
    assert found["bbox"]["micro"]["best"]["f1"] >= found["bbox"]["micro"]["at_score"]["f1"]


def test_curves_at_their_ends():
    curve = Curve(np.array([0.9, 0.9, 0.4]), np.array([True, False, True]), 2)
    assert curve.at(0.9).precision == 0.5  # both of that score
    assert curve.at(0.4).recall == 1
    assert curve.at(0.95).recall == 0 and math.isnan(curve.at(0.95).precision)
    assert curve.best().score == 0.4
    nothing = Curve(np.array([0.9]), np.array([False]), 2).best()
    assert math.isnan(nothing.score) and nothing.recall == nothing.f1 == 0
    assert math.isnan(pooled([Curve(np.array([0.9]), np.array([False]), 0)]).best().f1)
