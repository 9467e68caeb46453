"""What the C++ program writes of an image, as Python reads it; and its proposals, on made up numbers."""

import subprocess

import numpy as np
import pytest

from src.evaluation.cpp_results import read_result

SOURCES = [f"ascend310_infer/src/{name}.cc" for name in ("files", "json", "results")]


@pytest.fixture(scope="module")
def pack(compiled):
    """pack(count, *fields) -> the bytes of a result."""
    program = compiled([*SOURCES, "tests/ascend310_infer/pack_main.cc"])
    return lambda *words: subprocess.run([program, *map(str, words)], capture_output=True, check=True).stdout


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("fields", [(), ("mask",), ("points",), ("mask", "points")])
def test_fields_arrive_as_they_were_written(count, fields, pack, tmp_path):
    path = tmp_path / "a.det"
    path.write_bytes(pack(count, *fields))
    # what the first format has room for, it holds, as every reader of it expects
    assert path.read_bytes()[:8] == (b"RCNNDET2" if "points" in fields else b"RCNNDET1")
    found = read_result(path)
    assert (found.height, found.width, list(found.fields)) == (40, 60, list(fields))
    np.testing.assert_array_equal(found.boxes, np.arange(count)[:, None] + np.arange(4.0)[None])
    np.testing.assert_array_equal(found.labels, np.arange(count))
    assert (found.masks is None) == ("mask" not in fields)
    for name, shape, dtype in (("mask", (2, 2), np.uint8), ("points", (3, 2), np.float32)):
        if name in fields:
            values = found.fields[name]
            assert (values.shape, values.dtype) == ((count, *shape), dtype)
            np.testing.assert_array_equal(values.ravel(), np.arange(values.size))


def test_results_with_fields_that_are_not_whole(pack, refusal, tmp_path):
    path, data = tmp_path / "a.det", pack(3, "mask", "points")
    # of the two fields' table: a type that there isn't, too many dimensions, no elements, a name twice
    table = {40: b"f8", 44: b"\xff", 48: b"\0", 56: b"mask\0\0"}
    spoilt = [data[:at] for at in range(0, len(data), 3)] + [data + b"\0"]
    spoilt += [data[:at] + value + data[at + len(value) :] for at, value in table.items()]
    for some in spoilt:
        path.write_bytes(some)
        with refusal(ValueError, path, "not a whole result"):
            read_result(path)


@pytest.mark.parametrize("by_logits", [0, 1])
def test_proposals_below_the_least_score_are_none(by_logits, compiled):
    sources = ["ascend310_infer/src/proposals.cc", "tests/ascend310_infer/proposals_main.cc"]
    program = compiled(sources)
    logits = np.random.default_rng(0).normal(0, 2, 60).astype(np.float32)
    for threshold in (0, 0.1, 0.5, 0.9, 1):
        done = subprocess.run([program, str(threshold), str(by_logits)], input=logits.tobytes(), capture_output=True)
        assert int(done.stdout) == (1 / (1 + np.exp(-logits)) >= threshold).sum()
