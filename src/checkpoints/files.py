"""Checkpoints: written whole or not at all, read whole or refused."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors
import safetensors.numpy
from google.protobuf.message import DecodeError

from src.config import DETECTORS
from src.runtime.errors import UserError, quiet_logging
from src.runtime.files import beside, demand_place, flush, open_regular, read_regular, remove_leftovers

# MindSpore takes seconds to load: not before what can be refused without it
if TYPE_CHECKING:
    from mindspore import Parameter, nn

__all__ = [
    "CheckpointError",
    "CheckpointFolder",
    "assign_parameters",
    "demand_checkpoint",
    "load_backbone",
    "load_checkpoint",
    "load_detector",
    "not_finite",
    "position_of",
    "read_ckpt",
    "read_safetensors",
    "save_checkpoint",
    "summed",
]


# bfloat16 is read as its bits: the upper half of a float32
SAFETENSORS_TYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "u2", "I64": "i8", "I32": "i4", "I16": "i2"}
SAFETENSORS_TYPES |= {"I8": "i1", "U8": "u1", "U16": "u2", "U32": "u4", "U64": "u8", "BOOL": "?"}
CKPT_TYPES = {"Float64": "f8", "Float32": "f4", "Float16": "f2", "BFloat16": "u2", "Bool": "?"}
CKPT_TYPES |= {f"{kind}{bits}": f"{kind[0].lower()}{bits // 8}" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)}
RECORD_TAG = 0x0A  # each parameter of a .ckpt is a field of number 1 with a length: mindspore/train/checkpoint_pb2
# what save_checkpoint(enc_key=...) begins with: AES-GCM, AES-CBC, SM4-CBC
ENCRYPTED = tuple(bytes.fromhex(f"{mode}5e3a7f") for mode in ("d8", "d9", "da"))
SUM_MARK, SUM_SIZE = b"crc_num", 10  # then its checksum ends a .ckpt
# in a safetensors file's metadata, beside what else MindSpore writes there
VALUES_SUM, SHAPES_SUM, METADATA = "crc_num", "crc_shapes", {"format", "remove_redundancy"}


class CheckpointError(UserError):
    """A checkpoint that can't be read, written or used; the message names the file and the remedy."""


def save_checkpoint(
    net: nn.Cell | Mapping[str, np.ndarray], path: str | Path, remedy: str = "free space or set train_outputs"
) -> None:
    """Writes the parameters of `net`, or arrays by name, beside, then renames: .ckpt with a checksum, or .safetensors.

    Raises CheckpointError, which ends in `remedy`.
    """
    path = Path(path)
    demand_place(path, CheckpointError)
    written = beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        if path.suffix == ".safetensors":
            arrays = net if isinstance(net, Mapping) else {p.name: p.asnumpy() for p in net.get_parameters()}
            arrays = {n: np.ascontiguousarray(v) for n, v in arrays.items()}
            safetensors.numpy.save_file(arrays, written, {"format": "ms"} | checksums(arrays))
            _order_metadata(written)
        else:
            import mindspore as ms

            arrays = net if isinstance(net, Mapping) else {}
            params = [{"name": n, "data": ms.Tensor(v)} for n, v in arrays.items()] if net is arrays else net
            with quiet_logging():
                ms.save_checkpoint(params, str(written), crc_check=True)
        # MindSpore swallows some write errors and leaves a short file
        flush(written)
        os.chmod(written, 0o644)
        os.replace(written, path)
    except (OSError, RuntimeError, ValueError, safetensors.SafetensorError) as e:
        for left in (written, written.with_suffix(".tmp")):  # MindSpore itself writes a .tmp first
            with contextlib.suppress(OSError):
                left.unlink()
        reason = getattr(e, "strerror", None) or str(e).strip().splitlines()[0]
        raise CheckpointError(f"{path}: can't write the checkpoint: {reason}; {remedy}") from None


