"""Training as a user sees it: losses fall, repeat bit for bit, and stop when they aren't finite."""

import os
import re
import signal

import numpy as np
import pytest
from mindspore import Tensor

from src.checkpoints.files import CheckpointError, load_detector
from src.config import load_config
from src.data.loader import TrainLoader
from src.data.mindrecord import ensure_mindrecord
from src.evaluation.inference import Evaluator
from src.models.build import build_detector, build_loss
from src.ops.device import set_device
from src.runtime.errors import UserError
from src.training.loop import Trainer
from src.training.lr_schedule import learning_rates
from src.training.step import build_step
from src.training.update import build_optimizer

SMALL = {
    "img_width": 192,
    "img_height": 128,
    "batch_size": 2,
    "epoch_size": 2,
    "backbone.width_multiplier": 0.25,
    "train_cfg.rcnn.mask_buckets": 2,
    "warmup_step": 0,
    "run_eval": False,
    "save_every_epochs": 1,
}


def train(config, evaluate=False):
    """Trains from scratch; the detector and the lines of the loss log."""
    set_device(config)
    loader = TrainLoader(config, ensure_mindrecord(config, "train", training=True))
    detector = build_detector(config)
    evaluator = Evaluator(config, detector) if evaluate else None
    Trainer(config, build_loss(config, detector), loader, evaluator and evaluator.after_epoch).run()
    return detector, (config.output_dir / "loss_0.log").read_text().splitlines()


class Compiled:
    """The network and step of one config, compiled once: `train` gives them the values back that they began with."""

    def __init__(self, config, steps_per_epoch):
        set_device(config)
        self.detector = build_detector(config)
        self.loss = build_loss(config, self.detector)
        self.step = build_step(config, self.loss, learning_rates(config, steps_per_epoch, 1))
        self.begin = {p.name: p.asnumpy().copy() for p in self.step.get_parameters()}

    def reset(self, noise=False):
        """As they began, or random: what a resumed run has to overwrite."""
        for i, p in enumerate(self.step.get_parameters()):
            value = self.begin[p.name]
            if noise and p.name != "learning_rate":
                value = np.random.default_rng(i).uniform(0, 9, value.shape).astype(value.dtype)
            p.set_data(Tensor(value))

    def train(self, config, monkeypatch, loader=None, resume=False):
        """Trains; the exit status."""
        self.reset(noise=resume)
        monkeypatch.setattr("src.training.loop.build_step", lambda *_: self.step)
        loader = loader or TrainLoader(config, ensure_mindrecord(config, "train", training=True))
        return Trainer(config, self.loss, loader, resume=resume).run()

    def values(self):
        return {p.name: p.asnumpy().copy() for p in self.step.get_parameters()}


class StopsItself(TrainLoader):
    """Sends this process SIGTERM after some batches of the second epoch."""

    def epoch(self, epoch, start_step=0):
        for i, batch in enumerate(super().epoch(epoch, start_step)):
            if epoch == 1 and i == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


def total(line: str) -> float:
    return float(re.search(r"total_loss: (\S+)", line)[1])


@pytest.fixture(scope="module")
def make_config(shapes_root, tmp_path_factory):
    """The shapes config, small, with outputs of its own and one conversion for all."""
    records = tmp_path_factory.mktemp("records")

    def make(**overrides):
        places = {"train_dataset": str(shapes_root), "val_dataset": str(shapes_root), "mindrecord_dir": str(records)}
        places["train_outputs"] = str(tmp_path_factory.mktemp("outputs"))
        return load_config("configs/shapes.yaml", SMALL | places | overrides)

    return make


@pytest.fixture(scope="module")
def compiled(make_config):
    config = make_config()
    return Compiled(config, len(TrainLoader(config, ensure_mindrecord(config, "train", training=True))))


@pytest.fixture(scope="module")
def first_run(make_config, compiled):
    config = make_config()
    with pytest.MonkeyPatch.context() as patch:
        assert compiled.train(config, patch) == 0
    return config, compiled.values(), (config.output_dir / "loss_0.log").read_text().splitlines()


@pytest.mark.full
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_evaluating_weights_that_are_not_finite_says_that_training_diverged(
    compiled, make_config, tmp_path, refusal, value
):
    config, detector = make_config(), compiled.detector
    weight = detector.rpn.head.cls.bias
    before = weight.asnumpy().copy()
    evaluator = Evaluator(config, detector)
    try:
        weight.set_data(Tensor(np.full(before.shape, value, np.float32)))
        with refusal(CheckpointError, "diverged", "rpn.cls.bias"):
            evaluator.run(tmp_path / "results.json")
    finally:
        weight.set_data(Tensor(before))
    assert not (tmp_path / "results.json").exists()


