"""Pictures as callers give them: paths, arrays, PIL images."""

from __future__ import annotations

import os
from typing import Union

import numpy as np
from PIL import Image

from src.data.images import orientation_for, picture_size, read_frame, turn
from src.data.records import DataError

__all__ = ["Source", "read_source"]

EXIF_ORIENTATION = 0x0112
Source = Union[str, os.PathLike, np.ndarray, Image.Image]


def read_source(source: Source, exif: str, annotated: tuple[int, int] | None = None) -> tuple[np.ndarray, int]:
    """A source as (H, W, 3) uint8 BGR, and the EXIF orientation by which viewers turn it further, see read_frame.

    Raises DataError, one line, for one that isn't an image.
    """
    if isinstance(source, np.ndarray):
        return from_array(source), 1
    if isinstance(source, Image.Image):
        return from_pil(source, exif)
    if isinstance(source, (str, os.PathLike)):
        return read_frame(source, exif, annotated)
    raise DataError(f"{str(source)[:60]!r}: not an image; give a path, an (H, W, 3) uint8 RGB array or a PIL image")


def from_array(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB as BGR. Raises DataError for another shape or type."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise DataError(f"an image of shape {image.shape}, {image.dtype}; expected (height, width, 3), uint8, RGB")
    return np.ascontiguousarray(image[:, :, ::-1])


def from_pil(image: Image.Image, exif: str) -> tuple[np.ndarray, int]:
    """A PIL image as BGR, and the orientation that it lacks. As of files, alpha is dropped, and the lower 8 bits of 16.

    Raises DataError.
    """
    name = getattr(image, "filename", "") or f"a PIL image of mode {image.mode}"
    if image.mode in ("I", "F"):
        raise DataError(
            f"{name}: values of 32 bits, whose range nothing tells; scale them to 0..255 and convert to RGB"
        )
    try:
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as e:
        raise DataError(f"{name}: can't be decoded: {str(e).splitlines()[0] if str(e) else type(e).__name__}") from None
    orientation = orientation if orientation in range(1, 9) else 1
    applied = orientation_for(exif, picture_size(pixels), orientation)
    return turn(from_array(pixels), applied), 1 if applied == orientation else orientation
