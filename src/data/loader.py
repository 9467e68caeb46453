"""Batches for training and evaluation, from MindRecord, by several workers, in an order that repeats."""

import contextlib
import ctypes
import functools
import json
import multiprocessing
import os
import queue
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import cv2
import mindspore.dataset as ds
import numpy as np

from src.config import Config
from src.data.augment import sample_generator
from src.data.augment.colour import photometric_distortion
from src.data.augment.geometry import draw_view
from src.data.augment.instaboost import Scene, instaboost
from src.data.images import decode_image, turn
from src.data.mindrecord import OpenRecords, record_crc, record_files
from src.data.records import DataError
from src.data.transforms import View, crop_mask, fit_size, prepare_image, visible_objects
from src.runtime.errors import InternalError, UserError

__all__ = ["EvalLoader", "TrainLoader", "WorkerDied"]

LESS_MEMORY = (
    "lower num_parallel_workers, the batch size, or img_width and img_height; a training goes on with --resume"
)
ROW_DAMAGED = "its MindRecord row is damaged (checksum); run again: the data set is then converted again"
PR_SET_PDEATHSIG = 1  # prctl(2)


class WorkerDied(UserError):  # noqa: N818 - what happened, not whose error it is
    """A worker that reads pictures was killed, or had no memory; the message names the keys that need less."""


class Sample(NamedTuple):
    """One image as the network takes it, with its objects; everything but the id is empty where `fault` says why.

    image_id () int64; fault () text; image (3, H, W) float32, the canvas; sizes (4,) float32, (height, width) of the
    picture on the canvas, then of the image; boxes (N, 4) float32 x1 y1 x2 y2 in canvas pixels; labels (N,) int32;
    masks (N, S, S) uint8, box-relative, none where nothing trains on them; ignore (K, 4) float32, crowds.
    """

    image_id: np.ndarray
    fault: np.ndarray
    image: np.ndarray
    sizes: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray
    ignore: np.ndarray


