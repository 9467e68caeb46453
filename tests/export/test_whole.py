"""export.py: files of the whole detector, their sidecars, and what is refused."""

import os
import stat
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from mindspore.train.mind_ir_pb2 import ModelProto

import export
from src.checkpoints.files import save_checkpoint
from src.export import sidecar, whole
from src.export.compare import compare_detections, reference_input
from src.export.onnx_runtime import OnnxModel
from src.export.sidecar import ExportError
from src.export.whole import (
    WholeGraph,
    canvases,
    every_detection,
    export_whole,
    model_path,
    put_in_place,
    with_sampling,
)
from src.runtime.errors import UserError
from src.runtime.newer import zip_equal


@pytest.mark.full
def test_mindir_detects_what_the_detector_detects(small_config, make_detector, tmp_path):
    config = small_config(test_batch_size=2, test_cfg__rcnn__max_per_img=20)
    detector = make_detector(config)
    path = tmp_path / "new" / "model.mindir"
    agreement = export_whole(config, detector, path, "MINDIR")
    assert (agreement.matched, agreement.total) == (40, 40)

    inputs = [Tensor(x) for x in reference_input(config, 2, seed=3)]
    got = nn.GraphCell(ms.load(str(path)))(*inputs)
    wanted = WholeGraph(detector)(*inputs)
    other = compare_detections([x.asnumpy() for x in got], [x.asnumpy() for x in wanted], branches=config.branches)
    assert other.total == 40
    assert other.passed, str(other)

    assert sorted(p.name for p in path.parent.iterdir()) == ["model.mindir", "model.mindir.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    model = ModelProto()
    model.ParseFromString(path.read_bytes())
    operators = {n.op_type for n in model.graph.node} | {p.op_type for p in model.primitives}
    assert not [o for o in operators if "BatchNorm" in o or "Custom" in o]
    about = sidecar.read(f"{path}.json")
    sidecar.check_file(path, about["files"]["model"])
    sidecar.check_config(f"{path}.json", about, config)
    assert about["outputs"][0]["shape"] == [2, 20, 4]
    assert about["reference"]["matched"] == 40


TURNING = {"img_height": 96, "img_width": 160, "resize": "short_side", "short_side": 96, "long_side": 160}


@pytest.mark.full
@pytest.mark.parametrize(
    ("detector", "sampling"), [("faster_rcnn", 2), pytest.param("mask_rcnn", 0, marks=pytest.mark.full)]
)
def test_a_mindir_for_each_orientation(detector, sampling, small_config, make_detector, tmp_path):
    options = {"detector": detector, "roi__roi_layer__sampling_ratio": sampling, "test_cfg__rcnn__max_per_img": 20}
    config = small_config(**TURNING, **options, rpn__anchor_generator__grid_strides=True)
    paths = [tmp_path / "out/model.mindir", tmp_path / "out/model-upright.mindir"]
    agreement = export_whole(config, make_detector(config), paths[0], "MINDIR")
    assert agreement.matched == agreement.total == 40
    names = ["model-upright.mindir", "model-upright.mindir.json", "model.mindir", "model.mindir.json"]
    assert sorted(p.name for p in paths[0].parent.iterdir()) == names
    abouts = [sidecar.read(f"{p}.json") for p in paths]
    for i, (path, about, size) in enumerate(zip_equal(paths, abouts, ((96, 160), (160, 96)))):
        sidecar.check_file(path, about["files"]["model"])
        sidecar.check_file(paths[1 - i], about["pair"])
        sidecar.check_config(f"{path}.json", about, config)
        assert about["pair"]["name"] == paths[1 - i].name
        assert about["canvas"] == {"width": size[1], "height": size[0]}
        assert about["inputs"][0]["shape"] == [1, 3, *size]
        model = ModelProto()
        model.ParseFromString(path.read_bytes())
        assert list(model.graph.input[0].tensor[0].dims) == [1, 3, *size]
        assert (about["resize"], about["short_side"], about["long_side"]) == ("short_side", 96, 160)
        assert about["roi"] == abouts[0]["roi"]
        assert ("adaptive_sampling" in about["reference"]) == (sampling == 0)
    if sampling:
        return  # each was compared as it was written
    exported = with_sampling(config, {"roi": abouts[0]["roi"]["sampling_ratio"]})
    inputs = [Tensor(x) for x in reference_input(canvases(config)[1], 1, seed=3)]
    got = [x.asnumpy() for x in nn.GraphCell(ms.load(str(paths[1])))(*inputs)]
    other = compare_detections(got, [x.asnumpy() for x in WholeGraph(make_detector(exported))(*inputs)])
    assert other.total == 20
    assert other.passed, str(other)


@pytest.mark.full
def test_an_orientation_that_differs_leaves_neither(small_config, make_detector, tmp_path, monkeypatch, refusal):
    config = small_config(**TURNING, detector="faster_rcnn")
    path, given = tmp_path / "out/model.onnx", []

    def right_at_first(*arguments):
        given.append(every_detection(*arguments) if not given else [given[0][0] + 1, *given[0][1:]])
        return given[-1]

    monkeypatch.setattr(whole, "every_detection", right_at_first)
    with refusal(ExportError, tmp_path / "out/model-upright.onnx: ", "other detections"):
        export_whole(config, make_detector(config), path, "ONNX")
    assert contents(path.parent) == {}


@pytest.mark.parametrize("last", ["b.json", "c"])
def test_files_move_together_or_not_at_all(last, tmp_path, monkeypatch, refusal):
    made, out = tmp_path / "made", tmp_path / "out"
    for folder, names in ((made, ("a", "a.json", "b", "b.json", "c")), (out, ("a", "b.json"))):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(f"{folder.name} {name}")
    if last == "c":
        (out / "c").mkdir()
    before, replace = contents(out), os.replace

    def full_disk_at_last(source, target):
        if last == "b.json" and (Path(source), Path(target)) == (made / last, out / last):
            raise OSError(28, os.strerror(28))
        replace(source, target)

    with monkeypatch.context() as m, refusal(ExportError, out / last, "--file_name"):
        m.setattr("src.export.whole.os.replace", full_disk_at_last)
        put_in_place([made / n for n in ("a", "a.json", "b", "b.json", "c")], out)
    assert contents(out) == before


@pytest.mark.full
def test_adaptive_sampling_in_mindir_is_the_nearest_fixed_one(small_config, make_detector, tmp_path, capsys):
    config = small_config(roi__roi_layer__sampling_ratio=0, detector="faster_rcnn")
    path = tmp_path / "model.mindir"
    export_whole(config, make_detector(config), path, "MINDIR")
    told = capsys.readouterr().out
    assert "roi.roi_layer.sampling_ratio 0 (adaptive)" in told
    assert "largest differences" in told
    about = sidecar.read(f"{path}.json")
    assert about["roi"]["sampling_ratio"] in (1, 2, 3, 4)
    assert about["roi"]["trained_sampling_ratio"] == 0
    measured = about["reference"]["adaptive_sampling"]
    assert measured["matched"] > 0
    # another sampling isn't the same, or nothing was measured
    assert measured["max_error"] > 1e-3
    sidecar.check_config(f"{path}.json", about, config)


def test_onnx_file(small_config, make_detector, tmp_path, monkeypatch, refusal):
    config = small_config(test_cfg__rcnn__score_thr=0.3)
    detector = make_detector(config)
    path = tmp_path / "model.onnx"
    given = []
    monkeypatch.setattr(whole, "every_detection", lambda *a: given.append(every_detection(*a)) or given[-1])
    agreement = export_whole(config, detector, path, "ONNX")
    # compared without the threshold, which little here reaches, but written with it
    assert agreement.total == config.test_cfg.rcnn.max_per_img
    assert detector.roi_heads.selector.score_thr == 0.3
    assert sidecar.read(f"{path}.json")["rcnn"]["score_thr"] == 0.3
    scores = OnnxModel(path)(*reference_input(config, 1))[1]
    assert ((scores == 0) | (scores > np.float32(0.3))).all()

    before = contents(tmp_path)
    monkeypatch.setattr(whole, "every_detection", lambda *_: given[0])
    with monkeypatch.context() as m, refusal(ExportError, path, "No space left"):
        m.setattr("src.export.whole.os.replace", full_disk)
        export_whole(config, detector, path, "ONNX")
    assert contents(tmp_path) == before

    moved = [given[0][0] + 1.0, *given[0][1:]]
    monkeypatch.setattr(whole, "every_detection", lambda *_: moved)
    with refusal(ExportError, f"{path}: ", "other detections", "not written"):
        export_whole(config, detector, path, "ONNX")
    assert contents(tmp_path) == before


def contents(folder):
    """Every file below."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def full_disk(*_):
    raise OSError(28, os.strerror(28))


@pytest.fixture
def command(small_config, make_detector, tmp_path, monkeypatch):
    """Runs export.py's main on a checkpoint of the small detector."""
    config = small_config()
    checkpoint = tmp_path / "small.ckpt"
    save_checkpoint(make_detector(config), checkpoint)
    options = ["--config_path", "configs/shapes.yaml", "--backbone.width_multiplier", "0.25"]
    options += ["--ckpt_file", str(checkpoint)]
    monkeypatch.chdir(Path(export.__file__).parent)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["export.py", *options, *map(str, arguments)])
        return export.main()

    return run


