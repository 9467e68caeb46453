"""Multi-level RoIAlign (He et al., "Mask R-CNN", 2017, section 3): one operator for all levels of a pyramid.

Two implementations with the same results: a C++ operator for the CPU (``csrc/``), and one of standard MindSpore
operators for exports, other devices and machines where the library is not built.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.ops.library import custom_operator_path

__all__ = ["MultiScaleRoIAlign", "MAX_LEVELS"]

MAX_LEVELS = 5

# The builtin adaptive version holds at most this many floats of one intermediate at a time (64 MiB).
_CHUNK_FLOATS = 1 << 24

# Parts of a pixel that ``ops.ROIAlign`` is given coordinates in. float16, where it computes so, holds 2047 pixels.
_UNIT = 32.0


class MultiScaleRoIAlign(nn.Cell):
    """Crops each RoI from the pyramid level it was assigned to; torchvision.ops.roi_align's conventions.

    Args:
        output_size: bins an axis.
        sampling_ratio: samples a bin and axis; 0: as many as the bin has cells, rounded up.
        aligned: shift by half a cell (True), or keep the RoI where it was and at least one cell large (False).
        strides: canvas pixels a cell, one a level; 1 to 5 levels.
        builtin: use standard MindSpore operators only.

    Inputs:
        features: one map a level, each (B, C, H_l, W_l) float32 or float16.
        rois: (K, 5) float32, rows of [image in the batch, x1, y1, x2, y2] in canvas pixels. Must be finite.
        levels: (K,) int32, index into ``features``; a negative one marks padding: zeros, no gradient.

    Returns:
        (K, C, output_size, output_size), float32 (float16 for float16 features). Only ``features`` have a gradient.
    """

    def __init__(
        self,
        output_size: int,
        sampling_ratio: int,
        aligned: bool,
        strides: tuple[int, ...],
        builtin: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= len(strides) <= MAX_LEVELS:
            raise ValueError(f"1 to {MAX_LEVELS} levels are possible, not {len(strides)}")
        if output_size < 1 or sampling_ratio < 0 or min(strides) <= 0:
            raise ValueError("output_size and strides must be positive, sampling_ratio not negative")
        library = custom_operator_path(builtin)
        self.output_size, self.sampling_ratio, self.aligned = output_size, sampling_ratio, aligned
        self.strides = tuple(strides)
        self.num_levels, self.missing_levels = len(strides), MAX_LEVELS - len(strides)
        if library is not None:
            self.align = _CustomRoIAlign(library, output_size, sampling_ratio, aligned, strides)
        elif sampling_ratio > 0:
            self.align = _FixedRoIAlign(output_size, sampling_ratio, aligned, strides)
        else:
            self.align = _AdaptiveRoIAlign(output_size, aligned, strides)
        if library is not None:
            self.align_passing = _PassingRoIAlign(library, output_size, sampling_ratio, aligned, strides)
        self.custom = library is not None
        self.no_map = Tensor(np.zeros((1, 1, 1, 1), np.float32))

    def construct(self, features: tuple[Tensor, ...], rois: Tensor, levels: Tensor) -> Tensor:
        return self.crops(features, rois, levels)

    def crops(self, features: tuple[Tensor, ...], rois: Tensor, levels: Tensor) -> Tensor:
        """The cell's output: in a graph a method can't call its own cell."""
        rois = ops.stop_gradient(rois)
        dtype = features[0].dtype
        maps = ()  # type: tuple[Tensor, ...]
        for feature in features:
            maps = maps + (feature.astype(ms.float32),)
        if not self.custom and rois.shape[0] == 0:
            return ops.zeros((0, maps[0].shape[1], self.output_size, self.output_size), dtype)
        if not self.custom:
            return self.align(maps, rois, levels).astype(dtype)
        for _ in range(self.missing_levels):
            maps = maps + (self.no_map,)
        return self.align(maps[0], maps[1], maps[2], maps[3], maps[4], rois, levels).astype(dtype)

    def passed_to(self, levels: int) -> None:
        """Says that of the maps that `passing` passes on the first `levels` are read by another RoIAlign, and by nobody
        else: the gradients from there are added to where they lie, those of other maps are copied. What is said again
        holds too.
        """
        if self.custom:
            self.align_passing.further = min(levels, self.align_passing.further or levels)

    def passing(self, features: tuple[Tensor, ...], rois: Tensor, levels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The same, and the features for who uses them further: their gradients from there are added up where this
        one's are computed. Sums of whole pyramids' gradients, of which three are then there at once, aren't needed.

        Features are passed on in float32, and may have more levels than `strides`, which pass untouched.
        """
        if not self.custom:
            return self.crops(features[: self.num_levels], rois, levels), features
        maps = ()  # type: tuple[Tensor, ...]
        for feature in features[: self.num_levels]:
            maps = maps + (feature.astype(ms.float32),)
        for _ in range(self.missing_levels):
            maps = maps + (self.no_map,)
        found = self.align_passing(maps[0], maps[1], maps[2], maps[3], maps[4], ops.stop_gradient(rois), levels)
        return found[0].astype(features[0].dtype), found[1 : 1 + self.num_levels] + features[self.num_levels :]


