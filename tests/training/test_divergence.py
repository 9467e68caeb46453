"""A training that diverges stops, in one line that names the way back."""

import json

import numpy as np
import pytest
from mindspore import Tensor

from src.checkpoints.files import load_checkpoint
from src.runtime.errors import UserError


@pytest.mark.parametrize("bad", [2500.0, 1e36, np.inf, np.nan])
def test_it_stops_and_names_the_last_good_checkpoint(stub_trainer, refusal, bad):
    # losses 1, 2, 3 have a median of 2; the weights of 1_3 are those that lose the fourth
    trainer = stub_trainer({0: 1.0, 1: 2.0, 2: 3.0, 3: bad}, save_every=1)
    folder = trainer.config.output_dir / "checkpoints"
    with refusal(UserError, "epoch 1 step 4", "images [3]", f"--resume {folder}/mask_rcnn-1_2.ckpt"):
        trainer.run()
    assert load_checkpoint(folder / "mask_rcnn-1_2.ckpt")["weight"].shape == (3,)
    assert not list(folder.glob("mask_rcnn-1_4*"))


def test_in_proportion_it_goes_on(stub_trainer):
    assert stub_trainer({0: 1.0, 1: 2.0, 2: 3.0, 3: 1999.0}).run() == 0


def test_who_wants_to_go_on_may_but_not_with_nan(stub_trainer, refusal):
    assert stub_trainer({3: 1e36}, max_loss_ratio=0).run() == 0
    with refusal(UserError, "isn't finite"):
        stub_trainer({3: np.nan}, max_loss_ratio=0, overwrite=True).run()


def test_a_slow_rise_is_measured_by_the_first_hundred_steps(stub_trainer, refusal):
    losses = dict.fromkeys(range(100), 1.0) | dict.fromkeys(range(100, 300), 900.0) | {300: 1001.0}
    with refusal(UserError, "epoch 1 step 301", "1e+03 times the first steps' median 1"):
        stub_trainer(losses, steps=400, epoch_size=1).run()


def test_a_resumed_run_measures_by_the_same_steps(stub_trainer, refusal):
    first = stub_trainer({0: 1.0, 1: 1.0}, epoch_size=1, steps=2)
    assert first.run() == 0
    rows = [json.loads(line) for line in (first.config.output_dir / "metrics.jsonl").read_text().splitlines()]
    assert [r["total_loss"] for r in rows] == [1.0, 1.0]
    with refusal(UserError, "epoch 2 step 1", "max_loss_ratio 1000"):
        stub_trainer({2: 1500.0}, epoch_size=2, steps=2, resume=True).run()


def test_weights_that_are_not_finite_replace_no_checkpoint(stub_trainer, refusal):
    trainer = stub_trainer(keep_checkpoint_max=1, save_every_epochs=1)
    trainer.detector.weight.set_data(Tensor(np.array([1, np.inf, 1], np.float32)))
    with refusal(UserError, "epoch 1 step 4", "weight isn't finite", "lower lr", "--overwrite true"):
        trainer.run()
    assert not list((trainer.config.output_dir / "checkpoints").glob("*.ckpt"))
