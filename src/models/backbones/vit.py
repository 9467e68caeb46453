"""Plain vision transformer (Dosovitskiy et al., 2020, arXiv:2010.11929) with attention in windows but for some layers
(Li et al., 2022, arXiv:2203.16527), as Detectron2's ViTDet has it, and the maps that its simple feature pyramid has
before their convolutions to one width, which are the neck's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import TruncatedNormal, initializer

from src.models.backbones.parts import Shapes
from src.models.backbones.tokens import DropPath, Mlp, dense, gelu, onnx_gelu, token_dense, token_norm
from src.models.graph_writer import GraphWriter
from src.models.norms import LayerNorm
from src.models.precision import float32

__all__ = ["SIZES", "ViT", "layer_rate", "transformer_layers", "vit_keys"]

PATCH = 16  # pixels
STORED = 14  # patches a side of the pictures that classifiers are trained on, whose positions are stored
STORED_GLOBAL = 64  # patches a side of the canvas, 1024 pixels, that the tables of global attention are stored for
SIZES = {"vit_b": (768, 12, 12)}  # channels, layers, heads
GLOBAL_EVERY = 3  # the last layer of so many attends to the whole map
CUBIC = -0.75  # PyTorch's


def linear_weights(out: int, stored: int) -> np.ndarray:
    """(out, stored): what gives `out` values by linear interpolation of `stored`, as PyTorch's, corners not aligned."""
    place = np.maximum((np.arange(out) + 0.5) * stored / out - 0.5, 0)
    low = np.minimum(place.astype(int), stored - 1)
    weights = np.zeros((out, stored))
    np.add.at(weights, (np.arange(out), low), 1 - (place - low))
    np.add.at(weights, (np.arange(out), np.minimum(low + 1, stored - 1)), place - low)
    return weights.astype(np.float32)


def cubic_weights(out: int, stored: int) -> np.ndarray:
    """The same by cubic convolution (Keys, 1981), the outermost values repeated beyond the borders."""
    place = (np.arange(out) + 0.5) * stored / out - 0.5
    low = np.floor(place).astype(int)
    weights = np.zeros((out, stored))
    for k in range(-1, 3):
        d = np.abs(place - (low + k))
        near = ((CUBIC + 2) * d - (CUBIC + 3)) * d * d + 1
        far = ((CUBIC * d - 5 * CUBIC) * d + 8 * CUBIC) * d - 4 * CUBIC
        np.add.at(weights, (np.arange(out), np.clip(low + k, 0, stored - 1)), np.where(d <= 1, near, far))
    return weights.astype(np.float32)


def distance_weights(side: int, stored: int) -> np.ndarray:
    """(side * side, 2 * stored - 1): of a table by distance, what gives each pair (query, key) of places on a side."""
    distance = np.arange(side)[:, None] - np.arange(side)[None] + side - 1
    return linear_weights(2 * side - 1, 2 * stored - 1)[distance.reshape(-1)]


