"""The stages of Cascade R-CNN and Cascade Mask R-CNN (Cai and Vasconcelos, 2018, arXiv:1712.00726).

Each stage's box head refines the boxes that the next stage classifies, and is trained at a higher IoU.
"""

from __future__ import annotations

from collections.abc import Sequence

from mindspore import Tensor, nn, ops

from src.models.assigner_sampler import AssignerSampler
from src.models.box_coder import BoxCoder, clip_boxes
from src.models.heads.box import BBoxHead, BBoxLoss, BoxSelector, class_deltas
from src.models.losses import total_of
from src.models.roi_extractor import RoIExtractor, link
from src.models.roi_heads.standard import draw, first_rows, with_truth
from src.structures import Detections, GroundTruth, Proposals, Sample

__all__ = ["CascadeRoIHeads", "CascadeRoILoss"]


class CascadeRoIHeads(nn.Cell):
    """A box head a stage, and heads on what the last one finds; inputs and outputs are StandardRoIHeads'.

    Args:
        extractor: of the box heads' features.  boxes, coders: heads and their coders, one a stage.  selector, more: see
        StandardRoIHeads.  average_probabilities: the stages' class scores are averaged after softmax, else before.
    """

    def __init__(
        self,
        extractor: RoIExtractor,
        boxes: Sequence[BBoxHead],
        coders: Sequence[BoxCoder],
        selector: BoxSelector,
        average_probabilities: bool,
        more: Sequence[nn.Cell] = (),
    ):
        super().__init__(auto_prefix=False)
        self.extractor, self.selector, self.average_probabilities = extractor, selector, average_probabilities
        self.boxes, self.coders = nn.CellList(boxes), nn.CellList(coders)
        self.more = nn.CellList(more, auto_prefix=False)

    def parts(self) -> dict[str, nn.Cell]:
        """The heads by their names in a checkpoint."""
        out = {"bbox_heads": self.boxes}
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
        """As StandardRoIHeads.classify."""
        boxes, valid = proposals["boxes"], proposals["valid"]
        b, p = valid.shape
        logits, deltas = self.boxes[0](self.extractor(features, boxes, valid))
        total = self.to_average(logits)
        for stage in range(1, len(self.boxes)):
            boxes = self.refine(stage - 1, logits, deltas, boxes, image_size)
            logits, deltas = self.boxes[stage](self.extractor(features, boxes, valid))
            total = total + self.to_average(logits)
        mean = total / len(self.boxes)
        scores = mean if self.average_probabilities else ops.softmax(mean, -1)
        return scores.reshape(b, p, -1), deltas.reshape(b, p, -1), boxes

    def refine(self, stage: int, logits: Tensor, deltas: Tensor, boxes: Tensor, image_size: Tensor) -> Tensor:
        """The boxes (B, P, 4) that follow `boxes` by `stage`'s deltas, those of the likeliest class if class-wise."""
        b, p = boxes.shape[:2]
        label = logits[:, 1:].argmax(-1) + 1
        delta = class_deltas(deltas, label).reshape(b, p, 4)
        return ops.stop_gradient(clip_boxes(self.coders[stage](delta, boxes), image_size, self.selector.plus_one))

    def to_average(self, logits: Tensor) -> Tensor:
        """Of a stage's class logits, what is averaged."""
        return ops.softmax(logits, -1) if self.average_probabilities else logits


