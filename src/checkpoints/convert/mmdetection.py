"""mmdetection 2.x and 3.x: Faster, Mask, Cascade and Cascade Mask R-CNN with FPN on ResNet, ResNeXt and Swin; 1.x's
names.

Names: mmdet/models/{backbones/{resnet,swin}.py,necks/fpn.py,dense_heads/rpn_head.py,roi_heads/}. Since 2.0 the
background is the last class; 1.x, whose heads aren't under `roi_head.`, had it first
(tools/model_converters/upgrade_model_version.py there). Swin also comes by the names of Microsoft's own project, as
classifiers and in its fork of mmdetection: models/swin_transformer.py there.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np

from src.checkpoints.convert.rules import NORM, Traits, has_all, rename_by
from src.config.conventions import CONVENTIONS

__all__ = ["FAMILY", "arranged", "recognises", "rename", "traits"]

FAMILY = "mmdet"
ROI = r"(?:roi_head\.)?"
# mmdetection's Swin and Microsoft's
SWIN = r"(?:backbone\.)?"
LAYER = SWIN + r"(?:stages|layers)\.(\d)\."
ATTENTION = {"relative_position_bias_table": "position_bias"}
MLP = {"ffn.layers.0.0": "fc1", "ffn.layers.1": "fc2", "mlp.fc1": "fc1", "mlp.fc2": "fc2"}
MERGING = re.compile(SWIN + r"(stages|layers)\.\d\.downsample\.(?:norm\.(?:weight|bias)|reduction\.weight)")
BY_ROWS = [0, 2, 1, 3]  # Microsoft's four neighbours, which go by columns


def _head(group: str, number: str | None) -> str:
    """`bbox_head` or, in a cascade, `bbox_heads.0`."""
    return f"{group}s.{number}" if number is not None else group


PATTERNS = [
    (r"backbone\.((?:layer\d\.\d+\.)?)(?:bn|gn)(\d)\.(\w+)", lambda m: f"backbone.{m[1]}bn{m[2]}.{NORM[m[3]]}"),
    (r"backbone\.(layer\d\.\d+\.downsample)\.1\.(\w+)", lambda m: f"backbone.{m[1]}.1.{NORM[m[2]]}"),
    (r"(backbone\.(?:conv1|layer\d\.\d+\.(?:conv\d|downsample\.0))\.weight)", lambda m: m[1]),
    (SWIN + r"patch_embed\.proj(?:ection)?\.(weight|bias)", lambda m: f"backbone.patch_embed.{m[1]}"),
    (SWIN + r"patch_embed\.norm\.(\w+)", lambda m: f"backbone.patch_norm.{NORM[m[1]]}"),
    (SWIN + r"norm(\d)\.(\w+)", lambda m: f"backbone.norms.{m[1]}.{NORM[m[2]]}"),
    (
        LAYER + r"blocks\.(\d+)\.(norm[12])\.(\w+)",
        lambda m: f"backbone.stages.{m[1]}.blocks.{m[2]}.{m[3]}.{NORM[m[4]]}",
    ),
    (
        LAYER + r"blocks\.(\d+)\.attn\.(?:w_msa\.)?(relative_position_bias_table|(?:qkv|proj)\.(?:weight|bias))",
        lambda m: f"backbone.stages.{m[1]}.blocks.{m[2]}.attn.{ATTENTION.get(m[3], m[3])}",
    ),
    (
        LAYER + r"blocks\.(\d+)\.(ffn\.layers\.0\.0|ffn\.layers\.1|mlp\.fc[12])\.(weight|bias)",
        lambda m: f"backbone.stages.{m[1]}.blocks.{m[2]}.mlp.{MLP[m[3]]}.{m[4]}",
    ),
    (LAYER + r"downsample\.norm\.(\w+)", lambda m: f"backbone.stages.{m[1]}.downsample.norm.{NORM[m[2]]}"),
    (LAYER + r"downsample\.reduction\.weight", lambda m: f"backbone.stages.{m[1]}.downsample.reduction.weight"),
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
    """Whether these are the names of an mmdetection R-CNN with FPN, or of a classifier's Swin."""
    rpn = {"rpn_head.rpn_conv.weight", "rpn_head.rpn_conv.0.conv.weight"} & set(names)
    first = {"conv1.weight", "patch_embed.projection.weight", "patch_embed.proj.weight"}
    first = {f"backbone.{n}" for n in first} & set(names)
    return (
        (bool(rpn and first) and "neck.lateral_convs.0.conv.weight" in names)
        or has_all(names, "patch_embed.projection.weight", "stages.0.blocks.0.attn.w_msa.qkv.weight")
        or has_all(names, "patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table")
    )


def rename(name: str) -> str | None:
    """Our name for an mmdetection parameter; None where we have no such thing."""
    return None if name.endswith("num_batches_tracked") else rename_by(PATTERNS, name)


def arranged(name: str, ours: str, value: np.ndarray) -> np.ndarray:
    """The four neighbours that Swin merges one after the other, by rows: mmdetection interleaves them, as nn.Unfold
    does, and Microsoft goes by columns. Other arrays as they are.
    """
    merging = MERGING.fullmatch(name)
    if merging is None or not value.size or value.shape[-1] % 4:
        return value
    if merging[1] == "stages":
        return value.reshape(*value.shape[:-1], -1, 4).swapaxes(-1, -2).reshape(value.shape)
    return value.reshape(*value.shape[:-1], 4, -1)[..., BY_ROWS, :].reshape(value.shape)


def traits(names: Collection[str]) -> Traits:
    """Of a state dict with these names."""
    if any(n.startswith("roi_head.") for n in names) or not any(n.startswith("rpn_head.") for n in names):
        return Traits(background_last=CONVENTIONS["mmdetection"].background_last, foreground_row=0)
    note = "names of mmdetection 1.x: background first, boxes and anchors of before 2.0 (rpn.anchor_generator.legacy:"
    return Traits(notes=(note + " mmdet1, box_plus_one: true)",))
