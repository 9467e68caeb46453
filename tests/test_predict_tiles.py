"""Large pictures in overlapping parts: each object once, whole, where it is."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from src.inference.predictor import Predictor
from src.inference.tiles import cut_off, merge, windows
from src.runtime.errors import UserError
from src.runtime.newer import zip_equal


@pytest.mark.parametrize(("tile", "overlap"), [(64, 0.0), (64, 0.2), (100, 0.5), (100, 0.9)])
def test_windows_cover_the_picture_and_overlap(tile, overlap):
    for height, width in [(64, 65), (64, 1000), (500, 101), (333, 777), (64, 64), (50, 20)]:
        whole, *parts = windows(height, width, tile, overlap)
        assert whole == (0, 0, width, height)
        assert bool(parts) == (max(height, width) > tile)
        covered = np.zeros((height, width), int)
        for x, y, w, h in parts:
            assert (w, h) == (min(tile, width), min(tile, height))
            covered[y : y + h, x : x + w] += 1
            assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
        assert not parts or covered.min() >= 1
        for starts in ({p[0] for p in parts}, {p[1] for p in parts}):
            for a, b in zip(sorted(starts), sorted(starts)[1:]):
                # a start is rounded to whole pixels
                assert a + tile - b >= int(overlap * tile) - 1
    assert windows(5000, 5000, None, 0.2) == [(0, 0, 5000, 5000)]


def test_edges_that_cut():
    window = (100, 0, 100, 100)  # of a picture of 300 x 100: left and right edge lie inside it
    boxes = np.array([[100, 20, 140, 50], [150, 20, 200, 50], [120, 0, 140, 100], [110, 5, 190, 95]], np.float32)
    assert cut_off(boxes, window, 100, 300).tolist() == [True, True, False, False]
    assert not cut_off(boxes, (0, 0, 300, 100), 100, 300).any()


def test_of_the_same_object_the_best_stays():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [50, 0, 60, 10]], np.float32)
    scores, labels, none = np.array([0.6, 0.9, 0.8, 0.7], np.float32), np.array([1, 1, 2, 1]), np.zeros(4, bool)
    assert merge(boxes, scores, labels, none, 0.5).tolist() == [1, 2, 3]
    assert merge(boxes, scores, labels * 0, none, 0.5).tolist() == [1, 3]
    assert merge(boxes, scores, labels, none, 0.9).tolist() == [1, 2, 3, 0]
    assert merge(boxes[:0], scores[:0], labels[:0], none[:0], 0.5).tolist() == []


def test_half_an_object_goes_though_it_scores_above_the_whole():
    boxes = np.array([[0, 0, 40, 10], [0, 0, 15, 10], [20, 0, 30, 10]], np.float32)
    scores, labels = np.array([0.5, 0.9, 0.8], np.float32), np.ones(3, int)
    assert merge(boxes, scores, labels, np.array([False, True, False]), 0.5).tolist() == [2, 0]
    # where nothing covers it, it is all that there is of the object
    assert merge(boxes[1:], scores[1:], labels[1:], np.array([True, False]), 0.5).tolist() == [0, 1]


# boxes in a picture of 500 x 300: within a tile, across the edges of tiles, larger than a tile, at the picture's corner
OBJECTS = [(20, 20, 50, 45), (80, 60, 110, 90), (170, 100, 390, 260), (470, 280, 500, 300), (270, 20, 330, 50)]
COLOURS = [(250, 0, 0), (0, 250, 0)]  # of label 1, of label 2


def picture():
    image = np.zeros((300, 500, 3), np.uint8)
    for i, (x1, y1, x2, y2) in enumerate(OBJECTS):
        image[y1:y2, x1:x2] = COLOURS[i % 2]
    return image


@pytest.fixture
def blobs(tiny_model, monkeypatch):
    """Makes a Predictor whose network finds what is coloured, and scores what is large in its view highest."""

    def detect(self, views):
        views = [v for v in views if v.canvas is not None]
        out = [np.zeros((len(views), 20, *s), t) for s, t in (((4,), "f4"), ((), "f4"), ((), "i4"), ((), bool))]
        for row, view in enumerate(views):
            height, width = view.resized
            pixels = view.canvas.transpose(1, 2, 0)[:height, :width] * self.config.img_std + self.config.img_mean
            found = []
            for label, channel in ((1, 0), (2, 1)):
                bright = (pixels[..., channel if self.config.to_rgb else 2 - channel] > 125).astype(np.uint8)
                for x, y, w, h, area in cv2.connectedComponentsWithStats(bright)[2][1:]:
                    found.append((area, (x, y, x + w, y + h), label))
            for place, (area, box, label) in enumerate(sorted(found, reverse=True)):
                out[0][row, place], out[1][row, place] = box, 0.5 + area / 1e5
                out[2][row, place], out[3][row, place] = label, True
        return [*out, np.ones((len(views), 20, 28, 28), np.float32)]

    monkeypatch.setattr(Predictor, "_detect", detect)
    return lambda **options: Predictor(*tiny_model, **options)


@pytest.mark.parametrize(("tile", "overlap"), [(96, 0.2), (128, 0.5)])
def test_each_object_once_and_whole(blobs, tile, overlap):
    found = blobs(tile=tile, overlap=overlap)(picture())
    assert len(found) == len(OBJECTS)
    assert (np.diff(found.scores) <= 0).all()
    distance = np.abs(found.boxes[:, None] - np.array(OBJECTS)[None]).max(-1)
    nearest = distance.argmin(1)
    assert sorted(nearest) == list(range(len(OBJECTS)))
    # a pixel of the canvas is some 2.6 of the whole picture
    assert distance.min(1).max() <= 3
    assert found.labels.tolist() == [1 + i % 2 for i in nearest]
    for mask, box in zip_equal(found.masks, found.boxes):
        assert mask["size"] == [300, 500]
        x, y, w, h = rle.toBbox(mask)
        np.testing.assert_allclose([x, y, x + w, y + h], box, atol=2.5)
        assert rle.area(mask) == pytest.approx((box[2] - box[0]) * (box[3] - box[1]), rel=0.25)


def test_what_vanishes_in_the_whole_is_found_in_a_tile(blobs):
    image = np.zeros((300, 1500, 3), np.uint8)
    image[130:134, 700:704] = COLOURS[0]
    assert len(blobs()(image)) == 0
    found = blobs(tile=96)(image)
    assert len(found) == 1
    np.testing.assert_allclose(found.boxes[0], [700, 130, 704, 134], atol=1)


def test_pictures_no_larger_than_a_tile_are_as_without(blobs):
    image = picture()
    assert blobs(tile=500)(image).to_dict() == blobs()(image).to_dict()


def test_several_pictures_and_faults_keep_their_order(blobs, tmp_path):
    image, small = picture(), picture()[:80, :80]
    predictor = blobs(tile=96, batch_size=3)
    predictions = list(predictor.stream([image, tmp_path / "none.png", small, image], keep_images=True))
    assert [bool(p.fault) for p in predictions] == [False, True, False, False]
    assert predictions[0].detections.to_dict() == predictions[3].detections.to_dict() == predictor(image).to_dict()
    assert len(predictions[2].detections) == 1
    assert (predictions[0].image == image[:, :, ::-1]).all()


def test_across_classes(blobs, tiny_model):
    image = picture()
    image[20:45, 20:50] = (250, 250, 0)  # of both labels
    found = blobs(tile=96)(image)
    assert len(found) == len(OBJECTS) + 1
    predictor = blobs(tile=96)
    predictor.config.test_cfg.rcnn.agnostic_nms = True
    assert len(predictor(image)) == len(OBJECTS)


@pytest.mark.parametrize(("options", "part"), [({"tile": 20}, "tile is 20"), ({"overlap": 1.0}, "overlap is 1.0")])
def test_tiles_that_cannot_be(options, part, tiny_model, refusal):
    with refusal(UserError, part):
        Predictor(*tiny_model, **options)
