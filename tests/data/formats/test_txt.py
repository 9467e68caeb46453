"""The TXT format: what is read, and each kind of broken row refused by its line, or skipped and counted."""

import json

import cv2
import numpy as np
import pytest

from src.config import ConfigError
from src.data.formats import check_training, read_split, resolve_classes
from src.data.mindrecord import ensure_mindrecord, read_index
from src.data.records import DataError, report_notes
from tests.data.formats.reading import load as read


@pytest.fixture
def txt_set(tmp_path, shapes_config):
    """Writes images a.jpg, b.jpg (60 x 40) and rows; returns a maker of the config that reads them."""

    def make(*rows, **overrides):
        (tmp_path / "data/sub").mkdir(parents=True, exist_ok=True)
        for name in ("a.jpg", "sub/b.jpg", "with space.jpg"):
            cv2.imwrite(str(tmp_path / "data" / name), np.full((40, 60, 3), 90, np.uint8))
        content = b"\n".join(r if isinstance(r, bytes) else r.encode() for r in rows) + b"\n"
        (tmp_path / "rows.txt").write_bytes(content)
        named = {
            "detector": "faster_rcnn",
            "dataset": "other",
            "image_dir": str(tmp_path / "data"),
            "anno_path": str(tmp_path / "rows.txt"),
        }
        return shapes_config(**named | overrides)

    return make


def load(config, training=True):
    return read(config, "train" if training else "val")


def test_rows_are_read(txt_set):
    config = txt_set("a.jpg 1,2,31,22,3 0,0,60,40,1", "", "sub/b.jpg 5.5,6,70,50,2 1,1,9,9,4,1", "with space.jpg")
    data = load(config)
    assert [r.image_id for r in data.records] == [1, 3, 4]
    first, second, third = data.records
    np.testing.assert_array_equal(first.boxes, [[1, 2, 31, 22], [0, 0, 60, 40]])
    assert first.labels.tolist() == [3, 1]
    assert (first.height, first.width) == (40, 60)
    # clipped to the image; the second box is a crowd region
    np.testing.assert_array_equal(second.boxes, [[5.5, 6, 60, 40], [1, 1, 9, 9]])
    assert second.crowd.tolist() == [False, True]
    assert third.path.name == "with space.jpg"
    assert third.boxes.shape == (0, 4)


def test_windows_line_ends_and_byte_order_mark(txt_set):
    assert len(load(txt_set(b"\xef\xbb\xbfa.jpg 1,2,31,22,3\r", b"sub/b.jpg 1,2,31,22,3\r")).records) == 2


def test_capital_keys(tmp_path, txt_set):
    config = txt_set("a.jpg 1,2,31,22,3", image_dir="", anno_path="")
    assert config.anno_path == ""
    named = {"IMAGE_DIR": str(tmp_path / "data"), "ANNO_PATH": str(tmp_path / "rows.txt")}
    assert len(load(txt_set("a.jpg 1,2,31,22,3", **{"image_dir": "", "anno_path": ""} | named)).records) == 1


BROKEN = {
    "four numbers": ("a.jpg 1,2,3,4", "'1,2,3,4'"),
    "seven numbers": ("a.jpg 1,2,30,40,1,0,0", "'1,2,30,40,1,0,0'"),
    "a word": ("a.jpg 1,2,x,4,1", "'1,2,x,4,1'"),
    "not finite": ("a.jpg 1,2,nan,4,1", "'1,2,nan,4,1'"),
    "infinite class": ("a.jpg 1,2,3,4,inf", "inf"),
    "crowd is two": ("a.jpg 1,2,30,40,1,2", "iscrowd"),
    "spaces within a box": ("a.jpg 1, 2, 3, 4, 1", "'1,'"),
    "background": ("a.jpg 1,2,30,40,0", "0 is the background"),
    "class past the last": ("a.jpg 1,2,30,40,6", "1 to 5"),
    "half a class": ("a.jpg 1,2,30,40,1.5", "class 1.5"),
    "no area": ("a.jpg 10,10,10,20,1", "no area"),
    "turned round": ("a.jpg 30,10,10,20,1", "no area"),
    "outside": ("a.jpg 100,100,120,120,1", "outside"),
    "missing image": ("none.jpg 1,2,30,40,1", "none.jpg"),
    "listed twice": ("sub/b.jpg 1,2,30,40,1", "line 1"),
    "too many": ("a.jpg" + 17 * " 1,2,30,40,1", "max_instance_count"),
}


@pytest.mark.parametrize(("row", "told"), BROKEN.values(), ids=BROKEN)
def test_a_broken_row_is_refused_by_line_or_skipped(tmp_path, txt_set, refusal, row, told):
    rows = ("sub/b.jpg 1,2,31,22,3", row, "with space.jpg 1,2,31,22,3")
    with refusal(DataError, tmp_path / "rows.txt", "line 2", told, "on_bad_image: skip"):
        load(txt_set(*rows))
    data = load(txt_set(*rows, on_bad_image="skip"))
    assert [r.image_id for r in data.records] == [1, 3]
    assert len(data.skipped) == 1
    assert "line 2" in data.skipped[0]


