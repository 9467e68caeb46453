"""RoI features from the FPN level that fits each RoI."""

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from src.config import Roi
from src.ops.roi_align import MultiScaleRoIAlign
from src.runtime.newer import zip_equal

__all__ = ["RoIExtractor", "build_roi_extractor", "level_sides", "link"]


def _log2(x: np.ndarray) -> np.ndarray:
    """The nearest float32 to the logarithm, whichever of NumPy's loops this CPU has."""
    return np.log2(x.astype(np.float64)).astype(np.float32)


# By level_rule, the level above the finest, before rounding down, of a RoI of that side where it is finest_scale f: as
# torchvision/ops/poolers.py, detectron2/modeling/poolers.py, mmdet/models/roi_heads/roi_extractors/ and
# maskrcnn_benchmark/modeling/poolers.py compute it, in float32
LEVEL_RULES = {
    "torchvision": lambda side, f: np.float32(4) + _log2(side / (4 * f)) + np.float32(1e-6) - 2,
    "detectron2": lambda side, f: np.float32(4) + _log2(side / (4 * f) + np.float32(1e-8)) - 2,
    "mmdetection": lambda side, f: _log2(side / f + np.float32(1e-6)),
    "maskrcnn_benchmark": lambda side, f: np.float32(4) + _log2(side / (4 * f) + np.float32(1e-6)) - 2,
}


def level_sides(rule: str, finest_scale: float, num_levels: int) -> list[float]:
    """The least side (square root of area, pixels, a float32 value) of a RoI of each level but the finest."""
    # arrays: a number would be computed in float64
    level, scale = LEVEL_RULES[rule], np.array([finest_scale], np.float32)
    out = []
    for k in range(1, num_levels):
        # of positive floats those that are larger have larger bits
        low, high = (int(np.float32(finest_scale * 2**k * near).view(np.int32)) for near in (0.999, 1.001))
        while high - low > 1:
            middle = (low + high) // 2
            reached = level(np.array([middle], np.int32).view(np.float32), scale)[0] >= k
            low, high = (low, middle) if reached else (middle, high)
        out.append(min(float(np.int32(high).view(np.float32)), 3e38))
    return out


class RoIExtractor(nn.Cell):
    """RoIAlign (He et al., 2017, arXiv:1703.06870) on the level chosen by FPN's rule (arXiv:1612.03144, eq. 1).

    Args:
        out_size: side of the features.  sampling_ratio, aligned: of RoIAlign.  strides: of the levels, finest first.
        finest_scale: RoIs whose sqrt(area) is below twice this (pixels) go to the finest level, below 4 times to
        the next, and so on.  last_pixel_end: a RoI ends at its last pixel, x2 - 1, as where boxes were kept so.
        level_rule: whose rounding decides where a level begins.

    Inputs: features, a tuple of (B, C, H_l, W_l), of which the first len(strides) are used; boxes (B, N, 4) in canvas
    pixels; valid (B, N) bool. Output (B * N, C, out_size, out_size), zero for rows that aren't valid.
    """

    def __init__(
        self,
        out_size: int,
        sampling_ratio: int,
        aligned: bool,
        strides: Sequence[int],
        finest_scale: float,
        last_pixel_end: bool = False,
        builtin_ops: bool = False,
        level_rule: str = "torchvision",
    ):
        super().__init__()
        self.last_pixel_end = last_pixel_end
        self.num_levels = len(strides)
        self.level_sides = level_sides(level_rule, finest_scale, len(strides))
        self.roi_align = MultiScaleRoIAlign(out_size, sampling_ratio, aligned, tuple(strides), builtin=builtin_ops)

    def construct(self, features: tuple[Tensor, ...], boxes: Tensor, valid: Tensor) -> Tensor:
        return self.extract(features, _with_image(boxes), valid.reshape(-1))

    def passing(self, features: tuple[Tensor, ...], boxes: Tensor, valid: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The same, and the features for who uses them further, see MultiScaleRoIAlign.passing."""
        return self.extract_passing(features, _with_image(boxes), valid.reshape(-1))

    def extract(self, features: tuple[Tensor, ...], rois: Tensor, valid: Tensor) -> Tensor:
        """The same for RoIs of any images: rois (R, 5), the image's index first, and valid (R,)."""
        return self.roi_align(features[: self.num_levels], *self.placed(rois, valid))

    def extract_passing(
        self, features: tuple[Tensor, ...], rois: Tensor, valid: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Both."""
        return self.roi_align.passing(features, *self.placed(rois, valid))

    def placed(self, rois: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """These RoIs and their levels, as RoIAlign wants them."""
        side = ops.sqrt((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2]))
        level = valid.astype(mstype.int32) - 1
        for least in self.level_sides:
            level = level + ops.logical_and(side >= least, valid).astype(mstype.int32)
        if self.last_pixel_end:
            rois = ops.concat((rois[:, :3], rois[:, 3:] - 1.0), 1)
        return rois, level


def link(extractors: Sequence[RoIExtractor]) -> int:
    """Says to extractors, each of which but the last passes the maps on to the next and to nobody else, that they do,
    see MultiScaleRoIAlign.passed_to. Returns how many maps the first one reads.
    """
    for this, following in zip_equal(extractors[:-1], extractors[1:]):
        this.roi_align.passed_to(following.num_levels)
    return extractors[0].num_levels


def _with_image(boxes: Tensor) -> Tensor:
    """(B * N, 5), the image's index before each box of (B, N, 4)."""
    b, n = boxes.shape[:2]
    image = ops.arange(b).astype(boxes.dtype).reshape(b, 1, 1).broadcast_to((b, n, 1))
    return ops.concat((image, boxes), -1).reshape(-1, 5)


def build_roi_extractor(c: Roi, builtin_ops: bool) -> RoIExtractor:
    """The extractor of config.roi, or of a branch's like it."""
    layer = c.roi_layer
    return RoIExtractor(
        layer.out_size,
        layer.sampling_ratio,
        layer.aligned,
        c.featmap_strides,
        c.finest_scale,
        last_pixel_end=layer.last_pixel_end,
        builtin_ops=builtin_ops,
        level_rule=layer.level_rule,
    )
