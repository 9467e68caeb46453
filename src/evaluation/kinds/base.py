"""What an evaluation measures: one IoU type of COCO's, and the values that objects have for it."""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pycocotools.cocoeval import COCOeval

from src.config import Config
from src.drawing.objects import Layer
from src.evaluation.truth import Truth

__all__ = ["STANDARD", "Kind", "Number", "Shape", "coco_numbers"]

STANDARD = 100  # detections of a class in an image that COCO's metrics of boxes and masks count

AREAS = {"small": "area below 32²", "medium": "32² to 96²", "large": "above 96²"}


@dataclass(frozen=True)
class Number:
    """One of a kind's metrics: the mean precision or recall over the classes.

    max_dets: detections that count; iou: the one IoU, None for the mean of 0.50 to 0.95; area: the objects' size.
    """

    name: str
    of: Literal["precision", "recall"]
    max_dets: int
    iou: float | None = None
    area: str = "all"

    @property
    def meaning(self) -> str:
        """What it is, for readers of a report."""
        if self.of == "precision":
            area = AREAS.get(self.area, "")
            at = "" if self.iou is None else f" at IoU {self.iou:.2f}"
            return f"AP of {self.area} objects ({area}){at}" if area else f"AP{at or ', mean over IoU 0.50 to 0.95'}"
        if self.area != "all":
            return f"recall of {self.area} objects"
        with_all = f"recall with {self.max_dets} detections of a class in an image"
        return with_all if self.iou is None else f"{with_all}, at IoU {self.iou:.2f}"


def coco_numbers(max_dets: int = STANDARD) -> tuple[Number, ...]:
    """COCO's twelve numbers, where `max_dets` detections count."""
    sizes = {"s": "small", "m": "medium", "l": "large"}
    return (
        Number("AP", "precision", max_dets),
        Number("AP50", "precision", max_dets, 0.5),
        Number("AP75", "precision", max_dets, 0.75),
        *(Number(f"AP{k}", "precision", max_dets, None, size) for k, size in sizes.items()),
        *(Number(f"AR{n}", "recall", n) for n in (1, 10, max_dets)),
        *(Number(f"AR{k}", "recall", max_dets, None, size) for k, size in sizes.items()),
    )


@dataclass(frozen=True)
class Shape:
    """A shape of labelme's: points (P, 2) in pixels; kind: its shape_type; label: its own, None for the class's."""

    points: np.ndarray
    kind: str
    label: str | None = None


