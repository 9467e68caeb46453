"""The detectors against other projects' golden values: maps, proposals, detections; torchvision's losses, gradients."""

from pathlib import Path

import pytest

from benchmarks.reference import Row, compare

GOLDEN = Path(__file__).parent / "reference/maskrcnn_r50_fpn.npz"


def failures(rows: list[Row]) -> list[str]:
    return [f"{r.stage}: {r.value:.3g} against {r.limit:g}" for r in rows if not r.passed]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return compare(GOLDEN, salt=0)


def test_every_stage_equals_torchvision(rows):
    assert failures(rows) == []


def test_all_of_the_golden_file_is_compared(rows):
    stages = " ".join(r.stage for r in rows)
    for part in ("fpn_p6", "rpn_deltas_p6", "roi_feats_14", "mask_logits", "proposals_1", "detections_1", "loss_mask"):
        assert part in stages
    assert "gradients compared" in stages


@pytest.mark.parametrize(
    "name", ["d2_mask_rcnn_r50_fpn", "d2_cascade_mask_rcnn_r50_fpn", "mmdet_cascade_mask_rcnn_r50_fpn"]
)
def test_detectron2_and_mmdetection_through_the_converter(name):
    rows = compare(GOLDEN.with_name(f"{name}.npz"))
    assert failures(rows) == []
    stages = " ".join(r.stage for r in rows)
    for part in ("fpn_p6", "proposals_1 matched", "detections_1 matched", "det_masks_1"):
        assert part in stages


def test_mindspores_own_operators_give_the_same(rows):
    """What a checkout without a compiler runs, and what is exported."""
    assert failures(compare(GOLDEN, salt=0, training=False, builtin_ops=True)) == []
