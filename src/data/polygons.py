"""Outlines: polygons clipped to their image, traced from bitmaps, and joined into one."""

import cv2
import numpy as np
from pycocotools import mask as rle

from src.data.segmentations import Segmentation, mask_area

__all__ = ["clip_polygon", "join_polygons", "mask_polygons", "one_polygon"]

SMALLEST_HOLE = 4.0  # pixels: smaller ones are filled where corners are to be few
DIFFERENCE = 0.02  # of a mask's pixels that fewer corners may cost


def clip_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """(N, 2) float64, x y in pixels, as the (M, 2) that lie in the image; M is 0 for one that lies outside.

    Sutherland and Hodgman, 1974, doi:10.1145/360767.360802: what a concave polygon loses between two parts becomes an
    edge along the image's, which encloses nothing.
    """
    out = points
    for axis, bound, inward in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        depth = inward * (out[:, axis] - bound)
        if (depth >= 0).all():
            continue
        after = np.roll(depth, -1)
        crosses = (depth >= 0) != (after >= 0)
        share = np.divide(depth, depth - after, out=np.zeros_like(depth), where=crosses)
        crossings = out + share[:, None] * (np.roll(out, -1, 0) - out)
        crossings[:, axis] = bound
        # each corner inside, then the place where the edge after it crosses
        kept = np.stack([depth >= 0, crosses], 1).ravel()
        out = np.stack([out, crossings], 1).reshape(-1, 2)[kept]
    return out


def mask_polygons(mask: np.ndarray, tolerance: float = 0.0) -> list[np.ndarray]:
    """The parts of a mask (H, W), not 0 inside, as (N, 2) float64 each, along the edges of its pixels.

    A hole is joined to the outline around it by a slit. tolerance: pixels that a corner may lie beside the edge, so
    that corners are few, and the smallest holes are filled; where that would change more than DIFFERENCE of the mask,
    nothing is left out.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] != 0
    fine = np.pad(part, 1).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    contours, tree = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings, tree = [pixel_edges(c) for c in contours], tree[0]
    polygons = with_holes(rings, tree)
    if tolerance:
        simple = with_holes([few_corners(r, tolerance) for r in rings], tree, SMALLEST_HOLE)
        drawn = rle.decode(rle.merge(rle.frPyObjects([p.ravel() for p in simple], *part.shape))).astype(bool)
        if (drawn ^ part).sum() <= DIFFERENCE * part.sum():
            polygons = simple
    return [p + [columns[0], rows[0]] for p in polygons]


def with_holes(rings: list[np.ndarray], tree: np.ndarray, smallest: float = 0.0) -> list[np.ndarray]:
    """Outlines joined with their holes of at least `smallest` pixels; tree: OpenCV's next, previous, hole, parent."""
    out = []
    for i, (_, _, hole, parent) in enumerate(tree):
        if parent >= 0:
            continue
        parts = [rings[i]]
        while hole >= 0:
            if cv2.contourArea(rings[hole].astype(np.float32)) >= smallest:
                parts.append(rings[hole])
            hole = tree[hole][0]
        out.append(join_polygons(parts))
    return out


def few_corners(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """A ring (N, 2) with the corners that keep it within `tolerance` pixels (Douglas and Peucker, 1973)."""
    simple = cv2.approxPolyDP(ring.astype(np.float32), tolerance, True).reshape(-1, 2).astype(np.float64)
    return simple if len(simple) > 2 else ring


def pixel_edges(contour: np.ndarray) -> np.ndarray:
    """Corners (N, 2) float64, in pixels, of a contour of a bitmap padded by one and doubled."""
    # of a doubled pixel the left half lies at its left edge, the right half at its right one
    points = ((contour[:, 0] + 1) // 2 - 1).astype(np.float64)
    steps = np.roll(points, -1, 0) - points
    points = points[steps.any(1)]
    steps = np.roll(points, -1, 0) - points
    before = np.roll(steps, 1, 0)
    return points[steps[:, 0] * before[:, 1] != steps[:, 1] * before[:, 0]]


def join_polygons(polygons: list[np.ndarray]) -> np.ndarray:
    """One polygon (N, 2) of parts, or an outline and its holes, by lines there and back where two are nearest.

    So Ultralytics writes an object of several parts in one row. The lines enclose nothing.
    """
    out = polygons[0]
    for part in polygons[1:]:
        distance = np.square(out[:, None] - part[None]).sum(2)
        i, j = np.unravel_index(distance.argmin(), distance.shape)
        out = np.concatenate([out[: i + 1], part[j:], part[: j + 1], out[i:]])
    return out


def one_polygon(segmentation: Segmentation, height: int, width: int) -> np.ndarray:
    """A normal segmentation as one polygon (N, 2) inside the image; (0, 2) for an empty one."""
    parts = []
    if isinstance(segmentation, list):
        parts = [clip_polygon(p.reshape(-1, 2), height, width) for p in segmentation]
        parts = [p for p in parts if len(p) >= 3]
        if len(parts) == 1:
            return parts[0]
        joined = join_polygons(parts) if parts else np.zeros((0, 2))
        # where parts overlap, one polygon would be empty
        whole = mask_area(segmentation, height, width)
        if not parts or abs(mask_area([joined.ravel()], height, width) - whole) <= 0.01 * whole:
            return joined
        segmentation = rle.merge(rle.frPyObjects([p.ravel() for p in parts], height, width))
    traced = mask_polygons(rle.decode(segmentation))
    return join_polygons(traced) if traced else np.zeros((0, 2))
