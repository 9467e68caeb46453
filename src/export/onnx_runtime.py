"""An exported ONNX model in ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime

from src.export.sidecar import ExportError

__all__ = ["OnnxModel"]


class OnnxModel:
    """A session on the CPU.

    Args:
        model: file, or its bytes.  threads: within an operator; 0: as many as there are cores.

    Called with image (N, 3, H, W) and image_shape (N, 4), both float32, as the model's sidecar describes them; returns
    its outputs in order. classes: the names that its metadata hold, background first; None in older files. Raises
    ExportError for a model that ONNX Runtime doesn't take.
    """

    def __init__(self, model: str | Path | bytes, threads: int = 0):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        name = "the model" if isinstance(model, bytes) else str(model)
        try:
            source = model if isinstance(model, bytes) else str(model)
            self.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as e:  # its exceptions have no common base of their own
            reason = str(e).strip().splitlines()[0][:200]
            raise ExportError(f"{name}: ONNX Runtime can't load it: {reason}") from None
        text = self.session.get_modelmeta().custom_metadata_map.get("classes", "null")
        try:
            self.classes = json.loads(text)
        except ValueError:
            self.classes = text
        if not isinstance(self.classes, (list, type(None))):
            raise ExportError(f"{name}: the classes in its metadata aren't a JSON list; export it again")

    def __call__(self, image: np.ndarray, image_shape: np.ndarray) -> list[np.ndarray]:
        return self.session.run(None, {"image": image, "image_shape": image_shape})
