"""Each layout with its project's own names: everything used and filled, and the numbers where rows move."""

import functools
from pathlib import Path

import numpy as np
import pytest

from src.checkpoints.convert.conversion import (
    LAYOUTS,
    backbone_of,
    config_name,
    convert,
    recognise,
    renamed,
    target_shapes,
)
from src.checkpoints.convert.pickles import ConversionError
from src.checkpoints.convert.unused import kinds_of
from src.config import load_config
from src.models.anchors import base_anchors
from src.models.build import build_backbone, build_detector
from src.runtime.newer import zip_equal
from tests.checkpoints.convert import foreign
from tests.reference.reference_weights import reference_state_dict

ROOT = Path(__file__).parents[3]
EXACT = 1e-5  # float32 sums in another order
SMALL = {
    "neck.fpn.out_channels": 8,
    "rpn.in_channels": 8,
    "rpn.feat_channels": 8,
    "bbox_head.in_channels": 8,
    "bbox_head.fc_out_channels": 16,
    "mask_head.in_channels": 8,
    "mask_head.conv_out_channels": 8,
    "img_height": 64,
    "img_width": 64,
}


@functools.cache
def golden_state(file: str) -> dict:
    """A state dict of that project's real names and shapes. Not to be changed by a test."""
    with np.load(ROOT / "tests/reference" / file) as golden:
        names, shapes = golden["names"], golden["shapes"]
    return reference_state_dict(
        {str(n): tuple(int(i) for i in str(s).split(",") if i) for n, s in zip_equal(names, shapes)}
    )


@functools.cache
def targets_of(config_file: str, small: bool) -> dict:
    """Shapes of the parameters of a config's detector, with SMALL's widths or its own."""
    return target_shapes(build_detector(load_config(ROOT / "configs" / config_file, SMALL if small else None)))


def converted(state, layout, config_file, overrides=None):
    """The conversion, the config, after checking that all of the target is filled and nothing is of another shape."""
    config = load_config(ROOT / "configs" / config_file, overrides)
    if overrides in (None, SMALL):
        targets = targets_of(config_file, overrides is not None)
    else:
        targets = target_shapes(build_detector(config))
    out = convert(state, layout, config, targets)
    assert out.unfilled == out.mismatched == out.broken == out.extra == []
    assert len(out.params) + len(out.unused) >= len(state)
    return out, config


def scores(params, head, x):
    """Class probabilities, box deltas (R, classes, 4) or (R, 4) of a box head's last layers."""
    logits = x @ params[f"{head}.cls.weight"].T + params[f"{head}.cls.bias"]
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True), x @ params[f"{head}.reg.weight"].T + params[f"{head}.reg.bias"]


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture
def x():
    return np.random.default_rng(1).standard_normal((5, 1024)).astype(np.float32)


# Detectors of the golden files


def check_heads(source, cls, reg, params, head, x):
    """Source rows k of a classifier with the background last are our rows k + 1."""
    theirs = softmax(x @ source[cls + ".weight"].T + source[cls + ".bias"])
    deltas = x @ source[reg + ".weight"].T + source[reg + ".bias"]
    ours, our_deltas = scores(params, head, x)
    np.testing.assert_allclose(ours[:, 1:], theirs[:, :80], atol=EXACT)
    np.testing.assert_allclose(ours[:, 0], theirs[:, 80], atol=EXACT)
    if deltas.shape[1] == 4:
        np.testing.assert_allclose(our_deltas, deltas, atol=EXACT)
    else:
        np.testing.assert_allclose(our_deltas.reshape(-1, 81, 4)[:, 1:], deltas.reshape(-1, 80, 4), atol=EXACT)
        assert not our_deltas.reshape(-1, 81, 4)[:, 0].any()


def check_masks(source, name, params, head):
    np.testing.assert_array_equal(params[head + ".logits.weight"][1:], source[name + ".weight"])
    np.testing.assert_array_equal(params[head + ".logits.bias"][1:], source[name + ".bias"])
    assert not params[head + ".logits.weight"][0].any()


