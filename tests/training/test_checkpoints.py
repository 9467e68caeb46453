"""Checkpoints: whole or refused, of this model or refused, and the older one never lost."""

import os
import subprocess

import mindspore as ms
import numpy as np
import pytest
import safetensors.numpy
from mindspore import Parameter, Tensor, nn

from src.checkpoints.files import (
    CheckpointError,
    CheckpointFolder,
    load_backbone,
    load_checkpoint,
    load_detector,
    save_checkpoint,
)


def param(name, *shape, fill=None):
    value = np.random.RandomState(len(name)).rand(*shape) if fill is None else np.full(shape, fill)
    return Parameter(value.astype(np.float32), name=name)


class Backbone(nn.Cell):
    def __init__(self, width, fill):
        super().__init__()
        self.weight = param("weight", width, 3, fill=fill)


class Head(nn.Cell):
    def __init__(self, classes, fill):
        super().__init__()
        self.weight = param("weight", classes, 300, fill=fill)
        self.bias = param("bias", classes, fill=fill)


class Detector(nn.Cell):
    """backbone.weight (4, 3), head.weight (classes, 300), head.bias (classes)."""

    def __init__(self, classes=5, width=4, fill=None):
        super().__init__()
        self.backbone, self.head = Backbone(width, fill), Head(classes, fill)


def values(net):
    return {p.name: p.asnumpy().copy() for p in net.get_parameters()}


def equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "net.ckpt"
    save_checkpoint(Detector(), path)
    return path


def test_equal_weights_make_equal_files(tmp_path):
    arrays = {f"layer{i}.größe": np.full((i + 1, 2), i, np.float32) for i in range(4)}
    files = [tmp_path / f"{i}.safetensors" for i in range(8)]
    for path in files:
        save_checkpoint(arrays, path)
    assert len({path.read_bytes() for path in files}) == 1
    equal(load_checkpoint(files[0]), arrays)


def test_round_trip(saved):
    assert list(saved.parent.iterdir()) == [saved]
    net = Detector(fill=0)
    assert load_detector(net, saved) == []
    equal(values(net), values(Detector()))
    equal(load_checkpoint(saved), values(Detector()))


def test_folder_is_made(tmp_path):
    save_checkpoint(Detector(), tmp_path / "new/folder/net.ckpt")
    equal(load_checkpoint(tmp_path / "new/folder/net.ckpt"), values(Detector()))


def test_others_may_read_and_replace_it(saved):
    assert saved.stat().st_mode & 0o777 == 0o644
    save_checkpoint(Detector(fill=7), saved)
    assert (load_checkpoint(saved)["head.bias"] == 7).all()


# Files that can't be used


