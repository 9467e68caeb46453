"""What losses of heads on positive RoIs share: the head runs on little more than these."""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from src.models.losses import Normaliser
from src.models.roi_extractor import RoIExtractor
from src.structures import GroundTruth, Sample

__all__ = ["PositivesLoss"]


class PositivesLoss(nn.Cell):
    """A loss of the positive RoIs; a subclass says in `sum_of` what it is, and in `counted` how many terms it has.

    Such heads are the dearest part of a step, and rarely are all RoIs that could be positive so. Positives of the whole
    batch are moved to the front, and the head runs on the smallest of `buckets` graph sizes (R, R / 2, R / 4, ...) that
    holds them: static shapes, and no work on more than twice the positives.

    Args:
        extractor: of the head's features.  weight: of the loss.  buckets: number of sizes; 1: always all rows.  ranks:
        that train together.

    Inputs: features; Sample of positives first; GroundTruth; total (), see Normaliser. Outputs: the loss, the mean over
    all terms, and the count of these, each (); and the features for who uses them further, as somebody must, see
    MultiScaleRoIAlign.passing.
    """

    name, field = "", ""

    def __init__(self, extractor: RoIExtractor, weight: float = 1.0, buckets: int = 1, ranks: int = 1):
        super().__init__(auto_prefix=False)
        self.extractor = extractor
        self.normaliser, self.weight, self.buckets = Normaliser(ranks), weight, buckets
        self.topk = ops.TopK(sorted=True)

    def construct(
        self,
        features: tuple[Tensor, ...],
        sample: Sample,
        truth: GroundTruth,
        total: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        positive, values, rois = sample["positive"], truth[self.field], sample["boxes"].reshape(-1, 4)
        b, p = positive.shape
        g = values.shape[1]
        flat = positive.reshape(-1)
        # distinct keys, positives' above all others', in their order
        _, order = self.topk(flat * (b * p) - ops.arange(b * p).astype(flat.dtype), b * p)
        image = order // p
        rows = (
            ops.concat((image.astype(rois.dtype).expand_dims(1), ops.gather(rois, order, 0)), 1),
            ops.gather(sample["targets"].reshape(-1, 4), order, 0),
            ops.gather(sample["labels"].reshape(-1), order, 0),
            ops.gather(sample["gt_index"].reshape(-1), order, 0) + image.astype(sample["gt_index"].dtype) * g,
            ops.gather(flat, order, 0),
        )
        values = values.reshape((b * g,) + values.shape[2:])
        count = self.counted(rows, values)
        # not in the branches, which would keep the features until their ends
        crops, features = self.extractor.extract_passing(features, rows[0], rows[4] > 0)
        found = self.bucket(crops, rows, values, flat.sum(), self.buckets - 1)
        return self.weight * found / self.normaliser(count, total), count, features

    def bucket(self, crops: Tensor, rows: tuple, values: Tensor, count: Tensor, halvings: int) -> Tensor:
        """Sum of the losses of the first rows, on 1 / 2^halvings of them if that holds all `count` positives."""
        n = rows[0].shape[0] // 2**halvings
        if halvings == 0:
            return self.sum_of(crops[:n], rows, values, n)
        if count <= n:
            total = self.sum_of(crops[:n], rows, values, n)
        else:
            total = self.bucket(crops, rows, values, count, halvings - 1)
        return total

    def counted(self, rows: tuple, values: Tensor) -> Tensor:
        """The loss's terms, (): the positives."""
        return rows[4].sum()

    def sum_of(self, crops: Tensor, rows: tuple, values: Tensor, n: int) -> Tensor:
        """Sum of the losses of the first n rows, of which crops (n, C, S, S) are the features.

        rows: RoIs (R, 5), the image's index first; their objects' boxes (R, 4), labels (R,) and places (R,) in values
        (B * G, ...); positive (R,) float32.
        """
        raise NotImplementedError
