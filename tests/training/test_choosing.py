"""Which run, and which of its checkpoints, is gone on with; and what the end says."""

import numpy as np
import pytest
import yaml

import train
from src.checkpoints.files import load_checkpoint
from src.runtime.errors import UserError
from src.training.resume import find_run, own_config


@pytest.fixture
def run(stub_trainer):
    """A finished run of 2 epochs of 4 steps, saved at every second step; its folder."""
    trainer = stub_trainer(save_every=2, keep_checkpoint_max=5)
    assert trainer.run() == 0
    return trainer.config.output_dir


def names(folder):
    return sorted(p.name for p in folder.glob("*.ckpt"))


def test_an_earlier_checkpoint_can_be_chosen_and_the_later_ones_are_kept_aside(run, stub_trainer, capsys):
    last = load_checkpoint(run / "checkpoints/mask_rcnn-2_4.ckpt")["weight"]
    log = (run / "loss_0.log").read_text()
    chosen = find_run(run / "checkpoints/mask_rcnn-1_4.ckpt")
    assert (chosen.folder, chosen.position) == (run, (1, 4))
    trainer = stub_trainer(resume=True, position=chosen.position, save_every=2, keep_checkpoint_max=5)
    assert trainer.state.position == (1, 4)
    assert trainer.run() == 0
    assert "4 files of later checkpoints moved to before.1" in capsys.readouterr().out
    assert names(run / "before.1/checkpoints") == ["mask_rcnn-2_2.ckpt", "mask_rcnn-2_4.ckpt"]
    assert (run / "before.1/loss_0.log").read_text() == log == (run / "loss_0.log").read_text()
    np.testing.assert_array_equal(load_checkpoint(run / "checkpoints/mask_rcnn-2_4.ckpt")["weight"], last)
    np.testing.assert_array_equal(load_checkpoint(run / "before.1/checkpoints/mask_rcnn-2_4.ckpt")["weight"], last)


def test_every_checkpoint_kept_can_be_gone_on_from(run):
    assert names(run / "checkpoints") == names(run / "checkpoints/state")
    assert names(run / "checkpoints") == [f"mask_rcnn-{e}_{s}.ckpt" for e in (1, 2) for s in (2, 4)]


def test_checkpoints_without_a_state_are_refused(run, refusal):
    (run / "checkpoints/state/mask_rcnn-1_2.ckpt").unlink()
    with refusal(UserError, "mask_rcnn-1_2.ckpt", "no training state", "mask_rcnn-1_4.ckpt", "--pre_trained"):
        find_run(run / "checkpoints/mask_rcnn-1_2.ckpt")
    with refusal(UserError, "mask_rcnn-9_9.ckpt", "no such checkpoint", "mask_rcnn-2_4.ckpt"):
        find_run(run / "checkpoints/mask_rcnn-9_9.ckpt")
    with refusal(UserError, run / "mine.ckpt", "--pre_trained"):
        find_run(run / "mine.ckpt")


def test_a_finished_run_says_so_and_stays(run, stub_trainer, capsys):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    capsys.readouterr()
    assert stub_trainer(resume=True).run() == 0
    told = capsys.readouterr().out
    assert f"{run}: all 2 epochs are trained; go on with --epoch_size 3" in told
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    longer = stub_trainer(resume=True, epoch_size=3)
    assert longer.run() == 0 and longer.state.position == (3, 4)


def test_a_config_that_is_gone_comes_from_the_state(run, monkeypatch, capsys):
    before = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").unlink()
    config, resumed = train.read_arguments(["--resume", str(run), "--lr", "0.125"])
    assert resumed.folder == run
    assert config.save_every == 2 and config.epoch_size == 2 and config.lr == 0.125
    assert yaml.safe_load((run / "config.yaml").read_text()) == before
    assert "written again from" in capsys.readouterr().out


def test_nothing_tells_the_config(tmp_path):
    assert own_config(tmp_path) is None


