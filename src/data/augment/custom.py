"""A user's own change of training images: config.transform names a function, which is called as

    image, boxes, labels, masks = function(image, boxes, labels, masks, random)

image: (H, W, 3) uint8, RGB, as annotated, before all other augmentation; another size may come back, which is resized
as any. boxes: (N, 4) float32 x1 y1 x2 y2 in its pixels; what comes back must lie in its image (up to a pixel beyond is
cut off). labels: (N,) int32, places in coco_classes; 0: a crowd region, neither object nor background. masks: a list of
N (H, W) uint8, 0 or 1, none empty, a crowd's being its box; or None where nothing needs them. random: a numpy
Generator, a function of seed, epoch, image and how often it came before, to draw from, so that a run repeats and
resumes. Any number of objects may come back, up to max_instance_count.
"""

import contextlib
import hashlib
import importlib
import math
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle

from src.config import Config, ConfigError
from src.data.records import DataError
from src.data.scene import Scene
from src.data.transforms import to_bitmap
from src.runtime.errors import UserError
from src.runtime.files import read_regular
from src.runtime.newer import zip_equal

__all__ = ["Transform", "TransformError", "load_transform"]

NEAR = 1.0  # pixels that a box may reach beyond its image
MOST_TOLD = 300  # characters of what a user's code raises


class TransformError(DataError):
    """A user's function that fails, or returns what can't be used; the message names it and the image."""


@dataclass(frozen=True)
class Transform:
    """A user's function, as config.transform names it.

    source: the file that it is in, as far as it has one; fingerprint: changes with that file's content, not with that
    of what it imports.
    """

    name: str
    function: Callable
    source: str
    fingerprint: str

    def __call__(
        self,
        scene: Scene,
        labels: np.ndarray,
        crowds: np.ndarray,
        random: np.random.Generator,
        config: Config,
        image: str,
    ) -> tuple[Scene, np.ndarray, np.ndarray]:
        """Scene, labels (N,) int32 of its objects and crowds (K, 4) float32, changed; masks come back as RLE.

        image: what it is called in messages. Raises TransformError.
        """
        height, width = scene.image.shape[:2]
        masks = None
        if config.needs_masks:
            masks = [to_bitmap(m, height, width) for m in scene.masks]
            masks += [box_bitmap(box, height, width) for box in crowds]
        boxes = np.concatenate([scene.boxes, crowds])
        all_labels = np.concatenate([labels, np.zeros(len(crowds), np.int32)])
        # some annotations have them apart, which is no fault of the function
        before = len(apart(boxes, masks or []))
        with told(self.source, f"transform {self.name}", f", on {image}"):
            result = self.function(cv2.cvtColor(scene.image, cv2.COLOR_BGR2RGB), boxes, all_labels, masks, random)
        fault = fault_of(result, config)
        if not fault and len(rows := apart(result[1], result[3] or [])) > before:
            fault = f"mask {rows[0]} has no pixel inside box {rows[0]}; change both alike"
        if fault:
            raise TransformError(f"transform {self.name}, on {image}: {fault}")
        picture, boxes, labels, masks = result
        sides = np.tile(picture.shape[1::-1], 2)
        boxes, crowd = np.clip(boxes, 0, sides).astype(np.float32), labels == 0
        coded = [None] * len(boxes)
        if masks:
            coded = [rle.encode(np.asfortranarray(m)) for m in masks]
        scene = Scene(
            cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2BGR),
            boxes[~crowd],
            [m for m, c in zip_equal(coded, crowd) if not c],
        )
        return scene, labels[~crowd].astype(np.int32), boxes[crowd]


def box_bitmap(box: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width) uint8: 1 in the pixels that a box x1 y1 x2 y2 touches."""
    out = np.zeros((height, width), np.uint8)
    x1, y1, x2, y2 = box.tolist()
    out[math.floor(y1) : math.ceil(y2), math.floor(x1) : math.ceil(x2)] = 1
    return out


def apart(boxes: np.ndarray, masks: Sequence[np.ndarray]) -> list[int]:
    """Rows of the masks (H, W) that have no pixel in their boxes (N, 4)."""
    outer = np.concatenate([np.floor(boxes[:, :2]).clip(0), np.ceil(boxes[:, 2:])], 1).astype(int)
    return [i for i, (m, (x1, y1, x2, y2)) in enumerate(zip(masks, outer)) if not m[y1:y2, x1:x2].any()]


def fault_of(result: object, config: Config) -> str:
    """What is wrong with what a user's function returned, or nothing."""
    if not isinstance(result, (tuple, list)) or len(result) != 4:
        return f"returned {kind_of(result)}, not (image, boxes, labels, masks)"
    image, boxes, labels, masks = result
    if not (is_array(image, 3, np.uint8) and image.shape[2] == 3 and image.size):
        return f"returned {kind_of(image)} as image, not uint8 (H, W, 3)"
    if not (is_array(boxes, 2, np.float32) and boxes.shape[1] == 4):
        return f"returned {kind_of(boxes)} as boxes, not float32 (N, 4)"
    if not (is_array(labels, 1, np.integer) and len(labels) == len(boxes)):
        return f"returned {kind_of(labels)} as labels, not integers ({len(boxes)},), one a box"
    height, width = image.shape[:2]
    for i, (box, label) in enumerate(zip_equal(boxes.tolist(), labels.tolist())):
        x1, y1, x2, y2 = box
        shown = f"box {i} {[round(v, 2) for v in box]}"
        if not np.isfinite(box).all():
            return f"{shown} isn't finite"
        if min(x1, y1) < -NEAR or x2 > width + NEAR or y2 > height + NEAR:
            return f"{shown} reaches beyond its {width} x {height} image; cut it there, or leave the object out"
        if max(x1, 0) >= min(x2, width) or max(y1, 0) >= min(y2, height):
            return f"{shown} has no area inside its {width} x {height} image; leave the object out"
        if not 0 <= label < config.num_classes:
            return f"label {i} is {label}, none of 0..{config.num_classes - 1}"
    objects = int((labels != 0).sum())
    if objects > config.max_instance_count:
        return f"{objects} objects, more than max_instance_count {config.max_instance_count}; raise it"
    return fault_of_masks(masks, labels, (height, width), config.needs_masks)


