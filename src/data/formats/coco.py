"""COCO's instances (Lin et al., 2014, arXiv:1405.0312): one JSON file a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np
from tqdm import tqdm

from src.config import Config
from src.data.fields import FIELDS, Field, all_fields, carried_fields
from src.data.finding import ImageFinder, refuse_shared
from src.data.formats.base import FOLDER_NAMES, Format, Masks, NoSplitError, class_labels, load_json, split_source
from src.data.images import frame_of
from src.data.records import DataError, ImageRecord, Instance, Records, Split, clipped_box, number
from src.data.segmentations import covers_nothing, drawing_work, extent, mask_area, normal_segmentation
from src.runtime.newer import zip_equal

__all__ = ["Coco", "category_names", "folder_beside", "read_json"]

LARGEST = 1 << 31  # pixels: no decoder takes a longer side
# pixels around all polygons of a file, which take 0.1 us each to fill: so many; more for each image, by its size, and
# for each annotation
WORK, WORK_OF_IMAGE, WORK_OF_ANNOTATION = 5e7, 1e5, 2e3
Key = Union[int, str]


class Coco(Format):
    """`path` of a split is a COCO root (annotations/instances_{split}2017.json with {split}2017/; also other years, or
    instances_default.json as CVAT writes), a folder with labels.json and data/ (FiftyOne), _annotations.coco.json
    beside its images (Roboflow), result.json and images/ (Label Studio) or annotations.json (labelme2coco), the parent
    of such folders named train/, validation/ and test/, or an annotation file.
    """

    name = "coco"
    suffixes = (".json",)
    images_beside = True
    fields = tuple(f.name for f in FIELDS.values())

    def locate(self, config: Config, split: str) -> Split:
        annotations = config.val_annotations if split == "val" else ""
        return resolve_split(split_source(config, split), split, annotations, config.image_dir)

    def classes(self, where: Split) -> list[str]:
        return category_names(read_json(where.annotations), where.annotations)

    def records(self, where: Split, config: Config, masks: Masks, files: bool = True) -> Records:
        return self.parse(read_json(where.annotations), where, config, masks, files)

    def labels(self, where: Split, config: Config, embedded: Path) -> Records:
        return self.parse(read_json(where.annotations), where, config, "unneeded", fields=all_fields(config))

    def parse(
        self,
        data: dict,
        where: Split,
        config: Config,
        masks: Masks,
        files: bool = True,
        fields: Sequence[Field] | None = None,
    ) -> Records:
        """As records, of a file's content; `files`: images' files are looked for; `fields`: those that objects get in
        Instance.fields (default: what the detector's branches learn).
        """
        return CocoReader(data, where, config, masks, files, fields).records()


# ---------------------------------------------------------------------------------------------------------
# where it lies


def resolve_split(path: str | Path, split: str, annotations: str | Path = "", images: str | Path = "") -> Split:
    """Finds `split` in any layout.

    `annotations` names another file than the layout's: then the images are those of the folder that the file is called
    after (instances_NAME.json: NAME/) or else of the first in that order. `images` names the folder of the images of
    either file. Raises DataError.
    """
    root = Path(path)
    if annotations:
        return Split(Path(annotations), Path(images) if images else image_folder(root, split, Path(annotations)))
    if root.suffix == ".json" and not root.is_dir():
        return Split(root, Path(images) if images else folder_beside(root, split))
    candidates = list(layouts(root, split))
    for c in candidates:
        if c.annotations.is_file():
            if not c.images.is_dir():
                raise DataError(f"{c.images}: no such folder, though {c.annotations} is there; put the images in it")
            return c
    wanted = " or ".join(str(c.annotations) for c in candidates[:2])
    raise NoSplitError(
        f"{root}: no COCO annotations for {split}; expected {wanted}, or name the annotation file itself"
    )


def layouts(root: Path, split: str) -> Iterator[Split]:
    """Places where a split's annotations and images may be, the likeliest first."""
    yield Split(root / f"annotations/instances_{split}2017.json", root / f"{split}2017")
    for folder in (root, *(root / n for n in FOLDER_NAMES[split])):
        yield Split(folder / "labels.json", folder / "data")
        yield Split(folder / "_annotations.coco.json", folder)
        yield Split(folder / "result.json", folder / "images")
        yield Split(folder / "annotations.json", folder)
    named = [p for n in FOLDER_NAMES[split] for p in sorted(root.glob(f"annotations/instances_{n}*.json"))]
    named += sorted(root.glob(f"annotations/instances_{split.capitalize()}*.json"))
    if len(named) > 1:
        raise DataError(f"{root}: {named[0].name} and {named[1].name} are both for {split}; name the file itself")
    for path in (*named, root / "annotations/instances_default.json"):
        yield Split(path, folder_beside(path, split))


def folder_beside(annotations: Path, split: str) -> Path:
    """The folder with the images of an annotation file on its own: one beside it, or its own."""
    near = (annotations.parent, annotations.parent.parent)
    stem = annotations.stem.removeprefix("instances_")
    named = (stem, f"images/{stem}", f"{split}2017", "images", "data")
    return next((p / n for p in near for n in named if (p / n).is_dir()), annotations.parent)


def image_folder(root: Path, split: str, annotations: Path) -> Path:
    """The folder in `root` with the images of an annotation file from anywhere. Raises DataError."""
    named = annotations.stem.removeprefix("instances_")
    folders = [root / named, root / f"{split}2017", root / "data", *(root / n / "data" for n in FOLDER_NAMES[split])]
    for folder in (*folders, root / f"images/{named}", root / "images"):
        if folder.is_dir():
            return folder
    raise DataError(f"{root}: no folder with the images of {annotations}; expected {folders[0]}, {folders[1]} or data")


# ---------------------------------------------------------------------------------------------------------
# the file and its ids


def read_json(path: Path) -> dict:
    """The annotation file as a mapping with its three lists. Raises DataError."""
    data: Any = load_json(path)
    for name in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(name), list):
            raise DataError(f"{path}: no list of {name!r}; not a COCO instances file")
        if not all(isinstance(row, dict) for row in data[name]):
            raise DataError(f"{path}: an entry of {name!r} isn't a mapping; not a COCO instances file")
    return data


