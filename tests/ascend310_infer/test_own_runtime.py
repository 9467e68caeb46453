"""The C++ program's own runtime, layer by layer, for each instruction set that this CPU can run, against MindSpore's
operators; and on damaged files.
"""

import functools
import os
import subprocess
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from src.export.lite import MeanOfNext, StemPool
from src.export.mindir_v1 import rewrite_as_version_1
from src.ops.library import library_path
from tests.conftest import all_cores
from tests.ops.conftest import MARCHES, build

ROOT = Path(__file__).parents[2]
LAYERS = ("convolutions", "maps", "mindir", "session")
RUNTIME = [f"ascend310_infer/src/cpu/{name}.cc" for name in LAYERS]
RUNTIME += [f"ascend310_infer/src/{name}.cc" for name in ("files", "graph", "numbers")]
RUNTIME += ["tests/ascend310_infer/graph_main.cc"]


class Residual(nn.Cell):
    """relu(1x1(relu(3x3(x))) + projection(x)), as a bottleneck ends."""

    def __init__(self, channels, outputs, stride):
        super().__init__()
        self.first = nn.Conv2d(channels, 7, 3, stride, "pad", 1, has_bias=True, bias_init="normal")
        self.last = nn.Conv2d(7, outputs, 1, has_bias=True, bias_init="normal")
        self.projection = nn.Conv2d(channels, outputs, 1, stride, "valid", has_bias=True, bias_init="normal")

    def construct(self, x):
        return ops.relu(self.last(ops.relu(self.first(x))) + self.projection(x))


class TopDown(nn.Cell):
    """A coarse map, its sums with a finer one, and a coarser one: outputs of which one is made of another."""

    def __init__(self, channels):
        super().__init__()
        self.coarse = nn.Conv2d(channels, channels, 3, 2, "pad", 1)
        self.fine = nn.Conv2d(channels, channels, 1)
        self.ones = Tensor(np.ones((channels, 1, 2, 2), np.float32))
        self.upsample = ops.Conv2DTranspose(channels, 2, pad_mode="valid", stride=2, group=channels)
        self.subsample = nn.MaxPool2d(1, 2, pad_mode="valid")

    def construct(self, x):
        coarse, fine = self.coarse(x), self.fine(x)
        return coarse, fine + self.upsample(coarse, self.ones, fine.shape), self.subsample(coarse)


class Stem(nn.Cell):
    """A ResNet's; seen: what is pooled is an output, too."""

    def __init__(self, same, seen=False):
        super().__init__()
        self.conv, self.pool, self.seen = conv(3, 70, 7, 2, "pad", 3), StemPool(same), seen

    def construct(self, x):
        x = ops.relu(self.conv(x))
        return (self.pool(x), x) if self.seen else self.pool(x)


class Framed(nn.Cell):
    """A convolution, and a pool of what it gives in a frame of zeros."""

    def __init__(self, frame):
        super().__init__()
        self.conv, self.pool = conv(3, 64, 3, 2, "pad", 1), nn.MaxPool2d(3, 2)
        self.pad = ops.Pad(((0, 0), (0, 0), (frame, frame), (frame, frame)))

    def construct(self, x):
        return self.pool(self.pad(ops.relu(self.conv(x))))


class Proposals(nn.Cell):
    """A hidden convolution of two levels, and two 1x1 convolutions of what it gives; seen: that is an output, too."""

    def __init__(self, channels, scores, boxes, seen=False):
        super().__init__()
        self.hidden, self.seen = conv(channels, 64, 3, 1, pad_mode="pad", padding=1), seen
        self.scores, self.boxes = conv(64, scores, 1), conv(64, boxes, 1)
        self.coarser = nn.MaxPool2d(1, 2, pad_mode="valid")

    def construct(self, x):
        fine, coarse = ops.relu(self.hidden(x)), ops.relu(self.hidden(self.coarser(x)))
        found = self.scores(fine), self.scores(coarse), self.boxes(fine), self.boxes(coarse)
        return (*found, fine) if self.seen else found


