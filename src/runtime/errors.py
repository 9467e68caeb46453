"""The one kind of error that a user can mend; entry scripts print its message as one line and exit with status 2.

And our own bugs where they would pass for something else: told as ours, with status 1.
"""

import contextlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator

__all__ = ["InternalError", "UserError", "quiet_logging", "run_command"]


class UserError(ValueError):
    """Names the file, key or line, and the remedy."""


class InternalError(RuntimeError):
    """A fault of this program itself, not of what it was given; raised from its cause."""

    @classmethod
    def of(cls, cause: Exception, doing: str) -> "InternalError":
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


def one_line(e: Exception) -> str:
    """An error's message; a name in it may hold line ends."""
    return str(e).replace("\r", "\\r").replace("\n", "\\n")


def run_command(main: Callable[[], int | None]) -> None:
    """Runs an entry script's `main` and ends the process: 0, or 2 after a UserError's one line, or 130 after Ctrl-C.

    An InternalError's traceback, then its line: status 1.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # names of files may hold bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main() or 0
    except UserError as e:
        print(f"error: {one_line(e)}", file=sys.stderr)
        status = 2
    except InternalError as e:
        traceback.print_exception(e)
        print(f"error: a fault of this program, not of your data: {one_line(e)}; please report it", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)
