"""From image bytes and annotations to the network's inputs; every operation on one image."""

import cv2
import mmcv
import numpy as np
from pycocotools import mask as rle

from src.config import Config
from src.data.coco import DataError

__all__ = ["crop_mask", "decode_image", "fit_size", "prepare_image", "transform_objects"]

# OpenCV's own threads would compete with the loader's workers
cv2.setNumThreads(0)


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Image bytes (JPEG, PNG, ...) as (H, W, 3) uint8, BGR. Raises DataError for bytes that don't decode.

    EXIF rotation is not applied: COCO's annotations are in the stored pixels' coordinates. Grey images get three equal
    channels, alpha is dropped, 16-bit images are scaled down to 8.
    """
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if image is None:
        raise DataError(f"{name}: not an image, or damaged; fetch it again")
    return image


def fit_size(height: int, width: int, config: Config) -> tuple[int, int]:
    """(height, width) of the resized image: the largest that fits the canvas in proportion, or the canvas itself."""
    if not config.keep_ratio:
        return config.img_height, config.img_width
    scale = min(config.img_height / height, config.img_width / width)
    return (
        min(max(int(height * scale + 0.5), 1), config.img_height),
        min(max(int(width * scale + 0.5), 1), config.img_width),
    )


def prepare_image(image: np.ndarray, config: Config, flip: bool = False) -> tuple[np.ndarray, tuple[int, int]]:
    """Resizes in uint8, flips, normalises, pads: (H, W, 3) uint8 BGR -> (3, img_height, img_width) float32.

    Also returns the (height, width) that the picture takes of the canvas; the rest, right and below, is zero.
    """
    height, width = fit_size(*image.shape[:2], config)
    image = mmcv.imresize(image, (width, height), interpolation="bilinear", backend="cv2")
    if flip:
        image = mmcv.imflip(image, "horizontal")
    image = mmcv.imnormalize(image, np.array(config.img_mean), np.array(config.img_std), config.to_rgb)
    canvas = np.zeros((3, config.img_height, config.img_width), np.float32)
    canvas[:, :height, :width] = image.transpose(2, 0, 1)
    return canvas, (height, width)


def crop_mask(segmentation: list | dict, box: np.ndarray, height: int, width: int, size: int) -> np.ndarray:
    """A mask's part inside its box, resampled to (size, size) uint8 0..255.

    `segmentation` is COCO's polygons or RLE of a (height, width) image, `box` x1 y1 x2 y2 in its pixels. Cell
    (i, j) covers the box's i-th row and j-th column of `size`. Polygons are drawn at that resolution, without a bitmap
    of the image.
    """
    x1, y1, x2, y2 = (float(v) for v in box)
    if isinstance(segmentation, list):
        scale, origin = np.array([size / (x2 - x1), size / (y2 - y1)]), np.array([x1, y1])
        # pycocotools walks outlines point by point; one far larger than its box would overflow its integers
        moved = [
            np.clip((np.asarray(p, np.float64).reshape(-1, 2) - origin) * scale, -1e4, 1e4).ravel().tolist()
            for p in segmentation
            if len(p) >= 6
        ]
        return rle.decode(rle.merge(rle.frPyObjects(moved, size, size))) * np.uint8(255)
    if isinstance(segmentation["counts"], list):
        segmentation = rle.frPyObjects(segmentation, height, width)
    bitmap = rle.decode(segmentation) * np.uint8(255)
    step_x, step_y = (x2 - x1) / size, (y2 - y1) / size
    to_image = np.array([[step_x, 0, x1 + 0.5 * step_x - 0.5], [0, step_y, y1 + 0.5 * step_y - 0.5]])
    return cv2.warpAffine(bitmap, to_image, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def transform_objects(boxes: np.ndarray, original: tuple[int, int], resized: tuple[int, int], flip: bool) -> np.ndarray:
    """Boxes (N, 4) from pixels of the `original` (height, width) to canvas pixels of the `resized` picture."""
    sy, sx = resized[0] / original[0], resized[1] / original[1]
    boxes = boxes * np.array([sx, sy, sx, sy], np.float32)
    if flip:
        boxes = np.stack([resized[1] - boxes[:, 2], boxes[:, 1], resized[1] - boxes[:, 0], boxes[:, 3]], 1)
    return boxes.astype(np.float32)
