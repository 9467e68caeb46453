"""The trained detector as files for other runtimes."""

__all__ = ["SUFFIX"]

SUFFIX = {"MINDIR": ".mindir", "AIR": ".air", "ONNX": ".onnx"}  # of each file format
