"""Masks of every form that COCO has (polygons, runs as a list or as text) as run-length text that fills its image."""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as rle

__all__ = ["as_rle", "run_totals"]

BYTES_AT_ONCE = 1 << 16  # arrays that stay in the cache
FAR = 10  # sides of its image that a polygon may reach beyond it
LONGEST = 2_000_000  # pixels around the polygons of a mask: filling them takes time and memory by that


def as_rle(segmentation: object, height: int, width: int) -> dict:
    """A mask in an image of (height, width) as {"size": [height, width], "counts": text}.

    Raises ValueError, which says what is wrong. Text is taken as it is: run_totals, for many at once, tells whether its
    runs fill the image. pycocotools goes on for ever with runs that don't, and reads past the end of a cut number.
    """
    if isinstance(segmentation, dict):
        return {"size": [height, width], "counts": _checked_counts(segmentation, height, width)}
    if not isinstance(segmentation, list):
        raise ValueError(f"segmentation {str(segmentation)[:40]!r} is neither polygons nor RLE")
    mask = rle.merge(rle.frPyObjects(whole_polygons(segmentation, height, width), height, width))
    return {"size": [height, width], "counts": mask["counts"].decode()}


def whole_polygons(segmentation: list, height: int, width: int) -> list[list[float]]:
    """The polygons of three points or more of a mask in an image of (height, width). Raises ValueError."""
    reach = FAR * max(height, width)
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) % 2:
            raise ValueError("a polygon of its segmentation isn't a list of x, y, x, y, ...")
        for v in polygon:
            if isinstance(v, bool) or not isinstance(v, (int, float)) or not -reach <= v <= reach + max(height, width):
                raise ValueError(f"a polygon of its segmentation holds {str(v)[:40]}, no place in or near its image")
    # tools leave stray polygons of one or two points beside whole ones
    whole = [p for p in segmentation if len(p) >= 6]
    if not whole:
        raise ValueError("its segmentation has no polygon of three points or more")
    around = 0.0
    for p in whole:
        xy = np.array(p, np.float64).reshape(-1, 2)
        around += float(np.abs(xy - np.roll(xy, 1, 0)).max(1).sum())
    if around > LONGEST:
        raise ValueError(f"the polygons of its segmentation are {around:.0f} pixels around")
    return whole


def _checked_counts(segmentation: dict, height: int, width: int) -> str:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    try:
        fits = [int(v) for v in size] == [height, width]
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise ValueError(f"RLE of size {str(size)[:40]} on an image of {[height, width]}")
    if isinstance(counts, list):
        if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in counts):
            raise ValueError("RLE counts hold something that isn't a length")
        if sum(counts) != height * width:
            raise ValueError(f"RLE counts add up to {sum(counts)} of {height} x {width} pixels")
        return rle.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"].decode()
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if not isinstance(counts, str):
        raise ValueError(f"RLE counts {str(counts)[:40]!r} are neither text nor a list")
    return counts


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
