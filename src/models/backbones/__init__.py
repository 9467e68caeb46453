"""The backbones by the type that a config names: how each is made, and how its checkpoints are told."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mindspore import nn

from src.config import Config
from src.models.backbones.mobilenet_v1 import MobileNetV1, mobilenet_v1_keys
from src.models.backbones.mobilenet_v3 import MobileNetV3, mobilenet_v3_keys
from src.models.backbones.parts import Shapes
from src.models.backbones.resnet import ResNet, resnet_keys
from src.models.backbones.swin import SIZES as SWINS
from src.models.backbones.swin import Swin, swin_keys
from src.models.backbones.vit import SIZES as VITS
from src.models.backbones.vit import ViT, vit_keys

__all__ = ["BACKBONES", "Kind", "backbone_keys", "build_backbone", "only_in_detectors"]


@dataclass(frozen=True)
class Kind:
    """A type of backbone.

    build: of the config and of the arguments that all types but transformers share.  keys: (names and shapes of
    parameters, "backbone." before each) -> the config's keys of the backbone that has them and what files of configs
    call it, or None where they aren't this type's.  new: of the names of parameters, "backbone." before each, that no
    classifier has, a pattern for how they begin.
    """

    build: Callable[[Config, dict[str, Any]], nn.Cell]
    keys: Callable[[Shapes], tuple[dict[str, Any], str] | None]
    new: str = ""


def _resnet(config: Config, shared: dict[str, Any]) -> nn.Cell:
    c = config.backbone
    return ResNet(c.depth, c.stride_in_1x1, c.groups, c.base_width, **shared)


def _mobilenet_v1(config: Config, shared: dict[str, Any]) -> nn.Cell:
    return MobileNetV1(config.backbone.width_multiplier, relu6=config.backbone.relu6, **shared)


def _vit(config: Config, shared: dict[str, Any]) -> nn.Cell:
    c, canvas = config.backbone, (config.img_height, config.img_width)
    return ViT(*VITS[c.type], *canvas, eps=c.norm_eps, drop_path=c.drop_path)


def _swin(config: Config, shared: dict[str, Any]) -> nn.Cell:
    c, canvas = config.backbone, (config.img_height, config.img_width)
    return Swin(*SWINS[c.type], *canvas, eps=c.norm_eps, drop_path=c.drop_path)


BACKBONES = {
    "resnet": Kind(_resnet, resnet_keys),
    "resnext": Kind(_resnet, resnet_keys),
    "mobilenet_v1": Kind(_mobilenet_v1, mobilenet_v1_keys),
    "mobilenet_v3_large": Kind(lambda config, shared: MobileNetV3(**shared), mobilenet_v3_keys),
    # positions relative to others, and the finer maps
    "vit_b": Kind(_vit, vit_keys, r"backbone\.(up[48]|blocks\.\d+\.attn\.rel_pos_)"),
    # of the maps
    "swin_t": Kind(_swin, swin_keys, r"backbone\.norms\."),
    "swin_s": Kind(_swin, swin_keys, r"backbone\.norms\."),
}


def build_backbone(config: Config) -> nn.Cell:
    """The backbone that config.backbone names."""
    c = config.backbone
    return BACKBONES[c.type].build(
        config,
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


def only_in_detectors(name: str) -> bool:
    """Whether a parameter of this name, "backbone." before it, is none of a classifier's: detectors add it."""
    return any(kind.new and re.match(kind.new, name) for kind in BACKBONES.values())
