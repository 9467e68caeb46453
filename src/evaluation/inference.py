"""A detector over a split: detections of every image, and their AP."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from src.checkpoints.files import CheckpointError, not_finite
from src.config import Config
from src.config.keys import DETECTORS
from src.data.loader import EvalLoader
from src.data.mindrecord import ensure_mindrecord, read_index
from src.evaluation.coco import Summary, chosen, evaluate
from src.evaluation.kinds import KINDS, choose_kinds, needed_branches
from src.evaluation.paste import found_in, paste_options, results_of
from src.evaluation.results import save_results
from src.evaluation.truth import Truth, read_annotations
from src.evaluation.views import Views
from src.models.rcnn import RCNN
from src.runtime.errors import UserError
from src.runtime.ranks import Group

__all__ = [
    "Evaluator",
    "Timing",
    "collect_results",
    "detect_split",
    "in_order",
    "kinds_of",
    "open_truth",
    "records_of",
    "report",
]


@dataclass
class Timing:
    """Seconds that a split took.

    network: of each batch, padded to batch_size images, the first one's with compiling; pasting: of each image's
    results, by threads beside the network; total: of everything, the reading of images included.
    """

    batch_size: int = 1
    network: list[float] = field(default_factory=list)
    pasting: list[float] = field(default_factory=list)
    total: float = 0.0


def detect_split(
    config: Config,
    detector: RCNN,
    loader: EvalLoader,
    timing: Timing | None = None,
    quiet: bool = False,
    views: Views | None = None,
) -> list[dict]:
    """COCO results of every image of `loader`; fills `timing`; `quiet`: without a progress bar; views: see Views."""
    detector.set_train(False)

    def run(batch: dict) -> list[np.ndarray]:
        if views:
            return views([(batch["image"], batch["image_size"]), *batch.get("more", [])])
        return [x.asnumpy() for x in detector(Tensor(batch["image"]), Tensor(batch["image_size"]))]

    return collect_results(config, run, loader, timing=timing, quiet=quiet)


def collect_results(
    config: Config,
    run: Callable[[dict], list[np.ndarray]],
    loader: EvalLoader,
    original: bool = False,
    timing: Timing | None = None,
    quiet: bool = False,
) -> list[dict]:
    """COCO results of every image of `loader`, from what `run` detects in a batch: boxes, scores, labels, valid, and
    what the branches give. Boxes are in canvas pixels, or `original`: in the image file's.

    Results are made by threads while the network goes on. Fills `timing`.
    """
    timing = timing or Timing()
    timing.batch_size = config.test_batch_size
    categories = {int(k): v for k, v in loader.index["category_ids"].items()}
    options = paste_options(config)
    pending: list[Future] = []
    results: list[dict] = []

    def image_results(out: list[np.ndarray], i: int, batch: dict) -> list[dict]:
        start = time.perf_counter()
        image_id, size = int(batch["image_id"][i]), batch["original_size"][i]
        found = found_in(out, i, config.branches, batch["scale"][i], f"image {image_id}")
        rows = results_of(found, image_id, size, config.coco_classes, categories, options)
        timing.pasting.append(time.perf_counter() - start)
        return rows

    begin = time.perf_counter()
    with ThreadPoolExecutor(max(1, config.num_parallel_workers)) as pool:
        for batch in tqdm(loader, total=len(loader), unit="batch", desc="detecting", disable=quiet):
            start = time.perf_counter()
            out = run(batch)
            timing.network.append(time.perf_counter() - start)
            if original:
                batch["scale"] = np.ones_like(batch["scale"])
            for i in np.flatnonzero(batch["valid"]):
                pending.append(pool.submit(image_results, out, int(i), batch))
        for future in pending:
            results += future.result()
    timing.total = time.perf_counter() - begin
    return results


def in_order(loader: EvalLoader, results: list[dict]) -> list[dict]:
    """The results in the order of the data set's images, whichever rank or canvas gave them."""
    place = {image: i for i, image in enumerate(loader.index["image_ids"])}
    return sorted(results, key=lambda r: place[r["image_id"]])


def report(
    config: Config, loader: EvalLoader, truth: Truth, results: list[dict], path: Path, **measured: Any
) -> Summary:
    """Saves the results, prints the tables and the classes', and returns the numbers.

    measured: iou_types, class_names, score and iou, as evaluate takes them.
    """
    save_results(path, results, truth)
    print(f"\n{len(results)} detections in {len(loader.index['image_ids'])} images -> {path}")
    if not results:
        print(f"nothing was detected: no score reaches test_cfg.rcnn.score_thr {config.test_cfg.rcnn.score_thr:g}")
    summary = evaluate(truth, results, max_per_img=config.test_cfg.rcnn.max_per_img, **measured)
    print(summary.text)
    return summary


