"""Faster R-CNN (arXiv:1506.01497) and Mask R-CNN (arXiv:1703.06870) with FPN: the whole story on one page."""

from mindspore import Tensor, nn, ops

from src.config import Config
from src.models.anchors import make_anchors
from src.models.assigner_sampler import AssignerSampler
from src.models.backbones.mobilenet_v1 import MobileNetV1
from src.models.backbones.resnet import ResNet
from src.models.bbox_head import BBoxHead, BBoxLoss, Detections
from src.models.box_coder import BoxCoder, take_rows
from src.models.fpn import FPN
from src.models.mask_head import MaskHead, MaskLoss, MaskTargets
from src.models.proposals import ProposalGenerator
from src.models.roi_extractor import RoIExtractor
from src.models.rpn import RPNHead, RPNLoss, SampledRPN

__all__ = ["LOSS_NAMES", "TwoStageDetector", "TwoStageLoss", "build_detector", "build_loss", "sampler_key_sizes"]

LOSS_NAMES = ("total_loss", "rpn_cls_loss", "rpn_reg_loss", "rcnn_cls_loss", "rcnn_reg_loss", "rcnn_mask_loss")


class TwoStageDetector(nn.Cell):
    """The network and its inference.

    Inputs: image (B, 3, H, W) float32, normalised, on the canvas; image_size (B, 2) float32, the (height, width)
    that the picture takes of the canvas. Outputs, D = max_per_img rows an image, all-zero where not valid: boxes
    (B, D, 4) in canvas pixels, scores (B, D), labels (B, D) int32, valid (B, D) bool, masks (B, D, 28, 28)
    probabilities of each detection's class (absent without a mask head).
    """

    def __init__(
        self,
        backbone: nn.Cell,
        neck: nn.Cell,
        rpn: RPNHead,
        anchors: Tensor,
        anchor_corners: Tensor,
        proposals: ProposalGenerator,
        roi_extractor: RoIExtractor,
        bbox_head: BBoxHead,
        detections: Detections,
        mask_roi_extractor: RoIExtractor | None = None,
        mask_head: MaskHead | None = None,
    ):
        super().__init__()
        self.backbone, self.neck, self.rpn = backbone, neck, rpn
        self.anchors, self.anchor_corners = anchors, anchor_corners
        self.proposals, self.roi_extractor = proposals, roi_extractor
        self.bbox_head, self.detections = bbox_head, detections
        self.with_mask = mask_head is not None
        if self.with_mask:
            self.mask_roi_extractor, self.mask_head = mask_roi_extractor, mask_head

    def anchor_valid(self, image_size: Tensor) -> Tensor:
        """(B, N) bool: the anchor's cell begins inside the picture, not in the canvas's padding."""
        x_inside = self.anchor_corners[:, 0].expand_dims(0) < image_size[:, 1:]
        y_inside = self.anchor_corners[:, 1].expand_dims(0) < image_size[:, :1]
        return ops.logical_and(x_inside, y_inside)

    def construct(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, ...]:
        features = self.neck(self.backbone(image))
        logits, deltas = self.rpn(features)
        proposals, _, valid = self.proposals(logits, deltas, self.anchors, self.anchor_valid(image_size), image_size)
        b, p = valid.shape
        cls, reg = self.bbox_head(self.roi_extractor(features, proposals, valid))
        boxes, scores, labels, kept = self.detections(
            cls.reshape(b, p, -1), reg.reshape(b, p, -1), proposals, valid, image_size
        )
        if not self.with_mask:
            return boxes, scores, labels, kept
        masks = ops.sigmoid(self.mask_head(self.mask_roi_extractor(features, boxes, kept), labels.reshape(-1)))
        return boxes, scores, labels, kept, masks.reshape(kept.shape + masks.shape[1:])


