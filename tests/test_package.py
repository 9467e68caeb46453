"""What importing src sets for the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("release", "given", "limit"),
    [
        ("2.7.1", None, None),
        ("2.8.0", None, None),
        ("2.9.0", None, "AVX2"),
        ("2.10.0", None, "AVX2"),
        ("2.10.0", "AVX512_CORE", "AVX512_CORE"),
    ],
)
def test_newer_releases_compute_convolutions_without_avx512(tmp_path, release, given, limit):
    metadata = tmp_path / f"mindspore-{release}.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: mindspore\nVersion: {release}\n")
    environment = {k: v for k, v in os.environ.items() if k != "ONEDNN_MAX_CPU_ISA"}
    environment |= {"PYTHONPATH": str(tmp_path)} | ({"ONEDNN_MAX_CPU_ISA": given} if given else {})
    command = [sys.executable, "-c", "import os, src; print(os.environ.get('ONEDNN_MAX_CPU_ISA'))"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{limit}\n", "")
