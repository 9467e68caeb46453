"""What the C++ program (ascend310_infer/) wrote for a folder of images: its summary, and a file of each image."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.data.finding import name_parts
from src.evaluation.kinds import branch_kinds
from src.evaluation.truth import EvaluationError
from src.runtime.files import read_regular
from src.runtime.newer import zip_equal

__all__ = ["ImageResult", "annotated_images", "class_categories", "read_result", "read_summary"]

HEADER = struct.Struct("<8s4I")
FIELD = struct.Struct("<16s4sI")
MOST_DETECTIONS, MOST_SIDE = 10**5, 256  # as a model can be told to give
MOST_FIELDS, MOST_DIMENSIONS, MOST_ELEMENTS = 16, 4, 1 << 20  # the last: of a detection
TYPES = ("u1", "f4")
MOST_BYTES = 256 << 20  # of a summary: a million images


@dataclass
class ImageResult:
    """Detections of one image, best score first: boxes (N, 4) float32 x1 y1 x2 y2 in pixels of the image file, scores
    (N,) float32, labels (N,) uint32; fields: what branches found of each, (N, ...), by the branch's name.
    """

    height: int
    width: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    fields: dict[str, np.ndarray]

    @property
    def masks(self) -> np.ndarray | None:
        """(N, M, M) uint8 over each box with 255 for probability 1, or None."""
        return self.fields.get("mask")


def read_result(path: str | Path, image: dict | None = None) -> ImageResult:
    """Reads NAME.det; `image`: its entry in the annotations, whose size it must have. Raises EvaluationError."""
    try:
        data = read_regular(path)
    except OSError as e:
        raise EvaluationError(f"{path}: can't read the result: {e.strerror}; run the inference again") from None
    foreign = EvaluationError(f"{path}: not a whole result of this version; run the inference again")
    if len(data) < HEADER.size:
        raise foreign
    magic, height, width, count, last = HEADER.unpack_from(data)
    layout, at = _layout(data, last) if magic == b"RCNNDET2" else (_first_layout(magic, last), HEADER.size)
    if layout is None or count > MOST_DETECTIONS or height == 0 or width == 0:
        raise foreign
    arrays = [("<f4", (4,)), ("<f4", ()), ("<u4", ()), *layout.values()]
    sizes = [count * int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in arrays]
    if len(data) != at + sum(sizes):
        raise foreign
    if image is not None and (height, width) != (image["height"], image["width"]):
        raise EvaluationError(
            f"{path}: of an image of {width} x {height} pixels, annotated as {image['width']} x {image['height']};"
            " not these annotations' images?"
        )
    parts = []
    for (dtype, shape), size in zip_equal(arrays, sizes):
        parts.append(np.frombuffer(data[at : at + size], dtype).reshape(count, *shape))
        at += size
    boxes, scores, labels, *more = parts
    return ImageResult(height, width, boxes, scores, labels, dict(zip_equal(layout, more)))


Layout = dict[str, tuple[str, tuple[int, ...]]]  # of each field: what a detection has of it


def _first_layout(magic: bytes, side: int) -> Layout | None:
    """Of RCNNDET1, which has room for masks alone; None: it isn't that."""
    if magic != b"RCNNDET1" or side > MOST_SIDE:
        return None
    return {"mask": ("u1", (side, side))} if side else {}


def _layout(data: bytes, fields: int) -> tuple[Layout | None, int]:
    """RCNNDET2's table of fields, and where it ends (ascend310_infer/src/results.h); None: it is none."""
    out: Layout = {}
    at = HEADER.size
    for _ in range(fields if fields <= MOST_FIELDS else 0):
        if len(data) - at < FIELD.size:
            return None, at
        name, kind, dimensions = FIELD.unpack_from(data, at)
        at += FIELD.size
        if dimensions > MOST_DIMENSIONS or len(data) - at < 4 * dimensions:
            return None, at
        shape = struct.unpack_from(f"<{dimensions}I", data, at)
        at += 4 * dimensions
        text, dtype = (b.rstrip(b"\0").decode("ascii", "replace") for b in (name, kind))
        if dtype not in TYPES or not 0 < math.prod(shape) <= MOST_ELEMENTS:
            return None, at
        out[text] = (f"<{dtype}", shape)
    return (out if len(out) == fields else None), at


