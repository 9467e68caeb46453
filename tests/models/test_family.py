"""Every detector and backbone: the published number of weights, and training that learns."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from mindspore.nn.utils import no_init_parameters

from benchmarks.family import BACKBONES, DETECTORS, NORMS, family_config, grown, run
from src.config import load_config
from src.models.backbones.resnet import ResNet
from src.models.build import build_detector
from src.runtime.newer import zip_equal
from tests.models.test_backbones import weights

REFERENCE = Path(__file__).parents[1] / "reference"


@pytest.mark.parametrize(("base_width", "groups", "count"), [(4, 32, 42_128_704), (4, 64, 81_406_272)])
def test_resnext_has_the_published_number_of_weights(base_width, groups, count):
    """timm's resnext101_32x4d and torchvision's resnext101_64x4d without their classifier of 2,049,000."""
    assert weights(ResNet(101, groups=groups, base_width=base_width)) == count


def test_faster_rcnn_has_the_published_number_of_weights():
    """torchvision's fasterrcnn_resnet50_fpn with 91 classes, whose frozen batch norms aren't counted."""
    names = ["background", *(f"class {i}" for i in range(90))]
    config = load_config("configs/faster_rcnn_r50_fpn.yaml", {"num_classes": 91, "coco_classes": names})
    assert weights(build_detector(config), with_norms=False) == 41_755_286


@pytest.mark.parametrize(("detector", "count"), [("faster_rcnn", 43_712_278), ("mask_rcnn", 46_359_409)])
def test_v2_has_the_published_number_of_weights(detector, count):
    """num_params of torchvision's fasterrcnn_resnet50_fpn_v2 and maskrcnn_resnet50_fpn_v2, of 91 classes."""
    names = ["background", *(f"class {i}" for i in range(90))]
    path = f"configs/torchvision_{detector}_r50_fpn_v2.yaml"
    with no_init_parameters():
        detector = build_detector(load_config(path, {"num_classes": 91, "coco_classes": names}))
    assert weights(detector) == count


@pytest.mark.parametrize(
    ("golden", "config", "mask_heads"),
    [
        ("d2_cascade_mask_rcnn_r50_fpn", "detectron2_cascade_mask_rcnn_r50_fpn", 1),
        ("mmdet_cascade_mask_rcnn_r50_fpn", "mmdet_cascade_mask_rcnn_r50_fpn", 3),
    ],
)
def test_cascade_has_the_published_number_of_weights(golden, config, mask_heads):
    """Theirs, and a mask for the background in each mask head (256 weights and a bias)."""
    with np.load(REFERENCE / f"{golden}.npz") as z:
        sizes = {str(n): np.prod([int(i) for i in str(s).split(",")]) for n, s in zip_equal(z["names"], z["shapes"])}
    theirs = sum(size for name, size in sizes.items() if "running" not in name)
    assert weights(build_detector(load_config(f"configs/{config}.yaml"))) == theirs + 257 * mask_heads


@pytest.mark.parametrize("name", ["resnet_v1_50", "resnet_v1.5_50", "resnet_v1_101", "resnet_v1_152", "mobilenet_v1"])
def test_backbones_go_by_name(name):
    config = load_config("configs/mask_rcnn_r50_fpn.yaml", {"backbone": name, "detector": "faster_rcnn"})
    backbone = config.backbone
    assert backbone.type == ("mobilenet_v1" if name == "mobilenet_v1" else "resnet")
    if backbone.type == "resnet":
        assert name.endswith(f"_{backbone.depth}")
        assert backbone.stride_in_1x1 == (name == "resnet_v1_50")
    assert [p.name for p in build_detector(config).get_parameters() if p.name.startswith("neck.lateral_convs.3")]


@pytest.mark.parametrize("norm", NORMS)
def test_every_backbone_takes_every_norm_of_neck_and_heads(norm, tmp_path):
    (tmp_path / "shapes_data").mkdir()  # no picture is read
    for backbone in BACKBONES:
        config = family_config("mask_rcnn", backbone, tmp_path, norm)
        wanted = "" if norm == "own" else norm
        assert {config.neck.fpn.norm, config.bbox_head.norm, config.mask_head.norm} == {wanted}
        if norm in ("sync", "group") and config.backbone.type in ("resnet", "resnext"):
            assert config.backbone.norm == norm


@pytest.mark.full
@pytest.mark.parametrize(
    ("detector", "norm"), [*((d, "own") for d in DETECTORS), ("mask_rcnn", "group"), ("keypoint_rcnn", "layer")]
)
def test_it_learns_evaluates_saves_and_loads(detector, norm, tmp_path):
    row = run(tmp_path, detector, "mobilenet_v1", norm)
    assert row["last 3 losses"] < 0.9 * row["first 3 losses"]
    assert row["loads the same"]


def _told(name, size):
    return {"name": name, "size": size, "by": os.getpid(), "cores": sorted(os.sched_getaffinity(0))}


@pytest.mark.full
def test_a_kept_table_goes_on_where_it_ended(tmp_path):
    first = grown(tmp_path / "t.json", ("name", "size"), [("a", 1), ("b", 2)], _told)
    again = grown(tmp_path / "t.json", ("name", "size"), [("c", 3), ("b", 2)], _told)
    assert again[1] == first[1] and again[0]["name"] == "c"
    assert len({row["by"] for row in (*first, again[0])} - {os.getpid()}) == 3
    assert json.loads((tmp_path / "t.json").read_text()) == [*first, again[0]]


@pytest.mark.full
def test_members_at_a_time_keep_to_cores_of_their_own():
    cores = os.sched_getaffinity(0)
    rows = grown(None, ("name", "size"), [(name, 1) for name in "abcd"], _told, jobs=2)
    assert [row["name"] for row in rows] == list("abcd")
    shares = {tuple(row["cores"]) for row in rows}
    assert sum(map(len, shares)) == len(set().union(*shares)) and set().union(*shares) <= cores
    assert os.sched_getaffinity(0) == cores
