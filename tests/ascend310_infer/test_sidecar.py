"""The C++ program's reader of sidecars, under the sanitizers, beside Python's: what one refuses, the other does."""

import json
import subprocess

import numpy as np
import pytest

from benchmarks.mutations.sidecar import BYTES, CONTENTS, mutated
from src.config import load_config
from src.export import sidecar
from src.export.sidecar import ExportError
from src.runtime.newer import zip_equal
from tests.ascend310_infer.test_image import READER, ROOT

SOURCES = [*READER, "tests/ascend310_infer/sidecar_main.cc"]
ENTRY = {"name": "m_box0.mindir", "sha256": "0" * 64, "bytes": 1}
KINDS = {
    "mask_rcnn": {},
    "cascade": {"detector": "cascade_mask_rcnn"},
    "both orientations": {"detector": "faster_rcnn", "resize": "short_side", "short_side": 180, "long_side": 250},
    "keypoints": {"detector": "keypoint_rcnn"},
    "resnext": {"backbone.type": "resnext", "backbone.depth": 50, "backbone.groups": 32, "backbone.base_width": 4}
    | {"backbone.width_multiplier": 1.0},
}


def described(kind, form):
    """A sidecar of the shapes config's export, without its files."""
    config = load_config(ROOT / "configs/shapes.yaml", KINDS[kind])
    pair = ENTRY if config.turns_canvas else None
    if form == "whole":
        return sidecar.describe(config, "whole", "MINDIR", {"model": ENTRY}, pair=pair)
    stages = len(config.cascade.pos_iou_thr) if config.is_cascade else 1
    masks = [ENTRY] * (stages if config.with_mask else 0)
    files = {"features": ENTRY, "box": [ENTRY] * stages, "mask": masks, "mask_weights": masks}
    files |= {"keypoint": [ENTRY]} if "keypoint" in config.branches else {}
    reference = {"file": ENTRY, "tolerance": 1e-3, "compared": True}
    anchors = [[[-8.0, -4.0, 8.0, 4.0]] * 3 for _ in config.rpn.anchor_generator.strides]
    about = sidecar.describe(config, "split", "MINDIR", files, 2, reference, pair=pair)
    # as read from a file: no part of it is another's
    return json.loads(json.dumps(about | {"mindir_version": 1, "base_anchors": anchors}))


@pytest.fixture(scope="module")
def read(compiled):
    """read(paths) -> what the program says of each."""
    program = compiled(SOURCES)

    def run(paths):
        done = subprocess.run([program, *paths], capture_output=True, text=True, errors="replace", timeout=300)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) == len(paths)
        return lines

    return run


def in_python(path):
    try:
        sidecar.read(path)
    except ExportError as e:
        return str(e)
    return "read"


