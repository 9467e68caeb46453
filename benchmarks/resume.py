"""A short training killed with SIGKILL at random moments and resumed, against one that is left alone.

    python -m benchmarks.resume --out DIR [--kills 20] [--seed 0] [--json OUT] [--KEY VALUE ...]

The moments are drawn in turn while the run starts and loads, between steps, while it writes a checkpoint and while it
evaluates. Each killed run is resumed to its end; its weights must equal the undisturbed run's bit for bit, its logs
must hold each line once, and nothing unreadable may be left. Exits with status 1 otherwise.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common import print_table, write_json
from src.runtime.errors import UserError, run_command

__all__ = ["MOMENTS", "Run", "compare_runs", "kill_at"]

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "img_width": 192,
    "img_height": 128,
    "batch_size": 2,
    "epoch_size": 2,
    "backbone.width_multiplier": 0.25,
    "train_cfg.rcnn.mask_buckets": 1,
    "run_eval": True,
    "save_every": 3,
    "log_every": 2,
    "keep_checkpoint_max": 3,
}
PATIENCE = 300.0  # seconds to wait for a moment to come


@dataclass
class Run:
    """One training, in `train_outputs`/shapes, by train.py in a process of its own."""

    outputs: Path
    data: Path
    records: Path
    overrides: dict = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.outputs / "shapes"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def start(self) -> subprocess.Popen:
        """A new training, or a resumed one where there is something to resume."""
        keys = {"train_dataset": self.data, "val_dataset": self.data, "mindrecord_dir": self.records}
        keys |= TINY | self.overrides | {"train_outputs": self.outputs}
        words = ["--resume", str(self.folder)] if self.folder.is_dir() else []
        words += ["--config_path", "configs/shapes.yaml", *(f"--{k}={v}" for k, v in keys.items())]
        self.outputs.mkdir(parents=True, exist_ok=True)
        # a process group of its own, so that a kill leaves no worker behind
        with open(self.outputs / "console.txt", "a") as console:
            return subprocess.Popen(
                [sys.executable, "train.py", *words],
                cwd=ROOT,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self) -> None:
        """Trains to the end."""
        if self.start().wait():
            raise UserError(f"training failed: {self.console()[-2000:]}")

    def console(self) -> str:
        return (self.outputs / "console.txt").read_text(errors="replace")

    def lines(self) -> list[str]:
        log = self.folder / "loss_0.log"
        return log.read_text().splitlines() if log.is_file() else []

    def weights(self) -> Path:
        """The last checkpoint."""
        return max(self.checkpoints.glob("*.ckpt"), key=lambda p: [int(n) for n in p.stem.split("-")[1].split("_")])


def starting(run: Run, rng: random.Random) -> Callable[[], bool]:
    """While it imports, builds, loads and compiles: within the seconds that this takes."""
    until = time.monotonic() + rng.uniform(0.5, 12.0)
    return lambda: time.monotonic() > until or bool(run.lines())


def stepping(run: Run, rng: random.Random) -> Callable[[], bool]:
    """Some milliseconds after some line of the log."""
    wanted = len(run.lines()) + rng.randint(1, 8)
    seen: list[float] = []
    delay = rng.uniform(0, 0.3)

    def reached() -> bool:
        if len(run.lines()) >= wanted and not seen:
            seen.append(time.monotonic() + delay)
        return bool(seen) and time.monotonic() > seen[0]

    return reached


def writing(run: Run, rng: random.Random) -> Callable[[], bool]:
    """While a file of the next checkpoint but a few is there under its temporary name, or just has been."""
    left = [rng.randint(1, 6)]
    before: set[str] = set()
    delay = rng.uniform(0, 0.01)

    def reached() -> bool:
        now = {p.name for p in run.checkpoints.rglob("*.writing*")} if run.checkpoints.is_dir() else set()
        left[0] -= len(now - before)
        before.clear()
        before.update(now)
        if left[0] <= 0:
            time.sleep(delay)
        return left[0] <= 0

    return reached


def evaluating(run: Run, rng: random.Random) -> Callable[[], bool]:
    """After a first epoch's end, while detecting or measuring."""
    before = run.console().count("detecting")
    seen: list[float] = []
    delay = rng.uniform(0, 4.0)

    def reached() -> bool:
        if run.console().count("detecting") > before and not seen:
            seen.append(time.monotonic() + delay)
        return bool(seen) and time.monotonic() > seen[0]

    return reached


