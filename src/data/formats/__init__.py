"""The formats of data sets by name, and what is asked of any of them: where a split lies, its classes, its records."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from src.config import Config, ConfigError
from src.data.fields import carried_fields, check_augmentation, fields_of, without_branches
from src.data.formats.base import Format, Masks, split_source
from src.data.formats.coco import Coco
from src.data.formats.labelme import Labelme
from src.data.formats.txt import Txt
from src.data.formats.voc import Voc
from src.data.formats.yolo import Yolo
from src.data.records import DataError, Records, Split, without_collector
from src.runtime.files import open_regular
from src.runtime.strict_yaml import Word, read_yaml

__all__ = [
    "FORMATS",
    "SPLITS",
    "check_training",
    "find_split",
    "format_of",
    "formats_at",
    "read_split",
    "resolve_classes",
    "source_digest",
]

# labelme's labels are told last: any JSON file may be one
FORMATS: dict[str, Format] = {f.name: f for f in (Coco(), Voc(), Yolo(), Labelme(), Txt())}
SPLITS = ("train", "val", "test")
# what conversions on disk were told to depend on, in this order, whatever their format
DIGESTED = ("voc_difficult", "voc_first_pixel", "exif", "other_classes", "labelme_ignore")
RUN_CONFIG = "config.yaml"


def format_of(config: Config) -> Format:
    """The format that the config names. Raises DataError."""
    if config.dataset not in FORMATS:
        raise DataError(f"dataset: {config.dataset!r} is not one of {', '.join(sorted(FORMATS))}")
    return FORMATS[config.dataset]


def formats_at(labels: Path) -> list[str]:
    """Names of the formats whose labels lie in a folder, or whose file that is."""
    if labels.is_dir():
        return [name for name, form in FORMATS.items() if form.lies_in(labels)]
    return [n for n, form in FORMATS.items() if labels.suffix.lower() in form.suffixes] if labels.is_file() else []


@contextlib.contextmanager
def naming_format(config: Config, split: str) -> Iterator[None]:
    """Adds to a DataError of the block the format that lies at the split's place, where the config's doesn't; an
    OSError becomes one, as for names that are too long, and folders that may not be entered."""
    try:
        yield
    except OSError as e:
        raise DataError(f"{e.filename or split}: can't read: {e.strerror}") from None
    except DataError as e:
        try:
            found = formats_at(Path(split_source(config, split)))
        except (DataError, OSError):
            found = []
        if not found or config.dataset in found:
            raise
        raise type(e)(f"{e}; labels of {' and '.join(found)} lie there: --dataset {found[0]}") from None


def check_training(config: Config) -> None:
    """Raises ConfigError where training needs what the config's format never has, or loses it to an augmentation."""
    there = format_of(config).fields
    for field in fields_of(config):
        if field.name not in there:
            raise ConfigError(
                f"dataset: {config.dataset} has boxes but no {field.name}, which detector: {config.detector} trains on;"
                f" use detector: {without_branches(config)}"
            )
    for key, what in (("aug_prob", "InstaBoost"), ("copy_paste_ratio", "copy-paste")):
        if getattr(config, key) and "masks" not in there:
            raise ConfigError(f"{key}: {what} needs masks, and dataset: {config.dataset} has none; set it to 0")
    check_augmentation(config)


def find_split(config: Config, split: str) -> Split:
    """Where a split lies: "train", "val", "test", or the file that lists one, beside the validation data.

    Raises DataError.
    """
    if split not in SPLITS:
        if not Path(split).is_file():
            raise DataError(f"--split {split}: neither {', '.join(SPLITS)} nor a file that lists a split's images")
        config, split = dataclasses.replace(config, val_annotations=split), "val"
    with naming_format(config, split):
        return format_of(config).locate(config, split)


@without_collector()
def read_split(
    config: Config,
    split: str,
    where: Split | None = None,
    training: bool | None = None,
    masks: Masks | None = None,
    files: bool = True,
) -> Records:
    """The records of a split, faulty images among them. Raises DataError.

    training (by default: of "train"): objects need masks where the detector learns them, and may not be more than
    max_instance_count; else they need them where the split has masks at all, as boxes can be measured without. masks
    decides otherwise. files: images are looked for, where the format can do without.
    """
    training = split == "train" if training is None else training
    where = find_split(config, split) if where is None else where
    form = format_of(config)
    if training:
        masks = masks or ("needed" if config.needs_masks else "unneeded")
    else:
        masks = masks or ("if_any" if config.with_mask else "unneeded")
    with naming_format(config, split):
        records = form.records(where, config, masks, files)
    if files:
        records.check_repeats()
    records.notes += outside_notes(records, named_folders(config, where, split))
    if training:
        records.check_counts(config.max_instance_count)
        check_carried(records, config)
    return records


