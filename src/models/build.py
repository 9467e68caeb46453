"""Detectors and their losses from a config: the one place that reads it."""

from mindspore import Tensor, nn

from src.config import Config
from src.models.anchors import make_anchors
from src.models.assigner_sampler import AssignerSampler
from src.models.backbones.mobilenet_v1 import MobileNetV1
from src.models.backbones.parts import freeze
from src.models.backbones.resnet import ResNet
from src.models.bbox_head import BBoxHead, BBoxLoss, Detections
from src.models.box_coder import BoxCoder
from src.models.cascade import CascadeDetector, CascadeLoss
from src.models.fpn import FPN
from src.models.mask_head import MaskHead, MaskLoss, MaskTargets
from src.models.precision import use_float16
from src.models.proposals import ProposalGenerator
from src.models.roi_extractor import RoIExtractor
from src.models.rpn import RPNHead, RPNLoss, SampledRPN
from src.models.two_stage import TwoStageDetector, TwoStageLoss
from src.ops.library import standard_operators
from src.runtime.errors import UserError

__all__ = ["build_detector", "build_loss", "sampler_key_sizes"]


def build_backbone(config: Config) -> nn.Cell:
    """The backbone that config.backbone names."""
    c = config.backbone
    shared = {
        "num_stages": c.num_stages,
        "out_indices": c.out_indices,
        "frozen_stages": c.frozen_stages,
        "norm_eval": c.norm_eval,
        "norm_grad": c.norm_grad,
        "norm_eps": c.norm_eps,
        "norm_momentum": c.norm_momentum,
        "same_padding": c.same_padding,
    }
    if c.type == "mobilenet_v1":
        return MobileNetV1(c.width_multiplier, relu6=c.relu6, **shared)
    groups, base_width = (c.groups, c.base_width) if c.type == "resnext" else (1, 64)
    return ResNet(c.depth, c.stride_in_1x1, groups, base_width, **shared)


def _coder(c, stds: list[float] | None = None) -> BoxCoder:
    return BoxCoder(c.target_means, stds or c.target_stds, c.wh_ratio_clip, c.delta_clamp == "both")


def _proposals(config: Config, c, counts: list[int], builtin_ops: bool) -> ProposalGenerator:
    coder = _coder(config.rpn.bbox_coder)
    return ProposalGenerator(
        coder,
        counts,
        c.nms_pre,
        c.max_per_img,
        c.iou_threshold,
        c.min_bbox_size,
        plus_one=config.box_plus_one,
        rank_by=config.rpn.rank_by,
        builtin_ops=builtin_ops,
    )


def _roi_extractor(c, builtin_ops: bool) -> RoIExtractor:
    layer = c.roi_layer
    return RoIExtractor(
        layer.out_size,
        layer.sampling_ratio,
        layer.aligned,
        c.featmap_strides,
        c.finest_scale,
        last_pixel_end=layer.last_pixel_end,
        builtin_ops=builtin_ops,
    )


def _sampler(assigner, sampler, builtin_ops: bool = False, **changes) -> AssignerSampler:
    """`changes`: arguments of AssignerSampler that differ from the config's."""
    return AssignerSampler(
        **{
            "num": sampler.num,
            "pos_fraction": sampler.pos_fraction,
            "pos_iou_thr": assigner.pos_iou_thr,
            "neg_iou_thr": assigner.neg_iou_thr,
            "min_pos_iou": assigner.min_pos_iou,
            "match_low_quality": assigner.match_low_quality,
            "to_last_object": assigner.matcher == "mmdet",
            "neg_pos_ub": sampler.neg_pos_ub,
            "ignore_iof_thr": assigner.ignore_iof_thr,
            "builtin_ops": builtin_ops,
            **changes,
        }
    )


