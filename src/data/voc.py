"""Pascal VOC's XML annotations (Everingham et al., 2010, doi:10.1007/s11263-009-0275-4), one file an image."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

import numpy as np
from tqdm import tqdm

from src.config import Config
from src.data.coco import FOLDER_NAMES, clipped_box
from src.data.images import image_files, image_size
from src.data.records import CocoSplit, DataError, ImageRecord, Split

__all__ = ["load_voc", "object_names", "resolve_voc", "voc_files"]

XML_FOLDERS = ("Annotations", "annotations", "")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "")


@dataclass
class Element:
    """One XML element, with the line that it begins on."""

    tag: str
    line: int
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    def find(self, tag: str) -> "Element | None":
        """The first child of that tag."""
        return next((c for c in self.children if c.tag == tag), None)


def read_xml(path: Path) -> Element:
    """The root of an XML file. Raises DataError, with the line."""
    stack = [Element("", 0)]
    parser = expat.ParserCreate()

    def start(tag: str, _: dict) -> None:
        stack[-1].children.append(Element(tag, parser.CurrentLineNumber))
        stack.append(stack[-1].children[-1])

    def end(_: str) -> None:
        stack.pop()

    def text(data: str) -> None:
        stack[-1].text += data

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    try:
        parser.Parse(path.read_bytes(), True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file") from None
    except OSError as e:
        raise DataError(f"{path}: can't read: {e.strerror}") from None
    except expat.ExpatError as e:
        reason = expat.errors.messages[e.code]
        raise DataError(f"{path}, line {e.lineno}: not valid XML ({reason}); mend or write it again") from None
    except (ValueError, LookupError):
        raise DataError(f"{path}, line 1: not valid XML (unknown encoding); write it again as UTF-8") from None
    root = stack[0].children[0]
    if root.tag != "annotation":
        raise DataError(f"{path}, line {root.line}: <{root.tag}> where VOC has <annotation>")
    return root


def resolve_voc(path: str | Path, split: str) -> Split:
    """Finds the annotation and the image folder of `split` ("train" or "val").

    `path` holds Annotations/ (or annotations/) and JPEGImages/ (or images/), or XML files beside their images; or it is
    the parent of such folders named train/ and val/, validation/ or valid/. Raises DataError.
    """
    root = Path(path)
    if not str(path):
        raise DataError(f"no data set for {split}: set {split}_dataset (or --{split}_dataset DIR)")
    for folder in (root, *(root / n for n in FOLDER_NAMES[split])):
        for name in XML_FOLDERS:
            annotations = folder / name
            if annotations.is_dir() and any(annotations.glob("*.xml")):
                images = next(folder / n for n in IMAGE_FOLDERS if (folder / n).is_dir())
                return Split(annotations, images, split if folder == root else "")
    raise DataError(
        f"{root}: no XML annotations for {split}; expected {root / 'Annotations'} with {root / 'JPEGImages'}"
    )


def part_file(split: Split) -> Path:
    """Where VOC lists the images of a part of the data."""
    return split.annotations.parent / f"ImageSets/Main/{split.part}.txt"


def voc_files(split: Split, config: Config) -> tuple[list[str], dict[str, int]]:
    """Names (file stems) of the images of `split`, and the id of every image of the folder. Raises DataError.

    The split's names come from ImageSets/Main/{train,val}.txt; without those files config.val_share of the names are
    drawn by config.seed for validation.
    """
    try:
        names = {p.stem for p in split.annotations.glob("*.xml")}
        names |= {Path(e.name).stem for e in image_files(split.images)}
        listed = part_file(split)
        if split.part and listed.is_file():
            part = [line.split()[0] for line in listed.read_text().splitlines() if line.strip()]
            ids = {name: i for i, name in enumerate(sorted(names | set(part)), 1)}
            return list(dict.fromkeys(part)), ids
    except OSError as e:
        raise DataError(f"{e.filename}: can't read: {e.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{listed}: not text; expected an image name a line") from None
    ordered = sorted(names)
    ids = {name: i for i, name in enumerate(ordered, 1)}
    if not split.part or not config.val_share:
        return ordered, ids
    held_out = set(np.random.default_rng([config.seed, 1]).permutation(ordered)[: round(len(ids) * config.val_share)])
    return [n for n in ordered if (n in held_out) == (split.part == "val")], ids


def object_names(split: Split) -> list[str]:
    """Names of all classes in the folder, in alphabetical order. Raises DataError for a file that isn't XML."""
    names = set()
    for path in tqdm(sorted(split.annotations.glob("*.xml")), unit="file", desc="reading", leave=False):
        try:
            objects = [c.find("name") for c in read_xml(path).children if c.tag == "object"]
        except DataError:
            # told, or counted, where the file is read for its boxes
            continue
        names |= {n.text.strip() for n in objects if n is not None and n.text.strip()}
    if not names:
        raise DataError(f"{split.annotations}: no object with a <name> in its XML files")
    return sorted(names)


