"""A run that was killed, stopped or damaged goes on as if nothing had happened, or says in one line why it can't."""

import dataclasses
import json
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from benchmarks.resume import Run, compare_runs, kill_at
from src.checkpoints.files import CheckpointError
from src.runtime.errors import UserError
from src.runtime.newer import zip_equal
from src.training.resume import BestCheckpoints, Resumed, ResumeFolder, TrainingState, find_run, same_step
from src.training.run import goes_on
from src.training.tracking import LossLog, MetricsFile

# without the mask head, the graphs compile in half the time
QUICK = {"detector": "faster_rcnn", "epoch_size": 1}


@pytest.fixture(scope="module")
def places(shapes_root, tmp_path_factory):
    return shapes_root, tmp_path_factory.mktemp("records")


@pytest.mark.full
def test_killed_and_stopped_and_resumed_ends_bit_identical(places, tmp_path):
    undisturbed, run = Run(tmp_path / "a", *places, QUICK), Run(tmp_path / "b", *places, QUICK)
    undisturbed.finish()
    rng = random.Random(0)
    for moment in ("writing", "stepping", "evaluating"):
        kill_at(run, moment, rng)
    run.finish()
    assert compare_runs(run, undisturbed) == []


@pytest.mark.full
def test_sigterm_saves_and_exits_143(places, tmp_path):
    run = Run(tmp_path / "a", *places, QUICK | {"save_every": 0, "epoch_size": 4})
    process = run.start()
    deadline = time.monotonic() + 200
    while len(run.lines()) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143, run.console()[-2000:]
    assert len(run.lines()) >= 2
    # nothing but the signal asked for a checkpoint
    found = ResumeFolder(run.checkpoints, "faster_rcnn", 3).newest()
    assert found is not None
    state = found[0]
    assert state.epoch == 1 and 4 <= state.step < state.steps_per_epoch


