"""Mixed precision (Micikevicius et al., 2017, arXiv:1710.03740): which parts of a detector compute in float16."""

import mindspore as ms
from mindspore import nn

from src.ops.conv import Conv2d, float32

__all__ = ["float32", "use_float16"]


LAST_LAYERS = ("cls", "reg", "logits")


def use_float16(detector: nn.Cell) -> None:
    """Lets a detector's convolutions and dense layers compute in float16.

    Parameters stay float32 and are rounded for each use. The layers that give logits and deltas, batch norms that
    aren't folded, and the sums of residual blocks and of the neck's top-down path stay float32: with them in float16,
    golden weights lose twice as many detections. Backbone, neck and heads take float32 and return float32, so that
    boxes, RoIAlign, losses and NMS know nothing of it.
    """
    for name, cell in detector.cells_and_names():
        if name.rpartition(".")[2] in LAST_LAYERS:
            cell.to_float(ms.float32)
            continue
        if isinstance(cell, Conv2d):
            cell.half = True
        elif isinstance(cell, (nn.Conv2d, nn.Conv2dTranspose, nn.Dense)):
            cell.to_float(ms.float16)
        elif isinstance(cell, (nn.BatchNorm2d, nn.GroupNorm)):
            cell.to_float(ms.float32)
