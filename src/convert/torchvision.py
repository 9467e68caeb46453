"""torchvision's detection models (`maskrcnn_resnet50_fpn`, `fasterrcnn_resnet50_fpn`): names to ours."""

import re
from collections.abc import Mapping

import numpy as np

__all__ = ["rename", "convert"]

NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
PATTERNS = [
    (r"backbone\.body\.((?:layer\d\.\d+\.)?)bn(\d)\.(\w+)", lambda m: f"backbone.{m[1]}bn{m[2]}.{NORM[m[3]]}"),
    (r"backbone\.body\.(layer\d\.\d+\.downsample)\.1\.(\w+)", lambda m: f"backbone.{m[1]}.1.{NORM[m[2]]}"),
    (r"backbone\.body\.(.+)", lambda m: f"backbone.{m[1]}"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?(\w+)", lambda m: f"neck.lateral_convs.{m[1]}.{m[2]}"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?(\w+)", lambda m: f"neck.fpn_convs.{m[1]}.{m[2]}"),
    (r"rpn\.head\.conv\.(?:0\.0\.)?(\w+)", lambda m: f"rpn.conv.{m[1]}"),
    (r"rpn\.head\.cls_logits\.(\w+)", lambda m: f"rpn.cls.{m[1]}"),
    (r"rpn\.head\.bbox_pred\.(\w+)", lambda m: f"rpn.reg.{m[1]}"),
    (r"roi_heads\.box_head\.fc([67])\.(\w+)", lambda m: f"bbox_head.fc{int(m[1]) - 5}.{m[2]}"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", lambda m: f"bbox_head.cls.{m[1]}"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", lambda m: f"bbox_head.reg.{m[1]}"),
    (r"roi_heads\.mask_head\.(\d)\.0\.(\w+)", lambda m: f"mask_head.convs.{m[1]}.{m[2]}"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", lambda m: f"mask_head.upsample.{m[1]}"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", lambda m: f"mask_head.logits.{m[1]}"),
]


def rename(name: str) -> str | None:
    """Our name for a torchvision parameter; None where we have no such thing."""
    for pattern, ours in PATTERNS:
        m = re.fullmatch(pattern, name)
        if m:
            return ours(m)
    return None


def convert(state: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Our parameters from a torchvision state dict, and the names that weren't used.

    Layouts agree: convolutions (O, I, kH, kW), transposed ones (I, O, kH, kW), linear layers (O, I), and the box
    head's input is flattened channels first in both.
    """
    ours, unused = {}, []
    for name, value in state.items():
        new = None if name.endswith("num_batches_tracked") else rename(name)
        if new is None:
            unused.append(name)
        else:
            ours[new] = value
    return ours, unused
