"""Cascade Mask R-CNN against Mask R-CNN: both trained equally long on the generated shapes, evaluated on held-out ones.

    python -m benchmarks.cascade --out DIR [--train 800] [--val 200] [--json OUT] [--KEY VALUE of the config]

Prints one table; every run's checkpoints, losses and results stay in DIR.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from src.data.shapes import make_shapes
from src.evaluation.coco import evaluate
from src.evaluation.results import load_results
from src.runtime.errors import UserError, run_command

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {"Mask R-CNN": "shapes", "Cascade Mask R-CNN": "shapes_cascade"}
SHOWN = ("AP", "AP50", "AP75")


def train_and_evaluate(name: str, data: Path, out: Path, overrides: list[str]) -> dict:
    """Both tables' AP, AP50 and AP75 of one config, and its seconds of training."""
    common = ["--config_path", f"configs/{name}.yaml", "--train_outputs", str(out), "--val_dataset", str(data)]
    start = time.perf_counter()
    run = [sys.executable, "train.py", *common, "--train_dataset", str(data), *overrides]
    if subprocess.run(run, cwd=ROOT).returncode:
        raise UserError(f"configs/{name}.yaml: training failed (see above)")
    seconds = time.perf_counter() - start
    newest = max((out / name / "checkpoints").glob("*.ckpt"), key=lambda p: p.stat().st_mtime)
    run = [sys.executable, "eval.py", *common, "--checkpoint_path", str(newest), *overrides]
    if subprocess.run(run, cwd=ROOT).returncode:
        raise UserError(f"configs/{name}.yaml: evaluation failed (see above)")
    summary = evaluate(data / "annotations/instances_val2017.json", load_results(out / name / "results.json"))
    row = {f"{kind} {metric}": summary.metrics[kind][metric] for kind in ("bbox", "segm") for metric in SHOWN}
    return row | {"training s": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=800, help="training images")
    parser.add_argument("--val", type=int, default=200, help="held-out images")
    parser.add_argument("--json", help="write the table here too")
    a, overrides = parser.parse_known_args()
    out = a.out.resolve()
    data = make_shapes(out / "shapes_data", train=a.train, val=a.val, seed=0)
    rows = {title: train_and_evaluate(name, data, out, overrides) for title, name in CONFIGS.items()}
    columns = list(next(iter(rows.values())))
    print("\n| | " + " | ".join(columns) + " |\n|" + " --- |" * (len(columns) + 1))
    for title, row in rows.items():
        print(f"| {title} | " + " | ".join(f"{row[c]:.3f}" if c != "training s" else f"{row[c]:.0f}" for c in columns))
    if a.json:
        Path(a.json).write_text(json.dumps(rows, indent=1) + "\n")
    better = rows["Cascade Mask R-CNN"]["bbox AP75"] > rows["Mask R-CNN"]["bbox AP75"]
    return 0 if better else 1


if __name__ == "__main__":
    sys.exit(run_command(main))
