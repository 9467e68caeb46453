"""Checkpoint files of any project as NumPy arrays: PyTorch's .pth, pickles, MindSpore's .ckpt, safetensors, also in
shards, and NumPy's .npz. What a file is, its first bytes say, not its name.

PyTorch isn't needed, and no pickle is run (src/checkpoints/convert/pickles.py).
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from src.checkpoints.convert.pickles import (
    STORAGES,
    ConversionError,
    Foreign,
    Global,
    LazyArray,
    LazyTensor,
    RefusedError,
    Storage,
    described,
    from_bytes,
    load_pickle,
    natural,
    reason,
    shown,
)
from src.checkpoints.files import read_ckpt, read_safetensors, summed
from src.runtime.files import open_regular
from src.runtime.newer import zip_equal

__all__ = ["State", "read_state"]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.save before 1.6
NESTED = ("state_dict", "model", "model_state", "model_state_dict", "blobs", "net", "network", "weights", "params")
ZIP_FAULTS = (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, EOFError)
UNPACKED = 50  # times its compressed size that a zip entry may have, and all together; weights hardly compress
SLACK = 1 << 20  # bytes that entries may unpack to whatever they are
DIRECTORY = 1 << 24  # bytes of a zip file's directory: some hundred thousand entries
TENSORS, TENSORS_SLACK = 4, 1 << 26  # times the bytes that are there that tensors may have in sum; and beside
INDEX = 1 << 24  # bytes of an index of shards
LONGEST_NAME = 255  # bytes of a file's name
MAPPINGS, DEEPEST = 1000, 4  # mappings that are looked through for a state dict; mappings above it
PICKLES = (".pth", ".pt", ".pkl", ".pickle", ".bin", ".tar")
# what is taken for a checkpoint by mistake: where its bytes are, what it is, what to do
PACKED = "unpack it, and name the file that is in it"
SIGNATURES = (
    (257, b"ustar", "a tar archive; " + PACKED),
    (0, b"\x1f\x8b", "a gzip file; " + PACKED),
    (0, b"BZh", "a bzip2 file; " + PACKED),
    (0, b"\xfd7zXZ", "an xz file; " + PACKED),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file; " + PACKED),
    (0, b"7z\xbc\xaf", "a 7z archive; " + PACKED),
    (0, b"Rar!", "a RAR archive; " + PACKED),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself; get it with git lfs pull"),
    (0, b"\x89HDF", "an HDF5 file (Keras); save its weights as .safetensors"),
    (0, b"\x93NUMPY", "a NumPy array (.npy), not arrays by name"),
    (0, b"GGUF", "a GGUF file; name the checkpoint that it was made from"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"\x89PNG", "a PNG picture"),
)
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
WEB_PAGE = "a web page, not a checkpoint: its download was answered with a page; download it again"


@dataclass
class State:
    """What a file holds: arrays by name, names of what lies beside them and isn't an array, and the file's kind.

    meta: what the file says of itself ({"meta": ...} of mmdetection), plain containers.  whole: whether a checksum or
    the format says that nothing is cut off.
    """

    arrays: dict[str, np.ndarray]
    kind: str
    others: list[str] = field(default_factory=list)
    meta: Mapping = field(default_factory=dict)
    whole: bool = True


Fits = Callable[[Collection[str]], bool]


def read_state(path: str | Path, fits: Fits | None = None) -> State:
    """The state dict of a checkpoint file, as it is named there.

    fits: of several state dicts in a file the first is taken whose names it takes, if there is one. Raises
    ConversionError or CheckpointError.
    """
    path = Path(path)
    state = read_any(path, fits or (lambda names: True))
    state.others = [shown(name) for name in state.others]
    strange = [name for name in state.arrays if shown(name) != name]
    if strange:
        raise ConversionError(f"{path}: refused: an array's name isn't plain text: {shown(strange[0])}")
    if not state.arrays:
        raise ConversionError(f"{path}: holds no arrays")
    return state


def read_any(path: Path, fits: Fits) -> State:
    """By what the first bytes say the file is; by its suffix where they don't."""
    try:
        with open_regular(path) as f:
            head = f.read(512)
            size = f.seek(0, os.SEEK_END)
    except OSError as e:
        raise ConversionError(f"{path}: can't read it: {e.strerror}") from None
    if not head:
        raise ConversionError(f"{path}: the file is empty")
    if head[:2] == b"PK":
        return read_zip(path, fits)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return State(read_safetensors(path), "safetensors")
    for place, signature, what in SIGNATURES:
        if head[place : place + len(signature)] == signature:
            raise ConversionError(f"{path}: {what}")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start[:1] == b"<":
        raise ConversionError(f"{path}: {WEB_PAGE}")
    if start[:1] == b"{":
        return read_shards(path, fits)
    if is_mindspore(head):
        return State(read_ckpt(path), "MindSpore", whole=summed(path))
    if head[:1] == b"\x80" or path.suffix in PICKLES:
        return read_pickled(path, fits)
    if path.suffix == ".safetensors":
        return State(read_safetensors(path), "safetensors")
    if path.suffix == ".ckpt":
        return State(read_ckpt(path), "MindSpore", whole=summed(path))
    raise ConversionError(
        f"{path}: not a checkpoint file that is known (PyTorch .pth, pickle .pkl, MindSpore .ckpt, .safetensors,"
        " NumPy .npz)"
    )


