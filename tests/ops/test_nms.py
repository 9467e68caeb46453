"""Batched NMS, both implementations, against a plain NumPy one."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.ops import nms as module
from src.ops.nms import BatchedNMS, _OffsetNMS, _RunsNMS
from tests.half_operators import replace_by_half

pytestmark = pytest.mark.usefixtures("operator_by_operator")

each_library = pytest.mark.usefixtures("operators")


def numpy_nms(boxes, scores, groups, valid, threshold, most):
    indices, kept = np.zeros((len(boxes), most), np.int32), np.zeros((len(boxes), most), bool)
    for b in range(len(boxes)):
        usable = np.flatnonzero(valid[b] & ~np.isnan(scores[b]))
        order = usable[np.argsort(-scores[b][usable], kind="stable")]
        chosen = []
        for i in order:
            others = [j for j in chosen if groups[b, j] == groups[b, i]]
            if not (numpy_iou(boxes[b, i], boxes[b, others]) > threshold).any():
                chosen.append(i)
        chosen = chosen[:most]
        indices[b, : len(chosen)] = chosen
        kept[b, : len(chosen)] = True
    return indices, kept


def numpy_iou(a, b):
    """Of a box with several: float32, in the operator's order."""
    width = np.maximum(np.minimum(a[2], b[:, 2]) - np.maximum(a[0], b[:, 0]), np.float32(0))
    height = np.maximum(np.minimum(a[3], b[:, 3]) - np.maximum(a[1], b[:, 1]), np.float32(0))
    inter = width * height
    union = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) + (a[2] - a[0]) * (a[3] - a[1]) - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def run(builtin, boxes, scores, groups, valid, threshold, most):
    nms = BatchedNMS(threshold, most, builtin)
    indices, kept = nms(Tensor(boxes), Tensor(scores), Tensor(groups), Tensor(valid))
    assert indices.dtype == ms.int32
    assert kept.dtype == ms.bool_
    return indices.asnumpy(), kept.asnumpy()


def make_case(seed, count, group_count, levels_of_score=None):
    rng = np.random.RandomState(seed)
    # Whole and quarter pixels: the builtin version's offsets are exact then, and so must be its result.
    low = rng.randint(0, 400, (2, count, 2)) / 4
    size = rng.randint(0, 200, (2, count, 2)) / 4
    boxes = np.concatenate([low, low + size], 2).astype(np.float32)
    scores = rng.permutation(2 * count).reshape(2, count).astype(np.float32)
    if levels_of_score:
        scores = rng.randint(0, levels_of_score, (2, count)).astype(np.float32)
    groups = rng.randint(0, group_count, (2, count)).astype(np.int32)
    return boxes, scores, groups, rng.rand(2, count) > 0.2


@pytest.mark.parametrize(
    ("count", "group_count", "threshold", "most"),
    [(300, 5, 0.5, 100), (300, 80, 0.3, 400), (200, 1, 0.7, 200), (1, 1, 0.5, 3), (250, 3, 0.0, 50)],
)
@pytest.mark.parametrize("levels_of_score", [None, 4])
def test_matches_the_definition(builtin, count, group_count, threshold, most, levels_of_score):
    case = make_case(count + group_count, count, group_count, levels_of_score)
    indices, kept = run(builtin, *case, threshold, most)
    expected_indices, expected_kept = numpy_nms(*case, threshold, most)
    np.testing.assert_array_equal(kept, expected_kept)
    np.testing.assert_array_equal(indices, expected_indices)


@pytest.fixture
def at_most(monkeypatch):
    """at_most(n): NMSWithMask is given n boxes at a time; the list of how many it was given."""

    def limit(count):
        monkeypatch.setattr(module, "_AT_ONCE", count)
        return given

    given = []
    before = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    whole = module.ops.NMSWithMask

    class Counted:
        def __init__(self, *arguments):
            self.nms = whole(*arguments)

        def __call__(self, boxes):
            given.append(boxes.shape[0])
            # as a kernel in float16 would see them
            assert len(np.unique(boxes.asnumpy()[:, 4].astype(np.float16))) == boxes.shape[0]
            return self.nms(boxes)

    monkeypatch.setattr(module.ops, "NMSWithMask", Counted)
    yield limit
    ms.set_context(mode=before)


@pytest.mark.parametrize("levels_of_score", [None, 4])
@pytest.mark.parametrize("limit", [2864, 64])
def test_offsets_match_the_definition_in_blocks(at_most, limit, levels_of_score):
    """What a CPU without the library runs, and a GPU."""
    given = at_most(limit)
    case = make_case(7, 300, 5, levels_of_score)
    indices, kept = (x.asnumpy() for x in _OffsetNMS(0.5, 100)(*map(Tensor, case)))
    expected_indices, expected_kept = numpy_nms(*case, 0.5, 100)
    np.testing.assert_array_equal(kept, expected_kept)
    np.testing.assert_array_equal(indices, expected_indices)
    assert max(given) == min(limit, 300)


