"""Region proposal network (Ren et al., 2015, arXiv:1506.01497): its head and its losses."""

from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Normal

from src.models.assigner_sampler import AssignerSampler
from src.models.box_coder import BoxCoder, take_rows
from src.models.losses import binary_cross_entropy, smooth_l1

__all__ = ["RPNHead", "RPNLoss"]


class RPNHead(nn.Cell):
    """A 3x3 convolution, then 1x1 convolutions to objectness and box deltas, shared by all levels.

    Input: FPN maps, each (B, C, H, W). Output: a tuple of objectness logits, each (B, H * W * A), and a tuple of
    deltas, each (B, H * W * A, 4), in the order of `make_anchors`: rows, cells, anchors.
    """

    def __init__(self, in_channels: int, feat_channels: int, num_anchors: int):
        super().__init__()
        init = Normal(0.01)
        self.conv = nn.Conv2d(
            in_channels,
            feat_channels,
            3,
            pad_mode="pad",
            padding=1,
            has_bias=True,
            weight_init=init,
            bias_init="zeros",
        )
        self.cls = nn.Conv2d(feat_channels, num_anchors, 1, has_bias=True, weight_init=init, bias_init="zeros")
        self.reg = nn.Conv2d(feat_channels, num_anchors * 4, 1, has_bias=True, weight_init=init, bias_init="zeros")
        self.relu = nn.ReLU()

    def construct(self, features: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        logits, deltas = (), ()
        for x in features:
            b = x.shape[0]
            y = self.relu(self.conv(x))
            logits += (self.cls(y).transpose(0, 2, 3, 1).reshape(b, -1),)
            deltas += (self.reg(y).transpose(0, 2, 3, 1).reshape(b, -1, 4),)
        return logits, deltas


class RPNLoss(nn.Cell):
    """Objectness (binary cross entropy) and box (smooth L1) losses over sampled anchors.

    Args:
        assigner_sampler, coder: of anchors.  cls_weight, box_weight: loss weights.  beta: of smooth L1.

    Inputs: logits (B, N), deltas (B, N, 4), anchors (N, 4), anchor_valid (B, N), gt_boxes (B, G, 4), gt_valid
    (B, G), ignore_boxes (B, K, 4), keys (B, N) uniform in [0, 1). Output: two scalars, each a mean over the batch's
    sampled anchors (positives and negatives).
    """

    def __init__(
        self,
        assigner_sampler: AssignerSampler,
        coder: BoxCoder,
        cls_weight: float = 1.0,
        box_weight: float = 1.0,
        beta: float = 1 / 9,
    ):
        super().__init__()
        self.assigner_sampler, self.coder = assigner_sampler, coder
        self.cls_weight, self.box_weight, self.beta = cls_weight, box_weight, beta

    def construct(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        anchor_valid: Tensor,
        gt_boxes: Tensor,
        gt_valid: Tensor,
        ignore_boxes: Tensor,
        keys: Tensor,
    ) -> tuple[Tensor, Tensor]:
        index, valid, positive, gt_index = self.assigner_sampler(
            anchors, anchor_valid, gt_boxes, gt_valid, ignore_boxes, keys
        )
        count = ops.maximum(valid.sum(), 1.0)
        cls_loss = (binary_cross_entropy(take_rows(logits, index), positive) * valid).sum() / count
        target = ops.stop_gradient(self.coder.encode(take_rows(gt_boxes, gt_index), ops.gather(anchors, index, 0)))
        box_loss = smooth_l1(take_rows(deltas, index), target, self.beta).sum(-1)
        box_loss = (box_loss * positive).sum() / count
        return self.cls_weight * cls_loss, self.box_weight * box_loss
