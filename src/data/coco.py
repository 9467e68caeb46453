"""COCO annotations (Lin et al., 2014, arXiv:1405.0312), read and checked."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from src.config import Config
from src.data.records import CocoSplit, DataError, ImageRecord, Split

__all__ = ["category_names", "load_coco", "resolve_split"]

LEAST_SIDE = 0.005  # pixels: COCO gives hundredths, so a smaller side is none
FOLDER_NAMES = {"train": ("train",), "val": ("validation", "val", "valid")}


def resolve_split(path: str | Path, split: str, annotations: str | Path = "", images: str | Path = "") -> Split:
    """Finds `split` ("train" or "val") in any layout.

    `path` is a COCO root (annotations/instances_{split}2017.json with {split}2017/), a folder with labels.json and
    data/, or with _annotations.coco.json beside its images, or the parent of such folders named train/ and validation/,
    or an annotation file. `annotations` names another file than the layout's: then the images are those of the folder
    that the file is called after (instances_NAME.json: NAME/) or else of the first in that order. `images` names the
    folder of the images of either file. Raises DataError.
    """
    root = Path(path)
    if not str(path):
        raise DataError(f"no data set for {split}: set {split}_dataset (or --{split}_dataset DIR)")
    if annotations:
        return Split(Path(annotations), Path(images) if images else image_folder(root, split, Path(annotations)))
    if root.suffix == ".json" and not root.is_dir():
        return Split(root, Path(images) if images else folder_beside(root, split))
    candidates = [Split(root / f"annotations/instances_{split}2017.json", root / f"{split}2017")]
    for folder in (root, *(root / n for n in FOLDER_NAMES[split])):
        candidates += [Split(folder / "labels.json", folder / "data"), Split(folder / "_annotations.coco.json", folder)]
    for c in candidates:
        if c.annotations.is_file():
            if not c.images.is_dir():
                raise DataError(f"{c.images}: no such folder, though {c.annotations} is there; put the images in it")
            return c
    wanted = " or ".join(str(c.annotations) for c in candidates[:2])
    raise DataError(f"{root}: no COCO annotations for {split}; expected {wanted}, or name the annotation file itself")


def folder_beside(annotations: Path, split: str) -> Path:
    """The folder with the images of an annotation file on its own: one beside it, or its own."""
    near = (annotations.parent, annotations.parent.parent)
    named = (annotations.stem.removeprefix("instances_"), f"{split}2017", "images", "data")
    return next((p / n for p in near for n in named if (p / n).is_dir()), annotations.parent)


def image_folder(root: Path, split: str, annotations: Path) -> Path:
    """The folder in `root` with the images of an annotation file from anywhere. Raises DataError."""
    named = annotations.stem.removeprefix("instances_")
    folders = [root / named, root / f"{split}2017", root / "data", *(root / n / "data" for n in FOLDER_NAMES[split])]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise DataError(f"{root}: no folder with the images of {annotations}; expected {folders[0]}, {folders[1]} or data")


def read_json(path: Path) -> dict:
    """The annotation file as a mapping with its three lists. Raises DataError."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as e:
        raise DataError(f"{path}: can't read the annotations: {e.strerror}") from None
    except json.JSONDecodeError as e:
        raise DataError(f"{path}, line {e.lineno}: not valid JSON ({e.msg}); fetch or write the file again") from None
    except (UnicodeDecodeError, RecursionError):
        raise DataError(f"{path}: not valid JSON; fetch or write the file again") from None
    for name in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(name), list):
            raise DataError(f"{path}: no list of {name!r}; not a COCO instances file")
        if not all(isinstance(row, dict) for row in data[name]):
            raise DataError(f"{path}: an entry of {name!r} isn't a mapping; not a COCO instances file")
    return data


