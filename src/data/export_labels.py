"""Writes images and their labels in a format that other tools read: COCO's, Pascal VOC's, YOLO's or labelme's."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as rle
from tqdm import tqdm

from src.data.fields import field_keys
from src.data.formats.yolo import LabelFinder
from src.data.polygons import mask_polygons, one_polygon
from src.data.records import DataError, ImageRecord, Instance
from src.data.segmentations import segmentation_json
from src.runtime.newer import zip_equal

__all__ = ["WRITERS", "Labelled", "write_labels"]

QUALITY = 95  # of a JPEG that is turned and written anew
DIGITS = 8  # of a share of the image's side: 5e-4 pixels in 100,000
LABELME_VERSION = "5.4.1"  # the first that has masks
TRANSPOSE: dict[int | None, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass
class Labelled:
    """What is written: the records of each split, by "train", "val" or "test", or "" for one whole; usable ones alone.

    categories: {"id", "name"} of each label, in order. boxes: masks are left out. lost: what the format can't hold, by
    how often.
    """

    splits: dict[str, list[ImageRecord]]
    categories: list[dict]
    boxes: bool = False
    lost: Counter = field(default_factory=Counter)

    def name(self, instance: Instance) -> str:
        """The class's name."""
        return self.categories[instance.label - 1]["name"]

    def objects(self, record: ImageRecord) -> Iterator[Instance]:
        """An image's objects in formats that hold no region of no class, which is counted."""
        for i in record.instances:
            if i.label:
                yield i
            else:
                self.lost["regions of no class, which the format can't hold, are left out"] += 1


def write_labels(data: Labelled, to: str, folder: Path) -> list[str]:
    """Writes a data set into `folder`, new; returns lines on what became of the images and what was lost.

    A picture whose labels are in the frame that its EXIF orientation shows is written turned, without that orientation:
    then there is one way to read it. Raises DataError or OSError.
    """
    folder.mkdir(parents=True)
    WRITERS[to](data, folder)
    lines = []
    records = [r for records in data.splits.values() for r in records]
    if to != "coco" or data.boxes:
        carried = Counter(name for r in records for i in r.instances for name in i.fields)
        data.lost.update({f"{name}, left out": count for name, count in carried.items()})
    turned = sum(r.orientation != 1 for r in records)
    if turned:
        lines.append(f"{turned} pictures are written upright, as their labels are; JPEG at quality {QUALITY}")
    order = [c["name"] for c in data.categories]
    order = order if to == "yolo" else sorted(order)
    if to != "coco" and data.categories != [{"id": i, "name": n} for i, n in enumerate(order, 1)]:
        how = "in this order" if to == "yolo" else "by alphabet"
        lines.append(f"category ids aren't kept: the format numbers its classes {how}")
    return lines + [f"{what}: {count}" for what, count in data.lost.items() if count]


# ---------------------------------------------------------------------------------------------------------
# images


def plain(text: str, other: str = "_") -> str:
    """Text that every tool can write: bytes that aren't UTF-8 and control characters are replaced."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\ufffd", other)
    return "".join(c if c >= " " and c != "\x7f" else other for c in text)


class Names:
    """Names of images in the new set: as they were, less what some tool can't write; each with a stem of its own."""

    def __init__(self, by_stem: bool):
        self.by_stem = by_stem
        self.taken: set[str] = set()

    def of(self, record: ImageRecord, split: str = "") -> str:
        """A path below the folder of images."""
        name = plain(record.file_name).replace("\\", "_")
        if PurePosixPath(name).suffix.lower() != record.path.suffix.lower():
            name = str(PurePosixPath(name).with_suffix("")) + record.path.suffix
        stem, suffix = os.path.splitext(name)
        candidates = [stem, f"{split}/{stem}" if split else f"{stem}_{suffix[1:]}"]
        candidates += (f"{stem}_{i}" for i in range(2, len(self.taken) + 3))
        for candidate in candidates:
            key = (candidate if self.by_stem else candidate + suffix).casefold()
            if key not in self.taken:
                self.taken.add(key)
                return candidate + suffix
        raise AssertionError("one of more candidates than names is free")


