"""The dry run for Ascend: what it takes for a fault, and, long, that small graphs are built without one."""

import sys
from pathlib import Path

import pytest

from benchmarks import ascend_dry_run
from benchmarks.ascend_dry_run import SMALL, build_stand_ins, dry_run, known_operators, row

KERNEL = "[INFO] KERNEL(1,7f,python):2026 [a.cc:1] GenerateKernelMod] kernel opname:{}, kernel type:{}_kernel\n"
GOOD = KERNEL.format("Add", "opapi") + KERNEL.format("Conv2D", "acl") + KERNEL.format("Reshape", "rt")
GOOD += "Actual peak memory usage (with fragments): 47M\n"
BUILT = "dry run: built train for Ascend\n"


@pytest.fixture
def child(tmp_path, monkeypatch):
    """child(text, status): what a dry run makes of a child that says this."""

    def run(text, status=0):
        (tmp_path / "said").write_text(text)
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\ncat {tmp_path / 'said'}\nexit {status}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        monkeypatch.setattr(ascend_dry_run, "build_stand_ins", lambda: tmp_path)
        monkeypatch.setattr(ascend_dry_run, "surroundings", lambda *_: {})
        return dry_run("shapes", "train")

    return run


def test_kernels_are_counted_by_kind(child):
    found = child(GOOD + BUILT)
    assert found.faults == []
    assert found.kernels == {"aclnn": 1, "aclop": 1, "runtime": 1}
    assert found.memory == 47
    assert row(found) == "| shapes | train | 1 | 1 | 1 | 1 | 0 | 0 | 47 | yes | yes | none |"


@pytest.mark.parametrize(
    ("memory", "fits"),
    [(0, "- | - | -"), (30720, "30720 | yes | yes"), (31000, "31000 | no | yes"), (61500, "61500 | no | no")],
)
def test_what_fits_is_what_mindspore_leaves_of_a_device(child, memory, fits):
    """It says itself that it uses 61430 of 65536 MB. With several ranks no memory is planned."""
    said = GOOD.replace("47M", f"{memory}M")
    assert f"| {fits} |" in row(child(said + BUILT))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD, "not built (status 3)"),
        (
            BUILT + "[INFO] x.cc:1] TryBackoffCpu] Try to use backoff CPU kernel, node:Default/Foo-op1\n",
            "Default/Foo-op1",
        ),
        (BUILT + KERNEL.format("Add", "cpu"), "kind cpu"),
        (BUILT + KERNEL.format("NoSuchOperator", "acl"), "operators.txt: NoSuchOperator"),
        (BUILT + "[ERROR] GE(1,7f,python):2026 [b.cc:2] Foo] it broke\n", "it broke"),
    ],
)
def test_faults_are_told(child, text, fault):
    (told,) = child(text, 0 if "built" in text else 3).faults
    assert fault in told


def test_two_build_stand_ins_at_once(tmp_path, monkeypatch):
    def fill(folder):
        folder.mkdir()
        (folder / "whole").write_text("")
        if not begun:
            begun.append(folder)
            done.append(ascend_dry_run.build_stand_ins(tmp_path))

    begun, done = [], []
    monkeypatch.setattr(ascend_dry_run, "fill", fill)
    assert ascend_dry_run.build_stand_ins(tmp_path) == done[0]
    assert [p.name for p in tmp_path.iterdir()] == [done[0].name]


def test_known_messages_are_harmless(child):
    said = '[CRITICAL] ME(1:2,MainProcess):2026 [c.py:1] MindSpore relies on whl package "te" in Ascend AI software\n'
    assert child(GOOD + said + BUILT).faults == []


def test_stand_ins_are_built_once(tmp_path):
    try:
        folder = build_stand_ins(tmp_path / "stand_ins")
    except RuntimeError as e:
        pytest.skip(str(e))
    library = folder / "cann/lib64/libopapi.so"
    assert (folder / "stand_in.so").is_file() and library.is_file()
    before = library.stat().st_mtime_ns
    assert build_stand_ins(tmp_path / "stand_ins") == folder
    assert library.stat().st_mtime_ns == before
    names = Path(ascend_dry_run.DATA / "libraries.txt").read_text().split()
    assert all((folder / "cann/lib64" / name).is_file() for name in names)
    assert {"TopK", "NMSWithMask", "ROIAlign"} <= known_operators()


@pytest.mark.full
@pytest.mark.parametrize(("graph", "ranks", "cores"), [("train", 1, 8), ("train", 8, 32), ("infer", 1, 8)])
def test_small_graphs_are_built_for_ascend(graph, ranks, cores):
    """On a host with few cores, too."""
    options = [*SMALL, "backbone.width_multiplier=0.25", "train_cfg.rcnn.mask_buckets=1"]
    assert dry_run("shapes", graph, ranks, options, cores=cores).faults == []
