"""Kills, full disks, damaged files, two at once: python -m benchmarks.faults [--trials 100] [--real 0] [--seed 0]

Each trial runs a command with one fault, looks at what is left, and runs it again without. As it should be: what was
there before is there as it was, or whole and new; a file of a final name is whole; a refusal is one line "error: ..."
that names the file, status 2; 143 after SIGTERM, 130 after Ctrl-C; no traceback, no hang, no process left. The second
run succeeds, with the results of a run that nothing disturbed (weights bit for bit), and clears what the first left.

Trials are stubbed (benchmarks.stubbed: the network alone is left out); --real K: K more, r0 r1 ..., with a network.
--only N or rN: these alone. --kinds, --commands: of these alone, whose trials have other numbers. Exits with status 1
if any is faulty.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from benchmarks.common import print_table
from src.runtime.errors import UserError, run_command
from src.runtime.newer import zip_equal

ROOT = Path(__file__).resolve().parent.parent
DETECTORS = ("mask_rcnn", "faster_rcnn", "cascade_mask_rcnn")
COMMANDS = ("train", "convert", "eval", "export", "checkpoint", "images", "video")
FILES = ("checkpoint", "safetensors", "state", "log", "records", "index", "results", "onnx", "sidecar")
BESIDE = "beside another"  # two trainings of one data set, converted in two ways, into folders of their own
KINDS = {
    "kill": COMMANDS,
    "signal": COMMANDS,
    "disk full": COMMANDS,
    "size limit": COMMANDS,
    "damage": FILES,
    "two at once": (*COMMANDS, BESIDE),
}
WAYS = ("truncated", "empty", "zeros", "a bit", "another's")
CANVAS = {"img_width": 96, "img_height": 64, "batch_size": 2, "test_batch_size": 2, "max_instance_count": 16}
CANVAS |= {"test_cfg.rcnn.max_per_img": 8}  # so that a film is larger than what is detected in it
NETWORK = {
    "backbone.width_multiplier": 0.25,
    "train_cfg.rcnn.mask_buckets": 1,
}
TRAINING = {"run_eval": True, "epoch_size": 2, "save_every": 3, "log_every": 2, "keep_checkpoint_max": 3}
SECONDS = {False: 240, True: 900}  # that a stubbed command, or one with a network, may take
DISK = 300 << 20  # bytes; a conversion wants 50 MB free for each of its files
RECORDS = (".mindrecord", ".db")  # hold space that isn't used
CLONE_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


@dataclass(frozen=True)
class Trial:
    """One trial: a function of seed, number, and what was asked for."""

    name: str
    kind: str
    command: str
    detector: str
    real: bool
    seed: int

    def random(self) -> random.Random:
        return random.Random(f"{self.seed} {self.name}")


@dataclass
class Ended:
    """A command that has ended; status as a shell tells it."""

    words: list[str]
    status: int
    out: str
    err: str
    left: int = 0
    hung: bool = False

    @property
    def refusals(self) -> list[str]:
        return [line for line in re.split(r"[\r\n]+", self.err) if line.startswith("error: ")]


@dataclass
class Outcome:
    """What became of a trial; of `faults`, those that begin with "lost" say what."""

    trial: Trial
    told: str = ""
    faults: list[str] = field(default_factory=list)

    def check(self, good: bool, fault: str) -> None:
        if not good:
            self.faults.append(fault)


@dataclass
class Reference:
    """What a command leaves that nothing disturbs: its folder, how often it changed it, and how long it took."""

    place: Path
    changes: int
    seconds: float


# ---- commands


@dataclass
class Site:
    """What all trials read, below `root`, and the references, each made when it is first needed."""

    root: Path

    def __post_init__(self) -> None:
        import cv2
        import numpy as np

        from src.data.shapes import make_shapes

        with contextlib.redirect_stderr(io.StringIO()):
            self.data = make_shapes(self.root / "data", train=8, val=4, seed=5)
        self.images, self.film = self.data / "val2017", self.root / "film.mp4"
        writer = cv2.VideoWriter(os.fspath(self.film), cv2.VideoWriter_fourcc(*"mp4v"), 10, (192, 128))
        noise = np.random.default_rng(0)
        for _ in range(30):
            writer.write(noise.integers(0, 256, (128, 192, 3), np.uint8))
        writer.release()
        self.reference, self.weights = functools.cache(self._reference), functools.cache(self._weights)

    def keys(self, detector: str, real: bool) -> list[str]:
        keys = {"train_dataset": self.data, "val_dataset": self.data, "num_parallel_workers": 1}
        keys |= {"mindrecord_dir": self.root / f"records_{detector}", "detector": detector} | CANVAS
        keys |= NETWORK if real else {}
        config = "shapes_cascade.yaml" if detector.startswith("cascade") else "shapes.yaml"
        return ["--config_path", str(ROOT / "configs" / config), *(f"--{k}={v}" for k, v in keys.items())]

    def _weights(self, detector: str, real: bool) -> Path:
        """A checkpoint that detects much: of the stub, or of a network with random weights."""
        import numpy as np
        from mindspore import set_seed

        from benchmarks.stubbed import StubDetector
        from src.checkpoints.files import save_checkpoint
        from src.config import load_config, parse_overrides
        from src.models.build import build_detector

        set_seed(3)
        _, config, *keys = self.keys(detector, real)
        config = load_config(config, parse_overrides(keys))
        parameters = (build_detector if real else StubDetector)(config).get_parameters()
        weights = {p.name: p.asnumpy() for p in parameters}
        for name in weights:
            # random weights answer the same for every box, and nearly background
            if name.startswith("bbox_head") and name.endswith("cls.weight"):
                weights[name] = weights[name] / np.abs(weights[name]).max() * 1.5
        path = self.root / f"{detector}_{'real' if real else 'stub'}.ckpt"
        save_checkpoint(weights, path)
        return path

    def words(self, command: str, place: Path, detector: str, real: bool, variant: str = "") -> list[str]:
        """Script and arguments. variant: other, for other results: of a training, by another conversion."""
        keys = self.keys(detector, real)
        if command == "train":
            more = [f"--{k}={v}" for k, v in TRAINING.items()]
            more += ["--max_instance_count=12"] if variant == "other" else []
            resumed = ["--resume", str(place / "run")] if (place / "run").is_dir() else []
            return ["train.py", *keys, *more, f"--train_outputs={place}", "--brief=run", *resumed]
        if command == "checkpoint":
            source = ["--ckpt_file", str(self.weights(detector, real))]
            named = [] if real else ["--layout", "native"]
            return ["src.convert_checkpoint", *keys, *source, *named, "--out", str(place / "model.safetensors")]
        weights = str(self.weights(detector, real))
        keys += ["--test_cfg.rcnn.score_thr=0.6"] if variant == "other" else []
        if command in ("convert", "eval"):
            if command == "convert":
                keys.append(f"--mindrecord_dir={place / 'records'}")
            return ["eval.py", *keys, f"--train_outputs={place}", "--brief=run", "--checkpoint_path", weights]
        if command == "export":
            return ["export.py", *keys, "--ckpt_file", weights, "--file_name", str(place / "model")]
        source = str(self.images if command == "images" else self.film)
        return ["infer.py", *keys, "--ckpt_file", weights, "--input", source, "--output", str(place)]

    def _reference(self, command: str, detector: str, real: bool, variant: str = "") -> Reference:
        name = f"{command}_{detector}_{'real' if real else 'stub'}_{variant}"
        place, count = self.root / "references" / name, self.root / f"{name}.count"
        begin = time.monotonic()
        ended = start(
            self.words(command, place, detector, real, variant), self.root, real, place, count=str(count)
        ).wait()
        demand(ended)
        return Reference(place, int(count.read_text()), time.monotonic() - begin)

    @functools.cached_property
    def onnx(self) -> Path:
        """The folder of a model of Faster R-CNN in ONNX, with a network, and its sidecar."""
        place = self.root / "onnx"
        weights = ["--ckpt_file", str(self.weights("faster_rcnn", True)), "--file_name", str(place / "model")]
        words = ["export.py", *self.keys("faster_rcnn", True), "--file_format", "ONNX", *weights]
        demand(start(words, self.root, True, place).wait())
        return place

    def half(self, detector: str) -> Path:
        """A training that was stopped near its end, to be resumed."""
        whole = self.reference("train", detector, False)
        place = self.root / "references" / f"half_{detector}"
        if not place.exists():
            at = {"at": whole.changes * 7 // 10, "signum": signal.SIGTERM}
            # where a trial has spoilt the converted data set, a first try is spent on that
            for _ in range(3):
                ended = start(self.words("train", place, detector, False), self.root, False, place, **at).wait()
                if any(place.glob("run/checkpoints/*.ckpt")):
                    break
                shutil.rmtree(place, ignore_errors=True)
                start(self.words("train", place, detector, False), self.root, False, place).wait()
                shutil.rmtree(place, ignore_errors=True)
            if ended.status != 143:
                raise UserError(f"a training that is sent SIGTERM ends with {ended.status}: {ended.err[-2000:]}")
        return place


def demand(ended: Ended) -> None:
    """Raises UserError unless a command that nothing disturbed succeeded."""
    if ended.status or ended.hung:
        raise UserError(f"undisturbed, but status {ended.status}: {' '.join(ended.words)}: {ended.err[-2000:]}")


# ---- processes


class Running:
    """A command under way, in a session of its own, so that what it leaves behind is found."""

    def __init__(self, words: list[str], cwd: Path, real: bool, fault: dict):
        cwd.mkdir(parents=True, exist_ok=True)
        self.words, self.real, self.console = words, real, cwd.parent / "console.txt"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.stubbed", json.dumps(fault), *words],
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        # files would be limited with the others
        self.texts = [Drained(self.process.stdout), Drained(self.process.stderr)]

    def pause(self, seconds: float) -> None:
        """Waits so long, or until it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def wait(self) -> Ended:
        """Until it has ended, and 15 seconds at most until its workers have."""
        hung = False
        try:
            self.process.wait(SECONDS[self.real])
        except subprocess.TimeoutExpired:
            hung = True
        finally:
            # a campaign that is stopped leaves nothing that runs
            self.process.kill()
            self.process.wait()
        until = time.monotonic() + 15
        while (left := session(self.process.pid)) and time.monotonic() < until:
            time.sleep(0.05)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        status, texts = self.process.returncode, [t.text() for t in self.texts]
        with open(self.console, "a") as f:
            f.write(f"$ {' '.join(self.words)}\n{''.join(texts)}status {status}\n")
        return Ended(self.words, 128 - status if status < 0 else status, *texts, len(left), hung)


