"""Trains a detector: python train.py --config_path configs/mask_rcnn_r50_fpn.yaml --train_dataset COCO_ROOT ..."""

import argparse

from src.config import Config, add_config_arguments, config_from_arguments
from src.data.loader import TrainLoader
from src.data.mindrecord import ensure_mindrecord
from src.device import set_device
from src.errors import run_command
from src.evaluation.inference import Evaluator
from src.modelarts import on_modelarts
from src.models.build import build_detector, build_loss
from src.training.checkpoints import load_backbone, load_detector
from src.training.loop import Trainer


def main() -> int:
    parser = argparse.ArgumentParser(description="Train a detector.")
    add_config_arguments(parser, "configs/mask_rcnn_r50_fpn.yaml")
    config, _ = config_from_arguments(parser)
    with on_modelarts(config) as config:
        train(config)
    return 0


def train(config: Config) -> None:
    """Trains as the config says."""
    set_device(config)
    loader = TrainLoader(config, ensure_mindrecord(config, "train", training=True))
    detector = build_detector(config)
    if config.backbone.pretrained:
        load_backbone(detector, config.backbone.pretrained)
    if config.pre_trained:
        left = load_detector(detector, config.pre_trained, config.finetune)
        print(f"{config.pre_trained}: loaded; {len(left)} parameters keep their random values: {left[:8]}")
    evaluator = Evaluator(config, detector) if config.run_eval else None
    trainer = Trainer(config, build_loss(config, detector), loader, evaluator and evaluator.after_epoch)
    print(
        f"training {config.detector}: {len(loader)} steps an epoch, {config.epoch_size} epochs -> {config.output_dir}"
    )
    trainer.run()


if __name__ == "__main__":
    run_command(main)
