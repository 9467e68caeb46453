"""TensorFlow-Slim's MobileNetV1 of any width, a classifier: its variables by name, from a .npz or .safetensors file.

Names: tensorflow/models, research/slim/nets/mobilenet_v1.py. Convolutions are kept (height, width, inputs, outputs),
depthwise ones (height, width, channels, 1).
"""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np

from src.checkpoints.convert.mindspore_zoo import mobilenet_block
from src.checkpoints.convert.rules import Traits, rename_by

__all__ = ["FAMILY", "arranged", "recognises", "rename", "traits"]

FAMILY = "tensorflow_slim"
# the published checkpoints' names begin once, those of the object detection API's extractors otherwise; ":0" is a
# variable's first output
BODY = r"(?:FeatureExtractor/)?(?:MobilenetV1/){1,2}Conv2d_"
NORMS = r"BatchNorm/(gamma|beta|moving_mean|moving_variance)(?::0)?"
PARTS = {"depthwise": ("depthwise", "bn1"), "pointwise": ("pointwise", "bn2")}


def _part(index: str, kind: str, norm: bool) -> str:
    """Our name of a convolution of block `index`, counted from 1, or of its norm."""
    return f"{mobilenet_block(int(index) - 1)}.{PARTS[kind][norm]}"


PATTERNS = [
    (BODY + r"0/weights(?::0)?", lambda m: "backbone.conv1.weight"),
    (BODY + r"0/" + NORMS, lambda m: f"backbone.bn1.{m[1]}"),
    (BODY + r"([1-9]\d?)_(depthwise)/depthwise_weights(?::0)?", lambda m: f"{_part(m[1], m[2], False)}.weight"),
    (BODY + r"([1-9]\d?)_(pointwise)/weights(?::0)?", lambda m: f"{_part(m[1], m[2], False)}.weight"),
    (BODY + r"([1-9]\d?)_(depthwise|pointwise)/" + NORMS, lambda m: f"{_part(m[1], m[2], True)}.{m[3]}"),
]


def recognises(names: Collection[str]) -> bool:
    """Whether these are names of Slim's MobileNetV1."""
    return any(re.fullmatch(BODY + r"1_depthwise/depthwise_weights(?::0)?", n) for n in names)


def rename(name: str) -> str | None:
    """Our name for a variable; None where we have no such thing."""
    return rename_by(PATTERNS, name)


def arranged(name: str, ours: str, value: np.ndarray) -> np.ndarray:
    """A convolution's weights (H, W, I, O), of a depthwise one (H, W, C, 1), as (O, I, H, W); others as they are."""
    if value.ndim != 4:
        return value
    return value.transpose(2, 3, 0, 1) if ours.endswith(".depthwise.weight") else value.transpose(3, 2, 0, 1)


def traits(names: Collection[str]) -> Traits:
    """Of a state dict with these names."""
    note = (
        "strides pad right and below alone, ReLU6, and RGB from -1 to 1: set backbone.same_padding, backbone.relu6, and"
        " img_mean and img_std 127.5, as configs/tensorflow_slim_*.yaml do"
    )
    return Traits(norm_eps=1e-3, notes=(note,))
