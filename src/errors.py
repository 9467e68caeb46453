"""The one kind of error that a user can mend; entry scripts print its message as one line and exit with status 2."""

import sys
from collections.abc import Callable

__all__ = ["UserError", "run_command"]


class UserError(ValueError):
    """Names the file, key or line, and the remedy."""


def run_command(main: Callable[[], int | None]) -> None:
    """Runs an entry script's `main` and ends the process: 0, or 2 after a UserError's one line, or 130 after Ctrl-C."""
    try:
        status = main() or 0
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)
