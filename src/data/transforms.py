"""From image bytes and annotations to the network's inputs; every operation on one image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import mmcv
import numpy as np
from PIL import Image
from pycocotools import mask as rle

from src.config import Config
from src.config.backbones import backbone_strides
from src.data.images import picture_size
from src.runtime.newer import zip_equal

__all__ = [
    "LEAST_IN_JITTER",
    "LEAST_VISIBLE",
    "View",
    "canvas_shown",
    "canvas_size",
    "crop_mask",
    "fit_scale",
    "fit_size",
    "mask_window",
    "mean_colour",
    "prepare_image",
    "shown_picture",
    "tight_box",
    "to_bitmap",
    "transform_objects",
    "visible_objects",
    "window_places",
]

LEAST_VISIBLE = 1.0  # canvas pixels: an object of which a narrower part is left in a crop is gone
LEAST_IN_JITTER = 1e-5  # the same under large-scale jitter, by Detectron2's filter_empty_instances


def canvas_size(height: int, width: int, config: Config) -> tuple[int, int]:
    """(height, width) of the canvas for a (height, width) picture: the config's, or that turned where pictures keep
    their size whatever their orientation and this one is upright.
    """
    if config.turns_canvas and height > width:
        return config.img_width, config.img_height
    return config.img_height, config.img_width


def canvas_shown(height: int, width: int, config: Config) -> tuple[int, int]:
    """(height, width) of the canvas at inference: canvas_size, or with config.test_canvas: picture what the (height,
    width) picture is padded to.
    """
    canvas = canvas_size(height, width, config)
    if config.test_canvas == "config":
        return canvas
    step = math.lcm(config.rpn.anchor_generator.size_divisor, backbone_strides(config.backbone)[-1])
    sides = (-(-side // step) * step for side in fit_size(height, width, config))
    high, wide = (min(side, most) for side, most in zip_equal(sides, canvas))
    return high, wide


def fit_size(height: int, width: int, config: Config, canvas: tuple[int, int] | None = None) -> tuple[int, int]:
    """(height, width) of the resized image.

    resize: canvas: the largest that fits the canvas in proportion, or the canvas itself. resize: short_side: the
    shorter side as given, the longer at most as given; rounded as the config's resize_rounding says. canvas: (height,
    width) it may not exceed (default: canvas_size).
    """
    high, wide = canvas_size(height, width, config) if canvas is None else canvas
    if not config.keep_ratio:
        return high, wide
    return bounded(*scaled_sides(height, width, config, (high, wide)), high, wide)


def bounded(height: int, width: int, high: int, wide: int) -> tuple[int, int]:
    return min(max(height, 1), high), min(max(width, 1), wide)


def scaled_sides(height: int, width: int, config: Config, canvas: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the image in proportion, rounded."""
    fitting = fit_scale(height, width, config, canvas)
    if config.resize_rounding == "floor":
        # torchvision's GeneralizedRCNNTransform: a short side may lose a pixel to rounding, as there
        return math.floor(float(height) * fitting), math.floor(float(width) * fitting)
    if config.resize_rounding == "short_first" and config.resize == "short_side":
        short, long = sorted((height, width))
        side = config.short_side
        if long / short * side > config.long_side:
            side = round(config.long_side * short / long)
        side = min(side, round(fitting * short))
        other = int(side * long / short)
        return (side, other) if height <= width else (other, side)
    return int(height * fitting + 0.5), int(width * fitting + 0.5)


def fit_scale(height: int, width: int, config: Config, canvas: tuple[int, int]) -> float:
    """Canvas pixels of an image pixel, of an image in proportion."""
    room = min(canvas[0] / height, canvas[1] / width)
    if config.resize == "canvas":
        return room
    wanted = min(config.short_side / min(height, width), config.long_side / max(height, width))
    # a canvas of the usual size holds all that is wanted; a smaller one bounds it
    return min(wanted, room)


