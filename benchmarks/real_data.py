"""Faster R-CNN on MobileNetV1-FPN fine-tuned on real photographs, here and in torchvision, from the same weights.

    python -m benchmarks.real_data --data DIR [--torchvision PYTHON] [--only SET] [--seed N] [--out DIR] [--scratch]
        [--KEY VALUE ...]
    python -m benchmarks.real_data --table

DIR holds mobilenet_v1/ (TensorFlow-Slim's weights), bccd/ and raccoon/ (Pascal VOC's XML; of raccoon every fifth by
name validates). PYTHON has torch and torchvision. Both sides have the same pictures, canvas, batches, learning rates,
flips and evaluation, by pycocotools on the last weights, of the validation split, and of the test split where there is
one. --scratch: both on a ResNet-50 from random weights, and a smaller canvas. Each set's AP, AP50, hours and memory are
written to a JSON file of its own in benchmarks/results/. --table prints all that lie there, and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import print_table, write_json
from src.checkpoints.files import load_checkpoint
from src.config import Config, load_config
from src.convert_checkpoint import run as convert
from src.data.import_labels import import_labels
from src.evaluation.coco import evaluate
from src.evaluation.results import load_results
from src.runtime.errors import UserError, run_command
from src.training.lr_schedule import learning_rates

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/finetune_faster_rcnn_mobilenetv1_fpn.yaml"
WEIGHTS = "mobilenet_v1/mobilenet_v1_1.0_224_imagenet.safetensors"
# the canvas has the shape of most of its pictures
SETS: dict[str, dict[str, int]] = {
    "bccd": {"img_width": 480, "img_height": 352},
    "raccoon": {"img_width": 320, "img_height": 320},
}
# ResNet-50 from random weights, all of whose layers learn, norms and their statistics among them
SCRATCH = {
    "backbone": "resnet_v1.5_50",
    "backbone.same_padding": "false",
    "backbone.frozen_stages": "-1",
    "backbone.norm_eval": "false",
    "backbone.norm_grad": "true",
    "img_width": "256",
    "img_height": "192",
}
SIDES = ("here", "torchvision")
RESULTS = ROOT / "benchmarks/results"
STAMP = "%Y%m%d_%H%M%S"  # of the end of a run, in its file's name
COLUMNS = [
    "set",
    "seed",
    "ended",
    "by",
    "AP",
    "AP50",
    "test AP",
    "test AP50",
    "training, minutes",
    "peak MiB",
    "options",
]


def listed(source: Path, target: Path) -> Path:
    """A VOC folder with its splits listed: the folder itself, or a copy of which every fifth by name validates."""
    if (source / "ImageSets").is_dir():
        return source
    for part in ("annotations", "images"):
        shutil.copytree(source / part, target / part, copy_function=shutil.copyfile, dirs_exist_ok=True)
    names = sorted(p.stem for p in (source / "annotations").glob("*.xml"))
    lists = target / "ImageSets/Main"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "val.txt").write_text("\n".join(names[4::5]) + "\n")
    (lists / "train.txt").write_text("\n".join(n for i, n in enumerate(names) if i % 5 != 4) + "\n")
    return target


def watched(command: list[str], what: str) -> tuple[float, float]:
    """Runs a command; its hours and its largest memory in MiB. Raises UserError where it fails."""
    start = time.perf_counter()
    # as the user gave it: MindSpore's import has changed the process's own OMP_NUM_THREADS to 1
    process = subprocess.Popen(command, cwd=ROOT, env=dict(os.environ))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{what} failed (see above)")
    return (time.perf_counter() - start) / 3600, usage.ru_maxrss / 1024


def splits(data: Path) -> list[str]:
    """What is evaluated of a COCO root."""
    return [s for s in ("val", "test") if (data / f"annotations/instances_{s}2017.json").exists()]


def measured(data: Path, results: dict[str, str], hours: float, mib: float) -> dict[str, float]:
    """Of a side's results files by split; the validation split's numbers have no prefix."""
    out: dict[str, float] = {}
    for split, path in results.items():
        truth = data / f"annotations/instances_{split}2017.json"
        metrics = evaluate(truth, load_results(Path(path)), ("bbox",)).metrics["bbox"]
        prefix = "" if split == "val" else f"{split}_"
        out |= {f"{prefix}{kind}": metrics[kind] for kind in ("AP", "AP50")}
    return out | {"training_hours": hours, "peak_mib": mib}


def here(data: Path, out: Path, keys: Mapping[str, object], seed: int, overrides: list[str]) -> dict[str, float]:
    """Trains and evaluates this project's detector; keys: of the config."""
    own = [w for k, v in keys.items() for w in (f"--{k}", str(v))]
    own += ["--run_eval", "false", "--early_stop_epochs", "0", "--seed", str(seed), "--train_dataset", str(data)]
    own += ["--val_dataset", str(data), "--train_outputs", str(out)]
    command = [sys.executable, "train.py", "--config_path", str(CONFIG), *own, *overrides]
    hours, mib = watched([*command, "--brief", "here", "--overwrite", "true"], "training")
    folder = out / "here"
    newest = max((folder / "checkpoints").glob("*.ckpt"), key=lambda p: p.stat().st_mtime)
    results = {s: str(out / f"here_{s}.json") for s in splits(data)}
    common = ["--config_path", str(folder / "config.yaml"), "--checkpoint_path", str(newest)]
    for split, path in results.items():
        watched([sys.executable, "eval.py", *common, "--split", split, "--results", path], "evaluation")
    return measured(data, results, hours, mib)


