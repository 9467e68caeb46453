"""What RoI heads are made of: each file one head, its network, targets, loss and decoding together.

BRANCHES names the heads on what the box head finds, as Config.branches does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mindspore import nn

from src.config import Config
from src.models.heads.keypoint import build_keypoint_branch, build_keypoint_losses
from src.models.heads.mask import build_mask_branch, build_mask_losses

__all__ = ["BRANCHES", "Branch"]


@dataclass(frozen=True)
class Branch:
    """A head on what the box head finds.

    build: (config, builtin_ops) -> a cell (features, Detections) -> a tensor of a row a detection, (B, D, ...), with
    `parts`, its parameters' names, and `onnx`, itself in ONNX's operators.  build_losses: (config, that cell, ranks,
    weights) -> of each stage of the box head, whose losses have that weight, the losses of this head on its sample, see
    StandardRoILoss; each has a `name`, and a `field` of the ground truth that it learns from.
    """

    build: Callable[[Config, bool], nn.Cell]
    build_losses: Callable[[Config, nn.Cell, int, Sequence[float]], list[list[nn.Cell]]]


BRANCHES = {
    "mask": Branch(build_mask_branch, build_mask_losses),
    "keypoint": Branch(build_keypoint_branch, build_keypoint_losses),
}