def test_detectron2_mask_rcnn(x):
    state = golden_state("d2_mask_rcnn_r50_fpn.npz")
    assert recognise(state) == "detectron2"
    out, _ = converted(state, "detectron2", "detectron2_mask_rcnn_r50_fpn.yaml")
    assert out.unused == []
    predictor = "roi_heads.box_predictor."
    check_heads(state, predictor + "cls_score", predictor + "bbox_pred", out.params, "bbox_head", x)
    check_masks(state, "roi_heads.mask_head.predictor", out.params, "mask_head")
    for ours, theirs in (
        ("backbone.conv1.weight", "backbone.bottom_up.stem.conv1.weight"),
        ("backbone.bn1.moving_variance", "backbone.bottom_up.stem.conv1.norm.running_var"),
        ("backbone.layer1.0.downsample.0.weight", "backbone.bottom_up.res2.0.shortcut.weight"),
        ("backbone.layer4.2.bn3.gamma", "backbone.bottom_up.res5.2.conv3.norm.weight"),
        ("neck.lateral_convs.3.weight", "backbone.fpn_lateral5.weight"),
        ("neck.fpn_convs.0.bias", "backbone.fpn_output2.bias"),
        ("rpn.reg.weight", "proposal_generator.rpn_head.anchor_deltas.weight"),
        ("bbox_head.fc1.weight", "roi_heads.box_head.fc1.weight"),
        ("mask_head.convs.3.weight", "roi_heads.mask_head.mask_fcn4.weight"),
        ("mask_head.upsample.weight", "roi_heads.mask_head.deconv.weight"),
    ):
        np.testing.assert_array_equal(out.params[ours], state[theirs])
    assert any(n.startswith("background rows zero: bbox_head.reg.weight") for n in out.notes)


def test_detectron2_cascade(x):
    state = golden_state("d2_cascade_mask_rcnn_r50_fpn.npz")
    assert recognise(state) == "detectron2"
    out, _ = converted(state, "detectron2", "detectron2_cascade_mask_rcnn_r50_fpn.yaml")
    assert out.unused == []
    for k in range(3):
        predictor = f"roi_heads.box_predictor.{k}."
        check_heads(state, predictor + "cls_score", predictor + "bbox_pred", out.params, f"bbox_heads.{k}", x)
    check_masks(state, "roi_heads.mask_head.predictor", out.params, "mask_heads.0")


def test_mmdetection_cascade(x):
    state = golden_state("mmdet_cascade_mask_rcnn_r50_fpn.npz")
    assert recognise(state) == "mmdetection"
    out, _ = converted(state, "mmdetection", "mmdet_cascade_mask_rcnn_r50_fpn.yaml")
    assert out.unused == []
    for k in range(3):
        head = f"roi_head.bbox_head.{k}."
        check_heads(state, head + "fc_cls", head + "fc_reg", out.params, f"bbox_heads.{k}", x)
        check_masks(state, f"roi_head.mask_head.{k}.conv_logits", out.params, f"mask_heads.{k}")
        np.testing.assert_array_equal(out.params[f"bbox_heads.{k}.fc2.weight"], state[head + "shared_fcs.1.weight"])


def test_mmdetection_mask_rcnn_and_1x(x):
    """Faster and Mask R-CNN's names, of 2.x and of 1.x, whose classes begin with the background."""
    cascade = golden_state("mmdet_cascade_mask_rcnn_r50_fpn.npz")
    state = {n.replace("_head.0.", "_head."): v for n, v in cascade.items() if "_head.1." not in n}
    state = {n: v for n, v in state.items() if "_head.2." not in n}
    r = np.random.default_rng(0)
    for part, shape in (("weight", (320, 1024)), ("bias", (320,))):
        state[f"roi_head.bbox_head.fc_reg.{part}"] = r.normal(0, 0.1, shape).astype(np.float32)
    assert recognise(state) == "mmdetection"
    out, _ = converted(state, "mmdetection", "mmdet_mask_rcnn_r50_fpn.yaml")
    check_heads(state, "roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg", out.params, "bbox_head", x)

    old = {n.removeprefix("roi_head."): v for n, v in state.items()}
    for name, rows in (("bbox_head.fc_reg", 4), ("mask_head.conv_logits", 1)):
        for part in ("weight", "bias"):
            value = old[f"{name}.{part}"]
            old[f"{name}.{part}"] = np.concatenate([value[:rows], value])
    assert recognise(old) == "mmdetection"
    out, _ = converted(old, "mmdetection", "mmdet_mask_rcnn_r50_fpn.yaml")
    np.testing.assert_array_equal(out.params["bbox_head.cls.weight"], old["bbox_head.fc_cls.weight"])
    np.testing.assert_array_equal(out.params["bbox_head.reg.weight"], old["bbox_head.fc_reg.weight"])
    assert any("1.x" in n for n in out.notes)


