"""SIGTERM and Ctrl-C in training and evaluation: told at once, and acted on where nothing is lost."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["Stopped", "StopRequest"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)
TICK = 0.005  # seconds between looks at the handlers
ECHO = 48  # ticks between signals to a main thread that MindSpore keeps from answering


class Stopped(BaseException):  # noqa: N818 - no error, and not to be caught as one
    """Asked to stop while there is nothing to save."""


class StopRequest:
    """Notes SIGTERM or SIGINT while it is entered, and says so at once, in whatever of MindSpore's C++ the main thread
    is; a second one ends the process.

    go_on: the command that resumes a training, for the lines.

    signum: what came, or 0. status: the exit status that this asks for.
    """

    def __init__(self, go_on: str = "") -> None:
        self.when = " after this step" if go_on else ""
        self.go_on = f"; go on from the last checkpoint with {go_on}" if go_on else ""
        self.signum, self.at_once = 0, False
        self.told, self.echoes = 0, 0
        self.before: dict = {}

    @property
    def status(self) -> int:
        return 128 + self.signum if self.signum else 0

    def __enter__(self) -> StopRequest:
        # elsewhere Python lets nobody handle signals
        if threading.current_thread() is threading.main_thread():
            self.inbox, outbox = os.pipe()
            os.set_blocking(outbox, False)
            self.before = {s: signal.signal(s, self.note) for s in SIGNALS}
            self.own = {s: getsig(s) for s in SIGNALS}
            self.wakeup, self.outbox = signal.set_wakeup_fd(outbox, warn_on_full_buffer=False), outbox
            _entered.add(self)
            self.listener = threading.Thread(target=self.listen, daemon=True)
            self.listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.before:
            return
        _entered.discard(self)
        signal.set_wakeup_fd(self.wakeup)
        os.write(self.outbox, b"\0")
        self.listener.join()
        os.close(self.outbox)
        os.close(self.inbox)
        for s, handler in self.before.items():
            signal.signal(s, handler)
        self.before = {}

    def note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = self.signum or signum
        # what is raised within its compiler, MindSpore tells as a fault of the network, over a page
        if self.at_once and not compiling(frame):
            self.at_once = False
            raise Stopped

    def listen(self) -> None:
        """Tells of signals as they come, until this is left."""
        for tick in itertools.count():
            ready, _, _ = select.select([self.inbox], [], [], TICK)
            if ready:
                signum = os.read(self.inbox, 1)[0]
                if not signum:
                    return
                self.tell(signum)
                continue
            for s, handler in self.own.items():
                # MindSpore puts handlers of its own in their place, which turn SIGINT into SIGTERM
                if getsig(s) != handler:
                    setsig(s, handler)
            if self.at_once and self.signum and tick % ECHO == 0:
                self.echoes += 1
                os.kill(os.getpid(), self.signum)

    def tell(self, signum: int) -> None:
        """Says what a signal will do; ends the process at a second one."""
        if signum not in SIGNALS:
            return
        if self.echoes:
            self.echoes -= 1
            return
        if self.told:
            say(f"stopped at once{self.go_on}")
            os._exit(128 + signum)
        else:
            say(f"{signal.Signals(signum).name}: stopping{self.when}; again to stop now")
        self.told += 1
        self.signum = self.signum or signum

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within, a signal raises Stopped at once."""
        self.at_once = True
        try:
            if self.signum:
                raise Stopped
            yield
        finally:
            self.at_once = False


_entered: set[StopRequest] = set()


def _forget() -> None:
    """In a forked process: signals are that process's own."""
    if _entered:
        signal.set_wakeup_fd(-1)
        for s in SIGNALS:
            signal.signal(s, signal.SIG_DFL)
        _entered.clear()


os.register_at_fork(after_in_child=_forget)

# what the operating system calls, which signal.getsignal doesn't tell
getsig, setsig = ctypes.pythonapi.PyOS_getsig, ctypes.pythonapi.PyOS_setsig
getsig.argtypes, getsig.restype = [ctypes.c_int], ctypes.c_void_p
setsig.argtypes, setsig.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p


def say(line: str) -> None:
    """A line of its own below a progress bar, whatever lock the main thread holds."""
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{line}\n".encode())


def compiling(frame: FrameType | None) -> bool:
    """Whether MindSpore is compiling a network where `frame` runs."""
    while frame:
        if frame.f_code.co_name == "compile" and "mindspore" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False
