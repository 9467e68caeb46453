"""The C++ program in the split form: one image to 100 detections with masks, on its own runtime and on MindSpore Lite;
torchvision at the same work.

python -m benchmarks.cpp_inference [--model SIDECAR] [--height H --width W] [--images N] [--threads N] [--json OUT]
    [--runtimes own lite] [--torchvision [PYTHON]]

Noise images of the canvas's size, and the golden weights unless --model names an export. `batch` is all that is done
for an image once it has been read: normalising, three graphs, proposals, RoIAlign, NMS, masks, writing. Reading goes on
beside it. Pasting masks into the image isn't counted on either side. Processor seconds are of all threads, for an
image, without loading: what to go by, with --threads 1, on a machine that does other work beside.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import print_table, set_threads, write_json
from benchmarks.network import add_arguments, load_golden_weights, read_config
from benchmarks.torchvision_child import run_elsewhere

PROGRAM = Path(__file__).resolve().parents[1] / "ascend310_infer/build/rcnn_infer"


def export(a: argparse.Namespace, rest: list[str], folder: Path) -> Path:
    """The detector with the golden weights in the split form."""
    from src.export.split import export_split
    from src.models.build import build_detector
    from src.ops.device import set_device

    config = read_config(a, rest)
    set_device(config)
    detector = build_detector(config)
    load_golden_weights(detector)
    return export_split(config, detector, folder / "benchmark")


def run(command: list, runtime: str, folder: Path) -> dict:
    """The summary, the largest result, and processor seconds an image, beyond what one image less takes."""
    images, results = sorted((folder / "images").iterdir()), folder / runtime
    (folder / "first").mkdir(exist_ok=True)
    if not list((folder / "first").iterdir()):
        (folder / "first" / images[0].name).symlink_to(images[0])
    seconds = []
    for source in (folder / "first", folder / "images"):
        words = [*command, "--runtime", runtime, "--input", source, "--output", results]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        if subprocess.run(list(map(str, words)), check=False, stdout=subprocess.DEVNULL).returncode != 0:
            sys.exit(2)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {
        "summary": json.loads((results / "summary.json").read_text()),
        "largest_result": max(p.stat().st_size for p in results.glob("*.det")),
        "processor_s": (seconds[1] - seconds[0]) / max(len(images) - 1, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, batch=1)
    parser.add_argument("--model", type=Path, help="sidecar of an exported model (default: export the golden weights)")
    parser.add_argument("--images", type=int, default=8, help="images to run")
    parser.add_argument("--runtimes", nargs="+", choices=("own", "lite"), default=["own"], help="one after the other")
    a, rest = parser.parse_known_args()
    threads = set_threads(a.threads)
    if not PROGRAM.is_file():
        sys.exit(f"{PROGRAM} isn't built: bash ascend310_infer/build.sh, for --runtimes lite with --fetch")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = a.model or export(a, rest, folder)
        (folder / "images").mkdir()
        for i in range(a.images):
            noise = np.random.default_rng(i).integers(0, 256, (a.height, a.width, 3)).astype(np.uint8)
            cv2.imwrite(str(folder / f"images/{i}.png"), noise)
        command = [PROGRAM, "--model", model, "--threads", threads, "--width", a.width, "--height", a.height]
        command += ["--batch_size", a.batch]
        runs = {name: run(command, name, folder) for name in a.runtimes}
    title = f"C++ inference, {a.batch} x {a.height} x {a.width}, {threads} threads, {a.images} images"
    results = {"runs": runs, "threads": threads, "title": title}
    reference = None
    if a.torchvision:
        sizes = {"height": a.height, "width": a.width, "batch": a.batch}
        reference = run_elsewhere(a.torchvision, "infer", threads, a.repeats, **sizes)
        results["torchvision"] = reference
    for name, found in runs.items():
        summary = found["summary"]
        rows = [[stage, ms] for stage, ms in summary["median_ms"].items()]
        print_table(f"{title}, runtime {name}", ["stage", "median ms"], rows)
        print(f"\nmodel loaded in {summary['load_s']:.1f} s, peak memory {summary['peak_memory_mib']:.0f} MiB,")
        print(f"{found['processor_s']:.2f} processor seconds an image, results of at most ", end="")
        print(f"{found['largest_result'] / 1024:.0f} KB an image")
        if reference is not None:
            theirs = reference["timing"].median
            found["ratio"] = summary["median_ms"]["batch"] / theirs
            found["processor_ratio"] = found["processor_s"] / reference["processor_s"]
            print(f"torchvision: median {theirs:.0f} ms, {reference['processor_s']:.2f} processor seconds, ", end="")
            print(f"peak {reference['peak_mib']:.0f} MiB; C++ / torchvision: time {found['ratio']:.2f}, ", end="")
            print(f"processor time {found['processor_ratio']:.2f}")
    write_json(a.json, results)


if __name__ == "__main__":
    main()
