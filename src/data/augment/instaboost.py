"""InstaBoost: annotated objects cut out by their masks, moved a little, and pasted back (Fang et al., 2019,
arXiv:1908.07801).

Written anew. The authors' package, instaboostfast 0.1.2, installs beside the pinned versions, but it draws from the
global states of `random` and `numpy.random`, so that an image would depend on which worker met it when; it inpaints and
warps the whole image for every group; later objects may cover earlier ones without their masks knowing; it takes no
more than 255 objects, and names no licence. Here an image's draws come from its own generator, each step works on the
part of the image that it changes, holes are filled at a lower resolution, and what is covered leaves the mask. What an
option means, and the ranges of the colours, are the package's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from pycocotools import mask as rle

from src.config import Config
from src.data.fields.base import Field
from src.data.images import picture_size
from src.data.scene import Scene
from src.data.transforms import moved_polygons, tight_box, to_bitmap

__all__ = ["instaboost"]

NEAR_BORDER = 10  # pixels: an object so near the image's border continues beyond it
HOLE_MARGIN = 3  # pixels around a mask that still show its object
RIM = 1  # pixels around a mask that are pasted with it
FILL_SIDE = 96  # pixels: holes are filled at a resolution that makes their surroundings no larger
FILL_AROUND = 16  # pixels around a hole from which it is filled
HEAT_SIDE = 96  # pixels: places are compared at a resolution that makes the image no larger
RINGS = (0.4, 0.35, 0.25)  # weights of the pixels at 1, 2, 3 pixels' distance, at that resolution
LEAST_HEAT = 0.6  # places of less than this share of the best one's likeness aren't used
MOST_LOST = 0.5  # share of an object's area that moving may push out of the image, or hide of another


@dataclass
class Group:
    """Objects that move as one, since their boxes overlap.

    members: their rows; corner: x, y of the patch; patch: their masks' union there, uint8 0 or 1; move: (2, 3), from
    coordinates of the image, in which pixel 0 covers 0..1, to where they go.
    """

    members: list[int]
    corner: tuple[int, int]
    patch: np.ndarray
    move: np.ndarray
    still: bool = True  # near a border, so that a place elsewhere would show where it was cut


def instaboost(
    scene: Scene, config: Config, random: np.random.Generator, carried: Sequence[Field] = ()
) -> tuple[Scene, np.ndarray]:
    """A scene with its objects moved, and the (K,) rows of those that are left of the N: what is wholly covered goes.

    The scene given stays as it was. carried: the fields of its objects; they go where the objects go, whatever then
    covers them.
    """
    groups = [make_group(scene, members) for members in overlapping(scene.boxes)]
    moving = [g for g in groups if g is not None and draw_move(g, scene, config, random)]
    masks, boxes = list(scene.masks), scene.boxes.copy()
    fields = {f.name: scene.fields[f.name].copy() for f in carried}
    image, kept = scene.image, np.arange(len(boxes))
    if moving:
        hole = hole_of(moving, picture_size(image))
        background = image.copy()
        for g in moving:
            fill_hole(background, hole, g)
        image = background.copy()
        changed: set[int] = set()
        for g in moving:
            if config.heatmap_flag and not g.still:
                to_like_surroundings(g, scene.image, background, random)
            if not paste(g, scene, image, masks, changed):
                put_back(g, scene.image, image, hole)
                continue
            for f in carried:
                fields[f.name][g.members] = f.moved(fields[f.name][g.members], g.move)
        kept = update_boxes(boxes, masks, sorted(changed), picture_size(image))
    if random.random() < config.color_prob:
        image = jitter_colours(image, random)
    return Scene(image, boxes, masks, fields).objects(kept), kept


def overlapping(boxes: np.ndarray) -> list[list[int]]:
    """Rows of boxes (N, 4) in groups that are connected by overlaps, in order of their first rows."""
    touch = (boxes[:, None, :2] < boxes[None, :, 2:]).all(2) & (boxes[None, :, :2] < boxes[:, None, 2:]).all(2)
    group = np.arange(len(boxes))
    for i in range(len(boxes)):
        near = np.unique(group[touch[i]])
        group[np.isin(group, near)] = near.min(initial=i)
    return [np.flatnonzero(group == g).tolist() for g in np.unique(group)]


def make_group(scene: Scene, members: list[int]) -> Group | None:
    """The group with its patch, standing still; None where its masks hold no pixel."""
    height, width = scene.image.shape[:2]
    boxes = scene.boxes[members]
    x1, y1 = np.floor(boxes[:, :2].min(0)).astype(int).tolist()
    x2, y2 = np.minimum(np.ceil(boxes[:, 2:].max(0)).astype(int), [width, height]).tolist()
    patch = np.zeros((y2 - y1, x2 - x1), np.uint8)
    for i in members:
        patch |= patch_of(scene.masks[i], (x1, y1), picture_size(patch), (height, width))
    return Group(members, (x1, y1), patch, np.eye(2, 3)) if patch.any() else None


def patch_of(
    mask: list | dict, corner: tuple[int, int], shape: tuple[int, int], image_shape: tuple[int, int]
) -> np.ndarray:
    """A mask's part in the rectangle of `shape` (height, width) at `corner`, uint8 0 or 1."""
    if isinstance(mask, list):
        polygons = moved_polygons(mask, np.array(corner, np.float64), np.ones(2))
        return rle.decode(rle.merge(rle.frPyObjects(polygons, *shape)))
    x, y = corner
    return to_bitmap(mask, *image_shape)[y : y + shape[0], x : x + shape[1]]


