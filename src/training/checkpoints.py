"""Checkpoints: written whole or not at all, read whole or refused."""

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import mindspore as ms
import numpy as np
import safetensors
import safetensors.numpy
from mindspore import Parameter, Tensor, nn

from src.runtime.errors import UserError, quiet_logging
from src.runtime.files import beside, flush, open_regular, read_regular, remove_leftovers

__all__ = [
    "CheckpointError",
    "CheckpointFolder",
    "assign_parameters",
    "load_backbone",
    "load_checkpoint",
    "load_detector",
    "not_finite",
    "position_of",
    "save_checkpoint",
]


# bfloat16 is read as its bits: the upper half of a float32
SAFETENSORS_TYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "u2", "I64": "i8", "I32": "i4", "I16": "i2"}
SAFETENSORS_TYPES |= {"I8": "i1", "U8": "u1", "U16": "u2", "U32": "u4", "U64": "u8", "BOOL": "?"}


class CheckpointError(UserError):
    """A checkpoint that can't be read, written or used; the message names the file and the remedy."""


def save_checkpoint(
    net: nn.Cell | Mapping[str, np.ndarray], path: str | Path, remedy: str = "free space or set train_outputs"
) -> None:
    """Writes the parameters of `net`, or arrays by name, beside, then renames: .ckpt with a checksum, or .safetensors.

    Raises CheckpointError, which ends in `remedy`.
    """
    path = Path(path)
    written = beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        if path.suffix == ".safetensors":
            arrays = net if isinstance(net, Mapping) else {p.name: p.asnumpy() for p in net.get_parameters()}
            safetensors.numpy.save_file({n: np.ascontiguousarray(v) for n, v in arrays.items()}, written)
        else:
            params = net if isinstance(net, nn.Cell) else [{"name": n, "data": ms.Tensor(v)} for n, v in net.items()]
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


def load_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """Parameters by name of a .ckpt (MindSpore's, with or without a checksum) or a .safetensors file.

    Raises CheckpointError for a missing, damaged or foreign file.
    """
    path = Path(path)
    try:
        # what isn't a file is told before MindSpore waits for it
        open_regular(path).close()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except OSError as e:
        raise CheckpointError(f"{path}: can't read: {e.strerror}") from None
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.suffix != ".ckpt":
        raise CheckpointError(
            f"{path}: not a .ckpt file (or .safetensors); convert it with python -m src.convert_checkpoint"
        )
    try:
        with quiet_logging():
            loaded = ms.load_checkpoint(str(path), crc_check=True)
        return {name: _values(p) for name, p in loaded.items() if isinstance(p, Parameter)}
    except Exception:  # MindSpore raises several kinds, some of them protobuf's own
        raise CheckpointError(f"{path}: damaged, truncated or not a MindSpore checkpoint") from None


def _values(p: Parameter) -> np.ndarray:
    # NumPy has no bfloat16
    return (p.astype(ms.float32) if p.dtype == ms.bfloat16 else p).asnumpy()


def _load_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        records = safetensors.deserialize(read_regular(path, sys.maxsize))
    except (OSError, safetensors.SafetensorError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise CheckpointError(f"{path}: damaged, truncated or not a safetensors file: {reason}") from None
    arrays = {}
    for name, record in records:
        if record["dtype"] not in SAFETENSORS_TYPES:
            raise CheckpointError(f"{path}: {name} is of type {record['dtype']}, which isn't read")
        flat = np.frombuffer(record["data"], SAFETENSORS_TYPES[record["dtype"]]) if record["data"] else np.zeros(0)
        if record["dtype"] == "BF16":
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        arrays[name] = flat.reshape(record["shape"])
    return arrays


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
    ms.load_param_into_net(net, {n: Parameter(np.asarray(v), name=n) for n, v in params.items()})


def assign_parameters(parameters: Iterable[Parameter], values: dict[str, np.ndarray]) -> None:
    """Gives each parameter its value by name. Raises CheckpointError unless both hold the same names and shapes."""
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


def _is_of_mask_head(name: str) -> bool:
    return name.split(".")[0].startswith("mask_head")


def not_finite(params: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the parameters that hold NaN or infinity."""
    return [n for n, v in params.items() if v.dtype.kind == "f" and not np.isfinite(v).all()]


def load_detector(detector: nn.Cell, path: str | Path, finetune: bool = False) -> list[str]:
    """Loads a whole checkpoint. With `finetune`, the layers that have an output a class, and parameters of another
    shape, keep their random values: equally many classes aren't the same classes.

    A mask head's parameters are left out, which one line tells, where the detector has no mask head. Returns the names
    left random. Raises CheckpointError for a checkpoint of another model, naming what differs, and for one with numbers
    that aren't finite.
    """
    path = Path(path)
    params = load_checkpoint(path)
    broken = not_finite(params)
    if broken:
        raise CheckpointError(
            f"{path}: holds NaN or infinity (in {_some(broken)}): its training diverged; use an earlier checkpoint, and"
            " train with a lower lr or a longer warmup_step"
        )
    if not any(_is_of_mask_head(p.name) for p in detector.get_parameters()):
        left = [n for n in params if _is_of_mask_head(n)]
        if left:
            print(f"{path}: {len(left)} parameters of the mask head left out, as this detector has none")
            params = {n: v for n, v in params.items() if n not in set(left)}
    missing, extra, differ = _compare(detector, params, path)
    if finetune:
        own = {p.name: tuple(p.shape) for p in detector.get_parameters()}
        usable = {n: v for n, v in params.items() if own.get(n) == v.shape and not _is_of_classes(n, v.shape)}
        if not usable:
            raise CheckpointError(f"{path}: has no parameter of this model; it holds {_some(list(params))}")
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
    if problems:
        raise CheckpointError(f"{path}: a checkpoint of another model ({'; '.join(problems)}); check --config_path")
    _assign(detector, params)
    return []


def load_backbone(detector: nn.Cell, path: str | Path) -> None:
    """Loads the backbone's parameters alone, named `backbone.*` or without that prefix; others are left out.

    Raises CheckpointError if one is missing or of another shape.
    """
    path = Path(path)
    params = load_checkpoint(path)
    wanted = [p for p in detector.get_parameters() if p.name.startswith("backbone.")]
    found = {}
    for p in wanted:
        value = params.get(p.name, params.get(p.name.removeprefix("backbone.")))
        if value is not None:
            found[p.name] = value
    missing = [p.name for p in wanted if p.name not in found]
    differ = [
        f"{p.name} {found[p.name].shape} for {tuple(p.shape)}"
        for p in wanted
        if p.name in found and found[p.name].shape != tuple(p.shape)
    ]
    if missing or differ:
        raise CheckpointError(
            f"{path}: doesn't hold this backbone (missing or of another shape: "
            f"{_some(differ + missing)}); check backbone.type, depth and width"
        )
    _assign(detector, found)


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
