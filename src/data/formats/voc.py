"""Pascal VOC's XML annotations (Everingham et al., 2010, doi:10.1007/s11263-009-0275-4), one file an image."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from xml.parsers import expat

from tqdm import tqdm

from src.config import Config
from src.data.finding import ImageFinder, plain_name, refuse_shared
from src.data.formats.base import (
    FOLDER_NAMES,
    Format,
    Labels,
    Masks,
    NoSplitError,
    passed_over,
    read_lines,
    share_of,
    split_source,
    truth_categories,
)
from src.data.images import frame_of, sorted_files
from src.data.records import DataError, ImageRecord, Instance, Records, Split, clipped_box, number
from src.runtime.files import read_regular, why_unread
from src.runtime.newer import SLOTS

__all__ = ["Voc", "read_xml"]

XML_FOLDERS = ("Annotations", "annotations", "")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "")
# bytes and elements of an image's file, and how many elements each other hold
LARGEST, MOST_ELEMENTS, DEEPEST = 64 << 20, 500_000, 100


@dataclass(**SLOTS)
class Element:
    """One XML element, with the line that it begins on. parts: its own text, as the parser gave it."""

    tag: str
    line: int
    parts: list[str] = field(default_factory=list)
    children: list[Element] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def find(self, tag: str) -> Element | None:
        """The first child of that tag."""
        return next((c for c in self.children if c.tag == tag), None)


def read_xml(path: Path) -> Element:
    """The root of an XML file. Raises DataError, with the line."""
    stack = [Element("", 0)]
    count = 0
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def refuse(what: str) -> None:
        raise DataError(f"{path}, line {parser.CurrentLineNumber}: {what}")

    def start(tag: str, _: dict) -> None:
        nonlocal count
        count += 1
        if len(stack) > DEEPEST or count > MOST_ELEMENTS:
            refuse(f"more than {MOST_ELEMENTS:,} elements, or {DEEPEST} in each other; not an image's annotations")
        stack[-1].children.append(Element(tag, parser.CurrentLineNumber))
        stack.append(stack[-1].children[-1])

    def end(_: str) -> None:
        stack.pop()

    def text(data: str) -> None:
        stack[-1].parts.append(data)

    def doctype(*_: object) -> None:
        # its entities can stand for each other, and for other files
        refuse("has a DOCTYPE, which isn't read; remove it")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(read_regular(path, LARGEST), True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file") from None
    except OSError as e:
        raise DataError(f"{path}: can't read: {e.strerror}") from None
    except expat.ExpatError as e:
        reason = expat.errors.messages[e.code]
        raise DataError(f"{path}, line {e.lineno}: not valid XML ({reason}); mend or write it again") from None
    except DataError:
        raise
    except (ValueError, LookupError):
        raise DataError(f"{path}, line 1: not valid XML (unknown encoding); write it again as UTF-8") from None
    root = stack[0].children[0]
    if root.tag != "annotation":
        raise DataError(f"{path}, line {root.line}: <{root.tag}> where VOC has <annotation>")
    return root


class Voc(Format):
    """A folder with Annotations/ (or annotations/) and JPEGImages/ (or images/), or XML files beside their images; or
    the parent of such folders named train/, val/ and test/.

    ImageSets/Main/{train,val,test}.txt name the images of the parts (val_annotations another such file); without them
    config.val_share of the images validate, drawn by config.seed. Image ids are places among all names of the folder.
    """

    name = "voc"
    options = ("voc_difficult", "voc_first_pixel")
    draws = True
    listed_alone = True

    def locate(self, config: Config, split: str) -> Split:
        root = Path(split_source(config, split))
        listing = Path(config.val_annotations) if split == "val" and config.val_annotations else None
        if listing is not None and (why := why_unread(listing)):
            raise DataError(f"{listing}: {why}; val_annotations names a list of images, as in ImageSets/Main")
        for folder in (root, *(root / n for n in FOLDER_NAMES[split])):
            for name in XML_FOLDERS:
                annotations = folder / name
                if annotations.is_dir() and xml_files(annotations):
                    images = next(folder / n for n in IMAGE_FOLDERS if (folder / n).is_dir())
                    return voc_split(annotations, images, split if folder == root else "", listing)
        raise NoSplitError(
            f"{root}: no XML annotations for {split}; expected {root / 'Annotations'} with {root / 'JPEGImages'}"
        )

    def classes(self, where: Split) -> list[str]:
        """Names of all classes in the folder, in alphabetical order."""
        names, unread = set(), ""
        for path in tqdm(xml_files(where.annotations), unit="file", desc="reading", leave=False):
            try:
                objects = [c.find("name") for c in read_xml(path).children if c.tag == "object"]
            except DataError as e:
                # told, or counted, where the file is read for its boxes
                unread = unread or f"; {e}"
                continue
            names |= {n.text.strip() for n in objects if n is not None and n.text.strip()}
        if not names:
            raise DataError(f"{where.annotations}: no object with a <name> in its XML files{unread}")
        return sorted(names)

    def annotation_files(self, where: Split) -> list[Path]:
        return xml_files(where.annotations) + ([where.listing] if where.listing else [])

    def records(self, where: Split, config: Config, masks: Masks, files: bool = True) -> Records:
        """A fault is an image or XML file that is missing, XML that isn't VOC's, a <size> that isn't the image's, an
        object without name, of an unknown class, or with a box that isn't four numbers, has no area or lies outside.
        An object marked <difficult> is a crowd region (config.voc_difficult: ignore): neither object nor background.
        """
        return VocReader(where, config, masks).records()


def xml_files(folder: Path) -> list[Path]:
    """The annotation files of a folder; of one made for them also those further below. Hidden ones are copies."""
    found = folder.rglob("*.xml") if folder.name.lower() == "annotations" else folder.glob("*.xml")
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def voc_split(annotations: Path, images: Path, part: str, listing: Path | None) -> Split:
    """The split, with the file that lists it where there is one. Raises DataError."""
    folder = annotations.parent / "ImageSets/Main"
    if listing is None and part and (folder / f"{part}.txt").is_file():
        listing = folder / f"{part}.txt"
    if listing is None and part == "test":
        raise NoSplitError(f"{folder / 'test.txt'}: no such file, and no test/ folder; there is no split test")
    return Split(annotations, images, part, listing)


class VocReader:
    """One split on its way to records."""

    def __init__(self, where: Split, config: Config, masks: Masks):
        self.where, self.config, self.masks = where, config, masks
        self.labels = Labels(config)
        try:
            self.xml = {stem_below(p, where.annotations): p for p in xml_files(where.annotations)}
            files, others = sorted_files(where.images)
        except OSError as e:
            raise DataError(f"{e.filename}: can't read: {e.strerror}") from None
        self.images: dict[str, list[Path]] = {}
        for path in files:
            self.images.setdefault(stem_below(path, where.images), []).append(path)
        self.pair_by_name()
        self.passed_over = [p for p in others if p.suffix.lower() != ".xml"]

    def pair_by_name(self) -> None:
        """Gives XML files without an image of their path the one of their name that no other XML file has."""
        free: dict[str, list[str]] = {}
        for key in self.images:
            if key not in self.xml:
                free.setdefault(PurePath(key).name, []).append(key)
        for key in self.xml:
            near = free.get(PurePath(key).name, [])
            if key not in self.images and len(near) == 1:
                self.images[key] = self.images.pop(near.pop())

    def names(self) -> tuple[list[str], dict[str, int]]:
        """Names of the split's images, and the id of every image of the folder. Raises DataError."""
        names = {*self.xml, *self.images}
        listed = self.where.listing
        if listed is not None:
            # a class's own list says 1, 0 or -1 after the name
            part = [re.sub(r"\s+-?[01]$", "", line.strip()) for line in read_lines(listed) if line.strip()]
            part = [n if n in names else self.listed_name(n) for n in part]
            ids = {name: i for i, name in enumerate(sorted(names | set(part)), 1)}
            return list(dict.fromkeys(part)), ids
        ordered = sorted(names)
        ids = {name: i for i, name in enumerate(ordered, 1)}
        return share_of(ordered, self.where.part, self.config), ids

    def listed_name(self, name: str) -> str:
        """A listed name that is written as a path, or with a suffix; else its first word."""
        stem = Path(name.replace("\\", "/")).with_suffix("").as_posix() if name else name
        for candidate in (stem, Path(stem).name):
            if candidate in self.xml or candidate in self.images:
                return candidate
        return name.split()[0]

    def records(self) -> Records:
        names, ids = self.names()
        if not names:
            where = self.where.listing or self.where.annotations
            raise DataError(f"{where}: no image for {self.where.part or 'this split'}; add some, or set val_share")
        finder = ImageFinder([self.where.images])
        records = [self.image_record(ids[n], n, finder) for n in tqdm(names, unit="img", desc="reading", leave=False)]
        refuse_shared(records, finder)
        notes = passed_over(self.where.images, self.passed_over) + self.labels.notes()
        return Records(self.where, records, truth_categories(self.config), notes, listed=[self.where.images])

    def image_record(self, image_id: int, name: str, finder: ImageFinder) -> ImageRecord:
        same = self.images.get(name, [])
        record = ImageRecord(image_id, name, same[0] if same else self.where.images / name, 0, 0)
        xml = self.xml.get(name, self.where.annotations / f"{name}.xml")
        try:
            if name not in self.xml and same:
                raise DataError(
                    f"{xml}: missing, though {same[0]} is there; write it, also for an image without objects"
                )
            if self.where.listing and not same and why_unread(xml):
                raise DataError(f"{self.where.listing}: lists {name}, but {xml}: {why_unread(xml)}")
            root = read_xml(xml)
            record.path = self.image_of(root, name, same, xml, finder)
            record.file_name = os.path.relpath(record.path, self.where.images)
            self.set_frame(record, root, xml)
        except DataError as e:
            record.faults.append(str(e))
            return record
        for o in root.children:
            if o.tag == "object":
                record.add(self.instance, o, record, xml)
        if self.masks == "needed":
            record.faults.append(f"{xml}: boxes alone, and masks are learnt from masks; use faster_rcnn")
        record.told = str(xml)
        return record

    def image_of(self, root: Element, name: str, same: list[Path], xml: Path, finder: ImageFinder) -> Path:
        """The image: that of <filename> where it bears the XML file's name, else the one of that name, else
        <filename>'s. Raises DataError.
        """
        told = child_text(root, "filename")
        named = [p for p in same if plain_name(p.name) == plain_name(PurePath(told.replace("\\", "/")).name)]
        if len(named) == 1 or len(same) == 1:
            return (named or same)[0]
        if same:
            raise DataError(f"{xml}: {same[0].name} or {same[1].name}? its <filename> says {told!r}; mend it")
        try:
            return finder.find(told or name)
        except DataError:
            base = PurePath(told.replace("\\", "/")).stem
            found = self.images.get(base, [])
            if len(found) != 1:
                raise DataError(f"{xml}: its image {told or name} isn't in {self.where.images}") from None
            return found[0]

    def set_frame(self, record: ImageRecord, root: Element, xml: Path) -> None:
        """Reads the image's frame, in which <size> has its say. Raises DataError where they differ."""
        size = root.find("size")
        given = (child_text(size, "width"), child_text(size, "height")) if size is not None else ("", "")
        line = size.line if size is not None else root.line
        annotated = None
        if given not in (("0", "0"), ("", "")):
            width, height = map(number, given)
            if width is None or height is None:
                raise DataError(f"{xml}, line {line}: <size> is {given[0]} x {given[1]}, no size")
            annotated = (int(height), int(width))
        record.height, record.width, record.orientation = frame_of(record.path, self.config.exif, annotated)
        if annotated not in (None, (record.height, record.width)):
            raise DataError(
                f"{xml}, line {line}: <size> is {given[0]} x {given[1]}, but {record.path.name} is"
                f" {record.width} x {record.height}; mend the annotation or the image"
            )

    def instance(self, o: Element, record: ImageRecord, xml: Path) -> Instance | None:
        """An <object>, or None for one that the config leaves out. Raises DataError."""
        where = f"{xml}, line {o.line}"
        name = child_text(o, "name")
        if not name:
            raise DataError(f"{where}: an object without <name>")
        label = self.labels.of(name, where)
        if label is None:
            return None
        box = object_box(o, record.height, record.width, self.config.voc_first_pixel, xml)
        difficult = flag(o, "difficult", xml) and self.config.voc_difficult == "ignore"
        bbox = (box[0], box[1], box[2] - box[0], box[3] - box[1])
        return Instance(label, difficult or not label, box, bbox, bbox[2] * bbox[3])


