"""What the layouts share: patterns of names, and the traits of a project's weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

__all__ = ["NORM", "Traits", "has_all", "rename_by"]

# batch norm's parameters in PyTorch and in MindSpore
NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
Patterns = list[tuple[str, Callable[[re.Match], str]]]


@dataclass(frozen=True)
class Traits:
    """How a project's weights differ from ours in more than their names.

    norm_eps: batch norm's epsilon there.  background_last: the background is the classifier's last row, and has none
    in class-wise box regression and masks.  scales_first: a cell's anchors go through the ratios within each scale.
    foreground_row: of the two rows an anchor has in an RPN of two classes.  folded_norms: batch norms may be a scale
    and a shift alone; elsewhere those are other norms.  notes: lines for the report.
    """

    norm_eps: float = 1e-5
    background_last: bool = False
    scales_first: bool = False
    foreground_row: int = 1
    folded_norms: bool = False
    notes: tuple[str, ...] = ()


def rename_by(patterns: Patterns, name: str) -> str | None:
    """Our name by the first pattern that `name` matches as a whole; None by none."""
    for pattern, ours in patterns:
        m = re.fullmatch(pattern, name)
        if m:
            try:
                return ours(m)
            except KeyError:  # a part of batch norm that isn't known
                return None
    return None


def has_all(names: Iterable[str], *wanted: str) -> bool:
    """Whether all of these are among `names`."""
    return set(wanted) <= set(names)
