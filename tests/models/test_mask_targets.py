"""Mask targets against what Detectron2, mmdetection, torchvision, maskrcnn-benchmark and MindSpore's zoo cut."""

import cv2
import numpy as np
import pytest
from mindspore import Tensor
from pycocotools import mask as rle

from benchmarks.reference import crop_masks
from src.models.heads.mask_targets import MaskTargets
from tests.ops.test_roi_align import numpy_roi_align

pytestmark = pytest.mark.usefixtures("operator_by_operator")

SIDE, M = 160, 28


def disc(cx, cy, rx, ry):
    """Polygon of an ellipse (1, 2 N) and its bitmap, as COCO's annotations have them."""
    turn = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    polygon = np.stack([cx + rx * np.cos(turn), cy + ry * np.sin(turn)], 1).ravel()
    return polygon, rle.decode(rle.frPyObjects([polygon.tolist()], SIDE, SIDE))[..., 0]


@pytest.fixture(scope="module")
def objects():
    """Polygons, bitmaps, boxes and RoIs near them."""
    r = np.random.default_rng(0)
    out = []
    for cx, cy, rx, ry in ((60, 70, 40, 50), (90, 80, 60, 30), (50, 40, 22.5, 18), (100, 110, 45, 45)):
        polygon, bitmap = disc(cx, cy, rx, ry)
        box = np.array([cx - rx, cy - ry, cx + rx, cy + ry], np.float32)
        for _ in range(3):
            roi = (box + r.normal(0, 0.1, 4) * np.tile(box[2:] - box[:2], 2)).clip(0, SIDE).astype(np.float32)
            out.append((polygon, bitmap, box, roi))
    return out


def ours(objects, box, binary, size=112, crop="box"):
    bitmaps, boxes, rois = (np.stack([o[i] for o in objects]) for i in (1, 2, 3))
    crops = crop_masks(bitmaps[:, None], boxes[:, None], size, crop)[:, 0]
    index = np.arange(len(objects)).astype(np.int32)
    return MaskTargets(M, box, binary, crop)(*map(Tensor, (crops, index, rois, boxes))).asnumpy()


def roi_aligned(objects, aligned):
    """RoIAlign of the image's bitmap, scale 1, adaptive sampling: torchvision's project_masks_on_boxes (not aligned),
    Detectron2's BitMasks.crop_and_resize and mmdetection's BitmapMasks.crop_and_resize (aligned), before >= 0.5."""
    out = []
    for _, bitmap, _, roi in objects:
        rois, levels = np.concatenate([[0], roi]).astype(np.float32)[None], np.zeros(1, np.int32)
        feature = bitmap[None, None].astype(np.float32)
        out.append(numpy_roi_align([feature], rois, levels, (1,), M, 0, aligned, np.zeros((1, 1, M, M)))[0][0, 0])
    return np.stack(out)


def test_detectron2s_and_mmdetections_are_0_or_1(objects):
    got, soft = ours(objects, "box", True), roi_aligned(objects, aligned=True)
    assert set(np.unique(got)) == {0.0, 1.0}  # so that a perfect mask's loss is 0
    differ = got != (soft >= 0.5)
    # cells that the outline halves: the crop, 112 cells a side, knows it to a fraction of a pixel
    assert (np.abs(soft - 0.5)[differ] < 0.25).all()
    assert differ.mean() < 0.01


def test_torchvisions_are_soft_and_half_a_pixel_beside(objects):
    got, theirs = ours(objects, "shifted", False), roi_aligned(objects, aligned=False)
    assert ((got > 0) & (got < 1)).mean() > 0.05
    # of the smallest object's outline, which the crop resamples
    assert np.abs(got - theirs).mean() < 0.01 < np.abs(ours(objects, "box", False) - theirs).mean()


ROIS = {
    "near": lambda box, r: box + r.normal(0, 0.1, 4) * np.tile(box[2:] - box[:2], 2),
    "far": lambda box, r: box + r.normal(0, 60, 4),
    "whole image": lambda box, r: np.array([0, 0, SIDE, SIDE]),
    "narrower than a pixel": lambda box, r: (
        np.tile(box[:2] + 20 * r.random(2), 2) + np.array([0, 0, 0.3, 40]) * r.random(4)
    ),
    "its box": lambda box, r: box,
}


