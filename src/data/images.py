"""Image files: which there are, their sizes without decoding them, and their pixels; bounded in size."""

import errno
import io
import os
import warnings
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from src.data.records import DataError

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_BYTES",
    "MAX_PIXELS",
    "decode_check",
    "decode_image",
    "file_header",
    "frame_of",
    "image_header",
    "is_image",
    "orientation_for",
    "read_bytes",
    "read_image",
    "safe_decode",
    "sorted_files",
    "turn",
]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff")

MAX_PIXELS = 100_000_000  # decoded, that is 300 MB
MAX_BYTES = 512 * 1024 * 1024
ORIENTATION = 0x0112  # EXIF tag

# the limit is MAX_PIXELS, for which an error is raised below
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
Image.init()
# OpenCV's own threads would compete with the loader's workers
cv2.setNumThreads(0)
KINDS = [k for k in ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000") if k in Image.OPEN]


def sorted_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Images in `folder` and below, by their suffix and in order of their paths; and what else lies there: other files,
    and links that lead nowhere. Raises OSError.
    """
    images, others = [], []
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.is_dir():
            inner = sorted_files(Path(entry.path))
            images += inner[0]
            others += inner[1]
        elif entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file() and not entry.name.startswith("._"):
            images.append(Path(entry.path))
        else:
            others.append(Path(entry.path))
    return images, others


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


def decode_check(data: bytes, name: str) -> tuple[int, int]:
    """(height, width) of an image's stored pixels, after decoding it to its end. Raises DataError where it doesn't.

    Of a JPEG an eighth of the size is decoded, which costs a fraction and reads all of the file: OpenCV refuses one
    that is cut short, by a byte even.
    """
    kind, height, width, _ = image_header(data, name)
    reduced = kind in ("JPEG", "MPO") and min(height, width) >= 8
    flags = (cv2.IMREAD_REDUCED_COLOR_8 if reduced else cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise DataError(f"{name}: not an image, or damaged or cut short; fetch it again")
    return height, width


def image_header(data: bytes | BinaryIO, name: str, max_pixels: int = MAX_PIXELS) -> tuple[str, int, int, int]:
    """(kind, height, width, EXIF orientation 1..8) of an image's bytes or open file, from the header alone.

    Raises DataError, one line that begins with `name`, for bytes that aren't an image of KINDS, or for one of more than
    `max_pixels`: a few kilobytes can hold an image that fills the memory.
    """
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=KINDS) as image:
            width, height = image.size
            kind = image.format
            orientation = image.getexif().get(ORIENTATION, 1)
    except Image.DecompressionBombError:
        raise DataError(f"{name}: more than {max_pixels:,} pixels; make it smaller") from None
    except UnidentifiedImageError:
        reason = "empty" if not data else "not an image (JPEG, PNG, BMP, TIFF, WebP, PPM, JPEG 2000)"
        raise DataError(f"{name}: {reason}") from None
    except Exception:  # a damaged header raises any of a dozen kinds
        raise DataError(f"{name}: a damaged image; fetch it again") from None
    if height * width > max_pixels:
        raise DataError(f"{name}: {width} x {height}, more than {max_pixels:,} pixels; make it smaller")
    return kind, height, width, orientation if orientation in range(1, 9) else 1


def orientation_for(
    policy: str, stored: tuple[int, int], orientation: int, annotated: tuple[int, int] | None = None
) -> int:
    """The orientation, EXIF's 1..8, by which stored pixels are turned before they are used.

    policy: the config's `exif`; stored, annotated: (height, width) of the pixels as stored and of the frame that the
    annotations are in; orientation: what the file's EXIF says.
    """
    if policy == "stored" or (policy == "auto" and annotated is None):
        return 1
    if policy == "upright":
        return orientation
    turned = stored[::-1] if orientation >= 5 else stored
    return orientation if tuple(annotated) == tuple(turned) != tuple(stored) else 1


def file_header(path: Path) -> tuple[str, int, int, int]:
    """image_header of a file. Raises DataError."""
    try:
        with path.open("rb") as f:
            return image_header(f, str(path))
    except OSError as e:
        raise DataError(f"{path}: can't read: {e.strerror}") from None


def frame_of(path: Path, policy: str, annotated: tuple[int, int] | None = None) -> tuple[int, int, int]:
    """(height, width) of an image file's frame and the orientation by which its pixels are turned into it.

    From the file's head. Raises DataError.
    """
    _, height, width, orientation = file_header(path)
    applied = orientation_for(policy, (height, width), orientation, annotated)
    return (width, height, applied) if applied >= 5 else (height, width, applied)


def is_image(path: Path) -> bool:
    """Whether the file begins as an image of KINDS; it may be damaged further on."""
    if not path.is_file():
        return False
    try:
        with Image.open(path, formats=KINDS):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # as above
        return False


def safe_decode(data: bytes, name: str, upright: bool = False, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Image bytes as (H, W, 3) uint8 BGR, by the decoder of the data sets, after a look at their header.

    upright: the picture is turned as its EXIF orientation says; else it stays as stored, as COCO's annotations have it.
    Raises DataError, as image_header, and for bytes that don't decode.
    """
    *_, orientation = image_header(data, name, max_pixels)
    image = decode_image(data, name)
    return turn(image, orientation) if upright else image


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, 3) as EXIF's orientation 1..8 wants it shown."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def read_bytes(path: str | Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a file of at most `max_bytes`. Raises DataError."""
    path = Path(path)
    try:
        # a pipe would be waited for without end
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "not a file")
        with path.open("rb") as f:
            data = f.read(max_bytes + 1)
    except OSError as e:
        raise DataError(f"{path}: can't read: {e.strerror}") from None
    except ValueError:
        raise DataError(f"{path}: not a file name") from None
    if len(data) > max_bytes:
        raise DataError(f"{path}: larger than {max_bytes >> 20} MiB")
    return data


def read_image(path: str | Path, upright: bool = False, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image file as (H, W, 3) uint8 BGR; see safe_decode. Raises DataError."""
    return safe_decode(read_bytes(path), str(path), upright, max_pixels)
