"""Where losses and metrics go: loss_0.log, metrics.jsonl, a curve, and, where asked for, TensorBoard and MLflow."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.config import Config
from src.runtime.errors import UserError
from src.runtime.masking import MASK, login_of, masked, masked_keys, without_secrets
from src.training.resume import flat, write_whole

__all__ = [
    "Interval",
    "LossLog",
    "MetricsFile",
    "Tracker",
    "demand_packages",
    "evaluations",
    "format_losses",
    "make_trackers",
    "validations",
]


def format_losses(epoch: int, step: int, losses: dict[str, float]) -> str:
    """One line of loss_{rank}.log; what a second stage's loss is the sum of depends on the detector."""
    rpn = losses["rpn_cls_loss"] + losses["rpn_reg_loss"]
    rcnn = sum(v for k, v in losses.items() if k.startswith("rcnn_"))
    rows = {"rpn_loss": rpn, "rcnn_loss": rcnn, **{k: v for k, v in losses.items() if k != "total_loss"}}
    rows["total_loss"] = losses["total_loss"]
    return f"epoch: {epoch} step: {step}, " + ", ".join(f"{k}: {v:.5f}" for k, v in rows.items())


class Interval:
    """Losses of the steps since the last line of the log."""

    def __init__(self, every: int, pending: Sequence[dict[str, float]] = ()):
        self.every, self.pending = every, list(pending)

    def add(self, losses: dict[str, float]) -> bool:
        """Whether the interval is full."""
        self.pending.append(losses)
        return len(self.pending) >= self.every

    def mean(self) -> dict[str, float]:
        """Mean of each loss over the steps where it is finite; begins a new interval."""
        names = [k for k in self.pending[0] if all(k in r for r in self.pending)]
        rows = {k: [r[k] for r in self.pending if math.isfinite(r[k])] for k in names}
        self.pending = []
        return {k: float(np.mean(v)) if v else math.nan for k, v in rows.items()}


class Tracker:
    """What training tells; epochs and steps within them count from 1. Of rank 0 alone."""

    def losses(self, epoch: int, step: int, losses: dict[str, float], other: dict[str, float]) -> None:
        """Mean losses of an interval that ends with `step`; other: learning rate, speed, ..."""

    def evaluation(
        self, epoch: int, step: int, metrics: dict[str, float], classes: dict[str, dict] | None = None
    ) -> None:
        """Metrics by name ("bbox AP", ...); classes: each class's numbers by IoU type and class, as JSON has them."""

    def validation(self, epoch: int, step: int, losses: dict[str, float]) -> None:
        """Mean losses on the validation split."""

    def epoch_end(self, epoch: int) -> None:
        """After the epoch's checkpoint and evaluation."""

    def close(self) -> None:
        """Last of all."""


def cut_lines(path: Path, position: tuple[int, int], position_of_line: Callable[[str], tuple[int, int] | None]) -> None:
    """Leaves of a file of lines those not past `position`; a damaged one, or a last one without its end, goes too."""
    try:
        lines = path.read_text(errors="replace").split("\n")[:-1] if path.exists() else []
    except OSError as e:
        raise UserError(f"{path}: can't read: {e.strerror}; give it back its permissions or remove it") from None
    kept = [line for line in lines if (at := position_of_line(line)) is not None and at <= position]
    write_whole(path, "".join(line + "\n" for line in kept))


def full(path: Path, error: OSError) -> UserError:
    """What to say of a log that can't be written."""
    return UserError(
        f"{path}: can't write: {error.strerror or error}; free space, and go on with --resume {path.parent}"
    )