def save_image(record: ImageRecord, target: Path) -> None:
    """Copies an image, or writes it turned. Raises DataError, OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if record.orientation == 1:
        shutil.copyfile(record.path, target)
        return
    try:
        with Image.open(record.path) as image:
            kind = "JPEG" if image.format == "MPO" else image.format
            turned = image.transpose(TRANSPOSE[record.orientation])
            options = {"quality": QUALITY, "subsampling": 0} if kind == "JPEG" else {}
            options |= {"lossless": True} if kind == "WEBP" else {}
            turned.save(target, kind, icc_profile=image.info.get("icc_profile"), exif=Image.Exif(), **options)
    except OSError as e:
        if e.strerror:
            raise
        where = record.told or str(record.path)
        raise DataError(f"{where}: {record.path.name} can't be decoded, to be turned upright: {e}") from None


# ---------------------------------------------------------------------------------------------------------
# the formats


def write_coco(data: Labelled, folder: Path) -> None:
    """annotations/instances_{split}2017.json and {split}2017/."""
    (folder / "annotations").mkdir()
    for split, records in data.splits.items():
        part = split or "train"
        images: list[dict] = []
        annotations: list[dict] = []
        names = Names(by_stem=False)
        for record in tqdm(records, unit="img", desc=part, leave=False):
            name = names.of(record)
            save_image(record, folder / f"{part}2017" / name)
            image = {"id": record.image_id, "file_name": name, "height": record.height, "width": record.width}
            images.append(image if record.source_id is None else image | {"source_id": record.source_id})
            for i in record.instances:
                row = {"image_id": record.image_id, "iscrowd": int(i.crowd), "bbox": list(i.bbox), "area": i.area}
                if i.segmentation is not None and not data.boxes:
                    row["segmentation"] = segmentation_json(i.segmentation)
                if not data.boxes:
                    row |= field_keys(i)
                # a region of no class is a crowd of each
                for category in data.categories if i.label == 0 else (data.categories[i.label - 1],):
                    annotations.append({"id": len(annotations) + 1, "category_id": category["id"], **row})
        content = {"images": images, "annotations": annotations, "categories": data.categories}
        (folder / f"annotations/instances_{part}2017.json").write_text(json.dumps(content))


def write_voc(data: Labelled, folder: Path) -> None:
    """Annotations/, JPEGImages/ and ImageSets/Main/, of all splits together.

    Places count from 1, as in VOC, but with fractions: xmin is x1 + 1, xmax is x2. Crowd regions are difficult.
    """
    (folder / "ImageSets/Main").mkdir(parents=True)
    names = Names(by_stem=True)
    for split, records in data.splits.items():
        part, stems = split or "train", []
        for record in tqdm(records, unit="img", desc=part, leave=False):
            name = names.of(record, split)
            save_image(record, folder / "JPEGImages" / name)
            stems.append(os.path.splitext(name)[0])
            xml = folder / f"Annotations/{stems[-1]}.xml"
            xml.parent.mkdir(parents=True, exist_ok=True)
            xml.write_text(voc_xml(data, record, name), "utf-8")
        (folder / f"ImageSets/Main/{part}.txt").write_text("".join(f"{s}\n" for s in stems), "utf-8")


def voc_xml(data: Labelled, record: ImageRecord, name: str) -> str:
    """An image's annotation file."""
    lines = ["<annotation>", f"  <folder>JPEGImages</folder>\n  <filename>{escape(os.path.basename(name))}</filename>"]
    with Image.open(record.path) as image:
        depth = len(image.getbands())
    lines.append(f"  <size><width>{record.width}</width><height>{record.height}</height><depth>{depth}</depth></size>")
    lines.append("  <segmented>0</segmented>")
    for i in data.objects(record):
        data.lost["masks, which VOC's XML doesn't hold, are left out"] += i.segmentation is not None
        x1, y1, x2, y2 = i.box
        # the last pixel of a box can't lie before the first
        if x2 - x1 < 1 or y2 - y1 < 1:
            data.lost["boxes of less than a pixel, which VOC can't tell, are widened to one"] += 1
            (x1, x2), (y1, y2) = a_pixel(x1, x2, record.width), a_pixel(y1, y2, record.height)
        corners = zip_equal(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2))
        box = "".join(f"<{k}>{round(v, 2):.12g}</{k}>" for k, v in corners)
        lines.append(
            f"  <object>\n    <name>{escape(plain(data.name(i)))}</name>\n    <pose>Unspecified</pose>"
            f"<truncated>0</truncated><difficult>{int(i.crowd)}</difficult>\n    <bndbox>{box}</bndbox>\n  </object>"
        )
    return "\n".join([*lines, "</annotation>", ""])


