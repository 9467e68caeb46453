"""Files: read as they were written, or refused in one line with nothing run and nothing written."""

import argparse
import collections
import datetime
import enum
import io
import json
import os
import pickle
import pty
import resource
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import yaml

from src.checkpoints.convert.conversion import find_prefix, fits_a_layout, recognise, renamed
from src.checkpoints.convert.pickles import ConversionError
from src.checkpoints.convert.readers import read_state
from src.checkpoints.files import CheckpointError, load_backbone, load_checkpoint, load_detector, save_checkpoint
from src.config import ConfigError, load_config
from src.convert_checkpoint import choose_config, run
from src.models.build import build_backbone, build_detector
from src.runtime.errors import UserError
from tests.checkpoints.convert import foreign
from tests.checkpoints.convert.foreign import Raw, call, dump, name, op, tensor, write_legacy, write_pkl, write_zip

ROOT = Path(__file__).parents[3]
R = np.random.default_rng(0)
NARROW = {
    "neck": {"fpn": {"out_channels": 8}},
    "rpn": {"in_channels": 8, "feat_channels": 8},
    "bbox_head": {"in_channels": 8, "fc_out_channels": 16},
    "mask_head": {"in_channels": 8, "conv_out_channels": 8},
}
STATE = {
    "conv.weight": R.standard_normal((4, 3, 2, 2), np.float32),
    "conv.bias": R.standard_normal(4),
    "half": R.standard_normal(5).astype(np.float16),
    "bn.num_batches_tracked": np.array(7, np.int64),
    "transposed": R.standard_normal((3, 5), np.float32).T,
    "none": np.zeros((0, 3), np.float32),
}


def same(arrays, state):
    assert arrays.keys() == state.keys()
    for n, v in state.items():
        np.testing.assert_array_equal(arrays[n], v)
        assert arrays[n].dtype == v.dtype


# What is read


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_pytorch(write, tmp_path):
    same(read_state(write(tmp_path / "a.pth", STATE)).arrays, STATE)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_nested(write, tmp_path):
    """As mmdetection saves: other things beside the state dict, which are named."""
    meta = {"epoch": 12, "time": "now", "CLASSES": ("person", "car"), "seed": None, "lr": 0.1}
    file = write(tmp_path / "a.pth", STATE, lambda state: {"meta": meta, "state_dict": state, "optimizer": {}})
    state = read_state(file)
    same(state.arrays, STATE)
    assert state.others == ["meta", "optimizer"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_arrays(protocol, tmp_path):
    """As Detectron2's model zoo: a dict with "model", and numpy's arrays and scalars."""
    content = {"model": STATE, "__author__": "someone", "scale": np.float32(2), "order": np.asfortranarray(np.eye(3))}
    same(read_state(write_pkl(tmp_path / "a.pkl", content, protocol)).arrays, STATE)


def test_pickled_by_python_2(tmp_path):
    """Texts and bytes were one: Caffe2's {"blobs": ...}."""
    array = np.arange(6, dtype="<f4").reshape(2, 3) - 200
    raw = array.tobytes()
    text = b"T" + len(raw).to_bytes(4, "little") + raw  # BINSTRING
    dtype = Raw(call(name("numpy", "dtype"), "f4", 0, 1) + op((3, "<", None, None, None, -1, -1, 0)) + b"b")
    empty = call(name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), (0,), "b")
    pickled = Raw(empty + b"(" + op(1) + op((2, 3)) + dtype + op(False) + text + b"t" + b"b")
    file = tmp_path / "a.pkl"
    file.write_bytes(dump({"blobs": {"conv1_w": pickled}}))
    np.testing.assert_array_equal(read_state(file).arrays["conv1_w"], array)


def test_views_of_one_storage(tmp_path):
    """Tensors that share a storage, strided, offset, expanded."""
    whole = np.arange(24, dtype=np.float32)
    parts = {
        "columns": tensor("0", whole, (6, 4), (1, 6)),
        "window": tensor("0", whole, (2, 3), (6, 1), 8),
        "expanded": tensor("0", whole, (5, 2), (0, 0), 3),
        "scalar": tensor("0", whole, (), (), 23),
    }
    arrays = read_state(write_zip(tmp_path / "a.pth", {"x": whole}, lambda state: parts)).arrays
    np.testing.assert_array_equal(arrays["columns"], whole.reshape(4, 6).T)
    np.testing.assert_array_equal(arrays["window"], whole.reshape(4, 6)[1:3, 2:5])
    np.testing.assert_array_equal(arrays["expanded"], np.full((5, 2), 3))
    assert arrays["scalar"] == 23


