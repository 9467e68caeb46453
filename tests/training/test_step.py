"""The update: loss scales, steps that overflow, and execution operator by operator."""

import dataclasses

import numpy as np
import pytest
from mindspore import Parameter, Tensor, context, nn, ops, set_seed

from benchmarks.synthetic import synthetic_batch
from src.config import load_config
from src.models.build import build_detector, build_loss
from src.ops.device import set_device
from src.training import update
from src.training.loop import step_inputs
from src.training.step import SamplerKeys, TrainStep, build_step
from src.training.update import Adam, AdamW, LossScale, Update, build_update


class Toy(nn.Cell):
    """Losses x * w, the first of them x * sum(w) in float16 where `half`."""

    def __init__(self, half=True):
        super().__init__()
        self.names = ("total_loss", "rpn_cls_loss")
        self.weight, self.half = Parameter(Tensor(np.array([1.0, 2.0], np.float32)), name="weight"), half

    def construct(self, x):
        w = self.weight
        total = (w.astype(x.dtype) * x).sum().astype(w.dtype)
        return ops.stack((total,) + (total * 0,) * (len(self.names) - 1))


def make(scale, rate=0.5, optimizer=None, **options):
    toy = Toy()
    optimizer = optimizer or nn.Momentum(toy.trainable_params(), rate, 0.9)
    return toy, TrainStep(toy, Update(optimizer, scale, **options)).set_train()


X = Tensor(np.array([0.25, 0.5], np.float16))


@pytest.fixture(params=["graph", "pynative"])
def mode(request):
    before = context.get_context("mode")
    context.set_context(mode=context.GRAPH_MODE if request.param == "graph" else context.PYNATIVE_MODE)
    yield
    context.set_context(mode=before)


@pytest.mark.parametrize("branch", [True, False])
def test_overflow_leaves_the_step_out_and_halves_the_scale(mode, branch):
    toy, step = make(LossScale(2.0**20, dynamic=True, window=2), branch=branch)
    moments = [p for p in step.update.optimizer.get_parameters() if p.name.startswith("moment")]
    scales, skipped = [], []
    for _ in range(8):
        before = toy.weight.asnumpy().copy(), moments[0].asnumpy().copy()
        losses, told = step(X)
        assert np.isfinite(losses.asnumpy()).all()
        skipped.append(int(told.asnumpy()[0]))
        scales.append(float(told.asnumpy()[1]))
        same = (toy.weight.asnumpy() == before[0]).all() and (moments[0].asnumpy() == before[1]).all()
        assert same == bool(skipped[-1])
    # float16 ends at 65504, below 2^16; two clean steps double the scale
    assert skipped == [1, 1, 1, 1, 1, 0, 0, 1]
    assert scales == [2.0**e for e in (19, 18, 17, 16, 15, 15, 16, 15)]
    assert int(step.update.optimizer.global_step.asnumpy()[0]) == skipped.count(0)


def test_scale_leaves_the_update_as_it_is(mode):
    updated = []
    for scale, branch in ((1.0, True), (1024.0, True), (LossScale(1024.0), True), (LossScale(1024.0), False)):
        toy, step = make(scale, branch=branch)
        for _ in range(3):
            step(X)
        updated.append(toy.weight.asnumpy())
    # powers of two change no digit
    for other in updated[1:]:
        np.testing.assert_array_equal(other, updated[0])


def test_without_a_branch_all_that_adam_keeps_is_put_back(mode):
    """Also the weights' decay and the count of steps."""
    toy = Toy()
    groups = [{"params": toy.trainable_params(), "weight_decay": 0.1}]
    optimizer = Adam(groups, 0.5)
    step = TrainStep(toy, Update(optimizer, LossScale(256.0), branch=False)).set_train()
    step(X)
    before = {p.name: p.asnumpy().copy() for p in optimizer.get_parameters()}
    assert {"weight", "moment1.weight", "moment2.weight", "global_step", "beta1_power"} <= set(before)
    told = step(Tensor(np.array([6e4, 6e4], np.float16)))[1].asnumpy()
    assert told[0] == 1
    for p in optimizer.get_parameters():
        np.testing.assert_array_equal(p.asnumpy(), before[p.name], err_msg=p.name)
    step(X)
    assert (toy.weight.asnumpy() != before["weight"]).all()


