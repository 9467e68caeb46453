"""Dense layers and transposed convolutions with bias and ReLU in one, by our own operators on a CPU."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.ops.custom import CustomDense, CustomLayer, doubled_shape
from src.ops.library import custom_operator_path

__all__ = ["Dense", "TransposedConv2d"]


class Dense(nn.Dense):
    """nn.Dense, optionally followed by ReLU; its parameters, results and gradients. On CPU float32 rows go to a C++
    operator (``csrc/dense.cc``), where it is built.

    Args:
        relu: apply ReLU.  options: nn.Dense's further arguments (has_bias, weight_init, ...).

    Input (R, in_channels), or of more dimensions, which MindSpore's own takes, float32 or float16. Output (R,
    out_channels).
    """

    def __init__(self, in_channels: int, out_channels: int, relu: bool = False, **options):
        super().__init__(in_channels, out_channels, **options)
        self.rectified, library = relu, custom_operator_path(False)
        self.custom = library is not None
        if library is not None:
            self.fused = CustomDense(library, "ReLU" if relu else "")
            self.no_bias = Tensor(np.zeros(out_channels, np.float32))

    def construct(self, x: Tensor) -> Tensor:
        if self.custom and x.ndim == 2 and x.dtype == ms.float32:
            return self.fused(x, self.weight, self.bias if self.has_bias else self.no_bias)[0]
        y = super().construct(x)
        return ops.relu(y) if self.rectified else y


class TransposedConv2d(nn.Conv2dTranspose):
    """nn.Conv2dTranspose with a kernel of 2, stride 2 and a bias, optionally followed by ReLU; its parameters, results
    and gradients. On CPU float32 maps go to a C++ operator (``csrc/transposed.cc``), where it is built.

    Args:
        relu: apply ReLU.  options: nn.Conv2dTranspose's further arguments (weight_init, bias_init).

    Input (B, in_channels, H, W) float32 or float16. Output (B, out_channels, 2 H, 2 W).
    """

    def __init__(self, in_channels: int, out_channels: int, relu: bool = False, **options):
        super().__init__(in_channels, out_channels, 2, 2, pad_mode="valid", has_bias=True, **options)
        self.rectified, library = relu, custom_operator_path(False)
        self.custom = library is not None
        if library is not None:
            self.fused = CustomLayer(library, "TransposedByTwo", "ReLU" if relu else "", doubled_shape)

    def construct(self, x: Tensor) -> Tensor:
        if self.custom and x.dtype == ms.float32:
            return self.fused(x, self.weight, self.bias)
        y = super().construct(x)
        return ops.relu(y) if self.rectified else y
