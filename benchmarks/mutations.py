"""Small valid data sets of each format, and seeded changes to them: what tools, file systems and hands do to data.

A mutation is of a kind (what it touches) and has a name. A benign one leaves what the data mean as it is, so every
object must still be there.
"""

import base64
import copy
import io
import json
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as rle

__all__ = ["FORMATS", "JSON_DIRT", "DataSet", "Mutation", "applicable", "make_set", "pick"]

FORMATS = ("coco", "voc", "labelme", "txt", "yolo")
CLASSES = ("ant", "bee", "cow")
SIZES = ((96, 128), (128, 96), (64, 64), (72, 100), (80, 60))  # height, width
NAMES = ("a1.jpg", "b2.png", "dé4.jpg", "sub/c3.jpg", "E5.png")
JSON_DIRT = (
    None,
    "",
    "x",
    [],
    {},
    True,
    -1,
    0,
    1 << 70,
    float("nan"),
    float("inf"),
    1e308,
    "7",
    "7.0",
    3.7,
    [1],
    "1e999",
)
WORDS = ("", "x", "-1", "0", "nan", "inf", "1e308", "99999999999999999999", "3.7", "1,5", "0x10", "é", "true", "None")


@dataclass
class DataSet:
    """A data set on its way to disk.

    images: encoded pictures, docs: JSON as Python has it, XML, or rows of words of a text file, by their paths below
    the root; files: others; links: where links lead; edits: what becomes of a document's text, then of its bytes;
    config: keys of a config that reads it.
    """

    format: str
    images: dict[str, bytes] = field(default_factory=dict)
    docs: dict[str, object] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    text_edits: dict[str, Callable[[str], str]] = field(default_factory=dict)
    encodings: dict[str, str] = field(default_factory=dict)
    byte_edits: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    config: dict[str, object] = field(default_factory=dict)
    objects: int = 0

    def write(self, root: Path) -> dict[str, object]:
        """Writes everything below `root`; returns the config's keys."""
        content = self.images | {p: self.encoded(p) for p in self.docs} | self.files
        for path, data in content.items():
            place = root / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        for path, target in self.links.items():
            place = root / path
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.is_symlink() and not place.exists():
                place.symlink_to(target)
        return {k: v.replace("ROOT", str(root)) if isinstance(v, str) else v for k, v in self.config.items()}

    def encoded(self, path: str) -> bytes:
        doc = self.docs[path]
        if isinstance(doc, ET.Element):
            text = ET.tostring(doc, "unicode")
        elif path.endswith(".json"):
            text = json.dumps(doc, ensure_ascii=False, indent=1)
        elif path.endswith(".yaml"):
            text = yaml.safe_dump(doc, allow_unicode=True)
        else:
            text = "\n".join(" ".join(row) for row in doc) + "\n"
        text = self.text_edits.get(path, str)(text)
        data = text.encode(self.encodings.get(path, "utf-8"), "replace")
        return self.byte_edits.get(path, bytes)(data)


@dataclass(frozen=True)
class Mutation:
    """One kind of change; `change` raises LookupError where the set has nothing to change."""

    kind: str
    name: str
    formats: tuple[str, ...]
    benign: bool
    change: Callable[[DataSet, np.random.Generator], None]


MUTATIONS: list[Mutation] = []


def mutation(kind: str, *formats: str, benign: bool = False):
    """Registers a function as a mutation, of all formats if none is named."""

    def register(change):
        MUTATIONS.append(Mutation(kind, change.__name__, formats or FORMATS, benign, change))
        return change

    return register


def applicable(form: str) -> dict[str, list[Mutation]]:
    """The mutations of a format by kind."""
    out: dict[str, list[Mutation]] = {}
    for m in MUTATIONS:
        if form in m.formats:
            out.setdefault(m.kind, []).append(m)
    return out


def pick(random: np.random.Generator, options):
    options = list(options)
    if not options:
        raise LookupError("nothing to change")
    return options[int(random.integers(len(options)))]


# ---------------------------------------------------------------------------------------------------------
# the valid sets


@dataclass
class Thing:
    name: str
    points: np.ndarray  # (N, 2) x y, whole pixels
    special: bool  # crowd, difficult or ignored

    @property
    def box(self) -> list[float]:
        return [*self.points.min(0).tolist(), *self.points.max(0).tolist()]


def make_things(random: np.random.Generator, height: int, width: int, count: int) -> list[Thing]:
    out = []
    for i in range(count):
        w, h = int(random.integers(12, width // 2)), int(random.integers(12, height // 2))
        x, y = int(random.integers(0, width - w)), int(random.integers(0, height - h))
        corners = np.array([[x, y], [x + w, y], [x + w, y + h], [x + w // 2, y + h], [x, y + h - 5]], float)
        out.append(Thing(CLASSES[(i + int(random.integers(3))) % 3], corners, i == 3))
    return out


def picture(random: np.random.Generator, height: int, width: int, things: list[Thing], suffix: str) -> bytes:
    image = random.integers(80, 140, (height, width, 3)).astype(np.uint8)
    for t in things:
        cv2.fillPoly(image, [t.points.astype(np.int32)], (40, 200, 60 * (1 + CLASSES.index(t.name))))
    return cv2.imencode(suffix, image)[1].tobytes()


def make_set(form: str, random: np.random.Generator) -> DataSet:
    """A valid data set of five images, one of them without objects."""
    out = DataSet(form)
    scenes = []
    for i, (name, size) in enumerate(zip(NAMES, SIZES, strict=True)):
        things = make_things(random, *size, 0 if i == 4 else int(random.integers(2, 5)))
        scenes.append((name, size, things))
        special = form in ("coco", "voc", "txt")
        out.objects += sum(not (t.special and special) for t in things)
    folder = {"coco": "train2017/", "voc": "JPEGImages/", "labelme": "", "txt": "images/", "yolo": "images/"}[form]
    for name, size, things in scenes:
        out.images[folder + name] = picture(random, *size, things, Path(name).suffix)
    BUILDERS[form](out, scenes)
    out.config |= {"dataset": "other" if form == "txt" else form, "val_share": 0.0}
    out.config["detector"] = "faster_rcnn" if form in ("voc", "txt") else "mask_rcnn"
    return out


def build_coco(out: DataSet, scenes: list) -> None:
    data = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for i, n in enumerate(CLASSES, 1)]}
    for i, (name, (height, width), things) in enumerate(scenes, 1):
        data["images"].append({"id": i, "file_name": name, "height": height, "width": width})
        for t in things:
            x1, y1, x2, y2 = t.box
            mask = [t.points.ravel().tolist()]
            if t.special:
                mask = run_lengths(t, height, width)
            row = {"id": len(data["annotations"]) + 1, "image_id": i, "category_id": 1 + CLASSES.index(t.name)}
            row |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1) * 0.9, "iscrowd": int(t.special)}
            data["annotations"].append(row | {"segmentation": mask})
    out.docs["annotations/instances_train2017.json"] = data
    out.config = {"train_dataset": "ROOT", "val_dataset": "ROOT/annotations/instances_train2017.json"}


def run_lengths(t: Thing, height: int, width: int) -> dict:
    bitmap = np.zeros((height, width), np.uint8)
    cv2.fillPoly(bitmap, [t.points.astype(np.int32)], 1)
    counts, value = [], 0
    for run in np.split(bitmap.ravel("F"), np.flatnonzero(np.diff(bitmap.ravel("F"))) + 1):
        if run[0] != value:
            counts.append(0)
        counts.append(len(run))
        value = 1 - run[0]
    return {"size": [height, width], "counts": counts}


def build_voc(out: DataSet, scenes: list) -> None:
    for name, (height, width), things in scenes:
        root = ET.Element("annotation")
        ET.SubElement(root, "filename").text = Path(name).name
        size = ET.SubElement(root, "size")
        for tag, value in (("width", width), ("height", height), ("depth", 3)):
            ET.SubElement(size, tag).text = str(value)
        for t in things:
            o = ET.SubElement(root, "object")
            for tag, value in (("name", t.name), ("pose", "Left"), ("difficult", int(t.special))):
                ET.SubElement(o, tag).text = str(value)
            box = ET.SubElement(o, "bndbox")
            x1, y1, x2, y2 = t.box
            for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2), strict=True):
                ET.SubElement(box, tag).text = str(int(value))
        out.docs[f"Annotations/{Path(name).with_suffix('.xml')}"] = root
    out.config = {"train_dataset": "ROOT", "val_dataset": "ROOT"}


