"""Boxes: x1 y1 x2 y2 in canvas pixels, float32, width = x2 - x1; and their regression deltas."""

import math
from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn, ops

__all__ = ["BoxCoder", "clip_boxes", "take_rows"]


class BoxCoder(nn.Cell):
    """Deltas (dx, dy, dw, dh) between boxes and reference boxes (Girshick et al., 2014, arXiv:1311.2524).

    Args:
        means, stds: deltas are (raw - mean) / std.
        wh_ratio_clip: dw and dh are clamped to at most |ln(wh_ratio_clip)| before the exponential.
        clamp_both: and to at least -|ln(wh_ratio_clip)|, as mmdetection's DeltaXYWHBBoxCoder and MindSpore's
        BoundingBoxDecode do; torchvision, Detectron2 and maskrcnn-benchmark clamp from above alone.
    """

    def __init__(
        self,
        means: Sequence[float],
        stds: Sequence[float],
        wh_ratio_clip: float = 16 / 1000,
        clamp_both: bool = False,
    ):
        super().__init__()
        self.means = Tensor(np.asarray(means, np.float32))
        self.stds = Tensor(np.asarray(stds, np.float32))
        self.max_log, self.clamp_both = abs(math.log(wh_ratio_clip)), clamp_both

    def construct(self, deltas: Tensor, references: Tensor) -> Tensor:
        """Boxes (..., 4) from deltas (..., 4) and references (..., 4)."""
        d = deltas * self.stds + self.means
        centre, size = centre_size(references)
        centre = d[..., :2] * size + centre
        log_size = ops.minimum(d[..., 2:], self.max_log)
        if self.clamp_both:
            log_size = ops.maximum(log_size, -self.max_log)
        size = ops.exp(log_size) * size
        half = 0.5 * size
        return ops.concat((centre - half, centre + half), -1)

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """Deltas (..., 4) of boxes (..., 4); rows whose sides aren't positive (padding) give finite numbers."""
        centre, size = centre_size(boxes)
        ref_centre, ref_size = centre_size(references)
        ref_size = ops.maximum(ref_size, 1e-6)
        size = ops.maximum(size, 1e-6)
        raw = ops.concat(((centre - ref_centre) / ref_size, ops.log(size / ref_size)), -1)
        return (raw - self.means) / self.stds


def centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (..., 2) and sides (..., 2) of boxes (..., 4), x before y."""
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def clip_boxes(boxes: Tensor, image_size: Tensor, plus_one: bool = False) -> Tensor:
    """Boxes (B, N, 4) clipped to their images; image_size (B, 2) is (height, width) on the canvas, in pixels.

    plus_one: as the oldest R-CNNs clip, whose boxes end at their last pixel. With x2 and y2 one more, as all boxes are
    here, theirs are these same boxes; only clipping differs: a box keeps at least its image's first or last pixel.
    """
    # Broadcast first: on the CPU, minimum and maximum are 50 times slower where they broadcast themselves.
    limit = ops.concat((image_size[:, 1:], image_size[:, :1]), 1).expand_dims(1).broadcast_to(boxes.shape[:2] + (2,))
    least = ops.zeros_like(limit)
    low, high = boxes[..., :2], boxes[..., 2:]
    if plus_one:
        return ops.concat(
            (ops.maximum(ops.minimum(low, limit - 1), least), ops.maximum(ops.minimum(high, limit), least + 1)), -1
        )
    return ops.maximum(ops.minimum(boxes, ops.concat((limit, limit), -1)), ops.zeros_like(boxes))


def take_rows(x: Tensor, indices: Tensor) -> Tensor:
    """x (B, N) or (B, N, C), indices (B, S) int32 -> (B, S) or (B, S, C): each image's own rows."""
    b, n = x.shape[0], x.shape[1]
    flat = (indices + n * ops.arange(b).astype(indices.dtype).expand_dims(1)).reshape(-1)
    rows = ops.gather(x.reshape((b * n,) + x.shape[2:]), flat, 0)
    return rows.reshape(indices.shape + x.shape[2:])