def test_bfloat16(tmp_path):
    """The upper halves of float32, in PyTorch's files and in safetensors."""
    values = np.array([1.0, -2.5, 3.140625, 2.0**100], np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    pid = Raw(op(("storage", name("torch", "BFloat16Storage"), "0", "cpu", 4)) + b"Q")
    content = {"w": call(name("torch._utils", "_rebuild_tensor_v2"), pid, 0, (4,), (1,), False, {})}
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as z:
        z.writestr("archive/data.pkl", dump(content))
        z.writestr("archive/data/0", bits.tobytes())
    np.testing.assert_array_equal(read_state(tmp_path / "a.pth").arrays["w"], values)

    header = b'{"w":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bits.tobytes())
    np.testing.assert_array_equal(load_checkpoint(tmp_path / "a.safetensors")["w"], values)


def test_mindspore_without_a_checksum(tmp_path):
    import mindspore as ms

    ms.save_checkpoint([{"name": "w", "data": ms.Tensor(STATE["conv.weight"])}], str(tmp_path / "a.ckpt"))
    np.testing.assert_array_equal(read_state(tmp_path / "a.ckpt").arrays["w"], STATE["conv.weight"])


def spoil_sums(file: Path, number: int) -> Path:
    """Sets the CRC-32 of every entry of a zip file to `number`."""
    data = bytearray(file.read_bytes())
    for mark, place in ((b"PK\3\4", 14), (b"PK\1\2", 16)):
        at = data.find(mark)
        while at >= 0:
            data[at + place : at + place + 4] = number.to_bytes(4, "little")
            at = data.find(mark, at + 4)
    file.write_bytes(data)
    return file


def test_zip_without_checksums(tmp_path, refusal):
    """As torch.save writes after set_crc32_options(False): 0 isn't compared; a wrong one is."""
    same(read_state(spoil_sums(write_zip(tmp_path / "a.pth", STATE), 0)).arrays, STATE)
    with refusal(ConversionError, "a.pth", "CRC-32"):
        read_state(spoil_sums(tmp_path / "a.pth", 1))


class Color(enum.Enum):
    RED = 1


class Settings(dict):
    """A dict of a class of its own, as configs are."""


OBJECTS = {
    "namespace": argparse.Namespace(lr=0.1, path=Path("x")),
    "path": Path("/data"),
    "enum": Color.RED,
    "time": datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc),
    "scalars": [np.float64(2), np.int32(3), np.bool_(True), np.datetime64("2020-01-01")],
    "settings": Settings(a=Settings(b=[1])),
    "objects": np.array([None, {}], object),
    "table": np.zeros(2, [("a", "f4"), ("b", "i8")]),
    "random": np.random.RandomState(0),
    "set": {Color.RED, 2},
    Color.RED: frozenset([1]),
    ("a", (1, Path("k"))): collections.deque([1], 3),
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_objects_beside_the_weights(protocol, tmp_path):
    """They aren't made, and nothing is asked of them."""
    content = {"model": STATE, "args": OBJECTS["namespace"], "rest": OBJECTS, Color.RED: 3}
    state = read_state(write_pkl(tmp_path / "a.pkl", content, protocol))
    same(state.arrays, STATE)
    assert state.others[:2] == ["args", "rest"]


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_what_a_tensor_says_of_itself(write, tmp_path, refusal):
    """A bit that turns its values' signs isn't passed over; one that is off is."""
    whole = np.arange(4, dtype=np.float32)

    def with_metadata(metadata):
        def wrap(state):
            return {n: Raw(bytes(v)[:-2] + op(metadata) + b"tR") for n, v in state.items()}

        return write(tmp_path / "a.pth", {"w": whole}, wrap)

    for metadata in (None, {}, {"neg": False}):
        np.testing.assert_array_equal(read_state(with_metadata(metadata)).arrays["w"], whole)
    for metadata in ({"neg": True}, {"conj": True}, {"later": 3}, "text"):
        with refusal(ConversionError, "a.pth", "w: refused", "metadata"):
            read_state(with_metadata(metadata))


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"detector." + n: v for n, v in foreign.maskrcnn_benchmark().items()}},
        {"ema_state_dict": foreign.maskrcnn_benchmark(), "optimizer": {"state": {0: {"exp_avg": (3,)}}}},
        {"generator": {"conv.weight": (3,)}, "detector": {"weights": foreign.maskrcnn_benchmark()}},
        {
            "model": {
                f"{p}.{n}": s for p in ("ema.module", "student.net") for n, s in foreign.maskrcnn_benchmark().items()
            }
        },
    ],
    ids=["prefix", "copy alone", "two models", "copy beside"],
)
def test_the_model_is_found_by_its_names(content, tmp_path):
    """Whatever key or prefix it lies under."""

    def filled(value, mark=0.0):
        if isinstance(value, dict):
            return {k: filled(v, 2.0 if str(k).startswith("ema.") else 1.0) for k, v in value.items()}
        return np.full(value, mark, np.float32)

    state = read_state(write_pkl(tmp_path / "a.pkl", filled(content)), fits_a_layout)
    prefix = find_prefix(state.arrays)
    found = {n.removeprefix(prefix): v for n, v in state.arrays.items() if n.startswith(prefix)}
    assert recognise(found) == "maskrcnn_benchmark"
    assert found["rpn.head.conv.weight" if "student" not in prefix else "net.rpn.head.conv.weight"].flat[0] == 1


def test_two_models_under_prefixes(refusal):
    names = [f"{p}.{n}" for p in ("teacher", "student") for n in foreign.maskrcnn_benchmark()]
    with refusal(ConversionError, "2 models", "teacher., student.", "--prefix teacher."):
        find_prefix(names)
    # DETR's: the backbone of something else isn't taken for a model
    backbone = [f"backbone.0.body.{n}" for n in foreign.torchvision_backbone()]
    assert find_prefix([*backbone, "transformer.encoder.norm.weight", "class_embed.bias"]) == ""
    assert find_prefix([*backbone, "head.fc.weight"]) == "backbone.0.body."


RENAMED = {
    "a.safetensors": ("b.pth", "safetensors"),
    "new.pth": ("b.safetensors", "PyTorch"),
    "a.pkl": ("b.ckpt", "pickle"),
    "old.pth": ("b.bin", "PyTorch, before 1.6"),
    "a.ckpt": ("b.pth", "MindSpore"),
}


@pytest.mark.parametrize("name", RENAMED)
def test_files_of_another_suffix(name, tmp_path):
    renamed_to, kind = RENAMED[name]
    (tmp_path / "there").mkdir()
    source = next(f for f in files(tmp_path / "there") if f.name == name)
    state = read_state(source.rename(tmp_path / renamed_to))
    assert state.kind == kind
    np.testing.assert_array_equal(state.arrays["conv.weight"], STATE["conv.weight"])


def tar_bytes() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        t.addfile(tarfile.TarInfo("a.pth"))
    return out.getvalue()


