"""The ONNX graph against the MindSpore detector, and against torchvision's golden values."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from mindspore import Tensor
from onnx import numpy_helper

from benchmarks.reference import golden_shapes, load_weights, reference_config
from src.export.compare import compare_detections, reference_input
from src.export.folding import fold_batch_norms
from src.export.onnx_graph import DetectorGraph, onnx_model
from src.export.onnx_runtime import OnnxModel
from src.export.whole import WholeGraph
from src.models.build import build_backbone, build_detector
from src.runtime.newer import zip_equal
from tests.reference.reference_weights import reference_inputs

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/reference/maskrcnn_r50_fpn.npz"

# what the conventions of other projects switch on, all at once
OTHERS = {
    "detector": "cascade_mask_rcnn",
    "num_classes": 2,
    "coco_classes": ["background", "thing"],
    "box_plus_one": True,
    "rpn__anchor_generator__legacy": "caffe2",
    "roi__roi_layer__aligned": True,
    "roi__roi_layer__sampling_ratio": 0,
    "mask_roi__roi_layer__aligned": True,
    "mask_roi__roi_layer__last_pixel_end": True,
    "cascade__average_masks": "probabilities",
    "rpn__bbox_coder__delta_clamp": "both",
    "bbox_head__bbox_coder__delta_clamp": "both",
    "rpn__rank_by": "logits",
}
ZOO = {
    "backbone__same_padding": True,
    "backbone__relu6": True,
    "neck__fpn__upsample": "bilinear",
    "rpn__rank_by": "probabilities",
}
# 3 rows of the last level on 160 pixels, 53 and not 64 pixels apart, and 7 columns on 416, 59 pixels apart
ODD = {
    "img_width": 416,
    "img_height": 160,
    "rpn__anchor_generator__grid_strides": True,
    "detector": "faster_rcnn",
    "test_cfg__rcnn__agnostic_nms": True,
}
AGNOSTIC = {
    "detector": "cascade_rcnn",
    "bbox_head__reg_class_agnostic": True,
    "cascade__average_scores": "probabilities",
}

NORMS = {
    "neck__fpn__norm": "sync",
    "rpn__num_convs": 2,
    "bbox_head__num_convs": 2,
    "bbox_head__conv_out_channels": 64,
    "bbox_head__num_fcs": 1,
    "bbox_head__norm": "batch",
    "mask_head__norm": "frozen",
}
GROUP_NORMS = NORMS | {f"{part}__norm": "group" for part in ("neck__fpn", "bbox_head", "mask_head")}


def without_threshold(model, value=0.0):
    """The model's bytes with another score threshold."""
    threshold = next(c for c in model.graph.initializer if c.name == "score_thr")
    threshold.CopyFrom(numpy_helper.from_array(np.float32(value), "score_thr"))
    return model.SerializeToString()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="mask"),
        pytest.param({"detector": "faster_rcnn", "test_cfg__rpn__max_per_img": 7}, id="faster", marks=pytest.mark.full),
        pytest.param(OTHERS, id="conventions", marks=pytest.mark.full),
        pytest.param(ZOO, id="zoo", marks=pytest.mark.full),
        pytest.param(AGNOSTIC, id="agnostic", marks=pytest.mark.full),
        pytest.param(ODD, id="odd canvas"),
        pytest.param(NORMS, id="norms in neck and heads"),
        pytest.param(GROUP_NORMS, id="group norms", marks=pytest.mark.full),
    ],
)
def test_detects_what_the_detector_detects(small_config, make_detector, operator_by_operator, options):
    config = small_config(**options)
    detector = make_detector(config)
    image, shape = reference_input(config, 2)
    shape[1] = 1, 1, 300, 2  # boxes of a picture of one pixel, spread over a tall original
    wanted = [x.asnumpy() for x in WholeGraph(detector)(Tensor(image), Tensor(shape))]
    fold_batch_norms(detector)
    model = onnx_model(config, detector, 2)
    got = OnnxModel(model.SerializeToString())(image, shape)
    assert [x.shape for x in got] == [x.shape for x in wanted]
    assert [x.dtype for x in got] == [x.dtype for x in wanted]
    agreement = compare_detections(got, wanted, branches=config.branches)
    assert agreement.total >= 10
    assert agreement.passed, str(agreement)
    for x in got:
        assert not x[~got[3]].any()

    nothing = OnnxModel(without_threshold(model, 2.0))(image, shape)
    assert [x.shape for x in nothing] == [x.shape for x in wanted]
    assert not any(x.any() for x in nothing)


