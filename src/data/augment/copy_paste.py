"""Simple copy-paste: objects of another picture cut out by their masks and put on this one (Ghiasi et al., 2021,
arXiv:2012.07177).

As the authors' program does it (tensorflow/tpu, models/official/detection/dataloader: extract_objects_parser.py,
maskrcnn_parser_with_copy_paste.py): both pictures are jittered, each by its own draws, on canvases of one size. A
random number of the other's objects, all numbers as likely, go where they are there, with hard edges, and what they
cover leaves the masks below. There the least area of what is left counts pixels of the picture, here of the canvas.
There one covered object has all small ones of its picture removed, covered or not, here itself alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from pycocotools import mask as rle

from src.config import Config
from src.data.fields.base import Field
from src.data.images import picture_size
from src.data.scene import Scene
from src.data.segmentations import as_rle, complement, placed_rle, union
from src.data.transforms import View, mean_colour, shown_picture, to_bitmap, visible_objects

__all__ = ["copy_paste", "draw_objects", "on_canvas"]

LEAST_LEFT = 300  # canvas pixels: what is left of a covered object is gone if it is no more, and
MOVED = 10  # canvas pixels: a side of its box has moved by more


def on_canvas(
    scene: Scene, view: View, canvas: tuple[int, int], config: Config, carried: Sequence[Field], least: float
) -> tuple[Scene, np.ndarray]:
    """What a canvas (height, width) shows of a scene, as a scene of the canvas's pixels, and the rows (K,) of the
    objects that it shows of the N.

    carried: the fields of its objects. least: as visible_objects has it. The rest of the canvas has the mean colour.
    """
    size = picture_size(scene.image)
    rows, boxes = visible_objects(view, scene.boxes, scene.masks, *size, least)
    scene = scene.objects(rows)
    picture = shown_picture(scene.image, config, view)
    image = np.empty((*canvas, 3), picture.dtype)
    image[:] = mean_colour(config)
    image[: view.size[0], view.left : view.left + view.size[1]] = picture
    masks = [mask_on_canvas(m, view, size, canvas) for m in scene.masks]
    fields = {f.name: f.shown(scene, boxes, view) for f in carried}
    # a window may leave a polygon no pixel of the canvas
    seen = np.array([isinstance(m, list) or rle.area(m) > 0 for m in masks], bool)
    shown = Scene(image, view.to_canvas(boxes), masks, fields)
    return shown.objects(np.flatnonzero(seen)), rows[seen]


def mask_on_canvas(mask: list | dict, view: View, size: tuple[int, int], canvas: tuple[int, int]) -> list | dict:
    """A mask of a (height, width) image as a view shows it on a canvas: polygons of its pixels where the window doesn't
    cut them, else RLE.
    """
    height, width = view.size
    if isinstance(mask, list):
        corner = np.array([view.left, 0])
        polygons = [np.reshape(p, (-1, 2)) @ view.move[:, :2].T + view.move[:, 2] for p in mask if len(p) >= 6]
        points = np.concatenate(polygons) - corner
        if (points >= -1e-6).all() and (points <= np.array([width, height]) + 1e-6).all():
            return [p.ravel().tolist() for p in polygons]
        bitmap = to_bitmap([(p - corner).ravel().tolist() for p in polygons], height, width)
    else:
        x1, y1, x2, y2 = view.window
        inside = to_bitmap(mask, *size)[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] * np.uint8(255)
        window = np.zeros((y2 - y1, x2 - x1), np.uint8)
        top, left = max(-y1, 0), max(-x1, 0)
        window[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        larger = height > y2 - y1
        bitmap = cv2.resize(window, (width, height), interpolation=cv2.INTER_LINEAR if larger else cv2.INTER_AREA) > 127
        if view.flip:
            bitmap = bitmap[:, ::-1]
    return placed_rle(bitmap.astype(bool), 0, view.left, *canvas)


def draw_objects(count: int, room: int, random: np.random.Generator) -> np.ndarray:
    """Which of `count` objects are pasted: rows (K,), ascending, any number of them as likely, up to `room`."""
    chosen = random.permutation(count)[: int(random.integers(count + 1))]
    return np.sort(chosen[: max(room, 0)])


def copy_paste(scene: Scene, other: Scene) -> tuple[Scene, np.ndarray]:
    """All objects of `other`, one or more, put on a scene of the same size: its own objects that are still seen, then
    the pasted ones; and the (K,) rows of the former.

    Both have masks; neither is changed. An own object of which something is covered gets RLE and the box of what is
    left. It is gone where that is nothing, or no more than LEAST_LEFT pixels while a side of its box has moved by more
    than MOVED. What fields hold stays, whatever then covers it.
    """
    shape = picture_size(scene.image)
    above = union([as_rle(m, *shape) for m in other.masks])
    image = np.where(rle.decode(above)[..., None] > 0, other.image, scene.image)
    beside = complement(above)
    masks, boxes, kept = list(scene.masks), scene.boxes.copy(), []
    for i, mask in enumerate(scene.masks):
        whole = as_rle(mask, *shape)
        left = union([whole, beside], intersect=True)
        area = int(rle.area(left))
        if area < rle.area(whole):
            x, y, w, h = rle.toBbox(left)
            box = np.array([x, y, x + w, y + h], np.float32)
            if not area or (area <= LEAST_LEFT and np.abs(box - boxes[i]).max() > MOVED):
                continue
            masks[i], boxes[i] = left, box
        kept.append(i)
    rows = np.array(kept, int)
    below = Scene(image, boxes, masks, scene.fields).objects(rows)
    fields = {name: np.concatenate([values, other.fields[name]]) for name, values in below.fields.items()}
    return Scene(image, np.concatenate([below.boxes, other.boxes]), below.masks + list(other.masks), fields), rows
