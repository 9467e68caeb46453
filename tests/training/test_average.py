"""The weights' moving average: what it is, what is saved and evaluated of it, and that it resumes bit for bit."""

import dataclasses
import types

import numpy as np
import pytest
from mindspore import Parameter, Tensor, context, nn, ops

from benchmarks.synthetic import synthetic_batch
from src.checkpoints.files import load_checkpoint
from src.models.build import build_detector, build_loss
from src.training import loop
from src.training.average import MovingAverage
from src.training.step import SamplerKeys, TrainStep, build_step, step_inputs
from src.training.update import LossScale, Update, build_update
from tests.training.conftest import Loader
from tests.training.names import LOSS_NAMES


class Detector(nn.Cell):
    """A convolution, frozen where asked, and a batch norm that learns its statistics."""

    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3, 1, 1)), name="weight")
        self.fixed = Parameter(Tensor(np.array([0.1], np.float32)), name="fixed", requires_grad=False)
        self.norm = nn.BatchNorm2d(4, momentum=0.9)

    def construct(self, x):
        return self.norm(ops.conv2d(x, self.weight) * self.fixed)


class Loss(nn.Cell):
    """Losses of the detector on a number, of which a picture is made; in float16, so that large ones overflow."""

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.detector, self.names = Detector(), LOSS_NAMES
        self.base = Tensor(np.random.default_rng(0).normal(0, 1, (2, 3, 4, 4)).astype(np.float32))

    def construct(self, x, *others):
        y = self.detector(self.base * (x.reshape(()) + 1.0))
        total = ((y * self.base[:, :1]).sum() * 0.01).astype("float16") * (x.reshape(()) + 1.0).astype("float16")
        total = total.astype("float32") + self.detector.weight.sum() * 0.1
        return ops.stack((total,) + (total * 0,) * (len(self.names) - 1))


@pytest.fixture(params=["graph", pytest.param("pynative", marks=pytest.mark.full)])
def mode(request, graph_mode):
    context.set_context(mode=context.GRAPH_MODE if request.param == "graph" else context.PYNATIVE_MODE)


def averages(weights, decay):
    """By the definition, in float64, of weights (steps + 1, ...), the first before training; after each step."""
    average, out = weights[0].astype(np.float64), []
    for t, w in enumerate(weights[1:]):
        d = min(decay, (1 + t) / (10 + t))
        average = d * average + (1 - d) * w
        out.append(average)
    return out


@pytest.mark.parametrize(("scale", "branch"), [(1.0, True), (LossScale(2.0**8), True), (LossScale(2.0**8), False)])
def test_it_averages_the_weights_after_each_step_that_counts(mode, scale, branch):
    """And the running statistics with them; a step left out, whose statistics are overflows, leaves no trace."""
    loss = Loss()
    followed = list(loss.get_parameters())
    average = MovingAverage(followed, 0.3)
    optimizer = nn.Momentum(loss.trainable_params(), 0.5, 0.9)
    step = TrainStep(loss, Update(optimizer, scale, branch=branch, average=average)).set_train()
    seen, skipped = [[p.asnumpy().copy() for p in followed]], 0
    for x in (0, 1, 2, 1e4, 3, 4, 5):
        if x == 1e4 and not step.checked:
            continue
        told = step(Tensor(np.array([x], np.float32)))[1].asnumpy()
        skipped += int(told[0])
        if not told[0]:
            seen.append([p.asnumpy().copy() for p in followed])
    assert skipped == (1 if step.checked else 0) and len(seen) == 7
    assert int(average.updates.asnumpy()) == 6
    for p, value, steps in zip(followed, average.values, zip(*seen)):
        np.testing.assert_allclose(value.asnumpy(), averages(steps, 0.3)[-1], rtol=1e-5, atol=1e-6, err_msg=p.name)
        if p.name != "fixed":
            assert abs(value.asnumpy() - p.asnumpy()).max() > 1e-3, p.name
    assert average.values[1].asnumpy().tobytes() == followed[1].asnumpy().tobytes()


@pytest.mark.full
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"accumulate": 2, "loss_scale_type": "dynamic"}])
def test_it_follows_a_detector_whose_norms_learn(shapes_config, graph_mode, options):
    small = {"detector": "faster_rcnn", "img_width": 128, "img_height": 64, "backbone.width_multiplier": 0.25}
    config = shapes_config(ema_decay=0.5, **small, **options)
    loss = build_loss(config, build_detector(config))
    step = build_step(config, loss, np.full(8, 1e-2, np.float32))
    batch, keys = synthetic_batch(dataclasses.replace(config, batch_size=4, accumulate=1), 2), SamplerKeys(config)
    inputs, followed = step_inputs(batch, keys(0, np.arange(4))), list(loss.detector.get_parameters())
    seen = [[p.asnumpy().copy() for p in followed]]
    for _ in range(3):
        assert step(*inputs)[1].asnumpy()[0] == 0
        seen.append([p.asnumpy().copy() for p in followed])
    assert any(p.name.endswith("moving_mean") and (seen[0][i] != seen[1][i]).any() for i, p in enumerate(followed))
    found = step.average.arrays(followed)
    for p, steps in zip(followed, zip(*seen)):
        np.testing.assert_allclose(found[p.name], averages(steps, 0.5)[-1], rtol=1e-5, atol=1e-7, err_msg=p.name)