@pytest.mark.parametrize(
    ("kind", "decay", "wanted"),
    [
        (Adam, 0.0, [-0.0015351783949, -0.00221633329056, -0.00188526941929]),
        (AdamW, 0.1, [-0.00153520575259, -0.00221562944353, -0.00188512285240]),
    ],
)
def test_adam_is_pytorchs_also_of_gradients_as_small_as_epsilon(mode, kind, decay, wanted):
    """torch.optim.Adam and AdamW of PyTorch 2.14, rate 0.001."""
    weight = Parameter(Tensor(np.array([1e-3, -2e-3, 5e-4], np.float32)), name="weight")
    optimizer = kind([{"params": [weight], "weight_decay": decay}], 1e-3)
    for gradient in ([1e-7, 3e-8, 1e-2], [2e-7, -1e-7, 2e-2], [1e-8, 5e-8, -1e-2]):
        optimizer((Tensor(np.array(gradient, np.float32)),))
    # float32 knows by how much a power of 0.999 is less than 1 to five digits
    np.testing.assert_allclose(weight.asnumpy(), wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("chip", "mode_of_chip", "cleared"),
    [("", None, 0), ("ascend910", None, 1), ("ascend910b", None, 0), ("ascend910b", "SATURATION_MODE", 1)],
)
def test_a_chip_that_counts_overflows_is_cleared_before_the_step(monkeypatch, chip, mode_of_chip, cleared):
    told = []

    class Clear:
        def __call__(self, status):
            told.append("cleared")
            return status

    class Told(Toy):
        def construct(self, x):
            told.append("losses")
            return super().construct(x)

    before = context.get_context("mode")
    context.set_context(mode=context.PYNATIVE_MODE)
    monkeypatch.setattr(update, "NPUClearFloatStatusV2", Clear)
    if mode_of_chip:
        monkeypatch.setenv("MS_ASCEND_CHECK_OVERFLOW_MODE", mode_of_chip)
    toy = Told()
    try:
        TrainStep(toy, Update(nn.Momentum(toy.trainable_params(), 0.5, 0.9), LossScale(2.0), chip=chip))(X)
    finally:
        context.set_context(mode=before)
    assert told.count("cleared") == cleared
    assert told[0] == ("cleared" if cleared else "losses")


