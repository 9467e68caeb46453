"""Image files of a data set: which there are, and their sizes without decoding them."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from src.data.coco import DataError

__all__ = ["IMAGE_SUFFIXES", "image_files", "image_size"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def image_files(folder: Path) -> Iterator[os.DirEntry]:
    """Images in `folder` and the folders in it, in order of their names. Raises OSError."""
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.is_dir():
            yield from image_files(Path(entry.path))
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            yield entry


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of the stored pixels, from the file's head; EXIF rotation isn't applied. Raises DataError."""
    try:
        with warnings.catch_warnings():
            # Pillow's advice on large images: only the head is read here
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.height, image.width
    except FileNotFoundError:
        raise DataError(f"{path}: no such image") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise DataError(f"{path}: not an image, or damaged or too large") from None
