"""A detector over a split: detections of every image, and their AP."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from src.config import Config
from src.data.loader import EvalLoader
from src.data.mindrecord import ensure_mindrecord
from src.evaluation.coco import Summary, coco_results, evaluate, save_results
from src.models.two_stage import TwoStageDetector

__all__ = ["Evaluator", "detect_split"]


def detect_split(config: Config, detector: TwoStageDetector, loader: EvalLoader) -> list[dict]:
    """COCO results of every image of `loader`. Masks are pasted by threads while the network goes on."""
    categories = {int(k): v for k, v in loader.index["category_ids"].items()}
    detector.set_train(False)
    pending: list[Future] = []
    results: list[dict] = []
    with ThreadPoolExecutor(max(1, config.num_parallel_workers)) as pool:
        for batch in tqdm(loader, total=len(loader), unit="batch", desc="detecting"):
            out = [x.asnumpy() for x in detector(Tensor(batch["image"]), Tensor(batch["image_size"]))]
            for i in np.flatnonzero(batch["valid"]):
                pending.append(pool.submit(image_results, config, out, int(i), batch, categories))
        for future in pending:
            results += future.result()
    return results


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
        "grid" if config.mask_roi.roi_layer.aligned else "torchvision",
    )


class Evaluator:
    """Evaluates one detector on the validation split, as often as asked."""

    def __init__(self, config: Config, detector: TwoStageDetector):
        self.config, self.detector = config, detector
        self.loader = EvalLoader(config, ensure_mindrecord(config, "val", training=False))

    def run(self, results_path: Path) -> Summary:
        """Detects, saves the results, prints both tables and the classes', and returns the numbers."""
        results = detect_split(self.config, self.detector, self.loader)
        save_results(results_path, results)
        kinds = ("bbox", "segm") if self.detector.with_mask else ("bbox",)
        summary = evaluate(self.loader.index["annotations"], results, kinds)
        print(f"\n{len(results)} detections in {len(self.loader.index['image_ids'])} images -> {results_path}")
        print(summary.text)
        return summary

    def after_epoch(self, epoch: int) -> Summary:
        """During training: evaluates, and leaves the detector in training mode."""
        summary = self.run(self.config.output_dir / f"results_epoch_{epoch}.json")
        self.detector.set_train(True)
        return summary