class Drained(threading.Thread):
    """Reads a pipe to its end."""

    def __init__(self, pipe: BinaryIO):
        super().__init__(daemon=True)
        self.pipe, self.data = pipe, b""
        self.start()

    def run(self) -> None:
        with self.pipe:
            self.data = self.pipe.read()

    def text(self) -> str:
        self.join()
        return self.data.decode(errors="replace")


def start(words: list[str], cwd: Path, real: bool, folder: Path, **fault: object) -> Running:
    """Starts a command; `fault`: of stubbed.Fault, whose moments are changes of `folder`."""
    return Running(words, cwd, real, {"folder": str(folder), "stub": not real} | fault)


def session(leader: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, number = stat.read_text().rpartition(") ")[2].split()[:4]
            if int(number) == leader and state not in "ZX":
                found.append(int(stat.parent.name))
    # children of the dead are ours, see main
    with contextlib.suppress(ChildProcessError):
        while os.waitid(os.P_PGID, leader, os.WEXITED | os.WNOHANG | os.WNOWAIT) and leader not in found:
            os.waitid(os.P_PGID, leader, os.WEXITED | os.WNOHANG)
    return found


# ---- what lies there


def is_left_over(path: Path) -> bool:
    """Whether it has no final name: written beside, or hidden. A lock's file may stay."""
    return path.suffix != ".lock" and (".writing" in path.name or path.name.startswith(".") or path.suffix == ".tmp")


def contents(place: Path) -> dict[str, str]:
    """A digest of every file of a final name, by path: of what two runs must have in common."""
    found = {}
    for path in sorted(place.rglob("*")):
        inside = path.relative_to(place)
        parts = {"state", "records", "config.yaml", "loss_curve.png"} & set(inside.parts)
        skipped = parts or path.suffix in (".damaged", ".lock") or any(is_left_over(p) for p in (path, *inside.parents))
        if path.is_file() and not skipped:
            found[str(inside)] = digest(path)
    return found


def digest(path: Path) -> str:
    """Of a file's content, but for what differs from run to run: speeds, and a MINDIR's bytes."""
    data = path.read_bytes()
    if path.suffix == ".mindir":
        return f"{len(data)} bytes"
    if path.name == "metrics.jsonl":
        data = re.sub(rb'"images_per_second": [^,}]+', b"", data)
    if path.name.endswith(".mindir.json"):
        data = re.sub(rb'"(sha256|checksum)": "\w+"', b"", data)
    return hashlib.sha256(data).hexdigest()


def difference(found: dict[str, str], wanted: dict[str, str]) -> str:
    """In what two folders differ, "" for nothing."""
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    other = [k for k in wanted if k in found and found[k] != wanted[k]]
    said = [f"no {missing[0]}"] if missing else []
    said += [f"{extra[0]} besides"] if extra else []
    said += [f"{other[0]} differs"] if other else []
    return ", ".join(said)


def check_end(out: Outcome, ended: Ended, allowed: set[int], named: tuple[Path, ...] = ()) -> None:
    """How a command may end. named: one of these is in a refusal's line."""
    out.told += f"{Path(ended.words[0]).stem} {ended.status}; "
    last = (ended.refusals or re.split(r"[\r\n]+", ended.err.strip()))[-1][:300]
    out.check(not ended.hung, f"hangs: {ended.words[0]}")
    out.check(not ended.left, f"{ended.left} processes left")
    out.check(ended.hung or ended.status in allowed, f"status {ended.status}, not {sorted(allowed)}: {last}")
    raw = re.search(r"^(Traceback|\[ERROR\]|\[CRITICAL\]|- C\+\+ Call Stack|Exception ignored).*", ended.err, re.M)
    out.check(not raw, f"{raw and raw[0][:60]}: {last}")
    if ended.status == 2:
        out.check(len(ended.refusals) == 1, f"{len(ended.refusals)} lines of error")
        fits = not named or any(str(p) in last for p in named)
        out.check(fits, f"the refusal doesn't name {named and named[0].name}: {last}")
        out.told += last + "; "


def check_pair(out: Outcome, place: Path) -> None:
    """An export's files belong together."""
    from src.export import sidecar

    for about in place.glob("*.mindir.json"):
        try:
            for entry in sidecar.read(about)["files"].values():
                sidecar.check_file(place / entry["name"], entry)
        except UserError as e:
            out.faults.append(f"lost: {e}")


def check_weights(out: Outcome, place: Path) -> None:
    """Every checkpoint of a final name reads whole."""
    from src.checkpoints.files import load_checkpoint

    for path in place.rglob("*.ckpt"):
        if not is_left_over(path):
            try:
                load_checkpoint(path)
            except UserError as e:
                out.faults.append(f"half written: {e}")


def check_kept(out: Outcome, place: Path, before: dict[str, str], new: dict[str, str]) -> None:
    """Each file is what it was, or whole and new."""
    now = contents(place)
    for name, was in before.items():
        out.check(name in now, f"lost: {name}, there before")
        out.check(now.get(name, was) in (was, new.get(name)), f"lost: {name} is neither what it was nor whole and new")
    for name in now.keys() - before.keys():
        out.check(now[name] == new.get(name), f"half written: {name}")


def check_again(out: Outcome, site: Site, root: Path, place: Path) -> None:
    """The command once more, undisturbed: it succeeds, with the reference's results, and nothing else is left."""
    t = out.trial
    wanted = contents(site.reference(t.command, t.detector, t.real).place)
    done = contents(place) == wanted
    # what a stopped training saves at its step stays among the newest; check_weights has looked at it
    saved = {n for n in contents(place) if n.endswith(".ckpt")} - wanted.keys() if t.command == "train" else set()
    ended = start(site.words(t.command, place, t.detector, t.real), root / "cwd", t.real, place).wait()
    # a finished training may say so by a refusal
    check_end(out, ended, {0, 2} if done and t.command == "train" else {0})
    differs = difference({n: v for n, v in contents(place).items() if n not in saved}, wanted)
    out.check(not differs, f"run again, not as undisturbed: {differs}")
    check_pair(out, place)
    left = [str(p.relative_to(root)) for p in place.rglob("*") if is_left_over(p)]
    out.check(not left, f"left over: {left[:2]}")
    here = [p.name for p in (root / "cwd").iterdir()]
    out.check(not here, f"left in the working directory: {here[:2]}")


# ---- trials


def prepare(site: Site, t: Trial, place: Path) -> dict[str, str]:
    """Puts other files in the place of a command's results, but a training's; returns what lies there."""
    place.mkdir(parents=True)
    if t.command != "train":
        for name in contents(site.reference(t.command, t.detector, t.real).place):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(f"former {name}")
    return contents(place)


def choose_fault(t: Trial, reference: Reference, disk: Path | None) -> tuple[dict, set[int], str]:
    """What stubbed.Fault takes, the statuses that are then allowed, and the fault in words: at a change, soon after it,
    at any time; or, of space, from the beginning on less than is needed.
    """
    chance, allowed = t.random(), {0, 2}
    at = 1 + int(chance.random() * reference.changes)
    fault = {"at": at, "delay": chance.choice([0.0, chance.uniform(0, 0.3)])}
    moment = f"change {at} of {reference.changes} and {fault['delay']:.2f} s"
    if chance.random() < 0.3:
        fault = {"delay": chance.uniform(0, reference.seconds)}
        moment = f"{fault['delay']:.1f} of {reference.seconds:.1f} s"
    if t.kind in ("kill", "signal"):
        signum = signal.SIGKILL if t.kind == "kill" else chance.choice([signal.SIGTERM, signal.SIGINT])
        # it may be done before a late signal comes
        return fault | {"signum": int(signum)}, {0, 128 + signum}, f"{signum.name} at {moment}"
    sizes = [p.stat().st_size for p in reference.place.rglob("*") if p.is_file() and p.suffix not in RECORDS]
    room, limit = 0, 0
    if chance.random() < 0.5:
        fault, moment = {"at": 1}, "the beginning"
        room, limit = chance.randrange(sum(sizes)), chance.randrange(max(sizes))
    if disk:
        return fault | {"disk": str(disk), "room": room}, allowed, f"disk full but for {room} bytes at {moment}"
    return fault | {"limit": limit}, allowed, f"files of {limit} bytes at most from {moment} on"


def disturb(out: Outcome, site: Site, root: Path, disk: Path | None = None) -> None:
    """A command with a fault at one moment, and again without."""
    t = out.trial
    reference = site.reference(t.command, t.detector, t.real)
    place = (disk or root) / "place"
    before = prepare(site, t, place)
    fault, allowed, said = choose_fault(t, reference, disk)
    out.told += f"{said}: "
    ended = start(site.words(t.command, place, t.detector, t.real), root / "cwd", t.real, place, **fault).wait()
    check_end(out, ended, allowed)
    wanted = contents(reference.place)
    if t.command == "train":
        check_weights(out, place)
    else:
        check_kept(out, place, before, wanted)
    if ended.status == 0:
        differs = difference(contents(place), wanted)
        out.check(not differs, f"lost: status 0, but {differs}")
    if disk:
        from benchmarks.stubbed import FILLER

        (disk / FILLER).unlink(missing_ok=True)
    check_again(out, site, root, place)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A disk of its own at `folder`; None where this user may mount none."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_disk(out: Outcome, site: Site, root: Path) -> None:
    with small_disk(root / "disk") as disk:
        out.told += "" if disk else "no disk can be mounted here, files are limited; "
        disturb(out, site, root, disk)


def damage(path: Path, way: str, chance: random.Random, other: bytes) -> None:
    """Spoils a file: it differs afterwards."""
    data = bytearray(path.read_bytes())
    before = bytes(data)
    # a MindRecord file is mostly space set aside
    at = chance.randrange(len(before.rstrip(b"\0")) or len(before))
    if way == "truncated":
        del data[at:]
    elif way == "empty":
        data.clear()
    elif way == "zeros":
        data[at : at + 4096] = bytes(len(data[at : at + 4096]))
    elif way == "another's":
        data[:] = other
    if way == "a bit" or data == before:
        data[at] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def spoil(out: Outcome, site: Site, root: Path) -> None:
    """A command that reads a damaged file: refused, or with the results of the whole one."""
    t, chance, place = out.trial, out.trial.random(), root / "place"
    way, detector = chance.choice(WAYS), t.detector
    place.mkdir(parents=True)
    words, wanted = [], None
    silent = False  # whether the file's format can't tell
    if t.command in ("checkpoint", "safetensors"):
        source = site.weights(detector, False)
        if t.command == "safetensors":
            source = site.reference("checkpoint", detector, False).place / "model.safetensors"
            silent = True
        file = Path(shutil.copy(source, root / f"model{source.suffix}"))
        words = site.words("images", place, detector, False)
        words[words.index("--ckpt_file") + 1] = str(file)
        wanted = contents(site.reference("images", detector, False).place)
    elif t.command in ("state", "log"):
        shutil.copytree(site.half(detector) / "run", place / "run")
        folder = place / "run/checkpoints"
        newest = max((folder / "state").glob("*.ckpt"))
        files = [newest, folder / newest.name]
        if t.command == "log":
            files = [place / "run" / n for n in ("config.yaml", "loss_0.log", "metrics.jsonl")] + [
                folder / "best/best.json"
            ]
        file = chance.choice([f for f in files if f.stat().st_size])
        words = site.words("train", place, detector, False)
        wanted = contents(site.reference("train", detector, False).place)
    elif t.command in ("records", "index"):
        words = site.words("convert", place, detector, False)
        demand(start(words, root / "cwd", False, place).wait())
        files = [p for p in (place / "records").rglob("*") if p.is_file() and p.stat().st_size]
        file = chance.choice([p for p in sorted(files) if (p.suffix == ".json") == (t.command == "index")])
        wanted = contents(place)
        shutil.rmtree(place / "run")
    elif t.command == "results":
        file = Path(shutil.copy(site.reference("eval", detector, False).place / "run/results.json", root / "r.json"))
        words = [*site.words("eval", place, detector, False), "--predictions", str(file)]
        silent = way in ("a bit", "zeros")
    else:
        shutil.copytree(site.onnx, root / "onnx")
        file = root / "onnx" / ("model.onnx" if t.command == "onnx" else "model.onnx.json")
        model = [f"--train_outputs={place}", "--brief=run", "--onnx_file", str(root / "onnx/model.onnx")]
        words = ["eval_onnx.py", *site.keys("faster_rcnn", True), *model]
        demand(start(words, root / "cwd", True, place).wait())
        wanted = contents(place)
        shutil.rmtree(place)
    other = chance.choice([b"[1, 2, 3", b'{"a": 1}\n', next(iter(site.images.iterdir())).read_bytes()])
    damage(file, way, chance, other)
    spoilt = file.read_bytes()
    out.told += f"{file.name} {way}: "
    ended = start(words, root / "cwd", t.command in ("onnx", "sidecar"), place).wait()
    # of two states the older serves
    check_end(out, ended, {0} if t.command == "state" else {0, 2}, (file, file.parent, file.parent.parent))
    if t.command == "results":
        whole = site.reference("eval", detector, False).place / "run/results.json"
        kept = file.read_bytes() == spoilt
        out.check(kept or (way != "another's" and digest(file) == digest(whole)), "lost: the file was replaced")
    elif ended.status == 0 and not silent:
        found = contents(place)
        if t.command == "log":
            # where what is best can't be read, its folder is set aside whole, and said to be
            passed = "/best" if "is best.damaged.1 now" in ended.out else "\0"
            weights = [{k: v for k, v in c.items() if k.endswith(".ckpt") and passed not in k} for c in (found, wanted)]
            differs = difference(*weights)
            differs = "" if "other settings than before" in ended.out else differs
        else:
            differs = difference(found, wanted)
        out.check(not differs, f"lost: status 0, but not the whole file's results: {differs}")


def check_two(out: Outcome, first: Running, second: Running) -> None:
    """Both end well, or one is refused, naming the other, or by a training that had finished meanwhile."""
    ends = [first.wait(), second.wait()]
    for ended, other in zip_equal(ends, (second, first)):
        check_end(out, ended, {0, 2})
        if ended.status == 2 and len(ended.refusals) == 1:
            line = ended.refusals[0]
            named = f"process {other.process.pid}" in line or "--resume" in line
            out.check(named, f"the refusal doesn't name process {other.process.pid}: {line[:300]}")
    out.check(any(e.status == 0 for e in ends), "neither succeeded")


def run_two(out: Outcome, site: Site, root: Path) -> None:
    """A command twice at once, with other settings, into one place."""
    t, chance, place = out.trial, out.trial.random(), root / "place"
    references = [site.reference(t.command, t.detector, t.real, v) for v in ("", "other")]
    prepare(site, t, place)
    delay = chance.choice([0.0, chance.uniform(0, references[0].seconds)])
    both = [site.words(t.command, place, t.detector, t.real, v) for v in ("", "other")]
    out.told += f"the second after {delay:.1f} s: "
    first = start(both[0], root / "cwd", t.real, place)
    first.pause(delay)
    check_two(out, first, start(both[1], root / "cwd2", t.real, place))
    differ = [difference(contents(place), contents(r.place)) for r in references]
    out.check(not all(differ), f"lost: what lies there is no one run's: {' nor '.join(differ)}")
    check_pair(out, place)
    if t.command != "train":
        check_again(out, site, root, place)


def run_beside(out: Outcome, site: Site, root: Path) -> None:
    """Two trainings of one data set, each converted as it needs it, at once."""
    t, chance = out.trial, out.trial.random()
    wanted = [contents(site.reference("train", t.detector, t.real, v).place) for v in ("", "other")]
    delay = chance.uniform(0, site.reference("train", t.detector, t.real).seconds)
    out.told += f"the second after {delay:.1f} s: "
    running = []
    for place, variant in ((root / "a", ""), (root / "b", "other")):
        words = [*site.words("train", place, t.detector, t.real, variant), f"--mindrecord_dir={root / 'records'}"]
        running.append(start(words, root / f"cwd_{variant}", t.real, place))
        if not variant:
            running[0].pause(delay)
    for r, place, files in zip_equal(running, (root / "a", root / "b"), wanted):
        check_end(out, r.wait(), {0})
        differs = difference(contents(place), files)
        out.check(not differs, f"lost: changed by the other: {place.name}: {differs}")


TRIALS: dict[str, Callable[[Outcome, Site, Path], None]] = {
    "kill": disturb,
    "signal": disturb,
    "disk full": fill_disk,
    "size limit": disturb,
    "damage": spoil,
    "two at once": run_two,
}


def make_trial(number: str, seed: int, kinds: list[str], commands: list[str]) -> Trial:
    """Every pair of kind and command in turn; N: stubbed, rN: with a network."""
    real = number.startswith("r")
    # a damaged file is read before any network runs
    pairs = [(k, c) for k in kinds for c in KINDS[k] if c in commands and not (real and k == "damage")]
    # neighbours differ in kind
    random.Random(seed).shuffle(pairs)
    count = int(number.removeprefix("r"))
    detector = random.Random(f"{seed} {number} detector").choice(DETECTORS)
    return Trial(number, *pairs[count % len(pairs)], detector, real, seed)


def run_trial(site: Site, trial: Trial, root: Path) -> Outcome:
    out = Outcome(trial)
    root.mkdir(parents=True)
    (run_beside if trial.command == BESIDE else TRIALS[trial.kind])(out, site, root)
    return out


def table(outcomes: list[Outcome]) -> list[list[object]]:
    """Rows by kind and command, and of all."""
    rows, groups = [], {}
    for o in outcomes:
        groups.setdefault((o.trial.kind, o.trial.command), []).append(o)
    for name, group in [*sorted(groups.items()), (("all", ""), outcomes)]:
        faulty = [o for o in group if o.faults]
        lost = sum(any(f.startswith("lost") for f in o.faults) for o in faulty)
        rows.append([*name, len(group), len(group) - len(faulty), len(faulty), f"in {lost}" if lost else "nothing"])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[2], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--real", type=int, default=0, help="trials with a network, some 40 s a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="N", help="these trials alone")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    names = sorted({c for commands in KINDS.values() for c in commands})
    parser.add_argument("--commands", nargs="+", choices=names, default=names, help="commands, and damaged files")
    parser.add_argument("--out", type=Path, help="folder in which faulty trials' files stay; must not exist")
    a = parser.parse_args()
    if a.out and a.out.exists():
        raise UserError(f"{a.out}: is there already; name a new folder")
    # workers that outlive their program become our children, and are seen
    ctypes.CDLL(None).prctl(CLONE_SUBREAPER, 1)
    numbers = a.only or [*map(str, range(a.trials)), *(f"r{i}" for i in range(a.real))]
    outcomes = []
    with contextlib.ExitStack() as stack:
        root = (a.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults")))).resolve()
        site = Site(root / "site")
        for number in numbers:
            trial = make_trial(number, a.seed, a.kinds, a.commands)
            outcomes.append(out := run_trial(site, trial, root / f"trial_{number}"))
            what = f"{trial.kind}, {trial.command}, {trial.detector}"
            end = "FAULTY: " + " | ".join(out.faults) if out.faults else "as it should be"
            print(f"trial {number} ({what}): {out.told}{end}", flush=True)
            if not (a.out and out.faults):
                shutil.rmtree(root / f"trial_{number}")
    print_table(
        f"Faults, seed {a.seed}", ["fault", "command", "trials", "as it should be", "faulty", "lost"], table(outcomes)
    )
    chosen = [
        f"--{k} {' '.join(map(repr, v))} "
        for k, v in vars(a).items()
        if k in ("kinds", "commands") and v != parser.get_default(k)
    ]
    for o in outcomes:
        if o.faults:
            again = f"python -m benchmarks.faults --seed {a.seed} {''.join(chosen)}--only {o.trial.name}"
            print(f"FAULTY: {again}: {o.faults[0][:300]}")
    return int(any(o.faults for o in outcomes))


if __name__ == "__main__":
    run_command(main)