def test_only_standard_operators_and_no_batch_norm(small_config, make_detector):
    config = small_config()
    detector = make_detector(config)
    folded = fold_batch_norms(detector)
    model = onnx_model(config, detector)
    assert folded == 27  # MobileNetV1's
    assert {n.domain for n in model.graph.node} == {""}
    assert [(o.domain, o.version >= 11) for o in model.opset_import] == [("", True)]
    assert "BatchNormalization" not in {n.op_type for n in model.graph.node}
    # whoever has the file alone finds the classes in it
    assert OnnxModel(model.SerializeToString()).classes == config.coco_classes


def test_a_detector_whose_norms_are_not_folded_is_refused(small_config, make_detector):
    config = small_config()
    with pytest.raises(AttributeError):
        onnx_model(config, make_detector(config))


@pytest.mark.usefixtures("operator_by_operator")
@pytest.mark.parametrize(
    ("backbone", "groups"),
    [("resnext", {"backbone__groups": 32, "backbone__base_width": 4}), ("resnet", {})],
    ids=["resnext", "resnet"],
)
def test_backbones(small_config, backbone, groups):
    options = {"backbone__type": backbone, "backbone__stride_in_1x1": True}
    config = small_config(**options, **groups, backbone__width_multiplier=1.0)
    net = build_backbone(config).set_train(False)
    image = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    wanted = [x.asnumpy() for x in net(Tensor(image))]
    fold_batch_norms(net)
    graph = DetectorGraph(config, None, 1)
    names = net.onnx(graph, "image")
    for got, want in zip_equal(run(graph, image, names), wanted):
        # float32 sums of 50 layers in another order; a wrong stride or group is an error of 1
        np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.usefixtures("operator_by_operator")
@pytest.mark.parametrize(
    "picture", [pytest.param((64, 96), marks=pytest.mark.full), (30, 70)], ids=["whole canvas", "padded"]
)
def test_mobilenet_v3(small_config, picture):
    """Means over the picture's part of the canvas; the last two maps have one stride."""
    config = small_config(
        backbone__type="mobilenet_v3_large",
        backbone__num_stages=5,
        backbone__out_indices=[2, 3, 4],
        backbone__width_multiplier=1.0,
    )
    detector = build_detector(config).set_train(False)
    image = np.zeros((1, 3, 64, 96), np.float32)
    image[:, :, : picture[0], : picture[1]] = np.random.default_rng(0).normal(size=(1, 3, *picture))
    wanted = [x.asnumpy() for x in detector.features(Tensor(image))]
    fold_batch_norms(detector)
    graph = DetectorGraph(config, detector, 1)
    names = graph.fpn(detector.neck, detector.backbone.onnx(graph, "image"))
    assert [w.shape[2:] for w in wanted[:3]] == [(4, 6), (2, 3), (2, 3)]
    for got, want in zip_equal(run(graph, image, names), wanted):
        # as above
        np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


def run(graph, image, names):
    from onnx import TensorProto, helper

    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names]
    given = helper.make_tensor_value_info("image", TensorProto.FLOAT, image.shape)
    made = helper.make_graph(graph.nodes, "part", [given], ports, list(graph.constants.values()))
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})


def test_golden_weights_give_torchvisions_detections():
    golden, inputs = np.load(GOLDEN), reference_inputs(0)
    config = reference_config("torchvision", golden_shapes(golden), *inputs["image"].shape[2:])
    detector = build_detector(config)
    load_weights(config, detector, golden, 0)
    fold_batch_norms(detector)
    model = OnnxModel(onnx_model(config, detector, 2).SerializeToString())
    got = model(inputs["image"], np.array([[256, 320, 256, 320]] * 2, np.float32))
    for i in range(2):
        wanted = [golden[f"det_{name}_{i}"][None] for name in ("boxes", "scores", "labels")]
        wanted += [np.ones(wanted[1].shape, bool), golden[f"det_masks_{i}"].reshape(1, -1, 28, 28)]
        agreement = compare_detections([x[i : i + 1] for x in got], wanted, branches=config.branches)
        assert agreement.total >= 90
        assert agreement.passed, str(agreement)
        assert agreement.max_errors["mask"] < 1e-3  # masks hang on boxes that differ in the fourth decimal


def test_the_same_detector_gives_the_same_file(small_config, make_detector):
    config = small_config()
    files = []
    for _ in range(2):
        detector = make_detector(config)
        fold_batch_norms(detector)
        files.append(onnx_model(config, detector).SerializeToString())
    assert files[0] == files[1]
