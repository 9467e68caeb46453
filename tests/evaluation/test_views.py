"""Pictures at several sizes and mirrored: merged by NMS in the picture's own pixels, masks averaged."""

import dataclasses

import cv2
import numpy as np
import pytest
from mindspore import Tensor, context

from src import Predictor
from src.checkpoints.files import load_detector
from src.config import ConfigError, at_scales, load_config
from src.data.transforms import canvas_shown, prepare_image
from src.evaluation.inference import Evaluator
from src.evaluation.views import Views
from src.models.build import build_detector
from src.runtime.newer import zip_equal

SCALES = [1.0, 1.5]


@pytest.fixture(scope="module")
def mode(request):
    """Of all detectors here: a graph of each canvas takes most of the time, and is had in the full run alone."""
    return "graph" if request.config.getoption("--full") else "pynative"


@pytest.fixture(scope="module")
def config(tiny_model, mode):
    return dataclasses.replace(tiny_model[0], test_scales=SCALES, test_flip=True, mode=mode)


@pytest.fixture(scope="module")
def detectors(config, tiny_model):
    """Of each scale, one of its own."""
    before = context.get_context("mode")
    context.set_context(mode=context.GRAPH_MODE if config.mode == "graph" else context.PYNATIVE_MODE)
    out = []
    for c in at_scales(config):
        detector = build_detector(c).set_train(False)
        load_detector(detector, tiny_model[1])
        out.append(detector)
    yield out
    context.set_context(mode=before)


