"""run_infer_cpp.sh and run_infer_310.sh, end to end on the CPU and as far as there is no Ascend."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.checkpoints.files import save_checkpoint
from src.config import load_config
from src.evaluation.inference import Evaluator
from src.models.build import build_detector
from src.ops.device import set_device

ROOT = Path(__file__).parents[2]


def launch(script, *arguments, **environment):
    command = ["bash", str(ROOT / f"scripts/{script}"), *map(str, arguments)]
    environment = {**os.environ, "PYTHON": sys.executable, **{k: str(v) for k, v in environment.items()}}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with a picture and its annotations, enough for arguments."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "images").mkdir()
    (folder / "annotations.json").write_text("{}")
    return folder


def table(text):
    """{"bbox": AP, "segm": AP} of COCO's tables."""
    found = re.findall(r"^(bbox|segm):\n.*?= (-?\d\.\d+)$", text, re.MULTILINE)
    return {kind: float(value) for kind, value in found}


@pytest.mark.full
def test_from_checkpoint_to_both_tables(shapes_root, tmp_path):
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}")
    # the pictures' own classes as the network's best guess: random weights, all scores kept
    sizes = {"img_width": 192, "img_height": 128, "test_cfg.rcnn.score_thr": 0.1}
    places = {"val_dataset": str(shapes_root), "mindrecord_dir": str(tmp_path / "records")}
    config = load_config(ROOT / "configs/shapes.yaml", sizes | places | {"train_outputs": str(tmp_path / "outputs")})
    set_device(config)
    detector = build_detector(config)
    save_checkpoint(detector, tmp_path / "net.ckpt")
    words = [sys.executable, "export.py", "--config_path", "configs/shapes.yaml", "--ckpt_file", tmp_path / "net.ckpt"]
    words += ["--split", "--file_name", tmp_path / "net.mindir", "--width", "192", "--height", "128"]
    words += ["--test_cfg.rcnn.score_thr", "0.1"]
    exported = subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True)
    assert exported.returncode == 0, exported.stderr

    annotations = shapes_root / "annotations/instances_val2017.json"
    run = launch(
        "run_infer_cpp.sh", tmp_path / "net.mindir", shapes_root, annotations, "CPU", TRAIN_OUTPUTS=tmp_path / "to"
    )
    if "could not fetch" in run.stderr:
        pytest.skip(run.stderr.strip().splitlines()[-1])
    assert run.returncode == 0, run.stderr
    log = (tmp_path / "to/infer_net_CPU/acc.log").read_text()
    assert log in run.stdout
    ours = table(log)
    wanted = Evaluator(config, detector).run(tmp_path / "results.json").metrics
    for kind in ("bbox", "segm"):
        # the table's last digit, and masks of 8 bits
        assert abs(ours[kind] - wanted[kind]["AP"]) <= 0.002

    # with an image that can't be read the tables are made all the same, and the status says so
    images = tmp_path / "images"
    shutil.copytree(shapes_root / "val2017", images)
    broken = min(images.iterdir())
    broken.write_bytes(broken.read_bytes()[:100])
    run = launch(
        "run_infer_cpp.sh", tmp_path / "net.json", images, annotations, "CPU", TRAIN_OUTPUTS=tmp_path / "to", BRIEF="b"
    )
    assert run.returncode == 3, run.stderr
    assert f"1 of 8 images unreadable: {broken.name}" in run.stderr
    log = (tmp_path / "to/b/acc.log").read_text()
    assert f"1 annotated images without a result count as missed: {broken.name}" in log
    assert table(log).keys() == {"bbox", "segm"}

    # one program, the same arguments; without an Ascend a refusal in one line
    run = launch("run_infer_310.sh", tmp_path / "net.mindir", images, annotations, "0", TRAIN_OUTPUTS=tmp_path / "to")
    assert run.returncode == 2
    lines = run.stderr.strip().splitlines()
    assert len(lines) == 1 and "Ascend" in lines[0] and "CANN" in lines[0]
    assert not (tmp_path / "to/infer_net_Ascend/acc.log").exists()