def check_carried(records: Records, config: Config) -> None:
    """Raises DataError where no object of a split has what the detector trains on."""
    for field in carried_fields(config):
        if not any(field.name in i.fields for r in records.images for i in r.instances):
            raise DataError(
                f"{records.split.annotations}: no object has {field.name}, which detector: {config.detector} trains on;"
                f" use detector: {without_branches(config)}"
            )


def named_folders(config: Config, where: Split, split: str) -> list[Path]:
    """The folders that the config names for a split, the likeliest to hold its images first."""
    listing = "" if split == "train" else split if split not in SPLITS else config.val_annotations
    form = format_of(config)
    places = [*form.folders(config, split), config.image_dir, config.anno_path, listing]
    folders = [p if p.is_dir() else p.parent for p in map(Path, filter(None, places))]
    # of COCO's layouts some have the images beside the folder of the annotations
    return [*folders, where.images] if form.images_beside else folders


def outside_notes(records: Records, folders: list[Path]) -> list[str]:
    """A line, or none, on images that the annotations' own paths, whole or with "..", lead to out of the folders."""
    below = tuple(os.path.join(os.path.abspath(f), "") for f in folders)
    usable = (r.path for r in records.images if not r.faults)
    outside = [p for p in usable if not os.path.abspath(p).startswith(below)]
    if not outside:
        return []
    return [f"{folders[0]}: its annotations lead to {len(outside)} images outside of it, the first {outside[0]}"]


def source_digest(config: Config, where: Split) -> str:
    """Changes with the annotations, and the options by which they are read. Raises DataError."""
    digest, form = hashlib.sha256(), format_of(config)
    try:
        for path in form.annotation_files(where):
            digest.update(f"{path.name}/{path.stat().st_size}\n".encode("utf-8", "surrogateescape"))
            with open_regular(path) as f:
                while block := f.read(1 << 22):
                    digest.update(block)
    except OSError as e:
        raise DataError(f"{e.filename or where.annotations}: can't read: {e.strerror}") from None
    options = [config.dataset, where.part, config.val_share, config.seed if form.draws else 0]
    options += [getattr(config, k) for k in (*DIGESTED, *(k for k in form.options if k not in DIGESTED))]
    digest.update(json.dumps(options).encode())
    return digest.hexdigest()


def resolve_classes(config: Config, training: bool, checkpoint: str | Path = "") -> Config:
    """The config with its classes: as they are, or where coco_classes is empty (auto) those found.

    For a checkpoint they are in config.yaml of the run that wrote it. Else they are read from the training split, or
    where the config names none from the validation split: COCO's categories by id, VOC's names by alphabet, class_1,
    class_2, ... up to the highest number of a TXT file. Raises DataError.
    """
    if config.coco_classes:
        return config
    names = trained_classes(Path(checkpoint)) if checkpoint else None
    if names is None:
        use_train = training or bool(format_of(config).training_source(config))
        if checkpoint and not (use_train or config.val_dataset):
            raise DataError(
                f"{checkpoint}: no {RUN_CONFIG} of its run beside it says which classes it knows; set coco_classes and"
                " num_classes, or name that file as the config"
            )
        split = "train" if use_train else "val"
        where = find_split(config, split)
        with naming_format(config, split):
            names = ["background", *format_of(config).classes(where)]
    return dataclasses.replace(config, coco_classes=names, num_classes=len(names))


def trained_classes(checkpoint: Path) -> list[str] | None:
    """The classes in the config.yaml of the run that a checkpoint lies in, or None without one. Raises DataError."""
    # beside it, above checkpoints/, above checkpoints/best/
    files = (folder / RUN_CONFIG for folder in list(checkpoint.resolve().parents)[:3])
    path = next((f for f in files if f.is_file()), None)
    if path is None:
        return None
    try:
        values = read_yaml(path, DataError)
    except DataError as e:
        raise DataError(f"{e}; its coco_classes are those of the checkpoint beside it: mend it, or set them") from None
    names = values.get("coco_classes") if isinstance(values, dict) else None
    # a Word isn't quoted, and wasn't written by save_config
    if isinstance(names, list) and len(names) >= 2 and all(isinstance(n, str) and type(n) is not Word for n in names):
        return names
    raise DataError(f"{path}: holds no list of coco_classes, which the checkpoint beside it was trained on; set it")
