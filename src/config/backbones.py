"""The backbones by name: what a config can say of each, and what follows from that for the neck."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BACKBONES", "FAMILIES", "PLAIN", "Family", "backbone_channels", "backbone_strides"]


@dataclass(frozen=True)
class Family:
    """One family of backbones, as src.models.backbones makes it.

    channels, strides: of the map of each stage, channels before `scaled` does with them what the config's group
    `backbone` says, (group, channels) -> channels.  options: the keys of its own, with what they are in other families;
    there nothing else is accepted.  told: the keys by which an export says which backbone it has.  transformer: it has
    layer norms alone, and no stages to freeze.  one_canvas: it is built for the config's, and takes no other.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...] = (4, 8, 16, 32)
    options: dict[str, Any] = field(default_factory=dict)
    told: tuple[str, ...] = ()
    scaled: Callable[[Any, int], int] = lambda backbone, channels: channels
    transformer: bool = False
    one_canvas: bool = False


def _to_width(backbone: Any, channels: int) -> int:
    """`channels` times the multiplier, to the nearest multiple of 8, at least 8."""
    return max(8, int(channels * backbone.width_multiplier + 4) // 8 * 8)


DROP_PATH = {"drop_path": 0.0}
FAMILIES = {
    "resnet": Family((256, 512, 1024, 2048), told=("depth", "stride_in_1x1")),
    "resnext": Family(
        (256, 512, 1024, 2048),
        options={"groups": 1, "base_width": 64},
        told=("depth", "stride_in_1x1", "groups", "base_width"),
    ),
    "mobilenet_v1": Family(
        (128, 256, 512, 1024),
        options={"width_multiplier": 1.0, "relu6": False},
        told=("width_multiplier",),
        scaled=_to_width,
    ),
    "mobilenet_v3_large": Family((24, 40, 80, 160, 960), (4, 8, 16, 32, 32)),
    "vit_b": Family((192, 384, 768, 768), options=DROP_PATH, transformer=True, one_canvas=True),
    "swin_t": Family((96, 192, 384, 768), options=DROP_PATH, transformer=True),
    "swin_s": Family((96, 192, 384, 768), options=DROP_PATH, transformer=True),
}
# The names that the launchers and older configs give backbones: `backbone: resnet_v1_50`. Only resnet_v1_50 was ever
# v1: the model zoo's 101 and 152, and the classifiers that they start from, stride in the 3x3 convolution.
BACKBONES: dict[str, dict[str, Any]] = {
    "resnet_v1_50": {"type": "resnet", "depth": 50, "stride_in_1x1": True},
    "resnet_v1.5_50": {"type": "resnet", "depth": 50, "stride_in_1x1": False},
    "resnet_v1_101": {"type": "resnet", "depth": 101, "stride_in_1x1": False},
    "resnet_v1_152": {"type": "resnet", "depth": 152, "stride_in_1x1": False},
    "mobilenet_v1": {"type": "mobilenet_v1"},
    "mobilenet_v3_large": {"type": "mobilenet_v3_large", "num_stages": 5, "out_indices": [3, 4]},
    **{name: {"type": name, "frozen_stages": -1} for name, family in FAMILIES.items() if family.transformer},
}
# what a name stands for besides, so that it leaves nothing of another family's behind
PLAIN: dict[str, Any] = {k: v for family in FAMILIES.values() for k, v in family.options.items()}


def backbone_channels(backbone: Any) -> list[int]:
    """Channels of the maps that a backbone gives the neck."""
    family = FAMILIES[backbone.type]
    return [family.scaled(backbone, family.channels[i]) for i in backbone.out_indices if i < len(family.channels)]


def backbone_strides(backbone: Any) -> list[int]:
    """Strides, in pixels of the canvas, of the maps that a backbone gives the neck."""
    strides = FAMILIES[backbone.type].strides
    return [strides[i] for i in backbone.out_indices if i < len(strides)]
