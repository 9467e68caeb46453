"""What is done to weights, without the copies of them that MindSpore's own operators have."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.ops import signature

from src.ops.library import custom_operator_path

__all__ = ["Copy", "MomentumStep", "ScaleFilters"]


class Copy(nn.Cell):
    """A weight, float32, as a tensor of its own, of a few large maps' convolution.

    MindSpore lets an optimizer's operator write a weight when all that reads it is done, and in a graph with a branch
    it keeps the results of those readers, needed or not, from what comes before the branch to what comes after. A
    copy's result is as small as the weight. Without the C++ operators, it is the weight itself.
    """

    def __init__(self) -> None:
        super().__init__()
        library = custom_operator_path(False)
        self.custom = library is not None
        if library is not None:
            self.copied = _Copy(library)

    def construct(self, weight: Tensor) -> Tensor:
        return self.copied(weight) if self.custom else weight


class _Copy(nn.Cell):
    """The C++ operator."""

    def __init__(self, library: str) -> None:
        super().__init__()
        self.copied = ops.Custom(f"{library}:CopyWeight", _weight_shape, _one_dtype, func_type="aot")

    def construct(self, weight):
        return self.copied(weight)

    def bprop(self, weight, out, dout):
        return (dout,)


class ScaleFilters(nn.Cell):
    """weight (O, C, H, W) times scale (O,), both float32.

    On CPU a C++ operator: MindSpore's product keeps two index lists of 8 bytes a weight where it broadcasts, and, where
    it doesn't, the repeated scales, as large as the weights, for the backward pass.
    """

    def __init__(self) -> None:
        super().__init__()
        library = custom_operator_path(False)
        self.custom = library is not None
        if library is not None:
            self.scaled = _Custom(library)

    def construct(self, weight: Tensor, scale: Tensor) -> Tensor:
        if self.custom:
            return self.scaled(weight, scale)
        return weight * ops.broadcast_to(scale.reshape(-1, 1, 1, 1), weight.shape)


class MomentumStep(ops.Custom):
    """A C++ operator that updates a weight and its moment in place, for graph mode on CPU.

    moment = momentum * moment + gradient + decay * weight; weight -= rate * moment.

    Inputs: weight and moment, Parameters; gradient of their shape; rate, decay and momentum (); all float32. Output:
    (1,) float32, of no meaning.
    """

    __mindspore_signature__ = (
        signature.make_sig("weight", signature.sig_rw.RW_WRITE),
        signature.make_sig("moment", signature.sig_rw.RW_WRITE),
        *(signature.make_sig(name) for name in ("gradient", "rate", "decay", "momentum")),
    )

    def __init__(self, library: str) -> None:
        super().__init__(f"{library}:MomentumStep", _one_number, _one_dtype, func_type="aot")
        self.add_prim_attr("side_effect_mem", True)


def _one_number(*_):
    return (1,)


def _weight_shape(*shapes):
    return shapes[0]


def _one_dtype(*_):
    return ms.float32


class _Custom(nn.Cell):
    """The C++ operator."""

    def __init__(self, library: str) -> None:
        super().__init__()
        self.product = ops.Custom(f"{library}:ScaleFilters", _weight_shape, _one_dtype, func_type="aot")

    def construct(self, weight, scale):
        return self.product(weight, scale)

    def bprop(self, weight, scale, out, dout):
        # the second is left out of the graph where, as with constant norms, nobody asks for it
        return self.product(dout, scale), (dout * weight).sum((1, 2, 3))
