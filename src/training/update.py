"""What follows the gradients: their mean over ranks, the check for overflow, clipping, the optimizer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.amp import all_finite
from mindspore.ops.operations.math_ops import NPUClearFloatStatusV2

from src.config import Config
from src.models.backbones.vit import layer_rate, transformer_layers
from src.ops.device import ascend_chip
from src.ops.library import custom_operator_path
from src.ops.weights import MomentumStep
from src.training.average import STATISTICS, MovingAverage

__all__ = ["Adam", "AdamW", "LossScale", "Update", "build_optimizer", "build_update", "describe_layer_rates"]

MOST_SCALE = 2.0**120  # times which float32 holds losses
MOST_ON_ASCEND = 2.0**15  # where the scale itself may be in float16
CPUS_FOR_BRANCHES = 12  # that MindSpore wants on an Ascend host
# what each parameter group is told apart by
NORM_SUFFIXES, BIAS_SUFFIXES = (".gamma", ".beta"), (".bias",)
POSITIONS = ("backbone.pos_embed", ".position_bias")  # of transformers: never decayed


def build_optimizer(config: Config, loss: nn.Cell, rates: np.ndarray) -> nn.Optimizer:
    """SGD with momentum, Adam or AdamW over the trainable parameters; `rates` is one learning rate a step."""
    layers = transformer_layers(config.backbone.type)
    # by weight decay and share of the learning rate
    told: dict[tuple[float, float], list[Parameter]] = {(config.weight_decay, 1.0): []}
    for p in loss.trainable_params():
        norm, bias = p.name.endswith(NORM_SUFFIXES), p.name.endswith(BIAS_SUFFIXES)
        exempt = (norm and not config.weight_decay_norm) or (bias and not config.weight_decay_bias)
        exempt = exempt or p.name.endswith(POSITIONS)
        share = layer_rate(p.name, layers, config.layer_decay)
        told.setdefault((0.0 if exempt else config.weight_decay, share), []).append(p)
    groups: list[dict[str, Any]] = []
    for (decay, share), params in told.items():
        if params:
            own = {} if config.layer_decay == 1 else {"lr": Tensor((rates * share).astype(rates.dtype))}
            groups.append({"params": params, "weight_decay": decay, **own})
    groups.append({"order_params": loss.trainable_params()})
    rate = Tensor(rates)
    if config.opt_type == "adamw":
        return AdamW(groups, rate, weight_decay=config.weight_decay)
    if config.opt_type == "adam":
        return Adam(groups, rate, weight_decay=config.weight_decay)
    return Momentum(groups, rate, config.momentum, weight_decay=config.weight_decay)


class Momentum(nn.Momentum):
    """nn.Momentum that in graphs on CPU decays, averages and updates in one pass. Of MindSpore's own operators the
    decay reads the weights a second time in the step, for which it copies all of them; and the products of weights and
    decay, for which nothing has to be waited, are there from the step's begin until the gradients are.

    Arguments and inputs as nn.Momentum's, of groups of parameters that each state their weight decay.
    """

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        # without graph mode nothing says that an operator writes where it reads
        library = custom_operator_path(False) if ms.get_context("mode") == ms.GRAPH_MODE else None
        self.fused = library is not None
        if library is not None:
            self.step_op = MomentumStep(library)

    def construct(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not self.fused:
            return super().construct(gradients)
        rates, decays = self.get_lr(), self.get_weight_decay()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        if self.is_group_lr:
            step = ops.partial(_momentum_step, self.step_op, self.momentum)
            return self.hyper_map_reverse(step, rates, decays, gradients, self.params, self.moments)
        step = ops.partial(_momentum_step, self.step_op, self.momentum, rates)
        return self.hyper_map_reverse(step, decays, gradients, self.params, self.moments)


def describe_layer_rates(config: Config) -> str:
    """One line on the shares of the learning rate that layer_decay gives a transformer's layers; empty without it."""
    if config.layer_decay == 1:
        return ""
    layers = transformer_layers(config.backbone.type)
    least, first, last = (
        layer_rate(f"backbone.{name}", layers, config.layer_decay)
        for name in ("pos_embed", "blocks.0.", f"blocks.{layers - 1}.")
    )
    return (
        f"of the learning rate patches and positions have {least:.3g}, layer 1 {first:.3g}, layer {layers} {last:.3g},"
        f" what follows all (layer_decay {config.layer_decay:g})"
    )


