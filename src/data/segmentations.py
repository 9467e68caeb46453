"""COCO's segmentations, polygons or run lengths, checked and brought into one form before anything decodes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import numpy as np
from pycocotools import mask as rle

from src.data.records import DataError

__all__ = [
    "as_rle",
    "complement",
    "covers_nothing",
    "demand_room",
    "demand_short",
    "drawing_work",
    "extent",
    "mask_area",
    "normal_segmentation",
    "placed_rle",
    "run_totals",
    "segmentation_json",
    "union",
]

BYTES_AT_ONCE = 1 << 16  # arrays that stay in the cache
FAR = 10  # sides of its image that a polygon may reach beyond it
LONGEST = 2_000_000  # pixels around the polygons of a mask: filling them takes time and memory by that, some 0.2 s
UNCOUNTED = 10_000  # pixels around, which aren't worth being counted

Segmentation = Union[list[np.ndarray], dict]


def normal_segmentation(
    segmentation: object, height: int, width: int, where: str, check_runs: bool = True
) -> Segmentation:
    """Polygons of three points or more, or compressed RLE of a (height, width) image, from what an annotation holds.

    Returns polygons as (2 x points,) float64 each, of which stray ones of one or two points are left out, or
    {"size", "counts": text}. Nothing is decoded before its size is known to be the image's. check_runs: whether RLE
    text fills the image is checked here; else run_totals does it for many at once: pycocotools goes on for ever with
    runs that don't. Raises DataError, which begins with `where`.
    """
    if isinstance(segmentation, list) and segmentation:
        return normal_polygons(segmentation, height, width, where)
    if isinstance(segmentation, dict) and segmentation:
        return normal_rle(segmentation, height, width, where, check_runs)
    if segmentation:
        raise DataError(f"{where}: segmentation {str(segmentation)[:40]!r} is neither polygons nor RLE")
    raise DataError(f"{where}: no segmentation (polygons or RLE), which masks are learnt from; or use faster_rcnn")


def normal_polygons(segmentation: list, height: int, width: int, where: str) -> list[np.ndarray]:
    out, around, far = [], 0.0, FAR * max(height, width)
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) % 2:
            raise DataError(f"{where}: a polygon isn't a list of x, y, x, y, ...")
        try:
            points = np.array(polygon) if polygon else np.zeros(0)
        except (ValueError, OverflowError):
            points = np.array(None)
        # of a list that mixes kinds numpy makes text or objects
        flat = points.dtype.kind in "fiu" and points.ndim == 1
        low, high = (points.min(initial=0), points.max(initial=0)) if flat else (-np.inf, np.inf)
        # written so that what isn't a number fails
        if not (low >= -far and high <= far):
            raise DataError(f"{where}: a polygon holds something that is no place in or near the image")
        # COCO holds stray polygons of one or two points beside whole ones
        if len(points) >= 6:
            out.append(points.astype(np.float64))
            # at most: every edge as long as the polygon
            around += len(points) / 2 * float(high - low)
    if not out:
        raise DataError(f"{where}: no polygon of three points or more")
    if around > LONGEST:
        demand_short(out, where)
    return out


def drawing_work(segmentation: Segmentation, bounds: np.ndarray) -> float:
    """Pixels around the polygons of a normal segmentation of that extent; 0 where that can't be much, and for run
    lengths."""
    if isinstance(segmentation, dict):
        return 0.0
    left, top, right, bottom = bounds.tolist()
    most = sum(map(len, segmentation)) / 2 * max(right - left, bottom - top)
    return sum(map(perimeter, segmentation)) if most > UNCOUNTED else 0.0


def demand_room(polygons: list[np.ndarray], height: int, width: int, where: str) -> None:
    """Raises DataError, which begins with `where`, where all polygons of an image, (2 x points,), are longer around
    than outlines in it can be."""
    room = max(LONGEST, height * width / 2)
    if sum(map(len, polygons)) // 2 * max(height, width) > room and (around := sum(map(perimeter, polygons))) > room:
        raise DataError(f"{where}: its polygons are {around:.0f} pixels around, more than {room:.0f}; simplify them")


def demand_short(polygons: list[np.ndarray], where: str) -> None:
    """Raises DataError, which begins with `where`, for polygons (2 x points,) too long around to be filled."""
    if (around := sum(map(perimeter, polygons))) > LONGEST:
        raise DataError(f"{where}: its polygons are {around:.0f} pixels around, more than {LONGEST:,}")


def perimeter(polygon: np.ndarray) -> float:
    """Pixels that drawing a polygon's edges passes."""
    corners = polygon.reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, 0)).max(1).sum())


