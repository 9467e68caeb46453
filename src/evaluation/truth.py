"""The ground truth that results are measured against: a COCO instances file, opened at this one place."""

import contextlib
import io
from pathlib import Path

from pycocotools.coco import COCO

from src.data.records import DataError
from src.data.truth import truth_of
from src.runtime.errors import UserError

__all__ = ["EvaluationError", "Truth", "read_annotations"]


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

    @property
    def has_masks(self) -> bool:
        """Whether any object has one, if there are objects."""
        objects = [a for a in self.dataset["annotations"] if not a["iscrowd"]]
        return not objects or any(a.get("segmentation") for a in objects)

    def class_names(self) -> dict[int, str]:
        """Each category's name by id; where two share one, the id is told beside it."""
        names = {k: str(c.get("name", f"class {k}")) for k, c in sorted(self.cats.items())}
        several = {n for n in names.values() if list(names.values()).count(n) > 1}
        return {k: f"{n} ({k})" if n in several else n for k, n in names.items()}


def read_annotations(path: str | Path, with_masks: bool = True) -> Truth:
    """The annotation file `path` as evaluation needs it: a truth as it is, any other as the data sets' reader takes it.

    with_masks: an object without a mask is a fault where others have one. Raises EvaluationError.
    """
    try:
        data = truth_of(path, masks="if_any" if with_masks else "unneeded")
    except DataError as e:
        raise EvaluationError(str(e)) from None
    if not (data["images"] and data["categories"]):
        raise EvaluationError(f"{path}: has no images or no categories")
    return Truth(path, data)
