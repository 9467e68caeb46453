"""Inference: image to 100 detections with masks; ONNX Runtime and torchvision at the same work.

python -m benchmarks.inference [--height H --width W --batch B] [--threads N] [--json OUT] [--onnx]
                               [--torchvision [PYTHON]]

A noise image and the golden weights on both sides, which keep 100 detections. Pasting masks into the image isn't
counted on either side (benchmarks/eval_postprocess.py times it).
"""

import argparse
import time

import numpy as np

from benchmarks.common import Timing, measure, peak_memory_mib, print_table, set_threads, write_json
from benchmarks.network import add_arguments, load_golden_weights, read_config
from benchmarks.torchvision_child import run_elsewhere


def time_onnx(config, detector, image: np.ndarray, size: np.ndarray, threads: int, repeats: int) -> Timing:
    """The detector as ONNX in ONNX Runtime, from the same image."""
    from src.export.onnx_graph import onnx_model
    from src.export.onnx_runtime import OnnxModel
    from src.export.whole import standard

    model = onnx_model(config, standard(config, detector), len(image))
    run = OnnxModel(model.SerializeToString(), threads)
    shape = np.concatenate([size, np.ones_like(size)], 1)  # and scales of 1
    return measure(lambda: run(image, shape), repeats, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, batch=1)
    parser.add_argument("--onnx", action="store_true", help="also export to ONNX and run that (peak memory: of both)")
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
    results = {"call": timing, "peak_mib": peak, "compile_s": first - timing.median / 1e3, "detections": kept}
    columns = ["", "median s", "min s", "spread", "CPU s", "peak MiB", "detections"]
    rows = [
        ["MindSpore", timing.median / 1e3, timing.low / 1e3, f"{timing.spread:.0%}", timing.cpu / 1e3, peak, str(kept)]
    ]
    if a.onnx:
        t = results["onnx"] = time_onnx(config, detector, image, size, threads, a.repeats)
        row = [t.median / 1e3, t.low / 1e3, f"{t.spread:.0%}", t.cpu / 1e3, peak_memory_mib(), ""]
        rows.append(["ONNX Runtime", *row])
    if a.torchvision:
        sizes = {"height": a.height, "width": a.width, "batch": a.batch}
        reference = run_elsewhere(a.torchvision, "infer", threads, a.repeats, config.device_target, **sizes)
        if reference is not None:
            t = reference["timing"]
            results["torchvision"], results["ratio"] = reference, timing.median / t.median
            row = [t.median / 1e3, t.low / 1e3, f"{t.spread:.0%}", t.cpu / 1e3, reference["peak_mib"]]
            rows.append(["torchvision", *row, str(reference["detections"])])
    title = f"inference, {a.batch} x {a.height} x {a.width}, {threads} threads"
    print_table(title, columns, rows)
    print(f"\ngraph compile: {results['compile_s']:.1f} s")
    if "ratio" in results:
        print(f"MindSpore / torchvision: time {results['ratio']:.2f}")
    write_json(a.json, results | {"threads": threads, "title": title})


if __name__ == "__main__":
    main()
