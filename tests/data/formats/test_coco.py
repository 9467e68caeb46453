"""Reading COCO annotations: what comes out, and each fault's message."""

import json
import shutil

import numpy as np
import pytest
from pycocotools import mask as rle

from src.data.formats import find_split
from src.data.formats.coco import read_json, resolve_split
from src.data.records import DataError, Split
from tests.data.formats.reading import load as load_config_data


@pytest.fixture
def load(coco_folder, coco_config):
    """Reads `coco_folder` as it stands after the test's changes to its data."""

    def read(**overrides):
        coco_folder.write()
        return load_config_data(coco_config(**overrides))

    return read


# Layouts


def test_coco_root_layout(coco_folder):
    assert resolve_split(coco_folder.root, "train") == Split(coco_folder.json, coco_folder.images)
    assert resolve_split(str(coco_folder.root), "train").images == coco_folder.images


@pytest.mark.parametrize(("split", "name"), [("train", "train"), ("val", "validation"), ("val", "val")])
def test_labels_json_layout(coco_folder, coco_config, split, name, tmp_path):
    (tmp_path / "other" / name).mkdir(parents=True)
    shutil.copy(coco_folder.json, tmp_path / "other" / name / "labels.json")
    shutil.copytree(coco_folder.images, tmp_path / "other" / name / "data")
    by_parent = resolve_split(tmp_path / "other", split)
    itself = resolve_split(tmp_path / "other" / name, split)
    assert by_parent == itself == Split(tmp_path / f"other/{name}/labels.json", tmp_path / f"other/{name}/data")
    data = load_config_data(coco_config(train_dataset=str(itself.annotations)))
    assert [r.image_id for r in data.records] == [1, 2, 3]


def test_missing_annotations(tmp_path, refusal):
    with refusal(DataError, tmp_path / "annotations/instances_train2017.json", tmp_path / "labels.json"):
        resolve_split(tmp_path, "train")


def test_no_data_set_named(refusal, coco_config):
    with refusal(DataError, "val_dataset"):
        find_split(coco_config(val_dataset=""), "val")


def test_missing_image_folder(coco_folder, refusal):
    shutil.rmtree(coco_folder.images)
    with refusal(DataError, coco_folder.images, coco_folder.json):
        resolve_split(coco_folder.root, "train")


def test_annotations_from_elsewhere_find_their_images(coco_folder, tmp_path, refusal):
    """By the file's name, else in the layout's folder."""
    named = tmp_path / "instances_test.json"
    assert resolve_split(coco_folder.root, "train", named) == Split(named, coco_folder.images)
    (coco_folder.root / "test").mkdir()
    assert resolve_split(coco_folder.root, "train", named) == Split(named, coco_folder.root / "test")
    (tmp_path / "other/validation/data").mkdir(parents=True)
    assert resolve_split(tmp_path / "other", "val", named).images == tmp_path / "other/validation/data"
    with refusal(DataError, tmp_path / "none", named):
        resolve_split(tmp_path / "none", "val", named)


# The JSON


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "line 1"),
        (b'{"images": [],\n "annotations": [}', "line 2"),
        (b"\xff\xfe\x00\x01", "not valid JSON"),
        (b"[1, 2]", "not a COCO instances file"),
        (b'{"a": 1}', "'images'"),
        (b'{"images": [], "annotations": {}, "categories": []}', "'annotations'"),
        (b'{"images": [3], "annotations": [], "categories": []}', "'images'"),
        (b'{"images": [], "annotations": []}', "'categories'"),
    ],
)
def test_json_that_is_not_coco(tmp_path, refusal, content, part):
    path = tmp_path / "labels.json"
    path.write_bytes(content)
    with refusal(DataError, path, part):
        read_json(path)


def test_truncated_json(coco_folder, coco_config, refusal):
    coco_folder.json.write_bytes(coco_folder.json.read_bytes()[:-20])
    with refusal(DataError, coco_folder.json, "not valid JSON"):
        load_config_data(coco_config())


def test_unreadable_json(tmp_path, refusal):
    with refusal(DataError, tmp_path / "labels.json", "can't read"):
        read_json(tmp_path / "labels.json")


def test_image_without_size(coco_folder, load, refusal):
    del coco_folder.data["images"][1]["height"]
    with refusal(DataError, coco_folder.json, "image 2"):
        load()


# What comes out


