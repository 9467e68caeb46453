"""What the backbones share: convolutions, and the run through the stages."""

from collections.abc import Mapping, Sequence

from mindspore import Tensor, nn, ops
from mindspore.common.initializer import HeNormal

from src.models.graph_writer import GraphWriter
from src.models.norms import freeze
from src.ops.conv import Conv2d

__all__ = ["Shapes", "StagedBackbone", "conv"]

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
        self.pad_mode, self.padding, self.together = "same", 0, 0
        self.conv2d = ops.Conv2D(out_channels, kernel_size, pad_mode="same", stride=stride, group=self.group)

    def adapted(self, kind: str) -> str:
        return {"Depthwise": kind, "DepthwiseStride2": "DepthwiseSameStride2"}.get(kind, "")


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
