"""Every detector with every backbone: ten training steps on generated shapes, evaluation, saving and loading.

    python -m benchmarks.family [--detectors mask_rcnn ...] [--backbones resnet_v1_50 ...] [--json OUT]

Prints, for each, its number of weights, the seconds to build and compile, and the loss of the first and last steps.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import mindspore as ms
import numpy as np
from tqdm import tqdm

from benchmarks.synthetic import synthetic_batch
from src.config import Config, load_config
from src.errors import run_command
from src.models.build import build_detector, build_loss
from src.training.checkpoints import load_detector, save_checkpoint
from src.training.loop import step_inputs
from src.training.step import SamplerKeys, build_step

__all__ = ["BACKBONES", "DETECTORS", "train_steps"]

DETECTORS = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn")
RESNET = {"neck.fpn.in_channels": [256, 512, 1024, 2048], "backbone.norm_eval": True, "backbone.type": "resnet"}
RESNEXT = RESNET | {"backbone.type": "resnext", "backbone.depth": 101}
BACKBONES = {
    "mobilenet_v1": {"backbone.width_multiplier": 0.25, "neck.fpn.in_channels": [32, 64, 128, 256]},
    "resnet_v1_50": RESNET | {"backbone.depth": 50, "backbone.stride_in_1x1": True},
    "resnet_v1.5_50": RESNET | {"backbone.depth": 50, "backbone.stride_in_1x1": False},
    "resnet_v1_101": RESNET | {"backbone.depth": 101, "backbone.stride_in_1x1": False},
    "resnet_v1_152": RESNET | {"backbone.depth": 152, "backbone.stride_in_1x1": False},
    "resnext_101_32x4d": RESNEXT | {"backbone.groups": 32, "backbone.base_width": 4},
    "resnext_101_64x4d": RESNEXT | {"backbone.groups": 64, "backbone.base_width": 4},
}
SMALL = {"img_height": 128, "img_width": 192, "batch_size": 2, "warmup_step": 0, "lr": 0.001, "max_instance_count": 8}


def family_config(detector: str, backbone: str) -> Config:
    """The shapes config with another detector and backbone, on a canvas of 128 x 192."""
    base = "configs/shapes_cascade.yaml" if detector.startswith("cascade") else "configs/shapes.yaml"
    return load_config(base, SMALL | {"detector": detector} | BACKBONES[backbone])


def train_steps(detector: str, backbone: str, steps: int) -> list[float]:
    """The total loss of each of `steps` steps on one batch of generated objects, from random weights."""
    config = family_config(detector, backbone)
    ms.set_seed(1)
    return _train(config, build_detector(config), steps)


def _train(config: Config, detector, steps: int) -> list[float]:
    loss = build_loss(config, detector)
    step = build_step(config, loss, np.full(steps, config.lr, np.float32))
    batch, keys = synthetic_batch(config, 4), SamplerKeys(config)
    return [float(step(*step_inputs(batch, keys(i, batch["image_id"])))[0].asnumpy()[0]) for i in range(steps)]


def _row(detector_name: str, backbone: str) -> dict:
    config = family_config(detector_name, backbone)
    ms.set_seed(1)
    start = time.perf_counter()
    detector = build_detector(config)
    losses = _train(config, detector, 10)
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "detector.ckpt"
        save_checkpoint(detector, path)
        again = build_detector(config)
        load_detector(again, path)
    image = ms.Tensor(synthetic_batch(config, 4)["image"])
    size = ms.Tensor(np.array([[128, 192]] * 2, np.float32))
    same = all(
        np.array_equal(a.asnumpy(), b.asnumpy())
        for a, b in zip(detector.set_train(False)(image, size), again.set_train(False)(image, size), strict=True)
    )
    return {
        "detector": detector_name,
        "backbone": backbone,
        "weights": sum(p.size for p in detector.get_parameters() if "moving_" not in p.name),
        "seconds": round(seconds, 1),
        "first 3 losses": round(float(np.mean(losses[:3])), 3),
        "last 3 losses": round(float(np.mean(losses[-3:])), 3),
        "loads the same": same,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=DETECTORS)
    parser.add_argument("--backbones", nargs="+", choices=tuple(BACKBONES), default=tuple(BACKBONES))
    parser.add_argument("--json", help="write the table here too")
    a = parser.parse_args()
    ms.set_context(mode=ms.GRAPH_MODE)
    pairs = [(d, b) for d in a.detectors for b in a.backbones]
    rows = [_row(d, b) for d, b in tqdm(pairs, unit="model", dynamic_ncols=True)]
    names = list(rows[0])
    print("| " + " | ".join(names) + " |\n|" + " --- |" * len(names))
    for row in rows:
        print("| " + " | ".join(str(row[n]) for n in names) + " |")
    if a.json:
        Path(a.json).write_text(json.dumps(rows, indent=1) + "\n")
    learnt = all(r["last 3 losses"] < r["first 3 losses"] and r["loads the same"] for r in rows)
    return 0 if learnt else 1


if __name__ == "__main__":
    sys.exit(run_command(main))
