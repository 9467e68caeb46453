"""The keypoint head (He et al., 2017, arXiv:1703.06870, section 5), its targets and its loss."""

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.common.initializer import HeNormal

from src.config import Config
from src.models.graph_writer import GraphWriter
from src.models.heads.positives import PositivesLoss
from src.models.norms import conv_layer
from src.models.precision import float32
from src.models.roi_extractor import RoIExtractor, build_roi_extractor
from src.runtime.newer import zip_equal
from src.structures import Detections

__all__ = ["KeypointBranch", "KeypointHead", "KeypointLoss", "build_keypoint_branch", "build_keypoint_losses"]


def bilinear_rows(side: int) -> np.ndarray:
    """(2 side, side) float32: what of `side` cells each of twice as many, half as wide, is made of, bilinearly between
    their centres; beyond the outermost the map goes on as there.
    """
    centre = np.clip((np.arange(2 * side) + 0.5) / 2 - 0.5, 0, side - 1)
    return np.maximum(1 - np.abs(centre[:, None] - np.arange(side)), 0).astype(np.float32)


class KeypointHead(nn.Cell):
    """3x3 convolutions, a 4x4 transposed convolution of stride 2 to a map a keypoint, and that enlarged twice.

    Input (R, C, S, S). Output: logits (R, K, 4S, 4S), of which the largest is where the keypoint is.
    """

    def __init__(self, num_convs: int, in_channels: int, conv_out_channels: int, keypoints: int, side: int):
        super().__init__()
        he = HeNormal(mode="fan_out", nonlinearity="relu")
        channels = [in_channels] + [conv_out_channels] * num_convs
        self.convs = nn.CellList(
            [conv_layer(i, o, 3, None, he, relu=True) for i, o in zip_equal(channels[:-1], channels[1:])]
        )
        self.upsample = nn.Conv2dTranspose(
            channels[-1], keypoints, 4, 2, "pad", 1, has_bias=True, weight_init=he, bias_init="zeros"
        )
        # a resizing operator's gradient is slow on CPU, and exports differ in where they put its edges
        rows = bilinear_rows(2 * side)
        self.rows, self.columns = Tensor(rows), Tensor(np.ascontiguousarray(rows.T))
        self.matmul = ops.MatMul()

    def construct(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x)
        x = self.enlarged(float32(self.upsample(x)).swapaxes(2, 3))
        return self.enlarged(x.swapaxes(2, 3))

    def enlarged(self, x: Tensor) -> Tensor:
        """(R, K, H, W) -> (R, K, H, 2W)."""
        # two dimensions: whole graphs for Ascend lack ops.matmul's operator for more
        return self.matmul(x.reshape(-1, x.shape[3]), self.columns).reshape(x.shape[:3] + (2 * x.shape[3],))

    def onnx(self, g: GraphWriter, x: str) -> str:
        for conv in self.convs:
            x = g.conv(x, conv, relu=True)
        x = g.op("MatMul", g.constant(self.rows.asnumpy()), g.conv(x, self.upsample))
        return g.op("MatMul", x, g.constant(self.columns.asnumpy()))


class KeypointBranch(nn.Cell):
    """Keypoints of detections.

    Args:
        extractor: of the head's features.  head: a KeypointHead.

    Inputs: features, the pyramid; Detections. Output (B, D, K, M, M), logits over each detection's box.
    """

    def __init__(self, extractor: RoIExtractor, head: KeypointHead):
        super().__init__(auto_prefix=False)
        # a list, as branches have it that a cascade has several of
        self.extractor, self.heads = extractor, nn.CellList([head], auto_prefix=False)

    def parts(self) -> dict[str, nn.Cell]:
        """The head by its name in a checkpoint."""
        return {"keypoint_head": self.heads[0]}

    def construct(self, features: tuple[Tensor, ...], found: Detections) -> Tensor:
        maps = self.heads[0](self.extractor(features, found["boxes"], found["valid"]))
        return maps.reshape(found["valid"].shape + maps.shape[1:])

    def onnx(self, g: GraphWriter, maps: Sequence[str], boxes: str, labels: str, valid: str, count: int) -> str:
        """The heatmaps of `count` detections an image, (N, count, K, M, M); zero where not valid."""
        x, places = g.roi_features(maps, boxes, valid, count, self.extractor)
        side, keypoints = 4 * self.extractor.roi_align.output_size, self.heads[0].upsample.out_channels
        found = g.put([g.n * count, keypoints, side, side], places, self.heads[0].onnx(g, x))
        found = g.reshape(found, g.n, count, keypoints, side, side)
        return g.op("Where", g.op("Unsqueeze", valid, [-3, -2, -1]), found, 0.0)


