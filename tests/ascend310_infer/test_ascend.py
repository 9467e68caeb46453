"""What the C++ program does for Ascend, as far as that can be seen without one."""

import subprocess

import numpy as np
import pytest

TYPES = {"byte": 1, "int32": 2, "int64": 3, "float16": 4, "float32": 5}


@pytest.fixture(scope="module")
def convert(compiled):
    """convert(numbers, to) -> the numbers as C++ has them in that type, or None: it can't."""
    sources = ["ascend310_infer/src/numbers.cc", "tests/ascend310_infer/numbers_main.cc"]
    program = compiled(sources)
    kinds = {"uint8": "byte", "bool": "byte"}

    def run(numbers, to):
        names = [kinds.get(n, n) for n in (str(numbers.dtype), to)]
        words = [str(TYPES[n]) for n in names] + [str(numbers.size)]
        done = subprocess.run([program, *words], input=numbers.tobytes(), capture_output=True)
        assert done.returncode in (0, 1), done.stderr
        return None if done.returncode else np.frombuffer(done.stdout, to)

    return run


def test_every_float16_becomes_the_same_number(convert):
    halves = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    np.testing.assert_array_equal(convert(halves, "float32"), halves.astype(np.float32))


def test_whole_numbers(convert):
    wide = np.array([0, 1, -5, 80, 2**31 - 1, 2**40, -(2**40)], np.int64)
    np.testing.assert_array_equal(convert(wide, "int32"), np.clip(wide, -(2**31), 2**31 - 1).astype(np.int32))
    np.testing.assert_array_equal(convert(np.array([True, False]), "uint8"), [1, 0])


@pytest.mark.parametrize(("given", "wanted"), [("float32", "int32"), ("float16", "uint8"), ("int32", "float32")])
def test_what_would_be_another_number_is_refused(convert, given, wanted):
    assert convert(np.zeros(3, given), wanted) is None
