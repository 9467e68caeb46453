"""The C++ operators under the address, undefined-behaviour and thread sanitizers, outside of MindSpore."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from src.ops.library import SOURCES, cxx_flags, runnable_marches
from tests import aarch64
from tests.conftest import all_cores
from tests.ops.conftest import NEON

DRIVER = Path(__file__).with_name("sanitize_main.cc")


# the edges of maps are read in other ways by each instruction set
CASES = [("address,undefined", march) for march in (*runnable_marches(), NEON)] + [("thread", "native")]


@pytest.mark.full
@pytest.mark.parametrize(("sanitizers", "march"), CASES)
def test_edge_cases(sanitizers, march, tmp_path):
    compiler, run = os.environ.get("CXX", "g++"), []
    environment = {**os.environ, "RCNN_NUM_THREADS": "2"}
    # small ones, so that small maps are many tasks, and larger than all of them
    environment["RCNN_CACHE_KIB"] = "16,128,0"
    if march == NEON:
        aarch64.need()
        compiler, run = aarch64.COMPILER, aarch64.RUN
        environment["ASAN_OPTIONS"] = "detect_leaks=0"  # which ends a program that is traced or emulated
    elif shutil.which(compiler) is None:
        pytest.skip(f"no C++ compiler {compiler}")
    # float-divide-by-zero stays off: 0 / 0 of a vector lane that is then not chosen is meant.
    # Not optimised: every access is still there to be seen, and it compiles in a third of the time. Without the
    # optimiser GCC warns of loops that never run.
    flags = [f for f in cxx_flags(march) if f not in ("-O3", "-Wall", "-Wextra", "-Werror")]
    flags += ["-O0", "-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover"]
    empty = tmp_path / "empty.cc"
    empty.write_text("int main() { return 0; }\n")
    probe = subprocess.run([compiler, *flags, str(empty), "-o", str(tmp_path / "empty")], capture_output=True)
    works = {"capture_output": True, "env": environment}
    if probe.returncode != 0 or subprocess.run([*run, tmp_path / "empty"], **works).returncode != 0:
        pytest.skip(f"{compiler} has no working -fsanitize={sanitizers}")
    program = tmp_path / "driver"
    sources = [str(source) for source, _ in SOURCES]
    built = subprocess.run(
        [compiler, *flags, str(DRIVER), *sources, "-o", str(program)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    with all_cores():
        result = subprocess.run([*run, program], capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout == "done\n"
