"""Builds the graphs for Ascend with MindSpore's own Ascend plugin, without CANN or a device, and says what it chose.

    python -m benchmarks.ascend_dry_run [--config CONFIG ...] [--ranks 1 8] [--graphs train infer export]
        [--chip ascend910b] [--small] [--json OUT] [--logs FOLDER] [KEY=VALUE ...]

Stand-ins for CANN's libraries, in which every function returns 0, let the plugin load; MS_SIMULATION_LEVEL=1 has it
choose a kernel for every operator and plan memory, and compute nothing. Ends with status 1 where a graph isn't built,
an operator falls back to the CPU, an operator isn't in operators.txt, or a message is neither expected nor known as
harmless (HARMLESS). It doesn't show numbers, speed, or whether CANN itself takes an operator.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["CONFIGS", "DryRun", "build_stand_ins", "dry_run"]

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "benchmarks/ascend"
STAND_INS = ROOT / "build/ascend_stand_ins"
CONFIGS = (
    "mask_rcnn_r50_fpn",
    "mask_rcnn_r101_fpn",
    "mask_rcnn_x101_32x4d_fpn",
    "faster_rcnn_r50_v1_fpn",
    "cascade_rcnn_r50_fpn",
    "mask_rcnn_mobilenetv1_fpn",
    "detectron2_mask_rcnn_r50_fpn",
    "mmdet_mask_rcnn_r50_fpn",
)
SMALL = ("img_width=128", "img_height=64", "batch_size=1", "max_instance_count=8")
# on a device: CANN's operators in their new and old form, the runtime's own (a reshape), collectives
DEVICE_KINDS = {"opapi": "aclnn", "acl": "aclop", "rt": "runtime", "hccl": "hccl", "internal": "internal"}
# of warnings and above, what is so in every dry run, and why it says nothing of a real device
HARMLESS = {
    r"Dynamically load symbol": "a stand-in has the symbols that a graph needs, not all",
    r"package version checking is skipped|Cannot find the tbe operator|whl package \"te\"|No module named 'te'": (
        "CANN's Python packages, which compile operators, aren't there; CRITICAL, yet harmless: nothing is compiled"
    ),
    r"does not support mstx|mstx": "CANN's profiler isn't there",
    r"expander_fallback": "the name of a pass, which takes operators apart; not a fall-back to the CPU",
    r"'FusedSparseAdam' is deprecated": "MindSpore's own optimizers import it",
    r"Some side effect nodes were eliminated": "of a tuple one part is used; so on the CPU, too, where results agree",
    r"This is simulation mode|Initializing dummy collective": "what the dry run is",
    r"Memory Adapter deinitialize success": "the statistics of memory at the end",
}
DEVICES = (32768, 65536)  # MB of memory
MINDSPORES_SHARE = 15 / 16  # of a device's memory, by what it says at the end: 61430 of 65536 MB
CHOSEN = re.compile(r"kernel opname:(\S+), kernel type:(\w+?)_kernel")
BACKOFF = re.compile(r"Try to use backoff CPU kernel, node:\s*(\S+)")
MEMORY = re.compile(r"Actual peak memory usage \(with fragments\): (\d+)M")
LOUD = re.compile(r"^\[(WARNING|ERROR|CRITICAL)\]\s*(.*)")
HCCL_API = """
import os

def size(group=None):
    return int(os.environ["RANK_SIZE"])

def rank(*_):
    return 0

def nothing(*_, **__):
    return None

