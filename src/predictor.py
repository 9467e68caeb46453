"""A trained detector as a function of images: from src import Predictor; Predictor(config, checkpoint)(image)."""

import copy
import difflib
import functools
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from mindspore import Tensor
from pycocotools import mask as rle

from src.config import COCO_CLASSES, Config, load_config
from src.data.formats import resolve_classes
from src.data.images import read_frame
from src.data.records import DataError
from src.data.transforms import prepare_image
from src.device import set_device
from src.evaluation.inference import image_results
from src.models.build import build_detector
from src.runtime.errors import UserError
from src.training.checkpoints import load_detector
from src.visualize import draw_detections

__all__ = ["Detections", "Prediction", "Predictor", "coco_category_ids"]

# COCO's 80 classes have ids up to 90
UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_IDS = dict(zip(COCO_CLASSES[1:], (i for i in range(1, 91) if i not in UNUSED_IDS), strict=True))

Source = str | Path | np.ndarray


def coco_category_ids(class_names: Sequence[str]) -> dict[int, int]:
    """COCO's category id of each label, where every class but the first (background) is COCO's; else nothing."""
    if set(class_names[1:]) <= COCO_IDS.keys():
        return {label: COCO_IDS[name] for label, name in enumerate(class_names) if label}
    return {}


@dataclass
class Detections:
    """What was found in one image, best first: N objects.

    height, width: of the image, pixels. boxes (N, 4) float32 x1 y1 x2 y2 in its pixels, inside it; scores (N,) float32;
    labels (N,) int32, places in the config's coco_classes (the background, 0, never); names: N class names;
    category_ids: N ids of the data set, None where unknown; masks: N RLEs ({"size": [height, width], "counts": text}),
    None for a detector without masks.
    """

    height: int
    width: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[str]
    category_ids: list[int | str | None]
    masks: list[dict] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> "Detections":
        """Those of at least this score."""
        kept = np.flatnonzero(self.scores >= np.float32(score))
        return replace(
            self,
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            labels=self.labels[kept],
            names=[self.names[i] for i in kept],
            category_ids=[self.category_ids[i] for i in kept],
            masks=None if self.masks is None else [self.masks[i] for i in kept],
        )

    def bitmaps(self) -> np.ndarray:
        """Masks as (N, height, width) bool. Raises UserError for a detector without masks."""
        if self.masks is None:
            raise UserError("this detector has no masks; use one with detector: mask_rcnn or cascade_mask_rcnn")
        out = np.zeros((len(self), self.height, self.width), bool)
        for bitmap, mask in zip(out, self.masks, strict=True):
            bitmap[:] = rle.decode(mask)
        return out

    def draw(self, image: np.ndarray, score_thr: float = 0.5, zoom: float = 1.0) -> np.ndarray:
        """A copy of the image (height, width, 3) uint8 RGB, enlarged `zoom` times, with masks, boxes, names, scores.

        Raises UserError for an image of another size.
        """
        if image.shape != (self.height, self.width, 3) or image.dtype != np.uint8:
            raise UserError(
                f"an image of shape {image.shape}, {image.dtype}; these detections are of"
                f" ({self.height}, {self.width}, 3), uint8"
            )
        names = dict(zip(self.labels.tolist(), self.names, strict=True))
        bgr = np.ascontiguousarray(image[:, :, ::-1])
        drawn = draw_detections(bgr, self.boxes, self.scores, self.labels, self.masks, names, score_thr, zoom)
        return np.ascontiguousarray(drawn[:, :, ::-1])

    def to_dict(self) -> dict:
        """{"height", "width", "predictions": [{"bbox": {"x_min", "y_min", "width", "height"}, "class": {"label",
        "category_id", "name"}, "mask": {"size", "counts"}, "score"}]}, as numbers and text.

        class.label counts from 0 without the background; category_id is "unknown" where it is. No "mask" for a detector
        without them.
        """
        rows = []
        for i, result in enumerate(self.to_coco(0)):
            x, y, w, h = result["bbox"]
            category = self.category_ids[i]
            row = {
                "bbox": {"x_min": x, "y_min": y, "width": w, "height": h},
                "class": {
                    "label": int(self.labels[i]) - 1,
                    "category_id": "unknown" if category is None else category,
                    "name": self.names[i],
                },
            }
            if self.masks is not None:
                row["mask"] = self.masks[i]
            rows.append(row | {"score": result["score"]})
        return {"height": self.height, "width": self.width, "predictions": rows}

    def to_coco(self, image_id: int | str) -> list[dict]:
        """COCO results, as eval.py writes them; a class without a known id counts by its label."""
        out = []
        for i, (x1, y1, x2, y2) in enumerate(self.boxes.astype(np.float64)):
            category = self.category_ids[i]
            row = {
                "image_id": image_id,
                "category_id": int(self.labels[i]) if category is None else category,
                "bbox": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(float(self.scores[i]), 6),
            }
            if self.masks is not None:
                row["segmentation"] = self.masks[i]
            out.append(row)
        return out


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


