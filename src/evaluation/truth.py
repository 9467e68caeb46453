"""The ground truth that results are measured against: a COCO instances file, opened at this one place."""

import contextlib
import io
import json
from pathlib import Path

from pycocotools import mask as rle
from pycocotools.coco import COCO

from src.errors import UserError
from src.evaluation.encoding import as_rle, run_totals, whole_polygons

__all__ = ["EvaluationError", "Truth", "read_annotations"]


class EvaluationError(UserError):
    """Results or annotations that can't be used; the message names the file and the remedy."""


class Truth(COCO):
    """pycocotools' index of `data`, the content of the instances file `path`; without its chatter."""

    def __init__(self, path: str | Path, data: dict):
        with contextlib.redirect_stdout(io.StringIO()):
            super().__init__()
            self.path, self.dataset = Path(path), data
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


def read_annotations(path: str | Path) -> Truth:
    """The annotation file `path`, annotations numbered anew from 1, `iscrowd` and `area` filled in where they lack.

    Raises EvaluationError.
    """
    try:
        data = json.loads(Path(path).read_bytes())
        rows = {name: data[name] for name in ("images", "categories", "annotations")}
        if not all(isinstance(r, list) and all(isinstance(x, dict) for x in r) for r in rows.values()):
            raise TypeError
    except OSError as e:
        raise EvaluationError(f"{path}: can't read the annotations: {e.strerror}") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise EvaluationError(f"{path}: not a COCO instances file") from None
    if not (rows["images"] and rows["categories"]):
        raise EvaluationError(f"{path}: has no images or no categories")
    for kind in ("images", "categories"):
        for row in rows[kind]:
            if not isinstance(row.get("id"), int) or isinstance(row["id"], bool) or abs(row["id"]) >> 63:
                raise EvaluationError(f"{path}: an id of {kind} is {row.get('id')!r}, not an integer below 2^63")
        if len({row["id"] for row in rows[kind]}) < len(rows[kind]):
            raise EvaluationError(f"{path}: two of {kind} have the same id; give each its own")
    images, categories = ({row["id"]: row for row in rows[kind]} for kind in ("images", "categories"))
    texts = []
    for number, annotation in enumerate(rows["annotations"], 1):
        a = dict(annotation)
        where = f"{path}: annotation {a.get('id', number)}"
        try:
            _complete(a, images, categories)
        except ValueError as e:
            raise EvaluationError(f"{where}: {e}") from None
        if isinstance(a.get("segmentation"), dict):
            texts.append((where, a["segmentation"]))
        # COCOeval takes a match with the object of id 0 for none, and of those that share an id the last for all
        a["id"] = number
        rows["annotations"][number - 1] = a
    for (where, mask), total in zip(texts, run_totals([m["counts"] for _, m in texts]), strict=True):
        if total != mask["size"][0] * mask["size"][1]:
            raise EvaluationError(f"{where}: RLE counts don't fill its size {mask['size']}")
    for a in rows["annotations"]:
        if "area" not in a:
            mask = a.get("segmentation")
            a["area"] = float(rle.area(mask)) if mask else a["bbox"][2] * a["bbox"][3]
    return Truth(path, data | rows)


def _complete(a: dict, images: dict, categories: dict) -> None:
    """Checks an annotation and fills in what it lacks but `area`. Raises ValueError."""
    lacks = [k for k in ("image_id", "category_id", "bbox") if a.get(k) is None]
    if not a.get("segmentation"):
        a.pop("segmentation", None)
    if lacks:
        raise ValueError(f"it lacks {', '.join(lacks)}")
    if not isinstance(a["image_id"], int) or a["image_id"] not in images:
        raise ValueError(f"it is of image {a['image_id']!r}, which 'images' doesn't list")
    if not isinstance(a["category_id"], int) or a["category_id"] not in categories:
        raise ValueError(f"it is of category {a['category_id']!r}, which 'categories' doesn't list")
    if a.setdefault("iscrowd", 0) not in (0, 1):
        raise ValueError(f"it has iscrowd {a['iscrowd']!r}, neither 0 nor 1")
    if not (isinstance(a["bbox"], list) and len(a["bbox"]) == 4 and all(_is_number(v) for v in a["bbox"])):
        raise ValueError(f"it has a bbox {str(a['bbox'])[:60]}, not four numbers")
    if a.get("area", 0) is None:
        del a["area"]
    if not _is_number(a.get("area", 0)):
        raise ValueError(f"it has an area {a['area']!r}, not a number")
    if "segmentation" in a:
        size = [images[a["image_id"]].get(k) for k in ("height", "width")]
        if not all(isinstance(v, int) and 0 < v < 1 << 31 for v in size):
            raise ValueError(f"it has a mask, and its image {a['image_id']} no height and width")
        # polygons stay, of which pycocotools makes masks itself
        drawn = isinstance(a["segmentation"], list) and "area" in a
        a["segmentation"] = (whole_polygons if drawn else as_rle)(a["segmentation"], *size)


def _is_number(v: object) -> bool:
    return isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e15
