"""scripts/run_demo.sh: what the demo leaves behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from src.ops.library import find_library
from tests.conftest import TINY

ROOT = Path(__file__).parents[2]


def checkout_with_environment(folder):
    """A checkout whose .venv holds this Python, so that nothing is installed."""
    folder.mkdir()
    names = ["scripts", "src", "configs", "train.py", "eval.py", "build", *(p.name for p in ROOT.glob("require*.txt"))]
    for name in names:
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv/bin").mkdir(parents=True)
    python = folder / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    wanted = subprocess.run("cat requirements*.txt | cksum", shell=True, cwd=folder, capture_output=True, check=True)
    (folder / ".venv/installed-requirements.txt").write_bytes(wanted.stdout)
    return folder


def test_the_demo(tmp_path, request):
    root = checkout_with_environment(tmp_path / "checkout")
    small = [f"--{k}={v}" for k, v in TINY.items()]
    options = ["--epoch_size", "2", "--save_every_epochs", "1", "--run_eval", "false", *small]
    if not request.config.getoption("--full"):
        # compiling would take most of the time
        options += ["--mode", "pynative"]
    command = ["bash", root / "scripts/run_demo.sh", tmp_path / "out", *options]
    environment = {**os.environ, "TRAIN_IMAGES": "4", "VAL_IMAGES": "3"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "Average Precision" in run.stdout
    shapes = tmp_path / "out/shapes"
    # the newer of both
    assert f"{shapes}/checkpoints/mask_rcnn-2_1.ckpt" in run.stdout
    assert isinstance(json.loads((shapes / "results.json").read_text()), list)
    pictures = sorted((shapes / "pictures").iterdir())
    assert len(pictures) == 4
    for picture in pictures:
        assert cv2.imread(str(picture)) is not None


@pytest.mark.skipif(not find_library(), reason="the operators aren't built")
def test_operators_of_a_read_only_checkout_are_used_without_a_warning(tmp_path):
    mounted = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"'
    if subprocess.run(["unshare", "-m", "bash", "-c", mounted, ROOT], capture_output=True).returncode:
        pytest.skip("this user may mount nothing")
    script = f'{mounted}; source "$0/scripts/common.sh"; build_operators "$1" "$0/build/build_custom.log"'
    command = ["unshare", "-m", "bash", "-c", script, ROOT, sys.executable]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=60)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.full
def test_the_demo_on_a_folder_of_ones_own(tmp_path, shapes_root):
    root = checkout_with_environment(tmp_path / "checkout")
    options = ["--epoch_size", "1", "--img_width", "128", "--img_height", "96", "--mode", "pynative"]
    options += ["--backbone.width_multiplier", "0.25"]
    command = ["bash", root / "scripts/run_demo.sh", tmp_path / "out", "--data", shapes_root, *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    (newest,) = (tmp_path / "out/finetune/checkpoints").glob("faster_rcnn-1_*.ckpt")
    assert str(newest) in run.stdout
    # the set's own five classes
    assert "circle" in run.stdout
    assert len(list((tmp_path / "out/finetune/pictures").iterdir())) == 9
