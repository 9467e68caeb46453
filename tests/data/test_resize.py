"""The size at which pictures are shown: that of the frameworks whose checkpoints are loaded, for both orientations."""

import math

import cv2
import numpy as np
import pytest
from PIL import Image

from src.config import load_config
from src.data.loader import EvalLoader, TrainLoader, grouped
from src.data.mindrecord import ensure_mindrecord
from src.data.transforms import canvas_shown, canvas_size, fit_size, prepare_image
from src.runtime.newer import zip_equal

SIZES = [(480, 640), (640, 480), (427, 640), (612, 612), (333, 500), (500, 333), (100, 1000), (1000, 100), (2448, 3264)]


@pytest.fixture(scope="module")
def config():
    def make(**overrides):
        named = {"resize": "short_side", "img_height": 800, "img_width": 1344}
        return load_config("configs/mask_rcnn_r50_fpn.yaml", named | overrides)

    return make


def torchvision_size(height, width):
    """GeneralizedRCNNTransform and interpolate with recompute_scale_factor."""
    scale = min(800 / min(height, width), 1333 / max(height, width))
    return math.floor(height * scale), math.floor(width * scale)


def detectron2_size(h, w):
    """ResizeShortestEdge.get_output_shape."""
    size = 800 * 1.0
    scale = size / min(h, w)
    new_h, new_w = (size, scale * w) if h < w else (scale * h, size)
    if max(new_h, new_w) > 1333:
        scale = 1333 * 1.0 / max(new_h, new_w)
        new_h, new_w = new_h * scale, new_w * scale
    return int(new_h + 0.5), int(new_w + 0.5)


def mmdetection_size(h, w):
    """mmcv.rescale_size with scale (1333, 800)."""
    factor = min(1333 / max(h, w), 800 / min(h, w))
    return int(h * factor + 0.5), int(w * factor + 0.5)


def benchmark_size(h, w):
    """maskrcnn_benchmark.data.transforms.Resize.get_size."""
    size, short, long = 800, float(min(h, w)), float(max(h, w))
    if long / short * size > 1333:
        size = int(round(1333 * short / long))
    if size in (w, h) and size == short:
        return h, w
    return (int(size * h / w), size) if w < h else (size, int(size * w / h))


FAMILIES = {
    "floor": torchvision_size,
    "nearest": mmdetection_size,
    "short_first": benchmark_size,
}


@pytest.mark.parametrize("rounding", FAMILIES)
def test_sides_are_those_of_the_framework(config, rounding):
    c = config(resize_rounding=rounding)
    random = np.random.default_rng(1)
    for h, w in [*SIZES, *random.integers(20, 4000, (3000, 2)).tolist()]:
        wanted = np.clip(FAMILIES[rounding](h, w), 1, (1344, 800) if h > w else (800, 1344))
        assert fit_size(h, w, c) == tuple(wanted), (h, w)


def test_detectron2_rounds_as_mmdetection(config):
    c = config()
    random = np.random.default_rng(2)
    assert all(fit_size(h, w, c) == detectron2_size(h, w) for h, w in random.integers(50, 2000, (3000, 2)).tolist())


def test_upright_pictures_are_as_large_as_the_others(config):
    """On the one canvas they would have 0.6 of the size."""
    c = config()
    for h, w in SIZES:
        assert canvas_size(h, w, c) == ((1344, 800) if h > w else (800, 1344))
        assert fit_size(h, w, c) == fit_size(w, h, c)[::-1]
    assert canvas_size(640, 480, load_config("configs/mask_rcnn_r50_fpn.yaml")) == (768, 1280)


def test_a_smaller_canvas_bounds_the_picture(config):
    c = config(img_height=256, img_width=320)
    assert fit_size(480, 640, c) == (240, 320)
    assert fit_size(640, 480, c) == (320, 240)
    assert prepare_image(np.zeros((640, 480, 3), np.uint8), c)[0].shape == (3, 320, 256)


