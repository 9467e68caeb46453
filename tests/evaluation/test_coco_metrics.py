"""From a detector's outputs to COCO results and their metrics, on a few hand-made images."""

import errno
import json
import math
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as rle

from src.evaluation.coco import EvaluationError, evaluate
from src.evaluation.kinds.base import coco_numbers
from src.evaluation.paste import Found, found_in, results_of
from src.evaluation.results import load_results, save_results


def coco_results(image_id, boxes, scores, labels, masks, size, scale, ids, threshold=0.5, convention="torchvision"):
    """One image's results, of what a network gives: boxes in canvas pixels, masks (N, M, M) or None."""
    fields = {} if masks is None else {"mask": masks}
    found = Found(boxes, scores, labels, fields).in_original(scale, f"image {image_id}")
    names = [f"class {i}" for i in range(10)]
    options = {"mask": {"threshold": threshold, "convention": convention}}
    return results_of(found, image_id, size, names, ids, options)


CATEGORY_IDS = {1: 10, 2: 20}
# image, category, box (x, y, width, height)
OBJECTS = [(1, 10, (10, 20, 40, 50)), (1, 20, (100, 30, 60, 80)), (2, 10, (5, 5, 150, 100)), (3, 20, (50, 60, 20, 25))]


def corners(x: float, y: float, w: float, h: float) -> list[float]:
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def truth_data() -> dict:
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 200, "height": 120} for i in (1, 2, 3, 4)],
        "categories": [{"id": 10, "name": "cat"}, {"id": 20, "name": "dog"}, {"id": 30, "name": "unseen"}],
        "annotations": [
            {
                "id": k + 1,
                "image_id": image,
                "category_id": category,
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": 0,
                "segmentation": [corners(*box)],
            }
            for k, (image, category, box) in enumerate(OBJECTS)
        ],
    }


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth_data()))
    return path


def result(image: int, category: int, box: tuple, score: float = 0.9) -> dict:
    segmentation = rle.frPyObjects([corners(*box)], 120, 200)[0]
    return {
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "score": score,
        "segmentation": {"size": [120, 200], "counts": segmentation["counts"].decode()},
    }


def perfect() -> list[dict]:
    return [result(*o) for o in OBJECTS]


# ---- a detector's outputs as results


def test_canvas_to_original_pixels():
    """A 200 x 120 image shown at twice the width, three times the height."""
    boxes = np.array([[20, 60, 100, 210]], np.float32)
    masks = np.ones((1, 28, 28), np.float32)
    [found] = coco_results(7, boxes, np.array([0.123456789]), np.array([2]), masks, (120, 200), (3, 2), CATEGORY_IDS)
    assert (found["image_id"], found["category_id"], found["bbox"]) == (7, 20, [10, 20, 40, 50])
    assert found["score"] == 0.123457
    bitmap = rle.decode(found["segmentation"])
    assert bitmap.shape == (120, 200)
    assert bitmap[21:69, 11:49].all()
    assert not bitmap[:19].any()
    assert not bitmap[:, 52:].any()


def test_boxes_are_clipped_but_masks_are_not_squeezed():
    boxes = np.array([[-40, 10, 40, 50]], np.float32)
    left_half = np.zeros((1, 28, 28), np.float32)
    left_half[:, :, :14] = 1
    [found] = coco_results(
        1, boxes, np.ones(1), np.ones(1, int), left_half, (120, 200), (1, 1), CATEGORY_IDS, 0.5, "grid"
    )
    assert found["bbox"] == [0, 10, 40, 40]
    assert rle.area(found["segmentation"]) == 0  # the set half lies outside


def test_boxes_without_masks():
    found = coco_results(
        1, np.array([[0, 0, 4, 4]], np.float32), np.ones(1), np.ones(1, int), None, (9, 9), (1, 1), CATEGORY_IDS
    )
    assert "segmentation" not in found[0]


