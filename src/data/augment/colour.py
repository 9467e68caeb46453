"""Augmentation of colours, drawn from a generator that the caller seeds."""

import cv2
import numpy as np

__all__ = ["photometric_distortion"]


def photometric_distortion(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue, each changed with probability 1/2, and the channels' order with 1/2.

    image (H, W, 3) uint8 BGR, left as it is; returns another. The ranges are those of Liu et al. (2016,
    arXiv:1512.02325). Contrast comes before or after the others, with equal probability. In bytes, by tables: five
    times as fast as in floats, to a rounding of each step.
    """
    levels = np.arange(256, dtype=np.float32)
    shift = random.uniform(-32, 32) if random.random() < 0.5 else 0.0
    contrast = random.uniform(0.5, 1.5) if random.random() < 0.5 else 1.0
    contrast_first = random.random() < 0.5
    saturation = random.uniform(0.5, 1.5) if random.random() < 0.5 else 1.0
    hue = random.uniform(-18, 18) if random.random() < 0.5 else 0.0
    before = levels + shift
    if contrast_first:
        before *= contrast
    image = cv2.LUT(image, to_bytes(before))
    if saturation != 1 or hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        # OpenCV's hue of bytes is in steps of two degrees, 0..179
        tables = [(levels + round(hue / 2)) % 180, levels * saturation, levels]
        hsv = cv2.LUT(hsv, np.stack([to_bytes(t) for t in tables], -1)[None])
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if not contrast_first and contrast != 1:
        image = cv2.LUT(image, to_bytes(levels * contrast))
    if random.random() < 0.5:
        image = np.ascontiguousarray(image[:, :, random.permutation(3)])
    return image


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Rounded and clipped to 0..255."""
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
