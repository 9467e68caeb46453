"""C++ layers as cells: x, weight and bias in, and gradients for all three."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
from mindspore import nn, ops
from mindspore.ops.operations._grad_ops import ReluGrad

__all__ = [
    "CustomDense",
    "CustomDepthwise",
    "CustomEnlargedSum",
    "CustomLayer",
    "CustomPassing",
    "CustomPool",
    "CustomSum",
    "doubled_shape",
    "halved_shape",
    "rows_shape",
    "same_shape",
]

# What an operator's output is shaped like, of the shapes of x, weight and bias.
Shape = Callable[..., tuple[int, ...]]


def same_shape(*shapes):
    """A convolution of stride 1."""
    return (shapes[0][0], shapes[1][0], shapes[0][2], shapes[0][3])


def halved_shape(*shapes):
    """A convolution of stride 2."""
    return (shapes[0][0], shapes[1][0], (shapes[0][2] + 1) // 2, (shapes[0][3] + 1) // 2)


def doubled_shape(*shapes):
    """A transposed convolution of stride 2, whose weight has the inputs first."""
    return (shapes[0][0], shapes[1][1], 2 * shapes[0][2], 2 * shapes[0][3])


def rows_shape(*shapes):
    """A dense layer."""
    return (shapes[0][0], shapes[1][0])


def _quarter_shape(*shapes):
    b, c, h, w = shapes[0]
    return (b, c, h // 2, w // 2)


def _first_shape(*shapes):
    return shapes[0]


def _second_shape(*shapes):
    return shapes[1]


def _input_gradient_shape(*shapes):
    """Of the output's gradient, the output, the weight, x."""
    return shapes[3]