class Adam(nn.Adam):
    """Adam (Kingma and Ba, 2014, arXiv:1412.6980, algorithm 1, as PyTorch has it). nn.Adam adds epsilon to the second
    moment's root before the correction of the first steps, where it is some thirty times as much in the first: weights
    with gradients around 1e-7, such as a pyramid's coarsest level, then hardly move.

    Arguments and inputs as nn.Adam's, of groups of parameters that each state their weight decay.
    """

    beta1_power: Parameter
    beta2_power: Parameter

    def construct(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        gradients, rates = self.decay_weight(gradients), self.get_lr()
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        beta1_power, beta2_power = self.beta1_power * self.beta1, self.beta2_power * self.beta2
        self.beta1_power, self.beta2_power = beta1_power, beta2_power
        # which the operator doesn't correct, as it does the second moment
        eps = self.eps * ops.sqrt(1.0 - beta2_power)
        betas = (beta1_power, beta2_power, self.beta1, self.beta2, eps)
        if self.is_group_lr:
            step = ops.partial(_adam_step, self.opt, betas)
            return self.map_(step, rates, gradients, self._parameters, self.moment1, self.moment2)
        step = ops.partial(_adam_step, self.opt, betas, rates)
        return self.map_(step, gradients, self._parameters, self.moment1, self.moment2)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2017, arXiv:1711.05101): the weights shrink by learning
    rate times decay, and the gradient knows nothing of it. MindSpore's AdamWeightDecay leaves out Adam's correction of
    the first steps' moments.
    """

    def decay_weight(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Shrinks the weights, before what Adam does to them; the gradients as they are."""
        rates, decays = self.get_lr(), self.get_weight_decay()
        if self.is_group_lr:
            done = self.map_(_shrink, rates, decays, self._parameters)
        else:
            done = self.map_(ops.partial(_shrink, rates), decays, self._parameters)
        return ops.depend(gradients, done)


def _momentum_step(
    op: MomentumStep,
    momentum: Tensor,
    rate: Tensor,
    decay: Tensor,
    gradient: Tensor,
    weight: Parameter,
    moment: Parameter,
) -> Tensor:
    return op(weight, moment, gradient, rate, decay, momentum)


def _adam_step(
    op: ops.Adam,
    betas: tuple[Tensor, ...],
    rate: Tensor,
    gradient: Tensor,
    weight: Parameter,
    moment1: Parameter,
    moment2: Parameter,
) -> bool:
    beta1_power, beta2_power, beta1, beta2, eps = betas
    return ops.depend(True, op(weight, moment1, moment2, beta1_power, beta2_power, rate, beta1, beta2, eps, gradient))


def _shrink(rate: Tensor, decay: float, weight: Parameter) -> Tensor:
    return ops.assign(weight, weight * (1.0 - rate * decay))


class LossScale(nn.Cell):
    """What the loss is multiplied by, that small gradients survive float16 (Micikevicius et al., arXiv:1710.03740).

    Args:
        value: at the start.  dynamic: halved (to at least 1) at an overflow, doubled after `window` steps without one,
        to at most `most`.
    """

    def __init__(self, value: float, dynamic: bool = False, window: int = 1000, most: float = MOST_SCALE):
        super().__init__()
        self.dynamic, self.window, self.most = dynamic, window, most
        self.value = Parameter(Tensor(value, ms.float32), name="loss_scale.value", requires_grad=False)
        self.clean = Parameter(Tensor(0, ms.int32), name="loss_scale.clean_steps", requires_grad=False)

    def construct(self, finite: Tensor) -> Tensor:
        """Adapts to a step whose gradients were `finite`, a bool (); returns the scale from the next step on."""
        if not self.dynamic:
            return self.value * 1.0
        clean = ops.select(finite, self.clean + 1, ops.zeros_like(self.clean))
        full = clean >= self.window
        grown = ops.select(full, ops.minimum(self.value * 2.0, self.most), self.value * 1.0)
        value = ops.select(finite, grown, ops.maximum(self.value * 0.5, 1.0))
        clean = ops.select(full, ops.zeros_like(clean), clean)
        return ops.depend(value, (ops.assign(self.value, value), ops.assign(self.clean, clean)))


