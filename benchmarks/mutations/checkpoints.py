"""Small checkpoints of each kind of file, and seeded changes to their bytes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.checkpoints.files import save_checkpoint
from tests.checkpoints.convert.foreign import write_legacy, write_pkl, write_zip

__all__ = ["Seed", "mutate", "seeds", "state"]

CONFIG = (
    "model = dict(backbone=dict(type='ResNet', style='caffe'))\nimg_norm_cfg = dict(mean=[1.0, 2, 3], std=[1, 1, 1])"
)
META = {"meta": {"epoch": 12, "config": CONFIG, "CLASSES": ("person", "car")}}
WHOLE = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]
PIECES = [
    b"\x00",
    b"(",
    b"2" * 30,
    b"q\x00h\x00",
    b"K\xff",
    b"\x85" * 50,
    b"]" * 9,
    b"}",
    b"R",
    b"b",
    b"u",
    b"s",
    b"Q",
    b".",
]
PIECES += [
    b"9" * 5000,
    b"[" * 20_000,
    b'"',
    b"-1",
    b"1e999",
    b"../",
    b"\xff\xff\xff\x7f",
    b"ctorch\nload\n",
    b"PK\x05\x06",
]


@dataclass
class Seed:
    """A valid checkpoint: the file that is read, the files that hold it, whether checksums cover all of its arrays."""

    file: Path
    parts: list[Path]
    summed: bool


def state() -> dict[str, np.ndarray]:
    """What every seed holds."""
    random = np.random.default_rng(7)
    return {
        "conv.weight": random.standard_normal((4, 3, 2, 2)).astype(np.float32),
        "bn.bias": random.standard_normal(6).astype(np.float32),
        "half": random.standard_normal(5).astype(np.float16),
        "bn.num_batches_tracked": np.array([7], np.int64),
    }


def seeds(folder: Path) -> dict[str, Seed]:
    """Writes one checkpoint of each kind below `folder`."""
    arrays = state()

    def wrap(content):
        return META | {"state_dict": content}

    found = {}
    for kind in ("zip", "legacy", "pickle", "npz", "safetensors", "shards", "ckpt"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    found["zip"] = Seed(write_zip(folder / "zip/a.pth", arrays, wrap), [], True)
    found["legacy"] = Seed(write_legacy(folder / "legacy/a.pth", arrays, wrap), [], False)
    found["pickle"] = Seed(write_pkl(folder / "pickle/a.pkl", wrap(arrays)), [], False)
    np.savez(folder / "npz/a.npz", **arrays)
    found["npz"] = Seed(folder / "npz/a.npz", [], True)
    for kind in ("safetensors", "ckpt"):
        found[kind] = Seed(folder / kind / f"a.{kind}", [], True)
        save_checkpoint(arrays, found[kind].file)
    for seed in found.values():
        seed.parts.append(seed.file)
    names, index = list(arrays), folder / "shards/model.safetensors.index.json"
    shards = {"model-1-of-2.safetensors": names[:2], "model-2-of-2.safetensors": names[2:]}
    for file, part in shards.items():
        save_checkpoint({n: arrays[n] for n in part}, index.with_name(file))
    places = {n: file for file, part in shards.items() for n in part}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    for file in folder.rglob("*.safetensors"):
        file.write_bytes(in_order(file.read_bytes()))
    found["shards"] = Seed(index, [index, *(index.with_name(file) for file in shards)], True)
    return found


def in_order(data: bytes) -> bytes:
    """A safetensors file with its header's keys by alphabet: those of its metadata come in any order."""
    size = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:size]), sort_keys=True, separators=(",", ":")).encode()
    return data[:8] + header.ljust(size - 8) + data[size:]


def mutate(random: np.random.Generator, data: bytes) -> bytes:
    """`data` with one to three changes: as disks, downloads and strangers change a file."""
    for _ in range(int(random.integers(1, 4))):
        change = CHANGES[int(random.integers(len(CHANGES)))]
        data = change(random, data) if data else data
    return data


def place(random: np.random.Generator, data: bytes) -> int:
    """A position; at the beginning or the end, where headers and directories are, as often as elsewhere."""
    where, near = int(random.integers(3)), int(random.integers(min(len(data), 600)))
    return (int(random.integers(len(data))), near, len(data) - 1 - near)[where]


def stretch(random: np.random.Generator, data: bytes) -> slice:
    start = place(random, data)
    return slice(start, start + 1 + int(random.integers(1 << int(random.integers(1, 10)))))


def flipped(random: np.random.Generator, data: bytes) -> bytes:
    out = bytearray(data)
    out[place(random, data)] ^= 1 << int(random.integers(8))
    return bytes(out)


def overwritten(random: np.random.Generator, data: bytes) -> bytes:
    where = stretch(random, data)
    size = len(data[where])
    new = (bytes(size), b"\xff" * size, random.bytes(size))[int(random.integers(3))]
    return data[: where.start] + new + data[where.start + size :]


def truncated(random: np.random.Generator, data: bytes) -> bytes:
    return data[: place(random, data)]


def deleted(random: np.random.Generator, data: bytes) -> bytes:
    where = stretch(random, data)
    return data[: where.start] + data[where.stop :]


def repeated(random: np.random.Generator, data: bytes) -> bytes:
    where = stretch(random, data)
    return data[: where.stop] + data[where] * int(random.integers(1, 40)) + data[where.stop :]


def moved(random: np.random.Generator, data: bytes) -> bytes:
    where, target = stretch(random, data), place(random, data)
    rest = data[: where.start] + data[where.stop :]
    return rest[:target] + data[where] + rest[target:]


def numbered(random: np.random.Generator, data: bytes) -> bytes:
    size, start = int(random.choice([1, 2, 4, 8])), place(random, data)
    number = WHOLE[int(random.integers(len(WHOLE)))] & ((1 << 8 * size) - 1)
    order = ("little", "big")[int(random.integers(2))]
    return data[:start] + number.to_bytes(size, order) + data[start + size :]


def inserted(random: np.random.Generator, data: bytes) -> bytes:
    start = place(random, data)
    return data[:start] + PIECES[int(random.integers(len(PIECES)))] + data[start:]


def digits(random: np.random.Generator, data: bytes) -> bytes:
    """Of sizes, shapes and offsets that are written as text."""
    there = [i for i in range(len(data)) if 48 <= data[i] <= 57]
    if not there:
        return data
    at = there[int(random.integers(len(there)))]
    return data[:at] + str(int(random.integers(10 ** int(random.integers(1, 12))))).encode() + data[at + 1 :]


Change = Callable[[np.random.Generator, bytes], bytes]
CHANGES: list[Change] = [
    flipped,
    flipped,
    overwritten,
    truncated,
    deleted,
    repeated,
    moved,
    numbered,
    inserted,
    digits,
]
