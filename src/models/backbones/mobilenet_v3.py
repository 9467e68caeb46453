"""MobileNetV3-Large backbone (Howard et al., 2019, arXiv:1905.02244, table 1), as torchvision's detectors have it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from src.models.backbones.parts import Shapes, StagedBackbone, conv
from src.models.graph_writer import GraphWriter
from src.models.norms import NormMaker, conv_norm
from src.models.precision import float32
from src.ops.conv import Conv2d

__all__ = ["MobileNetV3", "mobilenet_v3_keys"]

# (kernel, expanded channels, output channels, squeeze and excitation, hard swish, stride) of the blocks; each stage but
# the last ends with the one that halves the map, whose output detectors take
STAGES = (
    ((3, 16, 16, False, False, 1), (3, 64, 24, False, False, 2)),
    ((3, 72, 24, False, False, 1), (5, 72, 40, True, False, 2)),
    ((5, 120, 40, True, False, 1), (5, 120, 40, True, False, 1), (3, 240, 80, False, True, 2)),
    (
        (3, 200, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 480, 112, True, True, 1),
        (3, 672, 112, True, True, 1),
        (5, 672, 160, True, True, 2),
    ),
    ((5, 960, 160, True, True, 1), (5, 960, 160, True, True, 1)),
)
LAST = 960  # channels of the 1x1 convolution that the last stage ends with
CELL = 32  # pixels: torchvision pads pictures to multiples of it
SURE = 1e8  # times the square of a normalised pixel: above 1 for all but the padding's zeros


class SqueezeExcite(nn.Cell):
    """Scales each channel by what a small network makes of the channels' means (Hu et al., 2018, arXiv:1709.01507).

    Inputs: x (B, C, H, W); shown (B, 1, h, w) float32, 1 where a cell of CELL pixels holds some of the picture: the
    canvas's padding beyond those would thin the means, by which torchvision's own padding alone does.
    """

    def __init__(self, channels: int, squeezed: int, stride: int):
        super().__init__()
        self.fc1 = Conv2d(channels, squeezed, 1, relu=True, has_bias=True, bias_init="zeros")
        self.fc2 = Conv2d(squeezed, channels, 1, has_bias=True, bias_init="zeros")
        self.factor = CELL // stride
        self.ones = Tensor(np.ones((1, 1, self.factor, self.factor), np.float32))
        self.enlarge = ops.Conv2DTranspose(1, self.factor, pad_mode="valid", stride=self.factor)
        # Lite knows no other sum, and no numbers beside tensors; nor do whole graphs for Ascend know Tensor.sum
        self.sum, self.one, self.three, self.six = ops.ReduceSum(keep_dims=True), scalar(1), scalar(3), scalar(6)

    def construct(self, x: Tensor, shown: Tensor) -> Tensor:
        if self.factor > 1:
            shown = self.enlarge(shown, self.ones, (x.shape[0], 1, x.shape[2], x.shape[3]))
        count = ops.maximum(self.sum(shown, (2, 3)), self.one)
        # float16 doesn't hold the sum of a large map
        mean = self.sum(x.astype(mstype.float32) * shown, (2, 3)) / count
        scale = ops.relu6(float32(self.fc2(self.fc1(mean.astype(x.dtype)))) + self.three) / self.six
        return x * scale.astype(x.dtype)

    def onnx(self, g: GraphWriter, x: str, shown: str) -> str:
        if self.factor > 1:
            how: dict[str, Any] = {
                "mode": "nearest",
                "coordinate_transformation_mode": "asymmetric",
                "nearest_mode": "floor",
            }
            shown = g.op("Resize", shown, "", np.array([1, 1, self.factor, self.factor], np.float32), **how)
        count = g.op("Max", g.op("ReduceSum", shown, [2, 3], keepdims=1), 1.0)
        mean = g.op("Div", g.op("ReduceSum", g.op("Mul", x, shown), [2, 3], keepdims=1), count)
        y = g.conv(g.conv(mean, self.fc1, relu=True), self.fc2)
        return g.op("Mul", x, g.op("HardSigmoid", y, alpha=1 / 6, beta=0.5))


class Layer(nn.Cell):
    """A convolution, its batch norm, and an activation: "relu", "hswish" or "". As a block it needs no `shown`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        norm: NormMaker,
        activation: str,
        stride: int = 1,
        depthwise: bool = False,
    ):
        super().__init__()
        self.conv = conv(in_channels, out_channels, kernel, stride, in_channels if depthwise else 1)
        self.bn, self.folded, self.activation = norm(out_channels), norm.constant, activation
        self.hswish = nn.HSwish()

    def construct(self, x: Tensor, shown: Tensor | None = None) -> Tensor:
        x = conv_norm(x, self.conv, self.bn, self.folded or not self.training, relu=self.activation == "relu")
        return self.hswish(x) if self.activation == "hswish" else x

    def onnx(self, g: GraphWriter, x: str, shown: str = "") -> str:
        x = g.conv(x, self.conv, self.bn, relu=self.activation == "relu")
        return g.op("HardSwish", x) if self.activation == "hswish" else x


