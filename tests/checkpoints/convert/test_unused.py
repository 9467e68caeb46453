"""Which left-over arrays keep a file from being converted: those that its own model computes with."""

import pytest

from src.checkpoints.convert.conversion import convert, recognise, renamed
from src.checkpoints.convert.pickles import ConversionError
from src.checkpoints.convert.readers import State
from src.checkpoints.convert.unused import kinds_of, left_out
from src.convert_checkpoint import check, choose_config
from tests.checkpoints.convert.published import STORED, made_up, shapes_of, targets_of

BACKBONE, D2 = "backbone.layer3.0.", "backbone.bottom_up.res3.0."
MMDET = [
    "backbone.conv1.weight",
    "neck.fpn_convs.0.conv.weight",
    "rpn_head.rpn_conv.weight",
    "roi_head.bbox_head.fc_cls.bias",
]
TORCHVISION = ["backbone.body.conv1.weight", "rpn.head.conv.0.0.weight", "roi_heads.box_head.fc6.weight"]

TAKES_PART = {
    BACKBONE + "conv2.conv_offset.weight": "deformable convolution",
    BACKBONE + "conv2_offset.bias": "deformable convolution",
    D2 + "conv2_offset.weight": "deformable convolution",
    BACKBONE + "conv2.weight_diff": "DetectoRS",
    BACKBONE + "conv2.switch.weight": "DetectoRS",
    "neck.rfp_modules.0.conv1.weight": "DetectoRS",
    BACKBONE + "context_block1.channel_add_conv.0.weight": "GCNet",
    BACKBONE + "gen_attention_block.query_conv.weight": "attention blocks",
    BACKBONE + "se_layer.conv1.conv.weight": "squeeze and excitation",
    "neck.pafpn_convs.0.conv.weight": "PAFPN",
    "neck.downsample_convs.1.conv.bias": "PAFPN",
    "neck.lateral_convs.0.upsample.content_encoder.weight": "CARAFE",
    "neck.lateral_convs.0.gn.weight": "group norm",
    "neck.fpn_convs.4.conv.weight": "further levels of the FPN",
    "roi_head.bbox_roi_extractor.pre_module.conv.weight": "GRoIE",
    "roi_head.mask_head.1.conv_res.conv.weight": "Hybrid Task Cascade",
    "roi_head.semantic_head.conv_logits.weight": "Hybrid Task Cascade",
    "semantic_head.conv_embedding.conv.weight": "Hybrid Task Cascade",
    "roi_head.mask_iou_head.fc_mask_iou.weight": "Mask Scoring R-CNN",
    "mask_iou_head.fc_mask_iou.weight": "Mask Scoring R-CNN",
    "roi_head.bbox_head.shared_convs.0.conv.weight": "other layers in the box head",
    "rpn.head.conv.1.0.weight": "an RPN of two or more convolutions",
    "proposal_generator.rpn_head.conv.conv1.weight": "an RPN of two or more convolutions",
    "roi_heads.mask_head.mask_fcn1.norm.weight": "norms in the FPN or in heads",
    "roi_heads.box_head.0.1.running_mean": "other layers in the box head",
    "roi_heads.box_predictor.freq_weight": "scores by sigmoid (federated loss)",
    "shared_head.layer4.0.conv1.weight": "a head of ResNet's last stage",
    BACKBONE + "never_heard_of.weight": None,
    "neck.never_heard_of": None,
}
TAKES_NO_PART = [
    "backbone.bn1.num_batches_tracked",
    "pixel_mean",
    "model.pixel_std",
    "proposal_generator.anchor_generator.cell_anchors.3",
    "rpn.anchor_generator.cell_anchors.0",
    "backbone.fc.weight",
    "backbone.bottom_up.linear.bias",
    "fc.weight",
    "roi_heads.keypoint_head.0.weight",
    "roi_heads.keypoint_predictor.kps_score_lowres.bias",
    "sem_seg_head.p2.0.weight",
    "semantic_head.conv_upsample_layers.0.conv.weight",
    "ema_backbone_conv1_weight",
    "ema.backbone.layer1.0.conv1.weight",
    "teacher.backbone.conv1.weight",
    "model_ema.module.neck.lateral_convs.0.conv.weight",
    "optimizer.state.0",
    "moments.backbone.conv1.weight",
    "roi_head.bbox_head.loss_cls.cum_samples",
    "something.of.another.kind",
]


@pytest.mark.parametrize("name", TAKES_PART)
def test_part_of_the_model(name):
    assert left_out([name], MMDET + TORCHVISION, ("mask",), False) == [name]
    assert kinds_of([name]) == ([TAKES_PART[name]] if TAKES_PART[name] else [])


@pytest.mark.parametrize("name", TAKES_NO_PART)
def test_no_part_of_the_model(name):
    assert left_out([name], MMDET + TORCHVISION, ("mask",), False) == []


