"""A 3x3 convolution whose gradient is fast and frugal on CPU."""

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.ops.operations import _grad_ops

__all__ = ["SameConv2d"]


class SameConv2d(nn.Conv2d):
    """nn.Conv2d of stride 1 that keeps the size: odd square kernel, zero padding.

    Its parameters, results and gradients are nn.Conv2d's. On CPU the gradient to the input is taken as what it is, a
    convolution with the flipped, transposed filter: MindSpore's Conv2DBackpropInput unfolds the whole map into a buffer
    of kernel^2 times its size, one for each layer for as long as the program runs, and is slower.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, **options):
        super().__init__(in_channels, out_channels, kernel_size, 1, pad_mode="pad", padding=kernel_size // 2, **options)
        if ms.get_context("device_target") == "CPU":
            self.conv2d = _ForwardGradient(in_channels, out_channels, kernel_size)


class _ForwardGradient(nn.Cell):
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
