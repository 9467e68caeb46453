"""What a format of data sets is to the rest: where a split lies, its classes, its records."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from src.config import Config
from src.data.records import DataError, Records, Split, without_collector
from src.runtime.files import read_regular

__all__ = [
    "FOLDER_NAMES",
    "Format",
    "Labels",
    "Masks",
    "NoSplitError",
    "class_labels",
    "json_reason",
    "load_json",
    "passed_over",
    "read_lines",
    "share_of",
    "split_source",
    "truth_categories",
]

Masks = Literal["needed", "if_any", "unneeded"]
FOLDER_NAMES = {"train": ("train",), "val": ("validation", "val", "valid"), "test": ("test",)}


class NoSplitError(DataError):
    """A data set doesn't tell apart, or doesn't have, the split that was asked for."""


class Format:
    """One format. Its methods raise DataError. A split is "train", "val" or "test".

    fields: names of the fields (src/data/fields) that objects can have; options: keys of the config, of text or a
    number, by which it alone is read, which import_labels takes too; draws: where nothing tells which images validate,
    they are drawn by the config's seed. suffixes: in lower case, of a file that holds a data set's labels.
    images_beside: a split's images can lie beside the folder of its annotations; listed_alone: of the splits that it
    tells apart, those with a list of their images leave nothing to the others; needs_images: paths start from
    config.image_dir.
    """

    name = ""
    fields: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    draws = False
    suffixes: tuple[str, ...] = ()
    images_beside = False
    listed_alone = False
    needs_images = False

    def locate(self, config: Config, split: str) -> Split:
        """Where `split` lies; NoSplitError where there is none."""
        raise NotImplementedError

    def classes(self, where: Split) -> list[str]:
        """Names of the classes, without the background, in the order of their labels."""
        raise NotImplementedError

    def records(self, where: Split, config: Config, masks: Masks, files: bool = True) -> Records:
        """Every image of the split, checked; an object without a usable mask is a fault where masks are "needed", or
        "if_any" object of the split has one. files: images are looked for; a format that needs their sizes looks
        anyway.
        """
        raise NotImplementedError

    def labels(self, where: Split, config: Config, embedded: Path) -> Records:
        """As records, of all that the labels hold, masks where there are some; for another format. Images that labels
        hold themselves are written into the folder `embedded`.
        """
        return self.records(where, config, "unneeded")

    def annotation_files(self, where: Split) -> list[Path]:
        """The files that the annotations are read from."""
        return [where.annotations]

    def training_source(self, config: Config) -> str:
        """What the config names as the training split's data set, or "" where it names none."""
        return config.train_dataset

    def folders(self, config: Config, split: str) -> list[str]:
        """Files and folders that the config names as places of a split's labels, the likeliest to hold its images
        first.
        """
        return [split_source(config, split)]

    def lies_in(self, folder: Path) -> bool:
        """Whether a folder holds labels of this format."""
        config = Config(dataset=self.name, coco_classes=[], val_share=0.0)
        config.train_dataset = config.val_dataset = str(folder)
        for split in FOLDER_NAMES:
            with contextlib.suppress(DataError):
                self.locate(config, split)
                return True
        return False


def split_source(config: Config, split: str) -> str:
    """What the config names as the data set of `split`. Raises DataError."""
    source = config.train_dataset if split == "train" else config.val_dataset
    if not source and split == "test":
        source = config.train_dataset
    if not source:
        key = "train" if split == "train" else "val"
        raise DataError(f"no data set for {split}: set {key}_dataset (or --{key}_dataset DIR)")
    return source


def class_labels(config: Config) -> dict[str, int]:
    """The label of each class name; without the background."""
    return {name: label for label, name in enumerate(config.coco_classes) if label}


def truth_categories(config: Config) -> list[dict]:
    """Categories of a format that knows names alone: their ids are the labels."""
    return [{"id": label, "name": name} for name, label in class_labels(config).items()]


@without_collector()
def load_json(path: Path) -> object:
    """What a JSON file holds; UTF-8, with or without its mark, or UTF-16. Raises DataError."""
    try:
        data = read_regular(path)
        # of a large file's three forms, bytes, text and objects, two at a time
        text = data.decode(json.detect_encoding(data), "surrogatepass")
        del data
        return json.loads(text)
    except OSError as e:
        raise DataError(f"{path}: can't read the annotations: {e.strerror}") from None
    except json.JSONDecodeError as e:
        raise DataError(f"{path}, line {e.lineno}: not valid JSON ({e.msg}); fetch or write the file again") from None
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path}: not valid JSON{json_reason(e)}; fetch or write the file again") from None


def json_reason(e: Exception) -> str:
    """What json raises ValueError and RecursionError for, in brackets."""
    if isinstance(e, UnicodeDecodeError):
        return " (not text)"
    return " (nested too deeply)" if isinstance(e, RecursionError) else " (a number of thousands of digits)"


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, UTF-8 with or without its mark, or UTF-16. Raises DataError."""
    try:
        data = read_regular(path)
        utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff") and len(data) % 2 == 0
        return data.decode("utf-16" if utf16 else "utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    except OSError as e:
        raise DataError(f"{path}: can't read: {e.strerror}") from None
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from None


def share_of(ordered: Sequence[str], part: str, config: Config) -> list[str]:
    """Those of all names that are in `part` where config.val_share of them, drawn by config.seed, validate."""
    if not part or not config.val_share:
        return list(ordered)
    drawn = np.random.default_rng([config.seed, 1]).permutation(ordered)
    held_out = set(drawn[: round(len(ordered) * config.val_share)])
    return [n for n in ordered if (n in held_out) == (part == "val")]


def passed_over(folder: Path, others: Sequence[Path]) -> list[str]:
    """The note, where there is need of one, on files of a folder that are no images."""
    if not others:
        return []
    some = ", ".join(p.name for p in others[:5]) + (", ..." if len(others) > 5 else "")
    return [f"{folder}: passed over, no images: {len(others)} ({some})"]


class Labels:
    """The config's label of each class name, and what becomes of objects of classes that it leaves out."""

    def __init__(self, config: Config):
        self.known, self.policy = class_labels(config), config.other_classes
        self.foreign: Counter = Counter()

    def of(self, name: str, where: str) -> int | None:
        """The label; 0 for a region of no class, None for background. Raises DataError, which begins with `where`."""
        if name in self.known:
            return self.known[name]
        if self.policy == "stop":
            raise DataError(
                f"{where}: class {name!r} isn't in the config; set coco_classes: auto for all of the data's, or add it"
                " there and count it in num_classes, or set other_classes to background or ignore"
                + (" (background is reserved: rename it)" if name == "background" else "")
            )
        self.foreign[name] += 1
        return None if self.policy == "background" else 0

    def notes(self) -> list[str]:
        """What was left out, a line or none."""
        if not self.foreign:
            return []
        told = ", ".join(f"{n} {c}" for n, c in self.foreign.most_common(10))
        what = "background" if self.policy == "background" else "neither object nor background"
        return [f"objects of classes that the config leaves out are {what}: {told}"]
