"""Files that are whole or not there."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from src.errors import UserError

__all__ = ["whole"]


@contextlib.contextmanager
def whole(
    path: Path, error: type[UserError] = UserError, remedy: str = "free space or name another output"
) -> Iterator[Path]:
    """A path beside `path` for the block to write: renamed at its end, removed where it fails. Tells an OSError as
    `error`, with `remedy`."""
    beside = path.with_name(f"{path.stem}.writing{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        if beside.exists():
            os.replace(beside, path)
    except OSError as e:
        raise error(f"{path}: can't write: {e.strerror or e}; {remedy}") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
