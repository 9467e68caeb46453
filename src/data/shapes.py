"""A generated data set in COCO's own layout, small enough to learn from random weights in minutes.

    python -m src.data.shapes --out DIR [--train 600] [--val 100] [--seed 0]

Coloured shapes on textured backgrounds: five classes, small to large, occluding one another (annotations are the
visible parts, as polygons), crowds of one class (run-length encoded, iscrowd 1), and images without objects.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle
from tqdm import tqdm

from src.data.records import DataError
from src.runtime.errors import UserError, run_command
from src.runtime.files import beside, read_regular

__all__ = ["CLASSES", "make_shapes"]

CLASSES = ("circle", "square", "triangle", "star", "cross")
FINE = 4  # shapes are drawn this much larger, for smooth edges and outlines within an eighth of a pixel
EMPTY, CROWDED = 0.06, 0.1  # shares of images
LEAST_VISIBLE = 0.45
HUES = {"circle": 5, "square": 110, "triangle": 55, "star": 28, "cross": 150}


def outline(name: str, radius: float, angle: float) -> np.ndarray:
    """Corners (N, 2) of a shape about the origin."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if name == "cross":
        a, b = radius, radius * 0.36
        points = [
            (-b, -a),
            (b, -a),
            (b, -b),
            (a, -b),
            (a, b),
            (b, b),
            (b, a),
            (-b, a),
            (-b, b),
            (-a, b),
            (-a, -b),
            (-b, -b),
        ]
    else:
        corners = {"circle": 48, "square": 4, "triangle": 3, "star": 10}[name]
        t = 2 * np.pi * np.arange(corners) / corners
        r = np.where(np.arange(corners) % 2, 0.45, 1.0) if name == "star" else np.ones(corners)
        points = np.stack([np.cos(t), np.sin(t)], 1) * (radius * r)[:, None]
    return np.asarray(points) @ turn.T


def background(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A muted texture (H, W, 3) uint8: a gradient, blotches of two sizes, and grain, near grey.

    Shapes are strong in colour, so that a small network learns to tell them from it in minutes.
    """
    base = random.uniform(60, 190) + random.normal(0, 6, 3)
    y, x = np.mgrid[:height, :width] / max(height, width)
    slope = random.normal(0, 40, 2)
    image = base + (slope[0] * x + slope[1] * y)[..., None]
    for cells, strength in ((4, 20), (24, 12)):
        blotches = random.normal(0, strength, (cells, cells))
        tint = random.normal(0, 0.15, 3) + 1
        grown = cv2.resize(blotches.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        image = image + grown[..., None] * tint
    return np.clip(image + random.normal(0, 5, image.shape), 0, 255).astype(np.uint8)


def paint(random: np.random.Generator, image: np.ndarray, cover: np.ndarray, name: str) -> None:
    """Colours `image` where `cover` (H, W) in [0, 1] says, in the class's hue with shading, in place."""
    height, width = cover.shape
    hsv = np.array([[[(HUES[name] + random.normal(0, 6)) % 180, random.uniform(120, 240), random.uniform(120, 240)]]])
    colour = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)
    y, x = np.mgrid[:height, :width] / max(height, width)
    shade = 1 + random.normal(0, 0.25) * (x - 0.5) + random.normal(0, 0.25) * (y - 0.5)
    texture = colour * shade[..., None] + random.normal(0, 7, (height, width, 1))
    image[:] = np.clip(image * (1 - cover[..., None]) + texture * cover[..., None], 0, 255).astype(np.uint8)


def polygons(fine: np.ndarray) -> list[list[float]]:
    """Outer outlines of a FINE-times enlarged bitmap, in image pixels."""
    found, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    out = []
    for contour in found:
        contour = cv2.approxPolyDP(contour, 0.8, True)[:, 0].astype(np.float64)
        if len(contour) >= 3 and cv2.contourArea(contour.astype(np.float32)) >= FINE * FINE:
            out.append(np.round((contour + 0.5) / FINE, 2).ravel().tolist())
    return out


