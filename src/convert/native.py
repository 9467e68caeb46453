"""This project's own names: checkpoints of train.py and of the converter, whole or the backbone alone."""

from collections.abc import Collection

from src.convert.rules import Traits, has_all

__all__ = ["FAMILY", "recognises", "rename", "traits"]

FAMILY = ""
PARTS = ("backbone.", "neck.", "rpn.", "bbox_head.", "bbox_heads.", "mask_head.", "mask_heads.")


def recognises(names: Collection[str]) -> bool:
    """Whether these are our names."""
    resnet = has_all(names, "backbone.conv1.weight", "backbone.bn1.gamma", "backbone.layer1.0.conv1.weight")
    mobilenet = has_all(names, "backbone.conv1.weight", "backbone.bn1.gamma", "backbone.layer1.0.depthwise.weight")
    zoo = any(n.startswith("rpn_with_loss.") for n in names)
    return (resnet or mobilenet) and not zoo


def rename(name: str) -> str | None:
    """The name itself, if it is one of ours."""
    return name if name.startswith(PARTS) else None


def traits(names: Collection[str]) -> Traits:
    """Nothing differs."""
    return Traits()
