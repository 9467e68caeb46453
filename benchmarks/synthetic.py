"""Batches of noise with plausible objects, for benchmarks that need no data set."""

import numpy as np

from benchmarks.torchvision_child import objects as objects_of
from src.config import Config

__all__ = ["synthetic_batch"]


def synthetic_batch(config: Config, objects: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """A training batch in the loader's layout: images of unit noise filling the canvas, `objects` ellipses each.

    The objects are those of torchvision_child.objects.
    """
    r = np.random.default_rng(seed)
    b, h, w = config.batch_size, config.img_height, config.img_width
    g, s = config.max_instance_count, config.mask_crop_size
    given, classes = objects_of(b, h, w, objects, config.num_classes)
    boxes, labels, valid = np.zeros((b, g, 4), np.float32), np.zeros((b, g), np.int32), np.zeros((b, g), bool)
    boxes[:, :objects], labels[:, :objects], valid[:, :objects] = given, classes, True
    y, x = np.mgrid[:s, :s] / (s - 1) * 2 - 1
    masks = np.zeros((b, g, s, s), np.uint8)
    masks[:, :objects] = (x * x + y * y <= 1) * np.uint8(255)
    return {
        "image": r.standard_normal((b, 3, h, w), np.float32),
        "image_size": np.array([[h, w]] * b, np.float32),
        "gt_boxes": boxes,
        "gt_labels": labels,
        "gt_valid": valid,
        **({"gt_masks": masks} if config.with_mask else {}),
        "ignore_boxes": np.zeros((b, config.max_crowd_count, 4), np.float32),
        "image_id": np.arange(b, dtype=np.int64),
    }
