"""Where the built C++ operators are: one shared library for this source, these flags and an instruction set.

The file name carries the instruction set and a hash of all three, so a library that was built from other source, or on
a CPU with other instructions, is simply not found: it is never loaded. An instruction set is named as the compiler's
``-march`` does: ``native``, all that this CPU has, serves; the others are for tests, so that what passes here passes on
a lesser CPU, and are chosen by the environment's RCNN_OPS_MARCH. Run as a program (no MindSpore needed), this file
answers ``scripts/build_custom.sh``: ``python -m src.ops.library {path,sources,flags} [MARCH]``, and ``marches``.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import hashlib
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from src.runtime.errors import UserError

__all__ = [
    "MARCHES",
    "SOURCES",
    "chosen_march",
    "custom_operator_path",
    "cxx_flags",
    "describe_operators",
    "find_library",
    "for_devices",
    "library_path",
    "plain_sums",
    "plain_sums_only",
    "runnable_marches",
    "standard_operators",
    "standard_operators_only",
]

_OPS = Path(__file__).resolve().parent
_ROOT = _OPS.parents[1]

# Each source with its rule for fusing products and sums. Off: a box's IoU must be the same number in a vector loop,
# in that loop's remainder and on another CPU; and the convolution says itself where it fuses, because the compiler does
# in one copy of an expression what it doesn't in another, and an image in a batch would differ from the same one alone.
# RoIAlign's sums may fuse: a RoI goes the same way in any batch, and its sampling positions guard themselves.
SOURCES: tuple[tuple[Path, str], ...] = (
    (_OPS / "roi_align" / "csrc" / "roi_align_cpu.cc", "-ffp-contract=fast"),
    (_OPS / "csrc" / "nms.cc", "-ffp-contract=off"),
    (_OPS / "csrc" / "matching.cc", "-ffp-contract=off"),
    (_OPS / "csrc" / "winograd.cc", "-ffp-contract=off"),
    (_OPS / "csrc" / "convolution.cc", "-ffp-contract=off"),
    (_OPS / "csrc" / "depthwise.cc", "-ffp-contract=off"),
    (_OPS / "csrc" / "product.cc", "-ffp-contract=off"),
    (_OPS / "csrc" / "tiles.cc", "-ffp-contract=off"),
    (_OPS / "csrc" / "pointwise.cc", "-ffp-contract=off"),
    (_OPS / "csrc" / "dense.cc", "-ffp-contract=off"),
    (_OPS / "csrc" / "max_pool.cc", "-ffp-contract=off"),
    (_OPS / "csrc" / "rpn_head.cc", "-ffp-contract=off"),
    (_OPS / "csrc" / "transposed.cc", "-ffp-contract=off"),
    (_OPS / "csrc" / "weights.cc", "-ffp-contract=off"),
    (_OPS / "csrc" / "instruction_set.cc", "-ffp-contract=off"),
)
_HEADERS: tuple[Path, ...] = (
    _OPS / "roi_align" / "csrc" / "roi_align.h",
    _OPS / "roi_align" / "csrc" / "roi_align_geometry.h",
    _OPS / "csrc" / "cache.h",
    _OPS / "csrc" / "conv_operators.h",
    _OPS / "csrc" / "depthwise.h",
    _OPS / "csrc" / "gemm_kernel.h",
    _OPS / "csrc" / "helpers.h",
    _OPS / "csrc" / "left_block.h",
    _OPS / "csrc" / "max_pool.h",
    _OPS / "csrc" / "nms.h",
    _OPS / "csrc" / "padding.h",
    _OPS / "csrc" / "parallel.h",
    _OPS / "csrc" / "patches.h",
    _OPS / "csrc" / "product.h",
    _OPS / "csrc" / "product_block.h",
    _OPS / "csrc" / "simd.h",
    _OPS / "csrc" / "tiles.h",
    _OPS / "csrc" / "transposed.h",
    _OPS / "csrc" / "vector_width.h",
    _OPS / "csrc" / "winograd.h",
    _OPS / "csrc" / "winograd_blocks.h",
    _OPS / "csrc" / "winograd_transform.h",
    _OPS / "csrc" / "workspace.h",
)
_CXX_FLAGS: tuple[str, ...] = (
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Werror",
)

# The instruction sets that the operators are built and tested for, by the compiler's name, and what a CPU's flags must
# hold to run them. Each stands for a branch of the sources: AVX2 with fused products; vectors of four without; NEON;
# and AVX-512 where native has it.
MARCHES: dict[str, tuple[str, ...]] = {
    "native": (),
    "haswell": ("abm", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"),
    "x86-64-v2": ("cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"),
    "armv8-a": ("asimd", "fp"),
}


@functools.lru_cache(maxsize=1)
def _cpu_features() -> str:
    """The instruction set of this machine, as the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    kept = {line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))}
    return "\n".join([platform.machine(), *sorted(kept)])


def runnable_marches() -> tuple[str, ...]:
    """Those of `MARCHES` that this CPU can run; "native" first."""
    has = set(_cpu_features().split())
    return tuple(march for march, needs in MARCHES.items() if has.issuperset(needs))


