"""What objects carry beyond box and class, from their annotations to a batch: with a field that no branch has."""

import json

import numpy as np
import pytest

from src.config import ConfigError, keys
from src.data.augment.geometry import turned_points, turned_scene
from src.data.augment.instaboost import instaboost
from src.data.fields import FIELDS, Field, MaskField, check_augmentation, fields_of
from src.data.formats import check_training, read_split
from src.data.formats.coco import Coco
from src.data.import_labels import import_labels
from src.data.loader import TrainLoader
from src.data.mindrecord import ensure_mindrecord, read_index
from src.data.records import DataError
from src.data.scene import Scene
from src.data.transforms import View
from src.data.truth import read_truth, truth_of
from src.runtime.newer import zip_equal


class Middles(Field):
    """A point of each object, x and y; nan without."""

    name = "middles"

    def category(self, entry, where):
        if not isinstance(entry.get("ends", []), list):
            raise DataError(f"{where}: ends {entry['ends']!r} isn't a list")
        return {"ends": entry["ends"]} if "ends" in entry else {}

    def read(self, annotation, category, height, width, where):
        point = annotation.get("middle")
        if point is not None and len(point) != 2:
            raise DataError(f"{where}: middle {point} isn't x, y; of {category['ends']}")
        return point

    @staticmethod
    def truth(value):
        return {"middle": value, "has_middle": 1}

    @property
    def options(self):
        return [self.config.mask_crop_size]

    def pack(self, values):
        return np.array([v or [np.nan] * 2 for v in values], np.float64).reshape(-1, 2)

    def moved(self, values, move):
        return values @ move[:, :2].T + move[:, 2]

    def shown(self, scene, boxes, view):
        return super().shown(scene, boxes, view).astype(np.float32)


@pytest.fixture
def middles(monkeypatch):
    """Makes the detector without masks learn the field."""
    monkeypatch.setitem(FIELDS, "middle", Middles)
    monkeypatch.setattr(Coco, "fields", ("masks", "middles"))
    monkeypatch.setitem(keys.DETECTORS, "faster_rcnn", ("middle",))
    # a branch has its groups of keys
    monkeypatch.setattr(keys.Config, "middle_roi", keys.Roi(), raising=False)
    monkeypatch.setattr(keys.Config, "middle_head", keys.MaskHead(), raising=False)


@pytest.fixture
def annotated(shapes_root, tmp_path):
    """Makes a copy of the shapes' training annotations in which objects have their box's middle, but every fourth none;
    `change` takes the file's content."""

    def make(change=lambda data: None):
        data = json.loads((shapes_root / "annotations/instances_train2017.json").read_bytes())
        for c in data["categories"]:
            c["ends"] = [f"left_{c['name']}", f"right_{c['name']}"]
        for a in data["annotations"]:
            x, y, w, h = a["bbox"]
            if a["id"] % 4:
                a["middle"] = [x + w / 2, y + h / 2]
        change(data)
        path = tmp_path / "instances_train2017.json"
        path.write_text(json.dumps(data))
        return {"train_dataset": str(path), "image_dir": str(shapes_root / "train2017"), "detector": "faster_rcnn"}

    return make


def middles_of(batch):
    """(boxes' middles, the field's values) of a batch's objects that have one."""
    valid = batch["gt_valid"]
    boxes, values = batch["gt_boxes"][valid], batch["gt_middles"][valid]
    has = np.isfinite(values).all(1)
    return (boxes[has, :2] + boxes[has, 2:]) / 2, values[has]


AUGMENTED = {"flip_ratio": 0.5, "flip_vertical_ratio": 0.5, "rotate90_ratio": 0.7}


@pytest.mark.parametrize("augmented", [{}, AUGMENTED, AUGMENTED | {"python_multiprocessing": True}])
def test_values_reach_a_batch_where_their_objects_are(middles, annotated, shapes_config, augmented):
    config = shapes_config(**annotated(), **augmented)
    folder = ensure_mindrecord(config, "train", training=True)
    seen = 0
    for batch in TrainLoader(config, folder).epoch(0):
        g = config.max_instance_count
        assert batch["gt_middles"].shape == (config.batch_size, g, 2) and batch["gt_middles"].dtype == np.float32
        assert "gt_masks" not in batch and not batch["gt_middles"][~batch["gt_valid"]].any()
        wanted, got = middles_of(batch)
        np.testing.assert_allclose(got, wanted, atol=0.02)
        seen += len(got)
    assert seen > 40


def test_the_truth_keeps_what_annotations_and_categories_have(middles, annotated, shapes_config):
    places = annotated()
    folder = ensure_mindrecord(shapes_config(**places), "train", training=True)
    truth = read_truth(folder / "truth.json")
    assert truth["categories"][0]["ends"] == [f"{s}_{truth['categories'][0]['name']}" for s in ("left", "right")]
    having = [a for a in truth["annotations"] if "middle" in a]
    assert 0 < len(having) < len(truth["annotations"])
    assert all(a["has_middle"] == 1 for a in having)
    alone = truth_of(places["train_dataset"])
    assert [a.get("middle") for a in alone["annotations"]] == [a.get("middle") for a in truth["annotations"]]
    assert not any("middle" in a for a in truth_of(places["train_dataset"], fields=())["annotations"])


