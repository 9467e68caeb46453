"""COCO results files, and changes to them."""

import json

import numpy as np

from benchmarks.mutations import raw
from benchmarks.mutations.sets import JSON_DIRT, pick

__all__ = ["make", "mutate"]

DIRT = (*JSON_DIRT, 10**4000, -1e308, [[1, 2]], {"size": [1, 1]}, "P" * 10**5, [1e300] * 4, [-5, 0, 1, 1], [1, 2, 3])
MASKS = (
    {"size": [60000, 60000], "counts": [0, 3600000000]},
    {"size": [40, 60], "counts": [2400]},
    {"size": [40, 60], "counts": [2401]},
    {"size": [40, 60], "counts": [-1, 2401]},
    {"size": [60, 40], "counts": "P"},
    {"size": [40, 60], "counts": "o" * 1000},
    {"size": [1e9, 1e9], "counts": "é"},
    {"size": "40", "counts": None},
    {"counts": [1]},
    [[0, 0, 1e9, 1e9, 0, 5]],
    [[1, 2, 3, 4, 5, None]],
    [[0, 0, 59, 39, 0, 39] * 2000],
)


def make(random: np.random.Generator, images: list[int], categories: list[int]) -> list[dict]:
    """Valid results of images of 40 x 60 pixels: boxes, some with masks."""
    out = []
    for _ in range(int(random.integers(1, 12))):
        x, y = int(random.integers(0, 40)), int(random.integers(0, 25))
        row = {"image_id": pick(random, images), "category_id": pick(random, categories), "bbox": [x, y, 15.5, 12]}
        row["score"] = round(float(random.random()), 6)
        if random.random() < 0.5:
            row["segmentation"] = [[x, y, x + 15, y, x + 15, y + 12]]
        out.append(row)
    return out


def mutate(random: np.random.Generator, rows: list[dict]) -> bytes:
    """The file of `rows`, which are changed, with one to three changes of values, of bytes, or of both."""
    for _ in range(int(random.integers(0, 4))):
        row = pick(random, rows)
        kind = random.random()
        if kind < 0.3:
            row["segmentation"] = pick(random, MASKS)
        elif kind < 0.8:
            row[pick(random, ("image_id", "category_id", "bbox", "score", "segmentation", "other"))] = pick(
                random, DIRT
            )
        elif kind < 0.9:
            row.pop(pick(random, row), None)
        elif isinstance(row.get("bbox"), list) and row["bbox"]:
            row["bbox"][int(random.integers(len(row["bbox"])))] = pick(random, DIRT)
    content = rows if random.random() < 0.95 else pick(random, (rows[0], {"annotations": rows}, [rows], None, 7))
    data = json.dumps(content, separators=pick(random, ((",", ":"), (", ", ": ")))).encode()
    return raw.mutate(random, data) if random.random() < 0.5 else data
