"""The C++ program compiled for aarch64, emulated: it finds what this CPU's and Python find."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from src.evaluation.cpp_results import read_result
from src.export import sidecar
from src.export.split import export_split
from tests import aarch64
from tests.ascend310_infer.conftest import build_program, random_detector
from tests.ascend310_infer.test_keypoints import SMALL
from tests.ascend310_infer.test_program import RESNEXT, share

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def emulated():
    """The program for aarch64, as one that runs here."""
    aarch64.sysroot()
    return aarch64.wrapper(build_program("--aarch64"))


def test_detections_are_those_of_this_cpu(exported, program, emulated, pictures, agree, tmp_path):
    (tmp_path / "in").mkdir()
    images = [Path(shutil.copy(p, tmp_path / "in")) for p in sorted((pictures / "val2017").iterdir())[:2]]
    for executable, folder in ((program, "here"), (emulated, "there")):
        words = ["--model", exported.sidecar, "--input", tmp_path / "in", "--output", tmp_path / folder]
        words += ["--threads", "2", "--self_check"]
        # emulated, a second of work is a minute's
        run = subprocess.run([executable, *words], capture_output=True, text=True, timeout=1800)
        assert run.returncode == 0, run.stderr
    for image in images:
        here, there = (read_result(tmp_path / folder / f"{image.name}.det") for folder in ("here", "there"))
        assert len(here.boxes) > 0
        np.testing.assert_array_equal(here.labels, there.labels)
        np.testing.assert_allclose(here.boxes, there.boxes, rtol=0, atol=1e-3)
        np.testing.assert_allclose(here.scores, there.scores, rtol=0, atol=1e-5)
        # of 255
        assert np.abs(here.masks.astype(int) - there.masks).max() <= 1
    assert share([agree(tmp_path / f"there/{p.name}.det", p) for p in images]) >= 0.99


# what each has that the detector of the shapes hasn't: convolutions of one pixel, strided and grouped ones, pooling;
# stages; heatmaps
KINDS = {
    "residual": {"backbone.type": "resnet", "backbone.depth": 50, "backbone.width_multiplier": 1.0},
    "grouped": RESNEXT,
    "cascade": {"detector": "cascade_mask_rcnn"},
    "keypoints": SMALL,
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_detectors_compare_with_python(kind, emulated, tmp_path):
    # by the program, on the canvas and on another one, or nothing is written
    model = export_split(*random_detector(**KINDS[kind]), tmp_path / "net", program=emulated)
    assert sidecar.read(model)["reference"]["compared"] is True
