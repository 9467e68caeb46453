"""Batches for training and evaluation, from MindRecord, by several workers, in an order that repeats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from src.config import Config, at_scales
from src.data.augment.custom import TransformError, load_transform
from src.data.mindrecord import OpenRecords
from src.data.reader import Places, Sample, SampleReader, samples
from src.data.records import DataError
from src.data.repeats import UNIT, draw_copies, earlier_copies, repeat_factors
from src.data.transforms import canvas_shown
from src.runtime.newer import zip_equal

__all__ = ["EvalLoader", "TrainLoader"]


class BatchMaker:
    """Collects samples into padded batches; counts and names faulty ones, or raises at the first."""

    def __init__(self, config: Config):
        self.config = config
        self.skipped: list[str] = []

    def usable(self, sample: Sample) -> bool:
        fault = str(sample.fault)
        if not fault:
            return True
        if sample.fatal:
            raise TransformError(fault)
        if self.config.on_bad_image == "stop":
            raise DataError(f"{fault} (or leave such images out: on_bad_image: skip)")
        # the same image is met again in every epoch
        if fault not in self.skipped:
            self.skipped.append(fault)
            print(f"left out: {fault}")
        return False

    def train_batch(self, batch: list[Sample]) -> dict[str, np.ndarray]:
        c, b = self.config, len(batch)
        g, k = c.max_instance_count, c.max_crowd_count
        out = {
            "image_id": np.array([x.image_id for x in batch], np.int64),
            "occurrence": np.array([x.occurrence for x in batch], np.int64),
            "image": np.stack([x.image for x in batch]),
            "image_size": np.stack([x.sizes[:2] for x in batch]),
            "gt_boxes": np.zeros((b, g, 4), np.float32),
            "gt_labels": np.zeros((b, g), np.int32),
            "gt_valid": np.zeros((b, g), bool),
            "ignore_boxes": np.zeros((b, k, 4), np.float32),
        }
        for name, values in batch[0].fields.items():
            out[f"gt_{name}"] = np.zeros((b, g, *values.shape[1:]), values.dtype)
        for i, x in enumerate(batch):
            n = len(x.labels)
            out["gt_boxes"][i, :n], out["gt_labels"][i, :n], out["gt_valid"][i, :n] = x.boxes, x.labels, True
            out["ignore_boxes"][i, : len(x.ignore)] = x.ignore
            for name, values in x.fields.items():
                out[f"gt_{name}"][i, :n] = values
        return out


class TrainLoader:
    """Training batches.

    The order of an epoch is a permutation drawn from (seed, epoch), the flip and the quarter turn of an image from
    (seed, epoch, row), what else changes it from (seed, epoch, image id): the same whatever the number of workers and
    wherever training starts. With several ranks each takes every `ranks`-th image of the same permutation. Images
    without objects are left out unless config.train_empty_images.

    With config.copy_paste_ratio objects of another image are pasted on some (src/data/augment/copy_paste.py): which
    image, its flip and turn are drawn from (seed, epoch, row) as well, from the whole set whatever the rank.

    With config.repeat_threshold images of rare classes come several times (src/data/repeats.py), each time with draws
    of its own. An epoch is as long as the factors' sum, rounded down, says, so that its number of steps is the same in
    all.

    Where upright pictures have a canvas of their own, the images of a step, of all ranks, have one orientation, as they
    are after their turn: the permutation's images of each orientation fill steps in their order, and a step comes when
    its last image does. How many are upright then changes with the epoch, and so what is left over: with quarter turns
    the number of steps is one less than the images fill, so that it is the same in all.

    `epoch(e, start_step)` yields dicts of arrays, B = images_a_step, a step's images of one rank:
        image (B, 3, H, W) float32; image_size (B, 2) float32, (height, width) of the picture on the canvas;
        gt_boxes (B, G, 4) float32 x1 y1 x2 y2 in canvas pixels; gt_labels (B, G) int32; gt_valid (B, G) bool;
        ignore_boxes (B, K, 4) float32, crowds; image_id (B,) int64; occurrence (B,) int64, how often the image came
        before in the epoch; and gt_NAME (B, G, ...) of each field (src/data/fields) that the detector's branches learn:
        gt_masks (B, G, S, S) uint8, see train_cfg.rcnn.mask_crop.

    Raises DataError, and ConfigError for a config.transform that can't be loaded.
    """

    def __init__(self, config: Config, folder: Path, rank: int = 0, ranks: int = 1):
        self.config, self.records, self.rank, self.ranks = config, OpenRecords(folder), rank, ranks
        self.transform = load_transform(config.transform) if config.transform else None
        self.folder, index = self.records.folder, self.records.index
        objects = np.array(index["objects"])
        self.rows = np.arange(len(objects)) if config.train_empty_images else np.flatnonzero(objects > 0)
        self.with_objects = np.flatnonzero(objects > 0)
        self.left_out = len(objects) - len(self.rows)
        self.maker = BatchMaker(config)
        # as they are, and after a quarter turn
        self.upright = np.stack([upright_rows(index, config), upright_rows(index, config, turned=True)])
        self.factors = np.full(len(objects), UNIT)
        if config.repeat_threshold:
            self.factors[self.rows] = repeat_factors([index["classes"][i] for i in self.rows], config.repeat_threshold)
        self.faulty: set[int] = set()
        self.steps = self.count_steps()
        if self.steps <= 0:
            raise DataError(
                f"{index['source']}: {len(self.rows)} images with objects, fewer than"
                f" {'two batches' if self.mixes else 'one batch'} of {config.images_a_step} x {ranks}; lower batch_size"
                f"{' or accumulate' if config.accumulate > 1 else ''}"
            )

    def __len__(self) -> int:
        return self.steps

    @property
    def size(self) -> int:
        """Images of a step, of all ranks."""
        return self.config.images_a_step * self.ranks

    @property
    def mixes(self) -> bool:
        """Whether how many images are upright differs from epoch to epoch, and steps hold several."""
        return self.config.turns_canvas and self.config.rotate90_ratio > 0 and self.size > 1

    def count_steps(self) -> int:
        places = [self.count_places(rows) for rows in self.groups().values()]
        return sum(places) // self.size - 1 if self.mixes else sum(n // self.size for n in places)

    def count_places(self, rows: np.ndarray) -> int:
        """How many of an epoch's places `rows` have."""
        return int(self.factors[rows].sum()) // UNIT

    def groups(self) -> dict[str, np.ndarray]:
        """The rows of each orientation: those that may stand in one batch, as long as they aren't turned."""
        upright = self.upright[0][self.rows]
        return {"landscape": self.rows[~upright], "upright": self.rows[upright]}

    def never_trained(self) -> list[str]:
        """A line for each group of images that is too small for a batch."""
        if self.mixes:
            return []
        return [
            f"{len(rows)} {name} images never train: fewer than a batch of {self.size} of their orientation"
            for name, rows in self.groups().items()
            if 0 < self.count_places(rows) < self.size
        ]

    def repeats(self) -> list[str]:
        """A line that says what repeat factors do, where they are on."""
        if not self.config.repeat_threshold:
            return []
        factors = self.factors[self.rows]
        often, most = int((factors > UNIT).sum()), factors.max() / UNIT
        places = sum(self.count_places(rows) for rows in self.groups().values())
        return [f"{often} of {len(factors)} images come more than once, up to {most:.2f} times: {places} an epoch"]

    def generator(self, epoch: int, stream: int = 0, occurrence: int = 0) -> np.random.Generator:
        key = np.array([self.config.seed, 1 << 32 | epoch], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, occurrence, stream]))

    def epoch_rows(self, epoch: int) -> Places:
        """This rank's places of `epoch`, in order."""
        c, count, random = self.config, int(self.rows.max()) + 1, self.generator(epoch)
        rows = random.permutation(self.rows)
        if c.repeat_threshold:
            rows = self.repeated_rows(self.generator(epoch, 1))
        earlier = earlier_copies(rows)
        # one draw for each row of the data set, so that an image's flip doesn't depend on its place
        times = int(earlier.max()) + 1
        flips = (random.random((times, count)) < c.flip_ratio)[earlier, rows]
        turns, vertical = np.stack([self.draw_turns(self.generator(epoch, 2, t), count) for t in range(times)], 1)
        turns, vertical = turns[earlier, rows], vertical[earlier, rows]
        shown = without_vertical(flips, turns, vertical)
        pasted = np.stack([self.draw_pasted(self.generator(epoch, 3, t), count) for t in range(times)])[earlier, rows]
        places = Places(rows, *shown, earlier, pasted)
        order = grouped(np.arange(len(rows)), self.is_upright(places), self.size)
        return places.part(order[: self.steps * self.size][self.rank :: self.ranks])

    def draw_turns(self, random: np.random.Generator, count: int) -> np.ndarray:
        """(2, count) int: quarter turns, and 1 where a vertical flip follows."""
        turned, vertical = random.random((2, count)) < [[self.config.rotate90_ratio], [self.config.flip_vertical_ratio]]
        return np.stack([turned * random.integers(1, 4, count), vertical])

    def draw_pasted(self, random: np.random.Generator, count: int) -> np.ndarray:
        """(count, 3) int: Places.pasted of every row of the data set."""
        pasted = np.flatnonzero(random.random(count) < self.config.copy_paste_ratio)
        flips = random.random(count) < self.config.flip_ratio
        out = np.stack([np.full(count, -1), *without_vertical(flips, *self.draw_turns(random, count))], 1)
        if len(self.with_objects):
            out[pasted, 0] = self.with_objects[random.integers(len(self.with_objects), size=count)[pasted]]
        return out

    def repeated_rows(self, random: np.random.Generator) -> np.ndarray:
        """The rows in random order, each as often as its factor says."""
        parts = [rows[draw_copies(self.factors[rows], random)] for rows in self.groups().values()]
        return random.permutation(np.concatenate(parts))

    def is_upright(self, places: Places) -> np.ndarray:
        """(N,) bool: those whose pictures have the canvas turned."""
        return self.upright[places.turns % 2, places.rows]

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Batches of `epoch` (from 0) from `start_step` on. Raises DataError."""
        self.records.check()
        pending = []
        size = self.config.images_a_step
        for sample in self.usable_samples(epoch, start_step * size):
            pending.append(sample)
            if len(pending) == size:
                yield self.maker.train_batch(pending)
                pending = []

    def usable_samples(self, epoch: int, start: int) -> Iterator[Sample]:
        """Samples for this rank's places of `epoch` from `start` on.

        A faulty image's place goes to the next usable one of its orientation, past the end to the epoch's first: so the
        epoch keeps its length, and what a place holds doesn't depend on `start`.
        """
        places, reader = self.epoch_rows(epoch), SampleReader(self.config, True, epoch, self.transform)
        for i, sample in enumerate(samples(self.records, places.part(slice(start, None)), reader), start):
            if self.maker.usable(sample):
                yield sample
            else:
                self.faulty.add(int(places.rows[i]))
                yield self.replacement(places, i, reader)

    def replacement(self, places: Places, faulty: int, reader: SampleReader) -> Sample:
        """The usable sample that takes a faulty one's place. Raises DataError where there is none."""
        upright = self.is_upright(places)
        for i in np.roll(np.arange(len(upright)), -faulty)[1:]:
            if upright[i] != upright[faulty] or int(places.rows[i]) in self.faulty:
                continue
            for sample in samples(self.records, places.part(slice(i, i + 1)), reader):
                if self.maker.usable(sample):
                    return sample
                self.faulty.add(int(places.rows[i]))
        raise DataError(f"{self.folder}: no usable image in epoch {reader.epoch}; {self.maker.skipped[-1]}")


