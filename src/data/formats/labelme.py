"""labelme's JSON files (Wada, github.com/wkentaro/labelme), one an image; also as X-AnyLabeling writes them."""

from __future__ import annotations

import base64
import binascii
import contextlib
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle
from tqdm import tqdm

from src.config import Config
from src.data.finding import ImageFinder
from src.data.formats.base import (
    FOLDER_NAMES,
    Format,
    Labels,
    Masks,
    NoSplitError,
    load_json,
    passed_over,
    read_lines,
    share_of,
    split_source,
    truth_categories,
)
from src.data.images import check_decodes, file_header, image_header, imdecode, sorted_files
from src.data.polygons import clip_polygon
from src.data.records import LEAST_SIDE, DataError, ImageRecord, Instance, Records, Split, number
from src.data.segmentations import (
    Segmentation,
    as_rle,
    complement,
    demand_room,
    demand_short,
    extent,
    mask_area,
    placed_rle,
    union,
)

__all__ = ["Labelme", "name_below"]

FARTHEST = 1e9  # pixels: no picture reaches there
CIRCLE_CORNERS = 64
LARGEST = 64 << 20  # bytes of a file, its picture included
SMALL = 4096  # pixels of a bitmap that are never too many
# pixels that all bitmaps of a picture may have, and times the picture's own, up to a few seconds' work
BITMAPS, BITMAP_SHARE, MOST_BITMAPS = 2e8, 100, 1e9
MOST_CUTS = 1_000_000  # pairs of an object and a shape called _background_
QUADRILATERALS = ("rectangle", "rotation", "oriented_rectangle")
BACKGROUND, IGNORE = "_background_", "__ignore__"  # labels that labelme gives a meaning


class Labelme(Format):
    """A folder with JSON files beside their images (or images in config.image_dir), or the parent of such folders named
    train/, val/ and test/; else config.val_share of the images validate, drawn by config.seed.

    Image ids are places among all files of the folder, category ids the labels, classes in alphabetical order.
    """

    name = "labelme"
    fields = ("masks",)
    options = ("labelme_ignore",)
    draws = True

    def locate(self, config: Config, split: str) -> Split:
        root = Path(split_source(config, split))
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; dataset: labelme takes the folder of its JSON files")
        listing = Path(config.val_annotations) if split == "val" and config.val_annotations else None
        folders = {s: [root / n for n in names if any(json_files(root / n)[0])] for s, names in FOLDER_NAMES.items()}
        if folders["train"] and not listing:
            if not folders[split]:
                raise NoSplitError(f"{root / FOLDER_NAMES[split][-1]}: no labelme files for {split} there")
            return Split(folders[split][0], Path(config.image_dir or folders[split][0]))
        if split == "test":
            raise NoSplitError(f"{root / 'test'}: no such folder with labelme's files; there is no split test")
        if not json_files(root)[0]:
            raise DataError(f"{root}: no JSON file of labelme's in it")
        return Split(root, Path(config.image_dir or root), "" if listing else split, listing)

    def classes(self, where: Split) -> list[str]:
        names = set()
        for path in tqdm(json_files(where.annotations)[0], unit="file", desc="reading", leave=False):
            try:
                shapes = (read_labelme(path) or {}).get("shapes")
            except DataError:
                # told, or counted, where the file is read for its objects
                continue
            for shape in shapes if isinstance(shapes, list) else ():
                kind = shape.get("shape_type") if isinstance(shape, dict) else None
                names.add("" if kind in ("point", "points") else label_of(shape))
        names -= {"", BACKGROUND, IGNORE}
        if not names:
            raise DataError(f"{where.annotations}: no shape with a label in its JSON files of labelme's")
        return sorted(names)

    def annotation_files(self, where: Split) -> list[Path]:
        return json_files(where.annotations)[0] + ([where.listing] if where.listing else [])

    def records(self, where: Split, config: Config, masks: Masks, files: bool = True) -> Records:
        """A fault is a file that can't be read, an image that is missing or of another size than annotated, a shape
        without label or area, or of a kind that has none (lines). Points are passed over. What a shape called
        _background_ covers is cut from the objects before it, as labelme draws it; __ignore__: config.labelme_ignore.
        """
        return LabelmeReader(where, config).records()

    def labels(self, where: Split, config: Config, embedded: Path) -> Records:
        return LabelmeReader(where, config, embedded).records()

    def lies_in(self, folder: Path) -> bool:
        return is_labelme(folder)


