"""The operators compiled for aarch64, emulated, against this CPU's on the same inputs, those not finite too."""

import numpy as np
import pytest

from src.ops import library
from src.runtime.newer import zip_equal
from tests.ops import test_convolution, test_depthwise, test_matching, test_products, test_rpn_head
from tests.ops.conftest import NEON, build, run_here

# of the largest number: float32 sums in another order
TOLERANCE = 1e-5
NAN, INFINITY = np.float32("nan"), np.float32("inf")


@pytest.fixture
def both(emulated):
    """both(operator, inputs, outputs' shapes and types) -> outputs here and there."""
    build("native")

    def run(name, inputs, outputs):
        found = []
        for call in (run_here, emulated.run):
            # what isn't written differs
            arrays = [np.full(shape, len(found), dtype) for shape, dtype in outputs]
            assert call(name, inputs, arrays) == 0
            found.append(arrays)
        return found

    return run


def assert_near(here, there, name):
    """Equal within the tolerance, and where they aren't finite, the same."""
    assert here.dtype == there.dtype
    if here.dtype != np.float32:
        np.testing.assert_array_equal(here, there, err_msg=name)
        return
    finite = np.isfinite(here)
    np.testing.assert_array_equal(here[~finite], there[~finite], err_msg=name)
    scale = max(np.abs(here[finite]).max(initial=0), 1)
    np.testing.assert_allclose(there[finite], here[finite], rtol=0, atol=TOLERANCE * scale, err_msg=name)


def spoil(array, every):
    """Every n-th number not finite, each kind in turn."""
    flat = array.reshape(-1)
    flat[::every] = np.resize([NAN, INFINITY, -INFINITY], len(flat[::every]))
    return array


def convolutions(bad):
    for kernel, stride in test_convolution.KINDS:
        for shape in test_convolution.SHAPES:
            x, weight, bias, dy = test_convolution.make_inputs(*shape, kernel, stride)
            y = np.random.default_rng(1).standard_normal(dy.shape, np.float32)
            if bad:
                x, dy = spoil(x, 97), spoil(dy, 89)
            kind = test_convolution.name(kernel, stride)
            for end in ("", "ReLU"):
                yield f"{kind}Forward{end}", [x, weight, bias], [dy]
                yield f"{kind}InputGradient{end}", [dy, y, weight, x], [x]
                yield f"{kind}WeightGradient{end}", [dy, y, x, weight], [weight, bias]


def products(bad):
    for kind, shape in test_products.CASES:
        x, weight, bias, dy = test_products.make_inputs(kind, shape)
        y = np.random.default_rng(1).standard_normal(dy.shape, np.float32)
        if bad:
            x, dy = spoil(x, 97), spoil(dy, 89)
        for end in ("", "ReLU"):
            yield f"{kind}Forward{end}", [x, weight, bias], [dy]
            yield f"{kind}InputGradient{end}", [dy, y, weight, x], [x]
            yield f"{kind}WeightGradient{end}", [dy, y, x, weight], [weight, bias]


