"""The ground truth that results are measured against: a COCO instances file, opened at this one place."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection
from pathlib import Path

from pycocotools.coco import COCO

from src.config import Config
from src.data.fields import FIELDS
from src.data.formats.base import Masks
from src.data.records import DataError
from src.data.truth import truth_of, truth_of_split
from src.runtime.errors import UserError

__all__ = ["EvaluationError", "Truth", "read_annotations", "split_truth"]


class EvaluationError(UserError):
    """Results or annotations that can't be used; the message names the file and the remedy."""


class Truth(COCO):
    """pycocotools' index of `data`, the content of the instances file `path`; without its chatter.

    `path` becomes that of the annotations that a truth was made from.
    """

    def __init__(self, path: str | Path, data: dict):
        with contextlib.redirect_stdout(io.StringIO()):
            super().__init__()
            self.path, self.dataset = Path(data.get("source", path)), data
            self.createIndex()

    def class_names(self) -> dict[int, str]:
        """Each category's name by id; where two share one, the id is told beside it."""
        names = {k: str(c.get("name", f"class {k}")) for k, c in sorted(self.cats.items())}
        several = {n for n in names.values() if list(names.values()).count(n) > 1}
        return {k: f"{n} ({k})" if n in several else n for k, n in names.items()}


def read_annotations(path: str | Path, branches: Collection[str] | None = None) -> Truth:
    """The annotation file `path` as evaluation needs it: a truth as it is, any other as the data sets' reader takes it.

    branches: those whose values are measured (default: all there are); an object without a mask is a fault where others
    have one, if these are. Raises EvaluationError.
    """
    try:
        fields = None if branches is None else [FIELDS[b].name for b in branches if b in FIELDS]
        data = truth_of(path, masks=masks_of(branches), fields=fields)
    except DataError as e:
        raise EvaluationError(str(e)) from None
    if not (data["images"] and data["categories"]):
        raise EvaluationError(f"{path}: has no images or no categories")
    return Truth(path, data)


def split_truth(config: Config, split: str, branches: Collection[str]) -> Truth:
    """A split's, without its conversion; branches: as read_annotations. Raises DataError."""
    data = truth_of_split(config, split, masks_of(branches))
    return Truth(data["source"], data)


def masks_of(branches: Collection[str] | None) -> Masks:
    """How the data sets' reader takes masks, where these branches' values are measured."""
    return "if_any" if branches is None or "mask" in branches else "unneeded"
