"""What every benchmark needs: repeated timing, peak memory, a table, a JSON file. Imports no framework."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from src.runtime.newer import zip_equal

__all__ = [
    "Timing",
    "child_result",
    "machine",
    "measure",
    "peak_memory_mib",
    "print_table",
    "print_timings",
    "set_threads",
    "timed_elsewhere",
    "write_json",
]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of repeated calls. ``cpu`` is the median of the CPU time, which other programs disturb less."""

    median: float
    low: float
    spread: float  # (largest - smallest) / median
    cpu: float
    repeats: int


def measure(call: Callable[[], object], repeats: int = 9, warm_up: int = 2) -> Timing:
    """Times ``call``, which must return only when its result is there."""
    for _ in range(warm_up):
        call()
    wall, cpu = [], []
    for _ in range(repeats):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        call()
        wall.append((time.perf_counter() - wall_start) * 1e3)
        cpu.append((time.process_time() - cpu_start) * 1e3)
    median = statistics.median(wall)
    return Timing(median, min(wall), (max(wall) - min(wall)) / median, statistics.median(cpu), repeats)


def peak_memory_mib() -> float:
    """The largest resident memory of this process so far, in MiB."""
    try:
        # getrusage's figure outlives exec: a child would report its parent's
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine() -> dict[str, object]:
    """Where the numbers were taken."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}


def set_threads(threads: int | None) -> int:
    """Limits this process to some of its cores; call before a framework is imported. Returns the number of cores."""
    cores = sorted(os.sched_getaffinity(0))
    if threads is not None:
        cores = cores[: max(1, threads)]
        os.sched_setaffinity(0, cores)
        os.environ["OMP_NUM_THREADS"] = str(len(cores))
    return len(cores)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table; floats with three digits."""
    cells = [[f"{v:.3g}" if isinstance(v, float) and abs(v) < 100 else _plain(v) for v in row] for row in rows]
    widths = [max(len(str(c)) for c in column) for column in zip_equal(columns, *cells)]
    print(f"\n{title}\n")
    print("| " + " | ".join(c.ljust(w) for c, w in zip_equal(columns, widths)) + " |")
    print("| " + " | ".join("-" * w for w in widths) + " |")
    for row in cells:
        print("| " + " | ".join(c.ljust(w) for c, w in zip_equal(row, widths)) + " |")


def _plain(value: object) -> str:
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def write_json(path: str | os.PathLike | None, content: dict[str, object]) -> None:
    """Writes ``content`` (timings as dictionaries) with the machine beside it; nothing where ``path`` is None."""
    if path is None:
        return
    text = json.dumps({"machine": machine(), **content}, indent=2, default=_encode)
    Path(path).write_text(text + "\n", encoding="utf-8")


def _encode(value: object) -> object:
    if isinstance(value, Timing):
        return asdict(value)
    raise TypeError(f"cannot write {type(value)}")


def print_timings(times: dict[str, dict[str, Timing]]) -> None:
    """A child process's answer to timed_elsewhere."""
    print(json.dumps({name: {title: vars(t) for title, t in passes.items()} for name, passes in times.items()}))


def child_result(python: str, module: str, words: list[str], name: str) -> dict[str, Any] | None:
    """The JSON of a benchmark's module's last line, run in a process of interpreter `python`, or None, with a line that
    says why, where it can't run. name: what is told to be left out.
    """
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run([python, "-m", module, *words], cwd=root, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{name} left out: {python}: {reason}", file=sys.stderr)
        return None
    return json.loads(result.stdout.splitlines()[-1])


def timed_elsewhere(module: str, python: str, words: list[str]) -> dict[str, dict[str, Timing]] | None:
    """What a benchmark's module prints with --child and `words` in a process of another interpreter, or None, with a
    line saying why, where it can't run.
    """
    times = child_result(python, module, ["--child", *words], "PyTorch")
    if times is None:
        return None
    return {name: {title: Timing(**t) for title, t in passes.items()} for name, passes in times.items()}