class Statistics(nn.Cell):
    """Group norm's and squeeze-and-excite's operators."""

    def __init__(self, channels):
        super().__init__()
        self.mean, self.sum = ops.ReduceMean(keep_dims=True), ops.ReduceSum(keep_dims=True)
        self.scale = Parameter(np.linspace(-1, 2, channels, dtype=np.float32).reshape(1, channels, 1, 1), "scale")
        self.least = Parameter(np.full(1, 0.25, np.float32), "least")
        self.three = Parameter(np.full(1, 3, np.float32), "three")
        self.sqrt, self.hswish = ops.Sqrt(), nn.HSwish()

    def construct(self, x):
        difference = x - self.mean(x, (2, 3))
        variance = self.mean(difference * difference, (2, 3))
        y = difference / self.sqrt(variance + self.least) * self.scale
        gate = ops.relu6(self.sum(x, (2, 3)) + self.three) / self.three
        lit = ops.minimum(ops.maximum(self.sum(x, 1), self.least), self.three)
        return self.hswish(y) * gate, ops.sigmoid(lit)


class Joined(nn.Cell):
    """Parts of a map by 1x1 filters that choose channels, convolved and joined, with a bias: as ResNeXt is exported."""

    def __init__(self, channels):
        super().__init__()
        picks = np.eye(channels, dtype=np.float32)[:, :, None, None]
        half = channels // 2
        self.low = nn.Conv2d(channels, half, 1, weight_init=Tensor(picks[:half]))
        self.high = nn.Conv2d(channels, channels - half, 1, weight_init=Tensor(picks[half:]))
        self.convs = nn.CellList([nn.Conv2d(n, n, 3, 1, "pad", 1) for n in (half, channels - half)])
        self.bias = Parameter(np.linspace(-1, 1, channels, dtype=np.float32), "bias")
        self.concat = ops.Concat(1)

    def construct(self, x):
        parts = (self.convs[0](self.low(x)), self.convs[1](self.high(x)))
        return ops.relu(ops.bias_add(self.concat(parts), self.bias))


