"""The learning rate of every step."""

import math

import numpy as np

from src.config import Config

__all__ = ["describe_rates", "learning_rates"]


def describe_rates(config: Config, rates: np.ndarray, steps_per_epoch: int, ranks: int = 1) -> str:
    """One line on the rates that training will use: where they come from, begin, peak and end; and which warm-up or
    steps of the schedule the run never reaches.
    """
    images, base = config.images_a_step * ranks, config.base_batch_size
    told = f"learning rate {config.lr:g}"
    if base and images != base:
        told = f"learning rate {config.lr * images / base:g} ({config.lr:g} for {base} images a step, here {images})"
    told += (
        f": {rates[0]:.3g} at the first step, {rates.max():.3g} at most, {rates[-1]:.3g} at the last of {len(rates)}"
    )
    if not config.warmup_share and config.warmup_step >= len(rates):
        told += f"; warmup_step {config.warmup_step} is longer than the run, which never reaches its rate"
    late = [e for e in config.lr_steps if e >= config.epoch_size] if config.lr_type == "multistep" else []
    if late:
        told += f"; lr_steps {', '.join(map(str, late))} come after its {config.epoch_size} epochs"
    return told


def learning_rates(config: Config, steps_per_epoch: int, ranks: int = 1) -> np.ndarray:
    """Learning rate of each step of the whole training, (epoch_size * steps_per_epoch,) float32.

    Linear warm-up from warmup_ratio, then steps (divided by 10 after each epoch of lr_steps) or a half cosine down
    to min_lr. Scaled linearly by images a step over base_batch_size (Goyal et al., 2017, arXiv:1706.02677).
    """
    lr = config.lr
    if config.base_batch_size:
        lr *= config.images_a_step * ranks / config.base_batch_size
    total = config.epoch_size * steps_per_epoch
    step = np.arange(total, dtype=np.float64)
    if config.lr_type == "cosine":
        rates = config.min_lr + (lr - config.min_lr) * 0.5 * (1 + np.cos(math.pi * step / total))
    else:
        epoch = step // steps_per_epoch
        drops = sum((epoch >= e).astype(np.int64) for e in config.lr_steps) if config.lr_steps else 0
        rates = lr * 0.1**drops * np.ones(total)
    warmup = config.warmup_share * total if config.warmup_share else config.warmup_step
    if warmup:
        ramp = np.minimum(step / warmup, 1)
        rates = rates * (config.warmup_ratio + (1 - config.warmup_ratio) * ramp)
    return np.maximum(rates, config.min_lr).astype(np.float32)
