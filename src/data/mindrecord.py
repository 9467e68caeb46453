"""Data sets as MindRecord: converted once, whole or not at all, anew under another name when what shapes them changes.

python -m src.data.mindrecord [--clean] [--config_path CONFIG] [--KEY VALUE ...]

lists the converted splits in the config's mindrecord_dir with their sizes; --clean removes those that nobody reads.

A folder never changes once it has its name. Who reads it holds it until the process ends (a shared lock on its file
`lock`); who removes it holds it alone. index.json tells the size and checksum of each of its files, and ends with its
own; checked.json, when the files that were found right were last changed.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mindspore.mindrecord import FileWriter
from mindspore.mindrecord.common.exceptions import MindRecordException
from tqdm import tqdm

from src.config import Config, add_config_arguments, config_from_arguments
from src.data.fields import carried_fields, completed
from src.data.formats import find_split, read_split, source_digest
from src.data.images import (
    check_decodes,
    dark_16bit,
    image_header,
    orientation_for,
    read_bytes,
    sorted_files,
    turned_size,
)
from src.data.records import SKIP_ADVICE, DataError, ImageRecord, Records, Split, report_notes, without_collector
from src.data.segmentations import segmentation_json
from src.data.truth import read_categories, write_truth
from src.runtime.errors import UserError, run_command
from src.runtime.files import InUseError, flush, hold, whole
from src.runtime.newer import zip_equal
from src.runtime.pools import thread_pool

__all__ = [
    "OpenRecords",
    "ensure_mindrecord",
    "ground_truth",
    "read_index",
    "record_crc",
    "record_files",
    "with_categories",
]

FORMAT = 3  # raise when the records' layout changes
SCHEMA = {
    "image_id": {"type": "int64"},
    "crc": {"type": "int64"},
    "image": {"type": "bytes"},
    "annotation": {"type": "bytes"},
}
PREALLOCATED = 50 << 20  # MindRecord sets aside this much for each file
CHUNK = 64
INDEX, CHECKED, LOCK, TRUTH, DATA = "index.json", "checked.json", "lock", "truth.json", "data.mindrecord"
FINGERPRINT = b', "fingerprint": "%s"}'  # the end of index.json
NAMES = re.compile(r"[0-9A-Za-z]+-[0-9a-f]{8,12}(-[0-9]+)?")  # of converted splits, those of earlier formats too
SOURCE_CHANGED = "made from what has changed since"

held: dict[tuple[int, int], contextlib.ExitStack] = {}  # by device and inode of its lock, each split this process reads


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
    was made from; `with_masks`: objects have masks; `settings`, `opened` and `listed`: what it depends on;
    `parts`: see measure; `fingerprint` of all that. Raises DataError.
    """
    try:
        data = (folder / INDEX).read_bytes()
        body, _, _ = data.rpartition(FINGERPRINT[:-4])
        if data != with_fingerprint(body):
            raise ValueError
        return json.loads(data) | {"annotations": str((folder / TRUTH).resolve())}
    except (OSError, ValueError):
        raise DataError(
            f"{folder}: not a converted data set, or its {INDEX} is damaged; name another folder, or convert it again"
        ) from None


def with_fingerprint(body: bytes) -> bytes:
    """index.json from all of it but its end."""
    return body + FINGERPRINT % hashlib.sha256(body).hexdigest().encode()


def settings_digest(where: Split, config: Config, training: bool) -> str:
    """What the records depend on, but for the images: the annotations and their place, and the options."""
    digest = hashlib.sha256(source_digest(config, where).encode())
    options = [
        FORMAT,
        str(where.annotations.resolve()),
        str(where.images.resolve()),
        where.part,
        str(where.listing or ""),
        training,
        config.coco_classes,
        config.max_instance_count if training else 0,
        config.needs_masks if training else config.with_mask,
        config.on_bad_image,
        config.mindrecord_shards,
        *([f.name, *f.options] for f in carried_fields(config)),
    ]
    digest.update(json.dumps(options).encode())
    return digest.hexdigest()


