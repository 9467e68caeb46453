"""Keypoints: decoded as torchvision and Detectron2 do, measured as pycocotools does, written, read and drawn."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from src.config import Config
from src.config.keys import COCO_KEYPOINTS
from src.evaluation.coco import EvaluationError, evaluate
from src.evaluation.cpp_results import read_summary
from src.evaluation.detections import Detections
from src.evaluation.keypoints import Points, decode_heatmaps
from src.evaluation.kinds import KINDS, leading_ap
from src.evaluation.kinds.keypoints import sigmas
from src.evaluation.paste import Found, found_in, paste, paste_options
from src.evaluation.pictures import draw_records
from src.evaluation.results import checked_results, load_results, save_results
from src.evaluation.truth import Truth
from src.inference.labels import coco_labels, labelme_labels
from src.inference.page.serve import Kept, draw
from src.runtime.newer import zip_equal
from tests.evaluation.golden_keypoints import BOXES, GOLDEN, heatmaps

KIND = KINDS["keypoints"]
NAMES = ["head", "left_hand", "right_hand"]
TEN = ["AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"]
PERSON = {"id": 1, "name": "person", "keypoints": COCO_KEYPOINTS, "skeleton": [[1, 2]]}
DOG = {"id": 4, "name": "dog", "keypoints": NAMES}
STONE = {"id": 9, "name": "stone"}


# ---------------------------------------------------------------------------------------------------------
# from heatmaps to points


def test_points_are_torchvisions_and_scores_detectron2s():
    golden = np.load(GOLDEN)
    points = decode_heatmaps(heatmaps(), BOXES)
    np.testing.assert_array_equal(points[:, :, :2], golden["points"][:, :, :2])
    np.testing.assert_allclose(points[:, :, 2], golden["points"][:, :, 2], rtol=2e-6, atol=2e-5)
    shares = decode_heatmaps(heatmaps(), BOXES, "probability")
    np.testing.assert_array_equal(shares[:, :, :2], points[:, :, :2])
    np.testing.assert_allclose(shares[:, :, 2], golden["probability"], rtol=3e-5)


def test_a_share_is_a_number_that_results_take():
    """Bicubic maps rise above their cells, beside a step of 4000 by hundreds, of which float32 has no exponential."""
    step = np.where(np.arange(56) < 28, 2000, -2000) * np.ones((1, 1, 56, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points = decode_heatmaps(step, np.array([[0, 0, 300, 300]], np.float32), "probability")
    assert points[0, 0, 2] == np.float32(1e12)


def test_without_detections():
    assert decode_heatmaps(np.zeros((0, 3, 56, 56), np.float32), np.zeros((0, 4), np.float32)).shape == (0, 3, 3)


@pytest.mark.parametrize("scale", [(2.0, 2.0), (1.6653, 1.6648), (0.4, 0.4012)])
def test_decoded_on_the_canvas_and_told_in_the_picture(scale):
    config = replace(Config(), detector="keypoint_rcnn")
    config.keypoint_head.names, config.keypoint_head.half_pixel = NAMES, True
    n = len(BOXES)
    ones = np.ones((1, n), np.float32)
    out = [BOXES[None], ones, ones.astype(int), ones > 0, heatmaps()[None]]
    found = found_in(out, 0, config.branches, scale, "image 1")
    detections = paste(found, 900, 1400, ["background", "dog"], {1: 4}, paste_options(config))
    values = np.stack(detections.fields["keypoint"])
    # a detection without area is none
    expected = np.load(GOLDEN)["points"][(BOXES[:, 2:] > BOXES[:, :2]).all(1)]
    assert len(expected) == n - 1
    expected[:, :, :2] = expected[:, :, :2] / np.float32(scale[::-1]) - np.float32(0.5)
    np.testing.assert_allclose(values, expected, atol=3e-4)
    assert values.dtype == np.float32 and detections.fields["keypoint"][0].names == tuple(NAMES)


@pytest.mark.parametrize("x1", [0, 334])
def test_sides_across_the_canvas_stay_whole(x1):
    """One pixel more would move the point by half of one."""
    heatmap = np.zeros((1, 1, 56, 56), np.float32)
    heatmap[..., 40, 50] = 1
    boxes = np.array([[x1, 0, x1 + 999, 750]], np.float32)
    expected = decode_heatmaps(heatmap, np.array([[0, 0, 999, 750]], np.float32))[0, 0, :2] + np.float32([x1, 0])
    options = {"names": ["head"], "score": "logit", "half_pixel": False}
    for scale in np.random.RandomState(2).uniform(0.3, 3, (50, 1, 2)).astype(np.float32):
        picture = boxes / scale[0, [1, 0, 1, 0]]
        value = KIND.values(heatmap, picture, scale, 1, 1, options)[0]
        np.testing.assert_allclose(np.asarray(value)[0, :2] * scale[0, ::-1], expected, atol=5e-4)


def test_maps_of_a_diverged_training(refusal):
    maps = np.full((1, 1, 56, 56), np.nan, np.float32)
    with refusal(EvaluationError, "a detection's keypoints aren't finite; did the training diverge?"):
        KIND.values(maps, np.ones((1, 4), np.float32), np.ones((1, 2)), 9, 9, {"names": ["head"], "score": "logit"})


def test_points_that_the_cpp_program_decoded_stay_as_they_are(tmp_path, refusal):
    summary = {"format": "rcnn-mindspore results", "images": ["a.jpg"], "classes": ["background", "dog"]}
    rows = np.random.RandomState(1).uniform(0, 50, (2, 3, 3)).astype(np.float32)
    options = KIND.told(summary | {"keypoints": {"names": NAMES}})
    np.testing.assert_array_equal(KIND.values(rows, np.ones((2, 4)), np.ones((2, 2)), 60, 60, options), rows)
    assert KIND.told(summary) is None
    path = tmp_path / "summary.json"
    for told in ({"names": NAMES}, {"names": []}, {"names": [1]}, [], {}):
        path.write_text(json.dumps(summary | {"keypoints": told}))
        if told == {"names": NAMES}:
            assert read_summary(tmp_path)["keypoints"] == told
            continue
        with refusal(EvaluationError, "keypoints isn't what an inference writes"):
            read_summary(tmp_path)


# ---------------------------------------------------------------------------------------------------------
# metrics


def people(category: dict, seed: int) -> tuple[list[dict], list[dict]]:
    """Objects of images 1 to 12 and what a mediocre detector finds: all sizes, crowds, objects without keypoints."""
    random, count = np.random.RandomState(seed), len(category["keypoints"])
    objects, results = [], []
    for image in range(1, 13):
        for k in range(random.randint(0, 6)):
            w, h = random.uniform(15, 180, 2)
            x, y = random.uniform(0, 300, 2)
            points = np.column_stack([random.uniform(x, x + w, count), random.uniform(y, y + h, count)]).round(1)
            seen = random.randint(0, 3, count) * (k != 3)
            labelled = np.where(seen[:, None] > 0, points, 0)
            objects.append(
                {
                    "id": len(objects) + 1 + 1000 * category["id"],
                    "image_id": image,
                    "category_id": category["id"],
                    "bbox": [x, y, w, h],
                    "area": w * h * 0.6,
                    "iscrowd": int(k == 4),
                    "keypoints": np.column_stack([labelled, seen]).ravel().tolist(),
                    "num_keypoints": int((seen > 0).sum()),
                }
            )
            for _ in range(random.randint(0, 9 if k == 0 else 3)):
                moved = points + random.standard_normal(points.shape) * random.uniform(0, 0.09) * np.sqrt(w * h)
                results.append(
                    {
                        "image_id": image,
                        "category_id": category["id"],
                        "keypoints": np.column_stack([moved, np.ones(count)]).ravel().tolist(),
                        "score": float(random.uniform()),
                    }
                )
    return objects, results


def truth_data(*categories: dict, annotations: list[dict]) -> dict:
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 500, "width": 500} for i in range(1, 14)]
    return {"images": images, "categories": list(categories), "annotations": annotations}


def by_pycocotools(data: dict, results: list[dict], sigma: np.ndarray | None = None) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(data)
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "keypoints")
        run.params.kpt_oks_sigmas = run.params.kpt_oks_sigmas if sigma is None else sigma
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats.tolist()


def test_the_ten_numbers_are_pycocotools():
    objects, results = people(PERSON, 3)
    data = truth_data(PERSON, annotations=objects)
    summary = evaluate(Truth("truth.json", copy.deepcopy(data)), results, ["keypoints"], max_per_img=100)
    expected = by_pycocotools(data, results)
    assert list(summary.metrics["keypoints"]) == TEN
    np.testing.assert_allclose(list(summary.metrics["keypoints"].values()), expected, rtol=0, atol=1e-12)
    assert min(expected) > 0.1 and max(expected) < 0.95
    assert summary.notes == [] and summary.standard == {}
    assert summary.text.count("maxDets= 20") == 10
    assert leading_ap({"bbox AP": 0.1, "keypoints AP": 0.2}) == 0.2


def test_more_detections_than_count():
    objects, results = people(PERSON, 4)
    data = truth_data(PERSON, annotations=objects)
    many = [r | {"score": r["score"] / 2**i} for i in range(12) for r in results]
    found = evaluate(Truth("truth.json", copy.deepcopy(data)), many, ["keypoints"], max_per_img=300)
    np.testing.assert_allclose(list(found.metrics["keypoints"].values()), by_pycocotools(data, many), atol=1e-12)


def test_objects_without_keypoints_dont_count():
    objects, results = people(PERSON, 5)
    data = truth_data(PERSON, annotations=objects)
    bare = copy.deepcopy(data)
    for a in bare["annotations"]:
        if not a["num_keypoints"]:
            del a["keypoints"], a["num_keypoints"]
    summary = evaluate(Truth("truth.json", bare), results, ["keypoints"])
    np.testing.assert_allclose(list(summary.metrics["keypoints"].values()), by_pycocotools(data, results), atol=1e-12)
    assert summary.classes["keypoints"]["person"].objects == sum(
        a["num_keypoints"] > 0 and not a["iscrowd"] for a in objects
    )


def test_categories_of_other_keypoints():
    persons, found_persons = people(PERSON, 6)
    dogs, found_dogs = people(DOG, 7)
    stones = [{"id": 1, "image_id": 1, "category_id": 9, "bbox": [1, 2, 30, 40], "area": 900, "iscrowd": 0}]
    data = truth_data(PERSON, DOG, STONE, annotations=[*persons, *dogs, *stones])
    thrown = [{"image_id": 1, "category_id": 9, "keypoints": [1.0, 2.0, 1.0, 30.0, 40.0, 1.0], "score": 0.5}]
    summary = evaluate(Truth("truth.json", data), [*found_persons, *found_dogs, *thrown], ["keypoints"], iou=0.52)
    alone = [
        by_pycocotools(truth_data(PERSON, annotations=persons), found_persons),
        by_pycocotools(truth_data(DOG, annotations=dogs), found_dogs, np.full(3, 0.05)),
    ]
    classes = summary.classes["keypoints"]
    for name, numbers in zip_equal(("person", "dog"), alone):
        np.testing.assert_allclose(classes[name].AP, numbers[0], atol=1e-12)
    assert np.isnan(classes["stone"].AP)
    assert classes["dog"].best.f1 > 0.2
    assert summary.metrics["keypoints"]["AP"] == pytest.approx(np.mean([alone[0][0], alone[1][0]]), abs=1e-12)
    assert summary.notes == [
        "keypoints of dog: COCO hasn't measured how well these can be told; OKS takes 0.05 for each"
    ]


def test_sigmas_go_by_name():
    np.testing.assert_allclose(sigmas(["left_hip", "nose"], 2), [0.107, 0.026])
    np.testing.assert_allclose(sigmas(["left_hip", "tail"], 2), [0.05, 0.05])
    np.testing.assert_allclose(sigmas([], 3), [0.05] * 3)


def test_annotations_without_keypoints(tmp_path, refusal):
    objects, results = people(PERSON, 8)
    for a in objects:
        del a["keypoints"]
    truth = Truth(tmp_path / "truth.json", truth_data(PERSON, annotations=objects))
    assert not KIND.annotated(truth)
    with refusal(EvaluationError, "truth.json: no object has a keypoint; evaluate boxes alone (--iou_types bbox)"):
        evaluate(truth, results, ["keypoints"])
    assert KIND.annotated(Truth("empty.json", truth_data(PERSON, annotations=[])))
    evaluate(Truth("empty.json", truth_data(PERSON, annotations=[])), results, ["keypoints"])


def test_results_that_cant_be_measured(tmp_path, refusal):
    objects, results = people(PERSON, 9)
    truth = Truth(tmp_path / "truth.json", truth_data(PERSON, STONE, annotations=objects))
    boxes = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]
    with refusal(EvaluationError, "entry 0 lacks 'keypoints'; evaluate boxes alone (--iou_types bbox)"):
        evaluate(truth, boxes, ["keypoints"])
    for value, fault in (
        ([1, 2, 3], "1 keypoints, where the annotations' category 'person' has 17; results of another detector?"),
        ([1, 2], "keypoints [1, 2] aren't a list of x, y and a number for each point"),
        ("abc", "keypoints abc aren't a list of x, y and a number for each point"),
        ([float("nan")] * 51, "aren't finite numbers"),
        ([True] * 51, "aren't finite numbers"),
    ):
        with refusal(EvaluationError, f"results: entry 1, of image {results[1]['image_id']}: ", fault):
            checked_results([results[0], results[1] | {"keypoints": value}], truth, "results")
    several = [results[0] | {"category_id": 9, "keypoints": [1.0] * 3 * k} for k in (1, 2)]
    with refusal(EvaluationError, "entry 0 of the results has 1 keypoints, where others of its category have 2"):
        evaluate(truth, several, ["keypoints"])


def test_a_converted_split_tells_by_its_truth(tmp_path):
    path = tmp_path / "truth.json"
    head = '{"source": "a",\n"categories": [],\n"images": [\n{"id":1,"file_name":"1.jpg"},\n{"id":2}\n],\n'
    row = {"id": 1, "image_id": 1, "iscrowd": 0}
    for rows, expected in (
        ([row, row | {"keypoints": [0, 0, 0, 5, 5, 1]}, row], True),
        ([row, row | {"keypoints": [0, 0, 0, 0, 0, 0]}], False),
        ([row | {"iscrowd": 1, "keypoints": [5, 5, 1]}, row], False),
        ([], True),
    ):
        lines = ",\n".join(json.dumps(r, separators=(",", ":")) for r in rows)
        path.write_text(f'{head}"annotations": [\n{lines}\n]}}\n')
        assert KIND.converted({"annotations": str(path)}) is expected


# ---------------------------------------------------------------------------------------------------------
# files and pictures


def detections() -> Detections:
    boxes = np.float32([[10, 10, 50, 50], [30, 20, 70, 50]])
    rows = np.float32([[[20.123456, 20.5, 3.12345678], [15, 40, 0.4], [45, 40, -2]], [[50, 25, -1]] * 3])
    found = Found(boxes, np.float32([0.9, 0.8]), np.int32([1, 1]), {"keypoint": rows})
    return paste(found, 60, 80, ["background", "dog"], {1: 4}, {"keypoint": {"names": NAMES}})


def test_what_files_hold(tmp_path):
    first = detections().to_coco(1)[0]
    assert list(first) == ["image_id", "category_id", "bbox", "score", "keypoints", "num_keypoints"]
    assert first["keypoints"] == [20.12, 20.5, 3.1235, 15, 40, 0.4, 45, 40, -2]
    row = detections().to_entry()["predictions"][0]
    assert row["keypoints"][0] == {"name": "head", "x": 20.12, "y": 20.5, "score": 3.1235}
    exact = detections().to_dict()["predictions"][0]["keypoints"]
    assert [p["name"] for p in exact] == NAMES
    assert exact[0]["x"] == pytest.approx(20.123456) and exact[0]["x"] != 20.12
    json.dumps(detections().to_dict())
    assert len(detections().above(0.85).fields["keypoint"]) == 1
    bare = [{k: v for k, v in r.items() if k != "bbox"} for r in detections().to_coco(1)]
    save_results(tmp_path / "results.json", bare)
    read = load_results(tmp_path / "results.json", Truth("t.json", truth_data(DOG, STONE, annotations=[])))
    assert read[0]["bbox"] == pytest.approx([15, 20.5, 30, 19.5])


def test_labels_to_correct_hold_the_points_that_are_sure(tmp_path):
    image = tmp_path / "a.png"
    with coco_labels(tmp_path / "labels.json", {image: ("a.png", 1)}, ["background", "dog"], {1: 4}) as add:
        add(image, detections(), 1)
    labels = json.loads((tmp_path / "labels.json").read_text())
    assert labels["categories"] == [{"id": 4, "name": "dog", "keypoints": NAMES}]
    first, second = labels["annotations"]
    assert (first["keypoints"], first["num_keypoints"]) == ([20.12, 20.5, 2, 15, 40, 2, 0, 0, 0], 2)
    assert "keypoints" not in second
    with labelme_labels({image: tmp_path / "a.json"}) as add:
        add(image, detections(), 1)
    shapes = json.loads((tmp_path / "a.json").read_text())["shapes"]
    assert [(s["label"], s["shape_type"], s["group_id"], s["points"]) for s in shapes] == [
        ("dog", "rectangle", 1, [[10, 10], [50, 50]]),
        ("head", "point", 1, [[20.12, 20.5]]),
        ("left_hand", "point", 1, [[15, 40]]),
        ("dog", "rectangle", None, [[30, 20], [70, 50]]),
    ]


def changed(before: np.ndarray, after: np.ndarray, x: int, y: int) -> bool:
    """Whether something was painted around a pixel."""
    return bool((before[y - 1 : y + 2, x - 1 : x + 2] != after[y - 1 : y + 2, x - 1 : x + 2]).any())


def test_pictures_show_the_points_that_are_sure():
    image = np.full((60, 80, 3), 200, np.uint8)
    one = detections().above(0.85)
    drawn = one.draw(image)
    assert [changed(image, drawn, x, y) for x, y in ((20, 20), (15, 40), (45, 40))] == [True, True, False]
    page = draw(Kept("a", np.full((240, 320, 3), 200, np.uint8), one), 0.5)
    assert changed(np.full_like(page, 200), page, 80, 82)
    assert not changed(np.full_like(page, 200), page, 180, 160)
    results = one.to_coco(1)
    again = draw_records(image, results, {4: "dog"}, categories={4: DOG})
    assert [changed(image, again, x, y) for x, y in ((20, 20), (15, 40), (45, 40))] == [True, True, False]
    # of an annotation visibility tells, and the category's skeleton joins them
    row = {k: v for k, v in results[0].items() if k != "score"}
    row |= {"keypoints": [20, 20, 1, 0, 0, 0, 40, 20, 2]}
    joined = draw_records(image, [row], {4: "dog"}, categories={4: DOG | {"skeleton": [[1, 3], [1, 2], [1, 9]]}})
    apart = draw_records(image, [row], {4: "dog"})
    assert changed(image, joined, 30, 20) and not changed(image, apart, 30, 20)
    assert changed(image, apart, 20, 20) and changed(image, apart, 40, 20)
    draw_records(image, [{"category_id": 4, "bbox": [1, 2, 3, 4], "keypoints": []}], {4: "dog"})


def test_detections_are_joined_as_the_config_says():
    config = replace(Config(), detector="keypoint_rcnn")
    config.keypoint_head.names = NAMES
    rows, image = np.float32([[[20, 20, 1], [40, 20, 1], [40, 40, 1]]]), np.full((60, 80, 3), 200, np.uint8)

    def drawn(skeleton):
        config.keypoint_head.skeleton = skeleton
        found = Found(np.float32([[10, 10, 50, 50]]), np.float32([0.9]), np.int32([1]), {"keypoint": rows})
        one = paste(found, 60, 80, ["background", "dog"], {1: 4}, paste_options(config))
        return one.draw(image), KIND.category(one.fields["keypoint"][0])

    (joined, labels), (apart, plain) = drawn([[1, 2], [2, 3]]), drawn([])
    for x, y in ((30, 20), (40, 30)):
        assert changed(image, joined, x, y) and not changed(image, apart, x, y)
    assert labels == plain | {"skeleton": [[1, 2], [2, 3]]} and "skeleton" not in plain


def test_points_keep_their_names():
    points = Points(np.zeros((3, 3)), NAMES, [[1, 2]])
    assert points.like(np.ones((3, 3))).skeleton == [[1, 2]]
    assert KIND.rounded(points).names == KIND.resized(points, 10, 10, (20, 20)).names == tuple(NAMES)
