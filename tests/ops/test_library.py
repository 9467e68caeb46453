"""How the built operators are found, and what happens without them."""

import os
import platform
import subprocess
import sys
import warnings

import pytest

from src.ops import library
from src.ops.nms import BatchedNMS
from src.runtime.errors import UserError


@pytest.fixture
def no_library(monkeypatch):
    monkeypatch.setattr(library, "find_library", lambda: None)
    library._warn_once.cache_clear()
    yield
    library._warn_once.cache_clear()


def test_one_warning_in_all_without_the_library(no_library):
    with pytest.warns(RuntimeWarning, match="build_custom.sh"):
        assert not BatchedNMS(0.5, 10).custom
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not BatchedNMS(0.5, 10).custom


def test_no_warning_where_the_standard_operators_are_asked_for(no_library):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not BatchedNMS(0.5, 10, builtin=True).custom


def test_another_cpu_has_another_library(monkeypatch):
    here = library.library_path("native")
    anywhere = library.library_path("haswell")
    library.library_path.cache_clear()
    monkeypatch.setattr(library, "_cpu_features", lambda: "another CPU")
    try:
        assert library.library_path("native") != here
        assert library.library_path("haswell") == anywhere
    finally:
        library.library_path.cache_clear()


def test_only_what_the_cpu_can_run_is_loaded(monkeypatch, refusal):
    monkeypatch.setattr(library, "_cpu_features", lambda: "flags : cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3")
    assert library.runnable_marches() == ("native", "x86-64-v2")
    monkeypatch.setenv("RCNN_OPS_MARCH", "haswell")
    with refusal(UserError, "RCNN_OPS_MARCH=haswell", "this CPU", "x86-64-v2"):
        BatchedNMS(0.5, 10)
    monkeypatch.setenv("RCNN_OPS_MARCH", "pentium")
    with refusal(UserError, "RCNN_OPS_MARCH=pentium", "native"):
        BatchedNMS(0.5, 10)


def test_one_line_says_which_library_serves(operators):
    march = library.chosen_march()
    name = {"haswell": "AVX2", "x86-64-v2": "SSE4.2"}.get(march, "")
    assert f"build/custom_ops/{operators.name} ({march}: {name}" in library.describe_operators()
    assert library.describe_operators("GPU") == "operators: MindSpore's own, for GPU"


def test_the_line_says_how_to_build_a_missing_library(no_library, monkeypatch):
    monkeypatch.setattr(library, "chosen_march", lambda: "native")
    assert library.describe_operators().endswith("(build ours: scripts/build_custom.sh)")
    monkeypatch.setattr(library, "chosen_march", lambda: "haswell")
    assert library.describe_operators().endswith("(build ours: scripts/build_custom.sh --march haswell)")


def test_an_instruction_set_that_is_not_known_is_not_built():
    command = ["bash", "scripts/build_custom.sh", "--march", "pentium", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "native|haswell|x86-64-v2" in done.stderr


@pytest.mark.skipif(platform.machine() == "aarch64", reason="nothing is missing there")
@pytest.mark.parametrize(
    ("command", "variables", "told"),
    [
        (
            "scripts/build_custom.sh --force --march armv8-a",
            {"CXX": "no-compiler"},
            "apt-get install g++-aarch64-linux-gnu",
        ),
        ("ascend310_infer/build.sh --aarch64", {"CXX": "no-compiler"}, "apt-get install g++-aarch64-linux-gnu"),
        ("scripts/build_aarch64.sh --sysroot", {"AARCH64_SYSROOT": "/no/libraries"}, "/no/libraries"),
        ("scripts/build_aarch64.sh --sysroots", {}, "--sysroots"),
    ],
)
def test_one_line_says_what_is_missing_for_aarch64(command, variables, told):
    environment = {**os.environ, "PYTHON": sys.executable, **variables}
    done = subprocess.run(["bash", *command.split()], capture_output=True, text=True, env=environment)
    assert done.returncode in (1, 2)
    assert told in done.stderr and done.stderr.count("\n") == 1
