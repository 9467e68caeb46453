"""The detector's parts that MindSpore Lite 2.0 lacks, or has wrong, in operators that it has."""

from __future__ import annotations

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.models.norms import GroupNorm, LayerNorm
from src.models.rcnn import RCNN
from src.runtime.newer import zip_equal

__all__ = ["for_lite"]

CHANNELS_APART = 64  # of a part of a grouped convolution


def for_lite(plain: RCNN) -> RCNN:
    """Puts what Lite 2.0 runs in the place of what it lacks or has wrong, in place; `plain`: of `standard`."""
    if hasattr(plain.backbone, "maxpool"):
        plain.backbone.maxpool = StemPool(plain.backbone.maxpool.same_padding)
    for i, top_down in enumerate(plain.neck.upsample_add):
        # what copies by shape would write the map's size into the graph
        top_down.by_convolution = True
        if top_down.mean is not None:
            top_down.mean = MeanOfNext(top_down.ones.shape[0])
            # each level has one
            for p in top_down.mean.get_parameters():
                p.name = f"neck.upsample_add.{i}.{p.name}"
    for _, parent in list(plain.cells_and_names()):
        for name, cell in list(parent.name_cells().items()):
            if isinstance(cell, (GroupNorm, LayerNorm)):
                norm = LiteGroupNorm(cell) if isinstance(cell, GroupNorm) else LiteLayerNorm(cell)
                if isinstance(parent, nn.SequentialCell):
                    parent[int(name)] = norm
                else:
                    setattr(parent, name, norm)
                # placed in a parent that has no name of its own, they would share their names with others
                for p in norm.get_parameters():
                    p.name = cell.gamma.name.removesuffix("gamma") + p.name.removeprefix(f"{name}.")
    for _, parent in list(plain.backbone.cells_and_names()):
        for name, cell in list(parent.name_cells().items()):
            if isinstance(cell, nn.Conv2d) and 1 < cell.group < cell.in_channels:
                apart = GroupsApart(cell)
                names = [p.name for p in apart.get_parameters()]
                setattr(parent, name, apart)
                # likewise
                for p, own in zip_equal(apart.get_parameters(), names):
                    p.name = own
    return plain


class StemPool(nn.Cell):
    """The backbone's 3x3 max pool of stride 2 and padding 1, after ReLU, without a constant of the map's size."""

    def __init__(self, same_padding: bool):
        super().__init__()
        before = 0 if same_padding else 1
        self.pad = ops.Pad(((0, 0), (0, 0), (before, 1), (before, 1)))
        self.pool = nn.MaxPool2d(3, 2, pad_mode="valid")

    def construct(self, x: Tensor) -> Tensor:
        return self.pool(self.pad(x))