def test_missing(tmp_path, refusal):
    with refusal(CheckpointError, tmp_path / "none.ckpt", "no such checkpoint"):
        load_checkpoint(tmp_path / "none.ckpt")
    with refusal(CheckpointError, tmp_path, "not a file but a folder"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("mode", ["AES-GCM", "AES-CBC", "SM4-CBC"])
def test_encrypted(tmp_path, refusal, mode):
    path = tmp_path / "secret.ckpt"
    values = [{"name": "a", "data": Tensor(np.ones(3, np.float32))}]
    ms.save_checkpoint(values, str(path), enc_key=b"k" * 16, enc_mode=mode)
    with refusal(CheckpointError, path, "encrypted", "dec_key"):
        load_checkpoint(path)


def test_wrong_suffix(saved, refusal):
    other = saved.rename(saved.with_suffix(".pth"))
    with refusal(CheckpointError, other, "not a .ckpt file"):
        load_checkpoint(other)


def record_ends(data):
    """Where each record of the file ends: protobuf fields of number 1, with a length of up to 5 bytes in front."""
    ends, i = [], 0
    while i < len(data) and data[i] == 0x0A:
        length, shift, i = 0, 0, i + 1
        while True:
            byte = data[i]
            length, shift, i = length | (byte & 0x7F) << shift, shift + 7, i + 1
            if not byte & 0x80:
                break
        i += length
        ends.append(i)
    return ends


def empty(data):
    return b""


def half(data):
    return data[: len(data) // 2]


def one_record_short(data):
    ends = record_ends(data)
    assert len(ends) >= 3
    return data[: ends[-2]]


def checksum_cut_off(data):
    return data[:-1]


def flipped_byte(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def flipped_last_byte_of_a_value(data):
    end = record_ends(data)[0]
    return data[: end - 1] + bytes([data[end - 1] ^ 0x80]) + data[end:]


def something_else(data):
    return b"PK\x03\x04" + bytes(range(256)) * 20


@pytest.mark.parametrize(
    "spoil",
    [empty, half, one_record_short, checksum_cut_off, flipped_byte, flipped_last_byte_of_a_value, something_else],
)
def test_damaged(saved, refusal, spoil):
    saved.write_bytes(spoil(saved.read_bytes()))
    net = Detector(fill=0)
    with refusal(CheckpointError, saved):
        load_detector(net, saved)
    # nothing of it was loaded
    equal(values(net), values(Detector(fill=0)))


def test_cut_after_a_parameter_is_told_as_cut(tmp_path, refusal):
    """With a checksum nothing of such a file is read; without one, as MindSpore writes it, what it lacks tells."""
    path = tmp_path / "net.ckpt"
    ms.save_checkpoint(Detector(), str(path))
    path.chmod(0o644)
    path.write_bytes(one_record_short(path.read_bytes()))
    with refusal(CheckpointError, path, "cut short", "head.weight", "not in the file: head.bias", "copy it again"):
        load_detector(Detector(fill=0), path)
    save_checkpoint(Detector(), path)
    path.write_bytes(path.read_bytes()[:-30])
    with refusal(CheckpointError, path, "cut short"):
        load_detector(Detector(fill=0), path)


@pytest.fixture
def safetensors_file(tmp_path):
    save_checkpoint(Detector(), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_safetensors_with_checksums(safetensors_file):
    """MindSpore reads and compares them too."""
    equal(load_checkpoint(safetensors_file), values(Detector()))
    loaded = ms.load_checkpoint(str(safetensors_file), format="safetensors", crc_check=True)
    np.testing.assert_array_equal(loaded["head.bias"].asnumpy(), values(Detector())["head.bias"])


def test_damaged_safetensors_are_never_read_wrong(safetensors_file):
    """Each byte of the header and some of the values, by one bit."""
    data, whole = safetensors_file.read_bytes(), values(Detector())
    header = 8 + int.from_bytes(data[:8], "little")
    for place in [*range(header), *range(header, len(data), 37)]:
        safetensors_file.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
        try:
            equal(load_checkpoint(safetensors_file), whole)
        except CheckpointError as e:
            assert str(safetensors_file) in str(e)


def test_safetensors_without_a_checksum(tmp_path):
    """Of other programs, and of ours before they had one."""
    safetensors.numpy.save_file(values(Detector()), tmp_path / "a.safetensors")
    equal(load_checkpoint(tmp_path / "a.safetensors"), values(Detector()))
    safetensors.numpy.save_file(values(Detector()), tmp_path / "a.safetensors", {"format": "pt", "note": "mine"})
    equal(load_checkpoint(tmp_path / "a.safetensors"), values(Detector()))


# Another model's


def test_other_shapes(saved, refusal):
    net = Detector(classes=8, fill=0)
    with refusal(
        CheckpointError, saved, "another model", "head.weight (5, 300) for (8, 300)", "head.bias (5,) for (8,)"
    ):
        load_detector(net, saved)
    equal(values(net), values(Detector(classes=8, fill=0)))


def test_other_names(tmp_path, refusal):
    save_checkpoint(Backbone(4, None), tmp_path / "other.ckpt")
    net = Detector(fill=0)
    with refusal(CheckpointError, "another model", "not in the file: backbone.weight", "not in the model: weight"):
        load_detector(net, tmp_path / "other.ckpt")
    equal(values(net), values(Detector(fill=0)))


def test_many_differences_are_counted(tmp_path, refusal):
    class Many(nn.Cell):
        def __init__(self, prefix):
            super().__init__()
            self.all = ms.ParameterTuple([param(f"{prefix}{i}", 2) for i in range(9)])

    save_checkpoint(Many("a"), tmp_path / "a.ckpt")
    with refusal(CheckpointError, "b0, b1, b2 and 6 more", "a0, a1, a2 and 6 more"):
        load_detector(Many("b"), tmp_path / "a.ckpt")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("finetune", [False, True])
def test_weights_that_are_not_finite(tmp_path, refusal, value, finetune):
    """They detect nothing, and an AP of 0 wouldn't tell why."""
    net = Detector()
    net.head.bias.set_data(Tensor(np.array([0, 1, value, 0, 0], np.float32)))
    save_checkpoint(net, tmp_path / "diverged.ckpt")
    with refusal(CheckpointError, tmp_path / "diverged.ckpt", "head.bias", "diverged", "lower lr"):
        load_detector(Detector(), tmp_path / "diverged.ckpt", finetune)


class Heads(nn.Cell):
    """Parameters named as a detector's that have rows of classes, and one that hasn't."""

    def __init__(self, classes, width=8):
        super().__init__()
        boxes, masks = nn.Cell(), nn.Cell()
        boxes.fc1, boxes.cls, boxes.reg = nn.Dense(4, width), nn.Dense(width, classes), nn.Dense(width, 4 * classes)
        masks.logits = nn.Conv2d(width, classes, 1)
        self.bbox_head, self.mask_head = boxes, masks


def test_other_classes_name_the_option_that_takes_them(tmp_path, refusal):
    save_checkpoint(Heads(81), tmp_path / "coco.ckpt")
    with refusal(CheckpointError, tmp_path / "coco.ckpt", "other classes", "(81, 8) for (4, 8)", "--finetune true"):
        load_detector(Heads(4), tmp_path / "coco.ckpt")
    assert "bbox_head.fc1.weight" not in load_detector(Heads(4), tmp_path / "coco.ckpt", finetune=True)
    with refusal(CheckpointError, "another model", "bbox_head.fc1.weight (8, 4) for (9, 4)", "--config_path"):
        load_detector(Heads(4, width=9), tmp_path / "coco.ckpt")


def test_finetune_keeps_what_fits(saved):
    net = Detector(classes=8, fill=0)
    assert load_detector(net, saved, finetune=True) == ["head.weight", "head.bias"]
    np.testing.assert_array_equal(net.backbone.weight.asnumpy(), Detector().backbone.weight.asnumpy())
    assert (net.head.weight.asnumpy() == 0).all()


def test_finetune_from_something_else(tmp_path, refusal):
    save_checkpoint(Backbone(4, None), tmp_path / "other.ckpt")
    with refusal(CheckpointError, tmp_path / "other.ckpt", "no parameter of this model", "weight"):
        load_detector(Detector(), tmp_path / "other.ckpt", finetune=True)


class TwoParts(nn.Cell):
    """A backbone of three layers of some width, and a neck."""

    def __init__(self, width):
        super().__init__()
        self.backbone = nn.CellList([nn.Dense(width, width) for _ in range(3)])
        self.neck = nn.Dense(4, 4)


def test_finetune_from_another_backbone(tmp_path, refusal):
    save_checkpoint(TwoParts(4), tmp_path / "other.ckpt")
    assert load_detector(TwoParts(4), tmp_path / "other.ckpt", finetune=True) == []
    with refusal(CheckpointError, tmp_path / "other.ckpt", "0 of the 6", "backbone", "another model", "--config_path"):
        load_detector(TwoParts(5), tmp_path / "other.ckpt", finetune=True)


def test_a_mask_head_is_left_out_where_there_is_none(tmp_path, capsys, refusal):
    """A detector of boxes alone takes a mask detector's weights, for evaluation and to go on from."""
    whole = values(Detector())
    for name in ("mask_head.convs.0.weight", "mask_heads.1.logits.weight"):
        path = tmp_path / "mask.ckpt"
        save_checkpoint(whole | {name: np.ones(3, np.float32)}, path)
        for finetune in (False, True):
            net = Detector(fill=0)
            left = load_detector(net, path, finetune)
            assert f"{path}: 1 parameters of the mask head left out" in capsys.readouterr().out
            assert left == []
            equal(values(net), whole)
        save_checkpoint(whole | {name: np.ones(3, np.float32), "other": np.ones(3, np.float32)}, path)
        with refusal(CheckpointError, "not in the model: other"):
            load_detector(Detector(), path)


def test_backbone_of_a_whole_checkpoint(saved):
    net = Detector(classes=8, fill=0)
    load_backbone(net, saved)
    np.testing.assert_array_equal(net.backbone.weight.asnumpy(), Detector().backbone.weight.asnumpy())
    assert (net.head.weight.asnumpy() == 0).all()


def test_backbone_by_itself(tmp_path):
    save_checkpoint(Backbone(4, 3), tmp_path / "backbone.ckpt")
    net = Detector(fill=0)
    load_backbone(net, tmp_path / "backbone.ckpt")
    assert (net.backbone.weight.asnumpy() == 3).all()


def test_another_backbone(tmp_path, refusal):
    save_checkpoint(Backbone(6, 3), tmp_path / "wide.ckpt")
    with refusal(CheckpointError, tmp_path / "wide.ckpt", "backbone.weight (6, 3) for (4, 3)"):
        load_backbone(Detector(), tmp_path / "wide.ckpt")
    save_checkpoint(Head(4, 3), tmp_path / "head.ckpt")
    with refusal(CheckpointError, tmp_path / "head.ckpt", "backbone.weight"):
        load_backbone(Detector(), tmp_path / "head.ckpt")


# A run's folder


def test_the_newest_stay(tmp_path):
    folder = CheckpointFolder(tmp_path, "mask_rcnn", keep=2)
    (tmp_path / "mask_rcnn-best.ckpt").write_text("mine")
    (tmp_path / "faster_rcnn-1_1.ckpt").write_text("another run's")
    for epoch, step in ((1, 50), (2, 50), (9, 50), (10, 5), (10, 50)):
        assert folder.save(Detector(), epoch, step) == tmp_path / f"mask_rcnn-{epoch}_{step}.ckpt"
    # by number: 10 is newer than 9, 50 than 5
    assert [p.name for p in folder.list()] == ["mask_rcnn-10_5.ckpt", "mask_rcnn-10_50.ckpt"]
    others = {"mask_rcnn-best.ckpt", "faster_rcnn-1_1.ckpt"}
    assert {p.name for p in tmp_path.iterdir()} == others | {p.name for p in folder.list()}


def test_same_step_again(tmp_path):
    folder = CheckpointFolder(tmp_path, "mask_rcnn", keep=1)
    folder.save(Detector(), 1, 1)
    folder.save(Detector(fill=7), 1, 1)
    assert (load_checkpoint(tmp_path / "mask_rcnn-1_1.ckpt")["head.bias"] == 7).all()


def test_unwritable_folder(tmp_path, refusal):
    (tmp_path / "taken").write_text("mine")
    with refusal(CheckpointError, tmp_path / "taken", "train_outputs"):
        CheckpointFolder(tmp_path / "taken", "mask_rcnn", keep=1).save(Detector(), 1, 1)
    assert (tmp_path / "taken").read_text() == "mine"


def test_failure_while_writing_leaves_the_older(tmp_path, monkeypatch, refusal):
    def fail(net, path, **other):
        with open(path, "wb") as f:
            f.write(b"begun")
        raise RuntimeError("Save checkpoint failed.\n\nMore lines")

    folder = CheckpointFolder(tmp_path, "mask_rcnn", keep=1)
    first = folder.save(Detector(), 1, 1)
    monkeypatch.setattr(ms, "save_checkpoint", fail)
    with refusal(CheckpointError, "mask_rcnn-1_2.ckpt", "can't write", "train_outputs"):
        folder.save(Detector(fill=0), 1, 2)
    with refusal(CheckpointError, "mask_rcnn-1_1.ckpt", "can't write"):
        folder.save(Detector(fill=0), 1, 1)
    assert list(tmp_path.iterdir()) == [first]
    equal(load_checkpoint(first), values(Detector()))


def test_full_disk_leaves_the_older(tmp_path, refusal):
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", place]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small file system here")
    try:
        folder = CheckpointFolder(place, "mask_rcnn", keep=1)
        # three pages of 4 KB: 6 KB of parameters fit once, not twice
        first = folder.save(Detector(), 1, 1)
        with refusal(CheckpointError, place, "can't write", "train_outputs"):
            folder.save(Detector(fill=0), 1, 2)
        assert os.listdir(place) == [first.name]
        equal(load_checkpoint(first), values(Detector()))
    finally:
        subprocess.run(["umount", "-l", place], check=True)