def normal_rle(segmentation: dict, height: int, width: int, where: str, check_runs: bool) -> dict:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        raise DataError(f"{where}: RLE of size {str(size)[:60]} on an image of {[height, width]}")
    if isinstance(counts, list):
        if not all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= height * width for v in counts):
            raise DataError(f"{where}: RLE counts hold something that isn't a length")
        if sum(counts) != height * width:
            raise DataError(f"{where}: RLE counts add up to {sum(counts)}, not to {height} x {width} pixels")
        encoded = rle.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
        return {"size": [height, width], "counts": encoded.decode()}
    text = counts.decode("latin-1") if isinstance(counts, bytes) else counts
    if not isinstance(text, str):
        raise DataError(f"{where}: RLE counts {str(counts)[:40]!r} are neither text nor a list")
    if check_runs:
        total = int(run_totals([text])[0])
        if total < 0:
            raise DataError(f"{where}: RLE counts that can't be decoded")
        if total != height * width:
            raise DataError(
                f"{where}: RLE counts add up to {total}, not to {height} x {width} pixels; cut short, or of another"
                " size"
            )
    return {"size": [height, width], "counts": text}


def run_totals(texts: Sequence[str]) -> np.ndarray:
    """How many pixels the runs of each RLE text cover, (N,) int64; -1 for a text that isn't one.

    A text holds numbers of 5 bits a character, the lowest first; from the fourth on, what a run is longer than the last
    but one (pycocotools' maskApi.c).
    """
    out = np.full(len(texts), -1, np.int64)
    data = [t.encode("utf-8", "surrogatepass") for t in texts]
    ends = np.cumsum([len(d) for d in data], dtype=np.int64)
    start = 0
    while start < len(data):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + BYTES_AT_ONCE)))
        out[start:stop] = _totals(data[start:stop])
        start = stop
    return out


def _totals(data: list[bytes]) -> np.ndarray:
    lengths = np.array([len(d) for d in data])
    out = np.where(lengths == 0, 0, -1)
    if not lengths.any():
        return out
    held = np.flatnonzero(lengths)
    value = np.frombuffer(b"".join(data), np.uint8).astype(np.int64) - 48
    mask_of_character = np.repeat(np.arange(len(held)), lengths[held])
    bad = np.zeros(len(held), bool)
    bad[mask_of_character[(value < 0) | (value > 63)]] = True

    last = np.cumsum(lengths[held]) - 1
    closes = (value & 32) == 0
    bad |= ~closes[last]
    closes[last] = True
    stop = np.flatnonzero(closes) + 1
    start = np.concatenate([[0], stop[:-1]])
    digits = stop - start
    owner = mask_of_character[start]
    bad[owner[digits > 7]] = True
    place = np.minimum(np.arange(len(value)) - np.repeat(start, digits), 11)
    number = np.add.reduceat((value & 31) << (5 * place), start)
    number -= np.where(value[stop - 1] & 16, np.int64(1) << (5 * np.minimum(digits, 12)), 0)

    first = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
    rank = np.arange(len(number)) - first[owner]
    runs = number.copy()
    for chosen in (rank % 2 == 1, (rank % 2 == 0) & (rank > 0)):
        runs[chosen] = _sums_within(number[chosen], owner[chosen])
    bad[owner[(runs < 0) | (runs >> 32 > 0)]] = True
    out[held] = np.where(bad, -1, np.add.reduceat(runs, first))
    return out