@dataclass(frozen=True)
class View:
    """What a canvas shows of an image.

    window: x1 y1 x2 y2 in whole pixels of the image, beyond which it may reach; size: (height, width) of the canvas
    pixels that the window fills, from the uppermost down; flip: mirrored, left to right; left: how many canvas pixels
    are left of it.
    """

    window: tuple[int, int, int, int]
    size: tuple[int, int]
    flip: bool = False
    left: int = 0

    @property
    def scale(self) -> np.ndarray:
        """Canvas pixels of an image pixel, (x, y) float32."""
        x1, y1, x2, y2 = self.window
        return np.array([self.size[1] / (x2 - x1), self.size[0] / (y2 - y1)], np.float32)

    @property
    def move(self) -> np.ndarray:
        """(2, 3) float64: from a point of the image, x and y, to its place on the canvas."""
        x1, y1, x2, y2 = self.window
        height, width = self.size
        across, down = width / (x2 - x1), height / (y2 - y1)
        if self.flip:
            return np.array([[-across, 0, self.left + width + x1 * across], [0, down, -y1 * down]])
        return np.array([[across, 0, self.left - x1 * across], [0, down, -y1 * down]])

    def to_canvas(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) float32 of image pixels in canvas pixels."""
        x1, y1, x2, y2 = self.window
        corner = np.array([x1, y1, x1, y1], np.float32)
        moved = transform_objects(boxes - corner, (y2 - y1, x2 - x1), self.size, self.flip)
        return moved + np.array([self.left, 0, self.left, 0], np.float32)


def prepare_image(
    image: np.ndarray,
    config: Config,
    flip: bool = False,
    view: View | None = None,
    canvas: tuple[int, int] | None = None,
) -> tuple[np.ndarray, tuple[int, int]]:
    """Resizes, flips, normalises, pads: (H, W, 3) uint8 BGR -> (3, *canvas) float32.

    Of the whole image, or as `view` says, then `flip` isn't looked at. canvas: (height, width), by default canvas_shown
    of the image. Also returns the (height, width) that the picture takes of the canvas; the rest, right (or where the
    view says so left) and below, is zero.
    """
    high, wide = canvas or canvas_shown(*picture_size(image), config)
    if view is None:
        rows, columns = picture_size(image)
        view = View((0, 0, columns, rows), fit_size(rows, columns, config), flip)
    height, width = view.size
    image = shown_picture(image, config, view)
    image = mmcv.imnormalize(image, np.array(config.img_mean), np.array(config.img_std), config.to_rgb)
    out = np.zeros((3, high, wide), np.float32)
    out[:, :height, view.left : view.left + width] = image.transpose(2, 0, 1)
    return out, (height, width)


def shown_picture(image: np.ndarray, config: Config, view: View) -> np.ndarray:
    """What a view shows of an image (H, W, 3) uint8, at its size; float32 where config.resize_filter is unrounded."""
    image = resize_image(cut_window(image, view.window, config), *view.size, config)
    return mmcv.imflip(image, "horizontal") if view.flip else image


def resize_image(image: np.ndarray, height: int, width: int, config: Config) -> np.ndarray:
    """(H, W, 3) uint8 at another size, bilinear: between the nearest four pixels, or with config.resize_filter:
    antialias over as many as a smaller one covers, as Pillow does and so Detectron2 and maskrcnn-benchmark. unrounded:
    between four, float32, as torchvision.
    """
    if config.resize_filter == "unrounded" and image.shape[:2] != (height, width):
        return resize_unrounded(image, height, width)
    if config.resize_filter == "antialias":
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    return mmcv.imresize(image, (width, height), interpolation="bilinear", backend="cv2")


def resize_unrounded(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 to (height, width, 3) float32 between the nearest four pixels; the same sums, in the same order,
    as the C++ program's.

    OpenCV's would first need the whole picture, of up to 100 megapixels, in float32.
    """
    low, high, share = neighbours(image.shape[0], height)
    lines = between(image[low], image[high], share[:, None, None])
    low, high, share = neighbours(image.shape[1], width)
    return between(np.take(lines, low, 1), np.take(lines, high, 1), share[None, :, None])


def neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each of `new` cells the two of `old` cells whose centres it lies between, and float32 the second's share."""
    place = np.maximum((np.arange(new) + 0.5) * (old / new) - 0.5, 0)
    low = np.minimum(place.astype(np.int64), old - 1)
    return low, np.minimum(low + 1, old - 1), (place - low).astype(np.float32)


def between(low: np.ndarray, high: np.ndarray, share: np.ndarray) -> np.ndarray:
    """low + (high - low) * share, float32."""
    low, out = low.astype(np.float32, copy=False), high.astype(np.float32)
    out -= low
    out *= share
    out += low
    return out