def build_labelme(out: DataSet, scenes: list) -> None:
    for name, (height, width), things in scenes:
        shapes = [
            {"label": t.name, "points": t.points.tolist(), "group_id": None, "shape_type": "polygon", "flags": {}}
            for t in things
        ]
        doc = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": Path(name).name, "imageData": None}
        out.docs[str(Path(name).with_suffix(".json"))] = doc | {"imageHeight": height, "imageWidth": width}
    out.config = {"train_dataset": "ROOT", "val_dataset": "ROOT"}


def build_txt(out: DataSet, scenes: list) -> None:
    rows = []
    for name, _, things in scenes:
        words = [name]
        for t in things:
            label = f"{1 + CLASSES.index(t.name)},1" if t.special else str(1 + CLASSES.index(t.name))
            words.append(",".join(f"{v:g}" for v in t.box) + f",{label}")
        rows.append(words)
    out.docs["boxes.txt"] = rows
    out.config = {"anno_path": "ROOT/boxes.txt", "image_dir": "ROOT/images"}


def build_yolo(out: DataSet, scenes: list) -> None:
    for name, (height, width), things in scenes:
        rows = []
        for t in things:
            shares = (t.points / [width, height]).ravel()
            rows.append([str(CLASSES.index(t.name)), *(f"{v:.6f}" for v in shares)])
        out.docs[f"labels/{Path(name).with_suffix('.txt')}"] = rows
    out.docs["data.yaml"] = {"train": "images", "val": "images", "names": list(CLASSES), "nc": 3}
    out.config = {"train_dataset": "ROOT", "val_dataset": "ROOT"}


BUILDERS = {
    "coco": build_coco,
    "voc": build_voc,
    "labelme": build_labelme,
    "txt": build_txt,
    "yolo": build_yolo,
}


# ---------------------------------------------------------------------------------------------------------
# of any format: pictures, names, encodings, files


def annotation_docs(s: DataSet) -> list[str]:
    """Documents with objects, by path."""
    return [p for p in s.docs if p != "data.yaml"]


def replace_image(s: DataSet, random: np.random.Generator, change: Callable[[np.ndarray, str], bytes]) -> None:
    path = pick(random, s.images)
    image = cv2.imdecode(np.frombuffer(s.images[path], np.uint8), cv2.IMREAD_COLOR)
    s.images[path] = change(image, Path(path).suffix.lower())


def encode(image: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


@mutation("images")
def image_of_other_size(s, random):
    factor = float(pick(random, (0.5, 2.0, 1.01)))
    replace_image(s, random, lambda im, suffix: encode(cv2.resize(im, None, fx=factor, fy=factor), suffix))


@mutation("images", benign=True)
def image_grey(s, random):
    replace_image(s, random, lambda im, suffix: encode(im[:, :, 0], suffix))


@mutation("images", benign=True)
def image_16_bit(s, random):
    shift = int(random.integers(2, 9))
    replace_image(s, random, lambda im, _: encode(im.astype(np.uint16) << shift, ".png"))


@mutation("images", benign=True)
def image_rgba(s, random):
    replace_image(s, random, lambda im, _: encode(cv2.cvtColor(im, cv2.COLOR_BGR2BGRA), ".png"))


@mutation("images", benign=True)
def image_of_other_kind(s, random):
    kind = pick(random, (".bmp", ".webp", ".tif", ".png", ".jpg"))
    replace_image(s, random, lambda im, _: encode(im, kind))


@mutation("images")
def image_tiny(s, random):
    side = int(random.integers(1, 9))
    replace_image(s, random, lambda im, suffix: encode(im[:side, :side], suffix))


@mutation("images")
def image_cut_short(s, random):
    path = pick(random, s.images)
    s.images[path] = s.images[path][: int(len(s.images[path]) * random.uniform(0, 1))]


@mutation("images")
def image_bytes_spoilt(s, random):
    path = pick(random, s.images)
    data = bytearray(s.images[path])
    for _ in range(int(random.integers(1, 12))):
        data[int(random.integers(len(data)))] = int(random.integers(256))
    s.images[path] = bytes(data)


@mutation("images")
def image_is_something_else(s, random):
    path = pick(random, s.images)
    s.images[path] = pick(random, (b"", b"GIF89a" + bytes(40), b"<html>404</html>", b"version https://git-lfs\n"))


@mutation("images")
def image_with_exif(s, random):
    orientation = int(random.integers(2, 9))

    def change(image, _):
        out, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(image[:, :, ::-1]).save(out, "JPEG", exif=exif)
        return out.getvalue()

    replace_image(s, random, change)


@mutation("images")
def image_turned_by_exif(s, random):
    """Stored on its side, as phones do: the annotated size is the upright one."""

    def change(image, _):
        out, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.ascontiguousarray(np.rot90(image)[:, :, ::-1])).save(out, "JPEG", exif=exif)
        return out.getvalue()

    replace_image(s, random, change)


@mutation("names")
def image_missing(s, random):
    del s.images[pick(random, s.images)]


def rename(s: DataSet, random: np.random.Generator, change: Callable[[Path], Path | str], which=None) -> None:
    path = pick(random, [p for p in s.images if which is None or which(p)])
    new = str(change(Path(path)))
    if new in s.images:
        raise LookupError("there already")
    s.images[new] = s.images.pop(path)


@mutation("names", benign=True)
def suffix_in_other_case(s, random):
    rename(s, random, lambda p: p.with_suffix(p.suffix.swapcase()))


@mutation("names", "coco", "txt", "labelme", benign=True)
def name_in_other_case(s, random):
    rename(s, random, lambda p: p.with_name(p.name.swapcase()))


@mutation("names", "voc", "yolo")
def name_in_other_case_than_its_labels(s, random):
    rename(s, random, lambda p: p.with_name(p.name.swapcase()))


@mutation("names", "coco", "txt", "labelme", benign=True)
def accents_decomposed(s, random):
    rename(s, random, lambda p: unicodedata.normalize("NFD", str(p)), lambda p: not p.isascii())


@mutation("names", "voc", "yolo")
def accents_decomposed_beside_labels(s, random):
    rename(s, random, lambda p: unicodedata.normalize("NFD", str(p)), lambda p: not p.isascii())


@mutation("names")
def suffix_of_another_kind(s, random):
    rename(s, random, lambda p: p.with_suffix(pick(random, (".jpeg", ".JPG", ".bmp", ".jfif", ".gif", ""))))


@mutation("names")
def image_in_a_folder(s, random):
    rename(s, random, lambda p: p.parent / "deeper" / p.name)


@mutation("names")
def same_name_in_two_folders(s, random):
    path = Path(pick(random, s.images))
    s.images[str(path.parent / "other" / path.name)] = s.images[str(path)]


@mutation("names")
def two_images_of_one_stem(s, random):
    path = Path(pick(random, s.images))
    suffix = ".png" if path.suffix == ".jpg" else ".jpg"
    image = cv2.imdecode(np.frombuffer(s.images[str(path)], np.uint8), cv2.IMREAD_COLOR)
    s.images[str(path.with_suffix(suffix))] = encode(image, suffix)