def is_mindspore(head: bytes) -> bool:
    """Whether a .ckpt's first record begins here: field 1, a length, and in it field 1, the parameter's name."""
    place = 1
    while place < min(len(head), 10) and head[place] >= 0x80:
        place += 1
    return head[:1] == b"\n" and head[place + 1 : place + 2] == b"\n"


def read_shards(path: Path, fits: Fits) -> State:
    """The arrays of an index: {"weight_map": {name of an array: name of a file beside it}}."""
    if path.stat().st_size > INDEX:
        raise ConversionError(f"{path}: a JSON file of more than {INDEX} bytes, not an index of shards")
    try:
        index = json.loads(path.read_bytes(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as e:
        raise ConversionError(f"{path}: text, or a damaged index of shards: {reason(e)}") from None
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(v, str) for v in places.values()):
        raise ConversionError(f"{path}: a JSON file without a weight_map; the index of a checkpoint's shards has one")
    arrays: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(places.values()):
        if name in ("", ".", "..") or re.search(r"[/\\\0\ud800-\udfff]", name) or len(name.encode()) > LONGEST_NAME:
            raise ConversionError(f"{path}: refused: its shard {shown(name)!r} isn't the name of a file beside it")
        shard = path.parent / name
        if not shard.is_file():
            raise ConversionError(f"{path}: its shard {shown(name)} isn't there; put all of them beside the index")
        if shard.samefile(path):
            raise ConversionError(f"{path}: names itself as a shard")
        part = read_any(shard, fits)
        wanted = {n for n, place in places.items() if place == name}
        if differ := sorted(wanted ^ part.arrays.keys()):
            raise ConversionError(
                f"{shard}: not the shard that {path.name} describes: {some(differ)} "
                f"{'is missing' if differ[0] in wanted else 'is more'}; download both again"
            )
        arrays |= part.arrays
    return State(arrays, f"sharded ({len(set(places.values()))} files)")


def unique(pairs: list[tuple[str, Any]]) -> dict:
    """A JSON object. ValueError where a key comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice")
    return found


# ---------------------------------------------------------------------------------------------------------
# PyTorch


def storage_of(pid: Any) -> Storage | Global:
    """The storage that a persistent id of torch.save names: ("storage", type, key, location, number of elements).

    Or the class of a module, which old releases of PyTorch named so: ("module", class, file, source).
    """
    if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module" and isinstance(pid[1], Global):
        return pid[1]
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
    if not natural((pid[4],)) or not isinstance(pid[2], str) or len(pid[2]) > 200:
        raise ValueError("a storage whose key isn't text, or whose size isn't a number")
    return Storage(dtype, pid[2], pid[4])


def read_zip(path: Path, fits: Fits) -> State:
    """What torch.save wrote since 1.6: a zip of data.pkl and one entry a storage."""
    try:
        check_directory(path)
        with zipfile.ZipFile(path) as archive:
            return read_archive(archive, path, fits)
    except ConversionError:
        raise
    except RefusedError as e:
        raise ConversionError(f"{path}: refused: {e}") from None
    except (*ZIP_FAULTS, ValueError, LookupError, struct.error, ArithmeticError, MemoryError) as e:
        raise ConversionError(f"{path}: damaged or truncated zip file: {reason(e)}") from None


def end_numbers(path: Path, *places: tuple[bytes, int, int]) -> list[int]:
    """Numbers of a zip file's records at its end: mark of the record, place in it, bytes; 0 where it has none such."""
    with open(path, "rb") as f:
        f.seek(max(f.seek(0, os.SEEK_END) - 66_000, 0))
        tail = f.read()
    starts = [tail.rfind(mark) for mark, _, _ in places]
    return [
        int.from_bytes(tail[start + place : start + place + length], "little") if start >= 0 else 0
        for start, (_, place, length) in zip_equal(starts, places)
    ]


def check_directory(path: Path) -> None:
    """Refuses a zip file whose directory, which is read as a whole, is larger than any checkpoint's."""
    # in the record at the end, and in that of large files
    for size in end_numbers(path, (b"PK\5\6", 12, 4), (b"PK\6\6", 40, 8)):
        if DIRECTORY < size < 0xFFFFFFFF:
            raise ConversionError(f"{path}: refused: its directory of entries has {size} bytes")


def check_count(archive: zipfile.ZipFile, path: Path) -> None:
    """Raises BadZipFile where the directory has another number of entries than the file says; zipfile doesn't look."""
    few, many = end_numbers(path, (b"PK\5\6", 10, 2), (b"PK\6\6", 32, 8))
    if len(archive.infolist()) != (many if few == 0xFFFF else few):
        raise zipfile.BadZipFile(f"its directory has {len(archive.infolist())} entries, not {few}")


def read_archive(archive: zipfile.ZipFile, path: Path, fits: Fits) -> State:
    """The state dict of an open archive. Raises ConversionError, and what damaged zip files lead to."""
    entries = {i.filename: i for i in archive.infolist()}
    check_sizes(archive, path)
    pickles = [n for n in entries if n == "data.pkl" or n.endswith("/data.pkl")]
    if len(pickles) != 1:
        if entries and all(n.endswith(".npy") for n in entries):
            check_count(archive, path)
            arrays = {n.removesuffix(".npy"): npy_array(n, unpacked(archive, i, True)) for n, i in entries.items()}
            return State(arrays, "NumPy .npz")
        raise ConversionError(f"{path}: a zip file without PyTorch's data.pkl; it holds {some(entries)}")
    root = pickles[0].removesuffix("data.pkl")
    order = unpacked(archive, entries[root + "byteorder"]) if root + "byteorder" in entries else b"little"
    storages: dict[tuple, Storage] = {}

    @functools.cache
    def content(name: str) -> bytes:
        return unpacked(archive, entries[name])

    def persistent(pid: Any) -> Storage | Global:
        storage = storage_of(pid)
        if isinstance(storage, Global):
            return storage
        name = f"{root}data/{storage.key}"
        entry = entries.get(name)
        if entry is None or entry.file_size != storage.nbytes:
            there = "none" if entry is None else entry.file_size
            raise ValueError(f"storage {storage.key}: {storage.nbytes} bytes announced, {there} there")
        storage.little_endian = order.strip() != b"big"
        storage.load = functools.partial(content, name)
        return storages.setdefault((storage.key, storage.dtype), storage)

    pickled = unpacked(archive, entries[pickles[0]])
    found = load_pickle(io.BytesIO(pickled), path, persistent, len(pickled))
    if isinstance(found, Foreign) and root + "constants.pkl" in entries:
        raise ConversionError(f"{path}: TorchScript, a program with its weights; save the module's state dict alone")
    return state_of(found, path, "PyTorch", fits)


def npy_array(name: str, content: bytes) -> np.ndarray:
    """The array of an .npy file. Raises ValueError and RefusedError; nothing is run, nor allocated that isn't there."""
    f = io.BytesIO(content)
    version = np.lib.format.read_magic(f)
    if version not in NPY_HEADERS:
        raise ValueError(f"{shown(name)}: version {version[0]}.{version[1]} of .npy isn't read")
    try:
        shape, fortran, dtype = NPY_HEADERS[version](f)
    except (ValueError, SyntaxError, TypeError, RecursionError, tokenize.TokenError):
        raise ValueError(f"{shown(name)}: its header isn't one of .npy") from None
    if dtype.kind not in "biufc":
        raise RefusedError(f"{shown(name)} holds no numbers ({dtype}); nothing is unpickled")
    data = content[f.tell() :]
    if not natural(shape) or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{shown(name)}: {shape} of {dtype} announced, {len(data)} bytes there")
    return from_bytes(data, dtype, math.prod(shape)).reshape(shape, order="F" if fortran else "C")


def unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, checked: bool = False) -> bytes:
    """An entry's bytes, compared with its checksum: unless `checked`, not with 0, which PyTorch may write for none."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ConversionError(
            f"{archive.filename}: {shown(entry.filename)} is compressed in a way that isn't read; write the file again"
            " with torch.save, or zip it without compression"
        )
    if not checked and getattr(entry, "CRC", None) == 0:
        del entry.CRC  # without one, zipfile doesn't compare
    with archive.open(entry) as f:
        content = f.read()
    if len(content) != entry.file_size:
        raise zipfile.BadZipFile(f"{entry.filename} has {len(content)} bytes, not {entry.file_size}")
    return content


def check_sizes(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuses a zip file that would unpack to many times its size."""
    infos, size = archive.infolist(), path.stat().st_size
    for i in infos:
        if i.file_size > UNPACKED * i.compress_size + 65536:
            raise ConversionError(f"{path}: refused: {shown(i.filename)} would unpack to {i.file_size} bytes")
    if sum(i.compress_size for i in infos) > size:
        raise ConversionError(f"{path}: refused: its entries overlap")
    if (whole := sum(i.file_size for i in infos)) > UNPACKED * size + SLACK:
        raise ConversionError(f"{path}: refused: its entries would unpack to {whole} bytes")


