"""One training step: losses, gradients, update; and the random keys that it is given."""

from __future__ import annotations

import contextlib
import ctypes
import tempfile
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from src.config import Config
from src.models.build import sampler_key_sizes
from src.models.rcnn import RCNNLoss
from src.ops.device import can_keep, compile_cache_folder, is_kept, kept_in
from src.runtime.newer import zip_equal
from src.training.apart import compile_apart
from src.training.update import Update, build_update

__all__ = ["AccumulatedStep", "SamplerKeys", "TrainStep", "build_step", "compile_step", "step_inputs"]


class TrainStep(nn.Cell):
    """Losses, gradients, update, in one graph.

    Args:
        loss: the network with its losses.  update: of its trainable parameters.

    Inputs: as RCNNLoss. Outputs: the losses in the order of loss.names, before the update, means over ranks; and
    the output of `update`.
    """

    def __init__(self, loss: RCNNLoss, update: Update):
        super().__init__(auto_prefix=False)
        self.loss, self.update, self.checked = loss, update, update.checked
        self.weights, self.average = update.weights, update.average
        self.grad = ops.GradOperation(get_by_list=True, sens_param=True)
        self.sens = Tensor(np.eye(1, len(loss.names), dtype=np.float32)[0])

    def construct(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        batch = (self.update.begun(batch[0]), *batch[1:])
        losses = self.update.mean(self.loss(*batch))
        scale = self.update.scale()
        grads = self.grad(self.loss, self.weights)(*batch, self.sens * scale)
        return losses, self.update(grads, scale)


class Counts(nn.Cell):
    """What the losses of a part are divided by, (num_counts,) float32; see RCNNLoss.with_counts."""

    def __init__(self, loss: RCNNLoss, update: Update):
        super().__init__(auto_prefix=False)
        self.loss, self.update, self.size = loss, update, loss.num_counts

    def construct(self, *part: Tensor) -> Tensor:
        return ops.stack(self.loss.with_counts(self.update.begun(part[0]), *part[1:])[1])


class Part(nn.Cell):
    """Adds a part's gradients, times the loss scale, to `sums`; gives its losses, means over ranks."""

    def __init__(self, loss: RCNNLoss, update: Update, sums: ParameterTuple):
        super().__init__(auto_prefix=False)
        self.loss, self.update, self.weights, self.sums = loss, update, update.weights, sums
        self.grad = ops.GradOperation(get_by_list=True, sens_param=True)
        self.sens = Tensor(np.eye(1, len(loss.names), dtype=np.float32)[0])
        self.map = ops.HyperMap()

    def construct(self, *inputs: Tensor) -> Tensor:
        losses = self.update.mean(self.loss(*inputs))
        grads = self.grad(self.loss, self.weights)(*inputs, self.sens * self.update.scale())
        return ops.depend(losses, self.map(_add, self.sums, grads))


class End(nn.Cell):
    """Updates the weights by the sums of gradients, which are zero then."""

    def __init__(self, update: Update, sums: ParameterTuple):
        super().__init__(auto_prefix=False)
        self.update, self.sums, self.map = update, sums, ops.HyperMap()

    def construct(self) -> Tensor:
        done = self.update(self.map(_value, self.sums), self.update.scale())
        return ops.depend(done, self.map(ops.partial(_clear, done), self.sums))


def _add(total: Parameter, gradient: Tensor) -> Tensor:
    return ops.assign_add(total, gradient)


def _value(total: Parameter) -> Tensor:
    return total * 1.0


def _clear(after: Tensor, total: Parameter) -> Tensor:
    return ops.assign(total, ops.depend(ops.zeros_like(total), after))


def compile_step(config: Config, step: TrainStep | AccumulatedStep, rates: np.ndarray, inputs: list[Tensor]) -> None:
    """Compiles the step that build_step made for inputs like these before it runs, in graph mode, or takes the graph
    that is kept of it; and gives the memory that compiling left behind (0.2 GB of ResNet-50's) back to the system.

    On CPU, with config.compile_apart, another process compiles and keeps the graph for this one: MindSpore doesn't let
    go of another 0.5 GB.
    """
    if ms.get_context("mode") != ms.GRAPH_MODE:
        return
    apart = config.compile_apart and config.device_target == "CPU" and can_keep()
    if isinstance(step, TrainStep) and (apart or config.compile_cache):
        with contextlib.ExitStack() as left:
            # the graph holds the learning rates, of which there are more if the data set has grown
            values = [(x.shape, str(x.dtype)) for x in inputs]
            parameters = [(p.name, p.shape, str(p.dtype)) for p in step.get_parameters()]
            if config.compile_cache:
                folder = compile_cache_folder(config, values, parameters, rates.tolist())
            else:
                folder = Path(left.enter_context(tempfile.TemporaryDirectory(prefix="graph")))
            if apart and not is_kept(folder):
                trim_memory()
                arrays = [(x.shape, str(x.asnumpy().dtype)) for x in inputs]
                if why := compile_apart(config, rates, arrays, folder):
                    print(f"the step is compiled here, with more memory, as another process couldn't: {why}")
            with kept_in(folder):
                step.compile(*inputs)
    else:
        step.compile(*inputs)
    trim_memory()


def trim_memory() -> None:
    """Gives memory that isn't used back to the system."""
    with contextlib.suppress(OSError, AttributeError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)


class AccumulatedStep:
    """TrainStep of a batch in `parts` equal ones, one after the other: the same update, in the memory of one.

    The losses' divisors (sampled anchors, sampled boxes, positives) are the whole batch's. They depend on the network's
    proposals, so a first pass, which ends where the samplers have drawn, counts. Batch norms that learn their
    statistics see a part alone.

    Inputs and outputs are TrainStep's, B a multiple of `parts`.
    """

    def __init__(self, loss: RCNNLoss, update: Update, parts: int):
        self.parts, self.checked, self.average = parts, update.checked, update.average
        self.sums = update.weights.clone("accumulated", "zeros")
        learning = [c for _, c in loss.cells_and_names() if isinstance(c, nn.BatchNorm2d) and not fixed(c)]
        self.statistics = [p for c in learning for p in (c.moving_mean, c.moving_variance)]
        self.counts = Counts(loss, update).set_train()
        self.part = Part(loss, update, self.sums).set_train()
        self.end = End(update, self.sums).set_train()

    def __call__(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        parts = self.split(batch)
        totals = Tensor(self.count(parts))
        losses = [self.part(*p, totals).asnumpy() for p in parts]
        return Tensor(np.sum(losses, axis=0)), self.end()

    def split(self, batch: tuple[Tensor, ...]) -> list[list[Tensor]]:
        """The inputs of each part."""
        arrays = [np.split(x.asnumpy(), self.parts) for x in batch]
        return [[Tensor(a) for a in part] for part in zip_equal(*arrays)]

    def count(self, parts: list[list[Tensor]]) -> np.ndarray:
        """The sums of the parts' counts."""
        before = [p.asnumpy().copy() for p in self.statistics]
        counts = [self.counts(*p).asnumpy() for p in parts]
        for p, values in zip_equal(self.statistics, before):
            # not by set_data, which a compiled graph with a branch, as that of the loss scale, doesn't see
            ops.assign(p, Tensor(values))
        return np.sum(counts, axis=0)

    def compile(self, *batch: Tensor) -> None:
        """Compiles what reads a batch like this one."""
        part = self.split(batch)[0]
        self.counts.compile(*part)
        self.part.compile(*part, Tensor(np.ones(self.counts.size, np.float32)))

    def get_parameters(self) -> list[Parameter]:
        """The weights and what they are trained with; not the sums, which are zero between steps."""
        own = {p.name for p in self.sums}
        found = {p.name: p for cell in (self.part, self.end) for p in cell.get_parameters()}
        return [p for name, p in found.items() if name not in own]


def fixed(norm: nn.BatchNorm2d) -> bool:
    """Whether its running statistics stay as they are in training."""
    return norm.use_batch_statistics is False


def build_step(config: Config, loss: RCNNLoss, rates: np.ndarray, ranks: int = 1) -> TrainStep | AccumulatedStep:
    """The step that `config` describes; `rates`: one learning rate a step."""
    update = build_update(config, loss, rates, ranks)
    if config.accumulate > 1:
        return AccumulatedStep(loss, update, config.accumulate)
    return TrainStep(loss, update).set_train()


def step_inputs(batch: dict[str, np.ndarray], keys: tuple[np.ndarray, np.ndarray]) -> list[Tensor]:
    """The inputs of TrainStep, in RCNNLoss's order, from a loader's batch and the samplers' keys."""
    truth = [k for k in batch if k.startswith("gt_")]
    # without a copy: nothing writes to a batch that has been read
    return [Tensor.from_numpy(a) for a in (*(batch[k] for k in ("image", "image_size", *truth, "ignore_boxes")), *keys)]


class SamplerKeys:
    """Uniform keys by which the samplers choose, a function of seed, epoch, image and how often it came before alone.

    numpy's counter-based Philox generator (Salmon et al., 2011), keyed by seed, epoch and image id; so a run repeats
    and resumes bit for bit, whatever the batch that an image lands in.
    """

    def __init__(self, config: Config):
        self.seed = config.seed
        self.sizes = sampler_key_sizes(config)

    def __call__(
        self, epoch: int, image_ids: np.ndarray, occurrences: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """rpn_keys (B, N) and rcnn_keys (B, P + G), float32 in [0, 1), for images (B,) in `epoch`.

        occurrences: how often each came before in the epoch (default: never).
        """
        earlier = np.zeros(len(image_ids), int) if occurrences is None else occurrences
        rpn = np.empty((len(image_ids), self.sizes[0]), np.float32)
        rcnn = np.empty((len(image_ids), self.sizes[1]), np.float32)
        for i, image_id in enumerate(image_ids):
            words = np.array([self.seed << 32 | epoch, int(image_id) & (2**64 - 1)], np.uint64)
            generator = np.random.Generator(np.random.Philox(key=words, counter=[0, 0, int(earlier[i]), 0]))
            generator.random(dtype=np.float32, out=rpn[i])
            generator.random(dtype=np.float32, out=rcnn[i])
        return rpn, rcnn