def test_a_canvas_of_its_own_is_what_the_picture_is_padded_to(config):
    """torchvision's batch_images and Detectron2's ImageList, of one picture."""
    c = config(test_canvas="picture")
    for h, w in SIZES:
        high, wide = (-(-side // 32) * 32 for side in fit_size(h, w, c))
        assert canvas_shown(h, w, c) == (high, wide) == prepare_image(np.zeros((h, w, 3), np.uint8), c)[0].shape[1:]
    assert canvas_shown(480, 640, c) == (800, 1088)
    # never more than the config's
    assert canvas_shown(480, 640, config(test_canvas="picture", img_height=256, img_width=320)) == (256, 320)


@pytest.mark.parametrize("size", [(300, 410), (37, 53), (1200, 900)])
def test_antialiased_resizing_is_pillows(config, size):
    c = config(
        resize_filter="antialias", img_mean=[0, 0, 0], img_std=[1, 1, 1], to_rgb=False, img_height=192, img_width=256
    )
    image = np.random.RandomState(3).randint(0, 256, (*size, 3)).astype(np.uint8)
    canvas, (h, w) = prepare_image(image, c)
    wanted = np.asarray(Image.fromarray(image[:, :, ::-1]).resize((w, h), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(canvas[::-1, :h, :w].transpose(1, 2, 0), wanted)


@pytest.mark.parametrize("size", [(300, 410), (37, 53), (1200, 900), (1, 9)])
def test_unrounded_resizing_is_that_of_floats(config, size):
    """OpenCV's of float32, which is PyTorch's interpolate without aligned corners."""
    c = config(
        resize_filter="unrounded", img_mean=[0, 0, 0], img_std=[1, 1, 1], to_rgb=False, img_height=192, img_width=256
    )
    image = np.random.RandomState(3).randint(0, 256, (*size, 3)).astype(np.uint8)
    canvas, (h, w) = prepare_image(image, c)
    wanted = cv2.resize(image.astype(np.float32), (w, h), interpolation=cv2.INTER_LINEAR)
    # OpenCV has places in float32, 6e-5 of a pixel apart at 1000
    np.testing.assert_allclose(canvas[:, :h, :w].transpose(1, 2, 0), wanted, atol=0.02)


def test_groups_hold_one_orientation_each():
    order = np.array([7, 3, 1, 9, 5, 0, 2, 8])
    upright = np.array([0, 1, 0, 1, 1, 0, 0, 0], bool)
    assert grouped(order, upright, 2).tolist() == [7, 1, 3, 9, 0, 2]


@pytest.fixture
def mixed(coco_folder, coco_config):
    """Nine images, four of them upright, one of these damaged on request; a config that turns the canvas for them."""
    for i in range(6):
        name = coco_folder.add_image(*((60, 40) if i % 2 == 0 else (40, 60)))
        coco_folder.add_object(name, (5, 5, 20, 20))
    name = coco_folder.add_image(60, 40)
    coco_folder.add_object(name, (5, 5, 20, 20))
    coco_folder.write()

    def make(**overrides):
        named = {
            "resize": "short_side",
            "img_height": 128,
            "img_width": 192,
            "batch_size": 2,
            "train_empty_images": True,
        }
        return coco_config(**named | overrides)

    return make


def batches(config, epoch=0, start=0, rank=0, ranks=1):
    folder = ensure_mindrecord(config, "train", training=True)
    return list(TrainLoader(config, folder, rank, ranks).epoch(epoch, start))


def test_batches_hold_one_orientation_each(mixed):
    config = mixed()
    shapes = {b["image"].shape[2:] for b in batches(config)}
    assert shapes == {(128, 192), (192, 128)}
    for b in batches(config):
        upright = b["image"].shape[2] > b["image"].shape[3]
        assert ((b["image_size"][:, 0] > b["image_size"][:, 1]) == upright).all()
        # filled: a 60 x 40 picture is 192 x 128 there, too
        assert b["image_size"].max() == 192


@pytest.mark.parametrize(
    "overrides", [{}, {"ratio_range": [0.7, 1.4], "crop_ratio": 1.0, "expand_ratio": 0.5}], ids=str
)
def test_training_goes_on_within_an_epoch(mixed, overrides):
    config = mixed(**overrides)
    whole = batches(config, epoch=1)
    assert len(whole) == 5
    for start in range(1, 5):
        for a, b in zip_equal(batches(config, 1, start), whole[start:]):
            assert all(np.array_equal(a[k], b[k]) for k in a)


def test_ranks_have_the_same_orientation_at_each_step(mixed):
    mine, other = (batches(mixed(batch_size=1), rank=r, ranks=2) for r in (0, 1))
    assert [b["image"].shape for b in mine] == [b["image"].shape for b in other]
    assert not {int(b["image_id"][0]) for b in mine} & {int(b["image_id"][0]) for b in other}


def test_evaluation_gives_every_image_once_in_batches_of_one_orientation(mixed):
    config = mixed(test_batch_size=2)
    loader = EvalLoader(config, ensure_mindrecord(config, "train", training=True))
    found = list(loader)
    assert len(found) == len(loader) == 5
    ids = np.concatenate([b["image_id"][b["valid"]] for b in found])
    assert sorted(ids) == list(range(1, 11))
    assert [b["image"].shape[2:] for b in found] == [(128, 192)] * 3 + [(192, 128)] * 2


def test_evaluation_on_canvases_of_their_own(mixed, coco_folder):
    coco_folder.add_image(60, 60)
    coco_folder.write()
    config = mixed(test_batch_size=2, test_canvas="picture", short_side=100, long_side=170)
    found = list(EvalLoader(config, ensure_mindrecord(config, "train", training=True)))
    ids = np.concatenate([b["image_id"][b["valid"]] for b in found])
    assert sorted(ids) == list(range(1, 12))
    # 100 x 100, 100 x 150 and 150 x 100
    assert [b["image"].shape[2:] for b in found] == [(128, 128)] + [(128, 160)] * 3 + [(160, 128)] * 2


def test_objects_are_where_they_were(mixed):
    """On the turned canvas: the box of an object, in pixels of the picture."""
    for b in batches(mixed(flip_ratio=0.0)):
        scale = b["image_size"] / ([[60, 40]] if b["image"].shape[2] > b["image"].shape[3] else [[40, 60]])
        for i, image_id in enumerate(b["image_id"]):
            if image_id > 3:
                box = b["gt_boxes"][i, 0] / np.tile(scale[i, ::-1], 2)
                np.testing.assert_allclose(box, [5, 5, 25, 25], atol=1e-4)


def test_a_group_too_small_for_a_batch_is_told(mixed):
    config = mixed(batch_size=5)
    loader = TrainLoader(config, ensure_mindrecord(config, "train", training=True))
    assert any("4 upright images never train" in line for line in loader.never_trained())
    assert len(loader) == 1


def test_pictures_turned_by_exif(coco_folder, coco_config):
    """Annotated upright: the sample is the turned picture, its canvas that of an upright one."""
    path = coco_folder.images / "000000000001.jpg"
    noise = cv2.imread(str(path))
    image = Image.fromarray(noise[:, :, ::-1])
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif, quality=100, subsampling=0)
    entry = coco_folder.data["images"][0]
    entry["height"], entry["width"] = 60, 40
    coco_folder.write()
    config = coco_config(resize="short_side", img_height=128, img_width=192, test_batch_size=1)
    folder = ensure_mindrecord(config, "train", training=True)
    first = [b for b in EvalLoader(config, folder) if b["image_id"][0] == 1][0]
    assert first["original_size"][0].tolist() == [60, 40]
    stored = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    wanted, _ = prepare_image(cv2.rotate(stored, cv2.ROTATE_90_CLOCKWISE), config)
    np.testing.assert_array_equal(first["image"][0], wanted)
