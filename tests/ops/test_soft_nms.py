"""Soft-NMS against a plain loop of its paper's definition, and numbers that mmcv's own soft_nms gave."""

import numpy as np
import pytest
from mindspore import Tensor, context

from src.ops.soft_nms import SoftNMS


@pytest.fixture(params=["graph", "pynative"])
def mode(request):
    before = context.get_context("mode")
    context.set_context(mode=context.GRAPH_MODE if request.param == "graph" else context.PYNATIVE_MODE)
    yield
    context.set_context(mode=before)


def overlap(a, b):
    """IoU of two boxes, in float64."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def by_definition(boxes, scores, groups, valid, most, threshold, method, sigma, least):
    """Figure 2 of arXiv:1704.04503, in each group: indices and scores of one image."""
    boxes = boxes.astype(np.float64)
    left = {i: float(s) for i, s in enumerate(scores) if valid[i] and s > 0}
    found = []
    while left and len(found) < most:
        best = max(left, key=lambda i: (left[i], -i))
        if left[best] < least:
            break
        found.append((best, left.pop(best)))
        for i in left:
            if groups[i] == groups[best]:
                over = overlap(boxes[best], boxes[i])
                if method == "gaussian":
                    left[i] *= np.exp(-(over**2) / sigma)
                elif over >= threshold:
                    left[i] *= 1 - over
    return found


def scene(seed, images, count, classes):
    random = np.random.default_rng(seed)
    low, size = random.uniform(0, 60, (images, count, 2)), random.uniform(8, 40, (images, count, 2))
    boxes = np.concatenate([low, low + size], 2).astype(np.float32)
    scores = random.uniform(0.05, 1, (images, count)).astype(np.float32)
    return boxes, scores, random.integers(1, classes + 1, (images, count)), random.random((images, count)) < 0.9


@pytest.mark.parametrize(("method", "least"), [("linear", 1e-3), ("gaussian", 1e-3), ("gaussian", 0.2)])
def test_scores_fall_as_the_paper_says_class_by_class(mode, method, least):
    boxes, scores, groups, valid = scene(1, 2, 60, 2)
    scores[0, 3], boxes[0, 5], boxes[1, 7] = np.nan, boxes[0, 4], [9, 9, 9, 30]
    nms = SoftNMS(0.3, 70, method, 0.5, least)
    inputs = (Tensor(x) for x in (boxes, scores, groups.astype(np.int32), valid))
    indices, kept, changed = (x.asnumpy() for x in nms(*inputs))
    assert indices.shape == kept.shape == changed.shape == (2, 70)
    for i in range(2):
        wanted = by_definition(boxes[i], scores[i], groups[i], valid[i], 70, 0.3, method, 0.5, least)
        count = len(wanted)
        assert 5 < count < 60 and kept[i].tolist() == [True] * count + [False] * (70 - count)
        assert indices[i].tolist() == [n for n, _ in wanted] + [0] * (70 - count)
        np.testing.assert_allclose(changed[i], [s for _, s in wanted] + [0] * (70 - count), rtol=1e-5)


def test_the_best_so_many_stay_and_an_image_without_any_is_empty(mode):
    boxes, scores, groups, valid = scene(2, 2, 30, 1)
    valid[1] = False
    few = SoftNMS(0.5, 4)(*(Tensor(x) for x in (boxes, scores, groups.astype(np.int32), valid)))
    indices, kept, changed = (x.asnumpy() for x in few)
    wanted = by_definition(boxes[0], scores[0], groups[0], valid[0], 4, 0.5, "linear", 0.5, 1e-3)
    assert indices[0].tolist() == [n for n, _ in wanted] and kept[0].all()
    assert not kept[1].any() and not changed[1].any()


BOXES = [
    *([37, 25, 64, 53], [27, 35, 56, 64], [23, 31, 51, 70], [33, 9, 68, 44], [2, 12, 34, 42], [11, 34, 35, 73]),
    *([36, 0, 63, 21], [19, 32, 55, 51], [5, 31, 41, 61], [4, 18, 22, 35], [32, 12, 58, 28], [13, 11, 32, 39]),
    *([28, 10, 67, 37], [39, 17, 74, 55]),
]
SCORES = [0.5, 0.7, 0.3, 0.2, 0.75, 0.85, 0.65, 0.55, 0.8, 0.35, 0.45, 0.4, 0.6, 0.25]
LINEAR = {5: 0.85, 4: 0.75, 1: 0.7, 6: 0.65, 12: 0.6, 0: 0.5, 8: 0.421053, 10: 0.272222, 9: 0.238437}
LINEAR |= {11: 0.190398, 7: 0.152482}
GAUSSIAN = {5: 0.85, 4: 0.732872, 1: 0.668087, 6: 0.65, 12: 0.53437, 8: 0.426219, 0: 0.389868, 10: 0.287802}
GAUSSIAN |= {9: 0.284077, 7: 0.235327, 11: 0.197925, 13: 0.104263}


@pytest.mark.parametrize(("method", "wanted"), [("linear", LINEAR), ("gaussian", GAUSSIAN)])
def test_equals_mmcvs_own(mode, method, wanted):
    """mmcv's softnms_cpu (its main branch, a8073c74), by iou_threshold 0.3, sigma 0.5, min_score 0.1."""
    inputs = (np.array([BOXES], np.float32), np.array([SCORES], np.float32), np.ones((1, 14), np.int32))
    out = SoftNMS(0.3, 14, method, 0.5, 0.1)(*map(Tensor, inputs), Tensor(np.ones((1, 14), bool)))
    indices, kept, changed = (x.asnumpy()[0] for x in out)
    assert indices[kept].tolist() == list(wanted)
    np.testing.assert_allclose(changed[kept], list(wanted.values()), rtol=1e-5)
