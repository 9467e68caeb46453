"""RoIAlign, both implementations, against a plain NumPy one."""

import functools
import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.ops.roi_align import MultiScaleRoIAlign
from src.runtime.newer import zip_equal

pytestmark = pytest.mark.usefixtures("operator_by_operator")

each_library = pytest.mark.usefixtures("operators")

# float32 sums of up to some 100 products of numbers around 1, in another order than the float64 reference; sampling
# positions of some 100 cells carry an error of 2^-18 cells, which the slope of the map turns into 1e-5.
TOLERANCE = 3e-5


def weights_along(start, length, out, samples, cells):
    """(out, cells) float64: what the samples of each bin take from each cell along one axis, in sum."""
    weights, step = np.zeros((out, cells)), length / out
    for place in range(out):
        for i in range(samples):
            at = start + place * step + (i + 0.5) * step / samples
            if at < -1 or at > cells:
                continue
            at = min(max(at, 0.0), cells - 1)
            low = int(at)
            weights[place, low] += 1 - (at - low)
            weights[place, min(low + 1, cells - 1)] += at - low
    return weights


def numpy_roi_align(features, rois, levels, strides, out, sampling_ratio, aligned, output_gradient):
    """The definition, axis by axis, as a sample's weights are products of both axes' and so is whether it counts: crops
    in float64, and the gradient of sum(crops * output_gradient)."""
    crops = np.zeros((len(rois), features[0].shape[1], out, out))
    gradients = [np.zeros(f.shape) for f in features]
    for k, (roi, level) in enumerate(zip_equal(rois, levels)):
        if level < 0:
            continue
        scale, shift = 1.0 / strides[level], 0.5 if aligned else 0.0
        image = int(roi[0])
        x1, y1, x2, y2 = (np.float64(v) * scale - shift for v in roi[1:])
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        grid_w = sampling_ratio or math.ceil(width / out)
        grid_h = sampling_ratio or math.ceil(height / out)
        down = weights_along(y1, height, out, grid_h, features[level].shape[2])
        across = weights_along(x1, width, out, grid_w, features[level].shape[3])
        count = max(grid_w * grid_h, 1)
        crops[k] = down @ features[level][image].astype(np.float64) @ across.T / count
        gradients[level][image] += down.T @ output_gradient[k].astype(np.float64) @ across / count
    return crops, gradients


class Weighted(nn.Cell):
    """sum(crops * weights) of the maps given one by one, so that each has a gradient."""

    def __init__(self, align, weights):
        super().__init__()
        self.align = align
        self.weights = weights

    def construct(self, rois, levels, *features):
        return (self.align(features, rois, levels) * self.weights).sum()


def run(align, features, rois, levels, weights):
    tensors = [Tensor(f) for f in features]
    rois, levels = Tensor(rois), Tensor(levels)
    crops = align(tuple(tensors), rois, levels).asnumpy()
    gradients = ops.GradOperation(get_all=True)(Weighted(align, Tensor(weights)))(rois, levels, *tensors)
    assert not gradients[0].asnumpy().any(), "RoIs have no gradient"
    return crops, [g.asnumpy() for g in gradients[-len(features) :]]


