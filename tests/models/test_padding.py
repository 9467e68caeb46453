"""What pads a batch never touches a loss, a gradient or a result."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from benchmarks.reference import ROOT
from benchmarks.synthetic import synthetic_batch
from src.config import load_config
from src.models.build import build_detector, build_loss
from src.runtime.newer import zip_equal
from src.training.loop import step_inputs
from src.training.step import SamplerKeys
from tests.reference import rpn_padded


def small_config(**overrides):
    base = {
        "img_height": 128,
        "img_width": 192,
        "batch_size": 2,
        "backbone.norm_eval": True,
        "test_cfg.rcnn.score_thr": 0.0,
        "max_instance_count": 8,
        "backbone.width_multiplier": 0.25,
    }
    return load_config("configs/shapes.yaml", base | overrides)


class LossAndGradients(nn.Cell):
    def __init__(self, loss):
        super().__init__(auto_prefix=False)
        self.loss, self.weights = loss, ms.ParameterTuple(loss.trainable_params())
        self.grad = ops.GradOperation(get_by_list=True, sens_param=True)
        self.sens = Tensor(np.eye(1, len(loss.names), dtype=np.float32)[0])

    def construct(self, *batch):
        return self.loss(*batch), self.grad(self.loss, self.weights)(*batch, self.sens)


def build(config):
    ms.set_seed(3)
    detector = build_detector(config)
    return detector, LossAndGradients(build_loss(config, detector)).set_train()


def losses_and_norms(net, config, batch):
    keys = SamplerKeys(config)(0, batch["image_id"])
    losses, grads = net(*step_inputs(batch, keys))
    return losses.asnumpy(), np.array([np.linalg.norm(g.asnumpy().astype(np.float64)) for g in grads])


@pytest.fixture(scope="module")
def mode(request):
    """Graphs, which take most of the time, are compiled in the full run alone."""
    ms.set_context(mode=ms.GRAPH_MODE if request.config.getoption("--full") else ms.PYNATIVE_MODE)


@pytest.fixture(scope="module")
def trained(mode):
    config = small_config()
    return config, *build(config)


def test_padded_ground_truth_changes_no_loss_and_no_gradient(trained):
    config, _, net = trained
    clean = synthetic_batch(config, objects=3)
    dirty = {k: v.copy() for k, v in clean.items()}
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 80, (2, 5, 2))
    dirty["gt_boxes"][:, 3:] = np.concatenate([corner, corner + rng.uniform(5, 60, (2, 5, 2))], -1)
    dirty["gt_labels"][:, 3:] = 2
    dirty["gt_masks"][:, 3:] = 255
    a, b = losses_and_norms(net, config, clean), losses_and_norms(net, config, dirty)
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])


@pytest.mark.full
def test_more_padding_changes_nothing_but_rounding(trained):
    config, detector, net = trained
    wide = small_config(max_instance_count=20)
    wide_net = LossAndGradients(build_loss(wide, detector)).set_train()
    a = losses_and_norms(net, config, synthetic_batch(config, objects=3))
    b = losses_and_norms(wide_net, wide, synthetic_batch(wide, objects=3))
    # the same rows in arrays of another length: float32 sums may be taken in another order
    np.testing.assert_allclose(a[0], b[0], rtol=1e-5)
    np.testing.assert_allclose(a[1], b[1], rtol=1e-4, atol=1e-6)


def test_padded_ground_truth_has_real_rows_to_lose(trained):
    """The same change in a valid row does change the losses: the test above can fail."""
    config, _, net = trained
    clean = synthetic_batch(config, objects=3)
    moved = {k: v.copy() for k, v in clean.items()}
    moved["gt_boxes"][:, 2] = [10, 10, 90, 90]
    assert not np.array_equal(losses_and_norms(net, config, clean)[0], losses_and_norms(net, config, moved)[0])


def test_image_without_objects_trains_only_background(trained):
    config, _, net = trained
    losses, norms = losses_and_norms(net, config, synthetic_batch(config, objects=0))
    named = dict(zip_equal(net.loss.names, losses))
    assert np.isfinite(losses).all() and np.isfinite(norms).all()
    assert named["rpn_reg_loss"] == named["rcnn_reg_loss"] == named["rcnn_mask_loss"] == 0
    assert named["rpn_cls_loss"] > 0 and named["rcnn_cls_loss"] > 0


def test_crowd_regions_make_no_negatives(trained):
    """A crowd over the whole image leaves nothing but the objects' own boxes to train on."""
    config, _, net = trained
    batch = synthetic_batch(config, objects=0)
    batch["ignore_boxes"][:, 0] = [0, 0, config.img_width, config.img_height]
    losses, _ = losses_and_norms(net, config, batch)
    named = dict(zip_equal(net.loss.names, losses))
    assert named["rcnn_cls_loss"] == 0


