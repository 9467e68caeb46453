"""Ctrl-C while MindSpore computes.

At the start of every run of a graph MindSpore 2.8 puts a handler of its own in place of the process's for SIGINT, and
leaves it there: Ctrl-C then is a SIGTERM to the process, with neither KeyboardInterrupt nor `finally`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import signal
import threading
import time
from collections.abc import Iterator

__all__ = ["own_interrupts"]

PERIODS = 0.001, 0.005  # seconds between looks, before and after MindSpore's handler was first seen
LATE = 2.0  # seconds after a run in which another one of its, of the first run, may come
ACTION = 1024  # bytes, more than a struct sigaction takes anywhere; the handler's address comes first
DL_INFO = ("file", "base", "name", "address")


class _Symbol(ctypes.Structure):
    """dladdr(3)'s Dl_info."""

    _fields_ = [(name, ctypes.c_char_p if name in ("file", "name") else ctypes.c_void_p) for name in DL_INFO]


_libc = ctypes.CDLL(None)
_libc.dladdr.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
_spec = importlib.util.find_spec("mindspore")
_places = _spec.submodule_search_locations if _spec else None
if not _places:
    raise ImportError("mindspore isn't installed")
_package = os.path.realpath(_places[0]).encode() + b"/"


def _action() -> bytes:
    """The process's action on SIGINT, as sigaction(2) gives it: Python's signal.getsignal knows none but its own."""
    action = ctypes.create_string_buffer(ACTION)
    _libc.sigaction(int(signal.SIGINT), None, action)
    return action.raw


def _is_mindspores(action: bytes) -> bool:
    return _lies_in_mindspore(int.from_bytes(action[: ctypes.sizeof(ctypes.c_void_p)], "little"))


@functools.cache
def _lies_in_mindspore(address: int) -> bool:
    """Whether a function is of one of MindSpore's libraries; SIG_DFL and SIG_IGN are 0 and 1."""
    symbol = _Symbol()
    found = address > 1 and _libc.dladdr(address, ctypes.byref(symbol))
    return bool(found and symbol.file and os.path.realpath(symbol.file).startswith(_package))


_newest: threading.Event | None = None


@contextlib.contextmanager
def own_interrupts() -> Iterator[None]:
    """A block, in any thread, in which and after which SIGINT is answered as the program wants, and not by MindSpore.

    A handler that the program sets meanwhile stays.
    """
    global _newest
    before, over = _action(), threading.Event()
    _newest = over

    def keep() -> bool:
        """Puts the program's handler back; whether MindSpore's stood there."""
        nonlocal before
        action = _action()
        if not _is_mindspores(action):
            before = action
            return False
        if not _is_mindspores(before):
            _libc.sigaction(int(signal.SIGINT), before, None)
        return True

    def watch() -> None:
        seen = False
        while not over.wait(PERIODS[seen]):
            seen |= keep()
        end = time.monotonic() + LATE
        while _newest is over and time.monotonic() < end:
            keep()
            time.sleep(PERIODS[1])

    threading.Thread(target=watch, name="interrupts", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        keep()
