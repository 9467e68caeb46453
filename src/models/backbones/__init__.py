"""The backbones by the type that a config names."""

from collections.abc import Callable
from typing import Any

from src.config import Backbone, Config
from src.models.backbones.mobilenet_v1 import MobileNetV1
from src.models.backbones.parts import StagedBackbone
from src.models.backbones.resnet import ResNet

__all__ = ["BACKBONES", "build_backbone"]

# of the config's keys and of those that all families share
BACKBONES: dict[str, Callable[[Backbone, dict[str, Any]], StagedBackbone]] = {
    "resnet": lambda c, shared: ResNet(c.depth, c.stride_in_1x1, **shared),
    "resnext": lambda c, shared: ResNet(c.depth, c.stride_in_1x1, c.groups, c.base_width, **shared),
    "mobilenet_v1": lambda c, shared: MobileNetV1(c.width_multiplier, relu6=c.relu6, **shared),
}


def build_backbone(config: Config) -> StagedBackbone:
    """The backbone that config.backbone names."""
    c = config.backbone
    return BACKBONES[c.type](
        c,
        {
            "num_stages": c.num_stages,
            "out_indices": c.out_indices,
            "frozen_stages": c.frozen_stages,
            "norm_eval": c.norm_eval,
            "norm_grad": c.norm_grad,
            "norm_eps": c.norm_eps,
            "norm_momentum": c.norm_momentum,
            "same_padding": c.same_padding,
        },
    )
