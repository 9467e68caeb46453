"""Exports of labelling tools load as they are: small ones by hand, after each tool's documentation."""

import json
import os
import unicodedata

import pytest

from src.data.formats import find_split, read_split, resolve_classes
from src.data.records import DataError
from tests.data.formats.reading import picture


@pytest.fixture
def export(tmp_path, shapes_config):
    """write(path, content) puts a file into the export; read(dataset, split, source) reads it back."""

    class Export:
        root = tmp_path / "export"

        def write(self, path, content=None):
            target = self.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            content = picture() if content is None else content
            content = json.dumps(content) if isinstance(content, (dict, list)) else content
            target.write_bytes(content if isinstance(content, bytes) else content.encode())

        def read(self, split="train", source="", **other):
            source = str(self.root / source) if source else str(self.root)
            places = {"train_dataset": source, "val_dataset": source, "coco_classes": "auto"}
            config = resolve_classes(shapes_config(**{"detector": "faster_rcnn", **places, **other}), True)
            data = read_split(config, split, find_split(config, split))
            assert all(r.faults == [] for r in data.images)
            return config.coco_classes[1:], data

    return Export()


def coco(*names, first=1, categories=({"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}), **annotation):
    """A COCO file with a cat in each of the images of those names."""
    images = [{"id": first + i, "width": 60, "height": 40, "file_name": n} for i, n in enumerate(names)]
    one = {"category_id": categories[-1]["id"], "bbox": [10, 10, 20, 15], "area": 300, "iscrowd": 0}
    box = [10, 10, 30, 10, 30, 25, 10, 25]
    annotations = [
        {"id": first + i, "image_id": first + i, "segmentation": [box], **one, **annotation} for i in range(len(names))
    ]
    return {"images": images, "annotations": annotations, "categories": list(categories)}


def test_label_studio_coco(export):
    """images, categories and annotations from 0; separators of Windows; no masks of boxes."""
    export.write("images/3f-a.jpg")
    export.write("images/4b-b.jpg")
    categories = ({"id": 0, "name": "dog"}, {"id": 1, "name": "cat"})
    data = coco("images\\3f-a.jpg", "images/4b-b.jpg", first=0, categories=categories, segmentation=[], ignore=0)
    export.write("result.json", data)
    classes, data = export.read()
    assert classes == ["dog", "cat"]
    assert [(r.path.name, r.labels.tolist()) for r in data.images] == [("3f-a.jpg", [2]), ("4b-b.jpg", [2])]


@pytest.mark.parametrize("name", ["..\\..\\label-studio\\media\\upload\\4\\3f-a.jpg", "/data/upload/4/3f-a.jpg"])
def test_label_studio_paths_of_the_server(export, name):
    export.write("images/3f-a.jpg")
    export.write("result.json", coco(name))
    assert export.read()[1].images[0].path == export.root / "images/3f-a.jpg"


def test_label_studio_yolo(export):
    for i in range(4):
        export.write(f"images/{i}.jpg")
        export.write(f"labels/{i}.txt", "1 0.5 0.5 0.2 0.4\n")
    export.write("classes.txt", "dog\ncat\n")
    export.write("notes.json", {"categories": [{"id": 0, "name": "dog"}, {"id": 1, "name": "cat"}]})
    classes, data = export.read(dataset="yolo", val_share=0.25)
    assert classes == ["dog", "cat"]
    assert [r.labels.tolist() for r in data.images] == [[2], [2], [2]]


@pytest.mark.parametrize(("file", "folder"), [("default", "default"), ("Train", "Train"), ("train", "train")])
def test_cvat_coco(export, file, folder):
    export.write(f"images/{folder}/a.jpg")
    export.write(f"images/{folder}/sub/a.jpg")
    data = coco("a.jpg", "sub/a.jpg", attributes={"occluded": False})
    export.write(f"annotations/instances_{file}.json", {"licenses": [], "info": {}, **data})
    _, data = export.read()
    assert [r.path.relative_to(export.root).as_posix() for r in data.images] == [
        f"images/{folder}/a.jpg",
        f"images/{folder}/sub/a.jpg",
    ]


def test_cvat_yolo(export):
    export.write("data.yaml", "names:\n  0: dog\n  1: cat\npath: .\ntrain: train.txt\n")
    export.write("train.txt", "data/images/train/a.jpg\nimages/train/b.jpg\n")
    for name in "ab":
        export.write(f"images/train/{name}.jpg")
        export.write(f"labels/train/{name}.txt", "1 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n")
    classes, data = export.read(dataset="yolo", detector="mask_rcnn")
    assert classes == ["dog", "cat"]
    assert [(r.path.name, len(r.instances[0].segmentation)) for r in data.images] == [("a.jpg", 1), ("b.jpg", 1)]


def test_darknet_of_cvat(export):
    export.write("obj.names", "dog\ncat\n")
    export.write("obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
    export.write("obj_train_data/a.jpg")
    export.write("obj_train_data/a.txt", "1 0.5 0.5 0.2 0.4\n")
    assert export.read(dataset="yolo", val_share=0.0)[1].images[0].labels.tolist() == [2]


def test_roboflow_coco(export):
    """Category 0 is the supercategory of the others, and nothing's own."""
    categories = ({"id": 0, "name": "animals", "supercategory": "none"}, {"id": 1, "name": "cat", "supercategory": "a"})
    for part in ("train", "valid", "test"):
        export.write(f"{part}/a_jpg.rf.0123.jpg")
        export.write(f"{part}/_annotations.coco.json", coco("a_jpg.rf.0123.jpg", first=0, categories=categories))
    for split in ("train", "val", "test"):
        classes, data = export.read(split)
        assert classes == ["animals", "cat"]
        assert data.images[0].labels.tolist() == [2]


def test_roboflow_yolo(export):
    text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['dog', 'cat']\n"
    export.write("data.yaml", text + "\nroboflow:\n  workspace: me\n  version: 1\n")
    for i, part in enumerate(("train", "valid", "test"), 1):
        for n in range(i):
            export.write(f"{part}/images/{n}_jpg.rf.0123.jpg")
            export.write(f"{part}/labels/{n}_jpg.rf.0123.txt", "1 0.5 0.5 0.2 0.4")
    for i, split in enumerate(("train", "val", "test"), 1):
        assert [r.labels.tolist() for r in export.read(split, dataset="yolo")[1].images] == i * [[2]]


def test_fiftyone_coco(export):
    export.write("data/a.jpg")
    export.write("labels.json", {"info": {}, "licenses": [], **coco("a.jpg", supercategory=None)})
    assert export.read()[1].images[0].path == export.root / "data/a.jpg"


def test_fiftyone_yolo(export):
    export.write(
        "dataset.yaml",
        "names:\n  0: dog\n  1: cat\npath: /home/me/export\ntrain: ./images/train/\nval: ./images/val/\n",
    )
    for part in ("train", "val"):
        export.write(f"images/{part}/a.jpg")
        export.write(f"labels/{part}/a.txt", "1 0.5 0.5 0.2 0.4")
    for split in ("train", "val"):
        assert export.read(split, dataset="yolo")[1].images[0].labels.tolist() == [2]


@pytest.mark.parametrize("source", ["", "annotations.json"])
def test_labelme2coco(export, source):
    """labelme's own: ids from 0, the images in JPEGImages/."""
    export.write("JPEGImages/a.jpg")
    categories = ({"supercategory": None, "id": 0, "name": "_background_"}, {"id": 1, "name": "cat"})
    export.write("annotations.json", coco("JPEGImages/a.jpg", first=0, categories=categories))
    data = export.read(source=source)[1]
    assert data.images[0].path == export.root / "JPEGImages/a.jpg"
    assert data.images[0].labels.tolist() == [2]


# ---------------------------------------------------------------------------------------------------------
# names of images

ACCENT = "cafe\N{COMBINING ACUTE ACCENT}.jpg"
NAMES = {
    "separators of Windows": ("a\\b.jpg", "a/b.jpg"),
    "a folder that isn't there": ("images/b.jpg", "b.jpg"),
    "composed accents": (unicodedata.normalize("NFC", ACCENT), ACCENT),
    "decomposed accents": (ACCENT, unicodedata.normalize("NFC", ACCENT)),
    "a suffix in capitals": ("b.jpg", "b.JPG"),
    "another case": ("Sub/B.jpg", "sub/b.jpg"),
    "bytes that aren't UTF-8": ("\xe9.jpg", os.fsdecode(b"\xe9.jpg")),
    "a whole path of another machine": ("/home/me/set/train/b.jpg", "train/b.jpg"),
}


@pytest.mark.parametrize(("told", "there"), NAMES.values(), ids=NAMES)
def test_names_that_are_written_otherwise(export, told, there):
    export.write(f"data/{there}")
    export.write("labels.json", coco(told))
    assert export.read()[1].images[0].path == export.root / "data" / there


@pytest.mark.parametrize("dataset", ["coco", "labelme"])
def test_a_name_that_nothing_fits_lists_what_was_tried(export, shapes_config, dataset):
    export.write("data/b.jpg")
    if dataset == "coco":
        export.write("labels.json", coco("x/c.jpg"))
    else:
        shape = {"label": "cat", "points": [[1, 1], [9, 1], [9, 9]]}
        export.write("a.json", {"shapes": [shape], "imagePath": "x/c.jpg", "imageData": None})
    places = {"train_dataset": str(export.root), "coco_classes": "auto", "dataset": dataset, "val_share": 0.0}
    config = resolve_classes(shapes_config(**places), True)
    (fault,) = read_split(config, "train").images[0].faults
    assert "x/c.jpg" in fault
    assert str(export.root) in fault
    assert "nor" in fault
    with pytest.raises(DataError):
        read_split(config, "train").usable("stop")
