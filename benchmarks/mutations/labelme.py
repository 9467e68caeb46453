"""Changes to labelme data sets."""

import base64
import copy
import json
from pathlib import Path

import numpy as np

from benchmarks.mutations.coco import POLYGONS
from benchmarks.mutations.files import encode
from benchmarks.mutations.sets import CLASSES, JSON_DIRT, DataSet, mutation, pick


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