# What an input's gradient is shaped like, of the shapes of the output's gradient, the output and the weight, where
# they say it: x, of which nothing else is wanted, needn't be kept until that is made.
_KNOWN: dict[Shape, Shape] = {
    same_shape: lambda *shapes: (shapes[0][0], shapes[2][1], *shapes[0][2:]),
    doubled_shape: lambda *shapes: (shapes[0][0], shapes[2][0], shapes[0][2] // 2, shapes[0][3] // 2),
    rows_shape: lambda *shapes: (shapes[0][0], shapes[2][1]),
}


def _depthwise_gradient_shapes(*shapes):
    """Of the output's gradient, the output, x, the weight."""
    return (shapes[2], shapes[3], (shapes[0][1],))


def _filter_gradient_shapes(*shapes):
    """Of the output's gradient (R, O, ...), the output, x, the weight."""
    return (shapes[3], (shapes[0][1],))


def _one_dtype(*_):
    return ms.float32


def _two_dtypes(*_):
    return (ms.float32, ms.float32)


def _three_dtypes(*_):
    return (ms.float32, ms.float32, ms.float32)


class _Gradients(nn.Cell):
    """The C++ operators of the gradients, of the layer whose outputs have this shape. Inputs: dy; y, read only where
    there is an activation; x, weight. Outputs: those to x, weight and bias.
    """

    def __init__(self, library: str, kind: str, activation: str, shape: Shape):
        super().__init__()
        name, known = f"{library}:{kind}", _KNOWN.get(shape)
        self.to_input = ops.Custom(
            f"{name}InputGradient{activation}", known or _input_gradient_shape, _one_dtype, func_type="aot"
        )
        self.to_filters = ops.Custom(
            f"{name}WeightGradient{activation}", _filter_gradient_shapes, _two_dtypes, func_type="aot"
        )
        self.known = known is not None

    def construct(self, dy, y, x, weight):
        to_weight, to_bias = self.to_filters(dy, y, x, weight)
        # before the way back goes on: put off, it would keep the maps
        dy = ops.depend(dy, to_weight)
        # the operator reads the last one's shape at most
        return self.to_input(dy, y, weight, weight if self.known else x), to_weight, to_bias


class CustomLayer(nn.Cell):
    """The C++ operators whose names begin with `kind`, with the activation "", "ReLU" or "ReLU6", whose gradient passes
    where the output is positive, and below 6. Inputs: x, weight, bias, all float32.
    """

    def __init__(self, library: str, kind: str, activation: str, shape: Shape):
        super().__init__()
        self.forward_op = ops.Custom(f"{library}:{kind}Forward{activation}", shape, _one_dtype, func_type="aot")
        self.gradients = _Gradients(library, kind, activation, shape)
        self.active = activation != ""

    def construct(self, x, weight, bias):
        return self.forward_op(x, weight, bias)

    def bprop(self, x, weight, bias, out, dout):
        # without an activation the output needn't be kept
        return self.gradients(dout, out if self.active else dout, x, weight)


class CustomDense(CustomLayer):
    """As CustomLayer, of a dense layer. Outputs: y, and the weight that its gradient is to be computed with.

    MindSpore copies a weight that the way back reads, as it can't tell that the optimizer writes it later, and does so
    at the step's begin. In training this does it when the rows are there, after which the maps that they are of may
    have gone: of the 50 MB of a first layer, that is where a step's memory peaks.
    """

    def __init__(self, library: str, activation: str):
        super().__init__(library, "Dense", activation, rows_shape)
        self.copied = ops.Custom(f"{library}:CopyWeight", _first_shape, _one_dtype, func_type="aot")

    def construct(self, x, weight, bias):
        if self.training:
            weight = self.copied(ops.depend(weight, x))
        return self.forward_op(x, weight, bias), weight

    def bprop(self, x, weight, bias, out, dout):
        return self.gradients(dout[0], out[0] if self.active else dout[0], x, out[1])


class CustomPassing(nn.Cell):
    """A 1x1 convolution with ReLU, and its input for who uses it further: the gradient from there is added where this
    one's is computed.

    Inputs: x, which has passed ReLU, weight, bias, all float32. The gradient to x is zero where x isn't positive, so
    that what made x needn't see to it, where nothing else uses x.
    """

    def __init__(self, library: str):
        super().__init__()
        self.forward_op = ops.Custom(f"{library}:PointwiseForwardReLU", same_shape, _one_dtype, func_type="aot")
        name = f"{library}:PointwiseInputGradientPassedReLU"
        self.input_gradient = ops.Custom(name, _input_gradient_shape, _one_dtype, func_type="aot")
        self.weight_gradient = ops.Custom(
            f"{library}:PointwiseWeightGradientReLU", _filter_gradient_shapes, _two_dtypes, func_type="aot"
        )

    def construct(self, x, weight, bias):
        return self.forward_op(x, weight, bias), x

    def bprop(self, x, weight, bias, out, dout):
        dy, y = dout[0], out[0]
        gradients = self.weight_gradient(dy, y, x, weight)
        dy = ops.depend(dy, gradients[0])
        return self.input_gradient(dy, y, weight, x, dout[1]), gradients[0], gradients[1]


class CustomSum(nn.Cell):
    """ReLU of the sum of the C++ operator's output and another map. Inputs: x, weight, bias, other, all float32.

    gated: who uses the output gives gradients that are zero where it isn't positive, as CustomPassing does.
    """

    def __init__(self, library: str, kind: str, shape: Shape, gated: bool = False):
        super().__init__()
        self.forward_op = ops.Custom(f"{library}:{kind}ForwardSumReLU", shape, _one_dtype, func_type="aot")
        self.gradients = _Gradients(library, kind, "", shape)
        self.relu_gradient, self.gated = ReluGrad(), gated

    def construct(self, x, weight, bias, other):
        return self.forward_op(x, weight, bias, other)

    def bprop(self, x, weight, bias, other, out, dout):
        dsum = dout if self.gated else self.relu_gradient(dout, out)
        dx, dweight, dbias = self.gradients(dsum, dsum, x, weight)
        return dx, dweight, dbias, dsum


class CustomEnlargedSum(nn.Cell):
    """The sum of a 1x1 convolution and of a map half as wide and high, each number of which is for 2 x 2. Inputs: x
    (B, C, H, W) of even sides, weight (O, C, 1, 1), bias (O,), coarse (B, O, H / 2, W / 2), all float32.
    """

    def __init__(self, library: str):
        super().__init__()
        self.forward_op = ops.Custom(f"{library}:PointwiseForwardEnlarged", same_shape, _one_dtype, func_type="aot")
        self.gradients = _Gradients(library, "Pointwise", "", same_shape)
        self.coarse_gradient = ops.Custom(f"{library}:SumOfFour", _quarter_shape, _one_dtype, func_type="aot")

    def construct(self, x, weight, bias, coarse):
        return self.forward_op(x, weight, bias, coarse)

    def bprop(self, x, weight, bias, coarse, out, dout):
        dx, dweight, dbias = self.gradients(dout, dout, x, weight)
        return dx, dweight, dbias, self.coarse_gradient(dout)


class CustomPool(nn.Cell):
    """A pooling operator by its name, whose outputs are half as wide and high. Input: x (B, C, H, W) float32."""

    def __init__(self, library: str, name: str):
        super().__init__()
        self.pooled = ops.Custom(f"{library}:{name}", _quarter_shape, _one_dtype, func_type="aot")
        self.gradient = ops.Custom(f"{library}:{name}Gradient", _second_shape, _one_dtype, func_type="aot")

    def construct(self, x):
        return self.pooled(x)

    def bprop(self, x, out, dout):
        return (self.gradient(dout, x),)


class CustomDepthwise(nn.Cell):
    """As CustomLayer, of a depthwise convolution, which has all gradients from one operator. Inputs: x (B, C, H, W),
    weight (C, 1, k, k), bias (C,).
    """

    def __init__(self, library: str, kind: str, activation: str, shape: Shape):
        super().__init__()
        self.forward_op = ops.Custom(f"{library}:{kind}Forward{activation}", shape, _one_dtype, func_type="aot")
        self.gradients = ops.Custom(
            f"{library}:{kind}Gradients{activation}", _depthwise_gradient_shapes, _three_dtypes, func_type="aot"
        )
        self.active = activation != ""

    def construct(self, x, weight, bias):
        return self.forward_op(x, weight, bias)

    def bprop(self, x, weight, bias, out, dout):
        gradients = self.gradients(dout, out if self.active else dout, x, weight)
        return gradients[0], gradients[1], gradients[2]
