"""What training needs to go on as if it had never stopped, and which checkpoints were best."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import re
import shlex
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from src.checkpoints.files import (
    CheckpointError,
    CheckpointFolder,
    load_checkpoint,
    position_of,
    save_checkpoint,
)
from src.config import Config
from src.runtime.errors import UserError
from src.runtime.files import beside, hold, whole
from src.runtime.masking import masked_keys

if TYPE_CHECKING:
    from mindspore import Parameter, nn

__all__ = [
    "BestCheckpoints",
    "ResumeFolder",
    "Resumed",
    "TrainingState",
    "find_run",
    "has_checkpoint",
    "hold_run",
    "newest_record",
    "own_config",
    "same_step",
    "set_aside",
    "set_aside_after",
    "write_whole",
]

# what a training writes into its folder; the checkpoints last, which tell that there was a run
RUN_FILES = (
    *("loss_0.log", "metrics.jsonl", "loss_curve.png", "mlflow_run.txt", "tensorboard", "results_epoch_*.json"),
    *("config.yaml", "checkpoints"),
)
RECORD = "training.json"  # the parameter of a state file that holds the rest, as JSON
# keys that don't change what is computed
FREE_KEYS = {
    "train_outputs",
    "brief",
    "mindrecord_dir",
    "device_id",
    "num_parallel_workers",
    "python_multiprocessing",
    "keep_checkpoint_max",
    "keep_best_checkpoints_max",
    "save_every",
    "save_every_epochs",
    "log_every",
    "max_loss_ratio",
    "early_stop_epochs",
    "val_loss",
    "tensorboard",
    "mlflow",
    "mlflow_tracking_uri",
    "compile_apart",
    "compile_cache",
    "pre_trained",
    "overwrite",
    "finetune",
}


@dataclass
class TrainingState:
    """Where training stands: `step` steps of `epoch` (both from 1) are done, of `steps_per_epoch`.

    pending: losses of the log interval under way.  skipped: steps left out since gradients overflowed.  first_losses:
    total losses of the first steps, by which later ones are judged.  transform: fingerprint of the file of
    config.transform's function.  ranks: that train together, 0 if unknown.  job: the name of the launcher's job.
    """

    epoch: int = 1
    step: int = 0
    steps_per_epoch: int = 0
    pending: list[dict[str, float]] = field(default_factory=list)
    skipped: int = 0
    first_losses: list[float] = field(default_factory=list)
    config: dict = field(default_factory=dict)
    transform: str = ""
    ranks: int = 0
    job: str = ""

    @property
    def position(self) -> tuple[int, int]:
        return self.epoch, self.step

    def check(self, config: Config, steps_per_epoch: int, source: Path, transform: str = "") -> None:
        """Tells which keys, and whether the function of config.transform, differ from those of the run so far.

        Raises UserError if it can't go on with these.
        """
        if self.steps_per_epoch != steps_per_epoch:
            raise UserError(
                f"{source}: had {self.steps_per_epoch} steps an epoch, here are {steps_per_epoch}; resume with the same"
                " data set, batch_size, accumulate and number of devices, or start anew with --pre_trained"
            )
        now = flat(masked_keys(dataclasses.asdict(config)))
        changed = [
            f"{k} {v!r} -> {now[k]!r}" for k, v in flat(masked_keys(self.config)).items() if k in now and now[k] != v
        ]
        changed = [c for c in changed if c.split(" ")[0] not in FREE_KEYS]
        if transform and self.transform and transform != self.transform:
            changed.append(f"content of transform {config.transform} {self.transform} -> {transform}")
        if changed:
            print(f"resuming with other settings than before: {', '.join(changed)}")


def flat(values: dict, prefix: str = "") -> dict:
    """Nested mappings as one, keys joined by dots."""
    out: dict = {}
    for k, v in values.items():
        out |= flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k: v}
    return out


def write_whole(path: Path, text: str) -> None:
    """Writes `text` beside `path` and renames. Raises UserError."""
    with whole(path, remedy="free space or set train_outputs") as beside:
        beside.write_text(text)


@contextlib.contextmanager
def hold_run(config: Config, resume: bool) -> Iterator[None]:
    """Holds config.output_dir for one training, as a block, whatever way that ends.

    Raises UserError where another process trains there; or has trained, unless config says to overwrite or the run is
    to `resume`.
    """
    folder = config.output_dir
    lock = folder / "run.lock"
    with hold(lock, str(folder), "wait for that training, or name another --brief"):
        if not (resume or config.overwrite) and next((folder / "checkpoints").rglob("*.ckpt"), None):
            raise UserError(
                f"{folder}: holds the checkpoints of a run; go on with it by --resume {shlex.quote(str(folder))}, name"
                " another --brief, or set it aside by --overwrite true"
            )
        try:
            yield
        finally:
            # what was refused before it began leaves nothing
            with contextlib.suppress(OSError):
                if [p.name for p in folder.iterdir()] == [lock.name]:
                    lock.unlink()
                    folder.rmdir()


def set_aside(folder: Path) -> None:
    """Moves what a former run has left in `folder`, if it has made a step, to before.1, before.2, ... in it.

    Raises UserError.
    """
    log = folder / "loss_0.log"
    if not next((folder / "checkpoints").rglob("*.ckpt"), None) and not (log.is_file() and log.stat().st_size):
        return
    before = free_name(folder)
    try:
        before.mkdir()
        for left in [p for name in RUN_FILES for p in folder.glob(name)]:
            os.replace(left, before / left.name)
    except OSError as e:
        raise UserError(f"{folder}: can't move another run's files away: {e.strerror}; name another --brief") from None
    print(f"{folder}: a former run's checkpoints and logs moved to {before.name}")


def set_aside_after(folder: Path, position: tuple[int, int]) -> None:
    """Moves a run's checkpoints of after `position`, and copies its logs, to before.1, before.2, ... in `folder`, which
    can be resumed. Raises UserError.
    """
    later = [
        p for p in (folder / "checkpoints").rglob("*.ckpt") if is_checkpoint_name(p.name) and position_of(p) > position
    ]
    if not later:
        return
    before = free_name(folder)
    try:
        for name in ("checkpoints/state", "checkpoints/best"):
            (before / name).mkdir(parents=True)
        for name in ("loss_0.log", "metrics.jsonl", "config.yaml", "checkpoints/best/best.json"):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, before / name)
        for path in later:
            os.replace(path, before / path.relative_to(folder))
    except OSError as e:
        raise UserError(f"{folder}: can't move later checkpoints away: {e.strerror}; free space there") from None
    print(f"{folder}: {len(later)} files of later checkpoints moved to {before.name}, which --resume takes")


def free_name(folder: Path) -> Path:
    """The first of before.1, before.2, ... in `folder` that isn't there."""
    n = 1
    while (folder / f"before.{n}").exists():
        n += 1
    return folder / f"before.{n}"


