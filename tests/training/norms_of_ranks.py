"""A rank's part of a batch through a norm of kind sync: python norms_of_ranks.py FOLDER, which holds x, sens, rows."""

import os
import sys
from pathlib import Path

sys.path.insert(0, os.getcwd())

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.models.norms import BatchNorm
from src.runtime.ranks import join_group


class Gradients(nn.Cell):
    """A norm's output for x and rows, and the gradients of its product with `sens` to x, scale and shift."""

    def __init__(self, norm: nn.Cell):
        super().__init__(auto_prefix=False)
        self.norm, self.weights = norm, ms.ParameterTuple([norm.gamma, norm.beta])
        self.grad = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)

    def construct(self, sens: Tensor, *inputs: Tensor) -> tuple:
        return self.norm(*inputs), self.grad(self.norm, self.weights)(*inputs, sens)


def main(folder: Path) -> None:
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")
    group = join_group(True)
    norm = BatchNorm(4, 1e-5, 0.9, synced=True)
    norm.use_ranks(group.size)
    x, sens, rows = (np.split(np.load(folder / f"{n}.npy"), group.size)[group.rank] for n in ("x", "sens", "rows"))
    out, (to_inputs, to_weights) = Gradients(norm.set_train())(Tensor(sens), Tensor(x), Tensor(rows))
    parts = {"out": out, "dx": to_inputs[0], "dgamma": to_weights[0], "dbeta": to_weights[1]}
    parts |= {"mean": norm.moving_mean, "variance": norm.moving_variance}
    np.savez(folder / f"{group.rank}.npz", **{name: value.asnumpy() for name, value in parts.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
