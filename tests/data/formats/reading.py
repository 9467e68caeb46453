"""A split as training meets it: its usable images under the config's policy, and what was left out; and pictures."""

import io
from types import SimpleNamespace

import numpy as np
from PIL import Image

from src.data.formats import read_split


def load(config, split="train", **options):
    data = read_split(config, split, **options)
    records = data.usable(config.on_bad_image)
    parts = {"split": data.split, "category_ids": data.category_ids, "notes": data.notes}
    return SimpleNamespace(records=records, skipped=data.skipped(), **parts)


def picture(orientation=1, kind="JPEG", colours=None):
    """The bytes of an image, by default grey and 60 x 40 pixels as it is stored, with that EXIF orientation."""
    pixels = np.full((40, 60, 3), 90, np.uint8) if colours is None else colours
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, exif=exif)
    return out.getvalue()
