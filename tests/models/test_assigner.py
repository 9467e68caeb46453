"""Which object a box trains on, against the rules of torchvision and mmdetection written down box by box."""

import functools

import numpy as np
import pytest
from mindspore import Tensor

from src.config import load_config
from src.models.assigner_sampler import AssignerSampler
from src.models.build import build_detector, build_loss
from src.ops.library import find_library

pytestmark = pytest.mark.usefixtures("operator_by_operator")

needs_library = pytest.mark.skipif(find_library() is None, reason="library not built: scripts/build_custom.sh")
IMPLEMENTATIONS = [pytest.param(False, id="custom", marks=needs_library), pytest.param(True, id="builtin")]
IGNORED, NEGATIVE = -1, 0


@functools.cache
def sampler(**options):
    """Of the same options one alone, so that it compiles once."""
    return AssignerSampler(8, 0.5, **options)


def assign(boxes, gts, builtin, mmdet, low=0.3, **options):
    """mmdetection's gt_inds of one image: -1 ignored, 0 background, else 1 + the object."""
    boxes, gts = np.asarray(boxes, np.float32), np.asarray(gts, np.float32)
    options = {"pos_iou_thr": 0.7, "neg_iou_thr": 0.3, "match_low_quality": True} | options
    cell = sampler(min_pos_iou=low, to_last_object=mmdet, builtin_ops=builtin, **options)
    valid, gt_valid = np.ones((1, len(boxes)), bool), np.ones((1, len(gts)), bool)
    crowd = np.zeros((1, 1, 4), np.float32)
    positive, negative, index = (
        x.asnumpy()[0] for x in cell.assign(*map(Tensor, (boxes[None], valid, gts[None], gt_valid, crowd)))
    )
    return np.where(positive, index + 1, np.where(negative, NEGATIVE, IGNORED))


def by_the_rules(boxes, gts, mmdet, low=0.3, pos=0.7, neg=0.3):
    """mmdet/models/task_modules/assigners/max_iou_assigner.py, torchvision's models/detection/_utils.py Matcher."""
    low_corner = np.maximum(boxes[:, None, :2], gts[None, :, :2])
    size = np.maximum(np.minimum(boxes[:, None, 2:], gts[None, :, 2:]) - low_corner, 0)
    inter = size[..., 0] * size[..., 1]
    area = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, gts)]
    iou = inter / (area[0][:, None] + area[1][None] - inter)
    out = np.full(len(boxes), IGNORED)
    out[iou.max(1) < neg] = NEGATIVE
    sure = iou.max(1) >= pos
    out[sure] = iou.argmax(1)[sure] + 1
    for g in range(len(gts)):
        if iou[:, g].max() >= np.float32(low):
            for i in np.flatnonzero(iou[:, g] == iou[:, g].max()):
                out[i] = (g if mmdet else iou[i].argmax()) + 1
    return out


# the values are those of mmdetection 3.3's MaxIoUAssigner
@pytest.mark.parametrize("builtin", IMPLEMENTATIONS)
@pytest.mark.parametrize("mmdet", [False, True])
def test_a_low_quality_match_needs_the_iou_with_the_object_whose_best_box_it_is(builtin, mmdet):
    boxes, gts = [[5, 0, 15, 10], [0, 0, 10, 9]], [[0, 0, 10, 10], [14, 0, 34, 10]]
    # the first box is the second object's best, by an IoU of 0.034; it has 0.333 with the first object
    assert assign(boxes, gts, builtin, mmdet).tolist() == [IGNORED, 1]
    assert assign(boxes, gts, builtin, mmdet, low=0.03).tolist() == [2 if mmdet else 1, 1]


@pytest.mark.parametrize("builtin", IMPLEMENTATIONS)
def test_the_best_box_of_two_objects_goes_to_the_last_in_mmdetection_to_its_own_best_elsewhere(builtin):
    boxes, gts = [[0, 0, 10, 10]], [[0, 0, 10, 9], [0, 0, 10, 6]]
    assert assign(boxes, gts, builtin, mmdet=True).tolist() == [2]
    assert assign(boxes, gts, builtin, mmdet=False).tolist() == [1]
    assert assign(boxes, gts, builtin, mmdet=True, match_low_quality=False).tolist() == [1]


@pytest.mark.parametrize("builtin", IMPLEMENTATIONS)
@pytest.mark.parametrize("mmdet", [False, True])
@pytest.mark.parametrize("step", [0.25, 8.0])  # multiples of 8: many ties
def test_random_boxes_are_assigned_by_the_rules(builtin, mmdet, step):
    r = np.random.default_rng(int(step * 4))
    met = {"low": 0, "moved": 0, "ignored": 0}
    for _ in range(6):
        low, size = r.uniform(0, 60, (230, 2)), r.uniform(8, 60, (230, 2))
        every = (np.round(np.concatenate([low, low + size], 1) / step) * step).astype(np.float32)
        boxes, gts = every[:200], every[200:]
        wanted = by_the_rules(boxes, gts, mmdet)
        np.testing.assert_array_equal(assign(boxes, gts, builtin, mmdet), wanted)
        met["low"] += (wanted != by_the_rules(boxes, gts, mmdet, low=2.0)).sum()
        met["moved"] += (wanted != by_the_rules(boxes, gts, not mmdet)).sum()
        met["ignored"] += (wanted == IGNORED).sum()
    assert min(met.values()) > 5, met  # the rule at issue was met


@pytest.mark.parametrize("builtin", IMPLEMENTATIONS)
def test_ground_truth_among_the_proposals_is_its_own_and_competes_for_none(builtin):
    gts = [[0, 0, 10, 10], [0, 0, 10, 10], [30, 30, 40, 50]]
    boxes = [[0, 0, 10, 8], [30, 30, 40, 41], [80, 80, 90, 90]]
    # mmdetection assigns the proposals alone, and its sampler then adds the ground truth, each box to itself
    assert assign(boxes + gts, gts, builtin, mmdet=True, gt_appended=True).tolist() == [2, 3, NEGATIVE, 1, 2, 3]
    # elsewhere it is matched like a proposal: the first of equal objects, and nobody else's best
    assert assign(boxes + gts, gts, builtin, mmdet=False).tolist() == [1, IGNORED, NEGATIVE, 1, 1, 3]


@pytest.mark.parametrize(
    ("name", "last", "appended"),
    [
        ("mmdet_mask_rcnn_r50_fpn", True, True),
        ("mindspore_zoo_faster_rcnn_r50_fpn", True, True),
        ("torchvision_mask_rcnn_r50_fpn", False, False),
        ("detectron2_mask_rcnn_r50_fpn", False, False),
        ("mask_rcnn_r50_fpn", False, False),
    ],
)
def test_each_projects_config_assigns_as_the_project(name, last, appended):
    config = load_config(f"configs/{name}.yaml", {"img_height": 64, "img_width": 64})
    loss = build_loss(config, build_detector(config))
    anchors, boxes = loss.rpn_loss.assigner_sampler, loss.roi_loss.sampler
    assert anchors.to_last_object == boxes.to_last_object == last
    assert boxes.gt_appended == appended and not anchors.gt_appended