MOMENTS = {"starting": starting, "stepping": stepping, "writing": writing, "evaluating": evaluating}


def kill_at(run: Run, moment: str, rng: random.Random) -> str:
    """Starts or resumes `run` and kills it at `moment`; returns where that was, in words."""
    process = run.start()
    reached = MOMENTS[moment](run, rng)
    deadline = time.monotonic() + PATIENCE
    try:
        while not reached():
            if process.poll() is not None:
                if process.returncode:
                    raise UserError(f"training failed: {run.console()[-2000:]}")
                return "it had finished"
            if time.monotonic() > deadline:
                raise UserError(f"no moment {moment} within {PATIENCE:.0f} s: {run.console()[-2000:]}")
            time.sleep(0.001)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()
    half = [p.name for p in run.checkpoints.rglob("*.writing*")] if run.checkpoints.is_dir() else []
    place = run.lines()[-1].split(",")[0] if run.lines() else "before the first line"
    return place + (f", {half[0]} half written" if half else "")


def compare_runs(run: Run, reference: Run) -> list[str]:
    """In what `run`, resumed to its end, differs from `reference`; empty if in nothing."""
    from src.checkpoints.files import load_checkpoint

    faults = []
    if run.weights().name != reference.weights().name:
        return [f"last checkpoint is {run.weights().name}, not {reference.weights().name}"]
    ours, theirs = load_checkpoint(run.weights()), load_checkpoint(reference.weights())
    differ = [n for n in theirs if n not in ours or ours[n].tobytes() != theirs[n].tobytes()]
    if differ or ours.keys() != theirs.keys():
        faults.append(f"{len(differ)} of {len(theirs)} parameters differ, {differ[:1]}")
    if run.lines() != reference.lines():
        faults.append("loss_0.log differs")
    left = [p for p in run.folder.rglob("*") if "writing" in p.name or p.suffix == ".tmp"]
    if left:
        faults.append(f"left behind: {left[0].name}")
    for path in run.checkpoints.rglob("*.ckpt"):
        load_checkpoint(path)
    epochs = [[(r["epoch"], r["step"]) for r in rows if "bbox AP" in r] for rows in (metrics(run), metrics(reference))]
    if epochs[0] != epochs[1]:
        faults.append(f"evaluated at {epochs[0]}, not {epochs[1]}")
    return faults


def metrics(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path)
    a, rest = parser.parse_known_args()
    if a.out.exists():
        raise UserError(f"{a.out}: is there already; name a new folder")
    from src.config import parse_overrides
    from src.data.shapes import make_shapes

    overrides, rng = parse_overrides(rest), random.Random(a.seed)
    data = make_shapes(a.out / "data", train=24, val=8, seed=5)
    reference = Run(a.out / "undisturbed", data, a.out / "records", overrides)
    reference.finish()
    rows, results = [], []
    for i in range(a.kills):
        moment = list(MOMENTS)[i % len(MOMENTS)]
        run = Run(a.out / f"killed_{i}", data, a.out / "records", overrides)
        where = kill_at(run, moment, rng)
        run.finish()
        faults = compare_runs(run, reference)
        outcome = "; ".join(faults) or "bit-identical"
        rows.append([i + 1, moment, where, outcome])
        results.append({"moment": moment, "where": where, "faults": faults})
        print(f"kill {i + 1} of {a.kills}, {moment}, {where}: {outcome}", flush=True)
        if not faults:
            shutil.rmtree(run.outputs)
    print_table(f"{a.kills} kills", ["", "while", "last line", "resumed to its end"], rows)
    write_json(a.json, {"kills": results})
    return int(any(r["faults"] for r in results))


if __name__ == "__main__":
    run_command(main)