V2 = (
    ("neck.lateral_convs.3.weight", "backbone.fpn.inner_blocks.3.0.weight"),
    ("neck.fpn_convs.0.norm.beta", "backbone.fpn.layer_blocks.0.1.bias"),
    ("rpn.conv.weight", "rpn.head.conv.0.0.weight"),
    ("rpn.conv2.bias", "rpn.head.conv.1.0.bias"),
    ("bbox_head.convs.3.norm.moving_mean", "roi_heads.box_head.3.1.running_mean"),
    ("bbox_head.fc1.weight", "roi_heads.box_head.5.weight"),
    ("mask_head.convs.2.norm.gamma", "roi_heads.mask_head.2.1.weight"),
)
LSJ = (
    ("neck.lateral_convs.3.weight", "backbone.fpn_lateral5.weight"),
    ("neck.fpn_convs.0.norm.beta", "backbone.fpn_output2.norm.bias"),
    ("rpn.conv.weight", "proposal_generator.rpn_head.conv.conv0.weight"),
    ("rpn.conv2.bias", "proposal_generator.rpn_head.conv.conv1.bias"),
    ("bbox_head.convs.3.norm.moving_mean", "roi_heads.box_head.conv4.norm.running_mean"),
    ("bbox_head.fc1.weight", "roi_heads.box_head.fc1.weight"),
    ("mask_head.convs.2.norm.gamma", "roi_heads.mask_head.mask_fcn3.norm.weight"),
)


@pytest.mark.parametrize(
    ("file", "layout", "config_file", "pairs"),
    [
        ("tv_maskrcnn_resnet50_fpn_v2.npz", "torchvision", "torchvision_mask_rcnn_r50_fpn_v2.yaml", V2),
        ("d2_mask_rcnn_r50_fpn_lsj.npz", "detectron2", "detectron2_mask_rcnn_r50_fpn_lsj.yaml", LSJ),
    ],
)
def test_norms_in_neck_and_heads(file, layout, config_file, pairs):
    state = golden_state(file)
    assert recognise(state) == layout
    assert config_name(layout, {n: v.shape for n, v in renamed(state, layout).params.items()}) == config_file
    out, _ = converted(state, layout, config_file)
    assert out.unused == []
    for ours, theirs in pairs:
        np.testing.assert_array_equal(out.params[ours], state[theirs])
    # and for another config they are layers that it lacks, by their names
    plain = "torchvision_mask_rcnn_r50_fpn.yaml" if layout == "torchvision" else "detectron2_mask_rcnn_r50_fpn.yaml"
    config = load_config(ROOT / "configs" / plain)
    other = convert(state, layout, config, targets_of(plain, False))
    assert {theirs for ours, theirs in pairs if "norm" in ours or "conv2" in ours} <= set(other.extra)
    assert "norms in the FPN or in heads" in kinds_of(other.extra)
    assert "an RPN of two or more convolutions" in kinds_of(other.extra)
    assert "other layers in the box head" in kinds_of(other.extra)


GROUPED = SMALL | {"neck.fpn.out_channels": 32, "rpn.in_channels": 32, "rpn.feat_channels": 32}
GROUPED |= {"bbox_head.in_channels": 32, "bbox_head.conv_out_channels": 32}
GROUPED |= {"mask_head.in_channels": 32, "mask_head.conv_out_channels": 32}


