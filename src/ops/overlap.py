"""Areas and overlaps of boxes in standard operators: float32, in the order of the C++ operators, so the same numbers.

Boxes are (4, ...), x1 y1 x2 y2 first: long rows, which elementwise operators like better than short ones.
"""

from mindspore import Tensor, ops

__all__ = ["area", "intersection", "iou", "quotient"]

_LEAST = 1e-12  # square pixels


def area(boxes: Tensor) -> Tensor:
    """(4, ...) -> (...)."""
    return (boxes[2] - boxes[0]) * (boxes[3] - boxes[1])


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """(4, ...), (4, ...) of one shape -> (...)."""
    width = ops.relu(ops.minimum(a[2], b[2]) - ops.maximum(a[0], b[0]))
    return width * ops.relu(ops.minimum(a[3], b[3]) - ops.maximum(a[1], b[1]))


def quotient(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, of areas; where whole isn't positive, and so has no part, 0."""
    return part / ops.maximum(whole, _LEAST)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """(4, ...), (4, ...) of one shape -> (...)."""
    inter = intersection(a, b)
    return quotient(inter, area(a) + area(b) - inter)
