"""R-CNN detectors for MindSpore."""

import os
from typing import Any

__all__ = ["Detections", "Predictor"]

# MindSpore's advice on Ascend and GPU set-ups, a line each at every start, would bury our own messages.
os.environ.setdefault("GLOG_v", "3")


def __getattr__(name: str) -> Any:
    """`from src import Predictor`, without making every import of a part of `src` load MindSpore."""
    if name in __all__:
        from src import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
