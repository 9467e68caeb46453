"""R-CNN with a feature pyramid: backbone, neck, proposals, RoI heads; the whole story on one page.

Faster R-CNN (arXiv:1506.01497) and Mask R-CNN (arXiv:1703.06870) have StandardRoIHeads, Cascade R-CNN
(arXiv:1712.00726) has CascadeRoIHeads.
"""

from mindspore import Tensor, nn, ops

from src.models.rpn import RPN, RPNLoss

__all__ = ["RCNN", "RCNNLoss"]


class RCNN(nn.Cell):
    """The network and its inference.

    Args:
        backbone: images to maps.  neck: these to the pyramid's.  rpn: the pyramid to proposals.  roi_heads: pyramid and
        proposals to detections. Parameters have the names that the parts give them (src/models/names.py).

    Inputs: image (B, 3, H, W) float32, normalised, on the canvas, or, where the config has pictures' canvas turned, on
    that turned; image_size (B, 2) float32, the (height, width) that the picture takes of the canvas. Outputs, D =
    max_per_img rows an image, all-zero where not valid: boxes (B, D, 4) in canvas pixels, scores (B, D), labels (B, D)
    int32, valid (B, D) bool, and what each branch gives: masks (B, D, 28, 28), probabilities of each detection's class.
    """

    def __init__(self, backbone: nn.Cell, neck: nn.Cell, rpn: RPN, roi_heads: nn.Cell):
        super().__init__(auto_prefix=False)
        self.backbone, self.neck, self.rpn, self.roi_heads = backbone, neck, rpn, roi_heads

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        """The pyramid: maps (B, C, H_l, W_l), finest first."""
        return self.neck(self.backbone(image))

    def construct(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, ...]:
        features = self.features(image)
        proposals = self.rpn(features, image_size)
        found, more = self.roi_heads(features, proposals, image_size)
        return (found["boxes"], found["scores"], found["labels"], found["valid"]) + more


class RCNNLoss(nn.Cell):
    """The detector's training losses.

    Args:
        detector: an RCNN.  rpn_loss: of its proposals' network; gives proposals to train on.  roi_loss: of its RoI
        heads.

    Inputs, by `inputs`: image (B, 3, H, W), image_size (B, 2), gt_boxes (B, G, 4), gt_labels (B, G) int32, gt_valid
    (B, G) bool, what branches learn from, such as gt_masks (B, G, S, S) uint8, ignore_boxes (B, K, 4); then rpn_keys
    (B, N) and rcnn_keys (B, P + G) float32 uniform in [0, 1). Of a batch in parts also totals (num_counts,) float32,
    the sum of all parts' counts: then the parts' losses add up to the batch's. Output: one vector of the losses in the
    order of `names`, so that its first element is what is differentiated and the others come with the same pass.
    """

    def __init__(self, detector: RCNN, rpn_loss: RPNLoss, roi_loss: nn.Cell):
        super().__init__(auto_prefix=False)
        self.detector, self.rpn_loss, self.roi_loss = detector, rpn_loss, roi_loss
        self.names = ("total_loss", "rpn_cls_loss", "rpn_reg_loss", *roi_loss.names)
        self.num_counts = 1 + roi_loss.num_counts
        rpn_loss.sampled.passed_to(roi_loss.num_levels)
        self.fields = tuple(dict.fromkeys(m.field for m in roi_loss.more))
        own = tuple(f"gt_{name}" for name in self.fields)
        self.inputs = ("image", "image_size", "gt_boxes", "gt_labels", "gt_valid", *own, "ignore_boxes")

    def construct(self, *inputs: Tensor) -> Tensor:
        return self.with_counts(*inputs)[0]

    def with_counts(self, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The losses, and what they are divided by, each () float32: the first stage's anchors, then the RoI heads'."""
        image, image_size, last = inputs[0], inputs[1], len(self.inputs)
        truth = {"boxes": inputs[2], "labels": inputs[3], "valid": inputs[4], "ignore": inputs[last - 1]}
        for i in range(len(self.fields)):
            truth[self.fields[i]] = inputs[5 + i]
        totals = inputs[last + 2] if len(inputs) > last + 2 else None
        features = self.detector.features(image)
        proposals, losses, count, features = self.rpn_loss(features, image_size, truth, inputs[last], totals)
        roi_losses, counts = self.roi_loss(features, proposals, image_size, truth, inputs[last + 1], totals)
        losses += roi_losses
        total = losses[0]
        for i in range(1, len(losses)):
            total = total + losses[i]
        return ops.stack((total,) + losses), (count,) + counts
