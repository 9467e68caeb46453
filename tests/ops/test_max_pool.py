"""The C++ max pool against a plain NumPy one, and what MindSpore sees of it."""

import numpy as np
import pytest
from mindspore import Tensor

from src.ops.library import standard_operators
from src.ops.max_pool import StemPool
from tests.ops.conftest import call, passes_of


def numpy_pool(x, dy, before):
    """y and dx; each window's first largest number has its gradient."""
    batch, channels, height, width = x.shape
    y, dx = np.empty_like(dy), np.zeros_like(x)
    for i, j in np.ndindex(dy.shape[2:]):
        rows, columns = (slice(max(2 * k - before, 0), 2 * k - before + 3) for k in (i, j))
        window = x[:, :, rows, columns].reshape(batch, channels, -1)
        y[:, :, i, j] = window.max(-1)
        first = window.argmax(-1)
        wide = x[:, :, rows, columns].shape[3]
        n, c = np.indices((batch, channels))
        np.add.at(dx, (n, c, rows.start + first // wide, columns.start + first % wide), dy[:, :, i, j])
    return y, dx


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("name", "before"), [("MaxPool3x3", 1), ("MaxPool3x3Same", 0)])
@pytest.mark.parametrize("shape", [(2, 3, 2, 2), (1, 5, 6, 70), (3, 7, 22, 46), (1, 1, 8, 34)], ids=str)
def test_values_and_gradients(name, before, shape, threads):
    r = np.random.default_rng(0)
    # some numbers equal, some negative
    x = r.integers(-4, 20, shape).astype(np.float32)
    dy = r.standard_normal((*shape[:2], shape[2] // 2, shape[3] // 2), np.float32)
    want = numpy_pool(x, dy, before)
    for count in (1, 2):
        threads(count)
        np.testing.assert_array_equal(call(name, [x], dy.shape)[0], want[0])
        (dx,) = call(f"{name}Gradient", [dy, x], x.shape)
        # sums of up to four numbers in another order
        np.testing.assert_allclose(dx, want[1], atol=1e-6)


@pytest.mark.usefixtures("kernels")
def test_what_is_no_number_stays():
    x = np.ones((1, 1, 4, 64), np.float32)
    x[0, 0, 1, 7] = np.nan
    (y,) = call("MaxPool3x3", [x], (1, 1, 2, 32))
    assert np.argwhere(np.isnan(y)).tolist() == [[0, 0, 0, 3], [0, 0, 0, 4], [0, 0, 1, 3], [0, 0, 1, 4]]


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("same_padding", [False, True])
def test_a_stems_pool_is_mindspores(same_padding):
    r = np.random.default_rng(1)
    x, sens = r.standard_normal((2, 3, 12, 20), np.float32), Tensor(r.standard_normal((2, 3, 6, 10), np.float32))
    with standard_operators():
        plain = StemPool(same_padding)
    custom = StemPool(same_padding)
    assert custom.custom and not plain.custom
    got, want = (passes_of(pool, Tensor(np.maximum(x, 0)), sens) for pool in (custom, plain))
    np.testing.assert_array_equal(got[0], want[0])
    # what lies at zeros goes no further than ReLU
    np.testing.assert_allclose(got[1] * (x > 0), want[1] * (x > 0), atol=1e-6)
