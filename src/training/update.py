"""What follows the gradients: their mean over ranks, the check for overflow, clipping, the optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.amp import all_finite

from src.config import Config

__all__ = ["LossScale", "Update", "build_optimizer", "build_update"]

# what each parameter group is told apart by
NORM_SUFFIXES, BIAS_SUFFIXES = (".gamma", ".beta"), (".bias",)


def build_optimizer(config: Config, loss: nn.Cell, rates: np.ndarray) -> nn.Optimizer:
    """SGD with momentum or Adam over the trainable parameters; `rates` is one learning rate a step."""
    decayed: list[Parameter] = []
    plain: list[Parameter] = []
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


class Update(nn.Cell):
    """Gradients to updated weights.

    Args:
        optimizer: of the weights.  loss_scale: a number, or a LossScale, with which a step whose gradients overflow is
        left out.  grad_clip: largest global norm of the gradients; 0: none.  ranks: processes that train together, over
        whose gradients the mean is taken.

    Inputs: the gradients of the weights, times `scale`; scale (). Output: (2,): 1 if the step was left out, and the
    loss scale from the next step on.
    """

    def __init__(
        self, optimizer: nn.Optimizer, loss_scale: float | LossScale = 1.0, grad_clip: float = 0.0, ranks: int = 1
    ):
        super().__init__(auto_prefix=False)
        self.optimizer, self.weights = optimizer, optimizer.parameters
        self.checked = isinstance(loss_scale, LossScale)
        if isinstance(loss_scale, LossScale):
            self.loss_scale = loss_scale
        else:
            self.constant, self.back = Tensor(loss_scale, ms.float32), 1.0 / loss_scale
            self.unchecked = Tensor(np.array([0.0, loss_scale], np.float32))
        self.grad_clip, self.ranks = grad_clip, ranks
        self.map = ops.HyperMap()
        if ranks > 1:
            if ms.get_context("device_target") == "CPU":
                self.reducer = JoinedMean(self.weights, ranks)
            else:
                self.reducer = nn.DistributedGradReducer(self.weights, True, ranks)
            self.sum = ops.AllReduce()

    def scale(self) -> Tensor:
        """What the loss is to be multiplied by in this step, ()."""
        return self.loss_scale.value * 1.0 if self.checked else self.constant

    def mean(self, losses: Tensor) -> Tensor:
        """The mean over ranks."""
        return self.sum(losses) / self.ranks if self.ranks > 1 else losses

    def construct(self, grads: tuple[Tensor, ...], scale: Tensor) -> Tensor:
        if self.ranks > 1:
            grads = self.reducer(grads)
        if self.checked:
            return self.update_checked(grads, scale)
        if self.back != 1.0:
            grads = self.map(ops.partial(_times, self.back), grads)
        return ops.depend(self.unchecked, self.update(grads))

    def update_checked(self, grads: tuple[Tensor, ...], scale: Tensor) -> Tensor:
        """Updates the weights unless gradients overflowed, on any rank."""
        finite = all_finite(grads)
        if finite:
            done = ops.depend(finite, self.update(self.map(ops.partial(_times, 1.0 / scale), grads)))
        else:
            done = finite
        new_scale = ops.depend(self.loss_scale(finite), done)
        return ops.stack((1.0 - finite.astype(ms.float32), new_scale))

    def update(self, grads: tuple[Tensor, ...]) -> bool:
        if self.grad_clip > 0:
            grads = ops.clip_by_global_norm(grads, self.grad_clip)
        return self.optimizer(grads)


def build_update(config: Config, loss: nn.Cell, rates: np.ndarray, ranks: int = 1) -> Update:
    """The update of the loss's trainable parameters that `config` describes; `rates`: one learning rate a step."""
    scale = config.loss_scale
    if config.has_dynamic_loss_scale:
        scale = LossScale(config.loss_scale_start, True, config.loss_scale_window)
    elif config.is_half:
        scale = LossScale(scale)
    return Update(build_optimizer(config, loss, rates), scale, config.grad_clip, ranks)


def _times(factor: float, gradient: Tensor) -> Tensor:
    return gradient * factor
