"""Checkpoint files of any project as NumPy arrays: PyTorch's .pth, pickles, MindSpore's .ckpt and safetensors.

PyTorch isn't needed, and no pickle is run (src/convert/pickles.py).
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from src.convert.pickles import (
    STORAGES,
    ConversionError,
    Global,
    LazyArray,
    LazyTensor,
    RefusedError,
    Storage,
    described,
    load_pickle,
    natural,
    reason,
    shown,
)
from src.training.checkpoints import load_checkpoint

__all__ = ["State", "read_state"]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.save before 1.6
NESTED = ("state_dict", "model", "model_state", "model_state_dict", "blobs", "net", "network", "weights", "params")
ZIP_FAULTS = (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, EOFError)
UNPACKED = 50  # times its compressed size that a zip entry may have; weights hardly compress


@dataclass
class State:
    """What a file holds: arrays by name, names of what lies beside them and isn't an array, and the file's kind."""

    arrays: dict[str, np.ndarray]
    kind: str
    others: list[str] = field(default_factory=list)


def read_state(path: str | Path) -> State:
    """The state dict of a checkpoint file, as it is named there. Raises ConversionError or CheckpointError."""
    path = Path(path)
    state = read_any(path)
    state.others = [shown(name) for name in state.others]
    strange = [name for name in state.arrays if shown(name) != name]
    if strange:
        raise ConversionError(f"{path}: refused: an array's name isn't plain text: {shown(strange[0])}")
    if not state.arrays:
        raise ConversionError(f"{path}: holds no arrays")
    return state


def read_any(path: Path) -> State:
    """By what the first bytes and the suffix say the file is."""
    try:
        with open(path, "rb") as f:
            head = f.read(16)
    except IsADirectoryError:
        raise ConversionError(f"{path}: a folder, not a checkpoint file") from None
    except OSError as e:
        raise ConversionError(f"{path}: can't read it: {e.strerror}") from None
    if not head:
        raise ConversionError(f"{path}: the file is empty")
    if head[:2] == b"PK":
        return read_zip(path)
    if path.suffix == ".safetensors":
        return State(load_checkpoint(path), "safetensors")
    if head[:1] == b"\x80" or path.suffix in (".pth", ".pt", ".pkl", ".pickle", ".bin", ".tar"):
        return read_pickled(path)
    if path.suffix != ".ckpt":
        raise ConversionError(
            f"{path}: not a checkpoint file that is known (PyTorch .pth, pickle .pkl, MindSpore .ckpt, .safetensors)"
        )
    return State(load_checkpoint(path), "MindSpore")


# ---------------------------------------------------------------------------------------------------------
# PyTorch


def storage_of(pid: Any) -> Storage:
    """The storage that a persistent id of torch.save names: ("storage", type, key, location, number of elements)."""
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], Global):
        first = pid[0] if isinstance(pid, tuple) and pid else pid
        raise RefusedError(f"a persistent id that isn't a storage: {described(first)}")
    name = pid[1].name.rpartition(".")[2]
    if name.lstrip("_") == "UntypedStorage":
        dtype = "u1"
    elif name in STORAGES:
        dtype = STORAGES[name]
    else:
        raise RefusedError(f"persistent id of a {pid[1].name}")
    if not natural((pid[4],)) or not isinstance(pid[2], str):
        raise ValueError("a storage whose key isn't text, or whose size isn't a number")
    return Storage(dtype, pid[2], pid[4])


def read_zip(path: Path) -> State:
    """What torch.save wrote since 1.6: a zip of data.pkl and one entry a storage."""
    try:
        with zipfile.ZipFile(path) as archive:
            return read_archive(archive, path)
    except ConversionError:
        raise
    except (*ZIP_FAULTS, ValueError, LookupError, struct.error, ArithmeticError, MemoryError) as e:
        raise ConversionError(f"{path}: damaged or truncated zip file: {reason(e)}") from None


def read_archive(archive: zipfile.ZipFile, path: Path) -> State:
    entries = {i.filename: i for i in archive.infolist()}
    check_sizes(archive, path)
    pickles = [n for n in entries if n == "data.pkl" or n.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ConversionError(f"{path}: a zip file without PyTorch's data.pkl; it holds {some(entries)}")
    root = pickles[0].removesuffix("data.pkl")
    order = archive.read(root + "byteorder") if root + "byteorder" in entries else b"little"
    storages: dict[tuple, Storage] = {}

    def persistent(pid: Any) -> Storage:
        storage = storage_of(pid)
        entry = entries.get(f"{root}data/{storage.key}")
        if entry is None or entry.file_size != storage.nbytes:
            there = "none" if entry is None else entry.file_size
            raise ValueError(f"storage {storage.key}: {storage.nbytes} bytes announced, {there} there")
        storage.little_endian = order.strip() != b"big"
        storage.load = lambda: archive.read(entry)
        return storages.setdefault((storage.key, storage.dtype), storage)

    return state_of(load_pickle(io.BytesIO(archive.read(pickles[0])), path, persistent), path, "PyTorch")


def check_sizes(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuses a zip file that would unpack to many times its size."""
    infos = archive.infolist()
    for i in infos:
        if i.file_size > UNPACKED * i.compress_size + 65536:
            raise ConversionError(f"{path}: refused: {i.filename} would unpack to {i.file_size} bytes")
    if sum(i.compress_size for i in infos) > path.stat().st_size:
        raise ConversionError(f"{path}: refused: its entries overlap")


