"""Writes keypoints.npz: what torchvision makes of the heatmaps and boxes below (torchvision 0.29, torch 2.14).

python tests/evaluation/golden_keypoints.py, where torchvision is installed.
"""

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).with_name("keypoints.npz")
BOXES = np.array(
    [
        [10, 20, 110, 220],  # whole sides
        [10.25, 20.5, 60.875, 141.3],
        [3.1, 4.2, 3.6, 4.3],  # below one pixel
        [7, 7, 7, 30.5],  # without a width
        [-40.3, -8.25, 25.9, 63.1],  # out of the picture
        [0, 0, 56, 56],  # the map's own size
        [100, 50, 128, 78],  # half of it
        [5, 6, 117, 118],  # twice
        [0.4, 0.3, 1300.1, 801.7],
        [20, 0, 31.2, 1290.6],
    ],
    np.float32,
)


def heatmaps() -> np.ndarray:
    """(N, 3, 56, 56) float32: noise, a peak upon noise as a network gives it, and ties."""
    random = np.random.RandomState(5)
    maps = random.standard_normal((len(BOXES), 3, 56, 56)).astype(np.float32)
    y, x = np.mgrid[:56, :56]
    for i, (cy, cx) in enumerate(random.uniform(-2, 58, (len(BOXES), 2))):
        maps[i, 1] = maps[i, 1] * 0.1 + 12 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 18) - 4
    # four equal maxima; none at all in the first map
    maps[:, 2] = 0
    maps[1:, 2, 10:31:20, 10:31:20] = 3
    return maps.astype(np.float32)


if __name__ == "__main__":
    import torch
    from torchvision.models.detection.roi_heads import heatmaps_to_keypoints

    maps = torch.from_numpy(heatmaps())
    points, scores = heatmaps_to_keypoints(maps, torch.from_numpy(BOXES))
    points[:, :, 2] = scores
    # Detectron2's score, by its definition
    shares = 1 / torch.exp(maps.double() - scores[:, :, None, None]).sum((2, 3))
    np.savez_compressed(GOLDEN, points=points.numpy(), probability=shares.numpy())
