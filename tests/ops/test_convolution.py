"""The C++ convolutions and their gradients against a plain NumPy one, and what MindSpore sees of them."""

import functools

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.ops import library
from src.ops.conv import Conv2d
from src.runtime.newer import zip_equal
from tests.ops.conftest import MARCHES, call, passes_of

each_library = pytest.mark.usefixtures("operators")
each_kernel = pytest.mark.usefixtures("kernels")
LONG = pytest.mark.full

# Of the result's root mean square. Winograd's transforms lose some bits: float32 errors of 64 channels were at most
# 1e-5 of it, of single numbers in some 100,000; direct sums in another order 3e-6. A wrong tap or tile is of order 1.
TOLERANCE = 4e-5

# batch, input channels, output channels, height, width: single cells, lines, tiles that end with the map or beyond it,
# channels around a vector's and a block's, maps of one tile, many small maps, rows of more than one vector of tiles
SHAPES = [
    (1, 1, 1, 1, 1),
    (1, 3, 5, 7, 9),
    (2, 16, 14, 8, 8),
    (1, 17, 33, 12, 20),
    (5, 8, 29, 14, 14),
    (3, 9, 8, 7, 7),
    (1, 2, 3, 1, 150),
    (2, 3, 2, 150, 1),
    (1, 4, 6, 5, 277),
    (2, 64, 64, 24, 40),
    (1, 300, 20, 6, 11),
    (37, 1, 2, 3, 2),
]


# kernel, stride: Winograd's algorithm, direct sums, and products over channels alone
KINDS = [(3, 1), (3, 2), (7, 2), (1, 1), (1, 2)]


def numpy_convolution(x, weight, bias, dy, relu, stride=1):
    """y, dx, dweight, dbias in float64, the gradients those of sum(y * dy)."""
    x, weight, dy = (a.astype(np.float64) for a in (x, weight, dy))
    kernel = weight.shape[2]
    pad = kernel // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = {
        (i, j): (slice(None), slice(None), slice(i, i + x.shape[2], stride), slice(j, j + x.shape[3], stride))
        for i in range(kernel)
        for j in range(kernel)
    }
    y = np.zeros(dy.shape) + bias.reshape(-1, 1, 1)
    for (i, j), window in windows.items():
        y += np.einsum("nchw,oc->nohw", padded[window], weight[:, :, i, j], optimize=True)
    if relu:
        dy = dy * (y > 0)
        y = np.maximum(y, 0)
    dx, dweight = np.zeros(padded.shape), np.zeros(weight.shape)
    for (i, j), window in windows.items():
        dweight[:, :, i, j] = np.einsum("nohw,nchw->oc", dy, padded[window], optimize=True)
        dx[window] += np.einsum("nohw,oc->nchw", dy, weight[:, :, i, j], optimize=True)
    return y, dx[:, :, pad : pad + x.shape[2], pad : pad + x.shape[3]], dweight, dy.sum((0, 2, 3))


def name(kernel, stride):
    return {(3, 1): "Conv3x3", (1, 1): "Pointwise", (1, 2): "PointwiseStride2"}.get((kernel, stride), "ConvStride2")


def all_passes(x, weight, bias, dy, relu, stride=1):
    """y, dx, dweight, dbias by the library."""
    suffix = "ReLU" if relu else ""
    kind = name(weight.shape[2], stride)
    (y,) = call(f"{kind}Forward{suffix}", [x, weight, bias], dy.shape)
    (dx,) = call(f"{kind}InputGradient{suffix}", [dy, y, weight, x], x.shape)
    return y, dx, *call(f"{kind}WeightGradient{suffix}", [dy, y, x, weight], weight.shape, bias.shape)


