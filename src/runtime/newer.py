"""What newer releases of Python have, for 3.9."""

import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["SLOTS", "zip_equal"]

# of dataclass(), where there are many of the kind: less memory, from Python 3.10 on
SLOTS: dict[str, bool] = {"slots": True} if sys.version_info >= (3, 10) else {}

_MISSING = object()


def zip_equal(*iterables: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """As zip(..., strict=True): ValueError where one of them is shorter than another."""
    for row in itertools.zip_longest(*iterables, fillvalue=_MISSING):
        if any(value is _MISSING for value in row):
            raise ValueError(f"zip_equal: argument {[v is _MISSING for v in row].index(True) + 1} is shorter")
        yield row