def json_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """JSON files below a folder, and those that are passed over: hidden ones, copies of Jupyter's and of macOS."""
    found: list[Path] = []
    hidden: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders.sort()
        out = found if not any(p.startswith(".") for p in Path(place).relative_to(folder).parts) else hidden
        for name in sorted(n for n in names if n.lower().endswith(".json")):
            (hidden if name.startswith(".") else out).append(Path(place, name))
    return sorted(found), hidden


def read_labelme(path: Path) -> dict | None:
    """A file's content; None for JSON that isn't labelme's. Raises DataError."""
    data = load_json(path)
    return data if isinstance(data, dict) and ("shapes" in data or "imagePath" in data) else None


def is_labelme(folder: Path) -> bool:
    """Whether a folder holds a JSON file of labelme's."""
    for path in json_files(folder)[0]:
        try:
            # COCO's are larger, and take their time
            if path.stat().st_size < LARGEST and "shapes" in (read_labelme(path) or {}):
                return True
        except (DataError, OSError):
            continue
    return False


def label_of(shape: object) -> str:
    """A shape's label, also one that is a number; empty if there is none, or one that isn't text."""
    label = shape.get("label") if isinstance(shape, dict) else None
    text = str(label) if isinstance(label, (int, float, str)) and not isinstance(label, bool) else ""
    return "" if any(unicodedata.category(c) in ("Cc", "Cs") for c in text) else text


@dataclass
class Parts:
    """An object in the making: polygons (N, 2), and compressed RLE of each part that is no polygon."""

    name: str
    polygons: list[np.ndarray] = field(default_factory=list)
    pixels: list[dict] = field(default_factory=list)

    def all_pixels(self, height: int, width: int) -> dict:
        """The object as one compressed RLE."""
        parts = list(self.pixels)
        if self.polygons:
            parts.append(as_rle([p.ravel() for p in self.polygons], height, width))
        return union(parts or [placed_rle(np.zeros((1, 1), bool), 0, 0, height, width)])

    def segmentation(self, height: int, width: int) -> Segmentation:
        """Polygons, or where they aren't all compressed RLE."""
        if not self.pixels:
            return [np.round(p, 2).ravel() for p in self.polygons]
        return self.all_pixels(height, width)


