"""Pascal VOC: both layouts, the splits, and each kind of broken file refused by its line, or skipped and counted."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from src.data.formats import read_split, resolve_classes
from src.data.mindrecord import ensure_mindrecord, read_index
from src.data.records import DataError
from src.runtime.newer import zip_equal
from tests.data.formats.reading import load


def voc_object(name="circle", box=(11, 6, 30, 25), **flags):
    """An <object> on one line."""
    tags = "".join(f"<{k}>{v}</{k}>" for k, v in flags.items())
    corners = "".join(f"<{t}>{v}</{t}>" for t, v in zip_equal(("xmin", "ymin", "xmax", "ymax"), box))
    return f"<object><name>{name}</name>{tags}<bndbox>{corners}</bndbox></object>"


def voc_file(*objects, size="<size><width>60</width><height>40</height><depth>3</depth></size>", name="x.jpg"):
    """An annotation file; its first object is on line 4."""
    return "\n".join(["<annotation>", f"<filename>{name}</filename>", size, *objects, "</annotation>"])


class VocFolder:
    def __init__(self, root, xml="Annotations", images="JPEGImages", suffix=".jpg"):
        self.root, self.xml, self.images, self.suffix = root, root / xml, root / images, suffix
        self.xml.mkdir(parents=True, exist_ok=True)
        self.images.mkdir(parents=True, exist_ok=True)

    def add(self, name, *objects, content=None, image=True):
        text = voc_file(*objects, name=f"{name}{self.suffix}") if content is None else content
        (self.xml / f"{name}.xml").write_text(text)
        if image:
            cv2.imwrite(str(self.images / f"{name}{self.suffix}"), np.full((40, 60, 3), 90, np.uint8))
        return self

    def list(self, part, *names):
        (self.root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        (self.root / f"ImageSets/Main/{part}.txt").write_text("\n".join(names) + "\n")
        return self


@pytest.fixture
def folder(tmp_path):
    return VocFolder(tmp_path / "voc")


@pytest.fixture
def config_of(shapes_config, folder):
    def make(**overrides):
        places = {"train_dataset": str(folder.root), "val_dataset": str(folder.root)}
        return shapes_config(**{"detector": "faster_rcnn", "dataset": "voc", "val_share": 0, **places, **overrides})

    return make


def test_objects_are_read(folder, config_of):
    folder.add("one", voc_object(), voc_object("star", (1, 1, 60, 40), truncated=1, difficult=0, pose="Left"))
    folder.add("two")
    data = load(config_of())
    one, two = data.records
    # from the first pixel to the end of the last
    np.testing.assert_array_equal(one.boxes, [[10, 5, 30, 25], [0, 0, 60, 40]])
    assert [config_of().coco_classes[v] for v in one.labels] == ["circle", "star"]
    assert two.boxes.shape == (0, 4)
    zero = load(config_of(voc_first_pixel=0)).records[0]
    np.testing.assert_array_equal(zero.boxes, [[11, 6, 30, 25], [1, 1, 60, 40]])


def test_difficult_objects_are_ignored_or_trained(folder, config_of):
    folder.add("one", voc_object(difficult=1), voc_object(difficult=0))
    assert load(config_of()).records[0].crowd.tolist() == [True, False]
    assert load(config_of(voc_difficult="train")).records[0].crowd.tolist() == [False, False]


def test_parts_of_an_object_are_no_objects(folder, config_of):
    part = "<part><name>star</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    folder.add("one", voc_object().replace("</object>", f"{part}</object>"))
    np.testing.assert_array_equal(load(config_of()).records[0].boxes, [[10, 5, 30, 25]])


@pytest.mark.parametrize(
    ("layout", "path"),
    [
        ({"xml": "annotations", "images": "images", "suffix": ".png"}, ""),
        ({"xml": ".", "images": "."}, ""),
        ({"xml": "train/Annotations", "images": "train/JPEGImages"}, ""),
        ({"xml": "train", "images": "train"}, ""),
    ],
    ids=["FaceMaskDetection", "one folder", "a folder a split", "one folder a split"],
)
def test_layouts(tmp_path, config_of, layout, path):
    VocFolder(tmp_path / "other", **layout).add("one", voc_object())
    data = load(config_of(train_dataset=str(tmp_path / "other" / path)))
    assert [r.path.stem for r in data.records] == ["one"]


def test_listed_splits(folder, config_of):
    for name in "abcd":
        folder.add(name, voc_object())
    folder.list("train", "a", "c 1").list("val", "b")
    config = config_of()
    train, val = load(config), load(config, "val")
    assert [r.path.stem for r in train.records] == ["a", "c"]
    assert [r.path.stem for r in val.records] == ["b"]


def test_drawn_splits(folder, config_of):
    names = [f"{i:02d}" for i in range(20)]
    for name in names:
        folder.add(name, voc_object())

    def stems(split, **overrides):
        return [r.path.stem for r in load(config_of(**{"val_share": 0.3, **overrides}), split).records]

    assert len(stems("val")) == 6
    assert sorted(stems("train") + stems("val")) == names
    assert stems("val") == stems("val")
    assert stems("val") != stems("val", seed=3)
    # the same image has the same id in both
    ids = {r.path.stem: r.image_id for s in ("train", "val") for r in load(config_of(val_share=0.3), s).records}
    assert sorted(ids.values()) == list(range(1, 21))
    assert stems("train", val_share=0) == stems("val", val_share=0) == names


BROKEN = {
    "cut short": ("<annotation>\n<object>\n", "line 3", "not valid XML"),
    "not XML": ("words", "line 1", "not valid XML"),
    "empty": ("", "line 1", "not valid XML"),
    "unknown encoding": ("<?xml version='1.0' encoding='nonsense'?><annotation/>", "line 1", "not valid XML"),
    "another kind of file": ("<html></html>", "line 1", "<html>"),
    "no name": (voc_file(voc_object().replace("name", "nom")), "line 4", "without <name>"),
    "unknown class": (voc_file(voc_object("moon")), "line 4", "'moon'"),
    "no box": (voc_file("<object><name>star</name></object>"), "line 4", "without <bndbox>"),
    "three numbers": (voc_file(voc_object(box=(1, 2, 3, ""))), "line 4", "numbers"),
    "a word": (voc_file(voc_object(), voc_object(box=("x", 2, 3, 4))), "line 5", "numbers"),
    "not finite": (voc_file(voc_object(box=("inf", 2, 3, 4))), "line 4", "finite"),
    "turned round": (voc_file(voc_object(box=(30, 6, 11, 25))), "line 4", "ends before it begins"),
    "outside": (voc_file(voc_object(box=(100, 100, 120, 120))), "line 4", "outside"),
    "difficult is maybe": (voc_file(voc_object(difficult="maybe")), "line 4", "difficult"),
    "another size": (voc_file(size="<size><width>99</width><height>40</height></size>"), "line 3", "99 x 40"),
    "too many": (voc_file(*[voc_object()] * 17), "two.xml", "max_instance_count"),
}


@pytest.mark.parametrize(("content", "line", "told"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_by_line_or_skipped(folder, config_of, refusal, content, line, told):
    folder.add("one", voc_object()).add("two", content=content).add("zzz", voc_object())
    with refusal(DataError, folder.xml / "two.xml", line, told, "on_bad_image: skip"):
        load(config_of())
    data = load(config_of(on_bad_image="skip"))
    assert [r.path.stem for r in data.records] == ["one", "zzz"]
    assert len(data.skipped) == 1
    assert str(folder.xml / "two.xml") in data.skipped[0]


def test_files_of_which_none_reads(folder, config_of, refusal):
    """What is told is why, not that they name no classes."""
    folder.add("one", voc_object())
    (folder.xml / "one.xml").write_text("<!DOCTYPE a>" + (folder.xml / "one.xml").read_text())
    config = config_of(coco_classes=[])
    with refusal(DataError, folder.xml, "one.xml", "DOCTYPE"):
        resolve_classes(config, training=True)


def test_what_is_missing(folder, config_of, refusal):
    folder.add("one", voc_object()).add("two", voc_object(), image=False)
    with refusal(DataError, "two.xml", "two.jpg"):
        load(config_of())
    (folder.xml / "two.xml").unlink()
    cv2.imwrite(str(folder.images / "bare.jpg"), np.zeros((8, 8, 3), np.uint8))
    with refusal(DataError, "bare.xml", "bare.jpg"):
        load(config_of())
    folder.list("train", "one", "nowhere")
    with refusal(DataError, "nowhere.xml"):
        load(config_of())
    assert len(load(config_of(on_bad_image="skip")).records) == 1


def test_folders_that_are_no_voc(tmp_path, folder, config_of, refusal):
    with refusal(DataError, tmp_path / "nowhere", "Annotations"):
        load(config_of(train_dataset=str(tmp_path / "nowhere")))
    folder.add("one", voc_object()).list("train", "")
    with refusal(DataError, "train.txt", "no image"):
        load(config_of())


def test_a_file_name_that_differs_from_the_annotations(folder, config_of):
    (folder.xml / "one.xml").write_text(voc_file(voc_object(), name="other.jpg"))
    cv2.imwrite(str(folder.images / "other.jpg"), np.zeros((40, 60, 3), np.uint8))
    folder.list("train", "one")
    assert load(config_of()).records[0].path.name == "other.jpg"


def test_converted_with_a_coco_file_to_evaluate_on(folder, config_of):
    folder.add("one", voc_object("star", difficult=1), voc_object("star"))
    index = read_index(ensure_mindrecord(config_of(), "val", training=False))
    with open(index["annotations"]) as f:
        truth = json.load(f)
    star = config_of().coco_classes.index("star")
    assert [(a["category_id"], a["iscrowd"], a["bbox"]) for a in truth["annotations"]] == [
        (star, 1, [10, 5, 20, 20]),
        (star, 0, [10, 5, 20, 20]),
    ]


def test_converted_anew_when_a_file_changes(folder, config_of):
    folder.add("one", voc_object())

    def made():
        return (ensure_mindrecord(config_of(), "train", training=True) / "index.json").stat().st_mtime_ns

    first = made()
    assert made() == first
    folder.add("one", voc_object(box=(1, 1, 9, 9)))
    assert made() != first


def test_classes_are_found(folder, config_of):
    folder.add("one", voc_object("without_mask"), voc_object("with_mask")).add("broken", content="words")
    config = resolve_classes(config_of(coco_classes="auto"), training=True)
    assert config.coco_classes == ["background", "with_mask", "without_mask"]
    assert config.num_classes == 3


def write_image(path, size=(40, 60)):
    cv2.imwrite(str(path), np.full((*size, 3), 90, np.uint8))


def test_a_picture_of_the_same_stem_beside_the_named_one(folder, config_of):
    """A mask drawn beside the photograph: <filename> says which of the two it is."""
    folder.add("one", voc_object())
    write_image(folder.images / "one.png")
    assert load(config_of()).records[0].path.name == "one.jpg"


def test_two_of_one_stem_and_neither_named(folder, config_of, refusal):
    (folder.xml / "one.xml").write_text(voc_file(voc_object(), name="IMG_7.jpg"))
    for suffix in (".jpg", ".png"):
        write_image(folder.images / f"one{suffix}")
    with refusal(DataError, "one.xml", "one.jpg", "one.png", "IMG_7.jpg"):
        load(config_of())


def test_folders_within_the_folders(folder, config_of):
    """Pictures of one name in two folders are two pictures, with ids of their own."""
    for part in ("a", "b"):
        (folder.xml / part).mkdir()
        (folder.images / part).mkdir()
        (folder.xml / part / "one.xml").write_text(
            voc_file(voc_object(box=(1, 1, 9, 9) if part == "a" else (1, 1, 5, 5)))
        )
        write_image(folder.images / part / "one.jpg")
    records = load(config_of()).records
    assert [r.path.parent.name for r in records] == ["a", "b"]
    assert [r.image_id for r in records] == [1, 2]
    assert [r.boxes[0, 2] for r in records] == [9, 5]


@pytest.mark.parametrize("how", ["split", "file", "val_annotations"])
def test_a_listed_part_of_any_name(folder, config_of, how):
    for name in "abc":
        folder.add(name, voc_object())
    folder.list("train", "a").list("val", "b").list("test", "c")
    listing = str(folder.root / "ImageSets/Main/test.txt")
    config = config_of(val_annotations=listing) if how == "val_annotations" else config_of()
    split = {"split": "test", "file": listing, "val_annotations": "val"}[how]
    assert [r.path.stem for r in load(config, split).records] == ["c"]


@pytest.mark.parametrize("name", ["nobody", "/nobody", "../nobody"])
def test_a_listed_name_of_nothing_is_told_with_the_list(folder, config_of, name):
    folder.add("one", voc_object()).list("train", "one", name)
    (told,) = read_split(config_of(), "train").skipped()
    assert told.startswith(f"{folder.root / 'ImageSets/Main/train.txt'}: lists ") and "nobody.xml: no such file" in told


def test_a_part_that_is_not_there(folder, config_of, refusal):
    folder.add("one", voc_object())
    with refusal(DataError, "test.txt"):
        load(config_of(), "test")
    with refusal(DataError, "none.txt", "no such file"):
        load(config_of(val_annotations=str(folder.root / "none.txt")), "val")


def test_size_decides_whether_a_picture_is_turned(folder, config_of):
    """<size> is the upright one: boxes are in the turned picture."""
    folder.add("one", voc_object(box=(1, 41, 40, 60)), image=False)
    image = Image.new("RGB", (60, 40))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(folder.images / "one.jpg", exif=exif)
    upright = "<size><width>40</width><height>60</height></size>"
    (folder.xml / "one.xml").write_text(voc_file(voc_object(box=(1, 41, 40, 60)), size=upright, name="one.jpg"))
    record = load(config_of()).records[0]
    assert (record.height, record.width, record.orientation) == (60, 40, 6)
    with pytest.raises(DataError, match="40 x 60"):
        load(config_of(exif="stored"))


def test_what_is_no_image_is_passed_over_and_counted(folder, config_of):
    folder.add("one", voc_object())
    (folder.images / "notes.txt").write_text("mine")
    (folder.images / "gone.jpg").symlink_to("nowhere.jpg")
    data = load(config_of())
    assert [r.path.stem for r in data.records] == ["one"]
    assert any("passed over" in n and "2" in n for n in data.notes)


def test_some_of_the_classes_alone(folder, config_of):
    folder.add("one", voc_object(), voc_object("moon"))
    assert load(config_of(other_classes="background")).records[0].crowd.tolist() == [False]
    assert load(config_of(other_classes="ignore")).records[0].crowd.tolist() == [False, True]


def test_a_left_out_image_is_in_the_truth(folder, config_of):
    """As COCO's: it counts as missed."""
    folder.add("one", voc_object()).add("two", voc_object(), voc_object("moon"))
    index = read_index(ensure_mindrecord(config_of(on_bad_image="skip"), "val", training=False))
    assert index["image_ids"] == [1]
    with open(index["annotations"]) as f:
        assert [a["image_id"] for a in json.load(f)["annotations"]] == [1, 2]