def read_pickled(path: Path, fits: Fits) -> State:
    """A plain pickle (Detectron2's, Caffe2's), or what torch.save wrote before 1.6: pickles, then the storages."""
    with open(path, "rb") as f:
        storages: dict[str, Storage] = {}
        first = load_pickle(f, path)
        if first != LEGACY_MAGIC:
            return state_of(first, path, "pickle", fits)
        version, system = load_pickle(f, path), load_pickle(f, path)
        if version != 1001 or not isinstance(system, dict):
            raise ConversionError(f"{path}: damaged, or of a PyTorch that isn't known (protocol {described(version)})")

        def persistent(pid: Any) -> Storage | Global:
            storage = storage_of(pid)
            if isinstance(storage, Global):
                return storage
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
    return state_of(content, path, "PyTorch, before 1.6", fits)


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


def state_dicts(content: Any) -> Iterator[tuple[Mapping, list[str]]]:
    """The mappings that hold arrays: those under NESTED first, then from the top down; and what is beside."""
    first, beside = nested_state(content)
    if first is not None:
        yield first, beside
    left: deque = deque([(content, ())])
    seen = {id(first)}
    while left and len(seen) < MAPPINGS:
        found, way = left.popleft()
        if id(found) in seen or not isinstance(found, Mapping):
            continue
        seen.add(id(found))
        if any(is_array(v) for v in found.values()):
            yield found, [text_of(k) for above, taken in way for k in above if k != taken]
        if len(way) < DEEPEST:
            left.extend((v, (*way, (found, k))) for k, v in found.items() if isinstance(v, Mapping))


