"""torchvision's Mask R-CNN R50-FPN at the same work, in a process of its own; started by the other benchmarks.

Prints one JSON line: timings, peak memory, and what was detected. Needs torch and torchvision, not MindSpore.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.common import Timing, measure, peak_memory_mib, set_threads
from src.runtime.newer import zip_equal

__all__ = ["golden_shapes", "objects", "run_elsewhere"]

ROOT = Path(__file__).resolve().parents[1]


def golden_shapes() -> dict[str, tuple[int, ...]]:
    """torchvision's parameter names and shapes, 81 classes."""
    golden = np.load(ROOT / "tests/reference/maskrcnn_r50_fpn.npz")
    pairs = zip_equal(golden["names"], golden["shapes"])
    return {str(n): tuple(int(i) for i in str(s).split(",") if i) for n, s in pairs}


def objects(batch: int, height: int, width: int, count: int, classes: int = 81) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (B, N, 4) float32 in pixels, sides 5 to 50 % of the canvas's, log-uniform, and labels (B, N)."""
    r = np.random.default_rng(0)
    sides = np.exp(r.uniform(np.log(0.05), np.log(0.5), (batch, count, 2))) * [width, height]
    corner = r.uniform(0, 1, (batch, count, 2)) * ([width, height] - sides)
    return np.concatenate([corner, corner + sides], -1).astype(np.float32), r.integers(1, classes, (batch, count))


def run_elsewhere(python: str, work: str, threads: int, repeats: int, **sizes: int) -> dict | None:
    """The child's result under interpreter `python`, or None, saying why, where it can't run."""
    command = [python, "-m", "benchmarks.torchvision_child", work, "--threads", str(threads), "--repeats", str(repeats)]
    command += [word for k, v in sizes.items() for word in (f"--{k}", str(v))]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ.copy(), check=False)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"torchvision left out: {python}: {reason}", file=sys.stderr)
        return None
    out = json.loads(result.stdout.splitlines()[-1])
    return out | {"timing": Timing(**out["timing"])}


def build(height: int, width: int):
    """Stem, stage 1 and all batch norms frozen; weights from names, as the golden values'."""
    import torch
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.misc import FrozenBatchNorm2d

    from tests.reference.reference_weights import reference_state_dict

    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    model = MaskRCNN(
        backbone, 81, min_size=height, max_size=width, image_mean=[0.0, 0.0, 0.0], image_std=[1.0, 1.0, 1.0]
    )
    state = reference_state_dict(golden_shapes())
    model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    return model


def train(a: argparse.Namespace) -> tuple[Timing, dict]:
    import torch

    model = build(a.height, a.width).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.0, momentum=0.9, weight_decay=1e-4)
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((a.batch, 3, a.height, a.width), np.float32))
    boxes, labels = objects(a.batch, a.height, a.width, a.objects)
    targets = []
    y, x = np.mgrid[: a.height, : a.width]
    for b, label in zip_equal(boxes, labels):
        masks = []
        for x1, y1, x2, y2 in b:
            u, v = (x + 0.5 - (x1 + x2) / 2) / ((x2 - x1) / 2), (y + 0.5 - (y1 + y2) / 2) / ((y2 - y1) / 2)
            masks.append(u * u + v * v <= 1)
        mask = torch.from_numpy(np.array(masks, np.uint8))
        targets.append({"boxes": torch.from_numpy(b), "labels": torch.from_numpy(label), "masks": mask})

    def step():
        losses = model(list(images), targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        return losses

    timing = measure(step, a.repeats, 1)
    return timing, {k: float(v) for k, v in step().items()}


def infer(a: argparse.Namespace) -> tuple[Timing, dict]:
    import torch

    model = build(a.height, a.width).eval()
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((a.batch, 3, a.height, a.width), np.float32))
    # masks are pasted by the data set's evaluation, not by the network: left out on both sides
    model.transform.postprocess = lambda result, *_: result

    def run():
        with torch.no_grad():
            return model(list(images))

    timing = measure(run, a.repeats, 1)
    begin = time.process_time()
    found = run()
    return timing, {"detections": [len(d["scores"]) for d in found], "processor_s": time.process_time() - begin}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=("train", "infer"))
    for name, default in (("height", 768), ("width", 1280), ("batch", 2), ("objects", 8), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int)
    a = parser.parse_args()
    threads = set_threads(a.threads)
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    timing, what = (train if a.work == "train" else infer)(a)
    print(json.dumps({"timing": vars(timing), "peak_mib": peak_memory_mib(), **what}))


if __name__ == "__main__":
    main()
