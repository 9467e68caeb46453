"""Where the built C++ operators are: one shared library for this source, these flags and this CPU.

The file name carries a hash of all three, so a library that was built from other source, or on a CPU with other
instructions, is simply not found: it is never loaded. Run as a program (no MindSpore needed), this file answers
``scripts/build_custom.sh``: ``python src/ops/library.py {path,sources,flags}``.
"""

import contextlib
import contextvars
import functools
import hashlib
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "CXX_FLAGS",
    "SOURCES",
    "custom_operator_path",
    "find_library",
    "library_path",
    "standard_operators",
    "standard_operators_only",
]

_OPS = Path(__file__).resolve().parent
_ROOT = _OPS.parents[1]

# Each source with its rule for fusing products and sums. Off: a box's IoU must be the same number in a vector loop,
# in that loop's remainder and on another CPU. RoIAlign's sums may fuse; its sampling positions guard themselves. So
# may the convolution's: one loop makes all of its numbers, without a remainder.
SOURCES: tuple[tuple[Path, str], ...] = (
    (_OPS / "roi_align" / "csrc" / "roi_align_cpu.cc", "-ffp-contract=fast"),
    (_OPS / "csrc" / "nms.cc", "-ffp-contract=off"),
    (_OPS / "csrc" / "matching.cc", "-ffp-contract=off"),
    (_OPS / "csrc" / "winograd.cc", "-ffp-contract=off"),
    (_OPS / "csrc" / "convolution.cc", "-ffp-contract=off"),
)
_HEADERS: tuple[Path, ...] = (
    _OPS / "roi_align" / "csrc" / "roi_align.h",
    _OPS / "roi_align" / "csrc" / "roi_align_geometry.h",
    _OPS / "csrc" / "conv_operators.h",
    _OPS / "csrc" / "gemm_kernel.h",
    _OPS / "csrc" / "nms.h",
    _OPS / "csrc" / "parallel.h",
    _OPS / "csrc" / "simd.h",
    _OPS / "csrc" / "vector_width.h",
    _OPS / "csrc" / "winograd.h",
    _OPS / "csrc" / "winograd_transform.h",
    _OPS / "csrc" / "workspace.h",
)
CXX_FLAGS: tuple[str, ...] = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Werror",
)


def _cpu_features() -> str:
    """The instruction set of this machine, as the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    kept = {line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))}
    return "\n".join([platform.machine(), *sorted(kept)])


@functools.lru_cache(maxsize=1)
def library_path() -> Path:
    """The path the library of this source and CPU has, built or not."""
    digest = hashlib.sha256()
    for path in (*(source for source, _ in SOURCES), *_HEADERS):
        digest.update(path.read_bytes())
    digest.update(" ".join([*CXX_FLAGS, *(rule for _, rule in SOURCES)]).encode())
    digest.update(_cpu_features().encode())
    return _ROOT / "build" / "custom_ops" / f"librcnn_ops-{digest.hexdigest()[:16]}.so"


def find_library() -> Path | None:
    """The built library, or None."""
    path = library_path()
    return path if path.is_file() else None


_standard_only = contextvars.ContextVar("standard operators only", default=False)


@contextlib.contextmanager
def standard_operators(wanted: bool = True) -> Iterator[None]:
    """Cells made within use MindSpore's own operators only, where `wanted`: a network to be exported."""
    token = _standard_only.set(wanted or _standard_only.get())
    try:
        yield
    finally:
        _standard_only.reset(token)


def standard_operators_only() -> bool:
    """Whether this is within `standard_operators`."""
    return _standard_only.get()


@functools.lru_cache(maxsize=1)
def _warn_once() -> None:
    warnings.warn(
        "the C++ operators are not built: the slower MindSpore versions are used (build: scripts/build_custom.sh)",
        RuntimeWarning,
        stacklevel=3,
    )


def custom_operator_path(builtin: bool) -> str | None:
    """What ``ops.Custom`` is to load, or None for the version of standard MindSpore operators.

    Args:
        builtin: standard operators are asked for.

    None also within `standard_operators`, on devices other than the CPU, and, with one warning in all, where the
    library is not built.

    The operators use as many threads as this process may use cores, lowered by RCNN_NUM_THREADS, or else by
    OMP_NUM_THREADS as it was given to this process.
    """
    import mindspore as ms  # not at the top: this file also runs without MindSpore

    if builtin or standard_operators_only() or ms.get_context("device_target") != "CPU":
        return None
    path = find_library()
    if path is None:
        _warn_once()
        return None
    # os.environ keeps what the user gave; the process's own OMP_NUM_THREADS is changed by MindSpore.
    if os.environ.get("OMP_NUM_THREADS"):
        os.environ.setdefault("RCNN_NUM_THREADS", os.environ["OMP_NUM_THREADS"].split(",")[0])
    return os.fspath(path)


def _main(argv: list[str]) -> int:
    answers = {
        "path": lambda: [library_path()],
        "sources": lambda: [f"{rule} {source}" for source, rule in SOURCES],
        "flags": lambda: CXX_FLAGS,
    }
    if len(argv) != 2 or argv[1] not in answers:
        print(f"usage: {argv[0]} {{{','.join(answers)}}}", file=sys.stderr)
        return 2
    for item in answers[argv[1]]():
        print(item)
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv))
