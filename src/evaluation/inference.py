"""A detector over a split: detections of every image, and their AP."""

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
from src.data.loader import EvalLoader
from src.data.mindrecord import ensure_mindrecord, read_index
from src.evaluation.coco import Summary, choose_kinds, chosen, coco_results, demand_masks, evaluate
from src.evaluation.results import save_results
from src.evaluation.truth import Truth, read_annotations
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

    network: of each batch, padded to batch_size images, the first one's with compiling; pasting: of each image's masks
    and results, by threads beside the network; total: of everything, the reading of images included.
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
) -> list[dict]:
    """COCO results of every image of `loader`; fills `timing`; `quiet`: without a progress bar."""
    detector.set_train(False)

    def run(batch: dict) -> list[np.ndarray]:
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
    masks if there are any. Boxes are in canvas pixels, or `original`: in the image file's.

    Masks are pasted by threads while the network goes on. Fills `timing`.
    """
    timing = timing or Timing()
    timing.batch_size = config.test_batch_size
    categories = {int(k): v for k, v in loader.index["category_ids"].items()}
    pending: list[Future] = []
    results: list[dict] = []

    def paste(*job: Any) -> list[dict]:
        start = time.perf_counter()
        found = image_results(*job)
        timing.pasting.append(time.perf_counter() - start)
        return found

    begin = time.perf_counter()
    with ThreadPoolExecutor(max(1, config.num_parallel_workers)) as pool:
        for batch in tqdm(loader, total=len(loader), unit="batch", desc="detecting", disable=quiet):
            start = time.perf_counter()
            out = run(batch)
            timing.network.append(time.perf_counter() - start)
            if original:
                batch["scale"] = np.ones_like(batch["scale"])
            for i in np.flatnonzero(batch["valid"]):
                pending.append(pool.submit(paste, config, out, int(i), batch, categories))
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
    if "segm" in iou_types:
        demand_masks(truth)
    return truth


def kinds_of(
    config: Config, with_masks: bool, asked: Sequence[str] | None = None, tell: bool = True
) -> tuple[str, ...]:
    """What to measure of the config's detector where the annotations have masks or not; `tell`: in a line, if masks are
    left out.

    Raises UserError for masks asked of a detector without.
    """
    if asked and "segm" in asked and not config.with_mask:
        raise UserError(f"--iou_types segm: detector: {config.detector} has no masks; bbox alone")
    asked = asked or (None if config.with_mask else ("bbox",))
    kinds, note = choose_kinds({"annotations": with_masks}, asked)
    if note and tell:
        print(note)
    return kinds


def records_of(config: Config, asked: Sequence[str] | None = None, split: str = "val", quiet: bool = False) -> Path:
    """The MindRecord folder of a split; where boxes alone are asked for, its objects need no masks."""
    if asked and "segm" not in asked and config.with_mask:
        boxes_alone = {"mask_rcnn": "faster_rcnn", "cascade_mask_rcnn": "cascade_rcnn"}
        config = dataclasses.replace(config, detector=boxes_alone[config.detector])
    return ensure_mindrecord(config, split, training=False, quiet=quiet)


def image_results(config: Config, out: list[np.ndarray], i: int, batch: dict, categories: dict[int, int]) -> list[dict]:
    """COCO results of image `i` of a batch, from the detector's outputs."""
    boxes, scores, labels, valid = (x[i] for x in out[:4])
    masks = out[4][i][valid] if len(out) > 4 else None
    return coco_results(
        int(batch["image_id"][i]),
        boxes[valid],
        scores[valid],
        labels[valid],
        masks,
        batch["original_size"][i],
        batch["scale"][i],
        categories,
        config.test_cfg.rcnn.mask_thr_binary,
        config.mask_paste,
    )


class Evaluator:
    """Evaluates one detector on a split, by default the validation's, as often as asked.

    group: ranks among which the images are shared; rank 0 collects the results, which `results` then holds. iou_types:
    what to measure; by default boxes, and masks where detector and annotations have them. measured: class_names, score
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
        self.kinds = kinds_of(config, self.loader.index["with_masks"], iou_types, tell=self.group.is_first)
        self.truth = open_truth(folder, self.kinds, measured.get("class_names"))
        self.measured: dict[str, Any] = {"iou_types": self.kinds, **measured}
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
        mine = detect_split(self.config, self.detector, self.loader, self.timing, quiet=not self.group.is_first)
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