def test_masks_where_there_are_none():
    """A mask head is left out of a detector of boxes, whatever is in it."""
    names = [
        "roi_heads.mask_head.mask_fcn1.norm.weight",
        "roi_head.mask_iou_head.fcs.0.weight",
        "mask_head.convs.0.conv.bias",
    ]
    assert left_out(names, MMDET, (), False) == []
    assert left_out(names, MMDET, ("mask",), False) == names


def test_of_a_backbone_all_but_its_classifier():
    names = ["fc.weight", "fc1000_w", "classifier.bias", "head.fc.bias", "end_point.weight", "bn1.num_batches_tracked"]
    more = ["conv2.weight", "layer1.0.se.fc1.weight", "attnpool.k_proj.weight", "transformer.x.weight"]
    assert left_out(names + more, ["conv1.weight", "layer1.0.conv1.weight"], ("mask",), True) == more


# published checkpoints of other kinds, with the names that their projects' code gives, and what the refusal calls them
REFUSED = {
    "mask_rcnn_R_50_FPN_1x_dconv_c3-c5": "deformable convolution",
    "cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv": "deformable convolution",
    "faster_rcnn_R_50_C4_1x": "C4",
    "faster_rcnn_R_50_DC5_1x": "without a feature pyramid",
    "retinanet_R_50_FPN_1x": "RetinaNet",
    "mask_rcnn_regnetx_4gf_dds_FPN_100ep_LSJ": "RegNet",
    "mask_rcnn_vitdet_l_100ep": "a transformer of 24 blocks",
    "cascade_mask_rcnn_swin_b_in21k_50ep": "Swin",
    "cascade_mask_rcnn_mvitv2_b_in21k_100ep": "MViT",
    "faster-rcnn_r50_fpn_carafe_1x_coco": "CARAFE",
    "cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco": "Cascade RPN",
    "faster-rcnn_r50_fpn_dpool_1x_coco": "deformable RoI pooling",
    "faster-rcnn_r50_fpn_mdconv_c3-c5_1x_coco": "deformable convolution",
    "cascade-rcnn_r50-rfp_1x_coco": "DetectoRS",
    "detectors_htc-r50_1x_coco": "Hybrid Task Cascade",
    "dh-faster-rcnn_r50_fpn_1x_coco": "Double-Head R-CNN",
    "faster-rcnn_r50_fpn_attention_1111_1x_coco": "attention blocks",
    "faster-rcnn_r50-caffe-c4_1x_coco": "C4",
    "faster-rcnn_r50-caffe-dc5_1x_coco": "without a feature pyramid",
    "mask-rcnn_r50_fpg_crop640-50e_coco": "FPG",
    "mask-rcnn_r50_fpn_r16_gcb_c3-c5_1x_coco": "GCNet",
    "grid-rcnn_r50_fpn_gn-head_2x_coco": "Grid R-CNN",
    "mask-rcnn_r50_fpn_groie_1x_coco": "GRoIE",
    "ga-faster-rcnn_r50-caffe_fpn_1x_coco": "guided anchoring",
    "mask-rcnn_hrnetv2p-w32-1x_coco": "HRNet",
    "htc_r50_fpn_1x_coco": "Hybrid Task Cascade",
    "libra-faster-rcnn_r50_fpn_1x_coco": "Libra R-CNN",
    "ms-rcnn_r50-caffe_fpn_1x_coco": "Mask Scoring R-CNN",
    "faster-rcnn_r50_pafpn_1x_coco": "PAFPN",
    "point_rend_r50_caffe_fpn_mstrain_1x_coco": "PointRend",
    "queryinst_r50_fpn_1x_coco": "QueryInst",
    "mask-rcnn_regnetx-3.2GF_fpn_1x_coco": "a backbone of (2, 6, 15, 2) blocks",
    "mask-rcnn_res2net-101_fpn_2x_coco": "Res2Net",
    "mask-rcnn_s50_fpn_syncbn-backbone+head_ms-1x_coco": "ResNeSt",
    "sabl-cascade-rcnn_r50_fpn_1x_coco": "SABL",
    "scnet_r50_fpn_1x_coco": "SCNet",
    "sparse-rcnn_r50_fpn_1x_coco": "Sparse R-CNN",
    "tridentnet_r50-caffe_1x_coco": "C4",
}


def test_every_stored_one_is_tried():
    assert REFUSED.keys() == STORED["refused"].keys()


@pytest.mark.parametrize("model", REFUSED)
def test_other_published_kinds_are_refused_by_their_names(model, refusal):
    state = made_up(shapes_of(model))
    with refusal(ConversionError, REFUSED[model]):
        layout = recognise(state)
        config, called = choose_config(layout, renamed(state, layout), None, {})
        out = convert(state, layout, config, targets_of(called.removeprefix("configs/").removesuffix(".yaml")))
        check(out, State(state, "zip"), config, called, False)
