"""One training step: losses, gradients, update; and the random keys that it is given."""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.amp import all_finite

from src.config import Config
from src.models.build import sampler_key_sizes
from src.models.two_stage import LOSS_NAMES, TwoStageLoss

__all__ = ["LossScale", "TrainStep", "SamplerKeys", "build_optimizer", "build_step", "step_inputs"]

BATCH_KEYS = ("image", "image_size", "gt_boxes", "gt_labels", "gt_valid", "gt_masks", "ignore_boxes")
# what each parameter group is told apart by
NORM_SUFFIXES, BIAS_SUFFIXES = (".gamma", ".beta"), (".bias",)


def build_optimizer(config: Config, loss: nn.Cell, rates: np.ndarray) -> nn.Optimizer:
    """SGD with momentum or Adam over the trainable parameters; `rates` is one learning rate a step."""
    decayed, plain = [], []
    for p in loss.trainable_params():
        norm, bias = p.name.endswith(NORM_SUFFIXES), p.name.endswith(BIAS_SUFFIXES)
        exempt = (norm and not config.weight_decay_norm) or (bias and not config.weight_decay_bias)
        (plain if exempt else decayed).append(p)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}]
    if plain:
        groups.append({"params": plain, "weight_decay": 0.0})
    groups.append({"order_params": loss.trainable_params()})
    rate = Tensor(rates)
    if config.opt_type == "adam":
        return nn.Adam(groups, rate, weight_decay=config.weight_decay)
    return nn.Momentum(groups, rate, config.momentum, weight_decay=config.weight_decay)


class LossScale(nn.Cell):
    """What the loss is multiplied by, that small gradients survive float16 (Micikevicius et al., arXiv:1710.03740).

    Args:
        value: at the start.  dynamic: halved (to at least 1) at an overflow, doubled after `window` steps without one.
    """

    def __init__(self, value: float, dynamic: bool = False, window: int = 1000):
        super().__init__()
        self.dynamic, self.window = dynamic, window
        self.value = Parameter(Tensor(value, ms.float32), name="loss_scale.value", requires_grad=False)
        self.clean = Parameter(Tensor(0, ms.int32), name="loss_scale.clean_steps", requires_grad=False)

    def construct(self, finite: Tensor) -> Tensor:
        """Adapts to a step whose gradients were `finite`, a bool (); returns the scale from the next step on."""
        if not self.dynamic:
            return self.value * 1.0
        clean = ops.select(finite, self.clean + 1, ops.zeros_like(self.clean))
        full = clean >= self.window
        grown = ops.select(full, self.value * 2.0, self.value * 1.0)
        value = ops.select(finite, grown, ops.maximum(self.value * 0.5, 1.0))
        clean = ops.select(full, ops.zeros_like(clean), clean)
        return ops.depend(value, (ops.assign(self.value, value), ops.assign(self.clean, clean)))