@mutation("names")
def name_not_utf8(s, random):
    path = pick(random, [p for p in s.images if not p.isascii()])
    s.images[path.replace("é", "\udce9")] = s.images.pop(path)


@mutation("encodings", benign=True)
def byte_order_mark(s, random):
    s.encodings[pick(random, annotation_docs(s))] = "utf-8-sig"


@mutation("encodings", "coco", "txt", "labelme", "yolo", benign=True)
def utf_16(s, random):
    path = pick(random, annotation_docs(s))
    if s.docs[path] == []:
        raise LookupError("empty")
    s.encodings[path] = "utf-16"


@mutation("encodings")
def latin_1(s, random):
    s.encodings[pick(random, annotation_docs(s))] = "latin-1"


@mutation("encodings", benign=True)
def line_ends_of_windows(s, random):
    s.text_edits[pick(random, s.docs)] = lambda text: text.replace("\n", "\r\n")


@mutation("encodings")
def zero_bytes(s, random):
    path = pick(random, s.docs)
    at = random.uniform(0, 1)
    s.byte_edits[path] = lambda data: data[: int(at * len(data))] + b"\0\0" + data[int(at * len(data)) :]


@mutation("truncation")
def document_cut_short(s, random):
    share = float(random.uniform(0, 1))
    s.byte_edits[pick(random, s.docs)] = lambda data: data[: int(share * len(data))]


@mutation("truncation")
def document_missing(s, random):
    del s.docs[pick(random, s.docs)]


@mutation("truncation")
def document_twice_in_one(s, random):
    s.text_edits[pick(random, s.docs)] = lambda text: text + text


@mutation("truncation")
def document_is_a_web_page(s, random):
    s.text_edits[pick(random, s.docs)] = lambda _: "<html><body>404 not found</body></html>"


@mutation("files", benign=True)
def files_that_nothing_names(s, random):
    folder = str(Path(pick(random, s.images)).parent)
    for name in ("Thumbs.db", ".DS_Store", "notes.md", "._a1.jpg", "README"):
        s.files[f"{folder}/{name}"] = b"\0\1\2notes"


@mutation("files", benign=True)
def copies_of_apple_double(s, random):
    for path in annotation_docs(s)[:3]:
        s.files[str(Path(path).with_name("._" + Path(path).name))] = b"\0\5\26\7" + bytes(60)


@mutation("files", "coco", "txt", "labelme", "voc", "yolo", benign=True)
def dangling_link(s, random):
    s.links[str(Path(pick(random, s.images)).parent / "gone.jpg")] = "/nowhere/gone.jpg"


@mutation("files", benign=True)
def image_is_a_link(s, random):
    path = pick(random, s.images)
    s.images["pool/" + Path(path).name] = s.images.pop(path)
    s.links[path] = "../" * path.count("/") + "pool/" + Path(path).name
    if s.format == "labelme":
        # the pool would lie below the folder of the labels
        raise LookupError("nothing to change")


@mutation("files", benign=True)
def hidden_folders(s, random):
    for path in annotation_docs(s)[:2]:
        s.files[str(Path(path).parent / ".ipynb_checkpoints" / Path(path).name)] = s.encoded(path)


@mutation("files", benign=True)
def copies_of_images_in_hidden_folders(s, random):
    for path in list(s.images)[:3]:
        s.files[f"{Path(path).parent}/.thumbnails/{Path(path).name}"] = s.images[path]
        s.files[f"{Path(path).parent}/.ipynb_checkpoints/{Path(path).stem}-checkpoint.png"] = s.images[path]


@mutation("files", "coco", "txt")
def image_that_nothing_names(s, random):
    path = Path(pick(random, s.images))
    s.images[str(path.with_name("extra.png"))] = encode(np.full((20, 30, 3), 9, np.uint8), ".png")


@mutation("files", "voc", "labelme", "yolo")
def image_without_labels(s, random):
    path = Path(pick(random, s.images))
    s.images[str(path.with_name("extra.png"))] = encode(np.full((20, 30, 3), 9, np.uint8), ".png")


# ---------------------------------------------------------------------------------------------------------
# COCO


def coco(s: DataSet) -> dict:
    return s.docs["annotations/instances_train2017.json"]


def annotation(s: DataSet, random: np.random.Generator) -> dict:
    return pick(random, coco(s)["annotations"])


def each(s: DataSet, change: Callable[[dict], None]) -> None:
    for a in coco(s)["annotations"]:
        change(a)


@mutation("values", "coco")
def annotation_value(s, random):
    annotation(s, random)[pick(random, coco(s)["annotations"][0])] = copy.deepcopy(pick(random, JSON_DIRT))


@mutation("values", "coco")
def value_of_every_annotation(s, random):
    key, value = pick(random, ("id", "iscrowd", "area", "segmentation")), pick(random, JSON_DIRT)
    each(s, lambda a: a.update({key: copy.deepcopy(value)}))


@mutation("values", "coco")
def image_value(s, random):
    entry = pick(random, coco(s)["images"])
    entry[pick(random, entry)] = copy.deepcopy(pick(random, JSON_DIRT))


@mutation("values", "coco")
def category_value(s, random):
    entry = pick(random, coco(s)["categories"])
    entry[pick(random, entry)] = copy.deepcopy(pick(random, JSON_DIRT))


@mutation("values", "coco")
def top_level_value(s, random):
    coco(s)[pick(random, coco(s))] = copy.deepcopy(pick(random, JSON_DIRT))


@mutation("values", "coco", benign=True)
def numbers_as_text(s, random):
    key = pick(random, ("image_id", "category_id", "area", "iscrowd", "id"))
    each(s, lambda a: a.update({key: str(a[key])}))


@mutation("values", "coco", benign=True)
def whole_numbers_as_floats(s, random):
    key = pick(random, ("image_id", "category_id", "iscrowd", "id"))
    each(s, lambda a: a.update({key: float(a[key])}))


@mutation("values", "coco", benign=True)
def size_as_text_or_float(s, random):
    kind = pick(random, (str, float))
    for i in coco(s)["images"]:
        i |= {"height": kind(i["height"]), "width": kind(i["width"])}


@mutation("keys", "coco")
def coco_key_dropped(s, random):
    entry = pick(random, coco(s)[pick(random, ("annotations", "images", "categories"))])
    del entry[pick(random, entry)]


@mutation("keys", "coco", benign=True)
def keys_that_can_be_computed_dropped(s, random):
    key = pick(random, ("area", "iscrowd", "id", "bbox"))
    for a in coco(s)["annotations"]:
        if key != "iscrowd" and (key != "bbox" or not a["iscrowd"]):
            a.pop(key, None)
        elif key == "iscrowd" and not a["iscrowd"]:
            a.pop(key)


@mutation("keys", "coco")
def coco_key_renamed(s, random):
    old, new = pick(random, (("bbox", "box"), ("category_id", "category"), ("image_id", "imageId"), ("area", "Area")))
    entry = annotation(s, random)
    entry[new] = entry.pop(old)


@mutation("keys", "coco", benign=True)
def foreign_keys(s, random):
    coco(s)["info"], coco(s)["licenses"] = pick(random, ({}, [], None, "v1")), []
    each(s, lambda a: a.update({"score": 0.5, "attributes": {"occluded": False}}))


@mutation("keys", "coco")
def key_twice(s, random):
    key = pick(random, ("bbox", "id", "category_id", "file_name", "annotations"))
    value = json.dumps(pick(random, (1, [1, 2, 3, 4], "x")))
    s.text_edits["annotations/instances_train2017.json"] = lambda t: t.replace(
        f'"{key}":', f'"{key}": {value}, "{key}":', 1
    )