@dataclass
class Prepared:
    """One source on its way to the network: `canvas` and `sizes` as the evaluation's loader has them."""

    source: Source
    canvas: np.ndarray | None = None
    sizes: np.ndarray | None = None
    image: np.ndarray | None = None
    fault: str = ""
    orientation: int = 1


class Predictor:
    """A detector with its weights. Images are read, resized, normalised and detected in as in eval.py.

    config: a Config or the path of a YAML file; checkpoint: .ckpt or .safetensors of the whole detector. batch_size:
    images that go through the network together (default: the config's test_batch_size); fewer are padded, so that it
    compiles once. score_thr: least score (default: the config's test_cfg.rcnn.score_thr). upright: image files are
    turned as their EXIF orientation says, as by the config's exif: upright. category_ids: the data set's id of each
    label (default: COCO's, where the classes are COCO's). classes: names of the only classes to detect (default: all).

    May be called from several threads: the network runs in one thread of its own, for one batch after the other.
    Raises UserError for a config, device or checkpoint that can't be used.
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
    ):
        config = copy.deepcopy(config) if isinstance(config, Config) else load_config(config)
        config = resolve_classes(config, training=False, checkpoint=checkpoint)
        if score_thr is not None:
            if not 0 <= score_thr <= 1:
                raise UserError(f"score_thr is {score_thr}; a score lies in 0..1")
            config.test_cfg.rcnn.score_thr = min(config.test_cfg.rcnn.score_thr, score_thr)
        if batch_size is not None:
            if batch_size < 1:
                raise UserError(f"a batch of {batch_size} images; at least one")
            config.test_batch_size = batch_size
        if upright:
            config.exif = "upright"
        self.config = config
        self.score_thr = config.test_cfg.rcnn.score_thr if score_thr is None else score_thr
        self.class_names = list(config.coco_classes)
        self.category_ids = coco_category_ids(self.class_names) if category_ids is None else category_ids
        self._labels = {label: label for label in range(len(self.class_names))}
        self._wanted = class_labels(self.class_names, classes)
        # MindSpore's graph mode is a setting of each thread, so the network stays in one
        self._network = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._process = os.getpid()
        self._detector = self._network.submit(self._load, Path(checkpoint)).result()

    def _load(self, checkpoint: Path):
        set_device(self.config)
        detector = build_detector(self.config)
        load_detector(detector, checkpoint)
        return detector.set_train(False)

    def __call__(self, images: Source | Sequence[Source]) -> Detections | list[Detections]:
        """Detections of an image, or of each of a list: paths, or (H, W, 3) uint8 RGB arrays.

        Raises UserError, one line, for an image that can't be read.
        """
        alone = isinstance(images, (str, Path, np.ndarray))
        out = []
        for prediction in self.stream([images] if alone else images):
            if prediction.fault:
                raise DataError(prediction.fault)
            out.append(prediction.detections)
        return out[0] if alone else out

    def stream(
        self,
        sources: Iterable[Source],
        keep_images: bool = False,
        sizes: Mapping[Source, tuple[int, int] | None] | None = None,
    ) -> Iterator[Prediction]:
        """A Prediction for each source, in order; one that can't be read has a fault instead of detections.

        sizes: the annotated (height, width) of files, which they must have, and by which exif: auto turns them. Files
        are decoded by threads, and masks pasted, while the network goes on; no more than a few batches are held.
        """
        if os.getpid() != self._process:
            # the network's thread stayed behind, and would be waited for without end
            raise UserError("this Predictor was made before the process was forked; make one in the child")
        prepare = functools.partial(self._prepare, keep=keep_images, sizes=sizes or {})
        with ThreadPoolExecutor(max(1, self.config.num_parallel_workers)) as pool:
            running: deque[tuple[list[Prepared], Future]] = deque()
            for items in self._batches(sources, pool, prepare):
                running.append((items, self._network.submit(self._detect, items)))
                if len(running) > 1:
                    yield from self._finish(*running.popleft(), pool)
            while running:
                yield from self._finish(*running.popleft(), pool)

    def _batches(
        self, sources: Iterable[Source], pool: ThreadPoolExecutor, prepare: Callable[[Source], Prepared]
    ) -> Iterator[list[Prepared]]:
        """Lists with test_batch_size usable images each, but the last, and those before an image that has the canvas
        turned; faulty ones stay in their places between.
        """
        size, items, usable, shape = self.config.test_batch_size, [], 0, None
        for item in self._prepared(sources, pool, prepare):
            if usable and not item.fault and item.canvas.shape != shape:
                yield items
                items, usable = [], 0
            items.append(item)
            usable += not item.fault
            shape = shape if item.fault else item.canvas.shape
            # a run of faults isn't held back for the images after it
            if usable == size or (not usable and len(items) > size):
                yield items
                items, usable = [], 0
        if items:
            yield items

    def _prepared(
        self, sources: Iterable[Source], pool: ThreadPoolExecutor, prepare: Callable[[Source], Prepared]
    ) -> Iterator[Prepared]:
        ahead = max(1, self.config.num_parallel_workers)
        pending: deque[Future] = deque()
        for source in sources:
            pending.append(pool.submit(prepare, source))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _prepare(self, source: Source, keep: bool, sizes: Mapping) -> Prepared:
        try:
            if isinstance(source, np.ndarray):
                image, orientation = from_array(source), 1
            else:
                image, orientation = read_frame(source, self.config.exif, sizes.get(source))
        except DataError as e:
            return Prepared(source, fault=str(e))
        except MemoryError:
            return Prepared(source, fault=f"{source}: too large for the memory that is free")
        canvas, resized = prepare_image(image, self.config)
        sizes = np.array([*resized, *image.shape[:2]], np.float32)
        return Prepared(source, canvas, sizes, image if keep else None, orientation=orientation)

    def _detect(self, items: list[Prepared]) -> list[np.ndarray]:
        """The network's outputs for the usable items, padded to a whole batch. Runs in the network's thread."""
        rows = [i for i in items if not i.fault]
        if not rows:
            return []
        rows += rows[:1] * (self.config.test_batch_size - len(rows))
        sizes = np.ascontiguousarray(np.stack([i.sizes[:2] for i in rows]))
        out = self._detector(Tensor(np.stack([i.canvas for i in rows])), Tensor(sizes))
        return [x.asnumpy() for x in out]

    def _finish(self, items: list[Prepared], outputs: Future, pool: ThreadPoolExecutor) -> Iterator[Prediction]:
        out, row, pending = outputs.result(), 0, []
        keep_interrupts()
        for item in items:
            pending.append(None if item.fault else pool.submit(self._detections, out, row, item.sizes))
            row += not item.fault
        for item, future in zip(items, pending, strict=True):
            detections = future.result() if future else None
            yield Prediction(item.source, detections, item.image, item.fault, item.orientation)

    def _detections(self, out: list[np.ndarray], row: int, sizes: np.ndarray) -> Detections:
        batch = {
            "image_id": np.zeros(row + 1, np.int64),
            "original_size": np.tile(sizes[2:].astype(np.int32), (row + 1, 1)),
            "scale": np.tile(sizes[:2] / sizes[2:], (row + 1, 1)),
        }
        results = image_results(self.config, out, row, batch, self._labels)
        results = [r for r in results if r["category_id"] in self._wanted]
        boxes = np.array([r["bbox"] for r in results], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([r["category_id"] for r in results], np.int32)
        return Detections(
            height=int(sizes[2]),
            width=int(sizes[3]),
            boxes=boxes.astype(np.float32),
            scores=np.array([r["score"] for r in results], np.float32),
            labels=labels,
            names=[self.class_names[i] for i in labels],
            category_ids=[self.category_ids.get(int(i)) for i in labels],
            masks=[r["segmentation"] for r in results] if len(out) > 4 else None,
        ).above(self.score_thr)


def keep_interrupts() -> None:
    """Gives Ctrl-C back to Python: MindSpore, once a network has run, answers it by ending the process."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)


def class_labels(class_names: Sequence[str], wanted: Sequence[str] | None) -> set[int]:
    """The labels of the classes `wanted`, of all without it. Raises UserError for a name that isn't one."""
    known = list(class_names[1:])
    if wanted is None:
        return set(range(1, len(class_names)))
    if not wanted:
        raise UserError("classes: none named; name some of the config's coco_classes, or leave the option out")
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise UserError(f"classes: the detector knows no {name!r}{meant}; it knows {', '.join(known)}")
    return {known.index(name) + 1 for name in wanted}


def from_array(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB as BGR. Raises DataError for another shape or type."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise DataError(f"an image of shape {image.shape}, {image.dtype}; expected (height, width, 3), uint8, RGB")
    return np.ascontiguousarray(image[:, :, ::-1])
