"""A user's own transform: called with what is told, its results used as any image, its mistakes told in one line."""

import dataclasses
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import train
from src.config import ConfigError
from src.data.augment.custom import TransformError, load_transform
from src.data.loader import EvalLoader, TrainLoader
from src.data.mindrecord import ensure_mindrecord
from src.models.build import build_detector, build_loss
from src.runtime.newer import zip_equal
from src.training.loop import Trainer
from tests.conftest import TINY

BACK = "    return image, boxes, labels, masks\n"
HEAD = "import numpy as np\ndef change(image, boxes, labels, masks, random):\n"
NOTHING = HEAD + BACK


@pytest.fixture
def own(tmp_path):
    """Writes a file with a function `change`; returns the words of config.transform."""

    def write(text, name="own.py"):
        (tmp_path / name).write_text(text)
        return f"{tmp_path / name}:change"

    return write


@pytest.fixture
def data(coco_folder, coco_config):
    """Makes a config of two images of 60 x 40 with an object at 10, 10, 30, 25, the first with a crowd too."""
    coco_folder.add_object(1, (40, 30, 10, 5), iscrowd=1, segmentation={"size": [40, 60], "counts": [2400]})
    coco_folder.write()

    def make(transform="", **overrides):
        named = {"img_height": 128, "img_width": 192, "batch_size": 1, "flip_ratio": 0, "mask_crop_size": 28}
        return coco_config(transform=transform, **named | overrides)

    return make


def batches(config, epoch=0, start=0):
    folder = ensure_mindrecord(config, "train", training=True, quiet=True)
    return {int(b["image_id"][0]): b for b in TrainLoader(config, folder).epoch(epoch, start)}


def same(first, second):
    assert first.keys() == second.keys()
    for i in first:
        for k in first[i]:
            np.testing.assert_array_equal(first[i][k], second[i][k])


@pytest.mark.parametrize("detector", ["mask_rcnn", "faster_rcnn"])
def test_what_changes_nothing_changes_nothing(data, own, detector):
    """Nor the draws of what comes after, however much it draws itself."""
    changes = {"photo_ratio": 1.0, "crop_ratio": 0.5, "flip_ratio": 0.5, "rotate90_ratio": 0.5, "detector": detector}
    drawing = HEAD + "    random.random(100)\n" + BACK
    got, wanted = batches(data(own(drawing), **changes)), batches(data(**changes))
    for i in wanted:
        for k in wanted[i]:
            if k != "gt_masks":
                np.testing.assert_array_equal(got[i][k], wanted[i][k])
        assert ("gt_masks" in wanted[i]) == (detector == "mask_rcnn")
        if detector == "mask_rcnn":
            # drawn from polygons, or cut from a bitmap
            shares = [(b[i]["gt_masks"] > 127).mean((2, 3)) for b in (got, wanted)]
            assert np.abs(shares[0] - shares[1]).max() < 0.1


def test_what_it_is_given(data, own, tmp_path):
    given = "image=image, boxes=boxes, labels=labels, masks=masks"
    save = f"    np.savez({str(tmp_path)!r} + f'/given{{len(boxes)}}', {given})\n"
    batches(data(own(HEAD + save + BACK)))
    # the first image has a crowd beside its object
    with np.load(tmp_path / "given2.npz") as given:
        image, boxes, labels, masks = (given[k] for k in ("image", "boxes", "labels", "masks"))
    np.testing.assert_array_equal(image[:, :, ::-1], cv2.imread(str(tmp_path / "coco/train2017/000000000001.jpg")))
    assert (image.dtype, boxes.dtype, labels.dtype, masks.dtype) == (np.uint8, np.float32, np.int32, np.uint8)
    assert boxes.tolist() == [[10, 10, 30, 25], [40, 30, 50, 35]]
    assert labels.tolist() == [1, 0]
    wanted = np.zeros((2, 40, 60), np.uint8)
    wanted[0, 10:25, 10:30] = wanted[1, 30:35, 40:50] = 1
    np.testing.assert_array_equal(masks, wanted)
    with np.load(tmp_path / "given1.npz") as given:
        assert given["labels"].tolist() == [1]


FLIP = (
    HEAD
    + """
    boxes[:, [0, 2]] = image.shape[1] - boxes[:, [2, 0]]
    return image[:, ::-1], boxes, labels, None if masks is None else [m[:, ::-1] for m in masks]
"""
)