def stem_below(path: Path, folder: Path) -> str:
    """A file's path below `folder`, without suffix."""
    return path.relative_to(folder).with_suffix("").as_posix()


def child_text(element: Element, tag: str) -> str:
    """Text of the first child of that tag; empty if there is none."""
    child = element.find(tag)
    return child.text.strip() if child is not None else ""


def flag(element: Element, tag: str, xml: Path) -> bool:
    """A child that holds 0 or 1; 0 if there is none. Raises DataError."""
    child, text = element.find(tag), child_text(element, tag)
    if child is not None and text not in ("", "0", "1"):
        raise DataError(f"{xml}, line {child.line}: <{tag}> is {text!r}, not 0 or 1")
    return text == "1"


def object_box(o: Element, height: int, width: int, first: int, xml: Path) -> tuple[float, float, float, float]:
    """<bndbox> as x1 y1 x2 y2: VOC names the first and the last pixel, counted from `first`. Raises DataError."""
    box = o.find("bndbox")
    if box is None:
        raise DataError(f"{xml}, line {o.line}: an object without <bndbox>")
    where = f"{xml}, line {box.line}"
    try:
        x1, y1, x2, y2 = (float(child_text(box, tag)) for tag in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        raise DataError(f"{where}: <bndbox> needs numbers in xmin, ymin, xmax, ymax") from None
    if not all(math.isfinite(v) for v in (x1, y1, x2, y2)):
        raise DataError(f"{where}: <bndbox> isn't finite")
    if x2 < x1 or y2 < y1:
        raise DataError(f"{where}: <bndbox> ends before it begins; mend or remove the object")
    # from 0 the corners are places between pixels, as most other tools write them
    return clipped_box((x1 - first, y1 - first, x2 - x1 + first, y2 - y1 + first), height, width, where)
