"""Masks, each as a crop of its box."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from src.data.fields.base import Field
from src.data.images import picture_size
from src.data.scene import Scene
from src.data.transforms import View, crop_mask
from src.drawing.objects import Layer, mask_layer
from src.runtime.newer import zip_equal

__all__ = ["MaskField"]


class MaskField(Field):
    """A batch's gt_masks: (S, S) uint8 0..255 an object, what the canvas shows of its box in S x S cells.

    Any augmentation changes Scene.masks itself, as the boxes of cut and covered objects follow from them.
    """

    name = "masks"
    carried = False
    bars: Mapping[str, Any] = {}

    def shown(self, scene: Scene, boxes: np.ndarray, view: View) -> np.ndarray:
        """Crops (N, S, S) uint8."""
        size, shape = self.config.mask_crop_size, picture_size(scene.image)
        crops = np.zeros((len(scene.masks), size, size), np.uint8)
        for row, (mask, box) in enumerate(zip_equal(scene.masks, boxes)):
            crop = crop_mask(mask, box, *shape, size)
            crops[row] = crop[:, ::-1] if view.flip else crop
        return crops

    def drawn(self, values: np.ndarray, boxes: np.ndarray, shape: tuple[int, int]) -> Layer:
        return mask_layer([on_canvas(m, b, shape) for m, b in zip_equal(values, boxes)])


def on_canvas(crop: np.ndarray, box: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A box-relative crop (S, S) uint8 0..255 where its box is, (H, W) uint8 0 or 1."""
    step = (box[2:] - box[:2]) / crop.shape[0]
    to_canvas = np.array([[step[0], 0, box[0] + 0.5 * step[0] - 0.5], [0, step[1], box[1] + 0.5 * step[1] - 0.5]])
    return (cv2.warpAffine(crop, to_canvas, shape[::-1], flags=cv2.INTER_LINEAR) > 127).astype(np.uint8)
