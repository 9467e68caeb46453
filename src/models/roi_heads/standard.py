"""The second stage of Faster R-CNN (arXiv:1506.01497) and Mask R-CNN (arXiv:1703.06870)."""

from __future__ import annotations

from collections.abc import Sequence

from mindspore import Tensor, nn, ops

from src.models.assigner_sampler import AssignerSampler
from src.models.box_coder import take_rows
from src.models.heads.box import BBoxHead, BBoxLoss, BoxSelector
from src.models.losses import total_of
from src.models.roi_extractor import RoIExtractor, link
from src.structures import Detections, GroundTruth, Proposals, Sample

__all__ = ["StandardRoIHeads", "StandardRoILoss", "draw", "first_rows", "with_truth"]


class StandardRoIHeads(nn.Cell):
    """One box head, and heads on what it finds.

    Args:
        extractor: of the box head's features.  box: that head.  selector: of detections.  more: cells such as
        MaskBranch, each (features, Detections) -> a tensor of a row a detection.

    Inputs: features, the pyramid; Proposals; image_size (B, 2). Outputs: Detections, and a tuple of what `more` give.
    """

    def __init__(self, extractor: RoIExtractor, box: BBoxHead, selector: BoxSelector, more: Sequence[nn.Cell] = ()):
        super().__init__(auto_prefix=False)
        self.extractor, self.box, self.selector = extractor, box, selector
        self.more = nn.CellList(more, auto_prefix=False)

    def parts(self) -> dict[str, nn.Cell]:
        """The heads by their names in a checkpoint."""
        out = {"bbox_head": self.box}
        for m in self.more:
            out |= m.parts()
        return out

    def construct(
        self, features: tuple[Tensor, ...], proposals: Proposals, image_size: Tensor
    ) -> tuple[Detections, tuple[Tensor, ...]]:
        found = self.selector(*self.classify(features, proposals, image_size), proposals["valid"], image_size)
        out = ()  # type: tuple[Tensor, ...]
        for m in self.more:
            out += (m(features, found),)
        return found, out

    def classify(
        self, features: tuple[Tensor, ...], proposals: Proposals, image_size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Class probabilities (B, P, num_classes), deltas (B, P, 4 * num_classes or 4), and the boxes (B, P, 4) that
        the deltas refer to.
        """
        b, p = proposals["valid"].shape
        logits, deltas = self.box(self.extractor(features, proposals["boxes"], proposals["valid"]))
        return ops.softmax(logits, -1).reshape(b, p, -1), deltas.reshape(b, p, -1), proposals["boxes"]


class StandardRoILoss(nn.Cell):
    """The training losses of StandardRoIHeads.

    Args:
        heads: whose.  sampler: of boxes to train on.  box_loss: of these.  add_gt: ground truth is drawn from, too.
        more: the losses of heads.more, each (features, Sample of positives first, GroundTruth, total) -> loss, count,
        features.

    Inputs: features; Proposals; image_size (B, 2); GroundTruth; keys (B, P + G); totals, see RCNNLoss. Outputs: the
    losses in the order of `names`, and the counts that they are divided by, each a tuple of ().
    """

    def __init__(
        self,
        heads: StandardRoIHeads,
        sampler: AssignerSampler,
        box_loss: BBoxLoss,
        add_gt: bool,
        more: Sequence[nn.Cell] = (),
    ):
        super().__init__(auto_prefix=False)
        self.heads, self.sampler, self.box_loss, self.add_gt = heads, sampler, box_loss, add_gt
        self.more = nn.CellList(more, auto_prefix=False)
        self.names = ("rcnn_cls_loss", "rcnn_reg_loss", *(m.name for m in more))
        self.num_counts = 1 + len(more)
        self.num_levels = link([*(m.extractor for m in more), heads.extractor])

    def construct(
        self,
        features: tuple[Tensor, ...],
        proposals: Proposals,
        image_size: Tensor,
        truth: GroundTruth,
        keys: Tensor,
        totals: Tensor | None = None,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        candidates = with_truth(proposals, truth) if self.add_gt else proposals
        sample = draw(self.sampler, candidates, truth, keys[:, : candidates["valid"].shape[1]])
        counts, further = (sample["used"].sum(),), ()  # type: tuple[Tensor, ...], tuple[Tensor, ...]
        # positives come first, so the first max_positives rows hold them all
        positives = first_rows(sample, self.sampler.max_positives)
        for m in self.more:
            loss, count, features = m(features, positives, truth, total_of(totals, len(counts) + 1))
            further += (loss,)
            counts += (count,)
        rois = self.heads.extractor(features, sample["boxes"], sample["used"] > 0)
        logits, deltas = self.heads.box(rois, sample["used"].reshape(-1))
        return self.box_loss(logits, deltas, sample, total_of(totals, 1)) + further, counts


def with_truth(boxes: Proposals, truth: GroundTruth) -> Proposals:
    """These boxes, then the ground truth's."""
    both = ops.concat((boxes["boxes"], truth["boxes"]), 1)
    return {"boxes": both, "valid": ops.concat((boxes["valid"], truth["valid"]), 1)}


def draw(sampler: AssignerSampler, candidates: Proposals, truth: GroundTruth, keys: Tensor) -> Sample:
    """The boxes that `sampler` draws of `candidates`, and what they are to learn."""
    index, used, positive, gt_index = sampler(
        candidates["boxes"], candidates["valid"], truth["boxes"], truth["valid"], truth["ignore"], keys
    )
    labels = take_rows(truth["labels"], gt_index) * positive.astype(truth["labels"].dtype)
    boxes, targets = take_rows(candidates["boxes"], index), take_rows(truth["boxes"], gt_index)
    return {
        "index": index,
        "boxes": boxes,
        "targets": targets,
        "labels": labels,
        "gt_index": gt_index,
        "used": used,
        "positive": positive,
    }


def first_rows(sample: Sample, count: int) -> Sample:
    """The first `count` rows of each image."""
    n = min(count, sample["index"].shape[1])
    return {
        "index": sample["index"][:, :n],
        "boxes": sample["boxes"][:, :n],
        "targets": sample["targets"][:, :n],
        "labels": sample["labels"][:, :n],
        "gt_index": sample["gt_index"][:, :n],
        "used": sample["used"][:, :n],
        "positive": sample["positive"][:, :n],
    }