class OtherRank(nn.Cell):
    """AllReduce with another rank, which gives this."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def construct(self, x):
        return x + self.other if x.shape == (1,) else x + x


@pytest.mark.parametrize(("overflowed", "skipped"), [(1.0, 1), (0.0, 0)])
def test_a_rank_skips_what_another_one_skips(monkeypatch, overflowed, skipped):
    """A chip tells of its own overflows alone."""
    monkeypatch.setattr(update.ops, "AllReduce", lambda: OtherRank(Tensor([overflowed])))
    toy, step = make(LossScale(2.0), ranks=2)
    assert step(X)[1].asnumpy().tolist() == [skipped, 2.0]
    assert (toy.weight.asnumpy() == [1.0, 2.0]).all() == bool(skipped)


def test_on_ascend_the_loss_scale_stays_in_float16_and_small_hosts_have_no_branch(shapes_config, monkeypatch):
    config = shapes_config(compute_type="float16", loss_scale_window=1)
    rates = np.full(2, 0.01, np.float32)
    assert build_update(config, Toy(), rates).loss_scale.value.asnumpy() == 65536
    for chip in ("ascend910", "ascend910b"):
        monkeypatch.setattr(update, "ascend_chip", lambda: chip)  # noqa: B023
        monkeypatch.setattr(update.os, "sched_getaffinity", lambda _: range(11))
        made = build_update(config, Toy(), rates)
        assert made.loss_scale.value.asnumpy() == 32768
        made.loss_scale(Tensor(True))
        assert made.loss_scale.value.asnumpy() == 32768
        assert not made.branch
        monkeypatch.setattr(update.os, "sched_getaffinity", lambda _: range(12))
        assert build_update(config, Toy(), rates).branch


def test_fixed_scale_skips_but_stays(mode):
    toy, step = make(LossScale(2.0**20))
    for _ in range(3):
        told = step(X)[1].asnumpy()
        assert told.tolist() == [1.0, 2.0**20]
    assert toy.weight.asnumpy().tolist() == [1.0, 2.0]


SMALL = {
    "detector": "faster_rcnn",
    "img_width": 128,
    "img_height": 64,
    "batch_size": 1,
    "warmup_step": 0,
    "backbone.width_multiplier": 0.25,
}


@pytest.fixture
def mode_as_before():
    before = context.get_context("mode")
    yield
    context.set_context(mode=before)


def trained(config, steps=1):
    """The losses of `steps` steps on the same four images, (steps, 6), and the weights after them, by name."""
    set_device(config)
    set_seed(1)
    detector = build_detector(config)
    loss = build_loss(config, detector)
    random = np.random.default_rng(3)
    for p in detector.get_parameters():
        if p.name.endswith(".weight"):
            # so large that proposals, and with them the counts, differ from image to image
            p.set_data(Tensor(random.normal(0, (2 / np.prod(p.shape[1:])) ** 0.5, p.shape).astype(np.float32)))
    # Adam's first step is the rate, but of gradients around epsilon, whose rounding it enlarges
    step = build_step(config, loss, np.full(8, config.lr, np.float32))
    batch, keys = synthetic_batch(dataclasses.replace(config, batch_size=4, accumulate=1), 2), SamplerKeys(config)
    inputs = step_inputs(batch, keys(0, np.arange(4)))
    losses = np.array([step(*inputs)[0].asnumpy() for _ in range(steps)])
    assert not any(p.asnumpy().any() for p in getattr(step, "sums", ()))
    return losses, {p.name: p.asnumpy().copy() for p in detector.get_parameters()}


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("configs/shapes.yaml", {"grad_clip": 1.0}),
        pytest.param(
            "configs/shapes_cascade.yaml", {"grad_clip": 1.0, "loss_scale_type": "dynamic"}, marks=pytest.mark.full
        ),
        pytest.param("configs/shapes.yaml", {"grad_clip": 1.0, "rpn.loss_normaliser": "mmdet"}, marks=pytest.mark.full),
    ],
)
def test_parts_make_the_step_of_their_whole_batch(operator_by_operator, path, options):
    """Two parts of two images and one batch of four: the same divisors, so the same losses and weights."""
    small = {"img_width": 128, "img_height": 64, "warmup_step": 0, "backbone.norm_eval": True}
    small["mode"] = "graph" if context.get_context("mode") == context.GRAPH_MODE else "pynative"
    whole, parts = {"batch_size": 4}, {"batch_size": 2, "accumulate": 2}
    (whole, weights), (parts, summed) = (
        trained(load_config(path, {k: str(v) for k, v in {**small, **options, **sizes}.items()}))
        for sizes in (whole, parts)
    )
    # sums in another order: float32's last digits
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    for name, w in weights.items():
        np.testing.assert_allclose(summed[name], w, atol=1e-5, err_msg=name)


@pytest.mark.full
@pytest.mark.parametrize("options", [{"mode": "pynative"}, {"compute_type": "float16", "loss_scale_start": 256}])
def test_trains(shapes_config, mode_as_before, options):
    config = shapes_config(**SMALL, **options)
    set_device(config)
    loss = build_loss(config, build_detector(config))
    step = build_step(config, loss, np.full(8, 1e-3, np.float32))
    batch, keys = synthetic_batch(config, 2), SamplerKeys(config)
    totals = []
    for _ in range(4):
        values, told = step(*step_inputs(batch, keys(0, batch["image_id"])))
        assert told.asnumpy()[0] == 0
        totals.append(float(values.asnumpy()[0]))
    # the same image four times
    assert totals[-1] < totals[0]
    assert all(p.dtype == Tensor(0.0).dtype for p in loss.trainable_params())


def test_scale_by_precision_and_config(shapes_config):
    def kind(**options):
        config = shapes_config(**options)
        return config.is_half, config.has_dynamic_loss_scale

    assert kind() == (False, False)
    assert kind(compute_type="float16") == (True, True)
    assert kind(compute_type="float16", loss_scale_type="fixed", loss_scale=256) == (True, False)
    assert kind(device_target="Ascend") == (True, True)
    assert kind(device_target="Ascend", compute_type="float32") == (False, False)
    assert kind(loss_scale_type="dynamic") == (False, True)
