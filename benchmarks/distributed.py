"""Images a second of two ranks with one thread each, against one rank with one thread.

    python -m benchmarks.distributed --out DIR [--ranks 2] [--steps 20] [--config configs/shapes.yaml] [--json OUT]
                                     [--KEY VALUE ...]

Each rank has a core of its own. Trains on generated shapes, without checkpoints or evaluation in between; of the steps
the first three are left out.
"""

import argparse
import json
import os
import runpy
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = 3
ONE_THREAD = {"OMP_NUM_THREADS": "1", "RCNN_NUM_THREADS": "1"}


def child() -> None:
    """train.py on this rank's core alone."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ.get("MS_NODE_ID", 0)) % len(cores)]})
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    sys.argv = ["train.py", *sys.argv[2:]]
    runpy.run_path("train.py", run_name="__main__")


def speeds(outputs: Path) -> list[float]:
    """Images a second of each step, all ranks together."""
    (log,) = outputs.glob("*/metrics.jsonl")
    return [json.loads(line)["images_per_second"] for line in log.read_text().splitlines()][LEFT_OUT:]


def train(outputs: Path, words: list[str], ranks: int) -> float:
    """Median images a second."""
    from src.runtime.errors import UserError

    command, script = [sys.executable], [str(Path(__file__).resolve()), "--child"]
    if ranks > 1:
        command += ["-m", "src.runtime.launch", str(Path(sys.executable).with_name("msrun"))]
        command += [f"--worker_num={ranks}", f"--local_worker_num={ranks}", f"--log_dir={outputs}/log", "--join=True"]
        words = [*words, "--run_distribute=true"]
    outputs.mkdir(parents=True)
    env = os.environ | ONE_THREAD | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with open(outputs / "console.txt", "w") as console:
        done = subprocess.run(
            [*command, *script, *words, f"--train_outputs={outputs}"],
            cwd=ROOT,
            env=env,
            stdout=console,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise UserError(f"{outputs}/console.txt: training failed: {(outputs / 'console.txt').read_text()[-800:]}")
    return statistics.median(speeds(outputs))


def main() -> int:
    from benchmarks.common import print_table, write_json
    from src.config import load_config, parse_overrides
    from src.data.shapes import make_shapes
    from src.runtime.errors import UserError

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--config", default="configs/shapes.yaml")
    parser.add_argument("--json", type=Path)
    a, rest = parser.parse_known_args()
    out = a.out.absolute()
    if out.exists():
        raise UserError(f"{out}: is there already; name a new folder")
    if a.steps <= LEFT_OUT:
        raise UserError(f"--steps {a.steps}: the first {LEFT_OUT} are left out; more are needed")
    cores = len(os.sched_getaffinity(0))
    if cores < a.ranks:
        raise UserError(f"--ranks {a.ranks}: here are {cores} cores, and each rank needs one")
    config = load_config(a.config, parse_overrides(rest))
    data = make_shapes(out / "data", train=a.steps * config.batch_size * a.ranks, val=4, seed=0)
    keys = {"train_dataset": data, "mindrecord_dir": out / "records", "epoch_size": 1, "run_eval": False}
    keys |= {"num_parallel_workers": 1, "train_empty_images": True, "base_batch_size": 0}
    words = ["--config_path", a.config, *(f"--{k}={v}" for k, v in keys.items()), *rest]
    one, many = train(out / "one", words, 1), train(out / "several", words, a.ranks)
    ratio = many / one
    rows = [["1", one, 1.0], [str(a.ranks), many, ratio]]
    title = f"{a.config}, batch {config.batch_size} a rank, one thread a rank"
    print_table(title, ["ranks", "images / s", "ratio"], rows)
    write_json(a.json, {"one": one, "several": many, "ranks": a.ranks, "ratio": ratio, "title": title})
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child()
    else:
        from src.runtime.errors import run_command

        run_command(main)
