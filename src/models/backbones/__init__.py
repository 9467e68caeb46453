"""The backbones by the type that a config names: how each is made, and how its checkpoints are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from src.config import Backbone, Config
from src.models.backbones.mobilenet_v1 import MobileNetV1, mobilenet_v1_keys
from src.models.backbones.mobilenet_v3 import MobileNetV3, mobilenet_v3_keys
from src.models.backbones.parts import Shapes, StagedBackbone
from src.models.backbones.resnet import ResNet, resnet_keys

__all__ = ["BACKBONES", "Kind", "backbone_keys", "build_backbone"]


@dataclass(frozen=True)
class Kind:
    """A type of backbone.

    build: of config.backbone and of the arguments that all types share.  keys: (names and shapes of parameters,
    "backbone." before each) -> the config's keys of the backbone that has them and what files of configs call it, or
    None where they aren't this type's.
    """

    build: Callable[[Backbone, dict[str, Any]], StagedBackbone]
    keys: Callable[[Shapes], tuple[dict[str, Any], str] | None]


BACKBONES = {
    "resnet": Kind(lambda c, shared: ResNet(c.depth, c.stride_in_1x1, **shared), resnet_keys),
    "resnext": Kind(lambda c, shared: ResNet(c.depth, c.stride_in_1x1, c.groups, c.base_width, **shared), resnet_keys),
    "mobilenet_v1": Kind(lambda c, shared: MobileNetV1(c.width_multiplier, relu6=c.relu6, **shared), mobilenet_v1_keys),
    "mobilenet_v3_large": Kind(lambda c, shared: MobileNetV3(**shared), mobilenet_v3_keys),
}


def build_backbone(config: Config) -> StagedBackbone:
    """The backbone that config.backbone names."""
    c = config.backbone
    return BACKBONES[c.type].build(
        c,
        {
            "num_stages": c.num_stages,
            "out_indices": c.out_indices,
            "frozen_stages": c.frozen_stages,
            "norm_eval": c.norm_eval,
            "norm_grad": c.norm_grad,
            "norm_eps": c.norm_eps,
            "norm_momentum": c.norm_momentum,
            "norm_kind": c.norm,
            "same_padding": c.same_padding,
        },
    )


def backbone_keys(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Any], str] | None:
    """The config's keys of the backbone whose parameters have these names and shapes, and what files of configs call
    it; None for no such one.
    """
    return next((found for kind in BACKBONES.values() if (found := kind.keys(shapes))), None)
