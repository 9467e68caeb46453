"""The convolution is MindSpore's own, gradients included."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.ops.conv import Conv2d
from src.ops.library import standard_operators
from src.runtime.newer import zip_equal

pytestmark = pytest.mark.usefixtures("operator_by_operator")


@pytest.mark.parametrize(
    ("channels", "filters", "kernel", "size"),
    [(3, 5, 3, (7, 9)), (8, 4, 3, (1, 6)), (2, 3, 5, (6, 6)), (3, 4, 1, (5, 4)), (512, 256, 1, (5, 4))],
)
def test_values_and_gradients_are_those_of_conv2d(channels, filters, kernel, size):
    r = np.random.default_rng(0)
    ours = Conv2d(channels, filters, kernel, has_bias=True)
    theirs = nn.Conv2d(channels, filters, kernel, pad_mode="pad", padding=kernel // 2, has_bias=True)
    assert {p.name: p.shape for p in ours.get_parameters()} == {p.name: p.shape for p in theirs.get_parameters()}
    for p, q in zip_equal(ours.get_parameters(), theirs.get_parameters()):
        value = Tensor(r.standard_normal(p.shape).astype(np.float32))
        p.set_data(value)
        q.set_data(value)
    x = Tensor(r.standard_normal((2, channels, *size)).astype(np.float32))
    sens = Tensor(r.standard_normal((2, filters, *size)).astype(np.float32))
    both = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)
    # the same products summed in another order, in float32: of the numbers' root mean square
    want = theirs(x).asnumpy()
    np.testing.assert_allclose(ours(x).asnumpy(), want, rtol=0, atol=1e-5 * np.sqrt(np.mean(want**2)))
    got = both(ours, ms.ParameterTuple(ours.trainable_params()))(x, sens)
    want = both(theirs, ms.ParameterTuple(theirs.trainable_params()))(x, sens)
    for a, b in zip_equal([*got[0], *got[1]], [*want[0], *want[1]]):
        np.testing.assert_allclose(a.asnumpy(), b.asnumpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("channels", "filters", "group", "stride"), [(64, 64, 16, 1), (256, 128, 4, 2), (12, 12, 4, 1)]
)
@pytest.mark.parametrize("half", [False, True])
def test_groups_for_devices_are_a_few_convolutions_without(channels, filters, group, stride, half):
    """Devices have kernels for depthwise convolutions and those without groups."""
    r = np.random.default_rng(0)
    plain = Conv2d(channels, filters, 3, stride, group=group, relu=True)
    with standard_operators():
        apart = Conv2d(channels, filters, 3, stride, group=group, relu=True)
        assert Conv2d(8, 8, 3, group=8).parts == 1 and not Conv2d(8, 8, 3, group=8).together
    assert apart.parts == max(1, channels // 128)
    assert apart.part.group == 1
    assert {p.name: p.shape for p in apart.get_parameters()} == {p.name: p.shape for p in plain.get_parameters()}
    apart.weight.set_data(plain.weight)
    plain.half = apart.half = half
    x = Tensor(r.standard_normal((2, channels, 7, 6)).astype(np.float32))
    both = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)
    out = [cell(x) for cell in (apart, plain)]
    found = [both(cell, ms.ParameterTuple(cell.trainable_params()))(x, out[0]) for cell in (apart, plain)]
    for a, b in zip_equal([out[0], *found[0][0], *found[0][1]], [out[1], *found[1][0], *found[1][1]]):
        assert a.dtype == b.dtype
        scale = np.abs(b.asnumpy()).max()
        np.testing.assert_allclose(a.asnumpy() / scale, b.asnumpy() / scale, atol=5e-3 if half else 1e-6)


@pytest.mark.parametrize("relu", [False, True])
def test_on_gpus_a_float16_convolution_adds_its_bias_in_float32(monkeypatch, relu):
    """There a bias that was rounded gave wrong sums; 2049 isn't a float16, and the sum of both is."""
    with monkeypatch.context() as m:
        m.setattr(ms, "get_context", lambda _: "GPU")
        cell = Conv2d(1, 1, 1, relu=relu, has_bias=True)
    cell.half = True
    cell.weight.set_data(Tensor(np.ones((1, 1, 1, 1), np.float32)))
    cell.bias.set_data(Tensor(np.array([2049], np.float32)))
    x = Tensor(np.array([-2048, -2052, 16], np.float32).reshape(1, 1, 1, 3))
    y = cell(x)
    assert y.dtype == ms.float16
    assert y.asnumpy().ravel().tolist() == [1, 0 if relu else -3, 2064]  # of 2065, the even neighbour
