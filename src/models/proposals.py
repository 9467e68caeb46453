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
        plus_one: see clip_boxes.  rank_by: "logits_first": logits in each level, then probabilities in NMS
        (torchvision); "logits" (Detectron2); "probabilities" (mmdetection, maskrcnn-benchmark, MindSpore's zoo). Of
        equal ones, as the probabilities of logits beyond 17 are, the first comes first, where others leave it open.
        score_thr: boxes of a lower probability are dropped before NMS, as torchvision's; 0: none.

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
        rank_by: str = "logits_first",
        builtin_ops: bool = False,
        score_thr: float = 0.0,
    ):
        super().__init__()
        self.score_thr = score_thr
        self.coder, self.min_bbox_size, self.plus_one = coder, min_bbox_size, plus_one
        self.rank_by = rank_by
        self.starts = [0, *np.cumsum(counts)[:-1].tolist()]
        self.taken = [min(nms_pre, n) for n in counts]
        levels = np.repeat(np.arange(len(counts), dtype=np.int32), self.taken)
        self.levels = Tensor(levels[None])
        self.nms = BatchedNMS(iou_threshold, max_per_img, builtin=builtin_ops, runs=self.taken)
        self.topk = ops.TopK(sorted=True)

    def construct(
        self,
        logits: tuple[Tensor, ...],
        deltas: tuple[Tensor, ...],
        anchors: Tensor,
        anchor_valid: Tensor,
        image_size: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        all_scores = ()  # type: tuple[Tensor, ...]
        all_deltas = ()  # type: tuple[Tensor, ...]
        all_index = ()  # type: tuple[Tensor, ...]
        for i in range(len(self.taken)):
            start, n = self.starts[i], logits[i].shape[1]
            score = ops.sigmoid(logits[i]) if self.rank_by == "probabilities" else logits[i]
            ranked = ops.select(anchor_valid[:, start : start + n], score, ops.full_like(score, NO_LOGIT))
            score, index = self.best(ranked, self.taken[i])
            all_scores += (score,)
            all_deltas += (take_rows(deltas[i], index),)
            all_index += (index + start,)
        score = ops.concat(all_scores, 1)
        references = ops.gather(anchors, ops.concat(all_index, 1), 0)
        boxes = clip_boxes(self.coder(ops.concat(all_deltas, 1), references), image_size, self.plus_one)
        size = boxes[..., 2:] - boxes[..., :2]
        valid = ops.logical_and(size.min(axis=-1) >= self.min_bbox_size, score > LEAST_LOGIT)
        scores = ops.sigmoid(score) if self.rank_by == "logits_first" else score
        if self.score_thr > 0:
            probability = ops.sigmoid(score) if self.rank_by == "logits" else scores
            valid = ops.logical_and(valid, probability >= self.score_thr)
        index, kept = self.nms(boxes, scores, self.levels.broadcast_to(scores.shape), valid)
        mask = kept.astype(boxes.dtype)
        proposals = take_rows(boxes, index) * mask.expand_dims(-1)
        return ops.stop_gradient(proposals), ops.stop_gradient(take_rows(scores, index) * mask), kept

    def best(self, ranked: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` largest of each row (B, N), and where they are."""
        if self.rank_by != "probabilities":
            return self.topk(ranked, count)
        # TopK keeps equal values in order only where it sorts them all
        score, index = self.topk(ranked, ranked.shape[1])
        return score[:, :count], index[:, :count]
