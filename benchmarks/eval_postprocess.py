"""Evaluation after the network: masks pasted and run-length encoded, and COCO's metrics.

python -m benchmarks.eval_postprocess [--height H --width W --detections N] [--images N] [--threads N] [--repeats N]
                                      [--json OUT] [--torchvision [PYTHON]]

Blobs with soft edges of 28 x 28 probabilities, in boxes whose sizes are distributed as COCO's (log-normal). Images
are shared among the threads. torchvision's side is its paste_masks_in_image, thresholded, and pycocotools' encode; it
runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.common import Timing, measure, peak_memory_mib, print_table, set_threads, write_json

SIDE = 28
# mean and spread of ln(sqrt(area)) and of ln(height / width) of the objects in 640 x 480 COCO photographs
LOG_SIZE, LOG_ASPECT = (4.1, 1.0), (0.1, 0.75)
OBJECTS = 7  # annotated in an image; the other detections are near misses and false ones


def make_image(seed: int, a: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Masks (N, 28, 28) float32 and boxes (N, 4) float32 in pixels of an image's detections."""
    random = np.random.default_rng(seed)
    size, aspect = random.normal(*LOG_SIZE, a.detections), random.normal(*LOG_ASPECT, a.detections)
    sides = np.minimum(np.exp(np.stack([size - aspect / 2, size + aspect / 2], 1)), [a.width, a.height])
    corner = random.uniform(0, 1, sides.shape) * ([a.width, a.height] - sides)
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE - 0.5
    angle, distance = np.arctan2(y, x), np.hypot(x, y)
    lobes, turn = random.integers(2, 6, (a.detections, 1, 1)), random.uniform(0, 6.28, (a.detections, 1, 1))
    radius = 0.38 + 0.1 * np.sin(lobes * angle + turn)
    logits = (radius - distance) * 30 + random.normal(0, 0.3, (a.detections, SIDE, SIDE))
    masks = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return masks, np.concatenate([corner, corner + sides], 1).astype(np.float32)


def time_pasting(images: list, a: argparse.Namespace, threads: int) -> dict[str, Timing]:
    from src.evaluation.masks import paste_masks

    def paste(convention: str) -> None:
        list(pool.map(lambda i: paste_masks(*i, a.height, a.width, 0.5, convention), images))

    with ThreadPoolExecutor(threads) as pool:
        return {c: measure(lambda c=c: paste(c), a.repeats) for c in ("torchvision", "grid")}


def time_metrics(images: list, a: argparse.Namespace) -> dict[str, Timing]:
    """pycocotools' metrics of all images, the first OBJECTS detections of each taken for its ground truth."""
    from pycocotools import mask as rle

    from src.evaluation.coco import evaluate
    from src.evaluation.paste import Found, results_of

    random = np.random.default_rng(0)
    categories = {k: k for k in range(1, 81)}
    names = [f"class {k}" for k in range(81)]
    options = {"mask": {"threshold": 0.5, "convention": "torchvision"}}
    truth, results = [], []
    for i, (masks, boxes) in enumerate(images):
        labels, scores = random.integers(1, 81, len(boxes)), random.random(len(boxes))
        found = results_of(
            Found(boxes, scores, labels, {"mask": masks}), i + 1, (a.height, a.width), names, categories, options
        )
        for r in found[:OBJECTS]:
            area = float(rle.area(r["segmentation"]))
            truth.append({k: r[k] for k in r if k != "score"} | {"id": len(truth) + 1, "iscrowd": 0, "area": area})
        results += found
    sizes = [
        {"id": i + 1, "file_name": f"{i + 1}.jpg", "height": a.height, "width": a.width} for i in range(len(images))
    ]
    data = {
        "images": sizes,
        "annotations": truth,
        "categories": [{"id": k, "name": f"class {k}"} for k in categories],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "truth.json"
        path.write_text(json.dumps(data))
        repeats = min(a.repeats, 3)
        return {kind: measure(lambda k=kind: evaluate(path, results, (k,)), repeats, 1) for kind in ("bbox", "segm")}


def time_torchvision(images: list, a: argparse.Namespace, threads: int) -> Timing:
    import torch
    from pycocotools import mask as rle
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    torch.set_num_threads(threads)
    images = [(torch.from_numpy(masks)[:, None], torch.from_numpy(boxes)) for masks, boxes in images]

    def paste() -> None:
        for masks, boxes in images:
            whole = paste_masks_in_image(masks, boxes, (a.height, a.width))[:, 0] > 0.5
            rle.encode(np.asfortranarray(whole.numpy().astype(np.uint8).transpose(1, 2, 0)))

    return measure(paste, min(a.repeats, 3), 1)


def torchvision_elsewhere(a: argparse.Namespace, threads: int) -> Timing | None:
    """torchvision's time from a child process, or None (with a line saying why) where it can't run."""
    command = [a.torchvision, "-m", "benchmarks.eval_postprocess", "--child", "--threads", str(threads)]
    for name in ("height", "width", "detections", "images", "repeats"):
        command += [f"--{name}", str(getattr(a, name))]
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ.copy(), check=False)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"torchvision left out: {a.torchvision}: {reason}", file=sys.stderr)
        return None
    return Timing(**json.loads(result.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("height", 480), ("width", 640), ("detections", 100), ("images", 16), ("repeats", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, help="cores to use (default: all)")
    parser.add_argument("--json", help="file to write")
    parser.add_argument("--torchvision", nargs="?", const=sys.executable, metavar="PYTHON", help="compare with it")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    threads = set_threads(a.threads)
    images = [make_image(seed, a) for seed in range(a.images)]
    if a.child:
        print(json.dumps(vars(time_torchvision(images[:2], a, threads))))
        return
    timings = {f"paste + RLE, {c}": (t, a.images) for c, t in time_pasting(images, a, threads).items()}
    timings |= {f"COCOeval {k}": (t, a.images) for k, t in time_metrics(images, a).items()}
    peak = peak_memory_mib()
    if a.torchvision:
        reference = torchvision_elsewhere(a, threads)
        if reference is not None:
            timings["torchvision's paste + encode"] = (reference, min(a.images, 2))
    rows, results = [], {}
    for name, (t, count) in timings.items():
        per_second = count / t.median * 1e3
        rows.append([name, per_second, t.median / count, t.low / count, f"{t.spread:.0%}", t.cpu / count])
        results[name] = {"timing": t, "images": count, "images_per_second": per_second}
    title = f"{a.detections} detections at {a.width}x{a.height}, {threads} threads"
    print_table(title, ["", "images/s", "median ms/image", "min ms", "spread", "CPU ms"], rows)
    print(f"\npeak memory {peak:.0f} MiB")
    write_json(a.json, {"threads": threads, "title": title, "peak_mib": peak, "results": results})


if __name__ == "__main__":
    main()