def ensure_mindrecord(config: Config, split: str, training: bool, quiet: bool = False) -> Path:
    """The folder of the converted `split` ("train", "val", "test" or a file), converting it if there is none that fits.

    training: it is learnt from, so that objects need masks where the detector has them and may not be more than
    max_instance_count. quiet: what was left out isn't printed. The folder is whole, and nobody removes or changes it
    before this process ends. Of several processes that ask at once one converts, the others wait. Raises DataError.
    """
    where = find_split(config, split)
    settings = settings_digest(where, config, training)
    name = split if split.isalnum() else "split"
    base = config.record_dir / f"{name}-{settings[:12]}"
    folder = find_converted(base, settings)
    if folder is None:
        with locked(base.parent):
            # another process may have converted it meanwhile
            folder = find_converted(base, settings, replace=True)
            if folder is None:
                folder = free_name(base)
                convert(read_split(config, split, where, training), folder, settings, config)
    if not quiet:
        index = read_index(folder)
        report_notes(index["skipped"], index["notes"])
    return folder


def with_categories(config: Config, folder: Path) -> Config:
    """The config with what the categories of a converted split say beyond names. Raises DataError."""
    return completed(config, read_categories(folder / TRUTH))


def ground_truth(config: Config, split: str = "val") -> Path:
    """The truth file that a split is evaluated against. Raises DataError."""
    return Path(read_index(ensure_mindrecord(config, split, training=False))["annotations"])


# ---------------------------------------------------------------------------------------------------------
# which folder


def numbered(base: Path) -> list[Path]:
    """Conversions of one settings, the newest first: of images that changed since, or damaged ones, beside another."""
    found = [p for p in base.parent.glob(f"{base.name}*") if NAMES.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name[len(base.name) + 1 :] or 1), reverse=True)


def free_name(base: Path) -> Path:
    """The first name of that settings that nothing has."""
    number, folder = 1, base
    while os.path.lexists(folder):
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def find_converted(base: Path, settings: str, replace: bool = False) -> Path | None:
    """The conversion of that digest that can be used, held from now on; replace: damaged ones are told, and removed if
    nobody reads them."""
    for folder in numbered(base):
        with contextlib.ExitStack() as stack:
            try:
                key = hold_reading(folder, stack)
                fault = fault_of(folder, settings)
            except DataError:
                fault = f"{INDEX}: checksum" if (folder / LOCK).exists() else f"no file {LOCK}"
            if not fault:
                keep(key, stack)
                return folder
        if replace and fault != SOURCE_CHANGED:
            print(f"{folder}: damaged ({fault}); converting it again")
            with contextlib.suppress(UserError):
                remove(folder)
    return None


def hold_reading(folder: Path, stack: contextlib.ExitStack) -> tuple[int, int]:
    """Holds a converted split against removal as long as `stack` is open; returns the key for `held`.

    Raises DataError where there is none, or one that is being removed.
    """
    try:
        stack.enter_context(hold(folder / LOCK, str(folder), "run again", shared=True, create=False))
        stat = (folder / LOCK).stat()
    except (OSError, UserError):
        raise DataError(f"{folder}: no converted data set, or one that is being removed; run again") from None
    return stat.st_dev, stat.st_ino


def keep(key: tuple[int, int], stack: contextlib.ExitStack) -> None:
    """Holds on until this process ends to what `stack` holds."""
    if key not in held:
        held[key] = stack.pop_all()


def fault_of(folder: Path, settings: str) -> str:
    """Why a conversion can't be used for the annotations and options of that digest and the images as they are now: ""
    if it can, SOURCE_CHANGED, or what is damaged. Raises DataError for its index."""
    index = read_index(folder)
    if not (
        index["settings"] == settings
        and all(stamp(path) == [size, time] for path, size, time in index["opened"])
        and all(names_digest(Path(path)) == digest for path, digest in index["listed"])
    ):
        return SOURCE_CHANGED
    stamps = file_stamps(folder, index["parts"])
    try:
        unchanged = json.loads((folder / CHECKED).read_bytes()) == stamps
    except (OSError, ValueError):
        unchanged = False
    fault = damage(folder, index["parts"], contents=not unchanged)
    if not (fault or unchanged):
        note_checked(folder, stamps)
    return fault


