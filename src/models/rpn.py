"""Region proposal network (Ren et al., 2015, arXiv:1506.01497): its head, its anchors, its proposals, its losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Normal

from src.models.anchors import cell_steps, map_size
from src.models.assigner_sampler import AssignerSampler
from src.models.box_coder import BoxCoder, take_rows
from src.models.losses import Normaliser, binary_cross_entropy, smooth_l1, total_of
from src.models.precision import float32
from src.models.proposals import ProposalGenerator
from src.ops.conv import Conv2d
from src.ops.roi_align import MultiScaleRoIAlign
from src.ops.rpn_head import DenseRPNHead
from src.structures import GroundTruth, Proposals

__all__ = ["RPN", "RPNHead", "RPNLoss", "SampledRPN"]


class RPNHead(nn.Cell):
    """3x3 convolutions, by default one, then 1x1 convolutions to objectness and box deltas, shared by all levels.

    Input: FPN maps, each (B, C, H, W). Output: a tuple of objectness logits, each (B, H * W * A), and a tuple of
    deltas, each (B, H * W * A, 4), in the order of `make_anchors`: rows, cells, anchors.
    """

    def __init__(self, in_channels: int, feat_channels: int, num_anchors: int, num_convs: int = 1):
        super().__init__()
        options: dict[str, Any] = {"copied": True, "has_bias": True, "weight_init": Normal(0.01), "bias_init": "zeros"}
        # named one by one, not as a CellList: conv, conv2, ... in checkpoints
        names = ["conv", *(f"conv{i}" for i in range(2, num_convs + 1))]
        for i, name in enumerate(names):
            inputs = feat_channels if i else in_channels
            conv = Conv2d(inputs, feat_channels, 3, relu=True, **options)
            setattr(self, name, conv)
        self.convs = tuple(getattr(self, name) for name in names)
        self.cls = Conv2d(feat_channels, num_anchors, 1, **options)
        self.reg = Conv2d(feat_channels, num_anchors * 4, 1, **options)
        self.relu, self.fused = nn.ReLU(), DenseRPNHead()

    def construct(self, features: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        return self.each(features)

    def dense(self, features: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The outputs without gradient, of one operator where there is one."""
        features = frozen(features)
        if not self.fused.fits(features, self.convs[-1]):
            return self.each(features)
        for conv in self.convs[:-1]:
            features = through(conv, features)
        return self.fused(features, self.convs[-1], self.cls, self.reg)

    def each(self, features: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The outputs, level by level."""
        logits, deltas = (), ()  # type: tuple[Tensor, ...], tuple[Tensor, ...]
        for x in features:
            b = x.shape[0]
            y = self.hidden(x)
            logits += (self.cls(y).transpose(0, 2, 3, 1).reshape(b, -1),)
            deltas += (self.reg(y).transpose(0, 2, 3, 1).reshape(b, -1, 4),)
        return logits, deltas

    def hidden(self, x: Tensor) -> Tensor:
        """What the last convolutions see of a map, (B, feat_channels, H, W)."""
        for conv in self.convs:
            x = conv(x)
        return x


class RPN(nn.Cell):
    """Proposals of images.

    Args:
        head: RPNHead.  anchors: (N, 4) of the canvas.  corners: (2, N), their cells' x, and y.  proposals: the
        generator at inference.  turned: anchors and corners of the canvas turned, where pictures may have that.
        size_divisor: a picture's sides are rounded up to multiples of it, which anchors have to begin in.

    Inputs: features, a tuple of (B, C, H_l, W_l); image_size (B, 2). Output: Proposals.
    """

    def __init__(
        self,
        head: RPNHead,
        anchors: Tensor,
        corners: Tensor,
        proposals: ProposalGenerator,
        turned: tuple[Tensor, Tensor] | None = None,
        size_divisor: int = 1,
    ):
        super().__init__(auto_prefix=False)
        self.head, self.anchors, self.corners, self.proposals = head, anchors, corners, proposals
        self.blocks = block_corners(corners, size_divisor)
        self.turns = turned is not None
        if turned is not None:
            self.turned_anchors, self.turned_corners = turned
            self.turned_blocks = block_corners(self.turned_corners, size_divisor)

    def grid(self, features: tuple[Tensor, ...], image_size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors (N, 4) of the features' canvas, their cells' corners (2, N), and (B, N) bool: the cell begins inside
        the picture or what it is padded to, not in the rest of the canvas.
        """
        anchors, corners, blocks = self.anchors, self.corners, self.blocks
        if self.turns and features[0].shape[2] > features[0].shape[3]:
            anchors, corners, blocks = self.turned_anchors, self.turned_corners, self.turned_blocks
        x_inside = blocks[:1] < image_size[:, 1:]
        y_inside = blocks[1:] < image_size[:, :1]
        return anchors, corners, ops.logical_and(x_inside, y_inside)

    def construct(self, features: tuple[Tensor, ...], image_size: Tensor) -> Proposals:
        logits, deltas = self.head.dense(features)
        grid = self.grid(features, image_size)
        # one unpacked in vain here, MindSpore warns of side effects that it eliminated
        found = self.proposals(logits, deltas, grid[0], grid[2], image_size)
        return {"boxes": found[0], "valid": found[2]}


def block_corners(corners: Tensor, size: int) -> Tensor:
    """Corners (2, N) of the blocks of `size` x `size` pixels that cells (2, N) begin in: these lie before a picture's
    end where the cells do before that end rounded up to whole blocks.
    """
    return Tensor(corners.asnumpy() // size * size)


class SampledRPN(nn.Cell):
    """The head at sampled anchors alone, for the losses: the same numbers as the dense head's, gradients included.

    A loss over a few hundred anchors leaves the dense head's gradient zero almost everywhere, yet its two backward
    convolutions over all levels cost a fifth of a training step. So the dense head runs without gradient, for
    proposals, and each sampled anchor's 3x3 neighbourhood is cut out and the head applied to it as matrix products.
    RoIAlign with one sample a bin, on a RoI of three cells, reads whole cells and knows the way back. Of several hidden
    convolutions that is the last; those before it are dense.

    height, width: of the canvas; turns: maps may be those of the canvas turned. Inputs: features, a tuple of L maps
    (B, C, H_l, W_l); index (B, S) int32 into the anchors; corners (2, N) float32, those of the anchors' cells in canvas
    pixels, x and y. Outputs: logits (B, S), deltas (B, S, 4), and the features for who uses them further, see
    MultiScaleRoIAlign.passing.
    """

    def __init__(
        self,
        head: RPNHead,
        counts: Sequence[int],
        strides: Sequence[int],
        height: int,
        width: int,
        grid_strides: bool = False,
        turns: bool = False,
    ):
        super().__init__(auto_prefix=False)
        self.head, self.turns = head, turns
        self.num_anchors = head.cls.out_channels
        self.ends = np.cumsum(counts)[:-1].tolist()
        self.strides = Tensor(np.asarray(strides, np.float32))
        # x before y: cells of each map, and pixels between its anchors
        sizes = np.array([map_size(height, width, s)[::-1] for s in strides], np.float32)
        steps = np.array([cell_steps(height, width, s, grid_strides)[::-1] for s in strides], np.float32)
        self.sizes, self.steps = Tensor(sizes), Tensor(steps)
        self.turned_sizes, self.turned_steps = Tensor(sizes[:, ::-1].copy()), Tensor(steps[:, ::-1].copy())
        self.cut = MultiScaleRoIAlign(3, 1, True, tuple(strides))
        self.offsets = Tensor(np.array([-1, 0, 1], np.float32))
        self.reach = Tensor(np.array([-1, -1, 2, 2], np.float32))
        self.matmul = ops.MatMul(transpose_b=True)

    def passed_to(self, levels: int) -> None:
        """Says that of the features passed on the first `levels` are read by a RoIAlign, and by nobody else."""
        if len(self.head.convs) == 1:
            self.cut.passed_to(levels)

    def construct(
        self, features: tuple[Tensor, ...], index: Tensor, corners: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        b, s = index.shape
        flat = index.reshape(-1)
        level = ops.zeros_like(flat)
        for end in self.ends:
            level = level + (flat >= end).astype(flat.dtype)
        before = features
        for conv in self.head.convs[:-1]:
            before = through(conv, before)
        cells, passed = self.neighbourhood(before, flat, level, corners, b)
        x = self.relu_conv(cells)
        logits = self.dense(x, self.head.cls.weight, self.head.cls.bias)
        deltas = self.dense(x, self.head.reg.weight, self.head.reg.bias)
        anchor = (flat - flat // self.num_anchors * self.num_anchors).expand_dims(1)
        return (
            take_rows(logits, anchor).reshape(b, s),
            take_rows(deltas.reshape(b * s, -1, 4), anchor).reshape(b, s, 4),
            passed if len(self.head.convs) == 1 else features,
        )

    def neighbourhood(
        self, features: tuple, flat: Tensor, level: Tensor, corners: Tensor, b: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(B * S, C, 3, 3) cells around each anchor's, zero outside its map; and the features, passed on."""
        sizes, steps = self.sizes, self.steps
        if self.turns and features[0].shape[2] > features[0].shape[3]:
            sizes, steps = self.turned_sizes, self.turned_steps
        cell = ops.gather(corners, flat, 1).transpose(1, 0) / ops.gather(steps, level, 0)
        stride = ops.gather(self.strides, level, 0).expand_dims(1)
        boxes = (ops.tile(cell, (1, 2)) + self.reach) * stride
        image = ops.arange(b).astype(boxes.dtype).reshape(b, 1).broadcast_to((b, flat.shape[0] // b)).reshape(-1, 1)
        cells, features = self.cut.passing(features, ops.stop_gradient(ops.concat((image, boxes), 1)), level)
        # RoIAlign repeats a map's edge; the convolution that this stands for pads with zeros
        place = cell.expand_dims(2) + self.offsets
        size = ops.gather(sizes, level, 0).expand_dims(2)
        inside = ops.logical_and(place >= 0, place < size).astype(cells.dtype)
        mask = inside[:, 1].expand_dims(2) * inside[:, 0].expand_dims(1)
        # broadcast first: where a product broadcasts, MindSpore keeps two lists of 8 bytes a cell
        return cells * ops.stop_gradient(mask).expand_dims(1).broadcast_to(cells.shape), features

    def relu_conv(self, cells: Tensor) -> Tensor:
        """The hidden layer (B * S, feat_channels)."""
        conv = self.head.convs[-1]
        if conv.half:
            cells = cells.astype(ms.float16)
        return float32(self.head.relu(self.dense(cells.reshape(cells.shape[0], -1), conv.weight, conv.bias)))

    def dense(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """x (R, C) by a convolution's filters, in the type of x."""
        return self.matmul(x, weight.reshape(weight.shape[0], -1).astype(x.dtype)) + bias.astype(x.dtype)


def through(conv: nn.Cell, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The maps after a convolution, in float32."""
    out = ()  # type: tuple[Tensor, ...]
    for x in features:
        out += (float32(conv(x)),)
    return out


class RPNLoss(nn.Cell):
    """Objectness (binary cross entropy) and box (smooth L1) losses over sampled anchors; and proposals to train on.

    Args:
        rpn: whose.  proposals: the generator in training.  sampled: the head at sampled anchors.
        assigner_sampler, coder: of anchors.  cls_weight, box_weight: loss weights.  beta: of smooth L1.  ranks: that
        train together.
        normaliser: what both losses' sums are divided by. "sampled": the sampled anchors (torchvision,
        maskrcnn-benchmark); "mmdet": these, but at least one positive and one negative an image (mmdetection's
        SamplingResult); "num": assigner_sampler.num an image, however many were sampled (Detectron2, MindSpore's zoo).

    Inputs: features, a tuple of (B, C, H_l, W_l); image_size (B, 2); GroundTruth; keys (B, N) uniform in [0, 1);
    totals, see RCNNLoss, of which the first counts. Outputs: Proposals; the two losses; the count of this batch, ();
    and the features for who uses them further, see MultiScaleRoIAlign.passing.
    """

    def __init__(
        self,
        rpn: RPN,
        proposals: ProposalGenerator,
        sampled: SampledRPN,
        assigner_sampler: AssignerSampler,
        coder: BoxCoder,
        cls_weight: float = 1.0,
        box_weight: float = 1.0,
        beta: float = 1 / 9,
        ranks: int = 1,
        normaliser: str = "sampled",
    ):
        super().__init__(auto_prefix=False)
        self.normaliser, self.counted = Normaliser(ranks), normaliser
        self.rpn, self.proposals = rpn, proposals
        self.sampled, self.assigner_sampler, self.coder = sampled, assigner_sampler, coder
        self.cls_weight, self.box_weight, self.beta = cls_weight, box_weight, beta

    def construct(
        self,
        features: tuple[Tensor, ...],
        image_size: Tensor,
        truth: GroundTruth,
        keys: Tensor,
        totals: Tensor | None = None,
    ) -> tuple[Proposals, tuple[Tensor, Tensor], Tensor, tuple[Tensor, ...]]:
        logits, deltas = self.rpn.head.dense(features)
        anchors, corners, inside = self.rpn.grid(features, image_size)
        drawn_from = self.proposals(logits, deltas, anchors, inside, image_size)
        index, valid, positive, gt_index = self.assigner_sampler(
            anchors, inside, truth["boxes"], truth["valid"], truth["ignore"], keys
        )
        logits, deltas, features = self.sampled(features, index, corners)
        count = self.count(valid, positive)
        divisor = self.normaliser(count, total_of(totals, 0))
        cls_loss = (binary_cross_entropy(logits, positive) * valid).sum() / divisor
        objects = take_rows(truth["boxes"], gt_index)
        target = ops.stop_gradient(self.coder.encode(objects, ops.gather(anchors, index, 0)))
        box_loss = (smooth_l1(deltas, target, self.beta).sum(-1) * positive).sum() / divisor
        losses = (self.cls_weight * cls_loss, self.box_weight * box_loss)
        return {"boxes": drawn_from[0], "valid": drawn_from[2]}, losses, count, features

    def count(self, valid: Tensor, positive: Tensor) -> Tensor:
        """What the losses of this batch's anchors are divided by; valid and positive (B, S) float32."""
        if self.counted == "num":
            return ops.full_like(valid[:, 0], float(self.assigner_sampler.num)).sum()
        if self.counted == "mmdet":
            positives = positive.sum(1)
            return (ops.maximum(positives, 1.0) + ops.maximum(valid.sum(1) - positives, 1.0)).sum()
        return valid.sum()


def frozen(features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same maps, without gradient."""
    out = ()  # type: tuple[Tensor, ...]
    for f in features:
        out += (ops.stop_gradient(f),)
    return out
