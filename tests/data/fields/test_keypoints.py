"""Keypoints from their annotations to a batch: by name, with their object, left and right exchanged in a mirror."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from src.config import Config, ConfigError, load_config, save_config
from src.data.fields.keypoints import KeypointField, mirrored_places
from src.data.formats import check_training, read_split
from src.data.import_labels import import_labels
from src.data.inspect import inspect_split, restored
from src.data.keypoint_shapes import NAMES, SHADES, SKELETON, make_keypoint_shapes
from src.data.loader import TrainLoader
from src.data.mindrecord import ensure_mindrecord, read_index, with_categories
from src.data.records import DataError
from src.data.scene import Scene
from src.data.transforms import View
from src.data.truth import read_truth, truth_of
from src.runtime.newer import zip_equal

ROOT = Path(__file__).parents[3]
K = len(NAMES)
# who stands where in a mirror, written out
MIRROR = [0, 2, 1, 4, 3, 6, 5, 8, 7]


@pytest.fixture(scope="session")
def persons_root(tmp_path_factory):
    """Persons with keypoints, 16 and 2 images. Not to be changed by a test."""
    return make_keypoint_shapes(tmp_path_factory.mktemp("persons") / "root", train=16, val=2, seed=1)


@pytest.fixture
def persons_config(persons_root, tmp_path):
    def make(**overrides):
        places = {"train_dataset": str(persons_root), "mindrecord_dir": str(tmp_path / "mindrecord"), "flip_ratio": 0.0}
        named = {name.replace("__", "."): value for name, value in overrides.items()}
        return load_config(ROOT / "configs/keypoint_shapes.yaml", places | named)

    return make


@pytest.fixture
def annotated(persons_root, tmp_path):
    """Makes a copy of the training annotations that `change` was given the content of; returns keys of a config."""

    def make(change=lambda data: None):
        data = json.loads((persons_root / "annotations/instances_train2017.json").read_bytes())
        change(data)
        path = tmp_path / "instances_train2017.json"
        path.write_text(json.dumps(data))
        return {"train_dataset": str(path), "image_dir": str(persons_root / "train2017")}

    return make


def small_config(**overrides):
    """A config of three keypoints of objects of class a."""
    config = Config(detector="keypoint_rcnn", coco_classes=["background", "a"], num_classes=2, **overrides)
    config.keypoint_head.names = ["nose", "left_ear", "right_ear"]
    return config


def read(annotation, own=("nose", "left_ear", "right_ear"), **overrides):
    """The value of an annotation in a picture of 40 x 30, of a category whose keypoints are `own`."""
    field = KeypointField(small_config(**overrides))
    return field.read(annotation, field.category({"keypoints": list(own)}, "f"), 30, 40, "f: annotation 7")


# ---------------------------------------------------------------------------------------------------------
# annotations


def test_names_decide_which_is_which():
    value = [10, 11, 2, 1, 2, 1, 0, 0, 0, 5, 6, 2]
    assert read({"keypoints": value}, ("right_ear", "nose", "tail", "left_ear")) == [1, 2, 1, 5, 6, 2, 10, 11, 2]


def test_numbers_may_be_text_and_places_of_what_isnt_labelled_are_none():
    assert read({"keypoints": ["1.5", "2", "2", 3, 4, 0, 0, 0, 0.0]}) == [1.5, 2, 2, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("annotation", [{}, {"keypoints": []}, {"keypoints": None}])
def test_objects_without_stay_boxes(annotation):
    assert read(annotation) is None
    packed = KeypointField(small_config()).pack([None, [1.0, 2.0, 1, 0, 0, 0, 3.0, 4.0, 2]])
    assert packed.shape == (2, 3, 3) and not packed[0].any()
    assert packed[1].tolist() == [[1, 2, 1], [0, 0, 0], [3, 4, 2]]


@pytest.mark.parametrize("crowd", [1, 1.0, "1", True])
def test_crowds_have_none(crowd):
    assert read({"iscrowd": crowd, "keypoints": ["whatever"]}) is None


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([1, 2, 2], "keypoints are 3 values, not x, y and visibility of each of its category's 3"),
        ("many", "keypoints are 'many', not x, y and visibility"),
        ([1, 2, 2, 3, 4, 3, 0, 0, 0], "keypoint left_ear [3, 4, 3] has visibility 3, not 0 (not labelled)"),
        ([1, 2, 2, 3, 4, 0.5, 0, 0, 0], "keypoint left_ear [3, 4, 0.5] has visibility 0.5, not"),
        ([1, float("nan"), 2, 0, 0, 0, 0, 0, 0], "keypoint nose [1, nan, 2] isn't three finite numbers"),
        ([1, 2, 2, 0, 0, 0, [], 1, 0], "keypoint right_ear [[], 1, 0] isn't three finite numbers"),
        ([1, 2, 2, 41, 4, 1, 0, 0, 0], "keypoint left_ear [41, 4, 1] lies outside its 40 x 30 image"),
        ([1, -0.7, 2, 4, 4, 1, 0, 0, 0], "keypoint nose [1, -0.7, 2] lies outside"),
    ],
)
def test_faults_name_the_keypoint(refusal, value, told):
    with refusal(DataError, "f: annotation 7: ", told):
        read({"keypoints": value})


def test_points_on_the_border_are_inside():
    value = [0, 0, 2, 40, 30, 1, -0.5, 30.5, 2]
    assert read({"keypoints": value}) == value
    assert read({"keypoints": [99, 99, 0] * 3}) == [0, 0, 0] * 3


def test_a_detections_third_number_is_no_visibility():
    assert read({"score": 0.9, "keypoints": [1, 2, 7.25, 3, 4, -1.5, 5, 6, 0.5]}) == [1, 2, 2, 0, 0, 0, 5, 6, 2]


def test_a_category_without_is_refused_where_it_is_learnt(refusal):
    learning = KeypointField(small_config())
    for entry in ({}, {"keypoints": []}):
        with refusal(DataError, "f: category 'a' lists no keypoints", "keypoint_rcnn", "person_keypoints_*2017.json"):
            learning.category(entry, "f: category 'a'")
        assert KeypointField(Config()).category(entry, "f") == {}


def test_names_that_lack_are_refused_where_they_are_learnt(refusal):
    entry = {"keypoints": ["nose", "tail"]}
    with refusal(DataError, "f: category 'a' lacks keypoints left_ear, right_ear of keypoint_head.names", "nose, tail"):
        KeypointField(small_config()).category(entry, "f: category 'a'")
    assert KeypointField(Config()).category(entry, "f") == entry | {"skeleton": []}


@pytest.mark.parametrize("names", ["nose", ["nose", 3], ["nose", "nose"], {"nose": 1}])
def test_names_that_are_none_are_refused(refusal, names):
    for config in (small_config(), Config()):
        with refusal(DataError, "f: keypoints ", "aren't a list of different names"):
            KeypointField(config).category({"keypoints": names}, "f")


def test_the_skeleton_follows_the_names():
    own = ["right_ear", "tail", "nose", "left_ear"]
    entry = {"keypoints": own, "skeleton": [[1, 3], [2, 3], [4, 3]]}
    known = KeypointField(small_config()).category(entry, "f")
    assert known == {"keypoints": ["nose", "left_ear", "right_ear"], "skeleton": [[3, 1], [2, 1]]}


@pytest.mark.parametrize("pair", [[0, 1], [1, 4], [1, 2, 3], [1], [1, "x"], 5, [1.5, 2]])
def test_a_skeleton_of_others_is_refused_where_it_is_learnt(refusal, pair):
    entry = {"keypoints": ["nose", "left_ear", "right_ear"], "skeleton": [[1, 2], pair]}
    with refusal(DataError, "f: skeleton has ", "no two of its 3 keypoints, counted from 1"):
        KeypointField(small_config()).category(entry, "f")
    assert KeypointField(Config()).category(entry, "f")["skeleton"] == [[1, 2]]


@pytest.mark.parametrize("names", [[], ["nose", "nose"]])
def test_a_config_of_no_names_is_refused(refusal, names):
    config = small_config()
    config.keypoint_head.names = names
    with refusal(ConfigError, "keypoint_head.names"):
        KeypointField(config)


# ---------------------------------------------------------------------------------------------------------
# truth, conversions, labels


def test_the_truth_keeps_them_by_the_configs_names(persons_config, annotated):
    order = [3, 0, 8, 5, 1, 2, 7, 6, 4]

    def shuffle(data):
        person = data["categories"][0]
        person["keypoints"] = [NAMES[i] for i in order] + ["tail"]
        person["skeleton"] = [[order.index(a - 1) + 1, order.index(b - 1) + 1] for a, b in SKELETON]
        for a in data["annotations"]:
            a["keypoints"] = np.reshape(a["keypoints"], (K, 3))[order].ravel().tolist() + [0, 0, 0]

    truths = []
    for places in ({}, annotated(shuffle)):
        folder = ensure_mindrecord(persons_config(**places), "train", training=True)
        truths.append(read_truth(folder / "truth.json"))
    assert truths[0]["annotations"] == truths[1]["annotations"]
    assert truths[0]["categories"] == truths[1]["categories"]
    person = truths[0]["categories"][0]
    assert person["keypoints"] == list(NAMES) and person["skeleton"] == [list(pair) for pair in SKELETON]


def test_what_was_annotated_is_what_is_measured(persons_config, persons_root):
    given = json.loads((persons_root / "annotations/instances_train2017.json").read_bytes())["annotations"]
    truth = read_truth(ensure_mindrecord(persons_config(), "train", training=True) / "truth.json")["annotations"]
    assert len(given) == len(truth)
    for before, after in zip_equal(given, truth):
        if before["iscrowd"]:
            assert "keypoints" not in after
        else:
            assert after["keypoints"] == before["keypoints"] and after["num_keypoints"] == before["num_keypoints"]
    assert any(not a["num_keypoints"] for a in given if not a["iscrowd"])


def test_conversions_are_told_apart(persons_config):
    def folder(**overrides):
        return ensure_mindrecord(persons_config(**overrides), "train", training=True, quiet=True)

    several = [
        folder(),
        folder(keypoint_head__names=list(NAMES[:5])),
        folder(keypoint_head__half_pixel=True),
        folder(detector="faster_rcnn"),
    ]
    assert len(set(several)) == 4 and folder() == several[0]


def test_faults_are_faults_of_their_image(persons_config, annotated, refusal):
    def spoil(data):
        data["annotations"][0] |= {"id": 7777, "keypoints": [1, 2, 5] * K}

    places = annotated(spoil)
    with refusal(DataError, "annotation 7777 of image 1: keypoint head [1, 2, 5] has visibility 5"):
        ensure_mindrecord(persons_config(**places), "train", training=True)
    skipping = persons_config(**places, on_bad_image="skip")
    assert len(read_index(ensure_mindrecord(skipping, "train", training=True))["skipped"]) == 1
    ensure_mindrecord(persons_config(**places, detector="mask_rcnn"), "train", training=True)


def test_a_data_set_without_them_is_refused(persons_config, annotated, refusal):
    def strip(data):
        data["annotations"] = [{k: v for k, v in a.items() if "keypoints" not in k} for a in data["annotations"]]

    with refusal(DataError, "no object has keypoints, which detector: keypoint_rcnn trains on"):
        read_split(persons_config(**annotated(strip)), "train")
    with refusal(DataError, "category 'person' lists no keypoints"):
        read_split(persons_config(**annotated(lambda data: data["categories"][0].pop("keypoints"))), "train")


def test_what_cant_give_or_move_them_is_refused(persons_config, refusal):
    check_training(persons_config(flip_ratio=0.5, flip_vertical_ratio=0.5, rotate90_ratio=0.5, aug_prob=0.5))
    with refusal(ConfigError, "dataset: voc has boxes but no keypoints, which detector: keypoint_rcnn trains on"):
        check_training(persons_config(dataset="voc"))
    with refusal(ConfigError, "transform: keypoints, which detector: keypoint_rcnn trains on, can't follow it"):
        check_training(persons_config(transform="mine.py:f"))


def test_written_labels_keep_the_files_own(persons_root, annotated, tmp_path):
    def rename(data):
        data["categories"][0]["keypoints"][0] = "hat"

    places = annotated(rename)
    before = truth_of(places["train_dataset"])
    import_labels(Path(places["train_dataset"]), tmp_path / "out", Path(places["image_dir"]), val=0)
    after = truth_of(tmp_path / "out/annotations/instances_train2017.json")
    assert after["categories"] == before["categories"] and after["categories"][0]["keypoints"][0] == "hat"
    assert [a.get("keypoints") for a in after["annotations"]] == [a.get("keypoints") for a in before["annotations"]]


def test_detections_become_labels(persons_root, tmp_path):
    truth = persons_root / "annotations/instances_val2017.json"
    results = tmp_path / "results.json"
    row = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 50], "score": 0.9}
    results.write_text(json.dumps([row | {"keypoints": [20.5, 30.25, 8.125] * K}]))
    import_labels(results, tmp_path / "out", val=0, annotations=truth)
    (label,) = truth_of(tmp_path / "out/annotations/instances_train2017.json")["annotations"]
    assert label["keypoints"] == [20.5, 30.25, 2] * K and label["num_keypoints"] == K


def test_inspection_counts_them(persons_config, persons_root, tmp_path, capsys):
    data = json.loads((persons_root / "annotations/instances_train2017.json").read_bytes())
    rows = np.array([a["keypoints"] for a in data["annotations"] if not a["iscrowd"] and a["num_keypoints"]])
    seen = rows.reshape(-1, K, 3)[..., 2]
    inspect_split(persons_config(), "train", tmp_path, samples=0)
    out = capsys.readouterr().out
    assert f"of the {len(seen)} objects with any" in out
    for name, of in zip_equal(NAMES, seen.T):
        numbers = [int((of == v).sum()) for v in (2, 1, 0)]
        assert [name, *map(str, numbers)] in [line.split() for line in out.splitlines()]


def test_a_run_keeps_the_limbs_of_its_data(persons_config, annotated, tmp_path):
    places = annotated(lambda data: data["categories"].insert(0, {"id": 9, "name": "dog"}))
    config = persons_config(**places)
    folder = ensure_mindrecord(config, "train", training=True)
    kept = with_categories(config, folder)
    assert kept.keypoint_head.skeleton == [list(pair) for pair in SKELETON]
    save_config(kept, tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml")
    assert again == kept and with_categories(again, folder) == kept
    # what the config says itself stays
    own = persons_config(**places, keypoint_head__skeleton="[[1, 2]]")
    assert with_categories(own, folder) == own
    # and what has no skeleton has no lines
    bare = persons_config(**annotated(lambda data: data["categories"][0].pop("skeleton")))
    assert with_categories(bare, ensure_mindrecord(bare, "train", training=True)) == bare


# ---------------------------------------------------------------------------------------------------------
# a batch


def test_left_and_right_change_places_by_name():
    assert mirrored_places(NAMES) == MIRROR
    assert mirrored_places(["right_eye", "tail", "left_ear", "left_eye", "leftover"]) == [3, 1, 2, 0, 4]


def mirrored_copy(root, out):
    """The data set with its pictures mirrored, and their annotations by hand."""
    data = json.loads((root / "annotations/instances_train2017.json").read_bytes())
    (out / "train2017").mkdir(parents=True)
    (out / "annotations").mkdir()
    widths = {}
    for image in data["images"]:
        picture = cv2.imread(str(root / "train2017" / image["file_name"]))
        image["file_name"] = image["file_name"].replace(".jpg", ".png")
        cv2.imwrite(str(out / "train2017" / image["file_name"]), picture[:, ::-1])
        widths[image["id"]] = image["width"]
    for a in data["annotations"]:
        width, (x, y, w, h) = widths[a["image_id"]], a["bbox"]
        a["bbox"] = [width - x - w, y, w, h]
        del a["segmentation"]
        values = np.reshape(a["keypoints"], (K, 3)).astype(float)
        values[values[:, 2] > 0, 0] = width - values[values[:, 2] > 0, 0]
        a["keypoints"] = values[MIRROR].ravel().tolist()
    (out / "annotations/instances_train2017.json").write_text(json.dumps(data))
    return str(out)


def test_a_flip_is_a_picture_really_mirrored(persons_root, persons_config, tmp_path):
    flipped = persons_config(flip_ratio=1.0)
    really = persons_config(train_dataset=mirrored_copy(persons_root, tmp_path / "mirrored"))
    folders = [ensure_mindrecord(c, "train", training=True) for c in (flipped, really)]
    loaders = [TrainLoader(c, f).epoch(0) for c, f in zip_equal((flipped, really), folders)]
    seen = 0
    for one, other in zip_equal(*loaders):
        assert one["image_id"].tolist() == other["image_id"].tolist()
        # resized, then mirrored, or the other way round: to rounding of bytes, which std divides
        np.testing.assert_allclose(one["image"], other["image"], atol=0.04)
        np.testing.assert_allclose(one["gt_boxes"], other["gt_boxes"], atol=0.01)
        np.testing.assert_allclose(one["gt_keypoints"], other["gt_keypoints"], atol=1e-3)
        seen += int((one["gt_keypoints"][..., 2] > 0).sum())
    assert seen > 100


AUGMENTED = {
    "plain": {},
    "flip": {"flip_ratio": 1.0},
    "vertical flip": {"flip_vertical_ratio": 1.0},
    "quarter turns": {"rotate90_ratio": 1.0, "flip_ratio": 0.5},
    "windows": {"expand_ratio": 0.5, "crop_ratio": 0.5, "ratio_range": [0.5, 2.0], "flip_ratio": 0.5},
    "InstaBoost": {"aug_prob": 1.0, "action_candidate": ["horizontal", "vertical"], "action_prob": [0.5, 0.5]},
    "copy-paste": {"copy_paste_ratio": 1.0, "ratio_range": [0.5, 1.5], "flip_ratio": 0.5},
    "processes": {"python_multiprocessing": True, "flip_ratio": 0.5, "flip_vertical_ratio": 0.5},
}


def shade_at(pixels, point):
    """The name of the colour that a figure has there."""
    x, y = (min(int(v), side - 1) for v, side in zip_equal(point, pixels.shape[1::-1]))
    return min(SHADES, key=lambda name: np.abs(pixels[y, x] - np.array(SHADES[name])).sum())


@pytest.mark.parametrize("how", AUGMENTED)
def test_points_are_on_their_limbs_and_sides(persons_config, how):
    config = persons_config(**AUGMENTED[how])
    on, off, figures = 0, 0, 0
    limbs = {"shoulder": "arm", "hand": "arm", "hip": "leg", "foot": "leg"}
    for batch in TrainLoader(config, ensure_mindrecord(config, "train", training=True)).epoch(0):
        assert batch["gt_keypoints"].shape == (config.batch_size, config.max_instance_count, K, 3)
        assert batch["gt_keypoints"].dtype == np.float32 and not batch["gt_keypoints"][~batch["gt_valid"]].any()
        for image, size, values in zip_equal(batch["image"], batch["image_size"], batch["gt_keypoints"]):
            assert not values[values[..., 2] == 0].any()
            assert (values[..., :2] >= 0).all() and (values[..., :2] <= size[::-1] + 1e-3).all()
            pixels = restored(image, config).astype(int)
            for points in values:
                for name, point in zip_equal(NAMES[1:], points[1:]):
                    if point[2] == 2:
                        fits = shade_at(pixels, point[:2]) == limbs[name.split("_")[1]]
                        on, off = on + fits, off + (not fits)
                if (points[[0, 1, 2, 5], 2] > 0).all() and points[0, 2] == 2:
                    # whichever way is up: the left is on one side of the way down from the head in front, else behind
                    across, down = points[1, :2] - points[2, :2], points[5, :2] - points[0, :2]
                    in_front = across[0] * down[1] - across[1] * down[0] > 0
                    assert shade_at(pixels, points[0, :2]) == ("front" if in_front else "back")
                    figures += 1
    # a hand before a leg is the leg's, where that is painted later
    assert on > 80 and off < 0.1 * on and figures > 10


def test_what_a_window_cuts_off_isnt_labelled():
    field = KeypointField(small_config())
    points = np.array([[[10.0, 10, 2], [4, 10, 2], [30, 10, 1]], [[5.0, 20, 1], [0, 0, 0], [20, 26, 2]]])
    scene = Scene(np.zeros((30, 40, 3), np.uint8), np.zeros((2, 4), np.float32), [None] * 2, {"keypoints": points})
    got = field.shown(scene, scene.boxes, View((5, 5, 25, 25), (40, 60)))
    assert got.dtype == np.float32
    assert got.tolist() == [[[15, 10, 2], [0, 0, 0], [0, 0, 0]], [[0, 30, 1], [0, 0, 0], [0, 0, 0]]]
    # a window that reaches beyond the picture has no more of it
    points[0, 0, 0] = 41
    got = field.shown(scene, scene.boxes, View((-10, -10, 50, 50), (60, 60), flip=True))
    assert got[0].tolist() == [[0, 0, 0], [20, 20, 1], [46, 20, 2]]
    assert points[0, 0].tolist() == [41, 10, 2]


def test_half_pixels_come_before_all_moves():
    config = small_config()
    config.keypoint_head.half_pixel = True
    field = KeypointField(config)
    values = field.pack([[0, 0, 2, 0, 0, 0, 39, 29, 1]])
    assert values.tolist() == [[[0.5, 0.5, 2], [0, 0, 0], [39.5, 29.5, 1]]]
    scene = Scene(np.zeros((30, 40, 3), np.uint8), np.zeros((1, 4), np.float32), [None], {"keypoints": values})
    got = field.shown(scene, scene.boxes, View((0, 0, 40, 30), (60, 80), flip=True))
    assert got[0].tolist() == [[79, 1, 2], [1, 59, 1], [0, 0, 0]]


def test_inspection_draws_them(persons_config, tmp_path):
    inspect_split(persons_config(), "train", tmp_path / "with", samples=4)
    inspect_split(persons_config(detector="faster_rcnn"), "train", tmp_path / "without", samples=4)
    drawn, plain = (cv2.imread(str(tmp_path / n / "train_samples.png")) for n in ("with", "without"))
    assert drawn.shape == plain.shape and (drawn != plain).any(-1).sum() > 100
