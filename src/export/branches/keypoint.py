"""Keypoints (Keypoint R-CNN), in exports."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor, nn

from src.config import Config
from src.export.branches.base import ROI, Branch, Fits, Output, describe_roi
from src.export.sidecar_values import flag, group, integer, list_of, one_of, text
from src.models.heads.keypoint import KeypointHead

__all__ = ["Keypoint"]

TIMES = 4  # a heatmap's side, of the side of its RoI features


class KeypointGraph(nn.Cell):
    """RoI features (R, C, S, S) -> logits (R, K, 2 S, 2 S), which the host enlarges twice more, bilinearly: MindSpore
    Lite lacks the head's own way to do it.
    """

    def __init__(self, head: KeypointHead):
        super().__init__(auto_prefix=False)
        self.head = head

    def construct(self, x: Tensor) -> Tensor:
        for conv in self.head.convs:
            x = conv(x)
        return self.head.upsample(x)


class Keypoint(Branch):
    """The keypoint head. The C++ program's is ascend310_infer/src/keypoint_branch.cc."""

    name, roi = "keypoint", "keypoint_roi"
    keys = {
        "keypoint_roi": ROI,
        "keypoints": group(
            {
                "names": list_of(text),
                "size": integer(4, 512),
                "half_pixel": flag,
                "score": one_of("logit", "probability"),
            }
        ),
    }
    config_keys = {"keypoints": "keypoint_head, keypoint_roi"}
    files = ("keypoint",)

    def describe(self, config: Config, sampling_ratio: int | None) -> dict[str, Any]:
        head, roi = config.keypoint_head, config.keypoint_roi
        return {
            "keypoint_roi": describe_roi(roi, sampling_ratio),
            "keypoints": {
                "names": list(head.names),
                "size": TIMES * roi.roi_layer.out_size,
                "half_pixel": head.half_pixel,
                "score": head.score,
            },
        }

    def check(self, content: dict[str, Any], has: bool, fits: Fits) -> None:
        if has:
            about, side = content["keypoints"], content["keypoint_roi"]["out_size"]
            fits(about["size"] == TIMES * side, "keypoints.size, and keypoint_roi.out_size")

    def heads(self, content: dict[str, Any]) -> int:
        return 1

    def output(self, content: dict[str, Any]) -> Output:
        names, size = content["keypoints"]["names"], content["keypoints"]["size"]
        return Output("heatmaps", (len(names), size, size), "logits over each box, a map for each of keypoints.names")

    def graph(self, head: nn.Cell) -> nn.Cell:
        return KeypointGraph(head)

    def reference(self, head: nn.Cell) -> nn.Cell:
        return head
