"""Compiles a training step and keeps its graph: python -m src.training.compiling, started by src/training/apart.py.

Standard input: a pickle of config, learning rates, the inputs' shapes and types, and the folder to keep the graph in.
When it ends, this process does, whatever it is at.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
from pathlib import Path

import numpy as np
from mindspore import Tensor

from src.models.build import build_detector, build_loss
from src.ops.device import kept_in, set_device
from src.training.step import build_step


def end_with_input() -> None:
    """Waits for the end of standard input, and ends the process."""
    while os.read(0, 1):
        pass
    os._exit(1)


def main() -> None:
    config, rates, inputs, folder = pickle.load(sys.stdin.buffer)
    threading.Thread(target=end_with_input, daemon=True).start()
    set_device(config)
    step = build_step(config, build_loss(config, build_detector(config)), rates)
    with kept_in(Path(folder)):
        step.compile(*(Tensor(np.zeros(shape, dtype)) for shape, dtype in inputs))
    # nothing that MindSpore does at a process's end is of use here
    os._exit(0)


if __name__ == "__main__":
    main()
