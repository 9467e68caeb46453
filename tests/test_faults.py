"""The fault campaign: a small share of its trials, and that it finds what a fault leaves."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults import (
    WAYS,
    Ended,
    Outcome,
    Site,
    Trial,
    check_end,
    check_kept,
    contents,
    damage,
    difference,
    make_trial,
    run_trial,
    start,
)

ROOT = Path(__file__).parents[1]
WRITER = """
import sys
from pathlib import Path
from src.runtime.errors import run_command
from src.runtime.files import whole

def main():
    with whole(Path(sys.argv[1])) as beside:
        beside.write_text("new")

run_command(main)
"""


@pytest.fixture
def outcome():
    return Outcome(Trial("0", "kill", "images", "mask_rcnn", False, 0))


@pytest.mark.parametrize(
    ("status", "err", "found"),
    [
        (0, "100%|####| 8/8\n", ""),
        (2, "error: /data/a.json: no such file; name another\n", ""),
        (2, "", "0 lines of error"),
        (2, "error: /data/a.json: a\nerror: /data/a.json: b\n", "2 lines"),
        (2, "error: something went wrong\n", "doesn't name a.json"),
        (2, "Traceback (most recent call last):\nerror: /data/a.json: x\n", "Traceback"),
        (2, "[ERROR] ME(1): x\nerror: /data/a.json: x\n", "[ERROR]"),
        (139, "", "status 139"),
    ],
)
def test_how_a_command_ends(outcome, status, err, found):
    check_end(outcome, Ended(["infer.py"], status, "", err), {0, 2}, (Path("/data/a.json"),))
    assert (found in " ".join(outcome.faults)) if found else not outcome.faults


def test_hanging_and_left_processes_are_faults(outcome):
    check_end(outcome, Ended(["infer.py"], 137, "", "", left=2, hung=True), {0})
    assert outcome.faults == ["hangs: infer.py", "2 processes left"]


def test_what_was_there_is_as_it_was_or_whole_and_new(outcome, tmp_path):
    before, new, now = ({} for _ in range(3))
    for place, texts in (
        (before, {"kept": "old", "replaced": "old", "spoilt": "old", "gone": "old"}),
        (new, {"kept": "new", "replaced": "new", "spoilt": "new", "gone": "new", "short": "new"}),
        (now, {"kept": "old", "replaced": "new", "spoilt": "ne", "short": "n", "a.writing-7.json": "n"}),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, text in texts.items():
            (folder / name).write_text(text)
        place |= contents(folder)
    check_kept(outcome, folder, before, new)
    assert sorted(outcome.faults) == [
        "half written: short",
        "lost: gone, there before",
        "lost: spoilt is neither what it was nor whole and new",
    ]
    assert difference(now, new) == "no gone, kept differs"


@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_file_differs(way, tmp_path):
    for seed in range(20):
        file = tmp_path / "f"
        file.write_bytes(bytes(9000))
        damage(file, way, random.Random(seed), b"another's")
        assert file.read_bytes() != bytes(9000)


def test_a_trial_is_the_same_by_its_number_alone():
    every = [make_trial(str(i), 1, ["kill", "damage"], ["train", "images", "onnx"]) for i in range(6)]
    assert {(t.kind, t.command) for t in every} == {("kill", "train"), ("kill", "images"), ("damage", "onnx")}
    again = make_trial("4", 1, ["kill", "damage"], ["train", "images", "onnx"])
    assert again == every[4] and again.random().random() == every[4].random().random()


def test_a_fault_comes_at_the_moment_asked_for(outcome, tmp_path):
    script, place, count = tmp_path / "writer.py", tmp_path / "place", tmp_path / "count"
    script.write_text(WRITER)
    place.mkdir()
    (place / "f").write_text("old")
    words = [str(script), str(place / "f")]
    # it makes the folder, opens a file beside and renames it
    ended = start(words, tmp_path, False, place, at=3, signum=signal.SIGKILL, count=str(count)).wait()
    assert (ended.status, count.read_text()) == (137, "3")
    assert (place / "f").read_text() == "old"
    assert [p.read_text() for p in place.glob("f.writing-*")] == ["new"]

    ended = start(words, tmp_path, False, place, at=2, limit=0).wait()
    check_end(outcome, ended, {2}, (place / "f",))
    assert not outcome.faults and "File too large" in ended.err
    # what the killed one left is gone
    assert [(p.name, p.read_text()) for p in place.iterdir()] == [("f", "old")]


@pytest.mark.full
@pytest.mark.parametrize("kind", ["kill", "size limit"])
def test_a_trial_of_the_converter(kind, tmp_path):
    trial = Trial("0", kind, "checkpoint", "faster_rcnn", False, seed=0)
    assert run_trial(Site(tmp_path / "site"), trial, tmp_path / "trial").faults == []


@pytest.mark.full
@pytest.mark.parametrize("kind", ["kill", "signal", "disk full", "size limit", "damage", "two at once"])
def test_campaign(kind):
    words = [sys.executable, "-m", "benchmarks.faults", "--trials", "2", "--seed", "1", "--kinds", kind]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout
