"""Soft non-maximum suppression within groups: boxes that overlap better ones lose score, and stay."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.ops.overlap import iou

__all__ = ["SoftNMS"]


class SoftNMS(nn.Cell):
    """Soft-NMS (Bodla et al., 2017, arXiv:1704.04503): takes the best box left, and multiplies the score of each other
    box of its group by 1 - IoU where that is at least `iou_threshold` (linear), or by exp(-IoU^2 / sigma) (gaussian),
    until no score of at least `min_score` is left; as mmcv's soft_nms, which takes the very first box in any case.

    One loop in the graph, over what is taken: standard operators, on every device.

    Args:
        iou_threshold: in [0, 1], of linear alone.  max_output: M, rows of the result.  method: linear or gaussian.
        sigma: positive, of gaussian alone.  min_score: a score of 0 is too small in any case.

    Inputs: as BatchedNMS's, scores not negative. Returns:
        indices: (B, M) int32 into N, by changed score descending, ties by lower index; 0 past the taken boxes.
        kept: (B, M) bool.
        scores: (B, M) float32, changed; 0 past the taken boxes.
    """

    def __init__(
        self,
        iou_threshold: float,
        max_output: int,
        method: str = "linear",
        sigma: float = 0.5,
        min_score: float = 1e-3,
    ):
        super().__init__()
        self.linear, self.threshold, self.factor = method == "linear", iou_threshold, -1.0 / sigma
        self.least = max(min_score, float(np.finfo(np.float32).tiny))
        self.max_output, self.best = max_output, ops.ArgMaxWithValue(1)

    def construct(self, boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, count = scores.shape
        shape = (batch, self.max_output)
        # also without NaN
        left = ops.select(ops.logical_and(valid, scores > 0), scores, ops.zeros_like(scores))
        corners, groups = ops.transpose(boxes, (2, 0, 1)), groups.astype(ms.float32)
        place, row = ops.arange(count).astype(ms.int32).expand_dims(0), ops.arange(shape[1]).astype(ms.int32)
        indices, found, step = ops.zeros(shape, ms.int32), ops.zeros(shape, ms.float32), ops.zeros((), ms.int32)
        taken, score = self.pick(left)
        while ops.logical_and(step < self.max_output, score.max() >= self.least):
            here = ops.logical_and((row == step).expand_dims(0), (score >= self.least).expand_dims(1))
            indices = ops.select(here, ops.broadcast_to(taken.expand_dims(1), shape), indices)
            found = ops.select(here, ops.broadcast_to(score.expand_dims(1), shape), found)
            chosen = place == taken.expand_dims(1)
            left = self.reduced(left, chosen, corners, groups)
            taken, score = self.pick(left)
            step = (step + 1).astype(ms.int32)
        return ops.stop_gradient(indices), ops.stop_gradient(found > 0), ops.stop_gradient(found)

    def pick(self, left: Tensor) -> tuple[Tensor, Tensor]:
        """Of (B, N) the place of each row's largest, (B,) int32, and it."""
        taken, score = self.best(left)
        return taken.astype(ms.int32), score

    def reduced(self, left: Tensor, chosen: Tensor, corners: Tensor, groups: Tensor) -> Tensor:
        """The scores (B, N) that are left when the one of each row that is `chosen` (B, N) bool is taken; corners
        (4, B, N), groups (B, N) float32.
        """
        only = chosen.astype(ms.float32)
        box = ops.broadcast_to((corners * only).sum(2).expand_dims(2), corners.shape)
        over, ones = iou(box, corners), ops.ones_like(left)
        if self.linear:
            kept = ops.select(over >= self.threshold, 1.0 - over, ones)
        else:
            kept = ops.exp(over * over * self.factor)
        same = groups == (groups * only).sum(1).expand_dims(1)
        return left * ops.select(same, kept, ones) * (1.0 - only)
