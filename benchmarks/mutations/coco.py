"""Changes to COCO data sets."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from benchmarks.mutations.sets import JSON_DIRT, DataSet, Thing, mutation, pick, run_lengths


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
