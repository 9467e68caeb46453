"""Cascade R-CNN and Cascade Mask R-CNN (Cai and Vasconcelos, 2018, arXiv:1712.00726): Mask R-CNN's parts, in stages.

Each stage's box head refines the boxes that the next stage classifies, and is trained at a higher IoU. Everything up
to the proposals is src/models/two_stage.py's.
"""

from collections.abc import Sequence

from mindspore import Tensor, nn, ops

from src.models.assigner_sampler import AssignerSampler
from src.models.bbox_head import BBoxHead, BBoxLoss, Detections, class_deltas
from src.models.box_coder import BoxCoder, clip_boxes
from src.models.mask_head import MaskHead, MaskLoss
from src.models.roi_extractor import RoIExtractor
from src.models.two_stage import TwoStageDetector, TwoStageLoss, match_targets, total_of

__all__ = ["CascadeDetector", "CascadeLoss"]


class CascadeDetector(TwoStageDetector):
    """The network and its inference; inputs and outputs are TwoStageDetector's.

    Args, beyond TwoStageDetector's: bbox_heads and coders, one a stage.  mask_heads: one for all stages, or one a
    stage, whose masks are averaged.  average_probabilities, average_mask_probabilities: the stages' class scores (and
    masks) are averaged after softmax (sigmoid), else before.
    """

    def __init__(
        self,
        bbox_heads: Sequence[BBoxHead],
        coders: Sequence[BoxCoder],
        detections: Detections,
        average_probabilities: bool,
        mask_roi_extractor: RoIExtractor | None = None,
        mask_heads: Sequence[MaskHead] = (),
        average_mask_probabilities: bool = False,
        **shared: nn.Cell,
    ):
        super().__init__(bbox_head=None, detections=detections, **shared)
        self.bbox_heads, self.coders = nn.CellList(bbox_heads), nn.CellList(coders)
        self.average_probabilities = average_probabilities
        self.average_mask_probabilities = average_mask_probabilities
        self.with_mask = len(mask_heads) > 0
        if self.with_mask:
            self.mask_roi_extractor, self.mask_heads = mask_roi_extractor, nn.CellList(mask_heads)

    def refine(self, stage: int, logits: Tensor, deltas: Tensor, boxes: Tensor, image_size: Tensor) -> Tensor:
        """The boxes (B, P, 4) that follow `boxes` by `stage`'s deltas, those of the likeliest class if class-wise."""
        b, p = boxes.shape[:2]
        label = logits[:, 1:].argmax(-1) + 1
        delta = class_deltas(deltas, label).reshape(b, p, 4)
        return ops.stop_gradient(clip_boxes(self.coders[stage](delta, boxes), image_size, self.detections.plus_one))

    def classify(
        self, features: tuple[Tensor, ...], proposals: Tensor, valid: Tensor, image_size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        b, p = valid.shape
        boxes = proposals
        logits, deltas = self.bbox_heads[0](self.roi_extractor(features, boxes, valid))
        total = self.to_average(logits)
        for stage in range(1, len(self.bbox_heads)):
            boxes = self.refine(stage - 1, logits, deltas, boxes, image_size)
            logits, deltas = self.bbox_heads[stage](self.roi_extractor(features, boxes, valid))
            total = total + self.to_average(logits)
        mean = total / len(self.bbox_heads)
        scores = mean if self.average_probabilities else ops.softmax(mean, -1)
        return scores.reshape(b, p, -1), deltas.reshape(b, p, -1), boxes

    def to_average(self, logits: Tensor) -> Tensor:
        """Of a stage's class logits, what is averaged."""
        return ops.softmax(logits, -1) if self.average_probabilities else logits

    def masks(self, features: tuple[Tensor, ...], boxes: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        rois, labels = self.mask_roi_extractor(features, boxes, valid), labels.reshape(-1)
        total = 0.0
        for head in self.mask_heads:
            logits = head(rois, labels)
            total = total + (ops.sigmoid(logits) if self.average_mask_probabilities else logits)
        mean = total / len(self.mask_heads)
        masks = mean if self.average_mask_probabilities else ops.sigmoid(mean)
        return masks.reshape(valid.shape + masks.shape[1:])


class CascadeLoss(TwoStageLoss):
    """The cascade's training losses; inputs and output are TwoStageLoss's, the stages' losses summed.

    Args, beyond TwoStageLoss's: rcnn_samplers and bbox_losses, one a stage.  mask_losses: one for each mask head, that
    of a single head on the first stage's sample.  stage_weights: of each stage's losses.  resample: each stage draws
    its sample from the boxes before, refined, and the ground truth (mmdetection); else every stage trains on the
    first one's sample, refined (Detectron2).  feature_gradient: factor on the gradient from the box heads to the
    feature maps.
    """

    def __init__(
        self,
        detector: CascadeDetector,
        rcnn_samplers: Sequence[AssignerSampler],
        bbox_losses: Sequence[BBoxLoss],
        stage_weights: Sequence[float],
        resample: bool,
        feature_gradient: float = 1.0,
        mask_losses: Sequence[MaskLoss] = (),
        **shared: nn.Cell,
    ):
        super().__init__(detector, rcnn_sampler=rcnn_samplers[0], bbox_loss=bbox_losses[0], **shared)
        # a list's own prefix would go before the names of the detector's parameters
        self.rcnn_samplers = nn.CellList(rcnn_samplers, auto_prefix=False)
        self.bbox_losses = nn.CellList(bbox_losses, auto_prefix=False)
        self.mask_losses = nn.CellList(mask_losses, auto_prefix=False)
        self.stage_weights, self.resample = tuple(stage_weights), resample
        self.stages = len(self.bbox_losses)
        self.feature_gradient = feature_gradient

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
        d = self.detector
        boxes, valid = self.candidates(proposals, valid, gt_boxes, gt_valid)
        own = proposals.shape[1]
        used_keys, counts = 0, ()
        cls_total, reg_total, mask_total = 0.0, 0.0, ops.zeros((), proposals.dtype)
        for stage in range(len(self.bbox_losses)):
            n = valid.shape[1]
            sampler = self.rcnn_samplers[stage]
            index, used, positive, gt_index = sampler(
                boxes, valid, gt_boxes, gt_valid, ignore_boxes, keys[:, used_keys : used_keys + n]
            )
            used_keys += n
            rois, targets, labels = match_targets(boxes, gt_boxes, gt_labels, index, positive, gt_index)
            logits, deltas = d.bbox_heads[stage](self.scale_gradient(d.roi_extractor(features, rois, used > 0)))
            cls_loss, reg_loss = self.bbox_losses[stage](
                logits,
                deltas,
                rois.reshape(-1, 4),
                labels.reshape(-1),
                targets.reshape(-1, 4),
                used.reshape(-1),
                positive.reshape(-1),
                total_of(totals, 2 * stage + 1),
            )
            counts += (used.sum(), positive.sum())
            weight = self.stage_weights[stage]
            cls_total, reg_total = cls_total + weight * cls_loss, reg_total + weight * reg_loss
            if stage < len(self.mask_losses):
                mask_weight = weight if len(self.mask_losses) > 1 else 1.0
                total = total_of(totals, 2 * stage + 2)
                mask_loss = self.mask_of(stage, features, rois, targets, labels, gt_index, positive, gt_masks, total)
                mask_total = mask_total + mask_weight * mask_loss
            if stage + 1 < len(self.bbox_losses):
                boxes = d.refine(stage, logits, deltas, rois, image_size)
                valid = ops.logical_and(used > 0, (boxes[..., 2:] - boxes[..., :2]).min(axis=-1) > 0)
                if self.resample:
                    # ground truth that was drawn as a box comes back whole, not refined
                    boxes, valid = self.candidates(boxes, ops.logical_and(valid, index < own), gt_boxes, gt_valid)
                    own = rois.shape[1]
        return (cls_total, reg_total, mask_total), counts

    def mask_of(
        self,
        stage: int,
        features: tuple[Tensor, ...],
        rois: Tensor,
        targets: Tensor,
        labels: Tensor,
        gt_index: Tensor,
        positive: Tensor,
        gt_masks: Tensor,
        total: Tensor | None,
    ) -> Tensor:
        """The mask loss of a stage's sample; positives come first, so the first max_positives rows hold them all."""
        n = min(self.rcnn_samplers[stage].max_positives, positive.shape[1])
        return self.mask_losses[stage](
            features, rois[:, :n], targets[:, :n], labels[:, :n], gt_index[:, :n], positive[:, :n], gt_masks, total
        )

    def scale_gradient(self, x: Tensor) -> Tensor:
        """x, whose gradient is multiplied by feature_gradient."""
        if self.feature_gradient == 1.0:
            return x
        return self.feature_gradient * x + ops.stop_gradient((1.0 - self.feature_gradient) * x)