def test_boxes_without_area_are_no_detections():
    """Detectron2 leaves them out, after it has chosen the best."""
    boxes = np.array([[[3, 1, 3, 8], [0, 0, 4, 4], [1, 9, 7, 9], [0, 0, 0, 0]]], np.float32)
    scores, labels = np.array([[0.9, 0.8, 0.7, 0.6]], np.float32), np.ones((1, 4), np.int32)
    found = found_in((boxes, scores, labels, np.ones((1, 4), bool)), 0, (), (1, 1), "image 1")
    np.testing.assert_array_equal(found.boxes, boxes[0, 1:2])
    assert found.scores.tolist() == scores[0, 1:2].tolist()


def test_no_detections_give_no_results():
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
    assert coco_results(1, *empty, np.zeros((0, 28, 28), np.float32), (9, 9), (1, 1), CATEGORY_IDS) == []


@pytest.mark.parametrize(
    ("box", "score", "label", "said"),
    [
        ([0, 0, 4, 4], 0.5, 3, "image 5: label 3"),
        ([0, np.nan, 4, 4], 0.5, 1, "image 5: a detection isn't finite"),
        ([0, 0, 4, 4], np.nan, 1, "image 5: a detection isn't finite"),
    ],
)
def test_unusable_detections_are_refused(refusal, box, score, label, said):
    with refusal(EvaluationError, said):
        coco_results(
            5, np.array([box], np.float32), np.array([score]), np.array([label]), None, (9, 9), (1, 1), CATEGORY_IDS
        )


def test_outputs_to_metrics(annotations):
    """Boxes and full masks as a network gives them score as the objects that they cover."""
    results = []
    for image, category, (x, y, w, h) in OBJECTS:
        label = {10: 1, 20: 2}[category]
        box = np.array([[x, y, x + w, y + h]], np.float32) * 1.5
        mask = np.ones((1, 28, 28), np.float32)
        results += coco_results(
            image, box, np.array([0.8]), np.array([label]), mask, (120, 200), (1.5, 1.5), CATEGORY_IDS, 0.5, "grid"
        )
    summary = evaluate(annotations, results)
    assert summary.metrics["bbox"]["AP"] == pytest.approx(1)
    assert summary.metrics["segm"]["AP"] == pytest.approx(1)


# ---- metrics


def test_perfect_results(annotations):
    summary = evaluate(annotations, perfect())
    for kind in ("bbox", "segm"):
        got = summary.metrics[kind]
        assert got["AP"] == got["AP50"] == got["AP75"] == got["AR100"] == pytest.approx(1)
        assert summary.per_class[kind]["cat"] == pytest.approx(1)
        assert math.isnan(summary.per_class[kind]["unseen"])


def test_one_class_missed(annotations):
    summary = evaluate(annotations, [r for r in perfect() if r["category_id"] == 10])
    assert summary.metrics["bbox"]["AP"] == pytest.approx(0.5)
    assert summary.per_class["segm"] == {
        "cat": pytest.approx(1),
        "dog": 0,
        "unseen": pytest.approx(np.nan, nan_ok=True),
    }


def test_a_shifted_box_counts_at_the_lower_thresholds_alone(annotations):
    x, y, w, h = OBJECTS[2][2]
    results = [result(2, 10, (x + 30, y, w, h))]  # IoU 120 / 180
    got = evaluate(annotations, results, ("bbox",), image_ids=[2]).metrics["bbox"]
    assert (got["AP50"], got["AP75"]) == (pytest.approx(1), 0)
    assert got["AP"] == pytest.approx(0.4)  # 0.50, 0.55, 0.60, 0.65 of ten


def test_no_detections_at_all(annotations):
    summary = evaluate(annotations, [])
    assert summary.metrics["bbox"]["AP"] == summary.metrics["segm"]["AP"] == 0
    assert summary.per_class["bbox"]["dog"] == 0
    assert summary.text.count("= 0.000") >= 12


def test_some_images_alone(annotations):
    on_two = perfect()[:2] + [result(3, 20, (0, 0, 5, 5))]
    assert evaluate(annotations, on_two, image_ids=[1]).metrics["bbox"]["AP"] == pytest.approx(1)
    assert evaluate(annotations, on_two).metrics["bbox"]["AP"] < 0.6


