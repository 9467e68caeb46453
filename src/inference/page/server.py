"""What stands between the page and its clients: waitress, with bounds on what all of them together may hold.

waitress reads a request whole before the application hears of it, and lets a client take any time over it. Here uploads
for which there is no room are told so without being kept, who is too slow is closed, and where there are too many
connections, one that has waited long makes room for the newest: so that the page always loads.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import waitress
from waitress import wasyncore
from waitress.buffers import OverflowableBuffer
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.task import WSGITask

__all__ = ["REFUSED", "BusyError", "Line", "Refusal", "Server", "StoppingError"]

Refusal = tuple[str, int]  # a word for the client, and the status

REFUSED = "page.refused"  # where the WSGI environment holds the Refusal of a request whose body was dropped
CONNECTIONS = 512
INCOMING = 160 * 1024 * 1024  # bytes of bodies that are held, of all connections together
OUTGOING = 64 * 1024 * 1024  # bytes of answers that their clients haven't taken, of all together
IDLE = 30.0  # seconds that a connection may say nothing, and that it may take for a request's head
PATIENCE = 30.0  # seconds that a body or an answer may take, and one more for each RATE bytes of it
RATE = 20 * 1024
FRESH = 1.0  # seconds in which a new connection isn't taken for an idle one
LINGER = 2.0  # seconds in which a refused client may go on sending before it is cut off, and lose the answer
GRACE = 5.0  # seconds that the work at hand may take once the server was asked to stop
HEADERS = 16 * 1024  # bytes
QUICK = 4  # threads for what neither predicts nor draws
READ = 4  # times the longest body: of a longer one no more is read to let its client hear the answer
UNBOUNDED = 1 << 62

SLOW = "took too long to arrive; try again", 408
CROWDED = "busy with other uploads; try again in a moment", 503
STOPPING = "the server is stopping", 503


class BusyError(Exception):
    """There are as many at work and in line as may be."""


class StoppingError(Exception):
    """The server stops; what waited isn't done any more."""


