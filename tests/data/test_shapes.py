"""The generated data set is a sound COCO one, and the same for the same seed."""

import contextlib
import io

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from src.data import shapes
from src.data.records import DataError
from src.data.shapes import CLASSES, make_shapes


@pytest.fixture(scope="module")
def truth(shapes_root):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(shapes_root / "annotations/instances_train2017.json"))


def contents(root):
    return {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_same_seed_same_bytes(tmp_path):
    first = contents(make_shapes(tmp_path / "a", train=3, val=2, seed=7))
    assert len(first) == 3 + 2 + 2
    assert contents(make_shapes(tmp_path / "b", train=3, val=2, seed=7)) == first
    other = contents(make_shapes(tmp_path / "c", train=3, val=2, seed=8))
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first)


def test_splits_differ(shapes_root):
    train, val = (contents(shapes_root / f"{s}2017") for s in ("train", "val"))
    assert set(train.values()).isdisjoint(val.values())


def test_more_images_leave_the_first_as_they_were(tmp_path, shapes_root):
    few = contents(make_shapes(tmp_path / "few", train=2, val=1, seed=5) / "train2017")
    assert few.items() <= contents(shapes_root / "train2017").items()


def test_images_are_as_listed(truth, shapes_root):
    images = truth.loadImgs(truth.getImgIds())
    assert len(images) == 24
    for image in images:
        pixels = cv2.imread(str(shapes_root / "train2017" / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)


def test_annotations_are_consistent(truth):
    annotations = truth.loadAnns(truth.getAnnIds())
    assert annotations
    for a in annotations:
        mask = truth.annToMask(a)
        assert a["area"] == mask.sum() > 0
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y, w, h = a["bbox"]
        # how far the box, the outline's own, reaches past the mask of whole pixels on each side: pixels are rounded
        # outwards by less than one, and a star's pointed tip is thinner than a pixel for some two more
        past = np.array([columns[0] - x, rows[0] - y, x + w - columns[-1] - 1, y + h - rows[-1] - 1])
        assert past.min() >= -1
        assert past.max() <= 3
        assert x >= 0
        assert y >= 0
        assert x + w <= mask.shape[1] + 0.01
        assert y + h <= mask.shape[0] + 0.01


def test_objects_hardly_overlap(truth):
    """Annotations are the visible parts."""
    for image_id in truth.getImgIds():
        masks = [truth.annToMask(a) for a in truth.imgToAnns[image_id] if not a["iscrowd"]]
        if len(masks) > 1:
            total = np.sum(masks, 0)
            # outlines are rounded to pixels: neighbours share some along their border
            assert (total > 1).sum() <= 0.03 * (total > 0).sum()


def test_variety(truth):
    annotations = truth.loadAnns(truth.getAnnIds())
    objects = [a for a in annotations if not a["iscrowd"]]
    assert {truth.cats[a["category_id"]]["name"] for a in objects} == set(CLASSES)
    assert any(a["iscrowd"] and isinstance(a["segmentation"], dict) for a in annotations)
    assert set(truth.getImgIds()) - {a["image_id"] for a in annotations}
    assert any(len(a["segmentation"]) > 1 for a in objects)
    areas = np.array([a["area"] for a in objects])
    # COCO's small, medium and large
    assert (areas < 32**2).any()
    assert ((areas >= 32**2) & (areas < 96**2)).any()
    assert (areas >= 96**2).any()


def test_what_is_there_stays(shapes_root):
    before = contents(shapes_root)
    assert make_shapes(shapes_root, train=24, val=8, seed=5) == shapes_root
    assert contents(shapes_root) == before


@pytest.mark.parametrize("options", [(23, 8, 5), (24, 9, 5), (24, 8, 6)], ids=["train", "val", "seed"])
def test_a_data_set_of_other_options_is_refused(shapes_root, refusal, options):
    before = contents(shapes_root)
    with refusal(DataError, shapes_root, "images, seed 5", "remove it"):
        make_shapes(shapes_root, *options)
    assert contents(shapes_root) == before


def test_another_coco_data_set_is_refused(coco_folder, refusal):
    before = contents(coco_folder.root)
    with refusal(DataError, coco_folder.root, "no shapes data set"):
        make_shapes(coco_folder.root, 2, 1)
    assert contents(coco_folder.root) == before


def test_foreign_folder_is_refused(tmp_path, refusal):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with refusal(DataError, tmp_path / "mine", "name another folder"):
        make_shapes(tmp_path / "mine", 1, 1)
    assert contents(tmp_path) == {(tmp_path / "mine/thesis.txt").relative_to(tmp_path): b"years of work"}


def test_file_in_place_is_refused(tmp_path, refusal):
    (tmp_path / "mine").write_text("years of work")
    with refusal(DataError, tmp_path / "mine"):
        make_shapes(tmp_path / "mine", 1, 1)
    with refusal(DataError, tmp_path / "mine"):
        make_shapes(tmp_path / "mine/below", 1, 1)
    assert (tmp_path / "mine").read_text() == "years of work"


def test_empty_folder_is_filled(tmp_path):
    assert (make_shapes(tmp_path, 1, 1) / "annotations/instances_val2017.json").is_file()


def test_interrupted_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(random):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "make_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path / "new", 1, 1)
    assert list(tmp_path.iterdir()) == []
