"""ViTDet's transformer and pyramid, against Detectron2's at a small size, and what trains them, against PyTorch's."""

from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn
from safetensors.numpy import save_file

from src.checkpoints.convert import detectron2
from src.checkpoints.files import load_backbone
from src.config import ConfigError, load_config
from src.config.backbones import FAMILIES
from src.convert_checkpoint import run as run_converter
from src.export.onnx_graph import DetectorGraph
from src.export.sidecar import ExportError
from src.export.split import export_split
from src.models.backbones.vit import SIZES, Block, ViT, layer_rate
from src.models.fpn import FPN
from src.models.norms import norm_of
from src.runtime.newer import zip_equal
from src.training.update import AdamW, build_optimizer, describe_layer_rates
from tests.export.test_onnx_graph import run
from tests.models.transformers import Named, three_steps
from tests.reference.reference_weights import reference_tensor

pytestmark = pytest.mark.usefixtures("operator_by_operator")

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/detectron2_mask_rcnn_vitdet_b.yaml"
IMAGE = np.random.default_rng(0).standard_normal((1, 3, 160, 256)).astype(np.float32)


@pytest.fixture(scope="module")
def golden():
    """Detectron2's vit.py at 02b5c4e2: 96 channels, 3 layers of 2 heads, the last of them global, a pyramid of 32
    channels; of 10 x 16 patches, which is not what any table is stored for. Every fourth channel, every other cell.
    """
    return np.load(ROOT / "tests/reference/d2_vit_small.npz")


@pytest.fixture(scope="module")
def small(golden):
    """The backbone and the neck, with the golden weights through the converter's names."""
    backbone = ViT(96, 3, 2, *IMAGE.shape[2:])
    neck = FPN([24, 48, 96, 96], 32, 4, norm=norm_of("layer", 1e-6, 0.9), top_down=False)
    given = {}
    for name, shape in zip_equal(golden["names"].tolist(), golden["shapes"].tolist()):
        given[detectron2.rename(name)] = reference_tensor(name, tuple(map(int, shape.split(","))))
    for prefix, cell in (("backbone.", backbone), ("neck.", neck)):
        for p in cell.get_parameters():
            p.set_data(Tensor(given.pop(prefix + p.name)))
    assert not given
    return backbone.set_train(False), neck.set_train(False)


def differences(maps, golden):
    """Relative, level by level."""
    for level, x in enumerate(maps):
        want = golden[f"p{level + 2}"]
        yield np.linalg.norm(x[:, ::4, ::2, ::2] - want) / np.linalg.norm(want)


def test_maps_are_detectron2s(small, golden):
    backbone, neck = small
    maps = [x.asnumpy() for x in neck(backbone(Tensor(IMAGE)))]
    assert max(differences(maps, golden)) < 1e-5
    assert len(maps) == 4


def test_onnx_gives_detectron2s_maps_too(small, golden):
    backbone, neck = small
    graph = DetectorGraph(load_config(CONFIG), None, 1)
    names = graph.fpn(neck, backbone.onnx(graph, "image"))
    assert max(differences(run(graph, IMAGE, names), golden)) < 1e-5
    assert len(names) == 4


def test_an_image_leaves_out_parts_in_training_alone():
    """Each of the two parts either not at all, or as much larger as it is rarer."""
    block = Block(8, 2, 3, 4, 0, 64, 1e-6, 0.5)
    block.mlp.fc2.weight.set_data(Tensor(np.zeros((8, 32), np.float32)))
    x = Tensor(np.random.default_rng(1).normal(size=(64, 3, 4, 8)).astype(np.float32))
    part = (block.set_train(False)(x) - x).asnumpy()
    assert np.abs(part).min(axis=(1, 2, 3)).max() > 0
    learnt = (block.set_train()(x) - x).asnumpy()
    kept = np.abs(learnt).max(axis=(1, 2, 3)) > 0
    assert 12 < kept.sum() < 52
    np.testing.assert_allclose(learnt[kept], 2 * part[kept], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("backbone.pos_embed", 0.009688901040699992),
        ("backbone.patch_embed.bias", 0.009688901040699992),
        ("backbone.blocks.0.norm1.gamma", 0.01384128720099999),
        ("backbone.blocks.11.attn.qkv.weight", 0.7),
        ("backbone.up4_first.bias", 1.0),
        ("bbox_head.fc1.weight", 1.0),
    ],
)
def test_lower_layers_have_detectron2s_learning_rates(name, rate):
    """Of its get_vit_lr_decay_rate."""
    assert layer_rate(name, 12, 0.7) == pytest.approx(rate, rel=1e-9)


