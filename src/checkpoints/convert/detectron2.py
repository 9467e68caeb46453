"""Detectron2: Faster, Mask and Cascade R-CNN with FPN of its model zoo, and the backbones that they start from.

Names: detectron2/modeling/{backbone/{resnet,fpn,vit}.py,proposal_generator/rpn.py,roi_heads/}. Backbones come as
Caffe2's (`res2_0_branch2a_w`, `..._bn_s`: MSRA's R-50 and R-101, FAIR's X-101-32x8d; checkpoint/c2_model_loading.py
there) or renamed from torchvision's (`res2.0.conv1.weight`). Caffe2's batch norms are folded: a scale and a shift; its
R-50-GN has group norms (`..._gn_s`).
"""

from __future__ import annotations

import re
from collections.abc import Collection

from src.checkpoints.convert.rules import NORM, Traits, has_all, rename_by
from src.config.conventions import CONVENTIONS

__all__ = ["FAMILY", "recognises", "rename", "traits"]

FAMILY = "detectron2"
VIT = r"(?:backbone\.net\.|backbone\.)?"
UPSAMPLING = {"20": "up4_first", "23": "up4_second", "30": "up8"}  # by level and layer
FIRST = {"2": 4, "3": 1, "4": 0, "5": 1}  # by level, the layer that is the 1x1 convolution
BODY = r"(?:backbone\.bottom_up\.|backbone\.)?"
CONV = {"shortcut": "downsample.0", "conv1": "conv1", "conv2": "conv2", "conv3": "conv3"}
BN = {"shortcut": "downsample.1", "conv1": "bn1", "conv2": "bn2", "conv3": "bn3"}
BRANCH = {"branch1": "shortcut", "branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}
CAFFE2_NORM = {"s": "gamma", "b": "beta", "rm": "moving_mean", "riv": "moving_variance"}


def _block(m) -> str:
    return f"backbone.layer{int(m[1]) - 1}.{m[2]}"


def _head(m) -> str:
    return f"bbox_heads.{m[1]}" if m[1] is not None else "bbox_head"


def _pyramid(m) -> str:
    """Of a level of ViTDet's pyramid its last two layers, a 1x1 and a 3x3 convolution."""
    kinds = dict(zip((str(FIRST[m[1]]), str(FIRST[m[1]] + 1)), ("lateral_convs", "fpn_convs")))
    return f"neck.{kinds[m[2]]}.{int(m[1]) - 2}." + (f"norm.{NORM[m[4]]}" if m[3] else m[4])


PATTERNS = [
    (BODY + r"stem\.conv1\.weight", lambda m: "backbone.conv1.weight"),
    (BODY + r"stem\.conv1\.norm\.(\w+)", lambda m: f"backbone.bn1.{NORM[m[1]]}"),
    (BODY + r"res([2-5])\.(\d+)\.(shortcut|conv[123])\.weight", lambda m: f"{_block(m)}.{CONV[m[3]]}.weight"),
    (BODY + r"res([2-5])\.(\d+)\.(shortcut|conv[123])\.norm\.(\w+)", lambda m: f"{_block(m)}.{BN[m[3]]}.{NORM[m[4]]}"),
    (r"conv1_w", lambda m: "backbone.conv1.weight"),
    (r"(?:res_)?conv1_[bg]n_(s|b|rm|riv)", lambda m: f"backbone.bn1.{CAFFE2_NORM[m[1]]}"),
    (r"res([2-5])_(\d+)_(branch1|branch2[abc])_w", lambda m: f"{_block(m)}.{CONV[BRANCH[m[3]]]}.weight"),
    (
        r"res([2-5])_(\d+)_(branch1|branch2[abc])_[bg]n_(s|b|rm|riv)",
        lambda m: f"{_block(m)}.{BN[BRANCH[m[3]]]}.{CAFFE2_NORM[m[4]]}",
    ),
    (VIT + r"pos_embed", lambda m: "backbone.pos_embed"),
    (VIT + r"patch_embed\.proj\.(weight|bias)", lambda m: f"backbone.patch_embed.{m[1]}"),
    (VIT + r"blocks\.(\d+)\.(norm[12])\.(weight|bias)", lambda m: f"backbone.blocks.{m[1]}.{m[2]}.{NORM[m[3]]}"),
    (
        VIT + r"blocks\.(\d+)\.(attn\.rel_pos_[hw]|(?:attn\.qkv|attn\.proj|mlp\.fc[12])\.(?:weight|bias))",
        lambda m: f"backbone.blocks.{m[1]}.{m[2]}",
    ),
    (r"backbone\.simfp_([23])\.([03])\.(weight|bias)", lambda m: f"backbone.{UPSAMPLING[m[1] + m[2]]}.{m[3]}"),
    (r"backbone\.simfp_2\.1\.(weight|bias)", lambda m: f"backbone.up4_norm.{NORM[m[1]]}"),
    (r"backbone\.simfp_([2-5])\.(\d)\.(?:(norm)\.)?(weight|bias)", lambda m: _pyramid(m)),
    (r"backbone\.fpn_lateral([2-5])\.(weight|bias)", lambda m: f"neck.lateral_convs.{int(m[1]) - 2}.{m[2]}"),
    (r"backbone\.fpn_output([2-5])\.(weight|bias)", lambda m: f"neck.fpn_convs.{int(m[1]) - 2}.{m[2]}"),
    (r"backbone\.fpn_lateral([2-5])\.norm\.(\w+)", lambda m: f"neck.lateral_convs.{int(m[1]) - 2}.norm.{NORM[m[2]]}"),
    (r"backbone\.fpn_output([2-5])\.norm\.(\w+)", lambda m: f"neck.fpn_convs.{int(m[1]) - 2}.norm.{NORM[m[2]]}"),
    (r"proposal_generator\.rpn_head\.conv\.(?:conv0\.)?(weight|bias)", lambda m: f"rpn.conv.{m[1]}"),
    (r"proposal_generator\.rpn_head\.conv\.conv([1-9])\.(weight|bias)", lambda m: f"rpn.conv{int(m[1]) + 1}.{m[2]}"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", lambda m: f"rpn.cls.{m[1]}"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", lambda m: f"rpn.reg.{m[1]}"),
    (r"roi_heads\.box_head\.(?:(\d)\.)?(fc\d)\.(\w+)", lambda m: f"{_head(m)}.{m[2]}.{m[3]}"),
    (
        r"roi_heads\.box_head\.(?:(\d)\.)?conv(\d)\.(weight|bias)",
        lambda m: f"{_head(m)}.convs.{int(m[2]) - 1}.{m[3]}",
    ),
    (
        r"roi_heads\.box_head\.(?:(\d)\.)?conv(\d)\.norm\.(\w+)",
        lambda m: f"{_head(m)}.convs.{int(m[2]) - 1}.norm.{NORM[m[3]]}",
    ),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", lambda m: f"bbox_head.cls.{m[1]}"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", lambda m: f"bbox_head.reg.{m[1]}"),
    (r"roi_heads\.box_predictor\.(\d)\.cls_score\.(\w+)", lambda m: f"bbox_heads.{m[1]}.cls.{m[2]}"),
    (r"roi_heads\.box_predictor\.(\d)\.bbox_pred\.(\w+)", lambda m: f"bbox_heads.{m[1]}.reg.{m[2]}"),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)", lambda m: f"mask_head.convs.{int(m[1]) - 1}.{m[2]}"),
    (
        r"roi_heads\.mask_head\.mask_fcn(\d)\.norm\.(\w+)",
        lambda m: f"mask_head.convs.{int(m[1]) - 1}.norm.{NORM[m[2]]}",
    ),
    (r"roi_heads\.keypoint_head\.conv_fcn(\d)\.(weight|bias)", lambda m: f"keypoint_head.convs.{int(m[1]) - 1}.{m[2]}"),
    (r"roi_heads\.keypoint_head\.score_lowres\.(weight|bias)", lambda m: f"keypoint_head.upsample.{m[1]}"),
    (r"roi_heads\.mask_head\.deconv\.(weight|bias)", lambda m: f"mask_head.upsample.{m[1]}"),
    (r"roi_heads\.mask_head\.predictor\.(weight|bias)", lambda m: f"mask_head.logits.{m[1]}"),
]