class Scene:
    """One image in the making: what is painted, and which fine bitmap each object still shows."""

    def __init__(self, random: np.random.Generator, height: int, width: int):
        self.random, self.height, self.width = random, height, width
        self.image = background(random, height, width)
        self.objects: list[dict] = []
        self.crowd: dict | None = None

    def bitmap(self, name: str, radius: float, x: float, y: float, angle: float) -> np.ndarray:
        fine = np.zeros((self.height * FINE, self.width * FINE), np.uint8)
        corners = (outline(name, radius, angle) + [x, y]) * FINE - 0.5
        cv2.fillPoly(fine, [np.round(corners).astype(np.int32)], (1,))
        return fine

    def add_object(self) -> None:
        """Tries a few places for one more shape; gives up where it would hide too much of another."""
        r = self.random
        name = CLASSES[r.integers(len(CLASSES))]
        # one in six is small by COCO's measure
        low, high = (9, 15) if r.random() < 0.17 else (17, 0.4 * self.height)
        radius = np.exp(r.uniform(np.log(low), np.log(high)))
        for _ in range(12):
            x, y = r.uniform(0.04, 0.96) * self.width, r.uniform(0.04, 0.96) * self.height
            fine = self.bitmap(name, radius, x, y, r.uniform(0, 2 * np.pi))
            taken = fine.astype(bool)
            inside = taken.sum() / (FINE * FINE)
            # most of a new shape lies in the image, and every shape stays recognisable
            if inside < 0.6 * 2 * radius**2 * 0.5 or inside < 60:
                continue
            if self.crowd is not None and (self.crowd["fine"].astype(bool) & taken).any():
                continue
            if all((o["fine"].astype(bool) & ~taken).sum() >= LEAST_VISIBLE * o["whole"] for o in self.objects):
                for o in self.objects:
                    o["fine"][taken] = 0
                self.objects.append({"name": name, "fine": fine, "whole": int(taken.sum())})
                self.paint(fine, name)
                return

    def add_crowd(self) -> None:
        """A heap of small shapes of one class, annotated as one crowd region."""
        r = self.random
        name = CLASSES[r.integers(len(CLASSES))]
        union = np.zeros((self.height * FINE, self.width * FINE), np.uint8)
        cx, cy = r.uniform(0.2, 0.8) * self.width, r.uniform(0.2, 0.8) * self.height
        for _ in range(r.integers(8, 14)):
            x, y = cx + r.normal(0, 18), cy + r.normal(0, 12)
            fine = self.bitmap(name, r.uniform(7, 11), x, y, r.uniform(0, 2 * np.pi))
            self.paint(fine, name)
            union |= fine
        self.crowd = {"name": name, "fine": union}

    def paint(self, fine: np.ndarray, name: str) -> None:
        cover = cv2.resize(fine.astype(np.float32), (self.width, self.height), interpolation=cv2.INTER_AREA)
        paint(self.random, self.image, cover, name)

    def annotations(self) -> list[dict]:
        """COCO annotations without ids."""
        out = []
        for o in self.objects:
            parts = polygons(o["fine"])
            if not parts:
                continue
            encoded = rle.merge(rle.frPyObjects(parts, self.height, self.width))
            xy = np.concatenate([np.reshape(p, (-1, 2)) for p in parts])
            low, high = xy.min(0).clip(0), np.minimum(xy.max(0), [self.width, self.height])
            out.append(
                {
                    "category_id": CLASSES.index(o["name"]) + 1,
                    "bbox": np.round([*low, *(high - low)], 2).tolist(),
                    "area": float(rle.area(encoded)),
                    "segmentation": parts,
                    "iscrowd": 0,
                }
            )
        if self.crowd is not None:
            cover = cv2.resize(self.crowd["fine"] * 255, (self.width, self.height), interpolation=cv2.INTER_AREA) > 127
            encoded = rle.encode(np.asfortranarray(cover.astype(np.uint8)))
            if rle.area(encoded):
                out.append(
                    {
                        "category_id": CLASSES.index(self.crowd["name"]) + 1,
                        "bbox": rle.toBbox(encoded).tolist(),
                        "area": float(rle.area(encoded)),
                        "segmentation": {"size": [self.height, self.width], "counts": run_lengths(cover)},
                        "iscrowd": 1,
                    }
                )
        return out