@mutation("entries", "coco")
def coco_entry_twice(s, random):
    rows = coco(s)[pick(random, ("annotations", "images", "categories"))]
    rows.append(copy.deepcopy(pick(random, rows)))


@mutation("entries", "coco")
def coco_entry_removed(s, random):
    rows = coco(s)[pick(random, ("annotations", "images", "categories"))]
    rows.remove(pick(random, rows))


@mutation("entries", "coco")
def coco_all_entries_removed(s, random):
    coco(s)[pick(random, ("annotations", "images", "categories"))].clear()


@mutation("entries", "coco", benign=True)
def coco_entries_reordered(s, random):
    for rows in (coco(s)["annotations"], coco(s)["images"], coco(s)["categories"]):
        random.shuffle(rows)


def change_ids(s: DataSet, which: str, change: Callable[[int], object]) -> None:
    if which == "annotations":
        each(s, lambda a: a.update(id=change(a["id"])))
        return
    for entry in coco(s)[which]:
        entry["id"] = change(entry["id"])
    key = {"images": "image_id", "categories": "category_id"}[which]
    each(s, lambda a: a.update({key: change(a[key])}))


ID_CHANGES = (
    lambda i: i - 1,
    lambda i: f"{i:04d}",
    lambda i: f"uuid-{i}",
    lambda i: i + (1 << 63),
    lambda i: -i,
    float,
    lambda i: i + 0.5,
    lambda i: i * 1000003,
)


@mutation("ids", "coco", benign=True)
def ids_changed_everywhere(s, random):
    change_ids(s, pick(random, ("annotations", "images", "categories")), pick(random, ID_CHANGES))


@mutation("ids", "coco", benign=True)
def annotation_ids_restart(s, random):
    seen: dict = {}
    each(s, lambda a: a.update(id=seen.setdefault(a["image_id"], []).append(0) or len(seen[a["image_id"]])))


@mutation("ids", "coco")
def ids_changed_on_one_side(s, random):
    change = pick(random, ID_CHANGES)
    for entry in coco(s)[pick(random, ("images", "categories"))]:
        entry["id"] = change(entry["id"])


@mutation("ids", "coco")
def one_id_of_another(s, random):
    rows = coco(s)[pick(random, ("images", "categories"))]
    pick(random, rows)["id"] = pick(random, rows)["id"]


@mutation("ids", "coco")
def annotation_of_an_image_that_is_not_listed(s, random):
    annotation(s, random)["image_id"] = 999


def change_boxes(s: DataSet, random: np.random.Generator, change: Callable) -> None:
    """Of one annotation, or of all."""
    rows = coco(s)["annotations"] if random.random() < 0.5 else [annotation(s, random)]
    sizes = {i["id"]: (i["height"], i["width"]) for i in coco(s)["images"]}
    for a in rows:
        a["bbox"] = change(*a["bbox"], *sizes[a["image_id"]])


COCO_BOXES = {
    "corners": lambda x, y, w, h, high, wide: [x, y, x + w, y + h],
    "shares": lambda x, y, w, h, high, wide: [x / wide, y / high, w / wide, h / high],
    "outside": lambda x, y, w, h, high, wide: [x + wide, y, w, h],
    "partly outside": lambda x, y, w, h, high, wide: [x - w / 2, y, w, h],
    "a pixel beyond": lambda x, y, w, h, high, wide: [x - 0.5, y - 0.5, wide - x + 1, high - y + 1],
    "without width": lambda x, y, w, h, high, wide: [x, y, 0, h],
    "negative": lambda x, y, w, h, high, wide: [x + w, y + h, -w, -h],
    "text": lambda x, y, w, h, high, wide: [str(v) for v in (x, y, w, h)],
    "nested": lambda x, y, w, h, high, wide: [[x, y, w, h]],
    "three": lambda x, y, w, h, high, wide: [x, y, w],
    "mapping": lambda x, y, w, h, high, wide: {"x": x, "y": y, "width": w, "height": h},
    "huge": lambda x, y, w, h, high, wide: [x, y, 1e300, 1e300],
    "thin": lambda x, y, w, h, high, wide: [x, y, 0.01, h],
    "a hair inside": lambda x, y, w, h, high, wide: [wide - 0.02, y, 20, h],
}


@mutation("boxes", "coco")
def coco_box(s, random):
    change_boxes(s, random, COCO_BOXES[pick(random, COCO_BOXES)])


@mutation("boxes", "coco", benign=True)
def coco_box_as_text_or_float(s, random):
    kind = pick(random, (str, float, lambda v: v + 0.25))
    change_boxes(s, random, lambda x, y, w, h, high, wide: [kind(v) for v in (x, y, w - 1, h - 1)])