get_rank_size = get_local_rank_size = size
get_rank_id = get_local_rank_id = get_world_rank_from_group_rank = get_group_rank_from_world_rank = rank
create_group = destroy_group = nothing
"""


@dataclass
class DryRun:
    """What the plugin chose for one graph. kernels: by kind; operators: of each, the kinds; memory: MB at the most, as
    planned; faults: what must not be.
    """

    config: str
    graph: str
    ranks: int
    kernels: dict[str, int] = field(default_factory=dict)
    operators: dict[str, list[str]] = field(default_factory=dict)
    on_cpu: list[str] = field(default_factory=list)
    memory: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def known_operators() -> set[str]:
    """Operators that a graph may have: those that were looked up (docs/ascend.md)."""
    lines = (DATA / "operators.txt").read_text().splitlines()
    return {line.split()[0] for line in lines if line and not line.startswith("#")}


def build_stand_ins(parent: Path = STAND_INS) -> Path:
    """Makes the stand-ins, where they aren't, and returns their folder. Raises RuntimeError without a compiler."""
    sources = [*sorted(DATA.glob("symbols_*.txt")), DATA / "libraries.txt", DATA / "stand_in.cc", Path(__file__)]
    folder = parent / hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:16]
    if not folder.is_dir():
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent) as made:
            fill(Path(made) / "made")
            # of several at once, one is first
            with contextlib.suppress(OSError):
                os.rename(Path(made) / "made", folder)
    return folder


def fill(folder: Path) -> None:
    """Makes the stand-ins in a new folder."""
    # the plugin finds CANN by a folder of this name
    cann = folder / "cann"
    (cann / "lib64").mkdir(parents=True)
    for name in ("ascendcl", "opapi"):
        source = folder / f"{name}.s"
        source.write_text(assembly((DATA / f"symbols_{name}.txt").read_text().split("\n"), name == "ascendcl"))
        compile_library(["gcc", source], cann / f"lib64/lib{name}.so")
    (folder / "empty.c").write_text("int stand_in;\n")
    compile_library(["gcc", folder / "empty.c"], folder / "empty.so")
    for name in (DATA / "libraries.txt").read_text().split():
        if not (cann / "lib64" / name).exists():
            shutil.copy(folder / "empty.so", cann / "lib64" / name)
    compile_library(["g++", "-D_GLIBCXX_USE_CXX11_ABI=0", DATA / "stand_in.cc"], folder / "stand_in.so", "-ldl")
    manage = folder / "python/hccl/manage"
    manage.mkdir(parents=True)
    (manage.parent / "__init__.py").write_text("class sys_version:\n    sys_version = __sys_version__ = '8.5'\n")
    (manage / "__init__.py").write_text("")
    (manage / "api.py").write_text(HCCL_API)


def assembly(lines: Iterable[str], names_chip: bool) -> str:
    """Functions of these names that return 0, or, marked ptr, the address of zeros; one gives the chip's name."""
    out = [".data", "zeros: .zero 4096", 'chip: .asciz "Ascend910B2"', ".text"]
    for words in map(str.split, lines):
        if words:
            name, kind = words[0], (words[1:] or ["zero"])[0]
            out += [f".globl {name}", f".type {name},@function", f"{name}:", f" jmp give_{kind}"]
    if names_chip:
        name = "aclrtGetSocName"
        out += [f".globl {name}", f".type {name},@function", f"{name}:", " leaq chip(%rip), %rax", " ret"]
    out += ["give_zero:", " xorl %eax, %eax", " ret", "give_ptr:", " leaq zeros(%rip), %rax", " ret"]
    return "\n".join([*out, '.section .note.GNU-stack,"",@progbits', ""])


def compile_library(command: list, path: Path, *libraries: str) -> None:
    words = [*map(str, command), "-shared", "-fPIC", "-o", str(path), *libraries]
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except OSError as e:
        raise RuntimeError(f"{command[0]}: {e.strerror}") from None
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")