def a_pixel(first: float, last: float, size: int) -> tuple[float, float]:
    """A side of a box, at least a pixel of an image of `size`."""
    if last - first >= 1:
        return first, last
    first = max(min(first, size - 1.0), 0.0)
    return first, first + 1


def write_yolo(data: Labelled, folder: Path) -> None:
    """data.yaml, images/{split}/ and labels/{split}/: an image's polygons where an object in it has a mask, else boxes.

    Parts of an object are joined by lines, as Ultralytics does it. Crowd regions can't be told, and are left out.
    """
    places = {}
    for split, records in data.splits.items():
        part, names, labels = split or "train", Names(by_stem=True), LabelFinder()
        places[part] = f"images/{part}"
        (folder / places[part]).mkdir(parents=True)
        for record in tqdm(records, unit="img", desc=part, leave=False):
            name = names.of(record)
            save_image(record, folder / places[part] / name)
            target = labels.place(folder / places[part] / name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("".join(yolo_rows(data, record)), "utf-8")
    called = {i: c["name"] for i, c in enumerate(data.categories)}
    text = yaml.safe_dump({**places, "nc": len(called), "names": called}, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, "utf-8")


def yolo_rows(data: Labelled, record: ImageRecord) -> Iterator[str]:
    """The rows of an image's label file."""
    objects = []
    for i in data.objects(record):
        if i.crowd:
            data.lost["crowd regions or difficult objects, which YOLO can't tell, are left out"] += 1
        else:
            objects.append(i)
    polygons = not data.boxes and any(i.segmentation is not None for i in objects)
    size = np.array([record.width, record.height], float)
    for i in objects:
        x1, y1, x2, y2 = i.box
        values = np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]) / [*size, *size]
        if polygons:
            points = np.zeros((0, 2))
            if i.segmentation is not None:
                points = one_polygon(i.segmentation, record.height, record.width)
            if len(points) < 3:
                data.lost["boxes without a mask beside objects with one are polygons of four corners"] += 1
                points = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
            elif np.abs(np.concatenate([points.min(0), points.max(0)]) - i.box).max() >= 1:
                data.lost["boxes a pixel or more off their masks, which YOLO takes them from, are the masks'"] += 1
            values = (points / size).ravel()
        elif i.segmentation is not None:
            data.lost["masks, left out (boxes alone)"] += 1
        yield " ".join([str(i.label - 1), *(f"{v:.{DIGITS}f}".rstrip("0").rstrip(".") for v in values)]) + "\n"


def write_labelme(data: Labelled, folder: Path) -> None:
    """labelme's files beside the images, in a folder a split where there are several: polygons, or where there is no
    mask rectangles. A crowd region is called __ignore__.
    """
    for split, records in data.splits.items():
        place, names = folder / (split if len(data.splits) > 1 else ""), Names(by_stem=True)
        for record in tqdm(records, unit="img", desc=split or "writing", leave=False):
            name = names.of(record)
            save_image(record, place / name)
            shapes = [s for n, i in enumerate(record.instances, 1) for s in labelme_shapes(data, record, i, n)]
            content: dict[str, Any] = {
                "version": LABELME_VERSION,
                "flags": {},
                "shapes": shapes,
                "imagePath": os.path.basename(name),
                "imageData": None,
                "imageHeight": record.height,
                "imageWidth": record.width,
            }
            (place / name).with_suffix(".json").write_text(json.dumps(content, indent=1))


def labelme_shapes(data: Labelled, record: ImageRecord, i: Instance, group: int) -> Iterator[dict]:
    """The shapes of an object; those of several parts share the group."""
    kind, parts = "rectangle", [np.reshape(i.box, (2, 2))]
    if i.segmentation is not None and not data.boxes:
        kind = "polygon"
        if isinstance(i.segmentation, list):
            parts = [p.reshape(-1, 2) for p in i.segmentation]
        else:
            parts = mask_polygons(rle.decode(i.segmentation))
    if i.crowd:
        data.lost["crowd regions are shapes called __ignore__ (labelme_ignore: crowd reads them)"] += 1
    for points in parts:
        yield {
            "label": "__ignore__" if i.crowd else data.name(i),
            "points": points.round(2).tolist(),
            "group_id": group if len(parts) > 1 else None,
            "shape_type": kind,
            "flags": {},
        }


WRITERS: dict[str, Callable[[Labelled, Path], None]] = {
    "coco": write_coco,
    "voc": write_voc,
    "yolo": write_yolo,
    "labelme": write_labelme,
}
