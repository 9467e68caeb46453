"""Batches of noise with plausible objects, for benchmarks that need no data set."""

import numpy as np

from src.config import Config

__all__ = ["synthetic_batch"]


def synthetic_batch(config: Config, objects: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """A training batch in the loader's layout: images of unit noise filling the canvas, `objects` ellipses each.

    Object sides are 5 to 50 % of the canvas's, log-uniform, as in COCO some small, some large.
    """
    r = np.random.default_rng(seed)
    b, h, w, g, s = (
        config.batch_size,
        config.img_height,
        config.img_width,
        config.max_instance_count,
        config.mask_crop_size,
    )
    sides = np.exp(r.uniform(np.log(0.05), np.log(0.5), (b, objects, 2))) * [w, h]
    corner = r.uniform(0, 1, (b, objects, 2)) * ([w, h] - sides)
    boxes = np.zeros((b, g, 4), np.float32)
    boxes[:, :objects] = np.concatenate([corner, corner + sides], -1)
    labels = np.zeros((b, g), np.int32)
    labels[:, :objects] = r.integers(1, config.num_classes, (b, objects))
    valid = np.zeros((b, g), bool)
    valid[:, :objects] = True
    y, x = np.mgrid[:s, :s] / (s - 1) * 2 - 1
    masks = np.zeros((b, g, s, s), np.uint8)
    masks[:, :objects] = (x * x + y * y <= 1) * np.uint8(255)
    return {
        "image": r.standard_normal((b, 3, h, w), np.float32),
        "image_size": np.array([[h, w]] * b, np.float32),
        "gt_boxes": boxes,
        "gt_labels": labels,
        "gt_valid": valid,
        "gt_masks": masks,
        "ignore_boxes": np.zeros((b, config.max_crowd_count, 4), np.float32),
        "image_id": np.arange(b, dtype=np.int64),
    }
