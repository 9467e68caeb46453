"""The C++ depthwise convolution and its gradients against a plain NumPy one, and what MindSpore sees of it."""

import functools

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.models.backbones.parts import SamePaddedConv2d
from src.ops import library
from src.ops.conv import Conv2d
from src.runtime.newer import zip_equal
from tests.ops.conftest import call, passes_of

each_kernel = pytest.mark.usefixtures("kernels")

# Of the result's root mean square: sums of 9 or 25 products, or of a map's, in float32. Errors were at most 3e-6; a
# wrong tap is of order 1.
TOLERANCE = 2e-5

# kernel, stride, padded as "same"
KINDS = [(3, 1, False), (3, 2, False), (3, 2, True), (5, 1, False), (5, 2, False), (5, 2, True)]
# single cells, lines, maps below and above a vector's width, rows that end within a strip of several, blocks of rows
SHAPES = [(1, 1, 1, 1), (2, 3, 7, 9), (1, 2, 8, 16), (2, 2, 1, 50), (1, 2, 50, 1), (1, 3, 33, 70), (1, 2, 300, 17)]
SHAPES += [(1, 1, 5, 1100), (3, 2, 12, 277)]
ACTIVATIONS = ["", "ReLU", "ReLU6"]


def numpy_depthwise(x, weight, bias, dy, activation, stride, same):
    """y, dx, dweight, dbias in float64, the gradients those of sum(y * dy)."""
    x, weight, dy = (a.astype(np.float64) for a in (x, weight, dy))
    kernel, sizes, outs = weight.shape[2], x.shape[2:], dy.shape[2:]
    pads = [(kernel // 2, kernel // 2)] * 2
    if same:
        totals = [max((out - 1) * stride + kernel - size, 0) for size, out in zip_equal(sizes, outs)]
        pads = [(t // 2, t - t // 2) for t in totals]
    padded = np.pad(x, ((0, 0), (0, 0), *pads))
    windows = {
        (i, j): np.s_[:, :, i : i + (outs[0] - 1) * stride + 1 : stride, j : j + (outs[1] - 1) * stride + 1 : stride]
        for i in range(kernel)
        for j in range(kernel)
    }
    y = np.zeros(dy.shape) + bias.reshape(-1, 1, 1)
    for (i, j), window in windows.items():
        y += padded[window] * weight[:, 0, i, j].reshape(-1, 1, 1)
    if activation:
        dy = dy * ((y > 0) & ((y < 6) | (activation == "ReLU")))
        y = np.clip(y, 0, 6 if activation == "ReLU6" else None)
    dx, dweight = np.zeros(padded.shape), np.zeros(weight.shape)
    for (i, j), window in windows.items():
        dweight[:, 0, i, j] = (dy * padded[window]).sum((0, 2, 3))
        dx[window] += dy * weight[:, 0, i, j].reshape(-1, 1, 1)
    top, left = pads[0][0], pads[1][0]
    return y, dx[:, :, top : top + sizes[0], left : left + sizes[1]], dweight, dy.sum((0, 2, 3))


def make_inputs(batch, channels, height, width, kernel, stride):
    r = np.random.default_rng(0)
    return (
        2 * r.standard_normal((batch, channels, height, width), np.float32),
        r.standard_normal((channels, 1, kernel, kernel), np.float32),
        r.standard_normal(channels, np.float32),
        r.standard_normal((batch, channels, -(-height // stride), -(-width // stride)), np.float32),
    )


@functools.cache
def inputs_and_results(kernel, stride, same, shape, activation):
    """The same for each library, which only reads them."""
    inputs = make_inputs(*shape, kernel, stride)
    # the sign of an output that rounding decides would decide a whole gradient
    y = numpy_depthwise(*inputs, "", stride, same)[0]
    inputs[3][(np.abs(y) < 1e-4) | (np.abs(y - 6) < 1e-4)] = 0
    return inputs, numpy_depthwise(*inputs, activation, stride, same)


def all_passes(x, weight, bias, dy, activation, stride, same):
    """y, dx, dweight, dbias by the library."""
    kind = "DepthwiseSameStride2" if same else "DepthwiseStride2" if stride == 2 else "Depthwise"
    (y,) = call(f"{kind}Forward{activation}", [x, weight, bias], dy.shape)
    return y, *call(f"{kind}Gradients{activation}", [dy, y, x, weight], x.shape, weight.shape, bias.shape)


@each_kernel
@pytest.mark.parametrize(("kernel", "stride", "same"), KINDS)
def test_values_and_gradients(kernel, stride, same):
    for shape in SHAPES:
        for activation in ACTIVATIONS:
            inputs, wanted = inputs_and_results(kernel, stride, same, shape, activation)
            got = all_passes(*inputs, activation, stride, same)
            for part, a, b in zip_equal(("y", "dx", "dweight", "dbias"), got, wanted):
                # one number may be small beside what it is the sum of
                scale = max(np.sqrt(np.mean(np.square(b))), 1.0)
                np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * scale, err_msg=f"{part} {shape} {activation}")


@each_kernel
@pytest.mark.parametrize(("kernel", "stride", "same"), KINDS)
def test_the_same_bits_in_a_batch_and_for_any_number_of_threads(kernel, stride, same, threads):
    inputs = make_inputs(3, 5, 21, 37, kernel, stride)
    threads(1)
    x, weight, bias, dy = inputs
    one = all_passes(*inputs, "ReLU6", stride, same)
    for i in range(len(x)):
        alone = all_passes(x[i : i + 1], weight, bias, dy[i : i + 1], "ReLU6", stride, same)
        np.testing.assert_array_equal(alone[0], one[0][i : i + 1])
        np.testing.assert_array_equal(alone[1], one[1][i : i + 1])
    threads(2)
    for a, b in zip_equal(one, all_passes(*inputs, "ReLU6", stride, same)):
        np.testing.assert_array_equal(a, b)


@each_kernel
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_is_not_hidden_and_no_images_are_none(activation):
    x, weight, bias, dy = make_inputs(1, 4, 8, 8, 3, 1)
    x[0, 0, 2, 2] = np.nan
    (y,) = call(f"DepthwiseForward{activation}", [x, weight, bias], dy.shape)
    assert np.isnan(y[0, 0, 1:4, 1:4]).all() and np.isfinite(y[0, 1:]).all()
    y, dx, dweight, dbias = all_passes(x[:0], weight, bias, dy[:0], activation, 1, False)
    assert y.shape == dx.shape == (0, 4, 8, 8)
    assert not dweight.any() and not dbias.any()


class Net(nn.Cell):
    """A depthwise convolution with weights that are computed, as folded norms are, and one with its own."""

    def __init__(self, kernel, stride, relu6, same):
        super().__init__()
        kind = SamePaddedConv2d if same else Conv2d
        self.first, self.relu6 = kind(6, 6, kernel, stride, group=6), relu6
        self.second = Conv2d(6, 6, 3, group=6, relu=True, has_bias=True)
        self.scale = ms.Parameter(Tensor(np.linspace(0.5, 2, 6).astype(np.float32)), name="scale")
        self.shift = ms.Parameter(Tensor(np.linspace(-1, 7, 6).astype(np.float32)), name="shift")

    def construct(self, x):
        weight = self.first.weight * ops.broadcast_to(self.scale.reshape(-1, 1, 1, 1), self.first.weight.shape)
        return self.second(self.first.convolve(x, weight, self.shift, not self.relu6, self.relu6))


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
@pytest.mark.parametrize("reversed_order", [False, True])
def test_layers_of_one_size_and_other_strides(mode, reversed_order):
    """MindSpore has kept the first one's size of output for the next."""
    ms.set_context(mode=mode)
    x = Tensor(np.zeros((1, 4, 8, 10), np.float32))
    layers = [(Conv2d(4, 4, 3, group=4, relu=True), (8, 10)), (Conv2d(4, 4, 3, 2, group=4, relu=True), (4, 5))]
    layers.append((SamePaddedConv2d(4, 4, 3, 2, group=4, relu=True), (4, 5)))
    for layer, size in layers[::-1] if reversed_order else layers:
        assert layer(x).shape == (1, 4, *size)
        assert ops.GradOperation()(layer)(x).shape == x.shape


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
@pytest.mark.parametrize(
    ("kernel", "stride", "relu6", "same"), [(3, 2, True, True), (3, 1, False, False), (5, 2, True, False)]
)
def test_a_network_is_what_it_is_with_standard_operators(mode, kernel, stride, relu6, same):
    ms.set_context(mode=mode)
    ours = Net(kernel, stride, relu6, same)
    with library.standard_operators():
        theirs = Net(kernel, stride, relu6, same)
    assert ours.first.custom and ours.second.custom and not theirs.first.custom and not theirs.second.custom
    r = np.random.default_rng(1)
    for p, q in zip_equal(ours.get_parameters(), theirs.get_parameters()):
        assert p.name == q.name
        if p.name.endswith("weight"):
            p.set_data(Tensor(r.standard_normal(p.shape).astype(np.float32)))
        q.set_data(Tensor(p.asnumpy()))
    size = (-(-11 // stride), -(-18 // stride))
    x, sens = (Tensor(r.standard_normal(s).astype(np.float32)) for s in ((2, 6, 11, 18), (2, 6, *size)))
    results = [passes_of(net, x, sens) for net in (ours, theirs)]
    for a, b in zip_equal(*results):
        np.testing.assert_allclose(a, b, rtol=0, atol=10 * TOLERANCE * max(np.sqrt(np.mean(b**2)), 1.0))


def test_only_what_the_operator_can_do_goes_to_it():
    assert not Conv2d(4, 4, 7, group=4).custom and not Conv2d(4, 8, 3, group=4).custom
    assert not Conv2d(4, 4, 3, 3, group=4).custom and not Conv2d(4, 4, 3, group=4, dilation=2).custom