def test_a_flip_of_ones_own_is_the_flip(data, own):
    """Picture, boxes, masks and crowds as with flip_ratio: 1."""
    got, wanted = batches(data(own(FLIP))), batches(data(flip_ratio=1.0))
    for i in wanted:
        # resized before or after
        np.testing.assert_allclose(got[i]["image"], wanted[i]["image"], atol=0.05)
        for k in ("gt_boxes", "gt_labels", "ignore_boxes"):
            np.testing.assert_allclose(got[i][k], wanted[i][k], atol=1e-3)
        assert ((got[i]["gt_masks"] > 127) == (wanted[i]["gt_masks"] > 127)).mean() > 0.99
    assert wanted[1]["ignore_boxes"].any()


SPREAD = (
    HEAD
    + """
    image = np.zeros((90, 45, 3), np.uint8)
    boxes = np.float32([[5, 5, 15, 25], [20, 40, 40, 80.5]])
    image[5:25, 5:15] = (255, 0, 0)
    image[40:80, 20:40] = (255, 0, 0)
    masks = [np.zeros((90, 45), np.uint8) for _ in boxes]
    masks[0][5:25, 5:15] = masks[1][40:80, 20:40] = 1
    return image, boxes, np.array([2, 4]), masks
"""
)


@pytest.mark.parametrize("resize", ["canvas", "short_side"])
@pytest.mark.parametrize("more", [{}, {"flip_ratio": 1.0, "rotate90_ratio": 1.0}, {"aug_prob": 1.0}], ids=str)
def test_another_size_and_other_objects(data, own, resize, more):
    """An upright picture of a lying one stays on the canvas of its batch."""
    config = data(own(SPREAD), resize=resize, **more)
    for b in batches(config).values():
        assert b["gt_labels"][0][b["gt_valid"][0]].tolist() == [2, 4]
        assert not b["ignore_boxes"].any()
        turned = b["image"].shape[2:] == (192, 128)
        assert turned <= (resize == "short_side" and "rotate90_ratio" in more)
        height, width = b["image_size"][0].astype(int)
        assert max(height / b["image"].shape[2], width / b["image"].shape[3]) == 1
        if "aug_prob" in more:
            continue
        red = (b["image"][0, 0, :height, :width] > 0).astype(np.uint8)
        count, _, found, _ = cv2.connectedComponentsWithStats(red)
        assert count == 3
        seen = sorted([x, y, x + w, y + h] for x, y, w, h, _ in found[1:].tolist())
        np.testing.assert_allclose(sorted(b["gt_boxes"][0, :2].tolist()), seen, atol=1.6)
        assert (b["gt_masks"][0, :2, 2:-2, 2:-2] > 127).mean() > 0.97


def test_no_object_left(data, own):
    none = HEAD + "    return image, boxes[:0], labels[:0], []\n"
    assert not any(b["gt_valid"].any() for b in batches(data(own(none))).values())


RANDOM = HEAD + "    image = np.roll(image, int(random.integers(60)), 1)\n" + BACK


@pytest.mark.parametrize("overrides", [{}, {"num_parallel_workers": 2, "python_multiprocessing": True}], ids=str)
def test_its_draws_repeat(data, own, overrides):
    config = data(own(RANDOM), **overrides)
    first = batches(config)
    same(first, batches(config))
    later = batches(config, 0, 1)
    same({i: first[i] for i in later}, later)
    other = batches(config, 1)
    assert any(not np.array_equal(first[i]["image"], other[i]["image"]) for i in first)


def test_its_draws_are_not_those_of_what_comes_after(shapes_config, own):
    """Else what it decides by its first draw would decide whether the image is expanded."""
    text = HEAD + "    image[:] = 0 if random.random() < 0.5 else 255\n" + BACK
    named = {"expand_ratio": 0.5, "expand_range": [2.0, 2.0], "img_height": 128, "img_width": 192}
    config = shapes_config(transform=own(text), **named)
    folder, seen = ensure_mindrecord(config, "train", training=True), set()
    for batch in TrainLoader(config, folder).epoch(0):
        for image, (height, width) in zip_equal(batch["image"][:, 0], batch["image_size"].astype(int)):
            picture = image[:height, :width]
            # the mean colour around it is 0 there
            seen.add((picture.min() < -1, np.abs(picture).min() < 0.1))
    assert seen == {(False, False), (False, True), (True, False), (True, True)}


def test_evaluation_goes_without(data, own):
    config = data(own(FLIP), test_batch_size=3)
    folder = ensure_mindrecord(config, "train", training=True)
    plain = next(iter(EvalLoader(dataclasses.replace(config, transform=""), folder)))
    np.testing.assert_array_equal(next(iter(EvalLoader(config, folder)))["image"], plain["image"])