class JoinedMean(nn.Cell):
    """The mean over ranks of gradients shaped like `weights`, all in one message: MindSpore's own reducer sends one for
    each or for a few, and a small message takes longer than what is in it.
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
        whose gradients the mean is taken.  chip: of Ascend, as ascend_chip says.  branch: what leaves a step out is a
        branch of the graph; else everything is updated, and put back.  average: follows the weights that this updates.

    Inputs: the gradients of the weights, times `scale`; scale (). Output: (2,): 1 if the step was left out, and the
    loss scale from the next step on.
    """

    def __init__(
        self,
        optimizer: nn.Optimizer,
        loss_scale: float | LossScale = 1.0,
        grad_clip: float = 0.0,
        ranks: int = 1,
        chip: str = "",
        branch: bool = True,
        average: MovingAverage | None = None,
    ):
        super().__init__(auto_prefix=False)
        self.branch = branch
        # all_finite then asks the chip, whose answer is of everything since it was last cleared
        self.asks_chip = chip == "ascend910" or os.environ.get("MS_ASCEND_CHECK_OVERFLOW_MODE") == "SATURATION_MODE"
        self.asks_chip = self.asks_chip and chip != ""
        self.clear: Any = NPUClearFloatStatusV2() if self.asks_chip else None
        if self.asks_chip:
            self.clear = NPUClearFloatStatusV2()
        self.status = Tensor(np.zeros(8, np.int32))
        self.averages = average is not None
        self.average: Any = average
        own = [] if average is None else average.own_parameters()
        self.state = ParameterTuple([*optimizer.get_parameters(), *own])
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
            self.reducer, self.sum = JoinedMean(self.weights, ranks), ops.AllReduce()

    def begun(self, image: Tensor) -> Tensor:
        """The step's first input, of a step from whose begin on overflows count."""
        if self.checked and self.asks_chip:
            return ops.depend(image, self.clear(self.status))
        return image

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
        finite = self.finite_on_all_ranks(grads)
        if not self.branch:
            done = self.update_without_branch(grads, scale, finite)
        elif finite:
            done = ops.depend(finite, self.update(self.map(ops.partial(_times, 1.0 / scale), grads)))
        else:
            done = finite
        new_scale = ops.depend(self.loss_scale(finite), done)
        return ops.stack((1.0 - finite.astype(ms.float32), new_scale))

    def finite_on_all_ranks(self, grads: tuple[Tensor, ...]) -> Tensor:
        """Whether no rank saw an overflow, a bool (); the same on all."""
        finite = all_finite(grads)
        if self.ranks == 1:
            return finite
        return self.sum(1.0 - finite.astype(ms.float32).reshape(1)).reshape(()) < 0.5

    def update_without_branch(self, grads: tuple[Tensor, ...], scale: Tensor, finite: Tensor) -> Tensor:
        """Updates by gradients that are zero unless `finite`, and puts back what that changed."""
        before = self.map(_copy, self.state)
        grads = self.map(ops.partial(_times_if, finite, 1.0 / scale), ops.depend(grads, before))
        after = ops.depend(finite, self.update(grads))
        return ops.depend(finite, self.map(ops.partial(_unless, after), self.state, before))

    def update(self, grads: tuple[Tensor, ...]) -> bool:
        if self.grad_clip > 0:
            grads = ops.clip_by_global_norm(grads, self.grad_clip)
        done = self.optimizer(grads)
        return self.average(done) if self.averages else done


def build_update(config: Config, loss: nn.Cell, rates: np.ndarray, ranks: int = 1) -> Update:
    """The update of the loss's trainable parameters that `config` describes; `rates`: one learning rate a step."""
    scale, chip = config.loss_scale, ascend_chip()
    if config.has_dynamic_loss_scale:
        most = MOST_ON_ASCEND if chip else MOST_SCALE
        scale = LossScale(min(config.loss_scale_start, most), True, config.loss_scale_window, most)
    elif config.is_half:
        scale = LossScale(scale)
    # there, MindSpore can't build a graph whose one branch this is
    branch = not chip or len(os.sched_getaffinity(0)) >= CPUS_FOR_BRANCHES
    average = None
    if config.ema_decay:
        learnt = [p for p in loss.get_parameters() if p.requires_grad or p.name.endswith(STATISTICS)]
        average = MovingAverage(learnt, config.ema_decay)
    return Update(build_optimizer(config, loss, rates), scale, config.grad_clip, ranks, chip, branch, average)


def _times(factor: float, gradient: Tensor) -> Tensor:
    return gradient * factor


def _times_if(wanted: Tensor, factor: Tensor, gradient: Tensor) -> Tensor:
    return ops.select(wanted, gradient * factor, ops.zeros_like(gradient))


def _copy(value: Parameter) -> Tensor:
    # a new tensor, where adding nothing might be left out
    return ops.select(value == value, value, ops.zeros_like(value))


def _unless(finite: Tensor, value: Parameter, before: Tensor) -> Tensor:
    return ops.assign(value, ops.select(finite, value, before))