def _output_shape(*shapes):
    """Of the forward operator: 5 maps, rois, levels, config."""
    output_size = shapes[MAX_LEVELS + 2][0]
    return (shapes[MAX_LEVELS][0], shapes[0][1], output_size, output_size)


def _first_shape(*shapes):
    return shapes[0]


def _first_dtype(*dtypes):
    return dtypes[0]


def _gradient_shapes(*shapes):
    """Of the backward operator: output gradient, 5 arrays of `_sides` or placeholders, rois, levels, config."""
    channels = shapes[0][1]
    return tuple(tuple(s) if len(s) == 4 else (s[0], channels, s[1], s[2]) for s in shapes[1 : 1 + MAX_LEVELS])


def _one_number(*_):
    return (1,)


def _gradient_dtypes(*_):
    return (ms.float32,) * MAX_LEVELS


def _sides(x):
    """(B, H, W) of a map (B, C, H, W): says how large its gradient is, and lets the map go with the forward pass."""
    b, _, h, w = x.shape
    return ops.zeros((b, h, w), ms.int8)


def _all_gradients(maps, rois, levels):
    """Of the five maps' gradients; the others, which nobody uses, are zero."""
    return maps[0], maps[1], maps[2], maps[3], maps[4], ops.zeros_like(rois), ops.zeros_like(levels)


