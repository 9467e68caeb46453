"""Pictures of a results file: what is drawn, and files that can't be."""

import json
import shutil
import sys

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from src.evaluation import pictures
from src.evaluation.pictures import draw_results
from src.runtime.errors import UserError


def result_of(annotation, size, **changes):
    """A result that is the annotation, with a score."""
    mask = rle.merge(rle.frPyObjects(annotation["segmentation"], *size))
    return {
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "bbox": annotation["bbox"],
        "score": 0.9,
        "segmentation": {"size": list(size), "counts": mask["counts"].decode()},
    } | changes


@pytest.fixture
def case(shapes_root, tmp_path):
    """Arguments of draw_results but `results`, the first drawable annotation of the first image, and its size."""
    annotations = shapes_root / "annotations/instances_val2017.json"
    data = json.loads(annotations.read_text())
    first = min(a["image_id"] for a in data["annotations"] if not a["iscrowd"])
    annotation = next(a for a in data["annotations"] if a["image_id"] == first and not a["iscrowd"])
    image = next(i for i in data["images"] if i["id"] == first)
    places = {"annotations": annotations, "images": shapes_root / "val2017", "out": tmp_path / "pictures"}
    return places, annotation, (image["height"], image["width"]), first


def write(tmp_path, results):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    return path


def halves(path):
    """The left and right picture without captions and gap; both are as wide."""
    picture = cv2.imread(str(path))
    width = picture.shape[1] // 2 - 4
    return picture[30:, :width], picture[30:, -width:]


def test_the_prediction_is_drawn_beside_the_truth(case, tmp_path):
    places, annotation, size, image_id = case
    x, y, w, h = annotation["bbox"]
    drawn = {}
    for name, score in (("shown", 0.9), ("hidden", 0.2)):
        results = write(tmp_path, [result_of(annotation, size, score=score)])
        drawn[name] = halves(draw_results(results=results, **places, count=image_id)[-1])
    np.testing.assert_array_equal(drawn["shown"][0], drawn["hidden"][0])
    difference = (drawn["shown"][1] != drawn["hidden"][1]).any(2)
    rows, columns = np.nonzero(difference)
    assert len(rows) > 100
    # small images are enlarged twice; the box's own sides are the widest thing but for a label
    assert rows.max() - rows.min() >= 2 * min(h, size[0]) - 4
    assert columns.max() - columns.min() >= 2 * min(w, size[1]) - 4


def test_small_pictures_are_enlarged(case, tmp_path):
    places, _, size, image_id = case
    picture = cv2.imread(str(draw_results(results=write(tmp_path, []), **places, count=image_id)[-1]))
    assert picture.shape[0] > 2 * size[0]
    assert picture.shape[1] > 4 * size[1]


def test_results_without_masks(case, tmp_path):
    places, annotation, size, image_id = case
    boxes_alone = result_of(annotation, size)
    del boxes_alone["segmentation"]
    assert draw_results(results=write(tmp_path, [boxes_alone]), **places, count=1)


def test_a_box_far_outside(case, tmp_path):
    places, annotation, size, image_id = case
    results = write(tmp_path, [result_of(annotation, size, bbox=[-1e12, 5, 3e12, 20])])
    assert len(draw_results(results=results, **places, count=image_id)) <= image_id


@pytest.mark.parametrize("names", [("a/1.png", "b/1.png"), ("x/1.png", "x/1.jpg"), ("../1.png", "b/1.png")])
def test_two_images_of_one_name(tmp_path, names):
    """Each has its own picture, of its own file."""
    (tmp_path / "images").mkdir()
    images = []
    for i, name in enumerate(names, 1):
        path = tmp_path / "images" / name
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), np.full((600, 500, 3), 60 * i, np.uint8))
        images.append({"id": i, "file_name": name, "height": 600, "width": 500})
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}))
    paths = draw_results(truth, tmp_path / "images", write(tmp_path, []), tmp_path / "out")
    assert len(set(paths)) == 2
    for i, path in enumerate(paths, 1):
        assert (tmp_path / "out").resolve() in path.resolve().parents
        assert abs(int(halves(path)[0][300, 250, 0]) - 60 * i) < 5


