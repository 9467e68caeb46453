"""Every detector with every backbone and norm: ten training steps on generated pictures, evaluation, saving, loading.

    python -m benchmarks.family [--detectors mask_rcnn ...] [--backbones resnet_v1_50 ...] [--norms group ...]
                                [--json FILE] [--jobs N]

A norm is that of neck, box head and mask head, and of the backbone where it has that kind; own: the backbone's own, and
none after it. Prints, for each, its number of weights, the seconds to build, compile and train, the loss of the first
and last steps, and what evaluation found. FILE holds these rows; what it holds already isn't run again. Of N at a time,
each keeps to cores of its own: MindSpore's threads wait by spinning, and two that shared two cores took twice as long.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn
from tqdm import tqdm

from benchmarks.common import print_table
from src.checkpoints.files import load_detector, save_checkpoint
from src.config import Config, load_config
from src.config.backbones import FAMILIES
from src.data.keypoint_shapes import make_keypoint_shapes
from src.data.loader import TrainLoader
from src.data.mindrecord import ensure_mindrecord
from src.data.shapes import make_shapes
from src.evaluation.inference import Evaluator
from src.evaluation.results import load_results
from src.models.build import build_detector, build_loss
from src.runtime.errors import run_command
from src.runtime.files import read_regular, whole
from src.runtime.newer import zip_equal
from src.training.loop import step_inputs
from src.training.step import SamplerKeys, build_step

__all__ = ["BACKBONES", "DETECTORS", "NORMS", "family_config", "grown", "run"]

DETECTORS = {
    "faster_rcnn": "shapes",
    "mask_rcnn": "shapes",
    "cascade_rcnn": "shapes_cascade",
    "cascade_mask_rcnn": "shapes_cascade",
    "keypoint_rcnn": "keypoint_shapes",
}
RESNET = {"backbone.type": "resnet", "backbone.width_multiplier": 1.0, "backbone.norm_eval": True}
RESNEXT = RESNET | {"backbone.type": "resnext", "backbone.depth": 101}
TRANSFORMER = {"backbone.width_multiplier": 1.0}
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
    "vit_b": TRANSFORMER | {"backbone.type": "vit_b", "neck.fpn.upsample": "none"},
    "swin_t": TRANSFORMER | {"backbone.type": "swin_t"},
    "swin_s": TRANSFORMER | {"backbone.type": "swin_s"},
}
# of the backbone; transformers have layer norm, and MobileNets no group norm
NORMS = {
    "own": {},
    "frozen": {"backbone.norm_eval": True, "backbone.norm_grad": False},
    "running": {"backbone.norm_eval": True, "backbone.norm_grad": True},
    "batch": {"backbone.norm_eval": False, "backbone.norm_grad": True},
    "sync": {"backbone.norm": "sync", "backbone.norm_eval": False, "backbone.norm_grad": True},
    "group": {"backbone.norm": "group"},
    "layer": {},
}
SMALL = {"img_height": 128, "img_width": 192, "batch_size": 2, "warmup_step": 0, "lr": 0.001, "max_instance_count": 8}


def family_config(detector: str, backbone: str, folder: Path, norm: str = "own") -> Config:
    """The generated pictures' config with another detector, backbone and norm, on a canvas of 128 x 192, and 8 + 4
    images in `folder`.
    """
    base = DETECTORS[detector]
    data = folder / f"{base}_data"
    if not data.exists():
        make = make_keypoint_shapes if base == "keypoint_shapes" else make_shapes
        make(data, train=8, val=4, seed=0)
    places = {"train_dataset": str(data), "val_dataset": str(data), "train_outputs": str(folder)}
    family = FAMILIES[BACKBONES[backbone].get("backbone.type", "mobilenet_v1")]
    keys = {} if family.transformer else NORMS[norm]
    if norm == "group" and not backbone.startswith("resne"):
        keys = {}
    if norm != "own":
        convs = {"bbox_head.num_convs": 1, "bbox_head.conv_out_channels": 64}
        keys = keys | convs | {f"{part}.norm": norm for part in ("neck.fpn", "bbox_head", "mask_head")}
    return load_config(f"configs/{base}.yaml", SMALL | places | {"detector": detector} | BACKBONES[backbone] | keys)


def run(folder: Path, detector_name: str, backbone: str, norm: str = "own") -> dict:
    """Builds, trains ten steps on one batch, saves, loads into another detector, and evaluates that."""
    folder = Path(tempfile.mkdtemp(dir=folder))
    config = family_config(detector_name, backbone, folder, norm)
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(1)
    start = time.perf_counter()
    detector = build_detector(config)
    for p in detector.get_parameters():
        if p.name.endswith("bn3.gamma"):
            # a constant norm scales no sums: of 50 blocks whose branches add as much as they get, numbers overflow
            p.set_data(ms.Tensor(p.asnumpy() * np.float32(0.2)))
    losses = train(config, detector, 10)
    seconds = time.perf_counter() - start
    path = folder / "detector.ckpt"
    save_checkpoint(detector, path)
    again = build_detector(config)
    load_detector(again, path)
    with contextlib.redirect_stdout(io.StringIO()):
        summary = Evaluator(config, again).run(folder / "results.json")
    pairs = zip_equal(detector.get_parameters(), again.get_parameters())
    same = all(p.name == q.name and np.array_equal(p.asnumpy(), q.asnumpy()) for p, q in pairs)
    return {
        "detector": detector_name,
        "backbone": backbone,
        "norm": norm,
        "weights": sum(p.size for p in detector.get_parameters() if "moving_" not in p.name),
        "seconds": round(seconds, 1),
        "first 3 losses": round(float(np.mean(losses[:3])), 3),
        "last 3 losses": round(float(np.mean(losses[-3:])), 3),
        "detections": len(load_results(folder / "results.json")),
        "box AP": round(summary.metrics["bbox"]["AP"], 3),
        "loads the same": same,
    }


def train(config: Config, detector: nn.Cell, steps: int) -> list[float]:
    """The total loss of each of `steps` steps on the first batch of the shapes."""
    loss = build_loss(config, detector)
    step = build_step(config, loss, np.full(steps, config.lr, np.float32))
    batch = next(TrainLoader(config, ensure_mindrecord(config, "train", training=True)).epoch(0))
    keys = SamplerKeys(config)
    return [float(step(*step_inputs(batch, keys(i, batch["image_id"])))[0].asnumpy()[0]) for i in range(steps)]


def grown(
    path: Path | None, columns: Sequence[str], members: Sequence[tuple], run: Callable[..., dict], jobs: int = 1
) -> list[dict]:
    """run(*member) of each member, which says it in `columns`, each in a process of its own: MindSpore keeps every
    graph that it has compiled. `jobs` at a time share this process's cores out among them. A table at `path` grows by
    them, and what it holds already isn't run again.
    """
    rows = json.loads(read_regular(path)) if path and path.exists() else []
    found = {tuple(row[c] for c in columns): row for row in rows}
    left = [m for m in members if m not in found]
    spawn, cores = multiprocessing.get_context("spawn"), sorted(os.sched_getaffinity(0))
    jobs = min(jobs, len(cores))
    shares = [cores[i::jobs] for i in range(jobs)]

    def run_one(member: tuple) -> tuple[tuple, dict]:
        with ProcessPoolExecutor(1, spawn) as pool:
            return member, pool.submit(run, *member).result()

    # a process starts on the cores of the thread that starts it
    with ThreadPoolExecutor(jobs, initializer=lambda: os.sched_setaffinity(0, shares.pop())) as threads:
        try:
            for done in tqdm(
                as_completed([threads.submit(run_one, m) for m in left]), total=len(left), dynamic_ncols=True
            ):
                member, row = done.result()
                found[member] = row
                if path:
                    with whole(path) as written:
                        written.write_text("[\n" + ",\n".join(map(json.dumps, found.values())) + "\n]\n")
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    return [found[m] for m in members]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--detectors", nargs="+", choices=tuple(DETECTORS), default=tuple(DETECTORS))
    parser.add_argument("--backbones", nargs="+", choices=tuple(BACKBONES), default=tuple(BACKBONES))
    parser.add_argument("--norms", nargs="+", choices=tuple(NORMS), default=tuple(NORMS))
    parser.add_argument("--json", type=Path, help="the table is kept here, and goes on from what is there")
    parser.add_argument(
        "--jobs",
        type=int,
        choices=range(1, 257),
        metavar="N",
        default=1,
        help="how many train at a time, each on cores of its own",
    )
    a = parser.parse_args()
    members = [(d, b, n) for d in a.detectors for b in a.backbones for n in a.norms]
    with tempfile.TemporaryDirectory() as folder:
        rows = grown(a.json, ("detector", "backbone", "norm"), members, functools.partial(run, Path(folder)), a.jobs)
    print_table("family", list(rows[0]), [list(r.values()) for r in rows])
    learnt = all(r["last 3 losses"] < r["first 3 losses"] and r["loads the same"] for r in rows)
    return 0 if learnt else 1


if __name__ == "__main__":
    sys.exit(run_command(main))