class _CustomRoIAlign(nn.Cell):
    """The C++ operator. Five maps always: a custom operator's gradient needs one fixed signature in graph mode."""

    def __init__(
        self, library: str, output_size: int, sampling_ratio: int, aligned: bool, strides: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.num_levels = len(strides)
        padded = tuple(strides) + (1,) * (MAX_LEVELS - len(strides))
        config = np.array([sampling_ratio, aligned, len(strides), *padded], np.float32)
        # A row for each bin: shape inference must depend on input shapes alone, since MindSpore caches it across
        # operators of one name.
        self.config = Tensor(np.tile(config, (output_size, 1)))
        self.forward_op = ops.Custom(f"{library}:RoIAlignForward", _output_shape, _first_dtype, func_type="aot")
        self.backward_op = ops.Custom(
            f"{library}:RoIAlignBackward", _gradient_shapes, _gradient_dtypes, func_type="aot"
        )

    def construct(self, p0, p1, p2, p3, p4, rois, levels):
        return self.forward_op(p0, p1, p2, p3, p4, rois, levels, self.config)

    def bprop(self, p0, p1, p2, p3, p4, rois, levels, out, dout):
        sides = ()  # type: tuple[Tensor, ...]
        for i, p in enumerate((p0, p1, p2, p3, p4)):
            sides += (_sides(p) if i < self.num_levels else p,)
        gradients = self.backward_op(dout, *sides, rois, levels, self.config)
        return _all_gradients(gradients, rois, levels)


class _PassingRoIAlign(_CustomRoIAlign):
    """The same, and the maps, whose gradients from further on this one's are added to, where those lie.

    Nothing tells MindSpore so. What waits for the operator is the sums' readers; and its own inputs are other
    operators' results that nobody else reads: of the first `further` maps as `passed_to` says, of the others, which
    may be a constant's zeros, copies.
    """

    def __init__(
        self, library: str, output_size: int, sampling_ratio: int, aligned: bool, strides: tuple[int, ...]
    ) -> None:
        super().__init__(library, output_size, sampling_ratio, aligned, strides)
        self.further = 0
        self.backward_add = ops.Custom(f"{library}:RoIAlignBackwardAdd", _one_number, _first_dtype, func_type="aot")
        self.copied = ops.Custom(f"{library}:CopyWeight", _first_shape, _first_dtype, func_type="aot")

    def construct(self, p0, p1, p2, p3, p4, rois, levels):
        return self.forward_op(p0, p1, p2, p3, p4, rois, levels, self.config), p0, p1, p2, p3, p4

    def bprop(self, p0, p1, p2, p3, p4, rois, levels, out, dout):
        own = ()  # type: tuple[Tensor, ...]
        for i in range(MAX_LEVELS):
            # after dout[0], so that no two copies of the same zeros are one
            copy = self.further <= i < self.num_levels
            own += (self.copied(ops.depend(dout[1 + i], dout[0])) if copy else dout[1 + i],)
        done = self.backward_add(*own, rois, levels, self.config, dout[0])
        sums = ()  # type: tuple[Tensor, ...]
        for i in range(MAX_LEVELS):
            sums += (ops.depend(own[i], done) if i < self.num_levels else own[i],)
        return _all_gradients(sums, rois, levels)


class _FixedRoIAlign(nn.Cell):
    """``ops.ROIAlign`` on every level, each RoI's level chosen afterwards. For a fixed number of samples.

    So it samples RoIs x levels, of which one level's count. What would sample less isn't the same or isn't to be had:
    rows picked by level have a shape that changes from image to image, and exports need fixed ones; shares of a fixed
    size drop RoIs where a level has more; a branch for when they suffice has the host wait for the device; all levels
    in one map have neighbours where samples beyond a level's border must be zero; and MindSpore has no operator for
    several levels.
    """

    def __init__(self, output_size: int, sampling_ratio: int, aligned: bool, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.aligned = aligned
        # Mode 1 ends a RoI at (x2 + 1) * scale and lets it be of any size: with x2 - 1 and our own shift or least
        # size it is either convention. Mode 0 would be the one that is not aligned, but its gradient is mode 1's.
        self.aligners = [ops.ROIAlign(output_size, output_size, 1.0 / (_UNIT * s), sampling_ratio, 1) for s in strides]
        self.strides = tuple(float(s) for s in strides)

    def _moved(self, rois, stride):
        """RoIs as ``ops.ROIAlign`` in mode 1 wants them."""
        image, low, high = rois[:, :1], rois[:, 1:3], rois[:, 3:]
        if self.aligned:
            low, high = low - 0.5 * stride, high - 0.5 * stride
        else:
            high = ops.maximum(high, low + stride)
        low, high = low * _UNIT, high * _UNIT - 1.0
        # The kernel leaves the crop unwritten where |x1| and |x2| are both below 0.001. In pixels that would be every
        # RoI of the first one; in these units it is one 1 / 32 pixel wide, whose end may move by 1 / 16,000.
        x1, x2 = low[:, :1], high[:, :1]
        hidden = ops.logical_and(ops.abs(x1) < 0.001, ops.abs(x2) < 0.001)
        x2 = ops.select(hidden, ops.select(x2 < 0, ops.full_like(x2, -0.001), ops.full_like(x2, 0.001)), x2)
        return ops.concat((image, low, x2, high[:, 1:]), 1)

    def construct(self, features, rois, levels):
        levels = levels.reshape((-1, 1))
        rois = ops.select(ops.broadcast_to(levels >= 0, rois.shape), rois, ops.zeros_like(rois))
        levels = levels.reshape((-1, 1, 1, 1))
        result = 0.0
        for i, align in enumerate(self.aligners):
            crops = align(features[i], self._moved(rois, self.strides[i]))
            # not a selection: its zeros would be kept, as large as the crops, in every exported file
            result = result + crops * (levels == i).astype(ms.float32)
        return result


class _AdaptiveRoIAlign(nn.Cell):
    """Any number of samples a bin, by dense matrices: rows (out x H) times map (H x W) times columns (W x out).

    ``ops.ROIAlign`` rounds the adaptive number of samples down instead of up and divides by it when it is zero.
    """

    def __init__(self, output_size: int, aligned: bool, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.output_size = output_size
        self.aligned = aligned
        self.scales = tuple(1.0 / stride for stride in strides)
        self.bins = Tensor(np.arange(output_size, dtype=np.float32).reshape(1, -1, 1))
        self.batch_matmul = ops.BatchMatMul()
        self.batch_matmul_bt = ops.BatchMatMul(transpose_b=True)

    def _axis(self, low: Tensor, high: Tensor, scale: float, length: int) -> tuple[Tensor, Tensor]:
        """(k,) pixels -> (k, out, length) sums of sample weights, and (k, 1, 1) samples a bin."""
        shift = 0.5 if self.aligned else 0.0
        start = low * scale - shift
        size = high * scale - shift - start
        if not self.aligned:
            size = ops.maximum(size, 1.0)
        size = (size / self.output_size).reshape((-1, 1, 1))
        grid = ops.maximum(ops.ceil(size), 0.0)
        step = size / ops.maximum(grid, 1.0)
        first = start.reshape((-1, 1, 1)) + self.bins * size
        cells = ops.arange(length).astype(ms.float32).reshape((1, 1, -1))
        # Samples within one cell of a cell weigh on it. Steps are half a cell or more (or there is one sample), so
        # these are at most 5 in a row; one more for the rounding of the first.
        nearest = ops.floor((cells - 1.0 - first) / ops.maximum(step, 1e-6))
        nearest = ops.maximum(ops.minimum(nearest, grid - 1.0), 0.0)
        weights = 0.0
        for i in range(6):
            sample = nearest + i
            position = first + (sample + 0.5) * size / ops.maximum(grid, 1.0)
            inside = ops.logical_and(position >= -1.0, position <= length)
            inside = ops.logical_and(inside, sample < grid).astype(ms.float32)
            position = ops.clip_by_value(position, 0.0, length - 1.0)
            weights = weights + inside * ops.maximum(1.0 - ops.abs(position - cells), 0.0)
        return weights, grid

    def _level(self, feature, rois, scale):
        """(B, C, H, W), (k, 5) -> (k, C, out, out)."""
        batch, channels, height, width = feature.shape
        count, out = rois.shape[0], self.output_size
        columns, grid_x = self._axis(rois[:, 1], rois[:, 3], scale, width)
        rows, grid_y = self._axis(rois[:, 2], rois[:, 4], scale, height)
        rows = rows / ops.maximum(grid_x * grid_y, 1.0)
        rows, columns = ops.stop_gradient(rows), ops.stop_gradient(columns)
        image = rois[:, 0].astype(ms.int32)
        parts = ()  # type: tuple[Tensor, ...]
        if batch > 8 or count * channels * height * width <= _CHUNK_FLOATS:
            # Many small maps (mask crops): a copy of its map for each RoI.
            step = max(1, _CHUNK_FLOATS // (channels * height * width))
            for k in range(0, count, step):
                maps = ops.gather(feature, image[k : k + step], 0)
                size = maps.shape[0]
                part = self.batch_matmul_bt(
                    maps.reshape((size, channels * height, width)), columns[k : k + step]
                ).reshape((size, channels, height, out))
                lines = ops.broadcast_to(
                    rows[k : k + step].reshape((size, 1, out, height)), (size, channels, out, height)
                )
                parts = parts + (self.batch_matmul(lines, part),)
            return ops.concat(parts, 0)
        flat = ops.transpose(feature, (0, 2, 1, 3)).reshape((batch, height, channels * width))
        step = max(1, _CHUNK_FLOATS // (out * channels * width))
        for k in range(0, count, step):
            lines, across = rows[k : k + step], columns[k : k + step]
            size = lines.shape[0]
            part = 0.0
            for b in range(batch):
                here = (image[k : k + step] == b).astype(ms.float32).reshape((size, 1, 1))
                part = part + ops.MatMul()((lines * here).reshape((size * out, height)), flat[b])
            part = part.reshape((size, out * channels, width))
            part = self.batch_matmul_bt(part, across).reshape((size, out, channels, out))
            parts = parts + (ops.transpose(part, (0, 2, 1, 3)),)
        return ops.concat(parts, 0)

    def construct(self, features, rois, levels):
        levels = levels.reshape((-1, 1))
        rois = ops.select(ops.broadcast_to(levels >= 0, rois.shape), rois, ops.zeros_like(rois))
        levels = levels.reshape((-1, 1, 1, 1))
        result = 0.0
        for i, scale in enumerate(self.scales):
            crops = self._level(features[i], rois, scale)
            chosen = ops.broadcast_to(levels == i, crops.shape)
            result = result + ops.select(chosen, crops, ops.zeros_like(crops))
        return result
