"""The training step compiled by another process, whose memory goes back to the system when it ends."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from src.config import Config

__all__ = ["compile_apart"]

ROOT = Path(__file__).resolve().parents[2]


def compile_apart(config: Config, rates: Any, inputs: list[tuple[tuple[int, ...], str]], folder: Path) -> str:
    """Has a process of its own compile the step that build_step makes of `config` and `rates` (learning rates) for
    inputs of these shapes and types, and keep it in `folder`.

    It ends with this process, however that does; Ctrl-C is this process's alone. Returns why it couldn't, or "".
    """
    ours, theirs = 0, 0
    with tempfile.TemporaryFile() as told:
        try:
            theirs, ours = os.pipe()
            paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            child = subprocess.Popen(
                [sys.executable, "-m", "src.training.compiling"],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=told,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,
            )
        except OSError as e:
            if ours:
                os.close(ours)
            return str(e)
        finally:
            if theirs:
                os.close(theirs)
        try:
            # the pipe stays open: its end is how the other process knows of ours
            with open(ours, "wb") as order:
                with contextlib.suppress(BrokenPipeError):
                    pickle.dump((config, rates, inputs, str(folder)), order)
                    order.flush()
                status = child.wait()
        finally:
            child.kill()
            child.wait()
        if status == 0:
            return ""
        told.seek(0)
        lines = told.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"status {status}"
