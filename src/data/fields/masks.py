"""Masks, each as a crop of its box."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from src.data.fields.base import Field
from src.data.images import picture_size
from src.data.scene import Scene
from src.data.transforms import View, crop_mask, mask_window, window_places
from src.drawing.objects import Layer, mask_layer
from src.runtime.newer import zip_equal

__all__ = ["MaskField"]


class MaskField(Field):
    """A batch's gt_masks: (S, S) uint8 0..255 an object, what the canvas shows of its box in S x S cells, or of the
    pixels around it, as train_cfg.rcnn.mask_crop says.

    Any augmentation changes Scene.masks itself, as the boxes of cut and covered objects follow from them.
    """

    name = "masks"
    carried = False
    bars: Mapping[str, Any] = {}

    def shown(self, scene: Scene, boxes: np.ndarray, view: View) -> np.ndarray:
        """Crops (N, S, S) uint8."""
        size, shape = self.config.mask_crop_size, picture_size(scene.image)
        crops = np.zeros((len(scene.masks), size, size), np.uint8)
        if self.pixels:
            for row, (mask, box) in enumerate(zip_equal(scene.masks, view.to_canvas(boxes))):
                crops[row] = mask_window(mask, box, view, *shape, size)
            return crops
        for row, (mask, box) in enumerate(zip_equal(scene.masks, boxes)):
            crop = crop_mask(mask, box, *shape, size)
            crops[row] = crop[:, ::-1] if view.flip else crop
        return crops

    def drawn(self, values: np.ndarray, boxes: np.ndarray, shape: tuple[int, int]) -> Layer:
        shown = pixels_on_canvas if self.pixels else on_canvas
        return mask_layer([shown(m, b, shape) for m, b in zip_equal(values, boxes)])

    @property
    def pixels(self) -> bool:
        return self.config.train_cfg.rcnn.mask_crop == "pixels"


def on_canvas(crop: np.ndarray, box: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A box-relative crop (S, S) uint8 0..255 where its box is, (H, W) uint8 0 or 1."""
    step = (box[2:] - box[:2]) / crop.shape[0]
    to_canvas = np.array([[step[0], 0, box[0] + 0.5 * step[0] - 0.5], [0, step[1], box[1] + 0.5 * step[1] - 0.5]])
    return (cv2.warpAffine(crop, to_canvas, shape[::-1], flags=cv2.INTER_LINEAR) > 127).astype(np.uint8)


def pixels_on_canvas(crop: np.ndarray, box: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """What a crop of pixels (S, S) uint8 0..255 shows within its box, where that is, (H, W) uint8 0 or 1."""
    places, cells = window_places(box, crop.shape[0])
    # the pixels of the box, without the ring around it, of which some may be beyond the picture
    low, high = np.clip(np.stack([places + 1, np.ceil(box[2:]).astype(int)]), 0, shape[::-1])
    columns, rows = ((np.arange(a, b) - p) // c for a, b, p, c in zip_equal(low, high, places, cells))
    out = np.zeros(shape, np.uint8)
    out[low[1] : high[1], low[0] : high[0]] = crop[np.ix_(rows, columns)] > 127
    return out
