"""The detector's losses as plain functions; every row has a weight, so that padding adds nothing."""

from mindspore import Tensor, ops

__all__ = ["binary_cross_entropy", "cross_entropy", "smooth_l1"]


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
