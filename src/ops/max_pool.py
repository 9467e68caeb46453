"""Max pooling of 3x3 windows and stride 2, as a ResNet's stem has it, by our own operator on a CPU."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from src.ops.custom import CustomPool
from src.ops.library import custom_operator_path

__all__ = ["StemPool"]


class StemPool(nn.Cell):
    """3x3 max pool of stride 2 and padding 1, of maps (B, C, H, W) that have passed ReLU, H and W even.

    On CPU float32 maps go to a C++ operator (``csrc/max_pool.cc``), where it is built. For MindSpore's own, only the
    first row and column of the padding are ever seen, and after ReLU zeros serve for them; joining them on takes a
    quarter of the time of its padded pooling on CPU.  same_padding: MindSpore's and TensorFlow's mode `same` instead,
    which pads below and on the right alone.

    Output (B, C, H / 2, W / 2). Its gradient goes to the first of a window's largest numbers.
    """

    def __init__(self, same_padding: bool = False):
        super().__init__()
        self.pool = nn.MaxPool2d(3, 2, pad_mode="same" if same_padding else "valid")
        self.same_padding, library = same_padding, custom_operator_path(False)
        self.custom = library is not None
        if library is not None:
            self.fused = CustomPool(library, "MaxPool3x3Same" if same_padding else "MaxPool3x3")

    def construct(self, x: Tensor) -> Tensor:
        if self.custom and x.dtype == ms.float32:
            return self.fused(x)
        if self.same_padding:
            return self.pool(x)
        b, c, h, w = x.shape
        x = ops.concat((ops.zeros((b, c, 1, w), x.dtype), x), 2)
        x = ops.concat((ops.zeros((b, c, h + 1, 1), x.dtype), x), 3)
        return self.pool(x)