def load_coco(split: Split, config: Config, check_files: bool = True) -> CocoSplit:
    """Reads a split and checks every record.

    Boxes are clipped to their image; one that lies outside it, or has no area left, is a fault, as are an image that
    is missing, more than max_instance_count objects in an image, and for mask_rcnn an object without segmentation. A
    fault raises DataError, or with on_bad_image: skip leaves out its image, which `skipped` then names with the reason.
    A file that isn't COCO's, an annotation of an image that isn't listed, and a category that config.coco_classes
    doesn't name always raise.
    """
    data = read_json(split.annotations)
    labels = category_labels(data, split, config)
    images = {}
    for entry in data["images"]:
        try:
            image_id = int(entry["id"])
            content = (str(entry["file_name"]), int(entry["height"]), int(entry["width"]))
            # beyond what any decoder takes
            if max(content[1:]) >= 1 << 31:
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError):
            raise DataError(
                f"{split.annotations}: image {entry.get('id', entry)!r} lacks id, file_name or size"
            ) from None
        if image_id in images:
            raise DataError(f"{split.annotations}: two images have the id {image_id}; give each its own")
        images[image_id] = content
    by_image: dict[int, list[dict]] = {i: [] for i in images}
    for a in data["annotations"]:
        if not isinstance(a.get("image_id"), (int, str)) or a["image_id"] not in by_image:
            raise DataError(
                f"{split.annotations}: annotation {a.get('id')} is of image {a.get('image_id')}, which 'images' doesn't"
                " list; remove the annotation or add the image"
            )
        by_image[a["image_id"]].append(a)
    records, skipped = [], []
    for image_id in sorted(images):
        name, height, width = images[image_id]
        try:
            path = split.images / name
            if check_files and not path.is_file():
                raise DataError(
                    f"{path}: the image of {len(by_image[image_id])} annotations in {split.annotations.name} is missing"
                )
            records.append(make_record(image_id, path, height, width, by_image[image_id], labels, split, config))
        except DataError as e:
            if config.on_bad_image == "stop":
                raise DataError(f"{e} (or leave such images out: on_bad_image: skip)") from None
            skipped.append(str(e))
    return CocoSplit(split, records, skipped, {v: k for k, v in labels.items() if v})


def category_names(annotations: Path) -> list[str]:
    """Names of a file's categories, by id; of two that share a name, one must be without annotations. Raises DataError.

    A category called background is left out: that is what the detector calls everything else.
    """
    data = read_json(annotations)
    try:
        ordered = sorted(data["categories"], key=lambda c: c["id"])
        names = [c["name"] for c in ordered]
    except (KeyError, TypeError):
        raise DataError(f"{annotations}: a category lacks id or name, or their ids can't be ordered") from None
    if not all(isinstance(n, str) and n for n in names):
        raise DataError(f"{annotations}: a category's name isn't text")
    if not names:
        raise DataError(f"{annotations}: 'categories' is empty, so there is nothing to learn")
    return [n for n in dict.fromkeys(names) if n != "background"]


def category_labels(data: dict, split: Split, config: Config) -> dict[int, int]:
    """Label of each category id, by name; categories that the config doesn't name get 0 if nothing uses them."""
    known = {name: i for i, name in enumerate(config.coco_classes)}
    try:
        used = Counter(a.get("category_id") for a in data["annotations"])
        ids: dict[str, list[int]] = {}
        for c in data["categories"]:
            ids.setdefault(c["name"], []).append(c["id"])
            hash(c["id"])
    except (KeyError, TypeError):
        bad = [c for c in data["categories"] if not {"id", "name"} <= c.keys()]
        what = f"category {bad[0]!r} lacks id or name" if bad else "a category's id or name is neither number nor text"
        raise DataError(f"{split.annotations}: {what}") from None
    labels = {}
    for name, same in ids.items():
        # some tools list a class a second time, as the supercategory of all
        busy = [i for i in same if used[i]]
        if len(busy) > 1:
            raise DataError(
                f"{split.annotations}: categories {busy[0]} and {busy[1]} are both called {name!r}; merge them, or"
                " rename one"
            )
        labels |= dict.fromkeys(same, 0)
        labels[(busy or same)[0]] = known.get(name, 0)
        if busy and not known.get(name, 0):
            raise DataError(
                f"{split.annotations}: category {busy[0]} ({name!r}, {used[busy[0]]} annotations) isn't in the"
                " config; add it to coco_classes and count it in num_classes"
                + (" (background is reserved: rename it)" if name == "background" else "")
            )
    for category_id in used:
        if category_id not in labels:
            raise DataError(
                f"{split.annotations}: category id {category_id!r} ({used[category_id]} annotations) isn't in the"
                " file's 'categories'"
            )
    return labels


