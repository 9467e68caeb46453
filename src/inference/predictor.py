"""A trained detector as a function of images: from src import Predictor; Predictor(config, checkpoint)(image)."""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import os
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from mindspore import Tensor

from src.checkpoints.files import load_detector
from src.config import COCO_CLASSES, Config, at_scales, load_config
from src.data.formats import resolve_classes
from src.data.images import picture_size
from src.data.records import DataError
from src.data.sources import Source, read_source
from src.data.transforms import prepare_image
from src.evaluation.detections import Detections
from src.evaluation.paste import Found, found_in, paste, paste_options
from src.evaluation.views import Views
from src.inference.tiles import check_tile, cut_off, merge, windows
from src.models.build import build_detector
from src.ops.device import set_device
from src.runtime.errors import UserError
from src.runtime.interrupts import own_interrupts
from src.runtime.newer import zip_equal
from src.runtime.pools import thread_pool

__all__ = ["Prediction", "Predictor", "coco_category_ids"]

# COCO's 80 classes have ids up to 90
UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_IDS = dict(zip_equal(COCO_CLASSES[1:], (i for i in range(1, 91) if i not in UNUSED_IDS)))


def coco_category_ids(class_names: Sequence[str]) -> dict[int, int]:
    """COCO's category id of each label, where every class but the first (background) is COCO's; else nothing."""
    if set(class_names[1:]) <= COCO_IDS.keys():
        return {label: COCO_IDS[name] for label, name in enumerate(class_names) if label}
    return {}


@dataclass
class Prediction:
    """One source's detections, or why there are none; `image` (H, W, 3) uint8 BGR where it was asked for.

    orientation: the EXIF orientation by which viewers turn the picture further; 1 where detections are of the upright.
    """

    source: Source
    detections: Detections | None = None
    image: np.ndarray | None = None
    fault: str = ""
    orientation: int = 1

    @property
    def found(self) -> Detections:
        """The detections. Raises DataError, one line, for a source that has a fault instead."""
        if self.detections is None:
            raise DataError(self.fault)
        return self.detections


@dataclass
class Picture:
    """One source on its way to the network; size: (height, width); `found`: the detector's rows of each of its parts
    that is through."""

    source: Source
    image: np.ndarray | None = None
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    fault: str = ""
    parts: list[tuple[int, int, int, int]] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)


@dataclass
class View:
    """A part of a picture: `canvas` and `resized` (height, width) as the evaluation's loader has them; none of a
    picture that has a fault. `more`: the same at test_scales past the first."""

    picture: Picture
    canvas: np.ndarray | None = None
    resized: tuple[int, int] = (0, 0)
    part: int = 0
    more: list[tuple[np.ndarray, tuple[int, int]]] = field(default_factory=list)


class CannotPickleError(UserError, TypeError):
    """What pickle is told, which knows TypeError."""


_ran_in: int | None = None  # process in which a network ran first