class LineFile(Tracker):
    """A file of lines, each of which is on disk once written; `resumed`: the position that training goes on from."""

    def __init__(self, path: Path, resumed: tuple[int, int] | None):
        self.path = path
        if resumed:
            cut_lines(path, resumed, self.position)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # without a buffer, which would be written again, and fail again, at the end
            self.file = open(path, "ab" if resumed else "wb", buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as e:
            raise UserError(f"{path}: can't write: {e.strerror}; set train_outputs to a folder that can") from None

    @staticmethod
    def position(line: str) -> tuple[int, int] | None:
        """(epoch, step) of a line; None for a damaged one."""
        raise NotImplementedError

    def write(self, line: str) -> None:
        left = (line + "\n").encode()
        try:
            while left:
                left = left[self.file.write(left) :]
        except OSError as e:
            raise full(self.path, e) from None

    def close(self) -> None:
        self.file.close()


class LossLog(LineFile):
    """loss_{rank}.log."""

    @staticmethod
    def position(line: str) -> tuple[int, int] | None:
        m = re.match(r"epoch: (\d+) step: (\d+), .*total_loss: \S+", line)
        return (int(m[1]), int(m[2])) if m else None

    def losses(self, epoch: int, step: int, losses: dict[str, float], other: dict[str, float]) -> None:
        self.write(format_losses(epoch, step, losses))


class MetricsFile(LineFile):
    """metrics.jsonl: {"epoch", "step", losses, ...} or {"epoch", "step", "bbox AP", ..., "classes"}."""

    @staticmethod
    def position(line: str) -> tuple[int, int] | None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            return int(row["epoch"]), int(row["step"])
        return None

    def losses(self, epoch: int, step: int, losses: dict[str, float], other: dict[str, float]) -> None:
        self.row(epoch, step, losses | other, {})

    def evaluation(
        self, epoch: int, step: int, metrics: dict[str, float], classes: dict[str, dict] | None = None
    ) -> None:
        self.row(epoch, step, metrics, {"classes": classes} if classes else {})

    def validation(self, epoch: int, step: int, losses: dict[str, float]) -> None:
        self.row(epoch, step, {f"val_{k}": v for k, v in losses.items()}, {})

    def row(self, epoch: int, step: int, values: dict[str, float], more: dict) -> None:
        # JSON has no NaN
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self.write(json.dumps({"epoch": epoch, "step": step, **finite, **more}))


def evaluations(path: Path) -> dict[int, dict[str, float]]:
    """Metrics by epoch of a metrics.jsonl."""
    return rows_with(path, lambda name: " AP" in name or " AR" in name)


def validations(path: Path) -> dict[int, dict[str, float]]:
    """Losses on the validation split, by epoch, of a metrics.jsonl."""
    return rows_with(path, lambda name: name.startswith("val_"))


def rows_with(path: Path, wanted: Callable[[str], bool]) -> dict[int, dict[str, float]]:
    """What has a name that is `wanted`, by epoch."""
    out = {}
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                found = {k: v for k, v in row.items() if wanted(k)}
                if found:
                    out[int(row["epoch"])] = found
    return out


class Curve(Tracker):
    """loss_curve.png, drawn anew after each epoch."""

    def __init__(self, folder: Path):
        self.folder = folder

    def epoch_end(self, epoch: int) -> None:
        from src.drawing.curves import plot_loss_curve

        found = evaluations(self.folder / "metrics.jsonl")
        ap = {float(e): {k: v for k, v in m.items() if k.endswith(" AP") and v is not None} for e, m in found.items()}
        losses = {e: v["val_total_loss"] for e, v in validations(self.folder / "metrics.jsonl").items()}
        try:
            plot_loss_curve(self.folder / "loss_0.log", self.folder / "loss_curve.png", ap or None, losses)
        except UserError as e:
            print(f"no curve of the losses: {e}")  # nothing that training must stop for


class TensorBoard(Tracker):
    """Event files for TensorBoard, record by record: the thread of the tensorboard package's own writer tells of a full
    disk by a traceback.
    """

    def __init__(self, folder: Path, steps_per_epoch: int, resumed: tuple[int, int] | None):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event, self.summary, self.steps = event_pb2.Event, summary_pb2.Summary, steps_per_epoch
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads files in the order of their names
            self.path = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
            self.writer = RecordWriter(open(self.path, "xb"))  # noqa: SIM115 - closed by close()
        except OSError as e:
            raise UserError(f"{folder}: can't write: {e.strerror}; set train_outputs") from None
        self.write(self.event(wall_time=time.time(), file_version="brain.Event:2"))
        if resumed:
            # TensorBoard drops what an earlier file holds from this step on
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self.write(self.event(step=self.at(*resumed) + 1, session_log=start))

    def at(self, epoch: int, step: int) -> int:
        return (epoch - 1) * self.steps + step

    def write(self, event: Any) -> None:
        try:
            self.writer.write(event.SerializeToString())
            self.writer.flush()
        except OSError as e:
            raise full(self.path, e) from None

    def scalars(self, step: int, values: dict[str, float], group: str) -> None:
        rows = [self.summary.Value(tag=f"{group}/{k}", simple_value=v) for k, v in values.items()]
        self.write(self.event(wall_time=time.time(), step=step, summary=self.summary(value=rows)))

    def losses(self, epoch: int, step: int, losses: dict[str, float], other: dict[str, float]) -> None:
        self.scalars(self.at(epoch, step), losses | other, "train")

    def evaluation(
        self, epoch: int, step: int, metrics: dict[str, float], classes: dict[str, dict] | None = None
    ) -> None:
        self.scalars(self.at(epoch, step), metrics, "val")

    def validation(self, epoch: int, step: int, losses: dict[str, float]) -> None:
        self.scalars(self.at(epoch, step), losses, "val")

    def close(self) -> None:
        # what a full disk has left in the buffer, its own line told of
        with contextlib.suppress(OSError):
            self.writer.close()


class MLflow(Tracker):
    """A run of an MLflow experiment named by the detector; mlflow_run.txt holds its id for a resumed run."""

    def __init__(self, config: Config, steps_per_epoch: int, resumed: tuple[int, int] | None):
        import mlflow

        self.mlflow, self.steps, record = mlflow, steps_per_epoch, config.output_dir / "mlflow_run.txt"
        if not config.mlflow_tracking_uri:
            # MLflow refuses folders otherwise, for they see no further development
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        # a server that doesn't answer is told of in seconds, not in minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self.given = given = config.mlflow_tracking_uri
        uri = with_login_aside(given) or (Path(config.train_outputs) / "mlruns").absolute().as_uri()
        try:
            mlflow.set_tracking_uri(uri)
            mlflow.set_experiment(config.detector)
            run = record.read_text().strip() if resumed and record.is_file() else None
            started = mlflow.start_run(run_id=run, run_name=config.brief)
            if run is None:
                write_whole(record, started.info.run_id + "\n")
                rows = {k: str(v)[:250] for k, v in flat(masked_keys(dataclasses.asdict(config))).items()}
                mlflow.log_params(rows)
        except (OSError, mlflow.exceptions.MlflowException) as e:
            raise UserError(
                f"mlflow_tracking_uri {masked(given or uri)}: can't log there ({self.reason(e)}); start the"
                " server or mend the URI"
            ) from None

    def reason(self, error: Exception) -> str:
        """What MLflow says, in a line, without passwords."""
        told = without_secrets(str(error), self.given, os.environ.get("MLFLOW_TRACKING_URI", ""))
        return (told.splitlines() or [type(error).__name__])[0][:200]

    def log(self, epoch: int, step: int, values: dict[str, float]) -> None:
        names = {re.sub(r"[^\w\-. /]", "_", k): v for k, v in values.items()}
        try:
            self.mlflow.log_metrics(names, step=(epoch - 1) * self.steps + step)
        except (OSError, self.mlflow.exceptions.MlflowException) as e:
            # a server that is away for a while is no reason to lose a training
            print(f"MLflow: epoch {epoch} step {step} not logged: {self.reason(e)}")

    def losses(self, epoch: int, step: int, losses: dict[str, float], other: dict[str, float]) -> None:
        self.log(epoch, step, losses | other)

    def evaluation(
        self, epoch: int, step: int, metrics: dict[str, float], classes: dict[str, dict] | None = None
    ) -> None:
        self.log(epoch, step, metrics)

    def validation(self, epoch: int, step: int, losses: dict[str, float]) -> None:
        self.log(epoch, step, {f"val_{k}": v for k, v in losses.items()})

    def close(self) -> None:
        self.mlflow.end_run()


def with_login_aside(uri: str) -> str:
    """An MLflow server's address without user and password, which go where MLflow looks for them, into the environment:
    it tells and keeps the address as it is.

    Raises UserError for *** in place of them, as a run's config.yaml has it, where the environment doesn't say them.
    """
    plain, user, password = login_of(uri)
    if MASK in (user, password) and any(os.environ.get(f"MLFLOW_TRACKING_{k}") for k in ("PASSWORD", "TOKEN")):
        if password:
            os.environ.setdefault("MLFLOW_TRACKING_USERNAME", user)
        uri, user, password = plain, "", ""
    if f"={MASK}" in uri or MASK in (user, password):
        raise UserError(
            f"mlflow_tracking_uri {masked(uri)}: a run's config.yaml keeps no passwords; give --mlflow_tracking_uri"
            " with it, or MLFLOW_TRACKING_PASSWORD in the environment"
        )
    if not (user and password and uri.startswith(("http://", "https://"))):
        return uri
    os.environ |= {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}
    return plain


def demand_packages(config: Config) -> None:
    """Raises UserError if a tracker that the config asks for isn't installed."""
    for name in ("tensorboard", "mlflow"):
        if getattr(config, name) and importlib.util.find_spec(name) is None:
            raise UserError(
                f"{name}: true, but the package {name} isn't installed; pip install -r"
                " requirements-tracking.txt, or leave it out"
            )


def make_trackers(config: Config, steps_per_epoch: int, resumed: tuple[int, int] | None) -> list[Tracker]:
    """Those that the config asks for; `resumed`: the position that training goes on from. Raises UserError."""
    folder = config.output_dir
    trackers: list[Tracker] = []
    if config.mlflow:
        trackers.append(MLflow(config, steps_per_epoch, resumed))
    if config.tensorboard:
        trackers.append(TensorBoard(folder / "tensorboard", steps_per_epoch, resumed))
    trackers += [LossLog(folder / "loss_0.log", resumed), MetricsFile(folder / "metrics.jsonl", resumed), Curve(folder)]
    return trackers