def test_on_a_canvas_of_its_own_a_picture_has_what_it_has_alone(tiny_model, mode, shapes_root):
    """On a model of that canvas: to the bit."""
    config, checkpoint = dataclasses.replace(tiny_model[0], mode=mode), tiny_model[1]
    picture = cv2.imread(str(min((shapes_root / "val2017").iterdir())))
    narrow = np.ascontiguousarray(picture[:, : picture.shape[1] // 3])
    own = Predictor(dataclasses.replace(config, test_canvas="picture"), checkpoint)([picture, narrow, picture])
    height, width = canvas_shown(*narrow.shape[:2], dataclasses.replace(config, test_canvas="picture"))
    assert (height, width) == (128, 64)
    alone = Predictor(dataclasses.replace(config, img_height=height, img_width=width), checkpoint)(narrow)
    assert len(alone) > 5
    assert own[1].to_dict() == alone.to_dict()
    assert own[0].to_dict() == own[2].to_dict() == Predictor(config, checkpoint)(picture).to_dict()


@pytest.fixture(scope="module")
def views(config, detectors):
    return Views(config, detectors[0])


@pytest.fixture(scope="module")
def scales(config, shapes_root):
    """Two pictures, the second narrower, on each scale's canvas."""
    pictures = [cv2.imread(str(p)) for p in sorted((shapes_root / "val2017").iterdir())[:2]]
    pictures[1] = np.ascontiguousarray(pictures[1][:, : pictures[1].shape[0] // 2])
    out = []
    for c in at_scales(config):
        made = [prepare_image(p, c) for p in pictures]
        out.append((np.stack([image for image, _ in made]), np.array([size for _, size in made], np.float32)))
    assert out[0][1][1, 1] < out[0][0].shape[3]
    return out


def mirror(scale):
    """By pixels, within each picture's place on the canvas."""
    images, sizes = scale[0].copy(), scale[1]
    for image, (_, width) in zip_equal(images, sizes.astype(int)):
        image[:, :, :width] = np.flip(image[:, :, :width], 2)
    return images, sizes


def mirror_boxes(boxes, sizes):
    out = boxes.copy()
    out[..., 0], out[..., 2] = sizes[:, 1:] - boxes[..., 2], sizes[:, 1:] - boxes[..., 0]
    return out


def run(detector, scale):
    return [x.asnumpy() for x in detector(*map(Tensor, scale))]


def suppressed(boxes, scores, labels, threshold, most):
    """Places of the boxes that stay, by the definition of NMS class by class."""
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        across = np.minimum(boxes[i, 2:], boxes[kept, 2:]) - np.maximum(boxes[i, :2], boxes[kept, :2])
        shared = np.maximum(across, 0).prod(1)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        over = shared / (area[i] + area[kept] - shared)
        if not ((over > threshold) & (labels[kept] == labels[i])).any():
            kept.append(i)
    return kept[:most]


def test_one_view_is_the_plain_detector_to_the_bit(tiny_model, views, detectors, scales):
    alone = Views(dataclasses.replace(tiny_model[0], test_scales=[1.0]), detectors[0])
    plain = run(detectors[0], scales[0])
    assert plain[3].sum() > 20
    for got in (alone(scales[:1]), alone.merged(scales[:1])):
        for name, a, b in zip_equal(("boxes", "scores", "labels", "valid", "masks"), got, plain):
            valid = plain[3] if name == "masks" else slice(None)
            assert a.dtype == b.dtype and a[valid].tobytes() == b[valid].tobytes(), name


def test_boxes_of_all_views_are_merged_in_the_first_canvas(config, views, detectors, scales):
    """Against a detector of its own for each scale, on pictures mirrored here, and NMS by its definition."""
    boxes, scores, labels, valid, masks = views(scales)
    parts = []
    for detector, scale in zip_equal(detectors, scales):
        back = np.tile((scales[0][1] / scale[1])[:, None, ::-1], 2)
        for flip in (False, True):
            out = run(detector, mirror(scale) if flip else scale)
            out[0] = (mirror_boxes(out[0], scale[1]) if flip else out[0]) * back
            parts.append(out)
    joined = [np.concatenate([p[k] for p in parts], 1) for k in range(4)]
    own = 0
    for i in range(2):
        b, s, c = (joined[k][i][joined[3][i]] for k in range(3))
        kept = suppressed(b.astype(np.float64), s, c, config.test_cfg.rcnn.iou_threshold, 20)
        assert valid[i].sum() == len(kept) > 5
        np.testing.assert_allclose(boxes[i, : len(kept)], b[kept], atol=1e-3)
        np.testing.assert_allclose(scores[i, : len(kept)], s[kept], atol=1e-6)
        assert labels[i, : len(kept)].tolist() == c[kept].tolist()
        height, width = scales[0][1][i]
        assert (boxes[i] >= -1e-3).all() and (boxes[i] <= [[width + 0.01, height + 0.01] * 2]).all()
        own += len(set(kept) - set(range(int(parts[0][3][i].sum()))))
    assert own > 0  # other views than the first had a say
    assert masks.shape[:2] == (2, 20) and (masks >= 0).all() and (masks <= 1).all()


def test_masks_are_the_means_of_the_views_masks_of_the_merged_boxes(views, detectors, scales):
    boxes, scores, labels, valid, masks = views(scales)
    found = {"scores": Tensor(scores), "labels": Tensor(labels), "valid": Tensor(valid)}
    before = context.get_context("mode")
    context.set_context(mode=context.PYNATIVE_MODE)
    try:
        total = np.zeros(masks.shape, np.float64)
        for detector, scale in zip_equal(detectors, scales):
            here = boxes * np.tile((scale[1] / scales[0][1])[:, None, ::-1], 2)
            for flip in (False, True):
                images, sizes = mirror(scale) if flip else scale
                at = Tensor((mirror_boxes(here, sizes) if flip else here).astype(np.float32))
                own = detector.roi_heads.more[0](detector.features(Tensor(images)), {"boxes": at, **found}).asnumpy()
                total += np.flip(own, -1) if flip else own
    finally:
        context.set_context(mode=before)
    np.testing.assert_allclose(masks[valid], total[valid] / 4, atol=1e-4)


def test_a_mirrored_picture_gives_mirrored_results(views, scales):
    boxes, scores, labels, valid, masks = views(scales)
    mirrored = views([mirror(s) for s in scales])
    np.testing.assert_array_equal(mirrored[3], valid)
    np.testing.assert_allclose(mirrored[1], scores, atol=1e-6)
    np.testing.assert_array_equal(mirrored[2], labels)
    np.testing.assert_allclose(mirrored[0][valid], mirror_boxes(boxes, scales[0][1])[valid], atol=1e-3)
    np.testing.assert_allclose(mirrored[4][valid], np.flip(masks, -1)[valid], atol=1e-4)


def test_evaluation_and_prediction_have_the_same(config, tiny_model, views, detectors, shapes_root, tmp_path):
    """Boxes and masks in the pictures' own pixels."""
    data = {
        "val_dataset": str(shapes_root),
        "train_outputs": str(tmp_path),
        "mindrecord_dir": str(tmp_path / "records"),
    }
    c = dataclasses.replace(config, **data)
    evaluator = Evaluator(c, detectors[0])
    assert evaluator.views is not None
    evaluator.views = views
    evaluator.run(tmp_path / "results.json")
    predictor = Predictor(
        c, tiny_model[1], category_ids={int(k): v for k, v in evaluator.loader.index["category_ids"].items()}
    )
    predictor._several = views
    paths = sorted((shapes_root / "val2017").iterdir())
    own = [r for i, found in zip_equal(evaluator.loader.index["image_ids"], predictor(paths)) for r in found.to_coco(i)]
    assert len(own) > 50 and evaluator.results == own


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"test_scales": "[]"}, ["test_scales is empty"]),
        ({"test_scales": "[1, 2, 1]"}, ["test_scales", "twice"]),
        ({"test_scales": "[0.1]"}, ["test_scales", "64 pixels"]),
        ({"test_flip": "true", "test_cfg.rcnn.nms.type": "soft_nms"}, ["test_flip", "test_cfg.rcnn.nms.type"]),
        ({"test_scales": "[1, 2]", "detector": "keypoint_rcnn"}, ["test_scales", "keypoints"]),
    ],
)
def test_what_cant_be_merged_is_refused(keys, words, refusal):
    with refusal(ConfigError, *words):
        load_config("configs/shapes.yaml", keys)


def test_canvases_are_multiples_of_the_last_stride():
    config = load_config("configs/shapes.yaml", {"test_scales": "[0.7, 1.0]", "img_width": "320", "img_height": "256"})
    sizes = [(c.img_width, c.img_height, c.test_scales) for c in at_scales(config)]
    assert sizes == [(224, 192, [1.0]), (320, 256, [1.0])]
