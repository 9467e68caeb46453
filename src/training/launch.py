"""Watches over a distributed job: python -m src.training.launch msrun --worker_num=2 ... --join=True train.py ...

Put before the command that starts the workers (msrun or mpirun). Passes SIGTERM and SIGINT on to the workers, which
save and stop; ends the whole job a few seconds after one of them has died, naming its rank and the end of its log; and
leaves no process behind. The exit status is the failed worker's (128 + signal if one killed it), else the command's.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

__all__ = ["RANK_VARIABLES", "die_with_parent", "launch"]

RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "RANK_ID")
POLL = 0.1  # seconds; msrun reaps a dead worker, and with it its exit status, within one second
GRACE = 60.0  # seconds that workers have to save after SIGTERM
AFTER_FAILURE = 10.0  # seconds that msrun has to end by itself once its workers are gone
LAST_LINES = 12
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # Linux, prctl(2)


def die_with_parent(signum: int = signal.SIGKILL) -> None:
    """This process gets `signum` when the one that started it dies, however that happens (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signum), 0, 0, 0)


class Worker:
    """One rank's process, and where it writes."""

    def __init__(self, process: psutil.Process, rank: int):
        self.process, self.rank, self.status = process, rank, None
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
        if self.status > 128:
            how = f"was killed by {signal.Signals(self.status - 128).name}"
        else:
            how = f"ended with status {self.status}" if self.status >= 0 else "is gone"
        text = f"rank {self.rank} (process {self.process.pid}) {how}"
        if self.log is None or not self.log.is_file():
            return text
        lines = self.log.read_text(errors="replace").replace("\r", "\n").splitlines()
        told = [line for line in lines if line.strip() and not line.startswith(("[WARNING]", "[INFO]"))]
        return f"{text}; its log {self.log} ends:\n" + "\n".join(f"  {line}" for line in told[-LAST_LINES:])


def rank_of(process: psutil.Process) -> int | None:
    """The rank whose Python process this is; None for a scheduler, a launcher, or msrun's `tail`."""
    try:
        environment, name = process.environ(), process.name()
    except psutil.Error:
        return None
    if "python" not in name or environment.get("MS_ROLE") == "MS_SCHED":
        return None
    return next((int(environment[v]) for v in RANK_VARIABLES if environment.get(v, "").isdigit()), None)


class Job:
    """A command and all that comes of it."""

    def __init__(self, command: Sequence[str]):
        # what a dead parent leaves behind becomes a child of this process, so that it can be found and ended
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.command = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C reaches this process alone: msrun would kill workers that save
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),
        )
        self.workers: dict[int, Worker] = {}
        self.known: set[int] = set()
        self.stopping = 0

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process().children(recursive=True)

    def look(self) -> list[Worker]:
        """Notes new workers; returns those that failed."""
        for p in self.descendants():
            if p.pid in self.known or p.pid == self.command.pid:
                continue
            rank = rank_of(p)
            # a worker's own children carry its rank too
            with contextlib.suppress(psutil.Error):
                if rank is not None and p.ppid() not in self.workers:
                    self.workers[p.pid] = Worker(p, rank)
                elif time.time() - p.create_time() < 1:
                    continue  # perhaps between fork and exec
                self.known.add(p.pid)
        return [w for w in self.workers.values() if w.poll()]

    def tell(self, signum: int) -> None:
        """Sends `signum` to every worker, or to the command while there is none."""
        for pid in self.workers or [self.command.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def stop(self, signum: int, _frame: object = None) -> None:
        self.stopping = signum
        self.tell(signum)

    def clear(self, keep: int | None = None) -> None:
        """Ends every process of the job but `keep`."""
        for p in self.descendants():
            if p.pid != keep:
                with contextlib.suppress(psutil.Error):
                    p.kill()

    def run(self) -> int:
        deadline = None
        failed: list[Worker] = []
        while self.command.poll() is None:
            # all that ended before the rest is ended for them; the first look sees the cause
            failed = failed or self.look()
            if deadline is None and self.stopping:
                deadline = time.monotonic() + GRACE
            elif failed and not self.stopping and (deadline is None or deadline - time.monotonic() > AFTER_FAILURE):
                time.sleep(1)  # what the others say
                self.clear(keep=self.command.pid)
                deadline = time.monotonic() + AFTER_FAILURE
            elif self.stopping and self.workers and all(w.poll() is not None for w in self.workers.values()):
                self.clear(keep=self.command.pid)
            if deadline is not None and time.monotonic() > deadline:
                break
            time.sleep(POLL)
        failed = failed or self.look()
        self.clear()
        for p in psutil.wait_procs(self.descendants(), timeout=5)[1]:
            print(f"process {p.pid} is still there", file=sys.stderr)
        self.command.wait()
        if self.stopping and not any(w.poll() not in (0, 128 + self.stopping) for w in self.workers.values()):
            return 128 + self.stopping
        if failed:
            print("error: " + "\n".join(w.epitaph() for w in failed), file=sys.stderr)
            return failed[0].status if failed[0].status > 0 else 1
        return self.command.returncode if self.command.returncode >= 0 else 128 - self.command.returncode


def launch(command: Sequence[str]) -> int:
    """Runs `command` to its end, or ends it; returns the exit status."""
    try:
        job = Job(command)
    except OSError as e:
        print(f"error: {command[0]}: can't start: {e.strerror}; is it installed and on PATH?", file=sys.stderr)
        return 2
    for s in (signal.SIGTERM, signal.SIGINT):
        signal.signal(s, job.stop)
    try:
        return job.run()
    finally:
        job.clear()


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__, file=sys.stderr)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    sys.exit(launch(sys.argv[1:]))


if __name__ == "__main__":
    main()