def open_truth(records: Path, iou_types: Sequence[str] = (), class_names: Sequence[str] | None = None) -> Truth:
    """What a converted split is measured against; messages name the annotations that it was made from.

    Raises EvaluationError, before a network runs, where it can't be measured so.
    """
    index = read_index(records)
    truth = read_annotations(index["annotations"])
    truth.path = Path(index["source"])
    chosen(truth, None, class_names)
    for name in iou_types:
        KINDS[name].demand(truth)
    return truth


def kinds_of(config: Config, index: dict, asked: Sequence[str] | None = None, tell: bool = True) -> tuple[str, ...]:
    """What to measure of the config's detector on a converted split, of which this is the index; `tell`: in a line, if
    something is left out.

    Raises UserError for what is asked of a detector without it.
    """
    for kind in KINDS.values():
        if asked and kind.name in asked and kind.branch not in (None, *config.branches):
            possible = ", ".join(k.name for k in KINDS.values() if k.branch in (None, *config.branches))
            lacks = f"detector: {config.detector} has no {kind.noun}"
            raise UserError(f"--iou_types {kind.name}: {lacks}; {possible} alone")
    kinds, note = choose_kinds(config.branches, {"annotations": lambda kind: kind.converted(index)}, asked)
    if note and tell:
        print(note)
    return kinds


def records_of(config: Config, asked: Sequence[str] | None = None, split: str = "val", quiet: bool = False) -> Path:
    """The MindRecord folder of a split; its objects need nothing but what is asked for."""
    needed = tuple(b for b in config.branches if not asked or b in needed_branches(asked))
    if needed != config.branches:
        fits = (d for d, branches in DETECTORS.items() if branches == needed)
        same = [d for d in fits if d.startswith("cascade") == config.is_cascade]
        config = dataclasses.replace(config, detector=same[0] if same else config.detector)
    return ensure_mindrecord(config, split, training=False, quiet=quiet)


class Evaluator:
    """Evaluates one detector on a split, by default the validation's, as often as asked.

    group: ranks among which the images are shared; rank 0 collects the results, which `results` then holds. iou_types:
    what to measure; by default all that detector and annotations have. measured: class_names, score
    and iou, as evaluate takes them.

    Raises UserError where the split can't be measured so.
    """

    def __init__(
        self,
        config: Config,
        detector: RCNN,
        group: Group | None = None,
        iou_types: Sequence[str] | None = None,
        split: str = "val",
        **measured: Any,
    ):
        self.config, self.detector, self.group = config, detector, group or Group()
        folder = records_of(config, iou_types, split)
        self.loader = EvalLoader(config, folder, self.group.rank, self.group.size)
        self.kinds = kinds_of(config, self.loader.index, iou_types, tell=self.group.is_first)
        self.truth = open_truth(folder, self.kinds, measured.get("class_names"))
        self.measured: dict[str, Any] = {"iou_types": self.kinds, **measured}
        self.views = Views(config, detector) if Views.needed(config) else None
        self.timing = Timing()
        self.results: list[dict] = []

    def run(self, results_path: Path) -> Summary | None:
        """Detects, saves the results, prints the tables and the classes', and returns the numbers.

        On rank 0; the others, which do their share of detecting, return None. Raises CheckpointError where weights
        aren't finite: they detect nothing, which would pass for an AP of 0.
        """
        broken = not_finite({p.name: p.asnumpy() for p in self.detector.get_parameters()})
        if broken:
            raise CheckpointError(
                f"the training diverged: NaN or infinity in {broken[0]}, of {len(broken)} parameters; train again"
                " from an earlier checkpoint, with a lower lr or a longer warmup_step"
            )
        self.timing = Timing()
        quiet = not self.group.is_first
        mine = detect_split(self.config, self.detector, self.loader, self.timing, quiet, self.views)
        shares = self.group.gather(mine)
        if not self.group.is_first:
            return None
        self.results = in_order(self.loader, [r for share in shares for r in share])
        return report(self.config, self.loader, self.truth, self.results, results_path, **self.measured)

    def after_epoch(self, epoch: int) -> Summary | None:
        """During training: evaluates, and leaves the detector in training mode."""
        summary = self.run(self.config.output_dir / f"results_epoch_{epoch}.json")
        self.detector.set_train(True)
        return summary
