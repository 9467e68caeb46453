"""torchvision: `maskrcnn_resnet50_fpn`, `fasterrcnn_resnet50_fpn`, and the backbones of ResNet and ResNeXt classifiers.

Names: torchvision/models/detection/{faster_rcnn,mask_rcnn,rpn,backbone_utils}.py and models/resnet.py. The published
detectors are of 2019, with the names of before their modules were wrapped (`mask_fcn1`, `inner_blocks.0.weight`), and
`overwrite_eps(model, 0.0)` there says that their batch norms had no epsilon.
"""

from collections.abc import Collection

from src.checkpoints.convert.rules import NORM, Traits, has_all, rename_by

__all__ = ["FAMILY", "recognises", "rename", "traits"]

FAMILY = "torchvision"
BODY = r"(?:backbone\.body\.)?"
PATTERNS = [
    (BODY + r"((?:layer\d\.\d+\.)?)bn(\d)\.(\w+)", lambda m: f"backbone.{m[1]}bn{m[2]}.{NORM[m[3]]}"),
    (BODY + r"(layer\d\.\d+\.downsample)\.1\.(\w+)", lambda m: f"backbone.{m[1]}.1.{NORM[m[2]]}"),
    (BODY + r"((?:layer\d\.\d+\.)(?:conv\d|downsample\.0)\.weight|conv1\.weight)", lambda m: f"backbone.{m[1]}"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?(\w+)", lambda m: f"neck.lateral_convs.{m[1]}.{m[2]}"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?(\w+)", lambda m: f"neck.fpn_convs.{m[1]}.{m[2]}"),
    (r"rpn\.head\.conv\.(?:0\.0\.)?(\w+)", lambda m: f"rpn.conv.{m[1]}"),
    (r"rpn\.head\.cls_logits\.(\w+)", lambda m: f"rpn.cls.{m[1]}"),
    (r"rpn\.head\.bbox_pred\.(\w+)", lambda m: f"rpn.reg.{m[1]}"),
    (r"roi_heads\.box_head\.fc([67])\.(\w+)", lambda m: f"bbox_head.fc{int(m[1]) - 5}.{m[2]}"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", lambda m: f"bbox_head.cls.{m[1]}"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", lambda m: f"bbox_head.reg.{m[1]}"),
    (r"roi_heads\.mask_head\.(\d)\.0\.(\w+)", lambda m: f"mask_head.convs.{m[1]}.{m[2]}"),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.(\w+)", lambda m: f"mask_head.convs.{int(m[1]) - 1}.{m[2]}"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", lambda m: f"mask_head.upsample.{m[1]}"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", lambda m: f"mask_head.logits.{m[1]}"),
]


def recognises(names: Collection[str]) -> bool:
    """Whether these are torchvision's names: of a detector, or of a ResNet classifier."""
    detector = has_all(names, "backbone.body.conv1.weight", "rpn.head.cls_logits.weight")
    classifier = has_all(
        names, "conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer1.0.bn1.running_mean"
    )
    return detector or classifier


def rename(name: str) -> str | None:
    """Our name for a torchvision parameter; None where we have no such thing."""
    return None if name.endswith("num_batches_tracked") else rename_by(PATTERNS, name)


def traits(names: Collection[str]) -> Traits:
    """Of a state dict with these names."""
    if "backbone.fpn.inner_blocks.0.weight" in names:
        return Traits(norm_eps=0.0, notes=("names of the published checkpoints of 2019: batch norm without epsilon",))
    if "backbone.body.bn1.running_var" in names and not any(n.endswith(".num_batches_tracked") for n in names):
        note = "batch norms that were frozen: if it was fine-tuned from torchvision's published detectors, they have no"
        return Traits(notes=(note + " epsilon (--norm_eps 0)",))
    return Traits()
