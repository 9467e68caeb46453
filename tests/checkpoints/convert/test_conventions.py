"""What files say of themselves: mmdetection's configs of 2.x and 3.x, Detectron2's pixel statistics, class names."""

import numpy as np
import pytest

from src.checkpoints.convert.conventions import EPSILON, differing, said_of_itself, unlike
from src.checkpoints.convert.torchvision import traits
from src.config import load_config
from src.models.anchors import base_anchors
from tests.checkpoints.convert import foreign
from tests.checkpoints.convert.test_layouts import ROOT

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


OWN = """
model = dict(type='MaskRCNN', backbone=dict(type='ResNet', depth=50, norm_cfg=dict(type='BN', requires_grad=True),
        dilations=(1, 1, 1, 1), strides=(1, 2, 2, 2)),
    neck=dict(type='FPN', num_outs=5),
    rpn_head=dict(type='RPNHead', anchor_generator=dict(type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0],
        strides=[4, 8, 16, 32, 64]), bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[1.0, 1.0, 1.0, 1.0])),
    roi_head=dict(type='StandardRoIHead', bbox_roi_extractor=dict(type='SingleRoIExtractor',
        roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0), featmap_strides=[4, 8, 16, 32]),
        bbox_head=dict(type='Shared2FCBBoxHead', bbox_coder=dict(type='DeltaXYWHBBoxCoder',
            target_stds=[0.1, 0.1, 0.2, 0.2]), loss_cls=dict(type='CrossEntropyLoss')),
        mask_head=dict(type='FCNMaskHead')))
"""
STDS = "bbox_head.bbox_coder.target_stds"
OTHERWISE = [  # what is written otherwise; what differs from our config; what is said not to be here
    ("scales=[8]", "scales=[4]", {"rpn.anchor_generator.scales": [4]}, []),
    (
        "scales=[8]",
        "octave_base_scale=4, scales_per_octave=2",
        {"rpn.anchor_generator.scales": [4, 4 * 2**0.5]},
        [],
    ),
    ("ratios=[0.5, 1.0, 2.0]", "ratios=[2.0, 1.0, 0.5]", {"rpn.anchor_generator.ratios": [2.0, 1.0, 0.5]}, []),
    ("0.1, 0.1, 0.2, 0.2", "0.05, 0.05, 0.1, 0.1", {STDS: [0.05, 0.05, 0.1, 0.1]}, []),
    ("sampling_ratio=0", "sampling_ratio=2", {"roi.roi_layer.sampling_ratio": 2}, []),
    ("featmap_strides", "finest_scale=112, featmap_strides", {"roi.finest_scale": 112}, []),
    ("depth=50", "depth=50, conv_cfg=dict(type='ConvWS')", {}, ["backbone.conv_cfg.type ConvWS"]),
    ("(1, 1, 1, 1)", "(1, 1, 1, 2)", {}, ["backbone.dilations [1, 1, 1, 2]"]),
    ("'FPN'", "'mmdet.NASFPN'", {}, ["neck.type NASFPN"]),
    ("'StandardRoIHead'", "'DoubleHeadRoIHead'", {}, ["roi_head.type DoubleHeadRoIHead"]),
    ("'AnchorGenerator'", "'LegacyAnchorGenerator'", {}, ["rpn_head.anchor_generator.type LegacyAnchorGenerator"]),
    ("'CrossEntropyLoss'", "'SeesawLoss'", {}, ["bbox_head.loss_cls.type SeesawLoss"]),
    ("scales=[8]", "scales=[1e999]", {}, []),
    ("scales=[8]", "scales='8'", {}, []),
    ("neck=dict(type='FPN', num_outs=5)", "neck=[[[]]]", {}, []),
]


@pytest.mark.parametrize(("before", "after", "differ", "told"), [("", "", {}, []), *OTHERWISE])
def test_what_names_and_shapes_do_not_tell(before, after, differ, told):
    """Anchors, box coders, kinds of layers of the same names: from the file's own config."""
    config, meta = load_config(ROOT / "configs/mmdet_mask_rcnn_r50_fpn.yaml"), {"config": OWN.replace(before, after)}
    said = said_of_itself(meta, {})
    assert differing(said, config) == differ
    assert unlike(meta, {}, config, False) == told
    assert unlike(meta, {}, config, True) == [t for t in told if t.startswith("backbone")]


SWIN = """dict(type='SwinTransformer', embed_dims=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7,
    mlp_ratio=4, qkv_bias=True, qk_scale=None, drop_rate=0.0, drop_path_rate=0.2, patch_norm=True,
    norm_cfg=dict(type='LN'), act_cfg=dict(type='GELU'), out_indices=(0, 1, 2, 3), convert_weights=True)"""


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("", "", []),
        ("'LN'", "'GN'", ["backbone.norm_cfg.type GN"]),
        ("'GELU'", "'ReLU'", ["backbone.act_cfg.type ReLU"]),
        ("qk_scale=None", "qk_scale=0.5", ["backbone.qk_scale 0.5"]),
    ],
)
def test_swins_own_config(before, after, told):
    """As published files have it, and the defaults that it leaves out."""
    config = load_config(ROOT / "configs/mmdet_mask_rcnn_swin_t_fpn.yaml")
    meta = {"config": f"model = dict(type='MaskRCNN', backbone={SWIN.replace(before, after)})"}
    assert differing(said_of_itself(meta, {}), config) == {}
    assert unlike(meta, {}, config, False) == told


def test_stages_and_epsilon():
    config = load_config(ROOT / "configs/mmdet_cascade_mask_rcnn_r50_fpn.yaml")
    head = (
        "dict(type='Shared2FCBBoxHead', bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[{0}, {0}, {1}, {1}]))"
    )
    own = [head.format(*stds) for stds in ((0.1, 0.2), (0.05, 0.1), (0.033, 0.067))]
    other = [*own[:2], head.format(0.02, 0.05)]
    for heads, differ in ((own, set()), (other, {"cascade.target_stds"})):
        text = f"model = dict(backbone=dict(norm_cfg=dict(eps=0.001)), roi_head=dict(bbox_head=[{', '.join(heads)}]))"
        said = said_of_itself({"cfg": text}, {})
        assert said[EPSILON] == 0.001 and differing(said, config).keys() == differ


@pytest.mark.parametrize("name", ["detectron2_mask_rcnn_r50_fpn", "maskrcnn_benchmark_mask_rcnn_r50_fpn"])
def test_anchors_that_are_stored(name):
    config = load_config(ROOT / f"configs/{name}.yaml")
    g = config.rpn.anchor_generator
    end = [0, 0, 1, 1] if g.legacy else 0  # maskrcnn-benchmark's end at the last pixel
    for factor, fits in ((1, True), (0.5, False), (1.2, False)):
        arrays = {
            f"rpn.anchor_generator.cell_anchors.{i}": base_anchors(s, g.scales, g.ratios, False, g.legacy)[::-1]
            * factor
            - end
            for i, s in enumerate(g.strides)
        }
        told = unlike({}, arrays, config, False)
        assert (not told) == fits and ("cell_anchors.0: other anchors" in "".join(told)) != fits


def test_frozen_norms_are_noted():
    """New names, and nothing that a norm that trained would have: perhaps those of the published detectors, frozen."""
    names = foreign.torchvision_backbone("backbone.body.")
    assert "--norm_eps 0" in traits(names).notes[0]
    assert traits([*names, "backbone.body.bn1.num_batches_tracked"]).notes == ()
