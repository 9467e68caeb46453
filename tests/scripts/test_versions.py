"""Which environment the scripts take for which Python and MindSpore, and what they refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import versions

ROOT = Path(__file__).parents[2]
OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def checkout(tmp_path):
    """A checkout of scripts and requirements alone, whose .venv is of Python 3.11."""
    for path in (ROOT / "scripts/common.sh", *ROOT.glob("requirements*.txt")):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    program(tmp_path / ".venv/bin/python", "echo 3.11")
    return tmp_path


def shell(checkout, script, **names):
    given = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "MINDSPORE")} | names
    command = ["bash", "-c", f"source scripts/common.sh; {script}"]
    return subprocess.run(command, cwd=checkout, env=given, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("python", "mindspore", "folder"),
    [
        (None, None, ".venv"),
        ("3.11", None, ".venv"),
        ("3.11", "2.8.0", ".venv"),
        ("3.10", None, ".venv-3.10-2.8.0"),
        ("3.10", "2.10.0", ".venv-3.10-2.10.0"),
        ("3.9", "2.7.1", ".venv-3.9-2.7.1"),
        (None, "2.9.0", ".venv-3.11-2.9.0"),
    ],
)
def test_each_pair_of_versions_has_an_environment(checkout, python, mindspore, folder):
    bin_folder = program(checkout / "bin/python3.11", "echo 3.11").parent
    names = {"PATH": f"{bin_folder}:{os.environ['PATH']}"}
    if python:
        names["PYTHON"] = str(program(checkout / "named", f"echo {python}"))
    if mindspore:
        names["MINDSPORE"] = mindspore
    done = shell(checkout, 'choose_environment; echo "${VENV##*/} $MINDSPORE"', **names)
    assert (done.stdout, done.stderr) == (f"{folder} {mindspore or '2.8.0'}\n", "")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("echo 'no such version' >&2; exit 127", "doesn't run"),
        ("echo 3.13", "is Python 3.13, and MindSpore has wheels for 3.9 to 3.12"),
    ],
)
def test_a_named_interpreter_is_taken_or_refused(checkout, text, told):
    named = program(checkout / "shim", text)
    done = shell(checkout, "set_up requirements.txt; echo went on", PYTHON=str(named))
    assert (done.returncode, done.stdout) == (2, "")
    end = "install one, or name it: PYTHON=/path/to/python3.11 bash bash"
    assert done.stderr == f"error: PYTHON: '{named}' {told}; {end}\n"


def test_a_version_of_mindspore_is_a_version(checkout):
    done = shell(checkout, "set_up requirements.txt", MINDSPORE="latest", PYTHON=sys.executable)
    assert (done.returncode, done.stderr) == (2, "error: MINDSPORE: a version as 2.8.0, not 'latest'\n")


def test_wheels_of_another_processor_are_refused(checkout):
    bin_folder = program(checkout / "bin/uname", "echo aarch64").parent
    path = f"{bin_folder}:{os.environ['PATH']}"
    done = shell(checkout, "set_up requirements.txt", PATH=path, PYTHON=sys.executable, MINDSPORE="2.9.0")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "are for x86-64, and this is aarch64" in done.stderr
    assert not (checkout / f".venv-{OWN}-2.9.0").exists()


def cells(text):
    return [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]


def test_the_table_of_kept_runs(tmp_path, capsys):
    runs, record = tmp_path / "matrix", tmp_path / "versions.json"
    runs.mkdir()
    failed = '<testcase classname="tests.test_a" name="test_b"><failure message="it"/></testcase>'
    skipped = '<testcase classname="tests.test_a" name="test_c"><skipped message="no camera"/></testcase>'
    for python, mindspore, words, inner in (
        ("3.9", "2.7.1", "--fast", failed + 2 * skipped),
        ("3.11", "2.8.0", "all", ""),
    ):
        (runs / f"Python{python}MindSpore{mindspore}.xml").write_text(
            f'<testsuites><testsuite name="Python {python}, MindSpore {mindspore}: {words}" tests="9" time="12.4">'
            f"{inner}</testsuite></testsuites>"
        )
    assert versions.main(["--keep", str(runs), "--record", str(record)]) == 1
    written = capsys.readouterr().out
    lines = cells(written)
    command = "bash scripts/run_tests.sh"
    assert ["3.9", "2.7.1", "6", "1", "2", "12", f"`MINDSPORE=2.7.1 PYTHON=python3.9 {command} --fast`"] in lines
    assert ["3.11", "2.8.0", "9", "0", "0", "12", f"`{command}`"] in lines
    # a wheel that there isn't, and what wasn't run
    assert ["3.12", "2.7.0", "no wheel", "", "", "", ""] in lines
    assert ["3.12", "2.9.0", "not run", "", "", "", ""] in lines
    # the record alone says the same, and what failed
    assert versions.main(["--record", str(record)]) == 1
    assert capsys.readouterr().out == written
    (run,) = (r for r in json.loads(record.read_text()) if r["python"] == "3.9")
    assert run["failed"] == ["tests.test_a::test_b"] and run["skipped"] == {"no camera": 2}


def test_a_cell_that_ran_again_takes_the_place_of_the_first(tmp_path, capsys):
    record = tmp_path / "versions.json"
    for passed in (7, 8):
        (tmp_path / "a.xml").write_text(f'<testsuite name="Python 3.10, MindSpore 2.9.0: --fast" tests="{passed}"/>')
        assert versions.main(["--keep", str(tmp_path), "--record", str(record)]) == 0
    assert [r["passed"] for r in json.loads(record.read_text())] == [8]


def test_the_page_shows_the_record(capsys):
    versions.main([])
    table = [
        row for row in cells(capsys.readouterr().out) if row[0:1] == ["Python"] or row[0:1] and row[0].startswith("3.")
    ]
    assert len(table) > 20
    page = cells((ROOT / "docs/versions.md").read_text(encoding="utf-8"))
    assert [row for row in page if row in table] == table
