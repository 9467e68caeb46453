"""Conventions of the projects that published checkpoints, against formulas written down independently in NumPy."""

import numpy as np
import pytest
from mindspore import Tensor

from src.config import load_config
from src.models.anchors import base_anchors, make_anchors
from src.models.assigner_sampler import AssignerSampler
from src.models.box_coder import BoxCoder, clip_boxes
from src.models.build import build_detector, build_loss
from src.models.proposals import ProposalGenerator
from src.models.roi_extractor import RoIExtractor, level_sides
from src.models.rpn import RPNLoss
from src.ops.nms import BatchedNMS

pytestmark = pytest.mark.usefixtures("operator_by_operator")

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


@pytest.mark.parametrize("both", [False, True])
def test_deltas_are_clamped_from_above_or_at_both_ends(both):
    """mmdetection's delta2bbox: dwh.clamp(-|ln(16 / 1000)|, |ln(16 / 1000)|) after means and stds; others the upper."""
    most = np.log(1000 / 16)
    stds = np.array([0.1, 0.1, 0.2, 0.2])
    deltas = np.array([[0, 0, -30, 30], [0, 0, -20.5, 20.5], [0, 0, 20.9, -20.9], [1, -2, -3, 4]], np.float32)
    anchors = np.array([[10, 20, 50, 100]] * 4, np.float32)
    size = anchors[:, 2:] - anchors[:, :2]
    centre = anchors[:, :2] + size / 2 + deltas[:, :2] * stds[:2] * size
    half = np.exp(np.clip(deltas[:, 2:] * stds[2:], -most if both else -np.inf, most)) * size / 2
    ours = BoxCoder([0.0] * 4, stds, clamp_both=both)(Tensor(deltas), Tensor(anchors)).asnumpy()
    # an exponential in float32, some 1e-6 of the side
    np.testing.assert_allclose(ours, np.concatenate([centre - half, centre + half], 1), rtol=1e-5, atol=1e-3)
    assert (ours[0, 2] - ours[0, 0] > 0.5) == both