POLYGONS = {
    "flat": lambda p, h, w: p.ravel().tolist(),
    "none": lambda p, h, w: [],
    "empty": lambda p, h, w: [[]],
    "two points": lambda p, h, w: [p[:2].ravel().tolist()],
    "pairs": lambda p, h, w: [p.tolist()],
    "odd": lambda p, h, w: [p.ravel().tolist()[:-1]],
    "bow-tie": lambda p, h, w: [p[[0, 2, 1, 3]].ravel().tolist()],
    "a line": lambda p, h, w: [[*p[0], *p[1], *p[0]]],
    "outside": lambda p, h, w: [(p + [w, 0]).ravel().tolist()],
    "above": lambda p, h, w: [(p - [0, 2 * h]).ravel().tolist()],
    "partly outside": lambda p, h, w: [(p - [w // 3, h // 3]).ravel().tolist()],
    "huge": lambda p, h, w: [(p * 1e6).ravel().tolist()],
    "large": lambda p, h, w: [((p - p.mean(0)) * 5).ravel().tolist()],
    "text": lambda p, h, w: [[str(v) for v in p.ravel()]],
    "not finite": lambda p, h, w: [[float("nan"), *p.ravel().tolist()[1:]]],
    "of one place": lambda p, h, w: [[p[0, 0], p[0, 1]] * 4],
    "tiny": lambda p, h, w: [(p[0] + p / 1000).ravel().tolist()],
    "shares": lambda p, h, w: [(p / [w, h]).ravel().tolist()],
}


def change_masks(s: DataSet, random: np.random.Generator, change: Callable) -> None:
    rows = [a for a in coco(s)["annotations"] if isinstance(a["segmentation"], list)]
    rows = rows if random.random() < 0.3 else [pick(random, rows)]
    sizes = {i["id"]: (i["height"], i["width"]) for i in coco(s)["images"]}
    for a in rows:
        a["segmentation"] = change(np.array(a["segmentation"][0]).reshape(-1, 2), *sizes[a["image_id"]])


@mutation("polygons", "coco")
def coco_polygon(s, random):
    change_masks(s, random, POLYGONS[pick(random, POLYGONS)])


@mutation("polygons", "coco", benign=True)
def coco_polygon_with_strays(s, random):
    stray = pick(random, ([], [1, 2], [1, 2, 3, 4]))
    first = random.random() < 0.5
    change_masks(s, random, lambda p, h, w: [stray, p.ravel().tolist()] if first else [p.ravel().tolist(), stray])


@mutation("polygons", "coco", benign=True)
def coco_polygon_of_parts(s, random):
    change_masks(s, random, lambda p, h, w: [p.ravel().tolist(), p[:3].ravel().tolist()])


def bitmap_of(p: np.ndarray, h: int, w: int) -> np.ndarray:
    return np.asfortranarray(rle.decode(rle.merge(rle.frPyObjects([p.ravel().tolist()], h, w))))


def compressed(p: np.ndarray, h: int, w: int) -> dict:
    encoded = rle.encode(bitmap_of(p, h, w))
    return {"size": [h, w], "counts": encoded["counts"].decode()}


@mutation("RLE", "coco", benign=True)
def whole_rle(s, random):
    change_masks(s, random, compressed)


@mutation("RLE", "coco", benign=True)
def whole_rle_uncompressed(s, random):
    def change(p, h, w):
        return run_lengths(Thing("ant", p, False), h, w)

    change_masks(s, random, change)


RLES = {
    "cut": lambda r: r | {"counts": r["counts"][:-2]},
    "longer": lambda r: r | {"counts": r["counts"] + "44"},
    "half the size": lambda r: r | {"size": [r["size"][0] // 2, r["size"][1]]},
    "size exchanged": lambda r: r | {"size": r["size"][::-1]},
    "claims 60000": lambda r: r | {"size": [60000, 60000]},
    "claims text": lambda r: r | {"size": [str(v) for v in r["size"]]},
    "without size": lambda r: {"counts": r["counts"]},
    "without counts": lambda r: {"size": r["size"]},
    "counts null": lambda r: r | {"counts": None},
    "negative": lambda r: r | {"counts": [-5, 5 + r["size"][0] * r["size"][1]]},
    "floats": lambda r: r | {"counts": [float(r["size"][0] * r["size"][1])]},
    "all background": lambda r: r | {"counts": [r["size"][0] * r["size"][1]]},
    "everything": lambda r: r | {"counts": [0, r["size"][0] * r["size"][1]]},
    "not ASCII": lambda r: r | {"counts": "é" + r["counts"]},
    "many zeros": lambda r: r | {"counts": [0] * 2000 + [r["size"][0] * r["size"][1]]},
}


@mutation("RLE", "coco")
def broken_rle(s, random):
    spoil = RLES[pick(random, RLES)]
    change_masks(s, random, lambda p, h, w: spoil(compressed(p, h, w)))


@mutation("masks", "coco")
def masks_of_some_missing(s, random):
    for a in coco(s)["annotations"]:
        if random.random() < 0.3:
            a.pop("segmentation")


@mutation("masks", "coco", benign=True)
def masks_of_none(s, random):
    each(s, lambda a: a.pop("segmentation"))
    s.config["detector"] = "faster_rcnn"


@mutation("names", "coco", benign=True)
def file_names_with_folders(s, random):
    prefix = pick(random, ("images/", "images\\", "./", "data/train/", "train2017/"))
    for i in coco(s)["images"]:
        i["file_name"] = prefix + i["file_name"].replace("/", "\\" if "\\" in prefix else "/")


@mutation("names", "coco")
def file_names_of_another_machine(s, random):
    prefix = pick(random, ("C:\\data\\", "/home/me/data/", "https://host/data/", "/data/upload/1/abcd1234-"))
    for i in coco(s)["images"]:
        i["file_name"] = prefix + i["file_name"]


@mutation("names", "coco")
def file_name_changed(s, random):
    entry = pick(random, coco(s)["images"])
    name = entry["file_name"]
    entry["file_name"] = pick(random, (name.upper(), name + " ", Path(name).stem, "../" + name, "a" * 300, "a\0b.jpg"))


@mutation("names", "coco")
def two_images_of_one_file(s, random):
    pick(random, coco(s)["images"])["file_name"] = pick(random, coco(s)["images"])["file_name"]


@mutation("sizes", "coco")
def coco_size(s, random):
    entry = pick(random, coco(s)["images"])
    h, w = entry["height"], entry["width"]
    options = (
        (h, w + 1),
        (w, h),
        (None, None),
        (h, None),
        (0, 0),
        (h + 0.5, w),
        (60000, 60000),
        (-h, -w),
        (h * 2, w * 2),
    )
    entry["height"], entry["width"] = pick(random, options)


@mutation("sizes", "coco", benign=True)
def coco_sizes_missing(s, random):
    for i in coco(s)["images"]:
        del i["height"], i["width"]
    # run lengths have a size to be compared with
    each(s, lambda a: a.update(segmentation=a["segmentation"]))


@mutation("classes", "coco", benign=True)
def coco_numeric_names(s, random):
    for i, c in enumerate(coco(s)["categories"]):
        c["name"] = pick(random, (str, int))(i + 7)


@mutation("classes", "coco")
def coco_class_name(s, random):
    pick(random, coco(s)["categories"])["name"] = pick(random, ("background", "Ant", "cow", " bee", "ñ 名", "a,b", ""))


@mutation("classes", "coco", benign=True)
def coco_supercategory_listed(s, random):
    coco(s)["categories"].insert(0, {"id": 0, "name": "cow", "supercategory": "none"})


@mutation("classes")
def classes_given(s, random):
    names = pick(random, (["ant", "bee"], ["ant", "bee", "cow", "dog"], ["cow", "bee", "ant"]))
    if s.format == "txt":
        names = [f"class_{i}" for i in range(1, 1 + int(random.integers(2, 5)))]
    s.config |= {"coco_classes": ["background", *names], "num_classes": 1 + len(names)}
    s.config["other_classes"] = pick(random, ("stop", "background", "ignore"))


# ---------------------------------------------------------------------------------------------------------
# VOC


def voc_doc(s: DataSet, random: np.random.Generator) -> ET.Element:
    return pick(random, [d for d in s.docs.values() if isinstance(d, ET.Element)])


def voc_objects(s: DataSet) -> list[ET.Element]:
    return [o for d in s.docs.values() if isinstance(d, ET.Element) for o in d.findall("object")]


def elements(root: ET.Element) -> list[tuple[ET.Element, ET.Element]]:
    """(parent, child) of everything below."""
    return [(p, c) for p in root.iter() for c in p]


@mutation("values", "voc")
def voc_text(s, random):
    child = pick(random, elements(voc_doc(s, random)))[1]
    child.text = pick(random, WORDS)


@mutation("values", "voc")
def voc_box_text(s, random):
    pick(random, pick(random, voc_objects(s)).find("bndbox")).text = pick(random, WORDS)


@mutation("values", "voc", benign=True)
def voc_floats_and_spaces(s, random):
    for o in voc_objects(s):
        for c in o.find("bndbox"):
            c.text = pick(random, (f"{c.text}.0", f" {c.text}\n", f"+{c.text}"))


@mutation("keys", "voc")
def voc_element_dropped(s, random):
    parent, child = pick(random, elements(voc_doc(s, random)))
    parent.remove(child)


@mutation("keys", "voc", benign=True)
def voc_elements_that_tell_nothing_dropped(s, random):
    tag = pick(random, ("filename", "size", "pose"))
    for d in s.docs.values():
        for parent, child in elements(d):
            if child.tag == tag:
                parent.remove(child)


@mutation("keys", "voc")
def voc_element_renamed(s, random):
    pick(random, elements(voc_doc(s, random)))[1].tag = pick(random, ("Object", "box", "robndbox", "label", "x"))


@mutation("keys", "voc")
def voc_element_twice(s, random):
    parent, child = pick(random, elements(voc_doc(s, random)))
    parent.append(copy.deepcopy(child))


@mutation("keys", "voc", benign=True)
def voc_foreign_elements(s, random):
    for o in voc_objects(s):
        part = ET.SubElement(o, "part")
        ET.SubElement(part, "name").text = "head"
        part.append(copy.deepcopy(o.find("bndbox")))
        ET.SubElement(ET.SubElement(o, "attributes"), "attribute").text = "x"


@mutation("entries", "voc")
def voc_object_removed(s, random):
    doc = voc_doc(s, random)
    doc.remove(pick(random, doc.findall("object")))


@mutation("entries", "voc", benign=True)
def voc_reordered(s, random):
    for d in s.docs.values():
        random.shuffle(children := list(d))
        d[:] = children


@mutation("entries", "voc")
def voc_all_objects_removed(s, random):
    docs = list(s.docs.values()) if random.random() < 0.3 else [voc_doc(s, random)]
    for doc in docs:
        for o in doc.findall("object"):
            doc.remove(o)


VOC_BOXES = {
    "turned round": lambda x1, y1, x2, y2: (x2, y2, x1, y1),
    "width and height": lambda x1, y1, x2, y2: (x1, y1, x2 - x1, y2 - y1),
    "outside": lambda x1, y1, x2, y2: (x1 + 500, y1, x2 + 500, y2),
    "partly outside": lambda x1, y1, x2, y2: (x1, y1, x2 + 500, y2 + 500),
    "from 0": lambda x1, y1, x2, y2: (0, 0, x2, y2),
    "negative": lambda x1, y1, x2, y2: (-3, -3, x2, y2),
    "a pixel": lambda x1, y1, x2, y2: (x1, y1, x1, y1),
    "fractions": lambda x1, y1, x2, y2: (x1 + 0.4, y1 + 0.4, x2 - 0.4, y2 - 0.4),
    "shares": lambda x1, y1, x2, y2: (x1 / 128, y1 / 128, x2 / 128, y2 / 128),
    "huge": lambda x1, y1, x2, y2: (x1, y1, 1e300, 1e300),
}


@mutation("boxes", "voc")
def voc_box(s, random):
    change = VOC_BOXES[pick(random, VOC_BOXES)]
    for o in voc_objects(s) if random.random() < 0.3 else [pick(random, voc_objects(s))]:
        box = o.find("bndbox")
        for c, v in zip(box, change(*(int(c.text) for c in box)), strict=True):
            c.text = f"{v:g}"


@mutation("flags", "voc")
def voc_difficult(s, random):
    pick(random, voc_objects(s)).find("difficult").text = pick(
        random, ("1", "true", "", "2", "0", " 1 ", "Unspecified")
    )


@mutation("flags", "voc", benign=True)
def voc_no_flags(s, random):
    for o in voc_objects(s):
        if o.find("difficult").text == "0":
            o.remove(o.find("difficult"))


@mutation("names", "voc")
def voc_filename(s, random):
    child = voc_doc(s, random).find("filename")
    name = child.text
    child.text = pick(
        random, (name.upper(), Path(name).stem, "C:\\a\\" + name, "other.jpg", "", "../" + name, "x" * 300)
    )


@mutation("sizes", "voc")
def voc_size(s, random):
    size = voc_doc(s, random).find("size")
    w, h = size.find("width"), size.find("height")
    options = (
        (h.text, w.text),
        ("0", "0"),
        ("", ""),
        (str(int(w.text) + 1), h.text),
        (f"{w.text}.0", h.text),
        ("1e99", "1"),
    )
    w.text, h.text = pick(random, options)


@mutation("classes", "voc", benign=True)
def voc_numeric_names(s, random):
    for o in voc_objects(s):
        o.find("name").text = str(CLASSES.index(o.find("name").text) + 3)


@mutation("classes", "voc")
def voc_class_name(s, random):
    name = pick(random, voc_objects(s)).find("name")
    name.text = pick(random, ("background", "Ant", " bee ", "ñ 名", "a,b", "a\nb", "dog"))


@mutation("splits", "voc")
def voc_lists(s, random):
    lines = [Path(n).with_suffix("").as_posix() for n in NAMES]
    random.shuffle(lines)
    lines = pick(
        random,
        (
            lines,
            [f"{n} {v}" for n, v in zip(lines, (1, -1, 0, 1, 1), strict=True)],
            [f"{n}.jpg" for n in lines],
            [f"JPEGImages/{n}.jpg" for n in lines],
            [*lines, "", "  "],
            [*lines, "nobody"],
            [*lines, lines[0]],
            [Path(n).name for n in lines],
            [n.upper() for n in lines],
            [n + "\r" for n in lines],
            [],
            ["\ufeff" + lines[0], *lines[1:]],
        ),
    )
    data = "\n".join(lines).encode(pick(random, ("utf-8", "utf-8-sig", "utf-16")))
    for part in ("train", "val"):
        s.files[f"ImageSets/Main/{part}.txt"] = data


@mutation("encodings", "voc")
def voc_declared(s, random):
    path = pick(random, s.docs)
    name = pick(random, ("utf-8", "latin-1", "utf-16", "gbk", "koi8-r", "nonsense", "ascii"))
    s.text_edits[path] = lambda text: f'<?xml version="1.0" encoding="{name}"?>\n' + text
    s.encodings[path] = "utf-8" if name in ("nonsense", "ascii") or random.random() < 0.2 else name


@mutation("encodings", "voc")
def voc_entities(s, random):
    path = pick(random, s.docs)
    head = pick(random, ("<!DOCTYPE annotation [<!ENTITY a 'ant'>]>\n", "<!-- made by hand -->\n", "\n\n"))
    s.text_edits[path] = lambda text: head + text.replace("<name>ant<", "<name>&a;<", 1)


# ---------------------------------------------------------------------------------------------------------
# labelme


def labelme_doc(s: DataSet, random: np.random.Generator, with_shapes: bool = True) -> dict:
    return pick(random, [d for d in s.docs.values() if d["shapes"] or not with_shapes])


def shape(s: DataSet, random: np.random.Generator) -> dict:
    return pick(random, labelme_doc(s, random)["shapes"])


@mutation("values", "labelme")
def labelme_shape_value(s, random):
    one = shape(s, random)
    one[pick(random, one)] = copy.deepcopy(pick(random, JSON_DIRT))


@mutation("values", "labelme")
def labelme_value(s, random):
    doc = labelme_doc(s, random, False)
    doc[pick(random, doc)] = copy.deepcopy(pick(random, JSON_DIRT))


@mutation("values", "labelme")
def labelme_point(s, random):
    point = pick(random, shape(s, random)["points"])
    point[pick(random, (0, 1))] = copy.deepcopy(pick(random, JSON_DIRT))


@mutation("keys", "labelme")
def labelme_key_dropped(s, random):
    entry = pick(random, (labelme_doc(s, random), shape(s, random)))
    del entry[pick(random, entry)]


@mutation("keys", "labelme", benign=True)
def labelme_keys_that_tell_nothing_dropped(s, random):
    for doc in s.docs.values():
        for key in ("version", "flags", "imageData"):
            doc.pop(key)
        for one in doc["shapes"]:
            del one["flags"], one["group_id"]
            if random.random() < 0.5:
                del one["shape_type"]


@mutation("keys", "labelme", benign=True)
def labelme_foreign_keys(s, random):
    for doc in s.docs.values():
        doc["lineColor"] = [0, 255, 0, 128]
        for one in doc["shapes"]:
            one |= {"description": "", "mask": None, "difficult": False, "attributes": {}, "score": None}


@mutation("entries", "labelme")
def labelme_shape_removed(s, random):
    labelme_doc(s, random)["shapes"].pop()


@mutation("entries", "labelme")
def labelme_shape_twice(s, random):
    shapes = labelme_doc(s, random)["shapes"]
    shapes.append(copy.deepcopy(pick(random, shapes)))


@mutation("entries", "labelme", benign=True)
def labelme_reordered(s, random):
    for path, doc in s.docs.items():
        random.shuffle(doc["shapes"])
        s.docs[path] = dict(sorted(doc.items()))


@mutation("entries", "labelme")
def labelme_two_files_of_one_image(s, random):
    path = pick(random, s.docs)
    s.docs[str(Path(path).with_name("twin.json"))] = copy.deepcopy(s.docs[path])


@mutation("polygons", "labelme")
def labelme_polygon(s, random):
    doc = labelme_doc(s, random)
    one = pick(random, doc["shapes"])
    found = POLYGONS[pick(random, POLYGONS)](np.array(one["points"]), doc["imageHeight"], doc["imageWidth"])
    flat = found[0] if found and isinstance(found[0], list) else found
    one["points"] = [flat[i : i + 2] for i in range(0, len(flat), 2)]


SHAPES = (
    "rectangle",
    "circle",
    "line",
    "linestrip",
    "point",
    "points",
    "rotation",
    "oriented_rectangle",
    "cuboid",
    "mask",
)


@mutation("shapes", "labelme")
def labelme_kind(s, random):
    one = shape(s, random)
    one["shape_type"] = pick(random, SHAPES)
    if random.random() < 0.8:
        one["points"] = one["points"][: {"point": 1, "linestrip": 5, "rotation": 4}.get(one["shape_type"], 2)]
    if one["shape_type"] == "rectangle" and one["points"][0][1] == one["points"][-1][1]:
        one["points"][-1][1] += 8


@mutation("shapes", "labelme", benign=True)
def labelme_rectangles(s, random):
    for doc in s.docs.values():
        for one in doc["shapes"]:
            points = np.array(one["points"])
            one |= {"shape_type": "rectangle", "points": [points.max(0).tolist(), points.min(0).tolist()]}


@mutation("shapes", "labelme", benign=True)
def labelme_masks(s, random):
    one = shape(s, random)
    (x1, y1), (x2, y2) = np.array(one["points"]).min(0), np.array(one["points"]).max(0)
    bitmap = np.full((int(y2 - y1) + 1, int(x2 - x1) + 1), 255, np.uint8)
    one |= {"shape_type": "mask", "points": [[x1, y1], [x2, y2]]}
    one["mask"] = base64.b64encode(encode(bitmap, ".png")).decode()


@mutation("shapes", "labelme")
def labelme_mask_spoilt(s, random):
    labelme_masks(s, random)
    one = next(o for d in s.docs.values() for o in d["shapes"] if o["shape_type"] == "mask")
    one["mask"] = pick(random, (one["mask"][:-20], "", None, "!!", one["mask"] * 2, 5, "iVBORw0KGgo="))


@mutation("shapes", "labelme")
def labelme_groups(s, random):
    group = pick(random, (0, 1, "a", [1], 1.5))
    for one in labelme_doc(s, random)["shapes"]:
        one["group_id"] = group


@mutation("shapes", "labelme")
def labelme_names_with_a_meaning(s, random):
    shape(s, random)["label"] = pick(random, ("_background_", "__ignore__", "background"))
    s.config["labelme_ignore"] = pick(random, ("crowd", "skip"))


@mutation("names", "labelme")
def labelme_path(s, random):
    doc = labelme_doc(s, random, False)
    name = doc["imagePath"]
    paths = (
        name.upper(),
        "..\\images\\" + name,
        "C:\\x\\" + name,
        "../" + name,
        Path(name).stem,
        "gone.jpg",
        "a\0.jpg",
        "",
    )
    doc["imagePath"] = pick(random, (*paths, "x" * 300))


@mutation("names", "labelme", benign=True)
def labelme_paths_with_folders(s, random):
    prefix = pick(random, ("..\\images\\", "./", "/home/me/", "C:\\data\\"))
    for doc in s.docs.values():
        doc["imagePath"] = prefix + doc["imagePath"]


@mutation("sizes", "labelme")
def labelme_size(s, random):
    doc = labelme_doc(s, random, False)
    h, w = doc["imageHeight"], doc["imageWidth"]
    options = ((w, h), (h // 2, w // 2), (None, None), (0, 0), (str(h), str(w)), (h + 1, w), (h, None), (-h, w))
    doc["imageHeight"], doc["imageWidth"] = pick(random, options)


@mutation("images", "labelme")
def labelme_image_inside(s, random):
    path = pick(random, s.docs)
    image = next(p for p in s.images if Path(p).stem == Path(path).stem)
    s.docs[path]["imageData"] = base64.b64encode(s.images[image]).decode()[: pick(random, (None, 50))]
    if random.random() < 0.7:
        del s.images[image]


@mutation("classes", "labelme", benign=True)
def labelme_numeric_names(s, random):
    for doc in s.docs.values():
        for one in doc["shapes"]:
            one["label"] = pick(random, (str, int))(CLASSES.index(one["label"]) + 2)


@mutation("classes", "labelme")
def labelme_class_name(s, random):
    shape(s, random)["label"] = pick(random, ("background", "Ant", " bee", "", "ñ 名", "a\nb", "\ud800", "x" * 300))


@mutation("files", "labelme", benign=True)
def labelme_foreign_json(s, random):
    foreign = pick(random, ({"a": 1}, [1, 2], {"images": [], "annotations": [], "categories": []}, 7))
    s.files["settings.json"] = json.dumps(foreign).encode()


# ---------------------------------------------------------------------------------------------------------
# TXT and YOLO: rows of words


def row_docs(s: DataSet) -> dict[str, list]:
    return {p: d for p, d in s.docs.items() if isinstance(d, list)}


def full_rows(s: DataSet) -> list[list[str]]:
    return [row for d in row_docs(s).values() for row in d if len(row) > 1]


@mutation("entries", "txt", "yolo", benign=True)
def rows_reordered(s, random):
    for rows in row_docs(s).values():
        random.shuffle(rows)


@mutation("entries", "txt", "yolo")
def row_removed(s, random):
    rows = pick(random, [d for d in row_docs(s).values() if d])
    rows.pop(int(random.integers(len(rows))))


@mutation("entries", "txt", "yolo")
def row_twice(s, random):
    rows = pick(random, [d for d in row_docs(s).values() if d])
    rows.append(list(pick(random, rows)))


@mutation("entries", "txt", "yolo", benign=True)
def blank_rows(s, random):
    rows = pick(random, [d for d in row_docs(s).values() if d])
    for _ in range(3):
        rows.insert(int(random.integers(len(rows) + 1)), pick(random, ([], [""], ["", "", ""])))


@mutation("entries", "txt", "yolo")
def row_is_a_comment(s, random):
    pick(random, [d for d in row_docs(s).values() if d]).insert(0, ["#", "made", "by", "hand"])


@mutation("keys", "txt", "yolo", benign=True)
def tabs_and_spaces(s, random):
    between = pick(random, ("\t", "  ", " \t "))
    s.text_edits[pick(random, row_docs(s))] = lambda text: text.replace(" ", between)


@mutation("keys", "txt", "yolo")
def rows_with_other_separators(s, random):
    between = pick(random, (",", ";", "|"))
    s.text_edits[pick(random, row_docs(s))] = lambda text: text.replace(" ", between)


@mutation("keys", "txt", "yolo")
def word_removed(s, random):
    row = pick(random, full_rows(s))
    row.pop(int(random.integers(len(row))))


@mutation("keys", "txt", "yolo")
def word_added(s, random):
    row = pick(random, full_rows(s))
    row.insert(int(random.integers(1, len(row) + 1)), pick(random, WORDS))


@mutation("values", "txt")
def txt_number(s, random):
    row = pick(random, full_rows(s))
    place = int(random.integers(1, len(row)))
    parts = row[place].split(",")
    parts[int(random.integers(len(parts)))] = pick(random, WORDS)
    row[place] = ",".join(parts)


@mutation("values", "txt", benign=True)
def txt_floats(s, random):
    for row in full_rows(s):
        row[1:] = [",".join(pick(random, (v, v + ".0", "+" + v)) for v in c.split(",")) for c in row[1:]]
    s.config |= {"coco_classes": ["background", "a", "b", "c"], "num_classes": 4}


@mutation("keys", "txt")
def txt_columns(s, random):
    row = pick(random, full_rows(s))
    place = int(random.integers(1, len(row)))
    parts = row[place].split(",")
    row[place] = ",".join(
        pick(random, (parts[:4], parts[:3], [*parts, "0", "0"], [*parts[:5], "0"], [*parts[:5], "2"]))
    )


TXT_BOXES = {
    "turned round": lambda x1, y1, x2, y2: (x2, y2, x1, y1),
    "width and height": lambda x1, y1, x2, y2: (x1, y1, x2 - x1, y2 - y1),
    "outside": lambda x1, y1, x2, y2: (x1 + 500, y1, x2 + 500, y2),
    "partly outside": lambda x1, y1, x2, y2: (x1 - 5, y1 - 5, x2 + 500, y2 + 500),
    "no area": lambda x1, y1, x2, y2: (x1, y1, x1, y2),
    "shares": lambda x1, y1, x2, y2: (x1 / 128, y1 / 128, x2 / 128, y2 / 128),
    "huge": lambda x1, y1, x2, y2: (x1, y1, 1e300, 1e300),
    "thin": lambda x1, y1, x2, y2: (x1, y1, x1 + 0.01, y2),
}


@mutation("boxes", "txt")
def txt_box(s, random):
    change = TXT_BOXES[pick(random, TXT_BOXES)]
    row = pick(random, full_rows(s))
    for place in range(1, len(row)) if random.random() < 0.5 else [1]:
        parts = row[place].split(",")
        row[place] = ",".join([*(f"{v:g}" for v in change(*map(float, parts[:4]))), *parts[4:]])


@mutation("classes", "txt")
def txt_class(s, random):
    row = pick(random, full_rows(s))
    parts = row[1].split(",")
    parts[4] = pick(random, ("0", "-1", "4", "1.5", "ant", "99999999999", "1e3", "nan"))
    row[1] = ",".join(parts)


@mutation("names", "txt", benign=True)
def txt_paths(s, random):
    prefix = pick(random, ("images/", "images\\", "./", "/home/me/images/", "C:\\data\\"))
    for row in s.docs["boxes.txt"]:
        row[0] = prefix + row[0].replace("/", "\\" if "\\" in prefix else "/")


@mutation("names", "txt")
def txt_path(s, random):
    row = pick(random, s.docs["boxes.txt"])
    row[0] = pick(
        random, (row[0].upper(), "gone.jpg", "../" + row[0], "x" * 300 + ".jpg", '"' + row[0] + '"', "a\0.jpg")
    )


@mutation("names", "txt", benign=True)
def txt_path_with_spaces(s, random):
    row = pick(random, s.docs["boxes.txt"])
    path = "images/" + row[0]
    new = str(Path(path).with_name("my old " + Path(path).name))
    s.images[new] = s.images.pop(path)
    row[0] = new.removeprefix("images/")


@mutation("flags", "txt")
def txt_crowd(s, random):
    row = pick(random, full_rows(s))
    row[1] = ",".join([*row[1].split(",")[:5], pick(random, ("0", "1", "2", "true", "0.5"))])


@mutation("values", "yolo")
def yolo_number(s, random):
    row = pick(random, full_rows(s))
    row[int(random.integers(len(row)))] = pick(random, WORDS)


@mutation("values", "yolo")
def yolo_yaml_value(s, random):
    doc = s.docs["data.yaml"]
    doc[pick(random, doc)] = pick(
        random, (None, "", [], {}, 0, -1, "gone", 3.5, ["images"], [["images"]], "../images", "a\0b")
    )


@mutation("keys", "yolo")
def yolo_yaml_key_dropped(s, random):
    doc = s.docs["data.yaml"]
    del doc[pick(random, doc)]


@mutation("keys", "yolo", benign=True)
def yolo_yaml_written_otherwise(s, random):
    doc = s.docs["data.yaml"]
    doc["names"] = pick(random, (dict(enumerate(CLASSES)), list(CLASSES)))
    doc |= {"train": pick(random, ("images", "./images", "images/", "../images", ["images"])), "path": "/home/me/data"}
    doc |= {"roboflow": {"license": "MIT"}, "test": None}


@mutation("boxes", "yolo")
def yolo_boxes(s, random):
    """Boxes in polygons' place, in one file or in all: a mask detector can't learn them."""
    docs = [p for p in row_docs(s) if s.docs[p]]
    for path in docs if random.random() < 0.7 else [pick(random, docs)]:
        for row in s.docs[path]:
            points = np.array(row[1:], float).reshape(-1, 2)
            low, high = points.min(0), points.max(0)
            row[1:] = [f"{v:.6f}" for v in (*((low + high) / 2), *(high - low))]
    if random.random() < 0.8:
        s.config["detector"] = "faster_rcnn"


@mutation("boxes", "yolo", benign=True)
def yolo_all_boxes(s, random):
    for row in full_rows(s):
        points = np.array(row[1:], float).reshape(-1, 2)
        low, high = points.min(0), points.max(0)
        row[1:] = [f"{v:.{int(random.integers(3, 9))}f}" for v in (*((low + high) / 2), *(high - low))]
    s.config["detector"] = "faster_rcnn"


YOLO_ROWS = {
    "pixels": lambda p: p * 100,
    "beyond by little": lambda p: p / p.max() * 1.005,
    "beyond": lambda p: p + 0.6,
    "negative": lambda p: p - 0.5,
    "two points": lambda p: p[:2],
    "bow-tie": lambda p: p[[0, 2, 1, 3]],
    "a line": lambda p: p[[0, 1, 0]],
    "of one place": lambda p: np.repeat(p[:1], 4, 0),
    "tiny": lambda p: p[0] + p / 10000,
    "thin": lambda p: p * [1, 0.0001],
}


@mutation("polygons", "yolo")
def yolo_polygon(s, random):
    row = pick(random, full_rows(s))
    points = YOLO_ROWS[pick(random, YOLO_ROWS)](np.array(row[1:], float).reshape(-1, 2))
    row[1:] = [f"{v:.6f}" for v in points.ravel()]


@mutation("classes", "yolo")
def yolo_class(s, random):
    pick(random, full_rows(s))[0] = pick(random, ("3", "-1", "1.0", "1.5", "ant", "99999999999", "1e0"))


@mutation("classes", "yolo")
def yolo_names(s, random):
    doc = s.docs["data.yaml"]
    doc["names"] = pick(
        random,
        (
            ["ant", "bee"],
            ["ant", "ant", "bee"],
            [1, 2, 3],
            ["no", "yes", "on"],
            {0: "a", 2: "b", 3: "c"},
            "ant",
            ["", "a", "b"],
        ),
    )


@mutation("files", "yolo", benign=True)
def yolo_label_without_image(s, random):
    s.files["labels/orphan.txt"] = b"0 0.5 0.5 0.1 0.1\n"


@mutation("files", "yolo")
def yolo_label_of_other_case(s, random):
    path = pick(random, row_docs(s))
    s.files[str(Path(path).with_suffix(".TXT"))] = s.encoded(path)
    del s.docs[path]


@mutation("splits", "yolo")
def yolo_lists(s, random):
    names = sorted(s.images)
    lines = pick(
        random,
        (
            names,
            [f"./{n}" for n in names],
            [n.replace("/", "\\") for n in names],
            [f"/home/me/data/{n}" for n in names],
            [*names, "images/gone.jpg"],
            [*names, names[0]],
            [n + "\r" for n in names],
            [],
        ),
    )
    s.files["train.txt"] = "\n".join(lines).encode()
    s.docs["data.yaml"] |= {"train": "train.txt", "val": "train.txt"}
