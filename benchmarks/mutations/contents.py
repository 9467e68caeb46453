"""Checkpoints whose content is changed before it is written, so that their bytes are those of a whole file."""

import contextlib
import io
import json
import pickle
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
from mindspore.train.checkpoint_pb2 import Checkpoint

from benchmarks.mutations import checkpoints, sidecar
from benchmarks.mutations.sets import pick
from src.checkpoints.files import SUM_MARK, SUM_SIZE
from tests.checkpoints.convert.foreign import Raw, call, name, op

__all__ = ["rewritten"]

Random = np.random.Generator
NAMES = ("", "conv.weight", "a\nb", "\0", "x" * 5000, "../a", "é", "state_dict", "meta", "bn")
SHAPES = ((), (0,), (1 << 40,), (3, 1 << 62), (2, 2), (-1, 4), (1,) * 40, (16, 3))
OBJECTS = (
    name("os", "system"),
    call(name("os", "system"), "true"),
    call(name("builtins", "eval"), "1"),
    call(name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), (0,), b"b".decode()),
    call(name("torch._utils", "_rebuild_tensor_v2"), 1, 2, 3),
    call(name("collections", "OrderedDict"), [1, 2]),
    Raw(b"]q\x01" + b"(h\x01" * 200 + b"e" * 200),
)


def values(random: Random) -> object:
    """What lies in a state dict, or doesn't belong there."""
    array = np.zeros(6, pick(random, ("f4", ">f4", "f2", "i8", "u1", "?", "c16", "U3", "M8[s]", "i4,f4")))
    odd = (None, 1, -(1 << 62), float("nan"), "text", [], {}, (), [[1.0, 2.0]], {"a": {"b": [1]}}, 1 << 900, b"\0")
    arrays = (array, array.reshape(2, 3).T, array[::-2], array[:0], np.array([None, {}], object), array[0])
    return pick(random, (*odd, *arrays, array, array, np.float32(1)))


def changed_state(random: Random) -> dict:
    """The state of every seed with one to four arrays of others, or under other names."""
    out: dict = dict(checkpoints.state())
    for _ in range(int(random.integers(1, 5))):
        key = pick(random, out) if out else "a"
        kind = int(random.integers(4))
        if kind == 0:
            out[pick(random, NAMES)] = out.pop(key, None)
        elif kind == 1:
            out.pop(key, None)
        else:
            out[key if kind == 2 else pick(random, (*NAMES, 3, None, ("a", 1)))] = values(random)
    return out


def wrapped(random: Random, content: object) -> object:
    for _ in range(int(random.integers(4))):
        content = pick(random, ({"state_dict": content}, {"model": content, "epoch": 3}, [content], {"a": content}))
    return content


def pickled(random: Random, data: bytes) -> bytes:
    return pickle.dumps(wrapped(random, changed_state(random)), int(random.integers(6)))


def zipped(random: Random, data: bytes) -> bytes:
    """A zip file of other entries, each with its checksum."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(i.filename, archive.read(i)) for i in archive.infolist()]
    for _ in range(int(random.integers(1, 4))):
        i = int(random.integers(len(entries)))
        file, content = entries[i]
        kind = int(random.integers(7))
        if kind == 0:
            entries[i] = (
                pick(random, (*NAMES, "archive/data/9", "data.pkl", "archive/data.pkl", "a/data.pkl")),
                content,
            )
        elif kind == 1:
            entries.append((file, content))
        elif kind == 2 and len(entries) > 1:
            del entries[i]
        elif kind == 3:
            entries[i] = (file, content + bytes(int(random.integers(1, 9))))
        else:
            entries[0] = (entries[0][0], spliced(random, entries[0][1]))
    out = io.BytesIO()
    method = pick(random, (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(out, "w", method) as archive:
        for file, content in entries:
            archive.writestr(zipfile.ZipInfo(file.replace("\0", "_")), content, method)
    return out.getvalue()


def spliced(random: Random, data: bytes) -> bytes:
    """A pickle with an object more, or with other bytes."""
    if random.random() < 0.5:
        return checkpoints.mutate(random, data)
    at = int(random.integers(2, min(len(data), 900)))
    return data[:at] + bytes(op(pick(random, OBJECTS))) + data[at:]


def saved_npz(random: Random, data: bytes) -> bytes:
    out = io.BytesIO()
    arrays = {str(i): np.asarray(values(random)) for i in range(int(random.integers(1, 5)))}
    np.savez(out, **{n: v for n, v in arrays.items() if v.dtype.kind != "O"})
    return out.getvalue()


def json_header(random: Random, data: bytes) -> bytes:
    """A safetensors file, or an index of shards, whose JSON says something else."""
    begins = 0 if data[:1] == b"{" else 8
    size = len(data) if not begins else int.from_bytes(data[:8], "little")
    content = json.loads(data[begins : begins + size])
    for _ in range(int(random.integers(1, 3))):
        with contextlib.suppress(LookupError, ValueError, TypeError, OverflowError):
            pick(random, sidecar.CONTENTS)(content, random)
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :] if begins else text


def protobuf(random: Random, data: bytes) -> bytes:
    """A .ckpt of other parameters, with its checksum or without one."""
    content = Checkpoint.FromString(data[: -SUM_SIZE - len(SUM_MARK)])
    for _ in range(int(random.integers(1, 4))):
        record = pick(random, content.value)
        kind = int(random.integers(6))
        if kind == 0:
            record.tag = pick(random, NAMES).replace("\ud800", "")
        elif kind == 1:
            del record.tensor.dims[:]
            shape = pick(random, SHAPES)
            record.tensor.dims.extend(int(np.int64(v)) for v in shape)
        elif kind == 2:
            record.tensor.tensor_type = pick(random, ("Float64", "BFloat16", "str", "", "Float128", "x" * 3000, "Bool"))
        elif kind == 3:
            record.tensor.tensor_content = record.tensor.tensor_content[: int(random.integers(8))] * 3
        elif kind == 4:
            content.value.add().CopyFrom(record)
        else:
            record.ClearField("tensor")
    # also where a field that must be there isn't
    out = content.SerializePartialToString()
    if random.random() < 0.7:
        out += SUM_MARK + zlib.crc32(out).to_bytes(SUM_SIZE, "big")
    return out


WRITERS: dict[str, Callable[[Random, bytes], bytes]] = {
    "zip": zipped,
    "legacy": spliced,
    "pickle": pickled,
    "npz": saved_npz,
    "safetensors": json_header,
    "shards": json_header,
    "ckpt": protobuf,
}


def rewritten(kind: str, random: Random, data: bytes) -> bytes:
    """The bytes of another file of that kind, made of `data`, a valid one's (of "shards": an index's, or a shard's)."""
    return WRITERS[kind](random, data)
