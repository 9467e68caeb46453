"""YOLO's text files in Ultralytics' layout (docs.ultralytics.com/datasets): labels/x.txt beside images/x.jpg.

A row an object, in shares of the image's sides: `class cx cy width height`, or `class x1 y1 x2 y2 x3 y3 ...`.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from src.config import Config
from src.data.finding import ImageFinder, plain_name, refuse_shared
from src.data.formats.base import (
    FOLDER_NAMES,
    Format,
    Labels,
    Masks,
    NoSplitError,
    class_labels,
    passed_over,
    read_lines,
    share_of,
    split_source,
    truth_categories,
)
from src.data.images import file_header, orientation_for, sorted_files
from src.data.polygons import clip_polygon
from src.data.records import LEAST_SIDE, DataError, ImageRecord, Instance, Records, Split, clipped_box
from src.data.segmentations import demand_room, demand_short, mask_area
from src.runtime.files import why_unread
from src.runtime.strict_yaml import read_yaml

__all__ = ["LabelFinder", "Yolo"]

TOLERANCE = 0.01  # of a side: what Ultralytics lets coordinates pass 0 and 1 by
# of a pixel: places become what they were before the division, as COCO's rasteriser tells hundredths from nearly so
DIGITS = 4
MOST_CLASSES, COUNT = 100_000, re.compile("[0-9]{1,9}")
NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt", "labels/train/classes.txt", "train/labels/classes.txt")
KEYS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}


class Yolo(Format):
    """`path` of a split is data.yaml, or the folder that it lies in, or one with classes.txt and images/train,
    images/val (or train/images, valid/images) or images/ alone, of which config.val_share validate, drawn by
    config.seed. val_annotations names another list of images.

    Image ids are places in the sorted list of the split's images, category ids the labels. An image without a label
    file, or with an empty one, is one without objects. There is no annotated size: by default the stored pixels count.
    """

    name = "yolo"
    fields = ("masks",)
    draws = True
    suffixes = (".yaml", ".yml")

    def locate(self, config: Config, split: str) -> Split:
        source = Path(split_source(config, split))
        names = names_file(source)
        if split == "val" and config.val_annotations:
            listing = Path(config.val_annotations)
            if why := why_unread(listing):
                raise DataError(f"{listing}: {why}; val_annotations names a list of images, a path a line")
            return Split(names, Path(config.image_dir or names.parent), "", listing)
        if is_yaml(names):
            places = yaml_places(names, split)
            return Split(names, places[0], split, places[0] if places[0].is_file() else None)
        root = source if source.is_dir() else source.parent
        folders = {s: list(folders_of(root, s)) for s in FOLDER_NAMES}
        if folders[split]:
            return Split(names, folders[split][0])
        if not folders["train"] and split != "test":
            for images in (root / "images", root / "obj_train_data"):
                if images.is_dir():
                    return Split(names, images, split)
        raise NoSplitError(f"{root}: no images for {split}; expected {root / 'images' / split} and a data.yaml")

    def classes(self, where: Split) -> list[str]:
        names = [n for n in class_names(where.annotations) if n != "background"]
        if not names:
            raise DataError(f"{where.annotations}: names no class")
        return names

    def annotation_files(self, where: Split) -> list[Path]:
        finder = LabelFinder()
        found = (finder.find(p) for p in split_images(where).paths)
        listing = [where.listing] if where.listing else []
        return [where.annotations, *listing, *sorted(dict.fromkeys(p for p in found if p))]

    def records(self, where: Split, config: Config, masks: Masks, files: bool = True) -> Records:
        """A fault is an image that is missing or no image, one that shares its label file with another, and a row that
        isn't a class of the names with a box or a polygon of shares of 1 (to 1 % beside it), or encloses nothing.
        Rows that are there twice count once, as in Ultralytics.
        """
        return YoloReader(where, config, masks).records()


# ---------------------------------------------------------------------------------------------------------
# data.yaml, and where it leads


def is_yaml(path: Path) -> bool:
    return path.suffix.lower() in (".yaml", ".yml")


def names_file(source: Path) -> Path:
    """The file that names the classes: data.yaml, or classes.txt of a folder without. Raises DataError."""
    if source.is_file():
        if is_yaml(source):
            return source
        raise DataError(f"{source}: dataset: yolo takes data.yaml, or the folder that it lies in")
    if not source.is_dir():
        why = "no such folder or file" if not source.exists() else why_unread(source)
        raise DataError(f"{source}: {why}; dataset: yolo takes data.yaml, or its folder")
    found = [p for p in sorted(source.iterdir()) if is_yaml(p) and p.is_file()]
    named = [p for p in found if p.stem == "data"] or [p for p in found if describes(p)]
    if len(named) > 1:
        raise DataError(f"{source}: {named[0].name} or {named[1].name}? name the file itself")
    files = named + [source / n for n in NAME_FILES if (source / n).is_file()]
    if not files:
        raise DataError(
            f"{source}: neither data.yaml nor classes.txt there, so the names of the classes are unknown; add"
            " data.yaml with names: [...], train: and val:"
        )
    return files[0]


def describes(path: Path) -> bool:
    """Whether a YAML file is a data set's."""
    try:
        return bool({"names", "nc"} & read_data(path).keys())
    except DataError:
        return False


