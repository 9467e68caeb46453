"""The C++ program, built once, and a small detector exported for it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from src.config import Config, load_config
from src.data.images import safe_decode
from src.data.shapes import make_shapes
from src.data.transforms import prepare_image
from src.evaluation.cpp_results import ImageResult, read_result
from src.export.split import export_split
from src.models.build import build_detector
from src.models.rcnn import RCNN
from src.ops.device import set_device
from src.runtime.newer import zip_equal
from tests import aarch64

ROOT = Path(__file__).parents[2]


def build_program(*options):
    """Builds with build.sh; skips where the SDK or a compiler can't be had, and only then."""
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}")
    command = ["bash", str(ROOT / "ascend310_infer/build.sh"), "--fetch", *options]
    environment = {**os.environ, "PYTHON": sys.executable}
    built = subprocess.run(command, capture_output=True, text=True, env=environment)
    for reason in ("could not fetch", "decoding needs libjpeg"):
        if reason in built.stderr:
            pytest.skip(built.stderr.strip().splitlines()[-1])
    assert built.returncode == 0, built.stdout + built.stderr
    return Path(built.stdout.strip().splitlines()[-1].removeprefix("built "))


@pytest.fixture(scope="session", params=["here", pytest.param("aarch64", marks=pytest.mark.full)])
def compiled(request, tmp_path_factory):
    """compiled(sources) -> a program of these, with the sanitizers; skips where that can't be.

    For this CPU, and for aarch64, emulated. A source that several programs have is compiled once for all test
    processes.
    """
    foreign = request.param == "aarch64"
    if foreign:
        sysroot = aarch64.sysroot()
    compiler = aarch64.COMPILER if foreign else os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        pytest.skip(f"no C++ compiler {compiler}")
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / f"sanitized-{request.param}"
    folder.mkdir(exist_ok=True)
    # the address sanitizer takes a second for each start of an emulated program
    kinds = "undefined" if foreign else "address,undefined"
    sanitizers = [f"-fsanitize={kinds}", "-fno-sanitize-recover=undefined", "-pthread"]
    # not optimised: it compiles in half of the time
    flags = ["-std=c++17", "-O0", "-g", "-Wall", "-Wextra", "-Werror", *sanitizers]
    libraries = ["-ljpeg", "-lpng"]
    if foreign:
        flags += aarch64.include(sysroot)
        libraries = aarch64.link(sysroot)

    def run(*words):
        built = subprocess.run([compiler, *words], cwd=ROOT, capture_output=True, text=True)
        if "jpeglib.h" in built.stderr or "png.h" in built.stderr:
            pytest.skip("no headers of libjpeg and libpng")
        assert built.returncode == 0, built.stderr

    def compile_object(source):
        made = folder / f"{source.replace('/', '-')}.o"
        with open(made.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                run(*flags, "-c", source, "-o", made.with_suffix(".part"))
                made.with_suffix(".part").rename(made)
        return made

    def link(sources):
        program = tmp_path_factory.mktemp("compiled") / "program"
        run(*sanitizers, *map(compile_object, sources), *libraries, "-o", program)
        return aarch64.wrapper(program) if foreign else program

    return link


@pytest.fixture(scope="session")
def program():
    """The built program's path."""
    return build_program()


@pytest.fixture(scope="session")
def infer(program):
    """infer(*words) runs the program with these arguments."""

    def run(*words, executable=program, **options):
        command = [executable, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300, **options)

    return run


@dataclass
class Exported:
    """A detector with random weights, and its export in the split form."""

    config: Config
    detector: RCNN
    sidecar: Path

    def detect(self, path: Path, config: Config | None = None, detector: RCNN | None = None) -> ImageResult:
        """What Python detects in an image file."""
        # as stored, unless the config says exif: upright
        image = safe_decode(path.read_bytes(), path.name, (config or self.config).exif)
        canvas, (height, width) = prepare_image(image, config or self.config)
        size = np.array([[height, width]], np.float32)
        out = [x.asnumpy()[0] for x in (detector or self.detector)(Tensor(canvas[None]), Tensor(size))]
        sy, sx = np.float32(height) / np.float32(image.shape[0]), np.float32(width) / np.float32(image.shape[1])
        boxes = out[0] / np.array([sx, sy, sx, sy], np.float32)
        fields = {name: x[out[3]] for name, x in zip_equal((config or self.config).branches, out[4:])}
        return ImageResult(*image.shape[:2], boxes[out[3]], out[1][out[3]], out[2][out[3]], fields)


def random_detector(**overrides) -> tuple[Config, RCNN]:
    """Random weights give every class some 1 / 6: a low threshold keeps as many detections as there can be."""
    overrides = {"test_cfg.rcnn.score_thr": 0.1, "img_width": 192, "img_height": 128} | overrides
    config = load_config(ROOT / "configs/shapes.yaml", overrides)
    set_device(config)
    return config, build_detector(config).set_train(False)


@pytest.fixture(scope="session")
def exported(tmp_path_factory, program):
    """The shapes model; not to be changed by a test."""
    config, detector = random_detector()
    path = export_split(config, detector, tmp_path_factory.mktemp("exported") / "shapes.mindir", program=program)
    return Exported(config, detector, path)


@pytest.fixture
def spoilt(exported, tmp_path):
    """A copy of the export, for a test to spoil: its sidecar's path."""
    shutil.copytree(exported.sidecar.parent, tmp_path / "spoilt")
    return tmp_path / "spoilt" / exported.sidecar.name


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A COCO root of 6 generated pictures (val2017). Not to be changed by a test."""
    return make_shapes(tmp_path_factory.mktemp("pictures") / "root", train=1, val=6, seed=11)


@pytest.fixture
def agree(exported):
    """agree(result file, image file) -> matched and total detections of the program and of Python."""

    def compare(result, image, config=None, detector=None):
        ours, wanted = read_result(result), exported.detect(image, config, detector)
        assert (ours.height, ours.width) == (wanted.height, wanted.width)
        distance = np.abs(ours.boxes[:, None] - wanted.boxes[None]).max(-1)
        near = (distance <= 0.5) & (np.abs(ours.scores[:, None] - wanted.scores[None]) <= 1e-3)
        near &= ours.labels[:, None] == wanted.labels[None]
        matched = 0
        for i in range(len(ours.boxes)):
            j = int(np.where(near[i], distance[i], np.inf).argmin())
            if near[i, j]:
                # one to one
                near[:, j] = False
                matched += 1
                if wanted.masks is not None:
                    # half a step of 8 bits, and what a box half a hundredth of a pixel away may change
                    assert np.abs(ours.masks[i] / 255 - wanted.masks[j]).max() < 0.5 / 255 + 1e-3
        return matched, max(len(ours.boxes), len(wanted.boxes))

    return compare