class Kind(abc.ABC):
    """One IoU type. A module each, named in src.evaluation.kinds.KINDS.

    name: pycocotools' IoU type; branch: the head that it needs, None for what every detector has; noun: what it
    measures, in the plural; key: of an object's value in COCO results and annotations; standard: detections of a class
    in an image that COCO counts; told_by: the key of the C++ program's summary that holds the options.

    A branch's `value` is what Detections.fields holds of one object.
    """

    name: str
    branch: str | None = None
    noun: str
    key: str
    standard: int = STANDARD
    told_by: str = ""

    # -----------------------------------------------------------------------------------------------------
    # from a network's outputs to values; of kinds with a branch

    def options(self, config: Config) -> dict[str, Any]:
        """What `values` needs to know of a detector."""
        return {}

    def told(self, summary: Mapping[str, Any]) -> dict[str, Any] | None:
        """The same, from the summary of the C++ program's results; None where the detector lacks the branch."""
        return summary.get(self.told_by)

    def tells(self, summary: Mapping[str, Any]) -> bool:
        """Whether that summary has none, or options that an inference writes."""
        return True

    def values(
        self,
        rows: np.ndarray,
        boxes: np.ndarray,
        scale: np.ndarray,
        height: int,
        width: int,
        options: Mapping[str, Any],
    ) -> list:
        """The value of each of N objects.

        rows (N, ...): the branch's output, or what the C++ program stored of it; boxes (N, 4) float32 x1 y1 x2 y2 in
        pixels of the picture (height, width), which they may leave: clipped ones would squeeze what lies in them;
        scale (N, 2) float32 (y, x): pixels of the canvas, where each was found, a pixel of the picture.
        """
        return list(rows)

    def resized(self, value: Any, height: int, width: int, to: tuple[int, int]) -> Any:
        """A value of a picture (height, width), of the picture resized to `to` (height, width), to be painted there."""
        return value

    # -----------------------------------------------------------------------------------------------------
    # what files hold of a value

    def rounded(self, value: Any) -> Any:
        """The value as files hold it; no other place rounds it."""
        return value

    def result(self, value: Any) -> dict[str, Any]:
        """A value's keys in COCO results."""
        return {self.key: value}

    def entry(self, value: Any) -> dict[str, Any]:
        """A value's keys in predictions.json."""
        return {self.key: value}

    def annotation(self, value: Any) -> dict[str, Any]:
        """A value's keys in COCO annotations to correct by hand; none for nothing to correct."""
        return {}

    def category(self, value: Any) -> dict[str, Any]:
        """The keys of a value's category in such annotations, which say what its numbers are."""
        return {}

    def shapes(self, value: Any) -> list[Shape]:
        """A value as labelme's shapes; none for nothing to correct."""
        return []

    # -----------------------------------------------------------------------------------------------------
    # results that were read, and the truth

    def held(self, entry: Mapping[str, Any]) -> bool:
        """Whether a COCO result or annotation has a value."""
        return bool(entry.get(self.key))

    @abc.abstractmethod
    def checked(self, value: Any, image: Mapping[str, Any], category: Mapping[str, Any]) -> Any:
        """A result's value as evaluation needs it; image, category: its entries in the truth, none of a category that
        the truth lacks. Raises ValueError, which says what is wrong with it."""

    def faults(self, values: Sequence[Any]) -> Iterator[tuple[int, str]]:
        """Place and fault of values that passed `checked`, where it's quicker to look at all of them at once."""
        yield from ()

    @abc.abstractmethod
    def box(self, value: Any) -> list[float]:
        """The box [x, y, width, height] of a result that has none beside its checked value."""

    def annotated(self, truth: Truth) -> bool:
        """Whether any object has a value, if there are objects."""
        return True

    def converted(self, index: Mapping[str, Any]) -> bool:
        """As `annotated`, of the index of a converted split."""
        return True

    def demand(self, truth: Truth, results: Sequence[dict] = ()) -> None:
        """Raises EvaluationError where an object or a result lacks its value. May complete crowds."""
        return

    # -----------------------------------------------------------------------------------------------------
    # metrics

    @abc.abstractmethod
    def measured(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """What COCOeval needs of a checked result: its value, and its area, for small, medium and large."""

    def set_up(self, run: COCOeval) -> None:
        """Sets what the kind has of its own in run.params; detections that count are set after it."""
        return

    def notes(self, truth: Truth, categories: Collection[int]) -> list[str]:
        """What a reader of the metrics of these categories must know, a line each."""
        return []

    def limit(self, max_per_img: int) -> int:
        """Detections of a class in an image that count, of a detector that gives max_per_img."""
        return max(max_per_img, self.standard)

    def counted(self, max_dets: int) -> tuple[int, ...]:
        """Every number of detections that the metrics need, where `max_dets` count."""
        return tuple(sorted({n.max_dets for limit in (self.standard, max_dets) for n in self.numbers(limit)}))

    def numbers(self, max_dets: int) -> tuple[Number, ...]:
        """The metrics, the AP first, in the order of their table."""
        return coco_numbers(max_dets)

    # -----------------------------------------------------------------------------------------------------
    # pictures

    def layer(self, values: Sequence[Any]) -> Layer:
        """What paints the objects' values, some of which may be None."""
        return lambda canvas, i, shade, line, zoom: None

    def drawable(self, entry: Mapping[str, Any], category: Mapping[str, Any], height: int, width: int) -> Any:
        """The value of a COCO result or annotation on a picture of this size, to be painted; None for none. category:
        its entry in the truth."""
        return None
