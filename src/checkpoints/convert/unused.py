"""Arrays that a conversion has no use for: which of them belong to the model itself, and what they are.

A file whose other layers all fit converts to a detector that computes something else than its own project's, if layers
that take part there are left out.
"""

import re
from collections.abc import Collection

__all__ = ["AVERAGES", "architectures_of", "kinds_of", "left_out", "mask_arrays"]

# what takes no part in a detection, wherever it is
IDLE = re.compile(
    r"(.*[._])?(num_batches_tracked|n_averaged|relative_position_index|attn_mask|pixel_mean|pixel_std|cell_anchors\.\d+|base_anchors(\.\d+)?)"
    r"|(.*\.)?(anchor_generator|prior_generator|data_preprocessor|loss_\w+|loss|criterion)\..*"
)
# copies of the model, and what its training kept: in front of a name
AVERAGES = re.compile(r"(\w*ema|ema_\w+|momentum_encoder|encoder_k|swa\w*|shadow|avg_model|averaged)\.")
TWINS = re.compile(r"(teacher|student|target)\.")
FLAT_COPIES = re.compile(r"ema_\w+")  # mmcv's EMAHook: buffers named ema_backbone_conv1_weight
TRAINING = re.compile(
    r"(optimi[sz]er|optim|moments?|moment[12]|accum|accumulation|velocity|adam_[mv]|stat|momentum|learning_rate|lr"
    r"|loss_scale|global_step|current_iterator\w*|last_overflow\w*|scale_sense|weight_decay|beta[12]_power|epoch_num|step_num|epoch"
    r"|step|iteration|queue\w*)([._].*)?"
    r"|MobilenetV1/.*/(RMSProp|Momentum|Adam|ExponentialMovingAverage)(_1)?(:0)?"
)
# a backbone's classifier, and what is trained on top of one
CLASSIFIER = re.compile(
    r"(backbone\.)?(bottom_up\.|body\.)?(fc|fc1000|classifier|head|linear|logits?|end_point|dense|last_linear|predictor"
    r"|projector|projection\w*|pred)([._].*)?|(backbone\.)?(net\.)?(cls_token|mask_token|norm\.(weight|bias))"
    r"|(MobilenetV1/){1,2}(Logits|Predictions)/.*"
)
# heads beside the ones of boxes and masks, that take from them or from the features and give nothing back
OTHER_HEADS = re.compile(
    r"(roi_heads?\.)?(key|densepose|kp|track|reid|attribute)\w*\..*|(sem_seg_head|auxiliary_head|aux_head|da_heads"
    r"|discriminator\w*|panoptic\w*|depth_head)\..*|semantic_head\.(conv_stages|conv_upsample\w*|conv_logits|loss)\w*\..*"
)
MASKS = re.compile(
    r"(roi_heads?\.)?(mask|mask_\w+|maskiou\w*|point_head)\..*|mask_heads?\..*|rcnn_mask\..*|roi_heads\.mask\w*\..*"
)
# tops of names that are parts of an R-CNN, also where no other array of theirs is used
PARTS = re.compile(
    r"backbone|body|neck|fpn|bifpn|rpn|proposal|roi|bbox|box|mask|rcnn|shared_head|grid_head|semantic|glbctx|feat|rfp|dcn"
)

KINDS = (
    (r"offset_fc", "deformable RoI pooling"),
    (r"conv_loc|conv_shape|feature_adaption", "guided anchoring"),
    (r"conv_branch|fc_branch|res_block", "Double-Head R-CNN"),
    (r"upsample_[xy]|reg_offset|reg_cls_f", "SABL"),
    (r"conv\d*_offset|conv_offset|offset_conv|\.offset\.|\.dcn|deform", "deformable convolution"),
    (r"weight_diff|weight_gamma|\.switch\.|pre_context|post_context|rfp|\.aspp\.", "DetectoRS"),
    (r"conv_res\.|semantic_head|semantic_roi", "Hybrid Task Cascade"),
    (r"glbctx_head|feat_relay", "SCNet"),
    (r"context_block|channel_add_conv|channel_mul_conv", "GCNet"),
    (r"pafpn|downsample_convs", "PAFPN"),
    (r"pre_module|post_module", "GRoIE"),
    (r"channel_compressor|content_encoder|carafe", "CARAFE"),
    (r"freq_weight|fed_loss", "scores by sigmoid (federated loss)"),
    (r"mask_?iou", "Mask Scoring R-CNN"),
    (r"point_head|coarse_head", "PointRend"),
    (r"gen_attention|attention", "attention blocks"),
    (r"non_?local|\.(theta|phi)\.", "non-local blocks"),
    (r"\.se\.|\.se_|se_layer|se_module|squeeze", "squeeze and excitation"),
    (r"lora_|adapter", "adapters"),
    (r"fake_quant|activation_post_process|\.zero_point|_quantizer", "quantisation"),
    (r"rpn[._]head\.(conv|rpn_conv)\.(conv)?\d", "an RPN of two or more convolutions"),
    (r"shared_head", "a head of ResNet's last stage"),
    (r"grid_head", "Grid R-CNN"),
    (r"box_heads?\.(\d\.)?(conv\d|(shared|cls|reg)_(conv|fc)s|\d+\.\d)", "other layers in the box head"),
    (r"fpn_convs\.[4-9]|fpn_layer[5-9]|fpn_output[6-9]|top_block|extra_blocks", "further levels of the FPN"),
    (r"\.gn\d*\.|group_?norm|\.gn_", "group norm"),
    (
        r"(head|fpn|neck|rpn|roi)\w*\..*(norm|bn\d*|ln)\.|(fpn|mask_head).*\.1\.(weight|bias|running)",
        "norms in the FPN or in heads",
    ),
)

