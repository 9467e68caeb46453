"""The split form's files, and what becomes of an export that isn't the detector."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from mindspore import Parameter, Tensor

from src.config import load_config
from src.export import sidecar, split
from src.export.lite import GroupsApart, for_lite
from src.export.reference import uniform
from src.export.split import export_split
from src.export.whole import standard
from src.models.build import build_detector
from src.models.norms import ChannelBias, conv_norm
from src.ops.conv import Conv2d
from src.ops.device import set_device

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tiny():
    """Config and detector of the smallest kind: what is tested here doesn't depend on the network."""
    small = {"img_width": 128, "img_height": 128, "test_cfg.rpn.max_per_img": 8, "test_cfg.rcnn.max_per_img": 4}
    small |= {"backbone.width_multiplier": 0.25}
    config = load_config(ROOT / "configs/shapes.yaml", small)
    set_device(config)
    return config, build_detector(config)


def stand_in(folder, text, status):
    """A program in the C++ program's place."""
    program = folder / "program"
    program.write_text(f"#!/bin/sh\n{text}\nexit {status}\n")
    program.chmod(0o755)
    return program


@pytest.mark.full
def test_without_the_program_nothing_is_called_compared(tiny, tmp_path, capsys):
    path = export_split(*tiny, tmp_path / "out/net.mindir", program=tmp_path / "missing")
    assert path == tmp_path / "out/net.json"
    assert "not compared" in capsys.readouterr().out
    content = sidecar.read(path)
    assert content["reference"]["compared"] is False
    files = content["files"]
    entries = [files["features"], *files["box"], *files["mask"], *files["mask_weights"], content["reference"]["file"]]
    assert len(entries) == 5
    for entry in entries:
        sidecar.check_file(path.with_name(entry["name"]), entry)
    # nothing else is left
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([path.name, *(e["name"] for e in entries)])
    assert [len(level) for level in content["base_anchors"]] == [3] * 5
    np.testing.assert_allclose(content["base_anchors"][0], tiny[1].rpn.anchors.asnumpy()[:3])


@pytest.mark.full
def test_an_export_that_differs_is_not_kept(tiny, tmp_path, refusal):
    program = stand_in(tmp_path, "echo 'error: net.json: the box head differs' >&2", 2)
    with refusal(sidecar.ExportError, "the box head differs"):
        export_split(*tiny, tmp_path / "out/net", program=program)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_cannot_be_written(tiny, tmp_path, refusal):
    (tmp_path / "file").write_text("")
    with refusal(sidecar.ExportError, "file"):
        export_split(*tiny, tmp_path / "file/net")


@pytest.mark.parametrize(
    ("number", "parts"),
    [
        (errno.ENOSPC, ["No space left", "free space", "--file_name"]),
        (errno.EFBIG, ["File too large", "ulimit -f"]),
        (errno.ENOMEM, ["Cannot allocate memory", "memory is full"]),
    ],
)
def test_a_file_that_cannot_be_written_says_why(number, parts, tiny, tmp_path, refusal, monkeypatch):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    (tmp_path / "net.json").write_text("older")
    monkeypatch.setattr(split, "reference_cases", fail)
    with refusal(sidecar.ExportError, "net", *parts):
        export_split(*tiny, tmp_path / "net")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("net.json", "older")]


def test_a_fault_of_our_own_is_not_called_a_full_disk(tiny, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("shapes don't fit")

    monkeypatch.setattr(split, "reference_cases", fail)
    with pytest.raises(RuntimeError, match="shapes don't fit"):
        export_split(*tiny, tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_a_program_that_does_not_run_is_named(tmp_path, refusal, monkeypatch):
    program = tmp_path / "program"
    program.write_text("no program")
    monkeypatch.setattr(sidecar, "read", lambda _: {"mindir_version": 1})
    with refusal(sidecar.ExportError, program, "can't be run", "build"):
        split.compare([tmp_path / "net.json"], program)


def test_reference_inputs_are_the_same_everywhere():
    # the C++ program makes them anew: these numbers must never change
    got = uniform(7, (2, 3), 2.0)
    assert got.dtype == np.float32 and got.shape == (2, 3)
    want = []
    for i in range(6):
        x = ((i + 1) * 0x9E3779B97F4A7C15 + 7) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        want.append(((x ^ (x >> 31)) >> 40) / 2**23 - 1)
    np.testing.assert_array_equal(got.ravel(), np.array(want, np.float32) * 2)
    many = uniform(1, (100_000,), 1.0)
    # uniform: mean 0, variance 1 / 3, each within five of its own deviations
    assert abs(many.mean()) < 5 * (1 / 3 / 1e5) ** 0.5
    assert abs(many.var() - 1 / 3) < 5 * (4 / 45 / 1e5) ** 0.5


@pytest.mark.parametrize(
    "keys",
    [
        {"neck.fpn.upsample": "bilinear", "backbone.same_padding": True},
        {"neck.fpn.norm": "group", "mask_head.norm": "group", "backbone": "resnet_v1_50", "backbone.norm": "group"},
        {"neck.fpn.norm": "layer", "mask_head.norm": "layer"},
        {
            "backbone.type": "resnext",
            "backbone.depth": 50,
            "backbone.groups": 32,
            "backbone.base_width": 4,
            "backbone.width_multiplier": 1.0,
        },
    ],
    ids=["bilinear", "group norm", "layer norm", "groups"],
)
def test_what_stands_in_for_lite_has_names_of_its_own(keys):
    """Of which MindSpore exports no graph otherwise."""
    config = load_config("configs/shapes.yaml", keys)
    names = [p.name for p in for_lite(standard(config, build_detector(config))).get_parameters()]
    assert len(set(names)) == len(names) > 0


@pytest.mark.parametrize("activation", ["none", "ReLU", "ReLU6"])
def test_groups_apart_are_the_grouped_convolution(activation, operator_by_operator):
    conv = Conv2d(16, 24, 3, group=4)
    x, bias = (Tensor(np.random.default_rng(0).normal(0, 4, s).astype(np.float32)) for s in ((2, 16, 9, 7), (24,)))
    which = {"relu": activation == "ReLU", "relu6": activation == "ReLU6"}
    norm = ChannelBias(Parameter(bias))
    expected, found = (conv_norm(x, c, norm, True, **which) for c in (conv, GroupsApart(conv)))
    # the same sums of 36 products, in another order
    np.testing.assert_allclose(found.asnumpy(), expected.asnumpy(), rtol=1e-4, atol=1e-5)
