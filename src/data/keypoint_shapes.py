"""A generated data set of persons with keypoints, in COCO's own layout, as src/data/shapes.py makes one with masks.

    python -m src.data.keypoint_shapes OUT [--train 600] [--val 100] [--seed 0]

Figures of a head, a trunk and four limbs, from in front or from behind. The colour of the trunk tells which, and so
which hand is the left one: as with people, a mirrored picture shows a figure with left and right exchanged, and limbs
of colours of their own would forbid that. Points that another figure covers, or a board, have visibility 1; some are
without a label, as are all of the smallest figures'; some images have a crowd of such, or nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle
from tqdm import tqdm

from src.data.shapes import FINE, background, make_set, polygons, run_lengths
from src.runtime.errors import UserError, run_command
from src.runtime.newer import zip_equal

__all__ = ["NAMES", "SKELETON", "make_keypoint_shapes"]

NAMES = (
    *("head", "left_shoulder", "right_shoulder", "left_hand", "right_hand"),
    *("left_hip", "right_hip", "left_foot", "right_foot"),
)
LIMBS = (("arm", 1, 3), ("arm", 2, 4), ("leg", 5, 7), ("leg", 6, 8))  # places in NAMES
SKELETON = ((1, 2), (1, 3), (2, 3), (2, 4), (3, 5), (2, 6), (3, 7), (6, 7), (6, 8), (7, 9))  # from 1, as COCO counts
SHADES = {"front": (60, 190, 220), "back": (150, 60, 140), "arm": (40, 60, 215), "leg": (210, 110, 30)}  # BGR
EMPTY, CROWDED, BOARDED, UNLABELLED = 0.06, 0.08, 0.3, 0.05  # shares: the first three of images, the last of points
SMALL = 45  # pixels: figures of less height have no labels, as COCO's far persons
LEAST_VISIBLE = 0.5


def pose(random: np.random.Generator, x: float, y: float, high: float) -> tuple[np.ndarray, str]:
    """Places (K, 2) of a figure's points, `high` pixels from head to foot where it stands straight, about x, y; and
    the side that it shows.
    """
    # in front, the left is on the picture's right
    facing = random.choice([-1.0, 1.0])
    out = np.zeros((len(NAMES), 2))
    out[0] = 0.02 * random.normal(), -0.42
    for side, sign in ((1, facing), (2, -facing)):
        out[side] = sign * 0.12, -0.25
        out[side + 4] = sign * 0.08, 0.05
        arm, leg = random.uniform(-0.3, 2.6), random.uniform(-0.15, 0.5)
        out[side + 2] = out[side] + 0.33 * np.array([sign * np.sin(arm), np.cos(arm)])
        out[side + 6] = out[side + 4] + 0.42 * np.array([sign * np.sin(leg), np.cos(leg)])
    lean = random.normal(0, 0.12)
    turn = np.array([[np.cos(lean), -np.sin(lean)], [np.sin(lean), np.cos(lean)]])
    return high * out @ turn.T + [x, y], "front" if facing > 0 else "back"


class Figures:
    """One image in the making: what is painted, and which fine bitmap each figure still shows."""

    def __init__(self, random: np.random.Generator, height: int, width: int):
        self.random, self.height, self.width = random, height, width
        self.image = background(random, height, width)
        self.figures: list[dict] = []
        self.crowd: np.ndarray | None = None

    def blank(self) -> np.ndarray:
        return np.zeros((self.height * FINE, self.width * FINE), np.uint8)

    def parts(self, points: np.ndarray, side: str, high: float) -> list[tuple[str, np.ndarray]]:
        """Names, of SHADES, and fine bitmaps of what a figure is painted of, in order."""
        fine, thick = np.round(points * FINE - 0.5).astype(int), max(round(0.07 * high * FINE), FINE)
        out = []
        trunk, head = self.blank(), self.blank()
        cv2.fillPoly(trunk, [fine[[1, 2, 6, 5]].astype(np.int32)], (1,))
        neck = ((fine[1] + fine[2]) // 2).tolist()
        cv2.line(trunk, neck, fine[0].tolist(), (1,), thick)
        cv2.circle(head, fine[0].tolist(), round(0.09 * high * FINE), (1,), cv2.FILLED)
        out.append((side, trunk | head))
        for name, a, b in LIMBS:
            limb = self.blank()
            cv2.line(limb, fine[a].tolist(), fine[b].tolist(), (1,), thick)
            cv2.circle(limb, fine[b].tolist(), round(0.65 * thick), (1,), cv2.FILLED)
            out.append((name, limb))
        return out

    def paint(self, fine: np.ndarray, shade: tuple[int, int, int]) -> None:
        cover = cv2.resize(fine.astype(np.float32), (self.width, self.height), interpolation=cv2.INTER_AREA)[..., None]
        colour = np.array(shade) + self.random.normal(0, 7, (self.height, self.width, 1))
        self.image[:] = np.clip(self.image * (1 - cover) + colour * cover, 0, 255).astype(np.uint8)

    def cover(self, taken: np.ndarray, most: float) -> bool:
        """Hides what others show where `taken`, bool; False, and nothing, where more than `most` of one would go."""
        if any((f["fine"].astype(bool) & ~taken).sum() < (1 - most) * f["whole"] for f in self.figures):
            return False
        for f in self.figures:
            f["fine"][taken] = 0
        return True

    def add_figure(self) -> None:
        """Tries a few places for one more; gives up where it would hide too much of another."""
        r = self.random
        high = (
            r.uniform(25, SMALL) if r.random() < 0.12 else np.exp(r.uniform(np.log(SMALL), np.log(0.9 * self.height)))
        )
        for _ in range(12):
            points, side = pose(r, r.uniform(0.1, 0.9) * self.width, r.uniform(0.25, 0.75) * self.height, high)
            parts = self.parts(points, side, high)
            fine = np.bitwise_or.reduce([p for _, p in parts])
            taken = fine.astype(bool)
            inside = ((points > 0) & (points < [self.width, self.height])).all(1)
            if inside.sum() < 6 or (self.crowd is not None and (self.crowd.astype(bool) & taken).any()):
                continue
            if self.cover(taken, 1 - LEAST_VISIBLE):
                labelled = inside & (r.random(len(NAMES)) >= UNLABELLED) & (high >= SMALL)
                self.figures.append({"fine": fine, "whole": int(taken.sum()), "points": points, "labelled": labelled})
                for name, part in parts:
                    self.paint(part, SHADES[name])
                return

    def add_crowd(self) -> None:
        """A group of small figures, annotated as one crowd region."""
        r, self.crowd = self.random, self.blank()
        cx, cy = r.uniform(0.2, 0.8) * self.width, r.uniform(0.2, 0.8) * self.height
        for _ in range(r.integers(6, 10)):
            high = r.uniform(22, 30)
            for name, part in self.parts(*pose(r, cx + r.normal(0, 22), cy + r.normal(0, 6), high), high):
                self.paint(part, SHADES[name])
                self.crowd |= part

    def add_board(self) -> None:
        """A grey board before all, that hides parts of figures."""
        r, fine = self.random, self.blank()
        x, y = (r.uniform(0.1, 0.9, 2) * [self.width, self.height] * FINE).astype(int).tolist()
        w, h = (r.uniform(0.1, 0.3, 2) * [self.width, self.height] * FINE).astype(int).tolist()
        cv2.rectangle(fine, (x, y), (x + w, y + h), (1,), cv2.FILLED)
        if (self.crowd is None or not (self.crowd & fine).any()) and self.cover(fine.astype(bool), 1 - LEAST_VISIBLE):
            self.paint(fine, (110, 110, 110))

    def annotations(self) -> list[dict]:
        """COCO annotations without ids."""
        out = []
        for f in self.figures:
            if not (parts := polygons(f["fine"])):
                continue
            encoded = rle.merge(rle.frPyObjects(parts, self.height, self.width))
            xy = np.concatenate([np.reshape(p, (-1, 2)) for p in parts])
            low, high = xy.min(0).clip(0), np.minimum(xy.max(0), [self.width, self.height])
            values: list[float] = []
            for point, labelled in zip_equal(f["points"], f["labelled"]):
                column, row = (point * FINE).astype(int) if labelled else (0, 0)
                x, y = np.round(point, 2).tolist()
                values += [x, y, 2 if f["fine"][row, column] else 1] if labelled else [0, 0, 0]
            out.append(
                {
                    "category_id": 1,
                    "bbox": np.round([*low, *(high - low)], 2).tolist(),
                    "area": float(rle.area(encoded)),
                    "segmentation": parts,
                    "keypoints": values,
                    "num_keypoints": int(f["labelled"].sum()),
                    "iscrowd": 0,
                }
            )
        if self.crowd is not None:
            cover = cv2.resize(self.crowd * 255, (self.width, self.height), interpolation=cv2.INTER_AREA) > 127
            encoded = rle.encode(np.asfortranarray(cover.astype(np.uint8)))
            if rle.area(encoded):
                out.append(
                    {
                        "category_id": 1,
                        "bbox": rle.toBbox(encoded).tolist(),
                        "area": float(rle.area(encoded)),
                        "segmentation": {"size": [self.height, self.width], "counts": run_lengths(cover)},
                        "keypoints": [0] * (3 * len(NAMES)),
                        "num_keypoints": 0,
                        "iscrowd": 1,
                    }
                )
        return out


def make_figures(random: np.random.Generator) -> Figures:
    """One random image."""
    out = Figures(random, int(random.integers(168, 209)), int(random.integers(216, 273)))
    if random.random() < EMPTY:
        return out
    if random.random() < CROWDED:
        out.add_crowd()
    for _ in range(random.integers(1, 5)):
        out.add_figure()
    if random.random() < BOARDED:
        out.add_board()
    return out


def make_split(folder: Path, split: str, count: int, seed: int) -> None:
    """Writes {split}2017/ and annotations/instances_{split}2017.json. Raises OSError."""
    images: list[dict] = []
    annotations: list[dict] = []
    (folder / f"{split}2017").mkdir(parents=True)
    for i in tqdm(range(count), unit="img", desc=f"persons {split}"):
        # a stream of its own for each image: more images leave the first ones as they were
        made, name = make_figures(np.random.default_rng([seed, split == "val", i])), f"{i + 1:012d}.jpg"
        encoded = cv2.imencode(".jpg", made.image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        # not cv2.imwrite, which says nothing of a full disk
        (folder / f"{split}2017" / name).write_bytes(encoded.tobytes())
        images.append({"id": i + 1, "file_name": name, "height": made.height, "width": made.width})
        for a in made.annotations():
            annotations.append({"id": len(annotations) + 1, "image_id": i + 1, **a})
    person = {"id": 1, "name": "person", "supercategory": "person", "keypoints": NAMES, "skeleton": SKELETON}
    whole = {"info": {"description": describe(count, seed)}, "images": images, "annotations": annotations}
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / f"annotations/instances_{split}2017.json").write_text(json.dumps({**whole, "categories": [person]}))


def describe(count: int, seed: int) -> str:
    """What a split is made of, as its file's info tells it."""
    return f"persons with keypoints, {count} images, seed {seed}"


def make_keypoint_shapes(root: str | Path, train: int = 600, val: int = 100, seed: int = 0) -> Path:
    """Writes the data set to `root` (beside, then renamed) unless it is there already with the same options.

    Raises DataError, also where `root` holds anything else.
    """
    return make_set(root, {"train": train, "val": val}, seed, describe, make_split, "such data set")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", help="folder to write, a COCO root")
    parser.add_argument("--train", type=int, default=600, help="training images")
    parser.add_argument("--val", type=int, default=100, help="validation images")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in ("train", "val"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: at least one image")
    print(make_keypoint_shapes(arguments.out, arguments.train, arguments.val, arguments.seed))
    return 0


if __name__ == "__main__":
    run_command(main)