def nested_state(content: Any, depth: int = 0) -> tuple[Mapping | None, list[str]]:
    """The mapping that holds arrays, at the top or under one of NESTED; and the entries beside the way to it."""
    if not isinstance(content, Mapping):
        return None, []
    for key in NESTED:
        if depth < 3 and isinstance(content.get(key), Mapping):
            found, beside = nested_state(content[key], depth + 1)
            if found is not None:
                return found, [text_of(k) for k in content if k != key] + beside
    if any(is_array(v) for v in content.values()):
        return content, []
    return None, []


def text_of(key: Any) -> str:
    """A key as text, which isn't longer than what is stored."""
    return key if isinstance(key, str) else described(key)


def state_of(content: Any, path: Path, kind: str, fits: Fits) -> State:
    """The arrays of an object that was read; ConversionError where there are none."""
    if isinstance(content, (LazyTensor, LazyArray)):
        raise ConversionError(f"{path}: holds one array, not a state dict (arrays by name)")
    first = next(state_dicts(content), None)
    if first is None:
        raise ConversionError(f"{path}: holds no state dict (arrays by name); it holds {held(content)}")
    chosen = first
    if not fits([text_of(n) for n, v in first[0].items() if is_array(v)]):
        chosen = next(
            (d for d in state_dicts(content) if fits([text_of(n) for n, v in d[0].items() if is_array(v)])), first
        )
    found, others = chosen
    arrays: dict[str, np.ndarray] = {}
    sources: set[int] = set()
    left = TENSORS_SLACK
    for key, value in found.items():
        name = text_of(key)
        if isinstance(value, Foreign) and value.name.startswith("torch._utils._rebuild_"):
            raise ConversionError(f"{path}: {shown(name)}: a tensor that isn't stored plainly ({shown(value.name)})")
        if not is_array(value):
            others.append(name)
            continue
        if name in arrays:
            raise ConversionError(f"{path}: two arrays are called {shown(name)}")
        try:
            arrays[name] = value.array()
        except RefusedError as e:
            raise ConversionError(f"{path}: {shown(name)}: refused: {shown(str(e))}") from None
        except (ValueError, TypeError, MemoryError, *ZIP_FAULTS) as e:
            raise ConversionError(f"{path}: {shown(name)}: damaged or truncated: {reason(e)}") from None
        # what tensors have in sum goes with what their storages have: a bfloat16 or an expanded tensor becomes larger
        source = value.storage if isinstance(value, LazyTensor) else value
        source = source.base[0] if isinstance(source, Storage) and source.base else source
        left -= arrays[name].nbytes
        if id(source) not in sources:
            sources.add(id(source))
            left += TENSORS * source.array().nbytes
        if left < 0:
            raise ConversionError(f"{path}: refused: its tensors have many times the bytes of their storages")
    meta = content.get("meta") if isinstance(content, Mapping) else None
    return State(arrays, kind, others, meta if isinstance(meta, Mapping) else {})


def held(content: Any) -> str:
    """What an object without a state dict is, for a message."""
    advice = "; objects aren't made: save its state_dict() alone"
    if isinstance(content, Foreign):
        return f"an object of {shown(content.name)}{advice}"
    if not isinstance(content, Mapping):
        return described(content)
    objects = [f"{text_of(k)[:60]} of {v.name}" for k, v in content.items() if isinstance(v, Foreign)]
    return some([text_of(k) for k in content]) + (f" (objects: {some(objects)}{advice})" if objects else "")


def some(names: Any) -> str:
    """The first of some names, for a message."""
    names = [shown(str(n)[:120]) for n in names]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"
