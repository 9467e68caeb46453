"""An export that is ended leaves what was there, and nothing beside it."""

import os
import signal
import subprocess
import sys

import pytest

from src.export.whole import folder_beside

PROGRAM = """
import sys, time
from pathlib import Path
from src.export import whole
path = Path(sys.argv[1])
with whole.folder_beside(path) as folder:
    (folder / path.name).write_text("new")
    if sys.argv[2] == "moving":
        real = whole.os.replace
        def slow(a, b):
            whole.os.replace = real
            real(a, b)
            print("there", flush=True)
            time.sleep(60)
        whole.os.replace = slow
        whole.put_in_place([folder / path.name], path.parent)
    if sys.argv[2] == "compiling":
        exec(compile("print('there', flush=True); time.sleep(60)", "mindspore/api.py", "exec"))
    if sys.argv[2] == "computed":
        import mindspore as ms
        net = ms.nn.ReLU()
        net(ms.Tensor([1.0]))
        time.sleep(0.2)
    print("there", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    "moment",
    [pytest.param("writing", marks=pytest.mark.full), "moving", pytest.param("compiling", marks=pytest.mark.full)],
)
def test_a_signal_leaves_what_was_there_alone(tmp_path, moment):
    path = tmp_path / "m.onnx"
    path.write_text("old")
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, path, moment], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"] and path.read_text() == "old"


def test_ctrl_c_after_a_network_has_run_is_no_sigterm(tmp_path):
    """MindSpore leaves a handler behind that makes a SIGTERM of it."""
    path = tmp_path / "m.onnx"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, path, "computed"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", ["moving", pytest.param("writing", marks=pytest.mark.full)])
def test_what_a_killed_export_left_goes_with_the_next(tmp_path, moment):
    path = tmp_path / "m.onnx"
    path.write_text("old")
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, path, moment], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "there\n"
    process.kill()
    process.wait()
    living = tmp_path / f".m.onnx.writing-{os.getppid()}"
    living.mkdir()
    with folder_beside(path):
        assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == [living.name, "m.onnx"]
