"""Pasted masks at the extremes: tiny and degenerate boxes, empty masks, one-row images, odd mask sizes."""

import numpy as np
import pytest
from pycocotools import mask as rle

from src.evaluation.masks import paste_masks
from src.runtime.newer import zip_equal

CONVENTIONS = ("torchvision", "grid")
HEIGHT, WIDTH = 60, 83
UNSURE = 1e-5  # so near the threshold, float32 may decide either way


def cell_weights(position: np.ndarray, cells: int) -> np.ndarray:
    """Bilinear weights (positions, cells): 1 at a cell's centre, falling to 0 at its neighbours'."""
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(cells)))


def values_torchvision(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Probability of every pixel: the padded mask resized to the enlarged, truncated box (both ends included)."""
    padded, cells = np.pad(mask.astype(np.float64), 1), mask.shape[0] + 2
    grow = np.float32(cells / mask.shape[0])
    out = np.zeros((height, width))
    low, high = [], []
    for a, b in ((box[0], box[2]), (box[1], box[3])):
        centre, half = (a + b) * np.float32(0.5), (b - a) * np.float32(0.5) * grow
        low.append(int(centre - half))
        high.append(int(centre + half))
    size = [max(h - lo + 1, 1) for lo, h in zip_equal(low, high)]
    # resized pixel i lies at (i + 0.5) * cells / size - 0.5, moved onto the outermost centres where it lies beyond
    across, down = (cell_weights(np.clip((np.arange(s) + 0.5) * cells / s - 0.5, 0, cells - 1), cells) for s in size)
    resized = down @ padded @ across.T
    for y in range(max(low[1], 0), min(high[1] + 1, height)):
        for x in range(max(low[0], 0), min(high[0] + 1, width)):
            out[y, x] = resized[y - low[1], x - low[0]]
    return out


def values_grid(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Probability of every pixel: the mask, zero around, at the pixel's centre as a share of the box."""
    side = mask.shape[0]
    x1, y1, x2, y2 = (float(v) for v in box)
    if x2 <= x1 or y2 <= y1:
        return np.zeros((height, width))
    across = cell_weights((np.arange(width) + 0.5 - x1) / (x2 - x1) * side - 0.5, side)
    down = cell_weights((np.arange(height) + 0.5 - y1) / (y2 - y1) * side - 0.5, side)
    return down @ mask.astype(np.float64) @ across.T


def check(masks: np.ndarray, boxes: np.ndarray, convention: str, threshold: float = 0.5, size=(HEIGHT, WIDTH)) -> int:
    """Compares each mask with its bitmap; returns how many pixels are set."""
    values_of = values_torchvision if convention == "torchvision" else values_grid
    boxes = np.asarray(boxes, np.float32)
    found = paste_masks(masks, boxes, *size, threshold, convention)
    assert len(found) == len(boxes)
    total = 0
    for mask, box, encoded in zip_equal(masks, boxes, found):
        values = values_of(mask, box, *size)
        expected = values > threshold if convention == "torchvision" else values >= threshold
        bitmap = rle.decode(encoded)
        assert bitmap.shape == size
        wrong = (bitmap != expected) & (np.abs(values - threshold) > UNSURE)
        assert not wrong.any(), f"box {box}: {np.argwhere(wrong)[:5]}"
        # the encoding is the one pycocotools gives the same bitmap, to the letter
        assert encoded == {"size": list(size), "counts": rle.encode(np.asfortranarray(bitmap))["counts"].decode()}
        total += int(bitmap.sum())
    return total


def blobs(random: np.random.Generator, n: int, side: int = 28) -> np.ndarray:
    """Smooth probabilities with a few noisy cells: edges, holes, islands, some reaching the border."""
    y, x = np.mgrid[:side, :side] / side
    out = np.empty((n, side, side), np.float32)
    for i in range(n):
        cx, cy, r = random.uniform(0.2, 0.8, 3)
        out[i] = 1 / (1 + np.exp(12 * (np.hypot(x - cx, y - cy) - 0.6 * r) + random.normal(0, 1, (side, side))))
    return out


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_boxes_of_all_sizes(convention):
    random = np.random.default_rng(0)
    low = random.uniform(0, (WIDTH - 2, HEIGHT - 2), (60, 2))
    high = low + np.exp(random.uniform(np.log(0.3), np.log(60), (60, 2)))
    boxes = np.concatenate([low, np.minimum(high, (WIDTH, HEIGHT))], 1)
    assert check(blobs(random, 60), boxes, convention) > 1000


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_tiny_boxes(convention):
    low = np.random.default_rng(2).uniform(-1, (WIDTH, HEIGHT), (80, 2))
    boxes = np.concatenate([low, low + np.random.default_rng(3).uniform(0.01, 2.5, (80, 2))], 1)
    assert check(np.ones((80, 28, 28), np.float32), boxes, convention) > 20


def test_box_without_area():
    boxes = np.array([[10.5, 20.5, 10.5, 20.5], [10.5, 20.5, 10.5, 40], [0, 0, 0, 0]], np.float32)
    masks = np.ones((3, 28, 28), np.float32)
    assert check(masks, boxes, "grid") == 0
    assert check(masks, boxes, "torchvision") > 0
    [point] = paste_masks(masks[:1], boxes[:1], HEIGHT, WIDTH, convention="torchvision")
    assert np.argwhere(rle.decode(point)).tolist() == [[20, 10]]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_boxes_turned_round_or_not_finite_hold_nothing(convention):
    boxes = np.array(
        [[40, 10, 20, 30], [10, 40, 30, 20], [np.nan, 0, 20, 20], [0, 0, np.inf, 20], [0, -np.inf, 20, 20]], np.float32
    )
    found = paste_masks(np.ones((5, 28, 28), np.float32), boxes, HEIGHT, WIDTH, convention=convention)
    assert rle.area(found).tolist() == [0] * 5


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_masks_all_zero_and_all_one(convention):
    box = [[10, 10, 40, 30]] * 2
    masks = np.stack([np.zeros((28, 28)), np.ones((28, 28))]).astype(np.float32)
    check(masks, box, convention)
    empty, full = paste_masks(masks, np.array(box, np.float32), HEIGHT, WIDTH, convention=convention)
    assert rle.area(empty) == 0
    assert abs(rle.area(full) - 30 * 20) <= 32 + 22  # the box, give or take its outermost pixels


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)])
def test_images_of_one_row_or_column(convention, size):
    boxes = [[-3, -3, 12, 12], [0, 0, 1, 1], [0.2, 0.2, 30, 30]]
    check(blobs(np.random.default_rng(4), 3), boxes, convention, size=size)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3, 0.9])
