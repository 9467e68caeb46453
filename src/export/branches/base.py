"""What exports ask of a branch: a head on what the box head finds."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspore import nn

from src.config import Config, Roi
from src.export.sidecar_values import Check, flag, group, integer, list_of, number
from src.models.roi_extractor import level_sides

__all__ = ["ROI", "STRIDES", "Branch", "Fits", "Output", "describe_roi"]

Fits = Callable[[bool, str], None]  # raises ExportError with the text unless the flag is set

STRIDES = (1, 2**13)  # bounds, as in src/config/
ROI = group(
    {
        "out_size": integer(1, 128),
        "sampling_ratio": integer(0, 32),
        "trained_sampling_ratio": integer(0, 32),
        "aligned": flag,
        "last_pixel_end": flag,
        "strides": list_of(integer(*STRIDES)),
        "finest_scale": number(1, 3e38),
        "level_sides": list_of(number(1, 3e38)),
    },
    # said where it isn't what it always was
    optional=("level_sides",),
)


def describe_roi(roi: Roi, sampling_ratio: int | None) -> dict[str, Any]:
    """A RoIAlign as sidecars have it, as ROI checks it; sampling_ratio: as exported, None: the config's."""
    layer = roi.roi_layer
    sides = level_sides(layer.level_rule, roi.finest_scale, len(roi.featmap_strides))
    usual = layer.level_rule == "torchvision" or not sides
    return {
        "out_size": layer.out_size,
        "sampling_ratio": layer.sampling_ratio if sampling_ratio is None else sampling_ratio,
        "trained_sampling_ratio": layer.sampling_ratio,
        "aligned": layer.aligned,
        "last_pixel_end": layer.last_pixel_end,
        "strides": list(roi.featmap_strides),
        "finest_scale": roi.finest_scale,
        **({} if usual else {"level_sides": sides}),
    }


@dataclass(frozen=True)
class Output:
    """A branch's output of the whole graph, (N, D, *shape) float32, zero where no detection is."""

    name: str
    shape: tuple[int, ...]
    meaning: str


class Branch(abc.ABC):
    """One branch's part of an export. Its module makes one of these, `src.export.branches.BRANCHES` names it.

    In a sidecar, `content`, as described or read. The C++ program has the same in a file of its own
    (ascend310_infer/src/branch.h).
    """

    name: str  # as in Config.branches
    roi: str  # the group of the config that says its RoIAlign, and the sidecar's key of that
    # what the sidecar says of a detector with the branch; of any detector; and in "cascade", of any cascade
    keys: Mapping[str, Check]
    everywhere: Mapping[str, Check] = {}
    cascade: Mapping[str, Check] = {}
    config_keys: Mapping[str, str] = {}  # which keys of a config set one of these, where the name doesn't say it
    # lists in the split form's `files`, of an entry for each of the branch's heads: first the graphs
    files: tuple[str, ...]
    files_everywhere = False  # these lists are there, and empty, in detectors without the branch, too

    # ---- the sidecar

    @abc.abstractmethod
    def describe(self, config: Config, sampling_ratio: int | None) -> dict[str, Any]:
        """`keys` of a detector that has the branch; sampling_ratio: its RoIAlign's as exported, None: the config's."""

    def describe_everywhere(self, config: Config) -> dict[str, Any]:
        """`everywhere`."""
        return {}

    def describe_cascade(self, config: Config) -> dict[str, Any]:
        """`cascade`."""
        return {}

    @abc.abstractmethod
    def check(self, content: dict[str, Any], has: bool, fits: Fits) -> None:
        """What concerns more than one key. has: whether the detector has the branch."""

    @abc.abstractmethod
    def heads(self, content: dict[str, Any]) -> int:
        """How many heads the branch has; it has one or more."""

    @abc.abstractmethod
    def output(self, content: dict[str, Any]) -> Output:
        """What the whole graph gives of it."""

    # ---- the split form

    @abc.abstractmethod
    def graph(self, head: nn.Cell) -> nn.Cell:
        """RoI features (R, C, S, S) -> what the host program takes; of standard operators, for any R."""

    @abc.abstractmethod
    def reference(self, head: nn.Cell) -> nn.Cell:
        """RoI features (R, C, S, S) -> what the C++ program has to give for them; by the detector's own parts."""

    def write_files(self, head: nn.Cell, stem: Path) -> Sequence[Path]:
        """Writes STEM.*, the files that `files` names after the graphs, in that order, or none of them. head: as in the
        graphs, its batch norms folded. Raises OSError.
        """
        return ()
