"""Keypoints and the limbs between them, drawn on pictures. Arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from src.config.keys import COCO_KEYPOINTS
from src.drawing.objects import Layer, Shade

__all__ = ["LEAST", "limbs_of", "skeleton_layer", "surely"]

# Scores of points that are drawn lie above it, as Detectron2's pictures have it: of a probability a twentieth, of a
# logit in effect the sign. A visibility is 0 where there is no point, 1 or 2 else.
LEAST = 0.05

# COCO's limbs of a person, by the places of COCO_KEYPOINTS
COCO_LIMBS = [(15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8)]
COCO_LIMBS += [(7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)]

# BGR
LEFT, RIGHT = (80, 200, 60), (40, 120, 255)
EDGE = (30, 30, 30)


def limbs_of(names: Sequence[str], skeleton: Sequence[Sequence[int]] | None = None) -> list[tuple[int, int]]:
    """Pairs of places in `names` that are joined: those of `skeleton`, which counts from 1 as COCO's categories do,
    else COCO's where the names are COCO's, else none. Pairs that lead nowhere are left out."""
    if skeleton is not None:
        pairs = [(int(a) - 1, int(b) - 1) for a, b in skeleton]
        return [(a, b) for a, b in pairs if 0 <= a < len(names) and 0 <= b < len(names)]
    return list(COCO_LIMBS) if list(names) == COCO_KEYPOINTS else []


def surely(points: np.ndarray) -> np.ndarray:
    """Which of points (K, 3), x, y and score or visibility, are drawn: (K,) bool."""
    points = np.asarray(points, np.float64)
    return (points[:, 2] > LEAST) & np.isfinite(points).all(1)


def skeleton_layer(
    values: Sequence[np.ndarray | None], names: Sequence[str], skeleton: Sequence[Sequence[int]] | None = None
) -> Layer:
    """The layer of N objects' keypoints: (K, 3) x, y in pixels of the picture, and a score or visibility; or None.

    names: of the K points; skeleton: see limbs_of. Points whose score isn't above LEAST are left out, and limbs that
    end there. What is called left_NAME is green, right_NAME orange, all else, and a limb between the sides, of the
    object's shade.
    """
    limbs = limbs_of(names, skeleton)
    sides = [LEFT if n.startswith("left_") else RIGHT if n.startswith("right_") else None for n in names]

    def paint(canvas: np.ndarray, i: int, shade: Shade, line: int, zoom: float) -> None:
        value = values[i]
        if value is None:
            return
        points = np.asarray(value, np.float64)
        shown = surely(points)
        # OpenCV takes no coordinates past its integers
        far = 2 * max(canvas.shape[:2])
        places = np.clip(np.where(shown[:, None], points[:, :2] * zoom, 0), -far, far)
        pixels = np.round(places - 0.5).astype(int).tolist()
        # on small objects points stay apart
        size = np.sqrt(np.prod(np.ptp(places[shown], axis=0))) if shown.any() else 0
        wide = max(1, min(line + 1, round(size / 40)))
        for a, b in limbs:
            if max(a, b) < len(points) and shown[a] and shown[b]:
                # a limb from the middle to a side is that side's
                ends = {s for s in (sides[a], sides[b]) if s}
                cv2.line(canvas, pixels[a], pixels[b], ends.pop() if len(ends) == 1 else shade, wide, cv2.LINE_AA)
        for k in np.flatnonzero(shown).tolist():
            cv2.circle(canvas, pixels[k], wide + 1, sides[k] or shade, cv2.FILLED, cv2.LINE_AA)
            cv2.circle(canvas, pixels[k], wide + 1, EDGE, 1, cv2.LINE_AA)

    return paint