def make_inputs(batch, channels, filters, height, width, kernel=3, stride=1):
    r = np.random.default_rng(0)
    weight = r.standard_normal((filters, channels, kernel, kernel), np.float32) / (kernel * np.sqrt(channels))
    return (
        r.standard_normal((batch, channels, height, width), np.float32),
        weight.astype(np.float32),
        r.standard_normal(filters, np.float32),
        r.standard_normal((batch, filters, -(-height // stride), -(-width // stride)), np.float32),
    )


def assert_close(got, want):
    for a, b in zip_equal(got, want):
        scale = np.sqrt(np.mean(np.square(b))) if b.any() else 1.0
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * scale)


@functools.cache
def inputs_and_results(kernel, stride, shape, relu):
    """The same for each library, which only reads them."""
    inputs = make_inputs(*shape, kernel, stride)
    if relu:
        # The sign of an output that rounding decides would decide a whole gradient.
        y = numpy_convolution(*inputs, False, stride)[0]
        inputs[3][np.abs(y) < 1e-4] = 0
    return inputs, numpy_convolution(*inputs, relu, stride)


@each_kernel
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kernel", "stride"), KINDS)
def test_values_and_gradients(kernel, stride, shape, relu):
    inputs, wanted = inputs_and_results(kernel, stride, shape, relu)
    assert_close(all_passes(*inputs, relu, stride), wanted)


@each_kernel
@pytest.mark.parametrize(("kernel", "stride"), KINDS)
def test_no_images(kernel, stride):
    x, weight, bias, dy = make_inputs(0, 3, 4, 5, 6, kernel, stride)
    y, dx, dweight, dbias = all_passes(x, weight, bias, dy, False, stride)
    assert y.shape == dy.shape and dx.shape == x.shape
    assert not dweight.any() and not dbias.any()


def random_maps(count):
    """Batch, input and output channels, height and width."""
    r = np.random.default_rng(7)
    low, high = (2, 1, 1, 1, 1), (4, 40, 40, 24, 90)
    return [tuple(int(v) for v in r.integers(low, high, endpoint=True)) for _ in range(count)]


# Rows of tiles that a block of them ends within, in the middle of a vector and at its end, and others.
BATCHES = [(3, 20, 30, 9, 70), (2, 20, 30, 9, 72), (4, 8, 17, 9, 33), (4, 40, 50, 14, 14), (2, 270, 9, 5, 9)]
BATCHES += [(3, 6, 7, 1, 37), (2, 3, 4, 1, 150), *random_maps(6)]


@each_kernel
@pytest.mark.parametrize("shape", BATCHES, ids=str)
@pytest.mark.parametrize(("kernel", "stride"), KINDS)
def test_an_image_alone_gives_the_same_bits_as_in_a_batch(kernel, stride, shape, threads):
    x, weight, bias, dy = make_inputs(*shape, kernel, stride)
    for relu in (False, True):
        threads(1)
        y, dx, *_ = all_passes(x, weight, bias, dy, relu, stride)
        for count in (1, 2):
            threads(count)
            for i in range(len(x)):
                alone = all_passes(x[i : i + 1], weight, bias, dy[i : i + 1], relu, stride)
                np.testing.assert_array_equal(alone[0], y[i : i + 1])
                np.testing.assert_array_equal(alone[1], dx[i : i + 1])


@each_kernel
@pytest.mark.parametrize("shape", [(3, 40, 50, 14, 14), (1, 20, 33, 9, 70), (1, 5, 60, 4, 4), *random_maps(2)], ids=str)
@pytest.mark.parametrize(("kernel", "stride"), KINDS)
def test_any_number_of_threads_gives_the_same_bits(kernel, stride, shape, threads):
    inputs = make_inputs(*shape, kernel, stride)
    threads(1)
    one = all_passes(*inputs, True, stride)
    threads(2)
    for a, b in zip_equal(one, all_passes(*inputs, True, stride)):
        np.testing.assert_array_equal(a, b)


# the caches of a small core, of a large one, numbers that are none, and no cache that cores share
CACHES = ["16,128", "64,8192", "0,-1", "16,128,0"]


@each_kernel
@pytest.mark.parametrize("shape", [(2, 70, 33, 21, 37), (1, 600, 40, 9, 13)], ids=str)
@pytest.mark.parametrize(("kernel", "stride"), KINDS)
def test_any_size_of_caches_gives_the_same_bits(kernel, stride, shape, monkeypatch):
    inputs = make_inputs(*shape, kernel, stride)
    found = []
    for sizes in CACHES:
        monkeypatch.setenv("RCNN_CACHE_KIB", sizes)
        found.append(all_passes(*inputs, True, stride))
    for other in found[1:]:
        for a, b in zip_equal(found[0], other):
            np.testing.assert_array_equal(a, b)


@each_kernel
@pytest.mark.parametrize(("kernel", "stride"), KINDS)
def test_nan_is_not_hidden_by_relu(kernel, stride):
    x, weight, bias, dy = make_inputs(1, 4, 5, 8, 8, kernel, stride)
    x[0, 0, 2, 2] = np.nan
    (y,) = call(f"{name(kernel, stride)}ForwardReLU", [x, weight, bias], dy.shape)
    assert np.isnan(y[0, :, 2 // stride, 2 // stride]).all()


class Net(nn.Cell):
    """Two convolutions, the second with weights that are computed."""

    def __init__(self, kernel, stride, relu, has_bias):
        super().__init__()
        self.first = Conv2d(6, 20, kernel, stride, relu=relu, has_bias=has_bias)
        self.second = Conv2d(20, 7, 3)
        self.scale = ms.Parameter(Tensor(np.linspace(0.5, 2, 7).astype(np.float32)), name="scale")
        self.shift = ms.Parameter(Tensor(np.linspace(-1, 1, 7).astype(np.float32)), name="shift")

    def construct(self, x):
        weight = self.second.weight * ops.broadcast_to(self.scale.reshape(-1, 1, 1, 1), self.second.weight.shape)
        return self.second.convolve(self.first(x), weight, self.shift, True)


NETWORKS = [(3, 1, True, True), (3, 1, False, False), (5, 2, True, False)]
# what MindSpore makes of an operator is the same for each library: one of them, and in --full the others
CASES = [
    pytest.param(march, mode, *network, marks=() if march == MARCHES[0] and (mode == ms.GRAPH_MODE or i == 0) else LONG)
    for march in MARCHES
    for mode in (ms.GRAPH_MODE, ms.PYNATIVE_MODE)
    for i, network in enumerate(NETWORKS)
]


@each_library
@pytest.mark.parametrize(("operators", "mode", "kernel", "stride", "relu", "has_bias"), CASES, indirect=["operators"])
def test_a_network_is_what_it_is_with_standard_operators(mode, kernel, stride, relu, has_bias):
    ms.set_context(mode=mode)
    ours = Net(kernel, stride, relu, has_bias)
    with library.standard_operators():
        theirs = Net(kernel, stride, relu, has_bias)
    assert ours.first.custom and ours.second.custom and not theirs.first.custom and not theirs.second.custom
    for p, q in zip_equal(ours.get_parameters(), theirs.get_parameters()):
        assert p.name == q.name
        q.set_data(Tensor(p.asnumpy()))
    r = np.random.default_rng(1)
    size = (-(-11 // stride), -(-18 // stride))
    x, sens = (Tensor(r.standard_normal(s).astype(np.float32)) for s in ((2, 6, 11, 18), (2, 7, *size)))
    results = [passes_of(net, x, sens) for net in (ours, theirs)]
    # Both are float32: their errors add up, and a second layer passes on those of the first.
    for a, b in zip_equal(*results):
        np.testing.assert_allclose(a, b, rtol=0, atol=5 * TOLERANCE * np.sqrt(np.mean(b**2)))


@each_library
def test_a_network_takes_the_chosen_library():
    ms.set_context(mode=ms.GRAPH_MODE)
    x, weight, bias, dy = make_inputs(2, 20, 30, 9, 33)
    conv = Conv2d(20, 30, 3, relu=True)
    # x86-64-v2 can't fuse products with sums: its bits are others than those of haswell and later
    (y,) = call("Conv3x3ForwardReLU", [x, weight, bias], dy.shape)
    np.testing.assert_array_equal(conv.convolve(*map(Tensor, (x, weight, bias)), True).asnumpy(), y)


@each_library
def test_half_precision_is_left_to_mindspore():
    ms.set_context(mode=ms.GRAPH_MODE)
    conv = Conv2d(4, 5, 3, relu=True).to_float(ms.float16)
    y = conv(Tensor(np.random.default_rng(0).standard_normal((1, 4, 6, 6)).astype(np.float32)))
    assert y.dtype == ms.float16 and y.asnumpy().min() == 0 < y.asnumpy().max()


def test_only_what_the_operator_can_do_goes_to_it():
    assert not Conv2d(4, 4, 3, 3).custom and not Conv2d(4, 4, 2, 2).custom and not Conv2d(4, 4, 1, 3).custom
    assert not Conv2d(4, 4, 5).custom and not Conv2d(4, 4, 1, group=2).custom
    assert not Conv2d(4, 4, 3, group=2).custom and not Conv2d(4, 4, 3, dilation=2).custom


def test_plain_sums_round_less():
    """And no convolution is an operator of ours then."""
    r = np.random.default_rng(0)
    x = r.standard_normal((1, 256, 14, 14)).astype(np.float32)
    usual = Conv2d(256, 16, 3)
    with library.plain_sums():
        plain = Conv2d(256, 16, 3)
        assert not Conv2d(4, 4, 1).custom and not Conv2d(4, 4, 3, 2).custom
    assert usual.custom and not plain.custom and not library.plain_sums_only()
    plain.weight.set_data(Tensor(usual.weight.asnumpy()))
    patches = np.lib.stride_tricks.sliding_window_view(np.pad(x[0], ((0, 0), (1, 1), (1, 1))), (3, 3), (1, 2))
    exact = np.einsum("chwij,ocij->ohw", patches.astype(np.float64), usual.weight.asnumpy().astype(np.float64))
    errors = [np.abs(conv(Tensor(x)).asnumpy()[0] - exact).mean() for conv in (usual, plain)]
    assert 0 < errors[1] < 0.8 * errors[0]


def test_a_detector_for_export_has_standard_operators_only():
    from src.config import load_config
    from src.models.build import build_detector

    detector = build_detector(load_config("configs/shapes.yaml", {}), builtin_ops=True)
    assert not [name for name, cell in detector.cells_and_names() if getattr(cell, "custom", False)]
    assert not library.standard_operators_only()