class Head(nn.Cell):
    """Rows of maps through dense layers."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.inputs = inputs
        self.first = nn.Dense(inputs, outputs, bias_init="normal")
        self.second, self.third = nn.Dense(outputs, 5, bias_init="normal"), nn.Dense(outputs, 40, has_bias=False)

    def construct(self, x):
        x = ops.relu(self.first(x.reshape(-1, self.inputs)))
        return self.second(x), self.third(x)


def conv(*words, **options):
    return nn.Conv2d(*words, has_bias=True, bias_init="normal", **options)


def transposed(*words):
    return nn.Conv2dTranspose(*words, has_bias=True, bias_init="normal")


# what is run, on inputs of which shape
CASES = {
    "1x1": (lambda: conv(19, 37, 1), (1, 19, 13, 21)),
    "1x1, deep": (lambda: conv(530, 33, 1), (2, 530, 5, 7)),
    "1x1, stride 2": (lambda: conv(9, 16, 1, 2, "valid"), (2, 9, 11, 20)),
    "3x3": (lambda: conv(6, 15, 3, 1, "pad", 1), (2, 6, 9, 14)),
    "3x3, stride 2": (lambda: conv(5, 70, 3, 2, "pad", 1), (1, 5, 15, 40)),
    "3x3, stride 2, same": (lambda: conv(3, 8, 3, 2, "same"), (1, 3, 12, 17)),
    "3x3, stride 3": (lambda: conv(3, 8, 3, 3, "valid"), (1, 3, 13, 17)),
    "7x7, stride 2": (lambda: conv(3, 18, 7, 2, "pad", 3), (1, 3, 50, 70)),
    "3x3, groups": (lambda: conv(8, 12, 3, 1, "pad", 1, group=4), (2, 8, 6, 11)),
    "depthwise 3x3": (lambda: conv(9, 9, 3, 1, "pad", 1, group=9), (2, 9, 10, 37)),
    "depthwise 5x5, stride 2": (lambda: conv(9, 9, 5, 2, "pad", 2, group=9), (1, 9, 11, 40)),
    "depthwise 3x3, stride 2, same": (lambda: conv(4, 4, 3, 2, "same", group=4), (1, 4, 12, 18)),
    "depthwise 2x2": (lambda: conv(4, 4, 2, 1, "valid", group=4), (1, 4, 12, 18)),
    "transposed 2x2": (lambda: transposed(11, 6, 2, 2, "valid"), (3, 11, 7, 7)),
    "transposed 4x4": (lambda: transposed(12, 17, 4, 2, "pad", 1), (2, 12, 7, 9)),
    "residual": (lambda: Residual(20, 35, 1), (1, 20, 12, 19)),
    "residual, stride 2": (lambda: Residual(20, 300, 2), (2, 20, 12, 18)),
    "top down": (lambda: TopDown(17), (1, 17, 12, 22)),
    "proposals": (lambda: Proposals(10, 3, 12), (2, 10, 14, 37)),
    "proposals, too many": (lambda: Proposals(10, 3, 40), (1, 10, 14, 37)),
    "proposals, seen": (lambda: Proposals(10, 3, 12, True), (1, 10, 14, 37)),
    "stem pool": (lambda: nn.SequentialCell(nn.ReLU(), StemPool(False)), (1, 5, 22, 46)),
    # made some rows at a time, which windows cross
    "stem and its pool": (lambda: Stem(False), (2, 3, 230, 322)),
    "stem and its pool, same": (lambda: Stem(True), (1, 3, 226, 330)),
    "stem in a wide frame": (lambda: Framed(60), (1, 3, 230, 322)),
    "stem, seen": (lambda: Stem(False, True), (1, 3, 40, 70)),
    "stem pool, same": (lambda: StemPool(True), (1, 5, 22, 46)),
    "pool": (lambda: nn.MaxPool2d(4, 4, "valid"), (1, 5, 22, 46)),
    "pool, same": (lambda: nn.MaxPool2d(3, 2, "same"), (1, 3, 9, 44)),
    "bilinear means": (lambda: MeanOfNext(6), (1, 6, 9, 13)),
    "statistics": (lambda: Statistics(10), (2, 10, 9, 13)),
    "joined": (lambda: Joined(12), (1, 12, 9, 13)),
    "head": (lambda: Head(9 * 7 * 7, 50), (31, 9, 7, 7)),
    "head, few": (lambda: Head(300, 20), (1, 300, 1, 1)),
}


def export(name, folder):
    """The cell of a case with random weights, and its graph's file."""
    make, shape = CASES[name]
    ms.set_seed(1)
    net = make().set_train(False)
    path = folder / "net.mindir"
    ms.export(net, Tensor(np.zeros(shape, np.float32)), file_name=str(path), file_format="MINDIR")
    path.chmod(0o644)
    rewrite_as_version_1(path)
    return net, path, shape


def read_outputs(path):
    """What graph_main writes."""
    content, out = path.read_bytes(), []
    while content:
        rank = int(np.frombuffer(content, np.int64, 1)[0])
        sides = np.frombuffer(content, np.int64, rank, 8)
        size, start = int(np.prod(sides)), 8 * (1 + rank)
        out.append(np.frombuffer(content, np.float32, size, start).reshape(sides))
        content = content[start + 4 * size :]
    return out


