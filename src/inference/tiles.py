"""Large pictures in parts: windows that overlap, and the detections of all of them as one picture's."""

from __future__ import annotations

import math

import numpy as np

from src.runtime.errors import UserError

__all__ = ["check_tile", "merge", "windows"]

LEAST_TILE = 64  # pixels
EDGE = 0.005  # of a window's side: a box that ends as near to it may be the part of an object that the window cuts
COVERED = 0.7  # of a cut object's box that lies in another's of its class: then it is a part of that one


def check_tile(tile: int | None, overlap: float) -> None:
    """Raises UserError for a side, in pixels, or a share that windows can't have."""
    if tile is not None and tile < LEAST_TILE:
        raise UserError(f"tile is {tile}; at least {LEAST_TILE} pixels")
    if not 0 <= overlap <= 0.9:
        raise UserError(f"overlap is {overlap}; a share of the tile from 0 to 0.9")


def windows(height: int, width: int, tile: int | None, overlap: float) -> list[tuple[int, int, int, int]]:
    """x, y, width and height of the parts of a picture: the whole of it, for what is larger than a tile, and where it
    is larger than one, squares of side `tile` that overlap by at least the share `overlap`, spread evenly."""
    whole = [(0, 0, width, height)]
    if tile is None or max(height, width) <= tile:
        return whole

    def starts(size: int) -> list[int]:
        count = math.ceil(max(size - tile, 0) / max(1, math.floor(tile * (1 - overlap)))) + 1
        return [round(i * (size - tile) / (count - 1)) if count > 1 else 0 for i in range(count)]

    return whole + [(x, y, min(tile, width), min(tile, height)) for y in starts(height) for x in starts(width)]


def cut_off(boxes: np.ndarray, window: tuple[int, int, int, int], height: int, width: int) -> np.ndarray:
    """(N,) bool: whether boxes (N, 4), in the picture's pixels, end where their window does and the picture goes on."""
    x, y, w, h = window
    near = EDGE * max(w, h)
    return (
        ((boxes[:, 0] < x + near) & (x > 0))
        | ((boxes[:, 1] < y + near) & (y > 0))
        | ((boxes[:, 2] > x + w - near) & (x + w < width))
        | ((boxes[:, 3] > y + h - near) & (y + h < height))
    )


def merge(
    boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, cut: np.ndarray, iou_threshold: float
) -> np.ndarray:
    """Places of the detections that stay, best score first.

    Non-maximum suppression within groups: boxes (N, 4) float32, scores (N,), groups (N,) int, by IoU >
    `iou_threshold`. What a window cut (N,) bool comes after what none did, and goes too where a box that stays covers
    most of it: half an object may score above the whole of it.
    """
    order = np.lexsort((-scores, cut))
    x1, y1, x2, y2 = boxes.astype(np.float64).T
    area = np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0)
    kept = []
    for group in np.unique(groups):
        left = order[groups[order] == group]
        while len(left):
            best, left = left[0], left[1:]
            kept.append(best)
            across = np.minimum(x2[best], x2[left]) - np.maximum(x1[best], x1[left])
            down = np.minimum(y2[best], y2[left]) - np.maximum(y1[best], y1[left])
            shared = np.maximum(across, 0) * np.maximum(down, 0)
            same = shared > iou_threshold * (area[best] + area[left] - shared)
            part = cut[left] & (shared > COVERED * area[left])
            left = left[~(same | part)]
    rows = np.array(kept, np.int64)
    return rows[np.argsort(-scores[rows], kind="stable")]
