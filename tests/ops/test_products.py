"""The C++ dense layer, the transposed convolution and what 1x1 convolutions have of their own (sums, ReLU6) against
plain NumPy ones, and what MindSpore sees of them. Their other tests are test_convolution.py's.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.ops.conv import Conv2d
from src.ops.dense import Dense, TransposedConv2d
from src.ops.library import standard_operators
from src.runtime.newer import zip_equal
from tests.ops.conftest import MARCHES, call, passes_of

each_library = pytest.mark.usefixtures("operators")
each_kernel = pytest.mark.usefixtures("kernels")

# Of the result's root mean square: sums of some hundred products in float32, whose errors were at most 2e-6. A wrong
# term is of order 1.
TOLERANCE = 2e-5

# rows, inputs, outputs: single numbers, below and above a block's rows and columns, deeper than a part of a sum
ROWS = [(1, 1, 1), (7, 9, 5), (33, 40, 81), (70, 600, 33), (3, 300, 200), (130, 31, 64)]
# batch, inputs, outputs, height, width
MAPS = [(1, 1, 1, 1, 1), (2, 5, 3, 7, 9), (5, 40, 20, 14, 14), (1, 300, 8, 3, 40), (2, 9, 33, 1, 50)]


def normal(*shapes):
    r = np.random.default_rng(0)
    return [r.standard_normal(shape, np.float32) for shape in shapes]


def numpy_dense(x, weight, bias, dy, relu):
    """y, dx, dweight, dbias in float64, the gradients those of sum(y * dy)."""
    x, weight, dy = (a.astype(np.float64) for a in (x, weight, dy))
    y = x @ weight.T + bias
    if relu:
        dy, y = dy * (y > 0), np.maximum(y, 0)
    return y, dy @ weight, dy.T @ x, dy.sum(0)


def numpy_transposed(x, weight, bias, dy, relu):
    """As numpy_dense, of maps."""
    x, weight, dy = (a.astype(np.float64) for a in (x, weight, dy))
    b, o, height, width = dy.shape
    y = np.einsum("bchw,coij->bohiwj", x, weight, optimize=True).reshape(dy.shape) + bias.reshape(-1, 1, 1)
    if relu:
        dy, y = dy * (y > 0), np.maximum(y, 0)
    blocks = dy.reshape(b, o, height // 2, 2, width // 2, 2)
    dx = np.einsum("bohiwj,coij->bchw", blocks, weight, optimize=True)
    dweight = np.einsum("bchw,bohiwj->coij", x, blocks, optimize=True)
    return y, dx, dweight, dy.sum((0, 2, 3))


def make_inputs(kind, shape):
    """x, weight, bias, dy."""
    if kind == "Dense":
        rows, inputs, outputs = shape
        return normal((rows, inputs), (outputs, inputs), (outputs,), (rows, outputs))
    batch, inputs, outputs, height, width = shape
    sides = (batch, outputs, 2 * height, 2 * width)
    return normal((batch, inputs, height, width), (inputs, outputs, 2, 2), (outputs,), sides)


def all_passes(kind, x, weight, bias, dy, relu):
    suffix = "ReLU" if relu else ""
    (y,) = call(f"{kind}Forward{suffix}", [x, weight, bias], dy.shape)
    (dx,) = call(f"{kind}InputGradient{suffix}", [dy, y, weight, x], x.shape)
    return y, dx, *call(f"{kind}WeightGradient{suffix}", [dy, y, x, weight], weight.shape, bias.shape)


def assert_close(got, want):
    for a, b in zip_equal(got, want):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * max(np.sqrt(np.mean(np.square(b))), 1.0))


REFERENCE = {"Dense": numpy_dense, "TransposedByTwo": numpy_transposed}
CASES = [("Dense", s) for s in ROWS] + [("TransposedByTwo", s) for s in MAPS]


@each_kernel
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("kind", "shape"), CASES, ids=str)
def test_values_and_gradients(kind, shape, relu, threads):
    inputs = make_inputs(kind, shape)
    # the sign of an output that rounding decides would decide a whole gradient
    inputs[3][np.abs(REFERENCE[kind](*inputs, False)[0]) < 1e-3] = 0
    threads(1)
    one = all_passes(kind, *inputs, relu)
    assert_close(one, REFERENCE[kind](*inputs, relu))
    threads(2)
    for a, b in zip_equal(one, all_passes(kind, *inputs, relu)):
        np.testing.assert_array_equal(a, b)


@each_kernel
@pytest.mark.parametrize(("kind", "shape"), [CASES[3], CASES[5], CASES[8]], ids=str)
def test_a_row_alone_gives_the_same_bits_as_among_others(kind, shape):
    x, weight, bias, dy = make_inputs(kind, shape)
    y, dx, *_ = all_passes(kind, x, weight, bias, dy, True)
    for i in (0, len(x) - 1):
        alone = all_passes(kind, x[i : i + 1], weight, bias, dy[i : i + 1], True)
        np.testing.assert_array_equal(alone[0], y[i : i + 1])
        np.testing.assert_array_equal(alone[1], dx[i : i + 1])


# heads see batches of a fixed size: their ends are copies of one RoI of zeros, and without gradients
PADDED = {
    "Conv3x3": ((6, 20, 9, 14), (30, 20, 3, 3), (6, 30, 9, 14)),
    "TransposedByTwo": ((6, 20, 7, 9), (20, 30, 2, 2), (6, 30, 14, 18)),
    "Dense": ((6, 300), (33, 300), (6, 33)),
}


@each_kernel
@pytest.mark.parametrize("used", [0, 1, 4])
@pytest.mark.parametrize("kind", PADDED)
def test_what_fills_a_batch_changes_nothing(kind, used):
    sides, filters, out = PADDED[kind]
    x, weight, bias, dy = normal(sides, filters, out[1:2], out)
    x[used:], dy[used:] = 0, 0
    y, dx, dweight, dbias = all_passes(kind, x, weight, bias, dy, True)
    for i in range(6):
        alone = all_passes(kind, x[i : i + 1], weight, bias, dy[i : i + 1], True)
        np.testing.assert_array_equal(y[i : i + 1], alone[0])
        np.testing.assert_array_equal(dx[i : i + 1], alone[1])
    assert not dx[used:].any()
    some = all_passes(kind, x[:used], weight, bias, dy[:used], True)
    assert_close([dweight, dbias], some[2:])


@each_kernel
@pytest.mark.parametrize("shape", [(2, 40, 50, 9, 13), (1, 300, 20, 5, 40)], ids=str)
def test_a_1x1_convolution_adds_a_map_and_cuts_at_six(shape):
    batch, inputs, outputs, height, width = shape
    sides = (batch, outputs, height, width)
    x, weight, bias, other, dy = normal(
        (batch, inputs, height, width), (outputs, inputs, 1, 1), (outputs,), sides, sides
    )
    plain = np.einsum("bchw,oc->bohw", x.astype(np.float64), weight[:, :, 0, 0]) + bias.reshape(-1, 1, 1)
    for name, bottom in (("PointwiseForwardSum", -np.inf), ("PointwiseForwardSumReLU", 0)):
        (y,) = call(name, [x, weight, bias, other], sides)
        assert_close([y], [np.maximum(plain + other, bottom)])
    (y,) = call("PointwiseForwardReLU6", [x, weight, bias], sides)
    assert_close([y], [np.clip(plain, 0, 6)])
    assert (y == 0).any() and (y == 6).any()
    # by the output, as the operators are called
    passed = dy * ((y > 0) & (y < 6)).astype(np.float64)
    (dx,) = call("PointwiseInputGradientReLU6", [dy, y, weight, x], x.shape)
    found = call("PointwiseWeightGradientReLU6", [dy, y, x, weight], weight.shape, bias.shape)
    assert_close([dx], [np.einsum("bohw,oc->bchw", passed, weight[:, :, 0, 0])])
    assert_close(found, [np.einsum("bohw,bchw->oc", passed, x)[..., None, None], passed.sum((0, 2, 3))])


@each_kernel
@pytest.mark.parametrize("shape", [(2, 40, 50, 9, 13), (1, 30, 300, 5, 40), (1, 3, 2, 1, 1)], ids=str)
def test_a_1x1_convolution_adds_up_the_gradients_of_its_input(shape, threads):
    batch, inputs, outputs, height, width = shape
    wide, sides = (batch, inputs, height, width), (batch, outputs, height, width)
    dy, y, weight, x, other = normal(sides, sides, (outputs, inputs, 1, 1), wide, wide)
    x = np.maximum(x, 0)
    own = np.einsum("bohw,oc->bchw", dy * (y > 0).astype(np.float64), weight[:, :, 0, 0])
    found = []
    for count in (1, 2):
        threads(count)
        found.append(call("PointwiseInputGradientPassedReLU", [dy, y, weight, x, other], wide)[0])
    assert_close([found[0]], [(own + other) * (x > 0)])
    np.testing.assert_array_equal(*found)


@each_kernel
# the last: of the kernels that stand apart for the last rows and columns, and maps that no vector begins with
@pytest.mark.parametrize("shape", [(2, 40, 50, 8, 16), (1, 70, 33, 4, 20), (1, 30, 20, 3, 7)], ids=str)
def test_maps_larger_than_the_caches_are_the_same(shape, threads, monkeypatch):
    batch, inputs, outputs, height, width = shape
    sides = (batch, outputs, height, width)
    x, weight, bias, other = normal((batch, inputs, height, width), (outputs, inputs, 1, 1), (outputs,), sides)
    found = []
    for caches in ("32,512,32768", "32,512,0"):
        monkeypatch.setenv("RCNN_CACHE_KIB", caches)
        for count in (1, 2):
            threads(count)
            (plain,) = call("PointwiseForwardReLU", [x, weight, bias], sides)
            (dx,) = call("PointwiseInputGradientReLU", [plain, plain, weight, x], x.shape)
            found.append([plain, *call("PointwiseForwardSum", [x, weight, bias, other], sides), dx])
    for more in found[1:]:
        for a, b in zip_equal(found[0], more):
            np.testing.assert_array_equal(a, b)


# maps narrower than a block of columns, rows that one ends within, and more columns than a task has
ENLARGED = [(2, 40, 50, 6, 10), (1, 300, 20, 4, 40), (1, 3, 33, 2, 2), (2, 20, 17, 18, 66)]


@each_kernel
@pytest.mark.parametrize("shape", ENLARGED, ids=str)
def test_a_1x1_convolution_adds_a_map_half_as_large(shape, threads):
    batch, inputs, outputs, height, width = shape
    half, sides = (batch, outputs, height // 2, width // 2), (batch, outputs, height, width)
    x, weight, bias, coarse, dy = normal(
        (batch, inputs, height, width), (outputs, inputs, 1, 1), (outputs,), half, sides
    )
    copies = np.kron(coarse, np.ones((2, 2), np.float32))
    want = np.einsum("bchw,oc->bohw", x.astype(np.float64), weight[:, :, 0, 0]) + bias.reshape(-1, 1, 1) + copies
    found = []
    for count in (1, 2):
        threads(count)
        found.append(call("PointwiseForwardEnlarged", [x, weight, bias, coarse], sides) + call("SumOfFour", [dy], half))
    assert_close(found[0], [want, dy.reshape(*half[:2], height // 2, 2, width // 2, 2).sum((3, 5))])
    for a, b in zip_equal(*found):
        np.testing.assert_array_equal(a, b)


@each_kernel
def test_what_is_not_finite_is_what_float32_sums_are():
    """An infinity stays one where it isn't met by a zero or its opposite, and touches its own row and pixel alone."""
    x, weight, bias, dy = make_inputs("Dense", (40, 70, 50))
    x[3, 5], x[10, 0], x[20, 7] = np.inf, np.nan, -np.inf
    weight[1, 5], weight[:, 7] = 0, np.abs(weight[:, 7])
    with np.errstate(invalid="ignore"):
        wanted = numpy_dense(x, weight, bias, dy, False)[0]
    (y,) = call("DenseForward", [x, weight, bias], dy.shape)
    assert np.isnan(wanted[3, 1]) and np.isposinf(wanted[3]).any() and np.isneginf(wanted[20]).all()
    np.testing.assert_array_equal(y[~np.isfinite(wanted)], wanted[~np.isfinite(wanted)])
    assert_close([y[np.isfinite(wanted)]], [wanted[np.isfinite(wanted)]])
    (rectified,) = call("DenseForwardReLU", [x, weight, bias], dy.shape)
    assert np.isnan(rectified[10]).all() and not rectified[20].any()
    maps, filters, shift, other = normal((2, 40, 5, 9), (33, 40, 1, 1), (33,), (2, 33, 5, 9))
    maps[1, 3, 2, 4], other[0, 7, 1, 1] = np.inf, np.nan
    (y,) = call("PointwiseForwardSum", [maps, filters, shift, other], other.shape)
    bad = np.zeros(y.shape, bool)
    bad[1, :, 2, 4] = bad[0, 7, 1, 1] = True
    np.testing.assert_array_equal(~np.isfinite(y), bad)
    np.testing.assert_array_equal(y[1, :, 2, 4], np.copysign(np.inf, filters[:, 3, 0, 0]))


