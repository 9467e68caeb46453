"""Predictions as labels to correct by hand: labelme's files, or a COCO instances file."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle

from src.data.images import turn_points, turned_size
from src.errors import UserError
from src.files import whole
from src.predictor import Detections

__all__ = ["LABEL_KINDS", "coco_labels", "labelme_labels", "mask_polygons"]

LABEL_KINDS = ("coco", "labelme")
TOLERANCE = 0.5  # pixels that a corner may lie beside the mask's edge, so that corners are few
SMALLEST_HOLE = 4  # pixels; smaller holes of masks are filled
LABELME_VERSION = "5.4.1"  # whose files these are

Add = Callable[[Path, Detections, int], None]


def mask_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Polygons (N, 2) float64, x y, of a mask (H, W) bool: one for each part, along the edges of its pixels.

    A hole is joined to the outline by a slit, as labelme and COCO's polygons know none.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    # on a grid of half pixels, whose even places are the pixels' corners, a contour runs along the edges
    grid = np.zeros((2 * part.shape[0] + 1, 2 * part.shape[1] + 1), np.uint8)
    grid[1::2, 1::2] = part
    grid = cv2.dilate(grid, np.ones((3, 3), np.uint8))
    contours, tree = cv2.findContours(grid, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    out = []
    for contour, (_, _, hole, parent) in zip(contours, tree[0], strict=True):
        if parent >= 0:
            continue
        polygon = corners(contour)
        while hole >= 0:
            if cv2.contourArea(contours[hole]) / 4 >= SMALLEST_HOLE:
                polygon = joined(polygon, corners(contours[hole]))
            hole = tree[0][hole][0]
        out.append(polygon + [left, top])
    return out


def corners(contour: np.ndarray) -> np.ndarray:
    """A contour of the half-pixel grid as (N, 2) float64 in pixels, at least three corners."""
    simple = cv2.approxPolyDP(contour, 2 * TOLERANCE, True)
    return (simple if len(simple) > 2 else contour).reshape(-1, 2) / 2.0


def joined(outline: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """One polygon of an outline and a hole in it, which runs the other way round, by a slit where they are nearest."""
    distance = np.square(outline[:, None] - hole[None]).sum(2)
    i, j = np.unravel_index(distance.argmin(), distance.shape)
    return np.concatenate([outline[: i + 1], hole[j:], hole[: j + 1], outline[i:]])


def polygons_of(found: Detections, i: int) -> list[np.ndarray]:
    """The polygons of a detection's mask; none without a mask, or with an empty one."""
    return [] if found.masks is None else mask_polygons(rle.decode(found.masks[i]).astype(bool))


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
    categories = [{"id": ids.get(i, i), "name": n} for i, n in enumerate(class_names) if i]
    entries, count = [], 0
    with whole(path) as beside, beside.open("w") as f:
        f.write('{"annotations": [')

        def add(image: Path, found: Detections, orientation: int) -> None:
            nonlocal count
            name, image_id = images[image]
            entries.append({"id": image_id, "file_name": name, "height": found.height, "width": found.width})
            for i, row in enumerate(found.to_coco(image_id)):
                count += 1
                row = {"id": count, **row, "area": round(row["bbox"][2] * row["bbox"][3], 2), "iscrowd": 0}
                mask = row.pop("segmentation", None)
                if polygons := polygons_of(found, i):
                    row |= {"area": int(rle.area(mask)), "segmentation": [p.ravel().tolist() for p in polygons]}
                f.write(("," if count > 1 else "") + "\n" + json.dumps(row))

        yield add
        f.write(f'\n],\n"images": {json.dumps(entries)},\n"categories": {json.dumps(categories)}}}\n')


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
        for i, box in enumerate(found.boxes):
            polygons = polygons_of(found, i)
            outlines, kind = (polygons, "polygon") if polygons else ([box.reshape(2, 2)], "rectangle")
            for outline in outlines:
                points = turn_points(outline, size, orientation)
                if kind == "rectangle":
                    points = np.array([points.min(0), points.max(0)])
                shapes.append(
                    {
                        "label": found.names[i],
                        "points": points.round(2).tolist(),
                        "group_id": i + 1 if len(outlines) > 1 else None,
                        "description": f"score {found.scores[i]:.3f}",
                        "shape_type": kind,
                        "flags": {},
                    }
                )
        height, width = turned_size(size, orientation)
        target = paths[image]
        content = {
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
