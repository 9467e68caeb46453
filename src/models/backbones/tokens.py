"""What transformers share: layers on tokens, (..., channels), and the same in ONNX's operators."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.common.initializer import TruncatedNormal

from src.models.graph_writer import GraphWriter
from src.models.precision import float32

__all__ = ["DropPath", "Mlp", "dense", "gelu", "onnx_gelu", "token_dense", "token_norm"]


def gelu(x: Tensor) -> Tensor:
    """x by the normal distribution's probability below it; MindSpore's own primitive is an approximation."""
    return x * (ops.erf(x * 0.7071067811865476) * 0.5 + 0.5)


def onnx_gelu(g: GraphWriter, x: str) -> str:
    probability = g.op("Mul", g.op("Erf", g.op("Mul", x, np.float32(0.5**0.5))), np.float32(0.5))
    return g.op("Mul", x, g.op("Add", probability, np.float32(0.5)))


def token_dense(g: GraphWriter, x: str, cell: nn.Dense) -> str:
    """A dense layer on the last axis."""
    y = g.op("MatMul", x, g.constant(cell.weight.asnumpy().T, cell.weight.name))
    return g.op("Add", y, g.weight(cell.bias))


def token_norm(g: GraphWriter, x: str, cell: nn.LayerNorm) -> str:
    """Layer norm over the last axis, which ONNX has as an operator from opset 17 on."""
    d = g.op("Sub", x, g.op("ReduceMean", x, axes=[-1], keepdims=1))
    variance = g.op("ReduceMean", g.op("Mul", d, d), axes=[-1], keepdims=1)
    y = g.op("Div", d, g.op("Sqrt", g.op("Add", variance, np.float32(cell.epsilon))))
    return g.op("Add", g.op("Mul", y, g.weight(cell.gamma)), g.weight(cell.beta))


def dense(inputs: int, outputs: int) -> nn.Dense:
    return nn.Dense(inputs, outputs, weight_init=TruncatedNormal(0.02), bias_init="zeros")


class Mlp(nn.Cell):
    """Two dense layers, four times as wide between them. Input and output (..., channels)."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1, self.fc2 = dense(channels, 4 * channels), dense(4 * channels, channels)

    def construct(self, x: Tensor) -> Tensor:
        return float32(self.fc2(gelu(float32(self.fc1(x)))))

    def onnx(self, g: GraphWriter, x: str) -> str:
        return token_dense(g, onnx_gelu(g, token_dense(g, x, self.fc1)), self.fc2)


class DropPath(nn.Cell):
    """Leaves out a part of a layer for some images in training (Huang et al., 2016, arXiv:1603.09382).

    Args:
        share: probability of it.

    Input and output (B, ..., channels): in training zeros for those images, the larger for the others.
    """

    def __init__(self, share: float):
        super().__init__()
        self.drops = share > 0
        if self.drops:
            self.dropout = nn.Dropout(p=share)

    def construct(self, y: Tensor) -> Tensor:
        if self.drops and self.training:
            return y * self.dropout(ops.ones((y.shape[0], 1, 1, 1), y.dtype))
        return y