class Net(nn.Cell):
    """A bottleneck's end, a transposed convolution and dense layers."""

    def __init__(self):
        super().__init__()
        self.first, self.last = Conv2d(6, 20, 1, relu=True, has_bias=True), Conv2d(20, 6, 1)
        self.shift = ms.Parameter(Tensor(np.linspace(-1, 1, 6).astype(np.float32)), name="shift")
        self.upsample = TransposedConv2d(6, 7, relu=True, bias_init="normal")
        self.fc, self.cls = Dense(7 * 48, 30, relu=True, bias_init="normal"), Dense(30, 5, has_bias=False)

    def construct(self, x):
        x = self.last.residual(self.first(x), self.last.weight, self.shift, x)
        return self.cls(self.fc(self.upsample(x).reshape(-1, 7 * 48)))


@each_library
@pytest.mark.parametrize(
    ("operators", "mode"),
    [
        pytest.param(m, mode, marks=() if (i, mode) == (0, ms.GRAPH_MODE) else pytest.mark.full)
        for i, m in enumerate(MARCHES)
        for mode in (ms.GRAPH_MODE, ms.PYNATIVE_MODE)
    ],
    indirect=["operators"],
)
def test_a_network_is_what_it_is_with_standard_operators(mode):
    ms.set_context(mode=mode)
    ours = Net()
    with standard_operators():
        theirs = Net()
    for name in ("first", "last", "upsample", "fc", "cls"):
        assert getattr(ours, name).custom and not getattr(theirs, name).custom
    for p, q in zip_equal(ours.get_parameters(), theirs.get_parameters()):
        assert p.name == q.name
        q.set_data(Tensor(p.asnumpy()))
    x, sens = (Tensor(a) for a in normal((3, 6, 3, 4), (3, 5)))
    for a, b in zip_equal(*[passes_of(net, x, sens) for net in (ours, theirs)]):
        # both are float32: errors of one layer are passed on by the next
        np.testing.assert_allclose(a, b, rtol=0, atol=5 * TOLERANCE * np.sqrt(np.mean(b**2)))


@each_library
def test_half_precision_and_more_dimensions_are_left_to_mindspore():
    ms.set_context(mode=ms.GRAPH_MODE)
    (x,) = normal((2, 3, 8))
    layer = Dense(8, 4, relu=True)
    y = layer(Tensor(x)).asnumpy()
    np.testing.assert_allclose(y.reshape(6, 4), layer(Tensor(x.reshape(6, 8))).asnumpy(), rtol=0, atol=1e-5)
    half = Dense(8, 4, relu=True).to_float(ms.float16)
    assert half(Tensor(x[0])).dtype == ms.float16
    up = TransposedConv2d(8, 4, relu=True).to_float(ms.float16)
    assert up(ops.ones((1, 8, 2, 2))).dtype == ms.float16
