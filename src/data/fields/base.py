"""What a field is to the rest: what an object carries beyond box and class, from its annotation to a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from src.config import Config
from src.data.scene import Scene
from src.data.transforms import View
from src.drawing.objects import Layer

__all__ = ["Field"]


class Field:
    """One thing that a branch of the detector learns of each object. Objects without it have None.

    An object's value is what JSON holds, under `name` in Instance.fields and in the rows of a conversion; `pack` makes
    an array of the values of an image, which every augmentation takes through `moved`; `shown` is what a batch holds,
    padded, as gt_{name}. Crowd regions have values in the truth but not in training.

    name: in the plural, as messages call it. carried: objects have it in Instance.fields; else (masks, which boxes
    follow from) it travels as Instance.segmentation and Scene.masks do, and only `shown` is asked. bars: keys of the
    config under which training images are changed in a way that values can't follow, each with the value that turns it
    off.
    """

    name = ""
    carried = True
    bars: Mapping[str, Any] = {"transform": ""}

    def __init__(self, config: Config):
        self.config = config

    # -- from the annotations

    def category(self, entry: dict, where: str) -> dict[str, Any]:
        """What of a COCO category, as its file has it, goes on to the truth. Raises DataError, which begins with
        `where`."""
        return {}

    def read(self, annotation: dict, category: dict[str, Any], height: int, width: int, where: str) -> Any:
        """The value of a COCO annotation in a (height, width) image, or None where it has none.

        category: what `category` gave of its own. Raises DataError, which begins with `where`.
        """
        raise NotImplementedError

    @staticmethod
    def truth(value: Any) -> dict[str, Any]:
        """The keys of a COCO annotation that hold a value, as the truth and written labels have them."""
        raise NotImplementedError

    @property
    def options(self) -> list:
        """What of the config a conversion with this field depends on, as JSON holds it."""
        return []

    def completed(self, categories: Sequence[dict]) -> Config:
        """The config with what a truth's categories say of the field and results are to know, but for what it says."""
        return self.config

    def counted(self, values: list) -> Counter:
        """What inspection counts of the values of an image's objects."""
        return Counter()

    def table(self, counts: Counter) -> list[str]:
        """The lines that tell what `counted` gave of all images."""
        return []

    # -- to a batch

    def pack(self, values: list) -> np.ndarray:
        """The values of an image's objects as one array (N, ...); beyond N, its shape is every image's."""
        raise NotImplementedError

    def moved(self, values: np.ndarray, move: np.ndarray) -> np.ndarray:
        """Values (N, ...) of objects that a `move` took elsewhere; those given stay as they were.

        move: (2, 3) float64, from x, y of the image, in which pixel 0 covers 0..1, to where a point goes: turns,
        flips (then its determinant is negative), changes of size.
        """
        raise NotImplementedError

    def shown(self, scene: Scene, boxes: np.ndarray, view: View) -> np.ndarray:
        """What a batch holds of a scene's objects, (N, ...), all of which `view` shows.

        boxes: (N, 4) float32 x1 y1 x2 y2 in pixels of the image, of what the view shows of each. Of a carried field
        its values where the view has them; what isn't on the canvas is this method's to leave out. Copy-paste asks
        twice: of each picture, then of the canvas, seen as it is.
        """
        return self.moved(scene.fields[self.name], view.move)

    def drawn(self, values: np.ndarray, boxes: np.ndarray, shape: tuple[int, int]) -> Layer | None:
        """What shows the values that a batch holds, (N, ...), of objects at boxes (N, 4) of a canvas of that shape
        (height, width), on a picture; or nothing.
        """
        return None
