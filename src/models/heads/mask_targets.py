"""What the mask head learns: of each RoI the part of its object's mask that it shows."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

__all__ = ["MaskTargets"]

SAMPLES = 4  # along a side of a target's cell, of an outline that is known finer than to a pixel


class MaskTargets(nn.Cell):
    """Each RoI's part of its object's mask, resampled to the mask head's output by RoIAlign (He et al., 2017).

    Ground-truth masks are crops of S x S cells, never bitmaps of the image. Samples of a target's cell lie in rows and
    columns, so that RoIAlign of one crop is two matrix products: rows' weights, crop, columns' weights.

    Args:
        mask_size: side of the targets, M.
        box: what of the mask a target shows. "box": the RoI (Detectron2's and mmdetection's aligned RoIAlign).
        "shifted": half a pixel further right and down, as torchvision's, which isn't aligned and takes RoIs for a pixel
        wide at least; its checkpoints have learnt that. "last_pixel": the RoI up to its last pixel, at least one
        (maskrcnn-benchmark's crop of polygons). "whole_pixels": all pixels that corners of the RoI lie in (MindSpore's
        zoo, mmdetection 1.x).
        binary: a cell is 1 where at least half of it is the object's, else 0 (all but torchvision).
        crop: "box": crop cell (i, j) covers that part of the object's box, whose outline may be finer than pixels.
        "pixels": crops show the canvas' bitmap around the object, see src/data/transforms.py's mask_window, and a
        target's cell has as many samples as pixels, as torchvision's and mmdetection's have. Where a cell of the crop
        is one pixel, targets are theirs.

    Inputs: masks (N, S, S) uint8 0..255; index (R,) int32 into masks; rois and gt_boxes (R, 4) in canvas pixels.
    Output (R, M, M) float32 in [0, 1], without gradient.
    """

    def __init__(self, mask_size: int, box: str = "box", binary: bool = False, crop: str = "box"):
        super().__init__()
        if box not in ("box", "shifted", "last_pixel", "whole_pixels"):
            raise ValueError(f"box {box!r} is none of box, shifted, last_pixel, whole_pixels")
        if crop not in ("box", "pixels"):
            raise ValueError(f"crop {crop!r} is neither box nor pixels")
        self.mask_size, self.box, self.binary, self.pixels = mask_size, box, binary, crop == "pixels"
        self.bin = Tensor(np.arange(mask_size, dtype=np.float32).reshape(1, -1, 1))
        # for `/` MindSpore's kernel on CPU keeps two lists of 8 bytes a number
        self.divide = ops.RealDiv()
        self.product, self.product_t = ops.BatchMatMul(), ops.BatchMatMul(transpose_b=True)

    def construct(self, masks: Tensor, index: Tensor, rois: Tensor, gt_boxes: Tensor) -> Tensor:
        side = masks.shape[-1]
        low, size = self.region(rois)
        origin, cell = self.frame(gt_boxes, side)
        samples = ops.ceil(size / self.mask_size) if self.pixels else SAMPLES * ops.ones_like(size)
        # of a crop's cells the centres are at whole numbers
        low, size, samples = (low - origin) / cell - 0.5, size / cell, ops.maximum(samples, 1.0)
        down = self.weights(low[:, 1:], size[:, 1:], samples[:, 1:], side)
        across = self.weights(low[:, :1], size[:, :1], samples[:, :1], side)
        crops = ops.gather(masks, index, 0).astype(mstype.float32)
        targets = self.product_t(self.product(down, crops), across) / 255
        if self.binary:
            targets = (targets >= 0.5).astype(mstype.float32)
        return ops.stop_gradient(targets)

    def region(self, rois: Tensor) -> tuple[Tensor, Tensor]:
        """What of the image targets show: its corner and its size, each (R, 2) x, y in canvas pixels."""
        low, high = rois[:, :2], rois[:, 2:]
        if self.box == "box":
            return low, high - low
        if self.box == "shifted":
            return low + 0.5, ops.maximum(high - low, 1.0)
        if self.box == "whole_pixels":
            low, high = ops.floor(low), ops.floor(high)
        else:
            high = high - 1.0
        return low, ops.maximum(high - low, 1.0)

    def frame(self, gt_boxes: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Where the crops of objects begin and how large their cells are, each (R, 2) x, y in canvas pixels."""
        low, high = gt_boxes[:, :2], gt_boxes[:, 2:]
        if not self.pixels:
            return low, ops.maximum(high - low, 1e-6) / side
        # as mask_window has it
        origin = ops.floor(low) - 1.0
        return origin, ops.floor((ops.ceil(high) + 0.5 - origin) / side) + 1.0

    def weights(self, low: Tensor, size: Tensor, samples: Tensor, side: int) -> Tensor:
        """What each of a crop's `side` cells counts in each of M bins along an axis, (R, M, side).

        RoIs begin at low and are `size` long, in cells; a bin has `samples` of them; each (R, 1). A sample counts for
        the two cells that it lies between, the nearer one more; beyond an end, by one cell at most, for the last one.
        Sums over samples in closed form: these of an interval between two cells are neighbours in an arithmetic
        progression.
        """
        size, samples = (size / self.mask_size).expand_dims(2), samples.expand_dims(2)
        step = size / samples
        # broadcast first: where an operator broadcasts, MindSpore keeps such lists too
        shape = (low.shape[0], self.mask_size, side + 2)
        first = ops.broadcast_to(low.expand_dims(2) + size * self.bin + step * 0.5, shape)
        step, samples = ops.broadcast_to(step, shape), ops.broadcast_to(samples, shape)
        ends = ops.broadcast_to(ops.arange(-1, side + 1).astype(low.dtype), shape)
        upto = ops.minimum(ops.floor(self.divide(ends - first, step)) + 1.0, samples)
        upto = ops.maximum(upto, ops.zeros_like(upto))
        before, n, left = upto[:, :, :-1], upto[:, :, 1:] - upto[:, :, :-1], ends[:, :, :-1]
        first, step = first[:, :, :-1], step[:, :, :-1]
        rise = n * (first + step * before - left) + step * n * (n - 1.0) * 0.5
        rise = ops.select(left < 0, n, rise) * (left < side - 1).astype(n.dtype)
        return self.divide(rise[:, :, :-1] + (n - rise)[:, :, 1:], samples[:, :, :-2])