WRONG = {
    "no tuple": ("    return image\n", "returned uint8 (40, 60, 3), not (image, boxes, labels, masks)"),
    "nothing": ("    return\n", "returned None, not (image, boxes"),
    "floats": ("    image = image / 255\n", "returned float64 (40, 60, 3) as image, not uint8 (H, W, 3)"),
    "grey": ("    image = image[:, :, 0]\n", "returned uint8 (40, 60) as image"),
    "no pixel": ("    image = image[:0]\n", "returned uint8 (0, 60, 3) as image"),
    "list": ("    boxes = boxes.tolist()\n", "as boxes, not float32 (N, 4)"),
    "doubles": ("    boxes = boxes.astype(float)\n", "returned float64", "as boxes, not float32 (N, 4)"),
    "columns": ("    boxes = boxes[:, :3]\n", "3) as boxes, not float32 (N, 4)"),
    "fewer labels": ("    labels = labels[:0]\n", "returned int32 (0,) as labels, not integers", "one a box"),
    "float labels": ("    labels = labels * 1.0\n", "returned float64", "as labels, not integers"),
    "class": ("    labels = labels + 5\n", "label 0 is 6, none of 0..5"),
    "nan": ("    boxes[0, 1] = np.nan\n", "box 0 [10.0, nan, 30.0, 25.0] isn't finite"),
    "beyond": ("    boxes[0, 2] = 61.5\n", "box 0 [10.0, 10.0, 61.5, 25.0] reaches beyond its 60 x 40 image"),
    "outside": ("    boxes[0] = [-1, 3, 0, 9]\n", "has no area inside its 60 x 40 image"),
    "reversed": ("    boxes = boxes[:, [2, 1, 0, 3]]\n", "box 0 [30.0, 10.0, 10.0, 25.0] has no area"),
    "no masks": ("    masks = None\n", "returned None as masks, not a list of"),
    "fewer masks": ("    masks = masks[:-1]\n", "as masks, not a list of", "one a box"),
    "bools": ("    masks = [m > 0 for m in masks]\n", "mask 0 is bool (40, 60), not uint8 (40, 60)"),
    "mask size": ("    image = image[:38]\n", "mask 0 is uint8 (40, 60), not uint8 (38, 60)"),
    "levels": ("    masks = [m * 255 for m in masks]\n", "mask 0 holds 255; masks are 0 or 1"),
    "masks left": ("    boxes[:] = [0, 0, 9, 9]\n", "mask 0 has no pixel inside box 0; change both alike"),
    "empty": ("    masks = [m * 0 for m in masks]\n", "mask 0 is empty; leave the object out"),
}


@pytest.mark.parametrize(("body", "told"), [(v[0], v[1:]) for v in WRONG.values()], ids=WRONG)
@pytest.mark.parametrize("on_bad_image", ["stop", "skip"])
def test_what_comes_back_is_checked(data, own, refusal, body, told, on_bad_image):
    """Whatever is done with bad images: it isn't theirs."""
    name = own(HEAD + body + BACK)
    with refusal(TransformError, f"transform {name}, on image ", ".jpg)", *told):
        batches(data(name, on_bad_image=on_bad_image))


def test_annotations_whose_mask_is_beside_the_box_are_no_fault_of_it(data, own, coco_folder):
    coco_folder.add_object(2, (40, 20, 10, 10), segmentation=[[5.0, 30, 12, 30, 12, 38, 5, 38]])
    coco_folder.write()
    assert batches(data(own(NOTHING)))[2]["gt_valid"].sum() == 2


def test_too_many_objects(data, own, refusal):
    many = "    return image, np.repeat(boxes[:1], 9, 0), np.repeat(labels[:1], 9), masks[:1] * 9\n"
    with refusal(TransformError, "9 objects, more than max_instance_count 8; raise it"):
        batches(data(own(HEAD + many), max_instance_count=8))


def test_masks_where_there_are_none(data, own, refusal):
    body = "    return image, boxes, labels, [image[:, :, 0] for _ in boxes]\n"
    with refusal(TransformError, "as masks, where None was given"):
        batches(data(own(HEAD + body), detector="faster_rcnn"))