def fault_of_masks(masks: object, labels: np.ndarray, shape: tuple[int, int], needed: bool) -> str:
    """What is wrong with the masks of an image of that shape (height, width), or nothing."""
    if masks is None and not (needed and len(labels)):
        return ""
    if not needed:
        return f"returned {kind_of(masks)} as masks, where None was given"
    if not isinstance(masks, (list, tuple)) or len(masks) != len(labels):
        return f"returned {kind_of(masks)} as masks, not a list of {len(labels)}, one a box"
    for i, mask in enumerate(masks):
        if not (is_array(mask, 2, np.uint8) and mask.shape == shape):
            return f"mask {i} is {kind_of(mask)}, not uint8 {shape}, the image's size"
        if mask.max() > 1:
            return f"mask {i} holds {mask.max()}; masks are 0 or 1"
        if not mask.any():
            return f"mask {i} is empty; leave the object out"
    return ""


def is_array(value: object, dimensions: int, kind: type) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == dimensions and np.issubdtype(value.dtype, kind)


def kind_of(value: object) -> str:
    """Type and shape of a value, for messages."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a {type(value).__name__}"


@contextlib.contextmanager
def told(source: str, name: str, where: str = "", error: type[UserError] = TransformError) -> Iterator[None]:
    """Tells whatever a user's code raises in one line: `name`, file and line, in `source` if it is there, the error."""
    try:
        yield
    # it is not our code, so it may raise anything
    except (Exception, SystemExit) as e:
        frames = [(f.filename, f.lineno) for f in traceback.extract_tb(e.__traceback__) if f.filename != __file__]
        text = str(e)
        if isinstance(e, SyntaxError):
            frames, text = [(e.filename or source, e.lineno)], e.msg
        file, line = ([f for f in frames if f[0] == source] or frames or [(source, None)])[-1]
        at = file if line is None else f"{file}, line {line}"
        raise error(" ".join(f"{name}: {at}: {type(e).__name__}: {text[:MOST_TOLD]}{where}".split())) from None


def load_transform(name: str) -> Transform:
    """The function that config.transform names; its file is read anew, a module as Python imports it.

    Raises ConfigError.
    """
    place, _, function = name.rpartition(":")
    is_file = place.endswith(".py")
    if not function.isidentifier() or not (is_file or all(p.isidentifier() for p in place.split("."))):
        raise ConfigError(f"transform: {name!r} is neither path/to/file.py:function nor module:function")
    if is_file:
        module, source, content = run_file(Path(place), name)
    else:
        module, source, content = import_module(place, name)
    found = getattr(module, function, None)
    if not callable(found):
        functions = [n for n, v in vars(module).items() if isinstance(v, types.FunctionType)]
        own = [n for n in functions if getattr(module, n).__module__ == module.__name__]
        raise ConfigError(f"transform: {source} has no function {function}; it has {', '.join(own) or 'none'}")
    return Transform(name, found, source, hashlib.sha256(content).hexdigest()[:12])


def run_file(path: Path, name: str) -> tuple[types.ModuleType, str, bytes]:
    """A file's module, its name and its content. Raises ConfigError."""
    try:
        content = read_regular(path)
    except OSError as e:
        raise ConfigError(f"transform: {path}: can't read: {e.strerror}") from None
    module = types.ModuleType(f"transform_{path.stem}")
    module.__file__ = str(path)
    # where dataclasses look for their module
    sys.modules[module.__name__] = module
    # not by Python's import, which takes a file changed within a second for the one that it has compiled
    with told(str(path), "transform", error=ConfigError):
        exec(compile(content, str(path), "exec"), vars(module))
    return module, str(path), content


def import_module(place: str, name: str) -> tuple[types.ModuleType, str, bytes]:
    """A module, its file's name and content. Raises ConfigError."""
    with told(place, "transform", error=ConfigError):
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as e:
            if e.name is None or not f"{place}.".startswith(f"{e.name}."):
                raise
            module = None
    if module is None:
        function = name.rpartition(":")[2]
        raise ConfigError(f"transform: no module {place} on Python's path; give its file: path/to/file.py:{function}")
    source = getattr(module, "__file__", None) or place
    content = Path(source).read_bytes() if Path(source).is_file() else b""
    return module, source, content