@dataclass(frozen=True)
class Resumed:
    """A run to go on with, from its newest checkpoint, or from that of `position`: (epoch, step), both from 1."""

    folder: Path
    position: tuple[int, int] | None = None


def find_run(path: str | Path) -> Resumed:
    """The run that `path` names: its output folder, checkpoints/ in it, or one of its checkpoints. Raises UserError."""
    path = Path(path).absolute()
    if path.suffix == ".ckpt" and not path.is_dir():
        if not is_checkpoint_name(path.name):
            raise UserError(
                f"{path}: not the name of a run's checkpoint; start from its weights with --pre_trained {path}"
            )
        inner = path.parent.parent if path.parent.name in ("state", "best") else path.parent
        state = inner / "state" / path.name
        if not path.is_file() or not state.is_file():
            there = sorted((p for p in state.parent.glob("*.ckpt") if is_checkpoint_name(p.name)), key=position_of)
            other = f"those with one: {', '.join(p.name for p in there)}" if there else f"none in {inner} has one"
            what = "has no training state" if path.is_file() else "no such checkpoint"
            raise UserError(f"{path}: {what} to resume from ({other}); or start from weights with --pre_trained")
        return Resumed(run_folder(inner), position_of(path))
    return Resumed(run_folder(path))


def is_checkpoint_name(name: str) -> bool:
    return re.fullmatch(r".+-\d+_\d+\.ckpt", name) is not None


def run_folder(path: Path) -> Path:
    """The run's output folder that `path`, it or its checkpoints/, names. Raises UserError."""
    if path.name == "checkpoints":
        path = path.parent
    if path.suffix == ".ckpt" and path.is_dir():
        raise UserError(f"{path}: a folder, not a checkpoint; name a run's output folder or one of its checkpoints")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder to resume from; it is train_outputs/brief of a run, or start one")
    return path


def own_config(folder: Path) -> Path | None:
    """The config.yaml of a run, written again from its newest training state if it is gone; None if neither is there.

    Raises UserError.
    """
    path = folder / "config.yaml"
    if path.is_file():
        return path
    if (found := newest_record(folder)) is None:
        return None
    record, state = found
    write_whole(path, yaml.safe_dump(masked_keys(record["config"]) | {"overwrite": False}, sort_keys=False))
    print(f"{path}: wasn't there; written again from {state}")
    return path