def test_a_file_that_is_no_image(tmp_path, txt_set, refusal):
    config = txt_set("sub/b.jpg 1,2,31,22,3", "a.jpg 1,2,31,22,3")
    (tmp_path / "data/a.jpg").write_text("words")
    with refusal(DataError, "line 2", tmp_path / "data/a.jpg", "not an image"):
        load(config)


def test_files_that_can_not_be_used(tmp_path, txt_set, refusal):
    with refusal(DataError, "rows.txt", "no row"):
        load(txt_set("", "  "))
    with refusal(DataError, "rows.txt", "line 2", "UTF-8"):
        load(txt_set("a.jpg 1,2,31,22,3", b"\xff\xfe.jpg"))
    with refusal(DataError, "anno_path"):
        load(txt_set("a.jpg", anno_path=""))
    with refusal(DataError, "image_dir"):
        load(txt_set("a.jpg", image_dir="", train_dataset=""))
    with refusal(DataError, tmp_path / "gone.txt", "no such file"):
        load(txt_set("a.jpg", anno_path=str(tmp_path / "gone.txt")))


@pytest.mark.parametrize("detector", ["mask_rcnn", "cascade_mask_rcnn"])
def test_masks_can_not_be_trained_on_boxes(txt_set, refusal, detector):
    with refusal(ConfigError, "dataset: other", detector, detector.replace("_mask", "").replace("mask_", "faster_")):
        check_training(txt_set("a.jpg 1,2,31,22,3", detector=detector))


def test_instaboost_needs_masks(txt_set, refusal):
    with refusal(ConfigError, "aug_prob", "dataset: other"):
        check_training(txt_set("a.jpg 1,2,31,22,3", aug_prob=0.5))
    with refusal(ConfigError, "copy_paste_ratio: copy-paste needs masks", "dataset: other", "set it to 0"):
        check_training(txt_set("a.jpg 1,2,31,22,3", copy_paste_ratio=0.5))


def test_validation_rows_are_their_own(tmp_path, txt_set):
    config = txt_set("a.jpg 1,2,31,22,3", val_annotations=str(tmp_path / "val.txt"))
    (tmp_path / "val.txt").write_text("sub/b.jpg 1,2,31,22,2\n")
    assert load(config, training=False).records[0].labels.tolist() == [2]


def test_converted_with_a_coco_file_to_evaluate_on(txt_set):
    config = txt_set("a.jpg 1,2,31,22,3 4,4,8,8,2,1", "sub/b.jpg", "gone.jpg 1,1,2,2,1", on_bad_image="skip")
    index = read_index(ensure_mindrecord(config, "val", training=False))
    assert index["image_ids"] == [1, 2]
    assert "line 3" in index["skipped"][0]
    with open(index["annotations"]) as f:
        truth = json.load(f)
    assert [(i["id"], i["file_name"]) for i in truth["images"]] == [(1, "a.jpg"), (2, "sub/b.jpg"), (3, "gone.jpg")]
    assert [(a["category_id"], a["bbox"], a["iscrowd"]) for a in truth["annotations"]] == [
        (3, [1, 2, 30, 20], 0),
        (2, [4, 4, 4, 4], 1),
    ]
    assert [c["name"] for c in truth["categories"]] == config.coco_classes[1:]


def test_converted_anew_when_rows_or_images_change(tmp_path, txt_set):
    def made(config):
        folder = ensure_mindrecord(config, "train", training=True)
        return (folder / "index.json").stat().st_mtime_ns

    first = made(txt_set("a.jpg 1,2,31,22,3"))
    config = txt_set("a.jpg 1,2,31,22,2")
    second = made(config)
    assert second != first
    assert made(config) == second
    cv2.imwrite(str(tmp_path / "data/a.jpg"), np.full((40, 60, 3), 200, np.uint8))
    assert made(config) != second


def test_classes_are_counted(txt_set):
    config = resolve_classes(txt_set("a.jpg 1,2,31,22,3", "sub/b.jpg 1,2,31,22,7", coco_classes="auto"), training=True)
    assert config.num_classes == 8
    assert config.coco_classes[-1] == "class_7"
    assert load(config).records[1].labels.tolist() == [7]


@pytest.mark.parametrize(("row", "told"), [("a.jpg 1,2,31,22,99999999999", "99999999999"), ("a.jpg", "no box")])
def test_classes_that_can_not_be_counted(tmp_path, txt_set, refusal, row, told):
    with refusal(DataError, tmp_path / "rows.txt", told):
        resolve_classes(txt_set(row, coco_classes="auto"), training=True)


def test_rows_to_test_on_are_named_by_their_file(tmp_path, txt_set, refusal):
    config = txt_set("a.jpg 1,2,31,22,3")
    (tmp_path / "test.txt").write_text("sub/b.jpg 1,2,31,22,2\n")
    assert read(config, str(tmp_path / "test.txt")).records[0].labels.tolist() == [2]
    with refusal(DataError, "test", "name their file"):
        read(config, "test")


def test_a_name_with_control_characters_is_told_in_one_line_of_text(txt_set, capsys):
    data = read_split(txt_set("a\x1b[31m.jpg 1,2,31,22,3", "a.jpg 0,0,60,40,1", on_bad_image="skip"), "train")
    report_notes(data.skipped(), ["class \x1b[2J"])
    told = capsys.readouterr().out
    assert "a\\x1b[31m.jpg" in told and "class \\x1b[2J" in told
    assert all(line.isprintable() for line in told.splitlines())
