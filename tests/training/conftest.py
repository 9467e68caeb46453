"""A training whose network is a stub: the loop, its files and its ends, in milliseconds."""

import types

import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from src.training import loop
from tests.training.names import LOSS_NAMES


class Detector(nn.Cell):
    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor(np.ones(3, np.float32)), name="weight")


class Step:
    """Adds rate * (1 + the batch's id) to the weights; `losses`: the total loss by step of the whole training, or 1."""

    checked, average = False, None

    def __init__(self, detector, rates, losses):
        self.detector, self.rates, self.losses = detector, rates, losses
        self.count = Parameter(Tensor(np.zeros(1, np.int32)), name="global_step")

    def get_parameters(self):
        return [self.count, *self.detector.get_parameters()]

    def compile(self, *inputs):
        """There is no graph."""

    def __call__(self, *inputs):
        n = int(self.count.asnumpy()[0])
        moved = self.detector.weight.asnumpy() + self.rates[n] * (1 + inputs[0].asnumpy().sum())
        self.detector.weight.set_data(Tensor(moved.astype(np.float32)))
        self.count.set_data(Tensor(np.array([n + 1], np.int32)))
        total = self.losses.get(n, 1.0)
        row = np.array([total] + [total / 5] * (len(LOSS_NAMES) - 1), np.float32)
        return Tensor(row), Tensor(np.array([0.0, 1.0], np.float32))


class Loader:
    transform = None

    def __init__(self, steps):
        self.steps = steps

    def __len__(self):
        return self.steps

    def epoch(self, epoch, start=0):
        for i in range(start, self.steps):
            names = ("image", "image_size", "gt_boxes", "gt_labels", "gt_valid", "gt_masks", "ignore_boxes")
            batch = dict.fromkeys(names, np.zeros(1, np.float32))
            yield batch | {
                "image": np.full(1, i, np.float32),
                "image_id": np.array([100 * epoch + i]),
                "occurrence": np.zeros(1, int),
            }


@pytest.fixture
def stub_trainer(shapes_config, monkeypatch):
    """Makes a Trainer of a stub network: 4 steps an epoch, 2 epochs; keywords of the config follow."""

    def make(losses=None, evaluate=None, resume=False, position=None, validate=None, steps=4, **overrides):
        keys = {"epoch_size": 2, "run_eval": evaluate is not None, "warmup_step": 0, **overrides}
        config = shapes_config(**keys)
        detector = Detector()
        monkeypatch.setattr(loop, "build_step", lambda c, n, rates, r: Step(detector, rates, losses or {}))
        loss = types.SimpleNamespace(detector=detector, names=LOSS_NAMES)
        return loop.Trainer(config, loss, Loader(steps), evaluate, resume=resume, position=position, validate=validate)

    return make
