"""Swin transformer (Liu et al., 2021, arXiv:2103.14030), as mmdetection has it for detectors: attention within windows,
which every second layer shifts, on maps whose sides halve from stage to stage.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import TruncatedNormal, initializer
from mindspore.ops import constexpr

from src.models.backbones.parts import Shapes
from src.models.backbones.tokens import DropPath, Mlp, dense, token_dense, token_norm
from src.models.graph_writer import GraphWriter
from src.models.precision import float32

__all__ = ["SIZES", "Swin", "swin_keys", "swin_stages"]

PATCH = 4  # pixels
WINDOW = 7  # tokens a side
SHIFT = WINDOW // 2
PLACES = WINDOW * WINDOW
DEPTH = 32  # channels of a head
SIZES = {"swin_t": (96, (2, 2, 6, 2)), "swin_s": (96, (2, 2, 18, 2))}  # channels of the first stage, layers of each
APART = -100.0  # added to the logits of tokens that the shift has brought together


# ---- where tokens lie


@functools.lru_cache(maxsize=64)
def places(height: int, width: int, shift: int) -> np.ndarray:
    """(windows, 49): of each window's places, left to right and down, the token of a map that lies there; beyond the
    map's border, its size. The map is filled up below and on the right to whole windows, then moved up and left by
    `shift`, what leaves it coming in on the other side.
    """
    down, across = -(-height // WINDOW), -(-width // WINDOW)
    y = (np.arange(down * WINDOW) + shift) % (down * WINDOW)
    x = (np.arange(across * WINDOW) + shift) % (across * WINDOW)
    inside = (y < height)[:, None] & (x < width)[None]
    token = np.where(inside, y[:, None] * width + x[None], height * width)
    return token.reshape(down, WINDOW, across, WINDOW).swapaxes(1, 2).reshape(-1, PLACES)


@functools.lru_cache(maxsize=64)
def rows_of_windows(images: int, height: int, width: int, heads: int, shift: int) -> np.ndarray:
    """(images * windows * heads * 49,) int32: for every image, window, head and place the row among those of tokens and
    heads; after the images' tokens comes one for all places beyond their borders.
    """
    token, size = places(height, width, shift), height * width
    token = np.stack([np.where(token < size, token + i * size, images * size) for i in range(images)])
    return (token[:, :, None] * heads + np.arange(heads)[:, None]).reshape(-1).astype(np.int32)


@functools.lru_cache(maxsize=64)
def rows_of_tokens(images: int, height: int, width: int, heads: int, shift: int) -> np.ndarray:
    """(images * height * width * heads,) int32: the way back, for every token and head its row among those of windows,
    heads and places.
    """
    token = places(height, width, shift)
    windows, size = len(token), height * width
    window, place = np.divmod(np.argsort(token.reshape(-1), kind="stable")[:size], PLACES)
    row = (window * heads * PLACES + place)[:, None] + np.arange(heads) * PLACES
    return (row + np.arange(images)[:, None, None] * (windows * heads * PLACES)).reshape(-1).astype(np.int32)


def kinds_of_windows(images: int, height: int, width: int) -> np.ndarray:
    """(images * windows,) int32: which of `apart` each window of a shifted map has."""
    down, across = -(-height // WINDOW), -(-width // WINDOW)
    last = 2 * (np.arange(down) == down - 1)[:, None] + (np.arange(across) == across - 1)
    return np.tile(last.reshape(-1), images).astype(np.int32)


def apart() -> np.ndarray:
    """(4, 1, 49 * 49): what the logits of a shifted map's windows get, that tokens of opposite borders don't attend to
    each other: in a window inside, in the last column, in the last row, in both.
    """
    moved = np.arange(WINDOW) >= WINDOW - SHIFT
    row, column = (m.reshape(-1) for m in np.broadcast_arrays(moved[:, None], moved[None]))
    rows, columns = row[:, None] != row[None], column[:, None] != column[None]
    masks = np.stack([np.zeros_like(rows), columns, rows, rows | columns])
    return np.where(masks, APART, 0).reshape(4, 1, -1).astype(np.float32)


def distances() -> np.ndarray:
    """(49 * 49,) int32: for each pair (query, key) of a window its row of the table of positions."""
    y, x = np.divmod(np.arange(PLACES), WINDOW)
    down, across = (v[:, None] - v[None] + WINDOW - 1 for v in (y, x))
    return (down * (2 * WINDOW - 1) + across).reshape(-1).astype(np.int32)


# constants of a graph, of whatever canvas it is compiled for


@constexpr
def window_rows(images: int, height: int, width: int, heads: int, shift: int) -> Tensor:
    return Tensor(rows_of_windows(images, height, width, heads, shift))


@constexpr
def token_rows(images: int, height: int, width: int, heads: int, shift: int) -> Tensor:
    return Tensor(rows_of_tokens(images, height, width, heads, shift))


@constexpr
def window_kinds(images: int, height: int, width: int) -> Tensor:
    return Tensor(kinds_of_windows(images, height, width))


# ---- layers


class Thirds(nn.Dense):
    """A dense layer for queries, keys and values: (..., channels) -> three of them."""

    def __init__(self, channels: int):
        super().__init__(channels, 3 * channels, weight_init=TruncatedNormal(0.02), bias_init="zeros")
        self.split, self.product, self.add = ops.Split(0, 3), ops.MatMul(transpose_b=True), ops.BiasAdd()

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # split as weights: as a map, each third would be copied once more
        wq, wk, wv = self.split(self.weight)
        bq, bk, bv = self.split(self.bias)
        q, k, v = self.product(x, wq), self.product(x, wk), self.product(x, wv)
        return self.add(q, bq), self.add(k, bk), self.add(v, bv)


class WindowAttention(nn.Cell):
    """Attention of several heads among the tokens of each window, with a table of relative positions.

    Args:
        channels, heads: of the tokens, and how many share them.  shift: by how much windows are moved.  height, width:
        of the maps in an export to ONNX; else they may have any.

    Input and output (B, H, W, channels). Tokens go from the map into windows, split by heads, in one step: a gather of
    rows; and back in another.
    """

    def __init__(self, channels: int, heads: int, shift: int, height: int, width: int):
        super().__init__()
        self.qkv, self.proj = Thirds(channels), dense(channels, channels)
        self.position_bias = Parameter(
            initializer(TruncatedNormal(0.02), ((2 * WINDOW - 1) ** 2, heads)), name="position_bias"
        )
        self.distances, self.apart = Tensor(distances()), Tensor(apart())
        self.channels, self.heads, self.shift, self.height, self.width = channels, heads, shift, height, width
        self.scale = DEPTH**-0.5
        self.products, self.against, self.add = ops.BatchMatMul(), ops.BatchMatMul(transpose_b=True), ops.BiasAdd()
        self.softmax, self.rows = ops.Softmax(-1), ops.Gather()

    def construct(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = x.reshape(-1, c)
        if h % WINDOW or w % WINDOW:
            x = ops.concat((x, ops.zeros((1, c), x.dtype)), 0)
        q, k, v = self.qkv(x)
        index = window_rows(b, h, w, self.heads, self.shift)
        q, k, v = self.in_windows(q, index), self.in_windows(k, index), self.in_windows(v, index)
        logits = self.against(q * self.scale, k).reshape(-1, self.heads * PLACES * PLACES)
        bias = self.rows(self.position_bias, self.distances, 0).transpose((1, 0))
        if self.shift:
            kinds = (bias + self.apart).reshape(4, -1)
            logits = logits + self.rows(kinds, window_kinds(b, h, w), 0)
        else:
            logits = self.add(logits, bias.reshape(-1))
        y = self.products(self.softmax(logits.reshape(-1, PLACES, PLACES)), v)
        y = self.rows(y.reshape(-1, DEPTH), token_rows(b, h, w, self.heads, self.shift), 0)
        return float32(self.proj(y.reshape(b, h, w, c)))

    def in_windows(self, x: Tensor, index: Tensor) -> Tensor:
        """Tokens (N, channels) as (B * windows * heads, 49, 32)."""
        return self.rows(float32(x).reshape(-1, DEPTH), index, 0).reshape(-1, PLACES, DEPTH)

    def onnx(self, g: GraphWriter, x: str) -> str:
        b, h, w, c = g.n, self.height, self.width, self.channels
        x = g.reshape(x, -1, c)
        if h % WINDOW or w % WINDOW:
            x = g.op("Concat", x, np.zeros((1, c), np.float32), axis=0)
        index = rows_of_windows(b, h, w, self.heads, self.shift)
        # q, k and v of a token lie side by side, each of all heads
        token, head = np.divmod(index.astype(np.int64), self.heads)
        y = g.reshape(token_dense(g, x, self.qkv), -1, DEPTH)
        q, k, v = (
            g.reshape(g.op("Gather", y, (3 * token + i) * self.heads + head, axis=0), -1, self.heads, PLACES, DEPTH)
            for i in range(3)
        )
        logits = g.op("MatMul", g.op("Mul", q, np.float32(self.scale)), g.op("Transpose", k, perm=[0, 1, 3, 2]))
        bias = self.position_bias.asnumpy()[distances()].T.reshape(1, self.heads, PLACES, PLACES)
        if self.shift:
            kinds = bias + apart().reshape(4, 1, PLACES, PLACES)
            logits = g.op("Add", logits, g.op("Gather", kinds, kinds_of_windows(b, h, w).astype(np.int64), axis=0))
        else:
            logits = g.op("Add", logits, bias)
        y = g.reshape(g.op("MatMul", g.op("Softmax", logits, axis=-1), v), -1, DEPTH)
        y = g.op("Gather", y, rows_of_tokens(b, h, w, self.heads, self.shift).astype(np.int64), axis=0)
        return token_dense(g, g.reshape(y, b, h, w, c), self.proj)


class Block(nn.Cell):
    """A layer: attention within windows, then an MLP, each after a norm and added to what it is given.

    Args:
        channels, heads, shift, height, width: as WindowAttention's.  eps: of the norms.  drop_path: DropPath's, of
        either part.

    Input and output (B, H, W, channels) float32.
    """

    def __init__(self, channels: int, heads: int, shift: int, height: int, width: int, eps: float, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm((channels,), epsilon=eps)
        self.attn = WindowAttention(channels, heads, shift, height, width)
        self.norm2 = nn.LayerNorm((channels,), epsilon=eps)
        self.mlp, self.kept = Mlp(channels), DropPath(drop_path)

    def construct(self, x: Tensor) -> Tensor:
        x = x + self.kept(self.attn(self.norm1(x)))
        return x + self.kept(self.mlp(self.norm2(x)))

    def onnx(self, g: GraphWriter, x: str) -> str:
        x = g.op("Add", x, self.attn.onnx(g, token_norm(g, x, self.norm1)))
        return g.op("Add", x, self.mlp.onnx(g, token_norm(g, x, self.norm2)))


class Merge(nn.Cell):
    """Four neighbours into one token of twice the channels.

    Args:
        channels: of the tokens.  eps: of the norm.

    Input (B, H, W, channels), sides even, output (B, H / 2, W / 2, 2 * channels). The norm and the dense layer have the
    neighbours one after the other, by rows; mmdetection has them interleaved, the first project by columns.
    """

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.norm = nn.LayerNorm((4 * channels,), epsilon=eps)
        self.reduction = nn.Dense(4 * channels, 2 * channels, weight_init=TruncatedNormal(0.02), has_bias=False)

    def construct(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2 * c).transpose(0, 1, 3, 2, 4).reshape(b, h // 2, w // 2, 4 * c)
        return float32(self.reduction(self.norm(x)))

    def onnx(self, g: GraphWriter, x: str, height: int, width: int) -> str:
        c = self.norm.gamma.shape[0] // 4
        x = g.op("Transpose", g.reshape(x, g.n, height // 2, 2, width // 2, 2 * c), perm=[0, 1, 3, 2, 4])
        x = token_norm(g, g.reshape(x, g.n, height // 2, width // 2, 4 * c), self.norm)
        return g.op("MatMul", x, g.constant(self.reduction.weight.asnumpy().T, self.reduction.weight.name))


class Stage(nn.Cell):
    """Layers, of which every second shifts its windows, and, but for the last stage, `downsample` after them."""

    def __init__(self, blocks: list[Block], downsample: Merge | None):
        super().__init__()
        self.blocks, self.merges = nn.CellList(blocks), downsample is not None
        if downsample is not None:
            self.downsample = downsample

    def construct(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Swin(nn.Cell):
    """The transformer; its map after each stage goes through a norm of its own.

    Args:
        channels, layers: of the first stage, each further one having twice as many; of each stage.  height, width: of
        the images in an export to ONNX; else they may have any sides that are multiples of 32.  eps: of the norms.
        drop_path: the last layer's, from 0 rising evenly with the layers, see DropPath.

    Input (B, 3, height, width). Output: maps of strides 4, 8, 16, 32.
    """

    def __init__(
        self,
        channels: int,
        layers: tuple[int, ...],
        height: int,
        width: int,
        eps: float = 1e-5,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, channels, PATCH, PATCH, pad_mode="valid", has_bias=True)
        self.patch_norm = nn.LayerNorm((channels,), epsilon=eps)
        rates = iter(np.linspace(0, drop_path, sum(layers)).tolist())
        stages, norms = [], []
        for i, count in enumerate(layers):
            c, h, w = channels << i, height // PATCH >> i, width // PATCH >> i
            blocks = [Block(c, c // DEPTH, k % 2 * SHIFT, h, w, eps, next(rates)) for k in range(count)]
            stages.append(Stage(blocks, Merge(c, eps) if i + 1 < len(layers) else None))
            norms.append(nn.LayerNorm((c,), epsilon=eps))
        self.stages, self.norms = nn.CellList(stages), nn.CellList(norms)
        self.height, self.width = height, width

    def construct(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.patch_norm(float32(self.patch_embed(x)).transpose(0, 2, 3, 1))
        outputs = ()  # type: tuple[Tensor, ...]
        for i, stage in enumerate(self.stages):
            x = stage(x)
            outputs += (self.norms[i](x).transpose(0, 3, 1, 2),)
            if stage.merges:
                x = stage.downsample(x)
        return outputs

    def onnx(self, g: GraphWriter, x: str) -> list[str]:
        """The maps in ONNX's operators."""
        x = token_norm(g, g.op("Transpose", g.conv(x, self.patch_embed), perm=[0, 2, 3, 1]), self.patch_norm)
        outputs = []
        for i, (stage, norm) in enumerate(zip(self.stages, self.norms)):
            for block in stage.blocks:
                x = block.onnx(g, x)
            outputs.append(g.op("Transpose", token_norm(g, x, norm), perm=[0, 3, 1, 2]))
            if stage.merges:
                x = stage.downsample.onnx(g, x, self.height // PATCH >> i, self.width // PATCH >> i)
        return outputs


def swin_stages(shapes: Shapes) -> tuple[int, tuple[int, ...]] | None:
    """Channels of the first stage, and layers of each, of a Swin transformer with parameters of these names and shapes;
    None for another backbone.
    """
    blocks = {(m[1], m[2]) for n in shapes if (m := re.match(r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.", n))}
    norm = shapes.get("backbone.patch_norm.gamma", ())
    if not blocks or len(norm) != 1:
        return None
    stages = sorted({int(stage) for stage, _ in blocks})
    return norm[0], tuple(sum(int(stage) == i for stage, _ in blocks) for i in stages)


def swin_keys(shapes: Shapes) -> tuple[dict[str, Any], str] | None:
    """See Kind.keys."""
    found = swin_stages(shapes)
    name = next((name for name, size in SIZES.items() if size == found), None)
    return ({"backbone.type": name, "backbone.frozen_stages": -1}, name) if name else None
