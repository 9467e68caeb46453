"""Feature pyramid network (Lin et al., 2017, arXiv:1612.03144), also without its top-down path (arXiv:2203.16527)."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.common.initializer import XavierUniform

from src.models.norms import NormMaker, conv_layer
from src.models.precision import float32
from src.ops.conv import Conv2d
from src.ops.custom import CustomEnlargedSum
from src.ops.library import custom_operator_path, for_devices

__all__ = ["FPN"]


class UpsampleAdd(nn.Cell):
    """fine (B, C, f H, f W) + nearest-neighbour f-fold of coarse (B, C, H, W).

    The upsampling copies cells; on CPU by a depthwise transposed convolution with a filter of ones, which is several
    times as fast there as MindSpore's ResizeNearestNeighbor, and which other devices have no kernel for that suits.
    bilinear, of f = 2: every odd row and column is the mean of its neighbours instead, the last ones the one before:
    what MindSpore's ResizeBilinear does.

    Of a 1x1 convolution on CPU, `after` has the sum in the pass that makes its map.
    """

    def __init__(self, channels: int, bilinear: bool = False, factor: int = 2):
        super().__init__()
        # of two cells at the right and lower borders
        self.mean = nn.AvgPool2d(2, 1, pad_mode="same") if bilinear else None
        self.factor, self.by_convolution = factor, not for_devices()
        self.ones = Tensor(np.ones((channels, 1, factor, factor), np.float32))
        self.upsample = ops.Conv2DTranspose(channels, factor, pad_mode="valid", stride=factor, group=channels)
        library = custom_operator_path(False) if factor == 2 and not bilinear else None
        self.fuses = library is not None
        if library is not None:
            self.fused = CustomEnlargedSum(library)

    def construct(self, fine: Tensor, coarse: Tensor) -> Tensor:
        return self.total(fine, coarse)

    def after(self, conv: Conv2d, x: Tensor, coarse: Tensor) -> Tensor:
        """The same of conv(x), for fine."""
        if self.fuses and conv.sums_with(x) and coarse.dtype == ms.float32:
            return self.fused(x, conv.copy(conv.weight), conv.copy(conv.bias), coarse)
        return self.total(conv(x), coarse)

    def total(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """The cell's output: in a graph a method can't call its own cell."""
        if self.factor == 1:
            return float32(fine) + float32(coarse)
        up = self.copies(float32(coarse), fine.shape)
        return float32(fine) + (up if self.mean is None else self.mean(up))

    def copies(self, coarse: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The cells of (B, C, H, W), each f x f times: of `shape`."""
        if self.by_convolution:
            return self.upsample(coarse, self.ones, shape)
        b, c, h, w = coarse.shape
        cells = coarse.reshape(b, c, h, 1, w, 1)
        return ops.broadcast_to(cells, (b, c, h, self.factor, w, self.factor)).reshape(shape)


class FPN(nn.Cell):
    """1x1 lateral convolutions, top-down sums, 3x3 output convolutions; further levels subsample the last.

    Args:
        in_channels: channels of each input.  out_channels: channels of each output.  num_outs: outputs, at
        least as many as inputs; each one past the inputs is a stride-2 max pool of kernel 1 of the one before.
        bilinear: the top-down path interpolates so, as the model zoo's Mask R-CNN; else to the nearest cell.
        factors: how often each input but the last is as wide and high as the next; 2 by default, 1 where both have one
        stride.  norm: follows each convolution, in place of its bias.  top_down: false leaves out the sums, so that
        each output is of its own input alone.

    Input: a tuple of maps (B, C_i, H_i, W_i), finest first, whose sides the factors divide. Output: a tuple of num_outs
    maps (B, out_channels, H_i, W_i), those past the inputs half as wide and high each, rounded up.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        num_outs: int = 5,
        bilinear: bool = False,
        factors: Sequence[int] = (),
        norm: NormMaker | None = None,
        top_down: bool = True,
    ):
        super().__init__()
        init, self.adds = XavierUniform(), top_down
        self.lateral_convs = nn.CellList([conv_layer(c, out_channels, 1, norm, init, copied=True) for c in in_channels])
        self.fpn_convs = nn.CellList(
            [conv_layer(out_channels, out_channels, 3, norm, init, copied=True) for _ in in_channels]
        )
        self.num_ins, self.extra = len(in_channels), num_outs - len(in_channels)
        factors = tuple(factors) or (2,) * (self.num_ins - 1)
        # no parameters, so that a list's names don't matter
        self.upsample_add = nn.CellList([UpsampleAdd(out_channels, bilinear, f) for f in factors if top_down])
        self.subsample = nn.MaxPool2d(1, 2, pad_mode="valid")

    def construct(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = self.lateral_convs[-1](inputs[-1])
        outputs = (float32(self.fpn_convs[-1](x)),)  # type: tuple[Tensor, ...]
        for i in range(self.num_ins - 2, -1, -1):
            if self.adds:
                x = self.upsample_add[i].after(self.lateral_convs[i], inputs[i], x)
            else:
                x = self.lateral_convs[i](inputs[i])
            outputs = (float32(self.fpn_convs[i](x)), *outputs)
        for _ in range(self.extra):
            outputs += (self.subsample(outputs[-1]),)
        return outputs
