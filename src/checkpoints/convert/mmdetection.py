"""mmdetection 2.x and 3.x: Faster, Mask, Cascade and Cascade Mask R-CNN with FPN on ResNet and ResNeXt; 1.x's names.

Names: mmdet/models/{backbones/resnet.py,necks/fpn.py,dense_heads/rpn_head.py,roi_heads/}. Since 2.0 the background is
the last class; 1.x, whose heads aren't under `roi_head.`, had it first (tools/model_converters/upgrade_model_version.py
there).
"""

from __future__ import annotations

from collections.abc import Collection

from src.checkpoints.convert.rules import NORM, Traits, has_all, rename_by
from src.config.conventions import CONVENTIONS

__all__ = ["FAMILY", "recognises", "rename", "traits"]

FAMILY = "mmdet"
ROI = r"(?:roi_head\.)?"


def _head(group: str, number: str | None) -> str:
    """`bbox_head` or, in a cascade, `bbox_heads.0`."""
    return f"{group}s.{number}" if number is not None else group


PATTERNS = [
    (r"backbone\.((?:layer\d\.\d+\.)?)(?:bn|gn)(\d)\.(\w+)", lambda m: f"backbone.{m[1]}bn{m[2]}.{NORM[m[3]]}"),
    (r"backbone\.(layer\d\.\d+\.downsample)\.1\.(\w+)", lambda m: f"backbone.{m[1]}.1.{NORM[m[2]]}"),
    (r"(backbone\.(?:conv1|layer\d\.\d+\.(?:conv\d|downsample\.0))\.weight)", lambda m: m[1]),
    (r"neck\.(lateral|fpn)_convs\.(\d)\.conv\.(weight|bias)", lambda m: f"neck.{m[1]}_convs.{m[2]}.{m[3]}"),
    (
        r"neck\.(lateral|fpn)_convs\.(\d)\.(?:bn|gn)\.(\w+)",
        lambda m: f"neck.{m[1]}_convs.{m[2]}.norm.{NORM[m[3]]}",
    ),
    # of num_convs: 2 or more
    (
        r"rpn_head\.rpn_conv\.(\d)\.conv\.(weight|bias)",
        lambda m: f"rpn.conv{int(m[1]) + 1 if m[1] != '0' else ''}.{m[2]}",
    ),
    (r"rpn_head\.rpn_(conv|cls|reg)\.(weight|bias)", lambda m: f"rpn.{m[1]}.{m[2]}"),
    (
        ROI + r"bbox_head\.(?:(\d)\.)?shared_convs\.(\d)\.conv\.(\w+)",
        lambda m: f"{_head('bbox_head', m[1])}.convs.{m[2]}.{m[3]}",
    ),
    (
        ROI + r"bbox_head\.(?:(\d)\.)?shared_convs\.(\d)\.(?:bn|gn)\.(\w+)",
        lambda m: f"{_head('bbox_head', m[1])}.convs.{m[2]}.norm.{NORM[m[3]]}",
    ),
    (
        ROI + r"bbox_head\.(?:(\d)\.)?shared_fcs\.(\d)\.(\w+)",
        lambda m: f"{_head('bbox_head', m[1])}.fc{int(m[2]) + 1}.{m[3]}",
    ),
    (ROI + r"bbox_head\.(?:(\d)\.)?fc_(cls|reg)\.(\w+)", lambda m: f"{_head('bbox_head', m[1])}.{m[2]}.{m[3]}"),
    (
        ROI + r"mask_head\.(?:(\d)\.)?convs\.(\d)\.conv\.(\w+)",
        lambda m: f"{_head('mask_head', m[1])}.convs.{m[2]}.{m[3]}",
    ),
    (
        ROI + r"mask_head\.(?:(\d)\.)?convs\.(\d)\.(?:bn|gn)\.(\w+)",
        lambda m: f"{_head('mask_head', m[1])}.convs.{m[2]}.norm.{NORM[m[3]]}",
    ),
    (ROI + r"mask_head\.(?:(\d)\.)?upsample\.(\w+)", lambda m: f"{_head('mask_head', m[1])}.upsample.{m[2]}"),
    (ROI + r"mask_head\.(?:(\d)\.)?conv_logits\.(\w+)", lambda m: f"{_head('mask_head', m[1])}.logits.{m[2]}"),
]


def recognises(names: Collection[str]) -> bool:
    """Whether these are the names of an mmdetection R-CNN with FPN."""
    rpn = {"rpn_head.rpn_conv.weight", "rpn_head.rpn_conv.0.conv.weight"} & set(names)
    return bool(rpn) and has_all(names, "neck.lateral_convs.0.conv.weight", "backbone.conv1.weight")


def rename(name: str) -> str | None:
    """Our name for an mmdetection parameter; None where we have no such thing."""
    return None if name.endswith("num_batches_tracked") else rename_by(PATTERNS, name)


def traits(names: Collection[str]) -> Traits:
    """Of a state dict with these names."""
    if any(n.startswith("roi_head.") for n in names):
        return Traits(background_last=CONVENTIONS["mmdetection"].background_last, foreground_row=0)
    note = "names of mmdetection 1.x: background first, boxes and anchors of before 2.0 (rpn.anchor_generator.legacy:"
    return Traits(notes=(note + " mmdet1, box_plus_one: true)",))
