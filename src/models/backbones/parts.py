"""What the backbones share: convolutions, batch norms that may be frozen or folded, and the run through the stages."""

from collections.abc import Mapping, Sequence

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import HeNormal

from src.models.graph_writer import GraphWriter
from src.ops.conv import Conv2d

__all__ = ["ChannelBias", "NormMaker", "Shapes", "StagedBackbone", "conv", "conv_norm", "freeze"]

Shapes = Mapping[str, tuple[int, ...]]  # of parameters by name


def conv(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, same_padding: bool = False
) -> Conv2d:
    """A convolution without bias, padded to keep the size at stride 1; `same_padding`: as SamePaddedConv2d."""
    # HeNormal's fan_out counts all output channels, which a depthwise filter doesn't feed
    fan = "fan_in" if groups > 1 else "fan_out"
    init = HeNormal(mode=fan, nonlinearity="relu")
    kind = SamePaddedConv2d if same_padding and stride == 2 else Conv2d
    return kind(in_channels, out_channels, kernel, stride, group=groups, weight_init=init)


class SamePaddedConv2d(Conv2d):
    """A convolution in MindSpore's and TensorFlow's padding mode `same`: of stride 2, a 3x3 kernel on maps of even
    sides is padded below and on the right alone.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, **options):
        super().__init__(in_channels, out_channels, kernel_size, stride, **options)
        self.custom, self.pad_mode, self.padding, self.together = False, "same", 0, 0
        self.conv2d = ops.Conv2D(out_channels, kernel_size, pad_mode="same", stride=stride, group=self.group)


def freeze(cell: nn.Cell) -> None:
    """Takes every parameter of `cell` out of training and lets its batch norms use their running statistics."""
    for p in cell.get_parameters():
        p.requires_grad = False
    for _, c in cell.cells_and_names():
        if isinstance(c, nn.BatchNorm2d):
            c.use_batch_statistics = False
        elif hasattr(c, "folded"):
            c.folded = True


class ChannelBias(nn.Cell):
    """What is left of a batch norm whose scale has gone into its convolution's weights: bias (C,), for conv_norm."""

    def __init__(self, bias: Parameter):
        super().__init__()
        self.bias = bias


def conv_norm(x: Tensor, conv: Conv2d, norm: nn.BatchNorm2d, folded: bool, relu: bool = False) -> Tensor:
    """norm(conv(x)), then ReLU if `relu`.

    `folded`: as one convolution with scaled weights, for a norm that is a constant scale and shift. That saves a pass
    over the map and, in training, keeping the map for the norm's gradient.
    """
    if isinstance(norm, ChannelBias):
        return conv.convolve(x, conv.weight, norm.bias, relu)
    if not folded:
        y = norm(conv(x))
        if conv.half:
            y = y.astype(ms.float16)
        return ops.relu(y) if relu else y
    scale = norm.gamma * ops.rsqrt(norm.moving_variance + norm.eps)
    # Broadcast first: where Mul broadcasts itself, MindSpore's CPU kernel keeps two index lists of 8 bytes a weight.
    factor = ops.broadcast_to(scale.reshape(-1, 1, 1, 1), conv.weight.shape)
    return conv.convolve(x, conv.weight * factor, norm.beta - norm.moving_mean * scale, relu)


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


class StagedBackbone(nn.Cell):
    """A stem and stages, some of them frozen; a subclass makes them and says in `stem` how the stem runs, and in
    `onnx_stem` how ONNX's operators say that; so do the stages' blocks in `onnx`.
    """

    def add_stages(self, stages: Sequence[nn.Cell], out_indices: Sequence[int], frozen_stages: int) -> None:
        """Takes the stages as layer1, layer2, ..., and freezes the stem (conv1, bn1) and the first `frozen_stages`."""
        # named one by one, not as a CellList: the names are the published ones
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
        x = self.stem(x)
        if self.frozen_stages == 0:
            x = ops.stop_gradient(x)
        outputs = ()  # type: tuple[Tensor, ...]
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i + 1 == self.frozen_stages:
                x = ops.stop_gradient(x)
            if i in self.out_indices:
                outputs += (x,)
        return outputs

    def onnx(self, g: GraphWriter, x: str) -> list[str]:
        """The maps in ONNX's operators."""
        x = self.onnx_stem(g, x)
        outputs = []
        for stage in self.stages:
            for block in stage:
                x = block.onnx(g, x)
            outputs.append(x)
        return [outputs[i] for i in self.out_indices]
