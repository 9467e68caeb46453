"""Swin, against mmdetection's at a small size."""

import re
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, nn, ops
from safetensors.numpy import save_file

from src.checkpoints.convert import mmdetection
from src.checkpoints.convert.conversion import backbone_of
from src.checkpoints.convert.pickles import ConversionError
from src.checkpoints.files import load_backbone
from src.config import ConfigError, load_config
from src.config.backbones import FAMILIES
from src.convert_checkpoint import run as run_converter
from src.export.onnx_graph import DetectorGraph
from src.export.sidecar import ExportError
from src.export.split import export_split
from src.models.backbones.swin import SIZES, Merge, Swin
from src.runtime.newer import zip_equal
from src.training.update import build_optimizer
from tests.export.test_onnx_graph import run
from tests.models.transformers import Named, three_steps
from tests.reference.reference_weights import reference_tensor

pytestmark = pytest.mark.usefixtures("operator_by_operator")

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/mmdet_mask_rcnn_swin_t_fpn.yaml"
SIDES = (96, 160)


def image(height, width):
    return np.random.default_rng(0).standard_normal((2, 3, height, width)).astype(np.float32)


@pytest.fixture(scope="module")
def golden():
    """mmdetection 3.3's SwinTransformer: 32 channels, (2, 1, 2, 1) layers, maps of two canvases, of which no stage of
    the first and every one of the second is whole windows; every eighth channel, every third cell. Of the first's
    gradients the norms, for the sum of the maps times normal random numbers (default_rng(1)), each over its size.
    """
    return np.load(ROOT / "tests/reference/mmdet_swin_small.npz")


@pytest.fixture(scope="module")
def small(golden):
    """The backbone with the golden weights, through the converter's names and order."""
    net = Swin(32, (2, 1, 2, 1), *SIDES)
    given = {}
    for name, shape in zip_equal(golden["names"].tolist(), golden["shapes"].tolist()):
        ours = mmdetection.rename(name)
        given[ours] = mmdetection.arranged(name, ours, reference_tensor(name, tuple(map(int, shape.split(",")))))
    for p in net.get_parameters():
        p.set_data(Tensor(given.pop(f"backbone.{p.name}")))
    assert not given
    return net.set_train(False)


def differences(maps, golden, sides):
    """Relative, stage by stage."""
    for i, x in enumerate(maps):
        want = golden[f"map{i}_{sides[0]}x{sides[1]}"]
        yield np.linalg.norm(x[:, ::8, ::3, ::3] - want) / np.linalg.norm(want)


