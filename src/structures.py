"""What travels between the parts of a detector, by name.

Dictionaries: named tuples that are made within a graph lose their tensors' types there (MindSpore 2.8).

B images, N anchors, P proposals, G objects, K crowds, S sampled boxes, D detections. Boxes are x1 y1 x2 y2 in pixels of
the canvas, float32; rows that aren't valid are padding, zero where nothing else is said.
"""

from typing import TypedDict

from mindspore import Tensor

__all__ = ["Detections", "GroundTruth", "Proposals", "Sample"]


# boxes (B, G, 4); labels (B, G) int32, 1 the first class; valid (B, G) bool; ignore (B, K, 4), crowds; and what
# branches learn from, (B, G, ...): masks (B, G, M, M) uint8, each in its own box
GroundTruth = dict[str, Tensor]


class Proposals(TypedDict):
    """boxes (B, P, 4), best first; valid (B, P) bool."""

    boxes: Tensor
    valid: Tensor


class Sample(TypedDict):
    """Boxes that a stage trains on, positives first: index (B, S) int32, which of the candidates; boxes (B, S, 4);
    targets (B, S, 4), their objects' boxes; labels (B, S) int32, 0 where negative; gt_index (B, S) int32; used and
    positive (B, S) float32.
    """

    index: Tensor
    boxes: Tensor
    targets: Tensor
    labels: Tensor
    gt_index: Tensor
    used: Tensor
    positive: Tensor


class Detections(TypedDict):
    """boxes (B, D, 4), best first; scores (B, D); labels (B, D) int32; valid (B, D) bool."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