def test_some_classes_alone(annotations):
    summary = evaluate(annotations, perfect()[:1] + perfect()[2:3], class_names=["cat"])
    assert summary.metrics["segm"]["AP"] == pytest.approx(1)
    assert list(summary.per_class["segm"]) == ["cat"]


def test_mask_sizes_are_the_masks_own(tmp_path):
    """An object of 30 x 30 pixels in a loose box of 50 x 50 is a small mask, whatever its box."""
    data = truth_data()
    data["annotations"] = data["annotations"][:1]
    data["annotations"][0] |= {"bbox": [10, 10, 50, 50], "area": 900, "segmentation": [corners(10, 10, 30, 30)]}
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(data))
    wrong = result(1, 10, (150, 80, 30, 30), 0.95) | {"bbox": [140, 70, 50, 50]}  # a false one, small as a mask
    got = evaluate(path, [result(1, 10, (10, 10, 30, 30)), wrong], ("segm",)).metrics["segm"]
    assert got["APs"] == pytest.approx(0.5)


def test_crowds_forgive(tmp_path):
    data = truth_data()
    crowd = np.zeros((120, 200), np.uint8, order="F")
    crowd[60:, 100:] = 1
    counts = rle.encode(crowd)["counts"].decode()
    extra = {"image_id": 2, "category_id": 10, "bbox": [100, 60, 100, 60], "area": 6000, "iscrowd": 1}
    extra["segmentation"] = {"size": [120, 200], "counts": counts}
    data["annotations"].append(extra | {"id": 99})
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(data))
    inside = result(2, 10, (120, 80, 30, 30), 0.99)
    summary = evaluate(path, [*perfect(), inside])
    assert summary.metrics["bbox"]["AP"] == summary.metrics["segm"]["AP"] == pytest.approx(1)


def test_annotations_without_area_and_iscrowd(tmp_path):
    data = truth_data()
    for a in data["annotations"]:
        del a["area"], a["iscrowd"]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(data))
    assert evaluate(path, perfect()).metrics["segm"]["AP"] == pytest.approx(1)


# ---- truths as other tools write them


@pytest.mark.parametrize(
    "number", [lambda k: k, lambda k: 7, lambda k: None, lambda k: f"uuid-{k}"], ids=["from 0", "equal", "none", "text"]
)
def test_annotation_ids_do_not_matter(tmp_path, number):
    """pycocotools takes a match with the object of id 0 for none, and looks objects up by id."""
    data = truth_data()
    for k, a in enumerate(data["annotations"]):
        a["id"] = number(k)
        if a["id"] is None:
            del a["id"]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(data))
    summary = evaluate(path, perfect())
    assert summary.metrics["bbox"]["AP"] == summary.metrics["segm"]["AP"] == pytest.approx(1)
    one = {"annotations": data["annotations"][:1]}
    path.write_text(json.dumps(data | one))
    assert evaluate(path, perfect()[:1]).metrics["bbox"]["AP"] == pytest.approx(1)


@pytest.mark.parametrize("area", [None, "left out"])
def test_a_missing_area_is_the_masks(tmp_path, area):
    """A thin diagonal bar: its box is of medium size, its mask small."""
    data = truth_data()
    bar = {"bbox": [10, 10, 80, 80], "segmentation": [[10, 10, 20, 10, 90, 90, 80, 90]], "area": area}
    data["annotations"] = [data["annotations"][0] | bar]
    if area:
        del data["annotations"][0]["area"]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(data))
    mask = rle.frPyObjects(bar["segmentation"], 120, 200)[0]
    found = result(1, 10, (10, 10, 80, 80)) | {"segmentation": {"size": [120, 200], "counts": mask["counts"].decode()}}
    got = evaluate(path, [found]).metrics["segm"]
    assert (got["APs"], got["APm"]) == (pytest.approx(1), -1)