NOT_CHECKPOINTS = {
    "web page": b"\n<!DOCTYPE html><html>",
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
    "tar archive": tar_bytes(),
    "gzip": b"\x1f\x8b\x08" + bytes(20),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(20),
    "NumPy": b"\x93NUMPY\1\0v\0{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
    "weight_map": b'{"a": 1}',
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".ckpt"])
@pytest.mark.parametrize("what", NOT_CHECKPOINTS)
def test_what_is_taken_for_a_checkpoint(what, suffix, tmp_path, refusal):
    (tmp_path / f"a{suffix}").write_bytes(NOT_CHECKPOINTS[what])
    with refusal(ConversionError, tmp_path / f"a{suffix}", what):
        read_state(tmp_path / f"a{suffix}")


def test_shards(tmp_path, refusal):
    """The index's names, in files that lie beside it and nowhere else."""
    names, index = list(STATE), tmp_path / "model.safetensors.index.json"
    plain = {n: np.ascontiguousarray(v) for n, v in STATE.items()}
    save_checkpoint({n: plain[n] for n in names[:3]}, tmp_path / "1.safetensors")
    write_zip(tmp_path / "2.bin", {n: plain[n] for n in names[3:]})
    places = {n: "1.safetensors" if i < 3 else "2.bin" for i, n in enumerate(names)}

    def write(places):
        index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
        return index

    arrays = read_state(write(places)).arrays
    for n, v in STATE.items():
        np.testing.assert_array_equal(arrays[n].reshape(v.shape), v)
    (tmp_path / "sub").mkdir()
    (tmp_path / "1.safetensors").rename(tmp_path / "sub/1.safetensors")
    for place in (
        "../1.safetensors",
        "sub/1.safetensors",
        str(tmp_path / "sub/1.safetensors"),
        "..",
        "a\\b",
        "a\0",
        "x" * 999,
    ):
        with refusal(ConversionError, index, "file beside it"):
            read_state(write(dict.fromkeys(places, place)))
    with refusal(ConversionError, index, "1.safetensors isn't there"):
        read_state(write(places))
    (tmp_path / "sub/1.safetensors").rename(tmp_path / "1.safetensors")
    with refusal(ConversionError, "2.bin", "missing is missing"):
        read_state(write(places | {"missing": "2.bin"}))
    with refusal(ConversionError, "2.bin", f"{names[-1]} is more"):
        read_state(write({n: p for n, p in places.items() if n != names[-1]}))
    with refusal(ConversionError, index, "itself"):
        read_state(write(dict.fromkeys(places, index.name)))


# What is refused

MARK = "ran.txt"
COMMAND = f"echo ran > {MARK}"


class Runs:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Plain:
    """Needs nothing but to be made."""


def dumps(value, protocol):
    # Python 2's names of modules would only hide what is asked for
    return pickle.dumps(value, protocol, fix_imports=False)


