"""Masks of detections in their image, both conventions, against plain loops."""

import math

import numpy as np
import pytest
from pycocotools import mask as rle

from src.evaluation.masks import paste_masks

HEIGHT, WIDTH = 45, 70


def bilinear(mask, y, x, outside):
    """Value between the four cells about (y, x); beyond the mask its edge's value, or `outside`."""
    side = len(mask)
    top, left = math.floor(y), math.floor(x)
    total = 0.0
    for row, weight_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, weight_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            if outside is None:
                value = mask[min(max(row, 0), side - 1), min(max(column, 0), side - 1)]
            else:
                value = mask[row, column] if 0 <= row < side and 0 <= column < side else outside
            total += weight_y * weight_x * value
    return total


def torchvision_values(mask, box):
    """Probability of each pixel: pad by a cell, enlarge the box alike, whole pixels, resize (align_corners false)."""
    side = len(mask)
    padded = np.pad(mask.astype(np.float64), 1)
    grow = (side + 2) / side
    cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half_w, half_h = (box[2] - box[0]) / 2 * grow, (box[3] - box[1]) / 2 * grow
    x1, y1, x2, y2 = (int(v) for v in (cx - half_w, cy - half_h, cx + half_w, cy + half_h))
    w, h = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    out = np.zeros((HEIGHT, WIDTH))
    for y in range(max(y1, 0), min(y2 + 1, HEIGHT)):
        for x in range(max(x1, 0), min(x2 + 1, WIDTH)):
            at_y = max((y - y1 + 0.5) * (side + 2) / h - 0.5, 0)
            at_x = max((x - x1 + 0.5) * (side + 2) / w - 0.5, 0)
            out[y, x] = bilinear(padded, at_y, at_x, None)
    return out


def grid_values(mask, box):
    """Probability of each pixel: the mask at the pixel's centre over the unrounded box, zero outside."""
    side = len(mask)
    x1, y1, x2, y2 = box
    out = np.zeros((HEIGHT, WIDTH))
    if x2 <= x1 or y2 <= y1:
        return out
    for y in range(HEIGHT):
        for x in range(WIDTH):
            at_y, at_x = (y + 0.5 - y1) / (y2 - y1) * side - 0.5, (x + 0.5 - x1) / (x2 - x1) * side - 0.5
            if -1 < at_y < side and -1 < at_x < side:
                out[y, x] = bilinear(mask.astype(np.float64), at_y, at_x, 0.0)
    return out


VALUES = {"torchvision": torchvision_values, "grid": grid_values}
# quarters and eighths: a corner on a whole pixel after enlarging could be truncated either way in float32
BOXES = {
    "inside": [10.25, 5.5, 40.75, 30.125],
    "off the left and top": [-12.5, -7.25, 20.5, 18.75],
    "off the right and bottom": [50.25, 30.5, 90.75, 61.5],
    "wholly beyond": [100.5, 80.5, 120.5, 90.5],
    "before the image": [-30.5, -30.5, -10.5, -10.5],
    "larger than the image": [-20.25, -20.5, 95.5, 70.25],
    "whole image": [0.0, 0.0, 70.0, 45.0],
    "full height": [20.25, -0.5, 30.5, 45.5],
    "full height, at the right": [60.25, -4.5, 70.5, 50.5],
    "tiny": [10.3, 10.3, 10.9, 10.7],
    "narrow": [30.4, 3.5, 30.6, 40.5],
    "zero-size": [10.4, 10.4, 10.4, 10.4],
    "zero width": [10.4, 5.4, 10.4, 20.4],
}


