"""The branches, by their names in Config.branches, as exports see them."""

from collections.abc import Sequence

from src.config import Config, Roi
from src.export.branches.base import Branch
from src.export.branches.keypoint import Keypoint
from src.export.branches.mask import Mask

__all__ = ["BRANCHES", "branches_of", "file_lists", "rois"]

BRANCHES: dict[str, Branch] = {"mask": Mask(), "keypoint": Keypoint()}


def branches_of(config: Config) -> list[Branch]:
    """Those of the config's detector, in the order of its outputs."""
    return [BRANCHES[name] for name in config.branches]


def rois(config: Config) -> dict[str, Roi]:
    """The RoIAligns of the detector, by the config's keys of them: first the box head's."""
    return {"roi": config.roi} | {b.roi: getattr(config, b.roi) for b in branches_of(config)}


def file_lists(own: Sequence[Branch]) -> list[str]:
    """The branches' lists in the split form's `files`, of a detector with the branches `own`."""
    return [name for b in BRANCHES.values() if b in own or b.files_everywhere for name in b.files]
