"""Where the memory of a training step is: resident size after each stage, and who holds large blocks at the peak.

    python -m benchmarks.memory [--config_path FILE] [--height H --width W --batch B] [--threads N] [--json OUT]
        [--KEY VALUE ...]

The step of benchmarks.train_step, in a process whose allocations of 256 KiB and more are written down by
benchmarks/memory_trace.c (Linux, glibc, a C compiler). A block counts with its whole size: of MindSpore's pool, and of
the room that oneDNN keeps, less is resident, as untouched pages aren't.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from benchmarks.common import print_table, set_threads, write_json
from benchmarks.network import add_arguments, load_golden_weights, read_config

HERE = Path(__file__).resolve().parent
RECORD = np.dtype([("address", "u8"), ("size", "u8"), ("callers", "u8", 24)])
SHOWN = 20
# whose frames say nothing of who wanted the memory
PASSED = ("trace.so", "libc.so", "libstdc++")


def resident() -> dict[str, float]:
    """MiB of this process now, and at most so far."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[key].split()[0]) / 1024 for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}


def child(a: argparse.Namespace, rest: list[str]) -> None:
    """Runs the step, and prints a JSON line of the stages; leaves /proc/self/maps beside the trace."""
    stages = [("Python, NumPy", resident())]
    del os.environ["LD_PRELOAD"]  # processes that this one starts don't write into its trace
    import mindspore  # noqa: F401 - its import is a stage

    stages.append(("MindSpore imported", resident()))
    from benchmarks.synthetic import synthetic_batch
    from src.models.build import build_detector, build_loss
    from src.ops.device import set_device
    from src.training.loop import step_inputs
    from src.training.step import SamplerKeys, build_step, compile_step

    config = read_config(a, rest)
    set_device(config)
    detector = build_detector(config)
    load_golden_weights(detector)
    rates = np.zeros(1000, np.float32)
    step = build_step(config, build_loss(config, detector), rates)
    batch, keys = synthetic_batch(config, 8), SamplerKeys(config)
    inputs = step_inputs(batch, keys(0, batch["image_id"]))
    stages.append(("network, optimizer", resident()))
    compile_step(config, step, rates, inputs)
    stages.append(("compiled", resident()))
    for i in range(3):
        step(*inputs)[0].asnumpy()
        stages.append((f"step {i + 1}", resident()))
    shutil.copyfile("/proc/self/maps", Path(os.environ["TRACE_FILE"]).with_name("maps"))
    print(json.dumps(stages))


def at_peak(events: np.ndarray) -> tuple[int, list[int]]:
    """The most bytes alive at once, and the places in `events` of the blocks that were."""
    alive: dict[int, int] = {}
    total = most = when = 0
    for i, (address, size) in enumerate(events[["address", "size"]].tolist()):
        total += size or -alive.pop(address, 0)
        if size:
            alive[address] = size
        if total > most:
            most, when = total, i
    held: dict[int, int] = {}
    for i, (address, size) in enumerate(events[["address", "size"]][: when + 1].tolist()):
        if size:
            held[address] = i
        else:
            held.pop(address, None)
    return most, list(held.values())


class Names:
    """What lies at an address of the process: library and nearest exported function."""

    def __init__(self, maps: Path):
        rows = [line.split() for line in maps.read_text().splitlines()]
        self.maps = sorted(
            (*(int(x, 16) for x in r[0].split("-")), int(r[2], 16), r[5]) for r in rows if len(r) > 5 and r[5][0] == "/"
        )
        self.starts = [m[0] for m in self.maps]
        self.symbols: dict[str, tuple[list[int], list[str]]] = {}

    def functions(self, library: str) -> tuple[list[int], list[str]]:
        if library not in self.symbols:
            done = subprocess.run(
                ["nm", "-DCn", "--defined-only", library], capture_output=True, text=True, check=False
            )
            found = [line.split(" ", 2) for line in done.stdout.splitlines()]
            found = [f for f in found if len(f) == 3 and f[0]]
            self.symbols[library] = [int(f[0], 16) for f in found], [f[2] for f in found]
        return self.symbols[library]

    def __call__(self, address: int) -> tuple[str, str]:
        i = bisect.bisect(self.starts, address) - 1
        if i < 0 or address >= self.maps[i][1]:
            return "", ""
        start, _, offset, library = self.maps[i]
        addresses, names = self.functions(library)
        place = address - start + offset
        k = bisect.bisect(addresses, place) - 1
        near = k >= 0 and place - addresses[k] < 1 << 16
        return Path(library).name, names[k] if near else ""


def holders(events: np.ndarray, held: list[int], names: Names) -> list[list[object]]:
    """A row for each function that holds blocks, largest first: MiB, blocks, the largest one's MiB, who."""
    sizes: dict[str, list[int]] = defaultdict(list)
    for i in held:
        frames = [names(int(x)) for x in events["callers"][i] if x]
        frames = [f for f in frames if f[0] and not f[0].startswith(PASSED)]
        first = frames[0][0] if frames else "?"
        told = next((f"{n[:60]}" for lib, n in frames if lib == first and n), "")
        wanted = next((lib for lib, _ in frames if lib != first), "")
        sizes[f"{first}: {told}" + (f" (for {wanted})" if wanted else "")].append(int(events["size"][i]))
    total = Counter({who: sum(s) for who, s in sizes.items()})
    return [[n / 2**20, len(sizes[who]), max(sizes[who]) / 2**20, who] for who, n in total.most_common(SHOWN)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, batch=2)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    a, rest = parser.parse_known_args()
    set_threads(a.threads)
    if a.child:
        child(a, rest)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        build = ["cc", "-O2", "-shared", "-fPIC", "-o", folder / "trace.so", HERE / "memory_trace.c", "-ldl"]
        subprocess.run(build, check=True)
        environment = {"LD_PRELOAD": str(folder / "trace.so"), "TRACE_FILE": str(folder / "trace")}
        run = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", "--child", *sys.argv[1:]],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if run.returncode != 0:
            sys.exit("the training step failed (see above)")
        stages = json.loads(run.stdout.splitlines()[-1])
        events = np.fromfile(folder / "trace", RECORD)
        most, held = at_peak(events)
        rows = holders(events, held, Names(folder / "maps"))
    title = f"training step, {a.batch} x {a.height} x {a.width}"
    print_table(f"{title}: resident MiB", ["after", "now", "peak"], [[s, m["now"], m["peak"]] for s, m in stages])
    columns = ["MiB", "blocks", "largest", "by (nearest function that its library exports)"]
    print_table(f"blocks of 256 KiB and more at their peak: {most / 2**20:.0f} MiB", columns, rows)
    write_json(a.json, {"title": title, "stages": stages, "peak_mib": most / 2**20, "holders": rows})


if __name__ == "__main__":
    main()
