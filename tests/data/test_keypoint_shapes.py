"""The generated persons are a sound COCO set of keypoints, and the same for the same seed."""

import contextlib
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO

from src.config import load_config
from src.data.keypoint_shapes import NAMES, SKELETON, make_keypoint_shapes
from src.data.records import DataError
from src.data.shapes import make_shapes


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_keypoint_shapes(tmp_path_factory.mktemp("persons") / "root", train=24, val=3, seed=0)


@pytest.fixture(scope="module")
def truth(root):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(root / "annotations/instances_train2017.json"))


def contents(root):
    return {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_same_seed_same_bytes(tmp_path):
    first = contents(make_keypoint_shapes(tmp_path / "a", train=3, val=2, seed=7))
    assert len(first) == 3 + 2 + 2
    assert contents(make_keypoint_shapes(tmp_path / "b", train=3, val=2, seed=7)) == first
    other = contents(make_keypoint_shapes(tmp_path / "c", train=3, val=2, seed=8))
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first)


def test_annotations_are_coco(truth):
    (person,) = truth.loadCats(truth.getCatIds())
    assert person["name"] == "person" and person["keypoints"] == list(NAMES)
    assert person["skeleton"] == [list(pair) for pair in SKELETON]
    assert all(1 <= a < b <= len(NAMES) for a, b in SKELETON)
    for a in truth.loadAnns(truth.getAnnIds()):
        image = truth.imgs[a["image_id"]]
        values = np.reshape(a["keypoints"], (len(NAMES), 3))
        assert a["num_keypoints"] == (values[:, 2] > 0).sum()
        assert set(values[:, 2]) <= {0, 1, 2} and not values[values[:, 2] == 0].any()
        assert (values[:, :2] >= 0).all() and (values[:, :2] <= [image["width"], image["height"]]).all()
        assert a["area"] > 0 and min(a["bbox"][2:]) > 0
        assert not (a["iscrowd"] and a["num_keypoints"])


def test_visible_points_are_on_what_is_seen_and_covered_ones_arent(truth):
    """To the rounding of outlines to pixels."""
    on = {1: [], 2: []}
    for a in truth.loadAnns(truth.getAnnIds(iscrowd=False)):
        mask = truth.annToMask(a)
        for x, y, visible in np.reshape(a["keypoints"], (-1, 3)):
            if visible:
                on[int(visible)].append(mask[min(int(y), mask.shape[0] - 1), min(int(x), mask.shape[1] - 1)])
    assert len(on[1]) > 5 and np.mean(on[1]) < 0.2
    assert len(on[2]) > 100 and np.mean(on[2]) > 0.98


def test_variety(truth):
    persons = truth.loadAnns(truth.getAnnIds(iscrowd=False))
    assert any(not a["num_keypoints"] for a in persons) and any(a["num_keypoints"] == len(NAMES) for a in persons)
    assert truth.getAnnIds(iscrowd=True)
    sides = []
    for a in persons:
        (left, _, seen_left), (right, _, seen_right) = np.reshape(a["keypoints"], (-1, 3))[1:3]
        sides += [left > right] if seen_left and seen_right else []
    # in front and from behind
    assert 0.2 < np.mean(sides) < 0.8


def test_the_config_names_what_is_made():
    config = load_config("configs/keypoint_shapes.yaml")
    assert config.detector == "keypoint_rcnn" and tuple(config.keypoint_head.names) == NAMES


def test_the_command(tmp_path):
    command = [sys.executable, "-m", "src.data.keypoint_shapes", str(tmp_path / "out"), "--train", "2", "--val", "1"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.strip() == str(tmp_path / "out")
    assert len(json.loads((tmp_path / "out/annotations/instances_train2017.json").read_bytes())["images"]) == 2
    run = subprocess.run([*command[:-1], "0"], capture_output=True, text=True)
    assert run.returncode != 0 and "--val 0: at least one image" in run.stderr


def test_what_is_there_stays(root, tmp_path, refusal):
    before = contents(root)
    assert make_keypoint_shapes(root, train=24, val=3, seed=0) == root
    with refusal(DataError, root, "24 images, seed 0 (train), not persons with keypoints, 24 images, seed 5"):
        make_keypoint_shapes(root, train=24, val=3, seed=5)
    assert contents(root) == before
    shapes = make_shapes(tmp_path / "shapes", 1, 1)
    with refusal(DataError, shapes, "holding shapes, 1 images", "name another folder"):
        make_keypoint_shapes(shapes, 1, 1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with refusal(DataError, tmp_path / "mine", "no such data set"):
        make_keypoint_shapes(tmp_path / "mine", 1, 1)
