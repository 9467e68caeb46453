"""Random changes to the bytes of checkpoints: read, or refused in one line; what has a checksum is never read wrong."""

import numpy as np
import pytest

from benchmarks.mutations.checkpoints import mutate, seeds, state
from src.checkpoints.convert.conventions import said_of_itself
from src.checkpoints.convert.conversion import fits_a_layout
from src.checkpoints.convert.readers import read_state
from src.runtime.errors import UserError

CASES = 150  # of each kind


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return seeds(tmp_path_factory.mktemp("seeds"))


def differs(arrays) -> bool:
    wanted = state()
    return arrays.keys() != wanted.keys() or any(
        (arrays[n].dtype, arrays[n].shape, arrays[n].tobytes()) != (v.dtype, v.shape, v.tobytes())
        for n, v in wanted.items()
    )


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "npz", "safetensors", "shards", "ckpt"])
def test_changed_bytes(kind, written):
    seed = written[kind]
    originals = {part: part.read_bytes() for part in seed.parts}
    assert not differs(read_state(seed.file).arrays)
    for number in range(CASES):
        random = np.random.default_rng([21, number])
        part = seed.parts[int(random.integers(len(seed.parts)))]
        part.write_bytes(mutate(random, originals[part]))
        try:
            read = read_state(seed.file, fits_a_layout)
            said_of_itself(read.meta, read.arrays)
            # a .ckpt that lost its checksum says so
            assert not (seed.summed and read.whole and differs(read.arrays)), number
        except UserError as e:
            assert str(seed.file.parent) in str(e) and "\n" not in str(e), number
        part.write_bytes(originals[part])
