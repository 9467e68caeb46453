"""The learning rate of each step against values worked out by hand."""

import numpy as np
import pytest

from src.config import Config, load_config
from src.training.lr_schedule import describe_rates, learning_rates


@pytest.fixture
def config():
    """4 epochs, lr 0.1 as it stands, no warm-up."""
    c = Config()
    c.lr, c.base_batch_size, c.epoch_size, c.lr_steps, c.warmup_step = 0.1, 0, 4, [2, 3], 0
    return c


def close(got, expected):
    assert got.dtype == np.float32
    # float32 rounding
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_steps(config):
    close(learning_rates(config, 3), [0.1] * 6 + [0.01] * 3 + [0.001] * 3)


def test_no_steps(config):
    config.lr_steps = []
    close(learning_rates(config, 3), [0.1] * 12)


def test_steps_past_the_end(config):
    config.lr_steps = [2, 4, 9]
    close(learning_rates(config, 1), [0.1, 0.1, 0.01, 0.01])


def test_warm_up(config):
    config.warmup_step, config.warmup_ratio, config.lr_steps = 4, 0.2, []
    close(learning_rates(config, 2), [0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.1, 0.1])


def test_warm_up_as_a_share(config):
    config.warmup_step, config.warmup_share, config.warmup_ratio, config.lr_steps = 500, 0.5, 0.2, []
    close(learning_rates(config, 2), [0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.1, 0.1])
    assert "warmup_step" not in describe_rates(config, learning_rates(config, 2), 2)


def test_warm_up_over_a_step(config):
    config.warmup_step, config.warmup_ratio, config.lr_steps = 4, 0.2, [1]
    close(learning_rates(config, 2)[:6], [0.02, 0.04, 0.006, 0.008, 0.01, 0.01])


def test_warm_up_longer_than_the_training(config):
    config.warmup_step, config.warmup_ratio, config.lr_steps = 8, 0.0, []
    close(learning_rates(config, 1), [0, 0.0125, 0.025, 0.0375])


def test_cosine(config):
    config.lr_type = "cosine"
    half = np.sqrt(0.5)
    expected = [0.1, 0.05 * (1 + half), 0.05, 0.05 * (1 - half)]
    close(learning_rates(config, 2)[::2], expected)
    config.min_lr = 0.02
    close(learning_rates(config, 2)[::2], [0.1, 0.02 + 0.04 * (1 + half), 0.06, 0.02 + 0.04 * (1 - half)])


def test_least_rate(config):
    config.min_lr = 0.005
    close(learning_rates(config, 1), [0.1, 0.1, 0.01, 0.005])


@pytest.mark.parametrize(
    ("batch_size", "ranks", "base", "scaled"),
    [(2, 1, 16, 0.0125), (2, 8, 16, 0.1), (4, 8, 16, 0.2), (2, 8, 0, 0.1)],
)
def test_linear_scaling(config, batch_size, ranks, base, scaled):
    config.batch_size, config.base_batch_size = batch_size, base
    close(learning_rates(config, 3, ranks)[:1], [scaled])


def test_published_recipe():
    """lr 0.02 for 8 devices of 2 images, warm-up of 500 steps from a third, divided after epochs 8 and 11 of 12."""
    rates = learning_rates(Config(), 7330, ranks=8)
    assert len(rates) == 12 * 7330
    close(rates[[0, 250, 500, 7330 * 8 - 1]], [0.02 / 3, 0.02 * 2 / 3, 0.02, 0.02])
    close(rates[[7330 * 8, 7330 * 11 - 1, 7330 * 11, -1]], [0.002, 0.002, 0.0002, 0.0002])


def told(steps=10, **overrides):
    config = load_config("configs/mask_rcnn_r50_fpn.yaml", overrides)
    return describe_rates(config, learning_rates(config, steps), steps)


def test_the_rates_of_a_run_are_told():
    line = told(epoch_size=2, warmup_step=4, lr_steps=[1], lr=0.16, batch_size=2)
    assert "learning rate 0.02 (0.16 for 16 images a step, here 2)" in line
    assert "0.00667 at the first step, 0.02 at most, 0.002 at the last of 20" in line
    assert "never" not in line


def test_a_schedule_that_the_run_never_reaches_is_told():
    assert "warmup_step 500 is longer than the run" in told(epoch_size=2)
    assert "lr_steps 8, 11 come after its 3 epochs" in told(epoch_size=3, warmup_step=0)
    assert "lr_steps" not in told(epoch_size=3, warmup_step=0, lr_type="cosine")
