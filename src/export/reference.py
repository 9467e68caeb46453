"""What the split form's graphs give in Python for inputs that any program can make again, in a small file.

Little endian: "RCNNREF2", float32 tolerance, uint32 cases. Each case: uint32 role (0 features, 1 box, 2 the detector's
first branch, 3 its second, ...), uint32 stage, uint64 seed, float32 scale, uint32 dimensions and uint32 each of them:
the input is `uniform` of these; uint32 outputs, and for each: uint32 dimensions and each of them, float32 largest
absolute value, uint32 step, uint32 samples, float32 each of them: elements 0, step, 2 step, ... What a branch's heads
give is what its `reference` says (src/export/branches/).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["BOX", "FEATURES", "FIRST_BRANCH", "MAX_SAMPLES", "Case", "uniform", "write_reference"]

FEATURES, BOX, FIRST_BRANCH = range(3)  # roles
MAX_SAMPLES = 2048


@dataclass
class Case:
    """One run of one graph: its input is uniform(seed, shape, scale), `outputs` are what it has to give."""

    role: int
    stage: int
    seed: int
    scale: float
    shape: tuple[int, ...]
    outputs: list[np.ndarray]


def uniform(seed: int, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """float32 in [-scale, scale), element by element from its place and the seed (SplitMix64's mixing function)."""
    with np.errstate(over="ignore"):
        x = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    unit = (x >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    return (unit * np.float32(scale)).reshape(shape)


def write_reference(path: str | Path, cases: list[Case], tolerance: float) -> None:
    """Writes the file. Raises OSError."""
    parts = [b"RCNNREF2", struct.pack("<fI", tolerance, len(cases))]
    for c in cases:
        parts.append(struct.pack("<IIQf", c.role, c.stage, c.seed, c.scale))
        parts += [dimensions(c.shape), struct.pack("<I", len(c.outputs))]
        for values in c.outputs:
            flat = np.ascontiguousarray(values, np.float32).ravel()
            step = -(-len(flat) // MAX_SAMPLES)
            samples = flat[::step]
            parts += [dimensions(values.shape), struct.pack("<fII", float(np.abs(flat).max()), step, len(samples))]
            parts.append(samples.astype("<f4").tobytes())
    Path(path).write_bytes(b"".join(parts))


def dimensions(shape: tuple[int, ...]) -> bytes:
    return struct.pack(f"<{1 + len(shape)}I", len(shape), *shape)
