"""A command of this project with a fault at a chosen moment, and, where asked for, without its network.

    python -m benchmarks.stubbed SPEC SCRIPT [ARGUMENT]...        SPEC: JSON of a Fault

A moment is the n-th time that the program opens for writing, renames, removes or makes something below a folder, so
that a trial repeats exactly. The stub takes build_detector's and build_loss's place, some parameters and no layers:
conversion, loader, optimizer, checkpoints, logs, evaluation, pictures and export are the project's own.
"""

import contextlib
import dataclasses
import json
import os
import resource
import runpy
import shutil
import signal
import sys
import threading
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

import src.models.build
from src.config import Config

__all__ = ["FILLER", "Fault", "StubDetector", "StubLoss", "run"]

ROOT = Path(__file__).resolve().parent.parent
FILLER, MOST = "filler", 1 << 29  # what fills a disk, in its root, and its largest size: never a machine's own disk
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


@dataclasses.dataclass
class Fault:
    """What happens to a process.

    folder: whose changes are counted.  at: before which of them it happens, from 1; 0: at its start.  delay: how
    many seconds later.  signum: the signal that it is sent.  disk: folder of a disk that is filled but for `room`
    bytes.  limit: largest size of a file from then on.  stub: without the network.  count: file that the number of
    changes is written to.
    """

    folder: str
    at: int = 0
    delay: float = 0.0
    signum: int = 0
    disk: str = ""
    room: int = 0
    limit: int = -1
    stub: bool = True
    count: str = ""

    def happen(self) -> None:
        if not self.delay:
            self.happen_now()
            return
        timer = threading.Timer(self.delay, self.happen_now)
        timer.daemon = True
        timer.start()

    def happen_now(self) -> None:
        if self.disk and os.path.ismount(self.disk) and shutil.disk_usage(self.disk).total <= MOST:
            free = shutil.disk_usage(self.disk).free - self.room
            with open(Path(self.disk) / FILLER, "wb") as f, contextlib.suppress(OSError):
                os.posix_fallocate(f.fileno(), 0, min(max(1, free), MOST))
        if self.limit >= 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))
        if self.signum:
            os.kill(os.getpid(), self.signum)


def watch(fault: Fault) -> None:
    """Lets `fault` happen at its moment."""
    seen, within, process = 0, False, os.getpid()
    opened = None  # what Python's open() has just begun to open

    def see(event: str, details: tuple) -> None:
        nonlocal seen, within, opened
        if within or event not in CHANGES or os.getpid() != process:
            return
        path = details[0]
        if not isinstance(path, (str, bytes, os.PathLike)) or not os.fsdecode(path).startswith(fault.folder):
            return
        if event == "open" and not details[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        # before Python 3.10 pathlib's open() calls os.open, which tells it once more, without a mode
        again, opened = event == "open" and details[1] is None and path == opened, None
        if again:
            return
        if event == "open" and details[1] is not None:
            opened = path
        within = True
        seen += 1
        try:
            if fault.count:
                Path(fault.count).write_text(str(seen))
            if seen == fault.at:
                fault.happen()
        finally:
            within = False

    sys.addaudithook(see)
    if not fault.at:
        fault.happen()


class Threshold(nn.Cell):
    def __init__(self, score_thr: float):
        super().__init__()
        self.score_thr = score_thr

    def construct(self, scores: Tensor) -> Tensor:
        return scores > self.score_thr


class StubHeads(nn.Cell):
    """Where a detector has its threshold."""

    def __init__(self, score_thr: float):
        super().__init__()
        self.selector = Threshold(score_thr)


class StubDetector(nn.Cell):
    """Inputs and outputs of RCNN; boxes and scores are parameters, moved by the image's mean."""

    def __init__(self, config: Config):
        super().__init__()
        random, count = np.random.default_rng(1), config.test_cfg.rcnn.max_per_img
        corners = np.sort(random.random((count, 2, 2), np.float32), 1) * 0.8 + np.float32([[[0.0], [0.2]]])
        self.with_mask = config.with_mask
        self.weight = Parameter(Tensor(random.random((64, 64), np.float32)), name="backbone.weight")
        self.box = Parameter(Tensor(corners.reshape(count, 4)), name="bbox_head.box")
        self.score = Parameter(Tensor(np.linspace(3, -6, count).astype(np.float32)), name="bbox_head.score")
        if self.with_mask:
            logits = random.normal(0, 1, (count, 28, 28)).astype(np.float32)
            self.mask = Parameter(Tensor(logits), name="mask_head.mask")
        self.roi_heads = StubHeads(config.test_cfg.rcnn.score_thr)
        self.label = Tensor(1 + np.arange(count) % (config.num_classes - 1), ms.int32)

    def construct(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, ...]:
        shift = image.mean((1, 2, 3)).expand_dims(1) * self.weight.mean() * 0.1
        scores = ops.sigmoid(self.score.expand_dims(0) + shift)
        valid = self.roi_heads.selector(scores)
        sides = ops.concat((image_size[:, 1:], image_size[:, :1]), 1)
        boxes = self.box.expand_dims(0) * ops.concat((sides, sides), 1).expand_dims(1)
        kept = valid.astype(ms.float32)
        boxes, labels = boxes * kept.expand_dims(-1), self.label.expand_dims(0) * valid.astype(ms.int32)
        if not self.with_mask:
            return boxes, scores * kept, labels, valid
        masks = ops.sigmoid(self.mask.expand_dims(0)) * kept.expand_dims(-1).expand_dims(-1)
        return boxes, scores * kept, labels, valid, masks


class StubLoss(nn.Cell):
    """Inputs and output of RCNNLoss: how far the weights are from what the batch and the keys say."""

    def __init__(self, detector: StubDetector):
        super().__init__(auto_prefix=False)
        self.detector = detector
        self.names = ("total_loss", "rpn_cls_loss", "rpn_reg_loss", "rcnn_cls_loss", "rcnn_reg_loss", "rcnn_mask_loss")
        if not detector.with_mask:
            self.names = self.names[:-1]

    def construct(self, *inputs: Tensor) -> Tensor:
        wanted = inputs[0].mean() + inputs[2].mean() * 0.01 + inputs[-2].mean() + inputs[-1].mean()
        a = ops.square(self.detector.weight - wanted).mean()
        b = ops.square(self.detector.score - wanted).mean() * 0.01
        return ops.stack((a + b, a, b) + (a * 0.0,) * (len(self.names) - 3))


def use_stub() -> None:
    """Puts the stub in the network's place, in every module that has it or will import it."""
    real = {n: getattr(src.models.build, n) for n in ("build_detector", "build_loss")}
    stubs = {
        "build_detector": lambda config, builtin_ops=False: StubDetector(config),
        "build_loss": lambda config, detector, ranks=1: StubLoss(detector),
    }
    for module in list(sys.modules.values()):
        for name, stub in stubs.items():
            if getattr(module, name, None) is real[name]:
                setattr(module, name, stub)


def run(fault: Fault, words: list[str]) -> None:
    """Runs words[0], a script of the project or a module, with the rest as arguments. Raises SystemExit."""
    if fault.stub:
        use_stub()
    watch(fault)
    if words[0].endswith(".py"):
        sys.argv = [str(ROOT / words[0]), *words[1:]]
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        sys.argv = words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def main() -> None:
    # MindSpore looks a construct's names up in its module, and __main__ becomes the script's
    from benchmarks import stubbed

    # as src has it while a command loads, where a shell left it alone
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    stubbed.run(stubbed.Fault(**json.loads(sys.argv[1])), sys.argv[2:])


if __name__ == "__main__":
    main()
