"""Heatmaps of keypoints to points on the picture."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

__all__ = ["Points", "decode_heatmaps"]


class Points(np.ndarray):
    """An object's keypoints: (K, 3) x, y in pixels of the picture, and a score.

    names: of the K points; skeleton: of the category, as COCO has it, None for what follows from the names.
    """

    names: tuple[str, ...]
    skeleton: Sequence[Sequence[int]] | None

    def __new__(
        cls, values: np.ndarray, names: Sequence[str], skeleton: Sequence[Sequence[int]] | None = None
    ) -> Points:
        points = np.asarray(values).reshape(-1, 3).view(cls)
        points.names, points.skeleton = tuple(names), skeleton
        return points

    def like(self, values: np.ndarray) -> Points:
        """Other numbers of the same points."""
        return Points(values, self.names, self.skeleton)


LARGEST = 1e12  # share: results take numbers up to 1e15


def _share(heatmap: np.ndarray, value: np.ndarray) -> float:
    """The exponential of `value` as a share of those of the map, at most LARGEST."""
    with np.errstate(over="ignore", divide="ignore"):
        return min(1 / np.exp(heatmap - value, dtype=np.float64).sum(), LARGEST)


def decode_heatmaps(heatmaps: np.ndarray, boxes: np.ndarray, score: str = "logit") -> np.ndarray:
    """The points that heatmaps of logits are highest at: (N, K, 3) float32 x, y in pixels of the canvas, and a score.

    heatmaps (N, K, S, S) float32, finite, each over its box; boxes (N, 4) float32 x1 y1 x2 y2 in pixels of the canvas,
    of which a side below a pixel counts as one. Each map is enlarged bicubically (a = -0.75, half-pixel centres, edges
    repeated) to the box's sides, rounded up; the first maximum in the order of rows counts, as in torchvision and
    Detectron2. score: logit, the enlarged map's value there, or probability, its share of the exponentials of the map
    as it came, as Detectron2 has it: shares of small and of large objects can be compared. It may be a little above 1,
    and of logits in the thousands, as no trained head has them, far above, up to LARGEST.
    """
    heatmaps = np.ascontiguousarray(heatmaps, np.float32)
    out = np.zeros((*heatmaps.shape[:2], 3), np.float32)
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    whole = np.ceil(sides)
    step = sides / whole
    for i, (width, height) in enumerate(whole.astype(int).tolist()):
        for k, heatmap in enumerate(heatmaps[i]):
            large = cv2.resize(heatmap, (width, height), interpolation=cv2.INTER_CUBIC)
            row, column = divmod(int(large.argmax()), width)
            highest = large[row, column]
            out[i, k, :2] = np.array([column + 0.5, row + 0.5], boxes.dtype) * step[i] + boxes[i, :2]
            out[i, k, 2] = highest if score == "logit" else _share(heatmap, highest)
    return out
