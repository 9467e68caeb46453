"""ResNet (He et al., 2016, arXiv:1512.03385) and ResNeXt (Xie et al., 2017, arXiv:1611.05431) backbones.

v1 strides in a stage's first 1x1 convolution (the paper, Caffe2, Detectron2's R-50), v1.5 in its 3x3
(torchvision, mmdetection). Parameter names follow torchvision's: `layer1.0.conv1.weight`, with batch norm's
four named as MindSpore names them (gamma, beta, moving_mean, moving_variance).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mindspore import Tensor, nn

from src.models.backbones.parts import Shapes, StagedBackbone, conv
from src.models.graph_writer import GraphWriter
from src.models.norms import NormMaker, conv_norm, passing_conv_norm
from src.ops.max_pool import StemPool

__all__ = ["RESNET_BLOCKS", "ResNet", "resnet_keys"]

RESNET_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class Bottleneck(nn.Cell):
    """1x1, 3x3, 1x1 convolutions and a shortcut; `width` is the 3x3's channels, the output has 4 x `planes`. last: of
    its stage, so that others than the next block may read it.
    """

    def __init__(
        self,
        in_channels: int,
        planes: int,
        width: int,
        stride: int,
        groups: int,
        stride_in_1x1: bool,
        norm: NormMaker,
        last: bool,
    ):
        super().__init__()
        out_channels = 4 * planes
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1, self.bn1 = conv(in_channels, width, 1, first), norm(width)
        self.conv2, self.bn2 = conv(width, width, 3, second, groups), norm(width)
        self.conv3, self.bn3 = conv(width, out_channels, 1), norm(out_channels)
        self.folded = norm.constant
        self.has_projection = stride != 1 or in_channels != out_channels
        if self.has_projection:
            self.downsample = nn.SequentialCell(conv(in_channels, out_channels, 1, stride), norm(out_channels))
        else:
            self.conv1.pass_on()
        if not last:
            self.conv3.read_by_passing()

    def construct(self, x: Tensor) -> Tensor:
        folded = self.folded or not self.training
        if self.has_projection:
            shortcut = conv_norm(x, self.downsample[0], self.downsample[1], folded)
            y = conv_norm(x, self.conv1, self.bn1, folded, relu=True)
        else:
            y, shortcut = passing_conv_norm(x, self.conv1, self.bn1, folded)
        y = conv_norm(y, self.conv2, self.bn2, folded, relu=True)
        return conv_norm(y, self.conv3, self.bn3, folded, other=shortcut)

    def onnx(self, g: GraphWriter, x: str) -> str:
        y = g.conv(x, self.conv1, self.bn1, relu=True)
        y = g.conv(y, self.conv2, self.bn2, relu=True)
        y = g.conv(y, self.conv3, self.bn3)
        shortcut = g.conv(x, *self.downsample) if self.has_projection else x
        return g.op("Relu", g.op("Add", y, shortcut))


class ResNet(StagedBackbone):
    """ResNet or ResNeXt without its classifier.

    Args:
        depth: 50, 101 or 152.
        stride_in_1x1: v1 (True) or v1.5 (False).
        groups, base_width: ResNeXt's cardinality and width of one group at stage 1 (1 and 64: ResNet).
        num_stages, out_indices: how many stages there are, and whose outputs are returned.
        frozen_stages: -1 none, 0 the stem, i stem and stages 1..i; frozen stages pass no gradient on.
        norm_eval: batch norm uses running statistics in training.  norm_grad: its scale and shift are trained.
        norm_kind: of NORMS.
        same_padding: the stem's pool pads right and below alone, as the model zoo's.

    Input (B, 3, H, W) float32, normalised. Output: a tuple of (B, 256 * 2^i, H / 2^(i+2), W / 2^(i+2)).
    """

    def __init__(
        self,
        depth: int = 50,
        stride_in_1x1: bool = False,
        groups: int = 1,
        base_width: int = 64,
        num_stages: int = 4,
        out_indices: Sequence[int] = (0, 1, 2, 3),
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
        self.conv1, self.bn1 = conv(3, 64, 7, 2), norm(64)
        self.maxpool, self.stem_folded = StemPool(same_padding), norm.constant or frozen_stages >= 0
        in_channels, stages = 64, []
        for i in range(num_stages):
            planes = 64 * 2**i
            width = planes * base_width // 64 * groups
            blocks = []
            count = RESNET_BLOCKS[depth][i]
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                last = j == count - 1
                blocks.append(Bottleneck(in_channels, planes, width, stride, groups, stride_in_1x1, norm, last))
                in_channels = 4 * planes
            stages.append(nn.SequentialCell(blocks))
        self.add_stages(stages, out_indices, frozen_stages)

    def stem(self, x: Tensor) -> Tensor:
        folded = self.stem_folded or not self.training
        return self.maxpool(conv_norm(x, self.conv1, self.bn1, folded, relu=True))

    def onnx_stem(self, g: GraphWriter, x: str) -> str:
        pads: dict[str, Any] = {"auto_pad": "SAME_UPPER"} if self.maxpool.same_padding else {"pads": [1, 1, 1, 1]}
        return g.op("MaxPool", g.conv(x, self.conv1, self.bn1, relu=True), kernel_shape=[3, 3], strides=[2, 2], **pads)


def resnet_keys(shapes: Shapes) -> tuple[dict[str, Any], str] | None:
    """See Kind.keys; of a ResNeXt too."""
    found = {tuple(map(int, m.groups())) for n in shapes if (m := re.match(r"backbone\.layer(\d)\.(\d+)\.", n))}
    blocks = tuple(sum(stage == s for s, _ in found) for stage in (1, 2, 3, 4))
    depth = next((depth for depth, plan in RESNET_BLOCKS.items() if plan == blocks), None)
    conv2 = shapes.get("backbone.layer1.0.conv2.weight", ())
    if depth is None or len(conv2) != 4 or "backbone.layer1.0.conv3.weight" not in shapes:
        return None
    groups, base_width = conv2[0] // conv2[1] if conv2[1] else 1, conv2[1]
    if (groups, base_width) == (1, 64):
        return {"backbone.type": "resnet", "backbone.depth": depth}, f"r{depth}"
    own = {"backbone.groups": groups, "backbone.base_width": base_width}
    return {"backbone.type": "resnext", "backbone.depth": depth, **own}, f"x{depth}_{groups}x{base_width}d"