class Net(nn.Cell):
    def __init__(self, value):
        super().__init__()
        self.weight = Parameter(Tensor(np.full((50, 40), value, np.float32)), name="weight")


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints: weights 1, 2, 3 after steps 2, 4 and 6."""
    folder = ResumeFolder(tmp_path / "checkpoints", "mask_rcnn", keep=3)
    for i in (1, 2, 3):
        moment = Parameter(Tensor(np.full(7, i / 10, np.float32)), name="moment")
        folder.save(Net(float(i)), [moment], TrainingState(1, 2 * i, 10, [{"total_loss": 0.1 * i}], 5, {"lr": 0.1}))
    return folder


def test_newest_has_all_that_was_saved(folder):
    state, weights, parameters, _ = folder.newest()
    assert state == TrainingState(1, 6, 10, [{"total_loss": 0.1 * 3}], 5, {"lr": 0.1})
    assert set(weights) == {"weight"} and (weights["weight"] == 3).all()
    assert set(parameters) == {"moment"} and (parameters["moment"] == np.float32(0.3)).all()


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, lambda p: p.write_bytes(b""), lambda p: p.unlink()])
@pytest.mark.parametrize("part", ["", "state"])
def test_damaged_checkpoint_is_named_and_passed_over(folder, damage, part, capsys):
    newest = folder.weights.folder / part / "mask_rcnn-1_6.ckpt"
    damage(newest)
    state, weights, _, _ = folder.newest()
    assert state.step == 4 and (weights["weight"] == 2).all()
    if not (part and not newest.exists()):  # a state that was never finished is no fault
        assert str(newest) in capsys.readouterr().out
    folder.forget_after(state.position)
    assert [p.name for p in folder.weights.list()] == ["mask_rcnn-1_2.ckpt", "mask_rcnn-1_4.ckpt"]
    assert folder.newest()[0].step == 4


def test_weights_of_another_run_under_the_same_name_are_told(folder, capsys):
    other = ResumeFolder(folder.weights.folder.parent / "other", "mask_rcnn", keep=3)
    other.save(Net(9.0), [], TrainingState(1, 6, 10))
    (other.weights.folder / "mask_rcnn-1_6.ckpt").replace(folder.weights.folder / "mask_rcnn-1_6.ckpt")
    assert folder.newest()[0].step == 4
    assert "not the weights" in capsys.readouterr().out


def test_all_damaged_is_refused(folder, refusal):
    for path in folder.states.list():
        cut(path)
    with refusal(UserError, folder.weights.folder, "no checkpoint reads whole"):
        folder.newest()


def test_killed_between_the_first_weights_and_their_state(tmp_path):
    folder = ResumeFolder(tmp_path / "checkpoints", "mask_rcnn", keep=3)
    folder.make()
    folder.weights.save(Net(1.0), 1, 2)
    assert folder.newest() is None
    folder.forget_after((1, 0))
    assert folder.weights.list() == []


def test_weights_alone_are_refused(folder, refusal):
    for path in folder.states.list():
        path.unlink()
    folder.states.folder.rmdir()
    with refusal(UserError, folder.weights.folder, "--pre_trained"):
        folder.newest()


def test_nothing_saved_yet(tmp_path):
    assert ResumeFolder(tmp_path / "none", "mask_rcnn", 3).newest() is None


def test_old_checkpoints_go_with_their_states(folder):
    folder.save(Net(4.0), [], TrainingState(2, 1, 10))
    names = [p.name for p in folder.weights.list()]
    assert names == ["mask_rcnn-1_4.ckpt", "mask_rcnn-1_6.ckpt", "mask_rcnn-2_1.ckpt"]
    assert {p.name for p in folder.states.list()} <= set(names)


def test_checkpoint_that_cannot_be_written_leaves_the_one_before(folder, refusal):
    in_the_way = folder.weights.folder / "mask_rcnn-1_8.ckpt"
    in_the_way.mkdir()
    with refusal(CheckpointError, in_the_way, "can't write"):
        folder.save(Net(4.0), [], TrainingState(1, 8, 10))
    in_the_way.rmdir()
    assert folder.newest()[0].step == 6


def test_another_number_of_steps_is_refused(shapes_config, tmp_path, refusal):
    with refusal(UserError, tmp_path, "10 steps an epoch", "12"):
        TrainingState(1, 3, 10).check(shapes_config(), 12, tmp_path)


@pytest.mark.parametrize(
    ("ranks", "batch_size", "accumulate", "now", "wanted"),
    [
        (2, 1, 1, 1, {"batch_size": 1, "accumulate": 2}),
        (8, 2, 1, 4, {"batch_size": 2, "accumulate": 2}),
        (1, 2, 2, 2, {"batch_size": 2, "accumulate": 1}),
        (1, 4, 1, 2, {"batch_size": 2, "accumulate": 1}),
        (2, 3, 1, 3, {"batch_size": 1, "accumulate": 2}),
        (2, 1, 1, 2, {}),
        (0, 1, 1, 4, {}),
    ],
)
def test_other_ranks_share_out_the_same_images(
    shapes_config, ranks, batch_size, accumulate, now, wanted, capsys, refusal
):
    config = shapes_config(batch_size=batch_size, accumulate=accumulate)
    folder = ResumeFolder(config.output_dir / "checkpoints", "mask_rcnn", 3)
    folder.save(Net(1.0), [], TrainingState(1, 2, 10, config=dataclasses.asdict(config), ranks=ranks))
    run = Resumed(config.output_dir)
    assert same_step(config, run, now) == wanted
    assert ("resuming with ranks" in capsys.readouterr().out) == bool(wanted)
    # who says another batch than the run's means it
    assert same_step(dataclasses.replace(config, batch_size=16), run, now) == {}


def test_images_that_ranks_cant_share_out_equally_are_refused(shapes_config, refusal):
    config = shapes_config(batch_size=1)
    folder = ResumeFolder(config.output_dir / "checkpoints", "mask_rcnn", 3)
    folder.save(Net(1.0), [], TrainingState(1, 2, 10, config=dataclasses.asdict(config), ranks=4))
    with refusal(UserError, "4 images a step, which 3 ranks can't share out equally; resume with 1, 2, 4 ranks"):
        same_step(config, Resumed(config.output_dir), 3)


def test_a_job_that_was_started_again_goes_on_with_what_it_saved_itself(shapes_config, monkeypatch):
    monkeypatch.setenv("RCNN_JOB", "this")
    config = shapes_config()
    folder = ResumeFolder(config.output_dir / "checkpoints", "mask_rcnn", 3)
    for restart, job, wanted in (("", "this", False), ("1", "another", False), ("1", "this", True)):
        folder.save(Net(1.0), [], TrainingState(1, 2, 10, config=dataclasses.asdict(config), job=job))
        monkeypatch.setenv("RCNN_RESTART", restart)
        assert goes_on(config) == wanted
    assert not goes_on(shapes_config(brief="another"))


def test_a_trainings_state_names_its_job(stub_trainer, monkeypatch):
    monkeypatch.setenv("RCNN_JOB", "this")
    trainer = stub_trainer()
    trainer.run()
    state = trainer.folder.newest()[0]
    assert (state.job, state.ranks) == ("this", 1)
    monkeypatch.setenv("RCNN_JOB", "next")
    assert stub_trainer(resume=True, epoch_size=3).state.job == "next"


def test_changed_settings_are_told(shapes_config, tmp_path, capsys):
    state = TrainingState(1, 3, 10, config=dataclasses.asdict(shapes_config(lr=0.5)))
    state.check(shapes_config(lr=0.25, log_every=7), 10, tmp_path)
    told = capsys.readouterr().out
    assert "lr 0.5 -> 0.25" in told and "log_every" not in told


def test_run_folder_is_found_by_it_or_its_checkpoints(tmp_path, refusal):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    for name in (tmp_path / "run", tmp_path / "run/checkpoints/"):
        assert find_run(name).folder == tmp_path / "run" and find_run(name).position is None
    with refusal(UserError, tmp_path / "nowhere", "no such folder"):
        find_run(tmp_path / "nowhere")
    (tmp_path / "mask_rcnn-1_2.ckpt").mkdir()
    with refusal(UserError, tmp_path / "mask_rcnn-1_2.ckpt", "a folder, not a checkpoint"):
        find_run(tmp_path / "mask_rcnn-1_2.ckpt")


def test_resume_of_nothing_is_refused_in_one_line(tmp_path):
    command = [sys.executable, "train.py", "--config_path", "configs/shapes.yaml", "--resume", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [line for line in done.stderr.splitlines() if str(tmp_path / "none") in line]


def test_best_checkpoints_are_kept_by_ap(folder, tmp_path):
    best = BestCheckpoints(tmp_path / "best", keep=2)
    for path, ap in zip_equal(folder.weights.list(), (0.3, 0.1, 0.3)):
        best.add(path, 1, int(path.stem[-1]), ap)
    assert [(r["file"], r["ap"]) for r in best.read()] == [("mask_rcnn-1_2.ckpt", 0.3), ("mask_rcnn-1_6.ckpt", 0.3)]
    kept = sorted(p.name for p in best.folder.glob("*.ckpt"))
    assert kept == ["mask_rcnn-1_2.ckpt", "mask_rcnn-1_6.ckpt"]
    assert (best.folder / kept[0]).read_bytes() == folder.weights.list()[0].read_bytes()
    best.forget_after((1, 4))
    assert [p.name for p in best.folder.glob("*.ckpt")] == ["mask_rcnn-1_2.ckpt"]


def test_a_damaged_record_of_the_best_stops_no_resume_and_loses_no_checkpoint(folder, tmp_path, capsys):
    best = BestCheckpoints(tmp_path / "best", keep=2)
    first, second, _ = folder.weights.list()
    best.add(first, 1, 2, 0.3)
    best.record.write_text(best.record.read_text()[:-9])
    best.forget_after((1, 4))
    assert "best.json: damaged" in capsys.readouterr().out
    assert (tmp_path / "best.damaged.1" / first.name).read_bytes() == first.read_bytes()
    best.add(second, 1, 4, 0.1)
    assert [r["file"] for r in best.read()] == [second.name]


LOSSES = dict.fromkeys(
    ("total_loss", "rpn_cls_loss", "rpn_reg_loss", "rcnn_cls_loss", "rcnn_reg_loss", "rcnn_mask_loss"), 1.0
)


def test_logs_go_on_after_the_resumed_step(tmp_path):
    def write(kind, name, steps, resumed):
        log = kind(tmp_path / name, resumed)
        for epoch, step in steps:
            log.losses(epoch, step, LOSSES, {"learning_rate": 0.1})
        log.close()
        return (tmp_path / name).read_text().splitlines()

    for kind, name in ((LossLog, "loss_0.log"), (MetricsFile, "metrics.jsonl")):
        write(kind, name, [(1, 1), (1, 2), (2, 1), (2, 2)], None)
        with open(tmp_path / name, "a") as f:
            f.write('{"epoch": 2, "st')  # a kill in the middle of a line
        lines = write(kind, name, [(2, 2), (2, 3)], (2, 1))
        assert [kind.position(line) for line in lines] == [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]
    assert json.loads(lines[-1])["total_loss"] == 1.0
