"""Trains a detector: python train.py --config_path configs/mask_rcnn_r50_fpn.yaml --train_dataset COCO_ROOT ..."""

from __future__ import annotations

import argparse
import sys

from src.config import Config, add_config_arguments, config_from_arguments
from src.runtime.errors import loading, run_command
from src.runtime.workers import is_scheduler
from src.training.modelarts import fetch_run, on_modelarts
from src.training.resume import Resumed, find_run, own_config


def read_arguments(words: list[str]) -> tuple[Config, Resumed | None]:
    """The config, and the run to resume, whose own config is then the default."""
    parser = argparse.ArgumentParser(description="Train a detector.")
    add_config_arguments(parser, "configs/mask_rcnn_r50_fpn.yaml")
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with a run: its output folder, or one of its checkpoints; on ModelArts also their address",
    )
    given, _ = parser.parse_known_args(words)
    run = None
    if given.resume and "://" in given.resume:
        if not is_scheduler():
            run = find_run(fetch_run(config_from_arguments(parser, words)[0], given.resume))
    elif given.resume:
        run = find_run(given.resume)
    if run and given.config_path == parser.get_default("config_path") and (own := own_config(run.folder)):
        parser.set_defaults(config_path=str(own))
    return config_from_arguments(parser, words)[0], run


def checked(config: Config) -> Config:
    """The config with the data set's classes, after what could only fail later. Raises UserError."""
    if is_scheduler():
        return config
    # OpenCV takes a while to load: not before a word that is no key is refused
    from src.data.augment.custom import load_transform
    from src.data.formats import check_training, find_split, resolve_classes

    check_training(config)
    if config.transform:
        load_transform(config.transform)  # before the data set is converted
    config = resolve_classes(config, training=True)
    find_split(config, "train")
    return config


def main() -> int:
    config, resume = read_arguments(sys.argv[1:])
    with on_modelarts(config) as local:
        local = checked(local)
        with loading():
            from src.training.run import in_folder, train
        return train(in_folder(local, resume.folder) if resume else local, resume)


if __name__ == "__main__":
    run_command(main)
