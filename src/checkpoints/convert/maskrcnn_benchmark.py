"""maskrcnn-benchmark: `e2e_mask_rcnn_R_50_FPN_1x.pth` and its like, Faster and Mask R-CNN.

Names: maskrcnn_benchmark/modeling/{backbone/resnet.py,backbone/fpn.py,rpn/rpn.py,roi_heads/}. Its FrozenBatchNorm2d
(layers/batch_norm.py) has no epsilon. The background is the first class, as here.
"""

from __future__ import annotations

from collections.abc import Collection

from src.checkpoints.convert.rules import NORM, Traits, has_all, rename_by

__all__ = ["FAMILY", "recognises", "rename", "traits"]

FAMILY = "maskrcnn_benchmark"
PATTERNS = [
    (r"backbone\.body\.stem\.bn1\.(\w+)", lambda m: f"backbone.bn1.{NORM[m[1]]}"),
    (r"backbone\.body\.stem\.conv1\.weight", lambda m: "backbone.conv1.weight"),
    (r"backbone\.body\.(layer\d\.\d+\.bn\d)\.(\w+)", lambda m: f"backbone.{m[1]}.{NORM[m[2]]}"),
    (r"backbone\.body\.(layer\d\.\d+\.downsample)\.1\.(\w+)", lambda m: f"backbone.{m[1]}.1.{NORM[m[2]]}"),
    (r"backbone\.body\.(layer\d\.\d+\.(?:conv\d|downsample\.0)\.weight)", lambda m: f"backbone.{m[1]}"),
    (r"backbone\.fpn\.fpn_inner(\d)\.(\w+)", lambda m: f"neck.lateral_convs.{int(m[1]) - 1}.{m[2]}"),
    (r"backbone\.fpn\.fpn_layer(\d)\.(\w+)", lambda m: f"neck.fpn_convs.{int(m[1]) - 1}.{m[2]}"),
    (r"rpn\.head\.conv\.(\w+)", lambda m: f"rpn.conv.{m[1]}"),
    (r"rpn\.head\.cls_logits\.(\w+)", lambda m: f"rpn.cls.{m[1]}"),
    (r"rpn\.head\.bbox_pred\.(\w+)", lambda m: f"rpn.reg.{m[1]}"),
    (r"roi_heads\.box\.feature_extractor\.fc([67])\.(\w+)", lambda m: f"bbox_head.fc{int(m[1]) - 5}.{m[2]}"),
    (r"roi_heads\.box\.predictor\.cls_score\.(\w+)", lambda m: f"bbox_head.cls.{m[1]}"),
    (r"roi_heads\.box\.predictor\.bbox_pred\.(\w+)", lambda m: f"bbox_head.reg.{m[1]}"),
    (
        r"roi_heads\.mask\.feature_extractor\.mask_fcn(\d)\.(\w+)",
        lambda m: f"mask_head.convs.{int(m[1]) - 1}.{m[2]}",
    ),
    (r"roi_heads\.mask\.predictor\.conv5_mask\.(\w+)", lambda m: f"mask_head.upsample.{m[1]}"),
    (r"roi_heads\.mask\.predictor\.mask_fcn_logits\.(\w+)", lambda m: f"mask_head.logits.{m[1]}"),
]


def recognises(names: Collection[str]) -> bool:
    """Whether these are the names of a maskrcnn-benchmark detector with FPN."""
    return has_all(names, "backbone.body.stem.conv1.weight", "backbone.fpn.fpn_inner1.weight", "rpn.head.conv.weight")


def rename(name: str) -> str | None:
    """Our name for a maskrcnn-benchmark parameter; None where we have no such thing."""
    return None if name.endswith("num_batches_tracked") else rename_by(PATTERNS, name)


def traits(names: Collection[str]) -> Traits:
    """Of a state dict with these names."""
    return Traits(norm_eps=0.0)
