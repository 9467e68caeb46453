"""Copy-paste and InstaBoost against neither: the small detector of the shapes trained equally long, with several seeds.

    python -m benchmarks.augmentation --out DIR [--train 200] [--val 200] [--seeds 1 2 3] [--KEY VALUE of the config]

Every run that ends is added to DIR/runs.json, and isn't made again; the table is of what that file holds of these
numbers of images and keys. Seeds come in the outer loop, so that it grows evenly.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from benchmarks.cascade import train_and_evaluate
from benchmarks.common import machine
from src.data.shapes import make_shapes
from src.runtime.errors import UserError, run_command
from src.runtime.files import whole

ROWS = {
    "neither": {},
    "InstaBoost": {"aug_prob": 0.5},
    "copy-paste": {"copy_paste_ratio": 0.5},
    "both": {"aug_prob": 0.5, "copy_paste_ratio": 0.5},
}
METRICS = ("bbox AP", "bbox AP75", "segm AP", "segm AP75")


def read_runs(path: Path) -> list[dict]:
    """The runs of earlier calls. Raises UserError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError:
        raise UserError(f"{path}: not JSON; move it away") from None


def print_runs(runs: list[dict]) -> None:
    """A row for each of ROWS: the mean over its seeds, with the least and the most."""
    print("\n| | runs | " + " | ".join(METRICS) + " |\n|" + " --- |" * (len(METRICS) + 2))
    for title in ROWS:
        mine = [r for r in runs if r["row"] == title]
        cells = []
        for metric in METRICS if mine else ():
            values = [r[metric] for r in mine]
            cells.append(f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"| {title} | {len(mine)} | " + " | ".join(cells or ["-"] * len(METRICS)) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=200, help="training images")
    parser.add_argument("--val", type=int, default=200, help="held-out images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    a, overrides = parser.parse_known_args()
    out = a.out.resolve()
    data = make_shapes(out / f"shapes_{a.train}_{a.val}", train=a.train, val=a.val, seed=0)
    path, settings = out / "runs.json", {"train": a.train, "val": a.val, "keys": overrides}
    runs = read_runs(path)
    for seed in a.seeds:
        for title, keys in ROWS.items():
            name = {"row": title, "seed": seed, **settings}
            if any(name.items() <= r.items() for r in runs):
                continue
            words = [f"--{k}={v}" for k, v in {**keys, "seed": seed, "overwrite": "true"}.items()]
            place = out / f"{title}_{a.train}_seed_{seed}"
            found = train_and_evaluate("shapes", data, place, [*words, *overrides])
            runs.append({**name, **found, "machine": machine()})
            with whole(path, UserError, "name another folder as --out") as beside:
                beside.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    print_runs([r for r in runs if settings.items() <= r.items()])
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