def test_the_end_says_what_is_best_and_how_to_evaluate_it(stub_trainer, capsys, monkeypatch):
    trainer = stub_trainer(evaluate=lambda epoch: Summary({1: 0.5, 2: 0.25}[epoch]))
    assert trainer.run() == 0
    folder = trainer.config.output_dir
    best = folder / "checkpoints/best/mask_rcnn-1_4.ckpt"
    told = capsys.readouterr().out
    assert "AP 0.5000 after epoch 1" in told and f"last: {folder}/checkpoints/mask_rcnn-2_4.ckpt" in told
    command = told[told.index("python eval.py") :].split("\n")[0]
    assert command == f"python eval.py --config_path {folder}/config.yaml --checkpoint_path {best}"
    assert best.is_file() and (folder / "config.yaml").is_file()


def test_results_go_with_their_checkpoints(stub_trainer):
    def evaluate(epoch):
        (folder / f"results_epoch_{epoch}.json").write_text("[]")
        return Summary(1 / epoch if epoch != 2 else 0.0)

    trainer = stub_trainer(evaluate=evaluate, epoch_size=5, keep_checkpoint_max=2)
    folder = trainer.config.output_dir
    folder.mkdir(parents=True)
    (folder / "results_epoch_mine.json").write_text("[]")
    assert trainer.run() == 0
    # the best, and those of the two newest checkpoints
    assert sorted(p.stem[14:] for p in folder.glob("results_epoch_*")) == ["1", "4", "5", "mine"]


class Summary:
    """An evaluation's numbers."""

    def __init__(self, ap):
        self.metrics = {"segm": {"AP": ap}}

    def by_class(self):
        return {}


def test_without_an_evaluation_the_end_names_the_last(stub_trainer, capsys):
    trainer = stub_trainer(val_dataset="")
    assert trainer.run() == 0
    folder = trainer.config.output_dir
    assert f"--checkpoint_path {folder}/checkpoints/mask_rcnn-2_4.ckpt --val_dataset VAL" in capsys.readouterr().out


APS = [0.25, 0.5, 0.5, 0.375, 0.625, 0.75]


def evaluate(epoch):
    return Summary(APS[epoch - 1])


def test_training_stops_when_ap_no_longer_rises(stub_trainer, capsys):
    trainer = stub_trainer(evaluate=evaluate, steps=1, epoch_size=6, early_stop_epochs=2)
    assert trainer.run() == 0
    assert trainer.state.position == (4, 1)
    told = capsys.readouterr().out
    assert "early_stop_epochs 2: stopped" in told and "AP 0.5000 after epoch 2" in told
    # its end is known later, too
    again = stub_trainer(evaluate=evaluate, steps=1, epoch_size=6, early_stop_epochs=2, resume=True)
    assert again.run() == 0 and again.state.position == (4, 1)
    assert "go on with --early_stop_epochs 0" in capsys.readouterr().out
    more = stub_trainer(evaluate=evaluate, steps=1, epoch_size=6, resume=True)
    assert more.run() == 0 and more.state.position == (6, 1)


def test_a_resumed_run_stops_at_the_same_epoch(stub_trainer):
    assert stub_trainer(evaluate=evaluate, steps=1, epoch_size=3, early_stop_epochs=2).run() == 0
    trainer = stub_trainer(evaluate=evaluate, steps=1, epoch_size=6, early_stop_epochs=2, resume=True)
    assert trainer.run() == 0 and trainer.state.position == (4, 1)


def test_a_run_that_rises_again_in_time_goes_on(stub_trainer):
    trainer = stub_trainer(evaluate=evaluate, steps=1, epoch_size=6, early_stop_epochs=3)
    assert trainer.run() == 0 and trainer.state.position == (6, 1)


def test_stopping_early_needs_evaluations(shapes_config, refusal):
    with refusal(UserError, "early_stop_epochs", "run_eval: true"):
        shapes_config(early_stop_epochs=2, run_eval=False)
