"""Which boxes train, and on what: assignment by highest IoU, then random sampling, for both stages."""

from mindspore import Tensor, nn, ops

from src.models.box_coder import take_rows
from src.ops.matching import MaxIoUMatch

__all__ = ["AssignerSampler"]


class AssignerSampler(nn.Cell):
    """Max-IoU assigner and random sampler (Ren et al., 2015; Girshick, 2015).

    A box is positive if its IoU with some object is at least `pos_iou_thr`, or, with `match_low_quality`, if no
    valid box has a higher IoU with some object and that IoU is at least `min_pos_iou`; negative if its IoU with
    every object is below `neg_iou_thr` and less than `ignore_iof_thr` of its area lies in one crowd region; else
    it doesn't train. A positive trains on the object that it overlaps most, the first of equals.

    Two things mmdetection does otherwise (MaxIoUAssigner, RandomSampler). `to_last_object`: a box that is the best of
    some objects, as above, trains on the last of them, even where it overlaps another more. `gt_appended`: the last G
    boxes are the ground truth itself; each is positive, of its own object, and no object's best.

    Up to `num * pos_fraction` positives are drawn, then negatives up to `num` in all (and at most `neg_pos_ub`
    for each positive, if that isn't negative): those with the largest keys, so that the draw is a function of its
    inputs alone.

    Inputs: boxes (N, 4) or (B, N, 4), box_valid (B, N) bool, gt_boxes (B, G, 4), gt_valid (B, G) bool, ignore_boxes
    (B, K, 4) (all-zero rows are padding), keys (B, N) float32 in [0, 1).
    Outputs, with S = min(num, N) rows an image, positives first: index (B, S) int32 into boxes; valid (B, S) float32;
    positive (B, S) float32; gt_index (B, S) int32. None carries a gradient.
    """

    def __init__(
        self,
        num: int,
        pos_fraction: float,
        pos_iou_thr: float,
        neg_iou_thr: float,
        min_pos_iou: float = 0.0,
        match_low_quality: bool = False,
        neg_pos_ub: float = -1.0,
        ignore_iof_thr: float = 0.5,
        to_last_object: bool = False,
        gt_appended: bool = False,
        builtin_ops: bool = False,
    ):
        super().__init__()
        self.num, self.max_positives = num, int(num * pos_fraction)
        self.pos_iou_thr, self.neg_iou_thr = pos_iou_thr, neg_iou_thr
        self.match_low_quality, self.neg_pos_ub, self.ignore_iof_thr = match_low_quality, neg_pos_ub, ignore_iof_thr
        self.to_last_object, self.gt_appended = to_last_object, gt_appended
        self.match = MaxIoUMatch(min_pos_iou, builtin=builtin_ops)
        self.topk = ops.TopK(sorted=True)

    def assign(
        self, boxes: Tensor, box_valid: Tensor, gt_boxes: Tensor, gt_valid: Tensor, ignore_boxes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """positive (B, N) bool, negative (B, N) bool, gt_index (B, N) int32."""
        if self.gt_appended:
            b, g = gt_valid.shape
            n = box_valid.shape[1] - g
            positive, negative, gt_index = self.assign_boxes(
                boxes[:, :n], box_valid[:, :n], gt_boxes, gt_valid, ignore_boxes
            )
            own = ops.arange(g).astype(gt_index.dtype).expand_dims(0).broadcast_to((b, g))
            return (
                ops.concat((positive, box_valid[:, n:]), 1),
                ops.concat((negative, ops.zeros_like(gt_valid)), 1),
                ops.concat((gt_index, own), 1),
            )
        return self.assign_boxes(boxes, box_valid, gt_boxes, gt_valid, ignore_boxes)

    def assign_boxes(
        self, boxes: Tensor, box_valid: Tensor, gt_boxes: Tensor, gt_valid: Tensor, ignore_boxes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As assign, every box by its overlaps."""
        iou, gt_index, best_of, crowd = self.match(boxes, box_valid, gt_boxes, gt_valid, ignore_boxes)
        positive = iou >= self.pos_iou_thr
        if self.match_low_quality:
            positive = ops.logical_or(positive, best_of >= 0)
            if self.to_last_object:
                gt_index = ops.select(best_of >= 0, best_of, gt_index)
        positive = ops.logical_and(positive, box_valid)
        negative = ops.logical_and(iou < self.neg_iou_thr, crowd < self.ignore_iof_thr)
        negative = ops.logical_and(negative, ops.logical_and(box_valid, ops.logical_not(positive)))
        return positive, negative, gt_index

    def construct(
        self,
        boxes: Tensor,
        box_valid: Tensor,
        gt_boxes: Tensor,
        gt_valid: Tensor,
        ignore_boxes: Tensor,
        keys: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        positive, negative, gt_index = self.assign(boxes, box_valid, gt_boxes, gt_valid, ignore_boxes)
        n = keys.shape[1]
        size = min(self.num, n)
        pos_key, pos_index = self.topk(ops.select(positive, keys, -ops.ones_like(keys)), min(self.max_positives, n))
        neg_key, neg_index = self.topk(ops.select(negative, keys, -ops.ones_like(keys)), size)
        n_pos = (pos_key >= 0).astype(pos_index.dtype).sum(1, keepdims=True)
        n_neg = ops.minimum((neg_key >= 0).astype(pos_index.dtype).sum(1, keepdims=True), self.num - n_pos)
        if self.neg_pos_ub >= 0:
            n_neg = ops.minimum(n_neg, (self.neg_pos_ub * ops.maximum(n_pos, 1)).astype(n_neg.dtype))

        slot = ops.arange(size).astype(pos_index.dtype).expand_dims(0)
        is_pos = slot < n_pos
        pos_slot = ops.minimum(slot, pos_index.shape[1] - 1).broadcast_to(neg_index.shape)
        chosen_pos = take_rows(pos_index, pos_slot)
        chosen_neg = take_rows(neg_index, ops.maximum(slot - n_pos, 0))
        index = ops.select(is_pos, chosen_pos, chosen_neg)
        valid = (slot < n_pos + n_neg).astype(keys.dtype)
        return (
            ops.stop_gradient(index),
            ops.stop_gradient(valid),
            ops.stop_gradient(is_pos.astype(keys.dtype)),
            ops.stop_gradient(take_rows(gt_index, index)),
        )