class TwoStageLoss(nn.Cell):
    """The detector's training losses.

    Inputs: image (B, 3, H, W), image_size (B, 2), gt_boxes (B, G, 4), gt_labels (B, G) int32, gt_valid (B, G) bool,
    gt_masks (B, G, S, S) uint8, ignore_boxes (B, K, 4), rpn_keys (B, N) and rcnn_keys (B, P + G) float32 uniform in
    [0, 1). Output: one vector of the losses in the order of LOSS_NAMES, so that its first element is what is
    differentiated and the others come with the same pass.
    """

    def __init__(
        self,
        detector: TwoStageDetector,
        proposals: ProposalGenerator,
        rpn_loss: RPNLoss,
        rcnn_sampler: AssignerSampler,
        bbox_loss: BBoxLoss,
        add_gt_as_proposals: bool,
        mask_loss: MaskLoss | None = None,
    ):
        super().__init__(auto_prefix=False)
        self.detector, self.proposals, self.rpn_loss = detector, proposals, rpn_loss
        self.rcnn_sampler, self.bbox_loss, self.add_gt = rcnn_sampler, bbox_loss, add_gt_as_proposals
        self.with_mask = mask_loss is not None
        if self.with_mask:
            self.mask_loss = mask_loss

    def construct(
        self,
        image: Tensor,
        image_size: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        gt_valid: Tensor,
        gt_masks: Tensor,
        ignore_boxes: Tensor,
        rpn_keys: Tensor,
        rcnn_keys: Tensor,
    ) -> Tensor:
        d = self.detector
        features = d.neck(d.backbone(image))
        logits, deltas = d.rpn(frozen(features))
        anchor_valid = d.anchor_valid(image_size)
        proposals, _, valid = self.proposals(logits, deltas, d.anchors, anchor_valid, image_size)
        rpn_cls, rpn_reg = self.rpn_loss(
            features,
            d.anchors,
            d.anchor_corners,
            anchor_valid,
            gt_boxes,
            gt_valid,
            ignore_boxes,
            rpn_keys,
        )
        rcnn = self.second_stage(
            features, proposals, valid, gt_boxes, gt_labels, gt_valid, gt_masks, ignore_boxes, rcnn_keys
        )
        total = rpn_cls + rpn_reg + rcnn[0] + rcnn[1] + rcnn[2]
        return ops.stack((total, rpn_cls, rpn_reg) + rcnn)

    def second_stage(
        self,
        features: tuple[Tensor, ...],
        proposals: Tensor,
        valid: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        gt_valid: Tensor,
        gt_masks: Tensor,
        ignore_boxes: Tensor,
        keys: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Class, box and mask losses of proposals (B, P, 4), valid (B, P)."""
        d = self.detector
        if self.add_gt:
            proposals = ops.concat((proposals, gt_boxes), 1)
            valid = ops.concat((valid, gt_valid), 1)
        keys = keys[:, : valid.shape[1]]
        index, used, positive, gt_index = self.rcnn_sampler(proposals, valid, gt_boxes, gt_valid, ignore_boxes, keys)
        rois, targets = take_rows(proposals, index), take_rows(gt_boxes, gt_index)
        labels = take_rows(gt_labels, gt_index) * positive.astype(gt_labels.dtype)
        cls, reg = d.bbox_head(d.roi_extractor(features, rois, used > 0))
        cls_loss, reg_loss = self.bbox_loss(
            cls,
            reg,
            rois.reshape(-1, 4),
            labels.reshape(-1),
            targets.reshape(-1, 4),
            used.reshape(-1),
            positive.reshape(-1),
        )
        if not self.with_mask:
            return cls_loss, reg_loss, ops.zeros_like(cls_loss)

        # positives come first, so the first max_positives rows hold them all
        n = min(self.rcnn_sampler.max_positives, index.shape[1])
        mask_loss = self.mask_loss(
            features, rois[:, :n], targets[:, :n], labels[:, :n], gt_index[:, :n], positive[:, :n], gt_masks
        )
        return cls_loss, reg_loss, mask_loss


def frozen(features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same maps, without gradient."""
    out = ()
    for f in features:
        out += (ops.stop_gradient(f),)
    return out


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
    }
    if c.type == "mobilenet_v1":
        return MobileNetV1(c.width_multiplier, **shared)
    groups, base_width = (c.groups, c.base_width) if c.type == "resnext" else (1, 64)
    return ResNet(c.depth, c.stride_in_1x1, groups, base_width, **shared)


def _coder(c) -> BoxCoder:
    return BoxCoder(c.target_means, c.target_stds, c.wh_ratio_clip)


def _proposals(c, coder: BoxCoder, counts: list[int], builtin_ops: bool) -> ProposalGenerator:
    return ProposalGenerator(coder, counts, c.nms_pre, c.max_per_img, c.iou_threshold, c.min_bbox_size, builtin_ops)


def _roi_extractor(c, builtin_ops: bool) -> RoIExtractor:
    layer = c.roi_layer
    return RoIExtractor(
        layer.out_size, layer.sampling_ratio, layer.aligned, c.featmap_strides, c.finest_scale, builtin_ops
    )


