"""What a data set's reader gives: one record an image, and the fault that a user can mend."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from src.errors import UserError

__all__ = ["CocoSplit", "DataError", "ImageRecord", "Split"]


class DataError(UserError):
    """Data that can't be used; the message names the file or the record, and the remedy."""


@dataclass(frozen=True)
class Split:
    """Where a split's annotations and images lie."""

    annotations: Path
    images: Path
    part: str = ""  # of a Pascal VOC folder: "train" or "val"


@dataclass
class ImageRecord:
    """One image. boxes (N, 4) float32 x1 y1 x2 y2 in image pixels; labels (N,) int32, of crowds not used."""

    image_id: int
    path: Path
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    segmentations: list = field(default_factory=list)


@dataclass
class CocoSplit:
    """The usable images of a split, what was left out and why, and COCO's id of each label."""

    split: Split
    records: list[ImageRecord]
    skipped: list[str]
    category_ids: dict[int, int]