def test_group_norms():
    """mmdetection's gn-all; batch norms of that shape aren't taken for group norms, nor the other way round."""
    state = foreign.values(foreign.mmdetection_gn())
    assert recognise(state) == "mmdetection"
    name = config_name("mmdetection", {n: v.shape for n, v in renamed(state, "mmdetection").params.items()})
    assert name == "mmdet_mask_rcnn_r50_fpn_gn.yaml"
    out, config = converted(state, "mmdetection", name, GROUPED)
    assert out.unused == []
    for ours, theirs in (
        ("backbone.bn1.gamma", "backbone.gn1.weight"),
        ("backbone.layer2.0.downsample.1.beta", "backbone.layer2.0.downsample.1.bias"),
        ("neck.fpn_convs.2.norm.gamma", "neck.fpn_convs.2.gn.weight"),
        ("bbox_head.convs.0.weight", "roi_head.bbox_head.shared_convs.0.conv.weight"),
        ("bbox_head.convs.3.norm.beta", "roi_head.bbox_head.shared_convs.3.gn.bias"),
        ("mask_head.convs.1.norm.gamma", "roi_head.mask_head.convs.1.gn.weight"),
    ):
        np.testing.assert_array_equal(out.params[ours], state[theirs])
    targets = target_shapes(build_detector(config))
    with pytest.raises(ConversionError, match="group norms .*epsilon of 0.001.*backbone.norm_eps"):
        convert(state, "mmdetection", config, targets, 1e-3)
    batch = load_config(ROOT / "configs" / name, GROUPED | {"backbone.norm": "batch"})
    with pytest.raises(ConversionError, match="53 norms .*group norm, which the config doesn't have"):
        convert(state, "mmdetection", batch, target_shapes(build_detector(batch)))
    statistics = {f"backbone.bn1.{part}": np.ones(64, np.float32) for part in ("running_mean", "running_var")}
    assert sorted(convert(state | statistics, "mmdetection", config, targets).extra) == sorted(statistics)


def test_faster_rcnn_from_mask_rcnn():
    """The mask head of the source is named as unused."""
    state = golden_state("d2_mask_rcnn_r50_fpn.npz")
    out, _ = converted(state, "detectron2", "detectron2_faster_rcnn_r50_fpn.yaml")
    assert sorted(out.unused) == sorted(n for n in state if n.startswith("roi_heads.mask_head."))


# Detectors of generated names


def test_torchvision_of_2019():
    """The published names; 91 rows, of which the 80 categories in use and the background are taken; no epsilon."""
    state = foreign.values(foreign.torchvision_of_2019())
    assert recognise(state) == "torchvision"
    out, config = converted(state, "torchvision", "torchvision_mask_rcnn_r50_fpn.yaml", SMALL)
    assert out.unused == []
    # COCO's category ids, as its annotations list them
    ids = [
        *range(0, 12),
        *range(13, 26),
        27,
        28,
        *range(31, 45),
        *range(46, 66),
        67,
        70,
        *range(72, 83),
        *range(84, 91),
    ]
    assert len(ids) == 81
    np.testing.assert_array_equal(
        out.params["bbox_head.cls.weight"], state["roi_heads.box_predictor.cls_score.weight"][ids]
    )
    reg = state["roi_heads.box_predictor.bbox_pred.weight"].reshape(91, 4, 16)[ids].reshape(-1, 16)
    np.testing.assert_array_equal(out.params["bbox_head.reg.weight"], reg)
    np.testing.assert_array_equal(
        out.params["mask_head.logits.bias"], state["roi_heads.mask_predictor.mask_fcn_logits.bias"][ids]
    )
    assert config.coco_classes[ids.index(90)] == "toothbrush"
    check_norm(state, out.params, config, "backbone.body.layer3.1.bn2", "backbone.layer3.1.bn2", eps=0.0)
    assert any("80 categories" in n for n in out.notes)


def test_torchvision_with_91_classes():
    state = foreign.values(foreign.torchvision_of_2019())
    names = ["background"] + [f"id {i}" for i in range(1, 91)]
    out, _ = converted(
        state,
        "torchvision",
        "torchvision_mask_rcnn_r50_fpn.yaml",
        SMALL | {"num_classes": 91, "coco_classes": names},
    )
    np.testing.assert_array_equal(out.params["bbox_head.cls.weight"], state["roi_heads.box_predictor.cls_score.weight"])


def check_norm(state, params, config, theirs, ours, eps, names=foreign.TORCH_NORM):
    """What the norm does to a map, there and here."""
    scale, shift, mean, variance = (state[theirs + n].astype(np.float64) for n in names)
    gamma, beta, moving_mean, moving_variance = (params[ours + n].astype(np.float64) for n in foreign.MS_NORM)
    values = np.linspace(-3, 3, 7)[:, None]
    there = (values - mean) / np.sqrt(variance + eps) * scale + shift
    here = (values - moving_mean) / np.sqrt(moving_variance + config.backbone.norm_eps) * gamma + beta
    np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-5)


