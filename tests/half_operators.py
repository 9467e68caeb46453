"""Operators as Ascend 910 (A) has them: TopK, NMSWithMask and products of matrices in float16 alone."""

import mindspore as ms
from mindspore import nn, ops

__all__ = ["replace_by_half"]

MOST = 65504.0  # of float16; what is larger becomes this


def replace_by_half(monkeypatch):
    """Cells made from now on have them, their results in float32 again."""
    top_k, nms, product = ops.TopK, ops.NMSWithMask, ops.BatchMatMul

    class HalfTopK(nn.Cell):
        def __init__(self, **options):
            super().__init__()
            self.top_k = top_k(**options)

        def construct(self, x, k):
            values, index = self.top_k(ops.minimum(ops.maximum(x, -MOST), MOST).astype(ms.float16), k)
            return values.astype(x.dtype), index

    class HalfNMS(nn.Cell):
        def __init__(self, threshold):
            super().__init__()
            self.nms = nms(threshold)

        def construct(self, boxes):
            return self.nms(boxes.astype(ms.float16))

    class HalfProduct(nn.Cell):
        def __init__(self, **options):
            super().__init__()
            self.product = product(**options)

        def construct(self, a, b):
            return self.product(a.astype(ms.float16), b.astype(ms.float16)).astype(a.dtype)

    monkeypatch.setattr(ops, "TopK", HalfTopK)
    monkeypatch.setattr(ops, "NMSWithMask", HalfNMS)
    monkeypatch.setattr(ops, "BatchMatMul", HalfProduct)
