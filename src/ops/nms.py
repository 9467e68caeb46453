"""Greedy non-maximum suppression within groups (levels of a pyramid, or classes), for a whole batch."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.ops.library import custom_operator_path

__all__ = ["BatchedNMS", "float32_below"]

_LEAST = -65504.0  # float16's least number


class BatchedNMS(nn.Cell):
    """Keeps, best score first, each box that no better kept box of its group overlaps by IoU > threshold.

    Plain IoU (width = x2 - x1), as torchvision.ops.batched_nms, except that groups are told apart by their number and
    not by an offset to the boxes. Boxes without an area overlap nothing.

    Args:
        iou_threshold: in [0, 1].
        max_output: M, rows of the result; may be larger than the number of boxes.
        builtin: use standard MindSpore operators only. That version does offset boxes: groups are laid out on a square
            grid, so coordinates grow by up to ceil(sqrt(groups)) times the largest coordinate and lose that much of
            float32's 24 bits: with 80 classes on a 1280-pixel canvas a coordinate is rounded to 2^-10 pixels (rounding
            a pair's IoU by some 1e-4 for boxes of 16 pixels), with 5 levels to 2^-12. A pair whose IoU is that close
            to the threshold can be decided otherwise than in the C++ operator. Group numbers must not be negative and,
            together with the canvas, must leave float32 a fraction: below some 10,000.

    Inputs:
        boxes: (B, N, 4) float32, x1 y1 x2 y2.
        scores: (B, N) float32, above -65504. A score that is NaN counts as invalid.
        groups: (B, N) int32.
        valid: (B, N) bool. Other boxes are neither kept nor suppress any.

    Returns:
        indices: (B, M) int32 into N, by score descending, ties by lower index; 0 past the kept boxes.
        kept: (B, M) bool.
    """

    def __init__(self, iou_threshold: float, max_output: int, builtin: bool = False) -> None:
        super().__init__()
        if not 0.0 <= iou_threshold <= 1.0 or max_output < 1:
            raise ValueError("iou_threshold must be in [0, 1] and max_output positive")
        library = custom_operator_path(builtin)
        self.custom = library is not None
        if library is not None:
            # The threshold, as often as there are output rows: shape inference must depend on input shapes alone,
            # since MindSpore caches it across operators of one name.
            self.thresholds = Tensor(np.full((max_output,), float32_below(iou_threshold), np.float32))
            self.suppress = ops.Custom(f"{library}:BatchedNMS", _output_shapes, _output_dtypes, func_type="aot")
        else:
            self.suppress = _BuiltinNMS(iou_threshold, max_output)

    def construct(self, boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        boxes, scores = ops.stop_gradient(boxes), ops.stop_gradient(scores)
        if self.custom:
            indices, kept = self.suppress(boxes, scores, groups, valid, self.thresholds)
        else:
            indices, kept = self.suppress(boxes, scores, groups, valid)
        return ops.stop_gradient(indices), ops.stop_gradient(kept)


def float32_below(value: float) -> float:
    """The largest float32 that is not above ``value``: a float32 IoU exceeds either or neither of the two."""
    rounded = np.float32(value)
    if float(rounded) > value:
        rounded = np.nextafter(rounded, np.float32(-1.0))
    return float(rounded)


def _output_shapes(*shapes):
    shape = (shapes[1][0], shapes[4][0])
    return (shape, shape)


def _output_dtypes(*_):
    return (ms.int32, ms.bool_)


class _BuiltinNMS(nn.Cell):
    """``ops.NMSWithMask`` on boxes that are moved apart by group."""

    def __init__(self, iou_threshold: float, max_output: int) -> None:
        super().__init__()
        self.max_output = max_output
        self.nms = ops.NMSWithMask(float32_below(iou_threshold))
        self.top_k = ops.TopK(sorted=True)

    def construct(self, boxes, scores, groups, valid):
        batch, count = scores.shape
        valid = ops.logical_and(valid, scores == scores)  # NaN differs from itself
        # Of all N, because TopK keeps equal values in order only then; not infinity, which CUDA's and older Ascend
        # kernels of TopK don't bear.
        _, order = self.top_k(ops.select(valid, scores, ops.full_like(scores, _LEAST)), count)
        valid = ops.gather_elements(valid.astype(ms.int32), 1, order) > 0
        groups = ops.gather_elements(groups, 1, order).astype(ms.float32)
        boxes = ops.gather_elements(boxes, 1, ops.broadcast_to(order.expand_dims(-1), boxes.shape))
        boxes = ops.select(ops.broadcast_to(valid.expand_dims(-1), boxes.shape), boxes, ops.zeros_like(boxes))
        boxes = boxes - ops.minimum(boxes.min(), 0.0)
        groups = ops.select(valid, groups, ops.zeros_like(groups))
        side = ops.ceil(ops.sqrt(groups.max() + 1.0))
        pitch = ops.ceil(boxes.max()) + 1.0
        row = ops.floor((groups + 0.5) / side)
        offset = ops.stack((groups - row * side, row), -1) * pitch
        boxes = boxes + ops.concat((offset, offset), -1)
        # Places in the order are the scores here: all different, so that NMSWithMask's own sort changes nothing.
        rank = ops.arange(count, 0, -1).astype(ms.float32)
        most = min(self.max_output, count)
        indices, kept = (), ()  # type: tuple[Tensor, ...], tuple[Tensor, ...]
        for b in range(batch):
            _, _, mask = self.nms(ops.concat((boxes[b], rank.reshape((-1, 1))), -1))
            mask = ops.logical_and(mask, valid[b])
            value, place = self.top_k(ops.select(mask, rank, ops.zeros_like(rank)), most)
            found = value > 0.0
            indices += (ops.select(found, order[b][place], ops.zeros_like(place)),)
            kept += (found,)
        indices, kept = ops.stack(indices), ops.stack(kept)
        if most < self.max_output:
            missing = (batch, self.max_output - most)
            indices = ops.concat((indices, ops.zeros(missing, ms.int32)), 1)
            kept = ops.concat((kept, ops.zeros(missing, ms.bool_)), 1)
        return indices, kept
