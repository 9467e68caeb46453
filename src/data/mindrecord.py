"""Data sets as MindRecord: converted once, whole or not at all, re-made when what shapes them changes."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from mindspore.mindrecord import FileWriter
from mindspore.mindrecord.common.exceptions import MindRecordException
from tqdm import tqdm

from src.config import Config
from src.data.records import DataError, ImageRecord, Split
from src.data.sources import coco_file, find_split, load_split, source_digest

__all__ = ["ensure_mindrecord", "ground_truth", "read_index", "record_crc", "record_files"]

FORMAT = 1  # raise when the records' layout changes
SCHEMA = {
    "image_id": {"type": "int64"},
    "crc": {"type": "int64"},
    "image": {"type": "bytes"},
    "annotation": {"type": "bytes"},
}
PREALLOCATED = 50 << 20  # MindRecord sets aside this much for each file
CHUNK = 64


def record_files(folder: Path) -> list[str]:
    """The MindRecord files of a converted split, in order."""
    return [str(p) for p in sorted(folder.glob("*.mindrecord*")) if p.suffix != ".db"]


def record_crc(image: bytes, annotation: bytes) -> int:
    """Checksum of a record: MindRecord has none of its own."""
    return zlib.crc32(annotation, zlib.crc32(image))


def read_index(folder: Path) -> dict:
    """index.json of a converted split: `image_ids`, `objects` and `crowds` a row, `skipped`, `category_ids`,
    `annotations` (the path of COCO's JSON) and `fingerprint`. Raises DataError.
    """
    try:
        return dict(json.loads((folder / "index.json").read_text()))
    except (OSError, TypeError, ValueError):
        raise DataError(f"{folder}: not a converted data set; remove it and run again") from None


def fingerprint(split: Split, config: Config) -> str:
    """What the records depend on: the annotations, the images' names, sizes and times, and the options."""
    digest = hashlib.sha256(source_digest(split, config).encode())
    options = [
        FORMAT,
        config.coco_classes,
        config.max_instance_count,
        not config.needs_masks,
        config.on_bad_image,
        config.mindrecord_shards,
    ]
    digest.update(json.dumps(options).encode())
    return digest.hexdigest()


def ensure_mindrecord(config: Config, split: str, training: bool) -> Path:
    """The folder of the converted `split` ("train" or "val"), converting it if there is none that fits.

    `training` picks train_dataset or val_dataset as the source. The conversion is written beside and renamed, so a
    folder of that name is whole. Of several processes that ask at once one converts, the others wait. Raises DataError.
    """
    if not training:
        # evaluation makes no batches of objects, so their number is no fault there
        config = dataclasses.replace(config, max_instance_count=1 << 31)
    where = find_split(config, split, training)
    print_of_source = fingerprint(where, config)
    folder = config.record_dir / f"{split}-{hashlib.sha256(str(where.annotations.resolve()).encode()).hexdigest()[:8]}"
    if not is_current(folder, print_of_source):
        with locked(folder.parent):
            # another process may have converted it meanwhile
            if not is_current(folder, print_of_source):
                convert(where, folder, print_of_source, config)
    report_skipped(read_index(folder)["skipped"])
    return folder


def ground_truth(config: Config) -> Path:
    """The COCO instances file that the validation split is evaluated against. Raises DataError."""
    if config.dataset == "coco":
        return find_split(config, "val", training=False).annotations
    return Path(read_index(ensure_mindrecord(config, "val", training=False))["annotations"])


def is_current(folder: Path, print_of_source: str) -> bool:
    """Whether `folder` holds a whole conversion of the source and options with that fingerprint."""
    with contextlib.suppress(DataError):
        index = read_index(folder)
        return index.get("fingerprint") == print_of_source and len(record_files(folder)) == index.get("files")
    return False


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes `folder` and keeps other processes out of this block; a process that dies frees the lock.

    Raises DataError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as e:
        raise DataError(f"{folder}: can't write there: {e.strerror}; set mindrecord_dir to a folder that can") from None
    try:
        # some network file systems have no locks: there processes that start at once may both convert
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def convert(where: Split, folder: Path, print_of_source: str, config: Config) -> None:
    """Writes `where` as MindRecord into `folder`, replacing what was there. Raises DataError."""
    data = load_split(where, config)
    beside = folder.with_name(f"{folder.name}.writing-{os.getpid()}")
    remove_leftovers(folder)
    try:
        beside.mkdir(parents=True)
        check_space(beside, data.records, config)
        index = write_records(data.records, data.skipped, beside, config)
        truth = where.annotations
        if config.dataset != "coco":
            truth = folder / "annotations.json"
            kept = set(index["image_ids"])
            data.records = [r for r in data.records if r.image_id in kept]
            (beside / truth.name).write_text(json.dumps(coco_file(data, config)))
        index |= {
            "fingerprint": print_of_source,
            "annotations": str(truth.resolve()),
            "category_ids": data.category_ids,
            "files": config.mindrecord_shards,
        }
        (beside / "index.json").write_text(json.dumps(index))
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
    except (OSError, RuntimeError, MindRecordException) as e:
        reason = getattr(e, "strerror", None) or (str(e).strip() or type(e).__name__).splitlines()[0]
        raise DataError(
            f"{folder}: can't write the converted data set: {reason}; free space there or set mindrecord_dir"
        ) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed conversions into `folder` left beside it; those of living processes stay."""
    for left in folder.parent.glob(f"{folder.name}.writing-*"):
        pid = left.name.rpartition("-")[2]
        if pid.isdigit() and (int(pid) == os.getpid() or not Path(f"/proc/{pid}").exists()):
            shutil.rmtree(left, ignore_errors=True)


def check_space(folder: Path, records: list[ImageRecord], config: Config) -> None:
    """Raises DataError if the disk can't hold the images."""
    needed = sum(r.path.stat().st_size for r in records) + PREALLOCATED * config.mindrecord_shards
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder.parent}: {free >> 20} MB free, {needed >> 20} MB needed; free space there or set mindrecord_dir"
        )


