"""Whole graphs have operators alone that Ascend's plugin can take into a graph of CANN's (GE)."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore.train.mind_ir_pb2 import ModelProto

from src.config import load_config
from src.export.whole import WholeGraph, standard
from src.models.build import build_detector

ROOT = Path(__file__).parents[2]
PLUGIN = Path(ms.__file__).parent / "lib/plugin/ascend/libmindspore_ascend_res_manager.so"
SMALL = {"img_width": 128, "img_height": 128, "resize": "canvas", "test_cfg.rcnn.max_per_img": 3}
SMALL |= {"test_cfg.rpn.nms_pre": 50, "test_cfg.rpn.max_per_img": 8, "roi.roi_layer.sampling_ratio": 2}


def known():
    lines = Path(__file__).with_name("ascend_operators.txt").read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def operators(path):
    """The operators of a MINDIR."""
    model = ModelProto()
    model.ParseFromString(path.read_bytes())
    names = {p.name: p.op_type for p in model.primitives}
    graphs = [model.graph, *model.functions]
    return {names.get(n.op_type.removeprefix("REF::"), n.op_type) for g in graphs for n in g.node}


@pytest.mark.parametrize(
    "name",
    [
        "shapes",
        *(
            pytest.param(name, marks=pytest.mark.full)
            for name in (
                "shapes_cascade",
                "detectron2_mask_rcnn_r50_fpn",
                "keypoint_rcnn_r50_fpn",
                "mask_rcnn_x101_32x4d_fpn",
                "mindspore_zoo_mask_rcnn_r50_fpn",
                "torchvision_faster_rcnn_mobilenetv3_fpn",
            )
        ),
    ],
)
def test_a_whole_graph_has_known_operators_alone(name, tmp_path):
    ms.set_context(mode=ms.GRAPH_MODE)
    config = load_config(ROOT / f"configs/{name}.yaml", SMALL)
    net = WholeGraph(standard(config, build_detector(config))).set_train(False)
    inputs = [np.zeros((1, 3, 128, 128), np.float32), np.full((1, 4), 64, np.float32)]
    ms.export(net, *map(Tensor, inputs), file_name=str(tmp_path / "net"), file_format="MINDIR")
    found = operators(tmp_path / "net.mindir")
    assert {"NMSWithMask", "ROIAlign", "TopK"} <= found
    assert found - known() == set()


def test_the_plugin_has_an_adapter_for_each():
    if not PLUGIN.is_file():
        pytest.skip("this MindSpore has no Ascend plugin")
    plugin = PLUGIN.read_bytes()
    assert [name for name in sorted(known()) if name.encode() + b"\0" not in plugin] == []
    # and doesn't just hold every name
    lacking = ("ClampScalar", "RemainderTensorScalar", "SumExt", "MatMulExt")
    assert not any(name.encode() + b"\0" in plugin for name in lacking)
