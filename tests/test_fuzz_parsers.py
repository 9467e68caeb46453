"""A share of the changed inputs of benchmarks/fuzz_parsers.py, and that it finds what goes wrong."""

import os
import time

import numpy as np
import pytest

from benchmarks import fuzz_parsers
from benchmarks.fuzz_kinds import KINDS, Case, Kind
from benchmarks.fuzz_parsers import run_case, run_cases
from src.runtime.errors import UserError

SEED, CASES = 3, 16
# the others have tests of their own (in checkpoints/, data/, ascend310_infer/); these of checkpoints, too, but not of
# changed content
HERE = ["VOC list", "YOLO data.yaml", "YOLO labels", "YOLO list", "truth", "C++ summary", "C++ result", "MINDIR"]
HERE += [name for name in KINDS if name.startswith("checkpoint")]


@pytest.mark.parametrize("name", HERE)
def test_changed_inputs_are_read_or_refused(name, tmp_path):
    make = KINDS[name].set_up(tmp_path)
    for number in range(CASES):
        out = run_case(name, make, SEED, number)
        assert out.status in ("accepted", "refused"), f"case {number}: {out.told}"


def refuse(message):
    raise UserError(message)


def fail():
    raise KeyError("x")


FAULTS = {
    "traceback": fail,
    "death": lambda: os._exit(7),
    "slow": lambda: time.sleep(60),
    # more than a kernel short of room takes from the process meanwhile: pages of the libraries that it has read
    "large": lambda: "whole" if np.ones(1 << 30, np.uint8).all() else "",
    "wrong": lambda: "another",
}


@pytest.mark.parametrize("status", FAULTS)
def test_what_goes_wrong_is_counted_with_its_case(status, tmp_path, monkeypatch):
    """Of eight cases the fourth; those after it are run all the same."""
    if status == "slow":
        monkeypatch.setattr(fuzz_parsers, "SECONDS", 1.5)
    monkeypatch.setattr(fuzz_parsers, "MEMORY", 20 << 20)

    def set_up(folder):
        def make(random, structured):
            # outlives a process that dies
            with (folder / "numbers").open("a") as f:
                f.write("x")
                number = f.tell() - 1
            read = (
                FAULTS[status] if number == 3 else (lambda: refuse("a.txt: bad")) if number % 2 else (lambda: "whole")
            )
            return Case(read, lambda found: found == "whole", "a.txt")

        return make

    monkeypatch.setitem(KINDS, "here", Kind(set_up, True))
    tallies, left_out = run_cases(["here"], 8, 0, 1, tmp_path)
    assert not left_out
    tally = tallies["here"]
    assert list(tally.failures) == [3] and tally.failures[3].status == status
    assert tally.counts == {"accepted": 4, "refused": 3, status: 1}


@pytest.mark.parametrize("message", ["b.txt: bad", ""])
def test_a_refusal_that_does_not_name_the_file_is_a_failure(message):
    out = run_case("here", lambda random, structured: Case(lambda: refuse(message), None, "a.txt"), 0, 0)
    assert out.status == "traceback" and "one printable line" in out.told
