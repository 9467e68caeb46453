"""Norms: padding that doesn't count, frozen ones, group norm in each of its forms."""

import numpy as np
import pytest
from mindspore import Tensor, nn
from mindspore.common.initializer import HeNormal

from src.config import ConfigError, load_config
from src.export.lite import LiteGroupNorm, LiteLayerNorm
from src.models.norms import BatchNorm, ConvNorm, GroupNorm, LayerNorm, conv_layer, freeze, norm_of
from src.runtime.newer import zip_equal
from tests.checkpoints.convert.test_layouts import ROOT
from tests.training.norms_of_ranks import Gradients

SUMS = 1e-5  # float32 sums in another order


def drawn(seed, *shape):
    return np.random.default_rng(seed).normal(0.5, 2.0, shape).astype(np.float32)


def with_values(cell, seed=3):
    r = np.random.default_rng(seed)
    for p in cell.get_parameters():
        p.set_data(Tensor(r.uniform(0.5, 1.5, p.shape).astype(np.float32)))
    return cell


def test_rows_of_padding_touch_no_statistic_and_no_gradient():
    """Against MindSpore's own batch norm of the other rows alone."""
    ours, theirs = with_values(BatchNorm(5, 1e-3, 0.9)), with_values(nn.BatchNorm2d(5, 1e-3, 0.9))
    x, sens, used = drawn(0, 6, 5, 3, 4), drawn(1, 6, 5, 3, 4), np.array([1, 0, 1, 1, 0, 1], bool)
    sens[~used] = 0  # no loss
    got, (to_inputs, to_weights) = Gradients(ours.set_train())(Tensor(sens), Tensor(x), Tensor(used.astype(np.float32)))
    wanted, (own, own_weights) = Gradients(theirs.set_train())(Tensor(sens[used]), Tensor(x[used]))
    np.testing.assert_allclose(got.asnumpy()[used], wanted.asnumpy(), atol=SUMS)
    np.testing.assert_allclose(to_inputs[0].asnumpy()[used], own[0].asnumpy(), atol=SUMS)
    assert not to_inputs[0].asnumpy()[~used].any()
    for a, b in zip_equal(to_weights, own_weights):
        np.testing.assert_allclose(a.asnumpy(), b.asnumpy(), rtol=SUMS, atol=10 * SUMS)
    for name in ("moving_mean", "moving_variance"):
        np.testing.assert_allclose(getattr(ours, name).asnumpy(), getattr(theirs, name).asnumpy(), rtol=SUMS)


def test_a_batch_of_padding_alone_teaches_nothing():
    norm = with_values(BatchNorm(5, 1e-3, 0.9)).set_train()
    before = norm.moving_variance.asnumpy().copy()
    out = norm(Tensor(drawn(0, 2, 5, 3, 3)), Tensor(np.zeros(2, np.float32)))
    assert np.isfinite(out.asnumpy()).all()
    np.testing.assert_array_equal(norm.moving_variance.asnumpy(), before)


@pytest.mark.parametrize("kind", ["frozen", "running", "batch", "sync"])
def test_frozen_and_running_norms_keep_their_statistics_in_training(kind):
    layer = with_values(conv_layer(3, 4, 3, norm_of(kind, 1e-5, 0.9), HeNormal(), relu=True)).set_train()
    x, statistics = Tensor(drawn(0, 2, 3, 6, 6)), layer.norm.moving_mean
    before = statistics.asnumpy().copy()
    trained, evaluated = layer(x).asnumpy(), layer.set_train(False)(x).asnumpy()
    keeps = kind in ("frozen", "running")
    assert np.array_equal(statistics.asnumpy(), before) == keeps
    assert np.allclose(trained, evaluated, atol=1e-4) == keeps
    assert layer.norm.gamma.requires_grad == (kind != "frozen")
    # and what freezes a part, before it is compiled, has it keep them too
    layer = with_values(conv_layer(3, 4, 3, norm_of(kind, 1e-5, 0.9), HeNormal(), relu=True)).set_train()
    freeze(layer)
    assert not layer.trainable_params()
    np.testing.assert_allclose(layer(x).asnumpy(), layer.set_train(False)(x).asnumpy(), atol=1e-4)


def test_group_norm_is_its_formula_and_the_form_for_lite_too():
    norm = with_values(GroupNorm(64, 1e-3))
    x = drawn(0, 3, 64, 5, 7)
    groups = x.astype(np.float64).reshape(3, 32, -1)
    wanted = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + 1e-3)
    scale, shift = (p.asnumpy().reshape(64, 1, 1) for p in (norm.gamma, norm.beta))
    wanted = wanted.reshape(x.shape) * scale + shift
    for cell in (norm, LiteGroupNorm(norm)):
        np.testing.assert_allclose(cell(Tensor(x)).asnumpy(), wanted, atol=SUMS)


def test_layer_norm_is_its_formula_and_the_form_for_lite_too():
    norm = with_values(LayerNorm(24, 1e-3))
    x = drawn(0, 3, 24, 5, 7)
    wide = x.astype(np.float64)
    wanted = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-3)
    scale, shift = (p.asnumpy().reshape(24, 1, 1) for p in (norm.gamma, norm.beta))
    for cell in (norm, LiteLayerNorm(norm)):
        np.testing.assert_allclose(cell(Tensor(x)).asnumpy(), wanted * scale + shift, atol=SUMS)


def test_a_frozen_part_keeps_its_group_norm():
    layer = with_values(ConvNorm(3, 32, 3, norm_of("group", 1e-5, 0.9)))
    x = Tensor(drawn(0, 2, 3, 6, 6))
    before = layer(x).asnumpy()
    freeze(layer)
    np.testing.assert_array_equal(layer(x).asnumpy(), before)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"neck.fpn.norm": "group", "neck.fpn.out_channels": 40}, "neck.fpn.norm: group has 32 groups"),
        ({"bbox_head.norm": "batch"}, "set bbox_head.num_convs"),
        ({"backbone": "mobilenet_v1", "backbone.norm": "group"}, "backbone.norm: group isn't here for mobilenet_v1"),
        ({"mask_head.norm": "instance"}, "mask_head.norm"),
        # which no published one has
        ({"detector": "keypoint_rcnn", "keypoint_head.norm": "group"}, "keypoint_head.norm: unknown key"),
    ],
)
def test_norms_that_cannot_be_are_refused(keys, told):
    with pytest.raises(ConfigError, match=told):
        load_config(ROOT / "configs/mask_rcnn_r50_fpn.yaml", keys)
