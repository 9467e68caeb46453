"""Detectors and their losses from a config: the one place that reads it."""

from __future__ import annotations

import contextlib

from mindspore import Tensor, nn
from mindspore.nn.utils import no_init_parameters

from src.config import Config, backbone_strides
from src.models.anchors import make_anchors
from src.models.assigner_sampler import AssignerSampler
from src.models.backbones import build_backbone
from src.models.box_coder import BoxCoder
from src.models.fpn import FPN
from src.models.heads import BRANCHES
from src.models.heads.box import BBoxHead, BBoxLoss, BoxSelector
from src.models.names import name_parameters, parts
from src.models.norms import BatchNorm, freeze, norm_of
from src.models.precision import use_float16
from src.models.proposals import ProposalGenerator
from src.models.rcnn import RCNN, RCNNLoss
from src.models.roi_extractor import build_roi_extractor
from src.models.roi_heads.cascade import CascadeRoIHeads, CascadeRoILoss
from src.models.roi_heads.standard import StandardRoIHeads, StandardRoILoss
from src.models.rpn import RPN, RPNHead, RPNLoss, SampledRPN
from src.ops.library import standard_operators
from src.ops.soft_nms import SoftNMS
from src.runtime.errors import UserError
from src.runtime.newer import zip_equal

__all__ = ["at_canvas", "build_detector", "build_loss", "sampler_key_sizes"]


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
        score_thr=c.score_thr,
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
    return make_anchors(height, width, a.strides, a.scales, a.ratios, a.rounded, a.legacy, a.grid_strides, a.sizes)


def _bbox_head(config: Config) -> BBoxHead:
    c = config.bbox_head
    return BBoxHead(
        c.in_channels,
        c.roi_feat_size,
        c.fc_out_channels,
        config.num_classes,
        c.reg_class_agnostic,
        c.num_fcs,
        c.num_convs,
        c.conv_out_channels,
        norm_of(c.norm, config.backbone.norm_eps, config.backbone.norm_momentum),
    )


def _selector(config: Config, coder: BoxCoder, builtin_ops: bool) -> BoxSelector:
    c, soft = config.test_cfg.rcnn, None
    if c.nms.type == "soft_nms":
        soft = SoftNMS(c.iou_threshold, c.max_per_img, c.nms.method, c.nms.sigma, c.nms.min_score)
    return BoxSelector(
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
        soft=soft,
    )


def build_detector(config: Config, builtin_ops: bool = False, *, weights: bool = True) -> RCNN:
    """The detector that `config` describes, with random weights.

    builtin_ops: only MindSpore's own operators, for export. weights: False leaves them unset, for a checkpoint that
    gives them all, or for their names and shapes: without the second that a ResNet's random numbers take.
    """
    with standard_operators(builtin_ops), contextlib.nullcontext() if weights else no_init_parameters():
        detector = _detector(config, builtin_ops)
    if config.is_half:
        use_float16(detector)
    return detector