def test_a_picture_of_another_size_than_annotated(case, tmp_path, refusal):
    places, *_ = case
    data = json.loads(places["annotations"].read_text())
    data["images"][0]["width"] += 7
    data["annotations"] = []
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(data))
    with refusal(UserError, data["images"][0]["file_name"], f"annotated as {data['images'][0]['width']} x"):
        draw_results(results=write(tmp_path, []), **places | {"annotations": truth})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"bbox": ["a", 1, 2, 3]}, "bbox"),
        ({"bbox": [float("nan"), 1, 2, 3]}, "bbox"),
        ({"score": "high"}, "score high"),
        ({"category_id": "star"}, "'star'"),
        ({"segmentation": "x"}, "segmentation"),
        ({"segmentation": [[1, 2, 3, 4]]}, "polygon"),
        ({"segmentation": {"size": [10, 10], "counts": [100]}}, "RLE of size [10, 10]"),
        ({"segmentation": {"size": None, "counts": "zzz"}}, "RLE"),
    ],
)
def test_results_that_cannot_be_drawn(case, tmp_path, refusal, changes, told):
    places, annotation, size, image_id = case
    results = write(tmp_path, [result_of(annotation, size, **changes)])
    with refusal(UserError, "results.json: entry 0", f"image {image_id}", told):
        draw_results(results=results, **places, count=image_id)


def test_a_mask_that_does_not_decode(case, tmp_path, refusal):
    places, annotation, size, image_id = case
    larger = rle.encode(np.ones((2 * size[0], 2 * size[1]), np.uint8, order="F"))
    broken = {"size": list(size), "counts": larger["counts"].decode()}
    with refusal(UserError, "results.json: entry 0", "decoded"):
        draw_results(
            results=write(tmp_path, [result_of(annotation, size, segmentation=broken)]), **places, count=image_id
        )


def test_other_files_that_cannot_be_used(case, tmp_path, refusal):
    places, annotation, size, image_id = case
    good = write(tmp_path, [result_of(annotation, size)])
    with refusal(UserError, "count is 0"):
        draw_results(results=good, **places, count=0)
    with refusal(UserError, "no such image"):
        draw_results(results=good, **places | {"images": tmp_path / "none"})
    with refusal(UserError, "can't write pictures"):
        draw_results(results=good, **places | {"out": good / "pictures"})
    with refusal(UserError, "has no image 99999"):
        draw_results(results=write(tmp_path, [result_of(annotation, size, image_id=99999)]), **places)
    data = json.loads(places["annotations"].read_text())
    data["images"][0].pop("file_name")
    nameless = tmp_path / "nameless.json"
    nameless.write_text(json.dumps(data))
    with refusal(UserError, "nameless.json: image 1 lacks file_name"):
        draw_results(results=write(tmp_path, []), **places | {"annotations": nameless})


def test_the_command_draws_pictures_and_curve(case, tmp_path, monkeypatch, capsys):
    places, annotation, size, _ = case
    log = tmp_path / "loss_0.log"
    log.write_text("".join(f"epoch: 1 step: {i}, rpn_loss: {1 / i:.5f}, total_loss: {2 / i:.5f}\n" for i in (1, 2, 3)))
    words = [f"--{k}={v}" for k, v in places.items()]
    words += [f"--results={write(tmp_path, [result_of(annotation, size)])}", "--count=2", f"--loss_log={log}"]
    monkeypatch.setattr(sys, "argv", ["pictures", *words])
    assert pictures.main() == 0
    assert "2 pictures" in capsys.readouterr().out
    made = sorted(p.name for p in places["out"].iterdir())
    assert len(made) == 3
    assert "loss_curve.png" in made
    shutil.rmtree(places["out"])