def _order_metadata(path: Path) -> None:
    """Sorts a safetensors file's metadata, whose order is another in every run: equal weights make equal files."""
    with open(path, "r+b") as f:
        size = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        f.seek(8)
        f.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def load_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """Parameters by name of a .ckpt (MindSpore's, with or without a checksum) or a .safetensors file.

    Raises CheckpointError for a missing, damaged or foreign file.
    """
    path = demand_checkpoint(path)
    return read_safetensors(path) if path.suffix == ".safetensors" else read_ckpt(path)


def demand_checkpoint(path: str | Path) -> Path:
    """The path of a checkpoint that is there and called as one. Raises CheckpointError."""
    path = Path(path)
    try:
        # what isn't a file is told before MindSpore waits for it
        open_regular(path).close()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except OSError as e:
        raise CheckpointError(f"{path}: can't read: {e.strerror}") from None
    if path.suffix not in (".ckpt", ".safetensors"):
        raise CheckpointError(
            f"{path}: not a .ckpt file (or .safetensors); convert it with python -m src.convert_checkpoint"
        )
    return path


def _bytes(path: Path) -> bytes:
    try:
        return read_regular(path, sys.maxsize)
    except OSError as e:
        raise CheckpointError(f"{path}: can't read it: {e.strerror}") from None


def _widened(bits: np.ndarray) -> np.ndarray:
    """float32 values of bfloat16's bits (uint16): NumPy has no bfloat16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def summed(path: Path) -> bool:
    """Whether a .ckpt ends in a checksum, as ours do. MindSpore's own may have none: then nothing tells one that was
    cut after a parameter from a smaller one."""
    with open(path, "rb") as f:
        size = f.seek(0, os.SEEK_END)
        f.seek(max(size - SUM_SIZE - len(SUM_MARK), 0))
        return f.read(len(SUM_MARK)) == SUM_MARK


def read_ckpt(path: Path) -> dict[str, np.ndarray]:
    """Parameters by name of a .ckpt file, whatever it is called; bfloat16 as float32, texts left out.

    Raises CheckpointError for a damaged or foreign file.
    """
    from mindspore.train.checkpoint_pb2 import Checkpoint

    data = _bytes(path)
    if data.startswith(ENCRYPTED):
        raise CheckpointError(
            f"{path}: encrypted; save it without: mindspore.load_checkpoint(FILE, dec_key=KEY), then save_checkpoint"
        )
    end = len(data)
    if data[-SUM_SIZE - len(SUM_MARK) : -SUM_SIZE] == SUM_MARK:
        end -= SUM_SIZE + len(SUM_MARK)
        if zlib.crc32(memoryview(data)[:end]) != int.from_bytes(data[-SUM_SIZE:], "big"):
            raise CheckpointError(f"{path}: damaged: its checksum is another")
    damaged = f"{path}: damaged, truncated or not a MindSpore checkpoint"
    arrays: dict[str, np.ndarray] = {}
    parts: dict[str, tuple[list[int], str, list[bytes]]] = {}
    try:
        for record in _records(memoryview(data)[:end]):
            value = Checkpoint.Value.FromString(record)
            name, tensor = value.tag, value.tensor
            # large parameters come in slices
            before = parts.setdefault(name, (list(tensor.dims), tensor.tensor_type, []))
            if not name or value.HasField("maptensor") or before[:2] != (list(tensor.dims), tensor.tensor_type):
                raise ValueError(f"a parameter {name!r} that isn't a tensor, or that comes twice")
            before[2].append(tensor.tensor_content)
        for name, (dims, kind, slices) in parts.items():
            if kind != "str":
                arrays[name] = _tensor_values(name, dims, kind, slices)
    except (ValueError, DecodeError) as e:
        reason = f": {e}" if str(e) and not isinstance(e, DecodeError) else ""
        raise CheckpointError(damaged + reason) from None
    if not arrays:
        raise CheckpointError(f"{damaged}: it holds no parameter")
    return arrays


def _records(data: memoryview) -> Iterator[memoryview]:
    """The records of a .ckpt, each in place. Raises ValueError where they don't follow one another to the end."""
    place, last = 0, len(data)
    while place < last:
        length, shift, start = 0, 0, place
        if data[place] != RECORD_TAG:
            raise ValueError(f"no parameter begins at byte {start}")
        while True:
            place += 1
            if place >= last or shift > 56:
                raise ValueError(f"cut short at byte {start}")
            length |= (data[place] & 0x7F) << shift
            shift += 7
            if data[place] < 0x80:
                break
        place += 1
        if length > last - place:
            raise ValueError(f"cut short: the parameter at byte {start} has {length} bytes, {last - place} are there")
        yield data[place : place + length]
        place += length


