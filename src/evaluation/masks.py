"""Mask probabilities of detections as run-length encodings of the image."""

from typing import Literal

import numpy as np
from pycocotools import mask as rle

__all__ = ["paste_masks"]

Convention = Literal["torchvision", "grid"]


def paste_masks(
    masks: np.ndarray,
    boxes: np.ndarray,
    height: int,
    width: int,
    threshold: float = 0.5,
    convention: Convention = "torchvision",
) -> list[dict]:
    """COCO's compressed RLE (size, counts as text) of each detection's mask in a (height, width) image.

    masks (N, M, M) float32 probabilities (or uint8 of 255), boxes (N, 4) float32 x1 y1 x2 y2 in image pixels.

    "torchvision" pads the mask by a cell, enlarges the box to match, rounds it to whole pixels and resizes the mask to
    it; a pixel is set above the threshold. "grid" (Detectron2, mmdetection) samples the mask at each pixel's centre
    over the unrounded box, zero outside; a pixel is set from the threshold on. Both are bilinear.
    """
    if masks.dtype == np.uint8:
        masks = masks.astype(np.float32) / 255
    one = paste_torchvision if convention == "torchvision" else paste_grid
    out = []
    for mask, box in zip(masks, boxes.astype(np.float64), strict=True):
        crop, top, left = one(mask, box, height, width, threshold)
        out.append(encode_crop(crop, top, left, height, width))
    return out


def paste_torchvision(
    mask: np.ndarray, box: np.ndarray, height: int, width: int, threshold: float
) -> tuple[np.ndarray, int, int]:
    """The set pixels (h, w) bool of the part of the image from row `top`, column `left`."""
    side = mask.shape[0]
    grow = (side + 2) / side
    centre, half = (box[2:] + box[:2]) * 0.5, (box[2:] - box[:2]) * 0.5 * grow
    # float32 before truncation, as there: a corner on a whole pixel may fall either way
    x1, y1, x2, y2 = (int(v) for v in np.concatenate([centre - half, centre + half]).astype(np.float32))
    w, h = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    left, right = max(x1, 0), min(x2 + 1, width)
    top, bottom = max(y1, 0), min(y2 + 1, height)
    if right <= left or bottom <= top:
        return np.zeros((0, 0), bool), 0, 0
    rows = interpolation((np.arange(top, bottom) - y1 + 0.5) * ((side + 2) / h) - 0.5, side + 2, False)[:, 1:-1]
    columns = interpolation((np.arange(left, right) - x1 + 0.5) * ((side + 2) / w) - 0.5, side + 2, False)[:, 1:-1]
    return rows @ mask @ columns.T > threshold, top, left


def paste_grid(
    mask: np.ndarray, box: np.ndarray, height: int, width: int, threshold: float
) -> tuple[np.ndarray, int, int]:
    """The same by sampling at pixel centres."""
    side = mask.shape[0]
    x1, y1, x2, y2 = box
    # half a cell past the box the interpolation fades to zero
    reach_x, reach_y = (x2 - x1) / side, (y2 - y1) / side
    left, right = max(int(np.floor(x1 - reach_x)), 0), min(int(np.ceil(x2 + reach_x)) + 1, width)
    top, bottom = max(int(np.floor(y1 - reach_y)), 0), min(int(np.ceil(y2 + reach_y)) + 1, height)
    if right <= left or bottom <= top or x2 <= x1 or y2 <= y1:
        return np.zeros((0, 0), bool), 0, 0
    rows = interpolation((np.arange(top, bottom) + 0.5 - y1) / (y2 - y1) * side - 0.5, side, True)
    columns = interpolation((np.arange(left, right) + 0.5 - x1) / (x2 - x1) * side - 0.5, side, True)
    return rows @ mask @ columns.T >= threshold, top, left


def interpolation(positions: np.ndarray, side: int, zero_outside: bool) -> np.ndarray:
    """Linear interpolation at `positions` of `side` values, as a matrix (len(positions), side) float32.

    Beyond the ends values are zero (`zero_outside`), or the end's own.
    """
    if not zero_outside:
        positions = np.clip(positions, 0, side - 1)
    first = np.floor(positions).astype(np.int64)
    fraction = positions - first
    matrix = np.zeros((len(positions), side + 2), np.float32)
    index = np.arange(len(positions))
    # a margin column at either end takes what falls outside
    matrix[index, np.clip(first + 1, 0, side + 1)] = 1 - fraction
    matrix[index, np.clip(first + 2, 0, side + 1)] += fraction
    return matrix[:, 1:-1]


def encode_crop(crop: np.ndarray, top: int, left: int, height: int, width: int) -> dict:
    """RLE of an image that is zero but for `crop` (h, w) bool at (top, left)."""
    h, w = crop.shape
    padded = np.zeros((w, h + 2), np.int8)
    padded[:, 1:-1] = crop.T
    # COCO counts down the columns: a step up begins a run, a step down ends it
    step = padded[:, 1:] - padded[:, :-1]
    column, row = np.nonzero(step)
    edges = (left + column) * height + top + row
    if h == height:
        # a run that reaches the bottom goes on at the next column's top
        again = np.flatnonzero(edges[1:] == edges[:-1])
        edges = np.delete(edges, np.concatenate([again, again + 1]))
    counts = np.diff(np.concatenate([[0], edges, [height * width]]))
    encoded = rle.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode()}
