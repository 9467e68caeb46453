"""The names and shapes of published checkpoints, as their projects' own code gives its parameters.

names.json.gz holds, for torchvision 0.29, Detectron2 of June 2026 and mmdetection 3.3, `states`: each a list of "name
3x64x7x7", without counters of batches; `models`: which of them a model of benchmarks/published.json has; `refused`: the
same of models that the converter refuses. torchvision's of 2019 have the names of then.
"""

import functools
import gzip
import json
from pathlib import Path

import numpy as np

from tests.checkpoints.convert import foreign

ROOT = Path(__file__).resolve().parents[3]
STORED = json.loads(gzip.decompress(Path(__file__).with_name("names.json.gz").read_bytes()))
OURS = json.loads(gzip.decompress((ROOT / "tests/models/parameters.json.gz").read_bytes()))


def decoded(lines: list[str]) -> dict[str, tuple[int, ...]]:
    return {n: tuple(int(i) for i in s.split("x") if i) for n, s in (line.split(" ") for line in lines)}


def shapes_of(model: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published checkpoint, or of one that is refused."""
    if model.startswith("e2e_"):  # maskrcnn-benchmark's, by its code
        resnext = {"groups": 32, "base": 8} if "32x8d" in model else {}
        depth = 50 if "R_50" in model else 101
        return foreign.maskrcnn_benchmark(81, 256, 1024, "mask" in model, depth=depth, **resnext)
    return decoded(STORED["states"][(STORED["models"] | STORED["refused"])[model]])


def made_up(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Ones, which take no memory."""
    return {n: np.broadcast_to(np.float32(1), s) for n, s in shapes.items()}


@functools.cache
def targets_of(config: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters of a config's detector; tests/models/test_names.py keeps them true."""
    return decoded(OURS["parameters"][OURS["configs"][config]])
