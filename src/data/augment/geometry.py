"""Augmentation of training images, drawn from a generator that the caller seeds.

Flip, crop, expansion and change of size are one `View` together: a window of the image shown on a part of the canvas.
So boxes follow by two multiplications, masks are cut from their polygons without a bitmap, and the image is resized
once, whatever the chain. Quarter turns come before, of the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from pycocotools import mask as rle

from src.config import Config
from src.data.fields.base import Field
from src.data.scene import Scene
from src.data.transforms import View, canvas_size, fit_scale, fit_size, to_bitmap
from src.runtime.newer import zip_equal

__all__ = ["draw_view", "turned_boxes", "turned_scene"]

CROP_TRIES = 10
ROTATIONS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}

Window = tuple[int, int, int, int]


def turned_scene(scene: Scene, quarters: int, carried: Sequence[Field] = ()) -> Scene:
    """A scene turned anticlockwise by 1 to 3 quarters, to the pixel; polygons stay polygons."""
    height, width = scene.image.shape[:2]
    masks = [turned_mask(m, quarters, height, width) for m in scene.masks]
    image = cv2.rotate(scene.image, ROTATIONS[quarters])
    move = turning(quarters, height, width)
    fields = {f.name: f.moved(scene.fields[f.name], move) for f in carried}
    return Scene(image, turned_boxes(scene.boxes, quarters, height, width), masks, fields)


def turning(quarters: int, height: int, width: int) -> np.ndarray:
    """(2, 3): turned_points as a matrix."""
    origin, *axes = turned_points(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), quarters, height, width)
    return np.column_stack([axes[0] - origin, axes[1] - origin, origin])


def turned_points(points: np.ndarray, quarters: int, height: int, width: int) -> np.ndarray:
    """Points (..., 2) x, y of a (height, width) image where they are once it is turned anticlockwise."""
    for _ in range(quarters):
        points = np.stack([points[..., 1], width - points[..., 0]], -1)
        height, width = width, height
    return points


def turned_boxes(boxes: np.ndarray, quarters: int, height: int, width: int) -> np.ndarray:
    """Boxes (N, 4) x1 y1 x2 y2 of a (height, width) image, as turned_points."""
    corners = turned_points(boxes.reshape(-1, 2, 2), quarters, height, width)
    return np.concatenate([corners.min(1), corners.max(1)], 1)


def turned_mask(mask: list | dict | None, quarters: int, height: int, width: int) -> list | dict | None:
    """A mask of a (height, width) image, polygons or RLE or none, as turned_points."""
    if isinstance(mask, list):
        return [turned_points(np.reshape(p, (-1, 2)), quarters, height, width).ravel().tolist() for p in mask]
    if mask is None:
        return None
    return rle.encode(np.asfortranarray(np.rot90(to_bitmap(mask, height, width), quarters)))


def draw_view(
    config: Config,
    height: int,
    width: int,
    boxes: np.ndarray,
    flip: bool,
    random: np.random.Generator,
    canvas: tuple[int, int] | None = None,
) -> View:
    """A random view of a (height, width) image with objects at boxes (N, 4), as the config's ratios and ranges say.

    canvas: (height, width) that it has to fit (default: canvas_size of the image).

    Expansion (Liu et al., 2016, arXiv:1512.02325), then a crop, then the canvas's size times a factor, cropped where
    that exceeds the canvas. Crops are drawn up to CROP_TRIES times until the centre of an object lies in them, then
    around one. Where config.fixed_size_crop says so the last one lies anywhere, with objects or without: the
    large-scale jitter of Ghiasi et al. (2021, arXiv:2012.07177), as Detectron2's ResizeScale and FixedSizeCrop.
    """
    window: Window = (0, 0, width, height)
    # whatever becomes of it, an image stays on the canvas of its batch
    high, wide = canvas = canvas or canvas_size(height, width, config)
    if config.expand_ratio and random.random() < config.expand_ratio:
        window = expanded(width, height, random.uniform(config.expand_range[0], config.expand_range[1]), random)
    if config.crop_ratio and random.random() < config.crop_ratio:
        share = random.uniform(config.crop_range[0], config.crop_range[1], 2)
        sides = (max(round(width_of(window) * share[0]), 1), max(round(height_of(window) * share[1]), 1))
        window = crop_within(window, sides, boxes, random)
    if config.ratio_range == [1.0, 1.0]:
        size = fit_size(height_of(window), width_of(window), config, canvas)
        return View(window, size, flip, left_of(size, wide, flip, config))
    factor = random.uniform(config.ratio_range[0], config.ratio_range[1])
    # what fits the canvas times the factor, as fit_size has it without one
    across, down = wide / width_of(window), high / height_of(window)
    if config.keep_ratio:
        across = down = fit_scale(height_of(window), width_of(window), config, canvas)
    across, down = across * factor, down * factor
    sides = (
        max(min(width_of(window), round(wide / across)), 1),
        max(min(height_of(window), round(high / down)), 1),
    )
    if config.fixed_size_crop:
        window = crop_anywhere(window, sides, random)
    else:
        window = crop_within(window, sides, boxes, random)
    size = (
        min(max(int(height_of(window) * down + 0.5), 1), high),
        min(max(int(width_of(window) * across + 0.5), 1), wide),
    )
    return View(window, size, flip, left_of(size, wide, flip, config))


def left_of(size: tuple[int, int], wide: int, flip: bool, config: Config) -> int:
    """View.left of a picture of `size` on a canvas `wide`: one that is filled is mirrored whole."""
    return wide - size[1] if flip and config.fixed_size_crop else 0


def width_of(window: Window) -> int:
    return window[2] - window[0]


def height_of(window: Window) -> int:
    return window[3] - window[1]


def expanded(width: int, height: int, factor: float, random: np.random.Generator) -> Window:
    """A window `factor` times the image's sides with the image somewhere in it."""
    w, h = max(round(width * factor), width), max(round(height * factor), height)
    left, top = random.integers(0, w - width + 1), random.integers(0, h - height + 1)
    return (-int(left), -int(top), w - int(left), h - int(top))


def crop_anywhere(window: Window, sides: tuple[int, int], random: np.random.Generator) -> Window:
    """A part of `window` of `sides` (width, height). One draw for both axes, as Detectron2's FixedSizeCrop,
    torchvision's and the paper's own.
    """
    share = random.random()
    x, y = (a + round((b - a - side) * share) for a, b, side in zip_equal(window[:2], window[2:], sides))
    return (x, y, x + sides[0], y + sides[1])


def crop_within(window: Window, sides: tuple[int, int], boxes: np.ndarray, random: np.random.Generator) -> Window:
    """A part of `window` of `sides` (width, height): at random until an object's centre lies in it, or around one."""
    if sides == (width_of(window), height_of(window)):
        return window
    corner, room = np.array(window[:2]), np.array([width_of(window), height_of(window)]) - sides
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    # centres that an earlier crop has left outside can't be met
    centres = centres[((centres >= window[:2]) & (centres < window[2:])).all(1)]
    for _ in range(CROP_TRIES):
        place = corner + random.integers(0, room + 1)
        if not len(centres) or ((centres >= place) & (centres < place + sides)).all(1).any():
            break
    else:
        wanted = centres[random.integers(len(centres))] - random.uniform(0.1, 0.9, 2) * sides
        place = np.clip(np.round(wanted).astype(int), corner, corner + room)
    x, y = place.tolist()
    return (x, y, x + sides[0], y + sides[1])
