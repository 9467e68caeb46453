"""A mask head's weights in a small file, for the C++ program's own mask head (ascend310_infer/src/mask_head.h).

Little endian: "RCNNMSK1", uint32 layers: the 3x3 convolutions with ReLU, the 2x2 transposed convolution of stride 2
with ReLU, the 1x1 convolution. Each layer: 4 uint32 the weight's shape, (O, C, 3, 3), (C, O, 2, 2) or
(classes, C, 1, 1); float32 the weight; float32 the bias.
"""

from __future__ import annotations

import struct
from pathlib import Path

from src.models.heads.mask import MaskHead
from src.models.norms import ConvNorm

__all__ = ["write_mask_weights"]


def write_mask_weights(path: str | Path, head: MaskHead) -> None:
    """Writes the file, of a head whose batch norms are folded. Raises OSError."""
    layers = [*head.convs, head.upsample, head.logits]
    parts = [b"RCNNMSK1", struct.pack("<I", len(layers))]
    for layer in layers:
        parts.append(struct.pack("<4I", *layer.weight.shape))
        bias = layer.norm.bias if isinstance(layer, ConvNorm) else layer.bias
        parts += [p.asnumpy().astype("<f4").tobytes() for p in (layer.weight, bias)]
    Path(path).write_bytes(b"".join(parts))
