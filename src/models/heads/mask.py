"""The mask head (He et al., 2017, arXiv:1703.06870) and its loss."""

from __future__ import annotations

from collections.abc import Sequence

from mindspore import Tensor, nn, ops
from mindspore.common.initializer import HeNormal

from src.config import Config
from src.models.graph_writer import GraphWriter
from src.models.heads.mask_targets import MaskTargets
from src.models.heads.positives import PositivesLoss
from src.models.losses import binary_cross_entropy
from src.models.norms import NormMaker, conv_layer, norm_of
from src.models.precision import float32
from src.models.roi_extractor import RoIExtractor, build_roi_extractor
from src.ops.dense import TransposedConv2d
from src.runtime.newer import zip_equal
from src.structures import Detections

__all__ = ["MaskBranch", "MaskHead", "MaskLoss", "build_mask_branch", "build_mask_losses"]


class MaskHead(nn.Cell):
    """3x3 convolutions, a 2x transposed convolution and a 1x1 convolution to one mask a class.

    Inputs: features (R, C, S, S); labels (R,) int32 in 0..num_classes-1; in training rows (R,), see BatchNorm. Output:
    logits (R, 2S, 2S) of each RoI's own class. Only that class's filter is applied: the other num_classes - 1 masks
    would be thrown away.
    `norm` follows each 3x3 convolution, in place of its bias.
    """

    def __init__(
        self,
        num_convs: int,
        in_channels: int,
        conv_out_channels: int,
        num_classes: int,
        norm: NormMaker | None = None,
    ):
        super().__init__()
        he = HeNormal(mode="fan_out", nonlinearity="relu")
        channels = [in_channels] + [conv_out_channels] * num_convs
        self.convs = nn.CellList(
            [conv_layer(i, o, 3, norm, he, relu=True) for i, o in zip_equal(channels[:-1], channels[1:])]
        )
        self.normed = norm is not None
        self.upsample = TransposedConv2d(channels[-1], conv_out_channels, relu=True, weight_init=he, bias_init="zeros")
        self.logits = nn.Conv2d(conv_out_channels, num_classes, 1, has_bias=True, weight_init=he, bias_init="zeros")
        self.bmm = ops.BatchMatMul()

    def features(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """What the last convolution sees, (R, conv_out_channels, 2S, 2S)."""
        for conv in self.convs:
            x = conv(x, rows) if self.normed else conv(x)
        return self.upsample(x)

    def construct(self, x: Tensor, labels: Tensor, rows: Tensor | None = None) -> Tensor:
        x = float32(self.features(x, rows))
        r, c, h, w = x.shape
        weight = ops.gather(self.logits.weight.reshape(-1, c), labels, 0).reshape(r, 1, c)
        bias = ops.gather(self.logits.bias, labels, 0).reshape(r, 1, 1)
        return (self.bmm(weight, x.reshape(r, c, h * w)) + bias).reshape(r, h, w)

    def onnx(self, g: GraphWriter, x: str, label: str, cells: int) -> str:
        """Logits (R, 1, cells) of features (R, C, S, S), cells = (2 S)^2, by the filter of each one's class alone."""
        for conv in self.convs:
            x = g.conv(x, conv, relu=True)
        x = g.conv(x, self.upsample, relu=True)
        weight = g.constant(self.logits.weight.asnumpy()[:, None, :, 0, 0], self.logits.weight.name)
        bias = g.constant(self.logits.bias.asnumpy()[:, None, None], self.logits.bias.name)
        x = g.op("MatMul", g.op("Gather", weight, label), g.reshape(x, -1, self.logits.in_channels, cells))
        return g.op("Add", x, g.op("Gather", bias, label))


class MaskBranch(nn.Cell):
    """Masks of detections, by one mask head or by the mean of several (arXiv:1712.00726).

    Args:
        extractor: of the heads' features.  heads: one or more.  staged: these are a cascade's, named so.
        average_probabilities: several heads' masks are averaged after sigmoid, else before.

    Inputs: features, the pyramid; Detections. Output (B, D, 28, 28), probabilities of each detection's class.
    """

    def __init__(
        self,
        extractor: RoIExtractor,
        heads: Sequence[MaskHead],
        staged: bool = False,
        average_probabilities: bool = False,
    ):
        super().__init__(auto_prefix=False)
        self.extractor, self.staged, self.average_probabilities = extractor, staged, average_probabilities
        # a list numbers its cells' parameters
        self.heads = nn.CellList(heads, auto_prefix=staged)

    def parts(self) -> dict[str, nn.Cell]:
        """The heads by their names in a checkpoint."""
        return {"mask_heads": self.heads} if self.staged else {"mask_head": self.heads[0]}

    def construct(self, features: tuple[Tensor, ...], found: Detections) -> Tensor:
        rois, labels = self.extractor(features, found["boxes"], found["valid"]), found["labels"].reshape(-1)
        total = 0.0  # type: Tensor
        for head in self.heads:
            logits = head(rois, labels)
            total = total + (ops.sigmoid(logits) if self.average_probabilities else logits)
        mean = total / len(self.heads)
        masks = mean if self.average_probabilities else ops.sigmoid(mean)
        return masks.reshape(found["valid"].shape + masks.shape[1:])

    def onnx(self, g: GraphWriter, maps: Sequence[str], boxes: str, labels: str, valid: str, count: int) -> str:
        """The masks of `count` detections an image, (N, count, 28, 28); zero where not valid."""
        x, places = g.roi_features(maps, boxes, valid, count, self.extractor)
        label = g.op("Gather", g.reshape(labels, g.n * count), places)
        side = 2 * self.extractor.roi_align.output_size
        logits = [head.onnx(g, x, label, side**2) for head in self.heads]
        masks = g.reshape(g.mean(logits, self.average_probabilities, "Sigmoid"), -1, side, side)
        masks = g.put([g.n * count, side, side], places, masks)
        masks = g.reshape(masks, g.n, count, side, side)
        return g.op("Where", g.op("Unsqueeze", valid, [-2, -1]), masks, 0.0)


class MaskLoss(PositivesLoss):
    """Binary cross entropy of the positive RoIs' masks, the mean over their cells.

    Args:
        head, roi_extractor, targets: the mask head, its features, its targets.  weight, buckets, ranks: see
        PositivesLoss.
    """

    name, field = "rcnn_mask_loss", "masks"

    def __init__(
        self,
        head: MaskHead,
        roi_extractor: RoIExtractor,
        targets: MaskTargets,
        weight: float = 1.0,
        buckets: int = 1,
        ranks: int = 1,
    ):
        super().__init__(roi_extractor, weight, buckets, ranks)
        self.head, self.targets = head, targets

    def sum_of(self, crops: Tensor, rows: tuple, masks: Tensor, n: int) -> Tensor:
        rois, gt_boxes, labels, index, positive = (rows[0][:n], rows[1][:n], rows[2][:n], rows[3][:n], rows[4][:n])
        logits = self.head(crops, labels, positive)
        targets = self.targets(masks, index, rois[:, 1:], gt_boxes)
        return (binary_cross_entropy(logits, targets).mean((1, 2)) * positive).sum()


def build_mask_branch(config: Config, builtin_ops: bool) -> MaskBranch:
    """The branch of config.mask_head."""
    cascade, staged, c = config.cascade, config.is_cascade, config.mask_head
    count = len(cascade.target_stds) if staged and cascade.mask_head_per_stage else 1
    norm = norm_of(c.norm, config.backbone.norm_eps, config.backbone.norm_momentum)
    heads = [MaskHead(c.num_convs, c.in_channels, c.conv_out_channels, config.num_classes, norm) for _ in range(count)]
    extractor = build_roi_extractor(config.mask_roi, builtin_ops)
    return MaskBranch(extractor, heads, staged, staged and cascade.average_masks == "probabilities")


def build_mask_losses(config: Config, branch: MaskBranch, ranks: int, weights: Sequence[float]) -> list[list[nn.Cell]]:
    """Of each stage, whose losses have that weight, those of the mask heads on its sample."""
    rcnn, staged = config.train_cfg.rcnn, config.is_cascade
    if staged and not config.cascade.mask_head_per_stage:
        # one head alone learns from the first stage, at full weight
        weights = [1.0] * len(weights)
    out: list[list[nn.Cell]] = []
    # ranks that share statistics have to run the same graph
    buckets = 1 if ranks > 1 and config.mask_head.norm == "sync" else rcnn.mask_buckets
    for head, weight in zip(branch.heads, weights):
        targets = MaskTargets(rcnn.mask_size, config.mask_target_box, rcnn.mask_targets == "binary", rcnn.mask_crop)
        weight = weight * config.mask_head.loss_mask.loss_weight
        out.append([MaskLoss(head, branch.extractor, targets, weight, buckets, ranks)])
    return out + [[] for _ in weights[len(out) :]]