def test_maskrcnn_benchmark():
    state = foreign.values(foreign.maskrcnn_benchmark())
    # small variances, where an epsilon of 1e-5 too much would be seen
    state = {n: v * 1e-4 if n.endswith("running_var") else v for n, v in state.items()}
    wrapped = {"module." + n: v for n, v in state.items()}
    assert recognise(wrapped) == "maskrcnn_benchmark"
    out, config = converted(wrapped, "maskrcnn_benchmark", "maskrcnn_benchmark_mask_rcnn_r50_fpn.yaml", SMALL)
    assert out.unused == []
    check_norm(state, out.params, config, "backbone.body.stem.bn1", "backbone.bn1", eps=0.0)
    for ours, theirs in (
        ("bbox_head.cls.weight", "roi_heads.box.predictor.cls_score.weight"),
        ("bbox_head.reg.bias", "roi_heads.box.predictor.bbox_pred.bias"),
        ("neck.lateral_convs.0.weight", "backbone.fpn.fpn_inner1.weight"),
        ("mask_head.convs.0.weight", "roi_heads.mask.feature_extractor.mask_fcn1.weight"),
    ):
        np.testing.assert_array_equal(out.params[ours], state[theirs])


@pytest.mark.parametrize("reg_classes", [81, 80])
def test_model_zoo_faster_rcnn(reg_classes):
    """Dense layers are stored (inputs, outputs); newer checkpoints regress no boxes of the background."""
    state = foreign.values(foreign.mindspore_zoo(False, "fpn_neck", reg_classes))
    moments = {"moments." + n: v for n, v in list(state.items())[:5]} | {"learning_rate": np.float32([0.1])}
    assert recognise(state | moments) == "mindspore_zoo"
    out, _ = converted(state | moments, "mindspore_zoo", "mindspore_zoo_faster_rcnn_r50_fpn.yaml", SMALL)
    assert sorted(out.unused) == sorted(moments)
    x = np.random.default_rng(1).standard_normal((5, 8 * 49), np.float32)
    for source, ours in (("shared_fc_0", "fc1"), ("shared_fc_1", "fc2"), ("cls_scores", "cls")):
        there = x @ state[f"rcnn.{source}.weight"] + state[f"rcnn.{source}.bias"]
        here = x @ out.params[f"bbox_head.{ours}.weight"].T + out.params[f"bbox_head.{ours}.bias"]
        np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-4)
        x = x[:, :16]
    deltas = (x @ state["rcnn.reg_scores.weight"] + state["rcnn.reg_scores.bias"]).reshape(5, reg_classes, 4)
    ours = x @ out.params["bbox_head.reg.weight"].T + out.params["bbox_head.reg.bias"]
    np.testing.assert_allclose(ours.reshape(5, 81, 4)[:, 81 - reg_classes :], deltas, rtol=1e-4, atol=1e-4)


def test_model_zoo_mask_rcnn():
    state = foreign.values(foreign.mindspore_zoo(True))
    assert recognise(state) == "mindspore_zoo"
    out, config = converted(state, "mindspore_zoo", "mindspore_zoo_mask_rcnn_r50_fpn.yaml", SMALL)
    assert out.unused == []
    here = ("backbone.layer2.0.downsample.1", "backbone.layer2.0.bn_down_sample")
    check_norm(state, out.params, config, here[1], here[0], eps=1e-5, names=foreign.MS_NORM)
    np.testing.assert_array_equal(out.params["rpn.cls.weight"], state["rpn_with_loss.rpn_convs_list.0.rpn_cls.weight"])
    np.testing.assert_array_equal(out.params["mask_head.logits.weight"], state["rcnn_mask.fpn_mask.mask_conv6.weight"])


def test_shared_heads_saved_twice():
    """The zoo's five RPN heads are one; a file that repeats it is read, one whose heads differ isn't."""
    state = foreign.values(foreign.mindspore_zoo(False))
    name = "rpn_with_loss.rpn_convs_list.{}.rpn_cls.bias"
    again = state | {name.format(1): state[name.format(0)].copy()}
    assert renamed(again, "mindspore_zoo").unused == [name.format(1)]
    with pytest.raises(ConversionError, match="rpn_convs_list.1.rpn_cls.bias.*differ"):
        renamed(state | {name.format(1): state[name.format(0)] + 1}, "mindspore_zoo")


# Anchors


