"""Data-parallel training on several devices: who takes part, and what the processes tell each other.

Gradients, losses and sample counts are reduced inside the graph by MindSpore's collectives. Everything else (a signal,
evaluation results, a checkpoint to resume from) goes over a connection of rank 0 with each other rank, for which it
doesn't matter how long one waits: MindSpore's collectives on CPU give up after 30 seconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import zlib
from collections.abc import Callable, Iterable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.runtime.errors import ENDED_WITH_ANOTHER, UserError
from src.runtime.launch import JOB_VARIABLE, die_with_parent
from src.runtime.workers import RANK_VARIABLES, is_scheduler

__all__ = ["Group", "RankGoneError", "join_group", "local_device"]

STARTED_BY = ("MS_ROLE", "OMPI_COMM_WORLD_SIZE", "RANK_TABLE_FILE")
KEY_BYTES = 16


class RankGoneError(UserError):
    """Another rank has ended, whose own log says why."""

    status = ENDED_WITH_ANOTHER


class Group:
    """The ranks that train together; by default one alone.

    Every method must be called by all ranks, in the same order. A rank that is gone raises RankGoneError in the others.
    """

    def __init__(self, rank: int = 0, size: int = 1, links: list[Connection] | None = None):
        self.rank, self.size = rank, size
        # of rank 0: to ranks 1, 2, ...; of another: to rank 0
        self.links = links or []

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def exchange(self, value: Any) -> list:
        """Every rank's `value` (anything that pickles), by rank, on every rank."""
        if self.size == 1:
            return [value]
        if self.is_first:
            values = [value] + [self.receive(link, i) for i, link in enumerate(self.links, 1)]
            for i, link in enumerate(self.links, 1):
                self.send(link, values, i)
            return values
        self.send(self.links[0], value, 0)
        return self.receive(self.links[0], 0)

    def gather(self, value: Any) -> list:
        """Every rank's `value`, by rank, on rank 0; elsewhere an empty list."""
        if self.is_first:
            return [value] + [self.receive(link, i) for i, link in enumerate(self.links, 1)]
        self.send(self.links[0], value, 0)
        return []

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What `make` returns, called on rank 0 alone; a UserError that it raises, every rank raises."""
        if self.is_first:
            try:
                value = make()
            except UserError as e:
                value = e
            for i, link in enumerate(self.links, 1):
                self.send(link, value, i)
        else:
            value = self.receive(self.links[0], 0)
        if isinstance(value, UserError):
            raise value
        return value

    def barrier(self) -> None:
        """Waits for all ranks."""
        self.exchange(None)

    def check_same(self, parameters: Iterable[Parameter], when: str) -> None:
        """Raises UserError if `parameters` aren't the same, bit for bit, on every rank."""
        if self.size == 1:
            return
        crc = 0
        for p in parameters:
            crc = zlib.crc32(np.ascontiguousarray(p.asnumpy()).data, crc)
        found = self.exchange(crc)
        others = [i for i, c in enumerate(found) if c != found[0]]
        if others:
            raise UserError(
                f"the weights of rank {others[0]} differ from rank 0's {when}: "
                + (
                    "; start every rank with the same arguments and files"
                    if "before" in when
                    else "in gradient averaging"
                )
            )

    def send(self, link: Connection, value: Any, rank: int) -> None:
        try:
            link.send(value)
        except (OSError, EOFError):
            raise self.gone(rank) from None

    def receive(self, link: Connection, rank: int) -> Any:
        try:
            return link.recv()
        except (OSError, EOFError):
            raise self.gone(rank) from None

    def gone(self, rank: int) -> RankGoneError:
        return RankGoneError(f"rank {self.rank}: rank {rank} has ended; its own log says why; go on with --resume")


def local_device(device_id: int) -> int:
    """The device that the launcher gave this process; `device_id` where it gave none."""
    given = (os.environ.get(name, "") for name in ("OMPI_COMM_WORLD_LOCAL_RANK", "DEVICE_ID"))
    return next((int(v) for v in given if v.isdigit()), device_id)


