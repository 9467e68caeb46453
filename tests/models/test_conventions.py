"""Conventions of the projects that published checkpoints, against formulas written down independently in NumPy."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.config import load_config
from src.models.anchors import base_anchors
from src.models.box_coder import BoxCoder, clip_boxes
from src.models.build import build_detector
from src.models.roi_extractor import RoIExtractor
from src.ops.nms import BatchedNMS

LAST_PIXEL = np.array([0, 0, 1, 1])  # what boxes kept by their last pixel lack of ours


def test_caffe2_anchors_are_those_of_py_faster_rcnn():
    """The table that its generate_anchors prints: base 16, ratios 0.5, 1, 2, scales 8, 16, 32."""
    published = [
        [-84, -40, 99, 55],
        [-176, -88, 191, 103],
        [-360, -184, 375, 199],
        [-56, -56, 71, 71],
        [-120, -120, 135, 135],
        [-248, -248, 263, 263],
        [-36, -80, 51, 95],
        [-80, -168, 95, 183],
        [-168, -344, 183, 359],
    ]
    ours = base_anchors(16, [8, 16, 32], [0.5, 1, 2], rounded=False, legacy="caffe2")
    np.testing.assert_array_equal(ours - LAST_PIXEL, published)


def test_mmdet1_anchors_round_their_corners():
    """Centre (stride - 1) / 2, sides stride * scale / sqrt(ratio) and * sqrt(ratio), last pixels, rounded."""
    expected = []
    for ratio in (0.5, 1.0, 2.0):
        w, h = 4 * 8 / ratio**0.5, 4 * 8 * ratio**0.5
        expected.append([1.5 - (w - 1) / 2, 1.5 - (h - 1) / 2, 1.5 + (w - 1) / 2, 1.5 + (h - 1) / 2])
    ours = base_anchors(4, [8], [0.5, 1.0, 2.0], rounded=False, legacy="mmdet1")
    np.testing.assert_array_equal(ours - LAST_PIXEL, np.round(expected))


def test_torchvision_rounds_corners_and_detectron2_does_not():
    exact = np.array([[-22.627417, -11.3137085, 22.627417, 11.3137085], [-16, -16, 16, 16]])
    np.testing.assert_allclose(base_anchors(4, [8], [0.5, 1], rounded=False), exact, rtol=1e-6)
    np.testing.assert_array_equal(base_anchors(4, [8], [0.5, 1], rounded=True), np.round(exact))


def legacy_decode(anchors, deltas, height, width):
    """py-faster-rcnn's bbox_transform_inv and clip_boxes: widths with + 1, boxes to their last pixel."""
    w, h = anchors[:, 2] - anchors[:, 0] + 1, anchors[:, 3] - anchors[:, 1] + 1
    cx, cy = anchors[:, 0] + 0.5 * w, anchors[:, 1] + 0.5 * h
    cx, cy = deltas[:, 0] * w + cx, deltas[:, 1] * h + cy
    w, h = np.exp(deltas[:, 2]) * w, np.exp(deltas[:, 3]) * h
    boxes = np.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w - 1, cy + 0.5 * h - 1], 1)
    return np.clip(boxes, 0, [width - 1, height - 1, width - 1, height - 1])


def test_boxes_kept_by_their_last_pixel_decode_and_clip_as_there():
    r = np.random.default_rng(0)
    xy = r.uniform(-40, 220, (200, 2))
    anchors = np.concatenate([xy, xy + r.uniform(1, 90, (200, 2))], 1)
    deltas = r.normal(0, 0.5, (200, 4))
    expected = legacy_decode(anchors, deltas, 128, 192)
    boxes = BoxCoder([0.0] * 4, [1.0] * 4)(
        Tensor(deltas[None].astype(np.float32)), Tensor((anchors + LAST_PIXEL)[None].astype(np.float32))
    )
    size = Tensor(np.array([[128, 192]], np.float32))
    ours = clip_boxes(boxes, size, plus_one=True).asnumpy()[0] - LAST_PIXEL
    np.testing.assert_allclose(ours, expected, atol=1e-3)  # float32 of coordinates up to some hundreds
    assert (expected[:, 0] == 191).any() and (expected[:, 2] == 0).any()  # both borders were met


