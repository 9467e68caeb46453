"""The C++ operators for each instruction set that this CPU can run, so that what passes here passes on a lesser CPU."""

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
from tests.conftest import all_cores

ROOT = Path(__file__).parents[2]
MARCHES = library.runnable_marches()


def build(march):
    """Builds the library where it isn't; skips where there is no compiler, and only then."""
    if library.library_path(march).is_file():
        return
    if shutil.which(os.environ.get("CXX", "g++")) is None:
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


def call(name, inputs, *shapes):
    """The library's operator as MindSpore calls it; outputs of these shapes, not set before."""
    function = getattr(ctypes.CDLL(str(library.find_library())), name)
    arrays = [np.ascontiguousarray(a, np.float32) for a in inputs] + [np.full(s, np.nan, np.float32) for s in shapes]
    count = len(arrays)
    sizes = [(ctypes.c_int64 * a.ndim)(*a.shape) for a in arrays]
    status = function(
        count,
        (ctypes.c_void_p * count)(*[a.ctypes.data for a in arrays]),
        (ctypes.c_int * count)(*[a.ndim for a in arrays]),
        (ctypes.POINTER(ctypes.c_int64) * count)(*[ctypes.cast(s, ctypes.POINTER(ctypes.c_int64)) for s in sizes]),
        None,
        None,
        None,
    )
    assert status == 0
    return arrays[len(inputs) :]


def passes_of(net, x, sens):
    """A network's output and its gradients to the input and all weights, as float64 arrays."""
    gradient = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)
    got = gradient(net, ms.ParameterTuple(net.trainable_params()))(x, sens)
    return [a.asnumpy().astype(np.float64) for a in (net(x), *got[0], *got[1])]
