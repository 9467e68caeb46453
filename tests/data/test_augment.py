"""Augmentation: boxes, masks and image stay together, whatever the chain; draws repeat."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from src.config import Config
from src.data.augment import CUSTOM, sample_generator
from src.data.augment.colour import photometric_distortion
from src.data.augment.geometry import draw_view
from src.data.augment.instaboost import instaboost
from src.data.scene import Scene
from src.data.transforms import View, crop_mask, fit_size, prepare_image, tight_box, to_bitmap, visible_objects

CANVAS = (192, 256)
CHAINS = {
    "resize": {},
    "larger": {"ratio_range": [1.2, 2.5]},
    "smaller": {"ratio_range": [0.5, 0.9]},
    "jitter": {"ratio_range": [0.1, 2.0], "fixed_size_crop": True},
    "crop": {"crop_ratio": 1.0},
    "expand": {"expand_ratio": 1.0},
    "all": {"ratio_range": [0.5, 2.0], "crop_ratio": 0.5, "expand_ratio": 0.5, "photo_ratio": 0.5},
    "instaboost": {"aug_prob": 1.0, "theta": [-20.0, 20.0], "action_prob": [0.6, 0.4, 0.0]},
    "instaboost, all": {"aug_prob": 1.0, "heatmap_flag": True, "ratio_range": [0.5, 2.0], "crop_ratio": 0.5},
}


def config_with(**values):
    config = Config()
    config.img_height, config.img_width = CANVAS
    for name, value in values.items():
        setattr(config, name, value)
    return config


def random_objects(random, height, width, as_rle):
    """Boxes (N, 4) and masks of 1 to 5 random blobs, some of two parts."""
    boxes, masks = [], []
    for _ in range(random.integers(1, 6)):
        parts, centre = [], random.uniform([5, 5], [width - 5, height - 5])
        for _ in range(random.integers(1, 3)):
            # without spikes, of which a drawing's pixels show more or less
            angles = np.arange(12) * 2 * np.pi / 12 + random.uniform(-0.1, 0.1, 12)
            radius = random.uniform(5, 0.4 * height) * random.uniform(0.8, 1.2, 12)
            points = centre + radius[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])
            parts.append(points.clip(0, [width, height]).ravel().tolist())
            centre = centre + random.uniform(-15, 15, 2)
        coded = rle.merge(rle.frPyObjects(parts, height, width))
        x, y, w, h = rle.toBbox(coded)
        if w < 3 or h < 3:
            continue
        points = np.concatenate([np.reshape(p, (-1, 2)) for p in parts])
        boxes.append([x, y, x + w, y + h] if as_rle else [*points.min(0), *points.max(0)])
        masks.append(coded if as_rle else parts)
    return np.array(boxes, np.float32).reshape(-1, 4), masks


def warped(bitmap, view, canvas=CANVAS):
    """The independent route: a bitmap of the image, moved to the canvas by one warp of pixel centres."""
    sx, sy = view.scale
    x1, y1 = view.window[:2]
    to_canvas = np.array([[sx, 0, sx * (0.5 - x1) - 0.5], [0, sy, sy * (0.5 - y1) - 0.5]])
    if view.flip:
        to_canvas[0] = [-sx, 0, view.left + view.size[1] - 1 - to_canvas[0, 2]]
    out = cv2.warpAffine(bitmap.astype(np.float32), to_canvas, canvas[::-1], flags=cv2.INTER_LINEAR)
    out[view.size[0] :] = 0
    out[:, view.left + view.size[1] :] = 0
    out[:, : view.left] = 0
    return out > 0.5


def pasted(crop, box, canvas=CANVAS):
    """A crop (S, S) stretched over its box, by one warp."""
    step = (box[2:] - box[:2]) / crop.shape[0]
    to_canvas = np.array([[step[0], 0, box[0] + 0.5 * step[0] - 0.5], [0, step[1], box[1] + 0.5 * step[1] - 0.5]])
    return cv2.warpAffine(crop.astype(np.float32), to_canvas, canvas[::-1], flags=cv2.INTER_LINEAR) > 127


@pytest.mark.parametrize("as_rle", [False, True], ids=["polygons", "rle"])
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_boxes_and_masks_are_those_of_the_warped_mask(chain, as_rle):
    config = config_with(**chain)
    compared, lost = 0, 0
    for seed in range(25):
        random = np.random.default_rng([seed, as_rle])
        height, width = (int(v) for v in random.integers(60, 240, 2))
        boxes, masks = random_objects(random, height, width, as_rle)
        scene = Scene(random.integers(0, 256, (height, width, 3)).astype(np.uint8), boxes, masks)
        if config.aug_prob:
            scene, _ = instaboost(scene, config, random)
        view = draw_view(config, height, width, scene.boxes, bool(random.random() < 0.5), random)
        rows, seen = visible_objects(view, scene.boxes, scene.masks, height, width)
        on_canvas = view.to_canvas(seen)
        assert (on_canvas >= np.array([view.left, 0] * 2) - 1e-3).all()
        assert (on_canvas <= np.array([view.left + view.size[1], view.size[0]] * 2) + 1e-3).all()
        # an image pixel takes this many canvas pixels: an RLE's outline, and the bitmap here, is no finer
        pixel = max(1.0, *view.scale.tolist())
        for i, mask in enumerate(scene.masks):
            expected = warped(to_bitmap(mask, height, width), view)
            if i not in rows:
                # what was dropped shows as a sliver at most: narrower than two pixels
                x, y, w, h = cv2.boundingRect(expected.astype(np.uint8))
                assert min(w, h) <= 2 * pixel
                lost += 1
                continue
            row = int(np.flatnonzero(rows == i)[0])
            x, y, w, h = cv2.boundingRect(expected.astype(np.uint8))
            # thin parts vanish from one drawing or the other
            if min(w, h) < 8 * pixel:
                continue
            # the outline is rounded to a pixel in the bitmap, and to one where a window cuts a polygon
            assert np.abs(on_canvas[row] - [x, y, x + w, y + h]).max() <= 1.5 * pixel + 0.5
            crop = crop_mask(mask, seen[row], height, width, 112)
            crop = crop[:, ::-1] if view.flip else crop
            got = pasted(np.ascontiguousarray(crop), on_canvas[row])
            # they may differ along the outline, by a pixel of the image or a cell of the crop to either side
            cell = max(on_canvas[row][2:] - on_canvas[row][:2]) / 112
            kernel = np.ones((2 * int(np.ceil(pixel + cell)) + 1,) * 2, np.uint8)
            outer = cv2.dilate(expected.astype(np.uint8), kernel).astype(bool)
            inner = cv2.erode(expected.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
            # a notch narrower than a pixel closes in one drawing or the other
            assert (got & ~outer).sum() <= 0.005 * expected.sum()
            assert (inner & ~got).sum() <= 0.005 * expected.sum()
            compared += 1
    assert compared > 20
    assert lost < compared


@pytest.mark.parametrize("chain", [c for c in CHAINS.values() if "photo_ratio" not in c], ids=str)
def test_image_follows_the_boxes(chain):
    """A bright object on black is where its box says, in the picture that the network gets."""
    config = config_with(**chain | {"aug_prob": 0.0})
    seen_some = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        height, width = (int(v) for v in random.integers(60, 240, 2))
        image = np.zeros((height, width, 3), np.uint8)
        x, y = (int(random.integers(0, v - 30)) for v in (width, height))
        image[y : y + 24, x : x + 30] = 255
        view = draw_view(config, height, width, np.float32([[x, y, x + 30, y + 24]]), bool(seed % 2), random)
        rows, seen = visible_objects(view, np.float32([[x, y, x + 30, y + 24]]), None, height, width)
        if not len(rows):
            continue
        picture, size = prepare_image(image, config, view=view)
        bright = picture[0] > (200 - config.img_mean[0]) / config.img_std[0]
        x1, y1, x2, y2 = view.to_canvas(seen)[0]
        got = cv2.boundingRect(bright.astype(np.uint8))
        # a bright pixel is one above 200 of 255, so edges move by a part of an image pixel's size on the canvas
        tolerance = 1 + 0.5 * max(view.scale)
        assert np.abs(np.array([got[0], got[1], got[0] + got[2], got[1] + got[3]]) - [x1, y1, x2, y2]).max() < tolerance
        assert size == view.size
        seen_some += 1
    assert seen_some > 10


def test_a_concave_mask_around_a_crop_is_gone():
    """A ring's box covers the window in its middle; its mask doesn't."""
    ring = [[0, 0, 100, 0, 100, 100, 0, 100, 0, 90, 90, 90, 90, 10, 0, 10]]
    boxes = np.float32([[0, 0, 100, 100]])
    view = View((20, 20, 80, 80), (60, 60))
    for mask in (ring, rle.merge(rle.frPyObjects(ring, 100, 100))):
        assert visible_objects(view, boxes, [mask], 100, 100)[0].tolist() == []
        # without masks its box says that it is there
        assert visible_objects(view, boxes, None, 100, 100)[0].tolist() == [0]
        assert tight_box(mask, np.array([0, 0, 50, 100.0]), np.ones(2), 100, 100) is not None


def test_a_cut_object_gets_the_box_of_what_is_left():
    triangle = [[0.0, 0.0, 100.0, 100.0, 0.0, 100.0]]
    boxes = np.float32([[0, 0, 100, 100]])
    rows, seen = visible_objects(View((0, 0, 100, 40), (80, 200)), boxes, [triangle], 100, 100)
    assert rows.tolist() == [0]
    # to a canvas pixel, which is half an image pixel here
    np.testing.assert_allclose(seen[0], [0, 0, 40, 40], atol=0.5)


def test_narrow_remains_are_dropped():
    boxes = np.float32([[0, 0, 50, 50], [0, 0, 50, 50.9]])
    squares = [[[0.0, 0.0, 50.0, 0.0, 50.0, b, 0.0, b]] for b in (50.0, 50.9)]
    view = View((0, 49, 100, 99), (25, 50))
    for masks in (squares, None):
        # half a canvas pixel is left of the first, and less than one of the second
        assert visible_objects(view, boxes, masks, 100, 100)[0].tolist() == []
    wider = View((0, 40, 100, 90), (25, 50))
    assert visible_objects(wider, boxes, squares, 100, 100)[0].tolist() == [0, 1]


def test_without_options_the_whole_image_is_shown():
    config = config_with()
    view = draw_view(config, 100, 333, np.zeros((0, 4), np.float32), True, np.random.default_rng(0))
    assert view == View((0, 0, 333, 100), fit_size(100, 333, config), True)
    image = np.random.default_rng(0).integers(0, 256, (100, 333, 3)).astype(np.uint8)
    np.testing.assert_array_equal(prepare_image(image, config, view=view)[0], prepare_image(image, config, True)[0])


def test_sizes_stay_within_the_canvas():
    random = np.random.default_rng(0)
    for keep in (True, False):
        config = config_with(ratio_range=[0.05, 20.0], crop_ratio=0.5, expand_ratio=0.5, keep_ratio=keep)
        for _ in range(300):
            height, width = (int(v) for v in np.exp(random.uniform(0, 8, 2)))
            view = draw_view(config, height, width, np.float32([[0, 0, width, height]]), False, random)
            assert 1 <= view.size[0] <= CANVAS[0]
            assert 1 <= view.size[1] <= CANVAS[1]
            assert view.window[0] < view.window[2]
            assert view.window[1] < view.window[3]


def test_proportions_are_kept_by_all_changes_of_size():
    random = np.random.default_rng(0)
    config = config_with(ratio_range=[0.5, 2.0], crop_ratio=0.5, expand_ratio=0.5)
    for _ in range(100):
        view = draw_view(config, 400, 600, np.float32([[200, 100, 400, 300]]), False, random)
        # sides are rounded to whole pixels of the image and of the canvas
        slack = 1 / min(view.size) + 1 / min(view.window[2] - view.window[0], view.window[3] - view.window[1])
        assert abs(view.scale[0] / view.scale[1] - 1) < slack


def test_crops_keep_an_object():
    random = np.random.default_rng(0)
    config = config_with(ratio_range=[8.0, 10.0], crop_ratio=1.0, crop_range=[0.05, 0.3])
    boxes = np.float32([[700, 20, 720, 50]])
    for _ in range(50):
        view = draw_view(config, 600, 900, boxes, False, random)
        assert visible_objects(view, boxes, None, 600, 900)[0].tolist() == [0]


def test_expansion_surrounds_with_the_mean_colour():
    config = config_with(expand_ratio=1.0, expand_range=[2.0, 2.0])
    view = draw_view(config, 96, 128, np.zeros((0, 4)), False, np.random.default_rng(0))
    picture, size = prepare_image(np.zeros((96, 128, 3), np.uint8), config, view=view)
    assert size == CANVAS
    x, y = -view.window[0], -view.window[1]
    outside = np.ones(CANVAS, bool)
    outside[y : y + 96, x : x + 128] = False
    # the mean is rounded to a byte
    assert np.abs(picture[:, outside]).max() < 0.5 / min(config.img_std)
    assert picture[0, y + 48, x + 64] == pytest.approx(-config.img_mean[0] / config.img_std[0])


# Colours


def test_photometric_distortion_changes_colours_alone():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    before, changed = image.copy(), 0
    for seed in range(20):
        out = photometric_distortion(image, np.random.default_rng(seed))
        assert (out.shape, out.dtype) == (image.shape, image.dtype)
        changed += not np.array_equal(out, image)
        np.testing.assert_array_equal(out, photometric_distortion(image, np.random.default_rng(seed)))
    np.testing.assert_array_equal(image, before)
    assert changed >= 15


def test_photometric_distortion_is_of_the_published_strength():
    """A grey image only changes in brightness: by 32 at most, then by half or one and a half at most."""
    image = np.full((8, 8, 3), 100, np.uint8)
    values = [int(photometric_distortion(image, np.random.default_rng(s))[0, 0, 0]) for s in range(300)]
    assert min(values) >= (100 - 32) * 0.5 - 1
    assert max(values) <= (100 + 32) * 1.5 + 1
    assert min(values) < 60
    assert max(values) > 160


def test_generators_differ_by_seed_epoch_image_occurrence_and_stream():
    keys = [(1, 0, 5), (2, 0, 5), (1, 1, 5), (1, 0, 6), (1, 0, -5), (1, 0, 5, 1), (1, 0, 5, 2), (1, 0, 5, 0, CUSTOM)]
    draws = [tuple(sample_generator(*k).random(4)) for k in keys]
    assert len(set(draws)) == len(keys)
    assert draws[0] == tuple(sample_generator(1, 0, 5).random(4))
