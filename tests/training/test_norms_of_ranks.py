"""Two ranks whose norms share their statistics, under msrun on this machine's CPU."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.runtime.newer import zip_equal
from tests.training.norms_of_ranks import Gradients
from tests.training.test_distributed import msrun


@pytest.mark.full
def test_two_ranks_share_the_statistics_of_a_norm(tmp_path):
    """Against MindSpore's own batch norm of all rows that count, in one process."""
    r = np.random.default_rng(0)
    x, sens = (r.normal(1.0, 2.0, (6, 4, 3, 5)).astype(np.float32) for _ in range(2))
    # of the ranks' three rows each, one and three count
    rows = np.array([0, 1, 0, 1, 1, 1], np.float32)
    sens[rows == 0] = 0
    for name, value in {"x": x, "sens": sens, "rows": rows}.items():
        np.save(tmp_path / f"{name}.npy", value)
    done = msrun(tmp_path, "tests/training/norms_of_ranks.py", str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    ranks_of = [np.load(tmp_path / f"{rank}.npz") for rank in (0, 1)]
    ms.set_context(mode=ms.GRAPH_MODE)  # as the ranks: statistics are learnt once
    norm, used = nn.BatchNorm2d(4, 1e-5, 0.9).set_train(), rows > 0
    out, (to_inputs, to_weights) = Gradients(norm)(Tensor(sens[used]), Tensor(x[used]))
    close = {"rtol": 0, "atol": 1e-5}
    for name, wanted in (("out", out), ("dx", to_inputs[0])):
        got = np.concatenate([r[name] for r in ranks_of])
        np.testing.assert_allclose(got[used], wanted.asnumpy(), **close, err_msg=name)
    for name, wanted in zip_equal(("dgamma", "dbeta"), to_weights):
        np.testing.assert_allclose(sum(r[name] for r in ranks_of), wanted.asnumpy(), rtol=1e-5, atol=1e-4)
    for name, wanted in (("mean", norm.moving_mean), ("variance", norm.moving_variance)):
        for r in ranks_of:
            np.testing.assert_allclose(r[name], wanted.asnumpy(), **close, err_msg=name)