def _tensor_values(name: str, dims: list[int], kind: str, slices: list[bytes]) -> np.ndarray:
    """The array of a parameter's slices. Raises ValueError where they aren't as many bytes as its shape says."""
    if kind not in CKPT_TYPES:
        raise ValueError(f"{name} is of type {kind[:30]!r}, which isn't read")
    # MindSpore writes a number without dimensions so
    shape = [] if dims == [0] else dims
    code, content = np.dtype(CKPT_TYPES[kind]), slices[0] if len(slices) == 1 else b"".join(slices)
    if any(n < 0 for n in shape) or len(shape) > 32 or math.prod(shape) * code.itemsize != len(content):
        raise ValueError(f"cut short or damaged: {name} of shape {shape[:32]} in {len(content)} bytes")
    flat = np.frombuffer(content, code) if content else np.zeros(0, code)
    return (_widened(flat) if kind == "BFloat16" else flat).reshape(shape)


def checksums(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Of the values as MindSpore's own (crc_check) in a safetensors file, and of names, types and shapes."""
    values, shapes = 0, 0
    for name in sorted(arrays):
        array = arrays[name]
        values = zlib.crc32(array.reshape(-1).view(np.uint8).data, zlib.crc32(name.encode(), values))
        shapes = zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), shapes)
    return {VALUES_SUM: str(values), SHAPES_SUM: str(shapes)}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name of a .safetensors file, whatever it is called; bfloat16 as float32.

    Raises CheckpointError for a damaged or foreign file; one that we or MindSpore wrote has checksums.
    """
    data = _bytes(path)
    try:
        records = safetensors.deserialize(data)
        size = int.from_bytes(data[:8], "little")
        said = json.loads(data[8 : 8 + size]).get("__metadata__", {})
        arrays, widened = {}, {}
        for name, record in records:
            kind, content = record["dtype"], record["data"]
            if kind not in SAFETENSORS_TYPES:
                raise CheckpointError(f"{path}: {name} is of type {kind}, which isn't read")
            code = np.dtype(SAFETENSORS_TYPES[kind])
            flat = np.frombuffer(content, code) if content else np.zeros(0, code)
            arrays[name] = flat.reshape(record["shape"])
            if kind == "BF16":
                widened[name] = _widened(arrays[name])
    except (safetensors.SafetensorError, ValueError, RecursionError) as e:
        if isinstance(e, CheckpointError):
            raise
        raise CheckpointError(f"{path}: damaged, truncated or not a safetensors file: {e}") from None
    sums = checksums(arrays)
    strange = said.keys() - arrays.keys() - METADATA - sums.keys()
    if said.keys() & sums.keys() and (strange or SHAPES_SUM in said and VALUES_SUM not in said):
        raise CheckpointError(f"{path}: damaged: its checksums are, or what is beside them: {_some(list(said))}")
    for key, value in sums.items():
        if said.get(key, value) != value:
            raise CheckpointError(f"{path}: damaged: its checksum {key} is another")
    return arrays | widened


def _compare(net: nn.Cell, params: dict[str, np.ndarray], path: Path) -> tuple[list[str], list[str], list[str]]:
    """Names missing from the file, names that `net` doesn't have, and shapes that differ (as text)."""
    own = {p.name: tuple(p.shape) for p in net.get_parameters()}
    missing = [n for n in own if n not in params]
    extra = [n for n in params if n not in own]
    differ = [f"{n} {params[n].shape} for {own[n]}" for n in own if n in params and params[n].shape != own[n]]
    return missing, extra, differ


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _assign(net: nn.Cell, params: dict[str, np.ndarray]) -> None:
    import mindspore as ms

    ms.load_param_into_net(net, {n: ms.Parameter(np.asarray(v), name=n) for n, v in params.items()})


