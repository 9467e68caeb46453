"""What MobileNetV3 has that the other backbones don't; that it equals torchvision's: tests/test_reference.py."""

import numpy as np
import pytest
from mindspore import Tensor

from src.models.backbones.mobilenet_v3 import SqueezeExcite, to_eights


def test_the_canvas_beyond_the_picture_thins_no_mean():
    """A canvas of two cells of 32 pixels, of which the picture takes the left one, against that one alone."""
    cell = SqueezeExcite(16, 8, stride=16)
    x = np.random.default_rng(0).normal(size=(1, 16, 2, 4)).astype(np.float32)
    wide = cell(Tensor(x), Tensor(np.array([[[[1, 0]]]], np.float32))).asnumpy()
    alone = cell(Tensor(x[..., :2].copy()), Tensor(np.ones((1, 1, 1, 1), np.float32))).asnumpy()
    # the same float32 sums, in another order
    np.testing.assert_allclose(wide[..., :2], alone, rtol=1e-5)


def test_a_batch_s_empty_canvas_stays_finite():
    cell = SqueezeExcite(16, 8, stride=32)
    out = cell(Tensor(np.ones((1, 16, 1, 2), np.float32)), Tensor(np.zeros((1, 1, 1, 2), np.float32)))
    assert np.isfinite(out.asnumpy()).all()


@pytest.mark.parametrize(("channels", "wanted"), [(18, 24), (30, 32), (60, 64), (120, 120), (168, 168), (240, 240)])
def test_squeezed_channels(channels, wanted):
    """The quarters of 72, 120, 240, ... channels as torchvision's checkpoints have them."""
    assert to_eights(channels) == wanted