def chosen_march() -> str:
    """The instruction set whose library serves: the environment's RCNN_OPS_MARCH, or "native".

    Raises UserError where that isn't one of `MARCHES` that this CPU can run.
    """
    march = os.environ.get("RCNN_OPS_MARCH") or "native"
    if march not in runnable_marches():
        fault = "this CPU lacks it" if march in MARCHES else "unknown"
        raise UserError(f"RCNN_OPS_MARCH={march}: {fault}; it can be {', '.join(runnable_marches())}, or unset")
    return march


def cxx_flags(march: str) -> tuple[str, ...]:
    """What every source is compiled with for this instruction set."""
    return (f"-march={march}", *_CXX_FLAGS)


@functools.lru_cache
def library_path(march: str) -> Path:
    """The path that the library of this source and instruction set has, built or not."""
    digest = hashlib.sha256()
    for path in (*(source for source, _ in SOURCES), *_HEADERS):
        digest.update(path.read_bytes())
    digest.update(" ".join([*cxx_flags(march), *(rule for _, rule in SOURCES)]).encode())
    if march == "native":
        digest.update(_cpu_features().encode())
    return _ROOT / "build" / "custom_ops" / f"librcnn_ops-{march}-{digest.hexdigest()[:16]}.so"


def find_library() -> Path | None:
    """The built library for the chosen instruction set, or None."""
    path = library_path(chosen_march())
    return path if path.is_file() else None


def describe_operators(device: str = "CPU") -> str:
    """One line for the start of a run on this device: which library serves, and for which instructions."""
    if device != "CPU":
        return f"operators: MindSpore's own, for {device}"
    path = find_library()
    if path is None:
        return f"operators: MindSpore's own, slower ones (build ours: {_build_command()})"
    set_name = ctypes.CDLL(os.fspath(path)).RcnnInstructionSet
    set_name.restype = ctypes.c_char_p
    return f"operators: {path.relative_to(_ROOT)} ({chosen_march()}: {set_name().decode()})"


def _build_command() -> str:
    march = chosen_march()
    return "scripts/build_custom.sh" + ("" if march == "native" else f" --march {march}")


_standard_only = contextvars.ContextVar("standard operators only", default=False)
_plain_sums = contextvars.ContextVar("plain sums", default=False)


@contextlib.contextmanager
def standard_operators(wanted: bool = True) -> Iterator[None]:
    """Cells made within use MindSpore's own operators only, where `wanted`: a network to be exported."""
    token = _standard_only.set(wanted or _standard_only.get())
    try:
        yield
    finally:
        _standard_only.reset(token)


@contextlib.contextmanager
def plain_sums(wanted: bool = True) -> Iterator[None]:
    """Convolutions made within are MindSpore's own, where `wanted`: plain sums of products, by the library that PyTorch
    computes them with on a CPU, too.

    Winograd's method rounds about twice as much, and sums in another order round otherwise: too much where a run is to
    be told apart from another step by step.
    """
    token = _plain_sums.set(wanted or _plain_sums.get())
    try:
        yield
    finally:
        _plain_sums.reset(token)


def plain_sums_only() -> bool:
    """Whether this is within `plain_sums`."""
    return _plain_sums.get()


def standard_operators_only() -> bool:
    """Whether this is within `standard_operators`."""
    return _standard_only.get()


def for_devices() -> bool:
    """Whether a network made here is for another device than this CPU: to be exported, or run on one.

    Of MindSpore's operators, those are taken then which such devices have, not those that are the fastest on a CPU.
    """
    import mindspore as ms  # not at the top: this file also runs without MindSpore

    return standard_operators_only() or ms.get_context("device_target") != "CPU"


@functools.lru_cache(maxsize=1)
def _warn_once() -> None:
    warnings.warn(
        f"the C++ operators are not built: the slower MindSpore versions are used (build: {_build_command()})",
        RuntimeWarning,
        stacklevel=3,
    )


def custom_operator_path(builtin: bool) -> str | None:
    """What ``ops.Custom`` is to load, or None for the version of standard MindSpore operators.

    Args:
        builtin: standard operators are asked for.

    None also within `standard_operators`, on devices other than the CPU, and, with one warning in all, where the
    library is not built. Raises UserError where RCNN_OPS_MARCH names what this CPU can't run.

    The operators use as many threads as this process may use cores, lowered by RCNN_NUM_THREADS, or else by
    OMP_NUM_THREADS as it was given to this process.
    """
    if builtin or for_devices():
        return None
    path = find_library()
    if path is None:
        _warn_once()
        return None
    # os.environ keeps what the user gave; the process's own OMP_NUM_THREADS is changed by MindSpore.
    if os.environ.get("OMP_NUM_THREADS"):
        os.environ.setdefault("RCNN_NUM_THREADS", os.environ["OMP_NUM_THREADS"].split(",")[0])
    return os.fspath(path)


def _main(words: list[str]) -> int:
    answers: dict[str, Callable[[str], Iterable[str | Path]]] = {
        "path": lambda march: [library_path(march)],
        "sources": lambda march: [f"{rule} {source}" for source, rule in SOURCES],
        "flags": cxx_flags,
        "marches": lambda march: runnable_marches(),
    }
    question, march = (*words, "native")[:2] if words else ("", "")
    if question not in answers or march not in MARCHES or len(words) > 2:
        print(f"usage: python -m src.ops.library {{{','.join(answers)}}} [{'|'.join(MARCHES)}]", file=sys.stderr)
        return 2
    for item in answers[question](march):
        print(item)
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