def _anchors(config: Config, turned: bool = False):
    a, canvas = config.rpn.anchor_generator, (config.img_height, config.img_width)
    height, width = canvas[::-1] if turned else canvas
    return make_anchors(height, width, a.strides, a.scales, a.ratios, a.rounded, a.legacy, a.grid_strides)


def _bbox_head(config: Config) -> BBoxHead:
    c = config.bbox_head
    return BBoxHead(c.in_channels, c.roi_feat_size, c.fc_out_channels, config.num_classes, c.reg_class_agnostic)


def _mask_head(config: Config) -> MaskHead:
    c = config.mask_head
    return MaskHead(c.num_convs, c.in_channels, c.conv_out_channels, config.num_classes)


def _detections(config: Config, coder: BoxCoder, builtin_ops: bool) -> Detections:
    c = config.test_cfg.rcnn
    return Detections(
        coder,
        config.num_classes,
        c.score_thr,
        c.iou_threshold,
        c.max_per_img,
        c.nms_pre,
        c.min_bbox_size,
        plus_one=config.box_plus_one,
        builtin_ops=builtin_ops,
        agnostic_nms=c.agnostic_nms,
    )


def build_detector(config: Config, builtin_ops: bool = False) -> TwoStageDetector:
    """The detector that `config` describes, with random weights.

    builtin_ops: only MindSpore's own operators, for export.
    """
    with standard_operators(builtin_ops):
        detector = _detector(config, builtin_ops)
    if config.is_half:
        use_float16(detector)
    return detector


def _detector(config: Config, builtin_ops: bool) -> TwoStageDetector:
    anchors, corners, counts = _anchors(config)
    fpn, rpn, cascade = config.neck.fpn, config.rpn, config.cascade
    shared = {
        "backbone": build_backbone(config),
        "neck": FPN(fpn.in_channels, fpn.out_channels, fpn.num_outs, fpn.upsample == "bilinear"),
        "rpn": RPNHead(
            rpn.in_channels, rpn.feat_channels, len(rpn.anchor_generator.scales) * len(rpn.anchor_generator.ratios)
        ),
        "turned": tuple(Tensor(a) for a in _anchors(config, True)[:2]) if config.turns_canvas else None,
        "anchors": Tensor(anchors),
        "anchor_corners": Tensor(corners),
        "proposals": _proposals(config, config.test_cfg.rpn, counts, builtin_ops),
        "roi_extractor": _roi_extractor(config.roi, builtin_ops),
        "mask_roi_extractor": _roi_extractor(config.mask_roi, builtin_ops) if config.with_mask else None,
    }
    if not config.is_cascade:
        return TwoStageDetector(
            bbox_head=_bbox_head(config),
            detections=_detections(config, _coder(config.bbox_head.bbox_coder), builtin_ops),
            mask_head=_mask_head(config) if config.with_mask else None,
            **shared,
        )
    coders = [_coder(config.bbox_head.bbox_coder, stds) for stds in cascade.target_stds]
    mask_heads = (len(coders) if cascade.mask_head_per_stage else 1) if config.with_mask else 0
    return CascadeDetector(
        bbox_heads=[_bbox_head(config) for _ in coders],
        coders=coders,
        detections=_detections(config, coders[-1], builtin_ops),
        average_probabilities=cascade.average_scores == "probabilities",
        mask_heads=[_mask_head(config) for _ in range(mask_heads)],
        average_mask_probabilities=cascade.average_masks == "probabilities",
        **shared,
    )


def _bbox_loss(config: Config, coder: BoxCoder, ranks: int) -> BBoxLoss:
    c = config.bbox_head
    return BBoxLoss(coder, c.loss_cls.loss_weight, c.loss_bbox.loss_weight, c.loss_bbox.beta, ranks)


def _mask_loss(config: Config, detector: TwoStageDetector, head: MaskHead, ranks: int) -> MaskLoss:
    rcnn = config.train_cfg.rcnn
    targets = MaskTargets(rcnn.mask_size, config.mask_target_box, rcnn.mask_targets == "binary")
    weight = config.mask_head.loss_mask.loss_weight
    return MaskLoss(head, detector.mask_roi_extractor, targets, weight, rcnn.mask_buckets, ranks)


