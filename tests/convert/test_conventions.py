"""What files say of themselves: mmdetection's configs of 2.x and 3.x, Detectron2's pixel statistics, class names."""

import numpy as np
import pytest

from src.checkpoints.convert.conventions import differing, said_of_itself
from src.checkpoints.convert.torchvision import traits
from src.config import load_config
from tests.convert import foreign
from tests.convert.test_layouts import ROOT

CAFFE, RGB, SCALES = [103.53, 116.28, 123.675], [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
OF_2 = """
img_norm_cfg = dict(mean=[9.0, 9.0, 9.0], std=[9.0, 9.0, 9.0], to_rgb=True)
model = dict(type='FasterRCNN', backbone=dict(type='ResNeXt', depth=101, groups=32, style='pytorch'))
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='MultiScaleFlipAug', transforms=[
    dict(type='Resize', keep_ratio=True), dict(type='Normalize', mean=(103.53, 116.28, 123.675), std=[1, 1.0, 1],
    to_rgb=False), dict(type='Pad', size_divisor=32)])]
"""
OF_3 = """
model = dict(type='MaskRCNN', data_preprocessor=dict(type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375], bgr_to_rgb=True, pad_mask=True), backbone=dict(type='ResNet', depth=50))
"""
BGR_3 = OF_3.replace("bgr_to_rgb=True", "bgr_to_rgb=False").replace("depth=50", "style='caffe'")


def statistics(mean, std):
    return {"pixel_mean": np.float32(mean).reshape(3, 1, 1), "pixel_std": np.float32(std).reshape(3, 1, 1)}


def keys(rgb, mean, std, stride=None):
    said = {"to_rgb": rgb, "img_mean": mean, "img_std": std}
    return said if stride is None else said | {"backbone.stride_in_1x1": stride}


@pytest.mark.parametrize(
    ("meta", "arrays", "said"),
    [
        ({"config": OF_2}, {}, keys(False, CAFFE, [1.0] * 3, False)),
        ({"cfg": OF_3}, {}, keys(True, RGB, SCALES, False)),
        ({"cfg": BGR_3}, {}, keys(False, RGB, SCALES, True)),
        ({}, statistics(RGB, SCALES), keys(True, RGB, SCALES)),
        ({}, statistics(CAFFE, [1, 1, 1]), keys(False, CAFFE, [1.0] * 3)),
        # whose colours those are, nothing tells
        ({}, statistics([90, 91, 92], [1, 1, 1]), {"img_mean": [90.0, 91.0, 92.0], "img_std": [1.0] * 3}),
        ({"CLASSES": ("cat", "dog")}, {}, {"coco_classes": ["background", "cat", "dog"]}),
        ({"dataset_meta": {"classes": ["cat"], "CLASSES": None}}, {}, {"coco_classes": ["background", "cat"]}),
        ({"CLASSES": ("cat", "cat"), "config": 5}, {}, {}),
        ({"config": "model = dict(backbone=__import__('os'))\nimg_norm_cfg = dict(mean=open('x'))"}, {}, {}),
        ({"config": "img_norm_cfg = dict(mean=[1e999, 1, 1], std=[0.0, 1, 1])"}, {}, {}),
        ({"config": "x = " + "(" * 10_000}, {}, {}),
        ({"config": "x = " + "-" * 100_000 + "1"}, {}, {}),
    ],
)
def test_said(meta, arrays, said):
    assert said_of_itself(meta, arrays) == said


def test_differing():
    config = load_config(ROOT / "configs/detectron2_mask_rcnn_r50_fpn.yaml")
    assert differing(said_of_itself({}, statistics(CAFFE, [1, 1, 1])), config) == {}
    assert differing(said_of_itself({}, statistics(RGB, SCALES)), config) == keys(True, RGB, SCALES)
    assert differing(said_of_itself({"CLASSES": tuple(config.coco_classes[1:])}, {}), config) == {}
    # of another number of classes, the shapes tell
    assert differing({"coco_classes": ["background", "cat"]}, config) == {}


def test_frozen_norms_are_noted():
    """New names, and nothing that a norm that trained would have: perhaps those of the published detectors, frozen."""
    names = foreign.torchvision_backbone("backbone.body.")
    assert "--norm_eps 0" in traits(names).notes[0]
    assert traits([*names, "backbone.body.bn1.num_batches_tracked"]).notes == ()