def recognises(names: Collection[str]) -> bool:
    """Whether these are Detectron2's names: of a detector with FPN, or of a backbone."""
    return (
        has_all(names, "backbone.bottom_up.stem.conv1.weight", "backbone.fpn_lateral2.weight")
        or has_all(names, "backbone.net.patch_embed.proj.weight", "backbone.simfp_2.0.weight")
        or has_all(names, "patch_embed.proj.weight", "blocks.0.attn.qkv.weight")
        or has_all(names, "stem.conv1.weight", "res2.0.conv1.weight")
        or has_all(names, "conv1_w", "res2_0_branch2a_w")
    )


def rename(name: str) -> str | None:
    """Our name for a Detectron2 or Caffe2 parameter; None where we have no such thing."""
    return None if name.endswith("num_batches_tracked") else rename_by(PATTERNS, name)


def traits(names: Collection[str]) -> Traits:
    """Of a state dict with these names."""
    notes: tuple[str, ...] = ()
    caffe2 = any(re.fullmatch(r"(res_)?conv1_[bg]n_s", n) for n in names)
    if caffe2:
        notes = (
            "trained on BGR, mean 103.53, 116.28, 123.675, deviation 1 (X-101-32x8d: 57.375, 57.12, 58.395), stride in"
            " the 1x1 convolutions (X-101-32x8d: in the 3x3): set to_rgb, img_mean, img_std, backbone.stride_in_1x1",
        )
    folded = caffe2 and "conv1_gn_s" not in names
    last = CONVENTIONS["detectron2"].background_last
    transformer = any(n.endswith("patch_embed.proj.weight") for n in names)
    eps = 1e-6 if transformer else 1e-5
    return Traits(eps, background_last=last, scales_first=True, folded_norms=folded, notes=notes)
