"""An exported ONNX detector in ONNX Runtime or OpenVINO, in a process of its own; started by benchmarks.inference.

Prints one JSON line: timings, peak memory, and how many detections. Needs the runtime named and numpy.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import numpy as np

from benchmarks.common import Timing, child_result, measure, peak_memory_mib, set_threads

__all__ = ["run_exported"]


def run_exported(python: str, runtime: str, model: str, threads: int, repeats: int, **sizes: int) -> dict | None:
    """The child's result under interpreter `python`, or None, saying why, where it can't run."""
    words = [runtime, model, "--threads", str(threads), "--repeats", str(repeats)]
    words += [word for k, v in sizes.items() for word in (f"--{k}", str(v))]
    out = child_result(python, "benchmarks.onnx_child", words, runtime)
    return out and out | {"timing": Timing(**out["timing"])}


def in_onnxruntime(model: str, threads: int) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)


def in_openvino(model: str, threads: int) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    import openvino

    core = openvino.Core()
    # else bfloat16 where the CPU has it
    how = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(model), "CPU", how)
    return lambda inputs: list(compiled(inputs).values())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runtime", choices=("onnxruntime", "openvino"))
    parser.add_argument("model")
    for name in ("height", "width", "batch", "repeats", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    a = parser.parse_args()
    threads = set_threads(a.threads)
    run = (in_onnxruntime if a.runtime == "onnxruntime" else in_openvino)(a.model, threads)
    image = np.random.default_rng(0).standard_normal((a.batch, 3, a.height, a.width), np.float32)
    # the picture fills the canvas, at a scale of 1
    inputs = {"image": image, "image_shape": np.array([[a.height, a.width, 1, 1]] * a.batch, np.float32)}
    timing = measure(lambda: run(inputs), a.repeats, 1)
    kept = [int(n) for n in np.asarray(run(inputs)[3]).sum(1)]
    print(json.dumps({"timing": vars(timing), "peak_mib": peak_memory_mib(), "detections": kept}))


if __name__ == "__main__":
    main()
