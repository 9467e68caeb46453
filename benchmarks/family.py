"""Every detector with every backbone: ten training steps on generated shapes, evaluation, saving and loading.

    python -m benchmarks.family [--detectors mask_rcnn ...] [--backbones resnet_v1_50 ...] [--json OUT]

Prints, for each, its number of weights, the seconds to build, compile and train, the loss of the first and last steps,
and what evaluation found.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn
from tqdm import tqdm

from src.checkpoints.files import load_detector, save_checkpoint
from src.config import Config, load_config
from src.data.loader import TrainLoader
from src.data.mindrecord import ensure_mindrecord
from src.data.shapes import make_shapes
from src.evaluation.inference import Evaluator
from src.evaluation.results import load_results
from src.models.build import build_detector, build_loss
from src.runtime.errors import run_command
from src.training.loop import step_inputs
from src.training.step import SamplerKeys, build_step

__all__ = ["BACKBONES", "DETECTORS", "run"]

DETECTORS = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn")
RESNET = {"backbone.type": "resnet", "backbone.width_multiplier": 1.0, "backbone.norm_eval": True}
RESNEXT = RESNET | {"backbone.type": "resnext", "backbone.depth": 101}
BACKBONES = {
    "mobilenet_v1": {"backbone.width_multiplier": 0.25},
    "mobilenet_v3_large": {
        "backbone.type": "mobilenet_v3_large",
        "backbone.width_multiplier": 1.0,
        "backbone.num_stages": 5,
        "backbone.out_indices": [3, 4],
        "neck.fpn.num_outs": 3,
    },
    "resnet_v1_50": RESNET | {"backbone.depth": 50, "backbone.stride_in_1x1": True},
    "resnet_v1.5_50": RESNET | {"backbone.depth": 50, "backbone.stride_in_1x1": False},
    "resnet_v1_101": RESNET | {"backbone.depth": 101, "backbone.stride_in_1x1": False},
    "resnet_v1_152": RESNET | {"backbone.depth": 152, "backbone.stride_in_1x1": False},
    "resnext_101_32x4d": RESNEXT | {"backbone.groups": 32, "backbone.base_width": 4},
    "resnext_101_64x4d": RESNEXT | {"backbone.groups": 64, "backbone.base_width": 4},
}
SMALL = {"img_height": 128, "img_width": 192, "batch_size": 2, "warmup_step": 0, "lr": 0.001, "max_instance_count": 8}


def family_config(detector: str, backbone: str, folder: Path) -> Config:
    """The shapes config with another detector and backbone, on a canvas of 128 x 192, and 8 + 4 images in `folder`."""
    base = "configs/shapes_cascade.yaml" if detector.startswith("cascade") else "configs/shapes.yaml"
    data = folder / "shapes_data"
    if not data.exists():
        make_shapes(data, train=8, val=4, seed=0)
    places = {"train_dataset": str(data), "val_dataset": str(data), "train_outputs": str(folder)}
    return load_config(base, SMALL | places | {"detector": detector} | BACKBONES[backbone])


def run(detector_name: str, backbone: str, folder: Path) -> dict:
    """Builds, trains ten steps on one batch, saves, loads into another detector, and evaluates both."""
    config = family_config(detector_name, backbone, folder)
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(1)
    start = time.perf_counter()
    detector = build_detector(config)
    losses = train(config, detector, 10)
    seconds = time.perf_counter() - start
    path = folder / "detector.ckpt"
    save_checkpoint(detector, path)
    again = build_detector(config)
    load_detector(again, path)
    with contextlib.redirect_stdout(io.StringIO()):
        summary = Evaluator(config, detector).run(folder / "results.json")
        Evaluator(config, again).run(folder / "loaded.json")
    results = load_results(folder / "results.json")
    return {
        "detector": detector_name,
        "backbone": backbone,
        "weights": sum(p.size for p in detector.get_parameters() if "moving_" not in p.name),
        "seconds": round(seconds, 1),
        "first 3 losses": round(float(np.mean(losses[:3])), 3),
        "last 3 losses": round(float(np.mean(losses[-3:])), 3),
        "detections": len(results),
        "box AP": round(summary.metrics["bbox"]["AP"], 3),
        "loads the same": results == load_results(folder / "loaded.json"),
    }


def train(config: Config, detector: nn.Cell, steps: int) -> list[float]:
    """The total loss of each of `steps` steps on the first batch of the shapes."""
    loss = build_loss(config, detector)
    step = build_step(config, loss, np.full(steps, config.lr, np.float32))
    batch = next(TrainLoader(config, ensure_mindrecord(config, "train", training=True)).epoch(0))
    keys = SamplerKeys(config)
    return [float(step(*step_inputs(batch, keys(i, batch["image_id"])))[0].asnumpy()[0]) for i in range(steps)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=DETECTORS)
    parser.add_argument("--backbones", nargs="+", choices=tuple(BACKBONES), default=tuple(BACKBONES))
    parser.add_argument("--json", help="write the table here too")
    a = parser.parse_args()
    pairs = [(d, b) for d in a.detectors for b in a.backbones]
    rows = []
    # each in a process of its own: MindSpore keeps every graph that it has compiled
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for d, b in tqdm(pairs, unit="model", dynamic_ncols=True):
            with ProcessPoolExecutor(1, spawn) as pool:
                rows.append(pool.submit(run, d, b, Path(folder)).result())
            if len(rows) == 1:
                print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
            print("| " + " | ".join(map(str, rows[-1].values())) + " |", flush=True)
    if a.json:
        Path(a.json).write_text(json.dumps(rows, indent=1) + "\n")
    learnt = all(r["last 3 losses"] < r["first 3 losses"] and r["loads the same"] for r in rows)
    return 0 if learnt else 1


if __name__ == "__main__":
    sys.exit(run_command(main))
