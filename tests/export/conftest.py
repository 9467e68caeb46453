"""A small detector whose random weights detect something, and its export."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.models.build import build_detector

SMALL = {"backbone__width_multiplier": 0.25}


def spread(detector, seed=0):
    """Weights of some size everywhere: scores and boxes that differ, batch norms that do something."""
    random = np.random.Generator(np.random.PCG64(seed))
    for p in detector.get_parameters():
        name = p.name.rsplit(".", 1)[-1]
        if name == "moving_variance":
            value = random.uniform(0.5, 1.5, p.shape)
        elif name == "gamma":
            value = random.normal(1.0, 0.1, p.shape)
        elif name in ("beta", "moving_mean"):
            value = random.normal(0.0, 0.1, p.shape)
        elif p.name.endswith(("cls.weight", "reg.weight")):
            value = random.normal(0.0, 0.04, p.shape)
        else:
            continue
        p.set_data(Tensor(value.astype(np.float32)))
    return detector


@pytest.fixture
def small_config(shapes_config):
    """Makes the shapes config with the smallest backbone; without a threshold, so that every image has detections."""

    def make(**overrides):
        return shapes_config(**{"test_cfg__rcnn__score_thr": 0.0, "test_batch_size": 1, **SMALL, **overrides})

    return make


@pytest.fixture
def make_detector():
    ms.set_context(mode=ms.GRAPH_MODE)

    def make(config):
        ms.set_seed(1)
        return spread(build_detector(config)).set_train(False)

    return make
