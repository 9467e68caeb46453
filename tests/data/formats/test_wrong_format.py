"""A data set of another format than the config says: the refusal names the key's right value."""

import json

import pytest

from src.data.formats import formats_at, read_split, resolve_classes
from src.data.import_labels import import_labels
from src.data.records import DataError

FORMATS = ("coco", "labelme", "voc", "yolo")


@pytest.fixture(scope="module")
def roots(shapes_root, tmp_path_factory):
    """A folder of each format, and files that name one."""
    place = tmp_path_factory.mktemp("formats")
    for name in ("coco", "voc", "yolo"):
        import_labels(shapes_root, place / name, to=name)
    folder = place / "labelme"
    folder.mkdir()
    (folder / "a.jpg").write_bytes((shapes_root / "train2017/000000000001.jpg").read_bytes())
    shape = {"label": "star", "points": [[10, 10], [40, 30]], "shape_type": "rectangle"}
    labels = {"version": "5.2.1", "shapes": [shape], "imagePath": "a.jpg", "imageHeight": 192, "imageWidth": 256}
    (folder / "a.json").write_text(json.dumps(labels))
    out = {name: place / name for name in FORMATS}
    return out | {"file": place / "coco/annotations/instances_train2017.json", "yaml": place / "yolo/data.yaml"}


@pytest.mark.parametrize("there", [*FORMATS, "file", "yaml"])
@pytest.mark.parametrize("classes", ["auto", ["background", "star"]])
def test_the_refusal_names_the_format_that_is_there(roots, shapes_config, refusal, there, classes):
    right = {"file": "coco", "yaml": "yolo"}.get(there, there)
    assert formats_at(roots[there]) == [right]
    for wrong in (*FORMATS, "other"):
        if wrong == right:
            continue
        named = {} if classes == "auto" else {"num_classes": len(classes)}
        config = shapes_config(
            dataset=wrong, train_dataset=str(roots[there]), coco_classes=classes, detector="faster_rcnn", **named
        )
        with refusal(DataError, f"--dataset {right}"):
            read_split(resolve_classes(config, training=True), "train")


def test_a_fault_of_the_right_format_names_no_other(roots, shapes_config):
    config = shapes_config(train_dataset=str(roots["coco"]), coco_classes=["background", "star"], num_classes=2)
    with pytest.raises(DataError) as error:
        read_split(config, "train")
    assert "--dataset" not in str(error.value)
    assert "coco_classes: auto" in str(error.value)


def test_nothing_there_names_none(shapes_config, tmp_path):
    with pytest.raises(DataError) as error:
        read_split(shapes_config(train_dataset=str(tmp_path)), "train")
    assert "--dataset" not in str(error.value)


@pytest.mark.parametrize("name", ["9" * 300, "a/" * 3000])
@pytest.mark.parametrize("form", [*FORMATS, "other"])
def test_a_name_that_is_too_long_is_told(form, name, shapes_config, refusal):
    places = {"train_dataset": name, "anno_path": name, "image_dir": name}
    with refusal(DataError, name[:200]):
        config = shapes_config(dataset=form, detector="faster_rcnn", coco_classes="auto", **places)
        read_split(resolve_classes(config, training=True), "train")
