"""The one kind of error that a user can mend; entry scripts print its message as one line and exit with status 2.

And our own bugs where they would pass for something else: told as ours, with status 1.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import reprlib
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from src.runtime.masking import masked_text

__all__ = [
    "ENDED_WITH_ANOTHER",
    "InternalError",
    "UserError",
    "loading",
    "one_line",
    "quiet_logging",
    "run_command",
    "shown",
]

LONGEST = 2000  # characters of a message
BROKEN_PIPE = 128 + signal.SIGPIPE  # as a shell has it
ENDED_WITH_ANOTHER = 75  # the exit status of a rank that can't go on since another has ended: the job may start again


class _Short(reprlib.Repr):
    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(masked_text(x), level)


_short = _Short()
_short.maxstring = _short.maxother = 80


def one_line(text: str) -> str:
    """`text` in one line that a terminal shows as it is: control characters as escapes, the middle cut out if long,
    passwords in addresses as ***.
    """
    text = masked_text(text)
    if len(text) > LONGEST:
        # a message begins with what is wrong and ends with the remedy
        text = f"{text[: LONGEST * 3 // 4]} ... {text[-LONGEST // 4 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: Any) -> str:
    """A value as a message names it: its repr, shortened, without passwords in addresses."""
    return _short.repr(value)


class UserError(ValueError):
    """Names the file, key or line, and the remedy, in one line whatever the names hold. status: of the process."""

    status = 2

    def __init__(self, message: str):
        super().__init__(one_line(message))


class InternalError(RuntimeError):
    """A fault of this program itself, not of what it was given; raised from its cause."""

    @classmethod
    def of(cls, cause: Exception, doing: str) -> InternalError:
        """Names what was being done, and of `cause` type, message and place."""
        frames = traceback.extract_tb(cause.__traceback__)
        mine = [f for f in frames if "site-packages" not in f.filename] or frames
        place = f" ({os.path.relpath(mine[-1].filename)}, line {mine[-1].lineno})" if mine else ""
        return cls(f"{doing}: {type(cause).__name__}: {cause}{place}")


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """Keeps MindSpore from logging a fault that the caller tells in one line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """For imports that load MindSpore, which takes seconds: Ctrl-C meanwhile ends the process without a page."""
    usual = threading.current_thread() is threading.main_thread()
    usual = usual and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def run_command(main: Callable[[], int | None]) -> None:
    """Runs an entry script's `main`, ends the process: 0, a UserError's status (2) after its line, 130 after Ctrl-C.

    Where who reads the output has gone (head), it ends with 141, as SIGPIPE would. Anything else that is raised is a
    fault of ours: its traceback, then a line that says so, status 1.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # names of files may hold bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main() or 0
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        status = e.status
    except MemoryError:
        print("error: too little memory; lower batch_size, num_parallel_workers or the canvas", file=sys.stderr)
        status = 2
    except Exception as e:
        status = BROKEN_PIPE
        if not (isinstance(e, BrokenPipeError) and output_is_unread()):
            lines = traceback.format_exception(type(e), e, e.__traceback__)
            print(masked_text("".join(lines)), end="", file=sys.stderr)
            told = one_line(str(e) if isinstance(e, InternalError) else f"{type(e).__name__}: {e}")
            print(f"error: a fault of this program, not of your data: {told}; please report it", file=sys.stderr)
            status = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # what is left to be written would be told as an error when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = BROKEN_PIPE
    sys.exit(status)


def output_is_unread() -> bool:
    """Whether standard output is a pipe whose reader has gone."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