@pytest.fixture(params=ROIS)
def further(request, objects):
    """The same objects, one that fills the image and one of a pixel, with other RoIs."""
    r = np.random.default_rng(1)
    full, speck = np.ones((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    speck[150, 100] = 1
    edges = [(None, full, np.array([0, 0, SIDE, SIDE])), (None, speck, np.array([100, 150, 101, 151]))]
    out = []
    for polygon, bitmap, box in [*[o[:3] for o in objects[::3]], *edges]:
        roi = ROIS[request.param](box, r).clip(0, SIDE).astype(np.float32)
        low, high = np.minimum(roi[:2], roi[2:]), np.maximum(roi[:2], roi[2:])
        # at the image's end torchvision widens one narrower than a pixel to beyond it, where nothing is
        low = np.minimum(low, SIDE - 1)
        out.append((polygon, bitmap, box.astype(np.float32), np.concatenate([low, high])))
    return out


@pytest.mark.parametrize(("box", "aligned"), [("shifted", False), ("box", True)], ids=["torchvision", "mmdetection"])
def test_of_pixels_they_are_the_others_to_the_last_digit(further, box, aligned):
    theirs = roi_aligned(further, aligned)
    # float32 sums of up to 36 samples of a cell, in another order
    np.testing.assert_allclose(ours(further, box, False, SIDE + 2, "pixels"), theirs, rtol=0, atol=2e-5)
    sure = np.abs(theirs - 0.5) > 2e-5
    assert sure.mean() > 0.9
    got = ours(further, box, True, SIDE + 2, "pixels")
    np.testing.assert_array_equal(got[sure], (theirs >= 0.5)[sure])


def test_of_more_pixels_than_cells_they_are_blurred_a_little(objects):
    theirs = roi_aligned(objects, aligned=False)
    errors = [np.abs(ours(objects, "shifted", False, size, "pixels") - theirs).mean() for size in (28, 56, 112)]
    # cells of 4 and 5 pixels, of 2 and 3, of 1 and 2
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.003 < errors[0] < 0.05


def polygons_rasterised(objects):
    """maskrcnn-benchmark's project_masks_on_boxes: polygons moved and scaled from the box, which ends at its last
    pixel, to M x M cells, and rasterised by pycocotools."""
    out = []
    for polygon, _, _, roi in objects:
        x1, y1, x2, y2 = roi - [0, 0, 1, 1]
        scaled = (polygon.reshape(-1, 2) - [x1, y1]) * M / [x2 - x1, y2 - y1]
        out.append(rle.decode(rle.frPyObjects([scaled.ravel().tolist()], M, M))[..., 0])
    return np.stack(out)


def whole_pixels_resized(objects):
    """The zoo's CropAndResize, bilinear_v2, of the corners' whole pixels, the last one too, then rounded; as
    mmdetection 1.x: imresize(mask[y1 : y1 + h, x1 : x1 + w]), w = max(x2 - x1 + 1, 1)."""
    out = []
    for _, bitmap, _, roi in objects:
        x1, y1, x2, y2 = np.floor(roi - [0, 0, 1, 1]).astype(int)
        w, h = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
        out.append(np.round(cv2.resize(bitmap[y1 : y1 + h, x1 : x1 + w].astype(np.float32), (M, M))))
    return np.stack(out)


@pytest.mark.parametrize(
    ("box", "theirs"), [("last_pixel", polygons_rasterised), ("whole_pixels", whole_pixels_resized)]
)
def test_those_that_cut_otherwise(objects, box, theirs):
    wanted = theirs(objects)
    wrong = {name: (ours(objects, name, True) != wanted).mean() for name in ("shifted", "box", box)}
    # cells of the outline, some 90 of 784, that are halved
    assert wrong[box] < 0.02
    assert wrong[box] == min(wrong.values()) and wrong["shifted"] > 1.3 * wrong[box], wrong


def test_the_box_decides_and_must_be_known(objects):
    assert np.abs(ours(objects, "box", False) - ours(objects, "last_pixel", False)).max() > 0.1
    with pytest.raises(ValueError, match="none of"):
        MaskTargets(M, "aligned")
    with pytest.raises(ValueError, match="neither"):
        MaskTargets(M, crop="polygons")
