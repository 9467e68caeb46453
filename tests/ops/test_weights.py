"""What is done to weights by C++ operators, against NumPy and MindSpore's own."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from src.ops.library import standard_operators
from src.ops.weights import Copy, ScaleFilters
from src.training.update import Momentum

R = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(3, 2, 1, 1), (64, 40, 3, 3), (512, 300, 3, 3)])  # the last on several threads
def test_filters_are_scaled_and_so_is_their_gradient(operators, graph_mode, shape):
    weight, scale = R.standard_normal(shape, np.float32), R.standard_normal(shape[:1], np.float32)
    gradient, cell = R.standard_normal(shape, np.float32), ScaleFilters()
    assert cell.custom
    product = weight * scale.reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(cell(Tensor(weight), Tensor(scale)).asnumpy(), product)
    back = ops.GradOperation(get_all=True, sens_param=True)(cell)
    found = back(Tensor(weight), Tensor(scale), Tensor(gradient))
    np.testing.assert_array_equal(found[0].asnumpy(), gradient * scale.reshape(-1, 1, 1, 1))
    # sums of up to 2700 products of numbers around 1, in another order than NumPy's
    np.testing.assert_allclose(found[1].asnumpy(), (gradient * weight).sum((1, 2, 3)), rtol=1e-4, atol=1e-3)


def test_a_copy_has_the_weights_numbers_and_gradient(operators, graph_mode):
    weight, gradient = R.standard_normal((2, 5, 7), np.float32)
    cell = Copy()
    assert cell.custom
    np.testing.assert_array_equal(cell(Tensor(weight)).asnumpy(), weight)
    back = ops.GradOperation(get_all=True, sens_param=True)(cell)
    np.testing.assert_array_equal(back(Tensor(weight), Tensor(gradient))[0].asnumpy(), gradient)


class Toy(nn.Cell):
    """Weights of which one is large enough for several threads, and one isn't decayed."""

    def __init__(self):
        super().__init__()
        values = np.random.default_rng(1)
        self.large = Parameter(Tensor(values.standard_normal((1100, 1000), np.float32)), name="large")
        self.small = Parameter(Tensor(values.standard_normal(7, np.float32)), name="small")

    def construct(self, x):
        return (self.large * self.large * x).sum() + (self.small * x).sum()


def updated(group_rates):
    """The weights and moments after three steps."""
    toy, rates = Toy(), Tensor(np.array([0.1, 0.05, 0.025], np.float32))
    own = {"lr": rates} if group_rates else {}
    groups = [
        {"params": [toy.large], "weight_decay": 0.01, **own},
        {"params": [toy.small], "weight_decay": 0.0, **own},
        {"order_params": toy.trainable_params()},
    ]
    optimizer = Momentum(groups, rates, 0.9, weight_decay=0.01)
    step = nn.TrainOneStepCell(toy, optimizer)
    for _ in range(3):
        step(Tensor(0.01, ms.float32))
    return [p.asnumpy() for p in (toy.large, toy.small, *optimizer.moments)], optimizer.fused


@pytest.mark.parametrize("group_rates", [False, True])
def test_one_pass_updates_as_mindspores_momentum_does(operators, graph_mode, group_rates):
    found, fused = updated(group_rates)
    assert fused
    with standard_operators():
        expected, fused = updated(group_rates)
    assert not fused
    for a, b in zip(found, expected):
        # MindSpore's may fuse a product and a sum
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_operator_by_operator_mindspores_momentum_serves(operators, graph_mode):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    assert not updated(False)[1]