class MeanOfNext(nn.Cell):
    """nn.AvgPool2d(2, 1, pad_mode="same") of (B, C, H, W), which Lite lacks, for maps of any size: sums over 2x2 cells,
    of which there are fewer at the right and lower borders, divided by the same sums of ones.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.one = nn.Conv2d(channels, 1, 1, has_bias=True, weight_init="zeros", bias_init="ones")
        self.pad = ops.Pad(((0, 0), (0, 0), (0, 1), (0, 1)))
        self.sum = nn.Conv2d(channels, channels, 2, pad_mode="valid", group=channels, weight_init="ones")
        self.count = nn.Conv2d(1, 1, 2, pad_mode="valid", weight_init="ones")

    def construct(self, x: Tensor) -> Tensor:
        return self.sum(self.pad(x)) / self.count(self.pad(self.one(x)))


class LiteGroupNorm(GroupNorm):
    """Group norm without reshaping, which would write the map's size into the graph: a 1x1 convolution takes the mean
    of each group's channels.
    """

    def __init__(self, norm: GroupNorm):
        super().__init__(norm.num_channels, norm.eps)
        channels = norm.num_channels
        group = np.arange(channels) // (channels // norm.num_groups)
        weight = (group[:, None] == group) / np.float32(channels // norm.num_groups)
        self.means = nn.Conv2d(channels, channels, 1, weight_init=Tensor(weight[:, :, None, None].astype(np.float32)))
        self.mean, self.sqrt = ops.ReduceMean(keep_dims=True), ops.Sqrt()
        shape = (1, channels, 1, 1)
        self.gamma = Parameter(Tensor(norm.gamma.asnumpy().reshape(shape)))
        self.beta = Parameter(Tensor(norm.beta.asnumpy().reshape(shape)))

    def construct(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        difference = x - self.means(self.mean(x, (2, 3)))
        variance = self.means(self.mean(difference * difference, (2, 3)))
        return difference / self.sqrt(variance + self.eps) * self.gamma + self.beta


class LiteLayerNorm(LayerNorm):
    """Layer norm over channels without turning the map, whose operator and order of axes Lite and the C++ program's own
    runtime lack.
    """

    def __init__(self, norm: LayerNorm):
        (channels,) = norm.normalized_shape
        super().__init__(channels, norm.epsilon)
        self.mean, self.sqrt = ops.ReduceMean(keep_dims=True), ops.Sqrt()
        shape = (1, channels, 1, 1)
        self.gamma = Parameter(Tensor(norm.gamma.asnumpy().reshape(shape)))
        self.beta = Parameter(Tensor(norm.beta.asnumpy().reshape(shape)))

    def construct(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        difference = x - self.mean(x, 1)
        variance = self.mean(difference * difference, 1)
        return difference / self.sqrt(variance + self.epsilon) * self.gamma + self.beta


class GroupsApart(nn.Cell):
    """A grouped 3x3 convolution as dense ones of some of its groups each: Lite 2.0's own gives wrong numbers, without
    an error, for maps of another size than the graph was exported with.

    A 1x1 convolution picks each part's channels: what slices them would write the map's size into the graph.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        weight = conv.weight.asnumpy()
        outputs, inputs = weight.shape[0] // conv.group, weight.shape[1]
        # one group of few channels each would be many small products, more groups together more zeros
        together = min(conv.group, max(1, CHANNELS_APART // inputs))
        picks, convs = [], []
        for first in range(0, conv.group, together):
            groups = range(first, min(first + together, conv.group))
            pick = np.zeros((len(groups) * inputs, conv.in_channels, 1, 1), np.float32)
            dense = np.zeros((len(groups) * outputs, len(groups) * inputs, *conv.kernel_size), np.float32)
            pick[np.arange(len(pick)), first * inputs + np.arange(len(pick))] = 1
            for i, g in enumerate(groups):
                rows, columns = slice(i * outputs, (i + 1) * outputs), slice(i * inputs, (i + 1) * inputs)
                dense[rows, columns] = weight[g * outputs : (g + 1) * outputs]
            picks.append(nn.Conv2d(conv.in_channels, len(pick), 1, weight_init=Tensor(pick)))
            options = {"stride": conv.stride, "pad_mode": conv.pad_mode, "padding": conv.padding}
            convs.append(nn.Conv2d(dense.shape[1], len(dense), conv.kernel_size, weight_init=Tensor(dense), **options))
        self.picks, self.convs = nn.CellList(picks), nn.CellList(convs)
        self.concat, self.relu, self.relu6 = ops.Concat(1), nn.ReLU(), nn.ReLU6()
        self.weight, self.half = None, False
        for p in self.get_parameters():
            p.name = f"{conv.weight.name}.{p.name}"

    def convolve(self, x: Tensor, weight: None, bias: Tensor, relu: bool, relu6: bool = False) -> Tensor:
        """Conv2d's, with the weight in the parts."""
        y = ops.bias_add(self.plain(x), bias)
        if relu6:
            return self.relu6(y)
        return self.relu(y) if relu else y

    def plain(self, x: Tensor) -> Tensor:
        """Conv2d's, without bias."""
        parts = ()  # type: tuple[Tensor, ...]
        for pick, conv in zip(self.picks, self.convs):  # noqa: B905 - graph mode knows no `strict`
            parts += (conv(pick(x)),)
        return self.concat(parts)
