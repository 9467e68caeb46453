"""SIGTERM and Ctrl-C in training: noted, and acted on where nothing is lost."""

import contextlib
import signal
import threading
from collections.abc import Iterator

__all__ = ["StopRequest", "Stopped"]


class Stopped(BaseException):  # noqa: N818 - no error, and not to be caught as one
    """Training was asked to stop while there was nothing to save."""


class StopRequest:
    """Notes the first SIGTERM or SIGINT while it is entered; a second one ends the process as it would without this."""

    def __init__(self) -> None:
        self.signum, self.at_once, self.before = 0, False, {}

    def __enter__(self) -> "StopRequest":
        # elsewhere Python lets nobody handle signals
        if threading.current_thread() is threading.main_thread():
            for s in (signal.SIGTERM, signal.SIGINT):
                self.before[s] = signal.signal(s, self.note)
        return self

    def __exit__(self, *_: object) -> None:
        for s, handler in self.before.items():
            signal.signal(s, handler)

    def note(self, signum: int, _frame: object) -> None:
        self.signum = signum
        signal.signal(signum, signal.SIG_DFL)
        if self.at_once:
            raise Stopped

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