class InvertedResidual(nn.Cell):
    """Expansion by a 1x1 convolution, a depthwise one, squeeze and excitation, projection; the input is added where it
    has the output's shape. Inputs: x (B, C, H, W); shown, see SqueezeExcite.
    """

    def __init__(self, in_channels: int, plan: tuple, stride: int, norm: NormMaker):
        super().__init__()
        kernel, expanded, out_channels, squeezes, hswish, own_stride = plan
        activation = "hswish" if hswish else "relu"
        self.expands, self.squeezes = expanded != in_channels, squeezes
        if self.expands:
            self.expand = Layer(in_channels, expanded, 1, norm, activation)
        self.depthwise = Layer(expanded, expanded, kernel, norm, activation, own_stride, depthwise=True)
        if squeezes:
            self.se = SqueezeExcite(expanded, to_eights(expanded / 4), stride)
        self.project = Layer(expanded, out_channels, 1, norm, "")
        self.adds = own_stride == 1 and in_channels == out_channels

    def construct(self, x: Tensor, shown: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x) if self.expands else x)
        y = self.project(self.se(y, shown) if self.squeezes else y)
        return x + y if self.adds else y

    def onnx(self, g: GraphWriter, x: str, shown: str) -> str:
        y = self.depthwise.onnx(g, self.expand.onnx(g, x) if self.expands else x)
        y = self.project.onnx(g, self.se.onnx(g, y, shown) if self.squeezes else y)
        return g.op("Add", x, y) if self.adds else y


class MobileNetV3(StagedBackbone):
    """MobileNetV3-Large without its classifier.

    Args:
        num_stages: of 5.  out_indices, frozen_stages, norm_*: as for ResNet. torchvision counts a stage's last block to
        the next one, so that its `trainable_layers` 3 freezes all of stages 1 and 2 and two of three blocks of stage 3.
        same_padding: isn't there.

    Input (B, 3, H, W) float32, normalised, H and W multiples of 32; zeros are padding. Output: a tuple of maps of 24,
    40, 80, 160 and 960 channels and strides 4, 8, 16, 32 and 32.
    """

    def __init__(
        self,
        num_stages: int = 5,
        out_indices: Sequence[int] = (3, 4),
        frozen_stages: int = -1,
        norm_eval: bool = True,
        norm_grad: bool = True,
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.9,
        norm_kind: str = "batch",
        same_padding: bool = False,
    ):
        super().__init__()
        norm = NormMaker(norm_eps, norm_momentum, norm_eval, norm_grad, norm_kind)
        self.conv1, self.bn1 = conv(3, 16, 3, 2), norm(16)
        self.stem_folded, self.hswish = norm.constant or frozen_stages >= 0, nn.HSwish()
        channels, stride, stages = 16, 2, []
        for i, plans in enumerate(STAGES[:num_stages]):
            blocks: list[nn.Cell] = []
            for plan in plans:
                stride *= plan[-1]
                blocks.append(InvertedResidual(channels, plan, stride, norm))
                channels = plan[2]
            if i == len(STAGES) - 1:
                blocks.append(Layer(channels, LAST, 1, norm, "hswish"))
            stages.append(nn.CellList(blocks))
        self.add_stages(stages, out_indices, frozen_stages)
        self.largest, self.sum = nn.MaxPool2d(CELL, CELL, pad_mode="valid"), ops.ReduceSum(keep_dims=True)
        self.sure, self.one = scalar(SURE), scalar(1)

    def construct(self, x: Tensor) -> tuple[Tensor, ...]:
        # 1 where a cell holds anything, as Lite says it, which knows neither comparisons nor casts
        shown = ops.stop_gradient(ops.minimum(self.largest(self.sum(x * x, 1)) * self.sure, self.one))
        x = self.hswish(conv_norm(x, self.conv1, self.bn1, self.stem_folded or not self.training))
        if self.frozen_stages == 0:
            x = ops.stop_gradient(x)
        outputs = ()  # type: tuple[Tensor, ...]
        for i, stage in enumerate(self.stages):
            for block in stage:
                x = block(x, shown)
            if i + 1 == self.frozen_stages:
                x = ops.stop_gradient(x)
            if i in self.out_indices:
                outputs += (x,)
        return outputs

    def onnx(self, g: GraphWriter, x: str) -> list[str]:
        """The maps in ONNX's operators."""
        largest = g.op("ReduceSum", g.op("Mul", x, x), [1], keepdims=1)
        largest = g.op("MaxPool", largest, kernel_shape=[CELL, CELL], strides=[CELL, CELL])
        shown = g.op("Min", g.op("Mul", largest, SURE), 1.0)
        x = g.op("HardSwish", g.conv(x, self.conv1, self.bn1))
        outputs = []
        for stage in self.stages:
            for block in stage:
                x = block.onnx(g, x, shown)
            outputs.append(x)
        return [outputs[i] for i in self.out_indices]


def scalar(value: float) -> Tensor:
    """(1, 1, 1, 1) float32."""
    return Tensor(np.full((1, 1, 1, 1), value, np.float32))


def to_eights(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and not less than nine tenths of `channels`."""
    out = max(8, int(channels + 4) // 8 * 8)
    return out + 8 if out < 0.9 * channels else out


def mobilenet_v3_keys(shapes: Shapes) -> tuple[dict[str, Any], str] | None:
    """See Kind.keys."""
    last = shapes.get("backbone.layer5.2.conv.weight")
    blocks = {m[0] for n in shapes if (m := re.match(r"backbone\.layer\d\.\d+\.", n))}
    if last is None or last[0] != LAST or len(blocks) != 1 + sum(map(len, STAGES)):
        return None
    keys = {"backbone.type": "mobilenet_v3_large", "backbone.num_stages": 5, "backbone.out_indices": [3, 4]}
    return keys, "mobilenetv3"
