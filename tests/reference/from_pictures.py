"""What torchvision's fasterrcnn_mobilenet_v3_large_fpn makes of pictures, from their resizing on: `python -m
tests.reference.from_pictures FILE.npz`, where torchvision is installed; the test has what it needs of this file without.
"""

import sys

import numpy as np

from tests.reference.reference_weights import NUM_CLASSES, reference_state_dict

SHORT, LONG = 251, 352  # pixels of a picture's sides
SHAPES = ((301, 200), (420, 400))  # height, width: 352 x 234 and 263 x 251 pixels, on 352 x 256 and 288 x 256


def pictures():
    """(H, W, 3) uint8, RGB: smooth noise, each pixel different."""
    r = np.random.Generator(np.random.PCG64(4))
    for height, width in SHAPES:
        coarse = r.uniform(0, 200, (height // 16 + 1, width // 16 + 1, 3)).repeat(16, 0).repeat(16, 1)
        yield (coarse[:height, :width] + r.uniform(0, 55, (height, width, 3))).astype(np.uint8)


def main():
    import torch
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn

    model = fasterrcnn_mobilenet_v3_large_fpn(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES, min_size=SHORT, max_size=LONG
    )
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    state = {k: torch.from_numpy(v) for k, v in reference_state_dict(shapes).items()}
    model.load_state_dict(state, strict=False)
    model.eval()
    out = {}
    for i, picture in enumerate(pictures()):
        with torch.no_grad():
            found = model([torch.from_numpy(picture).permute(2, 0, 1).float() / 255])[0]
        out |= {f"{k}_{i}": v.numpy() for k, v in found.items()}
    np.savez(sys.argv[1], **out)


if __name__ == "__main__":
    main()
