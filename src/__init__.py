"""R-CNN detectors for MindSpore."""

import importlib.metadata
import os
import signal
import sys
from typing import Any

__all__ = ["Detections", "Predictor"]

# MindSpore's advice on Ascend and GPU set-ups, a line each at every start, would bury our own messages.
os.environ.setdefault("GLOG_v", "3")

# Where there is AVX-512, MindSpore 2.9 and 2.10 compute convolutions by oneDNN's reference kernel, 60 times slower.
try:
    _release = importlib.metadata.version("mindspore").split(".")[:2]
except importlib.metadata.PackageNotFoundError:  # a build of one's own
    _release = []
if [int(n) for n in _release if n.isdigit()] >= [2, 9]:
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")

# A command that is broken off while it loads ends; a library's error, "initialization failed", would be all it said.
# src.runtime.errors.run_command has Ctrl-C raise KeyboardInterrupt again.
_program = os.path.realpath(sys.argv[0]) if sys.argv and sys.argv[0] else ""
if (
    sys.argv[:1] == ["-m"] or os.path.dirname(_program) == os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def __getattr__(name: str) -> Any:
    """`from src import Predictor`, without making every import of a part of `src` load MindSpore."""
    if name == "Predictor":
        from src.inference.predictor import Predictor

        return Predictor
    if name == "Detections":
        from src.evaluation.detections import Detections

        return Detections
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
