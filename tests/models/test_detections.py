"""The second stage's detections: suppression within classes, or across them."""

import numpy as np
import pytest
from mindspore import Tensor, nn

from src.models.box_coder import BoxCoder
from src.models.heads.box import BoxSelector
from src.ops.soft_nms import SoftNMS

pytestmark = pytest.mark.usefixtures("operator_by_operator")

# two boxes on one object, of two classes each, and one box apart
BOXES = np.array([[[10, 10, 50, 50], [11, 10, 51, 50], [70, 10, 90, 50]]], np.float32)
SCORES = np.array([[[0.0, 0.6, 0.4], [0.1, 0.2, 0.7], [0.5, 0.5, 0.0]]], np.float32)


class Flat(nn.Cell):
    """Detections as a tuple: a graph gives back tensors alone."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def construct(self, *inputs):
        found = self.cell(*inputs)
        return found["boxes"], found["scores"], found["labels"], found["valid"]


@pytest.mark.parametrize("builtin", [False, True])
@pytest.mark.parametrize(
    ("across", "labels", "scores"), [(False, [2, 1, 1], [0.7, 0.6, 0.5]), (True, [2, 1], [0.7, 0.5])]
)
def test_boxes_of_another_class_are_suppressed_where_asked(across, labels, scores, builtin):
    coder = BoxCoder([0.0] * 4, [1.0] * 4, 0.016)
    cell = BoxSelector(coder, 3, 0.05, 0.5, 5, 100, 0.01, builtin_ops=builtin, agnostic_nms=across)
    valid, size = np.ones((1, 3), bool), np.array([[100, 100]], np.float32)
    arrays = (SCORES, np.zeros((1, 3, 4), np.float32), BOXES, valid, size)
    boxes, score, label, kept = (x.asnumpy()[0] for x in Flat(cell)(*map(Tensor, arrays)))
    assert kept.tolist() == [i < len(labels) for i in range(5)]
    assert label[kept].tolist() == labels
    np.testing.assert_allclose(score[kept], scores)
    np.testing.assert_allclose(boxes[0], BOXES[0, 1])


@pytest.mark.parametrize(
    ("across", "labels", "scores"),
    [(False, [2, 1, 1, 2, 1], [0.7, 0.6, 0.5, 0.4 * 2 / 41, 0.2 * 2 / 41]), (True, [2, 1], [0.7, 0.5])],
)
def test_soft_nms_lowers_scores_and_its_least_score_decides(across, labels, scores):
    """The two boxes on one object overlap by 39 / 41 of their union; all that overlap at all across classes fall."""
    soft = SoftNMS(0.5, 6, min_score=0.1 if across else 1e-3)
    cell = BoxSelector(
        BoxCoder([0.0] * 4, [1.0] * 4, 0.016), 3, 0.05, 0.5, 6, 100, 0.01, agnostic_nms=across, soft=soft
    )
    valid, size = np.ones((1, 3), bool), np.array([[100, 100]], np.float32)
    arrays = (SCORES, np.zeros((1, 3, 4), np.float32), BOXES, valid, size)
    boxes, score, label, kept = (x.asnumpy()[0] for x in Flat(cell)(*map(Tensor, arrays)))
    assert kept.tolist() == [i < len(labels) for i in range(6)]
    assert label[kept].tolist() == labels
    np.testing.assert_allclose(score[kept], scores, rtol=1e-5)
    assert not boxes[~kept].any() and not score[~kept].any()
