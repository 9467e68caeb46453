"""torchvision: `maskrcnn_resnet50_fpn`, `keypointrcnn_resnet50_fpn`, `fasterrcnn_resnet50_fpn`, their `_v2`s,
`fasterrcnn_mobilenet_v3_large_fpn` and `_320_fpn`; and the backbones of ResNet, ResNeXt and MobileNetV3-Large
classifiers.

Names: torchvision/models/detection/{faster_rcnn,mask_rcnn,keypoint_rcnn,rpn,backbone_utils}.py, models/resnet.py,
models/mobilenetv3.py. The published ResNet detectors are of 2019, with the names of before their modules were wrapped
(`mask_fcn1`, `inner_blocks.0.weight`); `overwrite_eps(model, 0.0)` there says that their batch norms had no epsilon.
"""

from __future__ import annotations

from collections.abc import Collection

from src.checkpoints.convert.rules import NORM, Traits, has_all, rename_by

__all__ = ["FAMILY", "recognises", "rename", "traits"]

FAMILY = "torchvision"
BODY = r"(?:backbone\.body\.)?"
# MobileNetV3-Large: how many blocks come before each stage, the stem among them; see models/backbones/mobilenet_v3.py
MOBILE, FIRSTS = r"(?:backbone\.body|features)\.(\d+)\.", (1, 3, 5, 8, 14)


def _mobile_block(index: str) -> str:
    stage = sum(first <= int(index) for first in FIRSTS)
    return f"backbone.layer{stage}.{int(index) - FIRSTS[stage - 1]}" if stage else "backbone"


def _mobile_part(index: str, part: str) -> str:
    """What the part-th of a block's modules is; block 1 has no expansion, blocks without squeezing no third of four."""
    parts = ["expand", "depthwise", "se", "project"]
    if index == "1":
        parts.remove("expand")
    if index not in ("4", "5", "6", "11", "12", "13", "14", "15"):
        parts.remove("se")
    return parts[int(part)] if int(part) < len(parts) else "unknown"


def _mobile_layer(index: str, layer: str) -> str:
    """The stem's and the last convolution: `layer` 0, and its norm, 1."""
    inner = {"0": ("conv1", "bn1"), "16": ("conv", "bn")}[index][int(layer)]
    return f"{_mobile_block(index)}.{inner}"


