"""An upright picture's canvas: the detector for both orientations gives what one made for that canvas gives."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from benchmarks.synthetic import synthetic_batch
from src.config import load_config
from src.models.build import build_detector, build_loss
from src.runtime.newer import zip_equal
from src.training.loop import step_inputs
from src.training.step import SamplerKeys

ROOT = Path(__file__).parents[2]
TINY = {
    "img_height": 96,
    "img_width": 160,
    "backbone.width_multiplier": 0.25,
    "batch_size": 1,
    "rpn.anchor_generator.grid_strides": True,
}


def built(**overrides):
    config = load_config(ROOT / "configs/shapes.yaml", TINY | overrides)
    detector = build_detector(config)
    return config, detector, build_loss(config, detector)


class WithGradient(nn.Cell):
    """Losses, and the gradient of their sum by the RPN's hidden convolution."""

    def __init__(self, loss):
        super().__init__(auto_prefix=False)
        self.loss, self.weights = loss, ms.ParameterTuple([loss.detector.rpn.head.conv.weight])
        self.grad = ops.GradOperation(get_by_list=True)

    def construct(self, *batch):
        return self.loss(*batch), self.grad(self.loss, self.weights)(*batch)[0]


@pytest.fixture(scope="module")
def detectors():
    turning = built(resize="short_side")
    fixed = built(img_height=160, img_width=96)
    ms.load_param_into_net(fixed[1], {p.name: p.clone() for p in turning[1].get_parameters()})
    return turning, fixed


def test_a_side_that_no_last_stride_divides(detectors):
    """96 and 160 pixels are 1.5 and 2.5 strides of the last level: rows and columns round up."""
    config, detector, _ = detectors[0]
    cells = [(-(-96 // s)) * (-(-160 // s)) for s in (4, 8, 16, 32, 64)]
    assert detector.rpn.anchors.shape[0] == detector.rpn.turned_anchors.shape[0] == 3 * sum(cells)


@pytest.mark.usefixtures("operator_by_operator")
def test_detections_are_those_of_the_canvas(detectors):
    (_, turning, _), (config, fixed, _) = detectors
    batch = synthetic_batch(config, objects=3)
    inputs = [Tensor(batch[k]) for k in ("image", "image_size")]
    turning.set_train(False)
    fixed.set_train(False)
    for a, b in zip_equal(turning(*inputs), fixed(*inputs)):
        np.testing.assert_array_equal(a.asnumpy(), b.asnumpy())


@pytest.mark.full
def test_losses_and_gradients_are_those_of_the_canvas(detectors):
    (_, _, turning_loss), (config, _, fixed_loss) = detectors
    batch = synthetic_batch(config, objects=3)
    full = step_inputs(batch, SamplerKeys(config)(0, batch["image_id"]))
    a, b = WithGradient(turning_loss)(*full), WithGradient(fixed_loss)(*full)
    np.testing.assert_array_equal(a[0].asnumpy(), b[0].asnumpy())
    np.testing.assert_array_equal(a[1].asnumpy(), b[1].asnumpy())
    assert np.isfinite(a[0].asnumpy()).all()


@pytest.mark.full
def test_the_predictor_takes_pictures_of_both_orientations(tmp_path):
    """Mixed in one call and in batches, each as alone."""
    from src import Predictor
    from src.checkpoints.files import save_checkpoint

    config, detector, _ = built(resize="short_side", test_batch_size=2)
    save_checkpoint({p.name: p.asnumpy() for p in detector.get_parameters()}, tmp_path / "a.ckpt")
    predictor = Predictor(config, tmp_path / "a.ckpt", score_thr=0.0)
    random = np.random.default_rng(1)
    images = [random.integers(0, 256, (*s, 3), np.uint8) for s in ((60, 90), (90, 60), (70, 90), (95, 60), (80, 60))]
    together = predictor(images)
    for image, found in zip_equal(images, together):
        assert (found.height, found.width) == image.shape[:2]
        alone = predictor(image)
        np.testing.assert_array_equal(found.boxes, alone.boxes)
        np.testing.assert_array_equal(found.scores, alone.scores)
        assert len(found)