def load_voc(split: Split, config: Config) -> CocoSplit:
    """Reads the XML files of a split and checks every one; category ids are the labels.

    An image or XML file that is missing, XML that isn't VOC's, a <size> that isn't the image's, an object without name,
    of an unknown class, or with a box that isn't four numbers, has no area or lies outside is a fault: DataError, or
    with on_bad_image: skip the image is left out and named in `skipped`. An object marked <difficult> is a crowd region
    (config.voc_difficult: ignore): neither object nor background. Truncated and occluded objects are objects.
    """
    names, ids = voc_files(split, config)
    if not names:
        where = part_file(split) if part_file(split).is_file() else split.annotations
        raise DataError(f"{where}: no image for {split.part or 'this split'}; add some, or set val_share")
    images = {Path(e.name).stem: Path(e.path) for e in image_files(split.images)}
    records, skipped = [], []
    for name in tqdm(names, unit="img", desc="reading", leave=False):
        try:
            records.append(make_record(ids[name], name, images, split, config))
        except DataError as e:
            if config.on_bad_image == "stop":
                raise DataError(f"{e} (or leave such images out: on_bad_image: skip)") from None
            skipped.append(str(e))
    return CocoSplit(split, records, skipped, {i: i for i in range(1, config.num_classes)})


def make_record(image_id: int, name: str, images: dict[str, Path], split: Split, config: Config) -> ImageRecord:
    """One image's record. Raises DataError."""
    xml = split.annotations / f"{name}.xml"
    if not xml.is_file() and name in images:
        raise DataError(f"{xml}: missing, though {images[name]} is there; write it, also for an image without objects")
    root = read_xml(xml)
    path = images.get(name) or images.get(Path(child_text(root, "filename")).stem)
    if path is None:
        raise DataError(f"{xml}: its image {child_text(root, 'filename') or name} isn't in {split.images}")
    height, width = image_size(path)
    check_size(root, height, width, xml, path)
    boxes, labels, crowd = [], [], []
    known = {n: i for i, n in enumerate(config.coco_classes) if i}
    for o in root.children:
        if o.tag != "object":
            continue
        where = f"{xml}, line {o.line}"
        class_name = child_text(o, "name")
        if class_name not in known:
            told = f"class {class_name!r} isn't in the config; add it to coco_classes and count it in num_classes"
            raise DataError(f"{where}: {told if class_name else 'an object without <name>'}")
        boxes.append(object_box(o, height, width, config.voc_first_pixel, xml))
        difficult = flag(o, "difficult", xml) and config.voc_difficult == "ignore"
        crowd.append(difficult)
        labels.append(known[class_name])
    count = len(crowd) - sum(crowd)
    if count > config.max_instance_count:
        raise DataError(f"{xml}: {count} objects, more than max_instance_count {config.max_instance_count}; raise it")
    none = [None] * len(boxes)
    box_array = np.array(boxes, np.float32).reshape(-1, 4)
    return ImageRecord(
        image_id, path, height, width, box_array, np.array(labels, np.int32), np.array(crowd, bool), none
    )


def child_text(element: Element, tag: str) -> str:
    """Text of the first child of that tag; empty if there is none."""
    child = element.find(tag)
    return child.text.strip() if child is not None else ""


def flag(element: Element, tag: str, xml: Path) -> bool:
    """A child that holds 0 or 1; 0 if there is none. Raises DataError."""
    text = child_text(element, tag)
    if text not in ("", "0", "1"):
        raise DataError(f"{xml}, line {element.find(tag).line}: <{tag}> is {text!r}, not 0 or 1")
    return text == "1"


def check_size(root: Element, height: int, width: int, xml: Path, path: Path) -> None:
    """Raises DataError if <size> gives other sides than the image has; without it, or with zeros, there is no check."""
    size = root.find("size")
    if size is None:
        return
    given = child_text(size, "width"), child_text(size, "height")
    if given not in ((str(width), str(height)), ("0", "0"), ("", "")):
        raise DataError(
            f"{xml}, line {size.line}: <size> is {given[0]} x {given[1]}, but {path.name} is {width} x {height}; mend"
            " the annotation or the image"
        )


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
    return clipped_box([x1 - first, y1 - first, x2 - x1 + first, y2 - y1 + first], height, width, where)