def read_summary(folder: str | Path) -> dict:
    """summary.json of a folder of results. Raises EvaluationError where a run didn't come to its end."""
    path = Path(folder) / "summary.json"
    try:
        summary = json.loads(read_regular(path, MOST_BYTES))
    except OSError:
        raise EvaluationError(f"{path}: no summary: not a folder of results, or a run that didn't end") from None
    except (ValueError, RecursionError):
        raise EvaluationError(f"{path}: not whole JSON; run the inference again") from None
    whole = isinstance(summary, dict) and {"images", "classes"} <= summary.keys()
    if not whole or summary.get("format") != "rcnn-mindspore results":
        raise EvaluationError(f"{path}: not the summary of an inference")
    images, classes = summary["images"], summary["classes"]
    for name, fits in (
        ("images", _are_texts(images) and all(_is_below(i) for i in images) and len(set(images)) == len(images)),
        ("classes", _are_texts(classes) and len(classes) > 1),
        *((kind.told_by, kind.tells(summary)) for kind in branch_kinds().values()),
    ):
        if not fits:
            raise EvaluationError(f"{path}: {name} isn't what an inference writes; run the inference again")
    return summary


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _is_below(name: str) -> bool:
    """Whether a result's name stays in its folder."""
    return not name.startswith("/") and "\0" not in name and ".." not in name.split("/") and bool(name)


def annotated_images(summary: dict, images: Sequence[dict], annotations: str | Path) -> dict[str, dict]:
    """The annotations' entry of each image with a result: the one of that path, else of a path that ends in the other,
    else of that name in whatever folder.

    Raises EvaluationError for an image that isn't annotated, and where several are as near.
    """
    by_name: dict[str, list[tuple[tuple[str, ...], dict]]] = {}
    for image in images:
        parts = name_parts(str(image.get("file_name", "")))
        by_name.setdefault(parts[-1] if parts else "", []).append((parts, image))
    found: dict[str, dict] = {}
    foreign: list[str] = []
    for name in summary["images"]:
        parts = name_parts(str(name))
        near = nearest(parts, by_name.get(parts[-1], [])) if parts else []
        if len(near) > 1:
            which = ", ".join(repr(i["file_name"]) for i in near[:3])
            raise EvaluationError(
                f"{annotations}: the result {name!r} may be of any of {len(near)} images ({which}), and results go by"
                " name; give the annotations of the folder that was run"
            )
        foreign += [] if near else [name]
        found |= {name: near[0]} if near else {}
    if foreign:
        raise EvaluationError(
            f"{annotations}: has no image {foreign[0]!r} ({len(foreign)} of {len(summary['images'])} with results"
            " aren't in it); give the annotations of the folder that was run"
        )
    taken: dict[int, str] = {}
    for name, image in found.items():
        if image["id"] in taken:
            raise EvaluationError(
                f"{annotations}: {taken[image['id']]!r} and {name!r} both have a result for image"
                f" {image['file_name']!r}; give the annotations of the folder that was run"
            )
        taken[image["id"]] = name
    return found


def nearest(parts: tuple[str, ...], entries: Sequence[tuple[tuple[str, ...], dict]]) -> list[dict]:
    """Of images of one name those whose path agrees best with `parts`."""
    alike = [image for other, image in entries if other == parts]
    for other, image in [] if alike else entries:
        shorter = min(len(other), len(parts))
        if other[-shorter:] == parts[-shorter:]:
            alike.append(image)
    return alike or [image for _, image in entries]


def class_categories(classes: Sequence[str], categories: Sequence[dict], annotations: str | Path) -> dict[int, int]:
    """The category id of each label, by the class's name; of a class that isn't annotated, one that none has.

    Raises EvaluationError where none of the classes is annotated.
    """
    ids = {c["name"]: int(c["id"]) for c in categories}
    if not ids.keys() & set(classes[1:]):
        raise EvaluationError(
            f"{annotations}: has no category {classes[1:][:1]}, which the model detects, nor another of its classes; it"
            f" has {', '.join(ids)}"
        )
    free = max(ids.values())
    return {label: ids.get(name, free + label) for label, name in enumerate(classes) if label}
