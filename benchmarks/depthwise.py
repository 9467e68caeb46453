"""The depthwise convolutions of MobileNet, forward and gradients: ours, MindSpore's own and PyTorch's.

python -m benchmarks.depthwise [--height H --width W --batch B] [--threads N] [--json OUT] [--torchvision [PYTHON]]

"memory" is what the pass would take at the speed of a copy between arrays of that size, by as many threads: forward a
map is read and one written, backward an output's gradient, an output and a map are read and a map is written. PyTorch
runs in a process of its own (of another interpreter, if one is named).
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.common import (
    Timing,
    measure,
    print_table,
    print_timings,
    set_threads,
    timed_elsewhere,
    write_json,
)
from src.runtime.newer import zip_equal

PASSES = ("forward", "gradients")
Layer = tuple[int, int, int, int, int, int]


def layers(batch: int, height: int, width: int) -> dict[str, Layer]:
    """Batch, channels, input height and width, kernel and stride, by name."""
    out = {"a small batch": (4, 64, 96, 128, 3, 1)}
    for channels, shift, stride in ((32, 1, 1), (64, 1, 2), (128, 2, 1), (256, 3, 1), (512, 4, 1), (1024, 5, 1)):
        size = (batch, channels, height >> shift, width >> shift, 3, stride)
        out[f"MobileNetV1, {channels}"] = size
    out["MobileNetV3, 672"] = (batch, 672, height >> 4, width >> 4, 5, 2)
    return out


def make_input(n: int, c: int, h: int, w: int, k: int, s: int) -> tuple[np.ndarray, ...]:
    """x, weight, bias and the output's gradient."""
    r = np.random.default_rng(0)
    shapes = (n, c, h, w), (c, 1, k, k), (c,), (n, c, -(-h // s), -(-w // s))
    return tuple(r.standard_normal(shape, np.float32) for shape in shapes)


def time_mindspore(sizes: dict[str, Layer], repeats: int, custom: bool) -> dict[str, dict[str, Timing]]:
    import mindspore as ms
    from mindspore import Tensor, nn, ops

    from src.ops.conv import Conv2d
    from src.ops.library import standard_operators

    ms.set_context(mode=ms.GRAPH_MODE)

    class Gradients(nn.Cell):
        def __init__(self, operator: nn.Cell):
            super().__init__()
            self.gradients = operator.gradients

        def construct(self, dy, y, x, weight):
            return self.gradients(dy, y, x, weight)

    class Forward(nn.Cell):
        def __init__(self, channels: int, kernel: int, stride: int):
            super().__init__()
            self.conv = Conv2d(channels, channels, kernel, stride, group=channels)

        def construct(self, x, weight, bias):
            return self.conv.convolve(x, weight, bias, True)

    results = {}
    for name, size in sizes.items():
        x, weight, bias, dy = map(Tensor, make_input(*size))
        with standard_operators(not custom):
            forward = Forward(size[1], *size[4:])
        both = ops.GradOperation(get_all=True, sens_param=True)(forward)
        results[name] = {"forward": measure(lambda f=forward, a=(x, weight, bias): f(*a), repeats)}
        # MindSpore runs the forward pass of its own in it; ours is taken alone
        if custom:
            gradients = Gradients(forward.conv.with_relu)
            inputs = dy, forward(x, weight, bias), x, weight
            results[name]["gradients"] = measure(lambda f=gradients, a=inputs: f(*a), repeats)
        else:
            whole = measure(lambda f=both, a=(x, weight, bias, dy): f(*a), repeats)
            results[name]["gradients"] = less(whole, results[name]["forward"])
    return results


def less(whole: Timing, part: Timing) -> Timing:
    return Timing(whole.median - part.median, whole.low - part.low, whole.spread, whole.cpu - part.cpu, whole.repeats)


def time_torch(sizes: dict[str, Layer], threads: int, repeats: int) -> dict[str, dict[str, Timing]]:
    import torch

    torch.set_num_threads(threads)
    results = {}
    for name, size in sizes.items():
        x, weight, bias, dy = (torch.from_numpy(a) for a in make_input(*size))
        inputs = [t.requires_grad_() for t in (x, weight, bias)]

        def forward(inputs=inputs, size=size):
            return torch.relu_(torch.conv2d(*inputs, size[5], size[4] // 2, 1, size[1]))

        def inference(forward=forward):
            with torch.no_grad():
                forward()

        y = forward()
        results[name] = {
            "forward": measure(inference, repeats),
            "gradients": measure(
                lambda y=y, a=inputs, dy=dy: torch.autograd.grad(y, a, dy, retain_graph=True), repeats
            ),
        }
    return results


def memory_limits(sizes: dict[str, Layer], threads: int, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of moving as many bytes as each pass has to, by a copy."""
    out: dict[str, dict[str, float]] = {}
    with ThreadPoolExecutor(threads) as pool:
        for name, size in sizes.items():
            x, _, _, dy = make_input(*size)
            for title, moved in zip_equal(PASSES, (x.size + dy.size, 2 * x.size + 2 * dy.size)):
                # a copy reads half of what it moves and writes the other
                part = moved // 2 // threads
                pairs = [(np.zeros(part, np.float32), np.ones(part, np.float32)) for _ in range(threads)]
                call = measure(lambda p=pairs: list(pool.map(lambda pair: np.copyto(*pair), p)), repeats)
                out.setdefault(name, {})[title] = call.median
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=256, help="canvas height")
    parser.add_argument("--width", type=int, default=320, help="canvas width")
    parser.add_argument("--batch", type=int, default=2, help="images")
    parser.add_argument("--threads", type=int, help="cores to use (default: all)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", help="file to write")
    parser.add_argument("--torchvision", nargs="?", const=sys.executable, metavar="PYTHON", help="compare with PyTorch")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    threads = set_threads(a.threads)
    sizes = layers(a.batch, a.height, a.width)
    if a.child:
        times = time_torch(sizes, threads, a.repeats)
        print_timings(times)
        return
    from src.ops.library import find_library

    if find_library() is None:
        sys.exit("error: the C++ operators are not built: scripts/build_custom.sh")
    results = {"ours": time_mindspore(sizes, a.repeats, True), "MindSpore": time_mindspore(sizes, a.repeats, False)}
    if a.torchvision:
        words = ["--height", a.height, "--width", a.width, "--batch", a.batch, "--threads", threads]
        reference = timed_elsewhere(
            "benchmarks.depthwise", a.torchvision, [str(w) for w in (*words, "--repeats", a.repeats)]
        )
        if reference is not None:
            results["PyTorch"] = reference
    limits = memory_limits(sizes, threads, a.repeats)
    rows = []
    for name, (n, c, h, w, k, stride) in sizes.items():
        for title in PASSES:
            ours = results["ours"][name][title].median
            others = [results[k][name][title].median for k in list(results)[1:]]
            row = [f"{name}: {n} x {c} x {h} x {w}, {k}x{k} / {stride}", title, ours, limits[name][title]]
            rows.append(row + others + [ours / t for t in others])
    names = list(results)[1:]
    columns = ["layer", "pass", "ms", "memory ms", *(f"{k} ms" for k in names), *(f"ours / {k}" for k in names)]
    print_table(f"Depthwise convolutions with ReLU, {threads} threads", columns, rows)
    write_json(a.json, {"threads": threads, "results": results, "memory": limits})


if __name__ == "__main__":
    main()
