"""COCO's metrics: pycocotools' own numbers, and files that can't be used."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from src.data.shapes import make_shapes
from src.evaluation.coco import EvaluationError, evaluate
from src.evaluation.kinds.base import coco_numbers
from src.evaluation.paste import Found, results_of
from src.evaluation.results import load_results, save_results


def coco_results(image_id, boxes, scores, labels, masks, size, scale, ids, threshold=0.5, convention="torchvision"):
    """One image's results, of what a network gives: boxes in canvas pixels, masks (N, M, M) or None."""
    fields = {} if masks is None else {"mask": masks}
    found = Found(boxes, scores, labels, fields).in_original(scale, f"image {image_id}")
    names = [f"class {i}" for i in range(10)]
    options = {"mask": {"threshold": threshold, "convention": convention}}
    return results_of(found, image_id, size, names, ids, options)


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    """Of 8 images with a crowd among them."""
    root = make_shapes(tmp_path_factory.mktemp("evaluated") / "root", train=1, val=8, seed=0)
    return root / "annotations/instances_val2017.json"


@pytest.fixture
def truth(annotations):
    """Read anew for each test, as COCOeval changes it."""
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(annotations))


@pytest.fixture
def perfect(truth):
    """The annotated objects as results."""
    out = []
    for a in truth.loadAnns(truth.getAnnIds(iscrowd=False)):
        encoded = rle.encode(np.asfortranarray(truth.annToMask(a)))
        encoded["counts"] = encoded["counts"].decode()
        out.append({k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9, "segmentation": encoded})
    return out


@pytest.fixture
def middling(perfect):
    """Results that are shifted, doubled, missing and of wrong classes."""
    random = np.random.RandomState(0)
    out = []
    for i, r in enumerate(perfect):
        if i % 5 == 0:
            continue
        x, y, w, h = r["bbox"]
        shift = random.normal(0, 0.1) * w
        bitmap = np.roll(rle.decode(r["segmentation"]), round(shift), 1)
        encoded = rle.encode(np.asfortranarray(bitmap))
        out.append(
            r
            | {
                "bbox": [x + shift, y, w, h],
                "category_id": r["category_id"] if i % 7 else r["category_id"] % 5 + 1,
                "score": float(random.rand()),
                "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
            }
        )
    return out + [r | {"score": 0.1} for r in out[::3]]


def direct(truth, results, kind, image_ids=None):
    """pycocotools by itself; of masks' results without boxes, whose area it would take for the mask's."""
    if kind == "segm":
        results = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), kind)
        if image_ids:
            run.params.imgIds = image_ids
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


def test_perfect_results(annotations, perfect):
    summary = evaluate(annotations, perfect)
    for kind in ("bbox", "segm"):
        assert summary.metrics[kind]["AP"] == pytest.approx(1)
        assert summary.metrics[kind]["AR100"] == pytest.approx(1)


def test_no_results(annotations):
    summary = evaluate(annotations, [])
    for kind in ("bbox", "segm"):
        assert summary.metrics[kind]["AP"] == 0
        assert summary.metrics[kind]["AR100"] == 0
        assert all(v == 0 or math.isnan(v) for v in summary.per_class[kind].values())


def test_numbers_are_those_of_pycocotools(annotations, truth, middling):
    summary = evaluate(annotations, middling)
    for kind in ("bbox", "segm"):
        expected = direct(truth, middling, kind)
        assert 0.05 < expected.stats[0] < 0.95
        assert list(summary.metrics[kind].values()) == expected.stats.tolist()
        assert tuple(summary.metrics[kind]) == tuple(n.name for n in coco_numbers())


def test_per_class(annotations, truth, middling):
    summary = evaluate(annotations, middling)
    for kind in ("bbox", "segm"):
        precision = direct(truth, middling, kind).eval["precision"][:, :, :, 0, -1]
        names = [truth.cats[c]["name"] for c in truth.getCatIds()]
        assert list(summary.per_class[kind]) == names
        for k, name in enumerate(names):
            p = precision[:, :, k]
            expected = p[p > -1].mean() if (p > -1).any() else float("nan")
            assert summary.per_class[kind][name] == pytest.approx(expected, nan_ok=True)
        # COCO's AP is the mean of the classes'
        ap = [v for v in summary.per_class[kind].values() if not math.isnan(v)]
        assert np.mean(ap) == pytest.approx(summary.metrics[kind]["AP"])


def test_text_has_both_tables_and_every_class(annotations, perfect, truth):
    text = evaluate(annotations, perfect).text
    assert text.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 1.000") == 2
    for c in truth.loadCats(truth.getCatIds()):
        (line,) = [line for line in text.splitlines() if line.startswith(c["name"])]
        assert len(line.split()) == 3


def test_class_without_objects_is_a_dash(annotations, perfect, tmp_path):
    data = json.loads(annotations.read_text())
    data["categories"].append({"id": 9, "name": "hexagon"})
    (tmp_path / "a.json").write_text(json.dumps(data))
    summary = evaluate(tmp_path / "a.json", perfect)
    assert math.isnan(summary.per_class["bbox"]["hexagon"])
    (line,) = [line for line in summary.text.splitlines() if line.startswith("hexagon")]
    assert line.split() == ["hexagon", "-", "-"]
    assert summary.metrics["bbox"]["AP"] == pytest.approx(1)


def test_boxes_alone(annotations, perfect):
    boxes = [{k: v for k, v in r.items() if k != "segmentation"} for r in perfect]
    summary = evaluate(annotations, boxes, ["bbox"])
    assert list(summary.metrics) == ["bbox"]
    assert summary.metrics["bbox"]["AP"] == pytest.approx(1)