def newest_record(folder: Path, position: tuple[int, int] | None = None) -> tuple[dict, Path] | None:
    """TrainingState's fields of a run's newest training state that reads whole, or of that of `position`, and its file;
    None where there is none.
    """
    states = (p for p in (folder / "checkpoints/state").glob("*.ckpt") if is_checkpoint_name(p.name))
    for state in sorted(states, key=position_of, reverse=True):
        if position in (None, position_of(state)):
            with contextlib.suppress(CheckpointError, KeyError):
                return json.loads(load_checkpoint(state)[RECORD].tobytes()), state
    return None


def same_step(config: Config, resumed: Resumed, ranks: int) -> dict[str, int]:
    """batch_size and accumulate by which `ranks` ranks go on with a run of another number of them, so that each step
    takes the same images; nothing where they stay.

    A config that says others than the run's keeps them. Raises UserError where the images of a step can't be shared out
    equally.
    """
    found = newest_record(config.output_dir, resumed.position)
    if found is None:
        return {}
    record, source = found
    before, then = record.get("ranks", 0), record["config"]
    own = {name: then.get(name) for name in ("batch_size", "accumulate")}
    if before in (0, ranks) or own != {name: getattr(config, name) for name in own}:
        return {}
    images = before * config.images_a_step
    if images % ranks:
        shared = [str(n) for n in range(1, images + 1) if images % n == 0]
        raise UserError(
            f"{source}: of {before} ranks, {images} images a step, which {ranks} ranks can't share out equally; resume"
            f" with {', '.join(shared)} ranks, or start anew with --pre_trained"
        )
    # parts of no more images than before: memory is as it was
    batch = math.gcd(images // ranks, config.batch_size)
    new = {"batch_size": batch, "accumulate": images // ranks // batch}
    told = ", ".join(f"{name} {own[name]} -> {value}" for name, value in new.items() if value != own[name])
    print(f"resuming with ranks {before} -> {ranks}: {told}, so that a step has the same {images} images")
    return new


def has_checkpoint(config: Config) -> bool:
    """Whether a run in config.output_dir has saved a training state, whole or not."""
    folder = ResumeFolder(config.output_dir / "checkpoints", config.detector, 1)
    return bool(folder.states.list())


def file_crc(path: Path) -> int:
    crc = 0
    with open(path, "rb") as f:
        while block := f.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


class ResumeFolder:
    """Checkpoints of one run, each of weights and of training state: `state/` beside them.

    A state file names its weights' file and checksum and is renamed into place last. So whatever moment a run is killed
    at, the newest state that reads whole, and whose weights are those it names, is a whole checkpoint.
    """

    def __init__(self, folder: str | Path, prefix: str, keep: int):
        self.weights = CheckpointFolder(folder, prefix, keep)
        self.states = CheckpointFolder(Path(folder) / "state", prefix, keep)
        self.damaged: list[Path] = []

    def make(self) -> None:
        """Makes the folders. Raises UserError."""
        try:
            self.states.folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"{self.states.folder}: can't write: {e.strerror}; set train_outputs") from None

    def save(
        self, detector: nn.Cell | Mapping[str, np.ndarray], parameters: list[Parameter], state: TrainingState
    ) -> None:
        """Weights (`detector`'s, or arrays by name), then `parameters` (the optimizer's, the loss scale's) with
        `state`; drops old ones.
        """
        path = self.weights.path(*state.position)
        save_checkpoint(detector, path)
        record = dataclasses.asdict(state) | {"weights": {"file": path.name, "crc32": file_crc(path)}}
        text = np.frombuffer(json.dumps(record).encode(), np.uint8)
        arrays = {p.name: p.asnumpy() for p in parameters}
        save_checkpoint(arrays | {RECORD: text}, self.states.path(*state.position))
        # a state first, so that none is left without its weights
        self.states.drop_old()
        self.weights.drop_old()

    def read(self, path: Path) -> tuple[TrainingState, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """State, weights and other parameters of one state file. Raises CheckpointError if either file isn't whole."""
        parameters = load_checkpoint(path)
        if RECORD not in parameters:
            raise CheckpointError(f"{path}: not a training state")
        record = json.loads(parameters.pop(RECORD).tobytes())
        named = record.pop("weights")
        weights = self.weights.folder / named["file"]
        values = load_checkpoint(weights)
        if file_crc(weights) != named["crc32"]:
            raise CheckpointError(f"{weights}: not the weights that {path} was saved with; damaged or replaced")
        return TrainingState(**record), values, parameters

    def at(self, position: tuple[int, int]) -> tuple[TrainingState, dict[str, np.ndarray], dict[str, np.ndarray], Path]:
        """The checkpoint of `position`. Raises CheckpointError if it isn't whole."""
        path = self.states.path(*position)
        return *self.read(path), path

    def newest(self) -> tuple[TrainingState, dict[str, np.ndarray], dict[str, np.ndarray], Path] | None:
        """The newest whole checkpoint; None if the run had saved none.

        Damaged ones are named and passed over. Raises UserError if all are damaged.
        """
        damaged = []
        for path in reversed(self.states.list()):
            try:
                found = *self.read(path), path
            except CheckpointError as e:
                damaged.append(str(e))
                self.damaged += [path, self.weights.folder / path.name]
                continue
            for message in damaged:
                print(f"passed over: {message}")
            return found
        if damaged:
            raise UserError(f"{self.weights.folder}: no checkpoint reads whole: {'; '.join(damaged)}")
        # a run makes state/ before its first weights; killed between those and their state, it has nothing whole
        if self.weights.list() and not self.states.folder.is_dir():
            raise UserError(
                f"{self.weights.folder}: has weights but no training state to resume from (state/); start from them"
                f" with --pre_trained {self.weights.list()[-1]}"
            )
        return None

    def before(self, position: tuple[int, int]) -> Path | None:
        """The newest weights, with a state to resume from, of before `position`."""
        resumable = {p.name for p in self.states.list()}
        found = [p for p in self.weights.list() if p.name in resumable and position_of(p) < position]
        return found[-1] if found else None

    def forget_after(self, position: tuple[int, int]) -> None:
        """Removes what a killed run left half written, and what is newer than `position`, which comes anew.

        Damaged checkpoints stay, as *.damaged.
        """
        for path in self.damaged:
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, path.with_name(path.name + ".damaged"))
        for folder in (self.states, self.weights):
            for left in folder.folder.glob("*.writing*"):
                with contextlib.suppress(OSError):
                    left.unlink()
            for path in folder.list():
                if position_of(path) > position:
                    path.unlink()


class BestCheckpoints:
    """Copies of the `keep` checkpoints of best AP, in `folder`, and best.json, which says what AP each has."""

    def __init__(self, folder: str | Path, keep: int):
        self.folder, self.keep = Path(folder), keep
        self.record = self.folder / "best.json"

    def read(self) -> list[dict]:
        """[{"file", "epoch", "step", "ap"}], best first."""
        try:
            rows = json.loads(self.record.read_text())
            return [r for r in rows if (self.folder / r["file"]).is_file() and float(r["ap"]) == r["ap"]]
        except FileNotFoundError:
            return []
        except OSError as e:
            raise UserError(f"{self.record}: can't be read: {e.strerror}") from None
        except (ValueError, TypeError, KeyError):
            names = (self.folder.with_name(f"best.damaged.{i}") for i in itertools.count(1))
            aside = next(p for p in names if not p.exists())
            os.replace(self.folder, aside)
            print(f"{self.record}: damaged; {self.folder} is {aside.name} now, and the best are counted anew")
            return []

    def add(self, checkpoint: Path, epoch: int, step: int, ap: float) -> None:
        """Keeps a copy of `checkpoint` if its AP is among the best; of equals, the earlier stays."""
        rows = [r for r in self.read() if r["file"] != checkpoint.name]
        rows.append({"file": checkpoint.name, "epoch": epoch, "step": step, "ap": ap})
        rows = sorted(rows, key=lambda r: (-r["ap"], r["epoch"], r["step"]))[: self.keep]
        if any(r["file"] == checkpoint.name for r in rows):
            written = beside(self.folder / checkpoint.name)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(checkpoint, written)
                os.replace(written, self.folder / checkpoint.name)
            except OSError as e:
                raise UserError(f"{self.folder}: can't write: {e.strerror}; free space or set train_outputs") from None
        self.write(rows)

    def forget_after(self, position: tuple[int, int]) -> None:
        """Removes those newer than `position`, which come anew."""
        if self.folder.is_dir():
            self.write([r for r in self.read() if (r["epoch"], r["step"]) <= position])

    def write(self, rows: list[dict]) -> None:
        write_whole(self.record, json.dumps(rows, indent=1))
        named = {r["file"] for r in rows}
        for path in self.folder.glob("*.ckpt"):
            if path.name not in named:
                path.unlink()
