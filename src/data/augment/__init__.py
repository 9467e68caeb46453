"""Augmentation of training images: geometry, colours, InstaBoost; and where their randomness comes from."""

import numpy as np

__all__ = ["sample_generator"]


def sample_generator(seed: int, epoch: int, image_id: int) -> np.random.Generator:
    """The generator of an image's augmentation in an epoch, whatever the batch, worker or rank that it lands in.

    Philox counts (Salmon et al., 2011); the high word of its counter keeps it apart from the samplers' streams.
    """
    key = np.array([seed << 32 | epoch, image_id & (2**64 - 1)], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, 1]))
