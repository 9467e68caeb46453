"""What the reader of any format gives: one record an image, its objects, and the faults that a user can mend."""

from __future__ import annotations

import contextlib
import gc
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from src.runtime.errors import UserError, one_line
from src.runtime.newer import SLOTS, zip_equal

__all__ = [
    "DataError",
    "ImageRecord",
    "Instance",
    "Records",
    "Split",
    "clipped_box",
    "number",
    "report_notes",
    "without_collector",
]

LEAST_SIDE = 0.005  # pixels: COCO gives hundredths, so a smaller side is none
MOST_REPEATS = 100  # images of one picture: each is copied, into a data set or a conversion
SKIP_ADVICE = "(or leave such images out: on_bad_image: skip)"

Box = tuple[float, float, float, float]
NO_FIELDS: Mapping[str, Any] = MappingProxyType({})  # of all the objects that have none, which may be millions


class DataError(UserError):
    """Data that can't be used; the message names the file or the record, and the remedy."""


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Keeps Python's search for cycles off, as a block or as a function's decorator.

    A large set's records are millions of objects in no cycle; walking all of them again and again takes as long as
    reading them.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@dataclass(frozen=True)
class Split:
    """Where a split's annotations and images lie.

    part: which part of a folder that several splits share, "" for all of it; listing: a file that names that part's
    images.
    """

    annotations: Path
    images: Path
    part: str = ""
    listing: Path | None = None


@dataclass(**SLOTS)
class Instance:
    """One object or crowd region.

    label: place in the config's coco_classes; 0 for a region of no one class that is neither object nor background.
    box: x1 y1 x2 y2 in pixels of the image, inside it. bbox: x, y, width, height as the annotation gives it. area: in
    pixels, of the mask where there is one. segmentation: polygons, (2 x points,) float64 each, or compressed RLE
    ({"size": [height, width], "counts": text}), or None. fields: values by the name of their field, src/data/fields.
    """

    label: int
    crowd: bool
    box: Box
    bbox: Box
    area: float
    segmentation: list[np.ndarray] | dict | None = None
    fields: Mapping[str, Any] = field(default_factory=lambda: NO_FIELDS)


@dataclass(**SLOTS)
class ImageRecord:
    """One image of a split.

    height, width: of the frame that its annotations are in, 0 where nothing tells; orientation: EXIF's 1..8, by which
    the stored pixels are turned into that frame, None where the file wasn't looked at yet; exif: what the file says, so
    far as it was looked at; bits: that 16-bit values fill where they are few, else 0. file_name: as annotated.
    told: how messages name it and where it is annotated.
    source_id: the annotations' own id where that is no number image_id can be. faults: why the image can't be used, a
    line each; then `instances` are those of its objects that are whole, and `path` may lead nowhere.
    """

    image_id: int
    file_name: str
    path: Path
    height: int
    width: int
    instances: list[Instance] = field(default_factory=list)
    orientation: int | None = 1
    source_id: int | str | None = None
    exif: int = 1
    bits: int = 0
    told: str = ""
    faults: list[str] = field(default_factory=list)

    @property
    def boxes(self) -> np.ndarray:
        """(N, 4) float32 x1 y1 x2 y2."""
        return np.array([i.box for i in self.instances], np.float32).reshape(-1, 4)

    @property
    def labels(self) -> np.ndarray:
        """(N,) int32."""
        return np.array([i.label for i in self.instances], np.int32)

    @property
    def crowd(self) -> np.ndarray:
        """(N,) bool."""
        return np.array([i.crowd for i in self.instances], bool)

    def add(self, read: Callable[..., Instance | None], *arguments: object) -> None:
        """Adds what `read` makes of one annotation: an object, nothing for one that is left out, or its DataError as a
        fault of the image.
        """
        try:
            instance = read(*arguments)
        except DataError as e:
            self.faults.append(str(e))
            return
        if instance is not None:
            self.instances.append(instance)


@dataclass
class Records:
    """A split as its reader found it: every image, with or without faults.

    categories: what its truth lists, {"id", "name"} of each class of the config in order, "source_id" where the
    annotations' own id is no number, and what fields have of it; notes: what was passed over, computed or looks odd, a
    line each; with_masks: objects have segmentations; opened: other files that were read for it; listed: folders whose
    names of files decided which images are meant.
    """

    split: Split
    images: list[ImageRecord]
    categories: list[dict]
    notes: list[str] = field(default_factory=list)
    with_masks: bool = False
    listed: list[Path] = field(default_factory=list)

    @property
    def category_ids(self) -> dict[int, int]:
        """The category id of each label."""
        return {label: c["id"] for label, c in enumerate(self.categories, 1)}

    def usable(self, on_bad_image: str) -> list[ImageRecord]:
        """The images without faults. Raises DataError at the first fault where on_bad_image is "stop"."""
        out = []
        for record in self.images:
            if record.faults and on_bad_image == "stop":
                raise DataError(f"{record.faults[0]} {SKIP_ADVICE}")
            if not record.faults:
                out.append(record)
        return out

    def check_counts(self, most: int) -> None:
        """Adds a fault to each image of more than `most` objects, which names the number that is enough for all."""
        counts = [sum(not i.crowd for i in r.instances) for r in self.images]
        for record, count in zip_equal(self.images, counts):
            if count > most:
                record.faults.append(
                    f"{record.told} has {count} objects, more than max_instance_count {most}; set it to {max(counts)},"
                    " the most that an image of this split has"
                )

    def check_repeats(self) -> None:
        """Raises DataError where one picture is listed so often that to copy it each time costs more than it holds."""
        for path, count in Counter(r.path for r in self.images if not r.faults).most_common(1):
            if count > MOST_REPEATS:
                raise DataError(
                    f"{path}: listed {count} times, more than {MOST_REPEATS}; list it once, with all its objects"
                )

    def skipped(self) -> list[str]:
        """The first fault of each image that has one, in one line whatever the names hold."""
        return [one_line(r.faults[0]) for r in self.images if r.faults]


def report_notes(skipped: Sequence[str], notes: Sequence[str]) -> None:
    """Names what was left out, and says what was passed over, computed or looks odd."""
    if skipped:
        print(f"{len(skipped)} images left out (on_bad_image: skip):")
        for reason in skipped:
            print(f"  {one_line(reason)}")
    for note in notes:
        print(f"note: {one_line(note)}")


def number(value: object) -> float | None:
    """A finite number, also where it is written as text; else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        out = float(value)
    except (ValueError, OverflowError):
        return None
    return out if math.isfinite(out) else None


def clipped_box(bbox: Iterable[float], height: int, width: int, where: str) -> Box:
    """[x, y, width, height], finite, as x1 y1 x2 y2 inside the image. Raises DataError, which begins with `where`."""
    x, y, w, h = bbox
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    if w < LEAST_SIDE or h < LEAST_SIDE:
        raise DataError(f"{where}: bbox {list(bbox)} has no area; remove the annotation")
    if x2 - x1 < LEAST_SIDE or y2 - y1 < LEAST_SIDE:
        raise DataError(f"{where}: bbox {list(bbox)} lies outside its {width} x {height} image; mend or remove it")
    return x1, y1, x2, y2