def test_loss_log_has_the_documented_form(first_run):
    _, _, lines = first_run
    form = (
        r"epoch: \d+ step: \d+, rpn_loss: \S+, rcnn_loss: \S+, rpn_cls_loss: \S+, rpn_reg_loss: \S+, "
        r"rcnn_cls_loss: \S+, rcnn_reg_loss: \S+, rcnn_mask_loss: \S+, total_loss: \S+"
    )
    assert lines and all(re.fullmatch(form, line) for line in lines)
    assert lines[0].startswith("epoch: 1 step: 1,") and lines[-1].startswith("epoch: 2 ")


def test_losses_fall(first_run):
    _, _, lines = first_run
    losses = [total(line) for line in lines]
    third = len(losses) // 3
    assert np.mean(losses[-third:]) < 0.9 * np.mean(losses[:third])


@pytest.mark.full
def test_same_seed_same_losses_and_weights_bit_for_bit(first_run, make_config):
    _, values, lines = first_run
    again, repeated = train(make_config())
    assert repeated == lines
    for p in again.get_parameters():
        np.testing.assert_array_equal(values[p.name], p.asnumpy(), err_msg=p.name)


def test_same_seed_same_first_weights(compiled, make_config):
    for p in fresh(make_config()).get_parameters():
        np.testing.assert_array_equal(compiled.begin[p.name], p.asnumpy(), err_msg=p.name)


def test_stopped_and_resumed_ends_bit_identical(first_run, compiled, make_config, monkeypatch):
    """Weights, moments, and the lines of the log; what was in memory before resuming counts for nothing."""
    _, values, lines = first_run
    config = make_config()
    stopping = StopsItself(config, ensure_mindrecord(config, "train", training=True))
    assert compiled.train(config, monkeypatch, stopping) == 143
    assert len((config.output_dir / "loss_0.log").read_text().splitlines()) < len(lines)
    assert compiled.train(config, monkeypatch, resume=True) == 0
    assert (config.output_dir / "loss_0.log").read_text().splitlines() == lines
    for name, value in compiled.values().items():
        np.testing.assert_array_equal(values[name], value, err_msg=name)


@pytest.mark.full
def test_other_seed_other_losses(first_run, make_config):
    _, _, lines = first_run
    _, other = train(make_config(seed=2, epoch_size=1))
    assert other[0] != lines[0]


def test_checkpoints_hold_what_was_trained(first_run):
    config, values, _ = first_run
    saved = sorted((config.output_dir / "checkpoints").glob("*.ckpt"))
    assert [p.name.split("-")[1].split("_")[0] for p in saved] == ["1", "2"]
    fresh = build_detector(config)
    assert load_detector(fresh, saved[-1]) == []
    for p in fresh.get_parameters():
        np.testing.assert_array_equal(values[p.name], p.asnumpy(), err_msg=p.name)


@pytest.mark.full
def test_evaluation_in_training_leaves_training_as_it_was(first_run, make_config):
    _, _, lines = first_run
    config = make_config(run_eval=True, eval_every=1)
    _, with_evaluation = train(config, evaluate=True)
    assert with_evaluation == lines
    assert (config.output_dir / "results_epoch_1.json").is_file()


@pytest.mark.full
def test_loss_that_is_not_finite_stops_and_names_step_images_and_losses(make_config):
    config = make_config(opt_type="sgd", lr=1e12, grad_clip=0.0)
    with pytest.raises(UserError, match=r"epoch \d+ step \d+: a loss isn't finite, on images \[.*\]: total_loss") as e:
        train(config)
    assert "learning rate" in str(e.value) and "\n" not in str(e.value)


def test_weight_decay_spares_norms_and_biases_where_the_config_says(make_config):
    config = make_config(opt_type="sgd", weight_decay_norm=False, weight_decay_bias=False, weight_decay=0.1)
    loss = build_loss(config, build_detector(config))
    weights = loss.trainable_params()
    for p in weights:
        p.set_data(Tensor(np.ones(p.shape, np.float32)))
    optimizer = build_optimizer(config, loss, np.full(4, 0.5, np.float32))
    optimizer(tuple(Tensor(np.zeros(p.shape, np.float32)) for p in weights))
    for p in weights:
        spared = p.name.endswith((".gamma", ".beta", ".bias"))
        # without a gradient, one step of 0.5 shrinks by 0.5 * 0.1
        np.testing.assert_allclose(p.asnumpy(), 1.0 if spared else 0.95, rtol=1e-6, err_msg=p.name)


@pytest.mark.full
def test_gradient_clipping_bounds_the_update(make_config):
    plain = {"opt_type": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr_type": "multistep"}
    config = make_config(**plain, grad_clip=1e-3, lr=1.0, base_batch_size=0, epoch_size=1)
    before = {p.name: p.asnumpy().copy() for p in fresh(config).trainable_params()}
    detector, lines = train(config)
    moved = sum(float(((p.asnumpy() - before[p.name]) ** 2).sum()) for p in detector.trainable_params()) ** 0.5
    # each step moves the weights by at most lr * grad_clip, and float32 rounding
    assert 0 < moved <= len(lines) * 1e-3 * 1.01


def fresh(config):
    """The detector as training starts it."""
    set_device(config)
    return build_detector(config)
