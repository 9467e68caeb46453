"""What the tests of transformers share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from src.config import load_config
from src.data.formats import resolve_classes
from src.data.loader import TrainLoader
from src.data.mindrecord import ensure_mindrecord
from src.evaluation.inference import Evaluator
from src.models.build import build_detector, build_loss
from src.ops.device import set_device
from src.training.loop import step_inputs
from src.training.step import SamplerKeys, TrainStep
from src.training.update import Update, build_optimizer


class Named(nn.Cell):
    """Parameters of these names, each [1, -2]."""

    def __init__(self, names):
        super().__init__(auto_prefix=False)
        self.weights = ms.ParameterTuple([Parameter(Tensor([1.0, -2.0], ms.float32), name=n) for n in names])


def three_steps(
    path: Path, data: Path, outputs: Path, keys: Mapping[str, Any] | None = None
) -> tuple[list[str], float]:
    """Trains a config's detector, narrow but for its backbone, by its recipe without weight decay, which would move all
    weights. Returns the names of those that stayed as they were, and the mask AP. Fails at a loss that isn't finite.
    """
    places = {"train_dataset": str(data), "val_dataset": str(data), "train_outputs": str(outputs)}
    values = places | {"img_width": 192, "img_height": 128, "coco_classes": "auto", "batch_size": 2}
    small = {"neck.fpn.out_channels": 16, "rpn.feat_channels": 16, "bbox_head.conv_out_channels": 16}
    small |= {"bbox_head.fc_out_channels": 16, "mask_head.conv_out_channels": 16, "max_instance_count": 16}
    small |= {"train_cfg.rpn_proposal.max_per_img": 50, "train_cfg.rpn_proposal.nms_pre": 50}
    config = resolve_classes(load_config(path, values | small | {"weight_decay": 0.0} | (keys or {})), training=True)
    set_device(config)
    detector = build_detector(config)
    loss = build_loss(config, detector)
    before = {p.name: p.asnumpy().copy() for p in loss.trainable_params()}
    step = TrainStep(loss, Update(build_optimizer(config, loss, np.full(10, 1e-3, np.float32))))
    loader, sampler = TrainLoader(config, ensure_mindrecord(config, "train", training=True)), SamplerKeys(config)
    detector.set_train()
    for batch, _ in zip(loader.epoch(0), range(3)):
        assert np.isfinite(step(*step_inputs(batch, sampler(0, batch["image_id"])))[0].asnumpy()).all()
    stayed = [p.name for p in loss.trainable_params() if np.array_equal(p.asnumpy(), before[p.name])]
    return stayed, Evaluator(config, detector).run(outputs / "results.json").metrics["segm"]["AP"]