class CascadeRoILoss(nn.Cell):
    """The training losses of CascadeRoIHeads, the stages' summed; inputs and outputs are StandardRoILoss's.

    Args:
        heads: whose.  samplers, box_losses, weights: one a stage, the last of the stage's losses.  add_gt: see
        StandardRoILoss.  resample: each stage draws its sample from the boxes before, refined, and the ground truth
        (mmdetection); else every stage trains on the first one's sample, refined (Detectron2).  feature_gradient:
        factor on the gradient from the box heads to the feature maps.  more: of each stage, the losses of further heads
        on its sample, see StandardRoILoss; those of one name are summed.
    """

    def __init__(
        self,
        heads: CascadeRoIHeads,
        samplers: Sequence[AssignerSampler],
        box_losses: Sequence[BBoxLoss],
        weights: Sequence[float],
        add_gt: bool,
        resample: bool,
        feature_gradient: float = 1.0,
        more: Sequence[Sequence[nn.Cell]] = (),
    ):
        super().__init__(auto_prefix=False)
        self.heads, self.weights, self.add_gt = heads, tuple(weights), add_gt
        # a list's own prefix would go before the names of the heads' parameters
        self.samplers = nn.CellList(samplers, auto_prefix=False)
        self.box_losses = nn.CellList(box_losses, auto_prefix=False)
        self.resample, self.feature_gradient = resample, feature_gradient
        further = list(dict.fromkeys(m.name for stage in more for m in stage))
        self.names = ("rcnn_cls_loss", "rcnn_reg_loss", *further)
        self.num_counts = len(box_losses) + sum(map(len, more))
        stages = more or [()] * len(box_losses)
        self.num_levels = link([e for stage in stages for e in (*(m.extractor for m in stage), heads.extractor)])
        self.more = nn.CellList([m for stage in more for m in stage], auto_prefix=False)
        # of each stage, where in the sums its further losses belong
        self.places = tuple(tuple(further.index(m.name) for m in stage) for stage in more)

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
        own = proposals["valid"].shape[1]
        cls_total, reg_total, more_totals = 0.0, 0.0, self.zeros(proposals["boxes"])
        counts = ()  # type: tuple[Tensor, ...]
        used_keys, used_more = 0, 0
        for stage in range(len(self.box_losses)):
            n = candidates["valid"].shape[1]
            sample = draw(self.samplers[stage], candidates, truth, keys[:, used_keys : used_keys + n])
            used_keys += n
            total = total_of(totals, 1 + len(counts))
            counts += (sample["used"].sum(),)
            positives = first_rows(sample, self.samplers[stage].max_positives)
            for i in self.places[stage]:
                further, further_total = self.more[used_more], total_of(totals, 1 + len(counts))
                loss, count, features = further(features, positives, truth, further_total)
                used_more += 1
                counts += (count,)
                more_totals = added(more_totals, i, loss)
            rois, features = self.rois(stage, features, sample)
            logits, deltas = self.heads.boxes[stage](self.scale_gradient(rois), sample["used"].reshape(-1))
            cls_loss, reg_loss = self.box_losses[stage](logits, deltas, sample, total)
            weight = self.weights[stage]
            cls_total, reg_total = cls_total + weight * cls_loss, reg_total + weight * reg_loss
            if stage + 1 < len(self.box_losses):
                boxes = self.heads.refine(stage, logits, deltas, sample["boxes"], image_size)
                valid = ops.logical_and(sample["used"] > 0, (boxes[..., 2:] - boxes[..., :2]).min(axis=-1) > 0)
                candidates = {"boxes": boxes, "valid": valid}
                if self.resample:
                    # ground truth that was drawn as a box comes back whole, not refined
                    candidates = {"boxes": boxes, "valid": ops.logical_and(valid, sample["index"] < own)}
                    candidates = with_truth(candidates, truth) if self.add_gt else candidates
                    own = sample["index"].shape[1]
        return (cls_total, reg_total) + more_totals, counts

    def rois(self, stage: int, features: tuple[Tensor, ...], sample: Sample) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The box head's features, and the pyramid for the next stage, see MultiScaleRoIAlign.passing."""
        if stage + 1 < len(self.box_losses):
            return self.heads.extractor.passing(features, sample["boxes"], sample["used"] > 0)
        return self.heads.extractor(features, sample["boxes"], sample["used"] > 0), features

    def zeros(self, like: Tensor) -> tuple[Tensor, ...]:
        """A zero for the sum of each further head's losses."""
        out = ()  # type: tuple[Tensor, ...]
        for _ in range(len(self.names) - 2):
            out += (ops.zeros((), like.dtype),)
        return out

    def scale_gradient(self, x: Tensor) -> Tensor:
        """x, whose gradient is multiplied by feature_gradient."""
        if self.feature_gradient == 1.0:
            return x
        return self.feature_gradient * x + ops.stop_gradient((1.0 - self.feature_gradient) * x)


def added(totals: tuple[Tensor, ...], i: int, loss: Tensor) -> tuple[Tensor, ...]:
    """The totals, the i-th increased by `loss`."""
    return totals[:i] + (totals[i] + loss,) + totals[i + 1 :]
