"""Points and limbs as they are painted."""

import numpy as np
import pytest

from src.config.keys import COCO_KEYPOINTS
from src.drawing.skeletons import LEFT, RIGHT, limbs_of, skeleton_layer, surely

SHADE = (10, 20, 240)


def painted(values, names, skeleton=None, zoom=1.0, line=1, size=(100, 120)) -> np.ndarray:
    canvas = np.full((*size, 3), 255, np.uint8)
    layer = skeleton_layer(values, names, skeleton)
    for i in range(len(values)):
        layer(canvas, i, SHADE, line, zoom)
    return canvas


def test_limbs():
    coco = limbs_of(COCO_KEYPOINTS)
    assert len({frozenset(pair) for pair in coco}) == 19
    named = [{COCO_KEYPOINTS[a], COCO_KEYPOINTS[b]} for a, b in coco]
    across = [pair for pair in named if {n.split("_")[0] for n in pair} == {"left", "right"}]
    assert across == [{"left_hip", "right_hip"}, {"left_shoulder", "right_shoulder"}, {"left_eye", "right_eye"}]
    assert {"left_knee", "left_ankle"} in named and {"nose", "right_eye"} in named
    assert limbs_of(["a", "b"]) == []
    assert limbs_of(["a", "b"], [[1, 2], [1, 3], [0, 1]]) == [(0, 1)]
    assert limbs_of(COCO_KEYPOINTS, []) == []


def test_colours_tell_the_sides():
    names = ["left_hand", "right_hand", "head", "left_foot"]
    points = np.array([[20, 20, 1], [80, 20, 1], [50, 50, 1], [20, 80, 1]], float)
    canvas = painted([points], names, [[1, 2], [1, 4], [1, 3]])
    centres = [tuple(canvas[y, x]) for x, y in ((20, 20), (80, 20), (50, 50))]
    assert centres == [LEFT, RIGHT, SHADE]
    assert tuple(canvas[20, 50]) == SHADE
    assert tuple(canvas[50, 20]) == LEFT
    assert (canvas == LEFT).all(2)[30:40, 30:40].any()


def test_points_that_arent_shown():
    points = np.array([[20, 20, 0.05], [80, 20, -3], [np.nan, 50, 1], [50, 50, 0.06]])
    assert surely(points).tolist() == [False, False, False, True]
    canvas = painted([points, None], list("abcd"), [[1, 4], [2, 4], [3, 4]])
    ys, xs = np.nonzero((canvas != 255).any(2))
    assert (np.abs(xs - 50) <= 4).all() and (np.abs(ys - 50) <= 4).all() and len(xs)
    assert (painted([points[:3]], list("abc")) == 255).all()


@pytest.mark.parametrize("zoom", [1.0, 3.0])
def test_far_points_and_zoom(zoom):
    points = np.array([[20.5, 30.5, 1], [1e12, -1e12, 1]])
    canvas = painted([points], ["a", "b"], [[1, 2]], zoom, size=(300, 360))
    assert tuple(canvas[round(30.5 * zoom - 0.5), round(20.5 * zoom - 0.5)]) == SHADE
