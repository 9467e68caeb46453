"""MobileNetV1 backbone (Howard et al., 2017, arXiv:1704.04861) with outputs at strides 4, 8, 16 and 32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mindspore import Tensor, nn

from src.models.backbones.parts import Shapes, StagedBackbone, conv
from src.models.graph_writer import GraphWriter
from src.models.norms import NormMaker, conv_norm

__all__ = ["MobileNetV1", "mobilenet_v1_keys"]

# (output channels, stride) of the depthwise-separable blocks, stage by stage; each stage ends at stride 4 * 2^i
STAGES = (
    ((64, 1), (128, 2), (128, 1)),
    ((256, 2), (256, 1)),
    ((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)),
    ((1024, 2), (1024, 1)),
)


class SeparableBlock(nn.Cell):
    """3x3 depthwise and 1x1 pointwise convolution, each with batch norm and ReLU, or ReLU6."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, norm: NormMaker, relu6: bool, same_padding: bool
    ):
        super().__init__()
        self.depthwise = conv(in_channels, in_channels, 3, stride, in_channels, same_padding)
        self.bn1 = norm(in_channels)
        self.pointwise, self.bn2 = conv(in_channels, out_channels, 1), norm(out_channels)
        self.folded, self.relu6 = norm.constant, relu6

    def construct(self, x: Tensor) -> Tensor:
        folded = self.folded or not self.training
        x = conv_norm(x, self.depthwise, self.bn1, folded, relu=True, relu6=self.relu6)
        return conv_norm(x, self.pointwise, self.bn2, folded, relu=True, relu6=self.relu6)

    def onnx(self, g: GraphWriter, x: str) -> str:
        for layer, bias in ((self.depthwise, self.bn1), (self.pointwise, self.bn2)):
            x = g.conv(x, layer, bias, relu=True)
            x = g.relu6(x) if self.relu6 else x
        return x


class MobileNetV1(StagedBackbone):
    """MobileNetV1 without its classifier.

    Args:
        width_multiplier: scales every channel count (rounded to a multiple of 8, at least 8).
        num_stages, out_indices, frozen_stages, norm_*: as for ResNet.
        same_padding: convolutions of stride 2 pad right and below alone, as the model zoo's.
        relu6: ReLU6 in ReLU's place, as the model zoo's.

    Input (B, 3, H, W) float32, normalised. Output: a tuple of (B, w * 128 * 2^i, H / 2^(i+2), W / 2^(i+2)).
    """

    def __init__(
        self,
        width_multiplier: float = 1.0,
        num_stages: int = 4,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = True,
        norm_grad: bool = True,
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.9,
        norm_kind: str = "batch",
        same_padding: bool = False,
        relu6: bool = False,
    ):
        super().__init__()
        norm = NormMaker(norm_eps, norm_momentum, norm_eval, norm_grad, norm_kind)
        channels = scaled_channels(32, width_multiplier)
        self.conv1, self.bn1 = conv(3, channels, 3, 2, same_padding=same_padding), norm(channels)
        self.stem_folded, self.relu6 = norm.constant or frozen_stages >= 0, relu6
        stages = []
        for plan in STAGES[:num_stages]:
            blocks = []
            for out_channels, stride in plan:
                out_channels = scaled_channels(out_channels, width_multiplier)
                blocks.append(SeparableBlock(channels, out_channels, stride, norm, relu6, same_padding))
                channels = out_channels
            stages.append(nn.SequentialCell(blocks))
        self.add_stages(stages, out_indices, frozen_stages)

    def stem(self, x: Tensor) -> Tensor:
        return conv_norm(x, self.conv1, self.bn1, self.stem_folded or not self.training, relu=True, relu6=self.relu6)

    def onnx_stem(self, g: GraphWriter, x: str) -> str:
        x = g.conv(x, self.conv1, self.bn1, relu=True)
        return g.relu6(x) if self.relu6 else x


def scaled_channels(channels: int, width_multiplier: float) -> int:
    """`channels` times the multiplier, to the nearest multiple of 8, at least 8."""
    return max(8, int(channels * width_multiplier + 4) // 8 * 8)


def mobilenet_v1_keys(shapes: Shapes) -> tuple[dict[str, Any], str] | None:
    """See Kind.keys."""
    if "backbone.layer1.0.depthwise.weight" not in shapes or "backbone.layer1.0.pointwise.weight" not in shapes:
        return None
    width = shapes["backbone.conv1.weight"][0] / 32
    return {"backbone.type": "mobilenet_v1", "backbone.width_multiplier": width}, "mobilenetv1"
