"""The sidecar of an exported model."""

import json
import os

import pytest

from src.export import sidecar
from src.export.sidecar import ExportError
from src.export.split import export_split
from src.export.whole import export_whole


@pytest.fixture
def written(shapes_config, tmp_path):
    """A sidecar of the shapes config's ONNX export, beside a file of some bytes."""
    model = tmp_path / "m.onnx"
    model.write_bytes(b"weights" * 1000)
    about = sidecar.describe(shapes_config(), "whole", "ONNX", {"model": sidecar.file_entry(model)}, 2)
    sidecar.write(tmp_path / "m.onnx.json", about)
    return tmp_path / "m.onnx.json"


def test_says_what_a_consumer_needs(shapes_config, written):
    config, about = shapes_config(), sidecar.read(written)
    assert about["canvas"] == {"width": 256, "height": 192}
    assert about["classes"][0] == "background"
    assert (about["mean"], about["std"], about["to_rgb"]) == (config.img_mean, config.img_std, True)
    assert about["rcnn"]["score_thr"] == config.test_cfg.rcnn.score_thr
    assert about["rcnn"]["max_log"] == pytest.approx(4.135, abs=1e-3)  # ln(1000 / 16)
    assert about["mask_paste"] == {"convention": "torchvision", "size": 28, "threshold": 0.5}
    assert [p["name"] for p in about["outputs"]] == ["boxes", "scores", "labels", "valid", "masks"]
    sidecar.check_config(written, about, config)


def make_older(path, **parts):
    """Writes a sidecar as the oldest exports did: without a checksum, and without these keys, of `top` or its parts."""
    about = json.loads(path.read_text()) | {"version": 1}
    del about["checksum"]
    for part, names in parts.items():
        for name in names:
            del (about if part == "top" else about[part])[name]
    path.write_text(json.dumps(about))


def test_an_older_sidecar_means_what_older_exports_did(shapes_config, written, refusal, capsys):
    make_older(written, rpn=["grid_strides", "rank_by", "delta_clamp", "legacy"], rcnn=["delta_clamp", "agnostic_nms"])
    sidecar.check_config(written, sidecar.read(written), shapes_config())
    assert f"{written}: of an older export, without a checksum" in capsys.readouterr().err
    with refusal(ExportError, written, "rpn.delta_clamp upper, not both"):
        sidecar.check_config(written, sidecar.read(written), shapes_config(rpn__bbox_coder__delta_clamp="both"))


def test_pasting_follows_its_own_key(shapes_config):
    def paste(**keys):
        return sidecar.describe(shapes_config(**keys), "split", "MINDIR", {})["mask_paste"]["convention"]

    assert paste(mask_roi__roi_layer__aligned=True) == "grid"
    assert paste(mask_roi__roi_layer__aligned=True, test_cfg__rcnn__mask_paste="torchvision") == "torchvision"
    assert paste(test_cfg__rcnn__mask_paste="grid") == "grid"


def test_stages_of_a_cascade(shapes_config):
    about = sidecar.describe(shapes_config(detector="cascade_rcnn"), "split", "MINDIR", {})
    assert about["rcnn"]["stds"] == [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
    assert about["cascade"]["stages"] == 3
    assert not about["with_mask"]
    assert "mask_roi" not in about


def test_a_canvas_too_large_is_refused(shapes_config, refusal):
    with refusal(ExportError, "img_width, img_height", "8192 x 4096"):
        sidecar.describe(shapes_config(img_width=8192, img_height=4096), "whole", "ONNX", {})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"img_width": 320}, "canvas.width 256, not 320"),
        ({"test_cfg__rcnn__score_thr": 0.1}, "rcnn.score_thr 0.05, not 0.1"),
        ({"detector": "faster_rcnn"}, "detector mask_rcnn, not faster_rcnn"),
        ({"num_classes": 2, "coco_classes": ["background", "x"]}, "6 classes, not 2"),
        ({"img_mean": [0, 0, 0]}, "mean [123.675, 116.28, 103.53]"),
        ({"roi__roi_layer__sampling_ratio": 0}, "roi.trained_sampling_ratio 2, not 0"),
        (
            {"backbone__width_multiplier": 1.0},
            "backbone.width_multiplier 0.5, not 1.0",
        ),
        ({"resize": "short_side"}, "resize canvas, not short_side"),
        ({"resize_rounding": "floor"}, "resize_rounding nearest, not floor"),
        ({"resize_filter": "antialias"}, "resize_filter bilinear, not antialias"),
    ],
)
def test_a_config_of_another_detector_is_refused(shapes_config, written, refusal, change, told):
    with refusal(ExportError, written, told):
        sidecar.check_config(written, sidecar.read(written), shapes_config(**change))


