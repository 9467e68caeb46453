"""The detector's losses as plain functions; every row has a weight, so that padding adds nothing."""

from __future__ import annotations

from mindspore import Tensor, nn, ops

__all__ = ["Normaliser", "binary_cross_entropy", "cross_entropy", "smooth_l1", "total_of"]


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Element-wise binary cross entropy of logits against targets in [0, 1], same shape, float32."""
    return ops.relu(logits) - logits * targets + ops.log1p(ops.exp(-ops.abs(logits)))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Row-wise cross entropy: logits (N, C) float32, labels (N,) int32 -> (N,)."""
    log_probability = ops.LogSoftmax(axis=-1)(logits)
    return -ops.gather_d(log_probability, 1, labels.expand_dims(1)).squeeze(1)


def smooth_l1(prediction: Tensor, target: Tensor, beta: float) -> Tensor:
    """Element-wise smooth L1 (Girshick, 2015, arXiv:1504.08083), quadratic below `beta`; 0: plain L1."""
    d = ops.abs(prediction - target)
    if beta <= 0:
        return d
    return ops.select(d < beta, 0.5 / beta * d * d, d - 0.5 * beta)


class Normaliser(nn.Cell):
    """What a batch's sum of losses is divided by: its number of samples, at least 1.

    With several ranks, the mean over ranks of a sample count, so that the mean over ranks of the quotients, and of
    their gradients, is that of all ranks' images in one batch. A mean of each rank's own means isn't: it weighs a
    sample more where there are fewer. Likewise for a batch in parts, which are then given the `total` of all of them.
    """

    def __init__(self, ranks: int = 1):
        super().__init__()
        self.ranks = ranks
        if ranks > 1:
            self.sum = ops.AllReduce()

    def construct(self, count: Tensor, total: Tensor | None = None) -> Tensor:
        """Of this rank's count (), float32, or of its `total` (); without gradient."""
        if total is not None:
            count = total
        if self.ranks > 1:
            count = self.sum(ops.stop_gradient(count).reshape(1)).reshape(())
        return ops.maximum(count, 1.0) / self.ranks


def total_of(totals: Tensor | None, i: int) -> Tensor | None:
    """The i-th total (), if there are any."""
    return None if totals is None else totals[i]
