"""Random changes to every kind of input: python -m benchmarks.fuzz --parsers [--cases 20000] [--seed 0] [--jobs 2]

[--only KIND ...] [--case N]. Half of the cases change bytes, half what the file says. Each is read, refused in one
printable line that names the file, or a failure: another exception, a death, more than 10 s, more than 1 GB, or what a
checksum covers read as something else. A few hundred cases share a process with a limit on its addresses; one that
dies or hangs is followed by another. --only KIND --case N runs one case alone, and shows its traceback. Ends with
status 1 if there are failures.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from benchmarks.common import print_table
from benchmarks.fuzz_kinds import KINDS, Case
from src.runtime.errors import UserError

__all__ = ["Outcome", "Tally", "run_case", "run_cases"]

SECONDS, MEMORY = 10, 1 << 30  # that a case may take; bytes beyond what its process holds before it
ADDRESSES = 4 << 30  # bytes that a process may map beyond those it begins with
BATCH = 250  # cases of a process


@dataclass
class Outcome:
    """status: accepted, refused, traceback, death, slow, large, or wrong; told: the refusal, or what happened."""

    status: str
    told: str = ""
    seconds: float = 0.0
    mib: float = 0.0


@dataclass
class Tally:
    """What became of a kind's cases; failures by number of the case."""

    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    mib: float = 0.0
    failures: dict[int, Outcome] = field(default_factory=dict)

    def add(self, number: int, o: Outcome) -> None:
        self.counts[o.status] = self.counts.get(o.status, 0) + 1
        self.seconds, self.mib = max(self.seconds, o.seconds), max(self.mib, o.mib)
        if o.status not in ("accepted", "refused"):
            self.failures[number] = o


def memory(key: str) -> int:
    """Bytes of an entry of /proc/self/status."""
    return int(re.search(rf"{key}:\s*(\d+)", Path("/proc/self/status").read_text())[1]) << 10


def run_case(name: str, make, seed: int, number: int) -> Outcome:
    """Makes a case of the kind `name` by its set-up's `make`, and reads it, in this process."""
    random = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case: Case = make(random, number % 2 == 1)
        # the highest mark begins anew
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        held, high, begin = memory("VmRSS"), memory("VmHWM"), time.monotonic()
        try:
            found = case.read()
            out = Outcome("accepted")
            if case.same and not case.same(found):
                out = Outcome("wrong", "read as something else, though a checksum covers it")
        except UserError as e:
            out = Outcome("refused", str(e))
            if case.named not in out.told or not out.told or not out.told.isprintable():
                out = Outcome("traceback", f"a refusal that isn't one printable line with the file's name: {e!r}")
        except Exception:
            out = Outcome("traceback", traceback.format_exc())
    out.seconds = time.monotonic() - begin
    # where the mark couldn't be set anew, only what goes beyond it is known
    out.mib = max(memory("VmHWM") - held, 0) / (1 << 20) if memory("VmHWM") > high or high - held < 1 << 20 else 0.0
    if out.status in ("accepted", "refused"):
        if out.seconds > SECONDS:
            out.status, out.told = "slow", f"{out.seconds:.1f} s"
        elif out.mib * (1 << 20) > MEMORY:
            out.status, out.told = "large", f"{out.mib:.0f} MiB"
    return out


def work(pipe: Connection, name: str, make, seed: int, first: int, last: int) -> None:
    """A process's cases; sends each outcome."""
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silent, stream)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + ADDRESSES, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    for number in range(first, last):
        pipe.send(run_case(name, make, seed, number))
    pipe.close()


@dataclass
class Running:
    """A process: its cases from `at` on are to come, and it was last heard of at `heard`."""

    process: multiprocessing.Process
    name: str
    make: object
    at: int
    last: int
    heard: float


