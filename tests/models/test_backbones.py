"""Backbones: shapes, sizes, what is frozen, and folding."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.config import load_config
from src.models.backbones.mobilenet_v1 import MobileNetV1
from src.models.backbones.resnet import Bottleneck, ResNet, StemPool
from src.models.build import build_detector
from src.models.fpn import UpsampleAdd
from src.models.norms import NormMaker
from src.ops.conv import Conv2d
from src.ops.library import standard_operators
from src.runtime.newer import zip_equal
from tests.ops.conftest import passes_of

pytestmark = pytest.mark.usefixtures("operator_by_operator")

IMAGE = np.random.default_rng(0).standard_normal((1, 3, 64, 96)).astype(np.float32)


def weights(cell: nn.Cell, with_norms: bool = True) -> int:
    """Parameters as PyTorch counts them: without running statistics."""
    left_out = ("moving_mean", "moving_variance") + (() if with_norms else (".gamma", ".beta"))
    return sum(p.size for p in cell.get_parameters() if not p.name.endswith(left_out))


def randomise_norms(cell: nn.Cell) -> None:
    r = np.random.default_rng(1)
    for p in cell.get_parameters():
        if p.name.endswith(("gamma", "moving_variance")):
            p.set_data(Tensor(r.uniform(0.5, 1.5, p.shape).astype(np.float32)))
        elif p.name.endswith(("beta", "moving_mean")):
            p.set_data(Tensor(r.normal(0, 0.1, p.shape).astype(np.float32)))


@pytest.mark.parametrize(("depth", "count"), [(50, 23_508_032), (101, 42_500_160), (152, 58_143_808)])
def test_resnet_has_the_published_number_of_weights(depth, count):
    """torchvision's resnet50/101/152 without their classifier of 2,049,000."""
    assert weights(ResNet(depth)) == count


def test_mask_rcnn_has_the_published_number_of_weights():
    """torchvision's maskrcnn_resnet50_fpn with 91 classes, whose frozen batch norms aren't counted."""
    names = ["background", *(f"class {i}" for i in range(90))]
    config = load_config("configs/mask_rcnn_r50_fpn.yaml", {"num_classes": 91, "coco_classes": names})
    assert weights(build_detector(config), with_norms=False) == 44_401_393


@pytest.mark.parametrize(
    ("backbone", "channels"),
    [
        (lambda: ResNet(50), [256, 512, 1024, 2048]),
        (lambda: ResNet(50, stride_in_1x1=True), [256, 512, 1024, 2048]),
        (lambda: MobileNetV1(), [128, 256, 512, 1024]),
        (lambda: MobileNetV1(0.25), [32, 64, 128, 256]),
    ],
)
def test_outputs_have_strides_4_to_32(backbone, channels):
    shapes = [f.shape for f in backbone().set_train(False)(Tensor(IMAGE))]
    assert shapes == [(1, c, 16 // 2**i, 24 // 2**i) for i, c in enumerate(channels)]


def test_v1_and_v15_differ_only_in_where_they_stride():
    """The same weights, other results: v1 skips pixels before its 3x3 convolutions, v1.5 in them."""
    v15, v1 = ResNet(50), ResNet(50, stride_in_1x1=True)
    ms.load_param_into_net(v1, {p.name: p for p in v15.get_parameters()})
    a, b = v15.set_train(False)(Tensor(IMAGE)), v1.set_train(False)(Tensor(IMAGE))
    np.testing.assert_allclose(a[0].asnumpy(), b[0].asnumpy(), rtol=1e-5, atol=1e-5)
    assert not np.allclose(a[1].asnumpy(), b[1].asnumpy(), rtol=1e-2)


@pytest.mark.parametrize("make", [lambda **k: ResNet(50, **k), lambda **k: MobileNetV1(0.25, **k)])
def test_folded_norms_give_what_norms_give(make):
    apart, folded = make(norm_grad=True).set_train(), make(norm_grad=False).set_train()
    randomise_norms(apart)
    ms.load_param_into_net(folded, {p.name: p for p in apart.get_parameters()})
    for a, b in zip_equal(apart(Tensor(IMAGE)), folded(Tensor(IMAGE))):
        a, b = a.asnumpy(), b.asnumpy()
        # weights are scaled before the sum instead of after it
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)


@pytest.mark.parametrize("make", [lambda **k: ResNet(50, **k), lambda **k: MobileNetV1(0.25, **k)])
def test_frozen_stages_do_not_train(make):
    trained = {p.name.split(".")[0] for p in make(frozen_stages=2).trainable_params()}
    assert trained == {"layer3", "layer4"}
    assert len(make(frozen_stages=-1).trainable_params()) > len(make(frozen_stages=0).trainable_params())


def test_training_norms_follow_the_batch_and_keep_running_statistics():
    net = MobileNetV1(0.25, norm_eval=False).set_train()
    before = net.bn1.moving_mean.asnumpy().copy()
    net(Tensor(IMAGE + 3))
    assert not np.array_equal(before, net.bn1.moving_mean.asnumpy())
    still = MobileNetV1(0.25, norm_eval=True).set_train()
    still(Tensor(IMAGE + 3))
    np.testing.assert_array_equal(before, still.bn1.moving_mean.asnumpy())


class ZooMobileNet(nn.Cell):
    """MindSpore's own layers as the model zoo joined them: padding mode `same`, batch norm, ReLU6."""

    def __init__(self):
        super().__init__()
        plan, channels = [(3, 32, 3, 2, 1)], 32
        for out, stride in (
            [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)] + [(512, 1)] * 5 + [(1024, 2), (1024, 1)]
        ):
            plan += [(channels, channels, 3, stride, channels), (channels, out, 1, 1, 1)]
            channels = out
        self.convs = nn.CellList([nn.Conv2d(i, o, k, s, pad_mode="same", group=g) for i, o, k, s, g in plan])
        self.norms = nn.CellList([nn.BatchNorm2d(o) for _, o, _, _, _ in plan])
        self.act = nn.ReLU6()

    def construct(self, x):
        outputs = ()
        for i in range(len(self.convs)):
            x = self.act(self.norms[i](self.convs[i](x)))
            if i in (6, 10, 22, 26):
                outputs += (x,)
        return outputs


