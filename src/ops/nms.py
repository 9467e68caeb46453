"""Greedy non-maximum suppression within groups (levels of a pyramid, or classes), for a whole batch."""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.ops.library import custom_operator_path, for_devices
from src.ops.overlap import iou
from src.runtime.newer import zip_equal

__all__ = ["BatchedNMS", "float32_below"]

_LEAST = -65504.0  # float16's least number
_AT_ONCE = 2864  # boxes that NMSWithMask takes on Ascend 910 and 310P
_SCALE = 1 / 16  # of boxes that it is given: a canvas's area is within float16, a power of two changes no digit
_PICK_ROWS = 512  # rows of pairs of boxes that are compared at a time: bounds the intermediates' memory


class BatchedNMS(nn.Cell):
    """Keeps, best score first, each box that no better kept box of its group overlaps by IoU > threshold.

    Plain IoU (width = x2 - x1), as torchvision.ops.batched_nms, except that groups are told apart by their number and
    not by an offset to the boxes. Boxes without an area overlap nothing.

    Args:
        iou_threshold: in [0, 1].
        max_output: M, rows of the result; may be larger than the number of boxes.
        builtin: use standard MindSpore operators only. The result is the same, or nearly so: where Ascend computes
            NMSWithMask and TopK in float16; and on a CPU without the library, where boxes of other groups are moved
            apart, which rounds them (see _OffsetNMS).
        runs: lengths of runs of boxes, N in all, each a group of its own whose valid boxes come best first.

    Inputs:
        boxes: (B, N, 4) float32, x1 y1 x2 y2.
        scores: (B, N) float32, above -65504. A score that is NaN counts as invalid.
        groups: (B, N) int32.
        valid: (B, N) bool. Other boxes are neither kept nor suppress any.

    Returns:
        indices: (B, M) int32 into N, by score descending, ties by lower index; 0 past the kept boxes.
        kept: (B, M) bool.
    """

    def __init__(self, iou_threshold: float, max_output: int, builtin: bool = False, runs: Sequence[int] = ()) -> None:
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
        elif runs:
            self.suppress = _RunsNMS(iou_threshold, max_output, runs)
        elif builtin or for_devices():
            self.suppress = _PickingNMS(iou_threshold, max_output)
        else:
            self.suppress = _OffsetNMS(iou_threshold, max_output)

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


