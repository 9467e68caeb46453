"""What a part is given to write itself as ONNX operators, as its cell's `construct` says them: `onnx` methods take it.

The writer (src/export/onnx_graph.py) holds the graph so far; values in it are known by their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mindspore import nn

from src.models.roi_extractor import RoIExtractor

__all__ = ["GraphWriter"]


class GraphWriter(Protocol):
    """n: images of a batch."""

    n: int

    def op(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Adds an operator; inputs that aren't names are constants. The name of its output, or a list of them."""

    def constant(self, value: Any, name: str = "") -> str:
        """A constant's name; Python's numbers are float32 or int64."""

    def reshape(self, x: str, *shape: int) -> str: ...

    def put(self, shape: Sequence[int], index: str, rows: str) -> str:
        """Zeros of `shape`, but `rows` at places `index` (R,) of the first axis."""

    def mean(self, stages: list[str], after: bool, function: str, **attributes: Any) -> str:
        """`function` of the mean of several heads' logits; `after`: the mean of its values."""

    def conv(self, x: str, cell: nn.Conv2d, norm: nn.Cell | None = None, relu: bool = False) -> str:
        """A convolution, with its own bias, or the norm after it as folding has left it; a ConvNorm has both."""

    def dense(self, x: str, cell: nn.Dense, relu: bool = False) -> str: ...

    def relu6(self, x: str) -> str: ...

    def roi_features(
        self, maps: Sequence[str], boxes: str, valid: str, count: int, extractor: RoIExtractor
    ) -> tuple[str, str]:
        """Features (R, C, S, S) of the valid ones of `count` boxes an image, and their places (R,) among all."""

    def weight(self, parameter: Any) -> str:
        """A parameter as a constant of its name."""
