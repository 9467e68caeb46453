"""Small valid data sets of each format, and how changes to them are told of."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import yaml

from src.runtime.newer import zip_equal

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


def otherwise(number: str) -> tuple[str, str]:
    """A number with a point and with a sign, where it has none."""
    text = number.strip()
    return (text if "." in text or not text[-1:].isdigit() else f"{text}.0"), (text if text[:1] in "+-" else f"+{text}")


def pick(random: np.random.Generator, options):
    options = list(options)
    if not options:
        raise LookupError("nothing to change")
    return options[int(random.integers(len(options)))]


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
    for i, (name, size) in enumerate(zip_equal(NAMES, SIZES)):
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
            for tag, value in zip_equal(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2)):
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
