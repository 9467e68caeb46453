"""The training loop: batches in, losses logged, checkpoints and evaluations at their times."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, ops
from tqdm import tqdm

from src.checkpoints.files import CheckpointError, assign_parameters, not_finite, position_of
from src.config import Config, save_config
from src.data.loader import TrainLoader
from src.data.workers import WorkerDied
from src.evaluation.coco import Summary
from src.evaluation.kinds import leading_ap
from src.models.rcnn import RCNNLoss
from src.runtime.errors import UserError
from src.runtime.launch import JOB_VARIABLE
from src.runtime.masking import masked_keys
from src.runtime.newer import zip_equal
from src.runtime.ranks import Group
from src.training.average import STATISTICS, UPDATES
from src.training.lr_schedule import learning_rates
from src.training.resume import BestCheckpoints, ResumeFolder, TrainingState, set_aside, set_aside_after
from src.training.signals import Stopped, StopRequest
from src.training.step import SamplerKeys, build_step, compile_step, step_inputs
from src.training.tracking import Interval, Tracker, demand_packages, evaluations, make_trackers, validations

__all__ = ["Trainer"]

FIRST_LOSSES = 100  # that tell what is usual
SKIPPED_IN_A_ROW = 30  # a loss scale falls from 65536 to 1 in 16 steps


class Trainer:
    """Trains a detector as `config` says.

    Args:
        loss: the network with its losses.  loader: batches.  evaluate: called with the epoch (from 1) after every
        `eval_every` epochs if config.run_eval; its Summary decides which checkpoints are best.  group: the ranks that
        train together.  resume: go on from the newest whole checkpoint in config.output_dir, or from that of
        `position`; without one, from the start.  validate: called after every epoch; its losses are logged.

    Raises UserError, also where there is nothing to resume from but damaged checkpoints.
    """

    def __init__(
        self,
        config: Config,
        loss: RCNNLoss,
        loader: TrainLoader,
        evaluate: Callable[[int], Summary | None] | None = None,
        group: Group | None = None,
        resume: bool = False,
        position: tuple[int, int] | None = None,
        validate: Callable[[], dict[str, float]] | None = None,
    ):
        self.config, self.loader, self.group = config, loader, group or Group()
        self.evaluate = evaluate if config.run_eval else None
        self.validate = validate
        self.rates = learning_rates(config, len(loader), self.group.size)
        self.detector, self.loss_names, self.keys = loss.detector, loss.names, SamplerKeys(config)
        self.step = build_step(config, loss, self.rates, self.group.size)
        self.average = self.step.average
        checkpoints = config.output_dir / "checkpoints"
        self.folder = ResumeFolder(checkpoints, config.detector, config.keep_checkpoint_max)
        self.best = BestCheckpoints(checkpoints / "best", config.keep_best_checkpoints_max)
        own = loader.transform.fingerprint if loader.transform else ""
        self.own: dict[str, Any] = {
            "config": masked_keys(dataclasses.asdict(config)),
            "transform": own,
            "ranks": self.group.size,
            "job": os.environ.get(JOB_VARIABLE, ""),
        }
        self.state = TrainingState(steps_per_epoch=len(loader), **self.own)
        self.saved: tuple[int, int] | None = None
        self.skipped_in_a_row, self.checked_first, self.compiled = 0, False, False
        self.go_on = f"python train.py --resume {shlex.quote(str(config.output_dir))}"
        self.stop = StopRequest(self.go_on)
        self.resumed, self.chosen = resume, position
        demand_packages(config)
        if resume:
            self.resume()
        self.interval = Interval(config.log_every, self.state.pending)
        self.trackers: list[Tracker] = []
        self.evaluated: dict[int, dict[str, float]] = {}
        self.validated: dict[int, dict[str, float]] = {}

    def state_parameters(self) -> list[Parameter]:
        """What is trained with besides the weights: the optimizer's moments and count of steps, the loss scale."""
        others = {p.name for p in self.detector.get_parameters()} | {"learning_rate"}
        others |= {p.name for p in self.average.own_parameters()} if self.average else set()
        return [p for p in self.step.get_parameters() if p.name not in others]

    def statistics(self) -> dict[str, Parameter]:
        """Batch norms' running statistics and their averages: of each rank its own, where they are learnt."""
        return {p.name: p for p in self.step.get_parameters() if p.name.endswith(STATISTICS)}

    def share_statistics(self) -> None:
        """Gives every rank the mean of all ranks' running statistics."""
        own = self.statistics()
        if self.group.size == 1 or not own:
            return
        found = self.group.exchange({n: p.asnumpy() for n, p in own.items()})
        for n, p in own.items():
            # not by set_data, which a compiled graph with a branch, as that of the loss scale, doesn't see
            ops.assign(p, Tensor(np.mean([f[n] for f in found], axis=0, dtype=np.float64).astype(np.float32)))

    def resume(self) -> None:
        """Takes weights, optimizer and place from the checkpoint to resume, which rank 0 reads for all."""
        found = self.group.from_first(lambda: self.folder.at(self.chosen) if self.chosen else self.folder.newest())
        if found is None:
            print(f"{self.config.output_dir}: no checkpoint yet; training from the start")
        else:
            state, weights, parameters, source = found
            state.check(self.config, len(self.loader), source, self.state.transform)
            # where the weights are an average, what trains is with the state
            trained, updates = {n: parameters.pop(n, v) for n, v in weights.items()}, parameters.pop(UPDATES, None)
            try:
                assign_parameters(self.detector.get_parameters(), trained)
                assign_parameters(self.state_parameters(), parameters)
                if self.average:
                    self.average.take(weights, updates)
            except CheckpointError as e:
                raise UserError(
                    f"{source}: of another model or optimizer ({e}); resume with the run's own config"
                ) from None
            self.state = dataclasses.replace(state, **self.own)
            self.saved = state.position
            print(f"resuming after step {state.step} of epoch {state.epoch}, from {source}")

    def open_folder(self) -> None:
        """Makes the run's folder ready for what this run writes."""
        c, position = self.config, self.state.position
        if self.resumed:
            if self.chosen:
                set_aside_after(c.output_dir, position)
            self.folder.forget_after(position)
            self.best.forget_after(position)
        else:
            set_aside(c.output_dir)
        self.folder.make()
        self.trackers = make_trackers(c, len(self.loader), position if self.resumed else None)
        self.evaluated = evaluations(c.output_dir / "metrics.jsonl")
        self.validated = validations(c.output_dir / "metrics.jsonl")
        save_config(dataclasses.replace(c, overwrite=False), c.output_dir / "config.yaml")

    def run(self) -> int:
        """The epochs that are left. Returns 0, or, stopped and saved, 128 + the signal.

        Raises WorkerDied, after saving where it can, and UserError at the first loss that isn't finite, or out of
        proportion, naming step, images, losses and the last good checkpoint.
        """
        steps, epochs = len(self.loader), self.config.epoch_size
        done = (self.state.epoch - 1) * steps + self.state.step
        self.group.check_same(self.detector.get_parameters(), "before the first step")
        if why := self.group.from_first(self.finished):
            if self.group.is_first:
                print(f"{self.config.output_dir}: {why}")
                self.tell_end()
            return 0
        self.group.from_first(self.open_folder)
        try:
            with (
                self.stop,
                tqdm(
                    total=epochs * steps, initial=done, unit="step", disable=not self.group.is_first, dynamic_ncols=True
                ) as bar,
            ):
                for epoch in range(self.state.epoch, epochs + 1):
                    if not self.run_epoch(epoch, bar):
                        break
                    self.finish_epoch(epoch)
                    if self.group.from_first(self.is_past_best):
                        break
        except Stopped:
            pass  # between saving an epoch's end and the next step
        except WorkerDied:
            # of several ranks, the others wait elsewhere
            if self.group.size == 1:
                self.save()
            raise
        finally:
            for t in self.trackers:
                t.close()
        if self.stop.signum and self.group.is_first:
            for t in self.trackers:
                t.epoch_end(self.state.epoch)
            print(f"saved {self.last_weights()}; go on with {self.go_on}")
        elif self.group.is_first:
            if self.state.epoch < epochs:
                print(f"AP hasn't risen for early_stop_epochs {self.config.early_stop_epochs}: stopped")
            self.tell_end()
        return self.stop.status

    def finished(self) -> str | None:
        """Why nothing of the run is left to do, and how to go on; None where something is."""
        if not self.resumed:
            return None
        c, (epoch, step) = self.config, self.state.position
        log = c.output_dir / "metrics.jsonl"
        evaluated = not self.evaluate or epoch in evaluations(log)
        validated = not self.validate or epoch in validations(log)
        if not evaluated or not validated or step < len(self.loader):
            return None
        if epoch >= c.epoch_size:
            return f"all {c.epoch_size} epochs are trained; go on with --epoch_size {epoch + 1}"
        if self.is_past_best():
            return f"AP hasn't risen for early_stop_epochs {c.early_stop_epochs}; go on with --early_stop_epochs 0"
        return None

    def is_past_best(self) -> bool:
        """Whether this epoch's evaluation is config.early_stop_epochs after the best; as metrics.jsonl has them."""
        epoch, patience = self.state.epoch, self.config.early_stop_epochs
        found = evaluations(self.config.output_dir / "metrics.jsonl") if patience else {}
        if epoch not in found:
            return False
        # of equals the earlier
        aps = {e: leading_ap(m) for e, m in sorted(found.items()) if e <= epoch}
        ranked = {e: -1.0 if ap is None else ap for e, ap in aps.items()}
        best = max(ranked, key=ranked.__getitem__)
        return epoch - best >= patience

    def last_weights(self) -> Path:
        """The newest weights' file."""
        return self.folder.weights.path(*(self.saved or self.state.position))

    def tell_end(self) -> None:
        """What there is now, and how to evaluate it."""
        found = self.best.read()
        path = self.last_weights()
        if found:
            best = found[0]
            print(f"last: {path}; best: AP {best['ap']:.4f} after epoch {best['epoch']}")
            path = self.best.folder / best["file"]
        words = [
            "python",
            "eval.py",
            "--config_path",
            self.config.output_dir / "config.yaml",
            "--checkpoint_path",
            path,
        ]
        words += [] if self.config.val_dataset else ["--val_dataset", "VAL_DATASET"]
        print(f"trained: {path}; evaluate it with {shlex.join(map(str, words))}")

    def run_epoch(self, epoch: int, bar: tqdm) -> bool:
        """The steps of `epoch` (from 1) that are left; False if a signal ended it, after saving."""
        first = self.state.step if self.state.epoch == epoch else 0
        self.state.epoch, self.state.step = epoch, first
        started = time.perf_counter()
        for i, batch in enumerate(self.loader.epoch(epoch - 1, first), first + 1):
            losses, other = self.one_step(epoch, i, batch)
            now = time.perf_counter()
            other["images_per_second"] = len(batch["image_id"]) * self.group.size / (now - started)
            self.show(bar, losses, other, now - started)
            started = now
            if self.interval.add(losses):
                self.log(other)
            # ranks stop together: one that went on would wait for the others for ever
            stop = max(self.group.exchange(self.stop.signum))
            # an epoch's last step is saved by finish_epoch, after the log's last line
            if stop or (i < len(self.loader) and self.is_due(i)):
                self.save()
            if stop:
                self.stop.signum = stop
                return False
        return True

    def one_step(self, epoch: int, i: int, batch: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, float]]:
        """One update; its losses, and learning rate, loss scale and count of skipped steps."""
        inputs = step_inputs(batch, self.keys(epoch - 1, batch["image_id"], batch["occurrence"]))
        if not self.compiled:
            compile_step(self.config, self.step, self.rates, inputs)
            self.compiled = True
        # ranks that read or compile faster wait here, where they may, not in a collective
        self.group.barrier()
        values, more = (x.asnumpy() for x in self.step(*inputs))
        skipped, scale = more.tolist()
        if self.group.size > 1 and not self.checked_first:
            own = self.statistics()
            same = [p for p in self.step.get_parameters() if p.name not in own]
            self.group.check_same(same, "after the first step")
            self.checked_first = True
        losses = dict(zip_equal(self.loss_names, values.tolist()))
        # the optimizer counts its own steps
        rate = float(self.rates[(epoch - 1) * len(self.loader) + i - 1 - self.state.skipped])
        before = self.state.position
        self.state.step = i
        self.state.skipped += int(skipped)
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if why := self.divergence(losses, bool(skipped)):
            raise UserError(
                f"epoch {epoch} step {i}: {why}, on images {batch['image_id'].tolist()}: "
                + ", ".join(f"{k} {v:.5g}" for k, v in losses.items())
                + f"; learning rate {rate:.3g}: {self.way_back(before)}"
            )
        other = {"learning_rate": rate}
        if self.step.checked:
            other |= {"loss_scale": scale, "skipped_steps": self.state.skipped}
        return losses, other

    def divergence(self, losses: dict[str, float], skipped: bool) -> str | None:
        """How this step's losses show that training diverges; a step left out by the loss scale shows nothing alone."""
        if skipped:
            return (
                f"{SKIPPED_IN_A_ROW} steps in a row overflowed" if self.skipped_in_a_row == SKIPPED_IN_A_ROW else None
            )
        if not all(map(math.isfinite, losses.values())):
            return "a loss isn't finite"
        first, total, most = self.state.first_losses, losses["total_loss"], self.config.max_loss_ratio
        usual = float(np.median(first)) if first else 0.0
        if most and usual > 0 and total > most * usual:
            return (
                f"the loss is {total / usual:.2g} times the first steps' median {usual:.4g} (max_loss_ratio {most:g})"
            )
        if len(first) < FIRST_LOSSES:
            first.append(total)
        return None

    def way_back(self, position: tuple[int, int]) -> str:
        """What to do where the weights of `position` are no good any more."""
        good = self.folder.before(position)
        if good is None:
            return "lower lr or set grad_clip, and train again with --overwrite true"
        return f"go on from the last good checkpoint with a lower lr or grad_clip: --resume {good} --lr ..."

    def show(self, bar: tqdm, losses: dict[str, float], other: dict[str, float], seconds: float) -> None:
        text = f"loss {losses['total_loss']:.4f}, {seconds:.2f} s/step, {other['images_per_second']:.2f} img/s"
        if self.step.checked:
            text += f", scale {other['loss_scale']:g}, {self.state.skipped} skipped"
        bar.set_postfix_str(text, refresh=False)
        bar.update()

    def log(self, other: dict[str, float]) -> None:
        means = self.interval.mean()
        for t in self.trackers:
            t.losses(*self.state.position, means, other)

    def finish_epoch(self, epoch: int) -> None:
        """What is due at an epoch's end and not done yet: the log's last line, a checkpoint, an evaluation."""
        c = self.config
        if self.interval.pending:
            self.log({"learning_rate": float(self.rates[epoch * len(self.loader) - 1 - self.state.skipped])})
        last = epoch == c.epoch_size
        if last or self.is_due(len(self.loader)) or (c.save_every_epochs and epoch % c.save_every_epochs == 0):
            self.save()
        evaluated = self.evaluate and (last or epoch % c.eval_every == 0)
        if evaluated or self.validate:
            self.save()  # what is evaluated, and what a signal in the meantime would lose
            averaged = self.average.in_place() if self.average else contextlib.nullcontext()
            with averaged, self.stop.interruptible():
                if self.validate:
                    self.run_validation(epoch)
                if evaluated:
                    self.run_evaluation(epoch)
        for t in self.trackers:
            t.epoch_end(epoch)

    def run_validation(self, epoch: int) -> None:
        if not self.validate or self.group.from_first(lambda: epoch in self.validated):
            return
        losses = self.validate()
        if self.group.is_first:
            tqdm.write(f"epoch {epoch}: validation loss {losses['total_loss']:.4f}")
            for t in self.trackers:
                t.validation(*self.state.position, losses)

    def run_evaluation(self, epoch: int) -> None:
        if not self.evaluate or self.group.from_first(lambda: epoch in self.evaluated):
            return
        summary = self.evaluate(epoch)
        if not (self.group.is_first and summary):
            return
        metrics = {f"{kind} {name}": v for kind, values in summary.metrics.items() for name, v in values.items()}
        ap = leading_ap(metrics)
        if self.config.keep_best_checkpoints_max and ap is not None and math.isfinite(ap):
            self.best.add(self.folder.weights.path(*self.state.position), *self.state.position, ap)
        self.drop_results(epoch)
        # the record that this evaluation is done comes last
        for t in self.trackers:
            t.evaluation(*self.state.position, metrics, summary.by_class())

    def drop_results(self, epoch: int) -> None:
        """Removes the results of epochs whose checkpoint isn't kept any more."""
        checkpoints = [*self.folder.weights.list(), *(self.best.folder / r["file"] for r in self.best.read())]
        kept = {epoch} | {position_of(p)[0] for p in checkpoints}
        for path in self.config.output_dir.glob("results_epoch_*.json"):
            number = path.stem.removeprefix("results_epoch_")
            if number.isdigit() and int(number) not in kept:
                path.unlink(missing_ok=True)

    def is_due(self, step: int) -> bool:
        """Whether save_every asks for a checkpoint after `step` of this epoch."""
        return self.config.save_every > 0 and (
            ((self.state.epoch - 1) * len(self.loader) + step) % self.config.save_every == 0
        )

    def save(self) -> None:
        """A checkpoint of where training stands, by rank 0, once."""
        if self.saved == self.state.position:
            return
        self.state.pending = self.interval.pending
        self.share_statistics()
        broken = not_finite({p.name: p.asnumpy() for p in self.detector.get_parameters()})
        if broken:
            at = "epoch {} step {}".format(*self.state.position)
            raise UserError(f"{at}: {broken[0]} isn't finite any more: {self.way_back(self.state.position)}")
        if self.group.is_first:
            if self.average:
                # the average is what is evaluated, and what other commands load
                weights = self.average.arrays(self.detector.get_parameters())
                trained = [*self.average.sources, self.average.updates]
                self.folder.save(weights, self.state_parameters() + trained, self.state)
            else:
                self.folder.save(self.detector, self.state_parameters(), self.state)
        self.group.barrier()
        self.saved = self.state.position
