"""How the C++ operators share their work among threads, which are kept from one call to the next."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from tests.ops.conftest import ROOT, call

FORKED = """
import os
import numpy as np
from tests.ops.conftest import call

x = np.random.default_rng(0).standard_normal((2, 40, 30, 50)).astype(np.float32)
weight = np.random.default_rng(1).standard_normal((40, 40, 3, 3)).astype(np.float32)

def convolve():
    return call("Conv3x3Forward", [x, weight, np.zeros(40)], (2, 40, 30, 50))[0]

before = convolve()
child = os.fork()
same = all(np.array_equal(convolve(), before) for _ in range(20))
if child == 0:
    os._exit(not same)
assert same and os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_process_has_threads_of_its_own():
    """Loaders of other frameworks fork; a child has none of its parent's threads."""
    environment = {**os.environ, "RCNN_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("count", [1, 2])
def test_calls_at_once_and_one_after_the_other_give_the_same(operators, count, threads):
    threads(count)
    rng = np.random.default_rng(2)
    shapes = [(1, 8, 5 + 7 * i, 40) for i in range(5)]
    inputs = [(rng.standard_normal(s), rng.standard_normal((8, 8, 3, 3)), rng.standard_normal(8)) for s in shapes]
    expected = [call("Conv3x3ForwardReLU", i, s)[0] for i, s in zip(inputs, shapes)]
    wrong = []

    def repeat(k):
        for _ in range(30):
            if not np.array_equal(call("Conv3x3ForwardReLU", inputs[k], shapes[k])[0], expected[k]):
                wrong.append(k)

    callers = [threading.Thread(target=repeat, args=(k,)) for k in range(len(shapes))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong
