"""Class-balanced sampling: images of rare classes come more often than once an epoch.

The repeat factors of LVIS (Gupta et al., 2019, arXiv:1908.03195), in an epoch of a length that doesn't change.
"""

from collections.abc import Sequence

import numpy as np

__all__ = ["UNIT", "draw_copies", "earlier_copies", "repeat_factors"]

UNIT = 1 << 20  # factors are whole multiples of 1 / UNIT, so that their sum is exact


def repeat_factors(classes: Sequence[Sequence[int]], threshold: float) -> np.ndarray:
    """How often an epoch holds each of N images, (N,) int64 in parts of UNIT: max(1, sqrt(threshold / f)).

    classes: the labels in each image; f: the share of the images that the rarest of them is in. 1 for an image without.
    """
    owner = np.repeat(np.arange(len(classes)), [len(c) for c in classes])
    labels = np.array([label for c in classes for label in c], int)
    factors = np.ones(len(classes))
    if len(labels):
        share = np.bincount(labels) / len(classes)
        np.maximum.at(factors, owner, np.sqrt(threshold / share[labels]))
    return np.round(factors * UNIT).astype(np.int64)


def draw_copies(factors: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Places 0..N-1 in random order, each as often as its factor (N,) says: (sum of factors, rounded down,) int64.

    One of factor r comes floor(r) times, and once more with probability r - floor(r), by systematic sampling (Madow,
    1949) in random order: so all together are as many each time, but for one, which is left out.
    """
    whole, part = np.divmod(factors, UNIT)
    mixed = random.permutation(len(factors))
    whole[mixed] += np.diff((np.cumsum(part[mixed]) + random.integers(UNIT)) // UNIT, prepend=0)
    copies = np.repeat(np.arange(len(factors)), whole)
    return random.permutation(copies)[: int(factors.sum()) // UNIT]


def earlier_copies(rows: np.ndarray) -> np.ndarray:
    """How often each of `rows` (N,) came before in it, (N,) int64."""
    order = np.argsort(rows, kind="stable")
    new = np.diff(rows[order], prepend=-1) != 0
    begins = np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))
    out = np.empty(len(rows), np.int64)
    out[order] = np.arange(len(rows)) - begins
    return out