def make_case(seed, count, channels, level_count, batch=2, height=72, width=88):
    """Maps of one pyramid and RoIs of all kinds: ordinary, without area, inverted, outside, larger than the map."""
    rng = np.random.RandomState(seed)
    strides = (4, 8, 16, 32, 64)[:level_count]
    features = [rng.randn(batch, channels, -(-height // s), -(-width // s)).astype(np.float32) for s in strides]
    centre = rng.uniform((-10, -10), (width + 10, height + 10), (count, 2))
    size = rng.uniform(0, 80, (count, 2))
    rois = np.concatenate([rng.randint(0, batch, (count, 1)), centre - size / 2, centre + size / 2], 1)
    special = [
        [0, 10, 10, 10, 10],
        [0, 30, 30, 20, 24],
        [0, -500, -500, -400, -400],
        [0, 4000, 4000, 4100, 4100],
        [0, -100, -100, 300, 300],
        [0, 0, 0, width, height],
        [0, width - 1, height - 1, width, height],
        [0, 3.999, 4.001, 32.001, 31.999],
    ]
    rois[: min(count, len(special))] = special[:count]
    levels = rng.randint(-1, level_count, count)
    levels[: len(special)] = np.arange(min(count, len(special))) % level_count
    return features, rois.astype(np.float32), levels.astype(np.int32), strides


@functools.cache
def case_and_results(out, sampling_ratio, channels, level_count, aligned):
    """A case with weights of its crops, and what the definition gives; the same for each library, which reads them."""
    case = make_case(out, 24, channels, level_count)
    features, rois, levels, strides = case
    weights = np.random.RandomState(1).randn(len(rois), channels, out, out).astype(np.float32)
    results = numpy_roi_align(features, rois, levels, strides, out, sampling_ratio, aligned, weights)
    return case, weights, results


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(
    ("out", "sampling_ratio", "channels", "level_count"),
    [(7, 2, 5, 4), (7, 0, 3, 4), (14, 2, 2, 1), (3, 1, 17, 5), (5, 0, 1, 2), (1, 3, 4, 3)],
)
def test_matches_the_definition(builtin, aligned, out, sampling_ratio, channels, level_count):
    case, weights, results = case_and_results(out, sampling_ratio, channels, level_count, aligned)
    features, rois, levels, strides = case
    align = MultiScaleRoIAlign(out, sampling_ratio, aligned, strides, builtin)
    crops, gradients = run(align, features, rois, levels, weights)
    expected, expected_gradients = results
    np.testing.assert_allclose(crops, expected, atol=TOLERANCE)
    assert not crops[levels < 0].any()
    for gradient, wanted in zip_equal(gradients, expected_gradients):
        np.testing.assert_allclose(gradient, wanted, atol=TOLERANCE * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize(("stride", "aligned"), [(4, True), (4, False), (1, True), (1, False)])
def test_rois_of_the_first_pixels_are_written(builtin, stride, aligned):
    """MindSpore's own operator leaves crops of RoIs whose x1 and x2 come to 0 there as the memory was."""
    feature = np.random.RandomState(4).rand(1, 2, 16, 16).astype(np.float32)
    sides = [(x, y, w, h) for x in range(-1, 4) for y in (0, 2, 3) for w in (0, 0.03125, 1, 4) for h in (1, 9, 28)]
    rois = np.array([[0, x, y, x + w, y + h] for x, y, w, h in sides], np.float32)
    levels = np.zeros(len(rois), np.int32)
    align = MultiScaleRoIAlign(5, 2, aligned, (stride,), builtin)
    crops = []
    for fill in (99.0, -77.0):
        # what the memory held before
        used = [ops.full((len(rois), 2, 5, 5), fill, dtype=ms.float32).asnumpy() for _ in range(4)]
        del used
        crops.append(align((Tensor(feature),), Tensor(rois), Tensor(levels)).asnumpy())
    expected, _ = numpy_roi_align([feature], rois, levels, (stride,), 5, 2, aligned, np.zeros_like(crops[0]))
    np.testing.assert_array_equal(crops[0], crops[1])
    np.testing.assert_allclose(crops[0], expected, atol=TOLERANCE)


def test_mask_crops(builtin):
    """As mask targets are cropped: one map of one channel for each RoI, stride 1, adaptive sampling."""
    rng = np.random.RandomState(0)
    masks = (rng.rand(6, 1, 112, 112) > 0.5).astype(np.float32)
    low, size = rng.uniform(-60, 60, (6, 2)), rng.uniform(1, 220, (6, 2))
    rois = np.concatenate([np.arange(6)[:, None], low, low + size], 1).astype(np.float32)
    levels = np.array([0, 0, 0, -1, 0, 0], np.int32)
    weights = np.ones((6, 1, 28, 28), np.float32)
    crops, _ = run(MultiScaleRoIAlign(28, 0, True, (1,), builtin), [masks], rois, levels, weights)
    expected, _ = numpy_roi_align([masks], rois, levels, (1,), 28, 0, True, weights)
    np.testing.assert_allclose(crops, expected, atol=TOLERANCE)


def test_no_rois(builtin):
    features, _, _, strides = make_case(0, 8, 2, 2)
    align = MultiScaleRoIAlign(7, 2, True, strides, builtin)
    rois, levels = np.zeros((0, 5), np.float32), np.zeros((0,), np.int32)
    assert align(tuple(map(Tensor, features)), Tensor(rois), Tensor(levels)).shape == (0, 2, 7, 7)


def test_float16_maps(builtin):
    features, rois, levels, strides = make_case(3, 12, 4, 2)
    halves = [f.astype(np.float16) for f in features]
    align = MultiScaleRoIAlign(7, 2, True, strides, builtin)
    crops = align(tuple(map(Tensor, halves)), Tensor(rois), Tensor(levels))
    assert crops.dtype == ms.float16
    expected = align(tuple(Tensor(h.astype(np.float32)) for h in halves), Tensor(rois), Tensor(levels))
    # The same numbers, rounded once at the end: exactly equal.
    np.testing.assert_array_equal(crops.asnumpy(), expected.asnumpy().astype(np.float16))


@each_library
@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_do_not_depend_on_threads_or_run(count, threads):
    features, rois, levels, strides = make_case(5, 200, 37, 3)
    weights = np.random.RandomState(2).randn(len(rois), 37, 7, 7).astype(np.float32)
    align = MultiScaleRoIAlign(7, 2, False, strides)
    threads(1)
    crops, gradients = run(align, features, rois, levels, weights)
    threads(count)
    again, gradients_again = run(align, features, rois, levels, weights)
    # One thread owns each number and adds to it in one order: bit-identical.
    np.testing.assert_array_equal(crops, again)
    for one, other in zip_equal(gradients, gradients_again):
        np.testing.assert_array_equal(one, other)


@each_library
def test_not_finite_rois_give_zeros():
    features, rois, levels, strides = make_case(0, 8, 2, 1)
    rois[0, 1], rois[1, 4], rois[2, 3] = np.nan, np.inf, -np.inf
    for sampling_ratio in (0, 2):
        align = MultiScaleRoIAlign(7, sampling_ratio, True, strides)
        assert not align((Tensor(features[0]),), Tensor(rois), Tensor(levels)).asnumpy()[:3].any()


@each_library
@pytest.mark.parametrize(("row", "column", "value"), [("rois", 0, 2.0), ("rois", 0, -1.0), ("levels", None, 1)])
def test_bad_indices_are_errors(row, column, value):
    features, rois, levels, strides = make_case(0, 8, 2, 1)
    if row == "rois":
        rois[3, column] = value
    else:
        levels[3] = value
    align = MultiScaleRoIAlign(7, 2, True, strides)
    with pytest.raises(RuntimeError):
        align((Tensor(features[0]),), Tensor(rois), Tensor(levels)).asnumpy()


def test_trains(builtin):
    """Inside of TrainOneStepCell: the loss falls, so the gradient arrives at the layer before."""

    class Net(nn.Cell):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1, weight_init="ones")
            self.align = MultiScaleRoIAlign(3, 2, True, (1,), builtin)

        def construct(self, image, rois, levels):
            return ops.square(self.align((self.conv(image),), rois, levels) - 1.0).mean()

    net = Net()
    step = nn.TrainOneStepCell(net, nn.Momentum(net.trainable_params(), 0.2, 0.0))
    step.set_train()
    image = Tensor(np.random.RandomState(0).rand(1, 3, 16, 16).astype(np.float32))
    rois = Tensor(np.array([[0, 1, 1, 9, 9], [0, 2, 3, 12, 15]], np.float32))
    losses = [float(step(image, rois, Tensor([0, 0], ms.int32))) for _ in range(15)]
    assert losses[-1] < 0.5 * losses[0]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="1 to 5 levels"):
        MultiScaleRoIAlign(7, 2, True, ())
    with pytest.raises(ValueError, match="positive"):
        MultiScaleRoIAlign(0, 2, True, (4,))


class Twice(nn.Cell):
    """sum of two RoIAligns' weighted crops and of the maps' squares; `passing`: one after the other."""

    def __init__(self, first, second, weights, passing):
        super().__init__()
        self.first, self.second, self.weights, self.passing = first, second, weights, passing

    def construct(self, rois, levels, *features):
        if self.passing:
            a, features = self.first.passing(features, rois, levels)
        else:
            a = self.first(features[:3], rois, levels)
        b = self.second(features[:3], rois, levels)
        total = (a * self.weights).sum() + (b * self.weights).sum()
        for f in features:
            total = total + (f * f).sum()
        return total


@each_library
def test_maps_that_are_passed_on_have_the_same_gradients(operators):
    """Of four maps, of which RoIs lie on three; the other only passes."""
    check_passing(builtin=False)


class InTurn(nn.Cell):
    """sum of two RoIAligns' weighted crops, the second's of the maps that the first passes on, and of fewer."""

    def __init__(self, first, second, weights):
        super().__init__()
        self.first, self.second, self.weights = first, second, weights
        first.passed_to(second.num_levels)

    def construct(self, rois, levels, *features):
        a, features = self.first.passing(features, rois, levels)
        b = self.second(features[: self.second.num_levels], rois, ops.minimum(levels, self.second.num_levels - 1))
        return (a * self.weights).sum() + (b * self.weights).sum()


@each_library
def test_gradients_are_added_to_where_they_lie_anew_each_time(operators):
    """Also those of a map that the second doesn't read, which are a constant's zeros."""
    ms.set_context(mode=ms.GRAPH_MODE)
    r = np.random.default_rng(7)
    features = [Tensor(r.standard_normal((2, 8, 48 // 2**i, 64 // 2**i), np.float32)) for i in range(3)]
    rois = Tensor(np.array([[0, 3, 4, 30, 40], [1, 10, 10, 90, 80], [1, 0, 0, 200, 190]], np.float32))
    levels, weights = Tensor(np.array([0, 1, 2], np.int32)), Tensor(r.standard_normal((3, 8, 7, 7), np.float32))
    found = []
    for builtin in (False, True):
        first, second = (MultiScaleRoIAlign(7, 2, True, s, builtin=builtin) for s in ((4, 8, 16), (4, 8)))
        back = ops.GradOperation(get_all=True)(InTurn(first, second, weights))
        found += [[g.asnumpy() for g in back(rois, levels, *features)[2:]] for _ in range(2)]
    for once, again, plain, _ in zip_equal(*found):
        np.testing.assert_array_equal(once, again)
        np.testing.assert_allclose(once, plain, rtol=0, atol=TOLERANCE)
        assert once.any()


@each_library
def test_float16_maps_are_read_as_such_when_passed_on(operators):
    maps = [np.random.default_rng(6).standard_normal((1, 8, 16 // 2**i, 16 // 2**i)).astype(np.float16) for i in (0, 1)]
    rois, levels = np.array([[0, 3, 4, 30, 40], [0, 1, 1, 9, 9]], np.float32), np.array([0, 1], np.int32)
    align = MultiScaleRoIAlign(7, 2, True, (4, 8))
    arguments = tuple(map(Tensor, maps)), Tensor(rois), Tensor(levels)
    crops, passed = align.passing(*arguments)
    np.testing.assert_array_equal(crops.asnumpy(), align(*arguments).asnumpy())
    for ours, given in zip_equal(passed, maps):
        np.testing.assert_array_equal(ours.asnumpy(), given)


def test_maps_are_passed_on_without_the_operators_too():
    """As on Ascend and GPU, in a graph, where a method can't call its own cell."""
    check_passing(builtin=True)


def check_passing(builtin):
    ms.set_context(mode=ms.GRAPH_MODE)
    r = np.random.default_rng(5)
    features = [r.standard_normal((2, 8, 48 // 2**i, 64 // 2**i), np.float32) for i in range(4)]
    rois = np.array([[0, 3, 4, 30, 40], [1, 10, 10, 90, 80], [1, 0, 0, 200, 190], [0, 1, 1, 2, 2]], np.float32)
    levels, weights = np.array([0, 1, 2, -1], np.int32), Tensor(r.standard_normal((4, 8, 7, 7), np.float32))
    strides, found = (4, 8, 16), []
    for passing in (False, True):
        first, second = (MultiScaleRoIAlign(7, ratio, True, strides, builtin=builtin) for ratio in (2, 0))
        cell = Twice(first, second, weights, passing)
        gradients = ops.GradOperation(get_all=True)(cell)(Tensor(rois), Tensor(levels), *map(Tensor, features))
        found.append([g.asnumpy() for g in gradients[2:]])
    for a, b in zip_equal(*found):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)
        assert b.any()