def test_records(coco_folder, load):
    coco_folder.add_object(1, (0.5, 1.5, 10, 12), category_id=20)
    data = load()
    record = data.records[0]
    assert (record.image_id, record.height, record.width) == (1, 40, 60)
    assert record.path == coco_folder.images / "000000000001.jpg"
    np.testing.assert_array_equal(record.boxes, np.float32([[10, 10, 30, 25], [0.5, 1.5, 10.5, 13.5]]))
    # by name: circle is the config's class 1, star its class 4
    assert record.labels.tolist() == [1, 4]
    assert not record.crowd.any()
    assert (data.category_ids[1], data.category_ids[4]) == (10, 20)
    assert data.skipped == []
    assert data.records[2].boxes.shape == (0, 4)


def test_box_partly_outside_is_clipped(coco_folder, load):
    coco_folder.add_object(3, (-5, -2, 20, 100))
    np.testing.assert_array_equal(load().records[2].boxes, np.float32([[0, 0, 15, 40]]))


def test_crowds_are_kept_apart(coco_folder, load):
    runs = {"size": [40, 60], "counts": [400, 100, 1900]}
    coco_folder.add_object(1, (5, 5, 50, 30), iscrowd=1, segmentation=runs)
    record = load(max_instance_count=1).records[0]
    assert record.crowd.tolist() == [False, True]
    assert record.labels.tolist() == [1, 1]
    np.testing.assert_array_equal(record.boxes[1], [5, 5, 55, 35])


def test_categories_that_nothing_uses_may_be_foreign(coco_folder, load):
    coco_folder.data["categories"].append({"id": 30, "name": "zebra"})
    assert len(load().records) == 3


def test_rle_of_both_kinds_is_taken(coco_folder, load):
    bitmap = np.zeros((40, 60), np.uint8)
    bitmap[10:20, 10:30] = 1
    encoded = rle.encode(np.asfortranarray(bitmap))["counts"].decode()
    counts = [410, *[10, 30] * 19, 10, 1220]
    coco_folder.add_object(1, segmentation={"size": [40, 60], "counts": encoded})
    coco_folder.add_object(2, segmentation={"size": [40, 60], "counts": counts})
    assert [len(r.boxes) for r in load().records] == [2, 2, 0]


def test_stray_short_polygon_beside_a_whole_one_is_taken(coco_folder, load):
    coco_folder.add_object(3, segmentation=[[1, 1, 2, 2], [10, 10, 30, 10, 30, 25]])
    assert len(load().records[2].boxes) == 1


def test_real_photographs(coco_root, shapes_config):
    from src.config import load_config

    config = load_config("configs/mask_rcnn_r50_fpn.yaml", {"train_dataset": str(coco_root)})
    data = load_config_data(config)
    entries = json.loads(data.split.annotations.read_text())
    assert len(data.records) == len(entries["images"])
    assert sum(len(r.boxes) for r in data.records) == len(entries["annotations"])


# Faults of one image: refused, or left out


def missing_image(folder):
    (folder.images / "000000000002.jpg").unlink()


def box_outside(folder):
    folder.data["annotations"][1]["bbox"] = [60, 10, 5, 5]


def box_without_width(folder):
    folder.data["annotations"][1]["bbox"] = [10, 10, 0, 5]


def box_of_negative_height(folder):
    folder.data["annotations"][1]["bbox"] = [10, 10, 5, -5]


def box_all_but_empty(folder):
    folder.data["annotations"][1]["bbox"] = [10, 10, 1e-6, 5]


def box_of_three(folder):
    folder.data["annotations"][1]["bbox"] = [10, 10, 5]


def box_and_mask_missing(folder):
    del folder.data["annotations"][1]["bbox"], folder.data["annotations"][1]["segmentation"]


def box_not_finite(folder):
    folder.data["annotations"][1]["bbox"] = [float("nan"), 10, 5, 5]


def no_segmentation(folder):
    del folder.data["annotations"][1]["segmentation"]


def empty_segmentation(folder):
    folder.data["annotations"][1]["segmentation"] = []


def two_points(folder):
    folder.data["annotations"][1]["segmentation"] = [[10, 10, 20, 20]]


def odd_polygon(folder):
    folder.data["annotations"][1]["segmentation"] = [[10, 10, 20, 20, 30, 30, 5]]


def polygon_of_words(folder):
    folder.data["annotations"][1]["segmentation"] = [[10, 10, 20, 20, "x", 30]]


def rle_of_another_size(folder):
    folder.data["annotations"][1]["segmentation"] = {"size": [60, 40], "counts": [2400]}