def read_data(path: Path) -> dict:
    """data.yaml, all of its values as text: a class may be called no, or 1e3. Raises DataError."""
    data = read_yaml(path, DataError)
    if not isinstance(data, dict):
        raise DataError(f"{path}: expected train:, val: and names:")
    return data


def class_names(path: Path) -> list[str]:
    """The names of the classes in order. Raises DataError."""
    if not is_yaml(path):
        names = [line.strip() for line in read_lines(path)]
        while names and not names[-1]:
            names.pop()
    else:
        names = yaml_names(read_data(path), path)
    if not names or "" in names:
        raise DataError(f"{path}: " + (f"class {names.index('')} has no name" if names else "names no class"))
    twice = next((n for n, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        where = [i for i, n in enumerate(names) if n == twice]
        raise DataError(f"{path}: classes {where[0]} and {where[1]} are both called {twice!r}; rename one")
    return names


def yaml_names(data: dict, path: Path) -> list[str]:
    """`names`, a list or a mapping of numbers, or of `nc` alone class_0, class_1, ... Raises DataError."""
    names, count = data.get("names"), data.get("nc")
    if count is not None and not (isinstance(count, str) and COUNT.fullmatch(count) and int(count) <= MOST_CLASSES):
        raise DataError(f"{path}: nc is {str(count)[:40]!r}, not a number of classes")
    if names is None and count is None:
        raise DataError(f"{path}: neither names: nor nc:, so the classes are unknown; add names: [...]")
    if names is None and count is not None:
        return [f"class_{i}" for i in range(int(count))]
    if isinstance(names, dict):
        places = [str(i) for i in range(len(names))]
        if set(names) != set(places):
            wrong = next(k for k in names if k not in places)
            raise DataError(f"{path}: names: {str(wrong)[:40]!r} isn't one of the numbers 0 to {len(names) - 1}")
        names = [names[k] for k in places]
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise DataError(f"{path}: names: expected a list of names, or a mapping of numbers to names")
    if count is not None and int(count) != len(names):
        raise DataError(f"{path}: nc is {count}, but names has {len(names)}; mend one")
    return [n.strip() for n in names]


def yaml_places(path: Path, split: str) -> list[Path]:
    """The folders and lists of images that data.yaml names for a split. Raises DataError."""
    data = read_data(path)
    key = next((k for k in KEYS[split] if data.get(k)), None)
    if key is None:
        raise NoSplitError(f"{path}: no {split}: that names its images; add it")
    entries = data[key] if isinstance(data[key], list) else [data[key]]
    if not all(isinstance(e, str) and e.strip() and "\0" not in e for e in entries):
        raise DataError(f"{path}: {key}: expected a folder, a list of folders, or a text file of images")
    base = data.get("path")
    roots = [path.parent / base] if isinstance(base, str) and base and "\0" not in base else []
    return [yaml_place(e.strip().replace("\\", "/"), [*roots, path.parent], path, key) for e in entries]


def yaml_place(entry: str, roots: list[Path], path: Path, key: str) -> Path:
    """A folder or list as Ultralytics finds it, below `path:`; or where data.yaml was carried along without that, below
    its own folder. Roboflow's ../train/images means train/images. Raises DataError.
    """
    tries = [r / e for r in roots for e in dict.fromkeys((entry, entry.removeprefix("../")))]
    parts = Path(entry).parts
    # a path on another machine: what of it is here
    tries += [path.parent.joinpath(*parts[i:]) for i in range(1, len(parts) - 1)]
    for place in tries:
        # pathlib raises for names that are too long, and folders that may not be entered
        if os.path.isdir(place) or (place.suffix.lower() == ".txt" and os.path.isfile(place)):
            return Path(os.path.normpath(place))
    raise DataError(f"{path}: {key}: no such folder or list of images: {entry}; tried {tries[0]} and {tries[-1]}")


def folders_of(root: Path, split: str) -> Iterator[Path]:
    """Folders with a split's images in a root without data.yaml, the likeliest first."""
    for name in FOLDER_NAMES[split]:
        for folder in (root / "images" / name, root / name / "images", root / "images" / f"{name}2017"):
            if folder.is_dir():
                yield folder


# ---------------------------------------------------------------------------------------------------------
# images and their label files


@dataclass
class Found:
    """Images of a split in order, faults of names in lists by that name, and folders that were searched."""

    paths: list[Path] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    finder: ImageFinder | None = None


def split_images(where: Split) -> Found:
    """The images of a split. Raises DataError."""
    out = Found()
    places = [where.listing or where.images]
    if is_yaml(where.annotations) and where.part:
        places = yaml_places(where.annotations, where.part)
    for place in places:
        if place.is_dir():
            try:
                images, others = sorted_files(place)
            except OSError as e:
                raise DataError(f"{e.filename}: can't read: {e.strerror}") from None
            out.paths += images
            out.others += others
            out.folders.append(place)
        else:
            out.finder = ImageFinder([place.parent, where.annotations.parent, where.images])
            for i, line in enumerate(read_lines(place), 1):
                if name := line.strip().removeprefix("./"):
                    try:
                        out.paths.append(out.finder.find(name))
                    except DataError as e:
                        out.missing[name] = f"{place}, line {i}: {e}"
    out.paths = sorted(dict.fromkeys(out.paths))
    return out


class LabelFinder:
    """Finds the label file of an image: its path with the last images/ as labels/, its suffix as .txt; also one whose
    name differs in case or in how accents are composed.
    """

    def __init__(self):
        self.names: dict[Path, dict[str, list[Path]]] = {}

    def place(self, image: Path) -> Path:
        """Where it belongs."""
        parts = list(image.parts)
        folders = [i for i, p in enumerate(parts[:-1]) if p == "images"]
        if not folders:
            above = Path(os.path.abspath(image))
            parts, folders = list(above.parts), [i for i, p in enumerate(above.parts[:-1]) if p == "images"]
        if not folders:
            return image.with_suffix(".txt")
        parts[folders[-1]] = "labels"
        return Path(*parts).with_suffix(".txt")

    def find(self, image: Path) -> Path | None:
        """The file, or None where there is none. Raises DataError where two may be it."""
        wanted = self.place(image)
        listed = self.listed(wanted.parent).get(plain_name(wanted.name), [])
        if wanted in listed:
            return wanted
        if len(listed) > 1:
            raise DataError(f"{image}: its labels are {listed[0]} or {listed[1]}; call them as the image")
        return listed[0] if listed else None

    def listed(self, folder: Path) -> dict[str, list[Path]]:
        """The text files of a folder by their plain names."""
        if folder not in self.names:
            out: dict[str, list[Path]] = {}
            if folder.is_dir():
                for entry in os.scandir(folder):
                    if entry.name.lower().endswith(".txt") and not entry.name.startswith("._"):
                        out.setdefault(plain_name(entry.name), []).append(folder / entry.name)
            self.names[folder] = out
        return self.names[folder]


# ---------------------------------------------------------------------------------------------------------
# the records


@dataclass(frozen=True)
class Row:
    """One object: the number of its class, and four shares of a box or pairs of them of a polygon; its line."""

    number: int
    shares: tuple[float, ...]
    line: int = field(compare=False)

    @property
    def is_polygon(self) -> bool:
        return len(self.shares) > 4


def read_row(text: str, line: int, count: int, path: Path) -> Row:
    """A row of a file; count: of classes. Raises DataError."""
    where, words = f"{path}, line {line}", text.split()
    try:
        number, *shares = map(float, words)
    except ValueError:
        number, shares = math.nan, []
    if not all(map(math.isfinite, (number, *shares))):
        raise DataError(f"{where}: {text[:60]!r} holds something that isn't a number")
    if not number.is_integer() or not 0 <= number < count:
        raise DataError(f"{where}: class {words[0][:20]} isn't one of 0 to {count - 1}, which the names are for")
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        kind = "a confidence, or another column too many" if len(words) == 6 else "key points, or columns too many"
        kind = "columns are missing" if len(words) < 5 else f"{kind}?"
        raise DataError(
            f"{where}: {len(words)} columns; expected class cx cy width height, or class and three or more pairs x y"
            f" ({kind})"
        )
    for share in shares:
        if not -TOLERANCE <= share <= 1 + TOLERANCE:
            raise DataError(f"{where}: {share:.6g} isn't a share of the image's side, 0 to 1")
    if len(words) == 5 and min(shares[2:]) <= 0:
        raise DataError(f"{where}: a box of {shares[2]:.6g} x {shares[3]:.6g} has no area; remove the row")
    return Row(int(number), tuple(shares), line)


class YoloReader:
    """One split on its way to records."""

    def __init__(self, where: Split, config: Config, masks: Masks):
        self.where, self.config, self.masks = where, config, masks
        self.names, self.labels = class_names(where.annotations), Labels(config)
        self.notes: Counter[str] = Counter()
        self.told: list[str] = []
        self.finder = LabelFinder()

    def records(self) -> Records:
        found = split_images(self.where)
        drawn = share_of([os.fspath(p) for p in found.paths], self.drawn_part(), self.config)
        paths = [Path(p) for p in drawn]
        if not paths and not found.missing:
            where = self.where.listing or self.where.images
            raise DataError(f"{where}: no image for {self.where.part or 'this split'}")
        records = [ImageRecord(i, self.name_of(p), p, 0, 0) for i, p in enumerate(paths, 1)]
        files = self.label_files(records, found)
        rows = {}
        for record in tqdm(records, unit="img", desc="reading", leave=False):
            rows[record.image_id] = self.read_rows(record, files.get(record.image_id))
        with_masks = any(r.is_polygon for some in rows.values() for r in some)
        needed = self.masks == "needed" or (self.masks == "if_any" and with_masks)
        if with_masks and not all(r.is_polygon for some in rows.values() for r in some):
            self.told.append("boxes beside polygons: they are boxes without masks (Ultralytics mixes up files of both)")
        for record in records:
            self.fill(record, rows.pop(record.image_id), files.get(record.image_id), needed)
        for i, (name, fault) in enumerate(found.missing.items(), len(records) + 1):
            records.append(ImageRecord(i, name, self.where.images / name, 0, 0, faults=[fault]))
        if found.finder:
            refuse_shared(records, found.finder)
        lacking = [n for n in class_labels(self.config) if n not in self.names]
        if lacking:
            told = ", ".join(lacking[:10]) + (", ..." if len(lacking) > 10 else "")
            self.told.append(f"{self.where.annotations}: has no class {told}: nothing is learnt or measured of it")
        notes = self.told + [f"{text}: {count}" for text, count in self.notes.items()]
        others = [p for p in found.others if p.suffix.lower() not in (".txt", ".cache")]
        notes += self.labels.notes() + passed_over(self.where.images, others)
        listed = found.folders + (found.finder.listed if found.finder else [])
        return Records(self.where, records, truth_categories(self.config), notes, with_masks, listed)

    def drawn_part(self) -> str:
        """The part that is drawn; nothing where files tell."""
        return "" if is_yaml(self.where.annotations) or self.where.listing else self.where.part

    def name_of(self, path: Path) -> str:
        """An image's path below the images, or where they are in several folders below the data set."""
        for folder in (self.where.images, self.where.annotations.parent):
            if folder in path.parents:
                return path.relative_to(folder).as_posix()
        return path.name

    def label_files(self, records: list[ImageRecord], found: Found) -> dict[int, Path]:
        """The label file of each image id that has one. Raises DataError where no image has any."""
        files: dict[int, Path] = {}
        owners: dict[Path, ImageRecord] = {}
        for record in records:
            try:
                path = self.finder.find(record.path)
            except DataError as e:
                record.faults.append(str(e))
                continue
            if path is None:
                continue
            other = owners.setdefault(path, record)
            if other is not record:
                for a, b in ((record, other), (other, record)):
                    a.faults.append(f"{a.path}: shares its label file {path} with {b.path.name}; rename one of them")
            files[record.image_id] = path
        if found.paths and not files and not any(self.finder.find(p) for p in found.paths):
            place = self.finder.place(found.paths[0])
            raise DataError(f"{place}: missing, as the label files of all {len(found.paths)} images; put them there")
        bare = len(records) - len(files)
        if bare:
            self.notes["images without a label file are images without objects"] = bare
        if found.folders and not found.finder and not self.drawn_part():
            used = set(files.values())
            listed = (p for names in self.finder.names.values() for some in names.values() for p in some)
            orphans = sorted(p for p in listed if p not in used and p.name != "classes.txt")
            if orphans:
                some = ", ".join(p.name for p in orphans[:5]) + (", ..." if len(orphans) > 5 else "")
                self.told.append(f"{len(orphans)} label files without an image are passed over ({some})")
        return files

    def read_rows(self, record: ImageRecord, path: Path | None) -> list[Row]:
        """An image's rows; faults go to the record."""
        if path is None:
            return []
        try:
            lines = read_lines(path)
        except DataError as e:
            record.faults.append(str(e))
            return []
        rows, seen = [], set()
        for i, text in enumerate(lines, 1):
            if not text.strip():
                continue
            try:
                row = read_row(text, i, len(self.names), path)
            except DataError as e:
                record.faults.append(str(e))
                continue
            if row in seen:
                self.notes["rows that are there twice count once"] += 1
                continue
            seen.add(row)
            rows.append(row)
        return rows

    def fill(self, record: ImageRecord, rows: list[Row], labels: Path | None, needed: bool) -> None:
        """Gives a record its frame and its objects."""
        try:
            _, height, width, orientation = file_header(record.path)
        except DataError as e:
            record.faults.append(str(e))
            return
        record.orientation = orientation_for(self.config.exif, (height, width), orientation)
        turned = record.orientation >= 5
        record.height, record.width = (width, height) if turned else (height, width)
        if orientation != 1 and self.config.exif == "auto":
            self.notes[
                "pictures with an EXIF orientation, taken as they are stored; where the labels were drawn on them"
                " upright, as Ultralytics has them, set exif: upright"
            ] += 1
        try:
            sides = np.array([record.width, record.height])
            drawn = [(np.reshape(r.shares, (-1, 2)) * sides).ravel() for r in rows if r.is_polygon]
            demand_room(drawn, record.height, record.width, str(labels))
        except DataError as e:
            record.faults.append(str(e))
            return
        for row in rows:
            record.add(self.instance, row, record, needed, f"{labels}, line {row.line}")
        record.told = str(labels)

    def instance(self, row: Row, record: ImageRecord, needed: bool, where: str) -> Instance | None:
        """An object, or None for one that the config leaves out. Raises DataError."""
        label = self.labels.of(self.names[row.number], where)
        if label is None:
            return None
        height, width = record.height, record.width
        if row.is_polygon:
            points = np.round(np.reshape(row.shares, (-1, 2)) * [width, height], DIGITS)
            points = clip_polygon(points, height, width)
            (x1, y1), (x2, y2) = (points.min(0).tolist(), points.max(0).tolist()) if len(points) else ((0, 0), (0, 0))
            if min(x2 - x1, y2 - y1) < LEAST_SIDE:
                raise DataError(f"{where}: a polygon without area; remove the row")
            polygons = [points.ravel()]
            demand_short(polygons, where)
            area = mask_area(polygons, height, width)
            if not area:
                self.notes["masks that cover no pixel's centre, which no detection can match"] += 1
            return Instance(label, label == 0, (x1, y1, x2, y2), (x1, y1, x2 - x1, y2 - y1), area, polygons)
        if needed:
            raise DataError(f"{where}: a box, and masks are learnt from polygons; use faster_rcnn")
        cx, cy, w, h = row.shares
        x1, x2 = (round((cx + side) * width, DIGITS) for side in (-w / 2, w / 2))
        y1, y2 = (round((cy + side) * height, DIGITS) for side in (-h / 2, h / 2))
        box = clipped_box((x1, y1, x2 - x1, y2 - y1), height, width, where)
        bbox = (box[0], box[1], box[2] - box[0], box[3] - box[1])
        return Instance(label, label == 0, box, bbox, bbox[2] * bbox[3])