def run_cases(names: list[str], cases: int, seed: int, jobs: int, root: Path) -> tuple[dict[str, Tally], list[str]]:
    """Runs `cases` in all, shared among the kinds; returns their tallies, and why kinds were left out."""
    tallies, left_out = {}, []
    todo: deque[tuple[str, object, int, int]] = deque()
    for i, name in enumerate(names):
        count = cases // len(names) + (i < cases % len(names))
        tallies[name] = Tally()
        for first in range(0, count, BATCH):
            # a folder of its own, as several work at a time
            todo.append((name, None, first, min(first + BATCH, count)))
    fork = multiprocessing.get_context("fork")
    running: dict[Connection, Running] = {}
    places = {}
    with tqdm(total=cases, unit="case", disable=None) as bar:
        while todo or running:
            while todo and len(running) < jobs:
                name, make, first, last = todo.popleft()
                if make is None:
                    folder = Path(tempfile.mkdtemp(dir=root))
                    places.setdefault(name, [])
                    make = places[name].pop() if places[name] else None
                    try:
                        make = make or KINDS[name].set_up(folder)
                    except pytest.skip.Exception as e:
                        left_out.append(f"{name}: {e}")
                        todo = deque(t for t in todo if t[0] != name)
                        bar.update(last)
                        continue
                receive, send = fork.Pipe(False)
                process = fork.Process(target=work, args=(send, name, make, seed, first, last), daemon=True)
                process.start()
                send.close()
                running[receive] = Running(process, name, make, first, last, time.monotonic())
            for pipe in wait(list(running), timeout=0.5):
                r = running[pipe]
                try:
                    tallies[r.name].add(r.at, pipe.recv())
                except EOFError:
                    r.process.join()
                    del running[pipe]
                    if r.at < r.last:
                        tallies[r.name].add(r.at, Outcome("death", f"status {r.process.exitcode}"))
                        bar.update()
                        todo.appendleft((r.name, r.make, r.at + 1, r.last))
                    else:
                        places[r.name].append(r.make)
                    continue
                r.at, r.heard = r.at + 1, time.monotonic()
                bar.update()
            for pipe, r in list(running.items()):
                # making the case is no part of it
                if time.monotonic() - r.heard > 2 * SECONDS:
                    r.process.kill()
                    r.process.join()
                    del running[pipe]
                    tallies[r.name].add(r.at, Outcome("slow", "killed", 2.0 * SECONDS))
                    bar.update()
                    todo.appendleft((r.name, r.make, r.at + 1, r.last))
    return tallies, left_out


COLUMNS = ("accepted", "refused", "traceback", "death", "slow", "large", "wrong")
HEADS = ("accepted", "refused", "tracebacks", "deaths", "over 10 s", "over 1 GB", "silently wrong")


def rows_of(tallies: dict[str, Tally]) -> list[list[object]]:
    rows = []
    for name, t in tallies.items():
        counts: list[object] = [t.counts.get(c, 0) for c in COLUMNS]
        rows.append([name, sum(t.counts.values()), *counts, f"{t.seconds:.2f}", f"{t.mib:.0f}"])
    totals = [sum(row[i] for row in rows) for i in range(1, 2 + len(COLUMNS))]
    most = [max(t.seconds for t in tallies.values()), max(t.mib for t in tallies.values())]
    rows.append(["all", *totals, f"{most[0]:.2f}", f"{most[1]:.0f}"])
    for row in rows[:-1]:
        if not KINDS[row[0]].summed:
            # nothing tells
            row[1 + len(COLUMNS)] = "no checksum"
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--parsers", action="store_true", required=True)
    parser.add_argument("--cases", type=int, default=20_000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--case", type=int, help="one case of one KIND, in this process")
    a = parser.parse_args()
    names = a.only or list(KINDS)
    if a.case is not None and len(names) != 1:
        parser.error("--case needs --only KIND")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz") as root:
        if a.case is not None:
            o = run_case(names[0], KINDS[names[0]].set_up(Path(root)), a.seed, a.case)
            print(f"{o.status}: {o.told} ({o.seconds:.2f} s, {o.mib:.0f} MiB)")
            return 0 if o.status in ("accepted", "refused") else 1
        tallies, left_out = run_cases(names, a.cases, a.seed, a.jobs, Path(root))
    columns = ["kind", "cases", *HEADS, "longest, s", "most memory, MiB"]
    print_table(f"Changed inputs, seed {a.seed}, {time.monotonic() - begin:.0f} s", columns, rows_of(tallies))
    for line in left_out:
        print(f"left out: {line}")
    for name, t in tallies.items():
        for number, o in sorted(t.failures.items()):
            last = o.told.strip().splitlines()[-1][:300]
            print(f"FAILED: --parsers --seed {a.seed} --only {name!r} --case {number}: {o.status}: {last}")
    return 1 if any(t.failures for t in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