class LabelmeReader:
    """One split on its way to records.

    embedded: a folder that pictures which only the JSON files hold are written to; without it they are faults.
    """

    def __init__(self, where: Split, config: Config, embedded: Path | None = None):
        self.where, self.config, self.embedded = where, config, embedded
        self.labels = Labels(config)
        self.notes: Counter[str] = Counter()
        self.finder = ImageFinder([where.images, where.annotations])
        self.taken: dict[Path, Path] = {}

    def records(self) -> Records:
        files, hidden = json_files(self.where.annotations)
        content: dict[Path, dict | DataError] = {}
        foreign = []
        for path in tqdm(files, unit="file", desc="reading", leave=False):
            data: dict | DataError | None
            try:
                data = read_labelme(path)
            except DataError as e:
                data = e
            if data is None:
                foreign.append(path)
                continue
            if isinstance(data, dict):
                # all of them together may be larger than the memory
                data.pop("imageData", None)
            content[path] = data
        ids = {os.fspath(p): i for i, p in enumerate(content, 1)}
        if not ids:
            raise DataError(f"{self.where.annotations}: no JSON file of labelme's in it")
        records = [self.image_record(ids[n], Path(n), content[Path(n)]) for n in self.names(list(ids))]
        if not records:
            raise DataError(f"{self.where.annotations}: no image for {self.where.part}; add some, or set val_share")
        notes = [f"{text}: {count}" for text, count in self.notes.items()]
        if hidden or foreign:
            some = ", ".join(p.name for p in (foreign + hidden)[:5])
            notes.append(
                f"{self.where.annotations}: JSON that isn't labelme's, or hidden, is passed over:"
                f" {len(foreign) + len(hidden)} ({some})"
            )
        try:
            images, others = sorted_files(self.where.images)
        except OSError as e:
            raise DataError(f"{e.filename}: can't read: {e.strerror}") from None
        if self.where.part in ("", "train"):
            used = {r.path.resolve() for r in records} | self.others_images(content, records)
            bare = [p.name for p in images if p.resolve() not in used]
            if bare:
                some = ", ".join(bare[:5]) + (", ..." if len(bare) > 5 else "")
                notes.append(f"{len(bare)} images without labels are left out: {some}")
        others = [p for p in others if p.suffix.lower() not in (".json", ".xml", ".txt")]
        notes += passed_over(self.where.images, others) + self.labels.notes()
        return Records(self.where, records, truth_categories(self.config), notes, True, self.finder.listed)

    def others_images(self, content: dict[Path, dict | DataError], records: list[ImageRecord]) -> set[Path]:
        """The images of files that aren't in this split."""
        if len(records) == len(content):
            return set()
        paths = set()
        for path, data in content.items():
            if isinstance(data, dict) and isinstance(data.get("imagePath"), str):
                with contextlib.suppress(OSError, ValueError):
                    paths.add((path.parent / data["imagePath"].replace("\\", "/")).resolve())
        return paths

    def names(self, ordered: list[str]) -> list[str]:
        """The files of the split, of all. Raises DataError."""
        if self.where.listing is None:
            return share_of(ordered, self.where.part, self.config)
        by_name: dict[str, list[str]] = {}
        for name in ordered:
            below = Path(name).relative_to(self.where.annotations).with_suffix("").as_posix()
            for key in {below, Path(below).name}:
                by_name.setdefault(key, []).append(name)
        out = []
        for i, line in enumerate(read_lines(self.where.listing), 1):
            wanted = line.strip().replace("\\", "/").removeprefix("./")
            if not wanted:
                continue
            stem = Path(wanted).with_suffix("").as_posix()
            found = next((by_name[k] for k in (wanted, stem, Path(stem).name) if k in by_name), [])
            if len(found) != 1:
                what = "two files" if found else "no file"
                raise DataError(f"{self.where.listing}, line {i}: {what} of labelme's for {wanted}")
            out += found
        return list(dict.fromkeys(out))

    def image_record(self, image_id: int, path: Path, data: dict | DataError) -> ImageRecord:
        record = ImageRecord(image_id, path.with_suffix("").name, path.with_suffix(""), 0, 0)
        try:
            if isinstance(data, DataError):
                raise data
            if not isinstance(data.get("shapes"), list) or not isinstance(data.get("imagePath"), str):
                raise DataError(f"{path}: not a file of labelme's (it lacks shapes, or imagePath)")
            record.path = self.image_of(data, path)
            record.file_name = name_below(record.path, (self.where.images, self.where.annotations, self.embedded))
            self.set_frame(record, data, path)
            other = self.taken.setdefault(record.path.resolve(), path)
            if other != path:
                raise DataError(
                    f"{path}: its image {record.file_name} is labelled in {other} too; keep one of the files"
                )
        except DataError as e:
            record.faults.append(str(e))
            return record
        objects = list(self.objects(data["shapes"], record, path))
        try:
            outlines = [p.ravel() for _, parts, _ in objects for p in parts.polygons]
            demand_room(outlines, record.height, record.width, str(path))
        except DataError as e:
            record.faults.append(str(e))
            return record
        for name, parts, where in objects:
            record.add(self.instance, name, parts, record, where)
        record.told = str(path)
        return record

    def image_of(self, data: dict, path: Path) -> Path:
        """The image's file. Raises DataError."""
        name = data["imagePath"].replace("\\", "/")
        source = path.parent / name
        try:
            return source if os.path.isfile(source) else self.finder.find(name)
        except (DataError, ValueError) as e:
            content = embedded_image(read_labelme(path) or {})
            if not content:
                raise DataError(f"{path}: its image is missing, and the file holds none: {e}") from None
            if self.embedded is None:
                raise DataError(
                    f"{path}: its image {source} is missing, and only the file itself holds it; write it out:"
                    " python -m src.data.import_labels"
                ) from None
        header = image_header(content, f"{path}: imageData")
        check_decodes(content, f"{path}: imageData", header)
        below = path.relative_to(self.where.annotations).with_suffix(".png" if header.kind == "PNG" else ".jpg")
        target = self.embedded / below
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        except OSError as e:
            raise DataError(f"{target}: can't write: {e.strerror}") from None
        return target

    def set_frame(self, record: ImageRecord, data: dict, path: Path) -> None:
        """labelme shows a picture as its EXIF orientation says, and draws in that frame. Raises DataError where neither
        that one nor the stored one is of the annotated size.
        """
        _, height, width, orientation = file_header(record.path)
        stored, upright = (height, width), (width, height) if orientation >= 5 else (height, width)
        given: list[float | None] | None = [number(data.get(k)) for k in ("imageHeight", "imageWidth")]
        if data.get("imageHeight") is None and data.get("imageWidth") is None:
            given = None
        frame = stored if self.config.exif == "stored" else upright
        # some tools, and labelme of 2018, show pictures as they are stored
        if self.config.exif == "auto" and given == list(stored):
            frame = stored if stored != upright else frame
        if given not in (None, list(frame)):
            turned = "" if stored == upright else f", upright {upright[1]} x {upright[0]}"
            raise DataError(
                f"{path}: imageWidth x imageHeight is {size_text(data.get('imageWidth'))} x"
                f" {size_text(data.get('imageHeight'))}, but {record.path.name} is {width} x {height}{turned}: resized"
                " since? Label the picture as it is, or bring back that of the labels"
            )
        as_stored = self.config.exif == "stored" or frame != upright
        record.height, record.width, record.orientation = *frame, 1 if as_stored else orientation

    def objects(self, shapes: list, record: ImageRecord, path: Path) -> Iterator[tuple[str, Parts, str]]:
        """(label, parts, where) of each object; faults go to the record."""
        size = record.height, record.width
        objects: dict[object, tuple[Parts, str]] = {}
        bitmaps = max(BITMAPS, min(BITMAP_SHARE * record.height * record.width, MOST_BITMAPS))
        cuts = 0
        for i, shape in enumerate(shapes, 1):
            where = f"{path}: shape {i}"
            name = label_of(shape)
            try:
                if not name:
                    raise DataError(f"{where}: has no label that is text")
                where += f" ({name})"
                if shape.get("shape_type") in ("point", "points"):
                    self.notes["points have no area and are passed over"] += 1
                    continue
                if name == IGNORE and self.config.labelme_ignore == "skip":
                    self.notes[f"shapes called {IGNORE} are passed over (labelme_ignore: skip)"] += 1
                    continue
                bitmaps -= bitmap_pixels(shape) if shape.get("shape_type") == "mask" else 0
                if bitmaps < 0:
                    raise DataError(f"{where}: the bitmaps of its file are too many for one picture")
                part = shape_parts(shape, name, *size, where)
            except DataError as e:
                record.faults.append(str(e))
                continue
            if name == BACKGROUND:
                self.notes[f"shapes called {BACKGROUND} are no objects; they are cut from those drawn before"] += 1
                cuts += len(objects)
                if cuts > MOST_CUTS:
                    record.faults.append(f"{where}: too many shapes called {BACKGROUND}; merge them")
                    return
                cut(part, [p for p, _ in objects.values()], *size)
                continue
            # shapes that share a label and a group are parts of one object
            group = shape.get("group_id")
            key = i if group is None else (name, str(group))
            whole, _ = objects.setdefault(key, (Parts(name), where))
            whole.polygons += part.polygons
            whole.pixels += part.pixels
        for parts, where in objects.values():
            yield parts.name, parts, where

    def instance(self, name: str, parts: Parts, record: ImageRecord, where: str) -> Instance | None:
        """An object, or None for one that the config leaves out. Raises DataError."""
        label = 0 if name == IGNORE else self.labels.of(name, where)
        if label is None:
            return None
        height, width = record.height, record.width
        segmentation = parts.segmentation(height, width)
        area = mask_area(segmentation, height, width) if segmentation else 0.0
        x1, y1, x2, y2 = extent(segmentation).tolist() if area else (0.0,) * 4
        if min(x2 - x1, y2 - y1) < LEAST_SIDE:
            raise DataError(f"{where}: no area inside its {width} x {height} image; remove or draw it again")
        bbox = (x1, y1, round(x2 - x1, 2), round(y2 - y1, 2))
        return Instance(label, label == 0, (x1, y1, x2, y2), bbox, area, segmentation)


