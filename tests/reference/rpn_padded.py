"""torchvision's RPN on pictures smaller than their canvas: `python -m tests.reference.rpn_padded FILE.npz`, where
torchvision is installed; the test has what it needs of this file without.
"""

import sys

import numpy as np

CHANNELS, CANVAS = 8, (128, 192)
SIZES = ((101, 170), (128, 161))  # height, width: that padded to multiples of 32 are the canvas
STRIDES = (4, 8, 16, 32, 64)
SHAPES = {
    "conv.weight": (CHANNELS, CHANNELS, 3, 3),
    "conv.bias": (CHANNELS,),
    "cls.weight": (3, CHANNELS, 1, 1),
    "cls.bias": (3,),
    "reg.weight": (12, CHANNELS, 1, 1),
    "reg.bias": (12,),
}


def features():
    """Maps (2, 8, H / s, W / s) float32 of each stride s."""
    r = np.random.Generator(np.random.PCG64(1))
    return [r.normal(0, 1, (2, CHANNELS, *(side // s for side in CANVAS))).astype(np.float32) for s in STRIDES]


def weights():
    """{name: float32} of the head."""
    r = np.random.Generator(np.random.PCG64(2))
    return {name: r.normal(0, 0.15, shape).astype(np.float32) for name, shape in SHAPES.items()}


def boxes():
    """(2, 5, 4) float32, inside their pictures; some end where these do."""
    r = np.random.Generator(np.random.PCG64(3))
    first = r.uniform(0, 0.6, (2, 5, 2))
    out = np.concatenate([first, first + r.uniform(0.1, 0.4, (2, 5, 2))], -1)
    out[:, 0, 2:] = 1
    return (out * np.array([[w, h, w, h] for h, w in SIZES])[:, None]).astype(np.float32)


def main():
    import torch
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

    anchors = AnchorGenerator(tuple((8 * s,) for s in STRIDES), ((0.5, 1.0, 2.0),) * len(STRIDES))
    head = RPNHead(CHANNELS, 3)
    names = {"conv": "conv.0.0", "cls": "cls_logits", "reg": "bbox_pred"}
    state = {f"{names[k.split('.')[0]]}.{k.split('.')[1]}": torch.from_numpy(v) for k, v in weights().items()}
    head.load_state_dict(state)
    counts = {"training": 300, "testing": 300}
    rpn = RegionProposalNetwork(anchors, head, 0.7, 0.3, 100_000, 0.5, counts, {"training": 100, "testing": 100}, 0.7)
    maps = {str(i): torch.from_numpy(x) for i, x in enumerate(features())}
    images = ImageList(torch.zeros(2, 3, *CANVAS), list(SIZES))
    out = {}
    with torch.no_grad():
        for i, found in enumerate(rpn.eval()(images, maps)[0]):
            out[f"proposals_{i}"] = found.numpy()
        losses = rpn.train()(images, maps, [{"boxes": torch.from_numpy(b)} for b in boxes()])[1]
    np.savez(sys.argv[1], **out, **{k: v.numpy() for k, v in losses.items()})


if __name__ == "__main__":
    main()
