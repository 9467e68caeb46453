"""The one kind of error that a user can mend; entry scripts print its message as one line and exit with status 2."""

import contextlib
import io
import logging
import reprlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["UserError", "one_line", "quiet_logging", "run_command", "shown"]

LONGEST = 2000  # characters of a message

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def one_line(text: str) -> str:
    """`text` in one line that a terminal shows as it is: control characters as escapes, the middle cut out if long."""
    if len(text) > LONGEST:
        # a message begins with what is wrong and ends with the remedy
        text = f"{text[: LONGEST * 3 // 4]} ... {text[-LONGEST // 4 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: Any) -> str:
    """A value as a message names it: its repr, shortened."""
    return _short.repr(value)


class UserError(ValueError):
    """Names the file, key or line, and the remedy, in one line whatever the names hold."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """Keeps MindSpore from logging a fault that the caller tells in one line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def run_command(main: Callable[[], int | None]) -> None:
    """Runs an entry script's `main` and ends the process: 0, or 2 after a UserError's one line, or 130 after Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # names of files may hold bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main() or 0
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)
