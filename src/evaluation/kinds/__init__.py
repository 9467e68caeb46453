"""The kinds of COCO's metrics, by the name of their IoU type, in the order in which they are measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from src.drawing.objects import Layer
from src.evaluation.kinds.base import Kind
from src.evaluation.kinds.box import Boxes
from src.evaluation.kinds.keypoints import Keypoints
from src.evaluation.kinds.masks import Masks

__all__ = [
    "KINDS",
    "Kind",
    "branch_kinds",
    "choose_kinds",
    "layers_of",
    "leading_ap",
    "needed_branches",
]

KINDS: dict[str, Kind] = {kind.name: kind for kind in (Boxes(), Masks(), Keypoints())}


def branch_kinds(branches: Collection[str] | None = None) -> dict[str, Kind]:
    """The kind of each of a detector's branches (default: all there are), by the branch's name."""
    kinds = {kind.branch: kind for kind in KINDS.values() if kind.branch is not None}
    return {b: kind for b, kind in kinds.items() if branches is None or b in branches}


def needed_branches(names: Collection[str]) -> tuple[str, ...]:
    """The branches that measuring these kinds needs."""
    return tuple(branch for name in names if (branch := KINDS[name].branch) is not None)


def choose_kinds(
    branches: Collection[str], have: Mapping[str, Callable[[Kind], bool]], asked: Sequence[str] | None = None
) -> tuple[tuple[str, ...], str]:
    """What to measure of a detector with these branches: what is asked for, else what there is, and a line on what is
    left out.

    have: whether each of those that must have a kind's values for it has some, {"annotations": function of a kind}.
    """
    if asked:
        return tuple(k for k in KINDS if k in asked), ""
    possible = [k for k in KINDS.values() if k.branch is None or k.branch in branches]
    lacking = {k.name: [who for who, has in have.items() if not has(k)] for k in possible}
    chosen = [k for k in possible if not lacking[k.name]]
    left_out = [
        f"the {' and the '.join(lacking[k.name])} have no {k.noun} ({k.name} left out)"
        for k in possible
        if lacking[k.name]
    ]
    note = f"{' and '.join(k.noun for k in chosen)} alone are measured: {'; '.join(left_out)}" if left_out else ""
    return tuple(k.name for k in chosen), note


def leading_ap(metrics: Mapping[str, float]) -> float | None:
    """The AP by which a detector is judged, of its metrics by "segm AP" and the like; None without one."""
    return next((metrics[f"{k} AP"] for k in reversed(KINDS) if f"{k} AP" in metrics), None)


def layers_of(fields: Mapping[str, Sequence[Any]]) -> list[Layer]:
    """What paints the values of objects, by branch, on their picture."""
    return [kind.layer(fields[branch]) for branch, kind in branch_kinds(fields).items()]
