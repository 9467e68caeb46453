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
DIFFERENCE = 0.02  # of a mask's pixels that fewer corners may cost
LABELME_VERSION = "5.4.1"  # whose files these are

Add = Callable[[Path, Detections, int], None]


def mask_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Polygons (N, 2) float64, x y, of a mask (H, W) bool: one for each part, along the edges of its pixels.

    A hole is joined to the outline by a slit, as labelme and COCO's polygons know none. Corners are few where that
    leaves the mask nearly what it was.
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
    contours, tree = cv2.findContours(grid, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    contours = [c.reshape(-1, 2) for c in contours]
    for corners in (few_corners, all_corners):
        polygons = assemble([corners(c) for c in contours], [cv2.contourArea(c) / 4 for c in contours], tree[0])
        texts = [p.ravel().tolist() for p in polygons]
        drawn = rle.decode(rle.merge(rle.frPyObjects(texts, *part.shape))).astype(bool)
        if (drawn ^ part).sum() <= DIFFERENCE * part.sum():
            break
    return [p + [left, top] for p in polygons]


def assemble(outlines: list[np.ndarray], areas: list[float], tree: np.ndarray) -> list[np.ndarray]:
    """Outlines with their holes, but the smallest; `tree`: OpenCV's next, previous, first hole, and parent of each."""
    out = []
    for i, (_, _, hole, parent) in enumerate(tree):
        if parent >= 0:
            continue
        polygon = outlines[i]
        while hole >= 0:
            if areas[hole] >= SMALLEST_HOLE:
                polygon = joined(polygon, outlines[hole])
            hole = tree[hole][0]
        out.append(polygon)
    return out


def few_corners(contour: np.ndarray) -> np.ndarray:
    """A contour of the half-pixel grid, (N, 2) int, as (M, 2) float64 in pixels, M at least 3."""
    simple = cv2.approxPolyDP(contour.reshape(-1, 1, 2), 2 * TOLERANCE, True)
    return simple.reshape(-1, 2) / 2.0 if len(simple) > 2 else all_corners(contour)


def all_corners(contour: np.ndarray) -> np.ndarray:
    """A contour of the half-pixel grid as it is, with the inner corners that a contour cuts."""
    following = np.roll(contour, -1, 0)
    diagonal = (np.abs(following - contour) == 1).all(1)
    # of the two ways round a diagonal step, one passes a corner of pixels
    corner = np.stack([contour[:, 0], following[:, 1]], 1)
    other = np.stack([following[:, 0], contour[:, 1]], 1)
    corner = np.where((corner % 2 == 0).all(1, keepdims=True), corner, other)
    points = np.stack([contour, corner], 1).reshape(-1, 2)[np.stack([np.ones_like(diagonal), diagonal], 1).ravel()]
    ahead, behind = np.roll(points, -1, 0) - points, points - np.roll(points, 1, 0)
    turns = ahead[:, 0] * behind[:, 1] != ahead[:, 1] * behind[:, 0]
    return points[turns | (ahead != behind).any(1)] / 2.0


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