MALICIOUS = {
    "os.system": (lambda p: dumps(Runs(os.system, COMMAND), p), f"{os.system.__module__}.system"),
    "eval": (lambda p: dumps(Runs(eval, f"open('{MARK}', 'w')"), p), ".eval"),
    "exec, nested": (lambda p: dumps({"model": {"a": [Runs(exec, "1")]}}, p), ".exec"),
    "subprocess": (lambda p: dumps(Runs(subprocess.call, ["touch", MARK]), p), "subprocess.call"),
    "nothing but an object": (
        lambda p: dumps(Plain(), p),
        "tests.checkpoints.convert.test_files.Plain; objects aren't made",
    ),
    "a program's object": (lambda p: dumps({"model": STATE, "net": pty.spawn}, p), "pty.spawn"),
    "objects in an array": (lambda p: dumps({"model": {"a": np.array([{}, None])}}, p), "object"),
    "getattr": (lambda p: dumps(Runs(getattr, "x", "join"), p), ".getattr"),
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("what", MALICIOUS)
def test_malicious_pickles(what, protocol, tmp_path, monkeypatch, refusal):
    monkeypatch.chdir(tmp_path)
    make, named = MALICIOUS[what]
    (tmp_path / "a.pth").write_bytes(make(protocol))
    with refusal(ConversionError, tmp_path / "a.pth", named):
        read_state(tmp_path / "a.pth")
    assert os.listdir(tmp_path) == ["a.pth"]


OPCODES = {
    "INST": (b"(S'echo'\nios\nsystem\n.", "os.system"),
    "OBJ": (b"(cos\nsystem\nS'echo'\no.", "os.system"),
    "NEWOBJ": (b"\x80\x02cos\nsystem\n)\x81.", "os.system"),
    "STACK_GLOBAL": (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04echo\x85R.", "os.system"),
    "an extension": (b"\x80\x02\x82\x01.", "EXT1"),
    "attributes of a class": (b"\x80\x02ctorch\nSize\n}U\x01aK\x01sb.", "torch.Size"),
    "a call of a text": (b"\x80\x02U\x06system)R.", "system"),
    "a text as persistent id": (b"Pother\n.", "persistent id other"),
    "attributes within": (b"\x80\x02ccollections\nOrderedDict.fromkeys\n.", "OrderedDict.fromkeys"),
    "numpy's loader": (b"\x80\x02cnumpy\nload\nU\x01a\x85R.", "numpy.load"),
    "torch's loader": (b"\x80\x02ctorch\nload\nU\x01a\x85R.", "torch.load"),
    "an encoding": (b"\x80\x02c_codecs\nencode\nU\x01aU\x05rot13\x86R.", "rot13"),
}


@pytest.mark.parametrize("what", OPCODES)
def test_other_opcodes(what, tmp_path, refusal):
    data, named = OPCODES[what]
    (tmp_path / "a.pkl").write_bytes(data)
    with refusal(ConversionError, tmp_path / "a.pkl", named):
        read_state(tmp_path / "a.pkl")


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_malicious_among_tensors(write, tmp_path, monkeypatch, refusal):
    """In a file that is whole otherwise, where the state dict could have been read."""
    monkeypatch.chdir(tmp_path)
    bad = call(name("os", "system"), COMMAND)
    file = write(tmp_path / "a.pth", STATE, lambda state: {"state_dict": state, "meta": {"hook": [bad]}})
    with refusal(ConversionError, file, "os.system"):
        read_state(file)
    module = Raw(b"(" + op("module") + name("subprocess", "Popen") + b"t" + b"Q")
    file = write(tmp_path / "a.pth", STATE, lambda state: {"state_dict": state, "hub": module})
    with refusal(ConversionError, file, "subprocess.Popen"):
        read_state(file)
    other = Raw(op(("module", "x", "y", "cpu", 1)) + b"Q")
    file = write(tmp_path / "a.pth", STATE, lambda state: {"state_dict": state, "hub": other})
    with refusal(ConversionError, file, "persistent id", "module"):
        read_state(file)
    assert os.listdir(tmp_path) == ["a.pth"]


def test_names_that_would_break_the_line(tmp_path, refusal):
    with refusal(ConversionError, "a.pkl", "plain text"):
        read_state(write_pkl(tmp_path / "a.pkl", {"conv\nweight": np.zeros(2), "b\x1b[2J": np.zeros(2)}))
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04\x8c\x02os\x8c\x07sys\ntem\x93.")
    with refusal(ConversionError, "a.pkl", "os.sys?tem"):
        read_state(tmp_path / "a.pkl")


# Sizes that would fill the memory


def test_absurd_sizes(tmp_path, refusal):
    whole = np.zeros(4, np.float32)
    for wanted in ((2**40, 2**40), (2**31, 4), (5,), (-1,)):
        strides = (0,) * len(wanted)
        if wanted == (5,):
            strides = (1,)
        file = write_zip(
            tmp_path / "a.pth", {"x": whole}, lambda s, w=wanted, t=strides: {"w": tensor("0", whole, w, t)}
        )
        with refusal(ConversionError, file, "w: damaged"):
            read_state(file)


def test_storage_of_another_size(tmp_path, refusal):
    whole = np.zeros(4, np.float32)
    for write in (write_zip, write_legacy):
        file = write(tmp_path / "a.pth", {"x": whole}, lambda s: {"w": tensor("0", whole, numel=10**15)})
        with refusal(ConversionError, file):
            read_state(file)


def test_zip_bomb(tmp_path, refusal):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("archive/data.pkl", dump({"w": tensor("0", np.zeros(2**24, np.float32))}))
        z.writestr("archive/data/0", bytes(2**26))
    with refusal(ConversionError, tmp_path / "a.pth", "archive/data/0", "67108864 bytes"):
        read_state(tmp_path / "a.pth")


def test_pickle_bombs(tmp_path, refusal):
    """Small files that are large on paper: lengths, memo places, tuples of tuples as a key."""
    for data in (
        b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x.",
        b"\x80\x02Nr\xff\xff\xff\xff\x8b\xff\xff\xff\x7fx.",
        b"\x80\x02}" + op(()) + b"2\x86" * 60 + b"Ns.",
    ):
        (tmp_path / "a.pkl").write_bytes(data)
        with refusal(ConversionError, tmp_path / "a.pkl"):
            read_state(tmp_path / "a.pkl")


def nested(kind: bytes, depth: int = 60) -> bytes:
    """Opcodes of a list or tuple of ten of a list of ten ..., which is 10**depth texts on paper."""
    out = b"X\1\0\0\0aq\x000"
    for i in range(depth):
        out += b"(" + bytes([0x68, i]) * 10 + kind + b"q" + bytes([i + 1]) + b"0"
    return out + bytes([0x68, depth])


def many(value: bytes, times: bytes, count: int = 10_000) -> bytes:
    """A pickle that makes `value` once and then `times`, which takes it from place 0, often."""
    return b"\x80\x02" + value + b"q\x000(" + times * count + b"l."


LEGACY = dump(0x1950A86A20F9469CFC6C)
LONG = b"\x8b" + struct.pack("<i", 20_000) + b"\1" * 20_000  # a number of 48,000 digits
ITEMS = b"(" + b"".join(b"J" + struct.pack("<i", i) for i in range(20_000))
DEEP = 20_000
LARGE = {
    **{
        f"text of a {k}.pkl": b"\x80\x02ctorch\ndevice\n" + nested(c) + b"\x85R."
        for k, c in (("list", b"l"), ("tuple", b"t"))
    },
    "nested version.pth": LEGACY + b"\x80\x02" + nested(b"t") + b"." + dump({}),
    "nested name.pkl": b"\x80\x02}" + nested(b"t") + b"Ns.",
    "nested id.pkl": b"\x80\x02" + nested(b"t") + b"Q.",
    "nested encoding.pkl": b"\x80\x02c_codecs\nencode\nX\1\0\0\0a" + nested(b"t") + b"\x86R.",
    "lists copied.pkl": many(ITEMS + b"l", b"c__builtin__\nlist\nh\0\x85R"),
    "sets copied.pkl": many(ITEMS + b"l", b"c__builtin__\nset\nh\0\x85R"),
    "texts encoded.pkl": many(
        b"X" + struct.pack("<I", 10**5) + b"a" * 10**5, b"c_codecs\nencode\nh\0X\6\0\0\0latin1\x86R"
    ),
    "long keys.pkl": b"\x80\x02" + ITEMS + b"tq\x000}" + b"h\0Ns" * 10_000 + b".",
    "large keys.pkl": b"\x80\x02" + LONG + b"q\x000}" + b"h\0Ns" * 10_000 + b".",
    "large version.pth": LEGACY + b"\x80\x02" + LONG + b"." + dump({}),
    "5000 digits.pkl": b"I" + b"1" * 5000 + b"\n.",
    "deep tuple.pkl": b"\x80\x02ctorch\ndevice\n)" + b"\x85" * DEEP + b"R.",
    "deep list.pkl": b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "deep calls.pkl": b"\x80\x02ccollections\nOrderedDict\nq\0" + b"h\0" * DEEP + b")R" + b"\x85R" * (DEEP - 1) + b".",
    "steps.pkl": b"\x80\x02(" + b"N" * 4_000_000 + b"l.",
    "sets.pkl": b"\x80\x04(" + b"\x8f" * 2_000_000 + b"l.",
    "wrong arguments.pkl": b"\x80\x02c_codecs\nencode\nK\5\x85R.",
    "header.safetensors": struct.pack("<Q", 1 << 40) + b"{}",
    "deep.safetensors": struct.pack("<Q", 6 * DEEP + 1) + b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "large type.pkl": b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x0b\0\0\0S2000000000\x85R)\x86R.",
    "lengths.ckpt": b"\x0a" + b"\xff" * 8 + b"\x7f" + b"\x0a" * 20,
    "empty records.ckpt": b"\x0a\0" * 10**6,
    "deep.safetensors.index.json": b'{"weight_map":' + b"[" * DEEP + b"]" * DEEP + b"}",
}


def bounded(file: Path) -> str:
    """The line in which `file` is refused, without much time or memory."""
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as error:
        read_state(file)
    assert time.process_time() - begin < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # KiB
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("what", LARGE)
def test_small_files_that_ask_for_much(what, tmp_path):
    (tmp_path / what).write_bytes(LARGE[what])
    bounded(tmp_path / what)


def test_much_in_sum(tmp_path):
    """What is harmless once, many times: tensors that share a storage, entries that are compressed."""
    half = np.zeros(2**18, np.float16)
    pid = Raw(op(("storage", name("torch", "BFloat16Storage"), "0", "cpu", half.size)) + b"Q")
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    shared = {f"w{i}": call(rebuild, pid, 0, (half.size,), (1,), False, None) for i in range(1000)}
    assert "times the bytes" in bounded(write_zip(tmp_path / "a.pth", {"x": half}, lambda state: shared))
    one = np.zeros(4, np.float32)
    expanded = {f"w{i}": tensor("0", one, (2**20,), (0,)) for i in range(1000)}
    assert "times the bytes" in bounded(write_zip(tmp_path / "a.pth", {"x": one}, lambda state: expanded))
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr(
            "archive/data.pkl", dump({f"w{i}": tensor(str(i), np.zeros(15_000, np.float32)) for i in range(3000)})
        )
        for i in range(3000):
            z.writestr(f"archive/data/{i}", bytes(60_000))
    assert "unpack to" in bounded(tmp_path / "a.pth")
    for kind in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(tmp_path / "a.pth", "w", kind) as z:
            z.writestr("archive/data.pkl", dump({"w": 1}))
        assert "compressed in a way" in bounded(tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("x.npy", bytes(2**26))
    bounded(tmp_path / "a.npz")


# Damaged files


def files(folder: Path) -> list[Path]:
    save_checkpoint({n: np.ascontiguousarray(v) for n, v in STATE.items() if v.size}, folder / "a.ckpt")
    save_checkpoint({n: np.ascontiguousarray(v) for n, v in STATE.items()}, folder / "a.safetensors")
    return [
        write_zip(folder / "new.pth", STATE),
        write_legacy(folder / "old.pth", STATE),
        write_pkl(folder / "a.pkl", {"model": STATE}),
        folder / "a.safetensors",
        folder / "a.ckpt",
    ]


def one_line(file):
    """Reads `file`, or checks that the refusal is one line that names it."""
    try:
        return read_state(file)
    except UserError as e:
        assert str(file) in str(e) and "\n" not in str(e)
        return None


def test_truncated_anywhere(tmp_path):
    for file in files(tmp_path):
        data = file.read_bytes()
        for size in [*range(0, len(data), max(1, len(data) // 60)), len(data) - 1]:
            file.write_bytes(data[:size])
            read = one_line(file)
            # a .ckpt that ends with a record can't be told from a smaller one, but by the parameters it lacks
            assert read is None or file.suffix == ".ckpt", (file, size)
        file.write_bytes(data)
        assert one_line(file) is not None


def test_flipped_anywhere(tmp_path):
    """Whatever is read then, nothing but a refusal of one line is raised."""
    for file in files(tmp_path):
        data = file.read_bytes()
        for _ in range(150):
            place, mask = R.integers(len(data)), R.integers(1, 256)
            spoilt = bytearray(data)
            spoilt[place] ^= mask
            file.write_bytes(bytes(spoilt))
            one_line(file)


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".ckpt", ".safetensors", ".txt"])
@pytest.mark.parametrize("content", [b"", b"just some text\n", b"\x80\x02N.", b"PK\x03\x04 no zip", bytes(100)])
def test_something_else(content, suffix, tmp_path, refusal):
    (tmp_path / f"a{suffix}").write_bytes(content)
    with refusal(UserError, tmp_path / f"a{suffix}"):
        read_state(tmp_path / f"a{suffix}")


def test_no_file(tmp_path, refusal):
    with refusal(ConversionError, tmp_path / "none.pth", "No such file"):
        read_state(tmp_path / "none.pth")
    with refusal(ConversionError, tmp_path, "folder"):
        read_state(tmp_path)
    os.mkfifo(tmp_path / "pipe.pth")
    with refusal(ConversionError, tmp_path / "pipe.pth", "pipe"):
        read_state(tmp_path / "pipe.pth")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    state = STATE | {"MobilenetV1/x": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "empty": np.zeros((0, 3), "f4")}
    save(tmp_path / "a.npz", **state)
    found = read_state(tmp_path / "a.npz")
    assert found.kind == "NumPy .npz" and list(found.arrays) == list(state)
    for key, value in state.items():
        np.testing.assert_array_equal(found.arrays[key], value, strict=True)


def npy(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


@pytest.mark.parametrize(
    "content, what",
    [
        (b"no array", "damaged"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}\n", bytes(8)), "8 bytes there"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}\n"), "0 bytes there"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}\n", bytes(4)), "damaged"),
        (npy("__import__('os').abort()\n"), "header"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n", bytes(8)), "nothing is unpickled"),
    ],
    ids=["no array", "too few bytes", "huge", "negative", "code", "objects"],
)
def test_damaged_npz(tmp_path, refusal, content, what):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as z:
        z.writestr("x.npy", content)
    with refusal(ConversionError, tmp_path / "a.npz", what):
        read_state(tmp_path / "a.npz")


def test_other_zip_files(tmp_path, refusal):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        z.writestr("weights.txt", "1")
    with refusal(ConversionError, tmp_path / "a.zip", "data.pkl", "weights.txt"):
        read_state(tmp_path / "a.zip")


def test_no_state_dict(tmp_path, refusal):
    with refusal(ConversionError, "a.pkl", "epoch"):
        read_state(write_pkl(tmp_path / "a.pkl", {"epoch": 3, "args": {"lr": 0.1}}))
    with refusal(ConversionError, "a.pkl", "list"):
        read_state(write_pkl(tmp_path / "a.pkl", [1, 2]))


# The command


@pytest.fixture
def mobile_config(tmp_path):
    """A config file of a detector on a narrow MobileNetV1."""
    file = tmp_path / "small.yaml"
    file.write_text(
        f"base: {ROOT / 'configs/shapes.yaml'}\nbackbone: {{width_multiplier: 0.25}}\n"
        "neck: {fpn: {in_channels: [32, 64, 128, 256]}}\n"
    )
    return file


def convert(source, target, layout="auto", config=None, **overrides):
    run(source, target, layout, config and str(config), None, overrides)


def test_own_checkpoints_both_ways(mobile_config, tmp_path, capsys):
    detector = build_detector(load_config(mobile_config))
    save_checkpoint(detector, tmp_path / "a.ckpt")
    before = load_checkpoint(tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "new/b.safetensors", config=mobile_config)
    assert "recognised as native: mask_rcnn" in capsys.readouterr().out
    assert safetensors.numpy.load_file(tmp_path / "new/b.safetensors").keys() == before.keys()
    convert(tmp_path / "new/b.safetensors", tmp_path / "c.ckpt", config=mobile_config)
    after = load_checkpoint(tmp_path / "c.ckpt")
    for n, v in before.items():
        np.testing.assert_array_equal(after[n], v)
    for p in detector.get_parameters():
        p.set_data(p * 0)
    assert load_detector(detector, tmp_path / "new/b.safetensors") == []
    assert (detector.backbone.conv1.weight.asnumpy() == before["backbone.conv1.weight"]).all()


def test_backbone_for_training(mobile_config, tmp_path, capsys):
    """A classifier's file to one that backbone.pretrained takes, without a config."""
    state = foreign.values(foreign.mindcv_mobilenet(0.25))
    save_checkpoint(state, tmp_path / "source.ckpt")
    convert(tmp_path / "source.ckpt", tmp_path / "out.ckpt")
    told = capsys.readouterr().out
    assert "recognised as mindspore_zoo: the backbone alone, backbone.type mobilenet_v1" in told
    assert "unused: 2 arrays: classifier.weight, classifier.bias" in told
    assert "not filled: 0" in told
    detector = build_detector(load_config(mobile_config))
    load_backbone(detector, tmp_path / "out.ckpt")
    np.testing.assert_array_equal(detector.backbone.layer3[1].depthwise.weight.asnumpy(), state["features.9.0.weight"])


@pytest.mark.parametrize(
    "backbone", [{}, {"type": "resnet", "depth": 50, "width_multiplier": 1}], ids=["mobilenet", "resnet"]
)
def test_our_own_backbone_by_itself(backbone, mobile_config, tmp_path, capsys):
    """As save_checkpoint(detector.backbone, ...) names it."""
    overrides = {f"backbone.{k}": v for k, v in backbone.items()}
    overrides |= {"neck.fpn.in_channels": [256, 512, 1024, 2048]} if backbone else {}
    config = load_config(mobile_config, overrides)
    source = build_backbone(config)
    state = {p.name.removeprefix("backbone."): p.asnumpy() for p in source.get_parameters()}
    assert "conv1.weight" in state
    save_checkpoint(state, tmp_path / "source.ckpt")
    convert(tmp_path / "source.ckpt", tmp_path / "out.ckpt")
    assert "recognised as native: the backbone alone" in capsys.readouterr().out
    detector = build_detector(config)
    load_backbone(detector, tmp_path / "out.ckpt")
    np.testing.assert_array_equal(detector.backbone.conv1.weight.asnumpy(), state["conv1.weight"])


def test_nothing_is_written_unless_all_fits(mobile_config, tmp_path, capsys, refusal):
    detector = build_detector(load_config(mobile_config))
    params = {p.name: p.asnumpy() for p in detector.get_parameters()}
    target = tmp_path / "out.ckpt"
    target.write_text("mine")
    spoilt = {
        "missing": ({n: v for n, v in params.items() if n != "rpn.cls.bias"}, "not filled: rpn.cls.bias"),
        "shape": (params | {"rpn.cls.bias": np.zeros(7, np.float32)}, "rpn.cls.bias (7,) for (3,)"),
        "nan": (params | {"rpn.cls.bias": np.full(3, np.nan, np.float32)}, "NaN or infinite: rpn.cls.bias"),
    }
    for values, message in spoilt.values():
        save_checkpoint(values, tmp_path / "source.ckpt")
        with refusal(ConversionError, tmp_path / "source.ckpt", message, "nothing is written"):
            convert(tmp_path / "source.ckpt", target, config=mobile_config)
        assert target.read_text() == "mine"
    told = capsys.readouterr().out
    assert "not filled: 1 parameters: rpn.cls.bias" in told
    save_checkpoint(params, tmp_path / "source.ckpt")
    convert(tmp_path / "source.ckpt", target, config=mobile_config)
    assert load_checkpoint(target).keys() == params.keys()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.ckpt", "small.yaml", "source.ckpt"]


def test_other_classes_name_the_number(mobile_config, tmp_path, refusal):
    own = {"num_classes": 4, "coco_classes": ["background", "a", "b", "c"]}
    save_checkpoint(build_detector(load_config(mobile_config, own)), tmp_path / "mine.ckpt")
    remedy = "--num_classes 4", "--config_path", "nothing is written"
    with refusal(ConversionError, tmp_path / "mine.ckpt", "4 classes with the background, not 6", *remedy):
        convert(tmp_path / "mine.ckpt", tmp_path / "out.ckpt", config=mobile_config)
    convert(tmp_path / "mine.ckpt", tmp_path / "out.ckpt", config=mobile_config, num_classes="4")
    assert load_checkpoint(tmp_path / "out.ckpt")["bbox_head.cls.weight"].shape[0] == 4
    with refusal(ConfigError, "num_classes"):
        convert(tmp_path / "mine.ckpt", tmp_path / "out.ckpt", config=mobile_config, num_classes="four")


def test_refused_targets(tmp_path, refusal):
    source = write_zip(tmp_path / "a.ckpt", STATE)
    for target in (tmp_path / "a.pth", tmp_path / "a", tmp_path):
        with refusal(ConversionError, target, ".safetensors"):
            convert(source, target)
    with refusal(ConversionError, source, "--out"):
        convert(source, source)


def test_unknown_model(tmp_path, refusal):
    source = write_zip(tmp_path / "a.pth", STATE)
    with refusal(ConversionError, source, "torchvision, detectron2", "conv.weight"):
        convert(source, tmp_path / "b.ckpt")
    with refusal(ConversionError, source, "none of its 6 arrays", "conv.weight"):
        convert(source, tmp_path / "b.ckpt", layout="mmdetection")
    assert os.listdir(tmp_path) == ["a.pth"]


def test_source_epsilon(tmp_path, refusal):
    """A detector fine-tuned from torchvision's published one keeps its batch norms without epsilon."""
    state = foreign.values(foreign.mindcv_mobilenet(0.25))
    save_checkpoint(state, tmp_path / "source.ckpt")
    run(tmp_path / "source.ckpt", tmp_path / "out.ckpt", "auto", None, 0.0, {})
    done, there = (
        load_checkpoint(tmp_path / "out.ckpt"),
        {n: state[f"features.1.{n}"] for n in ("gamma", "moving_variance")},
    )
    variance, gamma = (done[f"backbone.bn1.{n}"].astype(np.float64) for n in ("moving_variance", "gamma"))
    np.testing.assert_allclose(
        gamma / np.sqrt(variance + 1e-5), there["gamma"] / np.sqrt(there["moving_variance"]), rtol=1e-6
    )
    with refusal(ConversionError, "--norm_eps"):
        run(tmp_path / "source.ckpt", tmp_path / "out.ckpt", "auto", None, -1.0, {})


def test_no_config_for_it(refusal):
    """A detector that no config describes: which there are, is said."""
    shapes = foreign.torchvision_of_2019() | foreign.torchvision_backbone("backbone.body.", depth=101)
    named = renamed({n: np.broadcast_to(np.float32(0), s) for n, s in shapes.items()}, "torchvision")
    with refusal(
        ConversionError, "torchvision_mask_rcnn_r101_fpn.yaml", "--config_path", "torchvision_mask_rcnn_r50_fpn"
    ):
        choose_config("torchvision", named, None, {})


def test_variances_below_the_difference_of_the_epsilons(tmp_path, refusal):
    """As a few channels of torchvision's published ResNets have them: what was the scale is the scale."""
    state = foreign.values(foreign.mindcv_mobilenet(0.25))
    variance = np.float32([1e-14, 1e-13, 3e-13, 1e-12, 1e-8, 1e-5, 1, 1e4])
    state["features.1.moving_variance"], state["features.1.gamma"] = variance, np.full(8, 1.1246e-8, np.float32)
    save_checkpoint(state, tmp_path / "source.ckpt")
    run(tmp_path / "source.ckpt", tmp_path / "out.ckpt", "auto", None, 0.0, {})
    done = load_checkpoint(tmp_path / "out.ckpt")
    # in float32, as the network computes it
    here = done["backbone.bn1.gamma"] / np.sqrt(done["backbone.bn1.moving_variance"] + np.float32(1e-5))
    np.testing.assert_allclose(here, 1.1246e-8 / np.sqrt(variance.astype(np.float64)), rtol=1e-6)
    state["features.1.moving_variance"] = np.zeros(8, np.float32)
    save_checkpoint(state, tmp_path / "source.ckpt")
    with refusal(ConversionError, "features.1.moving_variance", "divides by nothing", "--norm_eps"):
        run(tmp_path / "source.ckpt", tmp_path / "no.ckpt", "auto", None, 0.0, {})
    assert not (tmp_path / "no.ckpt").exists()


def test_layers_that_the_config_lacks(mobile_config, tmp_path, capsys, refusal):
    """Refused with their names, unless the user leaves them out; what takes no part in a detection isn't in the way."""
    params = {p.name: p.asnumpy() for p in build_detector(load_config(mobile_config)).get_parameters()}
    idle = {"ema.backbone.conv1.weight": np.zeros(3, np.float32), "learning_rate": np.zeros(1, np.float32)}
    target = tmp_path / "out.ckpt"
    more = {"backbone.layer2.0.conv2.conv_offset.weight": np.zeros((18, 4, 3, 3), np.float32)}
    more |= {"neck.fpn_convs.4.weight": np.zeros(3, np.float32), "neck.strange.w": np.zeros(3, np.float32)}
    save_checkpoint(params | idle | more, tmp_path / "source.ckpt")
    with refusal(
        ConversionError,
        tmp_path / "source.ckpt",
        *more,
        "deformable convolution",
        "nothing is written",
        "--allow_unused",
    ):
        convert(tmp_path / "source.ckpt", target, config=mobile_config)
    assert not target.exists()
    run(tmp_path / "source.ckpt", target, "auto", str(mobile_config), None, {}, allow_unused=True)
    assert load_checkpoint(target).keys() == params.keys()
    assert "3 arrays of its model have no place here (deformable convolution" in capsys.readouterr().out
    save_checkpoint(params | idle, tmp_path / "source.ckpt")
    convert(tmp_path / "source.ckpt", target, config=mobile_config)


CAFFE = """
model = dict(type='MaskRCNN', backbone=dict(type='ResNet', depth=50, style='caffe', norm_cfg=dict(type='BN')))
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
"""


def test_what_a_file_says_of_itself(tmp_path, capsys, refusal):
    """It is told where the config has it otherwise, and a config that has it so lies beside the result."""
    small = tmp_path / "small.yaml"
    small.write_text(f"base: {ROOT / 'configs/mmdet_mask_rcnn_r50_fpn.yaml'}\n" + yaml.safe_dump(NARROW))
    names = tuple(f"thing {i}" for i in range(80))
    meta = {"config": CAFFE, "CLASSES": names, "epoch": 12}
    content = {"meta": meta, "state_dict": foreign.values(foreign.mmdetection())}
    source = write_pkl(tmp_path / "a.pkl", content)
    run(source, tmp_path / "out.ckpt", "auto", str(small), None, {})
    told = capsys.readouterr().out
    for text in ("to_rgb: false", "backbone.stride_in_1x1: true", "img_std: [1.0, 1.0, 1.0]", "background, thing 0"):
        assert text in told
    own = load_config(tmp_path / "out.config.yaml")
    assert (own.to_rgb, own.img_mean, own.img_std) == (False, [103.53, 116.28, 123.675], [1.0] * 3)
    assert own.backbone.stride_in_1x1
    assert own.coco_classes == ["background", *names]
    assert own.rpn.feat_channels == 8
    # with that config there is nothing to tell, but for what the command line says, which counts
    run(source, tmp_path / "b.ckpt", "auto", str(tmp_path / "out.config.yaml"), None, {"to_rgb": "true"})
    told = [line for line in capsys.readouterr().out.splitlines() if "says of itself" in line]
    assert told == ["note: the file says of itself to_rgb: false; otherwise than the command line, which counts"]
    assert not (tmp_path / "b.config.yaml").exists()
    # of a kind that isn't here it isn't converted, whatever the names; and a negative variance is none
    content["meta"]["config"] = CAFFE.replace("depth=50", "depth=50, conv_cfg=dict(type='ConvWS')")
    write_pkl(source, content)
    with refusal(ConversionError, source, "backbone.conv_cfg.type ConvWS", "--allow_unused"):
        run(source, tmp_path / "c.ckpt", "auto", str(small), None, {})
    assert not (tmp_path / "c.ckpt").exists()
    run(source, tmp_path / "c.ckpt", "auto", str(small), None, {}, allow_unused=True)
    content["state_dict"]["backbone.bn1.running_var"] *= -1
    with refusal(ConversionError, "backbone.bn1.running_var", "variance"):
        run(write_pkl(source, content), tmp_path / "d.ckpt", "auto", str(small), None, {}, allow_unused=True)


def test_other_blocks(tmp_path, refusal):
    shapes = foreign.torchvision_backbone("backbone.", depth=101) | {"rpn_head.rpn_conv.weight": (8, 8, 3, 3)}
    shapes |= {"neck.lateral_convs.0.conv.weight": (8, 256, 1, 1), "roi_head.mask_head.0.upsample.bias": (8,)}
    shapes |= {"roi_head.bbox_head.0.fc_cls.bias": (81,)}
    shapes = {n: s for n, s in shapes.items() if ".layer3.22" not in n}
    source = write_pkl(tmp_path / "a.pkl", {n: np.zeros(s, np.float32) for n, s in shapes.items()})
    with refusal(ConversionError, source, "(3, 4, 22, 3) blocks"):
        convert(source, tmp_path / "b.ckpt")


def test_command_line(tmp_path):
    """One line, status 2, and nothing else."""
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Runs(os.system, "echo ran"), 2))
    command = [sys.executable, "-m", "src.convert_checkpoint", "--ckpt_file", tmp_path / "a.pth"]
    done = subprocess.run(
        [*command, "--out", tmp_path / "b.ckpt"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and ".system" in done.stderr
    assert os.listdir(tmp_path) == ["a.pth"]


def test_damaged_safetensors(tmp_path, refusal):
    (tmp_path / "a.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with refusal(CheckpointError, tmp_path / "a.safetensors", "safetensors"):
        load_checkpoint(tmp_path / "a.safetensors")


def test_backbones_have_the_published_sizes():
    """Parameters of ResNet-50 without its classifier (torchvision: 25,557,032 with 2,049,000 of it)."""
    backbone = build_backbone(load_config(ROOT / "configs/torchvision_faster_rcnn_r50_fpn.yaml"))
    weights = sum(p.size for p in backbone.get_parameters() if "moving" not in p.name)
    assert weights == 25_557_032 - 2_049_000
