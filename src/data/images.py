"""Image files: which there are, their sizes without decoding them, and their pixels; bounded in size.

Pixels are taken as stored, or turned as the file's EXIF orientation says; `orientation_for` is the one rule. OpenCV and
libtiff never turn them by themselves.
"""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from src.data.records import DataError
from src.runtime.files import open_regular, read_regular

__all__ = [
    "EXIF_POLICIES",
    "Header",
    "IMAGE_SUFFIXES",
    "MAX_BYTES",
    "MAX_PIXELS",
    "check_decodes",
    "dark_16bit",
    "decode_image",
    "file_header",
    "frame_of",
    "image_header",
    "is_image",
    "orientation_for",
    "picture_size",
    "read_bytes",
    "read_frame",
    "read_image",
    "safe_decode",
    "sorted_files",
    "turn",
    "turn_points",
    "turned_size",
]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff")

MAX_PIXELS = 100_000_000  # decoded, that is 300 MB; kMostPixels of ascend310_infer/src/image.cc
# pixels of all scans of a JPEG: one takes time by its picture's size, and a few bytes; some 10 s, kMostScanned there
MOST_SCANNED = 10_000_000_000
MAX_BYTES = 512 * 1024 * 1024
EXIF_POLICIES = ("auto", "upright", "stored")
WIDTH, HEIGHT, ORIENTATION = 0x0100, 0x0101, 0x0112  # tags of EXIF and TIFF
PNG = b"\x89PNG\r\n\x1a\n"
# bytes that are read for the size of a JPEG or TIFF file, where cameras and editors put metadata; others have 1 MiB
MOST_HEAD = dict.fromkeys((b"\xff\xd8", b"II", b"MM"), 16 << 20)
MOST_EXIF = 1 << 20  # bytes; the orientation is among the first
MOST_CHUNKS = 100_000  # of a PNG that are looked through; the largest written by any tool have some 10,000
SWAPPED = (5, 6, 7, 8)  # orientations that exchange height and width

# the limit is MAX_PIXELS, for which an error is raised below
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# what Pillow tells of odd metadata concerns no pixel
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
Image.init()
# OpenCV's own threads would compete with the loader's workers
cv2.setNumThreads(0)
KINDS: list[str] = [k for k in ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000") if k in Image.OPEN]


def sorted_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Images in `folder` and below, by their suffix and in order of their paths; and what else lies there: other files,
    links that lead nowhere or to a folder that is being read, and hidden folders, where tools keep copies. Raises
    OSError.
    """
    images: list[Path] = []
    others: list[Path] = []
    collect_files(folder, frozenset([os.path.realpath(folder)]), images, others)
    return images, others


def collect_files(folder: Path, above: frozenset[str], images: list[Path], others: list[Path]) -> None:
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.is_dir():
            place = os.path.realpath(entry.path)
            if place in above or entry.name.startswith("."):
                others.append(Path(entry.path))
            else:
                collect_files(Path(entry.path), above | {place}, images, others)
        elif entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file() and not entry.name.startswith("._"):
            images.append(Path(entry.path))
        else:
            others.append(Path(entry.path))


class Header(NamedTuple):
    """What a file says of its picture before it is decoded: `kind` of KINDS, the stored pixels' size, and EXIF's (or
    TIFF's) orientation 1..8, 1 where there is none."""

    kind: str
    height: int
    width: int
    orientation: int

    @property
    def stored(self) -> tuple[int, int]:
        """(height, width) as stored."""
        return self.height, self.width

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) as viewers show it."""
        return turned_size(self.stored, self.orientation)


def picture_size(image: np.ndarray) -> tuple[int, int]:
    """(height, width) of an (H, W) or (H, W, C) array."""
    height, width = image.shape[:2]
    return height, width


def orientation_for(
    policy: str, stored: tuple[int, int], orientation: int, annotated: tuple[int, int] | None = None
) -> int:
    """The EXIF orientation 1..8 to apply to a picture's stored pixels; 1: none.

    policy: of EXIF_POLICIES. upright: the file's `orientation`; stored: 1; auto: the file's where the `annotated`
    (height, width) is that of the upright picture and not that of the stored one, else 1. Where both have one size,
    nothing tells them apart, and COCO's rule holds: as stored.
    """
    if policy not in EXIF_POLICIES:
        raise ValueError(f"exif: {policy!r} is none of {', '.join(EXIF_POLICIES)}")
    if policy == "auto":
        shown = turned_size(stored, orientation)
        return orientation if annotated is not None and tuple(annotated) == shown != tuple(stored) else 1
    return orientation if policy == "upright" else 1


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(height, width) after `orientation` was applied."""
    height, width = size
    return (width, height) if orientation in SWAPPED else (height, width)


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) as EXIF's orientation 1..8 wants it shown."""
    if orientation in SWAPPED:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def turn_points(points: np.ndarray, size: tuple[int, int], orientation: int) -> np.ndarray:
    """Points (N, 2), x y in pixels of a stored picture of `size` (height, width), in those of the turned one."""
    points = np.array(points, np.float64).reshape(-1, 2)
    height, width = turned_size(size, orientation)
    if orientation in SWAPPED:
        points = points[:, ::-1].copy()
    if orientation in (2, 3, 6, 7):
        points[:, 0] = width - points[:, 0]
    if orientation in (3, 4, 7, 8):
        points[:, 1] = height - points[:, 1]
    return points


