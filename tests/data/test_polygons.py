"""Outlines: clipped, traced and joined polygons cover what they should, as COCO's rasteriser draws them."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from src.data.polygons import clip_polygon, join_polygons, mask_polygons, one_polygon


def drawn(polygons, height, width):
    return rle.decode(rle.merge(rle.frPyObjects([np.ravel(p).tolist() for p in polygons], height, width)))


def blotches(seed, height=24, width=31):
    """A mask of several parts with holes."""
    noise = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    return (cv2.GaussianBlur(noise, (0, 0), 0.5 + seed % 4) > 0.5).astype(np.uint8)


@pytest.mark.parametrize("seed", range(8))
def test_a_traced_mask_is_the_mask(seed):
    mask = blotches(seed)
    polygons = mask_polygons(mask)
    np.testing.assert_array_equal(drawn(polygons, *mask.shape), mask)
    np.testing.assert_array_equal(drawn([join_polygons(polygons)], *mask.shape), mask)
    y, x = np.nonzero(mask)
    corners = np.concatenate(polygons)
    assert corners.min(0).tolist() == [x.min(), y.min()]
    assert corners.max(0).tolist() == [x.max() + 1, y.max() + 1]


def test_nothing_is_traced_of_an_empty_mask():
    assert mask_polygons(np.zeros((5, 7), np.uint8)) == []
    assert one_polygon(rle.encode(np.zeros((5, 7), np.uint8, order="F")), 5, 7).shape == (0, 2)


def test_a_square_has_four_corners():
    mask = np.zeros((9, 9), np.uint8)
    mask[2:5, 3:8] = 1
    (polygon,) = mask_polygons(mask)
    assert sorted(polygon.tolist()) == [[3, 2], [3, 5], [8, 2], [8, 5]]


def test_clipping():
    triangle = np.array([[-100.0, 50], [60, 0], [60, 100]])
    clipped = clip_polygon(triangle, 80, 50)
    # by similar triangles: where the edges from the left corner cross x = 0 and x = 50, and y = 80
    expected = {(0, 18.75), (0, 81.25), (50, 3.125), (50, 96.875)} - {(0, 81.25), (50, 96.875)} | {(0, 80), (50, 80)}
    assert {tuple(p) for p in clipped.tolist()} == expected
    assert len(clip_polygon(triangle + [500, 0], 80, 50)) == 0
    inside = np.array([[1.0, 1], [9, 1], [9, 9]])
    np.testing.assert_array_equal(clip_polygon(inside, 80, 50), inside)


@pytest.mark.parametrize("seed", range(6))
def test_a_clipped_polygon_covers_the_same_pixels(seed):
    points = np.random.default_rng(seed).uniform(-30, 90, (5, 2))
    finer = 8
    fine = np.zeros((finer * 120, finer * 120), np.uint8)
    cv2.fillPoly(fine, [np.round((points + 30) * finer).astype(np.int32)], 1)
    whole = fine[finer * 30 : finer * 70, finer * 30 : finer * 90]
    part = np.zeros_like(whole)
    clipped = clip_polygon(points, 40, 60)
    if len(clipped):
        cv2.fillPoly(part, [np.round(clipped * finer).astype(np.int32)], 1)
    # the outermost eighth of a pixel is drawn along the border
    assert (whole[1:-1, 1:-1] != part[1:-1, 1:-1]).mean() < 0.01


def test_parts_that_overlap_stay_whole():
    squares = [np.array([2.0, 2, 12, 2, 12, 12, 2, 12]), np.array([7.0, 7, 17, 7, 17, 17, 7, 17])]
    one = one_polygon(squares, 20, 20)
    np.testing.assert_array_equal(drawn([one], 20, 20), drawn(squares, 20, 20))
