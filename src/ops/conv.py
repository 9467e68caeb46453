"""2-D convolution with bias and ReLU in one, by our own operator where that is the faster one."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.ops.custom import CustomDepthwise, CustomLayer, CustomPassing, CustomSum, halved_shape, same_shape
from src.ops.library import custom_operator_path, for_devices, plain_sums_only
from src.ops.weights import Copy, ScaleFilters

__all__ = ["Conv2d", "float32"]

_PART_CHANNELS = 128  # at most, of a convolution that stands for some groups
_DEPTHWISE = ("Depthwise", "DepthwiseStride2", "DepthwiseSameStride2")
_POINTWISE = ("Pointwise", "PointwiseStride2")


class Conv2d(nn.Conv2d):
    """nn.Conv2d with padding kernel_size // 2, optionally followed by ReLU.

    Its parameters, results and gradients are nn.Conv2d's. On CPU a float32 convolution that is 1x1, 3x3, or of
    stride 2 with an odd kernel, and without groups, is a C++ operator with bias and ReLU in the same pass and a few MB
    of memory, where MindSpore's gradients unfold the whole map, nine times its size for each 3x3 layer, and keep the
    room. 3x3 ones of stride 1 take a quarter of the multiplications (``csrc/winograd.cc``); 1x1 ones are plain matrix
    products (``csrc/pointwise.cc``); the others are ``csrc/convolution.cc``. Everything else is MindSpore's own
    operators. Without the library, everything is. For devices, which have kernels for depthwise convolutions and those
    without groups alone, other groups become a few convolutions without, over some neighbouring groups each, their
    filters filled up with zeros.

    Args:
        relu: apply ReLU.  copied: weight and bias are read as copies, see Copy.  options: nn.Conv2d's further arguments
        (has_bias, group, weight_init, ...).

    Input (B, in_channels, H, W) float32 or float16; with `half` set, computes and returns float16 whatever it is given.
    Output (B, out_channels, ceil(H / stride), ceil(W / stride)) for an odd kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        relu: bool = False,
        copied: bool = False,
        **options,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, pad_mode="pad", padding=kernel_size // 2, **options
        )
        self.rectified, self.half = relu, False
        # in graphs on GPUs, MindSpore 2.8 gave wrong sums with a float16 bias that the graph computes
        self.float32_bias = ms.get_context("device_target") == "GPU"
        self.scale, self.copied, self.copy = ScaleFilters(), copied, Copy()
        self.add_parts(out_channels, kernel_size, stride)
        self.choose_operators(self.adapted(_kind(in_channels, out_channels, kernel_size, stride, **options)), stride)

    def adapted(self, kind: str) -> str:
        """What the names of the C++ operators begin with for a subclass's convolution, where they do with `kind` for
        one that is padded as here; empty: there are none.
        """
        return kind

    def choose_operators(self, kind: str, stride: int) -> None:
        """Takes the C++ operators whose names begin with `kind`, where there is a library, or none if it is empty."""
        kind = "" if plain_sums_only() else kind
        library = custom_operator_path(False) if kind else None
        self.custom, self.bounds = library is not None, kind in (*_DEPTHWISE, *_POINTWISE)
        self.sums, self.library, self.passes = library is not None and kind == "Pointwise", library, False
        if library is None:
            return
        self.no_bias = Tensor(np.zeros(self.out_channels, np.float32))
        layer, shape = (
            CustomDepthwise if kind in _DEPTHWISE else CustomLayer,
            halved_shape if stride == 2 else same_shape,
        )
        self.linear, self.with_relu = layer(library, kind, "", shape), layer(library, kind, "ReLU", shape)
        if self.bounds:
            self.with_relu6 = layer(library, kind, "ReLU6", shape)
        if self.sums and self.library is not None:
            self.with_sum = CustomSum(library, kind, shape)

    def construct(self, x: Tensor) -> Tensor:
        return self.plain(x)

    def plain(self, x: Tensor) -> Tensor:
        """The convolution with its own weight and bias: what the cell gives, unless a subclass adds to it."""
        if self.has_bias and self.copied:
            return self.convolve(x, self.copy(self.weight), self.copy(self.bias), self.rectified)
        if self.has_bias:
            return self.convolve(x, self.weight, self.bias, self.rectified)
        if self.half:
            y = self.product(x.astype(ms.float16), self.weight.astype(ms.float16))
        elif self.custom and x.dtype == ms.float32:
            return self.convolve(x, self.weight, self.no_bias, self.rectified)
        else:
            y = self.product(x, self.weight)
        return ops.relu(y) if self.rectified else y

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor, relu: bool, relu6: bool = False) -> Tensor:
        """The convolution with other weights (O, C, k, k) and bias (O,) than its own, and ReLU or ReLU6 as this call
        says.
        """
        if self.half and self.float32_bias:
            y = self.product(x.astype(ms.float16), weight.astype(ms.float16)).astype(ms.float32)
            return _active(y + bias.reshape(1, -1, 1, 1), relu, relu6).astype(ms.float16)
        if self.half:
            x, weight, bias = x.astype(ms.float16), weight.astype(ms.float16), bias.astype(ms.float16)
        if self.custom and x.dtype == ms.float32:
            if relu6:
                return self.with_relu6(x, weight, bias) if self.bounds else ops.relu6(self.linear(x, weight, bias))
            return self.with_relu(x, weight, bias) if relu else self.linear(x, weight, bias)
        return _active(ops.bias_add(self.product(x, weight), bias), relu, relu6)

    def sums_with(self, x: Tensor) -> bool:
        """Whether what `construct` gives of x is a C++ operator that could add another map."""
        return self.sums and self.has_bias and not (self.rectified or self.half) and x.dtype == ms.float32

    def pass_on(self) -> None:
        """Lets `passing` add the gradients of who uses x further where this one's is computed."""
        if self.sums and self.library is not None:
            self.with_passing, self.passes = CustomPassing(self.library), True

    def read_by_passing(self) -> None:
        """What `residual` gives is read by another's `passing` alone, after its `pass_on`: of the same dtypes."""
        if self.sums and self.library is not None:
            self.with_sum = CustomSum(self.library, "Pointwise", same_shape, True)

    def passing(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """`convolve` with ReLU of a map that has passed ReLU, and that map for who uses it further."""
        if self.passes and not self.half and x.dtype == ms.float32:
            return self.with_passing(x, weight, bias)
        return self.convolve(x, weight, bias, True), x

    def residual(self, x: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> Tensor:
        """ReLU of the sum, in float32, of `convolve` without activation and another map (B, O, H, W)."""
        if self.sums and not self.half and x.dtype == ms.float32 and other.dtype == ms.float32:
            return self.with_sum(x, weight, bias, other)
        y = self.convolve(x, weight, bias, False)
        return ops.relu(float32(y) + float32(other))

    def add_parts(self, out_channels: int, kernel_size: int, stride: int) -> None:
        """Decides how many convolutions this is, and makes what they need."""
        self.parts, self.together = 1, 0  # groups that a convolution stands for; 0: it has all, as groups
        if not 1 < self.group < self.in_channels or not for_devices():
            return
        inputs = self.in_channels // self.group
        fitting = [n for n in range(1, self.group + 1) if self.group % n == 0 and n * inputs <= _PART_CHANNELS]
        together = max(fitting, default=1)
        self.parts, self.together = self.group // together, together
        of_group, outputs = np.arange(self.group) % together, out_channels // self.group
        own = (of_group[:, None] == np.arange(together)).repeat(outputs, 0).repeat(inputs, 1)
        self.own = Tensor(own[:, :, None, None].astype(np.float32))
        self.part = ops.Conv2D(
            out_channels // self.parts, kernel_size, pad_mode="pad", pad=kernel_size // 2, stride=stride
        )

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution alone."""
        if self.together == 0:
            return self.conv2d(x, weight)
        dense = ops.tile(weight, (1, self.together, 1, 1)) * self.own.astype(weight.dtype)
        inputs, outputs = self.in_channels // self.parts, self.out_channels // self.parts
        parts = ()  # type: tuple[Tensor, ...]
        for i in range(self.parts):
            here = x[:, i * inputs : (i + 1) * inputs]
            parts += (self.part(here, dense[i * outputs : (i + 1) * outputs]),)
        return ops.concat(parts, 1)


def float32(x: Tensor) -> Tensor:
    """x in float32; the same x, without an operator, where it is."""
    return x if x.dtype == ms.float32 else x.astype(ms.float32)


def _active(y: Tensor, relu: bool, relu6: bool) -> Tensor:
    if relu6:
        return ops.relu6(y)
    return ops.relu(y) if relu else y


def _kind(inputs: int, outputs: int, kernel: int, stride: int, group: int = 1, dilation: int = 1, **_) -> str:
    """What the names of the C++ operators for such a convolution begin with; empty if there are none."""
    if dilation != 1:
        return ""
    if group == inputs == outputs and kernel in (3, 5) and stride in (1, 2):
        return "Depthwise" if stride == 1 else "DepthwiseStride2"
    if group != 1:
        return ""
    if kernel == 1 and stride in (1, 2):
        return "Pointwise" if stride == 1 else "PointwiseStride2"
    if (kernel, stride) == (3, 1):
        return "Conv3x3"
    return "ConvStride2" if stride == 2 and kernel % 2 == 1 else ""