def test_a_detector_that_doesnt_learn_it_doesnt_read_it(middles, annotated, shapes_config):
    def spoil(data):
        data["annotations"][0]["middle"] = [1]

    places = annotated(spoil) | {"detector": "mask_rcnn"}
    folder = ensure_mindrecord(shapes_config(**places), "train", training=True)
    truth = read_truth(folder / "truth.json")
    assert not any("middle" in a for a in truth["annotations"]) and not any("ends" in c for c in truth["categories"])
    assert "gt_middles" not in next(TrainLoader(shapes_config(**places), folder).epoch(0))


def test_conversions_are_told_apart(middles, annotated, shapes_config, monkeypatch):
    places = annotated()
    folders = [ensure_mindrecord(shapes_config(**places, mask_crop_size=s), "train", True) for s in (56, 56, 112)]
    assert folders[0] == folders[1] != folders[2]
    monkeypatch.setitem(keys.DETECTORS, "faster_rcnn", ())
    assert ensure_mindrecord(shapes_config(**places), "train", True) not in folders


def test_faults_name_the_annotation(middles, annotated, shapes_config):
    def spoil(data):
        data["annotations"][0]["middle"] = [1]
        data["annotations"][0]["id"] = 7777

    with pytest.raises(DataError, match=r"annotation 7777 of image \d+: middle \[1\] isn't x, y; of \['left_"):
        ensure_mindrecord(shapes_config(**annotated(spoil)), "train", True)
    skipping = shapes_config(**annotated(spoil), on_bad_image="skip")
    assert len(read_index(ensure_mindrecord(skipping, "train", True))["skipped"]) == 1
    with pytest.raises(DataError, match=r"category '\w+': ends 3 isn't a list"):
        read_split(shapes_config(**annotated(lambda data: data["categories"][0].update(ends=3))), "train")


def test_a_data_set_without_it_is_refused(middles, annotated, shapes_config):
    def strip(data):
        for a in data["annotations"]:
            a.pop("middle", None)

    with pytest.raises(DataError, match="no object has middles, which detector: faster_rcnn trains on"):
        read_split(shapes_config(**annotated(strip)), "train")


def test_configs_that_lose_it_are_refused_early(middles, shapes_config):
    check_training(shapes_config(detector="faster_rcnn"))
    with pytest.raises(ConfigError, match="^dataset: voc has boxes but no middles, which detector: faster_rcnn trains"):
        check_training(shapes_config(detector="faster_rcnn", dataset="voc"))
    with pytest.raises(ConfigError, match="^transform: middles, which .*faster_rcnn trains on, can't follow it"):
        check_training(shapes_config(detector="faster_rcnn", transform="mine.py:f"))
    check_augmentation(shapes_config(detector="mask_rcnn", transform="mine.py:f", aug_prob=1.0))


def test_written_labels_keep_it(middles, annotated, shapes_config, shapes_root, tmp_path):
    places = annotated()
    before = truth_of(places["train_dataset"])
    import_labels(tmp_path / "instances_train2017.json", tmp_path / "out", shapes_root / "train2017", val=0)
    after = truth_of(tmp_path / "out/annotations/instances_train2017.json")
    key = "image_id", "bbox", "middle", "segmentation"
    assert [[a.get(k) for k in key] for a in after["annotations"]] == [
        [a.get(k) for k in key] for a in before["annotations"]
    ]
    assert after["categories"] == before["categories"]


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_turns(shapes_config, quarters):
    field, points = Middles(shapes_config()), np.array([[3.0, 5], [20, 1]])
    scene = Scene(np.zeros((30, 40, 3), np.uint8), np.zeros((2, 4), np.float32), [None] * 2, {"middles": points})
    got = turned_scene(scene, quarters, [field]).fields["middles"]
    np.testing.assert_allclose(got, turned_points(points, quarters, 30, 40))


@pytest.mark.parametrize("flip", [False, True])
def test_a_view_moves_points_as_it_moves_boxes(flip):
    view = View((-5, 10, 35, 70), (90, 80), flip)
    points = np.array([[0.0, 0], [12.5, 40], [30, 69]])
    got = points @ view.move[:, :2].T + view.move[:, 2]
    boxes = view.to_canvas(np.tile(points, 2).astype(np.float32))
    np.testing.assert_allclose(got, boxes[:, :2], atol=1e-4)
    assert (np.linalg.det(view.move[:, :2]) < 0) == flip


def test_instaboost_takes_values_along(shapes_config):
    config = shapes_config(action_candidate=["horizontal"], action_prob=[1.0], theta=[-20.0, 20.0])
    field, random = Middles(config), np.random.default_rng(3)
    image = random.integers(0, 256, (200, 300, 3)).astype(np.uint8)
    # a right triangle and a square, whose boxes follow from their corners
    masks = [[[60.0, 60, 100, 60, 60, 90]], [[200.0, 100, 240, 100, 240, 140, 200, 140]]]
    boxes = np.float32([[60, 60, 100, 90], [200, 100, 240, 140]])
    corners = np.array([[60.0, 60], [240, 140]])
    scene, rows = instaboost(Scene(image, boxes, masks, {"middles": corners}), config, random, [field])
    assert rows.tolist() == [0, 1]
    for mask, corner, place in zip_equal(scene.masks, scene.fields["middles"], (0, 2)):
        np.testing.assert_allclose(corner, np.reshape(mask[0], (-1, 2))[place], atol=1e-9)
    assert not np.allclose(scene.fields["middles"], corners)
    assert corners.tolist() == [[60, 60], [240, 140]]


def test_masks_are_the_mask_branchs(shapes_config):
    assert [type(f) for f in fields_of(shapes_config())] == [MaskField]
    assert fields_of(shapes_config(detector="faster_rcnn", aug_prob=0.5)) == []
