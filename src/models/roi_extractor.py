"""RoI features from the FPN level that fits each RoI."""

from collections.abc import Sequence

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from src.config import Roi
from src.ops.roi_align import MultiScaleRoIAlign

__all__ = ["RoIExtractor", "build_roi_extractor"]


class RoIExtractor(nn.Cell):
    """RoIAlign (He et al., 2017, arXiv:1703.06870) on the level chosen by FPN's rule (arXiv:1612.03144, eq. 1).

    Args:
        out_size: side of the features.  sampling_ratio, aligned: of RoIAlign.  strides: of the levels, finest first.
        finest_scale: RoIs whose sqrt(area) is below twice this (pixels) go to the finest level, below 4 times to
        the next, and so on.  last_pixel_end: a RoI ends at its last pixel, x2 - 1, as where boxes were kept so.

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
    ):
        super().__init__()
        self.last_pixel_end = last_pixel_end
        self.finest_scale, self.num_levels = finest_scale, len(strides)
        self.roi_align = MultiScaleRoIAlign(out_size, sampling_ratio, aligned, tuple(strides), builtin=builtin_ops)

    def construct(self, features: tuple[Tensor, ...], boxes: Tensor, valid: Tensor) -> Tensor:
        b, n = boxes.shape[:2]
        image = ops.arange(b).astype(boxes.dtype).reshape(b, 1, 1).broadcast_to((b, n, 1))
        return self.extract(features, ops.concat((image, boxes), -1).reshape(-1, 5), valid.reshape(-1))

    def extract(self, features: tuple[Tensor, ...], rois: Tensor, valid: Tensor) -> Tensor:
        """The same for RoIs of any images: rois (R, 5), the image's index first, and valid (R,)."""
        side = ops.sqrt((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2]))
        level = ops.floor(ops.log2(ops.maximum(side / self.finest_scale, 1e-6)) + 1e-6)
        level = ops.minimum(ops.maximum(level, 0.0), self.num_levels - 1.0).astype(mstype.int32)
        level = ops.select(valid, level, -ops.ones_like(level))
        if self.last_pixel_end:
            rois = ops.concat((rois[:, :3], rois[:, 3:] - 1.0), 1)
        return self.roi_align(features[: self.num_levels], rois, level)


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
    )
