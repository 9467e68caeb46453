"""Evaluates a checkpoint: python eval.py --config_path CFG --checkpoint_path CKPT --val_dataset COCO_ROOT ..."""

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from src.checkpoints.files import demand_checkpoint, load_detector
from src.config import Config, add_config_arguments, config_from_arguments
from src.data.formats import find_split, resolve_classes
from src.evaluation.coco import Summary, evaluate
from src.evaluation.kinds import KINDS, Kind, choose_kinds, needed_branches
from src.evaluation.results import apply_options, saved_results, write_json
from src.evaluation.truth import split_truth
from src.runtime.errors import UserError, loading, run_command
from src.runtime.files import demand_place
from src.runtime.workers import asks_for_several
from src.training.modelarts import local_checkpoint, on_modelarts
from src.training.signals import Stopped, StopRequest


def main() -> int:
    parser = argparse.ArgumentParser(description="Evaluate a checkpoint on a validation split.")
    add_config_arguments(parser, "configs/mask_rcnn_r50_fpn.yaml")
    parser.add_argument(
        "--checkpoint_path", required=True, help="checkpoint of the whole detector (.ckpt, .safetensors)"
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="COCO results file to write (default: results.json, of another --split results_SPLIT.json, in the"
        " outputs)",
    )
    parser.add_argument(
        "--predictions", type=Path, help="as --results; if it is there and whole, it is evaluated without the network"
    )
    parser.add_argument(
        "--metrics",
        type=Path,
        help="JSON file of all numbers (default: metrics.json, or metrics_SPLIT.json, in the outputs)",
    )
    parser.add_argument("--report", type=Path, help="folder to write report.html to: tables, curves, pictures, speed")
    parser.add_argument(
        "--iou_types",
        nargs="+",
        choices=tuple(KINDS),
        help=f"what to measure: {', '.join(k.noun for k in KINDS.values())} (default: what detector and annotations"
        " have)",
    )
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="measure these classes alone (default: all)")
    parser.add_argument(
        "--report_score",
        type=share,
        default=0.5,
        help="least score of detections in the confusion matrix, and of precision, recall and F1 at a given score"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--report_iou",
        type=share,
        default=0.5,
        help="least IoU of a match in the confusion matrix, and in precision, recall and F1 (default: %(default)s)",
    )
    parser.add_argument(
        "--split", default="val", help="train, val, test, or the file that lists a split (default: %(default)s)"
    )
    config, arguments = config_from_arguments(parser)
    if not arguments.report_iou:
        raise UserError("--report_iou 0: a match needs an IoU above 0")
    for path in filter(None, (arguments.results, arguments.metrics)):
        demand_place(path)  # at once, not when all is computed
    with (
        StopRequest() as stop,
        contextlib.suppress(Stopped),
        stop.interruptible(),
        on_modelarts(config) as local,
    ):
        evaluate_checkpoint(local, arguments)
    return stop.status


def share(text: str) -> float:
    """A number from 0 to 1; argparse tells of another."""
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) <= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text!r}: not a number from 0 to 1")


def evaluate_checkpoint(config: Config, arguments: argparse.Namespace) -> None:
    """Detections of the split and their AP, or the AP of saved ones."""
    checkpoint = local_checkpoint(config, arguments.checkpoint_path)
    config = resolve_classes(config, training=False, checkpoint=checkpoint)
    measured = {"class_names": arguments.classes, "score": arguments.report_score, "iou": arguments.report_iou}
    if arguments.predictions and arguments.predictions.exists() and evaluate_saved(config, arguments, measured):
        return
    demand_checkpoint(checkpoint)
    find_split(config, arguments.split)
    with loading():
        from src.evaluation.inference import Evaluator
        from src.models.build import build_detector
        from src.ops.device import set_device, use_local_device
        from src.ops.library import describe_operators
        from src.runtime.ranks import join_group
    config = use_local_device(config)
    set_device(config)
    group = join_group(config.run_distribute, asks_for_several(sys.argv))
    if group.is_first:
        print(describe_operators(config.device_target))
    detector = build_detector(config, weights=False)
    load_detector(detector, checkpoint)
    evaluator = Evaluator(config, detector, group, arguments.iou_types, arguments.split, **measured)
    path = arguments.predictions or arguments.results or output(config, arguments, "results")
    summary = evaluator.run(path)
    if group.is_first:
        save_numbers(config, arguments, summary)
        if arguments.report:
            save_report(config, arguments, evaluator.loader.folder, evaluator.results, summary, evaluator.timing)


def evaluate_saved(config: Config, arguments: argparse.Namespace, measured: dict) -> bool:
    """Evaluates arguments.predictions; False if that file was cut short, and the network has to run."""
    asked = arguments.iou_types
    needed = [b for b in config.branches if not asked or b in needed_branches(asked)]
    truth = split_truth(config, arguments.split, needed)
    results = saved_results(arguments.predictions, truth)
    if results is None:
        return False
    print(f"{arguments.predictions}: {len(results)} saved detections; the network isn't run")
    results, note = apply_options(results, config.test_cfg.rcnn)
    if note:
        print(note)
    have: dict[str, Callable[[Kind], bool]] = {
        "annotations": lambda kind: kind.annotated(truth),
        "detections": lambda kind: not results or any(kind.key in r for r in results),
    }
    kinds, note = choose_kinds(config.branches, have, asked)
    if note:
        print(note)
    summary = evaluate(truth, results, kinds, max_per_img=config.test_cfg.rcnn.max_per_img, **measured)
    print(summary.text)
    save_numbers(config, arguments, summary)
    if arguments.report:
        from src.evaluation.inference import records_of

        save_report(config, arguments, records_of(config, arguments.iou_types, arguments.split), results, summary)
    return True


def output(config: Config, arguments: argparse.Namespace, name: str) -> Path:
    """NAME.json in the outputs; of another split than val, NAME_SPLIT.json."""
    split = "" if arguments.split == "val" else f"_{Path(arguments.split).stem}"
    return config.output_dir / f"{name}{split}.json"


def save_numbers(config: Config, arguments: argparse.Namespace, summary: Summary) -> None:
    """Writes arguments.metrics, or its default in the outputs."""
    path = arguments.metrics or output(config, arguments, "metrics")
    write_json(path, summary.to_dict(), indent=1)
    print(f"by class, with precision, recall and F1 -> {path}")


def save_report(config: Config, arguments: argparse.Namespace, records: Path, *measured: object) -> None:
    """Writes arguments.report; `measured`: results, summary and timing, as write_report takes them."""
    # matplotlib is loaded only where it draws
    from src.evaluation.report import write_report

    results, summary, *timing = measured
    print(write_report(arguments.report, config, records, results, summary, arguments.checkpoint_path, *timing))


if __name__ == "__main__":
    run_command(main)