def test_other_thresholds(convention, threshold):
    """Below a half, pixels past the box's edge count too, as far as the mask fades."""
    random = np.random.default_rng(5)
    low = random.uniform(-5, (WIDTH - 10, HEIGHT - 10), (20, 2))
    boxes = np.concatenate([low, low + random.uniform(3, 50, (20, 2))], 1)
    masks = np.ones((20, 28, 28), np.float32) if threshold == 0 else blobs(random, 20)
    if threshold == 0 and convention == "grid":
        # the bare definition would set the whole image
        found = paste_masks(masks, boxes.astype(np.float32), HEIGHT, WIDTH, 0.0, "grid")
        assert all(0 < rle.area(f) < 60 * 60 for f in found)
    else:
        assert check(masks, boxes, convention, threshold) > 0


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_binary_masks(convention):
    random = np.random.default_rng(6)
    low = random.uniform(0, 30, (20, 2))
    boxes = np.concatenate([low, low + random.uniform(3, 28, (20, 2))], 1).astype(np.float32)
    bits = (blobs(random, 20) > 0.5).astype(np.uint8)
    assert check(bits.astype(np.float32), boxes, convention) > 0


@pytest.mark.parametrize("side", [1, 2, 14, 56])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_masks_of_other_sizes(convention, side):
    random = np.random.default_rng(side)
    low = random.uniform(-5, 40, (10, 2))
    boxes = np.concatenate([low, low + random.uniform(1, 40, (10, 2))], 1)
    check(random.random((10, side, side), np.float32), boxes, convention)


def test_arguments_that_do_not_fit_are_refused():
    masks, boxes = np.ones((2, 28, 28), np.float32), np.zeros((3, 4), np.float32)
    with pytest.raises(ValueError, match=r"\(2, 28, 28\) and \(3, 4\)"):
        paste_masks(masks, boxes, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="'detectron'"):
        paste_masks(masks, boxes[:2], HEIGHT, WIDTH, convention="detectron")
