"""Files that are read within bounds, that are whole or not there, and folders that one process holds at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from src.runtime.errors import UserError

__all__ = [
    "InUseError",
    "MOST_BYTES",
    "beside",
    "cure",
    "demand_place",
    "flush",
    "hold",
    "open_regular",
    "read_regular",
    "remove_leftovers",
    "whole",
    "why_unread",
]

MOST_BYTES = 4 << 30  # of a file that is read whole: the largest sets of annotations have one or two
IRREGULAR = {
    stat.S_IFDIR: "not a file but a folder",
    stat.S_IFIFO: "not a file but a pipe; write what it gives to a file and name that",
    stat.S_IFSOCK: "not a file but a socket",
    stat.S_IFCHR: "not a file but a device",
    stat.S_IFBLK: "not a file but a device",
}

# what helps where it isn't space that lacks
CURES = {
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.ENOMEM: "the memory is full: end other programs",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EROFS: "it can only be read: name another place",
    errno.EACCES: "it may not be written: change its owner or mode, or name another place",
    errno.EPERM: "it may not be written: change its owner or mode, or name another place",
}


class InUseError(UserError):
    """What another process holds; the message names it."""


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file to read its bytes. Every file that a user names is opened here.

    Raises OSError, whose strerror says why: also for what would be waited for, or has no end, which isn't opened at
    all: pipes (so what a shell's <(...) makes), devices, sockets, folders; and for what can be no name.
    """
    try:
        _demand_regular(os.stat(path), path)
        # what lies there may have become a pipe meanwhile
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:
        raise OSError(errno.EINVAL, "no name of a file", str(path)) from None
    try:
        _demand_regular(os.fstat(handle), path)
        return os.fdopen(handle, "rb")
    except OSError:
        os.close(handle)
        raise


def _demand_regular(found: os.stat_result, path: str | os.PathLike) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, IRREGULAR.get(stat.S_IFMT(found.st_mode), "not a file"), str(path))


def read_regular(path: str | os.PathLike, most: int = MOST_BYTES) -> bytes:
    """The bytes of a regular file of at most `most`. Raises OSError as open_regular, and for a larger one."""
    with open_regular(path) as f:
        size = os.fstat(f.fileno()).st_size
        # before anything is read: a file may be nothing but a length; /proc's have none
        data = f.read(min(max(size, 1 << 16), most) + 1) if size <= most else b""
    if size > most or len(data) > most:
        told = f"{most >> 20} MiB" if most >= 1 << 20 else f"{most >> 10} KiB"
        raise OSError(errno.EFBIG, f"it is larger than {told}", str(path))
    return data


def why_unread(path: str | os.PathLike, missing: str = "no such file") -> str:
    """Why a file that has to be there can't be read, `missing` where there is none; "" if it can."""
    try:
        open_regular(path).close()
    except FileNotFoundError:
        return missing
    except OSError as e:
        return str(e.strerror)
    return ""


def cure(e: OSError, remedy: str) -> str:
    """What to do about `e`: `remedy` where a disk is full or nothing better is known."""
    return CURES.get(e.errno or 0, remedy)


def beside(path: Path) -> Path:
    """Where this process writes what will be renamed to `path`: in its folder, of its suffix, no other process's."""
    return path.with_name(f"{path.stem}.writing-{os.getpid()}{path.suffix}")


def remove_leftovers(path: Path) -> None:
    """Removes what killed processes left half written beside `path`; that of living ones, and folders, stay."""
    for name in glob.glob(f"{glob.escape(str(path.with_suffix('')))}.writing-*{glob.escape(path.suffix)}"):
        pid = name.removesuffix(path.suffix).rpartition(".writing-")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            with contextlib.suppress(OSError):
                os.unlink(name)


def flush(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk. Raises OSError where they can't be."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def demand_place(path: Path, error: type[UserError] = UserError) -> None:
    """Raises `error` where what lies at `path` isn't a file: to rename one over a pipe or a device (/dev/null,
    /dev/stdout) would remove that, for all who use it."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return  # nothing there; what else may be wrong, writing tells
    if not stat.S_ISREG(found.st_mode):
        what = IRREGULAR.get(stat.S_IFMT(found.st_mode), "not a file").partition(";")[0]
        raise error(f"{path}: can't write: {what}; name another output")


@contextlib.contextmanager
def whole(
    path: Path, error: type[UserError] = UserError, remedy: str = "free space or name another output"
) -> Iterator[Path]:
    """A path beside `path` for the block to write: flushed and renamed at its end, removed where it fails.

    Tells an OSError as `error`, with `remedy`; what isn't a file stays, as `demand_place`.
    """
    demand_place(path, error)
    written = beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        yield written
        if written.exists():
            flush(written)
            os.replace(written, path)
    except OSError as e:
        raise error(f"{path}: can't write: {e.strerror or e}; {cure(e, remedy)}") from None
    finally:
        with contextlib.suppress(OSError):
            written.unlink(missing_ok=True)


@contextlib.contextmanager
def hold(
    path: Path, what: str, remedy: str, shared: bool = False, wait: bool = False, create: bool = True
) -> Iterator[None]:
    """Holds the lock file `path`, made where it isn't there, for a block; a process that dies frees it.

    shared: beside others that hold it so; wait: for others to be done; create: without, a file that isn't there is an
    error, and one to share may lie where nobody can write. Raises InUseError where another holds it, as
    f"{what}: in use by ...; {remedy}", and UserError where the file can't be made. A file system without locks holds
    nobody off.
    """
    try:
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        access = os.O_RDONLY if shared and not create else os.O_RDWR
        handle = os.open(path, access | os.O_CREAT * create | os.O_CLOEXEC, 0o644)
    except OSError as e:
        raise UserError(f"{path}: can't write: {e.strerror}; {cure(e, remedy)}") from None
    try:
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(handle, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(f"{what}: in use by {_holder(handle)}; {remedy}") from None
        except OSError:
            pass
        if not _is_there(handle, path):
            raise InUseError(f"{what}: in use by a process that is just ending; {remedy}")
        if not shared:
            # a full disk only leaves the holder unnamed
            with contextlib.suppress(OSError):
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps([os.getpid(), socket.gethostname(), sys.argv[0]]).encode(), 0)
        yield
    finally:
        os.close(handle)


def _holder(handle: int) -> str:
    """The process that a lock file names."""
    try:
        pid, host, program = json.loads(os.pread(handle, 4096, 0))
    except (OSError, ValueError, TypeError):
        return "another process"
    there = "" if host == socket.gethostname() else f" on {host}"
    return f"process {pid}{there} ({os.path.basename(str(program))})"


def _is_there(handle: int, path: Path) -> bool:
    """Whether an open file is still the one at `path`: who held it may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