def test_the_exact_commands(places, tmp_path):
    words = ("model.mindir", places / "images", places / "annotations.json")
    dry = {"DRY_RUN": 1, "TRAIN_OUTPUTS": tmp_path / "to", "EXTRA_ARGS": "--threads 2"}
    run = launch("run_infer_cpp.sh", *words, "CPU", "640", "384", "false", **dry)
    assert run.returncode == 0, run.stderr
    for part in (
        "build.sh",
        "--threads' '2",
        "--width' '640",
        "--height' '384",
        "--keep_ratio' 'false",
        "postprocess.py",
    ):
        assert part in run.stdout
    assert "--device_id" not in run.stdout
    run = launch("run_infer_310.sh", *words, "3", **dry)
    assert run.returncode == 0, run.stderr
    assert "--device_type' 'Ascend' '--device_id' '3'" in run.stdout
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("script", "change", "part"),
    [
        ("run_infer_cpp.sh", {3: None}, "usage: bash scripts/run_infer_cpp.sh [MINDIR_PATH]"),
        ("run_infer_cpp.sh", {0: ""}, "MINDIR_PATH is empty"),
        ("run_infer_cpp.sh", {1: "nowhere"}, "DATA_PATH: no such folder: nowhere"),
        ("run_infer_cpp.sh", {2: "nothing.json"}, "ANNO_PATH: no such file: nothing.json"),
        ("run_infer_cpp.sh", {3: "GPU"}, "DEVICE_TYPE: 'GPU' is neither CPU nor Ascend"),
        ("run_infer_310.sh", {3: "0", 4: "1"}, "usage: bash scripts/run_infer_310.sh [MINDIR_OR_AIR_PATH]"),
        ("run_infer_310.sh", {1: "nowhere", 3: "0"}, "DATA_PATH: no such folder: nowhere"),
    ],
)
def test_arguments_that_are_refused(script, change, part, places):
    arguments = dict(enumerate(("model.mindir", places / "images", places / "annotations.json", "CPU"))) | change
    run = launch(script, *(v for _, v in sorted(arguments.items()) if v is not None))
    assert run.returncode == 2
    assert part in run.stderr and len(run.stderr.strip().splitlines()) == 1
    assert run.stdout == ""


@pytest.mark.parametrize("name", ["none.mindir", "none.json", "images"])
def test_a_model_that_isnt_there_is_told_before_anything_is_built(places, tmp_path, name):
    words = (places / name, places / "images", places / "annotations.json", "CPU")
    begin = time.monotonic()
    run = launch("run_infer_cpp.sh", *words, TRAIN_OUTPUTS=tmp_path / "to", CXX="/nowhere/c++")
    assert (run.returncode, run.stdout) == (2, "")
    what = "a folder, not a model" if name == "images" else "no such model"
    assert run.stderr == f"error: MINDIR_PATH: {what}: {places / name}\n"
    assert time.monotonic() - begin < 20 and not (tmp_path / "to").exists()


FAKE_CMAKE = """#!/bin/bash
# Configures, unless told what to lack; keeps the folder that it was configured for, as CMake does.
while [ $# -gt 0 ]; do
    case $1 in
        -S) here=$2; shift ;;
        -B) build=$2; shift ;;
        --build) echo built; exit 0 ;;
    esac
    shift
done
if [ -n "${LACKS:-}" ]; then echo "$LACKS" >&2; exit 1; fi
if [ -f "$build/CMakeCache.txt" ] && ! grep -qx "CMAKE_HOME_DIRECTORY:INTERNAL=$here" "$build/CMakeCache.txt"; then
    echo "CMake Error: The source \\"$here/CMakeLists.txt\\" does not match the source used to generate cache." >&2
    exit 1
fi
mkdir -p "$build" && echo "CMAKE_HOME_DIRECTORY:INTERNAL=$here" >"$build/CMakeCache.txt"
"""


def test_a_checkout_that_was_moved_is_built_again_and_what_lacks_is_told_as_it_is(tmp_path):
    (tmp_path / "cmake").write_text(FAKE_CMAKE)
    (tmp_path / "cmake").chmod(0o755)
    (tmp_path / "sdk/include/api").mkdir(parents=True)
    (tmp_path / "sdk/include/api/model.h").write_text("")
    build = tmp_path / "build"
    build.mkdir()
    (build / "CMakeCache.txt").write_text("CMAKE_HOME_DIRECTORY:INTERNAL=/former/place/ascend310_infer\n")
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MS_LITE_HOME": str(tmp_path / "sdk")}

    def run(**more):
        script = ["bash", str(ROOT / "ascend310_infer/build.sh"), str(build)]
        return subprocess.run(script, capture_output=True, text=True, env=environment | more)

    done = run()
    assert done.returncode == 0, done.stderr
    assert f"INTERNAL={ROOT}/ascend310_infer" in (build / "CMakeCache.txt").read_text()
    done = run(LACKS="Could NOT find JPEG (missing: JPEG_LIBRARY)")
    assert done.returncode == 2 and "apt-get install libjpeg-dev" in done.stderr
    done = run(LACKS="CMake 3.1 or higher is required")
    assert done.returncode == 2 and "libjpeg" not in done.stderr and "cmake failed, see above" in done.stderr


def test_a_folder_that_holds_no_sdk(tmp_path):
    script = ["bash", str(ROOT / "ascend310_infer/build.sh")]
    for home, part in ((tmp_path, "holds no MindSpore Lite"), (tmp_path / "missing", "holds no MindSpore Lite")):
        environment = {**os.environ, "MS_LITE_HOME": str(home)}
        run = subprocess.run([*script, str(tmp_path / "b")], capture_output=True, text=True, env=environment)
        assert run.returncode == 2
        assert run.stderr.startswith("error: ") and part in run.stderr and len(run.stderr.splitlines()) == 1
    run = subprocess.run([*script, "--colour"], capture_output=True, text=True)
    assert run.returncode == 2 and "usage" in run.stderr
