"""The moving average of what training changes, which is often better than the last weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from src.runtime.newer import zip_equal

__all__ = ["STATISTICS", "UPDATES", "MovingAverage"]

STATISTICS = ("moving_mean", "moving_variance")  # how batch norms' names end
UPDATES = "ema.updates"


class MovingAverage(nn.Cell):
    """The exponential moving average of parameters: each run adds (1 - d) * (parameter - average) to it, where
    d = min(decay, (1 + t) / (10 + t)) after t runs, so that the first weights, often random, soon don't count.

    That warm-up is TensorFlow's (tf.train.ExponentialMovingAverage with num_updates). Batch norms' running statistics
    belong among the parameters: they are averages of the same last steps then, where a copy would be of the last
    weights alone. What doesn't change keeps its bits.

    Args:
        parameters: float32, of unique names; the average begins with what they hold.  decay: in [0, 1].

    Input: a tensor on which the parameters depend, as what updated them gives it. Output: it, after the average.
    """

    def __init__(self, parameters: Sequence[Parameter], decay: float):
        super().__init__(auto_prefix=False)
        self.sources = ParameterTuple(parameters)
        self.values = self.sources.clone("ema", "same")
        for p in self.values:
            p.requires_grad = False
        self.updates = Parameter(Tensor(0, ms.int32), name=UPDATES, requires_grad=False)
        self.decay, self.map = Tensor(decay, ms.float32), ops.HyperMap()

    def construct(self, updated: Tensor) -> Tensor:
        t = self.updates.astype(ms.float32)
        share = 1.0 - ops.minimum(self.decay, (1.0 + t) / (10.0 + t))
        done = self.map(ops.partial(_move, ops.depend(share, updated)), self.values, self.sources)
        return ops.depend(updated, (done, ops.assign(self.updates, self.updates + 1)))

    def own_parameters(self) -> list[Parameter]:
        """The averages, and how often they were updated."""
        return [*self.values, self.updates]

    def arrays(self, parameters: Iterable[Parameter]) -> dict[str, np.ndarray]:
        """Of these parameters the averages by the parameters' names, and the others as they are."""
        averages = {source.name: value for source, value in zip_equal(self.sources, self.values)}
        return {p.name: averages.get(p.name, p).asnumpy() for p in parameters}

    def take(self, averages: Mapping[str, np.ndarray], updates: np.ndarray | None) -> None:
        """Goes on from averages by the parameters' names, after so many `updates` (); None: begins with them."""
        for source, value in zip_equal(self.sources, self.values):
            ops.assign(value, Tensor(averages[source.name]))
        ops.assign(self.updates, Tensor(0 if updates is None else int(updates), ms.int32))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages in the parameters, as a block."""
        # assigned: a compiled graph with a branch, as that of a loss scale, wouldn't see what set_data gives them
        before = [p.asnumpy().copy() for p in self.sources]
        try:
            for source, value in zip_equal(self.sources, self.values):
                ops.assign(source, value)
            yield
        finally:
            for source, array in zip_equal(self.sources, before):
                ops.assign(source, Tensor(array))


def _move(share: Tensor, average: Parameter, value: Parameter) -> Tensor:
    return ops.assign_add(average, (value - average) * share)
