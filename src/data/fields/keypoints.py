"""Keypoints: named points of each object."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from src.config import Config, ConfigError
from src.data.fields.base import Field
from src.data.images import picture_size
from src.data.records import DataError, number
from src.data.scene import Scene
from src.data.transforms import View
from src.drawing.objects import Layer
from src.drawing.skeletons import LEAST, skeleton_layer
from src.runtime.newer import zip_equal

__all__ = ["KeypointField"]

BORDER = 0.5  # pixels that a point may lie beyond its picture: some count pixels' centres, some their corners
SIDES = {"left_": "right_", "right_": "left_"}


class Named(dict[str, Any]):
    """A category's keypoints and skeleton, as the truth has them.

    places: where each of the keypoints stands in the file's own list; count: how many that has.
    """

    def __init__(self, names: Sequence[str], skeleton: Sequence[list[int]], own: Sequence[str]):
        super().__init__(keypoints=list(names), skeleton=list(skeleton))
        self.places, self.count = [own.index(n) for n in names], len(own)


class KeypointField(Field):
    """A batch's gt_keypoints: (K, 3) float32 an object, x and y in pixels of the canvas and the visibility: 2 visible,
    1 covered, 0 not labelled or out of sight, x and y then 0.

    An object's value: [x, y, visibility] * K, as its annotation counts pixels. Where the detector learns keypoints they
    are keypoint_head.names, in that order, whatever else a file has; else (labels on their way elsewhere) the file's.
    Crowd regions have none.
    """

    name = "keypoints"

    def __init__(self, config: Config):
        super().__init__(config)
        self.learnt, self.names = "keypoint" in config.branches, config.keypoint_head.names
        if self.learnt and not len(self.names) == len(set(self.names)) > 0:
            raise ConfigError("keypoint_head.names: empty, or a name comes twice; list each keypoint's once")
        self.mirrored = mirrored_places(self.names)

    def category(self, entry: dict, where: str) -> dict[str, Any]:
        own = entry.get("keypoints")
        if not own:
            if not self.learnt:
                return {}
            raise DataError(
                f"{where} lists no keypoints, which detector: {self.config.detector} learns; name an annotation file"
                " that has them (COCO's: annotations/person_keypoints_*2017.json), or leave the class out of"
                " coco_classes, or use another detector"
            )
        if not isinstance(own, list) or not all(isinstance(n, str) for n in own) or len(set(own)) < len(own):
            raise DataError(f"{where}: keypoints {str(own)[:80]} aren't a list of different names; mend it")
        if lacking := [n for n in self.names if n not in own] if self.learnt else []:
            raise DataError(
                f"{where} lacks keypoints {', '.join(lacking)} of keypoint_head.names; set that to those it has:"
                f" {', '.join(own)}"
            )
        names = self.names if self.learnt else own
        return Named(names, skeleton_of(entry.get("skeleton"), own, names, where if self.learnt else ""), own)

    def read(self, annotation: dict, category: dict[str, Any], height: int, width: int, where: str) -> Any:
        given = annotation.get("keypoints")
        if not isinstance(category, Named) or not given or is_crowd(annotation):
            return None
        if not isinstance(given, list) or len(given) != 3 * category.count:
            found = f"{len(given)} values" if isinstance(given, list) else repr(given)[:40]
            raise DataError(
                f"{where}: keypoints are {found}, not x, y and visibility of each of its category's {category.count}"
            )
        out: list[float] = []
        for name, place in zip_equal(category["keypoints"], category.places):
            three = given[3 * place : 3 * place + 3]
            try:
                out += point_of(three, "score" in annotation, height, width)
            except ValueError as e:
                raise DataError(f"{where}: keypoint {name} {str(three)[:80]} {e}") from None
        return out

    @staticmethod
    def truth(value: Any) -> dict[str, Any]:
        return {"keypoints": value, "num_keypoints": sum(v > 0 for v in value[2::3])}

    @property
    def options(self) -> list:
        return [self.names, self.config.keypoint_head.half_pixel]

    def pack(self, values: list) -> np.ndarray:
        """(N, K, 3) float64: x and y in pixels of which the first covers 0..1, visibility."""
        none = [0.0] * (3 * len(self.names))
        out = np.array([none if v is None else v for v in values], np.float64).reshape(-1, len(self.names), 3)
        if self.config.keypoint_head.half_pixel:
            out[..., :2] += 0.5 * (out[..., 2:] > 0)
        return out

    def moved(self, values: np.ndarray, move: np.ndarray) -> np.ndarray:
        points = np.concatenate([values[..., :2] @ move[:, :2].T + move[:, 2], values[..., 2:]], -1)
        points = np.where(values[..., 2:] > 0, points, 0.0)
        # who is mirrored raises the other hand
        return points[:, self.mirrored] if np.linalg.det(move[:, :2]) < 0 else points

    def shown(self, scene: Scene, boxes: np.ndarray, view: View) -> np.ndarray:
        values, (height, width) = scene.fields[self.name], picture_size(scene.image)
        x1, y1, x2, y2 = view.window
        low, high = [max(x1, 0), max(y1, 0)], [min(x2, width), min(y2, height)]
        inside = ((values[..., :2] >= low) & (values[..., :2] <= high)).all(-1, keepdims=True)
        return self.moved(np.where(inside, values, 0.0), view.move).astype(np.float32)

    def drawn(self, values: np.ndarray, boxes: np.ndarray, shape: tuple[int, int]) -> Layer:
        return skeleton_layer(list(values), self.names, self.config.keypoint_head.skeleton or None)

    def counted(self, values: list) -> Counter:
        labelled = (v for v in values if v is not None and any(v[2::3]))
        return Counter(place for v in labelled for place in ("objects", *zip_equal(self.names, v[2::3])))

    def table(self, counts: Counter) -> list[str]:
        wide, objects = max(map(len, (*self.names, "keypoint"))), counts["objects"]
        rows = [(n, *(counts[n, v] for v in (2, 1, 0))) for n in self.names]
        return [
            f"\n{'keypoint':{wide}s}    visible  covered  not labelled, of the {objects} objects with any",
            *(f"{name:{wide}s}  {seen:9d}{covered:9d}{none:14d}" for name, seen, covered, none in rows),
        ]

    def completed(self, categories: Sequence[dict]) -> Config:
        head = self.config.keypoint_head
        found = next((c["skeleton"] for c in categories if c.get("skeleton")), head.skeleton)
        return self.config if head.skeleton else replace(self.config, keypoint_head=replace(head, skeleton=found))


def point_of(three: list, detected: bool, height: int, width: int) -> list[float]:
    """x, y and visibility, of an annotation's or a detection's in a (height, width) image. Raises ValueError."""
    x, y, visible = (number(v) for v in three)
    if x is None or y is None or visible is None:
        raise ValueError("isn't three finite numbers; mend it")
    if detected:
        # its third number is how sure it is; what pictures don't show isn't a label
        visible = 2.0 if visible > LEAST else 0.0
    if visible not in (0.0, 1.0, 2.0):
        raise ValueError(f"has visibility {visible:g}, not 0 (not labelled), 1 (covered) or 2; mend it")
    if not visible:
        return [0.0, 0.0, 0]
    if not (-BORDER <= x <= width + BORDER and -BORDER <= y <= height + BORDER):
        raise ValueError(f"lies outside its {width} x {height} image; mend it, or give it a visibility of 0")
    return [x, y, int(visible)]


def mirrored_places(names: Sequence[str]) -> list[int]:
    """Where a mirrored object has each keypoint: left_NAME where right_NAME was; one without the other stays."""
    other = {n: SIDES[side] + n.removeprefix(side) for n in names for side in SIDES if n.startswith(side)}
    return [names.index(other[n]) if other.get(n) in names else i for i, n in enumerate(names)]


def skeleton_of(pairs: object, own: Sequence[str], names: Sequence[str], where: str) -> list[list[int]]:
    """COCO's pairs of a file's `own` keypoints, counted from 1, as pairs of `names`.

    Others are left out, or where the message has a `where` to name, raise DataError.
    """
    out = []
    for pair in pairs if isinstance(pairs, list) else []:
        ends = [number(v) for v in pair] if isinstance(pair, list) else []
        known = [own[int(v) - 1] for v in ends if v is not None and v.is_integer() and 1 <= v <= len(own)]
        whole = len(known) == len(ends) == 2
        if where and not whole:
            raise DataError(
                f"{where}: skeleton has {str(pair)[:40]}, no two of its {len(own)} keypoints, counted from 1; mend it,"
                " or leave the skeleton out"
            )
        if whole and all(n in names for n in known):
            out.append([names.index(n) + 1 for n in known])
    return out


def is_crowd(annotation: dict) -> bool:
    """Whether COCO's iscrowd says so; what can't be one is the reader's to refuse."""
    given = annotation.get("iscrowd")
    return given is True or number(given) == 1.0
