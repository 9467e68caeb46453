"""The losses on the validation split, after each epoch."""

import json

import numpy as np
import pytest
from mindspore import context, nn, ops

from src.checkpoints.files import load_checkpoint
from src.data.augment import without_augmentation
from src.data.loader import TrainLoader
from src.data.mindrecord import ensure_mindrecord
from src.runtime.newer import zip_equal
from src.training.tracking import validations
from src.training.validation import ValidationLoss

LOSSES = ("total_loss", "rpn_cls_loss", "rpn_reg_loss", "rcnn_cls_loss", "rcnn_reg_loss", "rcnn_mask_loss")


class Probe(nn.Cell):
    """Losses that tell what came: sums of pixels, boxes and keys; and whether it trained."""

    def __init__(self):
        super().__init__()
        self.names, self.seen, self.norm = LOSSES, [], nn.BatchNorm2d(3)

    def construct(self, image, size, boxes, labels, valid, masks, ignore, rpn_keys, rcnn_keys):
        self.seen.append((image.asnumpy(), boxes.asnumpy(), rpn_keys.asnumpy(), self.training))
        self.norm(image)
        sums = [image.abs().mean(), boxes.mean(), rpn_keys.mean(), rcnn_keys.mean()]
        return ops.stack(sums + [sums[0] * 0, sums[0] * 0 + 1])


@pytest.fixture
def pynative():
    before = context.get_context("mode")
    context.set_context(mode=context.PYNATIVE_MODE)
    yield
    context.set_context(mode=before)


SMALL = {"img_width": 64, "img_height": 64, "batch_size": 3}
AUGMENTED = {"flip_ratio": 1.0, "ratio_range": [0.5, 2.0], "photo_ratio": 1.0, "expand_ratio": 1.0, "crop_ratio": 1.0}


def test_the_same_pictures_unchanged_at_each_call_and_nothing_learnt(shapes_config, pynative):
    config = shapes_config(mode="pynative", **SMALL, **AUGMENTED)
    probe = Probe().set_train()
    validation = ValidationLoss(config, probe)
    first, second = validation(), validation()
    assert first == second and tuple(first) == LOSSES and first["rcnn_mask_loss"] == 1
    # 8 images make two batches of 3
    assert len(probe.seen) == 4 and not any(training for *_, training in probe.seen)
    for a, b in zip_equal(probe.seen[:2], probe.seen[2:]):
        assert all((x == y).all() for x, y in zip_equal(a[:3], b[:3]))
    assert first["total_loss"] == pytest.approx(np.mean([np.abs(s[0]).mean() for s in probe.seen[:2]]), rel=1e-5)
    assert (probe.norm.moving_mean.asnumpy() == 0).all()
    assert probe.training
    plain = without_augmentation(shapes_config(**SMALL))
    folder = ensure_mindrecord(plain, "val", training=True)
    batch = next(TrainLoader(plain, folder).epoch(0))
    np.testing.assert_array_equal(batch["image"], probe.seen[0][0])


def test_it_is_logged_after_each_epoch_and_training_is_as_without(stub_trainer, tmp_path):
    losses = iter({**dict.fromkeys(LOSSES, 0.0), "total_loss": v} for v in (0.75, 0.5))
    trainer = stub_trainer(validate=lambda: next(losses))
    assert trainer.run() == 0
    folder = trainer.config.output_dir
    assert {e: v["val_total_loss"] for e, v in validations(folder / "metrics.jsonl").items()} == {1: 0.75, 2: 0.5}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [("val_total_loss" in r, r["epoch"], r["step"]) for r in rows if r["step"] == 4] == [
        (False, 1, 4),
        (True, 1, 4),
        (False, 2, 4),
        (True, 2, 4),
    ]
    alone = stub_trainer(train_outputs=str(tmp_path / "alone"))
    assert alone.run() == 0
    for name in ("loss_0.log", "checkpoints/mask_rcnn-2_4.ckpt"):
        assert (alone.config.output_dir / name).read_bytes() == (folder / name).read_bytes()


def test_a_resumed_run_logs_each_epoch_once(stub_trainer):
    calls = []

    def validate():
        calls.append(1)
        return dict.fromkeys(LOSSES, float(len(calls)))

    assert stub_trainer(validate=validate, epoch_size=1).run() == 0
    trainer = stub_trainer(validate=validate, resume=True)
    assert trainer.run() == 0
    found = validations(trainer.config.output_dir / "metrics.jsonl")
    assert {e: v["val_total_loss"] for e, v in found.items()} == {1: 1.0, 2: 2.0}
    assert load_checkpoint(trainer.config.output_dir / "checkpoints/mask_rcnn-2_4.ckpt")["weight"].shape == (3,)
