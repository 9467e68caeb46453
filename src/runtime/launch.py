"""Watches over a distributed job: python -m src.runtime.launch [OPTIONS] msrun --worker_num=2 ... train.py ...

Put before the command that starts the workers (msrun or mpirun). Passes SIGTERM and SIGINT on to the workers, which
save and stop; ends the whole job a few seconds after one of them has died, naming its rank and the end of its log; and
leaves no process behind. The exit status is the failed worker's (128 + signal if one killed it), else the command's.
Of msrun it reserves the port, waits for the other hosts, and has the first rank alone on the console.

    --restarts N  start a job again, from its last checkpoint, that wasn't refused or ended by a signal from outside
                  (default: 0)
    --wait S      seconds that workers on all hosts have to come together (default: 600)
    --any_port    where msrun's --master_port is taken, the next one that is free
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from src.runtime.errors import UserError
from src.runtime.meeting import address_of, hold_port, join_host_0, wait_for_hosts
from src.runtime.workers import REFUSED, Console, Worker, rank_of

__all__ = ["AGAIN_VARIABLE", "JOB_VARIABLE", "die_with_parent", "launch"]

JOB_VARIABLE = "RCNN_JOB"  # tells a worker its job's name, the same for every run of it
AGAIN_VARIABLE = "RCNN_RESTART"  # tells a worker of which restart it is
WAIT = 600.0  # seconds for workers to come together: msrun's own
NO_RANK = 10**6  # msrun itself shows no worker's log
POLL = 0.02  # seconds; msrun reaps a dead worker, and with it its exit status, within one second
SCAN = 0.5  # seconds between searches for new workers
GRACE = 60.0  # seconds that workers have to save after SIGTERM
AFTER_FAILURE = 3.0  # seconds that the others, and msrun, have to end by themselves
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # Linux, prctl(2)


def die_with_parent(signum: int = signal.SIGKILL) -> None:
    """This process gets `signum` when the one that started it dies, however that happens (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signum), 0, 0, 0)