class SampleReader:
    """Turns a record's bytes into a Sample, in a worker; a plain object, so that it can be sent to another process."""

    def __init__(self, config: Config, training: bool, epoch: int = 0):
        self.config, self.training, self.epoch = config, training, epoch

    def __call__(
        self, image_id: np.ndarray, crc: np.ndarray, image: np.ndarray, annotation: np.ndarray, flip: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """A Sample's fields; a fault is told, not raised, so that the caller can decide.

        Raises MemoryError, and InternalError for whatever is no fault of the picture.
        """
        try:
            arrays = self.arrays(int(image_id), int(crc), image.tobytes(), annotation.tobytes(), bool(flip))
            return tuple(Sample(image_id, np.array(""), *arrays))
        except DataError as e:
            fault = str(e)
        except cv2.error as e:
            if e.code == cv2.Error.StsNoMem:
                raise MemoryError from None
            fault = f"image {int(image_id)}: OpenCV can't use it ({e.err})"
        except MemoryError:
            raise
        except Exception as e:
            raise InternalError.of(e, f"reading image {int(image_id)}") from e
        return tuple(Sample(image_id, np.array(fault), *[np.zeros(0, np.float32)] * 6))

    def arrays(self, image_id: int, crc: int, data: bytes, annotation: bytes, flip: bool) -> tuple[np.ndarray, ...]:
        if record_crc(data, annotation) != crc:
            raise DataError(f"image {image_id}: {ROW_DAMAGED}")
        a = json.loads(annotation)
        picture = turn(decode_image(data, a["name"]), a["orientation"])
        original = picture.shape[:2]
        if original != (a["height"], a["width"]):
            raise DataError(
                f"image {image_id} ({a['name']}): {original[1]} x {original[0]} pixels, annotated as"
                f" {a['width']} x {a['height']}; mend the annotation or the image"
            )
        boxes, crowd = np.array(a["boxes"], np.float32).reshape(-1, 4), np.array(a["crowd"], bool)
        labels = np.array(a["labels"], np.int32)[~crowd]
        masks = a["segmentations"] or [None] * len(labels)
        scene, crowds = Scene(picture, boxes[~crowd], masks), boxes[crowd]
        if not self.training:
            view = View((0, 0, *original[::-1]), fit_size(*original, self.config), flip)
        else:
            scene, rows, view = self.augment(scene, image_id, flip)
            labels = labels[rows]
        rows, boxes = visible_objects(view, scene.boxes, scene.masks if self.config.needs_masks else None, *original)
        _, crowds = visible_objects(view, crowds, None, *original)
        canvas, resized = prepare_image(scene.image, self.config, view=view)
        return (
            canvas,
            np.array([*resized, *original], np.float32),
            view.to_canvas(boxes),
            labels[rows],
            self.masks([scene.masks[i] for i in rows], boxes, original, view.flip),
            self.largest(view.to_canvas(crowds)),
        )

    def augment(self, scene: Scene, image_id: int, flip: bool) -> tuple[Scene, np.ndarray, View]:
        """The scene changed, the rows of the objects that are left in it, and what of it the canvas shows."""
        c, rows = self.config, np.arange(len(scene.boxes))
        random = sample_generator(c.seed, self.epoch, image_id)
        if c.aug_prob and random.random() < c.aug_prob:
            scene, rows = instaboost(scene, c, random)
        if c.photo_ratio and random.random() < c.photo_ratio:
            scene = Scene(photometric_distortion(scene.image, random), scene.boxes, scene.masks)
        return scene, rows, draw_view(c, *scene.image.shape[:2], scene.boxes, flip, random)

    def masks(self, masks: list, boxes: np.ndarray, original: tuple[int, int], flip: bool) -> np.ndarray:
        """Crops (N, S, S) uint8 of the objects; none where nothing trains on them."""
        size = self.config.mask_crop_size
        if not self.training or not self.config.with_mask:
            return np.zeros((0, size, size), np.uint8)
        crops = np.zeros((len(masks), size, size), np.uint8)
        for row, (mask, box) in enumerate(zip(masks, boxes, strict=True)):
            crop = crop_mask(mask, box, *original, size)
            crops[row] = crop[:, ::-1] if flip else crop
        return crops

    def largest(self, crowds: np.ndarray) -> np.ndarray:
        """The max_crowd_count largest crowd boxes."""
        area = (crowds[:, 2] - crowds[:, 0]) * (crowds[:, 3] - crowds[:, 1])
        return crowds[np.argsort(-area, kind="stable")[: self.config.max_crowd_count]]


@functools.cache
def worker_count(wanted: int) -> int:
    """How many workers there are of those wanted: no more than the cores that this process may use."""
    cores = len(os.sched_getaffinity(0))
    if wanted > cores:
        print(f"num_parallel_workers: {wanted} on {cores} core{'s' * (cores > 1)}: {cores} read pictures")
    return min(wanted, cores)


class WorkerProcess:
    """A process that reads samples: called as its SampleReader, by one thread at a time.

    Over a pipe of its own: in one that is shared, as concurrent.futures has it, a worker killed while it writes leaves
    half an answer, of which the reader waits for the rest.
    """

    def __init__(self, reader: SampleReader):
        self.connection, theirs = multiprocessing.Pipe()
        fork = multiprocessing.get_context("fork")
        self.process = fork.Process(target=serve, args=(theirs, reader, os.getpid()), daemon=True)
        self.process.start()
        # so that nobody else holds it open, and its end is noticed
        theirs.close()

    def __call__(self, *row: np.ndarray) -> tuple[np.ndarray, ...]:
        """Raises what the reader raises, and WorkerDied."""
        try:
            self.connection.send(row)
            answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
            raise WorkerDied(f"a worker process was ended {how}, for want of memory? {LESS_MEMORY}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.connection.close()


def start_worker(reader: SampleReader) -> WorkerProcess:
    try:
        return WorkerProcess(reader)
    except OSError as e:
        raise WorkerDied(f"can't start a worker process: {e.strerror}; {LESS_MEMORY}") from None


def serve(connection: Connection, reader: SampleReader, parent: int) -> None:
    """What a worker process does: ends with the process that began it, which alone hears Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    while os.getppid() == parent:
        row = connection.recv()
        try:
            answer = reader(*row)
        except (InternalError, MemoryError) as e:
            e.add_note(traceback.format_exc())
            answer = e
        connection.send(answer)


@contextlib.contextmanager
def worker_pool(
    reader: SampleReader, workers: int, processes: bool
) -> Iterator[Callable[..., Future[tuple[np.ndarray, ...]]]]:
    """Hands `reader` the rows that a block gives, by so many threads, or processes with a thread each.

    Raises WorkerDied where one has no memory, or is killed.
    """
    free: queue.SimpleQueue = queue.SimpleQueue()
    begun: list[WorkerProcess] = []

    def work(row: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        worker = free.get()
        try:
            return worker(*row)
        finally:
            free.put(worker)

    pool = ThreadPoolExecutor(workers)
    try:
        for _ in range(workers):
            if processes:
                begun.append(start_worker(reader))
            free.put(begun[-1] if processes else reader)
        yield lambda *row: pool.submit(work, row)
    except MemoryError:
        raise WorkerDied(f"too little memory to read a picture; {LESS_MEMORY}") from None
    finally:
        pool.shutdown(cancel_futures=True)
        for worker in begun:
            worker.stop()


def samples(
    records: OpenRecords, order: np.ndarray, flips: np.ndarray, config: Config, training: bool, epoch: int = 0
) -> Iterator[Sample]:
    """Samples of rows `order` of the data set, in that order, by config.num_parallel_workers workers.

    Raises DataError where the data set is damaged, WorkerDied, and InternalError for a fault of the program.
    """
    if not len(order):
        return
    reader, workers = SampleReader(config, training, epoch), min(worker_count(config.num_parallel_workers), len(order))
    # so many that the workers go on while a batch is trained on
    ahead = workers + max(workers, config.batch_size if training else config.test_batch_size)
    pending: deque[Future] = deque()

    def oldest() -> Sample:
        sample = Sample._make(pending.popleft().result())
        if ROW_DAMAGED in str(sample.fault):
            records.doubt()
        return sample

    with worker_pool(reader, workers, config.python_multiprocessing and workers > 1) as submit:
        for row, flip in zip(stored_rows(records, order), flips, strict=True):
            pending.append(submit(*row, flip))
            if len(pending) >= ahead:
                yield oldest()
        while pending:
            yield oldest()


def stored_rows(records: OpenRecords, order: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """image_id, crc, image and annotation of rows. Raises DataError."""
    try:
        rows = ds.MindDataset(
            record_files(records.folder),
            columns_list=["image_id", "crc", "image", "annotation"],
            sampler=ds.SubsetSampler(order.tolist()),
            num_parallel_workers=1,
        )
        yield from rows.create_tuple_iterator(num_epochs=1, output_numpy=True)
    except RuntimeError as e:
        records.doubt()
        reason = str(e).strip().splitlines() or [""]
        raise DataError(
            f"{records.folder}: damaged, or can't be read ({reason[0][:200]}); run again: it is converted again if so"
        ) from None


class BatchMaker:
    """Collects samples into padded batches; counts and names faulty ones, or raises at the first."""

    def __init__(self, config: Config):
        self.config, self.skipped = config, []

    def usable(self, sample: Sample) -> bool:
        fault = str(sample.fault)
        if not fault:
            return True
        if self.config.on_bad_image == "stop":
            raise DataError(f"{fault} (or leave such images out: on_bad_image: skip)")
        # the same image is met again in every epoch
        if fault not in self.skipped:
            self.skipped.append(fault)
            print(f"left out: {fault}")
        return False

    def train_batch(self, batch: list[Sample]) -> dict[str, np.ndarray]:
        c, b = self.config, len(batch)
        g, k, s = c.max_instance_count, c.max_crowd_count, c.mask_crop_size
        out = {
            "image_id": np.array([x.image_id for x in batch], np.int64),
            "image": np.stack([x.image for x in batch]),
            "image_size": np.stack([x.sizes[:2] for x in batch]),
            "gt_boxes": np.zeros((b, g, 4), np.float32),
            "gt_labels": np.zeros((b, g), np.int32),
            "gt_valid": np.zeros((b, g), bool),
            "gt_masks": np.zeros((b, g, s, s), np.uint8),
            "ignore_boxes": np.zeros((b, k, 4), np.float32),
        }
        for i, x in enumerate(batch):
            n = len(x.labels)
            out["gt_boxes"][i, :n], out["gt_labels"][i, :n], out["gt_valid"][i, :n] = x.boxes, x.labels, True
            out["gt_masks"][i, : len(x.masks)] = x.masks
            out["ignore_boxes"][i, : len(x.ignore)] = x.ignore
        return out


class TrainLoader:
    """Training batches.

    The order of an epoch is a permutation drawn from (seed, epoch), the flip of an image from (seed, epoch, row), what
    else changes it from (seed, epoch, image id): the same whatever the number of workers and wherever training starts.
    With several ranks each takes every `ranks`-th image of the same permutation. Where upright pictures have a canvas
    of their own, the images of a step, of all ranks, have one orientation: the permutation's images of each orientation
    fill steps in their order, and a step comes when its last image does. Images without objects are left out unless
    config.train_empty_images.

    `epoch(e, start_step)` yields dicts of arrays, B = batch_size:
        image (B, 3, H, W) float32; image_size (B, 2) float32, (height, width) of the picture on the canvas;
        gt_boxes (B, G, 4) float32 x1 y1 x2 y2 in canvas pixels; gt_labels (B, G) int32; gt_valid (B, G) bool;
        gt_masks (B, G, S, S) uint8, box-relative; ignore_boxes (B, K, 4) float32, crowds; image_id (B,) int64.
    """

    def __init__(self, config: Config, folder: Path, rank: int = 0, ranks: int = 1):
        self.config, self.records, self.rank, self.ranks = config, OpenRecords(folder), rank, ranks
        self.folder, index = self.records.folder, self.records.index
        objects = np.array(index["objects"])
        self.rows = np.arange(len(objects)) if config.train_empty_images else np.flatnonzero(objects > 0)
        self.left_out = len(objects) - len(self.rows)
        self.maker = BatchMaker(config)
        self.upright = upright_rows(index, config)
        self.faulty: set[int] = set()
        if len(self) == 0:
            raise DataError(
                f"{index['source']}: {len(self.rows)} images with objects, fewer than one batch of"
                f" {config.batch_size} x {ranks}; lower batch_size"
            )

    def __len__(self) -> int:
        return sum(len(rows) // (self.config.batch_size * self.ranks) for rows in self.groups().values())

    def groups(self) -> dict[str, np.ndarray]:
        """The rows that may stand in one batch."""
        upright = self.upright[self.rows]
        return {"landscape": self.rows[~upright], "upright": self.rows[upright]}

    def never_trained(self) -> list[str]:
        """A line for each group of images that is too small for a batch."""
        size = self.config.batch_size * self.ranks
        return [
            f"{len(rows)} {name} images never train: fewer than a batch of {size} of their orientation"
            for name, rows in self.groups().items()
            if 0 < len(rows) < size
        ]

    def epoch_rows(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """This rank's rows of `epoch`, in order, and their flips."""
        key = np.array([self.config.seed, 1 << 32 | epoch], np.uint64)
        random = np.random.Generator(np.random.Philox(key=key))
        order = random.permutation(self.rows)
        # one draw for each row of the data set, so that an image's flip doesn't depend on its place
        flips = random.random(int(self.rows.max()) + 1) < self.config.flip_ratio
        order = grouped(order, self.upright[order], self.config.batch_size * self.ranks)
        mine = order[self.rank :: self.ranks]
        return mine, flips[mine]

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Batches of `epoch` (from 0) from `start_step` on. Raises DataError."""
        self.records.check()
        pending = []
        for sample in self.usable_samples(epoch, start_step * self.config.batch_size):
            pending.append(sample)
            if len(pending) == self.config.batch_size:
                yield self.maker.train_batch(pending)
                pending = []

    def usable_samples(self, epoch: int, start: int) -> Iterator[Sample]:
        """Samples for this rank's places of `epoch` from `start` on.

        A faulty image's place goes to the next usable one of its orientation, past the end to the epoch's first: so the
        epoch keeps its length, and what a place holds doesn't depend on `start`.
        """
        order, flips = self.epoch_rows(epoch)
        found = samples(self.records, order[start:], flips[start:], self.config, True, epoch)
        for place, sample in enumerate(found, start):
            if self.maker.usable(sample):
                yield sample
            else:
                self.faulty.add(int(order[place]))
                yield self.replacement(order, flips, place, epoch)

    def replacement(self, order: np.ndarray, flips: np.ndarray, place: int, epoch: int) -> Sample:
        """The usable sample that takes a faulty one's place. Raises DataError where there is none."""
        for i in np.roll(np.arange(len(order)), -place)[1:]:
            alike = self.upright[order[i]] == self.upright[order[place]]
            if not alike or int(order[i]) in self.faulty:
                continue
            for sample in samples(self.records, order[i : i + 1], flips[i : i + 1], self.config, True, epoch):
                if self.maker.usable(sample):
                    return sample
                self.faulty.add(int(order[i]))
        raise DataError(f"{self.folder}: no usable image in epoch {epoch}; {self.maker.skipped[-1]}")


def upright_rows(index: dict, config: Config) -> np.ndarray:
    """(N,) bool: rows whose pictures have the canvas turned."""
    sizes = np.array(index["sizes"]).reshape(-1, 2)
    return (sizes[:, 0] > sizes[:, 1]) & config.turns_canvas


def grouped(order: np.ndarray, upright: np.ndarray, size: int) -> np.ndarray:
    """`order` in groups of `size` rows of one orientation each, by the place of a group's last; incomplete ones go."""
    ends, groups = [], []
    for kind in (False, True):
        places = np.flatnonzero(upright == kind)
        whole = places[: len(places) // size * size].reshape(-1, size)
        ends.append(whole[:, -1])
        groups.append(order[whole])
    return np.concatenate(groups)[np.argsort(np.concatenate(ends))].ravel()


class EvalLoader:
    """Every image of a split once, in the data set's order, but upright ones last where they have a canvas of their
    own; with several ranks, each every `ranks`-th.

    Iterating yields dicts of arrays, B = test_batch_size: image and image_size as TrainLoader's; original_size (B, 2)
    int32, (height, width) of the image file; scale (B, 2) float32, canvas = original * scale, (y, x); image_id (B,)
    int64; valid (B,) bool: False for rows that fill up the last batch.
    """

    def __init__(self, config: Config, folder: Path, rank: int = 0, ranks: int = 1):
        self.config, self.records = config, OpenRecords(folder)
        self.folder, self.index = self.records.folder, self.records.index
        upright = upright_rows(self.index, config)
        self.groups = [np.flatnonzero(upright == kind)[rank::ranks] for kind in (False, True)]
        self.maker = BatchMaker(config)

    def __len__(self) -> int:
        return sum(-(-len(rows) // self.config.test_batch_size) for rows in self.groups)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        self.records.check()
        for order in self.groups:
            yield from self.batches(order)

    def batches(self, order: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Batches of rows of one orientation."""
        flips = np.zeros(len(order), bool)
        pending = []
        for sample in samples(self.records, order, flips, self.config, training=False):
            if self.maker.usable(sample):
                pending.append(sample)
            if len(pending) == self.config.test_batch_size:
                yield self.batch(pending)
                pending = []
        if pending:
            yield self.batch(pending)

    def batch(self, rows: list[Sample]) -> dict[str, np.ndarray]:
        valid = np.arange(self.config.test_batch_size) < len(rows)
        rows = rows + [rows[0]] * (len(valid) - len(rows))
        sizes = np.stack([r.sizes for r in rows])
        return {
            "image_id": np.array([r.image_id for r in rows], np.int64),
            "image": np.stack([r.image for r in rows]),
            "image_size": np.ascontiguousarray(sizes[:, :2]),
            "original_size": sizes[:, 2:].astype(np.int32),
            "scale": sizes[:, :2] / sizes[:, 2:],
            "valid": valid,
        }
