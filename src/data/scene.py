"""A picture with its objects, on its way through augmentation."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Scene"]


@dataclass
class Scene:
    """An image (H, W, 3) uint8 BGR and its N objects.

    boxes: (N, 4) float32 x1 y1 x2 y2 in its pixels; masks: COCO polygons or RLE of each, or None; fields: an array
    (N, ...) by the name of a field (src/data/fields) whose values the objects carry.
    """

    image: np.ndarray
    boxes: np.ndarray
    masks: list
    fields: Mapping[str, np.ndarray] = field(default_factory=dict)

    def objects(self, rows: np.ndarray) -> "Scene":
        """The same image with the objects of `rows` (K,) alone."""
        fields = {name: values[rows] for name, values in self.fields.items()}
        return Scene(self.image, self.boxes[rows], [self.masks[i] for i in rows], fields)