def report_skipped(skipped: list[str]) -> None:
    """Names what was left out."""
    if skipped:
        print(f"{len(skipped)} images left out (on_bad_image: skip):")
        for reason in skipped:
            print(f"  {reason}")


def read_checked(record: ImageRecord, config: Config) -> dict | str:
    """A record's row, or why it can't be used. Raises DataError where on_bad_image is stop."""
    try:
        return make_row(record)
    except DataError as e:
        if config.on_bad_image == "stop":
            raise DataError(f"{e} (or leave such images out: on_bad_image: skip)") from None
        return str(e)


def make_row(record: ImageRecord) -> dict:
    """The image's bytes as they are, checked to decode whole and to have the annotated size. Raises DataError."""
    try:
        image = record.path.read_bytes()
    except OSError as e:
        raise DataError(f"{record.path}: can't read: {e.strerror}") from None
    check_whole(image, record)
    annotation = {
        "height": record.height,
        "width": record.width,
        "name": record.path.name,
        "boxes": [[round(float(v), 4) for v in b] for b in record.boxes],
        "labels": record.labels.tolist(),
        "crowd": record.crowd.tolist(),
        "segmentations": record.segmentations,
    }
    annotation = json.dumps(annotation, separators=(",", ":")).encode()
    crc = record_crc(image, annotation)
    return {"image_id": record.image_id, "crc": crc, "image": image, "annotation": annotation}


def check_whole(image: bytes, record: ImageRecord) -> None:
    """Raises DataError for an image that doesn't decode, ends early, or has another size than annotated.

    An eighth-size decode costs a fraction of a whole one. It reads the file to its end: OpenCV refuses one that is cut
    short, by a byte even.
    """
    small = None
    if image:
        flags = cv2.IMREAD_REDUCED_COLOR_8 | cv2.IMREAD_IGNORE_ORIENTATION
        small = cv2.imdecode(np.frombuffer(image, np.uint8), flags)
    if small is None:
        raise DataError(f"{record.path}: not an image, or damaged or cut short; fetch it again")
    expected = (-(-record.height // 8), -(-record.width // 8))
    if any(abs(a - b) > 1 for a, b in zip(small.shape[:2], expected, strict=True)):
        raise DataError(
            f"{record.path}: the image isn't {record.width} x {record.height} as annotated (about"
            f" {small.shape[1] * 8} x {small.shape[0] * 8}); mend the annotation or the image"
        )


def rows_of(records: list[ImageRecord], config: Config) -> Iterator[dict | str]:
    """Each record's row or fault, in order, read and checked by two threads ahead of the writer."""
    with ThreadPoolExecutor(max(2, config.num_parallel_workers)) as pool:
        for start in range(0, len(records), CHUNK):
            yield from pool.map(lambda r: read_checked(r, config), records[start : start + CHUNK])


def write_records(records: list[ImageRecord], skipped: list[str], folder: Path, config: Config) -> dict:
    """Writes all records into `folder`; returns the index of the rows in reading order."""
    writer = FileWriter(str(folder / "data.mindrecord"), shard_num=config.mindrecord_shards)
    writer.add_schema(SCHEMA, "detection")
    skipped = list(skipped)
    objects, crowds, pending = {}, {}, []
    bar = tqdm(zip(records, rows_of(records, config), strict=True), total=len(records), unit="img", desc="converting")
    for record, row in bar:
        if isinstance(row, str):
            skipped.append(row)
            continue
        objects[record.image_id] = int((~record.crowd).sum())
        crowds[record.image_id] = int(record.crowd.sum())
        pending.append(row)
        if len(pending) == CHUNK:
            writer.write_raw_data(pending)
            pending = []
    if pending:
        writer.write_raw_data(pending)
    if not objects:
        raise DataError(
            f"no usable image among {len(records) + len(skipped)}; {skipped[0] if skipped else 'none given'}"
        )
    writer.commit()
    ids = reading_order(folder)
    return {
        "image_ids": ids,
        "objects": [objects[i] for i in ids],
        "crowds": [crowds[i] for i in ids],
        "skipped": skipped,
    }


def reading_order(folder: Path) -> list[int]:
    """Image ids in the order of the rows' numbers: with several files, not the order of writing."""
    import mindspore.dataset as ds

    rows = ds.MindDataset(record_files(folder), columns_list=["image_id"], shuffle=False, num_parallel_workers=1)
    return [int(r[0]) for r in rows.create_tuple_iterator(num_epochs=1, output_numpy=True)]
