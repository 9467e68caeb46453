"""labelme's and COCO's files as a COCO root."""

import base64
import json

import cv2
import numpy as np
import pytest

from src.data.formats import resolve_classes
from src.data.import_labels import import_labels
from src.data.records import DataError
from tests.data.formats.reading import load as load_data

SQUARE = [[10, 10], [30, 10], [30, 25], [10, 25]]


def shape(label="dog", points=SQUARE, **other):
    return {"label": label, "points": points, "group_id": None, "shape_type": "polygon", "flags": {}} | other


class Labelme:
    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()

    def add(self, name, *shapes, image=True, **other):
        """One image of 60 x 40 pixels and its file."""
        picture = cv2.imencode(".jpg", np.full((40, 60, 3), 90, np.uint8))[1].tobytes()
        if image:
            (self.folder / f"{name}.jpg").write_bytes(picture)
        data = {"version": "5.4.1", "shapes": list(shapes), "imagePath": f"{name}.jpg", "imageData": None} | other
        (self.folder / f"{name}.json").write_text(json.dumps(data))
        return picture


@pytest.fixture
def labelme(tmp_path):
    return Labelme(tmp_path / "labels")


def split(out, name="train"):
    return json.loads((out / f"annotations/instances_{name}2017.json").read_text())


def test_shapes_become_objects(labelme, tmp_path):
    labelme.add(
        "one",
        shape(),
        shape("cat", [[40, 30], [20, 5]], shape_type="rectangle"),
        shape("cat", [[30, 20], [30, 30]], shape_type="circle"),
        shape("dog", [[0, 0], [9, 0], [9, 9]], group_id=1),
        shape("dog", [[50, 30], [70, 30], [70, 50]], group_id=1),
    )
    assert import_labels(labelme.folder, tmp_path / "out", val=0) == []
    data = split(tmp_path / "out")
    assert [c["name"] for c in data["categories"]] == ["cat", "dog"]
    boxes = [(a["category_id"], a["bbox"]) for a in data["annotations"]]
    # two shapes of one group are one object; what leaves the image is clipped
    assert boxes == [
        (2, [10, 10, 20, 15]),
        (1, [20, 5, 20, 25]),
        (1, [20, 10, 20, 20]),
        (2, [0, 0, 60, 40]),
    ]
    assert [len(a["segmentation"]) for a in data["annotations"]] == [1, 1, 1, 2]
    assert data["annotations"][2]["area"] == pytest.approx(np.pi * 100, rel=0.03)  # drawn in pixels
    assert len({a["id"] for a in data["annotations"]}) == 4


def test_it_loads_as_coco(labelme, tmp_path, shapes_config):
    for i in range(10):
        labelme.add(f"{i}", shape("dog" if i % 2 else "cat"))
    import_labels(labelme.folder, tmp_path / "out", val=0.3, seed=4)
    names = {}
    for part in ("train", "val"):
        root = str(tmp_path / "out")
        places = {"train_dataset": root, "val_dataset": root, "coco_classes": "auto"}
        config = resolve_classes(shapes_config(**places), training=True)
        data = load_data(config, part)
        names[part] = {r.path.name for r in data.records}
        assert config.coco_classes == ["background", "cat", "dog"]
    assert len(names["val"]) == 3
    assert names["train"] | names["val"] == {f"{i}.jpg" for i in range(10)}


def test_the_split_repeats(labelme, tmp_path):
    for i in range(10):
        labelme.add(f"{i}", shape())

    def val(seed, out):
        import_labels(labelme.folder, tmp_path / out, seed=seed)
        return [i["file_name"] for i in split(tmp_path / out, "val")["images"]]

    first = val(1, "a")
    assert first == val(1, "b")
    assert first != val(2, "c")


def test_an_image_kept_in_the_file(labelme, tmp_path):
    picture = labelme.add("one", shape())
    labelme.add("two", shape(), image=False, imageData=base64.b64encode(picture).decode())
    import_labels(labelme.folder, tmp_path / "out", val=0)
    assert (tmp_path / "out/train2017/two.jpg").read_bytes() == picture


BROKEN = {
    "cut short": ("{", "line 1"),
    "not UTF-8": (b"\xff\xfe", "JSON"),
    "no shapes": ('{"imagePath": "one.jpg"}', "labelme"),
    "a line": (shape(shape_type="line", points=[[1, 1], [9, 9]]), "shape 2 (dog): a line has no area"),
    "two points": (shape(points=[[1, 1], [9, 9]]), "shape 2 (dog): no area"),
    "beside the image": (shape(points=[[70, 50], [80, 50], [80, 60]]), "shape 2 (dog): no area"),
    "no label": (shape(label=""), "shape 2: has no label"),
    "words": (shape(points=[["a", 1], [2, 3], [4, 5]]), "shape 2 (dog)"),
    "not finite": (shape(points=[[float("nan"), 1], [2, 3], [4, 5]]), "finite"),
    "no points": (shape(points=[]), "shape 2 (dog)"),
    "a list": ([], "shape 2: has no label"),
}


@pytest.mark.parametrize(("content", "told"), BROKEN.values(), ids=BROKEN)
def test_broken_labels_are_refused_or_skipped(labelme, tmp_path, refusal, content, told):
    labelme.add("one", shape())
    if isinstance(content, (dict, list)):
        labelme.add("two", shape(), content)
    else:
        (labelme.folder / "two.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with refusal(DataError, labelme.folder / "two.json", told, "--on_bad_image skip"):
        import_labels(labelme.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    skipped = import_labels(labelme.folder, tmp_path / "out", skip=True)
    assert len(skipped) == 1
    assert [i["file_name"] for i in split(tmp_path / "out")["images"]] == ["one.jpg"]


def test_a_missing_image(labelme, tmp_path, refusal):
    labelme.add("one", shape(), image=False)
    with refusal(DataError, "one.json", "one.jpg", "missing"):
        import_labels(labelme.folder, tmp_path / "out")


def test_two_files_of_one_image(labelme, tmp_path, refusal):
    labelme.add("one", shape())
    labelme.add("two", shape(), image=False, imagePath="one.jpg")
    with refusal(DataError, "two.json", "one.json", "one.jpg"):
        import_labels(labelme.folder, tmp_path / "out")


def test_a_coco_file_is_split(coco_folder, tmp_path):
    import_labels(coco_folder.json, tmp_path / "out", coco_folder.images, val=0.34)
    train, val = split(tmp_path / "out"), split(tmp_path / "out", "val")
    assert sorted(i["id"] for d in (train, val) for i in d["images"]) == [1, 2, 3]
    assert len(val["images"]) == 1
    assert len(train["annotations"]) + len(val["annotations"]) == 2
    assert train["categories"] == coco_folder.data["categories"]
    for d, name in ((train, "train"), (val, "val")):
        listed = {i["file_name"] for i in d["images"]}
        assert {p.name for p in (tmp_path / f"out/{name}2017").iterdir()} == listed


@pytest.mark.parametrize("name", ["../outside.jpg", "/etc/hostname", ""])
def test_images_outside_their_folder(coco_folder, tmp_path, refusal, name):
    coco_folder.data["images"][0]["file_name"] = name
    coco_folder.write()
    with refusal(DataError, coco_folder.json, "file_name"):
        import_labels(coco_folder.json, tmp_path / "out", coco_folder.images)


def test_a_folder_that_is_there_stays(labelme, tmp_path, refusal):
    labelme.add("one", shape())
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    with refusal(DataError, tmp_path / "out", "there already"):
        import_labels(labelme.folder, tmp_path / "out")
    assert (tmp_path / "out/mine").read_text() == "mine"