class KeypointLoss(PositivesLoss):
    """Cross entropy over the cells of each keypoint's map, the mean over keypoints that are labelled and in the RoI.

    Args:
        head, roi_extractor: the keypoint head and its features.  side: of its maps.  weight, buckets, ranks: see
        PositivesLoss.

    The ground truth's "keypoints" (B, G, K, 3): x, y in canvas pixels, and visibility, 0 where not labelled. A keypoint
    on a RoI's right or lower edge belongs to the last cell.
    """

    name, field = "rcnn_keypoint_loss", "keypoints"

    def __init__(
        self,
        head: KeypointHead,
        roi_extractor: RoIExtractor,
        side: int,
        weight: float = 1.0,
        buckets: int = 1,
        ranks: int = 1,
    ):
        super().__init__(roi_extractor, weight, buckets, ranks)
        self.head, self.side = head, side

    def places(self, rois: Tensor, keypoints: Tensor) -> tuple[Tensor, Tensor]:
        """Of RoIs (R, 4) and their objects' keypoints (R, K, 3): each one's cell (R, K) int32, row by row, and whether
        it is there, (R, K) float32.
        """
        low, high = rois[:, :2].expand_dims(1), rois[:, 2:].expand_dims(1)
        place = keypoints[..., :2]
        cell = ops.floor((place - low) * (self.side / ops.maximum(high - low, 1e-6)))
        cell = ops.select(place == high, ops.full_like(cell, self.side - 1.0), cell)
        inside = ops.logical_and(cell >= 0, cell < self.side).astype(mstype.float32)
        there = inside[..., 0] * inside[..., 1] * (keypoints[..., 2] > 0).astype(mstype.float32)
        index = (cell[..., 1] * self.side + cell[..., 0]) * there
        return index.astype(mstype.int32), there

    def counted(self, rows: tuple, values: Tensor) -> Tensor:
        there = self.places(rows[0][:, 1:], ops.gather(values, rows[3], 0))[1]
        return ops.stop_gradient((there * rows[4].expand_dims(1)).sum())

    def sum_of(self, crops: Tensor, rows: tuple, values: Tensor, n: int) -> Tensor:
        rois, index, positive = rows[0][:n], rows[3][:n], rows[4][:n]
        logits = self.head(crops)
        target, there = self.places(rois[:, 1:], ops.gather(values, index, 0))
        flat = logits.reshape(n, logits.shape[1], -1)
        chosen = ops.gather_d(flat, 2, target.expand_dims(2)).squeeze(2)
        most = ops.stop_gradient(flat.max(axis=-1, keepdims=True))
        total = ops.log(ops.exp(flat - most).sum(-1)) + most.squeeze(2)
        return ((total - chosen) * there * positive.expand_dims(1)).sum()


def build_keypoint_branch(config: Config, builtin_ops: bool) -> KeypointBranch:
    """The branch of config.keypoint_head."""
    c, roi = config.keypoint_head, config.keypoint_roi
    head = KeypointHead(c.num_convs, c.in_channels, c.conv_out_channels, len(c.names), roi.roi_layer.out_size)
    return KeypointBranch(build_roi_extractor(roi, builtin_ops), head)


def build_keypoint_losses(
    config: Config, branch: KeypointBranch, ranks: int, weights: Sequence[float]
) -> list[list[nn.Cell]]:
    """The keypoint head's loss on the box head's sample; of a cascade, on its first stage's."""
    side, buckets = 4 * config.keypoint_roi.roi_layer.out_size, config.train_cfg.rcnn.mask_buckets
    weight = config.keypoint_head.loss_keypoint.loss_weight
    loss = KeypointLoss(branch.heads[0], branch.extractor, side, weight, buckets, ranks)
    return [[loss], *([] for _ in weights[1:])]