# ---------------------------------------------------------------------------------------------------------
# whether it is whole


def frame(path: Path) -> list[list[int]]:
    """(offset, length) of what MindRecord's reader believes unseen: a file's header, and its pages that aren't images.

    All of a file that isn't MindRecord's data.
    """
    if path.suffix == ".db":
        return [[0, path.stat().st_size]]
    if path.name == TRUTH:
        return []
    with path.open("rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        head = json.loads(f.read(length))
    pages = [p for p in head["page"] if p["page_type"] == "RAW_DATA"]
    places = [[head["header_size"] + p["page_id"] * head["page_size"], p["page_size"]] for p in pages]
    return [[0, 8 + length], *places]


def checksum(path: Path, ranges: Iterable[Sequence[int]]) -> int:
    """CRC-32 of (offset, length) ranges of a file, one after the other. Raises OSError."""
    crc = 0
    with path.open("rb") as f:
        for offset, length in ranges:
            f.seek(offset)
            while length > 0 and (block := f.read(min(length, 1 << 20))):
                crc, length = zlib.crc32(block, crc), length - len(block)
    return crc


def measure(folder: Path) -> dict[str, dict]:
    """What index.json tells of each file of a conversion: its size, the checksum of all of it, and of its frame."""
    out = {}
    for path in sorted(folder.iterdir()):
        size, places = path.stat().st_size, frame(path)
        checksums = {"crc32": checksum(path, [(0, size)]), "frame": places, "frame_crc32": checksum(path, places)}
        out[path.name] = {"size": size} | checksums
    return out


def damage(folder: Path, parts: dict[str, dict], contents: bool) -> str:
    """What is wrong with the files of a conversion: "" where nothing is.

    Sizes, frames and the truth are compared, and where `contents`, all of each file: at a disk's speed, some 20 GB for
    COCO.
    """
    total = sum(p["size"] for p in parts.values())
    quick = not contents or total < 1 << 30
    with tqdm(total=total, unit="B", unit_scale=True, desc="checking", disable=quick) as bar:
        for name, part in parts.items():
            path = folder / name
            try:
                size = path.stat().st_size
                if size != part["size"]:
                    return f"{name} has {size} bytes, not {part['size']}"
                if checksum(path, part["frame"]) != part["frame_crc32"]:
                    return f"{name}: checksum"
                # the truth is small beside the images, and evaluation reads it much later
                if (contents or name == TRUTH) and checksum(path, [(0, size)]) != part["crc32"]:
                    return f"{name}: checksum"
            except OSError as e:
                return f"{name}: can't read: {e.strerror}"
            bar.update(part["size"])
    return ""


def file_stamps(folder: Path, names: Iterable[str]) -> dict[str, list[int]]:
    """Size and times of change of files: of the contents, and of anything, which no program can set."""
    out = {}
    for name in names:
        with contextlib.suppress(OSError):
            stat = (folder / name).stat()
            out[name] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    return out


def note_checked(folder: Path, stamps: dict[str, list[int]]) -> None:
    """Keeps for the next start that the files of those stamps are right."""
    # a folder that can't be written is checked each time
    with contextlib.suppress(UserError), whole(folder / CHECKED) as path:
        path.write_text(json.dumps(stamps))


class OpenRecords:
    """A converted split as a loader reads it: held until this process ends, looked at again before each epoch.

    index: read_index's. Raises DataError for a folder that is none, or damaged.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        with contextlib.ExitStack() as stack:
            key = hold_reading(self.folder, stack)
            self.index = read_index(self.folder)
            self.stamps = file_stamps(self.folder, self.index["parts"])
            if fault := damage(self.folder, self.index["parts"], contents=False):
                raise DataError(f"{self.folder}: damaged ({fault}); run again, it is converted again")
            keep(key, stack)

    def check(self) -> None:
        """Raises DataError unless this is still the folder that was opened, undamaged."""
        end = FINGERPRINT % self.index["fingerprint"].encode()
        try:
            with (self.folder / INDEX).open("rb") as f:
                f.seek(-len(end), os.SEEK_END)
                same = f.read() == end
        except OSError:
            same = False
        if not same:
            raise DataError(f"{self.folder}: removed or replaced while it was read; run again, training with --resume")
        stamps = file_stamps(self.folder, self.index["parts"])
        if fault := damage(self.folder, self.index["parts"], contents=stamps != self.stamps):
            raise DataError(
                f"{self.folder}: damaged while it was read ({fault}); run again, training with --resume: it is then"
                " converted again"
            )
        self.stamps = stamps

    def doubt(self) -> None:
        """Has the next start look at the contents, whatever the times of change say."""
        with contextlib.suppress(OSError):
            (self.folder / CHECKED).unlink(missing_ok=True)


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
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{folder}: another process is converting; waiting for it", flush=True)
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@without_collector()
def convert(data: Records, folder: Path, settings: str, config: Config) -> None:
    """Writes a split as MindRecord and its truth into `folder`, which isn't there, and holds it. Raises DataError."""
    records = data.usable(config.on_bad_image)
    beside = folder.with_name(f"{folder.name}.writing-{os.getpid()}")
    remove_leftovers(folder.parent)
    try:
        beside.mkdir(parents=True)
        check_space(beside, records, config)
        opened = [[os.fspath(r.path), *stamp(r.path)] for r in data.images]
        index = write_records(records, data, beside, config)
        write_truth(beside / TRUTH, data)
        index |= {
            "settings": settings,
            "source": str(data.split.annotations.resolve()),
            "category_ids": data.category_ids,
            "with_masks": data.with_masks,
            "notes": data.notes + index["notes"],
            "opened": opened,
            "listed": [[os.fspath(f), names_digest(f)] for f in data.listed],
            "parts": measure(beside),
        }
        (beside / INDEX).write_bytes(with_fingerprint(json.dumps(index).encode()[:-1]))
        (beside / CHECKED).write_text(json.dumps(file_stamps(beside, index["parts"])))
        (beside / LOCK).touch()
        for path in (*beside.iterdir(), beside):
            flush(path)
        with contextlib.ExitStack() as stack:
            key = hold_reading(beside, stack)
            beside.rename(folder)
            keep(key, stack)
        flush(folder.parent)
    except MemoryError:
        raise DataError(f"{folder}: too little memory to convert; lower num_parallel_workers") from None
    except OSError as e:
        cure = "raise the limit (ulimit -f)" if e.errno == errno.EFBIG else "free space there or set mindrecord_dir"
        raise DataError(f"{folder}: can't write the converted data set: {e.strerror or e}; {cure}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def remove_leftovers(place: Path) -> None:
    """Removes what killed conversions left in mindrecord_dir; those of living processes stay."""
    for left in place.glob("*.writing-*"):
        name, _, pid = left.name.rpartition(".writing-")
        dead = pid.isdigit() and (int(pid) == os.getpid() or not Path(f"/proc/{pid}").exists())
        if dead and NAMES.fullmatch(name):
            shutil.rmtree(left, ignore_errors=True)


def check_space(folder: Path, records: list[ImageRecord], config: Config) -> None:
    """Raises DataError if the disk can't hold the images, also after the removal of conversions that nobody reads."""
    needed = sum(r.path.stat().st_size for r in records) + PREALLOCATED * config.mindrecord_shards
    old = [p for p in converted(folder.parent) if not is_read(p)]
    old.sort(key=lambda p: p.stat().st_mtime)
    if shutil.disk_usage(folder).free + sum(map(size_of, old)) < needed:
        old = []
    while (free := shutil.disk_usage(folder).free) < needed and old:
        with contextlib.suppress(UserError):
            size = size_of(old[0])
            remove(old[0])
            print(f"{old[0]}: removed to make room, {size >> 20} MB that nobody reads")
        del old[0]
    if free < needed:
        raise DataError(
            f"{folder.parent}: {free >> 20} MB free, {needed >> 20} MB needed; free space there or set mindrecord_dir"
        )


# ---------------------------------------------------------------------------------------------------------
# what goes


def converted(place: Path) -> list[Path]:
    """The converted splits in mindrecord_dir, whole or damaged: folders of their names with nothing but their files."""
    ours = {INDEX, CHECKED, LOCK, TRUTH}
    folders = [p for p in place.glob("*-*") if NAMES.fullmatch(p.name) and p.is_dir() and not p.is_symlink()]
    files = {p: {f.name for f in p.iterdir() if not f.name.startswith(DATA)} for p in folders}
    return sorted(p for p, names in files.items() if names <= ours and any(p.iterdir()))


def is_read(folder: Path) -> bool:
    """Whether someone reads a converted split, or it can't be removed."""
    try:
        with hold(folder / LOCK, str(folder), "it stays"):
            return False
    except UserError:
        return True


def size_of(folder: Path) -> int:
    """Bytes on the disk of a folder's files."""
    return sum(512 * p.stat().st_blocks for p in folder.iterdir())


def remove(folder: Path) -> None:
    """Removes a converted split. Raises InUseError where someone reads it, and UserError."""
    try:
        with hold(folder / LOCK, str(folder), "it stays"):
            # without it, what is left of an interrupted removal is no data set
            (folder / INDEX).unlink(missing_ok=True)
            shutil.rmtree(folder)
    except OSError as e:
        raise UserError(f"{folder}: can't remove: {e.strerror}") from None


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
    image = read_bytes(record.path)
    set_orientation(record, image, config)
    objects = [i for i in record.instances if not i.crowd]
    content = {
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
    content |= {f.name: [i.fields.get(f.name) for i in objects] for f in carried_fields(config)}
    annotation = json.dumps(content, separators=(",", ":")).encode("utf-8", "surrogateescape")
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
    with thread_pool(max(2, config.num_parallel_workers)) as pool:
        for start in range(0, len(records), CHUNK):
            yield from pool.map(lambda r: read_checked(r, config), records[start : start + CHUNK])


@contextlib.contextmanager
def mindrecord_faults() -> Iterator[None]:
    """Raises MindRecord's errors as the OSErrors that they stand for."""
    try:
        yield
    except (RuntimeError, MindRecordException) as e:
        raise OSError(errno.EIO, (str(e).strip() or type(e).__name__).splitlines()[0]) from None


def write_records(records: list[ImageRecord], data: Records, folder: Path, config: Config) -> dict:
    """Writes the usable records of a split into `folder`; returns the index of the rows in reading order."""
    with mindrecord_faults():
        writer = FileWriter(str(folder / DATA), shard_num=config.mindrecord_shards)
        writer.add_schema(SCHEMA, "detection")
    skipped = data.skipped()
    objects, crowds, sizes, classes, pending = {}, {}, {}, {}, []
    bar = tqdm(zip_equal(records, rows_of(records, config)), total=len(records), unit="img", desc="converting")
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
            with mindrecord_faults():
                writer.write_raw_data(pending)
            pending = []
    if pending:
        with mindrecord_faults():
            writer.write_raw_data(pending)
    if not objects:
        among = f"no usable image among {len(data.images)}" if data.images else "it lists no image"
        raise DataError("; ".join([f"{data.split.annotations}: {among}", *skipped[:1]]))
    with mindrecord_faults():
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


# ---------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description="Converted data sets: their sizes; removal of those not in use.")
    add_config_arguments(parser, "configs/mask_rcnn_r50_fpn.yaml")
    parser.add_argument("--clean", action="store_true", help="remove those that nobody reads")
    config, known = config_from_arguments(parser)
    place = config.record_dir
    if known.clean:
        remove_leftovers(place)
    for folder in converted(place):
        told = f"{folder}: {size_of(folder) / 1e6:,.1f} MB"
        if known.clean:
            try:
                remove(folder)
                told += ", removed"
            except InUseError:
                told += ", in use: stays"
        print(told)
    return 0


if __name__ == "__main__":
    run_command(main)
