"""Anchors of the region proposal network (Ren et al., 2015, arXiv:1506.01497), one size a level as in FPN."""

from collections.abc import Sequence

import numpy as np

__all__ = ["base_anchors", "cell_steps", "make_anchors", "map_size"]


def base_anchors(
    stride: int,
    scales: Sequence[float],
    ratios: Sequence[float],
    rounded: bool,
    legacy: str = "",
    sizes: Sequence[float] = (),
) -> np.ndarray:
    """Anchors centred at the origin, (len(ratios) * len(scales), 4) float32, x1 y1 x2 y2 in pixels.

    An anchor of scale s and ratio r has area (s * stride)^2 and height / width r; `sizes`, where there are any, stand
    for the scales' s * stride. `rounded`: corners to whole
    pixels, half to even (torchvision). `legacy`: "caffe2" (py-faster-rcnn, maskrcnn-benchmark) rounds the sides of
    the anchor of scale 1, "mmdet1" (mmdetection 1.x, MindSpore's model zoo) the corners; both centre on the cell's
    middle, and their anchors ended at the last pixel: x2 and y2 are one more here.
    """
    if legacy:
        return _legacy_base_anchors(stride, scales, ratios, legacy)
    # float32 throughout: rounding sits on halves, where one ulp decides
    h = np.sqrt(np.asarray(ratios, np.float32))[:, None]
    w = (np.float32(1) / h).astype(np.float32)
    sides = (np.asarray(sizes, np.float32) if sizes else np.asarray(scales, np.float32) * np.float32(stride))[None]
    half_w, half_h = (w * sides).ravel() / 2, (h * sides).ravel() / 2
    anchors = np.stack([-half_w, -half_h, half_w, half_h], 1).astype(np.float32)
    return np.round(anchors) if rounded else anchors


def _legacy_base_anchors(stride: int, scales: Sequence[float], ratios: Sequence[float], legacy: str) -> np.ndarray:
    ratio, scale = np.asarray(ratios, np.float64)[:, None], np.asarray(scales, np.float64)[None]
    if legacy == "caffe2":
        w = np.round(np.sqrt(stride**2 / ratio))
        w, h = (w * scale).ravel(), (np.round(w * ratio) * scale).ravel()
    else:
        h = np.sqrt(ratio)
        w, h = (stride / h * scale).ravel(), (stride * h * scale).ravel()
    middle = 0.5 * (stride - 1)
    low = middle - 0.5 * (np.stack([w, h], 1) - 1)
    high = middle + 0.5 * (np.stack([w, h], 1) - 1)
    anchors = np.concatenate([low, high], 1)
    if legacy == "mmdet1":
        anchors = np.round(anchors)
    return (anchors + [0, 0, 1, 1]).astype(np.float32)


def map_size(height: int, width: int, stride: int) -> tuple[int, int]:
    """Rows and columns of a level's map: a last level that is subsampled by 2 rounds up."""
    return -(-height // stride), -(-width // stride)


def cell_steps(height: int, width: int, stride: int, grid_strides: bool) -> tuple[int, int]:
    """Pixels between a level's anchors, down and across.

    grid_strides: torchvision's AnchorGenerator divides the padded batch's sides by the map's and rounds down, so that
    the 13 rows of stride 64 on a side of 800 lie 61 pixels apart. It's the stride wherever the side is a multiple of
    it. The canvas stands for that batch here: torchvision pads the longer side to the next multiple of 32 alone, and
    where that is an odd one (1056: 17 columns, 62 pixels) its last level's anchors lie closer than on a canvas of 1344.
    """
    if not grid_strides:
        return stride, stride
    rows, columns = map_size(height, width, stride)
    return height // rows, width // columns


def make_anchors(
    height: int,
    width: int,
    strides: Sequence[int],
    scales: Sequence[float],
    ratios: Sequence[float],
    rounded: bool,
    legacy: str = "",
    grid_strides: bool = False,
    sizes: Sequence[Sequence[float]] = (),
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """All anchors of a canvas, level by level, row by row, cell by cell.

    grid_strides: see cell_steps.  sizes: of each level, see base_anchors; or none.

    Returns the anchors (N, 4) float32, x1 y1 x2 y2 in canvas pixels; the corners of their cells (2, N) float32, x and
    y; and the number of anchors a level.
    """
    all_anchors, corners, counts = [], [], []
    for level, stride in enumerate(strides):
        base = base_anchors(stride, scales, ratios, rounded, legacy, sizes[level] if sizes else ())
        rows, columns = map_size(height, width, stride)
        y, x = np.mgrid[:rows, :columns].astype(np.float32)
        down, across = cell_steps(height, width, stride, grid_strides)
        y, x = y * down, x * across
        shifts = np.stack([x, y, x, y], -1).reshape(-1, 1, 4)
        anchors = (shifts + base).reshape(-1, 4)
        all_anchors.append(anchors)
        corners.append(np.repeat(shifts[:, 0, :2].T, len(base), 1))
        counts.append(len(anchors))
    return np.concatenate(all_anchors), np.concatenate(corners, 1), counts
