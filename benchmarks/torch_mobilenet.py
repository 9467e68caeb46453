"""MobileNetV1 with a feature pyramid in PyTorch, for torchvision's detectors; needs torch and torchvision."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from src.checkpoints.convert.rules import NORM

__all__ = ["MobileNetV1FPN", "our_name"]

# (output channels, stride) of the separable blocks of each stage
STAGES = (
    ((64, 1), (128, 2), (128, 1)),
    ((256, 2), (256, 1)),
    ((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)),
    ((1024, 2), (1024, 1)),
)


class Convolution(nn.Conv2d):
    """3x3, padded by one cell on each side, or as TensorFlow's SAME: of odd amounts the larger part right and below."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int, same_padding: bool):
        padding = 0 if same_padding else 1
        super().__init__(inputs, outputs, 3, stride, padding, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.padding[0]:
            return super().forward(x)
        pads: list[int] = []
        for side in (x.shape[3], x.shape[2]):
            total = max((-(-side // self.stride[0]) - 1) * self.stride[0] + 3 - side, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


class Block(nn.Module):
    """A depthwise and a pointwise convolution, each with a norm that stays as it is and an activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, relu6: bool, same_padding: bool):
        super().__init__()
        self.depthwise, self.bn1 = Convolution(inputs, inputs, stride, inputs, same_padding), FrozenBatchNorm2d(inputs)
        self.pointwise, self.bn2 = nn.Conv2d(inputs, outputs, 1, bias=False), FrozenBatchNorm2d(outputs)
        self.active = F.relu6 if relu6 else F.relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.active(self.bn1(self.depthwise(x)), inplace=True)
        return self.active(self.bn2(self.pointwise(x)), inplace=True)


class MobileNetV1FPN(nn.Module):
    """As src/models/backbones/mobilenet_v1.py and src/models/fpn.py, five levels of `channels`; stem, first stage and
    all norms are frozen.
    """

    def __init__(self, channels: int, relu6: bool, same_padding: bool):
        super().__init__()
        self.conv1, self.bn1 = Convolution(3, 32, 2, 1, same_padding), FrozenBatchNorm2d(32)
        self.active, inputs = F.relu6 if relu6 else F.relu, 32
        for i, plan in enumerate(STAGES, 1):
            blocks = []
            for outputs, stride in plan:
                blocks.append(Block(inputs, outputs, stride, relu6, same_padding))
                inputs = outputs
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        for frozen in (self.conv1, self.layer1):
            frozen.requires_grad_(False)
        self.fpn = FeaturePyramidNetwork([plan[-1][0] for plan in STAGES], channels, LastLevelMaxPool())
        self.out_channels = channels

    def take(self, values: Mapping[str, np.ndarray]) -> None:
        """The backbone's weights, by our names."""
        state = {k: torch.from_numpy(values[our_name(k)]) for k in self.state_dict() if not k.startswith("fpn.")}
        self.load_state_dict(state, strict=False)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.active(self.bn1(self.conv1(x)), inplace=True)
        maps = {}
        for i in range(len(STAGES)):
            x = getattr(self, f"layer{i + 1}")(x)
            maps[str(i)] = x
        return self.fpn(maps)


def our_name(name: str) -> str:
    """What we call a parameter of MobileNetV1FPN's backbone."""
    layer, _, part = name.rpartition(".")
    return f"backbone.{layer}.{NORM[part] if 'bn' in layer.rpartition('.')[2] else part}"
