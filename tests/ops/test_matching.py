"""MaxIoU matching, both implementations, against a plain NumPy one."""

import numpy as np
import pytest
from mindspore import Tensor

from src.ops.matching import MaxIoUMatch
from src.runtime.newer import zip_equal

pytestmark = pytest.mark.usefixtures("operator_by_operator")

each_library = pytest.mark.usefixtures("operators")


def numpy_match(boxes, box_valid, gt_boxes, gt_valid, ignore_boxes, min_best_iou=0.0):
    batch, count = box_valid.shape
    boxes = np.broadcast_to(boxes, (batch, count, 4))
    max_iou, argmax = np.zeros((batch, count), np.float32), np.zeros((batch, count), np.int32)
    best, iof = np.full((batch, count), -1, np.int32), np.zeros((batch, count), np.float32)
    for b in range(batch):
        valid, gts = box_valid[b], np.flatnonzero(gt_valid[b])
        inter, area, gt_area = overlap(boxes[b], gt_boxes[b])
        union = area[:, None] + gt_area[None] - inter
        iou = np.where(union > 0, inter / np.where(union > 0, union, 1), 0)[:, gts]
        iou[~valid] = 0
        if len(gts):
            max_iou[b], argmax[b] = iou.max(1), np.where(valid, gts[iou.argmax(1)], 0)
            for column, g in enumerate(gts):  # the last of several stays
                top = iou[:, column].max()
                if top > 0 and top >= np.float32(min_best_iou):
                    best[b][(iou[:, column] == top) & valid] = g
        inter, area, _ = overlap(boxes[b], ignore_boxes[b])
        share = np.where(area[:, None] > 0, inter / np.where(area > 0, area, 1)[:, None], 0)
        iof[b] = np.where(valid, share.max(1), 0)
    return max_iou, argmax, best, iof


def overlap(a, b):
    """float32 throughout, in the operator's order."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    size = np.maximum(high - low, np.float32(0))
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    return size[..., 0] * size[..., 1], area_a, area_b


def make_case(seed, count, gt_count, shared, ties):
    rng = np.random.RandomState(seed)
    shape = (count, 2) if shared else (2, count, 2)
    if ties:  # few positions and sizes: many equal boxes
        low, size = rng.randint(0, 5, shape) * 20, rng.randint(0, 3, shape) * 20
        gt_low, gt_size = rng.randint(0, 5, (2, gt_count, 2)) * 20, rng.randint(1, 3, (2, gt_count, 2)) * 20
    else:
        low, size = rng.uniform(0, 200, shape), rng.uniform(0, 100, shape)
        gt_low, gt_size = rng.uniform(0, 200, (2, gt_count, 2)), rng.uniform(0, 100, (2, gt_count, 2))
    boxes = np.concatenate([low, low + size], -1).astype(np.float32)
    gts = np.concatenate([gt_low, gt_low + gt_size], -1).astype(np.float32)
    ignored = np.zeros((2, 4, 4), np.float32)
    ignored[0, 1], ignored[0, 3], ignored[1, 0] = [10, 10, 90, 70], [0, 0, 50, 50], [30, 40, 200, 200]
    return boxes, rng.rand(2, count) > 0.2, gts, rng.rand(2, gt_count) > 0.5, ignored


def run(builtin, case, min_best_iou=0.0):
    return [result.asnumpy() for result in MaxIoUMatch(min_best_iou, builtin)(*map(Tensor, case))]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("count", "gt_count"), [(2500, 20), (1024, 3), (7, 1), (1, 40)])
def test_matches_the_definition(builtin, shared, ties, count, gt_count):
    case = make_case(count + gt_count, count, gt_count, shared, ties)
    # The same float32 operations in the same order: bit-identical.
    for least in (0.0, 0.5):
        for result, expected in zip_equal(run(builtin, case, least), numpy_match(*case, least)):
            np.testing.assert_array_equal(result, expected)


def test_no_ground_truth_and_no_ignored_boxes(builtin):
    boxes, box_valid, gts, gt_valid, ignored = make_case(0, 50, 4, True, False)
    iou, which, best_of, iof = run(builtin, (boxes, box_valid, gts, np.zeros_like(gt_valid), np.zeros_like(ignored)))
    assert not iou.any() and not which.any() and not iof.any() and (best_of == -1).all()


def test_invalid_rows_change_nothing(builtin):
    boxes, box_valid, gts, gt_valid, ignored = make_case(3, 400, 8, False, False)
    expected = run(builtin, (boxes, box_valid, gts, gt_valid, ignored))
    boxes[~box_valid] = [0, 0, 1000, 1000]
    gts[~gt_valid] = [0, 0, 1000, 1000]
    for result, wanted in zip_equal(run(builtin, (boxes, box_valid, gts, gt_valid, ignored)), expected):
        np.testing.assert_array_equal(result, wanted)
        assert (result[~box_valid] <= 0).all()


@each_library
@pytest.mark.parametrize("count", [1, 2])
def test_not_finite_boxes_are_harmless(count, threads):
    threads(count)
    boxes, box_valid, gts, gt_valid, ignored = make_case(3, 3000, 8, False, False)
    boxes[0, ::3] = np.nan
    results = run(False, (boxes, box_valid, gts, gt_valid, ignored))
    without = box_valid.copy()
    without[0, ::3] = False
    # The other boxes' results are those without them.
    expected = run(False, (np.nan_to_num(boxes), without, gts, gt_valid, ignored))
    for i in (0, 2, 3):
        np.testing.assert_array_equal(results[i], expected[i])
    gts[1, 0] = np.inf
    assert np.isfinite(run(False, (boxes, box_valid, gts, gt_valid, ignored))[0]).all()