SPOILT = {
    "iscrowd as a word": ({"iscrowd": "no"}, "iscrowd"),
    "bbox of three": ({"bbox": [1, 2, 3]}, "bbox"),
    "bbox with text": ({"bbox": [1, 2, 3, "x"]}, "bbox"),
    "unknown image": ({"image_id": 99}, "image 99"),
    "unknown category": ({"category_id": 99}, "category id 99"),
    "flat polygon": ({"segmentation": [1, 2, 3, 4, 5, 6]}, "polygon"),
    "two points": ({"segmentation": [[1, 2, 3, 4]]}, "polygon"),
    "RLE too short": ({"segmentation": {"size": [120, 200], "counts": "`2"}}, "add up"),
    "RLE of another size": ({"segmentation": {"size": [200, 120], "counts": "`2"}}, "RLE of size"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_annotations_that_would_stop_or_hang_pycocotools_are_told(tmp_path, refusal, fault):
    changes, told = SPOILT[fault]
    data = truth_data()
    data["annotations"][1] |= changes
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(data))
    with refusal(EvaluationError, path, "annotation", told):
        evaluate(path, perfect())


def test_a_crowd_without_a_mask_forgives_in_its_box(tmp_path):
    data = truth_data()
    crowd = {"id": 99, "image_id": 2, "category_id": 10, "bbox": [100, 60, 100, 60], "area": 6000, "iscrowd": 1}
    data["annotations"].append(crowd)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(data))
    assert evaluate(path, [*perfect(), result(2, 10, (120, 80, 30, 30), 0.99)]).metrics["segm"]["AP"] == pytest.approx(
        1
    )


# ---- how many detections count


@pytest.fixture
def crowded(tmp_path):
    """A truth with 130 objects of a class in one image and one object in another; and results equal to it."""
    boxes = [(10 * (i % 15), 10 * (i // 15), 8, 8) for i in range(130)]
    objects = [(1, 10, b) for b in boxes] + [(2, 20, (5, 5, 150, 100))]
    data = truth_data()
    data["annotations"] = [
        {"id": k + 1, "image_id": i, "category_id": c, "bbox": list(b), "area": b[2] * b[3], "iscrowd": 0}
        | {"segmentation": [corners(*b)]}
        for k, (i, c, b) in enumerate(objects)
    ]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(data))
    return path, [result(*o) for o in objects]


def test_as_many_detections_count_as_an_image_can_have(crowded):
    path, results = crowded
    summary = evaluate(path, results, max_per_img=300)
    for kind in ("bbox", "segm"):
        got = summary.metrics[kind]
        assert got["AP"] == got["AR300"] == got["ARs"] == pytest.approx(1)
        assert "AR100" not in got
        assert summary.standard[kind] == evaluate(path, results).metrics[kind]
        # of 130 objects 100: precision 1 up to a recall of 0.77 of COCO's 101 points
        assert summary.standard[kind]["AP"] == pytest.approx((77 / 101 + 1) / 2)
        assert summary.standard[kind]["AR100"] == pytest.approx((100 / 130 + 1) / 2)
    assert summary.text.count("area=   all | maxDets=300 ] = 1.000") == 8
    assert summary.text.count("area=   all | maxDets=100 ] = 0.881") == 2
    assert summary.notes == []
    assert summary.to_dict()["segm"]["metrics_at_100"]["AP"] == summary.standard["segm"]["AP"]


@pytest.mark.parametrize("limit", [None, 1, 20, 100])
def test_up_to_coco_s_limit_every_digit_is_coco_s(crowded, limit):
    path, results = crowded
    with_limit, without = evaluate(path, results, max_per_img=limit), evaluate(path, results)
    assert with_limit.metrics == without.metrics
    assert tuple(with_limit.metrics["bbox"]) == tuple(n.name for n in coco_numbers())
    assert with_limit.standard == {}
    assert "maxDets=100 ] = 0.881" in with_limit.text


def test_where_both_limits_give_the_same_there_is_one_table(annotations):
    summary = evaluate(annotations, perfect(), max_per_img=300)
    assert summary.standard == {}
    assert "maxDets=100" not in summary.text


@pytest.mark.parametrize(("limit", "told"), [(None, "100 of a class"), (120, "120 an image"), (2, "2 an image")])
def test_images_with_more_objects_than_can_count_are_told(crowded, limit, told):
    path, results = crowded
    (note,) = evaluate(path, results, max_per_img=limit).notes
    assert told in note and "1.jpg has the most, 130" in note
    assert note in evaluate(path, results, max_per_img=limit).text
    assert evaluate(path, results, image_ids=[2], max_per_img=limit).notes == []
    assert evaluate(path, results, class_names=["dog"], max_per_img=limit).notes == []


def test_detections_of_a_class_that_the_truth_lacks_count_for_nothing(annotations):
    extra = [result(1, 77, OBJECTS[0][2], 0.99)] * 3
    summary = evaluate(annotations, perfect() + extra)
    assert summary.metrics == evaluate(annotations, perfect()).metrics
    assert summary.notes == ["3 detections of categories that the annotations lack (77) count for nothing"]


# ---- what can't be evaluated


def test_results_of_other_data_are_refused(annotations, refusal):
    with refusal(EvaluationError, annotations, "image 77"):
        evaluate(annotations, [result(77, 10, (0, 0, 5, 5))])
    with refusal(EvaluationError, annotations, "image 78"):
        evaluate(annotations, perfect(), image_ids=[1, 78])
    with refusal(EvaluationError, "'horse'", "cat, dog, unseen"):
        evaluate(annotations, perfect(), class_names=["cat", "horse"])


def test_results_without_masks_are_refused_as_masks(annotations, refusal):
    boxes_alone = [{k: v for k, v in r.items() if k != "segmentation"} for r in perfect()]
    assert evaluate(annotations, boxes_alone, ("bbox",)).metrics["bbox"]["AP"] == pytest.approx(1)
    with refusal(EvaluationError, "no masks"):
        evaluate(annotations, boxes_alone)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"images": []}', '{"annotations": [1], "images": [1]}'])
def test_unusable_annotation_files(tmp_path, refusal, text):
    path = tmp_path / "truth.json"
    path.write_text(text)
    with refusal(EvaluationError, path):
        evaluate(path, [])


def test_annotation_file_missing(tmp_path, refusal):
    with refusal(EvaluationError, tmp_path / "none.json", "can't read"):
        evaluate(tmp_path / "none.json", [])


def test_an_annotation_without_a_mask_is_named(tmp_path, refusal):
    data = truth_data()
    del data["annotations"][2]["segmentation"]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(data))
    with refusal(EvaluationError, path, "annotation 3", "segmentation"):
        evaluate(path, perfect())
    assert evaluate(path, perfect(), ("bbox",)).metrics["bbox"]["AP"] == pytest.approx(1)


