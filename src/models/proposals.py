"""From RPN outputs to proposals."""

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn, ops

from src.models.box_coder import BoxCoder, clip_boxes, take_rows
from src.ops.nms import BatchedNMS

__all__ = ["LEAST_LOGIT", "NO_LOGIT", "ProposalGenerator"]

# of an anchor that takes no part, and what every other one's is above: float16's range holds them
NO_LOGIT, LEAST_LOGIT = -65504.0, -60000.0


class ProposalGenerator(nn.Cell):
    """The best boxes of each level, decoded, clipped, and non-maximum-suppressed level by level.

    Args:
        coder: of the RPN.  counts: anchors a level.  nms_pre: boxes a level before NMS.  max_per_img: proposals an
        image.  iou_threshold: of NMS.  min_bbox_size: boxes with a smaller side (pixels) are dropped.
        plus_one: see clip_boxes.  nms_by_logits: NMS ranks boxes by logits (Detectron2) instead of probabilities
        (torchvision, mmdetection), of which those of logits beyond 17 are all 1. Each level's best are taken by
        logits in any case: an order that ranking by probabilities allows, and torchvision's.

    Inputs: the head's logits and deltas (tuples by level), anchors (N, 4), anchor_valid (B, N), image_size (B, 2)
    (height, width). Outputs: proposals (B, max_per_img, 4), best first, all-zero where not valid; what they were
    ranked by (B, max_per_img); valid (B, max_per_img) bool. No gradient.
    """

    def __init__(
        self,
        coder: BoxCoder,
        counts: Sequence[int],
        nms_pre: int,
        max_per_img: int,
        iou_threshold: float,
        min_bbox_size: float,
        plus_one: bool = False,
        nms_by_logits: bool = False,
        builtin_ops: bool = False,
    ):
        super().__init__()
        self.coder, self.min_bbox_size, self.plus_one = coder, min_bbox_size, plus_one
        self.nms_by_logits = nms_by_logits
        self.starts = [0, *np.cumsum(counts)[:-1].tolist()]
        self.taken = [min(nms_pre, n) for n in counts]
        levels = np.repeat(np.arange(len(counts), dtype=np.int32), self.taken)
        self.levels = Tensor(levels[None])
        self.nms = BatchedNMS(iou_threshold, max_per_img, builtin=builtin_ops)
        self.topk = ops.TopK(sorted=True)

    def construct(
        self,
        logits: tuple[Tensor, ...],
        deltas: tuple[Tensor, ...],
        anchors: Tensor,
        anchor_valid: Tensor,
        image_size: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        all_scores, all_deltas, all_index = (), (), ()
        for i in range(len(self.taken)):
            start, n = self.starts[i], logits[i].shape[1]
            ranked = ops.select(anchor_valid[:, start : start + n], logits[i], ops.full_like(logits[i], NO_LOGIT))
            score, index = self.topk(ranked, self.taken[i])
            all_scores += (score,)
            all_deltas += (take_rows(deltas[i], index),)
            all_index += (index + start,)
        logit = ops.concat(all_scores, 1)
        references = ops.gather(anchors, ops.concat(all_index, 1), 0)
        boxes = clip_boxes(self.coder(ops.concat(all_deltas, 1), references), image_size, self.plus_one)
        size = boxes[..., 2:] - boxes[..., :2]
        valid = ops.logical_and(size.min(axis=-1) >= self.min_bbox_size, logit > LEAST_LOGIT)
        scores = logit if self.nms_by_logits else ops.sigmoid(logit)
        index, kept = self.nms(boxes, scores, self.levels.broadcast_to(scores.shape), valid)
        mask = kept.astype(boxes.dtype)
        proposals = take_rows(boxes, index) * mask.expand_dims(-1)
        return ops.stop_gradient(proposals), ops.stop_gradient(take_rows(scores, index) * mask), kept
