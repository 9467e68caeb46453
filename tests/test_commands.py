"""A user's mistakes at the command line: one line, status 2, no traceback."""

import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

import eval as eval_script
import train as train_script
from src.runtime.errors import run_command
from src.runtime.newer import zip_equal

ROOT = Path(__file__).parents[1]
SHAPES = ["--config_path", "configs/shapes.yaml"]


def run(script, *arguments, outputs):
    command = [sys.executable, script, *SHAPES, *arguments, "--train_outputs", str(outputs)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def run_here(monkeypatch, capsys):
    """As `run`, in this process, which has MindSpore loaded already."""

    def call(script, *arguments, outputs):
        monkeypatch.setattr("sys.argv", [script, *SHAPES, *arguments, "--train_outputs", str(outputs)])
        main = {"train.py": train_script.main, "eval.py": eval_script.main}[script]
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.getsignal(n) for n in numbers]
        try:
            with pytest.raises(SystemExit) as ended:
                run_command(main)
        finally:
            for number, handler in zip_equal(numbers, before):
                signal.signal(number, handler)
        return types.SimpleNamespace(returncode=ended.value.code, stderr=capsys.readouterr().err)

    monkeypatch.chdir(ROOT)
    return call


def check_refused(done, *parts):
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


def test_unknown_key(tmp_path):
    done = run("train.py", "--lerning_rate", "0.1", "--momentom=0.5", outputs=tmp_path)
    check_refused(done, "command line", "lerning_rate", "unknown key")


@pytest.mark.parametrize(
    "words",
    [
        ["train.py", "--momentom", "0.5"],
        ["train.py", "--resume", "no_such_run"],
        ["train.py", *SHAPES, "--train_dataset", "nowhere"],
        ["eval.py", "--help"],
        ["eval.py", *SHAPES, "--checkpoint_path", "no_such.ckpt"],
        ["eval.py", "--checkpoint_path", "a.ckpt", "--momentom", "0.5"],
        ["export.py", "--help"],
        ["export.py", "--ckpt_file", "a.ckpt", "--file_format", "XML"],
        ["infer.py", "--help"],
    ],
    ids=" ".join,
)
def test_an_answer_does_not_wait_for_mindspore(words):
    """Which takes seconds to load."""
    program = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as e:\n    print('ended', e.code, 'mindspore' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"ended {0 if '--help' in words else 2} False", done.stderr


def test_missing_data_set(run_here, tmp_path):
    done = run_here("train.py", "--train_dataset", str(tmp_path / "nowhere"), outputs=tmp_path)
    check_refused(done, str(tmp_path / "nowhere"), "instances_train2017.json")


def test_missing_checkpoint(run_here, tmp_path, shapes_root):
    arguments = ["--checkpoint_path", str(tmp_path / "none.ckpt"), "--val_dataset", str(shapes_root)]
    done = run_here("eval.py", *arguments, outputs=tmp_path)
    check_refused(done, str(tmp_path / "none.ckpt"), "no such checkpoint")


def test_damaged_checkpoint(tmp_path, shapes_root):
    (tmp_path / "half.ckpt").write_bytes(b"\x0a\xff\x01half of a file")
    arguments = ["--checkpoint_path", str(tmp_path / "half.ckpt"), "--val_dataset", str(shapes_root)]
    done = run("eval.py", *arguments, outputs=tmp_path)
    check_refused(done, str(tmp_path / "half.ckpt"), "damaged")


def test_no_gpu(tmp_path, shapes_root):
    done = run("train.py", "--device_target", "GPU", "--train_dataset", str(shapes_root), outputs=tmp_path)
    check_refused(done, "device_target GPU", "--device_target CPU")


def test_output_folder_that_is_a_file(run_here, tmp_path, shapes_root):
    (tmp_path / "taken").write_text("mine")
    done = run_here("train.py", "--train_dataset", str(shapes_root), outputs=tmp_path / "taken")
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "taken" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert (tmp_path / "taken").read_text() == "mine"
