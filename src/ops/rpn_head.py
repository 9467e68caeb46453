"""The region proposal network's head over all levels in one operator."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from src.ops.conv import Conv2d
from src.ops.library import custom_operator_path, plain_sums_only

__all__ = ["DenseRPNHead"]

_SHARED = 6  # inputs that all levels have: weights and biases


class DenseRPNHead(nn.Cell):
    """A 3x3 convolution with ReLU, and two 1x1 convolutions of what it gives, of each map; no gradient.

    A C++ operator, where `fits`: what lies between the convolutions, as large as the maps, is never there as a whole.
    Its numbers are those of Conv2d's C++ operators one after the other.

    Inputs: features, a tuple of L maps (B, C, H_l, W_l) float32; hidden, scores, boxes: the Conv2d cells. Outputs: a
    tuple of L (B, H_l * W_l * A), and a tuple of L (B, H_l * W_l * A, 4), A the scores' channels: rows, cells, anchors.
    """

    def __init__(self) -> None:
        super().__init__()
        library = None if plain_sums_only() else custom_operator_path(False)
        self.custom = library is not None
        if library is not None:
            self.head = ops.Custom(f"{library}:RPNHead", _shapes, _dtypes, func_type="aot")

    def fits(self, features: tuple[Tensor, ...], hidden: Conv2d) -> bool:
        """Whether the operator has these maps."""
        return self.custom and not hidden.half and features[0].dtype == ms.float32

    def construct(
        self, features: tuple[Tensor, ...], hidden: Conv2d, scores: Conv2d, boxes: Conv2d
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        maps = ()  # type: tuple[Tensor, ...]
        for x in features:
            maps += (ops.stop_gradient(x),)
        weights = ()  # type: tuple[Tensor, ...]
        for conv in (hidden, scores, boxes):
            weights += (ops.stop_gradient(conv.copy(conv.weight)), ops.stop_gradient(conv.copy(conv.bias)))
        found = self.head(*maps, *weights)
        return found[: len(features)], found[len(features) :]


def _shapes(*shapes):
    levels, anchors = shapes[:-_SHARED], shapes[-4][0]
    cells = [(s[0], s[2] * s[3] * anchors) for s in levels]
    return (*cells, *((*shape, 4) for shape in cells))


def _dtypes(*dtypes):
    return (ms.float32,) * (2 * (len(dtypes) - _SHARED))
