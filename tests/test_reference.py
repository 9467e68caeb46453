"""The detectors against other projects' golden values: maps, proposals, detections; of some losses and gradients."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from benchmarks import trajectory
from benchmarks.reference import BOX, PASTED, ROOT, Row, compare, load_weights, match_boxes, worst_iou
from src import Predictor
from src.checkpoints.files import save_checkpoint
from src.config import load_config
from src.models.build import build_detector
from tests.reference import from_pictures

GOLDEN = Path(__file__).parent / "reference/maskrcnn_r50_fpn.npz"


def failures(rows: list[Row]) -> list[str]:
    return [f"{r.stage}: {r.value:.3g} against {r.limit:g}" for r in rows if not r.passed]


def compare_apart(name: str, **options) -> list[Row]:
    """What compare() gives, in a process of its own: MindSpore keeps what it compiled, gigabytes a detector."""
    # as in tests/conftest.py: on this test process's one core
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), ms.runtime.launch_blocking) as pool:
        return pool.submit(compare, GOLDEN.with_name(f"{name}.npz"), **options).result()


@pytest.fixture(scope="module")
def rows(request) -> list[Row]:
    return compare_apart(GOLDEN.stem, salt=0, compiled=request.config.getoption("--full"))


def test_every_stage_equals_torchvision(rows):
    assert failures(rows) == []


def test_all_of_the_golden_file_is_compared(rows):
    stages = " ".join(r.stage for r in rows)
    for part in ("fpn_p6", "rpn_deltas_p6", "roi_feats_14", "mask_logits", "proposals_1", "detections_1", "loss_mask"):
        assert part in stages
    assert "gradients compared" in stages


@pytest.mark.parametrize(("pixels", "passes"), [(0, True), (1, True), (2, False)])
def test_a_small_bitmap_may_differ_in_one_pixel(pixels, passes):
    """A box of 6 x 6: one pixel of 36 is more than the share that larger bitmaps' outlines are allowed."""
    boxes = np.array([[2, 2, 8, 8], [10, 10, 40, 40]], np.float32)
    want = np.zeros((2, 64, 64), np.uint8)
    want[0, 2:8, 2:8], want[1, 10:40, 10:40] = 1, 1
    want[0, 2, 2 : 2 + pixels] = 0
    pairs = np.array([[0, 0], [1, 1]])
    assert (worst_iou(np.ones((2, 28, 28), np.float32), boxes, pairs, want) >= PASTED) == passes


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("d2_mask_rcnn_r50_fpn", "det_masks_1"),
        ("d2_mask_rcnn_r50_fpn_lsj", "det_masks_1"),
        ("d2_cascade_mask_rcnn_r50_fpn", "det_masks_1"),
        ("d2_mask_rcnn_vitdet_b", "det_masks_1"),
        # of these two masks of twenty detections an image are kept
        ("d2_cascade_mask_rcnn_vitdet_b", "det_masks_1"),
        ("d2_mask_rcnn_r50_fpn_gn", "det_masks_1"),
        ("d2_keypoint_rcnn_r50_fpn", "det_keypoint_scores_1"),
        ("mmdet_cascade_mask_rcnn_r50_fpn", "det_masks_1"),
    ],
)
def test_detectron2_and_mmdetection_through_the_converter(name, last):
    rows = compare_apart(name)
    assert failures(rows) == []
    stages = " ".join(r.stage for r in rows)
    for part in ("fpn_p6", "proposals_1 matched", "detections_1 matched", last):
        assert part in stages


# half a minute each without training, a minute with it
TRAINED = [pytest.param(t, id="training" if t else "inference", marks=pytest.mark.full) for t in (False, True)]


# a file, a loss, and stages that only such a detector has
FURTHER = {
    # two levels of one stride, anchors of five sizes at each level, a score threshold for proposals
    "tv_fasterrcnn_mobilenet_v3_large_fpn": (
        "loss_box_reg",
        "fpn_pool",
        "rpn_deltas_pool",
        "proposals_1",
        "detections_1",
    ),
    # norms in neck and heads, convolutions in the box head, two in the RPN
    "tv_maskrcnn_resnet50_fpn_v2": ("loss_mask", "fpn_pool", "rpn_deltas_pool", "box_deltas", "det_masks_1"),
    "tv_keypointrcnn_resnet50_fpn": ("loss_keypoint", "det_keypoints_1", "det_keypoint_scores_1"),
    # mmdetection's, a transformer with windows that shift
    "mmdet_mask_rcnn_swin_t_fpn": ("loss_mask", "fpn_p6", "proposals_1", "detections_1", "det_masks_1"),
}


@pytest.mark.parametrize("training", TRAINED)
@pytest.mark.parametrize("name", FURTHER)
def test_further_detectors(name, training):
    loss, *parts = FURTHER[name]
    rows = compare_apart(name, training=training)
    assert failures(rows) == []
    stages = " ".join(r.stage for r in rows)
    for part in (*parts, *((loss, "gradients compared") if training else ())):
        assert part in stages


def test_results_of_pictures_are_torchvisions(tmp_path):
    """Golden values by tests/reference/from_pictures.py: resizing, normalising and padding too."""
    sides = {"short_side": from_pictures.SHORT, "long_side": from_pictures.LONG, "img_height": 256, "img_width": 352}
    sides["test_canvas"] = "picture"
    config = load_config(ROOT / "configs/torchvision_faster_rcnn_mobilenetv3_fpn.yaml", sides)
    names = np.load(ROOT / "tests/reference/tv_fasterrcnn_mobilenet_v3_large_fpn.npz")
    detector = build_detector(config)
    load_weights(config, detector, names, 0)
    save_checkpoint(detector, tmp_path / "golden.ckpt")
    predictor = Predictor(config, tmp_path / "golden.ckpt", batch_size=1)
    golden = np.load(ROOT / "tests/reference/tv_from_pictures.npz")
    for i, found in enumerate(predictor(list(from_pictures.pictures()))):
        boxes, scores, labels = (golden[f"{k}_{i}"] for k in ("boxes", "scores", "labels"))
        # twice what a canvas of the same numbers is allowed, in its pixels: resized by sums in another order
        tolerance = 2 * BOX * max(1, min(found.height, found.width) / from_pictures.SHORT)
        pairs = match_boxes(found.boxes, boxes, tolerance, found.scores, scores, found.labels, labels, 1e-3)
        assert len(boxes) == len(found.boxes) == 100
        # in whole grey levels it is 3 and 2, on the config's canvas 100 and none
        assert len(pairs) >= 99


@pytest.mark.full
def test_mindspores_own_operators_give_the_same(rows):
    """What a checkout without a compiler runs, and what is exported."""
    assert failures(compare_apart(GOLDEN.stem, salt=0, training=False, builtin_ops=True)) == []


@pytest.fixture(scope="module")
def steps() -> list[Row]:
    golden = GOLDEN.with_name("trajectory_maskrcnn_r50_fpn.npz")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(trajectory.compare, golden).result()


@pytest.mark.full
def test_five_training_steps_are_torchvisions(steps):
    first = [r for r in steps if "steps 1 to 5" in r.stage]
    assert len(first) == 13 and failures(first) == []


@pytest.mark.full
def test_twenty_training_steps_are_torchvisions(steps):
    assert len(steps) == 26
    assert failures(steps) == []
