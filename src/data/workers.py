"""Threads and processes that read samples ahead of the network."""

import contextlib
import ctypes
import multiprocessing
import os
import queue
import signal
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from src.runtime.errors import InternalError, UserError
from src.runtime.pools import thread_pool

__all__ = ["WorkerDied", "worker_count", "worker_pool"]

LESS_MEMORY = (
    "lower num_parallel_workers, the batch size, or img_width and img_height; a training goes on with --resume"
)
PR_SET_PDEATHSIG = 1  # prctl(2)

Reader = Callable[..., Any]  # of arrays; what it returns is pickled where workers are processes

told: set[int] = set()  # more workers than cores


class WorkerDied(UserError):  # noqa: N818 - what happened, not whose error it is
    """A worker that reads pictures was killed, or had no memory; the message names the keys that need less."""


def worker_count(wanted: int) -> int:
    """How many workers there are of those wanted: no more than the cores that this process may use, which is told
    once."""
    cores = len(os.sched_getaffinity(0))
    if wanted > cores and wanted not in told:
        print(f"num_parallel_workers: {wanted} on {cores} core{'s' * (cores > 1)}: {cores} read pictures")
        told.add(wanted)
    return min(wanted, cores)


class WorkerProcess:
    """A process that reads samples: called as its reader, by one thread at a time.

    Over a pipe of its own: in one that is shared, as concurrent.futures has it, a worker killed while it writes leaves
    half an answer, of which the reader waits for the rest.
    """

    def __init__(self, reader: Reader):
        self.connection, theirs = multiprocessing.Pipe()
        fork = multiprocessing.get_context("fork")
        self.process = fork.Process(target=serve, args=(theirs, reader, os.getpid()), daemon=True)
        self.process.start()
        # so that nobody else holds it open, and its end is noticed
        theirs.close()

    def __call__(self, *row: np.ndarray) -> Any:
        """Raises what the reader raises, and WorkerDied."""
        try:
            self.connection.send(row)
            answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with status {code}"
            raise WorkerDied(f"a worker process was ended {how}, for want of memory? {LESS_MEMORY}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self) -> None:
        """The connection closes with its last user, which may be a thread that is still to hear of this."""
        self.process.terminate()
        self.process.join()


def start_worker(reader: Reader) -> WorkerProcess:
    try:
        return WorkerProcess(reader)
    except OSError as e:
        raise WorkerDied(f"can't start a worker process: {e.strerror}; {LESS_MEMORY}") from None


def serve(connection: Connection, reader: Reader, parent: int) -> None:
    """What a worker process does: ends with the process that began it, which alone hears Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    while os.getppid() == parent:
        row = connection.recv()
        answer: Any
        try:
            answer = reader(*row)
        except (InternalError, MemoryError) as e:
            if hasattr(e, "add_note"):  # from Python 3.11 on
                e.add_note(traceback.format_exc())
            answer = e
        connection.send(answer)


@contextlib.contextmanager
def worker_pool(reader: Reader, workers: int, processes: bool) -> Iterator[Callable[..., Future]]:
    """Hands `reader` the rows that a block gives, by so many threads, or processes with a thread each.

    Raises WorkerDied where one has no memory, or is killed.
    """
    free: queue.SimpleQueue = queue.SimpleQueue()
    begun: list[WorkerProcess] = []

    def work(row: tuple[np.ndarray, ...]) -> Any:
        worker = free.get()
        try:
            return worker(*row)
        finally:
            free.put(worker)

    try:
        with thread_pool(workers) as pool:
            for _ in range(workers):
                if processes:
                    begun.append(start_worker(reader))
                free.put(begun[-1] if processes else reader)
            yield lambda *row: pool.submit(work, row)
    except MemoryError:
        raise WorkerDied(f"too little memory to read a picture; {LESS_MEMORY}") from None
    finally:
        for worker in begun:
            worker.stop()
