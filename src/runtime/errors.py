"""The one kind of error that a user can mend; entry scripts print its message as one line and exit with status 2."""

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator

__all__ = ["UserError", "quiet_logging", "run_command"]


class UserError(ValueError):
    """Names the file, key or line, and the remedy."""


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
        # a name in it may hold line ends
        told = str(e).replace("\r", "\\r").replace("\n", "\\n")
        print(f"error: {told}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)
