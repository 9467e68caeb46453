"""What pip says of this project, which runs from its folder."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_pip_refuses_in_one_line(tmp_path):
    pytest.importorskip("pip")
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", str(tmp_path / "x")]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    told = [line.strip() for line in done.stderr.splitlines() if "isn't installed as a package" in line]
    assert len(told) == 1
    assert told[0].startswith("error: ")
    assert "pip install -r requirements.txt" in told[0]
    assert not (tmp_path / "x").exists()