def id_key(value: object) -> Key | None:
    """An id as what it is compared by: 3.0 is 3; None for what can't be one."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else repr(value)
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


class Ids:
    """Ids of images or categories as integers.

    As they are where all are integers of 64 bits; else they are numbered from 1 in the file's order. One that is given
    as text somewhere and as a number elsewhere is found.
    """

    def __init__(self, keys: list[Key]):
        self.kept = all(isinstance(k, int) and -(1 << 63) <= k < 1 << 63 for k in keys)
        self.number: dict[Key, int] = {k: k if self.kept and isinstance(k, int) else i for i, k in enumerate(keys, 1)}
        self.by_text = {str(k): k for k in keys}

    def key(self, value: object) -> Key | None:
        """The listed id that `value` means, or None."""
        key = id_key(value)
        if key in self.number:
            return key
        return self.by_text.get(str(key)) if key is not None else None

    def listed(self, value: object) -> Key:
        """The same of an id that is known to be listed."""
        key = self.key(value)
        if key is None:
            raise KeyError(value)
        return key


def category_names(data: dict, annotations: Path) -> list[str]:
    """Names of a file's categories, by id; of two that share a name, one must be without annotations. Raises DataError.

    A category called background is left out: that is what the detector calls everything else.
    """
    entries = [(k, name) for k, name in read_categories(data, annotations) if name != "background"]
    if not entries:
        raise DataError(f"{annotations}: 'categories' is empty, so there is nothing to learn")
    if all(isinstance(k, int) for k, _ in entries):
        entries.sort()
    return list(dict.fromkeys(name for _, name in entries))


def read_categories(data: dict, annotations: Path) -> list[tuple[Key, str]]:
    """(id, name) of each category. Raises DataError."""
    out = []
    for c in data["categories"]:
        key, name = id_key(c.get("id")), c.get("name")
        if isinstance(name, int) and not isinstance(name, bool):
            name = str(name)
        if key is None or not isinstance(name, str) or not name:
            what = (
                "lacks id or name" if not {"id", "name"} <= c.keys() else "has an id or name that isn't text or number"
            )
            raise DataError(f"{annotations}: category {str(c)[:80]} {what}")
        out.append((key, name))
    return out


# ---------------------------------------------------------------------------------------------------------
# its records


class CocoReader:
    """One file on its way to records."""

    def __init__(
        self,
        data: dict,
        where: Split,
        config: Config,
        masks: Masks,
        files: bool,
        fields: Sequence[Field] | None,
    ):
        self.fields = carried_fields(config) if fields is None else fields
        self.data, self.where, self.config, self.masks, self.files = data, where, config, masks, files
        self.path = where.annotations
        self.notes: Counter = Counter()
        self.apart: list[str] = []
        self.boxes = BoxPattern()
        self.work_left = WORK + WORK_OF_ANNOTATION * len(data["annotations"]) + sum(map(image_work, data["images"]))
        self.images = Ids(self.image_keys())
        entries = read_categories(data, self.path)
        self.categories = Ids([k for k, _ in entries])
        self.labels = self.label_of_category(entries)
        self.details = self.category_details(entries)

    def image_keys(self) -> list[Key]:
        keys, seen = [], set()
        for entry in self.data["images"]:
            key = id_key(entry.get("id"))
            if key is None:
                raise DataError(f"{self.path}: image {str(entry)[:80]} lacks an id that is a number or text")
            if key in seen:
                raise DataError(f"{self.path}: two images have the id {key}; give each its own")
            seen.add(key)
            keys.append(key)
        return keys

    def label_of_category(self, entries: list[tuple[Key, str]]) -> dict[Key, int | None]:
        """The label of each category id; None for classes that the config leaves out. Raises DataError."""
        used: Counter = Counter()
        for a in self.data["annotations"]:
            key = self.categories.key(a.get("category_id"))
            used[str(a.get("category_id")) if key is None else key] += 1
        unknown = next((k for k in used if k not in self.categories.number), None)
        if unknown is not None:
            raise DataError(
                f"{self.path}: category id {unknown} ({used[unknown]} annotations) isn't in the file's 'categories'"
            )
        known = class_labels(self.config)
        ids: dict[str, list[Key]] = {}
        labels: dict[Key, int | None] = {}
        for key, name in entries:
            ids.setdefault(name, []).append(key)
        self.id_of_label: dict[int, Key] = {}
        foreign: Counter = Counter()
        for name, same in ids.items():
            # some tools list a class a second time, as the supercategory of all
            busy = [k for k in same if used[k]]
            if len(busy) > 1:
                raise DataError(
                    f"{self.path}: categories {busy[0]} and {busy[1]} are both called {name!r}; merge them, or"
                    " rename one"
                )
            labels |= dict.fromkeys(same)
            chosen = (busy or same)[0]
            labels[chosen] = known.get(name)
            if name in known:
                self.id_of_label[known[name]] = chosen
            elif busy:
                foreign[name] = used[busy[0]]
        if foreign:
            self.take_foreign(foreign)
        return labels

    def category_details(self, entries: list[tuple[Key, str]]) -> dict[Key, dict[str, dict[str, Any]]]:
        """What each field has of the categories that the config names, by id and the field's name. Raises DataError."""
        listed = zip_equal(entries, self.data["categories"])
        used = [(key, entry, name) for (key, name), entry in listed if self.labels[key] is not None]
        return {
            key: {f.name: f.category(entry, f"{self.path}: category {name!r}") for f in self.fields}
            for key, entry, name in used
        }

    def take_foreign(self, foreign: Counter) -> None:
        """Classes of the file that the config doesn't name: refused, or told. Raises DataError."""
        name, count = foreign.most_common(1)[0]
        if self.config.other_classes == "stop":
            raise DataError(
                f"{self.path}: category {name!r} ({count} annotations) isn't in the config; set coco_classes: auto for"
                " all of the data's, or add it there and count it in num_classes, or set other_classes to background or"
                " ignore" + (" (background is reserved: rename it)" if name == "background" else "")
            )
        told = ", ".join(f"{n} {c}" for n, c in foreign.most_common(10)) + (", ..." if len(foreign) > 10 else "")
        what = "background" if self.config.other_classes == "background" else "neither object nor background"
        self.notes[f"objects of classes that the config leaves out are {what}: {told}"] = 1

    def truth_categories(self) -> list[dict]:
        """Each class of the config with the file's id, or where the file lacks it with a new one, which is told."""
        taken = {self.categories.number[k] for k in self.categories.number}
        fresh, out, lacking = max(taken, default=0) + 1, [], []
        for name, label in class_labels(self.config).items():
            if label in self.id_of_label:
                key = self.id_of_label[label]
                number = self.categories.number[key]
                out.append({"id": number, "name": name} | ({} if self.categories.kept else {"source_id": key}))
                for detail in self.details[key].values():
                    out[-1] |= detail
            else:
                lacking.append(name)
                out.append({"id": fresh, "name": name})
                fresh += 1
        if lacking:
            told = ", ".join(lacking[:10]) + (", ..." if len(lacking) > 10 else "")
            self.notes[f"{self.path}: has no category {told}: nothing is learnt or measured of it"] = 1
        return out

    def records(self) -> Records:
        """The records, by image id; the data are used up on the way, which frees their memory."""
        by_image: dict[Key, list[dict]] = {k: [] for k in self.images.number}
        for a in self.data.pop("annotations"):
            key = self.images.key(a.get("image_id"))
            if key is None:
                told = f"annotation {a.get('id')} is of image {a.get('image_id')}, which 'images' doesn't list"
                if self.config.on_bad_image == "stop":
                    raise DataError(f"{self.path}: {told}; remove the annotation or add the image")
                self.notes["annotations of images that aren't listed are passed over"] += 1
                continue
            by_image[key].append(a)
        with_masks = any(a.get("segmentation") for rows in by_image.values() for a in rows)
        masks = self.masks == "needed" or (self.masks == "if_any" and with_masks)
        finder = ImageFinder([self.where.images, self.path.parent, self.path.parent.parent])
        entries = sorted(self.data.pop("images"), key=lambda e: self.images.number[self.images.listed(e["id"])])
        records = []
        for entry in tqdm(entries, unit="img", desc="reading", leave=False):
            rows = by_image.pop(self.images.listed(entry["id"]))
            records.append(self.image_record(entry, rows, finder, masks))
        refuse_shared(records, finder)
        categories = self.truth_categories()
        notes = [text if count == 1 else f"{text}: {count}" for text, count in self.notes.items()]
        notes += apart_notes(self.apart) + [f"{self.path}: {text}" for text in self.boxes.oddities()]
        return Records(self.where, records, categories, notes, with_masks, finder.listed)

    def image_record(self, entry: dict, rows: list[dict], finder: ImageFinder, masks: bool) -> ImageRecord:
        key, name = self.images.listed(entry["id"]), entry.get("file_name")
        faults: list[str] = []
        height, width = (number(entry.get(k)) for k in ("height", "width"))
        source_id = None if self.images.kept else key
        record = ImageRecord(self.images.number[key], str(name), self.where.images / str(name), 0, 0)
        record.orientation, record.source_id, record.faults = None, source_id, faults
        if not isinstance(name, str) or not name:
            faults.append(f"{self.path}: image {key} lacks file_name")
            return record
        found = False
        try:
            # without a size in the file, the image itself is asked
            if self.files or (entry.get("height") is None and entry.get("width") is None):
                record.path, found = finder.find(name), True
        except DataError as e:
            if self.files:
                faults.append(f"{e}: the image of {len(rows)} annotations in {self.path.name} is missing")
        try:
            record.height, record.width = self.size_of(entry, record, height, width, found)
        except DataError as e:
            faults.append(str(e))
            return record
        for place, a in enumerate(rows, 1):
            number_of = f"{a['id']}"[:60] if "id" in a else f"(the {place}. without id)"
            where = f"{self.path}: annotation {number_of} of image {f'{key}'[:60]}"
            record.add(self.instance, a, record.height, record.width, masks, where)
        record.told = f"{self.path}: image {key} ({record.path.name})"
        return record

    def size_of(
        self, entry: dict, record: ImageRecord, height: float | None, width: float | None, found: bool
    ) -> tuple[int, int]:
        """(height, width) as annotated, or where the annotations don't say that of the file, if it was found.

        Raises DataError.
        """
        if entry.get("height") is None and entry.get("width") is None and found:
            height, width, record.orientation = frame_of(record.path, self.config.exif)
            self.notes["images without an annotated size: their files' are taken"] += 1
        sides = [v for v in (height, width) if v is not None and 0 < v < LARGEST and v == int(v)]
        if len(sides) < 2:
            given = f"{entry.get('width')!r} x {entry.get('height')!r}"
            raise DataError(f"{self.path}: image {entry.get('id')} lacks a size that is one: {given[:60]}")
        return int(sides[0]), int(sides[1])

    def instance(self, a: dict, height: int, width: int, masks: bool, where: str) -> Instance | None:
        """An annotation as an object, or None for one that the config leaves out. Raises DataError."""
        category = self.categories.listed(a["category_id"])
        label = self.labels[category]
        if label is None and self.config.other_classes == "background":
            return None
        crowd = is_crowd(a.get("iscrowd"), where)
        segmentation = self.segmentation(a.get("segmentation"), height, width, masks and not crowd, where)
        bbox = self.bbox(a.get("bbox"), segmentation, where)
        box = clipped_box(bbox, height, width, where)
        self.boxes.add(bbox, height, width)
        if segmentation is not None:
            bounds = extent(segmentation)
            self.work_left -= drawing_work(segmentation, bounds)
            if self.work_left < 0:
                raise DataError(f"{where}: the file's polygons are longer than pictures have room for; simplify them")
            x1, y1, x2, y2 = bounds.tolist()
            if x2 <= box[0] or y2 <= box[1] or x1 >= box[2] or y1 >= box[3]:
                self.apart.append(where)
            elif masks and not crowd and covers_nothing(segmentation, bounds, height, width):
                self.notes["masks that cover no pixel's centre, which no detection can match"] += 1
        area = number(a.get("area"))
        if area is None or area < 0 or (area == 0 and segmentation is None):
            self.notes["annotations without a usable area: it is the mask's, or else the box's"] += 1
            area = bbox[2] * bbox[3] if segmentation is None else mask_area(segmentation, height, width)
        if label is None:
            return Instance(0, True, box, bbox, area, segmentation)
        found = Instance(label, crowd, box, bbox, area, segmentation)
        if self.fields:
            read = {f.name: f.read(a, self.details[category][f.name], height, width, where) for f in self.fields}
            found.fields = {name: value for name, value in read.items() if value is not None}
        return found

    def segmentation(
        self, value: object, height: int, width: int, needed: bool, where: str
    ) -> list[np.ndarray] | dict | None:
        """The mask in normal form; None where there is none and none is needed. Raises DataError."""
        if not needed and not value:
            return None
        try:
            return normal_segmentation(value, height, width, where)
        except DataError:
            if needed:
                raise
            self.notes["segmentations that can't be used, where boxes are enough"] += 1
            return None

    def bbox(self, value: object, segmentation: list | dict | None, where: str) -> tuple[float, float, float, float]:
        """x, y, width, height; of the mask where the annotation has none. Raises DataError."""
        if value is None and segmentation is not None:
            self.notes["annotations without a box: it is the mask's"] += 1
            x1, y1, x2, y2 = extent(segmentation).tolist()
            return x1, y1, x2 - x1, y2 - y1
        if not isinstance(value, list) or len(value) != 4:
            raise DataError(f"{where}: bbox {str(value)[:80]} isn't [x, y, width, height]")
        numbers = [v for v in map(number, value) if v is not None]
        if len(numbers) < 4:
            raise DataError(f"{where}: bbox {str(value)[:80]} isn't four finite numbers")
        x, y, w, h = numbers
        return x, y, w, h


