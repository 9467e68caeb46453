"""Encoded pictures of each kind that is read, and of one that isn't (GIF), and changes to their bytes."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from benchmarks.mutations import raw
from benchmarks.mutations.sets import pick

__all__ = ["KINDS", "checksums", "make", "mutate", "number"]

KINDS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "GIF")
MODES = {"PNG": ("L", "LA", "RGB", "RGBA", "1", "P", "I;16"), "JPEG": ("L", "RGB", "CMYK"), "WEBP": ("RGB", "RGBA")}
MODES |= {"TIFF": ("L", "RGB", "RGBA", "CMYK", "1", "I;16"), "BMP": ("L", "RGB", "1", "P"), "PPM": ("L", "RGB", "1")}
MODES |= {"JPEG2000": ("L", "RGB", "RGBA"), "GIF": ("L", "P")}
NUMBERS = (0, 1, 2, 255, 256, 65500, 65535, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)


def make(random: np.random.Generator, kind: str) -> bytes:
    """A valid picture of up to 60 x 60 pixels."""
    height, width = (int(v) for v in random.integers(1, 61, 2))
    mode = pick(random, MODES[kind])
    if mode == "I;16":
        image = Image.fromarray(random.integers(0, 1 << 16, (height, width)).astype(np.uint16))
    else:
        image = Image.fromarray(random.integers(0, 256, (height, width, 3)).astype(np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = int(random.integers(1, 9))
    options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") and random.random() < 0.5 else {}
    if kind == "JPEG":
        options["progressive"] = bool(random.random() < 0.5)
    if kind == "TIFF":
        options["compression"] = pick(random, ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"))
    if kind in ("TIFF", "WEBP") and mode in ("RGB", "RGBA") and random.random() < 0.3:
        options |= {"save_all": True, "append_images": [image.transpose(Image.Transpose.ROTATE_180)] * 3}
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def number(random: np.random.Generator, data: bytes) -> bytes:
    """A number somewhere in the head of another value."""
    out, form = bytearray(data), pick(random, ("<H", ">H", "<I", ">I"))
    size = struct.calcsize(form)
    if len(out) > size:
        at = int(random.integers(min(len(out) - size, 300)))
        out[at : at + size] = struct.pack(form, pick(random, NUMBERS) % (1 << 8 * size))
    return bytes(out)


def checksums(data: bytes) -> bytes:
    """A PNG with right checksums; other bytes as they are."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        end = at + 8 + struct.unpack_from(">I", out, at)[0]
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


def mutate(random: np.random.Generator, data: bytes) -> bytes:
    """A picture's bytes with one to four changes, of numbers in its head, or of any bytes."""
    for _ in range(int(random.integers(1, 4))):
        data = number(random, data) if random.random() < 0.5 else raw.mutate(random, data)
    return checksums(data) if random.random() < 0.7 else data
