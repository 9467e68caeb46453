"""One training step: losses, gradients, update; and the random keys that it is given."""

import numpy as np
from mindspore import Tensor, nn, ops

from src.config import Config
from src.models.build import sampler_key_sizes
from src.models.two_stage import LOSS_NAMES, TwoStageLoss

__all__ = ["TrainStep", "SamplerKeys", "build_optimizer"]

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


class TrainStep(nn.Cell):
    """Losses, gradients, update, in one graph.

    Inputs: as TwoStageLoss. Output: the losses, in the order of LOSS_NAMES, before the update.
    """

    def __init__(self, loss: TwoStageLoss, optimizer: nn.Optimizer, loss_scale: float = 1.0, grad_clip: float = 0.0):
        super().__init__(auto_prefix=False)
        self.loss, self.optimizer = loss, optimizer
        self.weights = optimizer.parameters
        self.grad = ops.GradOperation(get_by_list=True, sens_param=True)
        sens = np.zeros(len(LOSS_NAMES), np.float32)
        sens[0] = loss_scale
        self.sens, self.scale, self.grad_clip = Tensor(sens), 1.0 / loss_scale, grad_clip
        self.map = ops.HyperMap()

    def construct(self, *batch: Tensor) -> Tensor:
        losses = self.loss(*batch)
        grads = self.grad(self.loss, self.weights)(*batch, self.sens)
        if self.scale != 1.0:
            grads = self.map(ops.partial(_times, self.scale), grads)
        if self.grad_clip > 0:
            grads = ops.clip_by_global_norm(grads, self.grad_clip)
        return ops.depend(losses, self.optimizer(grads))


def _times(factor: float, gradient: Tensor) -> Tensor:
    return gradient * factor


class SamplerKeys:
    """Uniform keys by which the samplers choose, a function of seed, epoch, step and image alone.

    numpy's counter-based Philox generator (Salmon et al., 2011), keyed by seed, epoch and image id; so a run repeats
    and resumes bit for bit, whatever the batch that an image lands in.
    """

    def __init__(self, config: Config):
        self.seed = config.seed
        self.sizes = sampler_key_sizes(config)

    def __call__(self, epoch: int, image_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """rpn_keys (B, N) and rcnn_keys (B, P + G), float32 in [0, 1), for images (B,) in `epoch`."""
        rpn = np.empty((len(image_ids), self.sizes[0]), np.float32)
        rcnn = np.empty((len(image_ids), self.sizes[1]), np.float32)
        for i, image_id in enumerate(image_ids):
            words = np.array([self.seed << 32 | epoch, int(image_id) & (2**64 - 1)], np.uint64)
            generator = np.random.Generator(np.random.Philox(key=words))
            generator.random(dtype=np.float32, out=rpn[i])
            generator.random(dtype=np.float32, out=rcnn[i])
        return rpn, rcnn