def test_mobilenet_in_the_zoos_form_is_the_zoos():
    ours, theirs = MobileNetV1(same_padding=True, relu6=True), ZooMobileNet().set_train(False)
    randomise_norms(ours)
    by_kind = [{}, {}]
    for found, net in zip_equal(by_kind, (ours, theirs)):
        for p in net.get_parameters():
            found.setdefault("weight" if len(p.shape) == 4 else p.name.rpartition(".")[2], []).append(p)
    for kind, params in by_kind[0].items():
        for p, q in zip_equal(params, by_kind[1][kind]):
            # activations grow beyond 6, or ReLU6 would go unnoticed
            p.set_data(Tensor(p.asnumpy() * (2 if kind == "gamma" else 1)))
            q.set_data(Tensor(p.asnumpy()))
    want = [f.asnumpy() for f in theirs(Tensor(IMAGE))]
    assert want[0].max() == 6
    for training in (False, True):
        got = ours.set_train(training)(Tensor(IMAGE))
        for a, b in zip_equal(got, want):
            # float32 through 27 layers, each of which doubles what it gets
            assert np.linalg.norm(a.asnumpy() - b) < 1e-3 * np.linalg.norm(b)


def test_stem_pool_of_mode_same_is_mindspores():
    x = Tensor(np.random.default_rng(2).uniform(0, 1, (2, 3, 8, 12)).astype(np.float32))
    want = nn.MaxPool2d(3, 2, pad_mode="same")(x).asnumpy()
    assert np.array_equal(StemPool(same_padding=True)(x).asnumpy(), want)
    assert not np.array_equal(StemPool()(x).asnumpy(), want)


def test_bilinear_top_down_path_is_mindspores_resize_bilinear():
    r = np.random.default_rng(3)
    fine, coarse = (Tensor(r.standard_normal((2, 4, *s)).astype(np.float32)) for s in ((6, 10), (3, 5)))
    want = ops.ResizeBilinearV2(False, False)(coarse, (6, 10)).asnumpy() + fine.asnumpy()
    got = UpsampleAdd(4, bilinear=True)(fine, coarse).asnumpy()
    # sums of two and of four numbers, in float32
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    assert np.abs(UpsampleAdd(4)(fine, coarse).asnumpy() - want).max() > 0.1