def cut_window(image: np.ndarray, window: tuple[int, int, int, int], config: Config) -> np.ndarray:
    """The pixels (H, W, 3) of a window; those beyond the image have the mean colour."""
    x1, y1, x2, y2 = window
    height, width = image.shape[:2]
    inside = image[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)]
    if inside.shape[:2] == (y2 - y1, x2 - x1):
        return inside
    out = np.empty((y2 - y1, x2 - x1, 3), np.uint8)
    out[:] = mean_colour(config)
    top, left = max(-y1, 0), max(-x1, 0)
    out[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return out


def mean_colour(config: Config) -> np.ndarray:
    """The mean of images, BGR (3,), in whole steps of 0..255."""
    mean = config.img_mean[::-1] if config.to_rgb else config.img_mean
    return np.clip(np.round(mean), 0, 255).astype(np.uint8)


def moved_polygons(segmentation: list, origin: np.ndarray, scale: np.ndarray) -> list[list[float]]:
    """Polygons of three points or more, (point - origin) * scale."""
    # pycocotools walks outlines point by point; one far larger than its box would overflow its integers
    return [
        np.clip((np.asarray(p, np.float64).reshape(-1, 2) - origin) * scale, -1e4, 1e4).ravel().tolist()
        for p in segmentation
        if len(p) >= 6
    ]


def to_bitmap(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """COCO's polygons or RLE of a (height, width) image as (height, width) uint8 0 or 1."""
    if isinstance(segmentation, list):
        polygons = moved_polygons(segmentation, np.zeros(2), np.ones(2))
        return rle.decode(rle.merge(rle.frPyObjects(polygons, height, width)))
    if isinstance(segmentation["counts"], list):
        segmentation = rle.frPyObjects(segmentation, height, width)
    return rle.decode(segmentation)


def crop_mask(segmentation: list | dict, box: np.ndarray, height: int, width: int, size: int) -> np.ndarray:
    """A mask's part inside its box, resampled to (size, size) uint8 0..255.

    `segmentation` is COCO's polygons or RLE of a (height, width) image, `box` x1 y1 x2 y2 in its pixels. Cell
    (i, j) covers the box's i-th row and j-th column of `size`. Polygons are drawn at that resolution, without a bitmap
    of the image.
    """
    x1, y1, x2, y2 = (float(v) for v in box)
    if isinstance(segmentation, list):
        scale, origin = np.array([size / (x2 - x1), size / (y2 - y1)]), np.array([x1, y1])
        moved = moved_polygons(segmentation, origin, scale)
        return rle.decode(rle.merge(rle.frPyObjects(moved, size, size))) * np.uint8(255)
    bitmap = to_bitmap(segmentation, height, width) * np.uint8(255)
    step_x, step_y = (x2 - x1) / size, (y2 - y1) / size
    to_image = np.array([[step_x, 0, x1 + 0.5 * step_x - 0.5], [0, step_y, y1 + 0.5 * step_y - 0.5]])
    return cv2.warpAffine(bitmap, to_image, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def window_places(box: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the `size` x `size` cells of a window around a box lie: the first one's corner and how many pixels a cell
    has, each (2,) int x, y of the canvas.

    box: x1 y1 x2 y2 float32 in canvas pixels. A cell is one pixel if the box, and a pixel more at each side, fits.
    """
    origin, end = np.floor(box[:2]).astype(int) - 1, np.ceil(box[2:]).astype(int) + 1
    return origin, -(-(end - origin) // size)


def mask_window(
    segmentation: list | dict, box: np.ndarray, view: View, height: int, width: int, size: int
) -> np.ndarray:
    """The canvas' bitmap around an object, (size, size) uint8 0..255: the shares of cells of whole pixels.

    segmentation: COCO's polygons or RLE of a (height, width) image, of which a pixel of the canvas takes the nearest
    one's value, as torchvision, Detectron2 and mmdetection resize bitmaps. box: see window_places, which says where the
    cells lie. Beyond the picture its outermost pixels go on, which is what RoIAlign makes of samples there.
    """
    (left, top), (across, down) = window_places(box, size)
    (x1, y1, x2, y2), (high, wide) = view.window, view.size
    rows = np.clip(top + np.arange(size * down), 0, high - 1)
    columns = np.clip(left + np.arange(size * across) - view.left, 0, wide - 1)
    if view.flip:
        columns = wide - 1 - columns
    part, (first, upper) = bitmap_part(segmentation, height, width)
    # a ring of zeros is what lies outside
    part = np.pad(part, 1)
    rows = np.clip(y1 + nearest(rows, y2 - y1, high) - upper + 1, 0, part.shape[0] - 1)
    columns = np.clip(x1 + nearest(columns, x2 - x1, wide) - first + 1, 0, part.shape[1] - 1)
    cells = part[np.ix_(rows, columns)].reshape(size, down, size, across).sum((1, 3), dtype=np.int64)
    return (cells * 255 / (down * across) + 0.5).astype(np.uint8)


def nearest(places: np.ndarray, side: int, resized: int) -> np.ndarray:
    """The pixels of `side` that those at `places` of `resized` are taken from, as OpenCV's INTER_NEAREST has it."""
    return np.floor(places * (1 / (resized / side))).astype(int)


def bitmap_part(segmentation: list | dict, height: int, width: int) -> tuple[np.ndarray, tuple[int, int]]:
    """What to_bitmap gives, of polygons without rows and columns that are empty, and the x, y of its first pixel."""
    if not isinstance(segmentation, list):
        return to_bitmap(segmentation, height, width), (0, 0)
    points = np.concatenate([np.asarray(p, np.float64).reshape(-1, 2) for p in segmentation])
    # whole pixels, so that outlines are rounded as in the image
    low = np.clip(np.floor(points.min(0)), 0, [width - 1, height - 1]).astype(int)
    high = np.clip(np.ceil(points.max(0)) + 1, low + 1, [width, height]).astype(int)
    # pycocotools takes fifths of a pixel: taken here, they are the same ones after the move
    fifths = [np.where(np.tile(low > 0, len(p) // 2), np.floor(5 * np.asarray(p) + 0.5) / 5, p) for p in segmentation]
    (w, h), polygons = high - low, moved_polygons(fifths, low, np.ones(2))
    return rle.decode(rle.merge(rle.frPyObjects(polygons, int(h), int(w)))), (int(low[0]), int(low[1]))


def transform_objects(boxes: np.ndarray, original: tuple[int, int], resized: tuple[int, int], flip: bool) -> np.ndarray:
    """Boxes (N, 4) from pixels of the `original` (height, width) to canvas pixels of the `resized` picture."""
    sy, sx = resized[0] / original[0], resized[1] / original[1]
    boxes = boxes * np.array([sx, sy, sx, sy], np.float32)
    if flip:
        boxes = np.stack([resized[1] - boxes[:, 2], boxes[:, 1], resized[1] - boxes[:, 0], boxes[:, 3]], 1)
    return boxes.astype(np.float32)


def tight_box(
    segmentation: list | dict, region: np.ndarray, scale: np.ndarray, height: int, width: int
) -> np.ndarray | None:
    """The box, x1 y1 x2 y2 in image pixels, of a mask's part within `region`, or None if there is none.

    region: x1 y1 x2 y2 in image pixels, inside the (height, width) image. To a pixel of an image enlarged by `scale`
    (x, y) where the mask is made of polygons, else to a pixel of the image.
    """
    x1, y1, x2, y2 = (float(v) for v in region)
    if isinstance(segmentation, list):
        scale = np.asarray(scale, np.float64)
        w, h = (max(int(np.ceil(v)), 1) for v in ((x2 - x1) * scale[0], (y2 - y1) * scale[1]))
        parts = rle.frPyObjects(moved_polygons(segmentation, np.array([x1, y1]), scale), h, w)
        x, y, w, h = rle.toBbox(rle.merge(parts))
        box = np.array([x, y, x + w, y + h]) / np.tile(scale, 2) + [x1, y1, x1, y1]
    else:
        left, top = int(np.floor(x1)), int(np.floor(y1))
        part = to_bitmap(segmentation, height, width)[top : int(np.ceil(y2)), left : int(np.ceil(x2))]
        x, y, w, h = cv2.boundingRect(part)
        box = np.array([x, y, x + w, y + h], np.float64) + [left, top, left, top]
    if not w or not h:
        return None
    box = np.array([max(box[0], x1), max(box[1], y1), min(box[2], x2), min(box[3], y2)])
    return box if (box[2:] > box[:2]).all() else None


def visible_objects(
    view: View,
    boxes: np.ndarray,
    segmentations: list | None,
    height: int,
    width: int,
    least: float = LEAST_VISIBLE,
) -> tuple[np.ndarray, np.ndarray]:
    """Which objects a view shows, (K,) row numbers, and the boxes (K, 4) float32, in image pixels, of what it shows.

    An object that a window cuts gets the box of its mask's part inside, or without `segmentations` its box's part
    inside. Of a whole object the box stays. What is left with a side below `least` canvas pixels, or without a pixel of
    its mask, is dropped.
    """
    x1, y1, x2, y2 = view.window
    inside = np.stack([np.clip(boxes[:, i], low, high) for i, (low, high) in enumerate(((x1, x2), (y1, y2)) * 2)], 1)
    cut = (inside != boxes).any(1)
    kept = np.ones(len(boxes), bool)
    for i in np.flatnonzero(cut):
        sides = inside[i, 2:] - inside[i, :2]
        if (sides * view.scale >= least).all() and segmentations is not None:
            box = tight_box(segmentations[i], inside[i], view.scale, height, width)
            sides = np.zeros(2) if box is None else box[2:] - box[:2]
            inside[i] = inside[i] if box is None else box
        kept[i] = (sides * view.scale >= least * (1 - 1e-4)).all()
    return np.flatnonzero(kept), inside[kept].astype(np.float32)
