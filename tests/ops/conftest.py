"""The C++ operators for each instruction set that this CPU can run, so that what passes here passes on a lesser CPU;
and for aarch64, emulated."""

import ctypes
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops

from src.ops import library
from tests import aarch64
from tests.conftest import all_cores

ROOT = Path(__file__).parents[2]
MARCHES = library.runnable_marches()
NEON = "armv8-a"


def build(march):
    """Builds the library where it isn't; skips where there is no compiler, and only then."""
    if library.library_path(march).is_file():
        return
    if march == NEON:
        aarch64.need()
    elif shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("no C++ compiler")
    folder = ROOT / "build/custom_ops"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        # of several test processes the first builds, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = ["bash", str(ROOT / "scripts/build_custom.sh"), "--march", march, sys.executable]
        built = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert built.returncode == 0, built.stderr


def serve(march, monkeypatch):
    """Makes cells take this instruction set's operators."""
    build(march)
    monkeypatch.setenv("RCNN_OPS_MARCH", march)


@pytest.fixture(params=MARCHES)
def operators(request, monkeypatch):
    """The path of a library, each instruction set's in turn, which cells that the test makes will use."""
    serve(request.param, monkeypatch)
    return library.find_library()


@pytest.fixture(params=[*MARCHES, "builtin"])
def builtin(request, monkeypatch):
    """False: cells use the C++ operators, each instruction set's in turn. True: MindSpore's own are to be asked for."""
    if request.param != "builtin":
        serve(request.param, monkeypatch)
    return request.param == "builtin"


@pytest.fixture
def threads(monkeypatch):
    """threads(n): from now on the operators use n threads, where the machine has as many cores."""
    with all_cores():
        yield lambda count: monkeypatch.setenv("RCNN_NUM_THREADS", str(count))


class Emulated:
    """The operators for aarch64, in a process of the emulator's."""

    def __init__(self, folder):
        aarch64.need()
        build(NEON)
        flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
        aarch64.compile_program(folder / "call", *flags, Path(__file__).with_name("call_main.cc"), "-ldl")
        command = [*aarch64.RUN, folder / "call", library.library_path(NEON)]
        with all_cores():
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, name, inputs, outputs):
        """Calls the operator on these arrays, and fills the outputs; returns its status."""
        self._text(os.environ.get("RCNN_NUM_THREADS", ""))
        self._text(os.environ.get("RCNN_CACHE_KIB", ""))
        self._text(name)
        self._numbers(len(inputs) + len(outputs), len(inputs))
        for i, array in enumerate([*inputs, *outputs]):
            self._numbers(array.ndim, *array.shape, array.itemsize)
            if i < len(inputs):
                self.process.stdin.write(array.tobytes())
        self.process.stdin.flush()
        status = int(np.frombuffer(self._read(8), np.int64)[0])
        for array in outputs:
            array[...] = np.frombuffer(self._read(array.nbytes), array.dtype).reshape(array.shape)
        return status

    def close(self):
        self.process.stdin.close()
        status = self.process.wait(60)
        self.process.stdout.close()
        assert status == 0

    def _numbers(self, *numbers):
        self.process.stdin.write(np.array(numbers, np.int64).tobytes())

    def _text(self, text):
        self._numbers(len(text))
        self.process.stdin.write(text.encode())

    def _read(self, size):
        data = self.process.stdout.read(size)
        assert len(data) == size, "the emulated program has ended"
        return data


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The operators for aarch64; skips where they can't be built and run."""
    process = Emulated(tmp_path_factory.mktemp("emulated"))
    yield process
    process.close()


_serving = None  # Emulated, for `call`, while a test runs on it


@pytest.fixture(params=[*MARCHES, pytest.param(NEON, marks=pytest.mark.full)])
def kernels(request, monkeypatch):
    """As `operators`, and aarch64's: for tests that make no cells, but `call` operators."""
    if request.param == NEON:
        monkeypatch.setattr(f"{__name__}._serving", request.getfixturevalue("emulated"))
    else:
        serve(request.param, monkeypatch)


def run_here(name, inputs, outputs):
    """Calls the chosen library's operator on these arrays, as MindSpore does; returns its status."""
    function = getattr(ctypes.CDLL(str(library.find_library())), name)
    arrays = [*inputs, *outputs]
    count = len(arrays)
    sizes = [(ctypes.c_int64 * a.ndim)(*a.shape) for a in arrays]
    return function(
        count,
        (ctypes.c_void_p * count)(*[a.ctypes.data for a in arrays]),
        (ctypes.c_int * count)(*[a.ndim for a in arrays]),
        (ctypes.POINTER(ctypes.c_int64) * count)(*[ctypes.cast(s, ctypes.POINTER(ctypes.c_int64)) for s in sizes]),
        None,
        None,
        None,
    )


def unset(shape):
    """A float32 array of NaN at the start of a cache line, as MindSpore's are."""
    room = np.full(int(np.prod(shape)) + 16, np.nan, np.float32)
    start = -room.ctypes.data // 4 % 16
    return room[start : start + room.size - 16].reshape(shape)


def call(name, inputs, *shapes):
    """The operator's outputs of these shapes, not set before; all is float32."""
    inputs = [np.ascontiguousarray(a, np.float32) for a in inputs]
    outputs = [unset(s) for s in shapes]
    run = run_here if _serving is None else _serving.run
    assert run(name, inputs, outputs) == 0
    return outputs


def passes_of(net, x, sens):
    """A network's output and its gradients to the input and all weights, as float64 arrays."""
    gradient = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)
    got = gradient(net, ms.ParameterTuple(net.trainable_params()))(x, sens)
    return [a.asnumpy().astype(np.float64) for a in (net(x), *got[0], *got[1])]