@pytest.mark.parametrize("form", ["split", "whole"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_exports_write_is_read(kind, form, read, tmp_path):
    path = tmp_path / "m.json"
    sidecar.write(path, described(kind, form))
    assert (read([path]), in_python(path)) == (["read"], "read")


def test_any_other_byte_is_told(read, tmp_path):
    data = sidecar.text(described("mask_rcnn", "split")).encode()
    paths = []
    for at in range(0, len(data), 7):
        spoilt = bytearray(data)
        spoilt[at] ^= 1 << at % 8
        paths.append(tmp_path / f"{at}.json")
        paths[-1].write_bytes(spoilt)
    for path, said in zip_equal(paths, read(paths)):
        assert said.startswith(f"{path}: ")
        assert in_python(path).startswith(f"{path}:")


WRONG = {
    "no deviation": ("std[0]", ["std", 0], 0),
    "a threshold below zero": ("rcnn.iou_threshold", ["rcnn", "iou_threshold"], -0.1),
    "a score above one": ("rcnn.score_thr", ["rcnn", "score_thr"], 1.5),
    "no anchors of a level": ("base_anchors", ["base_anchors", 2], []),
    "an anchor turned over": ("base_anchors", ["base_anchors", 0, 1], [8.0, -4.0, -8.0, 4.0]),
    "anchors of a level less": ("base_anchors", ["base_anchors"], [[[-8.0, -4.0, 8.0, 4.0]] * 3] * 4),
    "a stride less than the one before": ("none of which is less", ["rpn", "strides", 1], 2),
    "a step that no levels need": ("canvas_step 12", ["canvas_step"], 12),
    "a canvas of too many pixels": ("8192 x 8192", ["canvas"], {"width": 8192, "height": 8192}),
    "sizes of a level less": ("rpn.sizes", ["rpn", "sizes"], [[8.0]] * 4),
    "sizes, more of one level": ("rpn.sizes", ["rpn", "sizes"], [[8.0]] * 4 + [[8.0, 9.0]]),
    "sizes that anchors don't have": ("base_anchors", ["rpn", "sizes"], [[8.0, 9.0]] * 5),
    "a size of nothing": ("rpn.sizes", ["rpn", "sizes"], [[8.0]] * 4 + [[0]]),
    "a proposal's score above one": ("rpn.score_thr", ["rpn", "score_thr"], 1.5),
    "a backbone's key of no plain value": ("backbone.depth", ["backbone", "depth"], {"a": 1}),
    "a backbone's list of lists": ("backbone.depth", ["backbone", "depth"], [[1]]),
    "a backbone of no type": ("backbone.type", ["backbone", "type"], 50),
    "RoIs from other levels": ("roi.strides", ["roi", "strides", 0], 8),
    "a level's beginning too few": ("roi.level_sides", ["roi", "level_sides"], [112.0, 224.0]),
    "levels that begin below the one before": ("roi.level_sides", ["roi", "level_sides"], [112.0, 448.0, 224.0]),
    "a canvas between strides": ("the model's canvas, 250 x 192", ["canvas", "width"], 250),
    "a canvas too large": ("canvas.height", ["canvas", "height"], 2**20),
    "one class": ("classes", ["classes"], ["background"]),
    "two classes of one name": ("two classes", ["classes", 2], "circle"),
    "a class of no text": ("classes[1]", ["classes", 1], 7),
    "a convention of none": ("rpn.rank_by", ["rpn", "rank_by"], "size"),
    "a key too much": ("roi.colour: no key of a sidecar", ["roi", "colour"], 1),
    "a stage too many": ("files.box", ["files", "box"], [ENTRY] * 2),
    "masks of another size": ("mask_paste.size", ["mask_paste", "size"], 14),
    "a checksum of no hash": ("64 hexadecimal digits", ["files", "features", "sha256"], "abc"),
    "files elsewhere": ("own folder", ["files", "features", "name"], "../m.mindir"),
    "no boxes at all": ("rpn.max_per_img", ["rpn", "max_per_img"], 0),
    "whole numbers that aren't": ("rcnn.nms_pre", ["rcnn", "nms_pre"], 10.5),
    "masks without a head": ("with_mask", ["with_mask"], False),
}


WRONG_KEYPOINTS = {
    "no keypoints": ("keypoints.names", ["keypoints", "names"], []),
    "a keypoint of no text": ("keypoints.names[1]", ["keypoints", "names", 1], 7),
    "heatmaps of another size": ("keypoints.size", ["keypoints", "size"], 28),
    "a score of another kind": ("keypoints.score", ["keypoints", "score"], "sigmoid"),
    "half a pixel of no flag": ("keypoints.half_pixel", ["keypoints", "half_pixel"], 0.5),
    "keypoints' RoIs from other levels": ("keypoint_roi.strides", ["keypoint_roi", "strides", 0], 8),
    "keypoints without a head": ("files.keypoint", ["files", "keypoint"], []),
    "two keypoint heads": ("files.keypoint", ["files", "keypoint"], [ENTRY] * 2),
    "a mask head beside": ("files.mask", ["files", "mask"], [ENTRY]),
}


@pytest.mark.parametrize("fault", [*WRONG, *WRONG_KEYPOINTS])
def test_numbers_out_of_bounds_and_parts_that_do_not_fit_are_named(fault, read, tmp_path):
    told, (*outer, last), value = (WRONG | WRONG_KEYPOINTS)[fault]
    content = described("mask_rcnn" if fault in WRONG else "keypoints", "split")
    place = content
    for key in outer:
        place = place[key]
    place[last] = value
    path = tmp_path / "m.json"
    sidecar.write(path, content)
    for said in (*read([path]), in_python(path)):
        assert said.startswith(f"{path}: ") and told in said and "export the model again" in said


@pytest.mark.parametrize(
    ("strides", "rois", "step", "width"),
    [
        ([32, 32, 64], [32, 32], 32, 224),
        ([8, 12, 12, 48, 100], [8, 12], 24, 240),
        ([4, 8, 16, 32, 64], [4, 8], 64, 256),
    ],
)
def test_pyramids_of_any_strides_are_read(strides, rois, step, width, read, tmp_path):
    content = described("mask_rcnn", "split")
    sizes = [[32.0 * 2**i, 40.0 * 2**i] for i in range(len(strides))]
    content["rpn"] |= {"strides": strides, "sizes": sizes, "score_thr": 0.05}
    content["roi"]["strides"] = content["mask_roi"]["strides"] = rois
    content |= {"canvas_step": step, "canvas": {"width": width, "height": 192}}
    content["base_anchors"] = [[[-8.0, -4.0, 8.0, 4.0]] * 6] * len(strides)
    content["backbone"] = {"type": "another", "widths": [1, 2.5, "x"], "norm": "batch", "wide": True, "none": []}
    path = tmp_path / "m.json"
    sidecar.write(path, content)
    assert (read([path]), in_python(path)) == (["read"], "read")


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.full)])
def test_random_changes(seed, read, tmp_path):
    random = np.random.default_rng(seed)
    cases, paths, names = (300, 3000)[seed], [], []
    for i in range(cases):
        kind, form = list(KINDS)[i % len(KINDS)], ("split", "whole")[i // len(KINDS) % 2]
        name, data = mutated(sidecar.text(described(kind, form)).encode(), random)
        names.append(f"{kind}, {form}: {name}")
        paths.append(tmp_path / f"{i}.json")
        paths[-1].write_bytes(data)
    changes = {word for name in names for word in name.split(": ")[1].split()}
    assert changes >= {change.__name__ for change in (*BYTES, *CONTENTS)}
    accepted = 0
    for path, name, said in zip_equal(paths, names, read(paths)):
        ours = in_python(path)
        assert (said == "read") == (ours == "read"), f"{name}: C++ {said!r}, Python {ours!r}"
        assert said == "read" or said.startswith(f"{tmp_path}")
        accepted += said == "read"
    # some changes give another valid sidecar
    assert 0 < accepted < cases / 4
