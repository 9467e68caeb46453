"""One picture of a data set as the network takes it: read from MindRecord, checked, augmented, resized, by workers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import cv2
import mindspore.dataset as ds
import numpy as np

from src.config import Config
from src.data.augment import CUSTOM, OWN, PASTED, sample_generator
from src.data.augment.colour import photometric_distortion
from src.data.augment.copy_paste import copy_paste, draw_objects, on_canvas
from src.data.augment.custom import Transform, TransformError
from src.data.augment.geometry import draw_view, turned_boxes, turned_scene
from src.data.augment.instaboost import instaboost
from src.data.fields import fields_of
from src.data.images import decode_image, picture_size, turn
from src.data.mindrecord import OpenRecords, record_crc, record_files
from src.data.records import DataError
from src.data.scene import Scene
from src.data.transforms import (
    LEAST_IN_JITTER,
    LEAST_VISIBLE,
    View,
    canvas_shown,
    canvas_size,
    fit_size,
    prepare_image,
    visible_objects,
)
from src.data.workers import worker_count, worker_pool
from src.runtime.errors import InternalError
from src.runtime.newer import zip_equal

__all__ = ["Places", "Sample", "SampleReader", "samples"]

ROW_DAMAGED = "its MindRecord row is damaged (checksum); run again: the data set is then converted again"


class Places(NamedTuple):
    """An epoch's images in order, and how each is shown.

    rows (N,) of the data set; flips (N,) bool: mirrored, left to right, after turns (N,) by quarters, anticlockwise;
    occurrences (N,): how often the image came before in the epoch. pasted (N, 3): the row of the image of which objects
    are pasted on it, or -1; its flip and its turn.
    """

    rows: np.ndarray
    flips: np.ndarray
    turns: np.ndarray
    occurrences: np.ndarray
    pasted: np.ndarray

    def part(self, which: np.ndarray | slice) -> Places:
        return Places(*(v[which] for v in self))


class Sample(NamedTuple):
    """One image as the network takes it, with its objects; everything but the id is empty where `fault` says why.

    image_id () int64; fault () text; fatal () bool: not the image's fault, so that leaving it out is no cure;
    occurrence () int64; image (3, H, W) float32, the canvas; sizes (4,) float32, (height, width) of the picture on the
    canvas, then of the image; boxes (N, 4) float32 x1 y1 x2 y2 in canvas pixels; labels (N,) int32; ignore (K, 4)
    float32, crowds; fields, an array (N, ...) by name of what training reads of the objects beyond that.
    """

    image_id: np.ndarray
    fault: np.ndarray
    fatal: np.ndarray
    occurrence: np.ndarray
    image: np.ndarray
    sizes: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    fields: dict[str, np.ndarray]


class Picture(NamedTuple):
    """An image with its objects, their labels (N,) int32, and crowds' boxes (K, 4) float32, in its pixels."""

    image_id: int
    name: str
    scene: Scene
    labels: np.ndarray
    crowds: np.ndarray


@contextlib.contextmanager
def reading(image_id: int) -> Iterator[None]:
    """Raises DataError where OpenCV can't use an image, and InternalError for what is no fault of it."""
    try:
        yield
    except (DataError, InternalError, MemoryError):
        raise
    except cv2.error as e:
        if e.code == cv2.Error.StsNoMem:
            raise MemoryError from None
        raise DataError(f"image {image_id}: OpenCV can't use it ({e.err})") from None
    except Exception as e:
        raise InternalError.of(e, f"reading image {image_id}") from e


