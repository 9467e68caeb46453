"""A COCO root from what a labelling tool wrote: python -m src.data.import_labels --labels DIR|FILE.json --out COCO_ROOT

DIR: labelme's JSON files beside their images. FILE.json: one COCO instances file, with its images in --images. The
images are shared among training and validation by seed.
"""

import argparse
import base64
import binascii
import json
import math
import os
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle
from tqdm import tqdm

from src.data.formats.coco import folder_beside, read_json
from src.data.images import frame_of, sorted_files
from src.data.records import DataError
from src.errors import run_command

__all__ = ["import_labels"]

CIRCLE_CORNERS = 64


def import_labels(
    labels: Path, out: Path, images: Path | None = None, val: float = 0.2, seed: int = 0, skip: bool = False
) -> list[str]:
    """Writes the COCO root `out`, beside and renamed; returns what was left out, if `skip` allows that.

    Raises DataError for labels that can't be used, naming file and shape, and if `out` is there.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: there already; name another folder, or remove it if you don't need it")
    found = read_labelme(labels, skip) if labels.is_dir() else read_coco(labels, images, skip)
    entries, categories, skipped = found
    if not entries:
        raise DataError(f"{labels}: no usable image; {skipped[0] if skipped else 'the labels name none'}")
    order = np.random.default_rng(seed).permutation(len(entries))
    count = min(max(round(len(entries) * val), 1 if val and len(entries) > 1 else 0), len(entries) - 1)
    parts = {"train": np.sort(order[count:]), "val": np.sort(order[:count])}
    beside = out.with_name(f"{out.name}.writing")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        for split, rows in parts.items():
            if len(rows):
                write_split(beside, split, [entries[i] for i in rows], categories)
        if out.exists():
            out.rmdir()
        beside.rename(out)
    except OSError as e:
        raise DataError(f"{out}: can't write: {e.strerror}; free space, or name another folder") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return skipped


def write_split(root: Path, split: str, entries: list[tuple[dict, list[dict], Path | bytes]], categories: list) -> None:
    """Writes one split's annotation file and images; `entries` are images, their annotations, and where they are."""
    folder = root / f"{split}2017"
    folder.mkdir(parents=True)
    images, annotations = [], []
    for image, objects, source in tqdm(entries, unit="img", desc=split):
        target = folder / image["file_name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, bytes):
            target.write_bytes(source)
        else:
            shutil.copyfile(source, target)
        images.append(image)
        annotations += [{**a, "id": len(annotations) + i, "image_id": image["id"]} for i, a in enumerate(objects, 1)]
    (root / "annotations").mkdir(exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
    counts = Counter(str(a.get("category_id")) for a in annotations)
    told = ", ".join(f"{c.get('name')} {counts[str(c.get('id'))]}" for c in categories)
    print(f"{split}: {len(images)} images, {len(annotations)} objects: {told}")


def is_within(name: str) -> bool:
    """Whether a relative path stays in its folder."""
    return bool(name) and not os.path.isabs(name) and ".." not in Path(name).parts


def read_coco(labels: Path, images: Path | None, skip: bool) -> tuple[list, list, list[str]]:
    """Entries, categories and faults of a COCO instances file. Raises DataError."""
    data = read_json(labels)
    folder = images or folder_beside(labels, "train")
    by_image: dict[object, list[dict]] = {}
    for a in data["annotations"]:
        by_image.setdefault(str(a.get("image_id")), []).append(a)
    entries, skipped, names = [], [], set()
    for image in data["images"]:
        name = str(image.get("file_name", ""))
        try:
            if "id" not in image or not is_within(name):
                raise DataError(f"{labels}: image {image.get('id')!r} has no id, or file_name {name!r} isn't below it")
            if name in names:
                raise DataError(f"{labels}: image {image['id']!r}: {name} is listed twice")
            names.add(name)
            if not (folder / name).is_file():
                raise DataError(
                    f"{folder / name}: no such image, though {labels.name} lists it; name its folder: --images"
                )
            entries.append((image, by_image.pop(str(image["id"]), []), folder / name))
        except DataError as e:
            refuse(e, skip, skipped)
            by_image.pop(str(image.get("id")), None)
    if by_image:
        raise DataError(f"{labels}: {len(by_image)} images with annotations aren't in 'images': {sorted(by_image)[:3]}")
    return entries, data["categories"], skipped


def refuse(fault: DataError, skip: bool, skipped: list[str]) -> None:
    """Collects a fault, or raises it."""
    if not skip:
        raise DataError(f"{fault} (or leave such images out: --on_bad_image skip)") from None
    skipped.append(str(fault))


def read_labelme(folder: Path, skip: bool) -> tuple[list, list, list[str]]:
    """Entries, categories (by alphabet) and faults of labelme's files in `folder`. Raises DataError."""
    files = sorted(folder.rglob("*.json"))
    if not files:
        raise DataError(f"{folder}: no JSON file of labelme's in it")
    entries, skipped, read, taken = [], [], [], {}
    for path in tqdm(files, unit="file", desc="reading"):
        try:
            read.append(read_labelme_file(path, folder))
            name = read[-1][0]["file_name"]
            if name in taken:
                del read[-1]
                raise DataError(f"{path}: its image {name} is labelled in {taken[name]} too; keep one of the files")
            taken[name] = path
        except DataError as e:
            refuse(e, skip, skipped)
    names = sorted({a["label"] for _, objects, _ in read for a in objects})
    ids = {name: i for i, name in enumerate(names, 1)}
    used = set()
    for i, (image, objects, source) in enumerate(read, 1):
        used.add(Path(image["file_name"]))
        entries.append(({"id": i, **image}, [{"category_id": ids[a.pop("label")], **a} for a in objects], source))
    bare = [p.name for p in sorted_files(folder)[0] if p.relative_to(folder) not in used]
    if bare and not skipped:
        print(f"{len(bare)} images without labels are left out: {', '.join(bare[:5])}{' ...' if len(bare) > 5 else ''}")
    return entries, [{"id": i, "name": n} for n, i in ids.items()], skipped


def read_labelme_file(path: Path, root: Path) -> tuple[dict, list[dict], Path | bytes]:
    """Image, annotations with their `label`, and the image's file or bytes. Raises DataError."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as e:
        raise DataError(f"{path}: can't read: {e.strerror}") from None
    except json.JSONDecodeError as e:
        raise DataError(f"{path}, line {e.lineno}: not valid JSON ({e.msg})") from None
    except (UnicodeDecodeError, RecursionError):
        raise DataError(f"{path}: not valid JSON") from None
    if not isinstance(data, dict) or not isinstance(data.get("shapes"), list) or not data.get("imagePath"):
        raise DataError(f"{path}: not a file of labelme's (shapes and imagePath are missing)")
    source = path.parent / str(data["imagePath"]).replace("\\", "/")
    if source.is_file():
        height, width, _ = frame_of(source, "stored")
        inside = source.resolve().is_relative_to(root.resolve())
        name = str(source.resolve().relative_to(root.resolve())) if inside else source.name
    else:
        source, (height, width) = embedded_image(data, path, source)
        name = str(path.relative_to(root).with_suffix(".png" if source[:4] == b"\x89PNG" else ".jpg"))
    groups: dict[object, dict] = {}
    for number, shape in enumerate(data["shapes"], 1):
        where = f"{path}: shape {number}"
        label, polygons = read_shape(shape, height, width, where)
        # shapes that share a label and a group are parts of one object
        group = shape.get("group_id")
        key = number if group is None else (label, str(group))
        groups.setdefault(key, {"label": label, "parts": []})["parts"] += polygons
    objects = [annotation(g["label"], g["parts"], height, width) for g in groups.values()]
    return {"file_name": name, "height": height, "width": width}, objects, source


def embedded_image(data: dict, path: Path, source: Path) -> tuple[bytes, tuple[int, int]]:
    """The image that labelme keeps in its file, and its (height, width). Raises DataError."""
    try:
        content = base64.b64decode(data.get("imageData") or "", validate=True)
    except (binascii.Error, TypeError, ValueError):
        content = b""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
    if image is None:
        raise DataError(f"{path}: its image {source} is missing, and the file holds none")
    return content, image.shape[:2]


def read_shape(shape: object, height: int, width: int, where: str) -> tuple[str, list[list[float]]]:
    """Label and polygons of one shape of labelme's. Raises DataError."""
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not shape["label"]:
        raise DataError(f"{where}: has no label")
    kind = shape.get("shape_type") or "polygon"
    try:
        points = np.array(shape["points"], np.float64).reshape(-1, 2)
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{where} ({shape['label']}): its points aren't pairs of numbers") from None
    if not len(points) or not np.isfinite(points).all():
        raise DataError(f"{where} ({shape['label']}): its points aren't finite, or there are none")
    if kind == "rectangle":
        (x1, y1), (x2, y2) = points.min(0), points.max(0)
        points = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
    elif kind == "circle" and len(points) == 2:
        angles = np.arange(CIRCLE_CORNERS) * 2 * math.pi / CIRCLE_CORNERS
        radius = np.linalg.norm(points[1] - points[0])
        points = points[0] + radius * np.column_stack([np.cos(angles), np.sin(angles)])
    elif kind != "polygon":
        raise DataError(f"{where} ({shape['label']}): a {kind} has no area; label polygons, rectangles or circles")
    points = points.clip(0, [width, height])
    if len(points) < 3 or cv2.contourArea(points.astype(np.float32)) <= 0:
        raise DataError(f"{where} ({shape['label']}): no area inside its {width} x {height} image")
    return shape["label"], [np.round(points, 2).ravel().tolist()]


def annotation(label: str, polygons: list[list[float]], height: int, width: int) -> dict:
    """A COCO annotation of one object, without ids."""
    points = np.concatenate([np.reshape(p, (-1, 2)) for p in polygons])
    (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
    area = float(rle.area(rle.merge(rle.frPyObjects(polygons, height, width))))
    box = [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)]
    return {"label": label, "bbox": box, "area": area, "iscrowd": 0, "segmentation": polygons}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--labels", type=Path, required=True, help="folder of labelme's files, or a COCO instances file"
    )
    parser.add_argument("--images", type=Path, help="folder of the COCO file's images (default: one beside it)")
    parser.add_argument("--out", type=Path, required=True, help="COCO root to write")
    parser.add_argument("--val", type=float, default=0.2, help="share of the images that validate (default: 0.2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--on_bad_image", choices=("stop", "skip"), default="stop", help="labels that can't be used")
    a = parser.parse_args()
    if not a.labels.exists():
        raise DataError(f"{a.labels}: no such file or folder")
    if not 0 <= a.val < 1:
        raise DataError(f"--val {a.val}: expected a share from 0 to 1")
    skipped = import_labels(a.labels, a.out, a.images, a.val, a.seed, a.on_bad_image == "skip")
    if skipped:
        print(f"{len(skipped)} images left out:")
        print("\n".join(f"  {s}" for s in skipped))
    print(f"written: {a.out}; train with --train_dataset {a.out} --val_dataset {a.out} --coco_classes auto")
    return 0


if __name__ == "__main__":
    run_command(main)