def name_below(path: Path, folders: tuple[Path | None, ...]) -> str:
    """A file's path below the first of the folders that it lies in; else its name."""
    for folder in folders:
        if folder is not None and path.resolve().is_relative_to(folder.resolve()):
            return path.resolve().relative_to(folder.resolve()).as_posix()
    return path.name


def size_text(value: object) -> str:
    """A side as the file gives it, cut where it is long."""
    return str(value)[:40]


def embedded_image(data: dict) -> bytes:
    """The image that labelme keeps in its file; nothing if there is none."""
    try:
        return base64.b64decode(data.get("imageData") or "", validate=True)
    except (binascii.Error, TypeError, ValueError):
        return b""


def shape_parts(shape: dict, name: str, height: int, width: int, where: str) -> Parts:
    """What a shape covers of the image. Raises DataError for kinds without area, and for broken ones."""
    kind = shape.get("shape_type") or "polygon"
    points = shape_points(shape.get("points"), where)
    if kind == "mask":
        return Parts(name, [], [shape_mask(shape.get("mask"), points, height, width, where)])
    if kind in QUADRILATERALS and len(points) == 2:
        turned = [k for k in ("rotation", "direction", "angle") if number(shape.get(k)) not in (None, 0.0)]
        if turned:
            raise DataError(f"{where}: two corners of a rectangle with {turned[0]}; save it with its four corners")
        (x1, y1), (x2, y2) = points.min(0), points.max(0)
        points = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
    elif kind == "circle" and len(points) == 2:
        angles = np.arange(CIRCLE_CORNERS) * 2 * math.pi / CIRCLE_CORNERS
        radius = np.linalg.norm(points[1] - points[0])
        points = points[0] + radius * np.column_stack([np.cos(angles), np.sin(angles)])
    elif kind != "polygon" and kind not in QUADRILATERALS:
        some = f"{len(points)} points of a circle have" if kind == "circle" else f"a {str(kind)[:40]} has"
        raise DataError(f"{where}: {some} no area; label polygons, rectangles, circles or masks")
    polygon = clip_polygon(points, height, width)
    demand_short([polygon.ravel()], where)
    return Parts(name, [polygon] if len(polygon) >= 3 else [])