@pytest.fixture(scope="module", params=MARCHES)
def run_graph(request, tmp_path_factory):
    """run_graph(graph, x, threads) -> its outputs."""
    march, folder = request.param, tmp_path_factory.mktemp("own_runtime")
    # the convolutions of the program are the library's, of the same source
    build(march)
    flags = ["-std=c++17", "-O1", f"-march={march}", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-pthread"]
    program = folder / "graph"
    objects = []
    jobs = []
    for source in RUNTIME:
        objects.append(str(folder / f"{Path(source).stem}.o"))
        jobs.append(subprocess.Popen([os.environ.get("CXX", "g++"), *flags, "-c", source, "-o", objects[-1]], cwd=ROOT))
    assert [job.wait() for job in jobs] == [0] * len(jobs)
    library = library_path(march)
    command = [os.environ.get("CXX", "g++"), *objects, str(library), f"-Wl,-rpath,{library.parent}", "-pthread"]
    subprocess.run([*command, "-o", str(program)], check=True, cwd=ROOT)

    def run(graph, x, threads):
        (folder / "input").write_bytes(np.ascontiguousarray(x).tobytes())
        words = [program, graph, str(threads), folder / "input", folder / "output", *map(str, x.shape)]
        with all_cores():
            done = subprocess.run(
                list(map(str, words)),
                capture_output=True,
                text=True,
                env={**os.environ, "RCNN_NUM_THREADS": str(threads)},
            )
        assert done.returncode == 0, done.stderr
        return read_outputs(folder / "output")

    return run


@pytest.fixture(scope="module")
def mindspores(tmp_path_factory):
    """mindspores(name) -> a case's graph, and inputs with MindSpore's outputs: the same for every instruction set."""

    @functools.cache
    def give(name):
        net, path, shape = export(name, tmp_path_factory.mktemp("layers"))
        r = np.random.default_rng(0)
        # the graph's own size, and another, of heads another number of rows
        other = (shape[0] + 2, *shape[1:]) if "head" in name else (*shape[:2], *(2 * side for side in shape[2:]))
        passes = []
        for size in (shape, other):
            x = r.standard_normal(size, np.float32)
            wanted = net(Tensor(x))
            passes.append((x, [w.asnumpy() for w in (wanted if isinstance(wanted, tuple) else (wanted,))]))
        return path, passes

    return give


@pytest.mark.parametrize("name", CASES)
def test_layers_give_what_mindspore_does_whatever_the_threads(name, run_graph, mindspores):
    path, passes = mindspores(name)
    for x, wanted in passes:
        found = run_graph(path, x, 1)
        assert [f.shape for f in found] == [w.shape for w in wanted]
        for f, w in zip(found, wanted):
            np.testing.assert_allclose(f, w, rtol=0, atol=2e-5 * max(1.0, float(np.abs(w).max())))
        for threads in (2, 3):
            for f, other in zip(found, run_graph(path, x, threads)):
                np.testing.assert_array_equal(f, other)


@pytest.fixture(scope="module")
def sanitized(compiled):
    operators = ("depthwise", "max_pool", "product", "rpn_head", "tiles", "transposed", "winograd")
    return compiled([*RUNTIME, *(f"src/ops/csrc/{name}.cc" for name in operators)])


@pytest.mark.parametrize("name", ["residual, stride 2", "top down", "statistics", "joined", "transposed 4x4", "head"])
def test_damaged_files_are_refused_or_run(name, sanitized, tmp_path):
    _, path, shape = export(name, tmp_path)
    environment = {**os.environ, "ASAN_OPTIONS": "allocator_may_return_null=1"}
    words = [sanitized, path, "--damage", "5", "60", *map(str, shape)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr[-2000:]
    assert 0 < int(done.stdout) <= 60


class Unknown(nn.Cell):
    def construct(self, x):
        return ops.tanh(x)


def test_an_operator_that_it_lacks_is_named(sanitized, tmp_path):
    path = tmp_path / "net.mindir"
    ms.export(Unknown(), Tensor(np.zeros((1, 2, 3, 4), np.float32)), file_name=str(path), file_format="MINDIR")
    words = [sanitized, path, "1", "none", tmp_path / "out", "1", "2", "3", "4"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and "Tanh" in lines[0] and "--runtime lite" in lines[0] and str(path) in lines[0]
