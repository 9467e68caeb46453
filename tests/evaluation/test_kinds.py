"""A kind beside boxes and masks goes every way that theirs go, by nothing but its entry in KINDS."""

import json
from dataclasses import replace

import numpy as np
import pytest

from src.evaluation.coco import EvaluationError, evaluate
from src.evaluation.detections import Detections
from src.evaluation.kinds import KINDS, choose_kinds, leading_ap, needed_branches
from src.evaluation.kinds.base import Kind, Number, Shape
from src.evaluation.paste import Found, found_in, paste, results_of
from src.evaluation.pictures import draw_records
from src.evaluation.results import checked_results, load_results, save_results
from src.evaluation.truth import Truth
from src.inference.labels import coco_labels, labelme_labels
from src.inference.page.serve import Kept, draw
from src.runtime.newer import zip_equal

HEIGHT, WIDTH = 60, 80


class Dots(Kind):
    """Two points an object, told as shares of its box: rows (N, 2, 2), values (2, 3) x, y, visible."""

    name, branch, noun, key, standard = "keypoints", "dots", "points", "keypoints", 20

    def options(self, config):
        return {"visible": 2}

    def told(self, summary):
        return summary.get("dots")

    def values(self, rows, boxes, scale, height, width, options):
        points = boxes[:, None, :2] + rows * (boxes[:, None, 2:] - boxes[:, None, :2])
        return list(np.concatenate([points, np.full((len(rows), 2, 1), options["visible"])], 2))

    def resized(self, value, height, width, to):
        return value * [to[1] / width, to[0] / height, 1]

    def rounded(self, value):
        return np.round(value, 1)

    def result(self, value):
        return {"keypoints": value.ravel().tolist(), "num_keypoints": 2}

    def entry(self, value):
        return {"points": value.tolist()}

    def annotation(self, value):
        return self.result(self.rounded(value))

    def category(self, value):
        return {"keypoints": ["one", "two"][: len(value)]}

    def shapes(self, value):
        return [Shape(p[None, :2], "point", f"dot {i}") for i, p in enumerate(value)]

    def checked(self, value, image, category):
        if len(value) != 6:
            raise ValueError(f"not two points of a {category['name']}")
        return list(map(float, value))

    def box(self, value):
        points = np.reshape(value, (-1, 3))[:, :2]
        return [*points.min(0).tolist(), *(points.max(0) - points.min(0)).tolist()]

    def annotated(self, truth):
        return any(self.held(a) for a in truth.dataset["annotations"])

    def demand(self, truth, results=()):
        if any(not self.held(r) for r in results):
            raise EvaluationError(f"{truth.path}: no points; leave out --iou_types keypoints")

    def measured(self, result):
        x, y, w, h = self.box(result["keypoints"])
        return {"keypoints": result["keypoints"], "bbox": [x, y, w, h], "area": w * h}

    def set_up(self, run):
        run.params.kpt_oks_sigmas = np.full(2, 0.05)

    def notes(self, truth, categories):
        return [f"two points of {truth.cats[c]['name']}" for c in categories]

    def limit(self, max_per_img):
        return self.standard

    def numbers(self, max_dets):
        sizes = {"": "all", "m": "medium", "l": "large"}
        return (
            *(Number(f"AP{k}", "precision", max_dets, None, size) for k, size in sizes.items()),
            *(Number(f"AR{k}", "recall", max_dets, None, size) for k, size in sizes.items()),
        )

    def layer(self, values):
        def paint(canvas, i, shade, line, zoom):
            for x, y, _ in values[i] if values[i] is not None else ():
                canvas[round(y * zoom), round(x * zoom)] = 1, 2, 3

        return paint

    def drawable(self, entry, category, height, width):
        return np.reshape(entry["keypoints"], (-1, 3)) if self.held(entry) else None


@pytest.fixture(autouse=True)
def dots(monkeypatch):
    monkeypatch.setitem(KINDS, "keypoints", Dots())


def found() -> Found:
    boxes = np.float32([[10, 10, 50, 50], [30, 20, 70, 50]])
    rows = np.float32([[[0.25, 0.25], [0.75, 0.52501]], [[0.1, 0.2], [0.9, 0.6]]])
    return Found(boxes, np.float32([0.9, 0.4]), np.int32([1, 1]), {"dots": rows})


def detections() -> Detections:
    return paste(found(), HEIGHT, WIDTH, ["background", "cat"], {1: 7}, {"dots": {"visible": 2}})


def truth(tmp_path) -> Truth:
    results = results_of(found(), 1, (HEIGHT, WIDTH), ["background", "cat"], {1: 7}, {"dots": {"visible": 2}})
    return Truth(
        tmp_path / "truth.json",
        {
            "images": [{"id": 1, "height": HEIGHT, "width": WIDTH}],
            "categories": [{"id": 7, "name": "cat"}],
            "annotations": [r | {"id": i, "iscrowd": 0, "area": 40 * 40} for i, r in enumerate(results, 1)],
        },
    )


def painted(image: np.ndarray) -> set[tuple[int, int]]:
    return {(int(x), int(y)) for y, x in zip_equal(*np.nonzero((image == (1, 2, 3)).all(2)))}


def test_from_outputs_to_values():
    out = [found().boxes[None] * 2, found().scores[None], found().labels[None], np.array([[True, False]])]
    one = found_in([*out, found().fields["dots"][None]], 0, ("dots",), (2, 2), "image 1")
    assert one.fields["dots"].shape == (1, 2, 2)
    np.testing.assert_array_equal(one.boxes, found().boxes[:1])
    joined = Found.joined([one, one])
    assert joined.take(np.array([1])).fields["dots"].shape == (1, 2, 2)
    np.testing.assert_allclose(detections().fields["dots"][0], [[20, 20, 2], [40, 31.0004, 2]])
    assert detections().masks is None
    assert len(detections().above(0.5).fields["dots"]) == 1


