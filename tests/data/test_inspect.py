"""The figures of a data set, its problems, and its contact sheet."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from src.config import load_config
from src.data.fields.masks import on_canvas
from src.data.inspect import contact_sheet, inspect_split, pictures, reach
from src.data.loader import TrainLoader
from src.data.mindrecord import ensure_mindrecord
from src.runtime.newer import zip_equal

ROOT = Path(__file__).parents[2]


def test_figures(coco_folder, coco_config, tmp_path, capsys):
    coco_folder.add_object(1, bbox=[0, 0, 40, 40], category_id=20)
    coco_folder.add_object(2, bbox=[5, 5, 20, 20], iscrowd=1, segmentation={"size": [40, 60], "counts": [2400]})
    coco_folder.write()
    f = inspect_split(coco_config(), "train", tmp_path, samples=0)
    assert (f.images, f.empty, f.crowds, f.most) == (3, 1, 1, 2)
    assert dict(f.instances) == {"circle": 2, "star": 1}
    assert dict(f.images_with) == {"circle": 2, "star": 1}
    assert dict(f.sizes) == {"small": 2, "medium": 1}
    assert f.problems == []
    out = capsys.readouterr().out
    assert str(coco_folder.json) in out
    assert "3 usable, 1 of them without objects, 0 left out" in out
    assert "3 classes without an instance: square, triangle, cross" in out
    assert "60 to 60 wide" in out


@pytest.mark.parametrize(
    ("sides", "said"),
    [
        ([(900, 900)] * 3 + [(128, 128)] * 3, "50% of them reach 0.5 with none, 50% not 0.7: most of these are larger"),
        ([(9, 9)] * 3 + [(900, 900)], "100% of them reach 0.5 with none, 100% not 0.7: most of these are smaller"),
        ([(300, 30)], "of other shapes than the anchors"),
    ],
)
def test_objects_that_no_anchor_fits_are_told_apart(sides, said):
    lines = reach(np.array(sides, float), load_config(ROOT / "configs/mask_rcnn_r50_fpn.yaml"))
    assert "anchors of 32 to 512" in lines
    assert said in lines


def test_boxes_of_a_pixel_are_told(coco_folder, coco_config, tmp_path, capsys):
    coco_folder.write()
    inspect_split(coco_config(), "train", tmp_path, samples=0)
    assert "a pixel wide" not in capsys.readouterr().out
    coco_folder.add_object(1, bbox=[5, 5, 1, 20])
    coco_folder.write()
    inspect_split(coco_config(), "train", tmp_path, samples=0)
    assert "1 boxes are a pixel wide or high" in (out := capsys.readouterr().out)
    assert "000000000001.jpg 1 x 20" in out


def test_all_problems_are_named_though_the_config_says_stop(coco_folder, coco_config, tmp_path, capsys):
    coco_folder.data["annotations"][0]["bbox"] = [0, 0, 0, 9]
    (coco_folder.images / "000000000003.jpg").write_bytes(b"words")
    coco_folder.write()
    f = inspect_split(coco_config(), "train", tmp_path, samples=1)
    assert f.images == 1
    assert len(f.problems) == 2
    out = capsys.readouterr().out
    assert "problems   2" in out
    assert "annotation 101" in out
    assert str(coco_folder.images / "000000000003.jpg") in out


def test_contact_sheet_of_what_training_sees(shapes_config, tmp_path):
    config = shapes_config(aug_prob=0.5, ratio_range=[0.5, 2.0], photo_ratio=0.5)
    inspect_split(config, "train", tmp_path, samples=7)
    sheet = cv2.imread(str(tmp_path / "train_samples.png"))
    assert sheet is not None
    assert sheet.std() > 20
    folder = ensure_mindrecord(config, "train", training=True)
    # the first samples of the first epoch, in their order
    shown = pictures(config, folder, "train", 3)
    loader = TrainLoader(dataclasses.replace(config, batch_size=1), folder)
    for picture, batch in zip(shown, loader.epoch(0)):
        height, width = batch["image_size"][0]
        # enlarged to whole pixels
        assert abs(picture.shape[1] / picture.shape[0] / (width / height) - 1) < 0.02


def test_validation_sheet(shapes_config, tmp_path):
    f = inspect_split(shapes_config(), "val", tmp_path / "new", samples=4)
    assert f.images == 8
    assert (tmp_path / "new/val_samples.png").is_file()


def test_a_sheet_of_odd_shapes():
    images = [np.full(s, 60, np.uint8) for s in ((1, 1000, 3), (1000, 1, 3), (50, 50, 3))]
    sheet = contact_sheet(images)
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] <= 2100
    assert contact_sheet([np.zeros((8, 8, 3), np.uint8)]).any()


def test_a_crop_is_drawn_where_its_box_is():
    bitmap = on_canvas(np.full((112, 112), 255, np.uint8), np.float32([10, 20, 50, 40]), (60, 80))
    x, y, w, h = cv2.boundingRect(bitmap)
    # the outermost cells blend with what is around them, for half a cell
    assert np.abs(np.array([x, y, x + w, y + h]) - [10, 20, 50, 40]).max() <= 1


def test_classes_are_found(coco_folder, coco_config, tmp_path):
    f = inspect_split(coco_config(coco_classes="auto"), "train", tmp_path, samples=0)
    assert dict(f.instances) == {"circle": 2}
    assert json.loads(coco_folder.json.read_text())["categories"][0]["name"] == "circle"


def test_a_validation_sheet_is_of_unchanged_images(shapes_config, tmp_path):
    (tmp_path / "own.py").write_text("def none(image, boxes, labels, masks, random):\n    raise RuntimeError\n")
    own = f"{tmp_path}/own.py:none"
    turned = {"flip_vertical_ratio": 1.0, "rotate90_ratio": 1.0, "repeat_threshold": 1.0, "transform": own}
    turned |= {"copy_paste_ratio": 1.0, "fixed_size_crop": True, "ratio_range": [0.1, 0.2]}
    folder = ensure_mindrecord(shapes_config(), "val", training=False, quiet=True)
    sheets = [pictures(shapes_config(**named), folder, "val", 3) for named in ({"flip_ratio": 0.0}, turned)]
    for plain, other in zip_equal(*sheets):
        np.testing.assert_array_equal(plain, other)
