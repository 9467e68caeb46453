"""MindSpore Hub's entry: create_network(name, ...) makes a detector of this repository."""

from pathlib import Path

from mindspore import nn

from src.checkpoints.files import load_detector
from src.config import load_nameless_config
from src.data.formats import resolve_classes
from src.models.build import build_detector
from src.runtime.errors import UserError

__all__ = ["create_network"]

CONFIGS = Path(__file__).resolve().parent / "configs"


def create_network(name: str, *args: object, **kwargs: object) -> nn.Cell:
    """The detector of configs/{name}.yaml, for inference, with random weights unless a checkpoint is given.

    name: a config's name ("mask_rcnn_r50_fpn"; `maskrcnn` and `fasterrcnn` alone mean ResNet-50 with FPN), dashes for
    underscores allowed, or a config file's, as that of a run ("train_outputs/mine/config.yaml"). kwargs: `checkpoint`,
    a .ckpt or .safetensors of the whole detector; `builtin_ops`, True for MindSpore's own operators alone, as export
    needs; any other is a key of the config (num_classes=4, names of classes being optional here; nested ones by
    **{"test_cfg.rcnn.score_thr": 0.3}). Inputs and outputs of the Cell: see src.models.rcnn.RCNN;
    with resize: short_side it takes lying pictures on the canvas, and upright ones on the canvas turned. It is one view
    of them: test_scales and test_flip are for src.Predictor and evaluations.

    Where the config leaves the classes to the data (coco_classes: auto), they are those of the checkpoint's run.

    Raises UserError for another name, which lists those there are, for a positional argument, and for an unknown key.
    """
    if args:
        raise UserError(f"create_network({name!r}): options go by name (checkpoint=..., num_classes=...)")
    checkpoint, builtin_ops = kwargs.pop("checkpoint", None), bool(kwargs.pop("builtin_ops", False))
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else config_of(str(name))
    config = resolve_classes(load_nameless_config(path, kwargs), training=False, checkpoint=checkpoint or "")
    detector = build_detector(config, builtin_ops, weights=checkpoint is None)
    if checkpoint is not None:
        load_detector(detector, checkpoint)
    return detector.set_train(False)


def config_of(name: str) -> Path:
    """The config that a network's name stands for. Raises UserError."""
    short = {"maskrcnn": "mask_rcnn_r50_fpn", "fasterrcnn": "faster_rcnn_r50_fpn"}
    file = short.get(name, name.replace("-", "_")) + ".yaml"
    known = sorted(p.name for p in CONFIGS.glob("*.yaml"))
    if file not in known:
        there = ", ".join(k[:-5] for k in known)
        raise UserError(f"{name!r} isn't a network of this repository; name a config file, or one of {there}")
    return CONFIGS / file