def test_command(command, tmp_path, capsys):
    name = tmp_path / "out" / "model"
    arguments = ("--file_format", "onnx", "--file_name", name, "--batch_size", 2, "--width", 128, "--height", 64)
    assert command("--device_target", "CPU", *arguments) == 0
    told = capsys.readouterr().out
    assert f"{name}.onnx" in told
    assert "detections within" in told
    about = sidecar.read(f"{name}.onnx.json")
    assert about["canvas"] == {"width": 128, "height": 64}
    assert about["inputs"][0]["shape"] == [2, 3, 64, 128]


def test_refusals(command, tmp_path, refusal):
    with refusal(UserError, tmp_path / "none.ckpt", "no such checkpoint"):
        command("--ckpt_file", tmp_path / "none.ckpt")
    with refusal(UserError, "small.ckpt", "another model"):
        command("--detector", "cascade_mask_rcnn")
    with refusal(UserError, "AIR", "--device_target Ascend"):
        command("--file_format", "AIR", "--file_name", tmp_path / "m")
    with refusal(UserError, "--file_format TFLITE", "MINDIR, AIR, ONNX"):
        command("--file_format", "TFLITE")
    with refusal(UserError, "img_width", "multiples", "32"):
        command("--width", "100")
    with refusal(UserError, "img_height", "expected integer"):
        command("--height", "tall")
    with refusal(UserError, "batch_size", "0 is below 1"):
        command("--batch_size", "0")
    (tmp_path / "taken").write_text("mine")
    with refusal(UserError, tmp_path / "taken/m.onnx", "--file_name"):
        command("--file_format", "ONNX", "--file_name", tmp_path / "taken" / "m")
    assert (tmp_path / "taken").read_text() == "mine"
    (tmp_path / "folder.onnx").mkdir()
    with refusal(UserError, "folder.onnx", "is a folder"):
        command("--file_format", "ONNX", "--file_name", tmp_path / "folder")