@pytest.mark.parametrize("limit", [2864, 50])
@pytest.mark.parametrize(("levels_of_score", "most"), [(None, 60), (4, 200), (None, 400)])
def test_runs_match_the_definition_in_blocks(at_most, limit, levels_of_score, most):
    """Levels of a pyramid, each sorted."""
    given = at_most(limit)
    runs = (120, 100, 30)
    boxes, scores, _, valid = make_case(11, sum(runs), 1, levels_of_score)
    groups = np.repeat(np.arange(len(runs), dtype=np.int32), runs)[None].repeat(2, 0)
    for b in range(2):
        for g in range(len(runs)):
            scores[b, groups[b] == g] = -np.sort(-scores[b, groups[b] == g])
    case = boxes, scores, groups, valid
    cell = BatchedNMS(0.5, most, builtin=True, runs=runs)
    assert isinstance(cell.suppress, _RunsNMS)
    indices, kept = (x.asnumpy() for x in cell(*map(Tensor, case)))
    expected_indices, expected_kept = numpy_nms(*case, 0.5, most)
    np.testing.assert_array_equal(kept, expected_kept)
    np.testing.assert_array_equal(indices, expected_indices)
    assert max(given) == min(limit, 120)


def test_nms_with_mask_is_given_at_most_what_ascend_takes(at_most):
    """Five levels of 2000 boxes, and 4096 candidates for detections, as the published configs have them."""
    given = at_most(module._AT_ONCE)
    for cell, count in ((_RunsNMS(0.7, 100, (2000, 2000, 2000, 720)), 6720), (_OffsetNMS(0.5, 100), 4096)):
        boxes, scores, groups, valid = make_case(3, count, 3)
        cell(*map(Tensor, (boxes[:1], -np.sort(-scores[:1]), groups[:1], valid[:1])))
    assert sum(given) == 6720 + 4096
    assert max(given) <= 2864


@pytest.mark.parametrize("runs", [(), (300,)])
def test_boxes_of_many_classes_where_operators_are_float16(monkeypatch, runs):
    """Ascend 910 (A): boxes as large as the canvas, and small ones, whose corners float16 rounds to a pixel, and would
    round to 8 if boxes of 80 classes were moved apart."""
    replace_by_half(monkeypatch)
    rng = np.random.RandomState(5)
    # two large and eight small ones, each many times: IoUs are above 0.75, or below 0.1; the small ones' edges lie
    # midway between numbers that float16 has after a move by 8 canvases
    small = np.arange(8)[:, None] * [140, 96] + 4
    places = np.concatenate([[[0, 0, 1300, 790], [1050, 500, 1300, 780]], np.concatenate([small, small + 8], 1)])
    boxes = (places[rng.randint(0, 10, 300)] + rng.uniform(-0.25, 0.25, (300, 4)))[None].astype(np.float32)
    # that float16 tells apart
    scores = -np.sort(-rng.permutation(2048)[:300] / 2048)[None].astype(np.float32)
    groups = np.zeros((1, 300), np.int32) if runs else rng.randint(72, 80, (1, 300)).astype(np.int32)
    case = boxes, scores, groups, rng.rand(1, 300) > 0.2
    indices, kept = (x.asnumpy() for x in BatchedNMS(0.5, 100, builtin=True, runs=runs)(*map(Tensor, case)))
    expected_indices, expected_kept = numpy_nms(*case, 0.5, 100)
    np.testing.assert_array_equal(kept, expected_kept)
    np.testing.assert_array_equal(indices, expected_indices)


def test_nothing_valid(builtin):
    boxes, scores, groups, valid = make_case(0, 20, 2)
    indices, kept = run(builtin, boxes, scores, groups, np.zeros_like(valid), 0.5, 5)
    assert not indices.any()
    assert not kept.any()


def test_invalid_boxes_neither_kept_nor_suppressing(builtin):
    boxes = np.array([[[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 0, 0]]], np.float32)
    scores = np.array([[0.9, 0.8, np.nan, 0.7]], np.float32)
    groups = np.zeros((1, 4), np.int32)
    valid = np.array([[False, True, True, True]])
    indices, kept = run(builtin, boxes, scores, groups, valid, 0.5, 4)
    np.testing.assert_array_equal(indices, [[1, 3, 0, 0]])
    np.testing.assert_array_equal(kept, [[True, True, False, False]])


@each_library
def test_iou_equal_to_the_threshold_is_kept():
    # IoU is the float32 next to 0.1, which is above 0.1 itself: suppressed, as torchvision does; at 0.5 it is equal.
    boxes = np.array([[[0, 0, 10, 10], [0, 0, 10, 1], [100, 0, 110, 10], [100, 0, 110, 5]]], np.float32)
    scores, groups = np.array([[4, 3, 2, 1]], np.float32), np.array([[0, 0, 1, 1]], np.int32)
    valid = np.ones((1, 4), bool)
    assert run(False, boxes, scores, groups, valid, 0.1, 4)[0][0, :2].tolist() == [0, 2]
    assert run(False, boxes, scores, groups, valid, 0.5, 4)[1].sum() == 4


@each_library
def test_not_finite_input_is_harmless():
    boxes, scores, groups, valid = make_case(1, 100, 3)
    boxes[0, ::3] = np.nan
    boxes[1, ::4] = np.inf
    scores[0, ::2] = np.nan
    scores[1, ::5] = -np.inf
    _, kept = run(False, boxes, scores, groups, valid, 0.5, 100)
    assert kept.any()


def test_wrong_arguments():
    with pytest.raises(ValueError, match="iou_threshold"):
        BatchedNMS(1.5, 10)
    with pytest.raises(ValueError, match="max_output"):
        BatchedNMS(0.5, 0)