class Attention(nn.Cell):
    """Attention of several heads among the tokens of a map, with relative positions of rows and of columns (Li et al.,
    2021, arXiv:2112.01526, section 4.1).

    Args:
        channels, heads: of the tokens, and how many share them.  height, width: of the maps.  stored: the side whose
        positions the tables hold; for others they are interpolated, in the graph, so that one checkpoint serves and
        trains every canvas.

    Input and output (N, height, width, channels).
    """

    def __init__(self, channels: int, heads: int, height: int, width: int, stored: int):
        super().__init__()
        self.qkv, self.proj = dense(channels, 3 * channels), dense(channels, channels)
        self.heads, self.depth = heads, channels // heads
        table = (2 * stored - 1, self.depth)
        self.rel_pos_h = Parameter(initializer("zeros", table), name="rel_pos_h")
        self.rel_pos_w = Parameter(initializer("zeros", table), name="rel_pos_w")
        self.height, self.width = height, width
        self.of_rows, self.of_columns = (Tensor(distance_weights(side, stored)) for side in (height, width))
        row, column = np.divmod(np.arange(height * width), width)
        marks = np.concatenate((np.eye(height)[row], np.eye(width)[column]), 1)
        self.marks = Tensor(marks[None].astype(np.float32))
        self.product, self.products = ops.MatMul(), ops.BatchMatMul()
        self.against, self.softmax = ops.BatchMatMul(transpose_b=True), ops.Softmax(-1)

    def construct(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        d, rows = self.depth, n * self.heads
        qkv = float32(self.qkv(x)).reshape(n, h * w, 3, self.heads, d).transpose(2, 0, 3, 1, 4)
        qkv = qkv.reshape(3, rows, h * w, d)
        q, k, v = qkv[0], qkv[1], qkv[2]
        # a query's products with the positions of all rows and of all columns, then with the key's own: as further
        # channels of the one product, not as two sums over all pairs, which are the largest arrays here
        grid = q.reshape(rows, h, w, d)
        table = self.product(self.of_rows, self.rel_pos_h).reshape(h, h, d)
        # not grid: of one tensor in two orders of axes, MindSpore's GPU backend gives both the second one's
        by_rows = q.reshape(rows, h, w * d).transpose(1, 0, 2)
        to_rows = self.against(by_rows.reshape(h, rows * w, d), table)
        to_rows = to_rows.reshape(h, rows, w, h).transpose(1, 0, 2, 3).reshape(rows, h * w, h)
        table = self.product(self.of_columns, self.rel_pos_w).reshape(w, w, d)
        to_columns = self.against(grid.transpose(2, 0, 1, 3).reshape(w, rows * h, d), table)
        to_columns = to_columns.reshape(w, rows, h, w).transpose(1, 2, 0, 3).reshape(rows, h * w, w)
        q = ops.concat((q * d**-0.5, to_rows, to_columns), -1)
        k = ops.concat((k, ops.broadcast_to(self.marks, (rows, h * w, h + w))), -1)
        y = self.products(self.softmax(self.against(q, k)), v)
        y = y.reshape(n, self.heads, h * w, d).transpose(0, 2, 1, 3).reshape(n, h, w, c)
        return float32(self.proj(y))

    def onnx(self, g: GraphWriter, x: str) -> str:
        h, w, d = self.height, self.width, self.depth
        qkv = g.reshape(token_dense(g, x, self.qkv), -1, h * w, 3, self.heads, d)
        qkv = g.op("Transpose", qkv, perm=[2, 0, 3, 1, 4])
        q, k, v = (g.op("Squeeze", x, [0]) for x in g.op("Split", qkv, outputs=3, axis=0))
        grid = g.reshape(q, -1, self.heads, h, w, d)
        of_rows, of_columns = (
            (weights.asnumpy() @ table.asnumpy()).reshape(side, side, d).transpose(0, 2, 1)
            for weights, table, side in ((self.of_rows, self.rel_pos_h, h), (self.of_columns, self.rel_pos_w, w))
        )
        to_rows = g.op("Unsqueeze", g.op("MatMul", grid, of_rows), [-1])
        turned = g.op("MatMul", g.op("Transpose", grid, perm=[0, 1, 3, 2, 4]), of_columns)
        to_columns = g.op("Unsqueeze", g.op("Transpose", turned, perm=[0, 1, 3, 2, 4]), [-2])
        scores = g.op("MatMul", g.op("Mul", q, np.float32(d**-0.5)), g.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = g.op("Add", g.op("Add", g.reshape(scores, -1, self.heads, h, w, h, w), to_rows), to_columns)
        y = g.op("MatMul", g.op("Softmax", g.reshape(scores, -1, self.heads, h * w, h * w), axis=-1), v)
        y = g.reshape(g.op("Transpose", y, perm=[0, 2, 1, 3]), -1, h, w, self.heads * d)
        return token_dense(g, y, self.proj)


class Block(nn.Cell):
    """A layer: attention, then an MLP, each after a norm and added to what it is given.

    Args:
        channels, heads: as Attention's.  height, width: of the maps.  window: side of the windows within which tokens
        attend, the map filled up with zeros to whole ones; 0: to the whole map.  stored: as Attention's.  eps: of the
        norms.  drop_path: DropPath's, of either part.

    Input and output (B, height, width, channels) float32.
    """

    def __init__(
        self, channels: int, heads: int, height: int, width: int, window: int, stored: int, eps: float, drop_path: float
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm((channels,), epsilon=eps)
        self.attn = Attention(channels, heads, window or height, window or width, window or stored)
        self.norm2 = nn.LayerNorm((channels,), epsilon=eps)
        self.mlp = Mlp(channels)
        self.window, self.height, self.width, self.channels = window, height, width, channels
        self.below, self.right = (-side % window if window else 0 for side in (height, width))
        self.kept = DropPath(drop_path)

    def construct(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        y = self.in_windows(y) if self.window else self.attn(y)
        x = x + self.kept(y)
        return x + self.kept(self.mlp(self.norm2(x)))

    def in_windows(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        side, below, right = self.window, self.below, self.right
        if below:
            x = ops.concat((x, ops.zeros((b, below, w, c), x.dtype)), 1)
        if right:
            x = ops.concat((x, ops.zeros((b, h + below, right, c), x.dtype)), 2)
        down, across = (h + below) // side, (w + right) // side
        x = x.reshape(b, down, side, across, side, c).transpose(0, 1, 3, 2, 4, 5).reshape(-1, side, side, c)
        x = self.attn(x).reshape(b, down, across, side, side, c).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(b, h + below, w + right, c)[:, :h, :w]

    def onnx(self, g: GraphWriter, x: str) -> str:
        y, side, c = token_norm(g, x, self.norm1), self.window, self.channels
        if not side:
            y = self.attn.onnx(g, y)
        else:
            h, w = self.height + self.below, self.width + self.right
            y = g.op("Pad", y, [0, 0, 0, 0, 0, self.below, self.right, 0])
            y = g.reshape(y, -1, h // side, side, w // side, side, c)
            y = g.reshape(g.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), -1, side, side, c)
            y = g.reshape(self.attn.onnx(g, y), -1, h // side, w // side, side, side, c)
            y = g.reshape(g.op("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), -1, h, w, c)
            y = g.op("Slice", y, [0, 0], [self.height, self.width], [1, 2])
        x = g.op("Add", x, y)
        return g.op("Add", x, self.mlp.onnx(g, token_norm(g, x, self.norm2)))


class ViT(nn.Cell):
    """The transformer, and of its map those at strides 4, 8, 16, 32: by transposed convolutions, as it is, by a pool.

    Args:
        channels, layers, heads: of the transformer.  height, width: of the images, multiples of 32.  window: side of
        the windows in patches; every third layer attends to the whole map.  eps: of the norms.  drop_path: the last
        layer's, from 0 rising evenly with the layers, see Block.

    Input (B, 3, height, width). Output: maps of a quarter of the channels, of half, and twice of all.
    """

    def __init__(
        self,
        channels: int,
        layers: int,
        heads: int,
        height: int,
        width: int,
        window: int = 14,
        eps: float = 1e-6,
        drop_path: float = 0.0,
    ):
        super().__init__()
        h, w = height // PATCH, width // PATCH
        self.patch_embed = nn.Conv2d(3, channels, PATCH, PATCH, pad_mode="valid", has_bias=True)
        # the first is the classifier's own token's, which nothing here reads
        self.pos_embed = Parameter(initializer(TruncatedNormal(0.02), (1, STORED**2 + 1, channels)), name="pos_embed")
        self.of_rows, self.of_columns = Tensor(cubic_weights(h, STORED)), Tensor(cubic_weights(w, STORED))
        rates = np.linspace(0, drop_path, layers).tolist()
        self.blocks = nn.CellList(
            [
                Block(channels, heads, h, w, window if (i + 1) % GLOBAL_EVERY else 0, STORED_GLOBAL, eps, rates[i])
                for i in range(layers)
            ]
        )
        half, quarter = channels // 2, channels // 4
        self.up4_first, self.up4_norm = self.doubled(channels, half), LayerNorm(half, eps)
        self.up4_second, self.up8 = self.doubled(half, quarter), self.doubled(channels, half)
        self.pool = nn.MaxPool2d(2, 2, pad_mode="valid")
        self.channels, self.product = channels, ops.MatMul()

    @staticmethod
    def doubled(inputs: int, outputs: int) -> nn.Conv2dTranspose:
        return nn.Conv2dTranspose(inputs, outputs, 2, 2, pad_mode="valid", has_bias=True, bias_init="zeros")

    def positions(self) -> Tensor:
        """(1, H, W, channels): those stored, interpolated to the map."""
        c, (h, _), (w, _) = self.channels, self.of_rows.shape, self.of_columns.shape
        x = self.product(self.of_rows, self.pos_embed[0, 1:].reshape(STORED, STORED * c))
        x = x.reshape(h, STORED, c).transpose(1, 0, 2).reshape(STORED, h * c)
        return self.product(self.of_columns, x).reshape(1, w, h, c).transpose(0, 2, 1, 3)

    def construct(self, x: Tensor) -> tuple[Tensor, ...]:
        x = float32(self.patch_embed(x)).transpose(0, 2, 3, 1) + self.positions()
        for block in self.blocks:
            x = block(x)
        x = x.transpose(0, 3, 1, 2)
        finest = float32(self.up4_second(gelu(self.up4_norm(float32(self.up4_first(x))))))
        return finest, float32(self.up8(x)), x, self.pool(x)

    def onnx(self, g: GraphWriter, x: str) -> list[str]:
        """The maps in ONNX's operators."""
        x = g.op("Transpose", g.conv(x, self.patch_embed), perm=[0, 2, 3, 1])
        h, w = self.of_rows.asnumpy(), self.of_columns.asnumpy()
        stored = self.pos_embed.asnumpy()[0, 1:].reshape(STORED, STORED, self.channels)
        x = g.op("Add", x, np.einsum("hi,wj,ijc->hwc", h, w, stored)[None])
        for block in self.blocks:
            x = block.onnx(g, x)
        x = g.op("Transpose", x, perm=[0, 3, 1, 2])
        finest = g.conv(onnx_gelu(g, self.up4_norm.onnx(g, g.conv(x, self.up4_first))), self.up4_second)
        pooled = g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        return [finest, g.conv(x, self.up8), x, pooled]


def transformer_layers(backbone: str) -> int:
    """Layers of the transformer of that type; 0 of other backbones."""
    return SIZES[backbone][1] if backbone in SIZES else 0


def layer_rate(name: str, layers: int, decay: float) -> float:
    """The share of the learning rate that a detector's parameter of this name has where each of `layers` has `decay`
    times the rate of the one above, and the embedding of patches and positions that of one below the first.
    """
    if name.startswith(("backbone.patch_embed.", "backbone.pos_embed")):
        below = layers + 1
    else:
        m = re.match(r"backbone\.blocks\.(\d+)\.", name)
        below = layers - int(m[1]) if m else 0
    return decay**below


def vit_keys(shapes: Shapes) -> tuple[dict[str, Any], str] | None:
    """See Kind.keys."""
    layers = len({m[1] for n in shapes if (m := re.match(r"backbone\.blocks\.(\d+)\.attn\.", n))})
    stored: Sequence[int] = shapes.get("backbone.pos_embed", ())
    for name, (channels, count, _) in SIZES.items():
        if layers == count and len(stored) == 3 and stored[2] == channels:
            # what it takes besides to be one
            own = {"backbone.frozen_stages": -1, "backbone.norm_eps": 1e-6}
            return {"backbone.type": name, **own}, name.replace("vit_", "vitdet_")
    return None
