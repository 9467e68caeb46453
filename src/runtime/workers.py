"""The processes of a distributed job, and what they write."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from src.runtime.errors import ENDED_WITH_ANOTHER

__all__ = ["RANK_VARIABLES", "REFUSED", "Console", "Worker", "asks_for_several", "is_scheduler", "rank_of"]

RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "RANK_ID")
LAST_LINES = 12
# a line that tells an error, after which nothing but MindSpore's log comes
ENDING = re.compile(rb"^error: [^\n]*(?:\n(?:\[(?:WARNING|INFO|ERROR)\][^\n]*)?)*\Z", re.MULTILINE)
REFUSED = (2, ENDED_WITH_ANOTHER)


def is_scheduler() -> bool:
    """Whether this process is msrun's scheduler, which runs the workers' script to wait in join_group."""
    return os.environ.get("MS_ROLE") == "MS_SCHED"


def asks_for_several(words: Iterable[str]) -> bool:
    """Whether a command line itself, and not only a config that it names, says run_distribute."""
    return any(w.lstrip("-").partition("=")[0] == "run_distribute" for w in words)


class Worker:
    """One rank's process, or the scheduler's (`rank` is None), and where it writes."""

    def __init__(self, process: psutil.Process, rank: int | None):
        self.process, self.rank = process, rank
        self.status: int | None = None
        self.started: float = process.create_time()
        # read while it lives: afterwards there is nothing to ask
        with contextlib.suppress(OSError):
            self.log = Path(os.readlink(f"/proc/{process.pid}/fd/2"))

    log: Path | None = None

    def poll(self) -> int | None:
        """Exit status as a shell has it, -1 if unknown, None while it runs."""
        if self.status is None:
            try:
                # state, then the 52nd field of proc(5)'s stat, wait status; the name before may hold blanks
                fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
                if fields[0] in "ZX":
                    code = int(fields[49])
                    self.status = 128 + (code & 0x7F) if code & 0x7F else code >> 8
            except (OSError, IndexError, ValueError):
                self.status = -1
        return self.status

    def epitaph(self) -> str:
        """How it ended, and what it said last."""
        if self.status is None or self.status < 0:
            how = "is gone"
        elif self.status > 128:
            how = f"was killed by {signal.Signals(self.status - 128).name}"
        else:
            how = f"ended with status {self.status}"
        name = "the scheduler" if self.rank is None else f"rank {self.rank}"
        text = f"{name} (process {self.process.pid}) {how}"
        if self.log is None or not self.log.is_file():
            return text
        lines = self.log.read_text(errors="replace").replace("\r", "\n").splitlines()
        told = [line for line in lines if line.strip() and not line.startswith(("[WARNING]", "[INFO]"))]
        if not told:
            return text
        return f"{text}; its log {self.log} ends:\n" + "\n".join(f"  {line}" for line in told[-LAST_LINES:])

    def refusal(self) -> str | None:
        """The line that a worker ended with which was refused something, or missed another; None where it ended
        otherwise."""
        if self.status not in REFUSED or self.log is None or not self.log.is_file():
            return None
        lines = [line for line in self.log.read_bytes().splitlines() if line.startswith(b"error: ")]
        return lines[-1].decode(errors="replace") if lines else None


def rank_of(process: psutil.Process) -> int | str | None:
    """The rank whose Python process this is, or "scheduler"; None for a launcher, or msrun's `tail`."""
    try:
        environment, name = process.environ(), process.name()
    except psutil.Error:
        return None
    if "python" not in name:
        return None
    if environment.get("MS_ROLE") == "MS_SCHED":
        return "scheduler"
    return next((int(environment[v]) for v in RANK_VARIABLES if environment.get(v, "").isdigit()), None)


class Console:
    """Copies a worker's log to standard output as it grows; holds an error at its end back, which is told otherwise."""

    def __init__(self, log: Path):
        self.log, self.place, self.held = log, 0, b""

    def copy(self) -> None:
        with contextlib.suppress(OSError), open(self.log, "rb") as f:
            f.seek(self.place)
            new = f.read()
            self.place += len(new)
            if new:
                text = self.held + new
                ending = ENDING.search(text)
                end = ending.start() if ending else len(text)
                self.write(text[:end])
                self.held = text[end:]

    def end(self, told: str) -> None:
        """What is left; without the error at its end where `told`, which was printed otherwise, has it."""
        self.copy()
        if self.held.decode(errors="replace").partition("\n")[0] not in told:
            self.write(self.held)
        self.held = b""

    def write(self, text: bytes) -> None:
        if text:
            sys.stdout.flush()
            os.write(sys.stdout.fileno(), text)
