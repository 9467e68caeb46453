"""Data sets as MindRecord: converted once, whole or not at all, re-made when what shapes them changes."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mindspore.mindrecord import FileWriter
from mindspore.mindrecord.common.exceptions import MindRecordException
from tqdm import tqdm

from src.config import Config
from src.data.formats import find_split, read_split, source_digest
from src.data.images import check_decodes, dark_16bit, image_header, orientation_for, sorted_files, turned_size
from src.data.records import SKIP_ADVICE, DataError, ImageRecord, Records, Split, report_notes, without_collector
from src.data.segmentations import segmentation_json
from src.data.truth import is_truth, write_truth

__all__ = ["ensure_mindrecord", "ground_truth", "read_index", "record_crc", "record_files"]

FORMAT = 3  # raise when the records' layout changes
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
    """index.json of a converted split.

    `image_ids`, `objects`, `crowds`, `sizes` (height, width) and `classes` (labels) a row; `skipped`: why images were
    left out; `notes`; `category_ids` of labels; `annotations`: the path of its truth, `source`: of the annotations it
    was made from; `with_masks`: objects have masks; `settings`, `opened` and `listed`: what it depends on,
    `fingerprint` of all that.
    Raises DataError.
    """
    try:
        return dict(json.loads((folder / "index.json").read_text()))
    except (OSError, TypeError, ValueError):
        raise DataError(f"{folder}: not a converted data set; remove it and run again") from None


def settings_digest(where: Split, config: Config, training: bool) -> str:
    """What the records depend on, but for the images: the annotations and the options."""
    digest = hashlib.sha256(source_digest(config, where).encode())
    options = [
        FORMAT,
        training,
        config.coco_classes,
        config.max_instance_count if training else 0,
        config.needs_masks if training else config.with_mask,
        config.on_bad_image,
        config.mindrecord_shards,
    ]
    digest.update(json.dumps(options).encode())
    return digest.hexdigest()


def ensure_mindrecord(config: Config, split: str, training: bool, quiet: bool = False) -> Path:
    """The folder of the converted `split` ("train", "val", "test" or a file), converting it if there is none that fits.

    training: it is learnt from, so that objects need masks where the detector has them and may not be more than
    max_instance_count. quiet: what was left out isn't printed. The conversion is written beside and renamed, so a
    folder of that name is whole. Of several processes that ask at once one converts, the others wait. Raises DataError.
    """
    where = find_split(config, split)
    settings = settings_digest(where, config, training)
    place = [str(where.annotations.resolve()), where.part, str(where.listing or ""), training]
    name = split if split.isalnum() else "split"
    folder = config.record_dir / f"{name}-{hashlib.sha256(json.dumps(place).encode()).hexdigest()[:8]}"
    if not is_current(folder, settings):
        with locked(folder.parent):
            # another process may have converted it meanwhile
            if not is_current(folder, settings):
                convert(read_split(config, split, where, training), folder, settings, config)
    if not quiet:
        index = read_index(folder)
        report_notes(index["skipped"], index["notes"])
    return folder


def ground_truth(config: Config, split: str = "val") -> Path:
    """The truth file that a split is evaluated against. Raises DataError."""
    return Path(read_index(ensure_mindrecord(config, split, training=False))["annotations"])


def is_current(folder: Path, settings: str) -> bool:
    """Whether `folder` holds a whole conversion of the annotations and options of that digest, and of the images as
    they are now."""
    with contextlib.suppress(DataError, OSError, KeyError, ValueError):
        index = read_index(folder)
        return (
            index["settings"] == settings
            and len(record_files(folder)) == index["files"]
            and is_truth(Path(index["annotations"]))
            and all(stamp(path) == [size, time] for path, size, time in index["opened"])
            and all(names_digest(Path(path)) == digest for path, digest in index["listed"])
        )
    return False


def stamp(path: str | Path) -> list[int]:
    """Size and time of change of what was opened at `path`, links followed; zeros where nothing can be."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        # a name that no file can have is a fault of its record
        return [0, 0]
    return [stat.st_size, stat.st_mtime_ns]


