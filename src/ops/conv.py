"""2-D convolution with bias and ReLU in one, by our own operator where that is the faster one."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops.operations import _grad_ops

from src.ops.library import custom_operator_path, standard_operators_only

__all__ = ["Conv2d"]


class Conv2d(nn.Conv2d):
    """nn.Conv2d with padding kernel_size // 2, optionally followed by ReLU.

    Its parameters, results and gradients are nn.Conv2d's. On CPU a float32 3x3 convolution of stride 1 is the C++
    operator of ``csrc/winograd.cc``: a quarter of the multiplications, bias and ReLU in the same pass, and a few MB of
    memory where MindSpore's gradients unfold the whole map, nine times its size for each layer. Everything else, and
    everything without the library, is MindSpore's own operators.

    Args:
        relu: apply ReLU.  options: nn.Conv2d's further arguments (has_bias, group, weight_init, ...).

    Input (B, in_channels, H, W) float32 or float16; with `half` set, computes and returns float16 whatever it is given.
    Output (B, out_channels, ceil(H / stride), ceil(W / stride)) for an odd kernel.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, relu: bool = False, **options
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, pad_mode="pad", padding=kernel_size // 2, **options
        )
        self.rectified, self.half = relu, False
        plain = stride == 1 and options.get("group", 1) == 1 and options.get("dilation", 1) == 1
        library = custom_operator_path(False) if plain and kernel_size == 3 else None
        self.custom = library is not None
        if library is not None:
            self.no_bias = Tensor(np.zeros(out_channels, np.float32))
            self.linear, self.with_relu = _Winograd(library), _WinogradReLU(library)
        elif plain and ms.get_context("device_target") == "CPU" and not standard_operators_only():
            self.conv2d = _ForwardGradient(in_channels, out_channels, kernel_size)

    def construct(self, x: Tensor) -> Tensor:
        if self.has_bias:
            return self.convolve(x, self.weight, self.bias, self.rectified)
        if self.half:
            y = self.conv2d(x.astype(ms.float16), self.weight.astype(ms.float16))
        elif self.custom and x.dtype == ms.float32:
            return self.convolve(x, self.weight, self.no_bias, self.rectified)
        else:
            y = self.conv2d(x, self.weight)
        return ops.relu(y) if self.rectified else y

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        """The convolution with other weights (O, C, k, k) and bias (O,) than its own, and ReLU as this call says."""
        if self.half:
            x, weight, bias = x.astype(ms.float16), weight.astype(ms.float16), bias.astype(ms.float16)
        if self.custom and x.dtype == ms.float32:
            return self.with_relu(x, weight, bias) if relu else self.linear(x, weight, bias)
        y = ops.bias_add(self.conv2d(x, weight), bias)
        return ops.relu(y) if relu else y


def _forward_shape(*shapes):
    """Of x, weight, bias."""
    return (shapes[0][0], shapes[1][0], shapes[0][2], shapes[0][3])


def _input_gradient_shape(*shapes):
    """Of the output's gradient, the output, the weight."""
    return (shapes[0][0], shapes[2][1], shapes[0][2], shapes[0][3])


def _weight_gradient_shapes(*shapes):
    """Of the output's gradient, the output, x."""
    return ((shapes[0][1], shapes[2][1], 3, 3), (shapes[0][1],))


def _one_dtype(*_):
    return ms.float32


def _two_dtypes(*_):
    return (ms.float32, ms.float32)


class _Winograd(nn.Cell):
    """The C++ operator. Inputs: x (B, C, H, W), weight (O, C, 3, 3), bias (O,), all float32."""

    def __init__(self, library: str):
        super().__init__()
        self.forward_op = ops.Custom(f"{library}:Conv3x3Forward", _forward_shape, _one_dtype, func_type="aot")
        self.input_gradient = ops.Custom(
            f"{library}:Conv3x3InputGradient", _input_gradient_shape, _one_dtype, func_type="aot"
        )
        self.weight_gradient = ops.Custom(
            f"{library}:Conv3x3WeightGradient", _weight_gradient_shapes, _two_dtypes, func_type="aot"
        )

    def construct(self, x, weight, bias):
        return self.forward_op(x, weight, bias)

    def bprop(self, x, weight, bias, out, dout):
        # The operators read the output only where there is ReLU; without it, it needn't be kept.
        gradients = self.weight_gradient(dout, dout, x)
        return self.input_gradient(dout, dout, weight), gradients[0], gradients[1]


class _WinogradReLU(nn.Cell):
    """The same with ReLU, whose gradient passes where the output is positive."""

    def __init__(self, library: str):
        super().__init__()
        self.forward_op = ops.Custom(f"{library}:Conv3x3ForwardReLU", _forward_shape, _one_dtype, func_type="aot")
        self.input_gradient = ops.Custom(
            f"{library}:Conv3x3InputGradientReLU", _input_gradient_shape, _one_dtype, func_type="aot"
        )
        self.weight_gradient = ops.Custom(
            f"{library}:Conv3x3WeightGradientReLU", _weight_gradient_shapes, _two_dtypes, func_type="aot"
        )

    def construct(self, x, weight, bias):
        return self.forward_op(x, weight, bias)

    def bprop(self, x, weight, bias, out, dout):
        gradients = self.weight_gradient(dout, out, x)
        return self.input_gradient(dout, out, weight), gradients[0], gradients[1]


class _ForwardGradient(nn.Cell):
    """MindSpore's convolution of stride 1 whose gradient to the input is taken as what it is, a convolution with the
    flipped, transposed filter: Conv2DBackpropInput is slower, and unfolds the whole map.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        pad = kernel_size // 2
        self.forward_conv = ops.Conv2D(out_channels, kernel_size, pad_mode="pad", pad=pad)
        self.backward_conv = ops.Conv2D(in_channels, kernel_size, pad_mode="pad", pad=pad)
        self.flip = ops.ReverseV2([2, 3])
        self.filter_gradient = _grad_ops.Conv2DBackpropFilter(
            out_channels, kernel_size, pad_mode="pad", pad=pad, pad_list=(pad,) * 4, stride=1, dilation=(1, 1, 1, 1)
        )

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.forward_conv(x, weight)

    def bprop(self, x: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        dx = self.backward_conv(dout, self.flip(weight.transpose(1, 0, 2, 3)))
        return dx, self.filter_gradient(dout, x, weight.shape)
