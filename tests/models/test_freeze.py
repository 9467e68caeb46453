"""Frozen parts: nothing of them trains, their running statistics included."""

import numpy as np
import pytest
from mindspore import Tensor

from src.models.build import build_detector, build_loss
from src.runtime.errors import UserError

PARTS = ["backbone", "neck", "rpn", "bbox_head", "mask_head"]
SMALL = {"backbone__width_multiplier": 0.25}


@pytest.mark.parametrize("detector", ["mask_rcnn", "cascade_mask_rcnn"])
def test_what_is_frozen_does_not_train(shapes_config, detector):
    free = build_detector(shapes_config(detector=detector, **SMALL)).trainable_params()
    for part in PARTS:
        config = shapes_config(detector=detector, freeze=[part], **SMALL)
        loss = build_loss(config, build_detector(config))
        assert {p.name for p in loss.trainable_params()} == {p.name for p in free if not p.name.startswith(part)}


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_batch_norms_keep_their_statistics(shapes_config, frozen):
    config = shapes_config(
        freeze=["backbone"] if frozen else [], backbone__norm_eval=False, backbone__frozen_stages=-1, **SMALL
    )
    detector = build_detector(config)
    build_loss(config, detector).set_train()
    before = {p.name: p.asnumpy().copy() for p in detector.get_parameters() if "moving" in p.name}
    detector.backbone(Tensor(np.random.RandomState(0).randn(1, 3, 64, 64).astype(np.float32)))
    same = [(p.asnumpy() == before[p.name]).all() for p in detector.get_parameters() if p.name in before]
    assert before and (all(same) if frozen else not any(same))


def test_refused(shapes_config, refusal):
    config = shapes_config(freeze=PARTS, **SMALL)
    with refusal(UserError, "freeze", "nothing to train"):
        build_loss(config, build_detector(config))
    config = shapes_config(detector="faster_rcnn", freeze=["mask_head"], **SMALL)
    with refusal(UserError, "freeze", "faster_rcnn", "mask_head"):
        build_loss(config, build_detector(config))
    with refusal(UserError, "freeze", "head"):
        shapes_config(freeze=["head"])
