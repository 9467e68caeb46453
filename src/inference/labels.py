"""Predictions as labels to correct by hand: labelme's files, or a COCO instances file."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from src.data.images import turn_points, turned_size
from src.evaluation.detections import Detections
from src.evaluation.kinds import branch_kinds
from src.evaluation.kinds.base import Shape
from src.runtime.errors import UserError
from src.runtime.files import whole

__all__ = ["LABEL_KINDS", "coco_labels", "labelme_labels"]

LABEL_KINDS = ("coco", "labelme")
LABELME_VERSION = "5.4.1"  # whose files these are

Add = Callable[[Path, Detections, int], None]


def shapes_of(found: Detections, i: int) -> list[Shape]:
    """What labelme shows of a detection; its box where nothing else tells its extent."""
    shapes = [s for branch, kind in branch_kinds(found.fields).items() for s in kind.shapes(found.fields[branch][i])]
    told = any(s.kind != "point" for s in shapes)
    return shapes if told else [Shape(found.boxes[i].reshape(2, 2), "rectangle"), *shapes]


def refuse_old(path: Path) -> None:
    """Raises UserError for labels that are there already."""
    if path.exists():
        raise UserError(f"{path}: there already, and may be corrected by hand; move it away, or name another --output")


@contextlib.contextmanager
def coco_labels(
    path: Path, images: Mapping[Path, tuple[str, int | str]], class_names: list[str], ids: Mapping[int, int | str]
) -> Iterator[Add]:
    """A function add(image, detections, orientation) that writes an image and its objects to the COCO file at `path`.

    images: file_name and id of each; ids: the category id of each label of class_names. Objects have a `score` more
    than COCO's, and polygons where the detector has masks. Raises UserError.
    """
    refuse_old(path)
    by_label = {i: {"id": ids.get(i, i), "name": n} for i, n in enumerate(class_names) if i}
    entries, count = [], 0
    with whole(path) as beside, beside.open("w") as f:
        f.write('{"annotations": [')

        def add(image: Path, found: Detections, orientation: int) -> None:
            nonlocal count
            name, image_id = images[image]
            entries.append({"id": image_id, "file_name": name, "height": found.height, "width": found.width})
            for i, row in enumerate(replace(found, fields={}).to_coco(image_id)):
                count += 1
                row = {"id": count, **row, "area": round(row["bbox"][2] * row["bbox"][3], 2), "iscrowd": 0}
                for branch, kind in branch_kinds(found.fields).items():
                    value = found.fields[branch][i]
                    row |= kind.annotation(value)
                    by_label[int(found.labels[i])] |= kind.category(value)
                f.write(("," if count > 1 else "") + "\n" + json.dumps(row))

        yield add
        f.write(f'\n],\n"images": {json.dumps(entries)},\n"categories": {json.dumps(list(by_label.values()))}}}\n')


@contextlib.contextmanager
def labelme_labels(paths: Mapping[Path, Path]) -> Iterator[Add]:
    """A function add(image, detections, orientation) that writes labelme's file of an image, to paths[image].

    labelme shows pictures as their EXIF orientation says: `orientation` is what of it the detections lack, 1 for
    nothing. Masks become polygons, the parts of one object share a group_id; objects without masks become rectangles.
    Raises UserError.
    """
    for path in paths.values():
        refuse_old(path)

    def add(image: Path, found: Detections, orientation: int) -> None:
        size = found.height, found.width
        shapes = []
        for i in range(len(found)):
            of_object = shapes_of(found, i)
            for shape in of_object:
                points = turn_points(shape.points, size, orientation)
                if shape.kind == "rectangle":
                    points = np.array([points.min(0), points.max(0)])
                shapes.append(
                    {
                        "label": shape.label or found.names[i],
                        "points": points.round(2).tolist(),
                        "group_id": i + 1 if len(of_object) > 1 else None,
                        "description": f"score {found.scores[i]:.3f}",
                        "shape_type": shape.kind,
                        "flags": {},
                    }
                )
        height, width = turned_size(size, orientation)
        target = paths[image]
        content: dict[str, Any] = {
            "version": LABELME_VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": os.path.relpath(image, target.parent),
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        with whole(target) as beside:
            beside.write_text(json.dumps(content, indent=1))

    yield add
