"""The box head: shared layers, then classes and box deltas; its losses; and the choice of detections."""

from __future__ import annotations

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.common.initializer import HeNormal, Normal, XavierUniform

from src.models.box_coder import BoxCoder, clip_boxes, take_rows
from src.models.graph_writer import GraphWriter
from src.models.losses import Normaliser, cross_entropy, smooth_l1
from src.models.norms import NormMaker, conv_layer
from src.models.precision import float32
from src.ops.dense import Dense
from src.ops.nms import BatchedNMS
from src.ops.soft_nms import SoftNMS
from src.runtime.newer import zip_equal
from src.structures import Detections, Sample

__all__ = ["BBoxHead", "BBoxLoss", "BoxSelector", "class_deltas"]


class BBoxHead(nn.Cell):
    """Layers shared by classification and regression: two fully connected ones (arXiv:1612.03144, section 5.2), or
    3x3 convolutions and fully connected ones after them (arXiv:1803.08494, section 5.2, has four and one).

    Args:
        in_channels, roi_feat_size: C and S.  fc_out_channels, num_fcs: of the fully connected layers.  num_classes:
        with background.  reg_class_agnostic: one regression for all classes.  num_convs, conv_out_channels: of the
        convolutions.  norm: follows each of these, in place of its bias.

    Inputs: (R, C, S, S); in training rows (R,), see BatchNorm. Outputs: class logits (R, num_classes), class 0 the
    background; deltas (R, 4 * num_classes), or (R, 4) if class-agnostic.
    """

    def __init__(
        self,
        in_channels: int,
        roi_feat_size: int,
        fc_out_channels: int,
        num_classes: int,
        reg_class_agnostic: bool = False,
        num_fcs: int = 2,
        num_convs: int = 0,
        conv_out_channels: int = 256,
        norm: NormMaker | None = None,
    ):
        super().__init__()
        channels = [in_channels] + [conv_out_channels] * num_convs
        he = HeNormal(mode="fan_out", nonlinearity="relu")
        self.convs = nn.CellList(
            [conv_layer(i, o, 3, norm, he, relu=True) for i, o in zip_equal(channels[:-1], channels[1:])]
        )
        self.normed = norm is not None
        self.flat = channels[-1] * roi_feat_size**2
        width = fc_out_channels
        # named one by one, not as a CellList: fc1, fc2 in checkpoints
        for i in range(num_fcs):
            fc = Dense(width if i else self.flat, width, True, weight_init=XavierUniform(), bias_init="zeros")
            setattr(self, f"fc{i + 1}", fc)
        self.fcs = tuple(getattr(self, f"fc{i + 1}") for i in range(num_fcs))
        self.cls = Dense(width, num_classes, weight_init=Normal(0.01), bias_init="zeros")
        deltas = 4 if reg_class_agnostic else 4 * num_classes
        self.reg = Dense(width, deltas, weight_init=Normal(0.001), bias_init="zeros")

    def construct(self, x: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            x = conv(x, rows) if self.normed else conv(x)
        # not by the number of rows, which exports for any number would then hold
        x = float32(x).reshape(-1, self.flat)
        for fc in self.fcs:
            x = fc(x)
        return self.cls(x), self.reg(x)

    def onnx(self, g: GraphWriter, x: str) -> tuple[str, str]:
        """Logits and deltas of features (R, C, S, S)."""
        for conv in self.convs:
            x = g.conv(x, conv, relu=True)
        x = g.op("Flatten", x)
        for fc in self.fcs:
            x = g.dense(x, fc, relu=True)
        return g.dense(x, self.cls), g.dense(x, self.reg)


def class_deltas(deltas: Tensor, labels: Tensor) -> Tensor:
    """Each row's deltas of its label, (R, 4), of deltas (R, 4 * num_classes) or (R, 4) and labels (R,)."""
    if deltas.shape[1] == 4:
        return deltas
    return take_rows(deltas.reshape(deltas.shape[0], -1, 4), labels.expand_dims(1)).reshape(-1, 4)


class BBoxLoss(nn.Cell):
    """Classification (cross entropy) and box (smooth L1) losses over sampled RoIs.

    Inputs: logits (B * S, num_classes), deltas (B * S, 4 * num_classes) or (B * S, 4), the Sample that they are of;
    total (), see Normaliser. Output: two scalars, means over the boxes used.
    """

    def __init__(
        self,
        coder: BoxCoder,
        cls_weight: float = 1.0,
        box_weight: float = 1.0,
        beta: float = 1 / 9,
        ranks: int = 1,
    ):
        super().__init__()
        self.normaliser = Normaliser(ranks)
        self.coder, self.cls_weight, self.box_weight, self.beta = coder, cls_weight, box_weight, beta

    def construct(
        self,
        logits: Tensor,
        deltas: Tensor,
        sample: Sample,
        total: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        rois, gt_boxes = sample["boxes"].reshape(-1, 4), sample["targets"].reshape(-1, 4)
        labels = sample["labels"].reshape(-1)
        valid, positive = sample["used"].reshape(-1), sample["positive"].reshape(-1)
        count = self.normaliser(valid.sum(), total)
        cls_loss = (cross_entropy(logits, labels) * valid).sum() / count
        target = ops.stop_gradient(self.coder.encode(gt_boxes, rois))
        box_loss = (smooth_l1(class_deltas(deltas, labels), target, self.beta).sum(-1) * positive).sum() / count
        return self.cls_weight * cls_loss, self.box_weight * box_loss


class BoxSelector(nn.Cell):
    """Final boxes: (box, class) pairs above a score threshold, decoded, clipped, suppressed class by class.

    Args:
        coder: of the box head.  num_classes: with background.  score_thr, iou_threshold, max_per_img, nms_pre (pairs
        that enter NMS, best first), min_bbox_size, agnostic_nms: as test_cfg.rcnn.  plus_one: see clip_boxes.  soft: in
        place of NMS; the detections' scores are its own.

    Inputs: scores (B, P, num_classes), class probabilities; deltas (B, P, 4 * num_classes) or (B, P, 4); the boxes that
    they refer to (B, P, 4); valid (B, P) bool; image_size (B, 2). Output: Detections, D = max_per_img rows an image,
    all-zero where not valid.
    """

    def __init__(
        self,
        coder: BoxCoder,
        num_classes: int,
        score_thr: float,
        iou_threshold: float,
        max_per_img: int,
        nms_pre: int,
        min_bbox_size: float,
        plus_one: bool = False,
        builtin_ops: bool = False,
        agnostic_nms: bool = False,
        soft: SoftNMS | None = None,
    ):
        super().__init__()
        self.agnostic_nms, self.softens = agnostic_nms, soft is not None
        self.coder, self.num_classes, self.nms_pre, self.plus_one = coder, num_classes, nms_pre, plus_one
        self.score_thr, self.min_bbox_size = score_thr, min_bbox_size
        self.nms = soft or BatchedNMS(iou_threshold, max_per_img, builtin=builtin_ops)
        self.topk = ops.TopK(sorted=True)

    def construct(
        self, scores: Tensor, deltas: Tensor, references: Tensor, valid: Tensor, image_size: Tensor
    ) -> Detections:
        b, p, classes = references.shape[0], references.shape[1], self.num_classes - 1
        score = scores[..., 1:] * valid.astype(scores.dtype).expand_dims(-1)
        # most are below it, and equal ones are sorted in a quarter of the time
        score = score * (score > max(self.score_thr, 0.0)).astype(score.dtype)
        # all are sorted, because TopK keeps equal scores in order only then, and sure ones are equal: 1
        score, pair = self.topk(score.reshape(b, -1), p * classes)
        score, pair = score[:, : self.nms_pre], pair[:, : self.nms_pre]
        # not by %, which whole graphs for Ascend lack
        row = pair // classes
        label = pair - row * classes + 1
        if deltas.shape[-1] == 4:
            delta = take_rows(deltas, row)
        else:
            delta = take_rows(deltas.reshape(b, -1, 4), row * self.num_classes + label)
        boxes = clip_boxes(self.coder(delta, take_rows(references, row)), image_size, self.plus_one)
        size = boxes[..., 2:] - boxes[..., :2]
        usable = ops.logical_and(score > self.score_thr, size.min(axis=-1) >= self.min_bbox_size)
        group = label.astype(mstype.int32)
        if self.agnostic_nms:
            group = ops.zeros_like(group)
        if self.softens:
            index, kept, found = self.nms(boxes, score, group, usable)
        else:
            index, kept = self.nms(boxes, score, group, usable)
            found = take_rows(score, index)
        mask = kept.astype(boxes.dtype)
        label = take_rows(label, index).astype(mstype.int32) * kept.astype(mstype.int32)
        boxes = take_rows(boxes, index) * mask.expand_dims(-1)
        return {"boxes": boxes, "scores": found * mask, "labels": label, "valid": kept}
