"""Faster R-CNN (arXiv:1506.01497) and Mask R-CNN (arXiv:1703.06870) with FPN: the whole story on one page."""

from mindspore import Tensor, nn, ops

from src.models.assigner_sampler import AssignerSampler
from src.models.bbox_head import BBoxHead, BBoxLoss, Detections
from src.models.box_coder import take_rows
from src.models.mask_head import MaskHead, MaskLoss
from src.models.proposals import ProposalGenerator
from src.models.roi_extractor import RoIExtractor
from src.models.rpn import RPNHead, RPNLoss

__all__ = ["LOSS_NAMES", "TwoStageDetector", "TwoStageLoss", "match_targets", "total_of"]

LOSS_NAMES = ("total_loss", "rpn_cls_loss", "rpn_reg_loss", "rcnn_cls_loss", "rcnn_reg_loss", "rcnn_mask_loss")


class TwoStageDetector(nn.Cell):
    """The network and its inference.

    Inputs: image (B, 3, H, W) float32, normalised, on the canvas, or where `turned` is given on that turned; image_size
    (B, 2) float32, the (height, width) that the picture takes of the canvas. Outputs, D = max_per_img rows an image,
    all-zero where not valid: boxes (B, D, 4) in canvas pixels, scores (B, D), labels (B, D) int32, valid (B, D) bool,
    masks (B, D, 28, 28) probabilities of each detection's class (absent without a mask head).
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
        bbox_head: BBoxHead | None,
        detections: Detections,
        mask_roi_extractor: RoIExtractor | None = None,
        mask_head: MaskHead | None = None,
        turned: tuple[Tensor, Tensor] | None = None,
    ):
        super().__init__()
        self.turns = turned is not None
        if self.turns:
            self.turned_anchors, self.turned_corners = turned
        self.backbone, self.neck, self.rpn = backbone, neck, rpn
        self.anchors, self.anchor_corners = anchors, anchor_corners
        self.proposals, self.roi_extractor = proposals, roi_extractor
        self.detections = detections
        if bbox_head is not None:
            self.bbox_head = bbox_head
        self.with_mask = mask_head is not None
        if self.with_mask:
            self.mask_roi_extractor, self.mask_head = mask_roi_extractor, mask_head

    def grid(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors (N, 4) of the image's canvas, their cells' corners (N, 2), and (B, N) bool: the cell begins inside
        the picture, not in the canvas's padding.
        """
        anchors, corners = self.anchors, self.anchor_corners
        if self.turns and image.shape[2] > image.shape[3]:
            anchors, corners = self.turned_anchors, self.turned_corners
        x_inside = corners[:, 0].expand_dims(0) < image_size[:, 1:]
        y_inside = corners[:, 1].expand_dims(0) < image_size[:, :1]
        return anchors, corners, ops.logical_and(x_inside, y_inside)

    def construct(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, ...]:
        features = self.neck(self.backbone(image))
        logits, deltas = self.rpn(features)
        anchors, _, inside = self.grid(image, image_size)
        proposals, _, valid = self.proposals(logits, deltas, anchors, inside, image_size)
        scores, deltas, references = self.classify(features, proposals, valid, image_size)
        boxes, scores, labels, kept = self.detections(scores, deltas, references, valid, image_size)
        if not self.with_mask:
            return boxes, scores, labels, kept
        return boxes, scores, labels, kept, self.masks(features, boxes, labels, kept)

    def classify(
        self, features: tuple[Tensor, ...], proposals: Tensor, valid: Tensor, image_size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Class probabilities (B, P, num_classes), deltas (B, P, 4 * num_classes or 4), and the boxes (B, P, 4) that
        the deltas refer to."""
        b, p = valid.shape
        logits, deltas = self.bbox_head(self.roi_extractor(features, proposals, valid))
        return ops.softmax(logits, -1).reshape(b, p, -1), deltas.reshape(b, p, -1), proposals

    def masks(self, features: tuple[Tensor, ...], boxes: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        """Mask probabilities (B, D, 28, 28) of detections: boxes (B, D, 4), labels and valid (B, D)."""
        masks = ops.sigmoid(self.mask_head(self.mask_roi_extractor(features, boxes, valid), labels.reshape(-1)))
        return masks.reshape(valid.shape + masks.shape[1:])


class TwoStageLoss(nn.Cell):
    """The detector's training losses.

    Inputs: image (B, 3, H, W), image_size (B, 2), gt_boxes (B, G, 4), gt_labels (B, G) int32, gt_valid (B, G) bool,
    gt_masks (B, G, S, S) uint8, ignore_boxes (B, K, 4), rpn_keys (B, N) and rcnn_keys (B, P + G) float32 uniform in
    [0, 1). Of a batch in parts also totals (1 + 2 * stages,) float32, the sum of all parts' counts: then the parts'
    losses add up to the batch's. Output: one vector of the losses in the order of LOSS_NAMES, so that its first element
    is what is differentiated and the others come with the same pass.
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
        self.stages = 1
        self.with_mask = mask_loss is not None
        if self.with_mask:
            self.mask_loss = mask_loss

    def construct(self, *inputs: Tensor) -> Tensor:
        return self.with_counts(*inputs)[0]

    def with_counts(
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
        totals: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The losses, and what they are divided by, each () float32: the first stage's anchors, and of each further
        stage its boxes and positives.
        """
        d = self.detector
        features = d.neck(d.backbone(image))
        logits, deltas = d.rpn(frozen(features))
        anchors, corners, inside = d.grid(image, image_size)
        # one unpacked in vain here, MindSpore warns of side effects that it eliminated
        drawn_from = self.proposals(logits, deltas, anchors, inside, image_size)
        proposals, valid = drawn_from[0], drawn_from[2]
        rpn_cls, rpn_reg, anchor_count = self.rpn_loss(
            features,
            anchors,
            corners,
            inside,
            gt_boxes,
            gt_valid,
            ignore_boxes,
            rpn_keys,
            total_of(totals, 0),
        )
        rcnn, counts = self.second_stage(
            features,
            image_size,
            proposals,
            valid,
            gt_boxes,
            gt_labels,
            gt_valid,
            gt_masks,
            ignore_boxes,
            rcnn_keys,
            totals,
        )
        total = rpn_cls + rpn_reg + rcnn[0] + rcnn[1] + rcnn[2]
        return ops.stack((total, rpn_cls, rpn_reg) + rcnn), (anchor_count,) + counts

    def second_stage(
        self,
        features: tuple[Tensor, ...],
        image_size: Tensor,
        proposals: Tensor,
        valid: Tensor,
        gt_boxes: Tensor,
        gt_labels: Tensor,
        gt_valid: Tensor,
        gt_masks: Tensor,
        ignore_boxes: Tensor,
        keys: Tensor,
        totals: Tensor | None = None,
    ) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
        """Class, box and mask losses of proposals (B, P, 4), valid (B, P); and the counts."""
        d = self.detector
        boxes, valid = self.candidates(proposals, valid, gt_boxes, gt_valid)
        keys = keys[:, : valid.shape[1]]
        index, used, positive, gt_index = self.rcnn_sampler(boxes, valid, gt_boxes, gt_valid, ignore_boxes, keys)
        rois, targets, labels = match_targets(boxes, gt_boxes, gt_labels, index, positive, gt_index)
        cls, reg = d.bbox_head(d.roi_extractor(features, rois, used > 0))
        cls_loss, reg_loss = self.bbox_loss(
            cls,
            reg,
            rois.reshape(-1, 4),
            labels.reshape(-1),
            targets.reshape(-1, 4),
            used.reshape(-1),
            positive.reshape(-1),
            total_of(totals, 1),
        )
        counts = (used.sum(), positive.sum())
        if not self.with_mask:
            return (cls_loss, reg_loss, ops.zeros_like(cls_loss)), counts

        # positives come first, so the first max_positives rows hold them all
        n = min(self.rcnn_sampler.max_positives, index.shape[1])
        mask_loss = self.mask_loss(
            features,
            rois[:, :n],
            targets[:, :n],
            labels[:, :n],
            gt_index[:, :n],
            positive[:, :n],
            gt_masks,
            total_of(totals, 2),
        )
        return (cls_loss, reg_loss, mask_loss), counts

    def candidates(self, boxes: Tensor, valid: Tensor, gt_boxes: Tensor, gt_valid: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes that a sampler draws from: these, and the ground truth if the config says so."""
        if not self.add_gt:
            return boxes, valid
        return ops.concat((boxes, gt_boxes), 1), ops.concat((valid, gt_valid), 1)


def match_targets(
    boxes: Tensor, gt_boxes: Tensor, gt_labels: Tensor, index: Tensor, positive: Tensor, gt_index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """RoIs (B, S, 4) of an AssignerSampler's draw, their objects' boxes (B, S, 4) and labels (B, S), 0 if negative."""
    labels = take_rows(gt_labels, gt_index) * positive.astype(gt_labels.dtype)
    return take_rows(boxes, index), take_rows(gt_boxes, gt_index), labels


def total_of(totals: Tensor | None, i: int) -> Tensor | None:
    """The i-th of the totals (), if there are any."""
    return None if totals is None else totals[i]


def frozen(features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same maps, without gradient."""
    out = ()
    for f in features:
        out += (ops.stop_gradient(f),)
    return out
