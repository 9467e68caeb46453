"""Mixed precision: golden weights detect in float16 what they do in float32, and a step that overflows is left out."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from benchmarks.reference import golden_shapes, load_weights, match_boxes, matched_share, reference_config
from src.models import precision
from src.models.build import build_detector
from src.models.precision import float32
from tests.reference.reference_weights import reference_inputs

pytestmark = pytest.mark.full

GOLDEN = Path(__file__).parent / "reference/maskrcnn_r50_fpn.npz"


@pytest.fixture(scope="module")
def detections():
    """The golden file, and what the golden weights detect in float16."""
    golden = np.load(GOLDEN)
    image = reference_inputs(0)["image"]
    config = reference_config("torchvision", golden_shapes(golden), *image.shape[2:])
    config.compute_type = "float16"
    detector = build_detector(config)
    load_weights(config, detector, golden, 0)
    detector.set_train(False)
    size = np.array([image.shape[2:]] * len(image), np.float32)
    return golden, detector, [x.asnumpy() for x in detector(Tensor(image), Tensor(size))]


def test_float16_detects_what_float32_does(detections):
    golden, _, (boxes, scores, labels, valid, _) = detections
    for i, v in enumerate(valid):
        pairs = match_boxes(
            boxes[i][v],
            golden[f"det_boxes_{i}"],
            0.5,
            scores[i][v],
            golden[f"det_scores_{i}"],
            labels[i][v],
            golden[f"det_labels_{i}"],
            score_tolerance=0.01,
        )
        print(i, matched_share(pairs, boxes[i][v], golden[f"det_boxes_{i}"]), v.sum(), len(golden[f"det_boxes_{i}"]))
        # of random weights' detections some lie at a threshold of score or NMS
        assert matched_share(pairs, boxes[i][v], golden[f"det_boxes_{i}"]) >= 0.95


@pytest.fixture
def half_operators(monkeypatch):
    """TopK, NMSWithMask and products of matrices in float16 alone, as Ascend 910 (A) has them, their results in float32
    again; and no infinity in either of the first two, which some kernels don't bear.
    """
    top_k, nms, product = ops.TopK, ops.NMSWithMask, ops.BatchMatMul

    class HalfTopK(nn.Cell):
        def __init__(self, **options):
            super().__init__()
            self.top_k = top_k(**options)

        def construct(self, x, k):
            values, index = self.top_k(x.astype(ms.float16), k)
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
    monkeypatch.setattr(precision, "LAST_LAYERS", ())


class AsFloat32(nn.Cell):
    """A layer whose results go on in float32."""

    def __init__(self, layer):
        super().__init__(auto_prefix=False)
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias

    def construct(self, x):
        return float32(self.layer(x))


def test_the_operators_of_ascend_910_in_float16_detect_what_float32_does(half_operators):
    golden = np.load(GOLDEN)
    image = reference_inputs(0)["image"]
    config = reference_config("torchvision", golden_shapes(golden), *image.shape[2:])
    config.compute_type = "float16"
    detector = build_detector(config, builtin_ops=True)
    load_weights(config, detector, golden, 0)
    for head in (detector.rpn.head, detector.roi_heads.box):
        head.cls, head.reg = AsFloat32(head.cls), AsFloat32(head.reg)
    detector.set_train(False)
    size = np.array([image.shape[2:]] * len(image), np.float32)
    boxes, scores, labels, valid, _ = (x.asnumpy() for x in detector(Tensor(image), Tensor(size)))
    for i, v in enumerate(valid):
        wanted = golden[f"det_boxes_{i}"]
        pairs = match_boxes(
            boxes[i][v],
            wanted,
            1,
            scores[i][v],
            golden[f"det_scores_{i}"],
            labels[i][v],
            golden[f"det_labels_{i}"],
            score_tolerance=0.02,
        )
        print(i, matched_share(pairs, boxes[i][v], wanted), v.sum(), len(wanted))
        assert matched_share(pairs, boxes[i][v], wanted) >= 0.95
