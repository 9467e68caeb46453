"""Masks (Mask R-CNN), in exports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from src.config import Config
from src.export.branches.base import ROI, Branch, Fits, Output, describe_roi
from src.export.mask_weights import write_mask_weights
from src.export.sidecar_values import flag, group, integer, number, one_of
from src.models.heads.mask import MaskHead
from src.models.norms import GroupNorm, LayerNorm

__all__ = ["Mask"]


class MaskGraph(nn.Cell):
    """RoI features (R, C, S, S) -> the mask logits of every class, (R, num_classes, 2 S, 2 S)."""

    def __init__(self, head: MaskHead):
        super().__init__(auto_prefix=False)
        self.head = head

    def construct(self, x: Tensor) -> Tensor:
        return self.head.logits(self.head.features(x))


class EveryClass(nn.Cell):
    """RoI features (R, C, S, S) -> the mask logits (R, 2 S, 2 S) of classes 0, 1, ..., and around."""

    def __init__(self, head: MaskHead):
        super().__init__(auto_prefix=False)
        self.head, self.num_classes = head, head.logits.out_channels

    def construct(self, x: Tensor) -> Tensor:
        return self.head(x, ops.arange(x.shape[0]).astype(ms.int32) % self.num_classes)


class Mask(Branch):
    """The mask head: its graphs, and on a CPU its weights for the host's own (ascend310_infer/src/mask_head.h), which
    is faster than MindSpore Lite's; not of heads with group norm, which the host leaves to Lite.
    """

    name, roi = "mask", "mask_roi"
    keys = {
        "mask_paste": group(
            {"convention": one_of("torchvision", "grid"), "size": integer(2, 256), "threshold": number(0, 1)}
        ),
        "mask_roi": ROI,
    }
    everywhere = {"with_mask": flag}
    cascade = {"mask_heads": integer(0, 100), "average_masks": one_of("logits", "probabilities")}
    config_keys = {
        "with_mask": "detector",
        "mask_paste": "test_cfg.rcnn.mask_paste, mask_roi, test_cfg.rcnn.mask_thr_binary",
    }
    files = ("mask", "mask_weights")
    files_everywhere = True

    def describe(self, config: Config, sampling_ratio: int | None) -> dict[str, Any]:
        return {
            "mask_roi": describe_roi(config.mask_roi, sampling_ratio),
            "mask_paste": {
                "convention": config.mask_paste,
                "size": 2 * config.mask_roi.roi_layer.out_size,
                "threshold": config.test_cfg.rcnn.mask_thr_binary,
            },
        }

    def describe_everywhere(self, config: Config) -> dict[str, Any]:
        return {"with_mask": config.with_mask}

    def describe_cascade(self, config: Config) -> dict[str, Any]:
        stages = len(config.cascade.target_stds) if config.cascade.mask_head_per_stage else 1
        return {
            "mask_heads": stages if config.with_mask else 0,
            "average_masks": config.cascade.average_masks,
        }

    def check(self, content: dict[str, Any], has: bool, fits: Fits) -> None:
        fits(content["with_mask"] == has, "with_mask, and the detector")
        if has:
            size, side = content["mask_paste"]["size"], content["mask_roi"]["out_size"]
            fits(size == 2 * side, "mask_paste.size, and mask_roi.out_size")
        if cascade := content.get("cascade"):
            known = (1, cascade["stages"]) if has else (0,)
            fits(cascade["mask_heads"] in known, "cascade.mask_heads, stages and with_mask")

    def heads(self, content: dict[str, Any]) -> int:
        return content["cascade"]["mask_heads"] if "cascade" in content else 1

    def output(self, content: dict[str, Any]) -> Output:
        size = content["mask_paste"]["size"]
        return Output("masks", (size, size), "probabilities over each box, of its class")

    def graph(self, head: nn.Cell) -> nn.Cell:
        return MaskGraph(head)

    def reference(self, head: nn.Cell) -> nn.Cell:
        return EveryClass(head)

    def write_files(self, head: nn.Cell, stem: Path) -> Sequence[Path]:
        if any(isinstance(c, (GroupNorm, LayerNorm)) for _, c in head.cells_and_names()):
            return ()
        path = stem.with_name(f"{stem.name}.bin")
        write_mask_weights(path, head)
        return (path,)