def become_reaper() -> None:
    """What this process's descendants leave behind becomes its own child, to be found and ended (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Job:
    """A command and all that comes of it.

    command: words.  variables: environment beyond this process's.
    """

    def __init__(self, command: Sequence[str], variables: Mapping[str, str]):
        self.is_msrun = Path(command[0]).name == "msrun"
        # its own log, which ends in a traceback whatever went wrong
        self.said = tempfile.TemporaryFile() if self.is_msrun else None  # noqa: SIM115 - as long as the job
        self.command = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(variables),
            stderr=self.said,
            start_new_session=True,  # Ctrl-C reaches this process alone: msrun would kill workers that save
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),
        )
        self.workers: dict[int, Worker] = {}
        self.scheduler: Worker | None = None
        self.console: Console | None = None
        self.known: set[int] = set()
        self.stopping = 0
        self.without = 0.0  # since when there is no scheduler
        self.told = ""  # on standard error

    def look(self) -> None:
        """Notes new workers."""
        for p in psutil.Process().children(recursive=True):
            if p.pid in self.known or p.pid == self.command.pid:
                continue
            rank = rank_of(p)
            # a worker's own children carry its rank too
            with contextlib.suppress(psutil.Error):
                if isinstance(rank, int) and p.ppid() not in self.workers:
                    self.workers[p.pid] = Worker(p, rank)
                elif rank == "scheduler" and self.scheduler is None:
                    self.scheduler = Worker(p, None)
                elif time.time() - p.create_time() < 1:
                    continue  # perhaps between fork and exec
                self.known.add(p.pid)
        # the others of them come within a second
        if any(time.time() - w.started > 1 for w in self.workers.values()):
            self.show_first()

    def show_first(self) -> None:
        """Copies the first rank's log to the console from now on, where msrun would copy all."""
        if self.is_msrun and self.workers and self.console is None:
            first = min(self.workers.values(), key=lambda w: w.rank or 0)
            if first.log and first.log.is_file():
                self.console = Console(first.log)

    def failed(self) -> list[Worker]:
        """Workers that ended otherwise than well; none for one whose status went unseen, unless others failed."""
        ended = [w for w in self.workers.values() if w.poll() not in (None, 0)]
        return ended if any((w.status or 0) > 0 for w in ended) else []

    def lost_scheduler(self) -> Worker | None:
        """The scheduler, if it has ended before the workers, and not well; what it is refused, they are too."""
        s = self.scheduler
        if s is None or s.poll() in (None, 0) or not self.alive():
            return None
        self.without = self.without or time.monotonic()
        return s if s.status not in REFUSED or time.monotonic() > self.without + AFTER_FAILURE else None

    def alive(self) -> list[Worker]:
        return [w for w in self.workers.values() if w.poll() is None]

    def stop(self, signum: int) -> None:
        """Asks every worker to save and end, or the command while there is none."""
        self.stopping = signum
        for pid in [w.process.pid for w in self.alive()] or [self.command.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def run(self) -> int:
        """Waits for the end, or makes it; returns the exit status."""
        failed: list[Worker] = []
        lost: Worker | None = None
        deadline, scan = None, 0.0
        while self.command.poll() is None or self.alive():
            if time.monotonic() > scan:
                self.look()
                scan = time.monotonic() + (SCAN if self.workers else SCAN / 5)
            if self.console:
                self.console.copy()
            # those that end because one has ended come later: the first look sees the cause
            failed = failed or self.failed()
            if lost is None and deadline is None and not failed and (lost := self.lost_scheduler()):
                self.tell(f"{lost.refusal() or f'error: {lost.epitaph()}'}\nthe ranks save and stop")
                self.stop(signal.SIGTERM)
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
        if not failed or any(w.status == -1 for w in failed):
            failed = self.named() or failed
        status = self.status(failed, lost)
        self.show_first()
        if self.console:
            self.console.end(self.told)
        return status

    def status(self, failed: list[Worker], lost: Worker | None) -> int:
        """The exit status of a job that has ended, after telling why it failed."""
        if lost:
            return lost.status if lost.status and lost.status > 0 else 1
        stopped = all(w.poll() in (0, -1, 128 + self.stopping) for w in self.workers.values())
        if self.stopping and stopped:
            return 128 + self.stopping
        if failed:
            refusals = [w.refusal() for w in failed]
            if all(refusals):
                self.tell("\n".join(dict.fromkeys(map(str, refusals))))
            else:
                self.tell("error: " + "\n".join(w.epitaph() for w in failed))
            return max(failed[0].status or 0, 0) or 1
        status = self.command.returncode if self.command.returncode >= 0 else 128 - self.command.returncode
        if status and self.is_msrun:
            lines = [line for line in self.msruns_log().splitlines() if line.strip()]
            self.tell(f"error: msrun ended with status {status}: {lines[-1] if lines else ''}")
        return status

    def named(self) -> list[Worker]:
        """The worker whose end msrun saw first, and with it its status."""
        found = re.search(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)", self.msruns_log())
        worker = self.workers.get(int(found[1])) if found else None
        if found is None or worker is None:
            return []
        code = int(found[2])
        worker.status = code if code >= 0 else 128 - code
        return [worker]

    def msruns_log(self) -> str:
        """What msrun itself has said on standard error."""
        if self.said is None:
            return ""
        self.said.seek(0)
        return self.said.read().decode(errors="replace")

    def tell(self, text: str) -> None:
        self.told += text
        print(text, file=sys.stderr, flush=True)


def clear(keep: int | None = None) -> None:
    """Ends every descendant of this process but `keep`."""
    left = [p for p in psutil.Process().children(recursive=True) if p.pid != keep]
    for p in left:
        with contextlib.suppress(psutil.Error):
            p.kill()
    psutil.wait_procs(left, timeout=5)


class Msrun:
    """msrun's own options in a command, before the script."""

    def __init__(self, command: Sequence[str]):
        self.words = list(command)
        self.given: dict[str, str] = {}
        self.end = 1
        while self.end < len(self.words) and self.words[self.end].startswith("--"):
            name, eq, value = self.words[self.end][2:].partition("=")
            if not eq:
                self.end += 1
                value = self.words[self.end] if self.end < len(self.words) else ""
            self.given[name] = value
            self.end += 1

    def number(self, name: str, default: int) -> int:
        """Raises UserError."""
        try:
            return int(self.given.get(name, default))
        except ValueError:
            raise UserError(f"msrun --{name}: a whole number, not {self.given[name]!r}") from None

    def with_options(self, **more: str | int) -> list[str]:
        """The command with further options, or others; those given stay in place."""
        own = [f"--{name}={value}" for name, value in (self.given | more).items()]
        return [self.words[0], *(str(w) for w in own), *self.words[self.end :]]


class Watch:
    """One or more runs of a job, until it ends well, is refused or stopped, or has been started again often enough."""

    def __init__(self, command: Sequence[str], restarts: int = 0, wait: float = WAIT, any_port: bool = False):
        self.command, self.restarts, self.wait, self.any_port = command, restarts, wait, any_port
        self.name = os.urandom(8).hex()
        self.again = 0
        self.job: Job | None = None
        self.stopping = 0

    def stop(self, signum: int, _frame: object = None) -> None:
        self.stopping = signum
        if self.job:
            self.job.stop(signum)

    def run(self) -> int:
        """The last run's exit status. Raises UserError."""
        while True:
            status = self.run_once()
            if status in (0, 2) or self.stopping or self.again >= self.restarts:
                return status
            self.again += 1
            for worker in self.job.workers.values() if self.job else ():
                if worker.log and worker.log.is_file():
                    # the next run begins its own
                    worker.log.replace(worker.log.with_name(f"{worker.log.name}.{self.again}"))
            print(
                f"status {status}: starting again from the last checkpoint ({self.again} of {self.restarts})",
                file=sys.stderr,
                flush=True,
            )

    def run_once(self) -> int:
        if Path(self.command[0]).name != "msrun":
            return self.run_command(self.command)
        words = Msrun(self.command)
        of, here = words.number("worker_num", 8), words.number("local_worker_num", 8)
        port, rank = words.number("master_port", 8118), words.number("node_rank", -1)
        address = address_of(words.given.get("master_addr", "127.0.0.1"), 2 if of > here else 1)
        options = {"cluster_time_out": words.number("cluster_time_out", int(self.wait)), "tail_worker_log": NO_RANK}
        # those that msrun has by default, too
        options |= {"worker_num": of, "local_worker_num": here}
        if of > here and rank < 0:
            # which host this is, msrun finds out by itself
            return self.run_command(words.with_options(**options))
        if of > here and rank > 0:
            self.name = join_host_0(address, port, rank, here, of, self.wait, lambda: bool(self.stopping))
            return self.run_command(words.with_options(**options))
        with hold_port(address, port, self.any_port and of == here) as held:
            if of > here:
                wait_for_hosts(address, held, here, of, self.name, self.wait, lambda: bool(self.stopping))
            return self.run_command(words.with_options(**options, master_port=held))

    def run_command(self, command: Sequence[str]) -> int:
        if self.stopping:
            return 128 + self.stopping
        variables = {JOB_VARIABLE: self.name}
        if self.again:
            variables[AGAIN_VARIABLE] = str(self.again)
        self.job = Job(command, variables)
        return self.job.run()


def launch(command: Sequence[str], **options: Any) -> int:
    """Runs `command` to its end, or ends it; returns the exit status. options: as Watch takes them.

    In two processes, each of which ends the job should the other be killed.
    """
    become_reaper()
    watcher = os.fork()
    if watcher == 0:
        die_with_parent(signal.SIGTERM)
        become_reaper()
        os._exit(watch(Watch(command, **options)))
    for s in (signal.SIGTERM, signal.SIGINT):
        signal.signal(s, lambda signum, _: os.kill(watcher, signum))
    _, code = os.waitpid(watcher, 0)
    clear()
    return os.waitstatus_to_exitcode(code) if os.WIFEXITED(code) else 128 + os.WTERMSIG(code)


def watch(job: Watch) -> int:
    """The work of the inner process."""
    try:
        os.setsid()  # Ctrl-C comes once, from the outer process
        for s in (signal.SIGTERM, signal.SIGINT):
            signal.signal(s, job.stop)
        return job.run()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        return 128 + job.stopping if job.stopping else 2
    except OSError as e:
        print(
            f"error: {job.command[0]}: can't start: {e.strerror}; is it installed and on PATH?",
            file=sys.stderr,
            flush=True,
        )
        return 2
    finally:
        clear()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m src.runtime.launch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--restarts", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--wait", type=float, default=WAIT, help=argparse.SUPPRESS)
    parser.add_argument("--any_port", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="msrun or mpirun, and its arguments")
    a = parser.parse_args()
    if not a.command:
        parser.error("no command")
    sys.exit(launch(a.command, restarts=a.restarts, wait=a.wait, any_port=a.any_port))


if __name__ == "__main__":
    main()