def read_pickled(path: Path) -> State:
    """A plain pickle (Detectron2's, Caffe2's), or what torch.save wrote before 1.6: pickles, then the storages."""
    with open(path, "rb") as f:
        storages: dict[str, Storage] = {}
        first = load_pickle(f, path)
        if first != LEGACY_MAGIC:
            return state_of(first, path, "pickle")
        version, system = load_pickle(f, path), load_pickle(f, path)
        if version != 1001 or not isinstance(system, dict):
            raise ConversionError(f"{path}: damaged, or of a PyTorch that isn't known (protocol {described(version)})")

        def persistent(pid: Any) -> Storage:
            storage = storage_of(pid)
            storage.little_endian = system.get("little_endian", True) is not False
            root = storages.setdefault(storage.key, storage)
            view = pid[5] if len(pid) > 5 else None
            if view is None:
                return root
            if not (isinstance(view, tuple) and len(view) == 3 and natural(view[1:])):
                raise ValueError("a view of a storage that isn't one")
            part = Storage(storage.dtype, storage.key, view[2])
            part.little_endian, part.base = storage.little_endian, (root, view[1])
            return part

        content = load_pickle(f, path, persistent)
        keys = load_pickle(f, path)
        read_storages(f, path, keys, storages)
    return state_of(content, path, "PyTorch, before 1.6")


def read_storages(f: BinaryIO, path: Path, keys: Any, storages: dict[str, Storage]) -> None:
    """Reads the storages behind the pickles: for each key a number of elements (8 bytes) and the elements."""
    if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys) or set(keys) != set(storages):
        raise ConversionError(f"{path}: damaged: its list of storages isn't the one that its tensors use")
    for key in keys:
        storage = storages[key]
        count, nbytes = f.read(8), storage.nbytes
        order = "<q" if storage.little_endian else ">q"
        if len(count) < 8 or struct.unpack(order, count)[0] != storage.numel:
            raise ConversionError(f"{path}: truncated or damaged at storage {key}")
        # asked for before it is allocated
        here = f.tell()
        if path.stat().st_size - here < nbytes:
            raise ConversionError(f"{path}: truncated at storage {key}")
        data = f.read(nbytes)
        storage.load = lambda data=data: data


# ---------------------------------------------------------------------------------------------------------
# from an object to a state dict


def is_array(value: Any) -> bool:
    return isinstance(value, (LazyTensor, LazyArray))


def find_state(content: Any, depth: int = 0) -> tuple[Mapping | None, list[str]]:
    """The mapping that holds arrays, at the top or under one of NESTED; and the entries beside the way to it."""
    if not isinstance(content, Mapping):
        return None, []
    for key in NESTED:
        if depth < 3 and isinstance(content.get(key), Mapping):
            found, beside = find_state(content[key], depth + 1)
            if found is not None:
                return found, [str(k) for k in content if k != key] + beside
    if any(is_array(v) for v in content.values()):
        return content, []
    return None, []


def state_of(content: Any, path: Path, kind: str) -> State:
    """The arrays of an object that was read; ConversionError where there are none."""
    found, beside = find_state(content)
    if found is None:
        held = some(content) if isinstance(content, Mapping) else type(content).__name__
        raise ConversionError(f"{path}: holds no state dict (arrays by name); it holds {held}")
    arrays, others = {}, beside
    for name, value in found.items():
        if not is_array(value):
            others.append(str(name))
            continue
        try:
            arrays[str(name)] = value.array()
        except RefusedError as e:
            raise ConversionError(f"{path}: {shown(str(name))}: refused: {shown(str(e))}") from None
        except (ValueError, TypeError, MemoryError, *ZIP_FAULTS) as e:
            raise ConversionError(f"{path}: {shown(str(name))}: damaged or truncated: {reason(e)}") from None
    return State(arrays, kind, others)


def some(names: Any) -> str:
    """The first of some names, for a message."""
    names = [shown(str(n)[:60]) for n in names]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"
