"""What a format of data sets is to the rest: where a split lies, its classes, its records."""

from pathlib import Path
from typing import Literal

from src.config import Config
from src.data.records import DataError, Records, Split

__all__ = ["FOLDER_NAMES", "Format", "Masks", "class_labels", "split_source", "truth_categories"]

Masks = Literal["needed", "if_any", "unneeded"]
FOLDER_NAMES = {"train": ("train",), "val": ("validation", "val", "valid"), "test": ("test",)}


class Format:
    """One format. Its methods raise DataError. A split is "train", "val" or "test"."""

    name = ""

    def locate(self, config: Config, split: str) -> Split:
        """Where `split` lies."""
        raise NotImplementedError

    def classes(self, where: Split) -> list[str]:
        """Names of the classes, without the background, in the order of their labels."""
        raise NotImplementedError

    def records(self, where: Split, config: Config, masks: Masks) -> Records:
        """Every image of the split, checked; an object without a usable mask is a fault where masks are "needed", or
        "if_any" object of the split has one.
        """
        raise NotImplementedError

    def annotation_files(self, where: Split) -> list[Path]:
        """The files that the annotations are read from."""
        return [where.annotations]


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
