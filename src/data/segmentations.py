"""COCO's segmentations, polygons or run lengths, checked and brought into one form before anything decodes them."""

import numpy as np
from pycocotools import mask as rle

from src.data.records import DataError

__all__ = ["extent", "mask_area", "normal_segmentation", "run_lengths", "segmentation_json"]

FAR = 1e9  # pixels: no image reaches there

Segmentation = list[np.ndarray] | dict


def normal_segmentation(segmentation: object, height: int, width: int, where: str) -> Segmentation:
    """Polygons of three points or more, or compressed RLE of a (height, width) image, from what an annotation holds.

    Returns polygons as (2 x points,) float64 each, of which stray ones of one or two points are left out, or
    {"size", "counts": text}. Nothing is decoded before its size is known to be the image's. Raises DataError, which
    begins with `where`.
    """
    if isinstance(segmentation, list) and segmentation:
        return normal_polygons(segmentation, where)
    if isinstance(segmentation, dict) and "counts" in segmentation:
        return normal_rle(segmentation, height, width, where)
    raise DataError(f"{where}: no segmentation (polygons or RLE), which masks are learnt from; or use faster_rcnn")


def normal_polygons(segmentation: list, where: str) -> list[np.ndarray]:
    out = []
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) % 2:
            raise DataError(f"{where}: a polygon isn't a list of x, y, x, y, ...")
        try:
            points = np.array(polygon) if polygon else np.zeros(0)
        except (ValueError, OverflowError):
            points = np.array(None)
        # of a list that mixes kinds numpy makes text or objects
        if points.dtype.kind not in "fiu" or points.ndim != 1 or not (np.abs(points) < FAR).all():
            raise DataError(f"{where}: a polygon holds something that isn't a number")
        # COCO holds stray polygons of one or two points beside whole ones
        if len(points) >= 6:
            out.append(points.astype(np.float64))
    if not out:
        raise DataError(f"{where}: no polygon of three points or more")
    return out


def normal_rle(segmentation: dict, height: int, width: int, where: str) -> dict:
    size, counts = segmentation.get("size"), segmentation["counts"]
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        raise DataError(f"{where}: RLE of size {str(size)[:60]} on an image of {[height, width]}")
    if isinstance(counts, list):
        if not all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= height * width for v in counts):
            raise DataError(f"{where}: RLE counts hold something that isn't a length")
        if sum(counts) != height * width:
            raise DataError(f"{where}: RLE counts don't add up to {height} x {width} pixels")
        encoded = rle.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
        return {"size": [height, width], "counts": encoded.decode()}
    runs = run_lengths(counts)
    if runs is None:
        raise DataError(f"{where}: RLE counts that can't be decoded")
    if (runs < 0).any() or (runs > height * width).any() or int(runs.sum()) != height * width:
        raise DataError(f"{where}: RLE counts don't add up to {height} x {width} pixels; cut short, or of another size")
    text = counts.decode() if isinstance(counts, bytes) else counts
    return {"size": [height, width], "counts": text}


def run_lengths(counts: object) -> np.ndarray | None:
    """The (N,) int64 run lengths in COCO's compressed text, or None for something else.

    The text holds groups of five bits, the lowest first, a sixth bit where the number goes on, in characters from "0"
    (48) on; from the fourth number on a difference to the last but one (pycocotools, maskApi.c).
    """
    if isinstance(counts, str):
        counts = counts.encode("latin-1", "replace") if counts.isascii() else b""
    if not isinstance(counts, bytes) or not counts:
        return None
    chars = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = (chars & 32) == 0
    if (chars < 0).any() or (chars > 63).any() or not last[-1]:
        return None
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    if sizes.max() > 8:  # 40 bits; pycocotools keeps 32
        return None
    place = np.arange(len(chars)) - np.repeat(starts, sizes)
    values = np.add.reduceat((chars & 31) << (5 * place), starts)
    values -= np.where(chars[ends] & 16, np.int64(1) << (5 * sizes), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def as_rle(segmentation: Segmentation, height: int, width: int) -> dict:
    """A normal segmentation as one compressed RLE."""
    if isinstance(segmentation, dict):
        return segmentation
    return rle.merge(rle.frPyObjects([np.clip(p, -1e4, 1e5) for p in segmentation], height, width))


def mask_area(segmentation: Segmentation, height: int, width: int) -> float:
    """Pixels of a normal segmentation."""
    return float(rle.area(as_rle(segmentation, height, width)))


def extent(segmentation: Segmentation) -> np.ndarray:
    """x1 y1 x2 y2 float64 of a normal segmentation, of polygons also beyond the image; zeros for an empty mask."""
    if isinstance(segmentation, dict):
        x, y, w, h = rle.toBbox(segmentation)
        return np.array([x, y, x + w, y + h])
    points = np.concatenate(segmentation).reshape(-1, 2)
    return np.concatenate([points.min(0), points.max(0)])


def segmentation_json(segmentation: Segmentation | None) -> list | dict | None:
    """As JSON holds it."""
    return [p.tolist() for p in segmentation] if isinstance(segmentation, list) else segmentation