def test_missing_packages_are_named(command, tmp_path, monkeypatch, refusal):
    for package, module in (("onnx", "onnx_graph"), ("onnxruntime", "onnx_runtime")):
        with monkeypatch.context() as m:
            m.delitem(sys.modules, f"src.export.{module}", raising=False)
            m.setitem(sys.modules, package, None)
            with refusal(UserError, package, "pip install -r requirements-onnx.txt"):
                command("--file_format", "ONNX", "--file_name", tmp_path / "m")


def test_the_suffix_is_added_once():
    assert str(model_path("a/b", "ONNX")) == "a/b.onnx"
    assert str(model_path("a/b.v1", "MINDIR")) == "a/b.v1.mindir"
    assert str(model_path("b.air", "AIR")) == "b.air"


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (OSError(28, "No space left on device"), ["No space left", "free space"]),
        (OSError(27, "File too large"), ["File too large", "ulimit -f"]),
        (RuntimeError("Unsupported op [Foo]\nC++ call stack"), ["MindSpore can't export", "Unsupported op [Foo]"]),
    ],
)
def test_why_mindspore_does_not_export(small_config, make_detector, tmp_path, monkeypatch, refusal, error, parts):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(whole.ms, "export", fail)
    config = small_config()
    with refusal(ExportError, f"{tmp_path}/model.mindir: ", *parts):
        whole.write_mindspore(config, make_detector(config), tmp_path / "model.mindir", "MINDIR", (), [])
