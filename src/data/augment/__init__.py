"""Augmentation of training images: geometry, colours, InstaBoost, copy-paste, a user's own; and the generators of all
that.
"""

import dataclasses
from typing import Any

import numpy as np

from src.config import Config

__all__ = ["CUSTOM", "OWN", "PASTED", "sample_generator", "without_augmentation"]

OWN, CUSTOM = 1, 2  # streams: of what is here, and of a user's function, which may draw as much as it likes
PASTED = 2  # added to either, the stream of the image of which objects are pasted


def sample_generator(
    seed: int, epoch: int, image_id: int, occurrence: int = 0, stream: int = OWN
) -> np.random.Generator:
    """The generator of an image's augmentation in an epoch, whatever the batch, worker or rank that it lands in.

    occurrence: how often the image came before in the epoch. Philox counts (Salmon et al., 2011); the high words of its
    counter keep the occurrences apart, and this from the samplers' streams.
    """
    key = np.array([seed << 32 | epoch, image_id & (2**64 - 1)], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, occurrence, stream]))


def without_augmentation(config: Config) -> Config:
    """The config with images as they are, each once, a batch at a time."""
    ratios = ("flip_ratio", "flip_vertical_ratio", "rotate90_ratio", "expand_ratio", "crop_ratio", "photo_ratio")
    off: dict[str, Any] = dict.fromkeys((*ratios, "copy_paste_ratio", "aug_prob", "repeat_threshold"), 0.0)
    off |= {"ratio_range": [1.0, 1.0], "fixed_size_crop": False, "transform": ""}
    return dataclasses.replace(config, **off, accumulate=1)
