"""The C++ program in the split form: one image to 100 detections with masks; torchvision at the same work.

python -m benchmarks.cpp_inference [--model SIDECAR] [--height H --width W] [--images N] [--threads N] [--json OUT]
    [--torchvision [PYTHON]]

Noise images of the canvas's size, and the golden weights unless --model names an export. `batch` is all that is done
for an image once it has been read: normalising, three graphs, proposals, RoIAlign, NMS, masks, writing. Reading goes on
beside it. Pasting masks into the image isn't counted on either side.
"""

import argparse
import json
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, batch=1)
    parser.add_argument("--model", type=Path, help="sidecar of an exported model (default: export the golden weights)")
    parser.add_argument("--images", type=int, default=8, help="images to run")
    a, rest = parser.parse_known_args()
    threads = set_threads(a.threads)
    if not PROGRAM.is_file():
        sys.exit(f"{PROGRAM} isn't built: bash ascend310_infer/build.sh --fetch")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = a.model or export(a, rest, folder)
        (folder / "images").mkdir()
        for i in range(a.images):
            noise = np.random.default_rng(i).integers(0, 256, (a.height, a.width, 3)).astype(np.uint8)
            cv2.imwrite(str(folder / f"images/{i}.png"), noise)
        command = [PROGRAM, "--model", model, "--input", folder / "images", "--output", folder / "results"]
        command += ["--threads", threads, "--width", a.width, "--height", a.height, "--batch_size", a.batch]
        if subprocess.run(list(map(str, command)), check=False, stdout=subprocess.DEVNULL).returncode != 0:
            sys.exit(2)
        summary = json.loads((folder / "results/summary.json").read_text())
        sizes = [p.stat().st_size for p in (folder / "results").glob("*.det")]
    rows = [[stage, ms] for stage, ms in summary["median_ms"].items()]
    title = f"C++ inference, {a.batch} x {a.height} x {a.width}, {threads} threads, {a.images} images"
    print_table(title, ["stage", "median ms"], rows)
    print(f"\nmodel loaded in {summary['load_s']:.1f} s, peak memory {summary['peak_memory_mib']:.0f} MiB,")
    print(f"results of at most {max(sizes) / 1024:.0f} KB an image")
    results = {"summary": summary, "largest_result": max(sizes), "threads": threads, "title": title}
    if a.torchvision:
        sizes = {"height": a.height, "width": a.width, "batch": a.batch}
        reference = run_elsewhere(a.torchvision, "infer", threads, a.repeats, a.channels_last, "CPU", **sizes)
        if reference is not None:
            ratio = summary["median_ms"]["batch"] / reference["timing"].median
            results |= {"torchvision": reference, "ratio": ratio}
            print(f"torchvision: median {reference['timing'].median:.0f} ms, peak {reference['peak_mib']:.0f} MiB")
            print(f"C++ / torchvision: time {ratio:.2f}")
    write_json(a.json, results)


if __name__ == "__main__":
    main()