# what files that are of no layout, or of another backbone, are known by: a pattern of one of their names
ARCHITECTURES = (
    (r"backbone\.(stage\d\.\d+\.(branches|fuse_layers)|transition\d)\.", "HRNet"),
    (r"layer\d\.\d+\.convs\.\d", "Res2Net"),
    (r"layer\d\.\d+\.conv2\.(fc[12]|bn[01])\.", "ResNeSt"),
    (r"s\d\.b\d+\.f\.a\.", "RegNet"),
    (r"relative_position_bias_table", "Swin"),
    (r"attn\.pool_[qkv]\.", "MViT"),
    (r"(roi_heads\.res5|shared_head)\.", "a C4 R-CNN"),
    (r"head\.(cls|bbox)_subnet\.|bbox_head\.retina_|head\.(classification|regression)_head\.", "RetinaNet"),
    (r"neck\.\d\.(lateral_convs|refine)\.", "Libra R-CNN"),
    (r"fpn_transitions\.", "FPG"),
    (r"rpn_head\.stages\.", "Cascade RPN"),
    (r"init_proposal", "Sparse R-CNN or QueryInst"),
    (r"query_embed|class_embed|transformer\.(en|de)coder\.", "DETR"),
)
RPN, PYRAMID = re.compile(r"(proposal_generator\.|rpn[._])"), re.compile(r"(backbone\.|neck\.)?(fpn|lateral_convs)")


def left_out(
    names: Collection[str], used: Collection[str], branches: Collection[str], backbone_only: bool
) -> list[str]:
    """Those of the `names` of unused arrays that the model computes with, as far as names tell.

    used: names of the source's arrays that are used; both without wrappers in front. Of a detector those count that lie
    in a module of which others are used, or in one that is called like a part of an R-CNN; of a backbone alone all but
    its classifier. branches: the target's, as Config.branches; the head of one that it hasn't is left out.
    """
    tops = {n.partition(".")[0] for n in used}
    return [n for n in names if not harmless(n, branches) and (backbone_only or inside(n, tops))]


def harmless(name: str, branches: Collection[str]) -> bool:
    """Whether an array of that name takes no part in boxes, classes and what these branches find."""
    patterns = [IDLE, FLAT_COPIES, TRAINING, CLASSIFIER, *(() if "mask" in branches else (MASKS,))]
    head = re.match(r"(?:roi_heads?\.)?([a-z]+)", name)
    if head is None or head[1] not in branches:
        patterns.append(OTHER_HEADS)
    return any(p.match(name) for p in (AVERAGES, TWINS)) or any(p.fullmatch(name) for p in patterns)


def inside(name: str, tops: Collection[str]) -> bool:
    top = name.partition(".")[0]
    return top in tops or PARTS.match(top) is not None


def kinds_of(names: Collection[str]) -> list[str]:
    """What layers of these names are known as, each once; [] where they aren't known."""
    return list(dict.fromkeys(what for n in names for p, what in KINDS if re.search(p, n)))


def mask_arrays(names: Collection[str]) -> list[str]:
    """Those of the names that are of a mask head, of whatever kind."""
    return [n for n in names if MASKS.match(n)]


def architectures_of(names: Collection[str]) -> list[str]:
    """What a model with these names, which the converter has no layout for, is known as; [] where it isn't known."""
    found = [what for p, what in ARCHITECTURES if any(re.search(p, n) for n in names)]
    if not found and any(RPN.match(n) for n in names) and not any(PYRAMID.match(n) for n in names):
        found.append("an R-CNN without a feature pyramid")
    return found