RAISING = {
    "own": ("    raise KeyError('no\\nsuch')\n", 3, "KeyError: "),
    "deeper": ("    helper()\ndef helper():\n    return 1 / 0\n", 5, "ZeroDivisionError: division by zero"),
    "a library's": ("    import cv2\n    cv2.resize(image, (0, 0))\n", 4, "error: "),
    "numpy's": ("    np.concatenate([boxes, labels])\n", 3, "ValueError: all the input array"),
    "exit": ("    raise SystemExit(3)\n", 3, "SystemExit: 3"),
}


@pytest.mark.parametrize(("body", "line", "error"), RAISING.values(), ids=RAISING)
@pytest.mark.parametrize("on_bad_image", ["stop", "skip"])
def test_what_it_raises_is_told_with_its_line(data, own, refusal, body, line, error, on_bad_image):
    name = own(HEAD + body)
    with refusal(TransformError, f"{name.rpartition(':')[0]}, line {line}: {error}", ", on image ", ".jpg)"):
        batches(data(name, on_bad_image=on_bad_image))


# Finding it


def test_a_module(data, tmp_path, monkeypatch):
    (tmp_path / "own_module.py").write_text(FLIP)
    monkeypatch.syspath_prepend(tmp_path)
    got, file = batches(data("own_module:change")), batches(data(f"{tmp_path}/own_module.py:change"))
    same(got, file)
    monkeypatch.delitem(sys.modules, "own_module")


def test_a_file_changed_at_once_is_read_anew(own):
    """Within a second and of the same length: Python's import would run what it had compiled."""
    first, second = (load_transform(own(HEAD + f"    return {i}\n")) for i in (1, 2))
    assert second.function(0, 0, 0, 0, 0) == 2
    assert first.fingerprint != second.fingerprint
    assert second.fingerprint == load_transform(second.name).fingerprint


def test_a_file_that_has_dataclasses(own):
    text = "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass A:\n    b: int = 3\n"
    assert callable(load_transform(own(text + NOTHING)).function)


@pytest.mark.parametrize("name", ["own", "own.py", ":change", "own.py:", "a b:c", "own.py:a-b", "own.txt:", "./own:f"])
def test_names_of_no_function(name, refusal):
    with refusal(ConfigError, f"transform: {name!r}", "path/to/file.py:function"):
        load_transform(name)


def test_what_cannot_be_loaded(own, tmp_path, refusal, monkeypatch):
    with refusal(ConfigError, "transform: ", "none.py", "No such file"):
        load_transform(f"{tmp_path}/none.py:change")
    with refusal(ConfigError, "no module nowhere_at.all", "path/to/file.py:change"):
        load_transform("nowhere_at.all:change")
    with refusal(ConfigError, "own.py has no function other; it has change"):
        load_transform(own(NOTHING).replace(":change", ":other"))
    with refusal(ConfigError, "own.py, line 2: SyntaxError"):
        load_transform(own("import os\ndef change(:\n"))
    with refusal(ConfigError, "own.py, line 1: ModuleNotFoundError: No module named 'nowhere_at'"):
        load_transform(own("import nowhere_at\n"))
    monkeypatch.syspath_prepend(tmp_path)
    own("import os\nos.nothing\n", "own_other.py")
    with refusal(ConfigError, "own_other.py, line 2: AttributeError"):
        load_transform("own_other:change")


def test_it_is_looked_for_before_all_else(data, tmp_path, refusal):
    config = data(f"{tmp_path}/none.py:change")
    with refusal(ConfigError, "none.py", "No such file"):
        train.checked(config)
    assert not Path(config.mindrecord_dir).exists()


def test_resuming_tells_a_changed_file(data, own, capsys):
    tiny = {k.replace(".", "__"): v for k, v in TINY.items()}
    config = data(own(NOTHING), epoch_size=1, **tiny)
    folder, loss = ensure_mindrecord(config, "train", training=True), build_loss(config, build_detector(config))

    def begin(resume):
        trainer = Trainer(config, loss, TrainLoader(config, folder), resume=resume)
        return trainer, capsys.readouterr().out

    trainer, _ = begin(resume=False)
    trainer.folder.make()
    trainer.state.step = 1
    trainer.save()
    before = trainer.state.transform
    assert "other settings" not in begin(resume=True)[1]
    own(NOTHING + "# changed\n")
    trainer, said = begin(resume=True)
    now = load_transform(config.transform).fingerprint
    assert now != before
    assert "resuming with other settings" in said
    assert f"own.py:change {before} -> {now}" in said
    # told once: what is saved from here on was made with the new one
    trainer.state.step = 2
    trainer.save()
    assert "other settings" not in begin(resume=True)[1]
