"""A small detector whose random weights detect something, and its export."""

import mindspore as ms
import pytest

from benchmarks.exports import spread
from src.models.build import build_detector

SMALL = {"backbone__width_multiplier": 0.25}


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
