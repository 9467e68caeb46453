"""Ultralytics' layout and rows: what is read, and what is refused by file and line, or skipped and counted."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as rle

from src.data.formats import find_split, read_split, resolve_classes, source_digest
from src.data.mindrecord import ground_truth
from src.data.records import DataError
from src.data.segmentations import as_rle
from src.data.truth import read_truth
from tests.data.formats.reading import picture

PICTURE = picture()
YAML = "train: images/train\nval: images/val\nnames: {0: dog, 1: cat, 2: no}\n"


class YoloFolder:
    def __init__(self, root, shapes_config):
        self.root, self.make = root, shapes_config

    def write(self, path, content):
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
        return target

    def add(self, name, *rows, split="train", content=PICTURE):
        """An image of 60 x 40 pixels and its rows."""
        self.write(f"images/{split}/{name}.jpg", content)
        if rows:
            self.write(f"labels/{split}/{name}.txt", "\n".join(rows) + "\n")

    def config(self, source="", **other):
        source = str(self.root / source)
        places = {"dataset": "yolo", "train_dataset": source, "val_dataset": source, "coco_classes": "auto"}
        config = self.make(**{"detector": "faster_rcnn", **places, **other})
        return resolve_classes(config, True)

    def read(self, split="train", source="", training=None, **other):
        return read_split(self.config(source, **other), split, training=training)


@pytest.fixture
def yolo(tmp_path, shapes_config):
    """One image a split, with a dog."""
    folder = YoloFolder(tmp_path / "set", shapes_config)
    folder.write("data.yaml", YAML)
    for split in ("train", "val"):
        folder.add("a", "0 0.5 0.5 0.2 0.4", split=split)
    return folder


def test_boxes_and_polygons(yolo):
    yolo.add("a", "2 0.25 0.5 0.1 0.25", "1 0.5 0.25 1 0.25 1 0.75 0.5 0.75")
    yolo.add("b")
    data = yolo.read()
    assert yolo.config().coco_classes == ["background", "dog", "cat", "no"]
    assert data.categories == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "no"}]
    first, second = data.images
    assert (first.image_id, second.image_id, second.instances, second.faults) == (1, 2, [], [])
    box, polygon = first.instances
    np.testing.assert_allclose(box.box, [12, 15, 18, 25])
    assert (box.label, box.area, box.segmentation, box.crowd) == (3, 60, None, False)
    np.testing.assert_allclose(polygon.box, [30, 10, 60, 30])
    np.testing.assert_allclose(polygon.segmentation[0], [30, 10, 60, 10, 60, 30, 30, 30])
    # counted by COCO's rasteriser
    assert (polygon.label, polygon.area) == (2, 600)
    assert data.with_masks
    assert any("without a label file" in n and n.endswith(": 1") for n in data.notes)


def test_masks_are_needed_where_they_are_learnt(yolo):
    yolo.add("a", "1 0.5 0.25 1 0.25 1 0.75", "0 0.5 0.5 0.2 0.4")
    faults = yolo.read(detector="mask_rcnn").images[0].faults
    assert len(faults) == 1
    assert "a.txt, line 2: a box, and masks are learnt from polygons" in faults[0]


def test_boxes_are_clipped(yolo):
    yolo.add("a", "0 0.05 0.5 0.2 0.4", "0 1.0000001 0.5 0.5 0.5", "1 -0.004 0 1.002 0 1.002 1 -0.004 1")
    boxes = yolo.read().images[0].boxes
    np.testing.assert_allclose(boxes, [[0, 12, 9, 28], [45, 10, 60, 30], [0, 0, 60, 40]], atol=1e-4)


def test_a_row_twice_counts_once(yolo):
    yolo.add("a", "0 0.5 0.5 0.2 0.4", "0 .5 .50 0.2 0.4", "1 0.5 0.5 0.2 0.4")
    data = yolo.read()
    assert data.images[0].labels.tolist() == [1, 2]
    assert "rows that are there twice count once: 1" in data.notes


BROKEN = {
    "no number": ("0 0.5 x 0.2 0.4", "isn't a number"),
    "not finite": ("0 0.5 nan 0.2 0.4", "isn't a number"),
    "an infinite one": ("0 0.5 1e400 0.2 0.4", "isn't a number"),
    "negative": ("0 -0.5 0.5 0.2 0.4", "-0.5"),
    "pixels": ("0 30 20 12 16", "30 isn't a share"),
    "well beyond": ("0 0.5 0.5 1.02 0.4", "1.02"),
    "a class with a fraction": ("0.5 0.5 0.5 0.2 0.4", "class 0.5"),
    "an unknown class": ("3 0.5 0.5 0.2 0.4", "class 3 isn't one of 0 to 2"),
    "a negative class": ("-1 0.5 0.5 0.2 0.4", "class -1"),
    "a name": ("dog 0.5 0.5 0.2 0.4", "isn't a number"),
    "four columns": ("0 0.5 0.5 0.2", "4 columns"),
    "a confidence": ("0 0.5 0.5 0.2 0.4 0.9", "6 columns"),
    "a pose of five points": ("0 0.5 0.5 0.2 0.4" + 5 * " 0.5 0.5 2", "20 columns"),
    "a polygon with a confidence": ("0 0.1 0.1 0.5 0.1 0.5 0.5 0.9", "8 columns"),
    "a flat box": ("0 0.5 0.5 0 0.4", "no area"),
    "a flat polygon": ("0 0.1 0.1 0.5 0.1 0.3 0.1", "without area"),
    "bytes": (b"\xff\xfe\x00", "UTF-8"),
}


@pytest.mark.parametrize(("row", "told"), BROKEN.values(), ids=BROKEN)
def test_broken_rows_are_named(yolo, row, told):
    yolo.add("b")
    row = row if isinstance(row, bytes) else row.encode()
    path = yolo.write("labels/train/b.txt", b"\n0 0.5 0.5 0.2 0.4\n" + row + b"\n1 0.5 0.5 0.2 0.4\n")
    data = yolo.read()
    broken = data.images[1]
    assert len(broken.faults) == 1
    assert broken.faults[0].startswith(f"{path}, line 3: ")
    assert told in broken.faults[0]
    with pytest.raises(DataError, match="on_bad_image: skip"):
        data.usable("stop")
    assert [r.path.name for r in data.usable("skip")] == ["a.jpg"]


def test_windows_text(yolo):
    yolo.add("b")
    yolo.write("labels/train/a.txt", b"\xef\xbb\xbf0 0.5 0.5 0.2 0.4\r\n\r\n1 0.5 0.5 0.2 0.4")
    yolo.write("labels/train/b.txt", "0 0.5 0.5 0.2 0.4\n".encode("utf-16"))
    assert [len(r.instances) for r in yolo.read().images] == [2, 1]


# ---------------------------------------------------------------------------------------------------------
# where images and labels lie


def names(records):
    return [Path(r.file_name).name for r in records.images]


@pytest.mark.parametrize("source", ["", "data.yaml"])
def test_the_file_or_its_folder(yolo, source):
    yolo.add("v", "1 0.5 0.5 0.2 0.4", split="val")
    assert names(yolo.read("train", source)) == ["a.jpg"]
    assert names(yolo.read("val", source)) == ["a.jpg", "v.jpg"]


LAYOUTS = {
    "roboflow": "train: ../images/train\nval: ../images/val\nnc: 3\nnames: ['dog', 'cat', 'no']\n",
    "path": "path: .\ntrain: images/train\nval: images/val\nnames: [dog, cat, no]\n",
    "a path of another machine": "path: /elsewhere/set\ntrain: images/train\nval: images/val\nnames: [dog, cat, no]\n",
    "whole paths of another machine": "train: /x/images/train/\nval: /x/images/val/\nnames: [dog, cat, no]\n",
    "a list": "train: [images/train]\nval: [images/val, images/train]\nnames: [dog, cat, no]\n",
    "validation": "train: images/train\nvalidation: images/val\nnames: [dog, cat, no]\n",
}


@pytest.mark.parametrize("text", LAYOUTS.values(), ids=LAYOUTS)
def test_places_in_the_yaml(yolo, text):
    yolo.write("data.yaml", text)
    data = yolo.read("val")
    assert yolo.config().coco_classes[1:] == ["dog", "cat", "no"]
    assert len(data.images) == (2 if text.count("images/train") == 2 else 1)
    assert all(len(r.instances) == 1 for r in data.images)


def test_lists_of_images(yolo):
    yolo.add("b", "1 0.5 0.5 0.2 0.4")
    yolo.write("data.yaml", "path: ./\ntrain: train.txt\nval: val.txt\nnames: [dog, cat, no]\n")
    yolo.write("train.txt", f"./images/train/b.jpg\n{yolo.root}/images/train/a.jpg\n")
    yolo.write("val.txt", "data/images/val/a.jpg\nimages/val/gone.jpg\n")
    assert names(yolo.read()) == ["a.jpg", "b.jpg"]
    found, missing = yolo.read("val").images
    assert found.faults == []
    assert "val.txt, line 2" in missing.faults[0]


def test_another_list_validates(yolo):
    yolo.add("b", "1 0.5 0.5 0.2 0.4")
    listing = yolo.write("mine.txt", "images/train/b.jpg\n")
    data = read_split(yolo.config(), str(listing))
    assert names(data) == ["b.jpg"]
    assert data.images[0].labels.tolist() == [2]


def test_a_folder_without_yaml(yolo, refusal):
    (yolo.root / "data.yaml").unlink()
    with refusal(DataError, yolo.root, "data.yaml", "classes.txt"):
        yolo.read()
    yolo.write("classes.txt", "dog\ncat\n\n")
    assert yolo.read().images[0].labels.tolist() == [1]
    assert yolo.config().coco_classes[1:] == ["dog", "cat"]
    with refusal(DataError, "no images for test", "data.yaml"):
        yolo.read("test")


def test_a_folder_without_splits_is_drawn(tmp_path, shapes_config):
    folder = YoloFolder(tmp_path / "set", shapes_config)
    folder.write("classes.txt", "dog\n")
    for i in range(10):
        folder.write(f"images/{i}.jpg", PICTURE)
        folder.write(f"labels/{i}.txt", "0 0.5 0.5 0.2 0.4\n")
    parts = {s: set(names(folder.read(s, val_share=0.3, seed=2))) for s in ("train", "val")}
    assert len(parts["val"]) == 3
    assert parts["train"] | parts["val"] == {f"{i}.jpg" for i in range(10)}
    assert set(names(folder.read("val", val_share=0.3, seed=3))) != parts["val"]


def test_the_last_images_folder_is_replaced(tmp_path, shapes_config):
    folder = YoloFolder(tmp_path / "images/set", shapes_config)
    folder.write("data.yaml", YAML)
    folder.add("a", "1 0.5 0.5 0.2 0.4")
    assert folder.read().images[0].labels.tolist() == [2]


def test_names_that_are_written_otherwise(yolo):
    name = "cafe\N{COMBINING ACUTE ACCENT}"
    yolo.write(f"images/train/{name}.JPG", PICTURE)
    yolo.write(f"labels/train/{unicodedata.normalize('NFC', name)}.TXT", "1 0.5 0.5 0.2 0.4\n")
    record = next(r for r in yolo.read().images if r.path.suffix == ".JPG")
    assert record.labels.tolist() == [2]


def test_two_images_of_one_label_file(yolo):
    yolo.write("images/train/a.png", picture(kind="PNG"))
    faults = [r.faults[0] for r in yolo.read().images]
    assert all("a.txt" in f and "rename" in f for f in faults)


def test_no_label_file_at_all(yolo, refusal):
    (yolo.root / "labels").rename(yolo.root / "label")
    with refusal(DataError, yolo.root / "labels/train/a.txt", "missing"):
        yolo.read()


def test_what_no_image_belongs_to_is_counted(yolo):
    yolo.write("labels/train/gone.txt", "0 0.5 0.5 0.2 0.4\n")
    yolo.write("labels/train/classes.txt", "dog\n")
    yolo.write("images/train/notes.md", "mine")
    (yolo.root / "images/train/link.jpg").symlink_to("nowhere.jpg")
    notes = yolo.read().notes
    assert any(n.startswith("1 label files without an image") and "gone.txt" in n for n in notes)
    assert any("passed over" in n and "link.jpg" in n and "notes.md" in n for n in notes)


BAD_YAML = {
    "no names": ("train: images/train\nval: images/val\n", "names"),
    "names of a gap": ("train: images/train\nval: images/val\nnames: {0: a, 2: b}\n", "'2'"),
    "two of one name": ("train: images/train\nval: images/val\nnames: [a, b, a]\n", "classes 0 and 2"),
    "another count": ("train: images/train\nval: images/val\nnc: 2\nnames: [a, b, c]\n", "nc is 2"),
    "no train": ("val: images/val\nnames: [a]\n", "no train:"),
    "a folder that is gone": ("train: images/gone\nval: images/val\nnames: [a]\n", "images/gone"),
    "not YAML": ("train: [images\n", "line 2"),
    "a list": ("- a\n", "expected"),
    "an empty name": ("train: images/train\nval: images/val\nnames: [a, '']\n", "class 1"),
}


@pytest.mark.parametrize(("text", "told"), BAD_YAML.values(), ids=BAD_YAML)
def test_a_yaml_that_is_refused(yolo, refusal, text, told):
    path = yolo.write("data.yaml", text)
    with refusal(DataError, path, told):
        yolo.read()


def test_names_that_yaml_takes_for_something_else(yolo):
    yolo.write("data.yaml", "train: images/train\nval: images/val\nnames: [no, 1e3, 2024-01-01]\n")
    assert yolo.config().coco_classes[1:] == ["no", "1e3", "2024-01-01"]


def test_some_of_the_classes(yolo, refusal):
    yolo.add("a", "0 0.5 0.5 0.2 0.4", "1 0.5 0.5 0.2 0.4")
    named = {"coco_classes": ["background", "cat"], "num_classes": 2}
    assert "'dog'" in yolo.read(**named).images[0].faults[0]
    data = yolo.read(**named, other_classes="background")
    assert data.images[0].labels.tolist() == [1]
    assert any("dog 1" in n for n in data.notes)
    ignored = yolo.read(**named, other_classes="ignore").images[0]
    assert [(i.label, i.crowd) for i in ignored.instances] == [(0, True), (1, False)]


# ---------------------------------------------------------------------------------------------------------
# frames, truth


def test_turned_pictures(yolo):
    yolo.add("a", "0 0.25 0.5 0.1 0.2", content=picture(orientation=6))
    stored = yolo.read()
    assert (stored.images[0].width, stored.images[0].height, stored.images[0].orientation) == (60, 40, 1)
    assert any("exif: upright" in n and n.endswith(": 1") for n in stored.notes)
    upright = yolo.read(exif="upright")
    assert (upright.images[0].width, upright.images[0].height, upright.images[0].orientation) == (40, 60, 6)
    np.testing.assert_allclose(upright.images[0].boxes, [[8, 24, 12, 36]], atol=1e-4)
    assert not any("exif" in n for n in upright.notes)


def test_the_truth_of_evaluation(yolo):
    yolo.add("a", "1 0.5 0.25 1 0.25 1 0.75 0.5 0.75", split="val")
    config = yolo.config(detector="mask_rcnn")
    truth = read_truth(ground_truth(config, "val"))
    assert [(a["category_id"], a["area"], a["bbox"]) for a in truth["annotations"]] == [(2, 600, [30, 10, 30, 20])]
    mask = rle.decode(as_rle([np.array(p) for p in truth["annotations"][0]["segmentation"]], 40, 60))
    assert mask[10:30, 30:60].all()
    assert mask.sum() == 600


def test_a_changed_label_file_is_noticed(yolo):
    config = yolo.config()
    where = find_split(config, "train")
    before = source_digest(config, where)
    assert source_digest(config, where) == before
    yolo.add("a", "1 0.5 0.5 0.2 0.4")
    changed = source_digest(config, where)
    assert changed != before
    yolo.add("b", "1 0.5 0.5 0.2 0.4")
    assert source_digest(config, where) != changed


@pytest.mark.parametrize("name", ["9" * 300, "a/" * 3000, "../" + "x" * 5000])
def test_a_place_whose_name_no_file_can_have(yolo, name, refusal):
    data = yolo.write("data.yaml", f"train: {name}\nval: images/val\nnames: [dog, cat]\n")
    with refusal(DataError, f"{data}: train: ", "no such folder or list of images"):
        yolo.read()
