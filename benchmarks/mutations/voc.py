"""Changes to Pascal VOC data sets."""

import copy
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

from benchmarks.mutations.sets import CLASSES, NAMES, WORDS, DataSet, mutation, otherwise, pick
from src.runtime.newer import zip_equal


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
            c.text = pick(random, (otherwise(c.text)[0], f" {c.text}\n", otherwise(c.text)[1]))


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
        for c, v in zip_equal(box, change(*(int(c.text) for c in box))):
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
            [f"{n} {v}" for n, v in zip_equal(lines, (1, -1, 0, 1, 1))],
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
