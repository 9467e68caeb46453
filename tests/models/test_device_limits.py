"""What a network made for devices gives their operators: nothing that some kernels don't bear."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from benchmarks.ascend_dry_run import known_operators
from benchmarks.synthetic import synthetic_batch
from src.models.backbones.vit import Attention
from src.models.build import build_detector, build_loss
from src.ops.library import standard_operators
from src.training.loop import step_inputs
from src.training.step import SamplerKeys

MOST = 65504.0  # float16's
GPU = Path(ms.__file__).parent / "lib/plugin/libmindspore_gpu.so.11.6"
# operators of the graphs that a GPU lacks, and what MindSpore takes there: all_finite's way for GPUs; the gradient of
# Select, which is taken apart as on a CPU
INSTEAD = {"AllFinite": ["FloatStatus"], "ZerosLikeExt": ["ZerosLike", "Cast"]}


@pytest.fixture
def given(monkeypatch):
    """What TopK and NMSWithMask are given, by name, operator by operator."""
    before = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    arrays = {"TopK": [], "NMSWithMask": []}

    def watch(name, whole):
        class Watched:
            def __init__(self, *arguments, **options):
                self.operator = whole(*arguments, **options)

            def __call__(self, x, *more):
                arrays[name].append(x.asnumpy())
                return self.operator(x, *more)

        return Watched

    for name in arrays:
        monkeypatch.setattr(ops, name, watch(name, getattr(ops, name)))
    yield arrays
    ms.set_context(mode=before)


def test_sorting_is_given_no_infinity_and_nothing_beyond_float16(given, shapes_config):
    """CUDA's TopK never ends on -inf, and Ascend 910's (A) is float16.

    The picture doesn't fill the canvas, so that some anchors, proposals and objects take no part.
    """
    config = shapes_config(img_width=128, img_height=64, batch_size=1, backbone__width_multiplier=0.25)
    with standard_operators():
        detector = build_detector(config)
        loss = build_loss(config, detector)
    batch = synthetic_batch(config, 2)
    batch["image_size"] = np.array([[40, 70]], np.float32)
    loss.set_train(True)(*step_inputs(batch, SamplerKeys(config)(0, np.arange(1))))
    detector.set_train(False)(Tensor(batch["image"]), Tensor(batch["image_size"]))
    assert len(given["TopK"]) > 10
    assert len(given["NMSWithMask"]) > 5
    for name, arrays in given.items():
        assert max(np.abs(a).max() for a in arrays) <= MOST, name


@pytest.mark.full
def test_a_gpu_has_a_kernel_for_each_operator():
    """MindSpore's GPU plugin names what it has kernels for."""
    if not GPU.is_file():
        pytest.skip("this MindSpore has no GPU plugin")
    plugin = GPU.read_bytes()
    known = known_operators()
    wanted = {name for operator in known for name in INSTEAD.get(operator, [operator])}
    assert [name for name in sorted(wanted) if name.encode() + b"\0" not in plugin] == []
    # and doesn't just hold every name, nor what isn't used any more
    assert not any(name.encode() + b"\0" in plugin for name in INSTEAD)
    assert known.issuperset(INSTEAD)


def test_attention_transposes_no_tensor_in_two_orders(monkeypatch):
    """A GPU gives both the second one's result (MindSpore 2.8)."""
    orders = {}
    whole = Tensor.transpose

    def watched(x, *axes):
        orders.setdefault(id(x), (x, set()))[1].add(axes)  # with x, whose id would else be given again
        return whole(x, *axes)

    monkeypatch.setattr(Tensor, "transpose", watched)
    before = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        Attention(8, 2, 6, 6, 6)(Tensor(np.ones((3, 6, 6, 8), np.float32)))
    finally:
        ms.set_context(mode=before)
    assert orders
    assert all(len(axes) == 1 for _, axes in orders.values())