def without_vertical(flips: np.ndarray, turns: np.ndarray, vertical: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flips (N,) bool and quarter turns (N,) that show what flips, quarter turns and vertical flips (N,) do."""
    # upside down is turned by half and mirrored
    return flips ^ (vertical > 0), (turns + 2 * vertical) % 4


def upright_rows(index: dict, config: Config, turned: bool = False) -> np.ndarray:
    """(N,) bool: rows whose pictures, as they are or turned by a quarter, have the canvas turned."""
    height, width = np.array(index["sizes"]).reshape(-1, 2).T
    return (width > height if turned else height > width) & config.turns_canvas


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
    """Every image of a split once, in the data set's order, but canvas by canvas where pictures have several (see
    canvas_shown); with several ranks, each every `ranks`-th.

    Iterating yields dicts of arrays, B = test_batch_size: image and image_size as TrainLoader's; original_size (B, 2)
    int32, (height, width) of the image file; scale (B, 2) float32, canvas = original * scale, (y, x); image_id (B,)
    int64; valid (B,) bool: False for rows that fill up the last batch. With several test_scales all that is of the
    first one's canvas, and `more` has the (image, image_size) of the others.
    """

    def __init__(self, config: Config, folder: Path, rank: int = 0, ranks: int = 1):
        self.config, *others = at_scales(config)
        self.others = [EvalLoader(c, folder, rank, ranks) for c in others]
        self.records = OpenRecords(folder)
        self.folder, self.index = self.records.folder, self.records.index
        shown = np.array([canvas_shown(high, wide, self.config) for high, wide in self.index["sizes"]]).reshape(-1, 2)
        # the config's own first
        canvases = sorted({*map(tuple, shown.tolist())}, key=lambda c: (c != (config.img_height, config.img_width), c))
        self.groups = [np.flatnonzero((shown == canvas).all(1))[rank::ranks] for canvas in canvases]
        self.maker = BatchMaker(config)
        for other in self.others:
            other.maker = self.maker  # which tells of each faulty image once

    def __len__(self) -> int:
        return sum(-(-len(rows) // self.config.test_batch_size) for rows in self.groups)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.records.check()
        for batch, *others in zip_equal(self.all_batches(), *self.others):
            yield batch | {"more": [(b["image"], b["image_size"]) for b in others]} if others else batch

    def all_batches(self) -> Iterator[dict[str, np.ndarray]]:
        """Those of this canvas."""
        for order in self.groups:
            yield from self.batches(order)

    def batches(self, order: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Batches of rows of one canvas."""
        pending = []
        zeros = np.zeros(len(order), int)
        places = Places(order, zeros, zeros, zeros, np.full((len(order), 3), -1))
        for sample in samples(self.records, places, SampleReader(self.config, training=False)):
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