def shape_points(points: object, where: str) -> np.ndarray:
    """(N, 2) float64, N at least 1. Raises DataError."""
    pairs = points if isinstance(points, list) else [None]
    numbers = [[number(v) for v in p] if isinstance(p, list) and len(p) == 2 else [None] for p in pairs]
    if not numbers or any(v is None or abs(v) >= FARTHEST for p in numbers for v in p):
        raise DataError(f"{where}: its points aren't pairs of finite numbers, or there are none")
    return np.array(numbers, np.float64)


def bitmap_pixels(shape: dict) -> int:
    """Pixels that a mask's two points say its bitmap has."""
    try:
        (x1, y1), (x2, y2) = shape_points(shape.get("points"), "")
    except (DataError, ValueError):
        return 0
    return int((abs(x2 - x1) + 1) * (abs(y2 - y1) + 1))


def shape_mask(content: object, points: np.ndarray, height: int, width: int, where: str) -> dict:
    """The pixels of a mask as compressed RLE: a PNG of what lies between two points, the last pixels included.

    Raises DataError.
    """
    data = embedded_image({"imageData": content})
    if not data or len(points) != 2:
        raise DataError(f"{where}: a mask without its bitmap, or without the two corners of its box")
    header = image_header(data, f"{where}: its bitmap")
    (x1, y1), (x2, y2) = np.round(points).astype(np.int64).tolist()
    wide, high = x2 - x1 + 1, y2 - y1 + 1
    if abs(header.height - high) > 1 or abs(header.width - wide) > 1:
        raise DataError(
            f"{where}: its bitmap is {header.width} x {header.height}, its box {wide} x {high}; draw it again"
        )
    # before anything is decoded: a few bytes can be millions of pixels
    if header.height * header.width > 2 * height * width + SMALL:
        raise DataError(f"{where}: its bitmap is {header.width} x {header.height}, its picture {width} x {height}")
    bitmap = imdecode(data, cv2.IMREAD_UNCHANGED)
    if bitmap is None or bitmap.shape[:2] != header.stored:
        raise DataError(f"{where}: a bitmap that doesn't decode")
    bitmap = bitmap != 0 if bitmap.ndim == 2 else (bitmap[..., :3] != 0).any(2)
    top, left = max(y1, 0), max(x1, 0)
    part = bitmap[top - y1 : height - y1 if height > y1 else 0, left - x1 : width - x1 if width > x1 else 0]
    return placed_rle(part, top, left, height, width)


def cut(hole: Parts, objects: list[Parts], height: int, width: int) -> None:
    """Takes from the objects what `hole` covers."""
    pixels = hole.all_pixels(height, width)
    rest = complement(pixels)
    for parts in objects:
        whole = parts.all_pixels(height, width)
        if rle.area(rle.merge([whole, pixels], intersect=True)):
            parts.pixels, parts.polygons = [union([whole, rest], intersect=True)], []