class Line:
    """Jobs, one at work at a time, the others in line, `places` in all; each waits in a thread of its client's."""

    def __init__(self, places: int):
        self.places, self.taken, self.lock = places, 0, threading.Lock()
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="line")
        self.closed: Future = Future()
        self.over: Future = Future()

    @property
    def full(self) -> bool:
        return self.taken >= self.places

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place in the line while the block runs. Raises BusyError where there is none."""
        with self.lock:
            if self.full:
                raise BusyError
            self.taken += 1
        try:
            yield
        finally:
            with self.lock:
                self.taken -= 1

    def run(self, job: Callable):
        """What `job` returns or raises, once its turn has come. Raises StoppingError."""
        try:
            future = self.worker.submit(job)
        except RuntimeError:
            raise StoppingError from None
        wait([future, self.closed], return_when=FIRST_COMPLETED)
        if future.running():
            wait([future, self.over], return_when=FIRST_COMPLETED)
        if not future.done() or future.cancelled():
            raise StoppingError
        return future.result()

    def close(self) -> None:
        """Drops the jobs in line; the one at work goes on."""
        self.worker.shutdown(wait=False, cancel_futures=True)
        finish(self.closed)

    def abandon(self) -> None:
        """No longer waits for the one at work either."""
        finish(self.over)


def finish(future: Future) -> None:
    if not future.done():
        future.set_result(None)


class Nowhere(OverflowableBuffer):
    """Keeps nothing of what it is given."""

    def __init__(self) -> None:
        super().__init__(UNBOUNDED)

    def append(self, s: bytes) -> None:
        pass


class Request(HTTPRequestParser):
    """A request as it comes in. The body of one that is refused is read on, which browsers need to hear the answer, but
    not kept.

    admit(method, path): why a body isn't wanted, None where it is; longest: bytes of a body that is kept.
    """

    refused: Refusal | None = None
    # waitress sets these, which has no type hints
    body_rcv: Any
    content_length: int
    expect_continue: bool
    path = ""  # waitress names it in messages, also of what has none

    def __init__(self, adj, admit: Callable[[str, str], Refusal | None], longest: int, too_long: Refusal):
        super().__init__(adj)
        self.admit, self.longest, self.too_long = admit, longest, too_long

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError:
            # a length of thousands of digits, an address that is none
            raise ParsingError("Malformed request") from None
        if self.body_rcv is None:
            return
        why = self.too_long if self.content_length > self.longest else self.admit(self.command, self.path)
        if why:
            self.refuse(why)
            if self.expect_continue or self.content_length > READ * self.longest:
                self.expect_continue, self.body_rcv, self.content_length = False, None, 0
                self.headers["CONNECTION"] = "close"

    def received(self, data: bytes) -> int:
        consumed = super().received(data)
        if self.body_bytes_received > self.longest:
            self.refuse(self.too_long)
        if self.body_bytes_received > READ * self.longest:
            self.headers["CONNECTION"] = "close"
            self.completed = True
        return consumed

    def refuse(self, why: Refusal) -> None:
        if not self.refused:
            self.refused = why
            self.body_rcv.buf.close()
            self.body_rcv.buf = Nowhere()

    @property
    def held(self) -> int:
        """Bytes of the body that are kept."""
        return 0 if self.refused or self.body_rcv is None else self.body_bytes_received


class Task(WSGITask):
    def get_environment(self) -> dict:
        environ = super().get_environment()
        environ[REFUSED] = self.request.refused
        return environ


class Channel(HTTPChannel):
    """A connection."""

    task_class = Task
    # waitress sets these, which has no type hints
    close_when_flushed: bool
    request: Any
    lingers = False
    sent = 0  # bytes
    phase: object = None  # what it is at, since when (monotonic), and `sent` at that time
    since, sent_before = 0.0, 0

    def parser_class(self, adj) -> Request:
        return Request(adj, *self.server.reception)

    def send(self, data: bytes, do_close: bool = True) -> int:
        sent = super().send(data, do_close)
        self.sent += sent
        return sent

    def handle_write(self) -> None:
        if not self.close_when_flushed or self.will_close:
            return super().handle_write()
        # a connection that closes with bytes unread takes the answer with it
        self.close_when_flushed = False
        super().handle_write()
        self.close_when_flushed = bool(self.total_outbufs_len)
        if self.connected and not self.close_when_flushed:
            self.lingers = True
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)
        return None

    def received(self, data: bytes) -> bool:
        return not self.lingers and super().received(data)

    def look(self, now: float) -> None:
        """Closes it where its client is too slow."""
        request = self.request
        phase: object
        if self.lingers:
            phase, allowed = "lingers", LINGER
        elif self.requests:
            phase, allowed = "served", UNBOUNDED
        elif self.total_outbufs_len:
            phase, allowed = "answered", PATIENCE + (self.sent - self.sent_before) / RATE
        elif request is None:
            phase, allowed = "idle", IDLE
        elif not request.headers_finished:
            phase, allowed = request, IDLE
        else:
            phase, allowed = request, IDLE + PATIENCE + request.body_bytes_received / RATE
        if phase is not self.phase:
            self.phase, self.since, self.sent_before = phase, now, self.sent
        elif now > self.since + allowed:
            if request is not None and request.headers_finished and request is phase:
                self.break_off(SLOW)
            else:
                self.handle_close()

    @property
    def idle(self) -> bool:
        """Whether it has asked for nothing yet."""
        return not (self.total_outbufs_len or (self.request is not None and self.request.headers_finished))

    def break_off(self, why: Refusal) -> None:
        """Answers a request of which no more is waited for."""
        with self.requests_lock:
            request, self.request = self.request, None
            request.refuse(why)
            request.headers["CONNECTION"] = "close"
            request.completed = True
            self.requests.append(request)
            if len(self.requests) == 1:
                self.server.add_task(self)

    def handle_close(self) -> None:
        if self.request is not None:
            self.request.close()
        super().handle_close()


class Server:
    """Serves a WSGI application at a listening socket until it is asked to stop.

    application: finds a Refusal, or None, in its environment's REFUSED. line: the jobs that it runs; workers: how many
    of its requests may wait in a thread at once. admit(method, path): the Refusal of a body, or None; longest: bytes of
    a body that is kept, else too_long is the answer.
    """

    def __init__(
        self,
        application: Callable,
        listening: socket.socket,
        line: Line,
        workers: int,
        admit: Callable[[str, str], Refusal | None],
        longest: int,
        too_long: Refusal,
    ):
        self.line, self.admit = line, admit
        self.stopped: signal.Signals | bool = False
        self.ended = False
        # entered again by a handler of signals that interrupts its own thread
        self.ending = threading.RLock()
        self.map: dict = {}
        # no request of the page's own waits in waitress's line, of which it would warn
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)
        self.server = waitress.create_server(
            application,
            map=self.map,
            sockets=[listening],
            threads=workers + QUICK,
            ident="",
            log_socket_errors=False,
            asyncore_use_poll=True,
            connection_limit=UNBOUNDED,
            channel_timeout=UNBOUNDED,
            channel_request_lookahead=1,  # so that a client that goes is noticed
            recv_bytes=1 << 16,
            max_request_header_size=HEADERS,
            max_request_body_size=UNBOUNDED,
            inbuf_overflow=UNBOUNDED,  # nothing is written to the disk
            outbuf_overflow=UNBOUNDED,
        )
        self.server.channel_class = Channel
        self.server.reception = self.wanted, longest, too_long
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.most = CONNECTIONS if files == resource.RLIM_INFINITY else min(CONNECTIONS, files // 2)

    def wanted(self, method: str, path: str) -> Refusal | None:
        return STOPPING if self.stopped else self.admit(method, path)

    def stop(self, why: signal.Signals | bool = True) -> None:
        """Asks to stop; from any thread, or a handler of signals."""
        self.stopped = why
        with self.ending:
            if not self.ended:
                self.server.pull_trigger()

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT, which then have the effect that they had before, or stop(); returns once what
        was at work is answered, or refused after some seconds. A second signal has its effect at once.
        """
        before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if (handler := signal.getsignal(number)) != signal.SIG_IGN:
                    before[number] = handler

        def restore() -> None:
            for each, handler in before.items():
                signal.signal(each, handler)

        def note(number: int, _frame: object) -> None:
            restore()
            self.stop(signal.Signals(number))

        for number in before:
            signal.signal(number, note)
        try:
            while not self.stopped:
                self.turn(1.0)
            self.finish()
        finally:
            restore()
            self.close()
        if isinstance(self.stopped, signal.Signals):
            signal.raise_signal(self.stopped)

    def turn(self, timeout: float) -> None:
        """Waits for clients, moves what can be moved, and looks after the bounds."""
        wasyncore.loop(timeout=timeout, use_poll=True, map=self.map, count=1)
        channels, now = list(self.server.active_channels.values()), time.monotonic()
        for channel in channels:
            channel.look(now)
        # the longest waiting first
        channels = sorted((c for c in channels if c.connected), key=lambda c: c.since)
        removable = [c for c in channels if not c.requests]
        # those that ask for nothing first, unless they have only just come
        removable.sort(key=lambda c: not c.idle or now < c.since + FRESH)
        for channel in removable[: max(0, len(channels) - self.most)]:
            channel.handle_close()
        excess = sum(c.total_outbufs_len for c in channels) - OUTGOING
        for channel in channels:
            if excess > 0 and channel.total_outbufs_len:
                excess -= channel.total_outbufs_len
                channel.handle_close()
        held = sum(r.held for c in channels for r in [*c.requests, *filter(None, [c.request])])
        for channel in reversed(channels):
            if held > INCOMING and channel.request is not None and (size := channel.request.held):
                held -= size
                channel.request.refuse(CROWDED)

    def finish(self) -> None:
        """Hears no one new, and answers those who were heard."""
        wasyncore.dispatcher.close(self.server)
        self.line.close()
        for channel in list(self.server.active_channels.values()):
            if channel.request is not None and channel.request.headers_finished:
                channel.break_off(STOPPING)
        end = time.monotonic() + GRACE
        while (left := end - time.monotonic()) > 0 and self.waited_for():
            if left < 1:
                self.line.abandon()
            self.turn(0.1)

    def waited_for(self) -> bool:
        return any(c.requests or c.total_outbufs_len or c.lingers for c in list(self.server.active_channels.values()))

    def close(self) -> None:
        with self.ending:
            self.ended = True
        self.line.close()
        self.line.abandon()
        self.server.task_dispatcher.shutdown(timeout=0.5)
        wasyncore.close_all(self.map)
