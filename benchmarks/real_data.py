"""Faster R-CNN on MobileNetV1-FPN fine-tuned on real photographs, here and in torchvision, from the same weights.

    python -m benchmarks.real_data --data DIR --torchvision PYTHON [--only SET] [--seed N] [--out DIR] [--KEY VALUE ...]
    python -m benchmarks.real_data --table

DIR holds mobilenet_v1/ (TensorFlow-Slim's weights), bccd/ and raccoon/ (Pascal VOC's XML; of raccoon every fifth by
name validates). PYTHON has torch and torchvision. Both sides have the same pictures, canvas, batches, learning rates,
flips and evaluation, by pycocotools on the last weights. Each set's AP, AP50, hours and memory are written to a JSON
file of its own in benchmarks/results/. --table prints all that lie there, and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

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
SIDES = ("here", "torchvision")
RESULTS = ROOT / "benchmarks/results"
COLUMNS = ["set", "seed", "by", "AP", "AP50", "training, minutes", "peak MiB", "options"]


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


def measured(truth: Path, results: Path, hours: float, mib: float) -> dict[str, float]:
    metrics = evaluate(truth, load_results(results), ("bbox",)).metrics["bbox"]
    return {"AP": metrics["AP"], "AP50": metrics["AP50"], "training_hours": hours, "peak_mib": mib}


def here(data: Path, out: Path, backbone: Path, name: str, seed: int, overrides: list[str]) -> dict[str, float]:
    """Trains and evaluates this project's detector."""
    own = [w for k, v in SETS[name].items() for w in (f"--{k}", str(v))]
    own += ["--run_eval", "false", "--early_stop_epochs", "0", "--seed", str(seed), "--train_dataset", str(data)]
    own += ["--val_dataset", str(data), "--train_outputs", str(out), "--backbone.pretrained", str(backbone)]
    command = [sys.executable, "train.py", "--config_path", str(CONFIG), *own, *overrides]
    hours, mib = watched([*command, "--brief", "here", "--overwrite", "true"], "training")
    folder = out / "here"
    newest = max((folder / "checkpoints").glob("*.ckpt"), key=lambda p: p.stat().st_mtime)
    results = out / "here.json"
    common = ["--config_path", str(folder / "config.yaml"), "--checkpoint_path", str(newest)]
    watched([sys.executable, "eval.py", *common, "--results", str(results)], "evaluation")
    return measured(data / "annotations/instances_val2017.json", results, hours, mib)


def there(python: str, data: Path, out: Path, backbone: Path, config: Config, seed: int) -> dict[str, float]:
    """Trains and evaluates torchvision's, with the learning rates that the run here had."""
    weights = out / "backbone.npz"
    np.savez(weights, **load_checkpoint(backbone))
    steps = sum(1 for _ in (out / "here/loss_0.log").open()) // config.epoch_size
    job = {
        "data": str(data),
        "weights": str(weights),
        "results": str(out / "torchvision.json"),
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
    return measured(data / "annotations/instances_val2017.json", Path(job["results"]), hours, mib)


def kept() -> list[list[object]]:
    """A row for each side of each run in benchmarks/results/, by set, seed and time."""
    rows: list[list[object]] = []
    for path in sorted(RESULTS.glob("real_data_*.json")):
        run = json.loads(path.read_text())
        words = [f"{w}" for w in run["overrides"]]
        for side in (s for s in SIDES if s in run):
            r = run[side]
            minutes = round(60 * r["training_hours"], 1)
            rows.append(
                [run["set"], run["seed"], side, r["AP"], r["AP50"], minutes, round(r["peak_mib"]), " ".join(words)]
            )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--table", action="store_true", help="of the runs that benchmarks/results holds")
    parser.add_argument("--torchvision", help="an interpreter with torch and torchvision; without: this project alone")
    parser.add_argument("--only", choices=sorted(SETS))
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
    convert(source / WEIGHTS, backbone, "tensorflow_slim", None, None, {})
    rows = []
    for name in [a.only] if a.only else sorted(SETS):
        folder = out / f"{name}_{a.seed}"
        data = folder / "data"
        if not data.exists():
            import_labels(listed(source / name, folder / "voc"), data, source="voc", boxes=True)
        run = {"here": here(data, folder, backbone, name, a.seed, overrides)}
        if a.torchvision:
            config = load_config(folder / "here/config.yaml")
            run["torchvision"] = there(a.torchvision, data, folder, backbone, config, a.seed)
        stamp = time.strftime("%Y%m%d_%H%M%S")
        place = RESULTS / f"real_data_{name}_{a.seed}_{stamp}.json"
        place.parent.mkdir(exist_ok=True)
        write_json(place, {"set": name, "seed": a.seed, "overrides": overrides, **run})
        print(f"{place}: written")
        rows += [[name, side, *run[side].values()] for side in SIDES if side in run]
    print_table("Real photographs", ["set", "by", "AP", "AP50", "training h", "peak MiB"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