def rle_too_short(folder):
    folder.data["annotations"][1]["segmentation"] = {"size": [40, 60], "counts": [100, 20]}


def rle_negative(folder):
    folder.data["annotations"][1]["segmentation"] = {"size": [40, 60], "counts": [-100, 2500]}


def rle_text_of_another_image(folder):
    counts = rle.encode(np.ones((400, 600), np.uint8, order="F"))["counts"].decode()
    folder.data["annotations"][1]["segmentation"] = {"size": [40, 60], "counts": counts}


ANNOTATION = "annotation 102 of image 2"
FAULTS = [
    (missing_image, "000000000002.jpg", "missing"),
    (box_outside, ANNOTATION, "outside"),
    (box_without_width, ANNOTATION, "no area"),
    (box_of_negative_height, ANNOTATION, "no area"),
    (box_all_but_empty, ANNOTATION, "no area"),
    (box_of_three, ANNOTATION, "[10, 10, 5]"),
    (box_and_mask_missing, ANNOTATION, "no segmentation"),
    (box_not_finite, ANNOTATION, "finite"),
    (no_segmentation, ANNOTATION, "no segmentation"),
    (empty_segmentation, ANNOTATION, "no segmentation"),
    (two_points, ANNOTATION, "three points"),
    (odd_polygon, ANNOTATION, "polygon"),
    (polygon_of_words, ANNOTATION, "polygon"),
    (rle_of_another_size, ANNOTATION, "[60, 40]"),
    (rle_too_short, ANNOTATION, "add up"),
    (rle_negative, ANNOTATION, "RLE"),
    (rle_text_of_another_image, ANNOTATION, "RLE"),
]
each_fault = pytest.mark.parametrize(("spoil", "where", "what"), FAULTS, ids=[f[0].__name__ for f in FAULTS])


@each_fault
def test_fault_is_refused(coco_folder, load, refusal, spoil, where, what):
    spoil(coco_folder)
    with refusal(DataError, coco_folder.json.name, where, what, "on_bad_image: skip"):
        load()


@each_fault
def test_faulty_image_is_left_out_by_option(coco_folder, load, spoil, where, what):
    spoil(coco_folder)
    data = load(on_bad_image="skip")
    assert [r.image_id for r in data.records] == [1, 3]
    assert len(data.skipped) == 1
    assert where in data.skipped[0]
    assert what in data.skipped[0]


def test_too_many_instances(coco_folder, load, refusal):
    coco_folder.add_object(2)
    for _ in range(4):
        coco_folder.add_object(3)
    coco_folder.add_object(3, iscrowd=1, segmentation={"size": [40, 60], "counts": [400, 100, 1900]})
    place = coco_folder.json, "image 2", "000000000002.jpg", "2 objects", "max_instance_count 1"
    # what is enough for all, not for the first
    with refusal(DataError, *place, "set it to 4"):
        load(max_instance_count=1)
    assert [r.image_id for r in load(max_instance_count=4).records] == [1, 2, 3]
    data = load(max_instance_count=1, on_bad_image="skip")
    assert [r.image_id for r in data.records] == [1]
    assert ["set it to 4" in fault for fault in data.skipped] == [True, True]


def test_boxes_alone_need_no_segmentation(coco_folder, load):
    no_segmentation(coco_folder)
    assert len(load(detector="faster_rcnn").records) == 3


# Faults of the file


def test_annotation_of_an_unlisted_image(coco_folder, load, refusal):
    coco_folder.data["annotations"][1]["image_id"] = 77
    with refusal(DataError, coco_folder.json, "annotation 102", "image 77"):
        load()


def test_category_that_the_config_does_not_name(coco_folder, load, refusal):
    coco_folder.data["categories"][0]["name"] = "zebra"
    with refusal(DataError, coco_folder.json, "'zebra'", "coco_classes", "2 annotations"):
        load()


def test_category_id_that_the_file_does_not_list(coco_folder, load, refusal):
    coco_folder.data["annotations"][1]["category_id"] = 99
    with refusal(DataError, coco_folder.json, "category id 99", "'categories'"):
        load()


def test_background_is_no_category(coco_folder, load, refusal):
    coco_folder.data["categories"][0]["name"] = "background"
    with refusal(DataError, coco_folder.json, "'background'"):
        load()


def test_category_without_name(coco_folder, load, refusal):
    del coco_folder.data["categories"][0]["name"]
    with refusal(DataError, coco_folder.json, "category"):
        load()
