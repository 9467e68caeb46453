"""Evaluates an exported ONNX model: python eval_onnx.py --config_path CFG --onnx_file F --val_dataset COCO_ROOT ..."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from src.config import Config, add_config_arguments, load_config, parse_overrides
from src.data.loader import EvalLoader
from src.evaluation.inference import collect_results, in_order, kinds_of, open_truth, records_of, report
from src.export import sidecar
from src.export.whole import import_onnx_runtime
from src.runtime.errors import UserError, run_command
from src.runtime.files import why_unread


def main() -> int:
    parser = argparse.ArgumentParser(description="Evaluate an ONNX model in ONNX Runtime.", allow_abbrev=False)
    add_config_arguments(parser, "configs/mask_rcnn_r50_fpn.yaml")
    parser.add_argument(
        "--onnx_file",
        required=True,
        help="what export.py wrote, its sidecar beside it; of two files, one for each"
        " orientation of pictures, either: it names the other",
    )
    parser.add_argument("--results", type=Path, help="COCO results file (default: results_onnx.json in the outputs)")
    parser.add_argument("--threads", default="0", help="threads of ONNX Runtime; 0: one a core (default: %(default)s)")
    known, rest = parser.parse_known_args()
    config = load_config(known.config_path, parse_overrides(rest))
    if not known.threads.isdecimal():
        raise UserError(f"--threads {known.threads}: not a number of threads")
    paths = check(config, Path(known.onnx_file))
    runtime = import_onnx_runtime()
    models = {canvas: runtime(path, int(known.threads)) for canvas, path in paths.items()}
    for canvas, model in models.items():
        check_classes(paths[canvas], model.classes, config.coco_classes)
    records = records_of(config)
    loader = EvalLoader(config, records)
    kinds = kinds_of(config, loader.index)
    truth = open_truth(records, kinds)
    seconds = []

    def run(batch: dict) -> list[np.ndarray]:
        shape = np.concatenate([batch["image_size"], batch["original_size"].astype(np.float32)], 1)
        model = models[batch["image"].shape[2:]]
        begin = time.perf_counter()
        out = model(batch["image"], shape)
        seconds.append((time.perf_counter() - begin) / config.test_batch_size)
        return out

    results = in_order(loader, collect_results(config, run, loader, original=True))
    path = known.results or config.output_dir / "results_onnx.json"
    report(config, loader, truth, results, path, iou_types=kinds)
    if seconds:
        print(f"ONNX Runtime: {1000 * np.median(seconds):.1f} ms an image (median of {len(seconds)} batches)")
    return 0


def check(config: Config, path: Path) -> dict[tuple[int, int], Path]:
    """The model of each canvas (height, width): `path`, and where upright pictures have the canvas turned, its pair.

    Refuses those that the sidecar or `config` doesn't describe. The config takes the batch size that they were exported
    with, and where it leaves its classes to the data, the classes.
    """
    about_path = path.with_name(path.name + ".json")
    if why := why_unread(path, "no such model"):
        raise UserError(f"{path}: {why}; export.py --file_format ONNX makes one")
    about = sidecar.read(about_path)
    if about["file_format"] != "ONNX" or about["form"] != "whole":
        raise UserError(f"{about_path}: of {about['form']} {about['file_format']}, not of an ONNX model")
    sidecar.check_file(path, about["files"]["model"])
    if not config.coco_classes:
        config.coco_classes, config.num_classes = about["classes"], len(about["classes"])
    sidecar.check_config(about_path, about, config)
    config.test_batch_size = about["batch_size"]
    height, width = about["canvas"]["height"], about["canvas"]["width"]
    paths = {(height, width): path}
    if config.turns_canvas:
        paths[width, height] = path.with_name(about["pair"]["name"])
        sidecar.check_file(paths[width, height], about["pair"])
    return paths


def check_classes(path: Path, ours: list[str] | None, wanted: list[str]) -> None:
    """Raises UserError where the classes that the model itself names, if it does, aren't the config's."""
    if ours is None or ours == wanted:
        return
    said = f"{len(ours)} classes, not {len(wanted)}"
    if len(ours) == len(wanted):
        place = next(i for i, name in enumerate(ours) if name != wanted[i])
        said = f"class {place} {ours[place]!r}, not {wanted[place]!r}"
    raise UserError(
        f"{path}: made with {said} as in the config; give the config that it was exported with, or set coco_classes"
    )


if __name__ == "__main__":
    run_command(main)
