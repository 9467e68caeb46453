"""The C++ RPN head of all levels against plain NumPy convolutions, and what MindSpore sees of it."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.models.rpn import RPNHead
from src.ops.library import standard_operators
from src.runtime.newer import zip_equal
from tests.ops.conftest import call, passes_of
from tests.ops.test_convolution import TOLERANCE, numpy_convolution

# batch, channels, hidden channels, anchors, sizes of the levels: single cells, tiles that end beyond the map, more
# than one block of tiles in a level, more outputs than a block of a product has rows, depths of more than one part
SHAPES = [
    (1, 1, 1, 1, [(1, 1)]),
    (2, 5, 7, 3, [(9, 14), (5, 7), (3, 4)]),
    (1, 16, 33, 2, [(40, 50), (1, 3)]),
    (3, 8, 20, 9, [(2, 150), (150, 1)]),
    (1, 20, 300, 3, [(12, 17), (6, 9), (3, 5), (2, 3), (1, 2)]),
]


def make_inputs(batch, channels, hidden, anchors, sizes):
    """Maps, and the six weights and biases."""
    r = np.random.default_rng(0)
    shapes = [(batch, channels, *size) for size in sizes]
    shapes += [(hidden, channels, 3, 3), (hidden,), (anchors, hidden, 1, 1), (anchors,)]
    shapes += [(4 * anchors, hidden, 1, 1), (4 * anchors,)]
    arrays = [r.standard_normal(shape, np.float32) for shape in shapes]
    return arrays[: len(sizes)], arrays[len(sizes) :]


def output_shapes(maps, anchors):
    cells = [(len(x), x.shape[2] * x.shape[3] * anchors) for x in maps]
    return [*cells, *((*shape, 4) for shape in cells)]


def run(maps, weights):
    return call("RPNHead", [*maps, *weights], *output_shapes(maps, weights[3].size))


def numpy_head(x, weights):
    """Scores and boxes of a map in float64."""
    w, b, *rest = weights
    hidden = numpy_convolution(x, w, b, np.zeros((len(x), len(w), *x.shape[2:])), True)[0]
    for weight, bias in (rest[:2], rest[2:]):
        y = np.einsum("bchw,oc->bhwo", hidden, weight[:, :, 0, 0].astype(np.float64), optimize=True) + bias
        yield y.reshape((len(x), -1) if weight is rest[0] else (len(x), -1, 4))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers_are_those_of_three_convolutions(shape, threads):
    maps, weights = make_inputs(*shape)
    found = []
    for count in (1, 2):
        threads(count)
        found.append(run(maps, weights))
    scores, boxes = zip_equal(*(numpy_head(x, weights) for x in maps))
    for y, want in zip_equal(found[0], (*scores, *boxes)):
        np.testing.assert_allclose(y, want, rtol=0, atol=TOLERANCE * np.sqrt((want**2).mean()))
    for a, b in zip_equal(*found):
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("kernels")
def test_an_image_in_a_batch_is_as_alone():
    maps, weights = make_inputs(3, 8, 20, 3, [(10, 50), (5, 25)])
    alone = run([x[1:2] for x in maps], weights)
    for a, b in zip_equal(alone, run(maps, weights)):
        np.testing.assert_array_equal(a[0], b[1])


class Dense(nn.Cell):
    def __init__(self, head):
        super().__init__(auto_prefix=False)
        self.head = head

    def construct(self, *features):
        return self.head.dense(features)


def filled(head):
    """The head with other numbers than zeros for biases."""
    r = np.random.default_rng(1)
    for p in head.get_parameters():
        p.set_data(Tensor(r.normal(0, 0.1, p.shape).astype(np.float32)))
    return head


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("convs", [1, 2])
def test_the_dense_head_is_the_plain_one_on_any_number_of_levels(convs):
    for anchors, sizes in ((3, [(20, 30), (10, 15), (5, 8)]), (1, [(7, 9)])):
        maps = tuple(Tensor(x) for x in make_inputs(2, 12, 12, anchors, sizes)[0])
        head = filled(RPNHead(12, 16, anchors, convs))
        with standard_operators():
            plain = filled(RPNHead(12, 16, anchors, convs))
        for outputs, wants in zip_equal(Dense(head)(*maps), plain(maps)):
            for y, want in zip_equal(outputs, wants):
                assert y.shape == want.shape
                want = want.asnumpy()
                np.testing.assert_allclose(
                    y.asnumpy(), want, rtol=0, atol=TOLERANCE * max(1, np.sqrt((want**2).mean()))
                )


class Total(nn.Cell):
    def __init__(self, head, dense):
        super().__init__(auto_prefix=False)
        self.head, self.dense = head, dense

    def construct(self, x):
        logits, deltas = self.head.dense((x,)) if self.dense else self.head((x,))
        return logits[0].sum() + deltas[0].sum()


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("dense", [True, False])
def test_the_plain_head_alone_has_gradients(dense):
    x = Tensor(make_inputs(1, 8, 8, 3, [(6, 7)])[0][0])
    head = filled(RPNHead(8, 8, 3))
    _, *gradients = passes_of(Total(head, dense), x, Tensor(1.0, ms.float32))
    assert len(gradients) == 7 and all((g != 0).any() != dense for g in gradients)