def make_record(
    image_id: int,
    path: Path,
    height: int,
    width: int,
    annotations: list[dict],
    labels: dict[int, int],
    split: Split,
    config: Config,
) -> ImageRecord:
    """One image's record. Raises DataError."""
    boxes, classes, crowd, segmentations = [], [], [], []
    for a in annotations:
        where = f"{split.annotations}: annotation {a.get('id')} of image {image_id}"
        boxes.append(clipped_box(a.get("bbox"), height, width, where))
        is_crowd = bool(a.get("iscrowd", 0))
        segmentation = a.get("segmentation")
        if config.needs_masks and not is_crowd:
            check_segmentation(segmentation, height, width, where)
        classes.append(0 if is_crowd else labels[a["category_id"]])
        crowd.append(is_crowd)
        # a crowd's mask is never trained on, its box is enough
        segmentations.append(None if is_crowd else segmentation)
    count = len(crowd) - sum(crowd)
    if count > config.max_instance_count:
        raise DataError(
            f"{split.annotations}: image {image_id} ({path.name}) has {count} objects, more than max_instance_count"
            f" {config.max_instance_count}; raise max_instance_count"
        )
    return ImageRecord(
        image_id,
        path,
        height,
        width,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(classes, np.int32),
        np.array(crowd, bool),
        segmentations,
    )


def clipped_box(bbox: object, height: int, width: int, where: str) -> tuple[float, float, float, float]:
    """COCO's [x, y, width, height] as x1 y1 x2 y2 inside the image. Raises DataError."""
    try:
        x, y, w, h = (float(v) for v in bbox)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{where}: bbox {bbox!r} isn't [x, y, width, height]") from None
    if not np.isfinite([x, y, w, h]).all():
        raise DataError(f"{where}: bbox {bbox!r} isn't finite")
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    if w < LEAST_SIDE or h < LEAST_SIDE:
        raise DataError(f"{where}: bbox {bbox!r} has no area; remove the annotation")
    if x2 - x1 < LEAST_SIDE or y2 - y1 < LEAST_SIDE:
        raise DataError(f"{where}: bbox {bbox!r} lies outside its {width} x {height} image; mend or remove it")
    return x1, y1, x2, y2


def check_segmentation(segmentation: object, height: int, width: int, where: str) -> None:
    """Polygons of at least three points, or a run-length encoding of the image's size. Raises DataError."""
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            if not isinstance(polygon, list) or len(polygon) % 2:
                raise DataError(f"{where}: a polygon isn't a list of x, y, x, y, ...")
            if not all(isinstance(v, (int, float)) and abs(v) < 1e9 for v in polygon):
                raise DataError(f"{where}: a polygon holds something that isn't a number")
        # COCO holds stray polygons of one or two points beside whole ones
        if max(len(p) for p in segmentation) < 6:
            raise DataError(f"{where}: no polygon of three points or more")
        return
    if isinstance(segmentation, dict) and "counts" in segmentation:
        if segmentation.get("size") != [height, width]:
            raise DataError(f"{where}: RLE of size {segmentation.get('size')} on an image of {[height, width]}")
        counts = segmentation["counts"]
        if isinstance(counts, list):
            if not all(isinstance(v, int) and v >= 0 for v in counts):
                raise DataError(f"{where}: RLE counts hold something that isn't a length")
            if sum(counts) != height * width:
                raise DataError(f"{where}: RLE counts don't add up to {height} x {width} pixels")
            return
        try:
            rle.decode(segmentation)
        except (TypeError, ValueError, AttributeError):
            raise DataError(f"{where}: RLE counts that can't be decoded") from None
        return
    raise DataError(f"{where}: no segmentation (polygons or RLE), which mask_rcnn trains on; or use faster_rcnn")
