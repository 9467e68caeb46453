"""Signals in training: told at once, saved, and the status that says which."""

import itertools
import os
import signal
import subprocess
import sys
import time

import pytest

import eval as eval_script
from src.data.workers import WorkerDied
from src.training import signals
from src.training.signals import Stopped, StopRequest


def soon(condition, seconds=10):
    """Waits for `condition`; whether it came."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_between_steps_saves_says_so_and_gives_the_status(stub_trainer, capfd, signum, status):
    trainer = stub_trainer(evaluate=None, save_every_epochs=0)
    batches = trainer.loader.epoch
    trainer.loader.epoch = lambda *at: interrupted(batches(*at), signum)
    assert trainer.run() == status
    out, err = capfd.readouterr()
    folder = trainer.config.output_dir
    assert f"saved {folder}/checkpoints/mask_rcnn-1_2.ckpt; go on with python train.py --resume {folder}" in out
    assert f"{signum.name}: stopping after this step; again to stop now" in err
    assert (folder / "checkpoints/mask_rcnn-1_2.ckpt").is_file() and (folder / "loss_curve.png").is_file()
    again = stub_trainer(resume=True)
    assert again.state.position == (1, 2) and again.run() == 0


def interrupted(batches, signum):
    """The batches, and a signal as the second is taken."""
    for i, batch in enumerate(batches, 1):
        if i == 2:
            os.kill(os.getpid(), signum)
        yield batch


def test_a_signal_in_an_evaluation_ends_it(stub_trainer, capfd):
    def evaluate(epoch):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)

    trainer = stub_trainer(evaluate=evaluate)
    assert trainer.run() == 143
    assert "SIGTERM: stopping after this step; again to stop now" in capfd.readouterr().err
    assert trainer.saved == (1, 4)


def test_what_mindspore_compiles_is_not_broken_off():
    """An exception within its compiler would be told as the network's fault; it comes afterwards."""
    scope = {"os": os, "signal": signal, "time": time}
    code = compile("def compile():\n os.kill(os.getpid(), signal.SIGINT)\n time.sleep(0.1)", "mindspore/api.py", "exec")
    exec(code, scope)
    after = []
    with StopRequest() as stop, pytest.raises(Stopped), stop.interruptible():
        scope["compile"]()
        after.append("compiled")
        time.sleep(20)
    assert after == ["compiled"] and stop.status == 130


def test_a_handler_that_something_else_puts_in_place_goes():
    libc = signals.ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [signals.ctypes.c_int, signals.ctypes.c_void_p], signals.ctypes.c_void_p
    with StopRequest() as stop:
        libc.signal(int(signal.SIGINT), 1)  # ignored
        assert soon(lambda: signals.getsig(signal.SIGINT) == stop.own[signal.SIGINT])
        os.kill(os.getpid(), signal.SIGINT)
        assert soon(lambda: stop.signum == signal.SIGINT)


def test_a_signal_ends_an_evaluation_with_its_own_status(shapes_root, tmp_path, monkeypatch, capfd):
    def detect(config, arguments):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)

    monkeypatch.setattr(eval_script, "evaluate_checkpoint", detect)
    words = ["--checkpoint_path", "x.ckpt", "--val_dataset", str(shapes_root), "--train_outputs", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["eval.py", *words])
    assert eval_script.main() == 130
    assert capfd.readouterr().err == "\nSIGINT: stopping; again to stop now\n"


PROGRAM = """
import threading
from src.data.workers import WorkerDied
from src.training import signals
stuck = threading.Lock()
stuck.acquire()
with signals.StopRequest("GO ON"):
    print("stuck", flush=True)
    stuck.acquire()
"""


@pytest.fixture
def stuck():
    """A process in StopRequest that waits for ever."""
    words = [sys.executable, "-c", PROGRAM]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "stuck\n"
    yield process
    process.kill()
    process.wait()


def test_a_worker_that_dies_loses_no_step(stub_trainer, refusal):
    trainer = stub_trainer()
    whole = trainer.loader.epoch

    def dying(epoch, start=0):
        yield from itertools.islice(whole(epoch, start), 3)
        raise WorkerDied("a worker process was ended by SIGKILL")

    trainer.loader.epoch = dying
    with refusal(WorkerDied, "ended by SIGKILL"):
        trainer.run()
    assert trainer.folder.newest()[0].position == (1, 3)


def test_a_second_signal_ends_at_once_where_the_first_cannot(stuck):
    process = stuck
    process.terminate()
    assert process.stderr.readline() == "\n"
    assert process.stderr.readline() == "SIGTERM: stopping after this step; again to stop now\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    err = process.stderr.read()
    assert "stopped at once" in err and "GO ON" in err
