"""One training a folder: what runs there, or has run there, isn't touched unless the user says so."""

import os

import pytest

from src.runtime.errors import UserError
from src.runtime.files import InUseError
from src.training.resume import hold_run, set_aside
from src.training.run import train


@pytest.fixture
def finished(shapes_config):
    """The config of a run that has ended, with what it left, and a file of the user's."""
    config = shapes_config()
    (config.output_dir / "checkpoints/best").mkdir(parents=True)
    for name in (
        "checkpoints/mask_rcnn-1_2.ckpt",
        "checkpoints/best/best.json",
        "loss_0.log",
        "config.yaml",
        "mine.txt",
    ):
        (config.output_dir / name).write_text(name)
    return config


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != "run.lock"}


def test_a_folder_where_another_trains_is_refused_however_asked(shapes_config, refusal):
    config = shapes_config(overwrite=True)
    with hold_run(config, resume=False):
        for resume in (False, True):
            with refusal(InUseError, config.output_dir, f"process {os.getpid()}", "--brief"), hold_run(config, resume):
                pass
        with hold_run(shapes_config(brief="other"), resume=False):
            pass
    with hold_run(config, resume=False):
        pass


def test_a_finished_run_is_refused_and_stays(finished, refusal):
    before = files(finished.output_dir)
    with refusal(UserError, f"--resume {finished.output_dir}", "--brief", "--overwrite true"):
        train(finished)
    assert files(finished.output_dir) == before


def test_a_finished_run_may_be_resumed_or_overwritten(finished, shapes_config):
    with hold_run(finished, resume=True):
        pass
    with hold_run(shapes_config(overwrite=True), resume=False):
        pass


def test_overwriting_sets_aside_what_the_run_left_and_nothing_else(finished, capsys):
    folder, before = finished.output_dir, files(finished.output_dir)
    set_aside(folder)
    assert files(folder) == {"mine.txt"} | {f"before.1/{name}" for name in before - {"mine.txt"}}
    assert "before.1" in capsys.readouterr().out
    (folder / "loss_0.log").write_text("epoch: 1")
    set_aside(folder)
    assert (folder / "before.2/loss_0.log").read_text() == "epoch: 1"
    assert (folder / "before.1/loss_0.log").read_text() == "loss_0.log"


def test_a_start_that_made_no_step_leaves_nothing_to_set_aside(shapes_config):
    folder = shapes_config().output_dir
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("loss_0.log", "config.yaml"):
        (folder / name).write_text("")
    set_aside(folder)
    assert not (folder / "before.1").exists()


def test_what_is_refused_before_it_begins_leaves_nothing(shapes_config, refusal):
    config = shapes_config(freeze=["backbone", "neck", "rpn", "bbox_head", "mask_head"])
    with refusal(UserError, "freeze", "nothing to train"):
        train(config)
    assert not config.output_dir.exists()
