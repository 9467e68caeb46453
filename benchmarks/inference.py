"""Inference: image to 100 detections with masks; torchvision, ONNX Runtime and OpenVINO at the same work.

python -m benchmarks.inference [--height H --width W --batch B] [--threads N] [--json OUT]
    [--torchvision [PYTHON] [--channels_last]] [--onnx [PYTHON]] [--openvino [PYTHON]]

A noise image and the golden weights on both sides, which keep 100 detections. Pasting masks into the image isn't
counted on either side (benchmarks/eval_postprocess.py times it).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.common import measure, peak_memory_mib, print_table, set_threads, write_json
from benchmarks.network import add_arguments, load_golden_weights, peer_options, read_config
from benchmarks.onnx_child import run_exported
from benchmarks.torchvision_child import run_elsewhere

if TYPE_CHECKING:
    from src.config import Config
    from src.models.rcnn import RCNN

RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}


def export(config: Config, detector: RCNN, batch: int, path: str) -> None:
    """Writes the detector as ONNX."""
    from src.export.onnx_graph import onnx_model
    from src.export.whole import standard

    Path(path).write_bytes(onnx_model(config, standard(config, detector), batch).SerializeToString())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, batch=1)
    of_python = {"nargs": "?", "const": sys.executable, "metavar": "PYTHON"}
    parser.add_argument("--onnx", help="compare with the exported model in its ONNX Runtime", **of_python)
    parser.add_argument("--openvino", help="compare with the exported model in its OpenVINO", **of_python)
    a, rest = parser.parse_known_args()
    threads = set_threads(a.threads)

    from mindspore import Tensor

    from src.models.build import build_detector
    from src.ops.device import set_device

    config = read_config(a, rest)
    set_device(config)
    detector = build_detector(config)
    load_golden_weights(detector)
    detector.set_train(False)
    image = np.random.default_rng(0).standard_normal((a.batch, 3, a.height, a.width), np.float32)
    size = np.array([[a.height, a.width]] * a.batch, np.float32)

    def call():
        return [x.asnumpy() for x in detector(Tensor(image), Tensor(size))]

    start = time.perf_counter()
    kept = call()[3].sum(1).tolist()
    first = time.perf_counter() - start
    timing = measure(call, a.repeats, 1)
    peak = peak_memory_mib()
    results = {"call": timing, "peak_mib": peak, "compile_s": first - timing.median / 1e3}
    found = {"MindSpore": {"timing": timing, "peak_mib": peak, "detections": kept}}
    sizes = {"height": a.height, "width": a.width, "batch": a.batch}
    runtimes = {name: python for name in RUNTIMES if (python := getattr(a, name))}
    with tempfile.TemporaryDirectory() as scratch:
        model = f"{scratch}/detector.onnx"
        if runtimes:
            export(config, detector, a.batch, model)
        for name, python in runtimes.items():
            found[name] = run_exported(python, RUNTIMES[name], model, threads, a.repeats, **sizes)
    if a.torchvision:
        with peer_options(config, detector) as options:
            found["torchvision"] = run_elsewhere(
                a.torchvision, "infer", threads, a.repeats, a.channels_last, config.device_target, **sizes, **options
            )
    found = {name: there for name, there in found.items() if there is not None}
    rows = []
    for name, there in found.items():
        t = there["timing"]
        row = [t.median / 1e3, t.low / 1e3, f"{t.spread:.0%}", t.cpu / 1e3, there["peak_mib"]]
        rows.append([name, *row, str(there["detections"]), timing.median / t.median])
    columns = ["", "median s", "min s", "spread", "CPU s", "peak MiB", "detections", "MindSpore's time of it"]
    title = f"inference, {a.batch} x {a.height} x {a.width}, {threads} threads"
    print_table(title, columns, rows)
    print(f"\ngraph compile: {results['compile_s']:.1f} s")
    write_json(a.json, results | {"beside": found, "threads": threads, "title": title})


if __name__ == "__main__":
    main()