@pytest.fixture
def trainer(shapes_config, monkeypatch, graph_mode):
    """Makes a Trainer of the small network above: 4 steps an epoch, 2 epochs; keywords of the config follow."""

    def build_step(config, loss, rates, ranks):
        return TrainStep(loss, build_update(config, loss, rates, ranks)).set_train()

    def make(ema_decay=0.9, evaluate=None, validate=None, resume=False, **overrides):
        loss = Loss()
        keys = {"epoch_size": 2, "run_eval": evaluate is not None, "warmup_step": 0, "opt_type": "sgd"}
        keys |= {"lr": 0.5, "lr_type": "multistep", "lr_steps": [8]}
        config = shapes_config(ema_decay=ema_decay, **{**keys, **overrides})
        monkeypatch.setattr(loop, "build_step", build_step)
        called = [call and (lambda *epoch, call=call: call(loss.detector)) for call in (evaluate, validate)]
        return loop.Trainer(config, loss, Loader(4), called[0], resume=resume, validate=called[1])

    return make


def saved(trainer):
    return load_checkpoint(trainer.folder.weights.list()[-1])


def test_checkpoints_hold_the_average_and_a_resumed_run_ends_bit_for_bit_the_same(trainer):
    whole = trainer(brief="whole")
    whole.run()
    trainer(brief="parts", epoch_size=1).run()
    first = trainer(brief="parts", resume=True, epoch_size=2)
    assert first.state.position == (1, 4)
    first.run()
    for a, b in ((saved(whole), saved(first)), (load_checkpoint(whole.folder.states.list()[-1]), state_of(first))):
        assert a.keys() == b.keys()
        for name in a.keys() - {"training.json"}:
            assert a[name].tobytes() == b[name].tobytes(), name
    trained = {p.name: p.asnumpy() for p in first.detector.get_parameters()}
    assert saved(first).keys() == trained.keys()
    for name, value in trained.items():
        assert (saved(first)[name] == value).all() == (name == "fixed"), name
        assert first.folder.newest()[2].get(name, value).tobytes() == value.tobytes()


def state_of(trainer):
    return load_checkpoint(trainer.folder.states.list()[-1])


@pytest.mark.parametrize("scale", ["fixed", "dynamic"])
def test_evaluations_see_the_average_and_training_goes_on_with_the_weights(trainer, scale):
    seen = []

    def look(detector):
        seen.append({p.name: p.asnumpy().copy() for p in detector.get_parameters()})
        return (
            types.SimpleNamespace(metrics={}, by_class=dict) if len(seen) % 2 == 0 else dict.fromkeys(LOSS_NAMES, 1.0)
        )

    options = {"loss_scale_type": scale, "loss_scale_start": 4.0}
    plain = trainer(brief="plain", **options)
    looked = trainer(brief="looked", evaluate=look, validate=look, **options)
    plain.run()
    looked.run()
    assert len(seen) == 4  # a validation and an evaluation an epoch
    for name, value in saved(looked).items():
        assert value.tobytes() == seen[2][name].tobytes() == seen[3][name].tobytes(), name
    for a, b in zip(plain.detector.get_parameters(), looked.detector.get_parameters()):
        assert a.asnumpy().tobytes() == b.asnumpy().tobytes(), a.name


def test_the_average_begins_and_ends_with_the_key(trainer):
    """A run without one goes on with one, which begins with its weights; and the other way with what trained."""
    plain, with_one = trainer(0.0, brief="a", epoch_size=1), trainer(brief="b", epoch_size=1)
    plain.run()
    with_one.run()
    trained = {p.name: p.asnumpy().copy() for p in with_one.detector.get_parameters()}
    begun, ended = trainer(brief="a", resume=True), trainer(0.0, brief="b", resume=True)
    assert int(begun.average.updates.asnumpy()) == 0 and ended.average is None
    for p in ended.detector.get_parameters():
        assert p.asnumpy().tobytes() == trained[p.name].tobytes(), p.name
    for name, value in begun.average.arrays(begun.detector.get_parameters()).items():
        assert value.tobytes() == saved(plain)[name].tobytes(), name
