"""Boxes in a text file, a row an image: `relative/path.jpg x1,y1,x2,y2,class x1,y1,x2,y2,class ...`

A sixth number after the class, 0 or 1, says whether the box is a crowd region.
"""

import math
import re
from pathlib import Path

import numpy as np
from tqdm import tqdm

from src.config import Config
from src.data.coco import clipped_box
from src.data.images import IMAGE_SUFFIXES, image_size
from src.data.records import CocoSplit, DataError, ImageRecord, Split

__all__ = ["highest_class", "listed_images", "load_txt", "resolve_txt"]


MOST_CLASSES = 10_000  # a larger number is a slip of the pen, or an id


def resolve_txt(config: Config, training: bool) -> Split:
    """The TXT file and the folder that its paths start from, as the config names them. Raises DataError."""
    annotations = config.anno_path if training else config.val_annotations or config.anno_path
    images = config.image_dir or (config.train_dataset if training else config.val_dataset or config.train_dataset)
    for name, value in (("anno_path", annotations), ("image_dir", images)):
        if not value:
            raise DataError(f"dataset: other needs {name}: set it (or --{name} PATH)")
    if not Path(annotations).is_file():
        raise DataError(f"{annotations}: no such file; anno_path names the TXT file of the boxes")
    if not Path(images).is_dir():
        raise DataError(f"{images}: no such folder; image_dir names the one that the images' paths start from")
    return Split(Path(annotations), Path(images))


def read_rows(split: Split) -> list[tuple[int, str, list[str]]]:
    """(line number, path, columns after it) of every row; rows without anything are left out. Raises DataError."""
    try:
        lines = split.annotations.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as e:
        raise DataError(f"{split.annotations}: can't read: {e.strerror}") from None
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        raise DataError(f"{split.annotations}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    rows = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words:
            # a path may hold spaces: it ends with the first word that ends as an image's name does
            end = next((i for i, w in enumerate(words) if w.lower().endswith(IMAGE_SUFFIXES)), 0) + 1
            path = re.match(rf"\s*((?:\S+\s+){{{end - 1}}}\S+)", line)[1]
            rows.append((number, path, words[end:]))
    if not rows:
        raise DataError(f"{split.annotations}: holds no row; expected path.jpg x1,y1,x2,y2,class ...")
    return rows


def listed_images(split: Split) -> list[Path]:
    """The images that a TXT file names. Raises DataError."""
    return [split.images / path for _, path, _ in read_rows(split)]


def highest_class(split: Split) -> int:
    """The largest class number that a well-formed column holds. Raises DataError."""
    numbers = [c.split(",")[4] for _, _, columns in read_rows(split) for c in columns if c.count(",") in (4, 5)]
    highest = max((int(n) for n in numbers if n.isdecimal()), default=0)
    if highest > MOST_CLASSES:
        raise DataError(
            f"{split.annotations}: a box of class {highest}; number the classes from 1, or set coco_classes"
        )
    if not highest:
        raise DataError(f"{split.annotations}: no box with a class from 1 up; expected path.jpg x1,y1,x2,y2,class ...")
    return highest


def load_txt(split: Split, config: Config) -> CocoSplit:
    """Reads a TXT file and checks every row; image ids are line numbers, category ids the class numbers.

    A row whose image is missing, listed before or not an image, or one of whose boxes isn't five numbers, has no area,
    lies outside its image or has no class of the config's is a fault: DataError, or with on_bad_image: skip the image
    is left out and named in `skipped`. A file that can't be read always raises.
    """
    records, skipped, seen = [], [], {}
    for number, path, columns in tqdm(read_rows(split), unit="img", desc="reading", leave=False):
        where = f"{split.annotations}, line {number}"
        try:
            if path in seen:
                raise DataError(f"{where}: {path} is on line {seen[path]} already; put its boxes in one row")
            seen[path] = number
            records.append(make_record(number, split.images / path, columns, where, config))
        except DataError as e:
            if config.on_bad_image == "stop":
                raise DataError(f"{e} (or leave such images out: on_bad_image: skip)") from None
            skipped.append(str(e))
    return CocoSplit(split, records, skipped, {i: i for i in range(1, config.num_classes)})


def make_record(image_id: int, path: Path, columns: list[str], where: str, config: Config) -> ImageRecord:
    """One row's record. Raises DataError, which begins with `where`."""
    try:
        height, width = image_size(path)
    except DataError as e:
        raise DataError(f"{where}: {e}") from None
    boxes, labels, crowd = [], [], []
    for column in columns:
        try:
            x1, y1, x2, y2, label, is_crowd = (float(v) for v in (column.split(",") + ["0"])[:6])
            whole = (
                column.count(",") in (4, 5) and all(map(math.isfinite, (x1, y1, x2, y2, label))) and is_crowd in (0, 1)
            )
        except ValueError:
            whole = False
        if not whole:
            raise DataError(f"{where}: {column!r} isn't x1,y1,x2,y2,class or x1,y1,x2,y2,class,iscrowd")
        if not label.is_integer() or not 0 < label < config.num_classes:
            why = "0 is the background" if label == 0 else f"the config has 1 to {config.num_classes - 1}"
            raise DataError(f"{where}: class {column.split(',')[4]} of {column!r}: {why}; mend it, or coco_classes")
        boxes.append(clipped_box([x1, y1, x2 - x1, y2 - y1], height, width, f"{where}: {column!r}"))
        labels.append(int(label))
        crowd.append(bool(is_crowd))
    count = len(crowd) - sum(crowd)
    if count > config.max_instance_count:
        raise DataError(f"{where}: {count} boxes, more than max_instance_count {config.max_instance_count}; raise it")
    none = [None] * len(boxes)
    box_array = np.array(boxes, np.float32).reshape(-1, 4)
    return ImageRecord(
        image_id, path, height, width, box_array, np.array(labels, np.int32), np.array(crowd, bool), none
    )