def there(python: str, data: Path, out: Path, config: Config, seed: int) -> dict[str, float]:
    """Trains and evaluates torchvision's, with the learning rates and the weights that the run here began with."""
    weights = out / "backbone.npz"
    if config.backbone.pretrained:
        np.savez(weights, **load_checkpoint(Path(config.backbone.pretrained)))
    steps = sum(1 for _ in (out / "here/loss_0.log").open()) // config.epoch_size
    results = {s: str(out / f"torchvision_{s}.json") for s in splits(data)}
    job = {
        "data": str(data),
        "weights": str(weights) if config.backbone.pretrained else "",
        "mean": [v / 255 for v in config.img_mean],
        "std": [v / 255 for v in config.img_std],
        "results": results,
        "seed": seed,
        "rates": learning_rates(config, steps).tolist(),
        "steps_an_epoch": steps,
        "batch": config.batch_size,
        "sides": [config.img_height, config.img_width],
        "flip": config.flip_ratio,
        "grad_clip": config.grad_clip,
        "channels": config.neck.fpn.out_channels,
        "width": config.bbox_head.fc_out_channels,
        "anchors": [s * config.rpn.anchor_generator.scales[0] for s in config.rpn.anchor_generator.strides],
        "ratios": config.rpn.anchor_generator.ratios,
        "finest": config.roi.finest_scale,
        "train": [config.train_cfg.rpn_proposal.nms_pre, config.train_cfg.rpn_proposal.max_per_img],
        "test": [config.test_cfg.rpn.nms_pre, config.test_cfg.rpn.max_per_img],
        "rois": config.train_cfg.rcnn.sampler.num,
    }
    path = out / "job.json"
    path.write_text(json.dumps(job))
    hours, mib = watched([python, "-m", "benchmarks.real_data_child", str(path)], "torchvision's training")
    return measured(data, results, hours, mib)


def rows_of(run: dict[str, Any], stamp: str) -> list[list[object]]:
    """The table's row of each side of a run that ended at `stamp`."""
    ended = time.strftime("%d %b %Y, %H:%M", time.strptime(stamp, STAMP))
    rows: list[list[object]] = []
    for side in (s for s in SIDES if s in run):
        r = run[side]
        found = [r.get(k, "") for k in ("AP", "AP50", "test_AP", "test_AP50")]
        minutes, mib = round(60 * r["training_hours"], 1), round(r["peak_mib"])
        rows.append([run["set"], run["seed"], ended, side, *found, minutes, mib, " ".join(run["overrides"])])
    return rows


def kept() -> list[list[object]]:
    """Those of all runs in benchmarks/results/, by set, seed and time."""
    rows: list[list[object]] = []
    for path in sorted(RESULTS.glob("real_data_*.json")):
        rows += rows_of(json.loads(path.read_text()), "_".join(path.stem.split("_")[-2:]))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--table", action="store_true", help="of the runs that benchmarks/results holds")
    parser.add_argument("--torchvision", help="an interpreter with torch and torchvision; without: this project alone")
    parser.add_argument("--only", choices=sorted(SETS))
    parser.add_argument("--scratch", action="store_true", help="ResNet-50 from random weights")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("train_outputs/real_data"), help="folder of runs and data")
    a, overrides = parser.parse_known_args()
    if a.table:
        print_table("Real photographs", COLUMNS, kept())
        return 0
    if a.data is None:
        parser.error("--data DIR, or --table")
    source, out = a.data.resolve(), a.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    backbone = out / "mobilenet_v1.ckpt"
    if not a.scratch:
        convert(source / WEIGHTS, backbone, "tensorflow_slim", None, None, {})
    rows: list[list[object]] = []
    for name in [a.only] if a.only else sorted(SETS):
        keys: dict[str, object] = SETS[name] | (SCRATCH if a.scratch else {"backbone.pretrained": backbone})
        label = f"{name}, from random weights" if a.scratch else name
        folder = out / f"{name}{'_scratch' if a.scratch else ''}_{a.seed}"
        data = folder / "data"
        if not data.exists():
            import_labels(listed(source / name, folder / "voc"), data, source="voc", boxes=True)
        run: dict[str, Any] = {"set": label, "seed": a.seed, "overrides": overrides}
        run["here"] = here(data, folder, keys, a.seed, overrides)
        if a.torchvision:
            config = load_config(folder / "here/config.yaml")
            run["torchvision"] = there(a.torchvision, data, folder, config, a.seed)
        stamp = time.strftime(STAMP)
        place = RESULTS / f"real_data_{folder.name}_{stamp}.json"
        place.parent.mkdir(exist_ok=True)
        write_json(place, run)
        print(f"{place}: written")
        rows += rows_of(run, stamp)
    print_table("Real photographs", COLUMNS, rows)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