class JoinedMean(nn.Cell):
    """The mean over ranks of gradients shaped like `weights`, all in one message: on CPU, MindSpore's own reducer sends
    one for each, and a message takes longer than what is in it.
    """

    def __init__(self, weights: Sequence[Parameter], ranks: int):
        super().__init__(auto_prefix=False)
        self.sizes = tuple(w.size for w in weights)
        self.places = tuple(int(sum(self.sizes[:i])) for i in range(len(weights)))
        self.join, self.sum, self.share = ops.Concat(), ops.AllReduce(), 1.0 / ranks
        self.map = ops.HyperMap()

    def construct(self, grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        mean = self.sum(self.join(self.map(_flat, grads))) * self.share
        return self.map(ops.partial(_part, mean), self.places, self.sizes, grads)


def _flat(gradient: Tensor) -> Tensor:
    return gradient.reshape((-1,))


def _part(joined: Tensor, place: int, size: int, gradient: Tensor) -> Tensor:
    return joined[place : place + size].reshape(gradient.shape)


class TrainStep(nn.Cell):
    """Losses, gradients, update, in one graph.

    Args:
        loss: the network with its losses.  optimizer: of its trainable parameters.  loss_scale: a number, or a
        LossScale, with which a step whose gradients overflow is left out.  grad_clip: largest global norm of the
        gradients; 0: none.  ranks: processes that train together, over whose gradients the mean is taken.

    Inputs: as TwoStageLoss. Outputs: the losses in the order of LOSS_NAMES, before the update, means over ranks;
    (2,): 1 if the step was left out, and the loss scale from the next step on.
    """

    def __init__(
        self,
        loss: TwoStageLoss,
        optimizer: nn.Optimizer,
        loss_scale: float | LossScale = 1.0,
        grad_clip: float = 0.0,
        ranks: int = 1,
    ):
        super().__init__(auto_prefix=False)
        self.loss, self.optimizer = loss, optimizer
        self.weights = optimizer.parameters
        self.grad = ops.GradOperation(get_by_list=True, sens_param=True)
        self.sens = Tensor(np.eye(1, len(LOSS_NAMES), dtype=np.float32)[0])
        self.checked = isinstance(loss_scale, LossScale)
        if self.checked:
            self.loss_scale = loss_scale
        else:
            self.sens, self.scale = self.sens * loss_scale, 1.0 / loss_scale
            self.unchecked = Tensor(np.array([0.0, loss_scale], np.float32))
        self.grad_clip, self.ranks = grad_clip, ranks
        self.map = ops.HyperMap()
        if ranks > 1:
            if ms.get_context("device_target") == "CPU":
                self.reducer = JoinedMean(self.weights, ranks)
            else:
                self.reducer = nn.DistributedGradReducer(self.weights, True, ranks)
            self.sum = ops.AllReduce()

    def construct(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        losses = self.loss(*batch)
        if self.ranks > 1:
            losses = self.sum(losses) / self.ranks
        if self.checked:
            return losses, self.checked_update(batch)
        grads = self.reduced(self.grad(self.loss, self.weights)(*batch, self.sens))
        if self.scale != 1.0:
            grads = self.map(ops.partial(_times, self.scale), grads)
        return losses, ops.depend(self.unchecked, self.update(grads))

    def checked_update(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Updates the weights unless gradients overflowed, on any rank."""
        scale = self.loss_scale.value * 1.0
        grads = self.reduced(self.grad(self.loss, self.weights)(*batch, self.sens * scale))
        finite = all_finite(grads)
        if finite:
            done = ops.depend(finite, self.update(self.map(ops.partial(_times, 1.0 / scale), grads)))
        else:
            done = finite
        new_scale = ops.depend(self.loss_scale(finite), done)
        return ops.stack((1.0 - finite.astype(ms.float32), new_scale))

    def reduced(self, grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.reducer(grads) if self.ranks > 1 else grads

    def update(self, grads: tuple[Tensor, ...]) -> bool:
        if self.grad_clip > 0:
            grads = ops.clip_by_global_norm(grads, self.grad_clip)
        return self.optimizer(grads)


def build_step(config: Config, loss: TwoStageLoss, rates: np.ndarray, ranks: int = 1) -> TrainStep:
    """The step that `config` describes; `rates`: one learning rate a step."""
    scale = config.loss_scale
    if config.has_dynamic_loss_scale:
        scale = LossScale(config.loss_scale_start, True, config.loss_scale_window)
    elif config.is_half:
        scale = LossScale(scale)
    step = TrainStep(loss, build_optimizer(config, loss, rates), scale, config.grad_clip, ranks)
    return step.set_train()


def _times(factor: float, gradient: Tensor) -> Tensor:
    return gradient * factor


def step_inputs(batch: dict[str, np.ndarray], keys: tuple[np.ndarray, np.ndarray]) -> list[Tensor]:
    """The inputs of TrainStep from a loader's batch and the samplers' keys."""
    return [Tensor(batch[k]) for k in BATCH_KEYS] + [Tensor(k) for k in keys]


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