def test_anchors_scales_first():
    """Each anchor keeps its logit and its deltas, whatever its place in the cell."""
    scales, ratios, stride = (4, 8), (0.5, 1.0, 2.0), 16
    config = load_config(ROOT / "configs/detectron2_mask_rcnn_r50_fpn.yaml", SMALL)
    config.rpn.anchor_generator.scales, config.rpn.anchor_generator.ratios = list(scales), list(ratios)
    r = np.random.default_rng(0)
    head = "proposal_generator.rpn_head."
    state = {
        head + "objectness_logits.weight": r.standard_normal((6, 8, 1, 1), np.float32),
        head + "objectness_logits.bias": np.arange(6, dtype=np.float32),
        head + "anchor_deltas.weight": r.standard_normal((24, 8, 1, 1), np.float32),
        head + "anchor_deltas.bias": np.arange(24, dtype=np.float32),
    }
    out = convert(state, "detectron2", config, dict.fromkeys(("rpn.cls.bias", "rpn.reg.bias"), ()))
    # Detectron2's generate_cell_anchors: for each size, for each ratio
    theirs = []
    for s in scales:
        for ratio in ratios:
            w = np.sqrt((s * stride) ** 2 / ratio)
            theirs.append([-w / 2, -w * ratio / 2, w / 2, w * ratio / 2])
    ours = base_anchors(stride, scales, ratios, False)
    for place, anchor in enumerate(ours):
        there = int(np.argmin(np.abs(np.array(theirs) - anchor).max(1)))
        assert out.params["rpn.cls.bias"][place] == there
        np.testing.assert_array_equal(out.params["rpn.reg.bias"][4 * place : 4 * place + 4], 4 * there + np.arange(4))


@pytest.mark.parametrize(("layout", "foreground"), [("mmdetection", 0), ("mindspore_zoo", 1)])
def test_two_class_rpn(layout, foreground):
    """Softmax over background and foreground is the sigmoid of our one logit."""
    config = load_config(ROOT / "configs/mask_rcnn_r50_fpn.yaml", SMALL)
    r = np.random.default_rng(0)
    prefix = {"mmdetection": "rpn_head.", "mindspore_zoo": "rpn_with_loss.rpn_convs_list.0."}[layout]
    state = {prefix + "rpn_cls.weight": r.standard_normal((6, 8, 1, 1), np.float32)}
    state |= {prefix + "rpn_cls.bias": r.standard_normal(6, np.float32)}
    state |= {prefix + "rpn_reg.weight": np.zeros((12, 8, 1, 1), np.float32)}
    state |= {prefix + "rpn_reg.bias": np.zeros(12, np.float32), "roi_head.x": np.zeros(1, np.float32)}
    out = convert(state, layout, config, {"rpn.cls.weight": (3, 8, 1, 1), "rpn.cls.bias": (3,)})
    x = r.standard_normal((4, 8), np.float32)
    there = x @ state[prefix + "rpn_cls.weight"].reshape(6, 8).T + state[prefix + "rpn_cls.bias"]
    here = x @ out.params["rpn.cls.weight"].reshape(3, 8).T + out.params["rpn.cls.bias"]
    np.testing.assert_allclose(1 / (1 + np.exp(-here)), softmax(there.reshape(4, 3, 2))[..., foreground], atol=EXACT)


# Backbones


BACKBONES = {
    "torchvision's resnet50": (foreign.torchvision_backbone(), "torchvision", 1e-5),
    "torchvision's resnext50_32x4d": (foreign.torchvision_backbone(groups=32, base=4), "torchvision", 1e-5),
    "the zoo's resnet50": (
        foreign.zoo_backbone("", ("down_sample_layer.0", "down_sample_layer.1")),
        "mindspore_zoo",
        1e-4,
    ),
    "mindcv's resnet50": (
        foreign.zoo_backbone("", ("down_sample.0", "down_sample.1")),
        "mindspore_zoo",
        1e-5,
    ),
}


@pytest.mark.parametrize("what", BACKBONES)
def test_resnets(what):
    shapes, layout, eps = BACKBONES[what]
    classifier = {"fc.weight": np.zeros((10, 2048), np.float32), "end_point.bias": np.zeros(10, np.float32)}
    state = foreign.values(shapes) | classifier
    assert recognise(state) == layout
    first = renamed(state, layout)
    assert first.backbone_only
    keys = backbone_of({n: v.shape for n, v in first.params.items()})[0]
    config = load_config(ROOT / "configs/mask_rcnn_r50_fpn.yaml", keys)
    out = convert(state, layout, config, target_shapes(build_backbone(config), "backbone."))
    assert out.unfilled == out.mismatched == out.extra == []
    assert sorted(out.unused) == sorted(classifier)
    bn = "layer3.2.bn2"
    norm = foreign.TORCH_NORM if layout == "torchvision" else foreign.MS_NORM
    check_norm(state, out.params, config, bn, "backbone." + bn, eps, norm)
    np.testing.assert_array_equal(out.params["backbone.layer4.1.conv3.weight"], state["layer4.1.conv3.weight"])