def _sums_within(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Cumulative sums that begin anew where `group`, ascending, changes."""
    total = np.cumsum(values)
    begins = np.concatenate([[True], group[1:] != group[:-1]]) if len(group) else np.zeros(0, bool)
    return total - np.repeat((total - values)[begins], np.diff(np.append(np.flatnonzero(begins), len(group))))


def as_rle(segmentation: Segmentation, height: int, width: int) -> dict:
    """A normal segmentation as one compressed RLE."""
    if isinstance(segmentation, dict):
        return segmentation
    return union(rle.frPyObjects(segmentation, height, width))


def union(parts: Sequence[dict], intersect: bool = False) -> dict:
    """Compressed RLE, one or more, as one of text: of what any of them covers, or all of them do."""
    parts = list(parts)
    # by and by, as each merge reads all runs so far
    while len(parts) > 1:
        parts = [rle.merge(parts[i : i + 16], intersect=intersect) for i in range(0, len(parts), 16)]
    counts = parts[0]["counts"]
    return {"size": list(parts[0]["size"]), "counts": counts if isinstance(counts, str) else counts.decode()}


def complement(mask: dict) -> dict:
    """Compressed RLE of the pixels that `mask`, such a one, doesn't cover."""
    text = mask["counts"]
    runs: list[int] = []
    value = shift = 0
    for character in text.encode() if isinstance(text, str) else text:
        value |= (character - 48 & 31) << shift
        shift += 5
        if not character - 48 & 32:
            value -= (1 << shift) if character - 48 & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    runs = runs[1:] if len(runs) > 1 and not runs[0] else [0, *runs]
    return rle.frPyObjects({"size": mask["size"], "counts": runs}, *mask["size"])


def placed_rle(bitmap: np.ndarray, top: int, left: int, height: int, width: int) -> dict:
    """A bitmap (h, w) bool at a place of an image, in which it lies, as compressed RLE of that image."""
    columns = np.zeros((bitmap.shape[1], bitmap.shape[0] + 2), bool)
    columns[:, 1:-1] = bitmap.T
    flat = columns.ravel()
    column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), columns.shape[1])
    edges = (left + column) * height + top + row
    # a run that ends where the next begins, in the column after it
    ends, begins = edges[1:-1:2], edges[2::2]
    split = np.flatnonzero(ends == begins) * 2 + 1
    edges = np.delete(edges, np.concatenate([split, split + 1]))
    edges = np.concatenate([[0], edges, [height * width]])
    runs = np.diff(edges[:-1] if len(edges) > 2 and edges[-2] == edges[-1] else edges)
    return rle.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)


def mask_area(segmentation: Segmentation, height: int, width: int) -> float:
    """Pixels of a normal segmentation."""
    return float(rle.area(as_rle(segmentation, height, width)))


def covers_nothing(segmentation: Segmentation, bounds: np.ndarray, height: int, width: int) -> bool:
    """Whether a normal segmentation of that extent has no pixel, as thin polygons between pixels' centres don't."""
    left, top, right, bottom = bounds.tolist()
    if isinstance(segmentation, list) and left >= 0 and top >= 0 and right <= width and bottom <= height:
        # most enclose so much that some pixel is among it; drawing all of a large set would take minutes
        for points in segmentation:
            x, y = points[::2], points[1::2]
            twice = x[:-1].dot(y[1:]) - x[1:].dot(y[:-1]) + x[-1] * y[0] - x[0] * y[-1]
            if abs(twice) > 4 * (right - left + bottom - top):
                return False
    return not mask_area(segmentation, height, width)


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
