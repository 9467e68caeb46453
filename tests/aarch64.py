"""Programs for aarch64 on another machine: the cross compiler's, run by qemu's user mode."""

import fcntl
import functools
import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"
# how a program runs: the compiler's C library is its system
RUN = [EMULATOR, "-L", "/usr/aarch64-linux-gnu"]


@functools.lru_cache(maxsize=1)
def lacking():
    """Why nothing for aarch64 can be built and run here, or none."""
    if platform.machine() == "aarch64":
        return "this is aarch64: its own tests are the native ones"
    for tool, package in ((COMPILER, "g++-aarch64-linux-gnu"), (EMULATOR, "qemu-user")):
        if shutil.which(tool) is None:
            return f"no {tool} (apt-get install {package})"
    return None


def need():
    """Skips where programs for aarch64 can't be built and run."""
    if reason := lacking():
        pytest.skip(reason)


def compile_program(out, *words):
    """Compiles these sources, with these flags, into the program `out`."""
    built = subprocess.run([COMPILER, *map(str, words), "-o", str(out)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr


def sysroot():
    """A folder with libjpeg's and libpng's files; skips where they can't be had."""
    need()
    (ROOT / "build").mkdir(exist_ok=True)
    with open(ROOT / "build/.aarch64.lock", "w") as lock:
        # of several test processes the first fetches them
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = subprocess.run(
            ["bash", str(ROOT / "scripts/build_aarch64.sh"), "--sysroot"], capture_output=True, text=True
        )
    if "apt-get" in made.stderr:
        pytest.skip(made.stderr.strip().splitlines()[-1])
    assert made.returncode == 0, made.stderr
    return Path(made.stdout.strip().splitlines()[-1].removeprefix("sysroot: "))


def include(sysroot):
    """The compiler's words for its headers."""
    return [f"-isystem{sysroot}/usr/include", f"-isystem{sysroot}/usr/include/aarch64-linux-gnu"]


def link(sysroot):
    """And for its libraries."""
    return [f"-L{sysroot}/usr/lib/aarch64-linux-gnu", "-ljpeg", "-lpng", "-lz", "-lm"]


def wrapper(program):
    """A program for this machine that runs one for aarch64: its path."""
    path = program.with_name(f"{program.name}-emulated")
    # leaks can't be looked for where a program is emulated
    words = ["env", "ASAN_OPTIONS=detect_leaks=0", *RUN, str(program)]
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    os.chmod(path, 0o755)
    return path
