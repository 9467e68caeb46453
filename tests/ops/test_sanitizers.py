"""The C++ operators under the address, undefined-behaviour and thread sanitizers, outside of MindSpore."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from src.ops.library import CXX_FLAGS, SOURCES

DRIVER = Path(__file__).with_name("sanitize_main.cc")


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_edge_cases(sanitizers, tmp_path):
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        pytest.skip(f"no C++ compiler {compiler}")
    # float-divide-by-zero stays off: 0 / 0 of a vector lane that is then not chosen is meant.
    flags = [f for f in CXX_FLAGS if f != "-O3"] + ["-O1", "-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover"]
    empty = tmp_path / "empty.cc"
    empty.write_text("int main() { return 0; }\n")
    probe = subprocess.run([compiler, *flags, str(empty), "-o", str(tmp_path / "empty")], capture_output=True)
    if probe.returncode != 0 or subprocess.run([tmp_path / "empty"], capture_output=True).returncode != 0:
        pytest.skip(f"{compiler} has no working -fsanitize={sanitizers}")
    program = tmp_path / "driver"
    sources = [str(source) for source, _ in SOURCES]
    built = subprocess.run(
        [compiler, *flags, str(DRIVER), *sources, "-o", str(program)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    environment = {**os.environ, "RCNN_NUM_THREADS": "2"}
    result = subprocess.run([program], capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout == "done\n"