@pytest.mark.parametrize("turned", [False, True])
def test_torchvisions_last_level_lies_61_pixels_apart_on_a_side_of_800(turned):
    """AnchorGenerator of torchvision 0.27: image side // map side; 13 of 61 on 800, 21 of 64 on 1344."""
    height, width = (1344, 800) if turned else (800, 1344)
    strides = [4, 8, 16, 32, 64]
    anchors, corners, counts = make_anchors(height, width, strides, [8], [0.5, 1, 2], rounded=True, grid_strides=True)
    assert counts == [3 * -(-height // s) * -(-width // s) for s in strides]
    last = anchors[-counts[-1] :].reshape(21 if turned else 13, 13 if turned else 21, 3, 4)
    down, across = (64, 61) if turned else (61, 64)
    # the square anchor of 512 pixels in the last cell
    x, y = (last.shape[1] - 1) * across, (last.shape[0] - 1) * down
    np.testing.assert_array_equal(last[-1, -1, 1], [x - 256, y - 256, x + 256, y + 256])
    np.testing.assert_array_equal(corners[:, -1], [x, y])
    plain = make_anchors(height, width, strides, [8], [0.5, 1, 2], rounded=True)
    np.testing.assert_array_equal(anchors[: -counts[-1]], plain[0][: -counts[-1]])
    assert plain[1][:, -1].tolist() == [64 * (last.shape[1] - 1), 64 * (last.shape[0] - 1)]


def test_the_last_level_trains_at_its_own_anchors():
    """Losses at sampled anchors are those of the dense head, on a canvas whose last level's anchors lie 53 apart."""
    overrides = {
        "img_height": 160,
        "img_width": 160,
        "rpn.anchor_generator.grid_strides": True,
        "backbone.width_multiplier": 0.25,
    }
    config = load_config("configs/shapes.yaml", overrides)
    detector = build_detector(config)
    sampled = build_loss(config, detector).rpn_loss.sampled
    r = np.random.default_rng(0)
    channels, sides = config.neck.fpn.out_channels, (40, 20, 10, 5, 3)
    maps = tuple(Tensor(r.normal(0, 1, (1, channels, s, s)).astype(np.float32)) for s in sides)
    logits, deltas = (np.concatenate([x.asnumpy() for x in part], 1) for part in detector.rpn.head(maps))
    index = np.arange(logits.shape[1] - 27 - 75, logits.shape[1])[None].astype(np.int32)  # the last two levels
    ours = sampled(maps, Tensor(index), detector.rpn.corners)
    # sums of 256 products in another order
    np.testing.assert_allclose(ours[0].asnumpy()[0], logits[0, index[0]], atol=1e-5)
    np.testing.assert_allclose(ours[1].asnumpy()[0], deltas[0, index[0]], atol=1e-5)


@pytest.mark.parametrize(("normaliser", "divisor"), [("sampled", 256 + 103), ("mmdet", 257 + 103), ("num", 2 * 256)])
def test_what_rpn_losses_are_divided_by(normaliser, divisor):
    """Of an image with 256 negatives alone, and one with 3 positives and 100 negatives.

    torchvision: all that was sampled; mmdetection's SamplingResult: max(positives, 1) + max(negatives, 1) an image;
    Detectron2's RPN: batch_size_per_image * num_images.
    """
    valid = np.zeros((2, 256), np.float32)
    valid[0], valid[1, :103] = 1, 1
    positive = np.zeros_like(valid)
    positive[1, :3] = 1
    loss = RPNLoss(None, None, None, AssignerSampler(256, 0.5, 0.7, 0.3), None, normaliser=normaliser)
    assert loss.count(Tensor(valid), Tensor(positive)).asnumpy() == divisor


@pytest.mark.parametrize("builtin", [False, True])
@pytest.mark.parametrize(("rank_by", "kept"), [("logits", [3, 1]), ("logits_first", [1, 3]), ("probabilities", [0, 2])])
def test_what_proposals_are_ranked_by(rank_by, kept, builtin):
    """Two levels of two anchors that overlap; logits beyond 17, whose probabilities are all 1."""
    anchors = np.array([[0, 0, 20, 20], [0, 0, 20, 19], [40, 40, 60, 60], [40, 40, 60, 59]], np.float32)
    logits = np.array([[18, 20], [30, 40]], np.float32)
    make = ProposalGenerator(
        BoxCoder([0.0] * 4, [1.0] * 4), [2, 2], 2, 3, 0.7, 1e-3, rank_by=rank_by, builtin_ops=builtin
    )
    flat = tuple(Tensor(np.zeros((1, 2, 4), np.float32)) for _ in range(2))
    proposals, _, valid = make(
        tuple(Tensor(x[None]) for x in logits),
        flat,
        Tensor(anchors),
        Tensor(np.ones((1, 4), bool)),
        Tensor(np.array([[64, 64]], np.float32)),
    )
    assert valid.asnumpy().tolist() == [[True, True, False]]
    np.testing.assert_array_equal(proposals.asnumpy()[0, :2], anchors[kept])


PROJECTS = {
    # clamp at both ends, ranking, RPN normaliser, mask targets, what of the mask, pasting, strides by the grid
    "torchvision_mask_rcnn_r50_fpn": ("upper", "logits_first", "sampled", "soft", "shifted", "torchvision", True),
    "detectron2_mask_rcnn_r50_fpn": ("upper", "logits", "num", "binary", "box", "grid", False),
    "detectron2_cascade_mask_rcnn_r50_fpn": ("upper", "logits", "num", "binary", "box", "grid", False),
    "mmdet_mask_rcnn_r50_fpn": ("both", "probabilities", "mmdet", "binary", "box", "grid", False),
    "mmdet_cascade_mask_rcnn_r50_fpn": ("both", "probabilities", "mmdet", "binary", "box", "grid", False),
    "mmdet_mask_rcnn_x101_64x4d_fpn": ("both", "probabilities", "mmdet", "binary", "box", "grid", False),
    "maskrcnn_benchmark_mask_rcnn_r50_fpn": (
        *("upper", "probabilities", "sampled", "binary", "last_pixel", "torchvision", False),
    ),
    "mindspore_zoo_mask_rcnn_r50_fpn": (
        *("both", "probabilities", "num", "binary", "whole_pixels", "torchvision", False),
    ),
    "mask_rcnn_r50_fpn": ("upper", "logits_first", "sampled", "soft", "shifted", "torchvision", False),
}


@pytest.mark.parametrize("name", PROJECTS)
def test_each_projects_config_says_what_it_does(name):
    c = load_config(f"configs/{name}.yaml")
    assert c.bbox_head.bbox_coder.delta_clamp == c.rpn.bbox_coder.delta_clamp
    said = (c.rpn.bbox_coder.delta_clamp, c.rpn.rank_by, c.rpn.loss_normaliser, c.train_cfg.rcnn.mask_targets)
    said += (c.mask_target_box, c.mask_paste, c.rpn.anchor_generator.grid_strides)
    assert said == PROJECTS[name]
    # torchvision and mmdetection cut bitmaps; the others polygons, or boxes of them
    assert (c.train_cfg.rcnn.mask_crop == "pixels") == name.startswith(("torchvision", "mmdet"))


def test_conventions_reach_the_detector_and_its_losses():
    overrides = {"backbone.width_multiplier": 0.25}
    for part in ("rpn", "bbox_head"):
        overrides[f"{part}.bbox_coder.delta_clamp"] = "both"
    overrides |= {"rpn.rank_by": "logits", "rpn.loss_normaliser": "num", "detector": "cascade_mask_rcnn"}
    overrides |= {"train_cfg.rcnn.mask_targets": "binary", "train_cfg.rcnn.mask_target_box": "last_pixel"}
    config = load_config("configs/shapes.yaml", overrides)
    detector = build_detector(config)
    loss = build_loss(config, detector)
    heads, proposals = detector.roi_heads, (detector.rpn.proposals, loss.rpn_loss.proposals)
    coders = [*(p.coder for p in proposals), heads.selector.coder, *heads.coders]
    assert all(coder.clamp_both for coder in coders)
    assert {p.rank_by for p in proposals} == {"logits"}
    assert loss.rpn_loss.counted == "num"
    assert {(m.targets.box, m.targets.binary) for m in loss.roi_loss.more} == {("last_pixel", True)}


def test_an_older_runs_config_pastes_and_cuts_masks_as_it_did():
    """A config without the keys: RoIAlign's decided both."""
    old = load_config("configs/shapes.yaml", {"mask_roi.roi_layer.aligned": True})
    assert (old.mask_paste, old.mask_target_box, old.train_cfg.rcnn.mask_targets) == ("grid", "box", "soft")


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
    assert detector.rpn.proposals.plus_one and detector.roi_heads.selector.plus_one
    np.testing.assert_array_equal(
        detector.rpn.anchors.asnumpy()[:3], base_anchors(4, [4], [0.5, 1, 2], rounded=False, legacy="caffe2")
    )


# The level of a RoI of that side, as each project's code computes it in float32 (torchvision/ops/poolers.py;
# detectron2/modeling/poolers.py; mmdet/models/roi_heads/roi_extractors/single_level_roi_extractor.py, the zoo's too;
# maskrcnn_benchmark/modeling/poolers.py); where boxes end at their last pixel the side is of whole pixels, as here.
LEVELS = {
    "torchvision": lambda side: 4 + np.log2(side / np.float32(224)) + np.float32(1e-6) - 2,
    "detectron2": lambda side: 4 + np.log2(side / np.float32(224) + np.float32(1e-8)) - 2,
    "mmdetection": lambda side: np.log2(side / np.float32(56) + np.float32(1e-6)),
    "maskrcnn_benchmark": lambda side: 4 + np.log2(side / np.float32(224) + np.float32(1e-6)) - 2,
}


@pytest.mark.parametrize("project", LEVELS)
def test_every_projects_levels_of_rois(project):
    """Of boxes of half pixels beside a level's first some are of one level here, of another there."""
    near = [(w, round(4 * side**2 / w) + d) for side in (112, 224, 448) for w in range(1, 2667) for d in (-1, 0, 1)]
    boxes = np.array([(w, h) for w, h in near if 0 < h < 2667], np.float32) / 2
    # floats on both sides of one
    ulps = [np.nextafter(np.float32(112), d, dtype=np.float32) for d in (0, 999)]
    boxes = np.concatenate([boxes, np.array([(s, s) for s in ulps], np.float32)])
    expected = np.floor(LEVELS[project](np.sqrt(boxes[:, 0] * boxes[:, 1]))).clip(0, 3)
    extract = RoIExtractor(1, 1, False, [4, 8, 16, 32], 56.0, level_rule=project)
    # what is cropped says of which level
    maps = [Tensor(np.full((1, 1, 340, 340), level, np.float32)) for level in range(4)]
    boxes = np.concatenate([np.zeros_like(boxes), boxes], 1)[None]
    levels = extract(maps, Tensor(boxes), Tensor(np.ones(boxes.shape[:2], bool))).asnumpy().ravel()
    np.testing.assert_array_equal(levels, expected)
    assert set(levels) == {0, 1, 2, 3}


def test_levels_begin_where_pytorch_has_them_begin():
    """The first float of a level, relatively to 112, 224, 448, in what PyTorch 2.14 computes of the projects' lines."""
    pytorch = {
        "torchvision": [-7.493155e-07, -6.811959e-07, -8.174351e-07],
        "detectron2": [-1.362392e-07, -6.811959e-08, -2.043588e-07],
        "mmdetection": [-4.768372e-07, -2.043588e-07, -2.043588e-07],
        "maskrcnn_benchmark": [-2.111707e-06, -1.089914e-06, -6.811959e-07],
    }
    for rule, expected in pytorch.items():
        ours = np.array(level_sides(rule, 56.0, 4)) / [112, 224, 448] - 1
        np.testing.assert_allclose(ours, expected, rtol=1e-6, err_msg=rule)
