"""One process's training, from a config to its exit status."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from pathlib import Path

from src.checkpoints.files import load_backbone, load_detector
from src.config import Config
from src.data.loader import TrainLoader
from src.data.mindrecord import ensure_mindrecord, with_categories
from src.evaluation.inference import Evaluator
from src.models.build import build_detector, build_loss
from src.ops.device import set_device, use_local_device
from src.ops.library import describe_operators
from src.runtime.launch import AGAIN_VARIABLE, JOB_VARIABLE
from src.runtime.ranks import Group, join_group
from src.runtime.workers import asks_for_several
from src.training.loop import Trainer
from src.training.lr_schedule import describe_rates
from src.training.resume import Resumed, has_checkpoint, hold_run, newest_record, same_step
from src.training.update import describe_layer_rates
from src.training.validation import ValidationLoss

__all__ = ["goes_on", "in_folder", "train"]


def goes_on(config: Config) -> bool:
    """Whether the launcher has started this job again after it had saved; else it begins as it did."""
    found = newest_record(config.output_dir) if os.environ.get(AGAIN_VARIABLE) else None
    return found is not None and found[0].get("job") == os.environ.get(JOB_VARIABLE)


def in_folder(config: Config, folder: Path) -> Config:
    """The config with outputs in `folder`, and its MindRecord files where they were."""
    # MindSpore takes a kept graph by its number in the program, and a resumed one may begin with an evaluation
    return dataclasses.replace(
        config,
        train_outputs=str(folder.parent),
        brief=folder.name,
        mindrecord_dir=str(config.record_dir),
        compile_cache=False,
    )


def announce(config: Config, loader: TrainLoader, trainer: Trainer) -> None:
    """What a run is going to do, and what it is going to leave out."""
    if loader.left_out:
        print(f"{loader.left_out} images without objects don't train (train_empty_images: true trains on them)")
    for line in loader.repeats() + loader.never_trained():
        print(line)
    print(describe_rates(config, trainer.rates, len(loader), trainer.group.size))
    if told := describe_layer_rates(config):
        print(told)
    print(
        f"training {config.detector}: {len(loader)} steps an epoch, {config.epoch_size} epochs -> {config.output_dir}"
    )


def train(config: Config, resume: Resumed | None = None) -> int:
    """Trains as the config, which check_training and resolve_classes have seen, says; returns the exit status."""
    config = use_local_device(config)
    set_device(config)
    group = join_group(config.run_distribute, asks_for_several(sys.argv))
    if group.from_first(lambda: goes_on(config)):
        resume = Resumed(config.output_dir.absolute())
        config = in_folder(config, resume.folder)
    if resume:
        config = dataclasses.replace(config, **group.from_first(lambda: same_step(config, resume, group.size)))
    with contextlib.ExitStack() as held:
        # one process's lock; all are refused
        group.from_first(lambda: held.enter_context(hold_run(config, resume is not None)))
        return train_in_group(config, resume, group)


def train_in_group(config: Config, resume: Resumed | None, group: Group) -> int:
    """This process's part of the training."""
    if group.is_first:
        print(describe_operators(config.device_target))
    folder = ensure_mindrecord(config, "train", training=True)
    config = with_categories(config, folder)
    loader = TrainLoader(config, folder, group.rank, group.size)
    detector = build_detector(config)
    if not (resume and has_checkpoint(config)):
        if config.backbone.pretrained:
            load_backbone(detector, config.backbone.pretrained)
        if config.pre_trained:
            left = load_detector(detector, config.pre_trained, config.finetune)
            told = f": {', '.join(left[:20])}{', ...' if len(left) > 20 else ''}" if left else ""
            count = len(list(detector.get_parameters()))
            print(f"{config.pre_trained}: loaded; {len(left)} of {count} parameters keep their random values{told}")
    evaluator = Evaluator(config, detector, group) if config.run_eval else None
    loss = build_loss(config, detector, group.size)
    trainer = Trainer(
        config,
        loss,
        loader,
        evaluator.after_epoch if evaluator else None,
        group,
        resume is not None,
        resume.position if resume else None,
        ValidationLoss(config, loss, group) if config.val_loss else None,
    )
    if group.is_first and not trainer.finished():
        announce(config, loader, trainer)
    return trainer.run()
