"""The training step that another process compiles."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from src.config import load_config
from src.ops.device import use_local_device
from src.training import apart

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
sys.path.insert(0, {root!r})
import numpy as np
from benchmarks.synthetic import synthetic_batch
from src.config import load_config
from src.models.build import build_detector, build_loss
from src.ops.device import set_device
from src.training.loop import step_inputs
from src.training.step import SamplerKeys, build_step, compile_step

keys = {{"compile_apart": sys.argv[1] != "here", "batch_size": 1, "train_outputs": {outputs!r}}}
config = load_config("configs/shapes.yaml", keys)
set_device(config)
batch, rates = synthetic_batch(config, 3), np.full(10, 0.01, np.float32)
inputs = step_inputs(batch, SamplerKeys(config)(0, batch["image_id"]))
step = build_step(config, build_loss(config, build_detector(config)), rates)
compile_step(config, step, rates, inputs)
for _ in range(2):
    print("losses", step(*inputs)[0].asnumpy().tolist())
"""


def run(tmp_path, how):
    """(standard output, standard error) of two steps; nothing of the graph is left behind."""
    program, scratch = tmp_path / "program.py", tmp_path / "scratch"
    program.write_text(PROGRAM.format(root=str(ROOT), outputs=str(tmp_path / "outputs")))
    scratch.mkdir(exist_ok=True)
    environment = os.environ | {"TMPDIR": str(scratch)}
    done = subprocess.run([sys.executable, program, how], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert not list(scratch.iterdir())
    assert not (tmp_path / "outputs").exists()
    return done.stdout, done.stderr


@pytest.mark.full
def test_another_process_compiles_the_same_step(tmp_path):
    told, errors = run(tmp_path, "apart")
    assert "Use the compilation cache" in errors  # MindSpore's own words
    assert told == run(tmp_path, "here")[0]


def refused(monkeypatch, folder, program):
    monkeypatch.setattr(apart.sys, "executable", str(program))
    config, inputs = load_config("configs/shapes.yaml"), [((1, 3), "float32")]
    return apart.compile_apart(config, np.zeros(3, np.float32), inputs, folder)


def test_a_process_that_cannot_compile_says_why(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho one >&2; echo 'no room' >&2; exit 3\n")
    program.chmod(0o700)
    assert refused(monkeypatch, tmp_path, program) == "no room"
    assert "No such file" in refused(monkeypatch, tmp_path, tmp_path / "none")
    assert refused(monkeypatch, tmp_path, "/bin/false") == "status 1"


def test_the_other_process_ends_with_this_one(tmp_path):
    """Even where this one is killed: it reads what is never said to the end."""
    theirs, ours = os.pipe()
    code = "from src.training import compiling; compiling.end_with_input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stderr=subprocess.DEVNULL, cwd=ROOT)
    os.close(theirs)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)
    os.close(ours)
    assert child.wait(120) == 1


def test_ranks_compile_themselves(monkeypatch):
    monkeypatch.setattr("src.ops.device.local_device", lambda own: own)
    config = load_config("configs/mask_rcnn_r50_fpn.yaml", {"run_distribute": True})
    assert config.compile_apart
    assert not use_local_device(config).compile_apart
