"""Norms of backbone, neck and heads: their kinds, and convolutions that one follows."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Initializer

from src.models.graph_writer import GraphWriter
from src.ops.conv import Conv2d, float32

__all__ = [
    "NORMS",
    "ChannelBias",
    "ConvNorm",
    "GroupNorm",
    "LayerNorm",
    "NormMaker",
    "conv_layer",
    "conv_norm",
    "freeze",
    "norm_of",
    "passing_conv_norm",
]

GROUPS = 32


def freeze(cell: nn.Cell) -> None:
    """Takes every parameter of `cell` out of training and lets its batch norms use their running statistics."""
    for p in cell.get_parameters():
        p.requires_grad = False
    for _, c in cell.cells_and_names():
        if isinstance(c, nn.BatchNorm2d):
            c.use_batch_statistics = False
        elif hasattr(c, "folded"):
            c.folded = True


class ChannelBias(nn.Cell):
    """What is left of a batch norm whose scale has gone into its convolution's weights: bias (C,), for conv_norm."""

    def __init__(self, bias: Parameter):
        super().__init__()
        self.bias = bias


class BatchNorm(nn.BatchNorm2d):
    """Batch norm (Ioffe and Szegedy, 2015, arXiv:1502.03167) of rows of which some are padding, or whose statistics are
    those of all ranks' rows. MindSpore's own over ranks is Ascend's alone.

    Args:
        channels, eps, momentum, use_batch_statistics: as nn.BatchNorm2d's.  synced: `use_ranks` has it reduce.

    Inputs: x (R, C, H, W); rows (R,) float32, 1 for those that count, 0 for padding; all without it. Output: x's shape.
    """

    def __init__(
        self,
        channels: int,
        eps: float,
        momentum: float,
        use_batch_statistics: bool | None = None,
        synced: bool = False,
    ):
        super().__init__(channels, eps, momentum, use_batch_statistics=use_batch_statistics)
        self.synced, self.ranks, self.kept = synced, 1, momentum

    def use_ranks(self, ranks: int) -> None:
        """Statistics are from now on those of `ranks` ranks, which all run this."""
        if self.synced and ranks > 1:
            self.ranks, self.sum = ranks, ops.AllReduce()

    def construct(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        if self.use_batch_statistics is not None or not self.training:
            return self.bn_infer(x, self.gamma, self.beta, self.moving_mean, self.moving_variance)[0]
        if rows is None and self.ranks == 1:
            return self.bn_train(x, self.gamma, self.beta, self.moving_mean, self.moving_variance)[0]
        return self.learn(x, rows)

    def learn(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """The norm by the statistics of the rows that count, which enter the running ones."""
        _, c, h, w = x.shape
        used = ops.ones((x.shape[0],), x.dtype) if rows is None else ops.stop_gradient(rows).astype(x.dtype)
        weight = used.reshape(-1, 1, 1, 1)
        count = (used.sum() * (h * w)).reshape(1)
        sums = self.of_all(ops.concat(((x * weight).sum((0, 2, 3)), count)))
        count = ops.maximum(ops.stop_gradient(sums[c:]), 1.0)
        mean = sums[:c] / count
        difference = x - mean.reshape(1, c, 1, 1)
        variance = self.of_all((difference * difference * weight).sum((0, 2, 3))) / count
        y = difference * (self.gamma * ops.rsqrt(variance + self.eps)).reshape(1, c, 1, 1)
        # nothing is learnt where nothing counts
        share = (1.0 - self.kept) * (sums[c:] > 0).astype(x.dtype)
        unbiased = variance * (count / ops.maximum(count - 1.0, 1.0))
        y = ops.depend(y, ops.assign_add(self.moving_mean, ops.stop_gradient(share * (mean - self.moving_mean))))
        change = ops.stop_gradient(share * (unbiased - self.moving_variance))
        y = ops.depend(y, ops.assign_add(self.moving_variance, change))
        return y + self.beta.reshape(1, c, 1, 1)

    def of_all(self, sums: Tensor) -> Tensor:
        """The sum over all ranks, (N,)."""
        return self.sum(sums) if self.ranks > 1 else sums


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu and He, 2018, arXiv:1803.08494) of 32 groups; in training and at inference alike.

    Input and output (B, C, H, W), C a multiple of 32.
    """

    def __init__(self, channels: int, eps: float):
        super().__init__(GROUPS, channels, eps)

    def construct(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Each row by itself, so that padding doesn't matter."""
        return self._cal_output(x)

    def onnx(self, g: GraphWriter, x: str) -> str:
        """In ONNX's operators of opset 16, which has instance norm alone: of one channel a group, before the scale."""
        one = np.ones(GROUPS, np.float32)
        flat = g.op("Reshape", x, [0, GROUPS, -1])
        y = g.op("InstanceNormalization", flat, one, 0 * one, epsilon=self.eps)
        y = g.op("Reshape", y, g.op("Shape", x))
        scale, shift = (p.asnumpy().reshape(-1, 1, 1) for p in (self.gamma, self.beta))
        return g.op("Add", g.op("Mul", y, scale), shift)


class LayerNorm(nn.LayerNorm):
    """Layer norm (Ba et al., 2016, arXiv:1607.06450) over the channels of each cell of a map, in training and at
    inference alike, as ViTDet's neck and heads have it.

    Input and output (B, C, H, W), the output float32.
    """

    def __init__(self, channels: int, eps: float):
        super().__init__((channels,), epsilon=eps)

    def construct(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Each cell by itself, so that padding doesn't matter."""
        y, _, _ = self.layer_norm(x.astype(ms.float32).transpose(0, 2, 3, 1), self.gamma, self.beta)
        return y.transpose(0, 3, 1, 2)

    def onnx(self, g: GraphWriter, x: str) -> str:
        """In operators that opset 16 has."""
        d = g.op("Sub", x, g.op("ReduceMean", x, axes=[1], keepdims=1))
        variance = g.op("ReduceMean", g.op("Mul", d, d), axes=[1], keepdims=1)
        y = g.op("Div", d, g.op("Sqrt", g.op("Add", variance, np.float32(self.epsilon))))
        scale, shift = (p.asnumpy().reshape(-1, 1, 1) for p in (self.gamma, self.beta))
        return g.op("Add", g.op("Mul", y, scale), shift)


def conv_norm(
    x: Tensor,
    conv: Conv2d,
    norm: nn.Cell,
    folded: bool,
    relu: bool = False,
    rows: Tensor | None = None,
    relu6: bool = False,
    other: Tensor | None = None,
) -> Tensor:
    """norm(conv(x)), then ReLU if `relu`, ReLU6 if `relu6`; rows: see BatchNorm. other: a map that is added, in
    float32, before a ReLU that is given then.

    `folded`: as one convolution with scaled weights, for a batch norm that is a constant scale and shift. That saves a
    pass over the map and, in training, keeping the map for the norm's gradient.
    """
    if isinstance(norm, ChannelBias):
        if other is not None:
            return conv.residual(x, conv.weight, norm.bias, other)
        return conv.convolve(x, conv.weight, norm.bias, relu, relu6)
    if not folded or isinstance(norm, (GroupNorm, LayerNorm)):
        y = norm(conv.plain(x)) if rows is None else norm(conv.plain(x), rows)
        if conv.half:
            y = y.astype(ms.float16)
        if other is not None:
            return ops.relu(float32(y) + float32(other))
        if relu6:
            return ops.relu6(y)
        return ops.relu(y) if relu else y
    weight, bias = scaled(conv, norm)
    if other is not None:
        return conv.residual(x, weight, bias, other)
    return conv.convolve(x, weight, bias, relu, relu6)


def passing_conv_norm(x: Tensor, conv: Conv2d, norm: nn.Cell, folded: bool) -> tuple[Tensor, Tensor]:
    """`conv_norm` with ReLU of a map that has passed ReLU, and that map for who uses it further, see Conv2d.passing."""
    if isinstance(norm, ChannelBias):
        return conv.passing(x, conv.weight, norm.bias)
    if not folded or isinstance(norm, (GroupNorm, LayerNorm)):
        return conv_norm(x, conv, norm, folded, relu=True), x
    weight, bias = scaled(conv, norm)
    return conv.passing(x, weight, bias)


def scaled(conv: Conv2d, norm: nn.Cell) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution and its constant batch norm in one."""
    scale = norm.gamma * ops.rsqrt(norm.moving_variance + norm.eps)
    return conv.scale(conv.weight, scale), norm.beta - norm.moving_mean * scale


# (channels, epsilon, share of the old running statistics kept at each step, use_batch_statistics) -> a norm
NORMS: dict[str, Callable[[int, float, float, bool | None], nn.Cell]] = {
    "batch": BatchNorm,
    "sync": lambda channels, eps, momentum, batch_statistics: BatchNorm(
        channels, eps, momentum, batch_statistics, True
    ),
    "group": lambda channels, eps, momentum, batch_statistics: GroupNorm(channels, eps),
    "layer": lambda channels, eps, momentum, batch_statistics: LayerNorm(channels, eps),
}


class NormMaker:
    """Makes norms of one kind, one of NORMS; a plain object, so that cells needn't hand five arguments down."""

    def __init__(self, eps: float, momentum: float, use_running: bool, trained: bool, kind: str = "batch"):
        self.eps, self.momentum, self.use_running, self.trained, self.kind = eps, momentum, use_running, trained, kind

    def __call__(self, channels: int) -> nn.Cell:
        norm = NORMS[self.kind](channels, self.eps, self.momentum, False if self.use_running else None)
        if not self.trained:
            norm.gamma.requires_grad = norm.beta.requires_grad = False
        return norm

    @property
    def constant(self) -> bool:
        """Whether these are batch norms that stay as they are in training."""
        return self.use_running and not self.trained


def norm_of(kind: str, eps: float, momentum: float) -> NormMaker | None:
    """What makes the norms of a neck or a head by its key `norm`: frozen and running are batch norms on their running
    statistics, running ones with scale and shift that train; None for none.
    """
    if not kind:
        return None
    fixed = kind in ("frozen", "running")
    return NormMaker(eps, momentum, fixed, kind != "frozen", "batch" if fixed else kind)


class ConvNorm(Conv2d):
    """A convolution without bias, a norm, and ReLU if `relu`; arguments and shapes as Conv2d's.

    As a Conv2d with a norm in it, its weight has the name that it would have without.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        norm: NormMaker,
        relu: bool = False,
        weight_init: Initializer | None = None,
    ):
        super().__init__(in_channels, out_channels, kernel_size, weight_init=weight_init)
        self.norm, self.folded, self.rectified_norm = norm(out_channels), norm.constant, relu

    def construct(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        return conv_norm(x, self, self.norm, self.folded or not self.training, self.rectified_norm, rows)


def conv_layer(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    norm: NormMaker | None,
    weight_init: Initializer,
    relu: bool = False,
    copied: bool = False,
) -> Conv2d | ConvNorm:
    """A convolution with a norm, or without one, and with a bias, for None; copied: see Conv2d."""
    if norm is None:
        return Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            relu=relu,
            copied=copied,
            has_bias=True,
            weight_init=weight_init,
            bias_init="zeros",
        )
    return ConvNorm(in_channels, out_channels, kernel_size, norm, relu, weight_init)