PATTERNS = [
    (BODY + r"((?:layer\d\.\d+\.)?)bn(\d)\.(\w+)", lambda m: f"backbone.{m[1]}bn{m[2]}.{NORM[m[3]]}"),
    (BODY + r"(layer\d\.\d+\.downsample)\.1\.(\w+)", lambda m: f"backbone.{m[1]}.1.{NORM[m[2]]}"),
    (BODY + r"((?:layer\d\.\d+\.)(?:conv\d|downsample\.0)\.weight|conv1\.weight)", lambda m: f"backbone.{m[1]}"),
    (MOBILE + r"block\.(\d)\.0\.weight", lambda m: f"{_mobile_block(m[1])}.{_mobile_part(m[1], m[2])}.conv.weight"),
    (
        MOBILE + r"block\.(\d)\.1\.(\w+)",
        lambda m: f"{_mobile_block(m[1])}.{_mobile_part(m[1], m[2])}.bn.{NORM[m[3]]}",
    ),
    (MOBILE + r"block\.\d\.(fc[12]\.\w+)", lambda m: f"{_mobile_block(m[1])}.se.{m[2]}"),
    (MOBILE + r"(0)\.weight", lambda m: f"{_mobile_layer(m[1], m[2])}.weight"),
    (MOBILE + r"(1)\.(\w+)", lambda m: f"{_mobile_layer(m[1], m[2])}.{NORM[m[3]]}"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?(\w+)", lambda m: f"neck.lateral_convs.{m[1]}.{m[2]}"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?(\w+)", lambda m: f"neck.fpn_convs.{m[1]}.{m[2]}"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.1\.(\w+)", lambda m: f"neck.lateral_convs.{m[1]}.norm.{NORM[m[2]]}"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.1\.(\w+)", lambda m: f"neck.fpn_convs.{m[1]}.norm.{NORM[m[2]]}"),
    (r"rpn\.head\.conv\.(?:0\.0\.)?(\w+)", lambda m: f"rpn.conv.{m[1]}"),
    (r"rpn\.head\.conv\.([1-9])\.0\.(\w+)", lambda m: f"rpn.conv{int(m[1]) + 1}.{m[2]}"),
    (r"rpn\.head\.cls_logits\.(\w+)", lambda m: f"rpn.cls.{m[1]}"),
    (r"rpn\.head\.bbox_pred\.(\w+)", lambda m: f"rpn.reg.{m[1]}"),
    (r"roi_heads\.box_head\.fc([67])\.(\w+)", lambda m: f"bbox_head.fc{int(m[1]) - 5}.{m[2]}"),
    (r"roi_heads\.box_head\.(\d)\.0\.(\w+)", lambda m: f"bbox_head.convs.{m[1]}.{m[2]}"),
    (r"roi_heads\.box_head\.(\d)\.1\.(\w+)", lambda m: f"bbox_head.convs.{m[1]}.norm.{NORM[m[2]]}"),
    # four convolutions, a flattening, one fully connected layer
    (r"roi_heads\.box_head\.5\.(\w+)", lambda m: f"bbox_head.fc1.{m[1]}"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", lambda m: f"bbox_head.cls.{m[1]}"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", lambda m: f"bbox_head.reg.{m[1]}"),
    (r"roi_heads\.mask_head\.(\d)\.0\.(\w+)", lambda m: f"mask_head.convs.{m[1]}.{m[2]}"),
    (r"roi_heads\.mask_head\.(\d)\.1\.(\w+)", lambda m: f"mask_head.convs.{m[1]}.norm.{NORM[m[2]]}"),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.(\w+)", lambda m: f"mask_head.convs.{int(m[1]) - 1}.{m[2]}"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", lambda m: f"mask_head.upsample.{m[1]}"),
    (r"roi_heads\.keypoint_head\.(\d+)\.(\w+)", lambda m: f"keypoint_head.convs.{int(m[1]) // 2}.{m[2]}"),
    (r"roi_heads\.keypoint_predictor\.kps_score_lowres\.(\w+)", lambda m: f"keypoint_head.upsample.{m[1]}"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", lambda m: f"mask_head.logits.{m[1]}"),
]


def recognises(names: Collection[str]) -> bool:
    """Whether these are torchvision's names: of a detector, or of a classifier."""
    detector = has_all(names, "rpn.head.cls_logits.weight") and bool(
        {"backbone.body.conv1.weight", "backbone.body.16.0.weight"} & set(names)
    )
    mobile = has_all(names, "features.16.0.weight", "features.1.block.0.0.weight", "features.4.block.2.fc1.weight")
    classifier = has_all(
        names, "conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer1.0.bn1.running_mean"
    )
    return detector or classifier or mobile


def rename(name: str) -> str | None:
    """Our name for a torchvision parameter; None where we have no such thing."""
    return None if name.endswith("num_batches_tracked") else rename_by(PATTERNS, name)


def traits(names: Collection[str]) -> Traits:
    """Of a state dict with these names."""
    if has_all(names, "backbone.fpn.inner_blocks.0.weight", "backbone.body.conv1.weight"):
        return Traits(norm_eps=0.0, notes=("names of the published checkpoints of 2019: batch norm without epsilon",))
    if "backbone.body.bn1.running_var" in names and not any(n.endswith(".num_batches_tracked") for n in names):
        note = "batch norms that were frozen: if it was fine-tuned from torchvision's published detectors, they have no"
        return Traits(notes=(note + " epsilon (--norm_eps 0)",))
    return Traits()