def test_legacy_iou_is_ours_one_pixel_further():
    """Two boxes of 9 and 9 last-pixel columns: IoU with + 1 is 1/2 (5 of 10), without it 4/9 (rows are the same)."""
    legacy = np.array([[0, 0, 7, 9], [3, 0, 9, 9]], np.float32)  # 8 and 7 columns, 5 of them shared: 5/10
    boxes = Tensor((legacy + LAST_PIXEL)[None].astype(np.float32))
    scores, groups = Tensor(np.array([[0.9, 0.8]], np.float32)), Tensor(np.zeros((1, 2), np.int32))
    valid = Tensor(np.ones((1, 2), bool))
    assert BatchedNMS(0.49, 2)(boxes, scores, groups, valid)[1].asnumpy().sum() == 1
    assert BatchedNMS(0.51, 2)(boxes, scores, groups, valid)[1].asnumpy().sum() == 2
    # by width = x2 - x1 their IoU would be 4/9
    assert BatchedNMS(0.49, 2)(Tensor(legacy[None]), scores, groups, valid)[1].asnumpy().sum() == 2


def test_a_roi_that_ends_at_its_last_pixel():
    r = np.random.default_rng(1)
    features = tuple(Tensor(r.normal(0, 1, (1, 3, 64 // s, 64 // s)).astype(np.float32)) for s in (1, 2))
    boxes = np.array([[[4, 6, 30, 40], [10, 3, 21, 12]]], np.float32)
    valid = Tensor(np.ones((1, 2), bool))
    make = lambda **kw: RoIExtractor(7, 2, False, (4, 8), 56, **kw)  # noqa: E731
    there = make(last_pixel_end=True)(features, Tensor(boxes), valid).asnumpy()
    ours = make()(features, Tensor(boxes - LAST_PIXEL.astype(np.float32)), valid).asnumpy()
    np.testing.assert_array_equal(there, ours)
    assert np.abs(there - make()(features, Tensor(boxes), valid).asnumpy()).max() > 1e-3


def test_a_config_with_box_plus_one_clips_so_everywhere():
    overrides = {"box_plus_one": True, "rpn.anchor_generator.legacy": "caffe2", "detector": "faster_rcnn"}
    detector = build_detector(load_config("configs/shapes.yaml", overrides))
    assert detector.proposals.plus_one and detector.detections.plus_one
    np.testing.assert_array_equal(
        detector.anchors.asnumpy()[:3], base_anchors(4, [4], [0.5, 1, 2], rounded=False, legacy="caffe2")
    )


LEVELS = {
    "torchvision": lambda s: np.floor(4 + np.log2(s / 224) + 1e-6),
    "Detectron2": lambda s: np.floor(4 + np.log2(s / 224 + 1e-8)),
    "mmdetection": lambda s: np.floor(np.log2(s / 56 + 1e-6)) + 2,
}


@pytest.mark.parametrize("project", LEVELS)
def test_every_project_maps_a_roi_to_the_same_level(project):
    """Their formulas differ by 1e-6 in the logarithm: 1e-4 px beside a side of 112, 224 or 448 they agree."""
    ms.set_context(mode=ms.GRAPH_MODE)
    sides = np.concatenate([np.linspace(1, 900, 300), [112 - 1e-3, 112, 224 - 2e-3, 224, 448 - 4e-3, 448]])
    extractor = RoIExtractor(1, 1, False, (4, 8, 16, 32), 56)
    # each level's map holds its number
    maps = tuple(Tensor(np.full((1, 1, 1024 // s, 1024 // s), i + 2, np.float32)) for i, s in enumerate((4, 8, 16, 32)))
    boxes = np.concatenate([np.zeros((len(sides), 2)), sides[:, None] * [1, 1]], 1)[None].astype(np.float32)
    ours = extractor(maps, Tensor(boxes), Tensor(np.ones((1, len(sides)), bool))).asnumpy().ravel()
    np.testing.assert_array_equal(ours, np.clip(LEVELS[project](sides), 2, 5))
