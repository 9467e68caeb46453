"""This project's own names: checkpoints of train.py and of the converter, whole or the backbone alone, with "backbone."
before its names or, as its cell has them by itself, without.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from src.checkpoints.convert.rules import Traits, has_all

__all__ = ["FAMILY", "recognises", "rename", "traits"]

FAMILY = ""
PARTS = ("backbone.", "neck.", "rpn.", "bbox_head.", "bbox_heads.", "mask_head.", "mask_heads.")


def recognises(names: Collection[str]) -> bool:
    """Whether these are our names."""
    whole = has_all(names, "backbone.conv1.weight", "backbone.bn1.gamma")
    whole &= "backbone.layer1.0.conv1.weight" in names or "backbone.layer1.0.depthwise.weight" in names
    alone = has_all(names, "conv1.weight", "bn1.gamma")
    alone &= "layer1.0.downsample.0.weight" in names or "layer1.0.depthwise.weight" in names
    zoo = any(n.startswith("rpn_with_loss.") for n in names)
    return (whole or alone) and not zoo


def rename(name: str) -> str | None:
    """The name itself, if it is one of ours, or the whole detector's for a backbone's."""
    if name.startswith(PARTS):
        return name
    return f"backbone.{name}" if re.match(r"(conv1|bn1|layer\d\.\d+)\.", name) else None


def traits(names: Collection[str]) -> Traits:
    """Nothing differs."""
    return Traits()
