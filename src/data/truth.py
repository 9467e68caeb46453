"""The normalised COCO file that everything evaluates against: what the reader understood, in a form without surprises.

Annotation ids count from 1, ids of images and categories are integers, iscrowd is 0 or 1, every annotation has a box
and an area, masks are polygons of three points or more or whole run lengths of the image's size. A box and an area that
the annotations gave stay as they are. Fields (src/data/fields) add keys of their own to annotations and categories.
Images that can't be used are in it, with those of their objects that are whole: they count as missed. "source_id"
beside an id says what the annotations call the image or category, where that is no number; "source" at the top, the
file that the truth was made of. The first line holds a checksum of the rest.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from src.config import Config
from src.data.fields import all_fields, field_keys
from src.data.formats import read_split
from src.data.formats.base import Masks
from src.data.formats.coco import Coco, category_names, folder_beside, read_json
from src.data.records import DataError, ImageRecord, Records, Split, report_notes
from src.data.segmentations import segmentation_json
from src.runtime.files import open_regular, read_regular

__all__ = ["is_truth", "read_categories", "read_truth", "truth_dict", "truth_of", "truth_of_split", "write_truth"]

MAGIC = "rcnn-mindspore truth 1"
HEAD = '{{"info": {{"description": "{}", "crc32": "{:08x}"}},\n'
HEAD_SIZE = len(HEAD.format(MAGIC, 0))


def truth_images(records: Iterable[ImageRecord]) -> Iterator[dict]:
    """The images, as COCO lists them."""
    for r in records:
        image = {"id": r.image_id, "file_name": r.file_name, "height": r.height, "width": r.width}
        yield image if r.source_id is None else image | {"source_id": r.source_id}


def truth_annotations(records: Iterable[ImageRecord], categories: list[dict], masks: bool) -> Iterator[dict]:
    """The annotations, as COCO lists them.

    A region that is neither object nor background for any class is a crowd of each. masks: an annotation without a
    mask, a crowd's, gets its box as one.
    """
    number = 0
    for r in records:
        for i in r.instances:
            segmentation = segmentation_json(i.segmentation)
            if masks and segmentation is None:
                x1, y1, x2, y2 = i.box
                segmentation = [[x1, y1, x2, y1, x2, y2, x1, y2]]
            for category in categories if i.label == 0 else (categories[i.label - 1],):
                number += 1
                out = {"id": number, "image_id": r.image_id, "category_id": category["id"], "iscrowd": int(i.crowd)}
                out |= {"bbox": list(i.bbox), "area": i.area} | field_keys(i)
                yield out | {"segmentation": segmentation} if masks else out


def truth_dict(records: Records) -> dict:
    """The truth in memory."""
    return {
        "images": list(truth_images(records.images)),
        "annotations": list(truth_annotations(records.images, records.categories, records.with_masks)),
        "categories": records.categories,
    }


def write_truth(path: Path, records: Records) -> None:
    """Writes the truth, piece by piece. Raises OSError."""
    crc = 0
    with path.open("wb") as f:

        def write(text: str) -> None:
            nonlocal crc
            data = text.encode()
            crc = zlib.crc32(data, crc)
            f.write(data)

        f.write(HEAD.format(MAGIC, 0).encode())
        write(f'"source": {json.dumps(str(records.split.annotations))},\n')
        write('"categories": ' + json.dumps(records.categories) + ',\n"images": [')
        for i, image in enumerate(truth_images(records.images)):
            write((",\n" if i else "\n") + json.dumps(image, separators=(",", ":")))
        write('\n],\n"annotations": [')
        rows = truth_annotations(records.images, records.categories, records.with_masks)
        for i, annotation in enumerate(rows):
            write((",\n" if i else "\n") + json.dumps(annotation, separators=(",", ":")))
        write("\n]}\n")
        f.seek(0)
        f.write(HEAD.format(MAGIC, crc).encode())


def is_truth(path: Path) -> bool:
    """Whether the file begins as write_truth begins it. Raises DataError where it can't be read."""
    try:
        with open_regular(path) as f:
            return MAGIC.encode() in f.read(HEAD_SIZE)
    except OSError as e:
        raise DataError(f"{path}: can't read the annotations: {e.strerror}") from None


def read_categories(path: Path) -> list[dict]:
    """The categories of a truth file, of which the rest isn't read. Raises DataError."""
    try:
        with open_regular(path) as f:
            # after the head and the source, as write_truth has them
            line = [f.readline() for _ in range(3)][2].decode()
        return list(json.loads(f"{{{line.rstrip().rstrip(',')}}}")["categories"])
    except (OSError, ValueError, KeyError):
        raise DataError(f"{path}: damaged; remove the converted data set and run again") from None


def read_truth(path: Path) -> dict:
    """A truth file, its checksum compared. Raises DataError."""
    try:
        data = read_regular(path)
    except OSError as e:
        raise DataError(f"{path}: can't read the annotations: {e.strerror}") from None
    if data[:HEAD_SIZE] != HEAD.format(MAGIC, zlib.crc32(data[HEAD_SIZE:])).encode():
        raise DataError(f"{path}: damaged (checksum); remove the converted data set and run again")
    return dict(json.loads(data))


def truth_of(
    path: str | Path, on_bad_image: str = "stop", masks: Masks = "if_any", fields: Sequence[str] | None = None
) -> dict:
    """Any COCO instances file as truth: its own truth where it is one, else as the reader of data sets takes it.

    With the classes of the file itself; the images' files aren't looked for but where it lacks their sizes. Raises
    DataError for what that reader doesn't take; on_bad_image: skip leaves out what is wrong with single objects and
    images. masks: as Format.records; fields: names of those that are read beside them (default: all that the file has).
    """
    path = Path(path)
    if is_truth(path):
        return read_truth(path)
    data = read_json(path)
    config = Config(
        coco_classes=["background", *(category_names(data, path) if data["categories"] else [])],
        on_bad_image=on_bad_image,
    )
    config.num_classes = len(config.coco_classes)
    wanted = [f for f in all_fields(config) if fields is None or f.name in fields]
    records = Coco().parse(data, Split(path, folder_beside(path, "val")), config, masks, files=False, fields=wanted)
    if on_bad_image == "stop" and records.skipped():
        raise DataError(records.skipped()[0])
    return truth_dict(records)


def truth_of_split(config: Config, split: str, masks: Masks) -> dict:
    """The truth of a split without its conversion, and of COCO's format without its images. Raises DataError."""
    records = read_split(config, split, training=False, masks=masks, files=False)
    records.usable(config.on_bad_image)
    report_notes(records.skipped(), records.notes)
    return truth_dict(records) | {"source": str(records.split.annotations)}