@pytest.mark.parametrize("sides", [SIDES, (224, 224)])
def test_maps_are_mmdetections(small, golden, sides):
    maps = [x.asnumpy() for x in small(Tensor(image(*sides)))]
    assert [m.shape[1:] for m in maps] == [(32 << i, sides[0] // 4 >> i, sides[1] // 4 >> i) for i in range(4)]
    assert max(differences(maps, golden, sides)) < 1e-5


def test_gradients_norms_are_mmdetections(small, golden):
    """Of every parameter, tables of positions and the merges' among them."""
    x, random, weights = Tensor(image(*SIDES)), np.random.default_rng(1), ParameterTuple(small.get_parameters())
    factors = []
    for i in range(4):
        shape = (2, 32 << i, SIDES[0] // 4 >> i, SIDES[1] // 4 >> i)
        factors.append(Tensor(random.standard_normal(shape).astype(np.float32) / np.float32(np.prod(shape))))
    norms = [np.linalg.norm(g.asnumpy().astype(np.float64)) for g in Gradients(small, weights)(x, tuple(factors))]
    ours = {f"backbone.{p.name}": n for p, n in zip_equal(weights, norms)}
    wanted = {mmdetection.rename(k[10:]): golden[k] for k in golden.files if k.startswith("grad_norm/")}
    assert ours.keys() == wanted.keys()
    assert {n: v for n, v in wanted.items() if abs(ours[n] - v) > 1e-4 * v} == {}


class Gradients(nn.Cell):
    """Of the sum of the maps times `factors`."""

    def __init__(self, net, weights):
        super().__init__(auto_prefix=False)
        self.net, self.weights = net, weights
        self.grad = ops.GradOperation(get_by_list=True, sens_param=True)

    def construct(self, x, factors):
        return self.grad(self.net, self.weights)(x, factors)


def test_onnx_gives_mmdetections_maps_too(small, golden):
    graph = DetectorGraph(load_config(CONFIG), None, 2)
    names = small.onnx(graph, "image")
    assert max(differences(run(graph, image(*SIDES), names), golden, SIDES)) < 1e-5
    assert len(names) == 4


def test_microsofts_names_and_order_are_taken():
    """By its PatchMerging: x0 is [0::2, 0::2], x1 [1::2, 0::2], x2 [0::2, 1::2], x3 [1::2, 1::2]."""
    random = np.random.default_rng(2)
    weight, scale, shift = (random.standard_normal(s).astype(np.float32) for s in ((16, 32), 32, 32))
    x = random.standard_normal((1, 4, 6, 8)).astype(np.float32)
    merge = Merge(8, 1e-5)
    for p in merge.get_parameters():
        value = {"reduction.weight": weight, "norm.gamma": scale, "norm.beta": shift}[p.name]
        name = "layers.0.downsample." + p.name.replace("gamma", "weight").replace("beta", "bias")
        assert mmdetection.rename(name) == f"backbone.stages.0.downsample.{p.name}"
        p.set_data(Tensor(mmdetection.arranged(name, "", value)))
    four = np.concatenate([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
    d = four - four.mean(-1, keepdims=True)
    wanted = (d / np.sqrt((d**2).mean(-1, keepdims=True) + 1e-5) * scale + shift) @ weight.T
    np.testing.assert_allclose(merge(Tensor(x)).asnumpy(), wanted, atol=1e-4)


MICROSOFT = (
    ("w_msa.", ""),
    ("ffn.layers.0.0", "mlp.fc1"),
    ("ffn.layers.1", "mlp.fc2"),
    ("projection", "proj"),
    ("stages", "layers"),
)


@pytest.fixture
def narrow(monkeypatch):
    """swin_t of 32 channels and (2, 1, 2, 1) layers."""
    monkeypatch.setitem(SIZES, "swin_t", (32, (2, 1, 2, 1)))
    monkeypatch.setitem(FAMILIES, "swin_t", replace(FAMILIES["swin_t"], channels=(32, 64, 128, 256)))


def test_a_classifiers_transformer_is_a_start(narrow, golden, tmp_path):
    """Microsoft's names, with what only classifiers have and tables that follow from the window."""
    state = {"norm.weight": np.ones(256, np.float32), "head.bias": np.ones(1000, np.float32)}
    state["layers.0.blocks.1.attn.relative_position_index"] = np.ones((49, 49), np.float32)
    state["layers.0.blocks.1.attn_mask"] = np.ones((64, 49, 49), np.float32)
    wanted = {}
    for name, shape in zip_equal(golden["names"].tolist(), golden["shapes"].tolist()):
        value = reference_tensor(name, tuple(map(int, shape.split(","))))
        name = name.removeprefix("backbone.")
        if re.match(r"norm\d", name):
            continue
        for theirs, its in MICROSOFT:
            name = name.replace(theirs, its)
        state[name], ours = value, mmdetection.rename(name)
        wanted[ours] = mmdetection.arranged(name, ours, value)
    save_file(state, tmp_path / "swin.safetensors")
    run_converter(tmp_path / "swin.safetensors", tmp_path / "swin.ckpt", "auto", None, None, {})
    detector = nn.Cell()
    detector.backbone = Swin(32, (2, 1, 2, 1), 64, 64)
    first = {p.name: p.asnumpy().copy() for p in detector.get_parameters()}
    load_backbone(detector, tmp_path / "swin.ckpt")
    assert len(wanted) == 91
    for p in detector.get_parameters():
        np.testing.assert_array_equal(p.asnumpy(), wanted.get(p.name, first[p.name]), err_msg=p.name)


def test_the_recipe_decays_neither_norms_nor_positions():
    """The first step of Adam is the learning rate, whatever the gradient."""
    names = ["backbone.stages.0.blocks.1.attn.position_bias", "backbone.stages.2.downsample.norm.gamma"]
    names += ["backbone.norms.3.beta", "backbone.stages.0.blocks.1.attn.qkv.bias", "neck.fpn_convs.0.weight"]
    loss = Named(names)
    optimizer = build_optimizer(load_config(CONFIG), loss, np.full(2, 0.01, np.float32))
    optimizer(tuple(Tensor([3.0, 0.5], ms.float32) for _ in names))
    for p, decay in zip_equal(loss.weights, (0, 0, 0, 0.05, 0.05)):
        want = np.array([1.0, -2.0]) * (1 - 0.01 * decay) - 0.01
        np.testing.assert_allclose(p.asnumpy(), want, rtol=1e-6)


@pytest.mark.full
def test_a_recipe_trains_every_weight_and_evaluates(narrow, shapes_root, tmp_path):
    """Three steps of Mask R-CNN on generated shapes, of canvases that turn: every weight moves."""
    stayed, ap = three_steps(CONFIG, shapes_root, tmp_path, {"short_side": 128, "long_side": 192})
    assert stayed == []
    assert 0 <= ap <= 1


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"backbone.norm": "sync"}, "backbone.norm: sync isn't here for swin_t"),
        ({"backbone.frozen_stages": "1"}, "backbone.frozen_stages isn't here for swin_t.*freeze"),
        ({"layer_decay": "0.7"}, "layer_decay isn't here for swin_t"),
    ],
)
def test_what_it_lacks_is_refused(keys, told):
    with pytest.raises(ConfigError, match=told):
        load_config(CONFIG, keys)


def test_another_size_is_told(golden):
    shapes = {"backbone.patch_norm.gamma": (128,)}
    shapes |= {f"backbone.stages.{i}.blocks.{k}.norm1.gamma": (1,) for i in range(4) for k in range((2, 2, 18, 2)[i])}
    with pytest.raises(ConversionError, match=r"Swin transformer of \(2, 2, 18, 2\) blocks and 128 channels"):
        backbone_of(shapes)


def test_the_split_form_is_refused(tmp_path):
    with pytest.raises(ExportError, match="swin_t has no split form here.*export ONNX"):
        export_split(load_config(CONFIG), None, tmp_path / "net")
    assert not list(tmp_path.iterdir())
