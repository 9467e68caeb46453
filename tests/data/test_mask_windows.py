"""Crops of pixels: what the canvas shows around an object, each cell a pixel's, or the share of some."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from src.data.fields.masks import MaskField
from src.data.loader import TrainLoader
from src.data.mindrecord import ensure_mindrecord
from src.data.transforms import View, mask_window, to_bitmap, window_places
from src.runtime.newer import zip_equal

VIEWS = {
    "as it is": View((0, 0, 90, 60), (60, 90)),
    "smaller": View((0, 0, 90, 60), (37, 55)),
    "larger, mirrored": View((0, 0, 90, 60), (96, 144), flip=True),
    "a part": View((20, 10, 70, 50), (80, 100)),
    "a part, mirrored, further right": View((20, 10, 70, 50), (61, 77), flip=True, left=13),
    "beyond the image": View((-30, -20, 130, 100), (60, 80)),
}
OUTLINES = {
    "triangle": [[12.3, 8.1, 61.0, 20.7, 30.2, 52.9]],
    "two": [[5.0, 5.0, 25.0, 5.0, 25.0, 25.0, 5.0, 25.0], [40.2, 30.1, 80.9, 33.3, 60.0, 58.0]],
    "past every edge": [[-20.0, 30.0, 45.0, -15.0, 120.0, 30.0, 45.0, 80.0]],
    "a stray of two points": [[30.0, 20.0, 60.0, 20.0, 60.0, 40.0], [1.0, 1.0, 89.0, 59.0]],
}


def shown(bitmap, view):
    """The independent route: the window cut, resized by OpenCV to the nearest pixel, mirrored: as mmdetection's and
    Detectron2's pipelines do it to bitmaps."""
    x1, y1, x2, y2 = view.window
    height, width = bitmap.shape
    around = 200
    wide = np.pad(bitmap, around)
    part = wide[y1 + around : y2 + around, x1 + around : x2 + around]
    out = cv2.resize(part, view.size[::-1], interpolation=cv2.INTER_NEAREST)
    return out[:, ::-1] if view.flip else out


@pytest.mark.parametrize("as_rle", [False, True], ids=["polygons", "rle"])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("outline", OUTLINES.values(), ids=OUTLINES)
def test_cells_are_the_pixels_of_the_canvas(outline, view, as_rle):
    bitmap = to_bitmap(outline, 60, 90)
    segmentation = rle.encode(np.asfortranarray(bitmap)) if as_rle else outline
    expected = np.pad(shown(bitmap, view), 200, mode="edge")
    x, y, w, h = cv2.boundingRect(shown(bitmap, view))
    box = np.array([x + view.left + 0.3, y + 0.2, x + view.left + w - 0.4, y + h], np.float32)
    size = 150
    window = mask_window(segmentation, box, view, 60, 90, size)
    (left, top), cell = window_places(box, size)
    assert cell.tolist() == [1, 1] and left == x + view.left - 1 and top == y - 1
    wanted = expected[top + 200 :, left - view.left + 200 :][:size, :size]
    np.testing.assert_array_equal(window[: wanted.shape[0], : wanted.shape[1]], wanted * np.uint8(255))
    assert window[1 : h + 1, 1 : w + 1].any()


def test_cells_of_some_pixels_are_their_shares():
    bitmap = np.zeros((60, 90), np.uint8)
    bitmap[10:31, 20:51] = np.random.default_rng(0).integers(0, 2, (21, 31))
    box, view = np.array([20, 10, 51, 31], np.float32), VIEWS["as it is"]
    window = mask_window(rle.encode(np.asfortranarray(bitmap)), box, view, 60, 90, 12)
    (left, top), (across, down) = window_places(box, 12)
    # 33 and 23 pixels with the ring
    assert (left, top, across, down) == (19, 9, 3, 2)
    part = bitmap[top : top + 24, left : left + 36].reshape(12, 2, 12, 3)
    np.testing.assert_allclose(window, part.mean((1, 3)) * 255, atol=0.5)


def painted(layer, i, shape):
    """Which pixels a layer paints for object i."""
    canvas = np.zeros((*shape, 3), np.uint8)
    layer(canvas, i, (255, 255, 255), 1, 1.0)
    return canvas.any(2)


def test_training_reads_and_draws_them(shapes_config):
    config, usual = (
        shapes_config(train_cfg__rcnn__mask_crop=crop, mask_crop_size=size, flip_ratio=0.5)
        for crop, size in (("pixels", 260), ("box", 112))
    )
    folder = ensure_mindrecord(config, "train", training=True)
    compared = 0
    for batch, other in zip_equal(TrainLoader(config, folder).epoch(0), TrainLoader(usual, folder).epoch(0)):
        np.testing.assert_array_equal(batch["gt_boxes"], other["gt_boxes"])
        shape = batch["image"].shape[2:]
        for i, valid in enumerate(batch["gt_valid"]):
            got, wanted = (
                MaskField(c).drawn(b["gt_masks"][i][valid], b["gt_boxes"][i][valid], shape)
                for c, b in ((config, batch), (usual, other))
            )
            for row in range(valid.sum()):
                here, there = painted(got, row, shape), painted(wanted, row, shape)
                # both round the outline, one to a pixel, the other to a 112th of its box
                rim = cv2.morphologyEx(there.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0
                # a notch narrower than a pixel closes in one of them
                assert ((here != there) & ~rim).sum() <= 2
                compared += 1
    assert compared > 20
