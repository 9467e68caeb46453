"""Where compiled graphs are kept: MindSpore would take another config's for ours; and what devices are told."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import pytest

from src.config import load_config
from src.ops import device
from src.ops.device import compile_cache_folder, set_device

ROOT = Path(__file__).parents[1]


def folder(**overrides):
    return compile_cache_folder(load_config("configs/shapes.yaml", overrides), "the step", [(2, 3)])


def test_a_kept_graph_is_found_again_by_the_same_config_alone(tmp_path):
    place = {"train_outputs": str(tmp_path)}
    assert folder(**place) == folder(**place)
    assert folder(**place).is_relative_to(tmp_path)
    others = [folder(lr=0.01, **place), folder(img_width=320, **place), folder(detector="faster_rcnn", **place)]
    assert len({folder(**place), *others}) == 4
    assert folder(**place) != compile_cache_folder(load_config("configs/shapes.yaml", place), "the step", [(3, 2)])


def test_a_kept_graph_serves_its_own_sizes_alone(tmp_path):
    """MindSpore's own cache takes the first graph of a program for the first of the next, whatever its sizes."""
    program = tmp_path / "program.py"
    program.write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import mindspore as ms
import numpy as np
from src.config import load_config
from src.ops.device import compile_cache_folder, is_kept, kept_in, set_device

class Sides(ms.nn.Cell):
    def construct(self, x):
        return x * float(x.shape[0]) + x.shape[1]

config = load_config("configs/shapes.yaml", {{"train_outputs": {str(tmp_path)!r}, "compile_cache": True}})
set_device(config)
net = Sides()
for word in sys.argv[1:]:
    x = ms.Tensor(np.ones(tuple(map(int, word.split("x"))), np.float32))
    if word != "9x9":  # a graph that isn't kept
        folder = compile_cache_folder(config, x.shape)
        print("kept" if is_kept(folder) else "new", end=" ")
        with kept_in(folder):
            net.compile(x)
    print(net(x).asnumpy()[0, 0])
""")
    for words, told in ((["2x3", "9x9"], "new 5.0 18.0"), (["3x4", "9x9", "2x3"], "new 7.0 18.0 kept 5.0")):
        run = subprocess.run([sys.executable, program, *words], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert run.stdout.split() == told.split()
    assert len(list((tmp_path / "compile_cache").iterdir())) == 2


@pytest.mark.parametrize(
    ("chip", "mode"),
    [
        ("ascend910", "allow_fp32_to_fp16"),
        ("ascend910b", "must_keep_origin_dtype"),
        ("ascend310p", "must_keep_origin_dtype"),
    ],
)
@pytest.mark.parametrize("own", [False, True])
def test_ascend_computes_in_the_types_of_the_network_and_alike_each_time(monkeypatch, chip, mode, own):
    told = []

    def precision_mode(mode):
        told.append(mode)
        if own:
            raise RuntimeError("The 'precision_mode' can not be set repeatedly.")

    precision = SimpleNamespace(precision_mode=precision_mode)
    ascend = SimpleNamespace(ascend=SimpleNamespace(op_precision=precision))
    monkeypatch.setattr(device, "ascend_chip", lambda: chip)
    for name in ("set_context", "set_seed"):
        monkeypatch.setattr(ms, name, lambda *_, **__: None)
    monkeypatch.setattr(ms, "device_context", ascend)
    monkeypatch.setattr(ms, "set_device", lambda *a: told.append(a))
    monkeypatch.setattr(ms, "set_deterministic", lambda x: told.append(("deterministic", x)))
    set_device(load_config("configs/shapes.yaml", {"device_target": "Ascend"}))
    assert told == [("Ascend", 0), mode, ("deterministic", True)]
    del told[:]
    set_device(load_config("configs/shapes.yaml"))
    assert told == []


@pytest.mark.parametrize(("compute_type", "allowed"), [("auto", False), ("float32", False), ("tf32", True)])
def test_gpus_round_to_tf32_only_where_the_config_says_so(monkeypatch, compute_type, allowed):
    told = {}
    precision = SimpleNamespace(
        conv_allow_tf32=lambda x: told.update(conv=x), matmul_allow_tf32=lambda x: told.update(matmul=x)
    )
    for name in ("set_context", "set_seed", "set_device"):
        monkeypatch.setattr(ms, name, lambda *_, **__: None)
    monkeypatch.setattr(ms, "device_context", SimpleNamespace(gpu=SimpleNamespace(op_precision=precision)))
    set_device(load_config("configs/shapes.yaml", {"device_target": "GPU", "compute_type": compute_type}))
    assert told == {"conv": allowed, "matmul": allowed}


def test_a_cpu_is_no_chip_of_ascend():
    assert device.ascend_chip() == ""