def sums_and_pools(bad):
    """What a neck and a backbone have besides."""
    for batch, inputs, outputs, height, width in test_products.ENLARGED:
        half, sides = (batch, outputs, height // 2, width // 2), (batch, outputs, height, width)
        wide, filters = (batch, inputs, height, width), (outputs, inputs, 1, 1)
        x, other, weight, bias, coarse, y, dy = test_products.normal(
            wide, wide, filters, (outputs,), half, sides, sides
        )
        if bad:
            x, coarse, dy = spoil(x, 97), spoil(coarse, 13), spoil(dy, 89)
        yield "PointwiseForwardEnlarged", [x, weight, bias, coarse], [dy]
        yield "SumOfFour", [dy], [coarse]
        yield "PointwiseInputGradientPassedReLU", [dy, y, weight, x, other], [x]
        for name in ("MaxPool3x3", "MaxPool3x3Same"):
            pooled = np.zeros((batch, inputs, (height + 1) // 2, (width + 1) // 2), np.float32)
            yield name, [x], [pooled]
            gradient = np.random.default_rng(1).standard_normal(pooled.shape, np.float32)
            yield f"{name}Gradient", [gradient, x], [x]


def rpn_head(bad):
    for shape in test_rpn_head.SHAPES:
        maps, weights = test_rpn_head.make_inputs(*shape)
        if bad:
            maps = [spoil(x, 97) for x in maps]
        yield (
            "RPNHead",
            [*maps, *weights],
            [np.zeros(s, np.float32) for s in test_rpn_head.output_shapes(maps, shape[3])],
        )


def depthwise(bad):
    for kernel, stride, same in test_depthwise.KINDS:
        for shape in test_depthwise.SHAPES:
            x, weight, bias, dy = test_depthwise.make_inputs(*shape, kernel, stride)
            y = 4 * np.random.default_rng(1).standard_normal(dy.shape, np.float32)
            if bad:
                x, dy = spoil(x, 97), spoil(dy, 89)
            kind = "DepthwiseSameStride2" if same else "DepthwiseStride2" if stride == 2 else "Depthwise"
            for end in test_depthwise.ACTIVATIONS:
                yield f"{kind}Forward{end}", [x, weight, bias], [dy]
                yield f"{kind}Gradients{end}", [dy, y, x, weight], [x, weight, bias]


def boxes_of(r, count, extent):
    """(count, 4), some empty, some turned inside out."""
    low = r.uniform(-10, extent, (count, 2))
    return np.concatenate([low, low + r.uniform(-2, extent / 2, (count, 2))], 1).astype(np.float32)


def roi_align(bad):
    r = np.random.default_rng(2)
    odd = [[0, 0, 0, 0], [-1e9, -1e9, 1e9, 1e9], [1e30, 1e30, 2e30, 2e30], [5, 5, 1, 1], [0, 0, 1e6, 3]]
    odd += [[0, 0, 8, 8], [-4, -4, 60, 44], [55.5, 39.5, 56, 40], [NAN, 0, 1, 1], [0, 0, INFINITY, 1]]
    for batch, channels, height, width, levels, size in [
        *((2, 3, 40, 56, 4, 7), (1, 33, 64, 80, 1, 14), (3, 1, 5, 3, 5, 3)),
        *((1, 2, 1, 1, 1, 1), (2, 1, 28, 28, 1, 28), (1, 4, 16, 17, 2, 17)),
    ]:
        for sampling, aligned in ((0, True), (2, False)):
            rois = np.concatenate([np.array(odd, np.float32), boxes_of(r, 30, width * 4)])
            images = r.integers(0, batch, len(rois)).astype(np.float32)
            shapes = [
                (batch, channels, max(1, height >> k), max(1, width >> k)) if k < levels else (1,) * 4 for k in range(5)
            ]
            maps = [r.standard_normal(shape, np.float32) for shape in shapes]
            if bad:
                maps[0] = spoil(maps[0], 53)
            config = np.tile(np.float32([sampling, aligned, levels, 4, 8, 16, 32, 64]), (size, 1))
            which = r.integers(-1, levels, len(rois)).astype(np.int32)
            given = [np.concatenate([images[:, None], rois], 1), which, config]
            crops = r.standard_normal((len(rois), channels, size, size), np.float32)
            yield "RoIAlignForward", [*maps, *given], [crops]
            yield "RoIAlignBackward", [spoil(crops, 61) if bad else crops, *maps, *given], maps


def suppression(bad):
    r = np.random.default_rng(3)
    for batch, count, most, groups in [(3, 500, 100, 5), (1, 40, 64, 1), (2, 0, 3, 1), (1, 1500, 1500, 2)]:
        boxes = np.stack([boxes_of(r, count, 100) for _ in range(batch)])
        # equal scores too
        scores = (r.integers(0, 50, (batch, count)) / 50).astype(np.float32)
        if bad:
            boxes, scores = spoil(boxes, 13), spoil(scores, 17)
        group, valid = r.integers(-1, groups, (batch, count)).astype(np.int32), r.random((batch, count)) > 0.1
        inputs = [boxes, scores, group, valid, np.full(most, 0.5, np.float32)]
        yield "BatchedNMS", inputs, [np.zeros((batch, most), np.int32), np.zeros((batch, most), bool)]


def matching(bad):
    for count, gts in [(2500, 20), (1024, 3), (7, 1), (1, 40), (1030, 0)]:
        for shared in (False, True):
            boxes, *rest = test_matching.make_case(count, count, gts, shared, True)
            if bad:
                boxes, rest[1] = spoil(boxes, 31), spoil(rest[1], 23)
            floats, integers = np.zeros((2, count), np.float32), np.zeros((2, count), np.int32)
            yield "MaxIoUMatch", [boxes, *rest, np.float32([0.3])], [floats, integers, integers, floats]


KERNELS = {
    f.__name__: f
    for f in (convolutions, products, sums_and_pools, rpn_head, depthwise, roi_align, suppression, matching)
}


def compare(both, kernel, bad):
    for name, inputs, outputs in KERNELS[kernel](bad):
        here, there = both(name, inputs, [(a.shape, a.dtype) for a in outputs])
        for a, b in zip_equal(here, there):
            assert_near(a, b, f"{name} {[i.shape for i in inputs]}")


@pytest.mark.full
@pytest.mark.parametrize("bad", [False, True], ids=["finite", "not finite"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_results_are_those_of_this_cpu(kernel, bad, both):
    compare(both, kernel, bad)


def test_those_that_are_built_already(request):
    """Building takes minutes, which the long tests have."""
    if not library.library_path(NEON).is_file():
        pytest.skip("the operators for aarch64 aren't built: bash scripts/build_custom.sh --march armv8-a")
    for kernel in ("suppression", "matching"):
        compare(request.getfixturevalue("both"), kernel, True)