def test_what_files_hold():
    first = detections().to_coco(1)[0]
    assert list(first) == ["image_id", "category_id", "bbox", "score", "keypoints", "num_keypoints"]
    assert first["keypoints"] == [20, 20, 2, 40, 31, 2]
    assert detections().to_dict()["predictions"][0]["points"][1][1] != 31
    assert detections().to_entry()["predictions"][0]["points"] == [[20, 20, 2], [40, 31, 2]]


def test_labels_to_correct(tmp_path):
    image = tmp_path / "a.png"
    with coco_labels(tmp_path / "labels.json", {image: ("a.png", 1)}, ["background", "cat"], {1: 7}) as add:
        add(image, detections(), 1)
    labels = json.loads((tmp_path / "labels.json").read_text())
    written = labels["annotations"]
    assert labels["categories"] == [{"id": 7, "name": "cat", "keypoints": ["one", "two"]}]
    assert (written[0]["keypoints"], written[0]["area"]) == ([20, 20, 2, 40, 31, 2], 1600)
    with labelme_labels({image: tmp_path / "a.json"}) as add:
        add(image, detections(), 1)
    shapes = json.loads((tmp_path / "a.json").read_text())["shapes"][:3]
    assert [(s["label"], s["shape_type"], s["group_id"]) for s in shapes] == [
        ("cat", "rectangle", 1),
        ("dot 0", "point", 1),
        ("dot 1", "point", 1),
    ]


def test_pictures(tmp_path):
    image = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    assert (20, 20) in painted(detections().draw(image, 0.5)[:, :, ::-1])
    assert (60, 60) in painted(detections().draw(image, 0.5, zoom=3)[:, :, ::-1])
    assert (20, 20) in painted(draw_records(image, truth(tmp_path).dataset["annotations"], {7: "cat"}))
    large = np.full((4 * HEIGHT, 4 * WIDTH, 3), 200, np.uint8)
    assert (80, 80) in painted(draw(Kept("a", large, detections()), 0.5))


def test_metrics_of_its_own(tmp_path):
    results = detections().to_coco(1)
    summary = evaluate(truth(tmp_path), results, list(KINDS)[::2], max_per_img=300, iou=0.52)
    assert summary.metrics["keypoints"] == dict.fromkeys(["AP", "APm", "APl", "AR", "ARm", "ARl"], 1.0) | {
        "APl": -1.0,
        "ARl": -1.0,
    }
    assert len(summary.metrics["bbox"]) == 12
    assert summary.text.count("maxDets= 20") == 6
    assert summary.text.endswith("class  bbox AP keypoints AP\ncat      1.000        1.000\n")
    assert summary.notes == ["two points of cat"] and summary.text.startswith("two points of cat\n")
    assert evaluate(truth(tmp_path), results, ["bbox"]).notes == []
    assert summary.classes["keypoints"]["cat"].best.f1 == 1
    assert leading_ap({"keypoints AP": 0.5, "bbox AP": 1.0}) == 0.5
    moved = [r | {"keypoints": [20, 20, 2, 60, 31, 2]} for r in results[:1]]
    assert evaluate(truth(tmp_path), moved, ["keypoints"]).metrics["keypoints"]["AP"] < 0.1


def test_results_that_are_read(tmp_path, refusal):
    bare = [{k: v for k, v in r.items() if k != "bbox"} for r in detections().to_coco(1)]
    save_results(tmp_path / "results.json", bare)
    read = load_results(tmp_path / "results.json", truth(tmp_path))
    assert read[0]["bbox"] == [20, 20, 20, 11]
    with refusal(EvaluationError, "entry 1, of image 1: not two points of a cat"):
        checked_results([bare[0], bare[1] | {"keypoints": [1]}], truth(tmp_path), "results")
    without = [{k: v for k, v in r.items() if k != "keypoints"} for r in detections().to_coco(1)]
    with refusal(EvaluationError, "no points"):
        evaluate(truth(tmp_path), without, ["keypoints"])


def test_chosen_where_detector_and_annotations_have_it():
    assert choose_kinds(("dots",), {"annotations": lambda kind: True}) == (("bbox", "keypoints"), "")
    assert choose_kinds(("mask",), {"annotations": lambda kind: True}) == (("bbox", "segm"), "")
    kinds, note = choose_kinds(("mask", "dots"), {"annotations": lambda kind: kind.name != "segm"})
    assert (kinds, note) == (
        ("bbox", "keypoints"),
        "boxes and points alone are measured: the annotations have no masks (segm left out)",
    )
    assert choose_kinds((), {}, ["keypoints", "bbox"]) == (("bbox", "keypoints"), "")
    assert needed_branches(["bbox", "keypoints"]) == ("dots",)


def test_masks_are_a_field_by_their_own_name():
    mask = {"size": [HEIGHT, WIDTH], "counts": "0"}
    one = detections().above(0.5)
    with_masks = Detections(HEIGHT, WIDTH, one.boxes, one.scores, one.labels, one.names, one.category_ids, [mask])
    assert (with_masks.masks, with_masks.fields) == ([mask], {"mask": [mask]})
    assert replace(with_masks, orientation=6).masks == [mask]
    assert with_masks.above(1).masks == []
    with_masks.masks = None
    assert with_masks.fields == {}
