"""Multi-level RoIAlign, forward and backward: C++ operator, standard MindSpore operators and torchvision.

python -m benchmarks.roi_align [--threads N] [--json OUT] [--torchvision [PYTHON]] [--skip-builtin]

The work is that of a Mask R-CNN training step: 1024 RoIs of 2 images, 7 x 7 bins of 2 x 2 samples, 256 channels,
768 x 1280 pixels, 4 levels, maps and gradients NCHW. torchvision runs in a process of its own (of another
interpreter, if one is named: its libraries need not live beside MindSpore).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.common import Timing, measure, print_table, set_threads, write_json

BATCH, CHANNELS, HEIGHT, WIDTH = 2, 256, 768, 1280
STRIDES = (4, 8, 16, 32)
ROIS, OUTPUT_SIZE, SAMPLES = 1024, 7, 2


def make_input() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Maps, RoIs (image, x1, y1, x2, y2) with sides log-uniform in 16..600 pixels, and their FPN levels."""
    rng = np.random.default_rng(0)
    maps = [rng.standard_normal((BATCH, CHANNELS, HEIGHT // s, WIDTH // s), np.float32) for s in STRIDES]
    size = np.exp(rng.uniform(np.log(16), np.log(600), (ROIS, 2)))
    centre = rng.uniform(0, (WIDTH, HEIGHT), (ROIS, 2))
    low = np.clip(centre - size / 2, 0, (WIDTH, HEIGHT))
    high = np.clip(centre + size / 2, 0, (WIDTH, HEIGHT))
    image = np.repeat(np.arange(BATCH), ROIS // BATCH)[:, None]
    rois = np.concatenate([image, low, high], 1).astype(np.float32)
    area = np.maximum((high - low).prod(1), 1e-6)
    levels = np.clip(np.floor(4 + np.log2(np.sqrt(area) / 224 + 1e-6)), 2, 5).astype(np.int32) - 2
    return maps, rois, levels


def time_mindspore(builtin: bool, repeats: int) -> dict[str, Timing]:
    import mindspore as ms
    from mindspore import Tensor, nn, ops

    from src.ops.roi_align import MultiScaleRoIAlign

    ms.set_context(mode=ms.GRAPH_MODE)

    class Forward(nn.Cell):
        def __init__(self):
            super().__init__()
            self.align = MultiScaleRoIAlign(OUTPUT_SIZE, SAMPLES, True, STRIDES, builtin)

        def construct(self, p2, p3, p4, p5, rois, levels):
            return self.align((p2, p3, p4, p5), rois, levels)

    class Backward(nn.Cell):
        """The gradient alone: the forward result isn't used, so the graph compiler drops it."""

        def __init__(self, network):
            super().__init__()
            self.network = network
            self.gradient = ops.GradOperation(get_all=True, sens_param=True)

        def construct(self, p2, p3, p4, p5, rois, levels, sens):
            return self.gradient(self.network)(p2, p3, p4, p5, rois, levels, sens)[:4]

    maps, rois, levels = make_input()
    inputs = [*map(Tensor, maps), Tensor(rois), Tensor(levels)]
    forward = Forward()
    backward = Backward(forward)
    sens = Tensor(np.ones((ROIS, CHANNELS, OUTPUT_SIZE, OUTPUT_SIZE), np.float32))

    # A graph on the CPU returns when its results are there.
    return {
        "forward": measure(lambda: forward(*inputs), repeats),
        "backward": measure(lambda: backward(*inputs, sens), repeats),
    }


def time_torchvision(threads: int, repeats: int) -> dict[str, Timing]:
    import torch
    import torchvision

    torch.set_num_threads(threads)
    maps, rois, _ = make_input()
    features = {str(i): torch.from_numpy(m).requires_grad_() for i, m in enumerate(maps)}
    boxes = [torch.from_numpy(rois[rois[:, 0] == b, 1:]) for b in range(BATCH)]
    align = torchvision.ops.MultiScaleRoIAlign(list(features), OUTPUT_SIZE, SAMPLES)
    crops = align(features, boxes, [(HEIGHT, WIDTH)] * BATCH)
    sens = torch.ones_like(crops)

    def run_forward():
        with torch.no_grad():
            align(features, boxes, [(HEIGHT, WIDTH)] * BATCH)

    def run_backward():
        torch.autograd.grad(crops, list(features.values()), sens, retain_graph=True)

    return {"forward": measure(run_forward, repeats), "backward": measure(run_backward, repeats)}


def torchvision_elsewhere(python: str, threads: int, repeats: int) -> dict[str, Timing] | None:
    """torchvision's times from a child process, or None (with a line saying why) where it can't run."""
    command = [python, "-m", "benchmarks.roi_align", "--child", "--threads", str(threads), "--repeats", str(repeats)]
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ.copy(), check=False)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"torchvision left out: {python}: {reason}", file=sys.stderr)
        return None
    return {k: Timing(**v) for k, v in json.loads(result.stdout.splitlines()[-1]).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, help="cores to use (default: all)")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", help="file to write")
    parser.add_argument("--torchvision", nargs="?", const=sys.executable, metavar="PYTHON", help="compare with it")
    parser.add_argument("--skip-builtin", action="store_true", help="leave out the slow version")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    threads = set_threads(args.threads)
    if args.child:
        print(json.dumps({k: vars(v) for k, v in time_torchvision(threads, args.repeats).items()}))
        return
    results = {"custom": time_mindspore(False, args.repeats)}
    if not args.skip_builtin:
        results["builtin"] = time_mindspore(True, min(args.repeats, 3))
    if args.torchvision:
        reference = torchvision_elsewhere(args.torchvision, threads, args.repeats)
        if reference is not None:
            results["torchvision"] = reference
    reference = results.get("torchvision")
    rows = [
        [name, part, t.median, t.low, f"{t.spread:.0%}", t.cpu, t.median / reference[part].median if reference else "-"]
        for name, parts in results.items()
        for part, t in parts.items()
    ]
    columns = ["RoIAlign", "pass", "median ms", "min ms", "spread", "CPU ms", "of torchvision"]
    print_table(f"{ROIS} RoIs, {HEIGHT}x{WIDTH}, {len(STRIDES)} levels, {threads} threads", columns, rows)
    write_json(args.json, {"threads": threads, "results": results})


if __name__ == "__main__":
    main()
