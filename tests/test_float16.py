"""Mixed precision: golden weights detect in float16 what they do in float32, and a step that overflows is left out."""

from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor, nn

from benchmarks.reference import golden_shapes, load_weights, match_boxes, matched_share, reference_config
from src.models import precision
from src.models.build import build_detector
from src.models.precision import float32
from tests.half_operators import replace_by_half
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
    """Ascend 910 (A)'s operators."""
    replace_by_half(monkeypatch)
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