def names_digest(folder: Path) -> str:
    """Changes with the paths of the files below a folder."""
    digest = hashlib.sha256()
    for files in sorted_files(folder):
        digest.update("\0".join(map(os.fspath, files)).encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


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


@without_collector()
def convert(data: Records, folder: Path, settings: str, config: Config) -> None:
    """Writes a split as MindRecord and its truth into `folder`, replacing what was there. Raises DataError."""
    records = data.usable(config.on_bad_image)
    beside = folder.with_name(f"{folder.name}.writing-{os.getpid()}")
    remove_leftovers(folder)
    try:
        beside.mkdir(parents=True)
        check_space(beside, records, config)
        opened = [[os.fspath(r.path), *stamp(r.path)] for r in data.images]
        index = write_records(records, data, beside, config)
        write_truth(beside / "truth.json", data)
        index |= {
            "settings": settings,
            "annotations": str((folder / "truth.json").resolve()),
            "source": str(data.split.annotations.resolve()),
            "category_ids": data.category_ids,
            "with_masks": data.with_masks,
            "notes": data.notes + index["notes"],
            "files": config.mindrecord_shards,
            "opened": opened,
            "listed": [[os.fspath(f), names_digest(f)] for f in data.listed],
        }
        depends = json.dumps([index["settings"], index["opened"], index["listed"]])
        index["fingerprint"] = hashlib.sha256(depends.encode()).hexdigest()
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


def read_checked(record: ImageRecord, config: Config) -> dict | None:
    """A record's row, or None after adding its fault. Raises DataError where on_bad_image is stop."""
    try:
        return make_row(record, config)
    except DataError as e:
        if config.on_bad_image == "stop":
            raise DataError(f"{e} {SKIP_ADVICE}") from None
        record.faults.append(str(e))
        return None


def make_row(record: ImageRecord, config: Config) -> dict:
    """The image's bytes as they are, checked to decode whole and to have the annotated size. Raises DataError."""
    try:
        image = record.path.read_bytes()
    except OSError as e:
        raise DataError(f"{record.path}: can't read: {e.strerror}") from None
    set_orientation(record, image, config)
    objects = [i for i in record.instances if not i.crowd]
    annotation = {
        "height": record.height,
        "width": record.width,
        "orientation": record.orientation,
        "name": record.path.name,
        "boxes": [[round(float(v), 4) for v in i.box] for i in record.instances],
        "labels": [i.label for i in record.instances],
        "crowd": [i.crowd for i in record.instances],
        # a crowd's mask is never trained on, its box is enough
        "segmentations": [segmentation_json(i.segmentation) for i in objects] if config.needs_masks else [],
    }
    annotation = json.dumps(annotation, separators=(",", ":")).encode("utf-8", "surrogateescape")
    crc = record_crc(image, annotation)
    return {"image_id": record.image_id, "crc": crc, "image": image, "annotation": annotation}


def set_orientation(record: ImageRecord, image: bytes, config: Config) -> None:
    """Decides how the stored pixels become the annotations' frame, after a look whether they decode to their end.

    Raises DataError where they don't, or where neither frame has the annotated size.
    """
    name = str(record.path)
    header = image_header(image, name)
    check_decodes(image, name, header)
    stored, record.exif, record.bits = header.stored, header.orientation, dark_16bit(image, name, header)
    annotated = (record.height, record.width)
    if record.orientation is None:
        record.orientation = orientation_for(config.exif, stored, record.exif, annotated)
    if turned_size(stored, record.orientation) != annotated:
        upright = "" if record.exif < 5 else f", upright {stored[0]} x {stored[1]}"
        raise DataError(
            f"{name}: the image is {stored[1]} x {stored[0]}{upright}, annotated as {record.width} x"
            f" {record.height}; mend the annotation or the image"
        )


def rows_of(records: list[ImageRecord], config: Config) -> Iterator[dict | None]:
    """Each record's row, or None for a faulty one, in order, read and checked by two threads ahead of the writer."""
    with ThreadPoolExecutor(max(2, config.num_parallel_workers)) as pool:
        for start in range(0, len(records), CHUNK):
            yield from pool.map(lambda r: read_checked(r, config), records[start : start + CHUNK])


def write_records(records: list[ImageRecord], data: Records, folder: Path, config: Config) -> dict:
    """Writes the usable records of a split into `folder`; returns the index of the rows in reading order."""
    writer = FileWriter(str(folder / "data.mindrecord"), shard_num=config.mindrecord_shards)
    writer.add_schema(SCHEMA, "detection")
    skipped = data.skipped()
    objects, crowds, sizes, classes, pending = {}, {}, {}, {}, []
    bar = tqdm(zip(records, rows_of(records, config), strict=True), total=len(records), unit="img", desc="converting")
    for record, row in bar:
        if row is None:
            skipped.append(record.faults[0])
            continue
        crowd = sum(i.crowd for i in record.instances)
        objects[record.image_id], crowds[record.image_id] = len(record.instances) - crowd, crowd
        sizes[record.image_id] = [record.height, record.width]
        classes[record.image_id] = sorted({i.label for i in record.instances if not i.crowd})
        pending.append(row)
        if len(pending) == CHUNK:
            writer.write_raw_data(pending)
            pending = []
    if pending:
        writer.write_raw_data(pending)
    if not objects:
        among = f"no usable image among {len(data.images)}" if data.images else "it lists no image"
        raise DataError("; ".join([f"{data.split.annotations}: {among}", *skipped[:1]]))
    writer.commit()
    ids = reading_order(folder)
    return {
        "image_ids": ids,
        "objects": [objects[i] for i in ids],
        "crowds": [crowds[i] for i in ids],
        "sizes": [sizes[i] for i in ids],
        "classes": [classes[i] for i in ids],
        "skipped": skipped,
        "notes": picture_notes(records, config),
    }


def picture_notes(records: list[ImageRecord], config: Config) -> list[str]:
    """What became of pictures that their EXIF says to turn, and which are dark because their values are few."""
    turned = [r for r in records if r.exif != 1 and r.orientation == r.exif]
    stored = [r for r in records if r.exif != 1 and r.orientation != r.exif]
    notes = []
    if turned:
        notes.append(f"{len(turned)} pictures are turned upright, as their EXIF says and their annotations are")
    if stored:
        notes.append(
            f"{len(stored)} pictures that their EXIF says to turn are used as stored (exif: {config.exif}), such as"
            f" {stored[0].path.name}"
        )
    dark = [r for r in records if r.bits]
    if dark:
        notes.append(
            f"{len(dark)} pictures hold {dark[0].bits} bits in 16, such as {dark[0].path.name}: nearly black as 8 bits;"
            " scale their values up first"
        )
    return notes


def reading_order(folder: Path) -> list[int]:
    """Image ids in the order of the rows' numbers: with several files, not the order of writing."""
    import mindspore.dataset as ds

    rows = ds.MindDataset(record_files(folder), columns_list=["image_id"], shuffle=False, num_parallel_workers=1)
    return [int(r[0]) for r in rows.create_tuple_iterator(num_epochs=1, output_numpy=True)]
