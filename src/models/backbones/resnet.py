"""ResNet (He et al., 2016, arXiv:1512.03385) and ResNeXt (Xie et al., 2017, arXiv:1611.05431) backbones.

v1 strides in a stage's first 1x1 convolution (the paper, Caffe2, Detectron2's R-50), v1.5 in its 3x3
(torchvision, mmdetection). Parameter names follow torchvision's: `layer1.0.conv1.weight`, with batch norm's
four named as MindSpore names them (gamma, beta, moving_mean, moving_variance).
"""

from collections.abc import Sequence

from mindspore import Tensor, nn, ops
from mindspore.common.initializer import HeNormal

from src.ops.conv import SameConv2d

__all__ = ["NormMaker", "RESNET_BLOCKS", "ResNet", "conv", "conv_norm", "freeze"]

RESNET_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded to keep the size at stride 1."""
    # HeNormal's fan_out counts all output channels, which a depthwise filter doesn't feed
    fan = "fan_in" if groups > 1 else "fan_out"
    init = HeNormal(mode=fan, nonlinearity="relu")
    if kernel > 1 and stride == 1 and groups == 1:
        return SameConv2d(in_channels, out_channels, kernel, weight_init=init)
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel,
        stride,
        pad_mode="pad",
        padding=kernel // 2,
        group=groups,
        has_bias=False,
        weight_init=init,
    )


def freeze(cell: nn.Cell) -> None:
    """Takes every parameter of `cell` out of training and lets its batch norms use their running statistics."""
    for p in cell.get_parameters():
        p.requires_grad = False
    for _, c in cell.cells_and_names():
        if isinstance(c, nn.BatchNorm2d):
            c.use_batch_statistics = False
        elif hasattr(c, "folded"):
            c.folded = True


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, folded: bool) -> Tensor:
    """norm(conv(x)); `folded`: as one convolution with scaled weights, for a norm that is a constant scale and shift.

    Folding saves a pass over the map and, in training, keeping the map for the norm's gradient.
    """
    if not folded:
        return norm(conv(x))
    scale = norm.gamma * ops.rsqrt(norm.moving_variance + norm.eps)
    y = conv.conv2d(x, conv.weight * scale.reshape(-1, 1, 1, 1))
    return ops.bias_add(y, norm.beta - norm.moving_mean * scale)


class NormMaker:
    """Makes batch norms of one kind; a plain object, so that cells needn't hand five arguments down."""

    def __init__(self, eps: float, momentum: float, use_running: bool, trained: bool):
        self.eps, self.momentum, self.use_running, self.trained = eps, momentum, use_running, trained

    def __call__(self, channels: int) -> nn.BatchNorm2d:
        bn = nn.BatchNorm2d(channels, self.eps, self.momentum, use_batch_statistics=False if self.use_running else None)
        if not self.trained:
            bn.gamma.requires_grad = bn.beta.requires_grad = False
        return bn

    @property
    def constant(self) -> bool:
        """Whether these norms stay as they are in training."""
        return self.use_running and not self.trained


class Bottleneck(nn.Cell):
    """1x1, 3x3, 1x1 convolutions and a shortcut; `width` is the 3x3's channels, the output has 4 x `planes`."""

    def __init__(
        self, in_channels: int, planes: int, width: int, stride: int, groups: int, stride_in_1x1: bool, norm: NormMaker
    ):
        super().__init__()
        out_channels = 4 * planes
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1, self.bn1 = conv(in_channels, width, 1, first), norm(width)
        self.conv2, self.bn2 = conv(width, width, 3, second, groups), norm(width)
        self.conv3, self.bn3 = conv(width, out_channels, 1), norm(out_channels)
        self.relu, self.folded = nn.ReLU(), norm.constant
        self.has_projection = stride != 1 or in_channels != out_channels
        if self.has_projection:
            self.downsample = nn.SequentialCell(conv(in_channels, out_channels, 1, stride), norm(out_channels))

    def construct(self, x: Tensor) -> Tensor:
        folded = self.folded or not self.training
        y = self.relu(conv_norm(x, self.conv1, self.bn1, folded))
        y = self.relu(conv_norm(y, self.conv2, self.bn2, folded))
        y = conv_norm(y, self.conv3, self.bn3, folded)
        shortcut = conv_norm(x, self.downsample[0], self.downsample[1], folded) if self.has_projection else x
        return self.relu(y + shortcut)


class StemPool(nn.Cell):
    """3x3 max pool of stride 2 and padding 1, of maps (B, C, H, W) that have passed ReLU, H and W even.

    Only the first row and column of the padding are ever seen, and after ReLU zeros serve for them; joining them on
    takes a quarter of the time of MindSpore's own padded pooling on CPU.
    """

    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(3, 2, pad_mode="valid")

    def construct(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = ops.concat((ops.zeros((b, c, 1, w), x.dtype), x), 2)
        x = ops.concat((ops.zeros((b, c, h + 1, 1), x.dtype), x), 3)
        return self.pool(x)


class ResNet(nn.Cell):
    """ResNet or ResNeXt without its classifier.

    Args:
        depth: 50, 101 or 152.
        stride_in_1x1: v1 (True) or v1.5 (False).
        groups, base_width: ResNeXt's cardinality and width of one group at stage 1 (1 and 64: ResNet).
        num_stages, out_indices: how many stages there are, and whose outputs are returned.
        frozen_stages: -1 none, 0 the stem, i stem and stages 1..i; frozen stages pass no gradient on.
        norm_eval: batch norm uses running statistics in training.  norm_grad: its scale and shift are trained.

    Input (B, 3, H, W) float32, normalised. Output: a tuple of (B, 256 * 2^i, H / 2^(i+2), W / 2^(i+2)).
    """

    def __init__(
        self,
        depth: int = 50,
        stride_in_1x1: bool = False,
        groups: int = 1,
        base_width: int = 64,
        num_stages: int = 4,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = True,
        norm_grad: bool = True,
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.9,
    ):
        super().__init__()
        norm = NormMaker(norm_eps, norm_momentum, norm_eval, norm_grad)
        self.conv1, self.bn1, self.relu = conv(3, 64, 7, 2), norm(64), nn.ReLU()
        self.maxpool, self.stem_folded = StemPool(), norm.constant or frozen_stages >= 0
        in_channels, stages = 64, []
        for i in range(num_stages):
            planes = 64 * 2**i
            width = planes * base_width // 64 * groups
            blocks = []
            for j in range(RESNET_BLOCKS[depth][i]):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(Bottleneck(in_channels, planes, width, stride, groups, stride_in_1x1, norm))
                in_channels = 4 * planes
            stages.append(nn.SequentialCell(blocks))
        # named one by one, not as a CellList: the names read layer1, layer2, ...
        for i, stage in enumerate(stages):
            setattr(self, f"layer{i + 1}", stage)
        self.stages = tuple(stages)
        self.out_indices, self.frozen_stages = tuple(out_indices), frozen_stages
        if frozen_stages >= 0:
            freeze(self.conv1)
            freeze(self.bn1)
        for stage in stages[: max(frozen_stages, 0)]:
            freeze(stage)

    def construct(self, x: Tensor) -> tuple[Tensor, ...]:
        folded = self.stem_folded or not self.training
        x = self.maxpool(self.relu(conv_norm(x, self.conv1, self.bn1, folded)))
        if self.frozen_stages == 0:
            x = ops.stop_gradient(x)
        outputs = ()
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i + 1 == self.frozen_stages:
                x = ops.stop_gradient(x)
            if i in self.out_indices:
                outputs += (x,)
        return outputs
