"""Watches over a distributed job: python -m src.runtime.launch msrun --worker_num=2 ... --join=True train.py ...

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
POLL = 0.02  # seconds; msrun reaps a dead worker, and with it its exit status, within one second
SCAN = 0.5  # seconds between searches for new workers
GRACE = 60.0  # seconds that workers have to save after SIGTERM
AFTER_FAILURE = 3.0  # seconds that the others, and msrun, have to end by themselves
LAST_LINES = 12
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # Linux, prctl(2)


def die_with_parent(signum: int = signal.SIGKILL) -> None:
    """This process gets `signum` when the one that started it dies, however that happens (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signum), 0, 0, 0)


def become_reaper() -> None:
    """What this process's descendants leave behind becomes its own child, to be found and ended (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Worker:
    """One rank's process, and where it writes."""

    def __init__(self, process: psutil.Process, rank: int):
        self.process, self.rank = process, rank
        self.status: int | None = None
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
        self.command = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C reaches this process alone: msrun would kill workers that save
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),
        )
        self.workers: dict[int, Worker] = {}
        self.known: set[int] = set()
        self.stopping = 0

    def look(self) -> None:
        """Notes new workers."""
        for p in psutil.Process().children(recursive=True):
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

    def failed(self) -> list[Worker]:
        """Workers that ended otherwise than well; none for one whose status went unseen, unless others failed."""
        ended = [w for w in self.workers.values() if w.poll() not in (None, 0)]
        return ended if any((w.status or 0) > 0 for w in ended) else []

    def alive(self) -> list[Worker]:
        return [w for w in self.workers.values() if w.poll() is None]

    def stop(self, signum: int, _frame: object = None) -> None:
        """Asks every worker to save and end, or the command while there is none."""
        self.stopping = signum
        for pid in [w.process.pid for w in self.alive()] or [self.command.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def run(self) -> int:
        """Waits for the end, or makes it; returns the exit status."""
        failed: list[Worker] = []
        deadline, scan = None, 0.0
        while self.command.poll() is None or self.alive():
            if time.monotonic() > scan:
                self.look()
                scan = time.monotonic() + SCAN
            # those that end because one has ended come later: the first look sees the cause
            failed = failed or self.failed()
            if deadline is None and (failed or self.stopping or self.command.poll() is not None):
                deadline = time.monotonic() + (AFTER_FAILURE if failed and not self.stopping else GRACE)
                if not failed and not self.stopping:
                    self.stop(signal.SIGTERM)  # the command is gone and has left its workers
            if deadline is not None and not self.alive():
                # msrun's scheduler waits for half a minute for workers that are gone
                clear(keep=self.command.pid)
                deadline = min(deadline, time.monotonic() + AFTER_FAILURE)
            if deadline is not None and time.monotonic() > deadline:
                break
            time.sleep(POLL)
        failed = failed or self.failed()
        clear()
        self.command.wait()
        stopped = all(w.poll() in (0, -1, 128 + self.stopping) for w in self.workers.values())
        if self.stopping and stopped:
            return 128 + self.stopping
        if failed:
            print("error: " + "\n".join(w.epitaph() for w in failed), file=sys.stderr, flush=True)
            return max(failed[0].status or 0, 0) or 1
        return self.command.returncode if self.command.returncode >= 0 else 128 - self.command.returncode


def clear(keep: int | None = None) -> None:
    """Ends every descendant of this process but `keep`."""
    left = [p for p in psutil.Process().children(recursive=True) if p.pid != keep]
    for p in left:
        with contextlib.suppress(psutil.Error):
            p.kill()
    psutil.wait_procs(left, timeout=5)


def launch(command: Sequence[str]) -> int:
    """Runs `command` to its end, or ends it; returns the exit status.

    In two processes, each of which ends the job should the other be killed.
    """
    become_reaper()
    watcher = os.fork()
    if watcher == 0:
        die_with_parent(signal.SIGTERM)
        become_reaper()
        os._exit(watch(command))
    for s in (signal.SIGTERM, signal.SIGINT):
        signal.signal(s, lambda signum, _: os.kill(watcher, signum))
    _, code = os.waitpid(watcher, 0)
    clear()
    return os.waitstatus_to_exitcode(code) if os.WIFEXITED(code) else 128 + os.WTERMSIG(code)


def watch(command: Sequence[str]) -> int:
    """The work of the inner process."""
    try:
        os.setsid()  # Ctrl-C comes once, from the outer process
        job = Job(command)
        for s in (signal.SIGTERM, signal.SIGINT):
            signal.signal(s, job.stop)
        return job.run()
    except OSError as e:
        print(
            f"error: {command[0]}: can't start: {e.strerror}; is it installed and on PATH?", file=sys.stderr, flush=True
        )
        return 2
    finally:
        clear()


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__, file=sys.stderr)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    sys.exit(launch(sys.argv[1:]))


if __name__ == "__main__":
    main()