def assign_parameters(parameters: Iterable[Parameter], values: dict[str, np.ndarray]) -> None:
    """Gives each parameter its value by name. Raises CheckpointError unless both hold the same names and shapes."""
    from mindspore import Tensor

    parameters = {p.name: p for p in parameters}
    differ = sorted(parameters.keys() ^ values.keys())
    differ += [n for n, p in parameters.items() if n in values and tuple(p.shape) != values[n].shape]
    if differ:
        raise CheckpointError(f"names or shapes differ: {_some(differ)}")
    for name, p in parameters.items():
        p.set_data(Tensor(values[name]).astype(p.dtype))


def _is_of_classes(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter has a row a class: class logits, box deltas (four rows are those of all classes), masks."""
    parts = name.split(".")
    if len(parts) < 3 or not parts[0].startswith(("bbox_head", "mask_head")):
        return False
    return parts[-2] in ("cls", "logits") or (parts[-2] == "reg" and shape[0] != 4)


def _branch_of(name: str) -> str | None:
    """The branch, as Config.branches, whose head a parameter is of; None for one of no branch."""
    branches = {branch for names in DETECTORS.values() for branch in names}
    return next((b for b in branches if name.split(".")[0] in (f"{b}_head", f"{b}_heads")), None)


def not_finite(params: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the parameters that hold NaN or infinity."""
    return [n for n, v in params.items() if v.dtype.kind == "f" and not np.isfinite(v).all()]


def load_detector(detector: nn.Cell, path: str | Path, finetune: bool = False) -> list[str]:
    """Loads a whole checkpoint. With `finetune`, the layers that have an output a class, and parameters of another
    shape, keep their random values: equally many classes aren't the same classes.

    The parameters of a branch's head are left out, which one line tells, where the detector lacks the branch. Returns
    the names left random. Raises CheckpointError for a checkpoint of another model, naming what differs, and for one
    with numbers that aren't finite.
    """
    path = Path(path)
    params = load_checkpoint(path)
    broken = not_finite(params)
    if broken:
        raise CheckpointError(
            f"{path}: holds NaN or infinity (in {_some(broken)}): its training diverged; use an earlier checkpoint, and"
            " train with a lower lr or a longer warmup_step"
        )
    branches = {_branch_of(p.name) for p in detector.get_parameters()}
    for branch in sorted({b for b in map(_branch_of, params) if b is not None} - branches):
        left = {n for n in params if _branch_of(n) == branch}
        print(f"{path}: {len(left)} parameters of the {branch} head left out, as this detector has none")
        params = {n: v for n, v in params.items() if n not in left}
    missing, extra, differ = _compare(detector, params, path)
    unsummed = path.suffix == ".ckpt" and not summed(path)
    if finetune and missing and unsummed:
        print(f"{path}: has no checksum and lacks {_some(missing)}: if it should have them, it is cut short")
    if finetune:
        own = {p.name: tuple(p.shape) for p in detector.get_parameters()}
        usable = {n: v for n, v in params.items() if own.get(n) == v.shape and not _is_of_classes(n, v.shape)}
        if not usable:
            raise CheckpointError(f"{path}: has no parameter of this model; it holds {_some(list(params))}")
        body = [n for n in own if n.startswith("backbone.")]
        fitting = sum(n in usable for n in body)
        if 2 * fitting < len(body):
            raise CheckpointError(
                f"{path}: has {fitting} of the {len(body)} parameters of this model's backbone: a checkpoint of another"
                " model; pass the config that it was trained with as --config_path, or start without --pre_trained"
            )
        _assign(detector, usable)
        return [n for n in own if n not in usable]
    wrong = [text.partition(" ")[0] for text in differ]
    if wrong and not missing and not extra and all(_is_of_classes(n, params[n].shape) for n in wrong):
        raise CheckpointError(
            f"{path}: a checkpoint of other classes ({_some(differ)}); --finetune true trains from its other layers;"
            " else pass the config.yaml of its run as --config_path"
        )
    problems = []
    if differ:
        problems.append(f"shapes differ: {_some(differ)}")
    if missing:
        problems.append(f"not in the file: {_some(missing)}")
    if extra:
        problems.append(f"not in the model: {_some(extra)}")
    if missing and not differ and not extra and unsummed:
        raise CheckpointError(
            f"{path}: cut short, or of a smaller model: it ends after {list(params)[-1]}, without a checksum, and holds"
            f" {len(params)} parameters, not {len(params) + len(missing)} (not in the file: {_some(missing)}); copy it"
            " again, or check --config_path"
        )
    if problems:
        raise CheckpointError(f"{path}: a checkpoint of another model ({'; '.join(problems)}); check --config_path")
    _assign(detector, params)
    return []


def load_backbone(detector: nn.Cell, path: str | Path) -> None:
    """Loads the backbone's parameters alone, named `backbone.*` or without that prefix; others are left out.

    Raises CheckpointError if one is missing that classifiers have, or of another shape.
    """
    from src.models.backbones import only_in_detectors

    path = Path(path)
    params = load_checkpoint(path)
    wanted = [p for p in detector.get_parameters() if p.name.startswith("backbone.")]
    found = {}
    for p in wanted:
        value = params.get(p.name, params.get(p.name.removeprefix("backbone.")))
        if value is not None:
            found[p.name] = value
    missing = [p.name for p in wanted if p.name not in found and not only_in_detectors(p.name)]
    differ = [
        f"{p.name} {found[p.name].shape} for {tuple(p.shape)}"
        for p in wanted
        if p.name in found and found[p.name].shape != tuple(p.shape)
    ]
    if missing or differ:
        cut = "; without a checksum, it may be cut short" if path.suffix == ".ckpt" and not summed(path) else ""
        raise CheckpointError(
            f"{path}: doesn't hold this backbone (missing or of another shape: "
            f"{_some(differ + missing)}{cut}); check backbone.type, depth and width"
        )
    # named, lest MindSpore warns of each
    _assign(detector, {p.name: p.asnumpy() for p in wanted} | found)


def position_of(path: Path) -> tuple[int, int]:
    """(epoch, step) of a checkpoint's name `{detector}-{epoch}_{step}.ckpt`."""
    epoch, _, step = path.stem.rpartition("-")[2].partition("_")
    return int(epoch), int(step)


class CheckpointFolder:
    """Checkpoints `{detector}-{epoch}_{step}.ckpt` of one run, of which the newest `keep` stay."""

    def __init__(self, folder: str | Path, prefix: str, keep: int):
        self.folder, self.prefix, self.keep = Path(folder), prefix, keep

    def path(self, epoch: int, step: int) -> Path:
        return self.folder / f"{self.prefix}-{epoch}_{step}.ckpt"

    def list(self) -> list[Path]:
        """Checkpoints there are, oldest first."""
        form = re.escape(self.prefix) + r"-\d+_\d+\.ckpt"
        return sorted((p for p in self.folder.glob("*.ckpt") if re.fullmatch(form, p.name)), key=position_of)

    def drop_old(self) -> None:
        """Removes the oldest past `keep`."""
        for old in self.list()[: -self.keep]:
            old.unlink()

    def save(self, net: nn.Cell, epoch: int, step: int) -> Path:
        """Saves after `step` steps of `epoch` (both counted from 1) and drops the oldest past `keep`."""
        path = self.path(epoch, step)
        save_checkpoint(net, path)
        self.drop_old()
        return path