def surroundings(folder: Path, chip: str, ranks: int, cores: int) -> dict[str, str]:
    """The environment of a child."""
    cann = folder / "cann"
    paths = [str(folder / "python")] if ranks > 1 else []
    return {
        **os.environ,
        **{name: str(cann) for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")},
        "ASCEND_OPP_PATH": str(cann / "opp"),
        "LD_LIBRARY_PATH": str(cann / "lib64"),
        "LD_PRELOAD": str(folder / "stand_in.so"),
        "MS_SIMULATION_LEVEL": "1",
        "RANK_SIZE": str(ranks),
        "RANK_ID": "0",
        "DRY_RUN_CHIP": chip,
        "DRY_RUN_CORES": str(cores),
        "GLOG_v": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([*paths, str(ROOT)]),
    }


def dry_run(
    config: str,
    graph: str,
    ranks: int = 1,
    options: Iterable[str] = (),
    chip: str = "ascend910b",
    cores: int = 32,
    log: Path | None = None,
) -> DryRun:
    """Builds `graph` ("train", "infer", "export") of configs/`config`.yaml, with KEY=VALUE options.

    cores: what MindSpore takes for the host's. log: a file for what the child says, some 50 MB.
    """
    out, begin = DryRun(config, graph, ranks), time.monotonic()
    folder = build_stand_ins()
    words = [sys.executable, "-m", "benchmarks.ascend.graph", graph, str(ROOT / "configs" / f"{config}.yaml"), *options]
    built, kinds = False, collections.defaultdict(set)
    kernels: collections.Counter[str] = collections.Counter()
    loud: collections.Counter[str] = collections.Counter()
    # it leaves folders of its own where it runs
    with tempfile.TemporaryDirectory(dir=folder) as place, open(log or os.devnull, "w") as kept:
        child = subprocess.Popen(
            words,
            cwd=place,
            env=surroundings(folder, chip, ranks, cores),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        for line in child.stdout or ():
            kept.write(line)
            built = built or line.startswith("dry run: built")
            if found := CHOSEN.search(line):
                kind = DEVICE_KINDS.get(found[2], found[2])
                kernels[kind] += 1
                kinds[found[1]].add(kind)
            elif found := BACKOFF.search(line):
                out.on_cpu.append(found[1])
            elif found := MEMORY.search(line):
                out.memory = max(out.memory, int(found[1]))
            elif (found := LOUD.match(line)) and not any(re.search(h, found[2]) for h in HARMLESS):
                loud[re.sub(r"^\S+\([^]]*\] ", "", found[2])[:200]] += 1
        status = child.wait()
    out.kernels, out.operators = dict(kernels), {name: sorted(k) for name, k in sorted(kinds.items())}
    out.seconds = round(time.monotonic() - begin, 1)
    if not built:
        out.faults.append(f"not built (status {status})")
    out.faults += [f"falls back to the CPU: {name}" for name in out.on_cpu]
    out.faults += [f"kernel of kind {k}: no device's" for k in kernels if k not in DEVICE_KINDS.values()]
    out.faults += [f"operator not in operators.txt: {name}" for name in kinds if name not in known_operators()]
    out.faults += [f"unknown message: {text}" for text in loud]
    return out


def row(r: DryRun) -> str:
    """A line of the table in docs/ascend.md; without memory where the graph was compiled alone."""
    kinds = [r.kernels.get(k, 0) for k in ("aclnn", "aclop", "runtime", "hccl")]
    memory = [r.memory, *("yes" if r.memory <= size * MINDSPORES_SHARE else "no" for size in DEVICES)]
    cells = [r.config, r.graph, r.ranks, *kinds, len(r.on_cpu), *(memory if r.memory else "---")]
    return f"| {' | '.join(map(str, cells))} | {'; '.join(r.faults) or 'none'} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", default=CONFIGS, help="names in configs/")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--graphs", nargs="+", default=["train"], choices=("train", "infer", "export"))
    parser.add_argument("--chip", default="ascend910b")
    parser.add_argument("--cores", type=int, default=32, help="what MindSpore takes for the host's CPUs")
    parser.add_argument("--small", action="store_true", help=f"on a small canvas ({' '.join(SMALL)})")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--logs", type=Path, help="folder for what each graph said")
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="keys of the config")
    words = parser.parse_args()
    print("| config | graph | ranks | aclnn | aclop | runtime | HCCL | on CPU | memory (MB) | 32 GB | 64 GB | faults |")
    print("|" + " --- |" * 12)
    rows = []
    for config in words.config:
        for graph in words.graphs:
            for ranks in words.ranks if graph == "train" else [1]:
                if words.logs:
                    words.logs.mkdir(parents=True, exist_ok=True)
                log = words.logs / f"{config}-{graph}-{ranks}.log" if words.logs else None
                options = [*(SMALL if words.small else ()), *words.options]
                rows.append(dry_run(config, graph, ranks, options, words.chip, words.cores, log))
                print(row(rows[-1]), flush=True)
                if words.json:
                    words.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    return int(any(r.faults for r in rows))


if __name__ == "__main__":
    sys.exit(main())