def _freeze_parts(config: Config, detector: TwoStageDetector) -> None:
    for name in config.freeze:
        # a cascade has several heads
        part = getattr(detector, name, None) or getattr(detector, f"{name}s", None)
        if part is None:
            raise UserError(f"freeze: detector: {config.detector} has no {name}; leave it out")
        freeze(part)
    if not detector.trainable_params():
        raise UserError(f"freeze: {', '.join(config.freeze)}: leaves nothing to train; leave a part out")


def build_loss(config: Config, detector: TwoStageDetector, ranks: int = 1) -> TwoStageLoss:
    """The training losses of `detector`, which shares its parameters; `ranks`: processes that train together.

    Freezes the parts of `detector` that config.freeze names. Raises UserError where it has no such part, or none to
    train.
    """
    _freeze_parts(config, detector)
    counts = _anchors(config)[2]
    train, rpn, cascade = config.train_cfg, config.rpn, config.cascade
    shared = {
        "proposals": _proposals(config, train.rpn_proposal, counts, False),
        "rpn_loss": RPNLoss(
            SampledRPN(
                detector.rpn,
                counts,
                rpn.anchor_generator.strides,
                config.img_height,
                config.img_width,
                rpn.anchor_generator.grid_strides,
                config.turns_canvas,
            ),
            _sampler(train.rpn.assigner, train.rpn.sampler),
            _coder(rpn.bbox_coder),
            rpn.loss_cls.loss_weight,
            rpn.loss_bbox.loss_weight,
            rpn.loss_bbox.beta,
            ranks,
            rpn.loss_normaliser,
        ),
        "add_gt_as_proposals": train.rcnn.sampler.add_gt_as_proposals,
    }
    assigner, sampler = train.rcnn.assigner, train.rcnn.sampler
    with_gt = {"gt_appended": sampler.add_gt_as_proposals and assigner.matcher == "mmdet"}
    if not config.is_cascade:
        return TwoStageLoss(
            detector,
            rcnn_sampler=_sampler(assigner, sampler, **with_gt),
            bbox_loss=_bbox_loss(config, _coder(config.bbox_head.bbox_coder), ranks),
            mask_loss=_mask_loss(config, detector, detector.mask_head, ranks) if config.with_mask else None,
            **shared,
        )
    # a later stage that doesn't resample takes every box of the first one's sample
    later = with_gt if cascade.resample else {"pos_fraction": 1.0, "neg_pos_ub": -1.0}
    return CascadeLoss(
        detector,
        rcnn_samplers=[
            _sampler(assigner, sampler, pos_iou_thr=iou, neg_iou_thr=iou, **(later if stage else with_gt))
            for stage, iou in enumerate(cascade.pos_iou_thr)
        ],
        bbox_losses=[_bbox_loss(config, coder, ranks) for coder in detector.coders],
        stage_weights=cascade.loss_weights,
        resample=cascade.resample,
        feature_gradient=cascade.feature_gradient,
        mask_losses=[_mask_loss(config, detector, head, ranks) for head in detector.mask_heads]
        if config.with_mask
        else [],
        **shared,
    )


def sampler_key_sizes(config: Config) -> tuple[int, int]:
    """Random keys an image that TwoStageLoss takes: for anchors, and for the boxes that the second stage draws from."""
    objects, sampler = config.max_instance_count, config.train_cfg.rcnn.sampler
    drawn_from = config.train_cfg.rpn_proposal.max_per_img + objects
    total = drawn_from
    for _ in config.cascade.pos_iou_thr[1:] if config.is_cascade else ():
        drawn_from = min(sampler.num, drawn_from) + (objects if config.cascade.resample else 0)
        total += drawn_from
    return sum(_anchors(config)[2]), total