def image_work(entry: dict) -> float:
    """Pixels that outlines in an image may be long: a twentieth of its own."""
    height, width = (number(entry.get(k)) or 0.0 for k in ("height", "width"))
    return max(0.0, min(WORK_OF_IMAGE, height * width / 20))


def is_crowd(value: object, where: str) -> bool:
    """COCO's iscrowd, also where a tool wrote it as text, or nothing. Raises DataError."""
    given = number(value) if value not in (None, "") else 0.0
    if isinstance(value, bool):
        given = float(value)
    if given not in (0.0, 1.0):
        raise DataError(f"{where}: iscrowd is {str(value)[:40]!r}, not 0 or 1")
    return given == 1.0


def apart_notes(where: list[str]) -> list[str]:
    """A line, or none, on annotations whose box and mask don't overlap."""
    if not where:
        return []
    more = f" (and of {len(where) - 1} more annotations)" if len(where) > 1 else ""
    return [f"{where[0]}: its box and its mask don't overlap; one of them is another object's{more}"]


class BoxPattern:
    """What the boxes of a whole file look like: other tools write corners, or shares of the image's sides."""

    LEAST = 5  # boxes before anything is said

    def __init__(self):
        self.count = self.leaving = self.corners = self.shares = 0

    def add(self, bbox: tuple[float, float, float, float], height: int, width: int) -> None:
        x, y, w, h = bbox
        self.count += 1
        self.leaving += x + w > width + 1 or y + h > height + 1
        self.corners += w > x and h > y and w <= width + 1 and h <= height + 1
        self.shares += max(bbox) <= 1 and min(width, height) > 8

    def oddities(self) -> list[str]:
        """A line for each pattern that the boxes fit too well."""
        if self.count < self.LEAST:
            return []
        if self.shares == self.count:
            return ["every box lies within one pixel: are they shares of the image's sides? COCO wants pixels"]
        if self.corners == self.count and self.leaving * 5 > self.count:
            return [
                f"{self.leaving} of {self.count} boxes leave their image, and all would be boxes as x1, y1, x2, y2;"
                " COCO wants x, y, width, height"
            ]
        return []