# ---- results files


def test_results_survive_the_file(annotations, tmp_path):
    path = tmp_path / "deep" / "results.json"
    save_results(path, perfect())
    assert load_results(path) == perfect()
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
    assert evaluate(annotations, load_results(path)).metrics["segm"]["AP"] == pytest.approx(1)


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch, refusal):
    path = tmp_path / "results.json"
    save_results(path, perfect())

    def half(self, text, *_, **__):
        with open(self, "w") as f:
            f.write(text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with refusal(EvaluationError, path, "No space left on device"):
        save_results(path, [])
    assert load_results(path) == perfect()
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_cannot_be(tmp_path, refusal):
    (tmp_path / "file").write_text("")
    with refusal(EvaluationError, "file/results.json", "can't write"):
        save_results(tmp_path / "file" / "results.json", [])


def test_truncated_results(tmp_path, refusal):
    path = tmp_path / "results.json"
    save_results(path, perfect())
    path.write_bytes(path.read_bytes()[:-40])
    with refusal(EvaluationError, path, "not whole JSON"):
        load_results(path)


@pytest.mark.parametrize(
    "content", [{}, [1], [{"image_id": 1}], [{"image_id": 1, "category_id": 1, "bbox": [1, 2], "score": 1}]]
)
def test_json_that_is_not_results(tmp_path, refusal, content):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    with refusal(EvaluationError, path, "COCO result"):
        load_results(path)


def test_missing_results(tmp_path, refusal):
    with refusal(EvaluationError, "none.json", "can't read"):
        load_results(tmp_path / "none.json")


def test_binary_results(tmp_path, refusal):
    (tmp_path / "results.json").write_bytes(b"\xff\xfe\x00\x81")
    with refusal(EvaluationError, "results.json"):
        load_results(tmp_path / "results.json")