def test_masks_that_are_not_there(annotations, perfect, refusal):
    del perfect[1]["segmentation"]
    with refusal(EvaluationError, annotations, "no masks"):
        evaluate(annotations, perfect)


def test_some_of_the_images(annotations, truth, middling):
    some = truth.getImgIds()[1:5]
    summary = evaluate(annotations, middling, image_ids=some[::-1])
    for kind in ("bbox", "segm"):
        assert list(summary.metrics[kind].values()) == direct(truth, middling, kind, some).stats.tolist()
    assert summary.metrics != evaluate(annotations, middling).metrics


def test_results_given_stay_as_they_were(annotations, middling):
    before = json.dumps(middling)
    evaluate(annotations, middling)
    assert json.dumps(middling) == before


def test_crowds_cost_nothing(annotations, truth, perfect):
    """A detection inside a crowd region is no false positive."""
    crowds = truth.loadAnns(truth.getAnnIds(iscrowd=True))
    assert crowds
    for c in crowds:
        encoded = rle.encode(np.asfortranarray(truth.annToMask(c)))
        encoded["counts"] = encoded["counts"].decode()
        result = {k: c[k] for k in ("image_id", "category_id", "bbox")}
        perfect.insert(0, result | {"score": 0.99, "segmentation": encoded})
    assert evaluate(annotations, perfect).metrics["segm"]["AP"] == pytest.approx(1)


# Files


def test_results_file(annotations, middling, tmp_path):
    path = tmp_path / "new/folder/results.json"
    save_results(path, middling)
    assert load_results(path) == middling
    assert list(path.parent.iterdir()) == [path]
    assert evaluate(annotations, load_results(path)).metrics == evaluate(annotations, middling).metrics


def test_results_file_in_place_of_another(middling, tmp_path):
    save_results(tmp_path / "results.json", middling)
    save_results(tmp_path / "results.json", [])
    assert load_results(tmp_path / "results.json") == []


def test_results_that_cannot_be_written(middling, tmp_path, refusal):
    (tmp_path / "file").write_text("mine")
    with refusal(EvaluationError, tmp_path / "file/results.json", "can't write"):
        save_results(tmp_path / "file/results.json", middling)
    (tmp_path / "results.json").mkdir()
    with refusal(EvaluationError, tmp_path / "results.json", "can't write"):
        save_results(tmp_path / "results.json", middling)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "results.json"]


def test_damaged_results_file(middling, tmp_path, refusal):
    path = tmp_path / "results.json"
    with refusal(EvaluationError, path, "can't read"):
        load_results(path)
    save_results(path, middling)
    path.write_bytes(path.read_bytes()[:-50])
    with refusal(EvaluationError, path, "not whole JSON"):
        load_results(path)
    for content in ("", "{}", '{"a": 1}', '[{"image_id": 1}]', "[1]"):
        path.write_text(content)
        with refusal(EvaluationError, path):
            load_results(path)


def test_foreign_image_ids(annotations, perfect, refusal):
    perfect[2]["image_id"] = 4711
    with refusal(EvaluationError, annotations, "4711"):
        evaluate(annotations, perfect)


@pytest.mark.parametrize("content", [None, "", "[]", "{", '{"images": 3, "annotations": []}'])
def test_annotations_that_cannot_be_used(tmp_path, refusal, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with refusal(EvaluationError, path):
        evaluate(path, [])


# From detections


def test_detections_of_a_scaled_image(truth, annotations):
    """Boxes and masks in canvas pixels come back in those of the image: AP 1 for the truth moved to the canvas."""
    ids = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5}
    results = []
    for image in truth.loadImgs(truth.getImgIds()):
        height, width = image["height"], image["width"]
        scale = (1.7, 2.3)
        objects = truth.loadAnns(truth.getAnnIds(image["id"], iscrowd=False))
        xywh = np.reshape([a["bbox"] for a in objects], (-1, 4))
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1) * [scale[1], scale[0], scale[1], scale[0]]
        labels = np.array([a["category_id"] for a in objects], int)
        results += coco_results(
            image["id"], boxes.astype(np.float32), np.full(len(boxes), 0.5), labels, None, (height, width), scale, ids
        )
    assert evaluate(annotations, results, ["bbox"]).metrics["bbox"]["AP"] == pytest.approx(1)


def test_detection_fields():
    boxes = np.float32([[20, 30, 60, 90], [-10, -10, 1000, 1000]])
    masks = np.ones((2, 28, 28), np.float32)
    first, second = coco_results(
        5, boxes, np.float32([0.123456789, 1]), np.array([1, 2]), masks, (50, 80), (3.0, 2.0), {1: 10, 2: 20}
    )
    assert (first["image_id"], first["category_id"], first["bbox"]) == (5, 10, [10, 10, 20, 20])
    assert first["score"] == 0.123457
    # boxes end at the image's edge
    assert (second["category_id"], second["bbox"]) == (20, [0, 0, 80, 50])
    assert rle.area(second["segmentation"]) == 80 * 50
    # the mask's box is enlarged by a cell and rounded outwards: up to two pixels more than 20 a side
    assert 20 <= rle.toBbox(first["segmentation"])[2] <= 22
    assert json.loads(json.dumps([first, second])) == [first, second]


def test_no_detection():
    empty = np.zeros((0, 4), np.float32)
    for masks in (None, np.zeros((0, 28, 28), np.float32)):
        assert coco_results(1, empty, empty[:, 0], empty[:, 0].astype(int), masks, (50, 80), (1, 1), {}) == []