def smooth_mask(seed, side=28):
    """A blob with soft edges, as a mask head gives."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:side, :side] / side - 0.5
    angle = np.arctan2(y, x)
    radius = 0.35 + 0.1 * np.sin(3 * angle + random.rand() * 6) + 0.05 * np.sin(7 * angle)
    return (1 / (1 + np.exp((np.hypot(x, y) - radius) * 25))).astype(np.float32)


def noise_mask(seed, side=28):
    return np.random.RandomState(seed).rand(side, side).astype(np.float32)


def full_mask(seed, side=28):
    return np.ones((side, side), np.float32)


@pytest.mark.parametrize("convention", VALUES)
@pytest.mark.parametrize("make", [smooth_mask, noise_mask, full_mask])
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
def test_against_plain_loops(box, make, convention):
    mask = make(0)
    (encoded,) = paste_masks(mask[None], np.float32([box]), HEIGHT, WIDTH, 0.5, convention)
    got = rle.decode(encoded).astype(bool)
    assert got.shape == (HEIGHT, WIDTH)
    values = VALUES[convention](mask, np.float32(box).astype(np.float64))
    # float32 sums: a value this close to the threshold may fall on either side
    sure = np.abs(values - 0.5) > 1e-5
    np.testing.assert_array_equal(got[sure], values[sure] > 0.5)


@pytest.mark.parametrize("convention", VALUES)
@pytest.mark.parametrize("seed", range(4))
def test_random_boxes_and_thresholds(seed, convention):
    random = np.random.RandomState(seed)
    masks = np.stack([noise_mask(seed, 14), smooth_mask(seed, 14)])
    low, size = random.uniform(-20, 50, (2, 2)), random.uniform(0.1, 60, (2, 2))
    boxes = np.concatenate([low, low + size], 1).astype(np.float32)
    threshold = random.uniform(0.2, 0.8)
    for i, encoded in enumerate(paste_masks(masks, boxes, HEIGHT, WIDTH, threshold, convention)):
        values = VALUES[convention](masks[i], boxes[i].astype(np.float64))
        # as above
        sure = np.abs(values - threshold) > 1e-5
        np.testing.assert_array_equal(rle.decode(encoded).astype(bool)[sure], values[sure] > threshold)


@pytest.mark.parametrize("convention", VALUES)
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
def test_encoding_is_that_of_pycocotools(box, convention):
    """Byte for byte, so runs are whole: also where one goes on from a column's bottom at the next one's top."""
    for make in (smooth_mask, noise_mask, full_mask):
        (got,) = paste_masks(make(1)[None], np.float32([box]), HEIGHT, WIDTH, 0.5, convention)
        again = rle.encode(np.asfortranarray(rle.decode(got)))
        assert got == {"size": [HEIGHT, WIDTH], "counts": again["counts"].decode()}


def test_wholly_beyond_is_empty_and_whole_image_is_full():
    boxes = np.float32([BOXES["wholly beyond"], BOXES["larger than the image"]])
    for convention in VALUES:
        empty, full = paste_masks(np.ones((2, 28, 28), np.float32), boxes, HEIGHT, WIDTH, 0.5, convention)
        assert rle.area(empty) == 0
        assert rle.area(full) == HEIGHT * WIDTH


def test_threshold_itself():
    """A value equal to the threshold is background for torchvision, object for the others."""
    mask = np.full((1, 28, 28), 0.5, np.float32)
    box = np.float32([[10, 10, 38, 38]])
    (encoded,) = paste_masks(mask, box, HEIGHT, WIDTH, 0.5, "torchvision")
    assert rle.area(encoded) == 0
    (encoded,) = paste_masks(mask, box, HEIGHT, WIDTH, 0.5, "grid")
    assert rle.area(encoded) == 28 * 28


@pytest.mark.parametrize("convention", VALUES)
def test_bytes_are_probabilities_of_255(convention):
    masks = (noise_mask(0)[None] * 255).astype(np.uint8)
    boxes = np.float32([BOXES["inside"]])
    as_float = paste_masks(masks.astype(np.float32) / 255, boxes, HEIGHT, WIDTH, 0.3, convention)
    assert paste_masks(masks, boxes, HEIGHT, WIDTH, 0.3, convention) == as_float


@pytest.mark.parametrize("convention", VALUES)
def test_no_detection(convention):
    assert paste_masks(np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32), 10, 10, 0.5, convention) == []
