"""Mask probabilities of detections as run-length encodings of the image, without drawing them.

Along an image column, a bilinearly enlarged mask is a chain of straight pieces between the mask's own rows, so it
crosses the threshold at most once between two of them. The crossings are COCO's run lengths: all columns of all
detections are solved together, at a cost that doesn't grow with the boxes' height.
"""

from typing import Literal

import numpy as np
from pycocotools import mask as rle

__all__ = ["Convention", "paste_masks"]

Convention = Literal["torchvision", "grid"]

FAR = 1e7  # pixels; a box is cut there, so that whole-pixel arithmetic can't overflow


def paste_masks(
    masks: np.ndarray,
    boxes: np.ndarray,
    height: int,
    width: int,
    threshold: float = 0.5,
    convention: Convention = "torchvision",
) -> list[dict]:
    """COCO's compressed RLE ({"size": [height, width], "counts": text}) of each detection's mask in the image.

    masks (N, M, M) float probabilities, or uint8 with 255 for 1; boxes (N, 4) float32 x1 y1 x2 y2 in pixels of the
    image, which they may leave. Equal to pycocotools' encoding of the whole bitmap.

    "torchvision" pads the mask by a cell, enlarges the box to match, cuts it to whole pixels and resizes the mask to
    it; a pixel is set above the threshold. "grid" (Detectron2, mmdetection) samples the mask at each pixel's centre
    over the box as it is, zero outside; a pixel is set from the threshold on. Both are bilinear. A box without area
    holds one pixel in the first convention, none in the second; a box that isn't finite holds none.

    Raises ValueError where the shapes don't fit together or the convention is unknown.
    """
    masks, boxes = np.asarray(masks), np.asarray(boxes, np.float32)
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or boxes.shape != (len(masks), 4):
        raise ValueError(f"expected masks (N, M, M) and boxes (N, 4), got {masks.shape} and {boxes.shape}")
    if convention not in ("torchvision", "grid"):
        raise ValueError(f"convention {convention!r} is neither 'torchvision' nor 'grid'")
    if not len(masks):
        return []
    finite = np.isfinite(boxes).all(1)
    boxes = np.clip(np.where(finite[:, None], boxes, 0), -FAR, FAR)
    place = place_torchvision if convention == "torchvision" else place_grid
    offset, slope, some = place(boxes, masks.shape[1])
    strict = convention == "torchvision"
    edges, owner = find_edges(pad(masks), offset, slope, finite & some, height, width, threshold, strict)
    return encode_edges(edges, owner, len(masks), height, width)


def pad(masks: np.ndarray) -> np.ndarray:
    """(N, M, M) -> (N, M + 2, M + 2) float32 with zeros around, columns first: a column's values lie together."""
    n, side, _ = masks.shape
    padded = np.zeros((n, side + 2, side + 2), np.float32)
    padded[:, 1:-1, 1:-1] = masks.transpose(0, 2, 1)
    if masks.dtype == np.uint8:
        padded *= np.float32(1 / 255)
    return padded


def place_torchvision(boxes: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where image pixels lie in the padded mask: pixel i at offset + slope * i, offset and slope (N, 2) for x and y.

    The third (N,) bool: the box holds pixels at all.
    """
    # float32 in this order, as there: an enlarged corner on a whole pixel may fall either way
    half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5) * np.float32((side + 2) / side)
    centre = (boxes[:, 2:] + boxes[:, :2]) * np.float32(0.5)
    low, high = np.trunc(centre - half).astype(np.float64), np.trunc(centre + half).astype(np.float64)
    slope = (side + 2) / np.maximum(high - low + 1, 1)
    return (0.5 - low) * slope - 0.5, slope, (high >= low).all(1)


def place_grid(boxes: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As place_torchvision, over the box as it is."""
    boxes = boxes.astype(np.float64)
    size = boxes[:, 2:] - boxes[:, :2]
    some = (size > 0).all(1)
    slope = side / np.where(some[:, None], size, 1)
    return (0.5 - boxes[:, :2]) * slope + 0.5, slope, some


def find_edges(
    padded: np.ndarray,
    offset: np.ndarray,
    slope: np.ndarray,
    some: np.ndarray,
    height: int,
    width: int,
    threshold: float,
    strict: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, counted down the columns, where runs of set pixels begin and end in turn, and the masks they belong to.

    Both (E,) int64, masks ascending and pixels ascending within a mask; even in number within a mask.
    """
    n, nodes, _ = padded.shape
    # the columns where the mask isn't zero for certain: those that lie between its outermost values
    first = np.clip(np.floor(-offset[:, 0] / slope[:, 0]), 0, width).astype(np.int64)
    last = np.clip(np.ceil((nodes - 1 - offset[:, 0]) / slope[:, 0]) + 1, 0, width).astype(np.int64)
    columns = np.where(some, np.maximum(last - first, 0), 0)
    mask = np.repeat(np.arange(n), columns)
    x = np.arange(len(mask)) - np.repeat(np.cumsum(columns) - columns - first, columns)

    position = np.clip(offset[mask, 0] + slope[mask, 0] * x, 0, nodes - 1)
    node = np.minimum(position.astype(np.int64), nodes - 2)
    share = (position - node).astype(np.float32)[:, None]
    flat = padded.reshape(n * nodes, nodes)
    values = flat[mask * nodes + node]
    values += share * (flat[mask * nodes + node + 1] - values)

    # where the threshold is 0 too, nothing outside the box is set
    least = np.float32(max(threshold, float(np.finfo(np.float32).tiny)))
    inside = values > least if strict else values >= least
    place = np.flatnonzero(inside[:, 1:] != inside[:, :-1])
    column, node = np.divmod(place, nodes - 1)
    before, after = values[column, node].astype(np.float64), values[column, node + 1].astype(np.float64)
    owner = mask[column]
    crossing = node + (threshold - before) / (after - before)
    y = (crossing - offset[owner, 1]) / slope[owner, 1]
    # a pixel exactly at the threshold belongs to the lower side where `strict`, else to the upper
    after_it = (after > before) == strict
    row = np.clip(np.where(after_it, np.floor(y) + 1, np.ceil(y)), 0, height).astype(np.int64)
    return x[column] * height + row, owner


def encode_edges(edges: np.ndarray, owner: np.ndarray, n: int, height: int, width: int) -> list[dict]:
    """RLE of `n` masks from find_edges' answer."""
    pixels = height * width
    keys = np.maximum.accumulate(edges + owner * (pixels + 1))
    # edges that meet cancel: a run without pixels, or one that goes on (at the top of the next column, too)
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
    kept = starts[np.diff(np.concatenate([starts, [len(keys)]])) % 2 == 1]
    edges, owner = keys[kept] - owner[kept] * (pixels + 1), owner[kept]

    held = np.bincount(owner, minlength=n)
    begin = np.concatenate([[0], np.cumsum(held + 2)])
    bounds = np.zeros(begin[-1], np.int64)
    bounds[begin[1:] - 1] = pixels
    bounds[np.arange(len(edges)) + 2 * owner + 1] = edges
    runs = np.diff(bounds).astype(np.uint32)
    uncompressed = []
    for i in range(n):
        counts = runs[begin[i] : begin[i + 1] - 1]
        # pycocotools begins with an empty run where the first pixel is set, but doesn't end with one
        uncompressed.append({"size": [height, width], "counts": counts if counts[-1] else counts[:-1]})
    encoded = rle.frPyObjects(uncompressed, height, width)
    return [{"size": [height, width], "counts": e["counts"].decode()} for e in encoded]
