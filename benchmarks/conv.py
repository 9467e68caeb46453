"""The 3x3 and 7x7 convolutions of Mask R-CNN R50-FPN, forward and gradients: ours, MindSpore's own and PyTorch's.

python -m benchmarks.conv [--height H --width W --batch B] [--threads N] [--json OUT] [--torchvision [PYTHON]]

GFLOP/s counts the multiplications and additions of the plain sum; Winograd's algorithm, which the 3x3 convolutions of
stride 1 take, needs a quarter of the multiplications.
PyTorch runs in a process of its own (of another interpreter, if one is named).
"""

from __future__ import annotations

import argparse
import sys

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

PASSES = ("forward", "input gradient", "weight gradient")


Layer = tuple[int, int, int, int, int, int, int]


def layers(batch: int, height: int, width: int) -> dict[str, Layer]:
    """Batch, input and output channels, input height and width, kernel and stride of the layers, by name."""
    out = {"stem": (batch, 3, 64, height, width, 7, 2)}
    for stage, channels in enumerate((64, 128, 256, 512)):
        h, w = height // (4 << stage), width // (4 << stage)
        if stage:
            out[f"stage {stage + 1}, first block"] = (batch, channels, channels, 2 * h, 2 * w, 3, 2)
        out[f"stage {stage + 1}"] = (batch, channels, channels, h, w, 3, 1)
    for level in range(2, 7):
        out[f"FPN, RPN P{level}"] = (batch, 256, 256, height >> level, width >> level, 3, 1)
    out["mask head, 128 RoIs"] = (128, 256, 256, 14, 14, 3, 1)
    return out


def make_input(n: int, c: int, o: int, h: int, w: int, k: int, s: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, weight and the output's gradient."""
    r = np.random.default_rng(0)
    shapes = (n, c, h, w), (o, c, k, k), (n, o, -(-h // s), -(-w // s))
    return tuple(r.standard_normal(shape, np.float32) for shape in shapes)


def time_mindspore(sizes: dict[str, Layer], repeats: int, custom: bool) -> dict[str, dict[str, Timing]]:
    import mindspore as ms
    from mindspore import Tensor, nn, ops
    from mindspore.ops.operations import _grad_ops

    from src.ops.conv import Conv2d
    from src.ops.library import standard_operators

    ms.set_context(mode=ms.GRAPH_MODE)

    class Pass(nn.Cell):
        def __init__(self, number: int, c: int, o: int, k: int, stride: int):
            super().__init__()
            self.number = number
            self.conv = Conv2d(c, o, k, stride)
            if custom:
                self.input_gradient = self.conv.linear.gradients.to_input
                self.weight_gradient = self.conv.linear.gradients.to_filters
            else:
                pad, dilation = (k // 2,) * 4, (1,) * 4
                options = {"pad_mode": "pad", "pad": pad, "pad_list": pad, "stride": stride, "dilation": dilation}
                self.input_gradient = ops.operations.Conv2DBackpropInput(o, k, **options)
                self.weight_gradient = _grad_ops.Conv2DBackpropFilter(o, k, **options)

        def construct(self, x, weight, dy, bias):
            if self.number == 0:
                return self.conv.convolve(x, weight, bias, False)
            if self.number == 1:
                return self.input_gradient(dy, dy, weight, x) if custom else self.input_gradient(dy, weight, x.shape)
            return self.weight_gradient(dy, dy, x, weight)[0] if custom else self.weight_gradient(dy, x, weight.shape)

    results = {}
    for name, size in sizes.items():
        inputs = [*map(Tensor, make_input(*size)), ops.zeros(size[2], ms.float32)]
        results[name] = {}
        for number, title in enumerate(PASSES):
            with standard_operators(not custom):
                call = Pass(number, size[1], size[2], *size[5:])
            results[name][title] = measure(lambda f=call, a=inputs: f(*a), repeats)
    return results


def time_torch(sizes: dict[str, Layer], threads: int, repeats: int) -> dict[str, dict[str, Timing]]:
    import torch

    torch.set_num_threads(threads)
    results = {}
    for name, size in sizes.items():
        x, weight, dy = map(torch.from_numpy, make_input(*size))
        bias = torch.zeros(size[2])

        kernel, stride = size[5:]
        pad, strides, one, none = [kernel // 2] * 2, [stride] * 2, [1, 1], [0, 0]

        def gradient(wanted, given=(dy, x, weight), options=(None, strides, pad, one, False, none, 1)):
            return torch.ops.aten.convolution_backward(*given, *options, wanted)

        def forward(x=x, weight=weight, bias=bias, stride=stride, pad=kernel // 2):
            return torch.conv2d(x, weight, bias, stride, pad)

        results[name] = {
            "forward": measure(forward, repeats),
            "input gradient": measure(lambda f=gradient: f([True, False, False]), repeats),
            "weight gradient": measure(lambda f=gradient: f([False, True, False]), repeats),
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=768, help="canvas height")
    parser.add_argument("--width", type=int, default=1280, help="canvas width")
    parser.add_argument("--batch", type=int, default=1, help="images")
    parser.add_argument("--threads", type=int, help="cores to use (default: all)")
    parser.add_argument("--repeats", type=int, default=5)
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
            "benchmarks.conv", a.torchvision, [str(w) for w in (*words, "--repeats", a.repeats)]
        )
        if reference is not None:
            results["PyTorch"] = reference
    rows = []
    for name, (n, c, o, h, w, k, stride) in sizes.items():
        work = 2 * k * k * n * c * o * -(-h // stride) * -(-w // stride) / 1e6  # per millisecond: GFLOP/s
        for title in PASSES:
            ours = results["ours"][name][title]
            row = [f"{name}: {c} -> {o}, {h}x{w}, {k}x{k} / {stride}", title, ours.median, ours.cpu, work / ours.median]
            others = [results[k][name][title].median for k in list(results)[1:]]
            rows.append(row + others + [t / ours.median for t in others])
    names = list(results)[1:]
    columns = ["layer", "pass", "ms", "CPU ms", "GFLOP/s", *(f"{k} ms" for k in names), *(f"{k} / ours" for k in names)]
    print_table(f"Convolutions, {a.batch} x {a.height} x {a.width}, {threads} threads", columns, rows)
    write_json(a.json, {"threads": threads, "results": results})


if __name__ == "__main__":
    main()