def draw_move(g: Group, scene: Scene, config: Config, random: np.random.Generator) -> bool:
    """Draws what happens to a group into `g.move`; False if nothing.

    A group near the image's border is neither flipped nor turned nor made smaller, and moves towards that border only:
    so the side where the image cuts it stays hidden.
    """
    height, width = scene.image.shape[:2]
    (x, y), (h, w) = g.corner, g.patch.shape
    near = (x < NEAR_BORDER, y < NEAR_BORDER, x + w > width - NEAR_BORDER, y + h > height - NEAR_BORDER)
    action = draw_action(config, any(near), random)
    if action == "skip":
        return False
    scale = random.uniform(config.scale[0], config.scale[1])
    angle = np.deg2rad(random.uniform(config.theta[0], config.theta[1]))
    shift = random.uniform(-1, 1, 2) * [w / config.dx, h / config.dy]
    g.still = any(near)
    if g.still:
        scale, angle = max(scale, 1.0), 0.0
        for axis in (0, 1):
            low, high = (0 if near[axis + 2] else -np.inf), (0 if near[axis] else np.inf)
            shift[axis] = np.clip(shift[axis], low, high)
    mirror = np.diag([-1.0 if action == "horizontal" else 1.0, -1.0 if action == "vertical" else 1.0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear, centre = scale * turn @ mirror, np.array([x + w / 2, y + h / 2])
    g.move = np.column_stack([linear, centre + shift - linear @ centre])
    return True


def draw_action(config: Config, no_flip: bool, random: np.random.Generator) -> str:
    """One of config.action_candidate by config.action_prob, of those without a flip if so asked."""
    names, shares = config.action_candidate, np.array(config.action_prob)
    if no_flip:
        shares = np.where([n in ("horizontal", "vertical") for n in names], 0, shares)
    if not shares.any():
        return "skip"
    place = random.random() * shares.sum()
    return names[int(np.searchsorted(np.cumsum(shares), place, side="right").clip(0, len(names) - 1))]


# ---------------------------------------------------------------------------------------------------------
# the background


def hole_of(groups: list[Group], shape: tuple[int, int]) -> np.ndarray:
    """Where the groups were, and HOLE_MARGIN pixels around, (H, W) uint8 0 or 1."""
    hole = np.zeros(shape, np.uint8)
    for g in groups:
        (x, y), (h, w) = g.corner, g.patch.shape
        hole[y : y + h, x : x + w] |= g.patch
    return cv2.dilate(hole, np.ones((2 * HOLE_MARGIN + 1,) * 2, np.uint8))


def around(g: Group, margin: int, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a group's patch with a margin, within the image."""
    (x, y), (h, w) = g.corner, g.patch.shape
    return (
        slice(max(y - margin, 0), min(y + h + margin, shape[0])),
        slice(max(x - margin, 0), min(x + w + margin, shape[1])),
    )


def fill_hole(background: np.ndarray, hole: np.ndarray, g: Group) -> None:
    """Fills a group's part of the hole from around it (Telea, 2004), at a low resolution, in place."""
    inner = around(g, HOLE_MARGIN, picture_size(hole))
    outer = around(g, HOLE_MARGIN + FILL_AROUND, picture_size(hole))
    part, unknown = background[outer], hole[outer]
    height, width = unknown.shape
    shrink = min(1.0, FILL_SIDE / max(height, width))
    size = (max(round(width * shrink), 1), max(round(height * shrink), 1))
    small = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
    small_hole = (cv2.resize(unknown * np.uint8(255), size, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
    small = cv2.inpaint(small, small_hole, 3, cv2.INPAINT_TELEA)
    filled = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    top, left = inner[0].start - outer[0].start, inner[1].start - outer[1].start
    rows, columns = inner[0].stop - inner[0].start, inner[1].stop - inner[1].start
    filled = filled[top : top + rows, left : left + columns]
    background[inner] = np.where(hole[inner][..., None] > 0, filled, background[inner])


def put_back(g: Group, original: np.ndarray, image: np.ndarray, hole: np.ndarray) -> None:
    """Undoes a group's hole, in place."""
    where = around(g, HOLE_MARGIN, picture_size(hole))
    image[where] = np.where(hole[where][..., None] > 0, original[where], image[where])


# ---------------------------------------------------------------------------------------------------------
# the objects


def to_like_surroundings(g: Group, original: np.ndarray, background: np.ndarray, random: np.random.Generator) -> None:
    """Moves a group to a place drawn by how much its surroundings look like the group's own, in place.

    The paper's appearance consistency heat map: the weighted distance of the colours in rings around the object, here
    of their squares, which is one matchTemplate. As in the authors' program its cube decides, above a threshold.
    """
    height, width = original.shape[:2]
    shrink = min(1.0, HEAT_SIDE / max(height, width))
    reach = round(len(RINGS) / shrink)
    rows, columns = around(g, reach, (height, width))
    mask = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
    top, left = g.corner[1] - rows.start, g.corner[0] - columns.start
    mask[top : top + g.patch.shape[0], left : left + g.patch.shape[1]] = g.patch
    size = (max(round(mask.shape[1] * shrink), 3), max(round(mask.shape[0] * shrink), 3))
    small_size = (max(round(width * shrink), size[0]), max(round(height * shrink), size[1]))
    small_mask = (cv2.resize(mask * np.uint8(255), size, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
    distance = cv2.distanceTransform(1 - small_mask, cv2.DIST_C, 3)
    weights = np.zeros_like(distance)
    for ring, weight in enumerate(RINGS, 1):
        weights[np.round(distance) == ring] = weight
    if not weights.any():
        return
    template = cv2.resize(original[rows, columns], size, interpolation=cv2.INTER_AREA).astype(np.float32)
    search = cv2.resize(background, small_size, interpolation=cv2.INTER_AREA).astype(np.float32)
    weights = np.repeat(np.sqrt(weights)[..., None], 3, 2)
    unlike = np.maximum(cv2.matchTemplate(search, template, cv2.TM_SQDIFF, mask=weights), 0)
    unlike = np.sqrt(np.where(np.isfinite(unlike), unlike, unlike[np.isfinite(unlike)].max(initial=0)))
    span = unlike.max() - unlike.min()
    if not span > 0:
        return
    likeness = (1 - (unlike - unlike.min()) / span) ** 3
    likeness[likeness < LEAST_HEAT] = 0
    total = np.cumsum(likeness)
    cell = min(int(np.searchsorted(total, random.random() * total[-1], side="right")), total.size - 1)
    to_y, to_x = np.unravel_index(cell, likeness.shape)
    jump = np.array([to_x / shrink - columns.start, to_y / shrink - rows.start])
    g.move = g.move + np.column_stack([np.zeros((2, 2)), jump])


def paste(g: Group, scene: Scene, image: np.ndarray, masks: list, changed: set[int]) -> bool:
    """Pastes a group where it moves, into `image`, in place; its masks go with it, those it covers lose what is hidden.

    `changed` collects the rows of masks that are no longer what they were. False, and nothing is done, if too much
    would leave the image or be hidden.
    """
    height, width = image.shape[:2]
    (x, y), (h, w) = g.corner, g.patch.shape
    corners = np.array([[x, x + w, x, x + w], [y, y, y + h, y + h], [1, 1, 1, 1]])
    reached = g.move @ corners
    x1, y1 = np.maximum(np.floor(reached.min(1)).astype(int) - 1, 0)
    x2, y2 = np.minimum(np.ceil(reached.max(1)).astype(int) + 1, [width, height])
    if x2 <= x1 or y2 <= y1:
        return False
    rows, columns = around(g, RIM + 2, (height, width))
    source = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
    source[y - rows.start : y - rows.start + h, x - columns.start : x - columns.start + w] = g.patch * 255
    local = local_move(g.move, (columns.start, rows.start), (x1, y1))
    size = (int(x2 - x1), int(y2 - y1))
    # with the pixels around it: what is half object and half background must stay as bright as it was
    grown = cv2.dilate(source, np.ones((2 * RIM + 1,) * 2, np.uint8))
    alpha = cv2.warpAffine(cv2.GaussianBlur(grown, (3, 3), 0), local, size, flags=cv2.INTER_LINEAR)
    covered = cv2.warpAffine(source, local, size, flags=cv2.INTER_LINEAR) > 127
    expected = g.patch.sum() * abs(np.linalg.det(g.move[:, :2]))
    if covered.sum() < MOST_LOST * expected:
        return False
    hidden = hidden_parts(g, masks, covered, (int(x1), int(y1)), (height, width))
    if hidden is None:
        return False
    for i, mask in hidden.items():
        masks[i] = mask
    for i in g.members:
        masks[i] = moved_mask(masks[i], g.move, (height, width))
    changed.update(hidden, g.members)
    pixels = cv2.warpAffine(
        scene.image[rows, columns], local, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    part = image[y1:y2, x1:x2]
    share = alpha[..., None].astype(np.float32) / 255
    part[:] = np.round(part + (pixels.astype(np.float32) - part) * share)
    return True


def local_move(move: np.ndarray, source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """A move as OpenCV wants it, between patches at these corners, by the indices of pixels (their centres)."""
    linear = move[:, :2]
    shift = linear @ (np.array(source) + 0.5) + move[:, 2] - 0.5 - np.array(target)
    return np.column_stack([linear, shift])


def hidden_parts(
    g: Group, masks: list, covered: np.ndarray, corner: tuple[int, int], shape: tuple[int, int]
) -> dict[int, dict] | None:
    """Masks of other objects, by row, less what `covered`, at `corner`, hides; None if that is too much of one."""
    (x, y), (h, w) = corner, covered.shape
    out = {}
    for i, mask in enumerate(masks):
        if i in g.members or not may_touch(mask, x, y, w, h):
            continue
        patch = patch_of(mask, corner, (h, w), shape)
        lost = int((patch.astype(bool) & covered).sum())
        if not lost:
            continue
        bitmap = to_bitmap(mask, *shape)
        if lost > MOST_LOST * bitmap.sum():
            return None
        bitmap[y : y + h, x : x + w][covered] = 0
        out[i] = rle.encode(np.asfortranarray(bitmap))
    return out


def may_touch(mask: list | dict, x: int, y: int, w: int, h: int) -> bool:
    """Whether a mask of polygons can reach a rectangle; always for RLE."""
    if not isinstance(mask, list):
        return True
    points = np.concatenate([np.reshape(p, (-1, 2)) for p in mask if len(p) >= 6])
    return bool((points.max(0) > [x, y]).all() and (points.min(0) < [x + w, y + h]).all())


def moved_mask(mask: list | dict, move: np.ndarray, shape: tuple[int, int]) -> list | dict:
    """Polygons stay polygons, beyond the image's border too; RLE is drawn anew."""
    if isinstance(mask, list):
        return [(np.reshape(p, (-1, 2)) @ move[:, :2].T + move[:, 2]).ravel().tolist() for p in mask if len(p) >= 6]
    bitmap = to_bitmap(mask, *shape) * np.uint8(255)
    moved = cv2.warpAffine(bitmap, local_move(move, (0, 0), (0, 0)), shape[::-1], flags=cv2.INTER_LINEAR)
    return rle.encode(np.asfortranarray((moved > 127).astype(np.uint8)))


def update_boxes(boxes: np.ndarray, masks: list, changed: list[int], shape: tuple[int, int]) -> np.ndarray:
    """Gives the `changed` rows the boxes of their masks, in place; returns the rows of all that have any."""
    height, width = shape
    gone: list[int] = []
    box: np.ndarray | None
    for i in changed:
        if isinstance(masks[i], list):
            points = np.concatenate([np.reshape(p, (-1, 2)) for p in masks[i]])
            box = np.array([*points.min(0), *points.max(0)])
            inside = np.clip(box, 0, [width, height, width, height])
            if (inside != box).any():
                box = (
                    tight_box(masks[i], inside, np.ones(2), height, width) if (inside[2:] > inside[:2]).all() else None
                )
        else:
            box = tight_box(masks[i], np.array([0, 0, width, height]), np.ones(2), height, width)
        if box is None:
            gone.append(i)
        else:
            boxes[i] = box
    return np.setdiff1d(np.arange(len(boxes)), gone)


def jitter_colours(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Saturation, brightness, contrast and sharpness of an image (H, W, 3) uint8, each by a factor, in another one."""
    saturation, sharpness = random.uniform(0, 3, 2)
    brightness, contrast = random.uniform(1, 2, 2)
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    image = cv2.addWeighted(image, saturation, grey, 1 - saturation, 0)
    image = cv2.convertScaleAbs(image, alpha=brightness)
    mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))[0]
    image = cv2.LUT(image, np.clip(np.round(mean + (np.arange(256) - mean) * contrast), 0, 255).astype(np.uint8))
    smooth = cv2.filter2D(image, -1, np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13)
    return cv2.addWeighted(image, sharpness, smooth, 1 - sharpness, 0)