def join_group(distributed: bool, asked: bool = True) -> Group:
    """Takes part in the job that msrun, mpirun or a rank table's launcher started; alone unless `distributed`.

    asked: this start asks for several processes, and not only a run's saved config, which says how that was started:
    one process may go on with it.

    After set_device. msrun's scheduler, which runs the same script, stays here until the job's end. Raises UserError
    where started otherwise than `distributed` says.
    """
    started = next((v for v in STARTED_BY if os.environ.get(v)), None)
    if not distributed:
        if any(int(os.environ.get(v) or 1) > 1 for v in ("MS_WORKER_NUM", "OMPI_COMM_WORLD_SIZE")):
            raise UserError(
                "started as one of several processes, each of which would train alone; add --run_distribute true"
            )
        return Group()
    if started is None and not asked:
        print("run_distribute: true in the config; started alone, this is one process")
        return Group()
    if started is None:
        raise UserError(
            "run_distribute: no job to take part in; start with msrun (scripts/run_distribute_train_*.sh), or set"
            " it to false"
        )
    # a launcher that is killed takes its job along, which saves first
    die_with_parent(signal.SIGKILL if is_scheduler() else signal.SIGTERM)
    from mindspore.communication import get_group_size, get_rank, init

    try:
        init()
    except (RuntimeError, ValueError) as e:
        reason = str(e).strip().splitlines()[0]
        rank = next((os.environ[v] for v in RANK_VARIABLES if os.environ.get(v)), "?")
        raise UserError(
            f"rank {rank}: can't join the job ({reason[:200]}); check that all workers were started and reach the"
            " scheduler's address and port"
        ) from None
    rank, size = get_rank(), get_group_size()
    ms.set_auto_parallel_context(
        parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True, device_num=size, global_rank=rank
    )
    return Group(rank, size, connect(rank, size) if size > 1 else None)


class AllGather(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.gather = ops.AllGather()

    def construct(self, x: Tensor) -> Tensor:
        return self.gather(x)


def own_address() -> str:
    """This host's address on the way to the scheduler's; where its own name leads to loopback, which other hosts can't
    reach, that on the way out."""
    scheduler = os.environ.get("MS_SCHED_HOST")
    found = ""
    # the second is nobody's: it stands for any other host
    for target in filter(None, (scheduler or socket.gethostname(), None if scheduler else "192.0.2.1")):
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.connect((target, 9))  # sends nothing; chooses the interface
            found = s.getsockname()[0]
            if not found.startswith("127."):
                break
    return found or "127.0.0.1"


def job_mark() -> int:
    """A number that ranks of one job share; 0 where nothing names the job."""
    return zlib.crc32(name.encode()) & 0x7FFFFFFF if (name := os.environ.get(JOB_VARIABLE)) else 0


def connect(rank: int, size: int) -> list[Connection]:
    """Connections of rank 0 with the others; where it listens, and a password, they learn by a collective.

    Raises UserError where a rank is another job's.
    """
    listener, row = None, np.zeros(6 + KEY_BYTES, np.int32)
    row[0] = job_mark()
    if rank == 0:
        key = os.urandom(KEY_BYTES)
        listener = Listener((own_address(), 0), backlog=size, authkey=key)
        row[1:] = [*socket.inet_aton(listener.address[0]), listener.address[1], *key]
    rows = AllGather()(Tensor(row)).asnumpy().reshape(size, -1)
    # mpirun doesn't name the job to other hosts
    others = [i for i, mark in enumerate(rows[:, 0]) if mark and rows[0, 0] and mark != rows[0, 0]]
    if others:
        raise UserError(f"rank {others[0]} is of another job than rank 0; give each job a MASTER_PORT of its own")
    first = rows[0, 1:]
    key = bytes(first[5:].tolist())
    if rank:
        link = Client((socket.inet_ntoa(bytes(first[:4].tolist())), int(first[4])), authkey=key)
        link.send(rank)
        return [link]
    links: dict[int, Connection] = {}
    while listener and len(links) < size - 1:
        try:
            link = listener.accept()
            links[link.recv()] = link
        except (AuthenticationError, EOFError, OSError):
            continue  # not one of ours
    if listener:
        listener.close()
    return [links[i] for i in range(1, size)]
