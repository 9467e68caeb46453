"""Boxes in a text file, a row an image: `relative/path.jpg x1,y1,x2,y2,class x1,y1,x2,y2,class ...`

A sixth number after the class, 0 or 1, says whether the box is a crowd region.
"""

import math
import re
from pathlib import Path

from tqdm import tqdm

from src.config import Config
from src.data.finding import ImageFinder, refuse_shared
from src.data.formats.base import Format, Masks, NoSplitError, read_lines, truth_categories
from src.data.images import IMAGE_SUFFIXES, frame_of
from src.data.records import DataError, ImageRecord, Instance, Records, Split, clipped_box
from src.runtime.errors import shown
from src.runtime.files import why_unread

__all__ = ["Txt"]

MOST_CLASSES = 10_000  # a larger number is a slip of the pen, or an id


class Txt(Format):
    """anno_path names the rows, val_annotations those to evaluate on, image_dir the folder that paths start from.

    Image ids are line numbers, category ids the class numbers.
    """

    name = "other"
    suffixes = (".txt",)
    needs_images = True

    def locate(self, config: Config, split: str) -> Split:
        if split == "test":
            raise NoSplitError("dataset: other names no rows to test on; name their file instead of the split")
        training = split == "train"
        annotations = config.anno_path if training else config.val_annotations or config.anno_path
        images = config.image_dir or (config.train_dataset if training else config.val_dataset or config.train_dataset)
        for name, value in (("anno_path", annotations), ("image_dir", images)):
            if not value:
                raise DataError(f"dataset: other needs {name}: set it (or --{name} PATH)")
        if why := why_unread(annotations):
            raise DataError(f"{annotations}: {why}; anno_path names the TXT file of the boxes")
        if not Path(images).is_dir():
            raise DataError(f"{images}: no such folder; image_dir names the one that the images' paths start from")
        return Split(Path(annotations), Path(images))

    def classes(self, where: Split) -> list[str]:
        """class_1, class_2, ... up to the largest number that a well-formed column holds."""
        written = [c.split(",")[4] for _, _, columns in read_rows(where) for c in columns if c.count(",") in (4, 5)]
        numbers = {n.lstrip("0") for n in written if n.isdecimal()}
        # a number of thousands of digits can't be read
        highest = max((int(n[:9]) for n in numbers if n), default=0)
        if highest > MOST_CLASSES:
            told = next(n for n in numbers if n and int(n[:9]) == highest)
            raise DataError(
                f"{where.annotations}: a box of class {told[:40]}; number the classes from 1, or set coco_classes"
            )
        if not highest:
            raise DataError(
                f"{where.annotations}: no box with a class from 1 up; expected path.jpg x1,y1,x2,y2,class ..."
            )
        return [f"class_{i}" for i in range(1, highest + 1)]

    def records(self, where: Split, config: Config, masks: Masks, files: bool = True) -> Records:
        """A row whose image is missing, listed before or not an image, or one of whose boxes isn't five numbers, has no
        area, lies outside its image or has no class of the config's is a fault.
        """
        finder = ImageFinder([where.images, where.annotations.parent])
        records: list[ImageRecord] = []
        seen: dict[str, int] = {}
        for number, name, columns in tqdm(read_rows(where), unit="img", desc="reading", leave=False):
            told = f"{where.annotations}, line {number}"
            record = ImageRecord(number, name, where.images / name, 0, 0)
            records.append(record)
            if name in seen:
                record.faults.append(f"{told}: {name} is on line {seen[name]} already; put its boxes in one row")
                continue
            seen[name] = number
            try:
                record.path = finder.find(name)
                record.height, record.width, record.orientation = frame_of(record.path, config.exif)
            except DataError as e:
                record.faults.append(f"{told}: {e}")
                continue
            for column in columns:
                record.add(instance, column, record, told, config)
            if masks == "needed":
                record.faults.append(f"{told}: boxes alone, and masks are learnt from masks; use faster_rcnn")
            record.told = f"{told}: {name}"
        refuse_shared(records, finder)
        return Records(where, records, truth_categories(config), listed=finder.listed)

    def training_source(self, config: Config) -> str:
        return config.anno_path

    def folders(self, config: Config, split: str) -> list[str]:
        return []

    def lies_in(self, folder: Path) -> bool:
        """Never: its rows are a file."""
        return False


def read_rows(split: Split) -> list[tuple[int, str, list[str]]]:
    """(line number, path, columns after it) of every row; rows without anything are left out. Raises DataError."""
    rows = []
    for number, line in enumerate(read_lines(split.annotations), 1):
        words = line.split()
        if words:
            # a path may hold spaces: it ends with the first word that ends as an image's name does
            end = next((i for i, w in enumerate(words) if w.lower().endswith(IMAGE_SUFFIXES)), 0) + 1
            named = re.match(rf"\s*((?:\S+\s+){{{end - 1}}}\S+)", line)
            path = named[1] if named else line
            rows.append((number, path, words[end:]))
    if not rows:
        raise DataError(f"{split.annotations}: holds no row; expected path.jpg x1,y1,x2,y2,class ...")
    return rows


def instance(column: str, record: ImageRecord, where: str, config: Config) -> Instance:
    """One box. Raises DataError, which begins with `where`."""
    try:
        x1, y1, x2, y2, label, is_crowd = (float(v) for v in (column.split(",") + ["0"])[:6])
        whole = column.count(",") in (4, 5) and all(map(math.isfinite, (x1, y1, x2, y2, label))) and is_crowd in (0, 1)
    except ValueError:
        whole = False
    if not whole:
        raise DataError(f"{where}: {shown(column)} isn't x1,y1,x2,y2,class or x1,y1,x2,y2,class,iscrowd")
    if not label.is_integer() or not 0 < label < config.num_classes:
        why = "0 is the background" if label == 0 else f"the config has 1 to {config.num_classes - 1}"
        raise DataError(
            f"{where}: class {column.split(',')[4][:20]} of {shown(column)}: {why}; mend it, or set coco_classes: auto"
        )
    box = clipped_box((x1, y1, x2 - x1, y2 - y1), record.height, record.width, f"{where}: {shown(column)}")
    bbox = (box[0], box[1], box[2] - box[0], box[3] - box[1])
    return Instance(int(label), bool(is_crowd), box, bbox, bbox[2] * bbox[3])
