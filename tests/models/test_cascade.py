"""The cascade against its definition: stages called one by one, and losses that must be multiples of one stage's."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from benchmarks.synthetic import synthetic_batch
from src.config import load_config
from src.models.build import build_detector, build_loss
from src.runtime.newer import zip_equal
from src.training.loop import step_inputs
from src.training.step import SamplerKeys

pytestmark = pytest.mark.usefixtures("operator_by_operator")

SMALL = {
    "img_height": 128,
    "img_width": 192,
    "batch_size": 2,
    "backbone.norm_eval": True,
    "backbone.width_multiplier": 0.25,
    "max_instance_count": 8,
    "test_cfg.rpn.max_per_img": 50,
    "train_cfg.rpn_proposal.max_per_img": 50,
    "test_cfg.rcnn.score_thr": 0.0,
    "train_cfg.rcnn.mask_buckets": 1,
}


def config_of(**overrides):
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    return load_config("configs/shapes_cascade.yaml", SMALL | named)


def build(config):
    ms.set_seed(3)
    detector = build_detector(config).set_train(False)
    r = np.random.default_rng(0)
    for p in detector.get_parameters():
        if ".reg." in p.name or ".cls." in p.name:  # else all classes score alike and no box moves
            p.set_data(Tensor(r.normal(0, 0.3, p.shape).astype(np.float32)))
    return detector


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def decode(boxes, deltas, stds, height, width):
    d = deltas * np.asarray(stds)
    size = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + size / 2 + d[:, :2] * size
    size = np.exp(np.minimum(d[:, 2:], np.log(1 / 0.016))) * size
    out = np.concatenate([centre - size / 2, centre + size / 2], 1)
    return np.clip(out, 0, [width, height, width, height])


@pytest.mark.parametrize(("average", "agnostic"), [("logits", True), ("probabilities", False)])
def test_stages_refine_boxes_and_average_scores(average, agnostic):
    config = config_of(cascade__average_scores=average, bbox_head__reg_class_agnostic=agnostic)
    detector = build(config)
    r = np.random.default_rng(1)
    features = tuple(Tensor(r.normal(0, 1, (1, 64, 128 // s, 192 // s)).astype(np.float32)) for s in (4, 8, 16, 32, 64))
    xy = r.uniform(0, 80, (30, 2))
    boxes = np.concatenate([xy, xy + r.uniform(8, 60, (30, 2))], 1).astype(np.float32)
    given = Tensor(boxes[None]), Tensor(np.ones((1, 30), bool)), Tensor(np.array([[120, 180]], np.float32))
    heads = detector.roi_heads
    classified = heads.classify(features, {"boxes": given[0], "valid": given[1]}, given[2])
    scores, deltas, references = (x.asnumpy()[0] for x in classified)

    each, current = [], boxes
    for stage, head in enumerate(heads.boxes):
        rois = heads.extractor(features, Tensor(current[None].astype(np.float32)), given[1])
        logits, moves = (x.asnumpy() for x in head(rois))
        each.append(softmax(logits) if average == "probabilities" else logits)
        if stage < 2:
            own = moves if agnostic else moves.reshape(30, -1, 4)[np.arange(30), logits[:, 1:].argmax(1) + 1]
            current = decode(current, own, config.cascade.target_stds[stage], 120, 180)
    expected = np.mean(each, 0) if average == "probabilities" else softmax(np.mean(each, 0))
    # three rounds of float32 exponentials and sums
    np.testing.assert_allclose(references, current, atol=1e-2)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    np.testing.assert_allclose(deltas, moves, atol=1e-3)
    assert np.abs(references - boxes).max() > 1


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_masks_are_the_heads_average(average):
    detector = build(config_of(cascade__average_masks=average))
    r = np.random.default_rng(2)
    features = tuple(Tensor(r.normal(0, 1, (1, 64, 128 // s, 192 // s)).astype(np.float32)) for s in (4, 8, 16, 32, 64))
    boxes = Tensor(np.array([[[10, 10, 60, 50], [20, 5, 90, 100]]], np.float32))
    labels, valid = Tensor(np.array([[1, 3]], np.int32)), Tensor(np.ones((1, 2), bool))
    (branch,) = detector.roi_heads.more
    got = branch(features, {"boxes": boxes, "labels": labels, "valid": valid}).asnumpy()[0]
    rois = branch.extractor(features, boxes, valid)
    logits = np.stack([head(rois, labels[0]).asnumpy() for head in branch.heads])
    sigmoid = 1 / (1 + np.exp(-logits))
    expected = sigmoid.mean(0) if average == "probabilities" else 1 / (1 + np.exp(-logits.mean(0)))
    assert np.abs(sigmoid.max(0) - sigmoid.min(0)).max() > 0.01  # heads differ, so that an average shows
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("resample", [True, False])
def test_equal_stages_that_move_nothing_lose_what_one_stage_loses(resample):
    """With one IoU for all stages, no deltas, and samplers that take all there is, every stage sees the same boxes."""
    common = {"train_cfg__rcnn__sampler__num": 1000, "train_cfg__rcnn__sampler__pos_fraction": 1.0}
    common |= {"detector": "cascade_rcnn", "cascade__resample": resample}
    losses = {}
    for stages in (1, 3):
        config = config_of(
            cascade__pos_iou_thr=[0.1] * stages,
            cascade__target_stds=[[0.1, 0.1, 0.2, 0.2]] * stages,
            cascade__loss_weights=[1.0] * stages,
            **common,
        )
        detector = build(config)
        values = {p.name: p for p in detector.get_parameters()}
        for name, p in values.items():
            if ".reg." in name:
                p.set_data(Tensor(np.zeros(p.shape, np.float32)))
            elif name.startswith("bbox_heads"):
                p.set_data(Tensor(values["bbox_heads.0." + name.split(".", 2)[2]].asnumpy()))
        batch = synthetic_batch(config, 4)
        loss = build_loss(config, detector).set_train()
        out = loss(*step_inputs(batch, SamplerKeys(config)(0, batch["image_id"])))
        losses[stages] = dict(zip_equal(loss.names, out.asnumpy()))
    for name in ("rcnn_cls_loss", "rcnn_reg_loss"):
        # sums over other arrangements of the same rows
        assert losses[3][name] == pytest.approx(3 * losses[1][name], rel=1e-4)
    assert losses[3]["rpn_cls_loss"] == pytest.approx(losses[1]["rpn_cls_loss"], rel=1e-6)
    assert losses[1]["rcnn_reg_loss"] > 0
