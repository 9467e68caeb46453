"""Which ground-truth box each box overlaps most (the MaxIoU matching of Faster R-CNN, Ren et al., 2015)."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.ops.library import custom_operator_path
from src.ops.overlap import area, intersection, iou, quotient

__all__ = ["MaxIoUMatch"]

# Ground-truth boxes the builtin version compares at a time: bounds its memory to B * N * 16 floats an intermediate.
_GT_CHUNK = 16


class MaxIoUMatch(nn.Cell):
    """For each box, its best ground-truth box; for each ground-truth box, which boxes are its best.

    IoU is inter / (area of the box + area of the ground truth - inter), in float32 and in this order, 0 for an empty
    union. No gradient.

    Args:
        min_best_iou: a box is an object's best only from this IoU on.
        builtin: use standard MindSpore operators only.

    Inputs:
        boxes: (N, 4), the same for each image, or (B, N, 4) float32, x1 y1 x2 y2.
        box_valid: (B, N) bool. Other boxes give zeros and False, and are nobody's best.
        gt_boxes: (B, G, 4) float32.
        gt_valid: (B, G) bool.
        ignore_boxes: (B, K, 4) float32, crowd regions; rows of zeros are padding.

    Returns:
        max_iou: (B, N) float32, over the valid ground truth; 0 where there is none.
        argmax: (B, N) int32 into G, the first of equals (the first valid one where all IoUs are 0); 0 where there is
            none.
        best_of: (B, N) int32 into G, the last of the valid ground truth whose best box this is: their IoU is above 0,
            at least min_best_iou, and the highest that this ground truth has with any valid box (all boxes that tie
            are its best); -1 where there is none.
        max_iof: (B, N) float32, largest share of the box's area inside one ignore box.
    """

    def __init__(self, min_best_iou: float = 0.0, builtin: bool = False) -> None:
        super().__init__()
        library = custom_operator_path(builtin)
        # an input, not an attribute: MindSpore caches what it knows of a custom operator by its name
        self.min_best_iou = Tensor(np.array([min_best_iou], np.float32))
        if library is not None:
            self.match = ops.Custom(f"{library}:MaxIoUMatch", _output_shapes, _output_dtypes, func_type="aot")
        else:
            self.match = _BuiltinMatch()

    def construct(
        self, boxes: Tensor, box_valid: Tensor, gt_boxes: Tensor, gt_valid: Tensor, ignore_boxes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        max_iou, argmax, best_of, max_iof = self.match(
            ops.stop_gradient(boxes), box_valid, ops.stop_gradient(gt_boxes), gt_valid, ignore_boxes, self.min_best_iou
        )
        return (
            ops.stop_gradient(max_iou),
            ops.stop_gradient(argmax),
            ops.stop_gradient(best_of),
            ops.stop_gradient(max_iof),
        )


def _output_shapes(*shapes):
    shape = shapes[1]
    return (shape, shape, shape, shape)


def _output_dtypes(*_):
    return (ms.float32, ms.int32, ms.int32, ms.float32)


class _BuiltinMatch(nn.Cell):
    """Ground truth by boxes, (B, g, N)."""

    def construct(self, boxes, box_valid, gt_boxes, gt_valid, ignore_boxes, min_best_iou):
        if boxes.ndim == 2:
            boxes = boxes.expand_dims(0)
        boxes = ops.transpose(boxes, (2, 0, 1)).expand_dims(2)  # (4, B or 1, 1, N)
        gt_boxes = ops.transpose(gt_boxes, (2, 0, 1)).expand_dims(-1)  # (4, B, G, 1)
        mask = box_valid.expand_dims(1)
        best = ops.full(box_valid.shape, -1.0, dtype=ms.float32)
        argmax = ops.zeros(box_valid.shape, ms.int32)
        best_of = ops.full(box_valid.shape, -1, dtype=ms.int32)
        for begin in range(0, gt_valid.shape[1], _GT_CHUNK):
            usable = ops.logical_and(mask, gt_valid[:, begin : begin + _GT_CHUNK].expand_dims(-1))
            # Broadcast first: on the CPU, minimum and maximum are 50 times slower where they broadcast themselves.
            shape = (4, *usable.shape)
            gts = ops.broadcast_to(gt_boxes[:, :, begin : begin + _GT_CHUNK], shape)
            these = ops.broadcast_to(boxes, shape)
            overlap = iou(these, gts)
            overlap = ops.select(usable, overlap, ops.full_like(overlap, -1.0))
            top = overlap.max(axis=2, keepdims=True)
            counts = ops.logical_and(top > 0.0, top >= min_best_iou)
            top = ops.select(counts, top, ops.full_like(top, 2.0))  # an IoU that no box has
            number = ops.arange(begin, begin + shape[2]).astype(ms.float32).reshape((1, -1, 1))
            these_best = ops.select(
                overlap == top, ops.broadcast_to(number, overlap.shape), ops.full_like(overlap, -1.0)
            )
            best_of = ops.maximum(best_of, these_best.max(axis=1).astype(ms.int32))
            here, which = overlap.max(axis=1), overlap.argmax(axis=1).astype(ms.int32)
            better = here > best
            argmax = ops.select(better, which + begin, argmax)
            best = ops.select(better, here, best)
        ignore_boxes = ops.transpose(ignore_boxes, (2, 0, 1)).expand_dims(-1)
        listed = ops.logical_and(mask, ops.abs(ignore_boxes).max(axis=0) > 0.0)
        shape = (4, *listed.shape)
        these = ops.broadcast_to(boxes, shape)
        iof = quotient(intersection(these, ops.broadcast_to(ignore_boxes, shape)), area(these))
        iof = ops.select(listed, iof, ops.zeros_like(iof))
        return ops.maximum(best, 0.0), argmax, best_of, iof.max(axis=1)
