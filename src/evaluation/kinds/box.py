"""Boxes, which every detector gives and every annotation has."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

from src.evaluation.kinds.base import Kind

__all__ = ["Boxes", "is_finite"]

FARTHEST = 1e15  # a box's numbers, so that areas are finite


class Boxes(Kind):
    name, noun, key = "bbox", "boxes", "bbox"

    def held(self, entry: Mapping[str, Any]) -> bool:
        return entry.get(self.key) is not None

    def checked(self, value: Any, image: Mapping[str, Any], category: Mapping[str, Any]) -> list[float]:
        if not all(map(is_finite, value)):
            raise ValueError(f"bbox {str(value)[:60]} isn't finite numbers")
        if value[2] < 0 or value[3] < 0:
            raise ValueError(f"bbox {str(value)[:60]} has a negative side; it is [x, y, width, height]")
        return list(map(float, value))

    def box(self, value: Any) -> list[float]:
        return value

    def measured(self, result: Mapping[str, Any]) -> dict[str, Any]:
        return {"bbox": result["bbox"], "area": result["bbox"][2] * result["bbox"][3]}


def is_finite(v: Any) -> bool:
    """Whether it is a number as boxes and scores are."""
    # the abstract class is slow to ask
    return (type(v) in (float, int) or (isinstance(v, Real) and not isinstance(v, bool))) and -FARTHEST < v < FARTHEST