class _RunsNMS(nn.Cell):
    """``ops.NMSWithMask`` on each run of boxes, by default all, and on no more at a time than Ascend's takes."""

    def __init__(self, iou_threshold: float, max_output: int, runs: Sequence[int] = ()) -> None:
        super().__init__()
        self.max_output, self.threshold = max_output, float32_below(iou_threshold)
        self.nms = ops.NMSWithMask(self.threshold)
        self.top_k = ops.TopK(sorted=True)
        ends = np.cumsum(runs).tolist() or [None]
        self.runs = tuple(zip_equal([0, *ends[:-1]], ends))

    def construct(self, boxes, scores, groups, valid):
        valid = ops.logical_and(valid, scores == scores)  # NaN differs from itself
        boxes = ops.select(ops.broadcast_to(valid.expand_dims(-1), boxes.shape), boxes, ops.zeros_like(boxes))
        found = ()  # type: tuple[Tensor, ...]
        for b in range(scores.shape[0]):
            parts = ()  # type: tuple[Tensor, ...]
            for begin, end in self.runs:
                parts += (self.run(boxes[b, begin:end], valid[b, begin:end]),)
            found += (ops.concat(parts, 0),)
        kept = ops.stack(found)
        # of all, because TopK keeps equal values in order only then
        _, order = self.top_k(ops.select(kept, scores, ops.full_like(scores, _LEAST)), scores.shape[1])
        order = order[:, : self.max_output]
        kept = ops.gather_elements(kept.astype(ms.int32), 1, order) > 0
        return _rows(ops.select(kept, order, ops.zeros_like(order)), kept, self.max_output)

    def run(self, boxes: Tensor, valid: Tensor) -> Tensor:
        """(N, 4) best first and (N,) bool -> (N,) bool, those kept."""
        parts = ()  # type: tuple[Tensor, ...]
        for begin in range(0, boxes.shape[0], _AT_ONCE):
            here, usable = boxes[begin : begin + _AT_ONCE], valid[begin : begin + _AT_ONCE]
            for i in range(len(parts)):
                before = boxes[i * _AT_ONCE : (i + 1) * _AT_ONCE]
                usable = ops.logical_and(usable, ops.logical_not(self.suppressed(before, parts[i], here)))
            here = ops.select(ops.broadcast_to(usable.expand_dims(-1), here.shape), here, ops.zeros_like(here))
            # All different, also in float16, so that NMSWithMask's own sort, where it has one, changes nothing.
            size = here.shape[0]
            rank = ops.arange(size // 2, size // 2 - size, -1).astype(ms.float32)
            _, _, mask = self.nms(ops.concat((here * _SCALE, rank.reshape((-1, 1))), -1))
            parts += (ops.logical_and(mask, usable),)
        return ops.concat(parts, 0)

    def suppressed(self, before: Tensor, kept: Tensor, boxes: Tensor) -> Tensor:
        """Which of `boxes` (N, 4) one of `before` (M, 4) that is `kept` (M,) suppresses, (N,) bool."""
        shape = (4, before.shape[0], boxes.shape[0])
        rows = ops.broadcast_to(ops.transpose(before, (1, 0)).expand_dims(2), shape)
        columns = ops.broadcast_to(ops.transpose(boxes, (1, 0)).expand_dims(1), shape)
        return (iou(rows, columns) * kept.astype(ms.float32).expand_dims(1)).max(axis=0) > self.threshold


class _OffsetNMS(nn.Cell):
    """``ops.NMSWithMask`` on boxes that are moved apart by group: the fastest of standard operators on a CPU.

    Groups are laid out on a square grid, so coordinates grow by up to ceil(sqrt(groups)) times the largest coordinate
    and lose that much of float32's 24 bits: with 80 classes on a 1280-pixel canvas a coordinate is rounded to 2^-10
    pixels (rounding a pair's IoU by some 1e-4 for boxes of 16 pixels). A pair whose IoU is that close to the threshold
    can be decided otherwise than in the C++ operator. Group numbers must not be negative and, together with the canvas,
    must leave float32 a fraction: below some 10,000.
    """

    def __init__(self, iou_threshold: float, max_output: int) -> None:
        super().__init__()
        self.max_output = max_output
        self.order, self.nms = _BestFirst(), _RunsNMS(iou_threshold, max_output)

    def construct(self, boxes, scores, groups, valid):
        count = scores.shape[1]
        order, boxes, groups, valid = self.order(boxes, scores, groups, valid)
        boxes = ops.select(ops.broadcast_to(valid.expand_dims(-1), boxes.shape), boxes, ops.zeros_like(boxes))
        boxes = boxes - ops.minimum(boxes.min(), 0.0)
        groups = ops.select(valid, groups.astype(ms.float32), ops.zeros_like(scores))
        side = ops.ceil(ops.sqrt(groups.max() + 1.0))
        pitch = ops.ceil(boxes.max()) + 1.0
        row = ops.floor((groups + 0.5) / side)
        offset = ops.stack((groups - row * side, row), -1) * pitch
        places = ops.broadcast_to(ops.arange(count, 0, -1).astype(ms.float32).expand_dims(0), scores.shape)
        indices, kept = self.nms(boxes + ops.concat((offset, offset), -1), places, groups, valid)
        indices = ops.gather_elements(order, 1, indices)
        return ops.select(kept, indices, ops.zeros_like(indices)), kept


class _BestFirst(nn.Cell):
    """Boxes, groups and valid in the order of scores, those that aren't valid last; and that order, (B, N) int32."""

    def __init__(self) -> None:
        super().__init__()
        self.top_k = ops.TopK(sorted=True)

    def construct(self, boxes, scores, groups, valid):
        valid = ops.logical_and(valid, scores == scores)  # NaN differs from itself
        # Of all N, because TopK keeps equal values in order only then; not infinity, which CUDA's and older Ascend
        # kernels of TopK don't bear.
        _, order = self.top_k(ops.select(valid, scores, ops.full_like(scores, _LEAST)), scores.shape[1])
        valid = ops.gather_elements(valid.astype(ms.int32), 1, order) > 0
        boxes = ops.gather_elements(boxes, 1, ops.broadcast_to(order.expand_dims(-1), boxes.shape))
        return order, boxes, ops.gather_elements(groups, 1, order), valid


class _PickingNMS(nn.Cell):
    """Takes the best box left, and leaves out those of its group that it overlaps, once for each row of the result.

    Elementwise operators alone, which are float32 on every device, and no offsets: where NMSWithMask computes in
    float16, those of 80 classes would round a box's corners to 8 pixels.
    """

    def __init__(self, iou_threshold: float, max_output: int) -> None:
        super().__init__()
        self.max_output, self.threshold = max_output, float32_below(iou_threshold)
        self.order, self.least = _BestFirst(), ops.ReduceMin()

    def construct(self, boxes, scores, groups, valid):
        batch, count = scores.shape
        order, boxes, groups, valid = self.order(boxes, scores, groups, valid)
        # of each image what is left, by row of `pairs`; its last row stands for nothing left
        none = batch * count
        rows = ops.arange(none).astype(ms.float32).reshape((batch, count))
        left = ops.select(valid, rows, ops.full_like(rows, none))
        pairs = self.pairs(boxes, groups)
        picked = ()  # type: tuple[Tensor, ...]
        for _ in range(min(self.max_output, count)):
            best = self.least(left, 1).astype(ms.int32)
            picked += (best,)
            left = ops.maximum(left, ops.gather(pairs, best, 0))
        best = ops.stack(picked, 1)
        kept = best < none
        place = ops.select(kept, best - ops.arange(batch).astype(ms.int32).expand_dims(1) * count, ops.zeros_like(best))
        indices = ops.gather_elements(order, 1, place)
        return _rows(ops.select(kept, indices, ops.zeros_like(indices)), kept, self.max_output)

    def pairs(self, boxes: Tensor, groups: Tensor) -> Tensor:
        """Of (B, N, 4) and (B, N), (B * N + 1, N) float32: B * N where a row's box, when it is taken, leaves a column's
        out, or is that box, else 0; the last row is zero.
        """
        batch, count = groups.shape
        boxes = ops.transpose(boxes, (2, 0, 1))
        place = ops.arange(count).astype(ms.int32)
        parts = ()  # type: tuple[Tensor, ...]
        for begin in range(0, count, _PICK_ROWS):
            rows = boxes[:, :, begin : begin + _PICK_ROWS].expand_dims(3)
            shape = (4, batch, rows.shape[2], count)
            over = iou(ops.broadcast_to(rows, shape), ops.broadcast_to(boxes.expand_dims(2), shape)) > self.threshold
            same = groups[:, begin : begin + _PICK_ROWS].expand_dims(2) == groups.expand_dims(1)
            own = place[begin : begin + _PICK_ROWS].expand_dims(1) == place.expand_dims(0)
            gone = ops.logical_or(ops.logical_and(over, same), own.expand_dims(0))
            parts += (gone.astype(ms.float32),)
        rows = ops.concat(parts, 1).reshape((batch * count, count)) * (batch * count)
        return ops.concat((rows, ops.zeros((1, count), ms.float32)), 0)


def _rows(indices: Tensor, kept: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Both (B, N) filled up to `count` columns."""
    missing = count - indices.shape[1]
    if missing <= 0:
        return indices, kept
    shape = (indices.shape[0], missing)
    return ops.concat((indices, ops.zeros(shape, ms.int32)), 1), ops.concat((kept, ops.zeros(shape, ms.bool_)), 1)