@pytest.mark.parametrize(("factor", "bilinear"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("for_export", [False, True])
def test_both_ways_of_copying_cells_give_the_same_numbers(factor, bilinear, for_export):
    """numpy's copies and sums; of the gradient, too. Whole numbers, whose sums and halves float32 holds exactly."""
    r = np.random.default_rng(4)
    height, width = 3, 5
    coarse = r.integers(-8, 8, (2, 4, height, width)).astype(np.float32)
    fine, sens = (r.integers(-8, 8, (2, 4, factor * height, factor * width)).astype(np.float32) for _ in range(2))
    with standard_operators(for_export):
        cell = UpsampleAdd(4, bilinear, factor)
    assert cell.by_convolution != for_export
    copies = np.kron(coarse, np.ones((factor, factor), np.float32))
    back = sens
    if bilinear:
        # each row and column, and the mean of itself and the next, the last of which is itself
        rows, columns = (mean_with_next(factor * n) for n in (height, width))
        copies, back = rows @ copies @ columns.T, rows.T @ sens @ columns
    back = back.reshape(2, 4, height, factor, width, factor).sum((3, 5))
    inputs = Tensor(fine), Tensor(coarse)
    np.testing.assert_array_equal(cell(*inputs).asnumpy(), fine + copies)
    got = ops.GradOperation(get_all=True, sens_param=True)(cell)(*inputs, Tensor(sens))
    np.testing.assert_array_equal(got[0].asnumpy(), sens)
    np.testing.assert_array_equal(got[1].asnumpy(), back)


class TopDown(nn.Cell):
    """A map and one above it, as a neck joins them."""

    def __init__(self):
        super().__init__()
        self.lateral = Conv2d(6, 4, 1, copied=True, has_bias=True, weight_init="normal", bias_init="normal")
        self.add = UpsampleAdd(4)

    def construct(self, x, coarse):
        return self.add.after(self.lateral, x, coarse)


def test_a_sum_in_a_convolutions_pass_is_the_sum_after_it():
    ms.set_context(mode=ms.GRAPH_MODE)
    r = np.random.default_rng(5)
    inputs = [Tensor(r.standard_normal(s, np.float32)) for s in ((2, 6, 6, 10), (2, 4, 3, 5), (2, 4, 6, 10))]
    ours = TopDown()
    with standard_operators():
        theirs = TopDown()
    assert ours.add.fuses and not theirs.add.fuses
    for p, q in zip_equal(ours.get_parameters(), theirs.get_parameters()):
        q.set_data(Tensor(p.asnumpy()))
    found = []
    for net in (ours, theirs):
        back = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)
        gradients = back(net, ms.ParameterTuple(net.trainable_params()))(*inputs)
        found.append([g.asnumpy() for g in (net(*inputs[:2]), *gradients[0], *gradients[1])])
    for a, b in zip_equal(*found):
        # sums of up to 120 products of numbers around 1, in float32, in another order
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


def test_gradients_that_pass_through_blocks_are_those_of_standard_operators():
    """Of a stage that ends in a map which others read too."""
    ms.set_context(mode=ms.GRAPH_MODE)
    norm = NormMaker(1e-5, 0.9, True, False)

    def stage():
        blocks = [Bottleneck(12 if i == 0 else 32, 8, 8, 1 + (i == 0), 1, False, norm, i == 2) for i in range(3)]
        return nn.SequentialCell(blocks).set_train()

    ours = stage()
    with standard_operators():
        theirs = stage()
    assert ours[1].conv1.passes and not theirs[1].conv1.passes
    randomise_norms(ours)
    for p, q in zip_equal(ours.get_parameters(), theirs.get_parameters()):
        q.set_data(Tensor(p.asnumpy()))
    r = np.random.default_rng(6)
    x, sens = (Tensor(r.standard_normal(s, np.float32)) for s in ((2, 12, 10, 14), (2, 32, 5, 7)))
    found = [passes_of(net, x, sens) for net in (ours, theirs)]
    assert len(found[0]) == 12
    for a, b in zip_equal(*found):
        assert np.sqrt(np.mean(b**2)) > 1e-3
        # both are float32, through nine layers
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * max(np.sqrt(np.mean(b**2)), 1.0))


def mean_with_next(n: int) -> np.ndarray:
    """The matrix (n, n) of it."""
    following = np.minimum(np.arange(n) + 1, n - 1)
    return (np.eye(n) + np.eye(n)[following]).astype(np.float32) / 2
