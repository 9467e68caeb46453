"""The formats of data sets behind one face: where a split lies, its records, its classes."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import yaml

from src.config import Config
from src.data.coco import category_names, load_coco, resolve_split
from src.data.images import image_files
from src.data.records import CocoSplit, DataError, Split
from src.data.txt import highest_class, listed_images, load_txt, resolve_txt
from src.data.voc import load_voc, object_names, part_file, resolve_voc

__all__ = ["coco_file", "find_split", "load_split", "resolve_classes", "source_digest"]

RUN_CONFIG = "config.yaml"


def find_split(config: Config, split: str, training: bool) -> Split:
    """Where `split` ("train" or "val") lies; `training` picks train_dataset or val_dataset. Raises DataError."""
    if config.dataset == "other":
        return resolve_txt(config, training)
    source = config.train_dataset if training else config.val_dataset
    if config.dataset == "voc":
        return resolve_voc(source, split)
    return resolve_split(source, split, "" if training else config.val_annotations, config.image_dir)


def load_split(where: Split, config: Config) -> CocoSplit:
    """Records of a split in the config's format, checked; see load_coco, load_txt and load_voc. Raises DataError."""
    return {"coco": load_coco, "other": load_txt, "voc": load_voc}[config.dataset](where, config)


def source_digest(where: Split, config: Config) -> str:
    """Changes with the annotations, and with the images' names, sizes and times. Raises DataError."""
    digest = hashlib.sha256()
    try:
        for path in annotation_files(where, config):
            with open(path, "rb") as f:
                while block := f.read(1 << 22):
                    digest.update(block)
        if config.dataset == "other":
            images: Iterable = (p for p in listed_images(where) if p.is_file())
        else:
            images = image_files(where.images)
        for entry in images:
            stat = entry.stat()
            name = os.path.relpath(entry, where.images)
            digest.update(f"{name}/{stat.st_size}/{stat.st_mtime_ns}\n".encode())
    except OSError as e:
        raise DataError(f"{e.filename or where.annotations}: can't read: {e.strerror}") from None
    options = [where.part, config.val_share, config.seed if config.dataset == "voc" else 0]
    options += [config.voc_difficult, config.voc_first_pixel]
    digest.update(json.dumps(options).encode())
    return digest.hexdigest()


def annotation_files(where: Split, config: Config) -> list[Path]:
    """The files that a split's annotations are read from."""
    if config.dataset != "voc":
        return [where.annotations]
    return sorted(where.annotations.glob("*.xml")) + [p for p in [part_file(where)] if p.is_file()]


def coco_file(data: CocoSplit, config: Config) -> dict:
    """Records of a format that has no JSON, as a COCO instances file: what they are evaluated against."""
    images, annotations = [], []
    for r in data.records:
        name = os.path.relpath(r.path, data.split.images)
        images.append({"id": r.image_id, "file_name": name, "height": r.height, "width": r.width})
        for box, label, crowd in zip(r.boxes.astype(float), r.labels.tolist(), r.crowd.tolist(), strict=True):
            w, h = box[2] - box[0], box[3] - box[1]
            common = {"image_id": r.image_id, "category_id": label, "iscrowd": int(crowd)}
            box_and_area = {"bbox": [box[0], box[1], w, h], "area": w * h}
            annotations.append({"id": len(annotations) + 1, **common, **box_and_area})
    categories = [{"id": i, "name": n} for i, n in enumerate(config.coco_classes) if i]
    return {"images": images, "annotations": annotations, "categories": categories}


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
        use_train = training or bool(config.anno_path if config.dataset == "other" else config.train_dataset)
        if checkpoint and not (use_train or config.val_dataset):
            raise DataError(
                f"{checkpoint}: no {RUN_CONFIG} of its run beside it says which classes it knows; set coco_classes and"
                " num_classes, or name that file as the config"
            )
        names = ["background", *found_classes(config, use_train)]
    return dataclasses.replace(config, coco_classes=names, num_classes=len(names))


def trained_classes(checkpoint: Path) -> list[str] | None:
    """The classes in the config.yaml of the run that a checkpoint lies in, or None without one. Raises DataError."""
    # beside it, above checkpoints/, above checkpoints/best/
    files = (folder / RUN_CONFIG for folder in list(checkpoint.resolve().parents)[:3])
    path = next((f for f in files if f.is_file()), None)
    if path is None:
        return None
    try:
        names = yaml.safe_load(path.read_text())["coco_classes"]
        if len(names) >= 2 and all(isinstance(n, str) for n in names):
            return list(names)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        pass
    raise DataError(f"{path}: holds no list of coco_classes, which the checkpoint beside it was trained on; set it")


def found_classes(config: Config, training: bool) -> list[str]:
    """Class names, without the background, as the data have them. Raises DataError."""
    where = find_split(config, "train" if training else "val", training)
    if config.dataset == "other":
        return [f"class_{i}" for i in range(1, highest_class(where) + 1)]
    return object_names(where) if config.dataset == "voc" else category_names(where.annotations)
