"""Programs for aarch64 on another machine: the cross compiler's, run by qemu's user mode."""

import functools
import platform
import shutil
import subprocess

import pytest

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