def test_adamw_is_pytorchs():
    """torch.optim.AdamW of PyTorch 2.14, rate and decay 0.1."""
    weight = Parameter(Tensor([1.0, -2.0], ms.float32), name="weight")
    groups = [{"params": [weight], "weight_decay": 0.1}]
    optimizer = AdamW(groups, Tensor(np.full(3, 0.1, np.float32)), weight_decay=0.1)
    wanted = ([0.89000004, -2.0799999], [0.9177104, -2.1422598], [0.8665678, -2.0812616])
    for gradient, want in zip_equal(([0.5, 1.0], [-1.0, 0.25], [2.0, -3.0]), wanted):
        optimizer((Tensor(gradient, ms.float32),))
        np.testing.assert_allclose(weight.asnumpy(), want, rtol=1e-6)


def test_the_recipe_moves_lower_layers_less_and_decays_no_positions():
    """The first step of Adam is the learning rate, whatever the gradient."""
    names = ("backbone.pos_embed", "backbone.blocks.11.mlp.fc1.weight", "bbox_head.fc1.weight", "neck.norm.gamma")
    loss = Named(names)
    optimizer = build_optimizer(load_config(CONFIG), loss, np.full(2, 0.01, np.float32))
    optimizer(tuple(Tensor([3.0, 0.5], ms.float32) for _ in names))
    for p, rate, decay in zip_equal(loss.weights, (0.7**13 * 0.01, 0.007, 0.01, 0.01), (0, 0.1, 0.1, 0)):
        want = np.array([1.0, -2.0]) * (1 - rate * decay) - rate
        np.testing.assert_allclose(p.asnumpy(), want, rtol=1e-6)


def test_a_run_tells_the_layers_learning_rates():
    told = describe_layer_rates(load_config(CONFIG))
    assert "positions have 0.00969, layer 1 0.0138, layer 12 0.7, what follows all (layer_decay 0.7)" in told
    assert describe_layer_rates(load_config(CONFIG, {"layer_decay": 1})) == ""


@pytest.fixture
def narrow(monkeypatch):
    """vit_b of 96 channels, 3 layers and 2 heads."""
    monkeypatch.setitem(SIZES, "vit_b", (96, 3, 2))
    monkeypatch.setitem(FAMILIES, "vit_b", replace(FAMILIES["vit_b"], channels=(24, 48, 96, 96)))


def test_a_classifiers_transformer_is_a_start(narrow, golden, tmp_path):
    """MAE's names: those of the golden file without what detectors add, and the classifier's own."""
    state = {"cls_token": np.ones((1, 1, 96), np.float32), "norm.weight": np.ones(96, np.float32)}
    for name, shape in zip_equal(golden["names"].tolist(), golden["shapes"].tolist()):
        if name.startswith("backbone.net.") and "rel_pos" not in name:
            value = reference_tensor(name, tuple(map(int, shape.split(","))))
            state[name.removeprefix("backbone.net.")] = value
    save_file(state, tmp_path / "mae.safetensors")
    run_converter(tmp_path / "mae.safetensors", tmp_path / "mae.ckpt", "auto", None, None, {})
    detector = nn.Cell()
    detector.backbone = ViT(96, 3, 2, 64, 64)
    first = {p.name: p.asnumpy().copy() for p in detector.get_parameters()}
    load_backbone(detector, tmp_path / "mae.ckpt")
    loaded = {p.name: p.asnumpy() for p in detector.get_parameters()}
    wanted = {detectron2.rename(n): v for n, v in state.items() if n not in ("cls_token", "norm.weight")}
    assert len(wanted) == 39
    for name, value in loaded.items():
        np.testing.assert_array_equal(value, wanted.get(name, first[name]), err_msg=name)


@pytest.mark.full
def test_a_recipe_trains_every_weight_and_evaluates(narrow, shapes_root, tmp_path):
    """Three steps of Mask R-CNN on generated shapes."""
    stayed, ap = three_steps(CONFIG, shapes_root, tmp_path)
    assert stayed == []
    assert 0 <= ap <= 1


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"backbone.norm": "sync"}, "backbone.norm: sync isn't here for vit_b"),
        ({"backbone.frozen_stages": "1"}, "backbone.frozen_stages isn't here for vit_b.*freeze"),
        ({"backbone.out_indices": "[0, 1]", "neck.fpn.in_channels": "[192, 384]"}, "backbone.out_indices must be"),
        ({"resize": "short_side", "img_height": "512"}, "resize: short_side turns the canvas"),
        ({"backbone": "resnet_v1.5_50"}, "layer_decay is of a transformer's layers"),
    ],
)
def test_what_a_transformer_lacks_is_refused(keys, told):
    with pytest.raises(ConfigError, match=told):
        load_config(CONFIG, keys)


def test_the_split_form_is_refused(tmp_path):
    with pytest.raises(ExportError, match="vit_b has no split form here.*export ONNX"):
        export_split(load_config(CONFIG), None, tmp_path / "net")
    assert not list(tmp_path.iterdir())
