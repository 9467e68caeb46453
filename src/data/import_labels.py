"""Labels from one format to another: python -m src.data.import_labels --labels DIR|FILE --out DIR [--to coco|voc|yolo]

DIR|FILE: a COCO root or instances file, labelme's folder, a VOC folder, YOLO's data.yaml or its folder, or a TXT file
of boxes with --images. Splits that it tells apart stay; else the images are shared among training and validation by
seed. With --annotations, FILE is a results file of detections, which become labels to correct by hand.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from src.config import Config
from src.data.export_labels import WRITERS, Labelled, write_labels
from src.data.fields import all_fields
from src.data.formats import FORMATS, SPLITS, find_split, formats_at
from src.data.formats.base import NoSplitError, load_json
from src.data.formats.coco import Coco, category_names, read_json
from src.data.formats.labelme import name_below
from src.data.images import file_header, orientation_for
from src.data.records import DataError, ImageRecord, Records, Split, number
from src.runtime.errors import one_line, run_command
from src.runtime.files import beside, why_unread

__all__ = ["import_labels"]


@dataclass
class Read:
    """What was read: records of each split, or of all as "", faulty ones among them; the categories; lines to tell;
    and the folders that hold the images, the likeliest first.
    """

    splits: dict[str, list[ImageRecord]]
    categories: list[dict]
    notes: list[str]
    roots: list[Path] = field(default_factory=list)


def import_labels(
    labels: Path,
    out: Path,
    images: Path | None = None,
    val: float = 0.2,
    seed: int = 0,
    skip: bool = False,
    *,
    source: str = "",
    to: str = "coco",
    boxes: bool = False,
    options: dict | None = None,
    annotations: Path | None = None,
    score_thr: float = 0.5,
) -> list[str]:
    """Writes the data set `out`, beside and renamed; returns what was left out, if `skip` allows that.

    source, to: formats, by default told by what lies there, and COCO's; images: the folder of the images, where they
    lie elsewhere than their labels say; boxes: masks are left out; options: more keys of the config, by which the
    labels are read. annotations: the truth whose images `labels`, detections in COCO's results format with a score of
    at least score_thr, are of; then nothing is drawn. Raises DataError for labels that can't be used, naming file and
    object, for images that lie outside of the folders that were named, and if `out` is there.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: there already; name another folder, or remove it if you don't need it")
    written = beside(out)
    try:
        shutil.rmtree(written, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as embedded:
            if annotations:
                read = read_results(labels, annotations, images, score_thr)
            else:
                read = read_labels(labels, images, source, options or {}, skip, Path(embedded))
            skipped = check_images(read, labels, skip)
            if not any(read.splits.values()):
                raise DataError(f"{labels}: no usable image; {skipped[0] if skipped else 'the labels name none'}")
            if "" in read.splits and val and not annotations:
                read.splits = drawn(read.splits[""], val, seed)
            data = Labelled({s: records for s, records in read.splits.items() if records}, read.categories, boxes)
            lines = read.notes + write_labels(data, to, written)
        if out.exists():
            out.rmdir()
        written.rename(out)
    except OSError as e:
        raise DataError(f"{out}: can't write: {e.strerror or e}; free space, or name another folder") from None
    finally:
        shutil.rmtree(written, ignore_errors=True)
    for split, records in data.splits.items():
        counts = Counter(i.label for r in records for i in r.instances)
        told = ", ".join(f"{c['name']} {counts[label]}" for label, c in enumerate(data.categories, 1))
        print(f"{split or 'all'}: {len(records)} images, {sum(counts.values())} objects: {told}")
    for line in dict.fromkeys(lines):
        print(f"note: {line}")
    return skipped


# ---------------------------------------------------------------------------------------------------------
# what is there


def told_format(labels: Path) -> str:
    """The name of the format that lies at `labels`. Raises DataError where none does, or several do."""
    if not labels.is_dir() and (why := why_unread(labels)):
        raise DataError(f"{labels}: {why}")
    found = formats_at(labels)
    if len(found) > 1:
        raise DataError(f"{labels}: holds labels in the formats {' and '.join(found)}; say which by --from")
    if not found and labels.is_file():
        raise DataError(f"{labels}: expected a folder, COCO's .json, YOLO's data.yaml, or a .txt of boxes")
    if not found:
        try:
            find_split(reading_config(labels, None, "coco", {}), "train")
        except DataError as e:
            raise DataError(f"{labels}: no JSON file of labelme's in it, nor labels of another format ({e})") from None
    return found[0]


def reading_config(labels: Path, images: Path | None, source: str, options: dict) -> Config:
    """The config by which labels are read: none of them left out, nothing drawn."""
    config = Config(dataset=source, coco_classes=[], val_share=0.0, **options)
    config.image_dir = str(images or "")
    config.train_dataset = config.val_dataset = config.anno_path = str(labels)
    return config


def source_splits(config: Config) -> dict[str, Split]:
    """The splits that the source tells apart, or all of it as "". Raises DataError."""
    found: dict[str, Split] = {}
    fault: NoSplitError | None = None
    for split in SPLITS:
        try:
            found[split] = find_split(config, split)
        except NoSplitError as e:
            fault = fault or e
    if fault and not found:
        raise fault
    listed = {split: where for split, where in found.items() if where.listing}
    if listed and FORMATS[config.dataset].listed_alone:
        return listed
    if len({(w.annotations, w.images, w.listing) for w in found.values()}) > 1:
        return found
    return {"": next(iter(found.values()))}


# ---------------------------------------------------------------------------------------------------------
# reading


def read_labels(labels: Path, images: Path | None, source: str, options: dict, skip: bool, embedded: Path) -> Read:
    """The records of all splits. Raises DataError."""
    source = source or told_format(labels)
    if FORMATS[source].needs_images and not images:
        raise DataError(f"{labels}: a file of boxes needs --images, the folder that its paths start from")
    config = reading_config(labels, images, source, options)
    config.on_bad_image = "skip" if skip else "stop"
    splits, form = source_splits(config), FORMATS[source]
    names = [n for where in splits.values() for n in form.classes(where)]
    config.coco_classes = ["background", *dict.fromkeys(names)]
    config.num_classes = len(config.coco_classes)
    out = Read({}, [], [], [images] if images else [])
    for split, where in splits.items():
        take(form.labels(where, config, embedded), split, out)
    if form.images_beside:
        out.roots += [where.images for where in splits.values() if is_beside(where.images, labels)]
    out.roots += [home_of(labels), embedded]
    return out


def is_beside(images: Path, labels: Path) -> bool:
    """Whether a folder of images, found beside labels by the rules of the layout, is no link that leads elsewhere."""
    place = images.resolve()
    return place == images.parent.resolve() / images.name or place.is_relative_to(home_of(labels).resolve())


def take(records: Records, split: str, out: Read) -> None:
    """Adds a split. Category ids are those of the first one's file. Raises DataError."""
    records.check_repeats()
    before = {c["name"]: c for c in out.categories}
    for category in records.categories:
        # values of objects go by their places in the category's lists
        first = before.get(category["name"], {})
        other = [
            k for k, v in category.items() if isinstance(v, list) and isinstance(first.get(k), list) and first[k] != v
        ]
        if other:
            raise DataError(
                f"{records.split.annotations}: category {category['name']!r} lists other {other[0]} than the split"
                " before; convert the splits one by one"
            )
    out.splits[split] = records.images
    out.categories = out.categories or records.categories
    out.notes += records.notes


def home_of(labels: Path) -> Path:
    """The folder that was named by naming the labels."""
    if labels.is_dir():
        return labels
    return labels.parent.parent if labels.parent.name.lower() == "annotations" else labels.parent


def read_results(results: Path, annotations: Path, images: Path | None, score_thr: float) -> Read:
    """The records of detections in COCO's results format, of the images of an annotation file. Raises DataError."""
    data, rows = read_json(annotations), load_json(results)
    if not isinstance(rows, list):
        raise DataError(f"{results}: not a list of detections, as COCO's results files are")
    kept = []
    for i, row in enumerate(rows, 1):
        score = number(row.get("score")) if isinstance(row, dict) else None
        if score is None or not {"image_id", "category_id"} <= row.keys():
            raise DataError(f"{results}: entry {i} lacks image_id, category_id or a score that is a number")
        if score >= score_thr:
            bbox = row.get("bbox")
            area = bbox[2:] if isinstance(bbox, list) else []
            area = [number(v) or 0 for v in area]
            kept.append({**row, "id": i, "iscrowd": 0, "area": area[0] * area[1] if len(area) == 2 else None})
    data["annotations"] = kept
    where = Coco().locate(Config(val_dataset=str(annotations), image_dir=str(images or "")), "val")
    config = Config(coco_classes=["background", *category_names(data, annotations)])
    config.num_classes = len(config.coco_classes)
    # what the reader finds amiss is in the results
    records = Coco().parse(data, Split(results, where.images), config, "unneeded", fields=all_fields(config))
    out = Read({}, [], [f"{len(kept)} of {len(rows)} detections have a score of {score_thr:g} or more"])
    take(records, "", out)
    own = images or is_beside(where.images, annotations)
    out.roots = [*([where.images] if own else []), home_of(annotations)]
    return out


# ---------------------------------------------------------------------------------------------------------
# images, and who validates


def check_images(read: Read, labels: Path, skip: bool) -> list[str]:
    """Leaves usable images in `read`, in their frames and by names below their folder; returns faults of the others.

    Raises DataError at the first one without `skip`.
    """
    skipped, unturned = [], 0
    for split, records in read.splits.items():
        kept = []
        for record in records:
            try:
                exif = check_image(record, labels, read.roots)
            except DataError as e:
                if not skip:
                    raise DataError(f"{e} (or leave such images out: --on_bad_image skip)") from None
                skipped.append(str(e))
                continue
            unturned += exif != 1 and record.orientation == 1
            kept.append(record)
        read.splits[split] = kept
    if unturned:
        read.notes.append(
            f"{unturned} pictures have an EXIF orientation that their labels don't follow; they are copied as they are,"
            " and tools that turn pictures would see the labels elsewhere"
        )
    return skipped


def check_image(record: ImageRecord, labels: Path, roots: list[Path]) -> int:
    """Sees that an image lies in one of the folders, and decides its orientation; returns what its EXIF says.

    Raises DataError.
    """
    name = record.file_name
    strays = os.path.isabs(name) or ".." in Path(name).parts
    there = "\0" not in name and record.path.is_file()
    inside = there and any(record.path.resolve().is_relative_to(r.resolve()) for r in roots)
    if (there or strays) and not inside:
        where = record.path.resolve() if there else name
        raise DataError(
            f"{labels}: file_name {name!r} leads to {where}, out of {roots[0]}; if that is meant, name its folder:"
            " --images"
        )
    if record.faults:
        raise DataError(record.faults[0])
    _, height, width, exif = file_header(record.path)
    annotated = record.height, record.width
    if record.orientation is None:
        record.orientation = orientation_for("auto", (height, width), exif, annotated)
    frame = (width, height) if record.orientation >= 5 else (height, width)
    if frame != annotated:
        upright = "" if exif < 5 else f", upright {height} x {width}"
        raise DataError(
            f"{record.path}: the image is {width} x {height}{upright}, annotated as {record.width} x {record.height};"
            " mend the annotation or the image"
        )
    if strays or "\\" in name or not record.path.as_posix().endswith("/" + name):
        record.file_name = name_below(record.path, tuple(roots))
    return exif


def drawn(records: list[ImageRecord], val: float, seed: int) -> dict[str, list[ImageRecord]]:
    """The records shared among train and val; both have one where there are two."""
    order = np.random.default_rng(seed).permutation(len(records))
    count = min(max(round(len(records) * val), 1 if len(records) > 1 else 0), len(records) - 1)
    parts = {"train": np.sort(order[count:]), "val": np.sort(order[:count])}
    return {split: [records[i] for i in rows] for split, rows in parts.items()}


def add_key(parser: argparse.ArgumentParser, key: str) -> None:
    """Adds a key of the config as an option of the same name, default and meaning; of text or a number."""
    schema = next(f for f in fields(Config) if f.name == key)
    kind = type(schema.default)
    doc = schema.metadata["doc"].replace("%", "%%")
    choices = schema.metadata["choices"] or None
    parser.add_argument(f"--{key}", type=kind, choices=choices, default=schema.default, help=doc)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, required=True, help="folder or file of labels, or of detections")
    parser.add_argument("--from", dest="source", choices=sorted(FORMATS), default="", help="its format (default: told)")
    parser.add_argument("--images", type=Path, help="folder of the images, where it isn't beside the labels")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--to", choices=sorted(WRITERS), default="coco", help="format to write (default: coco)")
    parser.add_argument("--boxes", action="store_true", help="leave masks out")
    parser.add_argument("--val", type=float, default=0.2, help="share of the images that validate (default: 0.2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--on_bad_image", choices=("stop", "skip"), default="stop", help="labels that can't be used")
    parser.add_argument("--annotations", type=Path, help="COCO file whose images the detections of --labels are of")
    parser.add_argument("--score_thr", type=float, default=0.5, help="least score of such a detection (default: 0.5)")
    parser.add_argument("--exif", choices=("auto", "upright", "stored"), default="auto", help="frame of the labels")
    own = [key for form in FORMATS.values() for key in form.options]
    for key in own:
        add_key(parser, key)
    a = parser.parse_args()
    if not os.path.exists(a.labels):
        raise DataError(f"{a.labels}: no such file or folder")
    if not 0 <= a.val < 1:
        raise DataError(f"--val {a.val}: expected a share from 0 to 1")
    options = {key: getattr(a, key) for key in ("exif", *own)}
    more = {"source": a.source, "to": a.to, "boxes": a.boxes, "annotations": a.annotations, "score_thr": a.score_thr}
    skip = a.on_bad_image == "skip"
    skipped = import_labels(a.labels, a.out, a.images, a.val, a.seed, skip, options=options, **more)
    if skipped:
        print(f"{len(skipped)} images left out:")
        print("\n".join(f"  {one_line(s)}" for s in skipped))
    dataset = "" if a.to == "coco" else f"--dataset {a.to} "
    place = shlex.quote(str(a.out))
    print(f"written: {a.out}; train with {dataset}--train_dataset {place} --val_dataset {place} --coco_classes auto")
    return 0


if __name__ == "__main__":
    run_command(main)