def _detector(config: Config, builtin_ops: bool) -> RCNN:
    fpn, rpn = config.neck.fpn, config.rpn
    backbone = build_backbone(config)
    strides = backbone_strides(config.backbone)
    factors = [below // above for above, below in zip(strides, strides[1:])]
    norm = norm_of(fpn.norm, config.backbone.norm_eps, config.backbone.norm_momentum)
    bilinear, top_down = fpn.upsample == "bilinear", fpn.upsample != "none"
    neck = FPN(fpn.in_channels, fpn.out_channels, fpn.num_outs, bilinear, factors, norm, top_down)
    head = RPNHead(rpn.in_channels, rpn.feat_channels, config.anchors_a_cell, rpn.num_convs)
    detector = RCNN(backbone, neck, _rpn(config, head, builtin_ops), _roi_heads(config, builtin_ops))
    name_parameters(detector)
    return detector


def _rpn(config: Config, head: RPNHead, builtin_ops: bool) -> RPN:
    anchors, corners, counts = _anchors(config)
    return RPN(
        head,
        Tensor(anchors),
        Tensor(corners),
        _proposals(config, config.test_cfg.rpn, counts, builtin_ops),
        tuple(Tensor(a) for a in _anchors(config, True)[:2]) if config.turns_canvas else None,
        config.rpn.anchor_generator.size_divisor,
    )


def at_canvas(config: Config, detector: RCNN) -> RCNN:
    """A detector on the canvas of `config`, which is of the same network, with the parameters of `detector`, which may
    be of another canvas, as its own.

    Not for backbones that are built for one canvas (src.config.backbones).
    """
    return RCNN(detector.backbone, detector.neck, _rpn(config, detector.rpn.head, False), detector.roi_heads)


def _roi_heads(config: Config, builtin_ops: bool) -> StandardRoIHeads | CascadeRoIHeads:
    cascade, coder = config.cascade, config.bbox_head.bbox_coder
    extractor = build_roi_extractor(config.roi, builtin_ops)
    more = [BRANCHES[name].build(config, builtin_ops) for name in config.branches]
    if not config.is_cascade:
        box, selector = _bbox_head(config), _selector(config, _coder(coder), builtin_ops)
        return StandardRoIHeads(extractor, box, selector, more)
    coders = [_coder(coder, stds) for stds in cascade.target_stds]
    return CascadeRoIHeads(
        extractor,
        [_bbox_head(config) for _ in coders],
        coders,
        _selector(config, coders[-1], builtin_ops),
        cascade.average_scores == "probabilities",
        more,
    )


def _bbox_loss(config: Config, coder: BoxCoder, ranks: int) -> BBoxLoss:
    c = config.bbox_head
    return BBoxLoss(coder, c.loss_cls.loss_weight, c.loss_bbox.loss_weight, c.loss_bbox.beta, ranks)


def _branch_losses(config: Config, detector: RCNN, ranks: int, weights: list[float]) -> list[list[nn.Cell]]:
    """Of each stage, whose losses have that weight, those of the further heads on its sample."""
    out: list[list[nn.Cell]] = [[] for _ in weights]
    for name, branch in zip_equal(config.branches, detector.roi_heads.more):
        for stage, losses in enumerate(BRANCHES[name].build_losses(config, branch, ranks, weights)):
            out[stage] += losses
    return out


def _freeze_parts(config: Config, detector: RCNN) -> None:
    found = parts(detector)
    for name in config.freeze:
        # a cascade has several heads
        part = found.get(name) or found.get(f"{name}s")
        if part is None:
            raise UserError(f"freeze: detector: {config.detector} has no {name}; leave it out")
        freeze(part)
    if not detector.trainable_params():
        raise UserError(f"freeze: {', '.join(config.freeze)}: leaves nothing to train; leave a part out")


def build_loss(config: Config, detector: RCNN, ranks: int = 1) -> RCNNLoss:
    """The training losses of `detector`, which shares its parameters; `ranks`: processes that train together.

    Freezes the parts of `detector` that config.freeze names, and lets its norms of kind sync take the statistics of all
    ranks. Raises UserError where it has no such part, or none to
    train.
    """
    _freeze_parts(config, detector)
    for _, cell in detector.cells_and_names():
        if isinstance(cell, BatchNorm):
            cell.use_ranks(ranks)
    return RCNNLoss(detector, _rpn_loss(config, detector.rpn, ranks), _roi_loss(config, detector, ranks))


def _rpn_loss(config: Config, rpn: RPN, ranks: int) -> RPNLoss:
    counts, c, train = _anchors(config)[2], config.rpn, config.train_cfg
    a = c.anchor_generator
    return RPNLoss(
        rpn,
        _proposals(config, train.rpn_proposal, counts, False),
        SampledRPN(
            rpn.head, counts, a.strides, config.img_height, config.img_width, a.grid_strides, config.turns_canvas
        ),
        _sampler(train.rpn.assigner, train.rpn.sampler),
        _coder(c.bbox_coder),
        c.loss_cls.loss_weight,
        c.loss_bbox.loss_weight,
        c.loss_bbox.beta,
        ranks,
        c.loss_normaliser,
    )


def _roi_loss(config: Config, detector: RCNN, ranks: int) -> StandardRoILoss | CascadeRoILoss:
    heads, cascade = detector.roi_heads, config.cascade
    assigner, sampler = config.train_cfg.rcnn.assigner, config.train_cfg.rcnn.sampler
    add_gt = sampler.add_gt_as_proposals
    with_gt = {"gt_appended": add_gt and assigner.matcher == "mmdet"}
    if not config.is_cascade:
        losses = _branch_losses(config, detector, ranks, [1.0])[0]
        box_loss = _bbox_loss(config, _coder(config.bbox_head.bbox_coder), ranks)
        return StandardRoILoss(heads, _sampler(assigner, sampler, **with_gt), box_loss, add_gt, losses)
    # a later stage that doesn't resample takes every box of the first one's sample
    later = with_gt if cascade.resample else {"pos_fraction": 1.0, "neg_pos_ub": -1.0}
    weights = cascade.loss_weights
    return CascadeRoILoss(
        heads,
        [
            _sampler(assigner, sampler, pos_iou_thr=iou, neg_iou_thr=iou, **(later if stage else with_gt))
            for stage, iou in enumerate(cascade.pos_iou_thr)
        ],
        [_bbox_loss(config, coder, ranks) for coder in heads.coders],
        weights,
        add_gt,
        cascade.resample,
        cascade.feature_gradient,
        _branch_losses(config, detector, ranks, weights),
    )


def sampler_key_sizes(config: Config) -> tuple[int, int]:
    """Random keys an image that RCNNLoss takes: for anchors, and for the boxes that the second stage draws from."""
    objects, sampler = config.max_instance_count, config.train_cfg.rcnn.sampler
    drawn_from = config.train_cfg.rpn_proposal.max_per_img + objects
    total = drawn_from
    for _ in config.cascade.pos_iou_thr[1:] if config.is_cascade else ():
        drawn_from = min(sampler.num, drawn_from) + (objects if config.cascade.resample else 0)
        total += drawn_from
    return sum(_anchors(config)[2]), total