def detect(detector, images, sizes):
    detector.set_train(False)
    return [x.asnumpy() for x in detector(Tensor(images), Tensor(sizes))]


@pytest.mark.usefixtures("operator_by_operator")
def test_detections_do_not_depend_on_the_batch(trained):
    config, detector, _ = trained
    images = np.random.default_rng(1).standard_normal((4, 3, 128, 192), np.float32)
    sizes = np.array([[128, 192], [100, 192], [128, 130], [64, 64]], np.float32)
    for i, (h, w) in enumerate(sizes.astype(int)):
        images[i, :, h:], images[i, :, :, w:] = 0, 0
    together = detect(detector, images, sizes)
    assert together[3].sum(1).min() > 0
    for i in range(4):
        alone = detect(detector, images[i : i + 1], sizes[i : i + 1])
        for a, b in zip_equal(together, alone):
            np.testing.assert_allclose(a[i], b[0], atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("operator_by_operator")
def test_no_detection_lies_in_the_padded_border(trained):
    config, detector, _ = trained
    images = np.random.default_rng(2).standard_normal((2, 3, 128, 192), np.float32)
    sizes = np.array([[70, 192], [128, 90]], np.float32)
    boxes, _, _, valid, _ = detect(detector, images, sizes)
    for i, (h, w) in enumerate(sizes):
        inside = boxes[i][valid[i]]
        assert len(inside) and inside.min() >= 0
        assert inside[:, [0, 2]].max() <= w and inside[:, [1, 3]].max() <= h


class FirstStage(nn.Cell):
    def __init__(self, rpn, loss):
        super().__init__(auto_prefix=False)
        self.rpn, self.loss = rpn, loss
        self.valid, self.labels = Tensor(np.ones((2, 5), bool)), Tensor(np.ones((2, 5), np.int32))
        self.ignored = Tensor(np.zeros((2, 8, 4), np.float32))

    def construct(self, sizes, boxes, keys, *maps):
        found = self.rpn(maps, sizes)
        truth = {"boxes": boxes, "valid": self.valid, "labels": self.labels, "ignore": self.ignored}
        return found["boxes"], found["valid"], self.loss(maps, sizes, truth, keys)[1]


def test_pictures_smaller_than_their_canvas_have_torchvisions_proposals_and_losses():
    """Golden values by tests/reference/rpn_padded.py: anchors of what pads a picture to multiples of 32 count."""
    golden = np.load(ROOT / "tests/reference/tv_rpn_padded.npz")
    height, width = rpn_padded.CANVAS
    sides = {"img_height": height, "img_width": width, "resize": "canvas", "max_instance_count": 5}
    small = {"neck.fpn.out_channels": rpn_padded.CHANNELS, "rpn.feat_channels": rpn_padded.CHANNELS}
    counts = {"nms_pre": 300, "max_per_img": 100}
    kept = {f"{name}.{k}": v for name in ("train_cfg.rpn_proposal", "test_cfg.rpn") for k, v in counts.items()}
    every = {"train_cfg.rpn.sampler.num": 100_000, "backbone.type": "mobilenet_v1", "backbone.width_multiplier": 0.25}
    config = load_config(ROOT / "configs/torchvision_mask_rcnn_r50_fpn.yaml", sides | small | kept | every)
    ms.set_context(mode=ms.GRAPH_MODE)
    detector = build_detector(config)
    rpn_loss = build_loss(config, detector).rpn_loss
    head = detector.rpn.head
    cells = {"conv": head.convs[0], "cls": head.cls, "reg": head.reg}
    for name, value in rpn_padded.weights().items():
        cell, part = name.split(".")
        getattr(cells[cell], part).set_data(Tensor(value))
    keys = np.full((2, detector.rpn.anchors.shape[0]), 0.5, np.float32)
    inputs = [np.array(rpn_padded.SIZES, np.float32), rpn_padded.boxes(), keys, *rpn_padded.features()]
    boxes, valid, losses = FirstStage(detector.set_train(False).rpn, rpn_loss)(*map(Tensor, inputs))
    for i in range(2):
        # float32 sums of other order, of coordinates up to 170
        np.testing.assert_allclose(boxes.asnumpy()[i][valid.asnumpy()[i]], golden[f"proposals_{i}"], atol=2e-4)
    wanted = [golden["loss_objectness"], golden["loss_rpn_box_reg"]]
    np.testing.assert_allclose([x.asnumpy() for x in losses], wanted, rtol=1e-5)
