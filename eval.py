"""Evaluates a checkpoint: python eval.py --config_path CFG --checkpoint_path CKPT --val_dataset COCO_ROOT ..."""

import argparse
from pathlib import Path

from src.config import Config, add_config_arguments, config_from_arguments
from src.data.formats import resolve_classes
from src.data.mindrecord import ensure_mindrecord, ground_truth
from src.device import set_device
from src.errors import run_command
from src.evaluation.coco import evaluate, load_results, saved_results
from src.evaluation.inference import Evaluator
from src.modelarts import local_checkpoint, on_modelarts
from src.models.build import build_detector
from src.ops.library import describe_operators
from src.training.checkpoints import load_detector
from src.training.distributed import join_group, use_local_device


def main() -> int:
    parser = argparse.ArgumentParser(description="Evaluate a checkpoint on a validation split.")
    add_config_arguments(parser, "configs/mask_rcnn_r50_fpn.yaml")
    parser.add_argument("--checkpoint_path", required=True, help="checkpoint of the whole detector (.ckpt)")
    parser.add_argument(
        "--results", type=Path, help="COCO results file to write (default: results.json in the outputs)"
    )
    parser.add_argument(
        "--predictions", type=Path, help="as --results; if it is there and whole, it is evaluated without the network"
    )
    parser.add_argument("--report", type=Path, help="folder to write report.html to: tables, curves, pictures, speed")
    config, arguments = config_from_arguments(parser)
    with on_modelarts(config) as config:
        evaluate_checkpoint(config, arguments)
    return 0


def evaluate_checkpoint(config: Config, arguments: argparse.Namespace) -> None:
    """Detections of the validation split and their AP, or the AP of saved ones."""
    checkpoint = local_checkpoint(config, arguments.checkpoint_path)
    config = resolve_classes(config, training=False, checkpoint=checkpoint)
    if arguments.predictions and (results := saved_results(arguments.predictions)) is not None:
        print(f"{arguments.predictions}: {len(results)} saved detections; the network isn't run")
        kinds = ("bbox", "segm") if "mask" in config.detector else ("bbox",)
        summary = evaluate(ground_truth(config), results, kinds)
        print(summary.text)
        if arguments.report:
            save_report(config, arguments, ensure_mindrecord(config, "val", training=False), results, summary)
        return
    config = use_local_device(config)
    set_device(config)
    group = join_group(config)
    if group.is_first:
        print(describe_operators(config.device_target))
    detector = build_detector(config)
    load_detector(detector, checkpoint)
    evaluator = Evaluator(config, detector, group)
    path = arguments.predictions or arguments.results or config.output_dir / "results.json"
    summary = evaluator.run(path)
    if arguments.report and group.is_first:
        save_report(config, arguments, evaluator.loader.folder, load_results(path), summary, evaluator.timing)


def save_report(config: Config, arguments: argparse.Namespace, records: Path, *measured: object) -> None:
    """Writes arguments.report; `measured`: results, summary and timing, as write_report takes them."""
    # matplotlib is loaded only where it draws
    from src.evaluation.report import write_report

    results, summary, *timing = measured
    print(write_report(arguments.report, config, records, results, summary, arguments.checkpoint_path, *timing))


if __name__ == "__main__":
    run_command(main)
