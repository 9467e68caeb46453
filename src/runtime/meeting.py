"""Where a job's processes meet: a port that is the job's own, and, of several hosts, that all of them have come."""

import contextlib
import errno
import ipaddress
import json
import selectors
import socket
import time
from collections.abc import Callable, Iterator

from src.runtime.errors import UserError

__all__ = ["MeetingError", "address_of", "hold_port", "join_host_0", "wait_for_hosts"]

TELL = 30.0  # seconds between lines on who is waited for
TICK = 0.2  # seconds between tries, and looks at what may end the wait
LONGEST = 4096  # bytes of a host's message
PORTS = 100  # that are tried where any will do


class MeetingError(UserError):
    """A job that can't come together; the message names the port or host and the remedy."""


def address_of(host: str, hosts: int) -> str:
    """The IPv4 address of MASTER_ADDR. Raises MeetingError for none, or, of several hosts, for a loopback one."""
    try:
        address = socket.gethostbyname(host)
    except OSError:
        raise MeetingError(f"MASTER_ADDR: no such host: {host}; give host 0's address") from None
    if hosts > 1 and ipaddress.ip_address(address).is_loopback:
        raise MeetingError(
            f"MASTER_ADDR: {host} is {address} here, which other hosts can't reach; give its address on the network"
        )
    return address


def listen_socket(address: str, port: int) -> socket.socket:
    """A socket on the port, not listening yet: others may bind it then alone who say, as MindSpore's scheduler does,
    that they share it (SO_REUSEADDR)."""
    out = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    out.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        out.bind((address, port))
    except OSError:
        out.close()
        raise
    return out


@contextlib.contextmanager
def hold_port(address: str, port: int, any_port: bool = False) -> Iterator[int]:
    """Reserves `port` for a block, against other jobs' blocks too, and gives its number; with `any_port` the first free
    one from there on.

    Raises MeetingError for one that is taken, and for an `address` that isn't this host's.
    """
    last = min(port + PORTS - 1, 65535) if any_port else port
    with contextlib.ExitStack() as held:
        for tried in range(port, last + 1):
            try:
                # a name in the kernel's own space, which goes with the process: what shares the port doesn't share it
                name = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                name.bind(f"\0rcnn-job-{tried}")
                held.enter_context(listen_socket(address, tried))
            except OSError as e:
                held.close()
                if e.errno == errno.EADDRINUSE:
                    continue
                if e.errno == errno.EADDRNOTAVAIL:
                    raise MeetingError(f"MASTER_ADDR: {address} isn't an address of this host, host 0") from None
                raise MeetingError(f"port {tried} can't be used: {e.strerror}; name another MASTER_PORT") from None
            yield tried
            return
    if any_port:
        raise MeetingError(f"ports {port} to {last} are taken; name a MASTER_PORT that isn't")
    raise MeetingError(f"port {port} is taken; name another MASTER_PORT")


class Wait:
    """The end of a wait, and the lines that it is told by. ended: asks whether to give up, at every tick."""

    def __init__(self, seconds: float, ended: Callable[[], bool]):
        self.seconds, self.ended = seconds, ended
        self.deadline, self.next_line = time.monotonic() + seconds, time.monotonic() + TELL

    def check(self, who: str) -> bool:
        """Whether a line is due; raises MeetingError, naming `who` didn't come, at the end."""
        if self.ended():
            raise MeetingError(f"stopped while waiting for {who}")
        now = time.monotonic()
        if now > self.deadline:
            raise MeetingError(
                f"{who} didn't come within {self.seconds:g} s; start each of the NODES hosts with its own NODE_RANK and"
                " the same MASTER_ADDR and MASTER_PORT, or wait longer with JOIN_TIMEOUT"
            )
        if due := now > self.next_line:
            self.next_line = now + TELL
        return due


def wait_for_hosts(
    address: str, port: int, workers: int, of: int, job: str, seconds: float, ended: Callable[[], bool]
) -> None:
    """Host 0, which brings `workers` of the job's `of`: waits for the others, and gives each the job's name.

    Within hold_port. Tells who is missing every half a minute; raises MeetingError after `seconds`.
    """
    wait = Wait(seconds, ended)
    came: dict[int, tuple[socket.socket, int]] = {}
    with contextlib.ExitStack() as opened, selectors.DefaultSelector() as ready:
        door = opened.enter_context(listen_socket(address, port))
        door.listen()
        ready.register(door, selectors.EVENT_READ)
        while (missing := of - workers - sum(n for _, n in came.values())) > 0:
            who = f"{missing} of {of} workers"
            if wait.check(who):
                print(f"waiting for {who}", flush=True)
                for link, _ in came.values():
                    answer(link, waiting=who)
            if not ready.select(TICK):
                continue
            link = opened.enter_context(door.accept()[0])
            link.settimeout(2)
            try:
                said = json.loads(link.recv(LONGEST))
                rank, brought, wanted = int(said["rank"]), int(said["workers"]), int(said["of"])
            except (OSError, ValueError, TypeError, KeyError):
                link.close()  # not one of ours
                continue
            if wanted != of or rank == 0 or brought > missing:
                answer(link, error=f"host 0 has a job of {of} workers, {missing} of them missing, and no place for"
                       f" {brought} of {wanted} from NODE_RANK {rank}")  # fmt: skip
            else:
                # one that has ended meanwhile comes again
                came[rank] = link, brought
        for link, _ in came.values():
            answer(link, job=job)
            # who closes first keeps the port busy
            with contextlib.suppress(OSError):
                link.recv(1)


def answer(link: socket.socket, **said: str) -> None:
    with contextlib.suppress(OSError):
        link.sendall(json.dumps(said).encode() + b"\n")


def join_host_0(
    address: str, port: int, rank: int, workers: int, of: int, seconds: float, ended: Callable[[], bool]
) -> str:
    """Another host, NODE_RANK `rank`: waits until all have come to host 0, and returns the job's name.

    Raises MeetingError after `seconds`, or with host 0's refusal.
    """
    wait = Wait(seconds, ended)
    who = f"host 0 at {address}:{port}"
    while True:
        try:
            with socket.create_connection((address, port), timeout=2) as link:
                link.sendall(json.dumps({"rank": rank, "workers": workers, "of": of}).encode())
                link.settimeout(TICK)
                if job := hear(link, wait, who):
                    return job
        except OSError:
            pass  # not there yet
        if wait.check(who):
            print(f"waiting for {who}", flush=True)
        time.sleep(TICK)


def hear(link: socket.socket, wait: Wait, who: str) -> str:
    """What host 0 says, until it is the job's name; "" if it hangs up."""
    said = b""
    while True:
        try:
            said += (more := link.recv(LONGEST))
            if not more:
                return ""
        except TimeoutError:
            wait.check(f"the other hosts of {who}")
        *lines, said = said.split(b"\n")
        for line in lines:
            try:
                told = dict(json.loads(line))
            except (ValueError, TypeError):
                raise MeetingError(f"{who}: another program answers there; name another MASTER_PORT") from None
            if "error" in told:
                raise MeetingError(f"{who}: {told['error']}; check NODES, NODE_RANK and DEVICE_NUM of each host")
            if "job" in told:
                return str(told["job"])
            print(f"waiting for {told.get('waiting')}", flush=True)