class Predictor:
    """A detector with its weights. Images are read, resized, normalised and detected in as in eval.py.

    config: a Config or the path of a YAML file; checkpoint: .ckpt or .safetensors of the whole detector. batch_size:
    images that go through the network together (default: the config's test_batch_size); fewer are padded, so that it
    compiles once. score_thr: least score (default: test_cfg.rcnn.score_thr, or all that soft_nms leaves);
    class_score_thr: that of classes by name, in its place. upright: image files are turned as their EXIF orientation
    says, as by the config's exif: upright. category_ids: the data set's id of each label (default: COCO's, where the
    classes are COCO's). classes: names of the only classes to detect (default: all). tile: larger pictures are detected
    in as a whole and in squares of this side, in pixels, that overlap by the share `overlap`; what several of them
    found is merged by non-maximum suppression, so that a picture can have more than max_per_img detections.

    May be called from several threads: the network runs in one thread of its own, for one batch after the other. Ctrl-C
    stays the program's. Can neither be pickled nor used in a forked child: make one there. Raises UserError for a
    config, device or checkpoint that can't be used.
    """

    def __init__(
        self,
        config: Config | str | Path,
        checkpoint: str | Path,
        batch_size: int | None = None,
        score_thr: float | None = None,
        upright: bool = False,
        category_ids: dict[int, int | str] | None = None,
        classes: Sequence[str] | None = None,
        class_score_thr: Mapping[str, float] | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
    ):
        if _ran_in not in (None, os.getpid()):
            raise UserError(
                "a network ran in the process that this one was forked from, whose threads stayed behind; start this"
                ' one by spawn: multiprocessing.get_context("spawn")'
            )
        config = copy.deepcopy(config) if isinstance(config, Config) else load_config(config)
        config = resolve_classes(config, training=False, checkpoint=checkpoint)
        self.class_names = list(config.coco_classes)
        self.class_score_thr = dict(class_score_thr or {})
        class_labels(self.class_names, self.class_score_thr or None, "class_score_thr")
        for name, score in {"score_thr": score_thr, **self.class_score_thr}.items():
            if score is not None and not 0 <= score <= 1:
                raise UserError(f"{name} is {score}; a score lies in 0..1")
        given = [score for score in (score_thr, *self.class_score_thr.values()) if score is not None]
        self.score_thr = config.test_cfg.rcnn.least_score if score_thr is None else score_thr
        config.test_cfg.rcnn.score_thr = min([config.test_cfg.rcnn.score_thr, *given])
        if batch_size is not None:
            if batch_size < 1:
                raise UserError(f"a batch of {batch_size} images; at least one")
            config.test_batch_size = batch_size
        if upright:
            config.exif = "upright"
        check_tile(tile, overlap)
        self.tile, self.overlap = tile, overlap
        self.config = config
        self.category_ids = coco_category_ids(self.class_names) if category_ids is None else category_ids
        wanted = class_labels(self.class_names, classes)
        least = [self.class_score_thr.get(name, self.score_thr) for name in self.class_names]
        self._least = np.array([s if i in wanted else np.inf for i, s in enumerate(least)], np.float32)
        self._options = paste_options(config)
        self._several: Views | None = None
        # MindSpore's graph mode is a setting of each thread, so the network stays in one
        self._network = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._process = os.getpid()
        self._detector = self._network.submit(self._load, Path(checkpoint)).result()
        # MindSpore's cells can't be freed any more once Python takes its modules down
        weakref.finalize(self, lambda held: [held.pop(name, None) for name in ("_detector", "_several")], self.__dict__)

    def __reduce__(self) -> tuple:
        raise CannotPickleError(
            "a Predictor can't be pickled or copied; send config and checkpoint, and make one there"
        )

    def _load(self, checkpoint: Path):
        set_device(self.config)
        detector = build_detector(self.config, weights=False)
        load_detector(detector, checkpoint)
        self._several = Views(self.config, detector) if Views.needed(self.config) else None
        return detector.set_train(False)

    def __call__(self, images: Source | Iterable[Source]) -> Detections | list[Detections]:
        """Detections of an image, or of each of a list: paths, (H, W, 3) uint8 RGB arrays, or PIL images.

        PIL images are taken as RGB, and turned by their EXIF orientation as files are. Raises UserError, one line, for
        an image that can't be read.
        """
        alone = isinstance(images, (*get_args(Source), bytes)) or not isinstance(images, Iterable)
        sources: Any = [images] if alone else images
        # not left to whoever keeps a refusal, with the pool's threads
        with contextlib.closing(self.stream(sources)) as predictions:
            out = [prediction.found for prediction in predictions]
        return out[0] if alone else out

    def stream(
        self,
        sources: Iterable[Source],
        keep_images: bool = False,
        sizes: Mapping[Any, tuple[int, int] | None] | None = None,
    ) -> Generator[Prediction, None, None]:
        """A Prediction for each source, in order; one that can't be read has a fault instead of detections.

        sizes: the annotated (height, width) of files, which they must have, and by which exif: auto turns them. Files
        are decoded by threads, and masks pasted, while the network goes on; no more than a few batches are held.
        """
        if isinstance(sources, (str, os.PathLike)):
            sources = [sources]
        if os.getpid() != self._process:
            # the network's thread stayed behind, and would be waited for without end
            raise UserError(
                "this Predictor was made before the process was forked; make one in the child, and start that by spawn"
                ' (multiprocessing.get_context("spawn")) where a network ran before'
            )
        with thread_pool(max(1, self.config.num_parallel_workers)) as pool:
            running: deque[tuple[list[View], Future]] = deque()
            for views in self._batches(self._views(sources, sizes or {}, keep_images, pool)):
                running.append((views, self._network.submit(self._detect, views)))
                if len(running) > 1:
                    yield from self._finish(*running.popleft(), pool)
            while running:
                yield from self._finish(*running.popleft(), pool)

    def _views(
        self, sources: Iterable[Source], sizes: Mapping, keep_images: bool, pool: ThreadPoolExecutor
    ) -> Iterator[View]:
        """Every part of every source, in order, those of a few pictures ahead."""

        def parts() -> Iterator[tuple[Picture, np.ndarray | None, int]]:
            for picture in self._ahead(pool, functools.partial(self._read, sizes=sizes), sources):
                image = picture.image
                if not keep_images:
                    picture.image = None
                for number in range(len(picture.parts) or 1):
                    yield picture, image, number

        return self._ahead(pool, self._prepare, parts())

    def _ahead(self, pool: ThreadPoolExecutor, function: Callable, items: Iterable) -> Iterator:
        """function(item) of each, in order, by the pool's threads."""
        pending: deque[Future] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > max(1, self.config.num_parallel_workers):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _batches(self, views: Iterable[View]) -> Iterator[list[View]]:
        """Lists with test_batch_size usable views each, but the last, and those before a view that has the canvas
        turned; faulty ones stay in their places between.
        """
        size, usable, shape = self.config.test_batch_size, 0, None
        items: list[View] = []
        for item in views:
            if usable and item.canvas is not None and item.canvas.shape != shape:
                yield items
                items, usable = [], 0
            items.append(item)
            if item.canvas is not None:
                usable, shape = usable + 1, item.canvas.shape
            # a run of faults isn't held back for the images after it
            if usable == size or (not usable and len(items) > size):
                yield items
                items, usable = [], 0
        if items:
            yield items

    def _read(self, source: Source, sizes: Mapping) -> Picture:
        annotated = sizes.get(source) if isinstance(source, (str, os.PathLike)) else None
        try:
            image, orientation = read_source(source, self.config.exif, annotated)
        except DataError as e:
            return Picture(source, fault=str(e))
        except MemoryError:
            return Picture(source, fault=f"{source}: too large for the memory that is free")
        size = picture_size(image)
        return Picture(source, image, size, orientation, parts=windows(*size, self.tile, self.overlap))

    def _prepare(self, part: tuple[Picture, np.ndarray | None, int]) -> View:
        picture, image, number = part
        if image is None:
            return View(picture)
        x, y, width, height = picture.parts[number]
        shown = image[y : y + height, x : x + width]
        first, *more = [prepare_image(shown, c) for c in at_scales(self.config)]
        return View(picture, *first, number, more)

    def _detect(self, views: list[View]) -> list[np.ndarray]:
        """The network's outputs for the usable views, padded to a whole batch. Runs in the network's thread."""
        global _ran_in
        rows = [v for v in views if v.canvas is not None]
        if not rows:
            return []
        rows += rows[:1] * (self.config.test_batch_size - len(rows))
        shown = [[(v.canvas, v.resized), *v.more] for v in rows]
        scales = [
            (np.stack([canvas for canvas, _ in scale]), np.array([size for _, size in scale], np.float32))
            for scale in zip_equal(*shown)
        ]
        _ran_in = os.getpid()
        with own_interrupts():
            if self._several:
                return self._several(scales)
            return [x.asnumpy() for x in self._detector(*map(Tensor, scales[0]))]

    def _finish(self, views: list[View], outputs: Future, pool: ThreadPoolExecutor) -> Iterator[Prediction]:
        """The pictures whose last part is among these."""
        out, row, done = outputs.result(), 0, []
        for view in views:
            picture = view.picture
            if view.canvas is not None:
                picture.found.append(self._found(out, row, view))
                row += 1
            if len(picture.found) == len(picture.parts):
                done.append((picture, None if picture.fault else pool.submit(self._detections, picture)))
        for picture, future in done:
            found = future.result() if future else None
            yield Prediction(picture.source, found, picture.image, picture.fault, picture.orientation)

    def _found(self, out: list[np.ndarray], row: int, view: View) -> Found:
        """A view's detections that are wanted, in the picture's pixels."""
        x, y, width, height = view.picture.parts[view.part]
        scale = np.array(view.resized, np.float32) / np.array([height, width], np.float32)
        found = found_in(out, row, self.config.branches, scale, str(view.picture.source)[:200], self._least)
        return replace(found, boxes=found.boxes + np.array([x, y, x, y], np.float32))

    def _detections(self, picture: Picture) -> Detections:
        """Of all parts of a picture."""
        rcnn, size = self.config.test_cfg.rcnn, picture.size
        found = Found.joined(picture.found)
        if len(picture.parts) > 1:
            parts = zip_equal(picture.found, picture.parts)
            cut = np.concatenate([cut_off(f.boxes, window, *size) for f, window in parts])
            groups = found.labels * (not rcnn.agnostic_nms)
            found = found.take(merge(found.boxes, found.scores, groups, cut, rcnn.iou_threshold))
        detections = paste(found, *size, self.class_names, self.category_ids, self._options)
        return replace(detections, orientation=picture.orientation)


def class_labels(class_names: Sequence[str], wanted: Iterable[str] | None, key: str = "classes") -> set[int]:
    """The labels of the classes `wanted`, of all without it. Raises UserError, of `key`, for a name that isn't one."""
    known = list(class_names[1:])
    if wanted is None:
        return set(range(1, len(class_names)))
    if not wanted:
        raise UserError(f"{key}: none named; name some of the config's coco_classes, or leave the option out")
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise UserError(f"{key}: the detector knows no {name!r}{meant}; it knows {', '.join(known)}")
    return {known.index(name) + 1 for name in wanted}