def test_caffe2_backbone():
    """MSRA's R-50.pkl holds scales and shifts; here they are batch norms that do the same."""
    state = foreign.values(foreign.caffe2_backbone())
    assert recognise(state) == "detectron2"
    config = load_config(ROOT / "configs/detectron2_mask_rcnn_r50_fpn.yaml")
    out = convert(state, "detectron2", config, target_shapes(build_backbone(config), "backbone."))
    assert out.unfilled == out.mismatched == out.extra == []
    assert sorted(out.unused) == ["fc1000_b", "fc1000_w"]
    for ours, theirs in (("bn1", "res_conv1_bn"), ("layer3.5.bn2", "res4_5_branch2b_bn")):
        gamma, beta, mean, variance = (out.params[f"backbone.{ours}{n}"] for n in foreign.MS_NORM)
        scale = gamma / np.sqrt(variance + np.float32(config.backbone.norm_eps))
        np.testing.assert_allclose(scale, state[theirs + "_s"], rtol=1e-6)
        np.testing.assert_allclose(beta - mean * scale, state[theirs + "_b"], rtol=1e-6)
    assert any("BGR" in n for n in out.notes)


def test_group_norm_is_no_folded_batch_norm():
    """A scale and a shift without statistics are Caffe2's batch norms under Caffe2's names alone."""
    state = golden_state("d2_mask_rcnn_r50_fpn.npz")
    state = {n: v for n, v in state.items() if not n.endswith(("running_mean", "running_var"))}
    config = load_config(ROOT / "configs/detectron2_mask_rcnn_r50_fpn.yaml")
    with pytest.raises(ConversionError, match=r"53 norms.*stem.conv1.norm.weight.*group norm"):
        convert(state, "detectron2", config, {})


def test_backbone_renamed_from_torchvision():
    """Detectron2's other style: stem.conv1, res2.0.conv1.norm."""
    parts = {f"bn{i}": f"conv{i}.norm" for i in (1, 2, 3)} | {"conv0": "shortcut", "bn0": "shortcut.norm"}
    parts |= {f"conv{i}": f"conv{i}" for i in (1, 2, 3)}
    state = foreign.values(foreign.resnet("stem.{part}", "res{res}.{index}.{part}", parts, foreign.TORCH_NORM))
    assert recognise(state) == "detectron2"
    out = renamed(state, "detectron2")
    assert out.unused == []
    np.testing.assert_array_equal(
        out.params["backbone.layer2.0.downsample.1.gamma"], state["res3.0.shortcut.norm.weight"]
    )


@pytest.mark.parametrize(("make", "width"), [(foreign.zoo_mobilenet, 1.0), (foreign.mindcv_mobilenet, 0.25)])
def test_mobilenets(make, width):
    state = foreign.values(make(width=width))
    assert recognise(state) == "mindspore_zoo"
    keys = backbone_of({n: v.shape for n, v in renamed(state, "mindspore_zoo").params.items()})[0]
    config = load_config(ROOT / "configs/mask_rcnn_mobilenetv1_fpn.yaml", keys)
    assert config.backbone.width_multiplier == width
    out = convert(state, "mindspore_zoo", config, target_shapes(build_backbone(config), "backbone."))
    assert out.unfilled == out.mismatched == out.extra == []
    # the 7th block: layer 13 of the zoo's pairs, features.9 of mindcv's
    name = "network.13.0.weight" if make is foreign.zoo_mobilenet else "features.9.0.weight"
    np.testing.assert_array_equal(out.params["backbone.layer3.1.depthwise.weight"], state[name])