@pytest.mark.parametrize("upright", [False, True])
def test_of_a_model_for_one_orientation(shapes_config, written, refusal, upright):
    config = shapes_config(resize="short_side", short_side=180, long_side=250)
    pair = {"name": "other.onnx", "sha256": "0" * 64, "bytes": 1}
    entry = sidecar.read(written)["files"]["model"]
    sidecar.write(written, sidecar.describe(config, "whole", "ONNX", {"model": entry}, upright=upright, pair=pair))
    about = sidecar.read(written)
    assert sidecar.is_upright(about) == upright
    sidecar.check_config(written, about, config)
    for change, told in (
        ({"short_side": 181}, "short_side 180, not 181"),
        ({"long_side": 251}, "long_side 250, not 251"),
        ({"img_width": 320}, "not 320"),
        ({"resize": "canvas"}, "resize short_side, not canvas"),
    ):
        other = shapes_config(**{"resize": "short_side", "short_side": 180, "long_side": 250, **change})
        with refusal(ExportError, written, told):
            sidecar.check_config(written, about, other)
    del about["pair"]
    sidecar.write(written, about)
    with refusal(ExportError, written, "other orientation"):
        sidecar.read(written)


def test_older_sidecars_know_one_way_to_resize(shapes_config, written):
    make_older(written, top=["resize", "resize_rounding", "resize_filter", "canvas_step"])
    sidecar.check_config(written, sidecar.read(written), shapes_config())


def test_a_changed_model_is_refused(written, refusal):
    model, entry = written.with_suffix(""), sidecar.read(written)["files"]["model"]
    sidecar.check_file(model, entry)
    data = model.read_bytes()
    model.write_bytes(b"W" + data[1:])
    with refusal(ExportError, model, "checksum"):
        sidecar.check_file(model, entry)
    model.write_bytes(data[:-1])
    with refusal(ExportError, model, f"{len(data) - 1} bytes", str(len(data))):
        sidecar.check_file(model, entry)
    model.unlink()
    with refusal(ExportError, model, "no such model"):
        sidecar.check_file(model, entry)


def test_damaged_and_foreign_sidecars(written, refusal):
    text = written.read_text()
    about = sidecar.read(written)
    for content, told in (
        ("[" * 20_000, "nested too deep"),
        ('{"a": ' * 20_000, "nested too deep"),
        (text.replace('"batch_size": 2', '"batch_size": ' + "9" * 5000), "not whole JSON"),
        (text.replace('"batch_size": 2', '"batch_size": NaN'), "NaN"),
        (text.replace('"batch_size": 2', '"batch_size": -Infinity'), "-Infinity"),
        (text.replace('"batch_size": 2', '"batch_size": 2, "batch_size": 2'), "'batch_size' comes twice"),
        (text.replace('"batch_size": 2', '"batch_size": 3'), "inputs, which are not of the shapes"),
        (text.replace('"score_thr": 0.05', '"score_thr": 0.06'), "changed or damaged since its export (checksum)"),
        (text + " ", "(checksum)"),
        (json.dumps(about), 'has no "checksum"'),
        (json.dumps(about | {"checksum": 5}), "(checksum)"),
        (json.dumps(json.loads(text) | {"version": 1}), "checksum: no key of a sidecar"),
        (text[: len(text) // 2], "not whole JSON"),
        ("[1, 2]", "not the sidecar"),
        ('{"format": "other"}', "not the sidecar"),
        (json.dumps(json.loads(text) | {"version": 99}), "version 99"),
        (json.dumps({k: v for k, v in json.loads(text).items() if k != "canvas"}), "canvas"),
    ):
        written.write_text(content)
        with refusal(ExportError, written, told):
            sidecar.read(written)
    with open(written, "wb") as f:
        f.truncate(1 << 30)
    with refusal(ExportError, written, "larger than 8 MiB"):
        sidecar.read(written)
    written.unlink()
    with refusal(ExportError, written, "can't read"):
        sidecar.read(written)
    os.mkfifo(written)
    with refusal(ExportError, written, "not a file but a pipe"):
        sidecar.read(written)


@pytest.mark.parametrize("detector", ["mask_rcnn", "faster_rcnn", "cascade_rcnn", "cascade_mask_rcnn"])
def test_whatever_is_described_is_read_again(shapes_config, written, detector):
    config = shapes_config(detector=detector)
    about = sidecar.describe(config, "whole", "ONNX", sidecar.read(written)["files"])
    sidecar.write(written, about)
    assert sidecar.read(written) == json.loads(json.dumps(about))


def test_a_full_disk_leaves_the_old_sidecar(written, monkeypatch, refusal):
    before = written.read_text()

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("src.runtime.files.os.replace", full)
    with refusal(ExportError, written, "No space left"):
        sidecar.write(written, {"new": True})
    assert written.read_text() == before
    assert sorted(p.name for p in written.parent.iterdir() if p.is_file()) == ["m.onnx", "m.onnx.json"]


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"test_cfg__rcnn__nms__type": "soft_nms"}, "--test_cfg.rcnn.nms.type nms"),
        ({"test_flip": True}, "--test_flip false"),
        ({"test_canvas": "picture"}, "--test_canvas config"),
        ({"test_scales": [1.0, 1.5]}, "--test_scales '[1.0]'"),
    ],
)
def test_what_exports_dont_do_is_refused_by_all_of_them(shapes_config, written, tmp_path, refusal, keys, word):
    config = shapes_config(**keys)
    with refusal(ExportError, word):
        export_whole(config, None, tmp_path / "x.onnx", "ONNX")
    with refusal(ExportError, word):
        export_split(config, None, tmp_path / "x")
    # an evaluation of the exported model would be another's than its config says
    with refusal(ExportError, word):
        sidecar.check_config(written, sidecar.read(written), config)
    assert not list(tmp_path.glob("x*"))
