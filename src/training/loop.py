"""The training loop: batches in, losses logged, checkpoints and evaluations at their times."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from src.config import Config
from src.data.loader import TrainLoader
from src.errors import UserError
from src.models.two_stage import LOSS_NAMES, TwoStageLoss
from src.training.checkpoints import CheckpointFolder
from src.training.lr_schedule import learning_rates
from src.training.step import SamplerKeys, TrainStep, build_optimizer

__all__ = ["LossLog", "Trainer", "format_losses", "step_inputs"]

BATCH_KEYS = ("image", "image_size", "gt_boxes", "gt_labels", "gt_valid", "gt_masks", "ignore_boxes")


def step_inputs(batch: dict[str, np.ndarray], keys: tuple[np.ndarray, np.ndarray]) -> list[Tensor]:
    """The inputs of TrainStep from a loader's batch and the samplers' keys."""
    return [Tensor(batch[k]) for k in BATCH_KEYS] + [Tensor(k) for k in keys]


def format_losses(epoch: int, step: int, losses: dict[str, float]) -> str:
    """One line of loss_{rank}.log."""
    rpn = losses["rpn_cls_loss"] + losses["rpn_reg_loss"]
    rcnn = losses["rcnn_cls_loss"] + losses["rcnn_reg_loss"] + losses["rcnn_mask_loss"]
    rows = {"rpn_loss": rpn, "rcnn_loss": rcnn, **{k: losses[k] for k in LOSS_NAMES[1:]}}
    rows["total_loss"] = losses["total_loss"]
    return f"epoch: {epoch} step: {step}, " + ", ".join(f"{k}: {v:.5f}" for k, v in rows.items())


class LossLog:
    """loss_{rank}.log: one line an interval, each the mean over the interval's steps."""

    def __init__(self, folder: Path, rank: int, every: int):
        self.path, self.every, self.pending = folder / f"loss_{rank}.log", every, []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "w", buffering=1)  # noqa: SIM115 - closed by close()
        except OSError as e:
            raise UserError(f"{self.path}: can't write: {e.strerror}; set train_outputs to a folder that can") from None

    def add(self, epoch: int, step: int, losses: dict[str, float]) -> None:
        self.pending.append(losses)
        if len(self.pending) == self.every:
            self.flush(epoch, step)

    def flush(self, epoch: int, step: int) -> None:
        if not self.pending:
            return
        mean = {k: float(np.mean([row[k] for row in self.pending])) for k in LOSS_NAMES}
        self.pending = []
        try:
            self.file.write(format_losses(epoch, step, mean) + "\n")
        except OSError as e:
            raise UserError(f"{self.path}: can't write: {e.strerror}; free space") from None

    def close(self) -> None:
        self.file.close()


class Trainer:
    """Trains a detector as `config` says.

    Args:
        loss: the network with its losses.  loader: batches.  evaluate: called with the epoch (from 1) after every
        `eval_every` epochs if config.run_eval.
    """

    def __init__(
        self,
        config: Config,
        loss: TwoStageLoss,
        loader: TrainLoader,
        evaluate: Callable[[int], None] | None = None,
        rank: int = 0,
        ranks: int = 1,
    ):
        self.config, self.loader, self.evaluate, self.rank = config, loader, evaluate, rank
        self.rates = learning_rates(config, len(loader), ranks)
        self.detector = loss.detector
        self.step = TrainStep(loss, build_optimizer(config, loss, self.rates), config.loss_scale, config.grad_clip)
        self.step.set_train()
        self.keys = SamplerKeys(config)
        self.folder = CheckpointFolder(config.output_dir / "checkpoints", config.detector, config.keep_checkpoint_max)

    def run(self) -> None:
        """All epochs. Raises UserError at the first loss that isn't finite, naming step, images and losses."""
        log = LossLog(self.config.output_dir, self.rank, self.config.log_every)
        total = self.config.epoch_size * len(self.loader)
        try:
            with tqdm(total=total, unit="step", disable=self.rank != 0, dynamic_ncols=True) as bar:
                for epoch in range(self.config.epoch_size):
                    self.run_epoch(epoch, log, bar)
        finally:
            log.close()

    def run_epoch(self, epoch: int, log: LossLog, bar: tqdm) -> None:
        """Epoch `epoch`, counted from 0."""
        c, steps = self.config, len(self.loader)
        started = time.perf_counter()
        for i, batch in enumerate(self.loader.epoch(epoch)):
            values = self.step(*step_inputs(batch, self.keys(epoch, batch["image_id"]))).asnumpy()
            losses = dict(zip(LOSS_NAMES, values.tolist(), strict=True))
            if not np.isfinite(values).all():
                raise UserError(
                    f"epoch {epoch + 1} step {i + 1}: a loss isn't finite, on images {batch['image_id'].tolist()}: "
                    + ", ".join(f"{k} {v:.5g}" for k, v in losses.items())
                    + f"; learning rate {self.rates[epoch * steps + i]:.3g}: lower lr or set grad_clip"
                )
            log.add(epoch + 1, i + 1, losses)
            now = time.perf_counter()
            bar.set_postfix_str(
                f"loss {losses['total_loss']:.4f}, {now - started:.2f} s/step, "
                f"{len(batch['image_id']) / (now - started):.2f} img/s",
                refresh=False,
            )
            started = now
            bar.update()
            if c.save_every and (epoch * steps + i + 1) % c.save_every == 0:
                self.save(epoch + 1, i + 1)
        log.flush(epoch + 1, steps)
        last = epoch + 1 == c.epoch_size
        if last or (c.save_every_epochs and (epoch + 1) % c.save_every_epochs == 0):
            self.save(epoch + 1, steps)
        if self.evaluate and c.run_eval and (last or (epoch + 1) % c.eval_every == 0):
            self.evaluate(epoch + 1)

    def save(self, epoch: int, step: int) -> None:
        if self.rank == 0:
            self.folder.save(self.detector, epoch, step)