@pytest.mark.parametrize("width, body", [(1.0, "MobilenetV1/"), (0.25, "MobilenetV1/MobilenetV1/")])
def test_slim_mobilenet(width, body):
    state = foreign.values(foreign.slim_mobilenet(width, body))
    assert recognise(state) == "tensorflow_slim"
    keys = backbone_of({n: v.shape for n, v in renamed(state, "tensorflow_slim").params.items()})[0]
    config = load_config(ROOT / "configs/tensorflow_slim_faster_rcnn_mobilenetv1_fpn.yaml", keys)
    assert config.backbone.width_multiplier == width
    out = convert(state, "tensorflow_slim", config, target_shapes(build_backbone(config), "backbone."))
    assert out.unfilled == out.mismatched == out.extra == []
    # the 7th block: row, column, input, output there
    layer = f"{body}Conv2d_7_"
    depthwise, pointwise = state[layer + "depthwise/depthwise_weights"], state[layer + "pointwise/weights"]
    assert out.params["backbone.layer3.1.depthwise.weight"][5, 0, 0, 2] == depthwise[0, 2, 5, 0]
    assert out.params["backbone.layer3.1.pointwise.weight"][3, 7, 0, 0] == pointwise[0, 0, 7, 3]
    assert out.params["backbone.conv1.weight"][1, 2, 0, 1] == state[f"{body}Conv2d_0/weights"][0, 1, 2, 1]
    # and its norm, of epsilon 0.001
    gamma, beta, mean, variance = (state[f"{layer}depthwise/BatchNorm{n.replace('.', '/')}"] for n in foreign.MS_NORM)
    ours = [out.params["backbone.layer3.1.bn1" + n] for n in foreign.MS_NORM]
    x = np.linspace(-2, 2, len(gamma), dtype=np.float32)
    theirs = gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta
    found = ours[0] * (x - ours[2]) / np.sqrt(ours[3] + config.backbone.norm_eps) + ours[1]
    np.testing.assert_allclose(found, theirs, atol=EXACT)


def test_which_config():
    shapes = {n: v.shape for n, v in renamed(golden_state("d2_mask_rcnn_r50_fpn.npz"), "detectron2").params.items()}
    assert config_name("detectron2", shapes) == "detectron2_mask_rcnn_r50_fpn.yaml"
    resnext = foreign.torchvision_backbone("backbone.", depth=101, groups=32, base=8)
    resnext |= {n: s for n, s in shapes.items() if not n.startswith("backbone.")}
    assert config_name("detectron2", resnext) == "detectron2_mask_rcnn_x101_32x8d_fpn.yaml"
    for family in ("torchvision", "detectron2", "mmdetection", "maskrcnn_benchmark", "mindspore_zoo"):
        for kind in ("faster_rcnn", "mask_rcnn"):
            assert (ROOT / f"configs/{LAYOUTS[family].FAMILY}_{kind}_r50_fpn.yaml").is_file()


def test_other_resnets_are_refused():
    shapes = {n: s for n, s in foreign.torchvision_backbone("backbone.").items() if ".layer3.5" not in n}
    with pytest.raises(ConversionError, match=r"\(3, 4, 5, 3\) blocks"):
        backbone_of(shapes)


# Names that tell nothing


def test_unknown_layout():
    with pytest.raises(
        ConversionError, match="torchvision.*mindspore_zoo.*it holds 2 arrays: encoder.weight, head.bias"
    ):
        recognise(["head.bias", "encoder.weight"])


def test_ambiguous_layout():
    both = [*foreign.torchvision_backbone(), *foreign.caffe2_backbone()]
    with pytest.raises(ConversionError, match="could be torchvision or detectron2.*--layout"):
        recognise(both)


def test_wrong_shapes_say_both():
    state = foreign.values(foreign.maskrcnn_benchmark(classes=21))
    config = load_config(ROOT / "configs/maskrcnn_benchmark_mask_rcnn_r50_fpn.yaml", SMALL)
    out = convert(state, "maskrcnn_benchmark", config, targets_of("maskrcnn_benchmark_mask_rcnn_r50_fpn.yaml", True))
    assert "bbox_head.cls.weight (21, 16) for (81, 16)" in out.mismatched
    assert len(out.mismatched) == 6


def test_integers_are_no_weights():
    state = foreign.values(foreign.maskrcnn_benchmark())
    state["backbone.fpn.fpn_inner1.bias"] = np.zeros(8, np.int8)
    config = load_config(ROOT / "configs/maskrcnn_benchmark_mask_rcnn_r50_fpn.yaml", SMALL)
    with pytest.raises(ConversionError, match="backbone.fpn.fpn_inner1.bias is of type int8"):
        convert(state, "maskrcnn_benchmark", config, {})