def frame_of(path: Path, policy: str, annotated: tuple[int, int] | None = None) -> tuple[int, int, int]:
    """(height, width) of an image file's frame and the orientation by which its pixels are turned into it.

    From the file's head. Raises DataError.
    """
    header = file_header(path)
    applied = orientation_for(policy, header.stored, header.orientation, annotated)
    return (*turned_size(header.stored, applied), applied)


def file_header(path: str | Path, max_pixels: int = MAX_PIXELS) -> Header:
    """image_header of a file, of which no more than the head is read. Raises DataError."""
    path = Path(path)
    try:
        with open_regular(path) as f:
            return read_header(f, str(path), max_pixels)
    except FileNotFoundError:
        raise DataError(f"{path}: no such image") from None
    except OSError as e:
        raise DataError(f"{path}: can't read: {e.strerror}") from None


def image_header(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Header:
    """Kind, stored size and orientation of image bytes, from their header alone: nothing is decoded.

    Raises DataError, one line that begins with `name`, for bytes that aren't an image of KINDS, or for one of more than
    `max_pixels`: a few kilobytes can hold an image that fills the memory.
    """
    header = read_header(io.BytesIO(data), name, max_pixels)
    if header.kind == "JPEG" and data.count(b"\xff\xda") * header.height * header.width > MOST_SCANNED:
        raise DataError(f"{name}: a JPEG of too many scans; save it anew")
    return header


class Head(io.RawIOBase):
    """A stream that ends after `most` bytes were read, wherever: metadata can go on for hundreds of megabytes."""

    def __init__(self, stream: BinaryIO, most: int):
        self.stream, self.left = stream, most

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def told_size(stream: BinaryIO) -> tuple[str, int, int, Any]:
    """(kind of KINDS, height, width, orientation) as a seekable stream tells them, unchecked.

    Raises whatever Pillow does; nothing is decoded.
    """
    stream.seek(0)
    begin = stream.read(32)
    if begin[:8] == PNG and begin[12:16] == b"IHDR":
        # Pillow would read, and unpack, what comes before the pixels
        width, height = struct.unpack_from(">II", begin, 16)
        entry = orientation_entry(png_exif(stream))
        return "PNG", height, width, entry[0] if entry else 1
    stream.seek(0)
    # a WebP file Pillow reads whole, at once
    part: Any = stream if begin[8:12] == b"WEBP" else Head(stream, MOST_HEAD.get(begin[:2], 1 << 20))
    with Image.open(part, formats=KINDS) as image:
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            # Pillow exchanges the sides of a turned one
            tags = image.tag_v2
            return "TIFF", int(tags[HEIGHT]), int(tags[WIDTH]), tags.get(ORIENTATION, 1)
        width, height = image.size
        entry = orientation_entry(image.info.get("exif") or b"")
        # pictures of phones with a second one behind the first are JPEG files all the same
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        return kind, height, width, entry[0] if entry else 1


def read_header(stream: BinaryIO, name: str, max_pixels: int) -> Header:
    """image_header of a seekable stream. Raises DataError, and the stream's OSError."""
    if stream.seek(0, os.SEEK_END) > MAX_BYTES:
        raise DataError(f"{name}: larger than {MAX_BYTES >> 20} MiB")
    try:
        kind, height, width, orientation = told_size(stream)
        if height < 1 or width < 1:
            raise ValueError("a side without pixels")
    except Image.DecompressionBombError:
        raise DataError(f"{name}: more than {max_pixels:,} pixels; make it smaller") from None
    except UnidentifiedImageError:
        stream.seek(0)
        raise DataError(f"{name}: {unknown_kind(stream.read(32))}") from None
    except Exception:  # a damaged header raises any of a dozen kinds
        raise DataError(f"{name}: a damaged image; fetch it again") from None
    if height * width > max_pixels:
        raise DataError(f"{name}: {width} x {height}, more than {max_pixels:,} pixels; make it smaller")
    return Header(kind, height, width, orientation if orientation in range(1, 9) else 1)


def unknown_kind(begin: bytes) -> str:
    """What to tell of a file that begins so."""
    other = "GIF" if begin[:4] == b"GIF8" else ""
    if begin[4:8] == b"ftyp":
        brands = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF"}
        other = brands.get(begin[8:12], "")
    if other:
        return f"a {other} file, which isn't read; save it as PNG or JPEG"
    return "empty" if not begin else "not an image (JPEG, PNG, BMP, TIFF, WebP, PPM, JPEG 2000)"


def orientation_entry(data: bytes) -> tuple[int, int, str] | None:
    """(orientation, its place, byte order) of TIFF's or EXIF's first directory (TIFF 6.0; Exif 2.32; BigTIFF).

    `data` may begin with EXIF's own six bytes; the place counts from the beginning of the rest. None where the
    directory has no orientation, or can't be read.
    """
    marks = next(re.finditer(rb"(?:Exif\0\0)*", data))[0]
    data = data[len(marks) :]
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return None
    try:
        (magic,) = struct.unpack_from(order + "H", data, 2)
        if magic not in (42, 43):
            return None
        big = magic == 43
        (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
        first, step, value = (start + 8, 20, 12) if big else (start + 2, 12, 8)
        for place in range(first, min(first + count * step, len(data)), step):
            tag, form = struct.unpack_from(order + "HH", data, place)
            if tag == ORIENTATION:
                # SHORT; some write a LONG
                width = {3: "H", 4: "I"}[form]
                (orientation,) = struct.unpack_from(order + width, data, place + value)
                return orientation, place + value, order + width
    except (struct.error, KeyError, OverflowError):
        pass
    return None


def png_exif(stream: BinaryIO) -> bytes:
    """The beginning of the eXIf chunk of a PNG, which may come after its pixels; empty without one."""
    at = 8
    for _ in range(MOST_CHUNKS):
        stream.seek(at)
        head = stream.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return b""
        (length,) = struct.unpack(">I", head[:4])
        if head[4:] == b"eXIf":
            return stream.read(min(length, MOST_EXIF))
        at += 12 + length
    return b""


def is_image(path: Path) -> bool:
    """Whether the file begins as an image of KINDS; it may be damaged further on."""
    try:
        with open_regular(path) as f:
            told_size(f)
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # as above
        return False


def decode_image(data: bytes, name: str, orientation: int = 1) -> np.ndarray:
    """Image bytes (JPEG, PNG, ...) as (H, W, 3) uint8, BGR. Raises DataError for bytes that don't decode.

    The stored pixels, turned by `orientation` alone; see orientation_for. Grey images get three equal channels, alpha
    is dropped, 16-bit images are scaled down to 8; of several pictures in a file, the first.
    """
    image = imdecode(data, cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{name}: not an image, or damaged; fetch it again")
    return image if orientation == 1 else turn(image, orientation)


def chunks_fit(data: bytes) -> bool:
    """Whether a PNG's chunks, to the last, lie within it, pixels among them: OpenCV sets aside the memory that one
    claims, or that the bytes of none do, gigabytes or not; and looks for pixels beyond the last."""
    at, pixels = 8, False
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + length
        pixels |= kind == b"IDAT"
        if kind == b"IEND":
            return pixels and at <= len(data)
    return False


def imdecode(data: bytes, flags: int) -> np.ndarray | None:
    """cv2.imdecode of the stored pixels; None also where OpenCV raises."""
    if not data or (data[:8] == PNG and not chunks_fit(data)):
        return None
    stored: bytes | bytearray = data
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") and (entry := orientation_entry(data)):
        # OpenCV turns a TIFF whatever it is told
        stored = bytearray(data)
        struct.pack_into(entry[2], stored, entry[1], 1)
    try:
        return cv2.imdecode(np.frombuffer(stored, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as e:
        if e.code == cv2.Error.StsNoMem:
            raise MemoryError from None
        return None


def safe_decode(
    data: bytes,
    name: str,
    exif: str = "stored",
    annotated: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Image bytes as (H, W, 3) uint8 BGR, by the decoder of the data sets, after a look at their header.

    exif: whether the picture is turned, see orientation_for; annotated: the (height, width) that it must have then, and
    by which auto decides. Raises DataError, as image_header, for bytes that don't decode, and for another size.
    """
    return decode_frame(data, name, exif, annotated, max_pixels)[0]


def decode_frame(
    data: bytes, name: str, exif: str, annotated: tuple[int, int] | None, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, int]:
    """safe_decode's image, and the EXIF orientation by which viewers turn it further: 1 where it is upright."""
    header = image_header(data, name, max_pixels)
    orientation = orientation_for(exif, header.stored, header.orientation, annotated)
    check_frame(header, orientation, annotated, name)
    image = decode_image(data, name)
    if image.shape[:2] != header.stored:
        raise DataError(f"{name}: a damaged image, {image.shape[1]} x {image.shape[0]} where its header says otherwise")
    return turn(image, orientation), 1 if orientation == header.orientation else header.orientation


def check_frame(header: Header, orientation: int, annotated: tuple[int, int] | None, name: str) -> None:
    """Raises DataError where the picture, turned by `orientation`, isn't of the annotated (height, width)."""
    height, width = turned_size(header.stored, orientation)
    if annotated is None or tuple(annotated) == (height, width):
        return
    if tuple(annotated) in (header.stored, header.upright):
        which = "stored" if tuple(annotated) == header.stored else "upright"
        remedy = f"its {which} size, by EXIF orientation {header.orientation}; use exif: auto"
    else:
        remedy = "was it resized since? mend the annotation or the image"
    raise DataError(f"{name}: {width} x {height} pixels, but annotated as {annotated[1]} x {annotated[0]}: {remedy}")


def check_decodes(data: bytes, name: str, header: Header) -> None:
    """Raises DataError where image bytes don't decode to their end, or to another size than their header says.

    A JPEG is decoded at an eighth of its size, for a fraction of the time: it is read to its end, and OpenCV refuses
    one that is cut short, by a byte even. Other kinds are decoded whole.
    """
    reduced = header.kind == "JPEG"
    image = imdecode(data, cv2.IMREAD_REDUCED_COLOR_8 if reduced else cv2.IMREAD_COLOR)
    if image is None:
        raise DataError(f"{name}: not an image, or damaged or cut short; fetch it again")
    wanted = tuple(-(-side // 8) for side in header.stored) if reduced else header.stored
    if image.shape[:2] != wanted:
        raise DataError(f"{name}: a damaged image, of another size than its header says; fetch it again")


def dark_16bit(data: bytes, name: str, header: Header) -> int:
    """10 or 12 for an image of 16 bits a channel whose values take no more than so many bits, else 0.

    decode_image keeps the upper 8 of 16 bits, so that such a picture is nearly black. Raises DataError.
    """
    if header.kind not in ("PNG", "TIFF", "PPM", "JPEG2000") or (header.kind == "PNG" and data[24] != 16):
        return 0
    image = imdecode(data, cv2.IMREAD_UNCHANGED)
    if image is None:
        raise DataError(f"{name}: not an image, or damaged or cut short; fetch it again")
    colours = image[:, :, :3] if image.ndim == 3 else image
    highest = int(colours.max()) if image.dtype == np.uint16 else 0
    return 0 if not 0 < highest < 1 << 12 else 10 if highest < 1 << 10 else 12


def read_bytes(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a file of at most `max_bytes`. Raises DataError."""
    try:
        return read_regular(path, max_bytes)
    except OSError as e:
        raise DataError(f"{path}: can't read: {e.strerror}") from None


def read_image(
    path: str | Path, exif: str = "stored", annotated: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """An image file as (H, W, 3) uint8 BGR; see safe_decode. Raises DataError."""
    return safe_decode(read_bytes(path), str(path), exif, annotated, max_pixels)


def read_frame(path: str | os.PathLike, exif: str, annotated: tuple[int, int] | None = None) -> tuple[np.ndarray, int]:
    """read_image's image, and the EXIF orientation by which viewers turn it further: 1 where it is upright."""
    return decode_frame(read_bytes(path), str(path), exif, annotated)
