"""MindSpore's model zoo (mindspore-ai/models, official/cv) and mindcv: classifiers' backbones, Faster and Mask R-CNN.

Names: ResNet/src/resnet.py, MobileNet/mobilenetv1/src/mobilenet_v1.py, FasterRCNN/src/FasterRcnn/, MaskRCNN/*/src/ of
the zoo, mindcv/models/{resnet,mobilenetv1}.py. The zoo's fully connected layers (DenseNoTranpose) keep (inputs,
outputs); its RPN is a list of five heads that share one set of parameters, saved under the first.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from src.checkpoints.convert.rules import Traits, has_all, rename_by

__all__ = ["FAMILY", "TRANSPOSED", "mobilenet_block", "recognises", "rename", "traits"]

FAMILY = "mindspore_zoo"
TRANSPOSED = r"bbox_head\.(fc1|fc2|cls|reg)\.weight"  # if stored (inputs, outputs)
NORMS = r"(gamma|beta|moving_mean|moving_variance)"
BODY = r"(?:backbone\.)?"
MOBILE = r"(?:backbone\.mobilenet_v1\.)?network\."
STAGE_SIZES = (3, 2, 6, 2)  # depthwise-separable blocks of each of our stages
DENSE = {"shared_fc_0": "fc1", "shared_fc_1": "fc2", "cls_scores": "cls", "reg_scores": "reg"}


def mobilenet_block(index: int) -> str:
    """Our name of MobileNetV1's depthwise-separable block `index`, of 13; past them, one that we haven't."""
    for stage, size in enumerate(STAGE_SIZES):
        if index < size:
            return f"backbone.layer{stage + 1}.{index}"
        index -= size
    return f"backbone.layer5.{index}"


def _zoo_mobilenet(layer: int, part: str) -> str:
    """Layer 0 is the stem; then depthwise and pointwise convolutions take turns. Part 0 convolves, 1 normalises."""
    conv, norm = ("conv1", "bn1"), ("depthwise", "bn1", "pointwise", "bn2")
    if layer == 0:
        return f"backbone.{conv[int(part)]}"
    block, second = divmod(layer - 1, 2)
    return f"{mobilenet_block(block)}.{norm[2 * second + int(part)]}"


def _mindcv_mobilenet(layer: int, part: str) -> str:
    """Layers 0 and 1 are the stem's; each from 3 on is a block of depthwise (0, 1) and pointwise (3, 4)."""
    return f"{mobilenet_block(layer - 3)}.{ {'0': 'depthwise', '1': 'bn1', '3': 'pointwise', '4': 'bn2'}[part] }"


PATTERNS = [
    (BODY + r"(conv1\.weight|layer\d\.\d+\.conv\d\.weight)", lambda m: f"backbone.{m[1]}"),
    (BODY + r"((?:layer\d\.\d+\.)?bn\d)\." + NORMS, lambda m: f"backbone.{m[1]}.{m[2]}"),
    (BODY + r"(layer\d\.\d+)\.down_sample(?:_layer)?\.0\.weight", lambda m: f"backbone.{m[1]}.downsample.0.weight"),
    (
        BODY + r"(layer\d\.\d+)\.down_sample(?:_layer)?\.1\." + NORMS,
        lambda m: f"backbone.{m[1]}.downsample.1.{m[2]}",
    ),
    (BODY + r"(layer\d\.\d+)\.conv_down_sample\.weight", lambda m: f"backbone.{m[1]}.downsample.0.weight"),
    (BODY + r"(layer\d\.\d+)\.bn_down_sample\." + NORMS, lambda m: f"backbone.{m[1]}.downsample.1.{m[2]}"),
    (MOBILE + r"(\d+)\.(0)\.weight", lambda m: f"{_zoo_mobilenet(int(m[1]), m[2])}.weight"),
    (MOBILE + r"(\d+)\.(1)\." + NORMS, lambda m: f"{_zoo_mobilenet(int(m[1]), m[2])}.{m[3]}"),
    (r"features\.0\.weight", lambda m: "backbone.conv1.weight"),
    (r"features\.1\." + NORMS, lambda m: f"backbone.bn1.{m[1]}"),
    (r"features\.(\d+)\.([03])\.weight", lambda m: f"{_mindcv_mobilenet(int(m[1]), m[2])}.weight"),
    (r"features\.(\d+)\.([14])\." + NORMS, lambda m: f"{_mindcv_mobilenet(int(m[1]), m[2])}.{m[3]}"),
    (
        r"fpn_(?:ncek|neck)\.(lateral|fpn)_convs_list\.(\d)\.(weight|bias)",
        lambda m: f"neck.{m[1]}_convs.{m[2]}.{m[3]}",
    ),
    (r"rpn_with_loss\.rpn_convs_list\.\d\.rpn_(conv|cls|reg)\.(weight|bias)", lambda m: f"rpn.{m[1]}.{m[2]}"),
    (r"(?:rcnn|rcnn_cls\.fpn_cls)\.(" + "|".join(DENSE) + r")\.(\w+)", lambda m: f"bbox_head.{DENSE[m[1]]}.{m[2]}"),
    (r"rcnn_mask\.fpn_mask\.mask_conv([1-4])\.(\w+)", lambda m: f"mask_head.convs.{int(m[1]) - 1}.{m[2]}"),
    (r"rcnn_mask\.fpn_mask\.mask_deconv5\.(\w+)", lambda m: f"mask_head.upsample.{m[1]}"),
    (r"rcnn_mask\.fpn_mask\.mask_conv6\.(\w+)", lambda m: f"mask_head.logits.{m[1]}"),
]


def recognises(names: Collection[str]) -> bool:
    """Whether these are names of the model zoo's detectors, or of its or mindcv's ResNets and MobileNetV1."""
    return (
        any(re.match(r"rpn_with_loss\.rpn_convs_list\.\d\.rpn_conv\.weight", n) for n in names)
        or has_all(names, "layer1.0.down_sample_layer.0.weight", "bn1.gamma")
        or has_all(names, "layer1.0.down_sample.0.weight", "bn1.gamma")
        or has_all(names, "network.0.0.weight", "network.0.1.gamma", "network.26.0.weight")
        or has_all(names, "features.0.weight", "features.1.gamma", "features.15.3.weight")
    )


def rename(name: str) -> str | None:
    """Our name for a parameter of the zoo or of mindcv; None where we have no such thing."""
    return rename_by(PATTERNS, name)


def traits(names: Collection[str]) -> Traits:
    """Of a state dict with these names."""
    notes, eps = [], 1e-5
    if "layer1.0.down_sample_layer.0.weight" in names:
        eps = 1e-4
        notes.append("convolutions of stride 2 padded one more right and below (pad_mode same); here evenly")
    if any(re.match(BODY + r"layer1\.0\.conv1\.weight", n) for n in names):
        notes.append("the stem's max pool padded right and below alone: set backbone.same_padding")
    if any(re.match(MOBILE + r"0\.0\.weight", n) for n in names):
        notes.append("strides pad right and below alone, and ReLU6: set backbone.same_padding, backbone.relu6")
    if any(n.startswith("rcnn_mask.") for n in names):
        notes.append("the FPN upsampled bilinearly: set neck.fpn.upsample")
    return Traits(norm_eps=eps, notes=tuple(notes))
