"""The C++ program's own mask head, for each instruction set that this CPU can run, against MindSpore's operators."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from src.export.mask_weights import write_mask_weights
from src.models.heads.mask import MaskHead
from src.ops.library import library_path, standard_operators
from tests import aarch64
from tests.conftest import all_cores
from tests.ops.conftest import MARCHES, NEON, build

ROOT = Path(__file__).parents[2]
CLASSES = 5


@pytest.fixture(scope="module", params=[*MARCHES, pytest.param(NEON, marks=pytest.mark.full)])
def mask_head(request, tmp_path_factory):
    """mask_head(weight file, features, labels, threads) -> logits."""
    march, folder = request.param, tmp_path_factory.mktemp("mask_head")
    # the convolution of the program is the library's, of the same source
    build(march)
    flags = ["-std=c++17", "-O3", f"-march={march}", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-pthread"]
    sources = ["tests/ascend310_infer/mask_main.cc"]
    sources += [f"ascend310_infer/src/{name}.cc" for name in ("mask_head", "files")]
    program = folder / "mask_head"
    compiler = aarch64.COMPILER if march == NEON else os.environ.get("CXX", "g++")
    command = [compiler, *flags, *sources, str(library_path(march)), "-o", str(program)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    if march == NEON:
        program = aarch64.wrapper(program)

    def run(weights, features, labels, threads):
        features.tofile(folder / "features")
        labels.tofile(folder / "labels")
        numbers = map(str, (len(features), features.shape[2], CLASSES))
        words = [program, weights, folder / "features", folder / "labels", *numbers]
        with all_cores():
            done = subprocess.run(words, capture_output=True, env={**os.environ, "RCNN_NUM_THREADS": str(threads)})
        assert done.returncode == 0, done.stderr
        side = 2 * features.shape[2]
        return np.frombuffer(done.stdout, np.float32).reshape(len(features), side, side)

    return run


@pytest.mark.parametrize(("convs", "channels", "side"), [(2, 24, 9), (4, 17, 14), (0, 20, 7)])
def test_logits_are_those_of_python_in_any_batch(convs, channels, side, mask_head, tmp_path):
    r = np.random.default_rng(0)
    with standard_operators():
        network = MaskHead(convs, 20, channels, CLASSES)
    for parameter in network.get_parameters():
        # of a size that keeps activations about as large as the features
        scale = 1.5 / np.sqrt(np.prod(parameter.shape[1:]))
        parameter.set_data(Tensor((r.standard_normal(parameter.shape) * scale).astype(np.float32)))
    write_mask_weights(tmp_path / "mask.bin", network)
    features = r.standard_normal((5, 20, side, side), np.float32)
    labels = r.integers(0, CLASSES, 5).astype(np.int32)
    logits = mask_head(tmp_path / "mask.bin", features, labels, 1)
    wanted = network(Tensor(features), Tensor(labels)).asnumpy()
    # float32 sums in another order, and Winograd's transforms, in up to four layers one after the other
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4 * wanted.std())
    for threads in (1, 2):
        for i in range(5):
            alone = mask_head(tmp_path / "mask.bin", features[i : i + 1], labels[i : i + 1], threads)
            np.testing.assert_array_equal(alone[0], logits[i])