def run_lengths(bitmap: np.ndarray) -> list[int]:
    """COCO's uncompressed counts: lengths of runs down the columns, zeros first."""
    flat = bitmap.ravel(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(flat, prepend=0))
    return np.diff([0, *changes, flat.size]).tolist()


def make_scene(random: np.random.Generator) -> Scene:
    """One random image."""
    scene = Scene(random, int(random.integers(168, 209)), int(random.integers(216, 273)))
    if random.random() < EMPTY:
        return scene
    if random.random() < CROWDED:
        scene.add_crowd()
    for _ in range(random.integers(1, 7)):
        scene.add_object()
    return scene


def make_split(folder: Path, split: str, count: int, seed: int) -> None:
    """Writes {split}2017/ and annotations/instances_{split}2017.json."""
    images: list[dict] = []
    annotations: list[dict] = []
    (folder / f"{split}2017").mkdir(parents=True)
    for i in tqdm(range(count), unit="img", desc=f"shapes {split}"):
        # a stream of its own for each image: more images leave the first ones as they were
        scene = make_scene(np.random.default_rng([seed, split == "val", i]))
        name = f"{i + 1:012d}.jpg"
        encoded = cv2.imencode(".jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        # not cv2.imwrite, which says nothing of a full disk
        (folder / f"{split}2017" / name).write_bytes(encoded.tobytes())
        images.append({"id": i + 1, "file_name": name, "height": scene.height, "width": scene.width})
        for a in scene.annotations():
            annotations.append({"id": len(annotations) + 1, "image_id": i + 1, **a})
    categories = [{"id": i + 1, "name": n, "supercategory": "shape"} for i, n in enumerate(CLASSES)]
    (folder / "annotations").mkdir(exist_ok=True)
    whole = {"info": {"description": describe(count, seed)}, "images": images, "annotations": annotations}
    (folder / f"annotations/instances_{split}2017.json").write_text(json.dumps({**whole, "categories": categories}))


def describe(count: int, seed: int) -> str:
    """What a split is made of, as its file's info tells it."""
    return f"shapes, {count} images, seed {seed}"


def description(annotations: Path) -> str:
    """What a split there is made of, in `describe`'s words; empty if it isn't a shapes data set."""
    try:
        return str(json.loads(read_regular(annotations))["info"]["description"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return ""


def make_shapes(root: str | Path, train: int = 600, val: int = 100, seed: int = 0) -> Path:
    """Writes the data set to `root` (beside, then renamed) unless it is there already with the same options.

    Raises DataError, also where `root` holds anything else.
    """
    return make_set(root, {"train": train, "val": val}, seed, describe, make_split, "shapes data set")


def make_set(
    root: str | Path,
    counts: dict[str, int],
    seed: int,
    describe: Callable[[int, int], str],
    make_split: Callable[[Path, str, int, int], None],
    what: str,
) -> Path:
    """As make_shapes, of any made set: counts of images by split; describe (count, seed): what a split's file tells of
    itself; make_split (root, split, count, seed) writes one; what: the set is called in messages.
    """
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        for split, count in counts.items():
            found = description(root / f"annotations/instances_{split}2017.json")
            if found != describe(count, seed):
                raise DataError(
                    f"{root}: there already, holding {found or f'no {what}'} ({split}), not"
                    f" {describe(count, seed)}; name another folder, or remove it if you don't need it"
                )
        return root
    written = beside(root)
    try:
        shutil.rmtree(written, ignore_errors=True)
        for split, count in counts.items():
            make_split(written, split, count, seed)
        if root.exists():
            root.rmdir()
        written.rename(root)
    except OSError as e:
        raise DataError(f"{root}: can't write the {what}: {e.strerror}") from None
    finally:
        shutil.rmtree(written, ignore_errors=True)
    return root


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="folder to write, a COCO root")
    parser.add_argument("--train", type=int, default=600, help="training images")
    parser.add_argument("--val", type=int, default=100, help="validation images")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in ("train", "val"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: at least one image")
    print(make_shapes(arguments.out, arguments.train, arguments.val, arguments.seed))
    return 0


if __name__ == "__main__":
    run_command(main)