def _sampler(c, builtin_ops: bool) -> AssignerSampler:
    a, s = c.assigner, c.sampler
    return AssignerSampler(
        s.num,
        s.pos_fraction,
        a.pos_iou_thr,
        a.neg_iou_thr,
        a.min_pos_iou,
        a.match_low_quality,
        s.neg_pos_ub,
        a.ignore_iof_thr,
        builtin_ops,
    )


def _anchors(config: Config):
    a = config.rpn.anchor_generator
    return make_anchors(config.img_height, config.img_width, a.strides, a.scales, a.ratios, a.rounded)


def build_detector(config: Config, builtin_ops: bool = False) -> TwoStageDetector:
    """The detector that `config` describes, with random weights.

    builtin_ops: only MindSpore's own operators, for export.
    """
    anchors, corners, counts = _anchors(config)
    fpn, rpn, head, test = config.neck.fpn, config.rpn, config.bbox_head, config.test_cfg
    with_mask = config.detector == "mask_rcnn"
    r = test.rcnn
    return TwoStageDetector(
        backbone=build_backbone(config),
        neck=FPN(fpn.in_channels, fpn.out_channels, fpn.num_outs),
        rpn=RPNHead(
            rpn.in_channels, rpn.feat_channels, len(rpn.anchor_generator.scales) * len(rpn.anchor_generator.ratios)
        ),
        anchors=Tensor(anchors),
        anchor_corners=Tensor(corners),
        proposals=_proposals(test.rpn, _coder(rpn.bbox_coder), counts, builtin_ops),
        roi_extractor=_roi_extractor(config.roi, builtin_ops),
        bbox_head=BBoxHead(
            head.in_channels, head.roi_feat_size, head.fc_out_channels, config.num_classes, head.reg_class_agnostic
        ),
        detections=Detections(
            _coder(head.bbox_coder),
            config.num_classes,
            r.score_thr,
            r.iou_threshold,
            r.max_per_img,
            r.nms_pre,
            r.min_bbox_size,
            builtin_ops,
        ),
        mask_roi_extractor=_roi_extractor(config.mask_roi, builtin_ops) if with_mask else None,
        mask_head=MaskHead(
            config.mask_head.num_convs,
            config.mask_head.in_channels,
            config.mask_head.conv_out_channels,
            config.num_classes,
        )
        if with_mask
        else None,
    )


def build_loss(config: Config, detector: TwoStageDetector) -> TwoStageLoss:
    """The training losses of `detector`, which shares its parameters."""
    counts = _anchors(config)[2]
    train, rpn, head = config.train_cfg, config.rpn, config.bbox_head
    return TwoStageLoss(
        detector,
        proposals=_proposals(train.rpn_proposal, _coder(rpn.bbox_coder), counts, False),
        rpn_loss=RPNLoss(
            SampledRPN(detector.rpn, counts, rpn.anchor_generator.strides, config.img_height, config.img_width),
            _sampler(train.rpn, False),
            _coder(rpn.bbox_coder),
            rpn.loss_cls.loss_weight,
            rpn.loss_bbox.loss_weight,
            rpn.loss_bbox.beta,
        ),
        rcnn_sampler=_sampler(train.rcnn, False),
        bbox_loss=BBoxLoss(
            _coder(head.bbox_coder), head.loss_cls.loss_weight, head.loss_bbox.loss_weight, head.loss_bbox.beta
        ),
        add_gt_as_proposals=train.rcnn.sampler.add_gt_as_proposals,
        mask_loss=_mask_loss(config, detector) if config.detector == "mask_rcnn" else None,
    )


def _mask_loss(config: Config, detector: TwoStageDetector) -> MaskLoss:
    rcnn = config.train_cfg.rcnn
    targets = MaskTargets(rcnn.mask_size, config.mask_roi.roi_layer.aligned)
    weight = config.mask_head.loss_mask.loss_weight
    return MaskLoss(detector.mask_head, detector.mask_roi_extractor, targets, weight, rcnn.mask_buckets)


def sampler_key_sizes(config: Config) -> tuple[int, int]:
    """Random keys an image that TwoStageLoss takes: for anchors, and for proposals with ground truth."""
    counts = _anchors(config)[2]
    return sum(counts), config.train_cfg.rpn_proposal.max_per_img + config.max_instance_count