class SampleReader:
    """Turns a record's bytes into a Sample, in a worker; a plain object, so that it can be sent to another process.

    transform: a user's function that changes training images.
    """

    def __init__(self, config: Config, training: bool, epoch: int = 0, transform: Transform | None = None):
        self.config, self.training, self.epoch, self.transform = config, training, epoch, transform
        self.fields = fields_of(config) if training else []
        self.carried = [f for f in self.fields if f.carried]
        self.fills = training and config.fixed_size_crop
        self.least = LEAST_IN_JITTER if self.fills else LEAST_VISIBLE

    def __call__(
        self,
        image_id: np.ndarray,
        crc: np.ndarray,
        image: np.ndarray,
        annotation: np.ndarray,
        how: np.ndarray,
        *other: np.ndarray,
    ) -> Sample:
        """The image shown as `how` (flip, turn, occurrence) says; a fault is told, not raised, so that the caller can
        decide.

        other: the same five of an image of which objects are pasted, without the occurrence. Raises MemoryError, and
        InternalError for whatever is no fault of a picture.
        """
        fatal = False
        try:
            with reading(int(image_id)):
                arrays = self.arrays((image_id, crc, image, annotation), how.tolist(), other)
            return Sample(image_id, np.array(""), np.array(False), how[2], *arrays)
        except DataError as e:
            fault, fatal = str(e), isinstance(e, TransformError)
        none = np.zeros(0, np.float32)
        return Sample(image_id, np.array(fault), np.array(fatal), how[2], none, none, none, none, none, {})

    def arrays(
        self, row: Sequence[np.ndarray], how: Sequence[int], other: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        config, (flip, turned, occurrence) = self.config, how
        picture = self.stored(*row)
        original = picture_size(picture.scene.image)
        # the batch's, whatever size a user's function returns
        sides = original[::-1] if turned % 2 else original
        canvas = canvas_size(*sides, config) if self.training else canvas_shown(*sides, config)
        if self.training:
            draws = self.generators(picture.image_id, occurrence)
            picture, view = self.changed(picture, flip, turned, canvas, draws)
        else:
            view = View((0, 0, *original[::-1]), fit_size(*original, config), bool(flip))
        scene, labels = picture.scene, picture.labels
        _, crowds = visible_objects(view, picture.crowds, None, *picture_size(scene.image))
        crowds = self.largest(view.to_canvas(crowds))
        if other and (pasted := self.pasted(picture, occurrence, canvas, other)):
            scene, rows = on_canvas(scene, view, canvas, config, self.carried, self.least)
            scene, kept = copy_paste(scene, pasted.scene)
            labels = np.concatenate([labels[rows][kept], pasted.labels])
            view = View((0, 0, *canvas[::-1]), canvas)
        masks = scene.masks if config.needs_masks else None
        rows, boxes = visible_objects(view, scene.boxes, masks, *picture_size(scene.image), self.least)
        image, resized = prepare_image(scene.image, config, view=view, canvas=canvas)
        scene = scene.objects(rows)
        return (
            image,
            np.array([*(canvas if self.fills else resized), *original], np.float32),
            view.to_canvas(boxes),
            labels[rows],
            crowds,
            {f.name: f.shown(scene, boxes, view) for f in self.fields},
        )

    def stored(self, image_id: np.ndarray, crc: np.ndarray, image: np.ndarray, annotation: np.ndarray) -> Picture:
        """A record's picture as it is. Raises DataError."""
        data, text, number = image.tobytes(), annotation.tobytes(), int(image_id)
        if record_crc(data, text) != int(crc):
            raise DataError(f"image {number}: {ROW_DAMAGED}")
        a = json.loads(text)
        pixels = turn(decode_image(data, a["name"]), a["orientation"])
        if pixels.shape[:2] != (a["height"], a["width"]):
            raise DataError(
                f"image {number} ({a['name']}): {pixels.shape[1]} x {pixels.shape[0]} pixels, annotated as"
                f" {a['width']} x {a['height']}; mend the annotation or the image"
            )
        boxes, crowd = np.array(a["boxes"], np.float32).reshape(-1, 4), np.array(a["crowd"], bool)
        labels = np.array(a["labels"], np.int32)[~crowd]
        masks = a["segmentations"] or [None] * len(labels)
        values = {f.name: f.pack(a[f.name]) for f in self.carried}
        return Picture(number, a["name"], Scene(pixels, boxes[~crowd], masks, values), labels, boxes[crowd])

    def generators(self, image_id: int, occurrence: int, other: int = 0) -> list[np.random.Generator]:
        """Those of an image's augmentation and of a user's function; with PASTED of what is pasted on it."""
        seed, epoch = self.config.seed, self.epoch
        return [sample_generator(seed, epoch, image_id, occurrence, stream + other) for stream in (OWN, CUSTOM)]

    def changed(
        self,
        picture: Picture,
        flip: int,
        turned: int,
        canvas: tuple[int, int],
        draws: Sequence[np.random.Generator],
    ) -> tuple[Picture, View]:
        """A training picture augmented, and what the canvas (height, width) shows of it. Raises TransformError.

        draws: as `generators` gives them.
        """
        image_id, name, scene, labels, crowds = picture
        random, own = draws
        if self.transform:
            told = f"image {image_id} ({name})"
            scene, labels, crowds = self.transform(scene, labels, crowds, own, self.config, told)
        scene, rows = self.augment(scene, random)
        labels = labels[rows]
        if turned:
            crowds = turned_boxes(crowds, turned, *picture_size(scene.image))
            scene = turned_scene(scene, turned, self.carried)
        view = draw_view(self.config, *picture_size(scene.image), scene.boxes, bool(flip), random, canvas)
        return Picture(image_id, name, scene, labels, crowds), view

    def pasted(
        self, picture: Picture, occurrence: int, canvas: tuple[int, int], other: Sequence[np.ndarray]
    ) -> Picture | None:
        """The objects of another training image that are pasted on a picture, as they lie on the canvas, or None.

        The other image is changed as any, by draws of the picture's. Raises DataError where it can't be used, unless
        such images are left out: then it is told where its own turn comes.
        """
        config, (*row, how) = self.config, other
        draws, (flip, turned) = self.generators(picture.image_id, occurrence, PASTED), how.tolist()
        try:
            with reading(int(row[0])):
                found, view = self.changed(self.stored(*row), flip, turned, canvas, draws)
                scene, rows = on_canvas(found.scene, view, canvas, config, self.carried, self.least)
        except DataError as e:
            if config.on_bad_image == "skip" and not isinstance(e, TransformError):
                return None
            raise
        chosen = draw_objects(len(rows), config.max_instance_count - len(picture.labels), draws[0])
        if not len(chosen):
            return None
        return found._replace(scene=scene.objects(chosen), labels=found.labels[rows][chosen])

    def augment(self, scene: Scene, random: np.random.Generator) -> tuple[Scene, np.ndarray]:
        """The scene with objects moved and colours changed, and the rows of the objects that are left in it."""
        c, rows = self.config, np.arange(len(scene.boxes))
        if c.aug_prob and random.random() < c.aug_prob:
            scene, rows = instaboost(scene, c, random, self.carried)
        if c.photo_ratio and random.random() < c.photo_ratio:
            scene = dataclasses.replace(scene, image=photometric_distortion(scene.image, random))
        return scene, rows

    def largest(self, crowds: np.ndarray) -> np.ndarray:
        """The max_crowd_count largest crowd boxes."""
        area = (crowds[:, 2] - crowds[:, 0]) * (crowds[:, 3] - crowds[:, 1])
        return crowds[np.argsort(-area, kind="stable")[: self.config.max_crowd_count]]


def samples(records: OpenRecords, places: Places, reader: SampleReader) -> Iterator[Sample]:
    """Samples of an epoch's places, in their order, by config.num_parallel_workers workers.

    Raises DataError where the data set is damaged, WorkerDied, and InternalError for a fault of the program.
    """
    if not len(places.rows):
        return
    config = reader.config
    how = np.stack([places.flips, places.turns, places.occurrences], 1).astype(np.int64)
    others = stored_rows(records, places.pasted[places.pasted[:, 0] >= 0, 0])
    workers = min(worker_count(config.num_parallel_workers), len(how))
    # so many that the workers go on while a batch is trained on
    ahead = workers + max(workers, config.images_a_step if reader.training else config.test_batch_size)
    pending: deque[Future[Sample]] = deque()

    def oldest() -> Sample:
        sample = pending.popleft().result()
        if ROW_DAMAGED in str(sample.fault):
            records.doubt()
        return sample

    with worker_pool(reader, workers, config.python_multiprocessing and workers > 1) as submit:
        for row, shown, (other, *other_shown) in zip_equal(stored_rows(records, places.rows), how, places.pasted):
            more = (*next(others), np.array(other_shown)) if other >= 0 else ()
            pending.append(submit(*row, shown, *more))
            if len(pending) >= ahead:
                yield oldest()
        while pending:
            yield oldest()


def stored_rows(records: OpenRecords, order: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """image_id, crc, image and annotation of rows. Raises DataError."""
    names, most = ["image_id", "crc", "image", "annotation"], len(np.unique(order))
    try:
        # a sampler takes no more places than there are rows
        rows, *more = (
            ds.MindDataset(
                record_files(records.folder),
                columns_list=names,
                sampler=ds.SubsetSampler(part.tolist()),
                num_parallel_workers=1,
            )
            for part in np.split(order, range(most, len(order), most))
        )
        rows = rows.concat(more) if more else rows
        yield from rows.create_tuple_iterator(num_epochs=1, output_numpy=True)
    except RuntimeError as e:
        records.doubt()
        reason = str(e).strip().splitlines() or [""]
        raise DataError(
            f"{records.folder}: damaged, or can't be read ({reason[0][:200]}); run again: it is converted again if so"
        ) from None
