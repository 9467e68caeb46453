"""Run-length text: what its runs cover, told for many at once, as pycocotools decodes it."""

import numpy as np
import pytest
from pycocotools import mask as rle

from src.data.records import DataError
from src.data.segmentations import as_rle, covers_nothing, extent, normal_segmentation, run_totals


def encoded(bitmap: np.ndarray) -> str:
    return rle.encode(np.asfortranarray(bitmap.astype(np.uint8)))["counts"].decode()


def bitmaps(seed: int, count: int) -> list[np.ndarray]:
    """Of random sizes, from empty to noise; some with a few long runs."""
    random = np.random.RandomState(seed)
    out = []
    for i in range(count):
        size = random.randint(1, 90, 2)
        bitmap = random.rand(*size) < random.choice([0, 0.01, 0.5, 1])
        if i % 3 == 0:
            bitmap[:] = False
            bitmap[size[0] // 3 : size[0] // 2 + 1, size[1] // 4 :] = True
        out.append(bitmap)
    return out


def test_totals_are_the_bitmaps_sizes():
    found = bitmaps(0, 200)
    found += [np.zeros((3000, 4000), bool), np.ones((3000, 4000), bool)]
    assert run_totals([encoded(b) for b in found]).tolist() == [b.size for b in found]


def test_a_cut_or_changed_text_is_told():
    """No change keeps the total unless the runs still fill the image; then pycocotools decodes them."""
    random = np.random.RandomState(1)
    told = 0
    for bitmap in bitmaps(2, 150):
        text = encoded(bitmap)
        place = random.randint(len(text))
        for spoilt in (text[:place], text[:place] + chr(random.randint(48, 112)) + text[place + 1 :], text + "1"):
            (total,) = run_totals([spoilt])
            if total == bitmap.size:
                decoded = rle.decode({"size": list(bitmap.shape), "counts": spoilt})
                assert decoded.sum() == rle.area({"size": list(bitmap.shape), "counts": spoilt})
            else:
                told += 1
    assert told > 300


@pytest.mark.parametrize("text", ["é", "0 1", "\x00", "oooo", "P", "ooooooooo0", "N2"])
def test_what_is_no_encoding(text):
    """Foreign characters, a number without end, one beyond 32 bits, a run below zero."""
    assert run_totals(["6", text, "6"]).tolist()[::2] == [6, 6]
    assert run_totals([text])[0] < 0


def test_no_text_at_all():
    assert run_totals([]).tolist() == []
    assert run_totals(["", "6", ""]).tolist() == [0, 6, 0]


def test_every_form_gives_the_same_mask():
    bitmap = np.zeros((20, 30), np.uint8)
    bitmap[4:10, 5:21] = 1
    flat = bitmap.ravel("F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    text = encoded(bitmap)
    corners = [[5, 4, 21, 4, 21, 10, 5, 10]]
    for form in ({"size": [20, 30], "counts": counts}, {"size": [20, 30], "counts": text}, corners):
        assert as_rle(normal_segmentation(form, 20, 30, "x"), 20, 30) == {"size": [20, 30], "counts": text}
    # COCO's own files hold stray polygons of two points
    assert as_rle(normal_segmentation([[1, 1, 2, 2], *corners], 20, 30, "x"), 20, 30)["counts"] == text


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ("text", "neither polygons nor RLE"),
        (7, "neither polygons nor RLE"),
        ([1, 2, 3, 4, 5, 6], "isn't a list of x, y"),
        ([[1, 2, 3, 4, 5]], "isn't a list of x, y"),
        ([[1, 2, 3, 4]], "no polygon of three points"),
        ([[1, 2, 3, 4, 5, "6"]], "no place in or near"),
        ([[1, 2, 3, 4, 5, float("nan")]], "no place in or near"),
        ([[1, 2, 3, 4, 5, 1e9]], "no place in or near"),
        ([[0, 0, 200, 0, 0, 200] * 5000], "pixels around"),
        ({"size": [30, 20], "counts": [600]}, "size [30, 20]"),
        ({"counts": [600]}, "size None"),
        ({"size": [20, 30], "counts": [599]}, "add up to 599"),
        ({"size": [20, 30], "counts": [-1, 601]}, "isn't a length"),
        ({"size": [20, 30], "counts": [1.5, 598.5]}, "isn't a length"),
        ({"size": [20, 30]}, "neither text nor a list"),
        ([], "no segmentation"),
        (None, "no segmentation"),
        ({"size": [20, 30], "counts": 5}, "neither text nor a list"),
    ],
)
def test_forms_that_are_none(refusal, form, told):
    with refusal(DataError, "file.json: annotation 3: ", told):
        normal_segmentation(form, 20, 30, "file.json: annotation 3")


def test_masks_that_cover_nothing():
    """As pycocotools draws them, of thin, small, twisted and outlying polygons."""
    random = np.random.default_rng(7)
    empty = 0
    for _ in range(400):
        corners, spread = int(random.integers(3, 6)), random.choice([0.3, 0.8, 3.0, 20.0], 2)
        points = random.uniform(-10, 50, 2) + random.uniform(0, 1, (corners, 2)) * spread
        bitmap = rle.decode(rle.merge(rle.frPyObjects([points.ravel().tolist()], 40, 40)))
        assert covers_nothing([points.ravel()], extent([points.ravel()]), 40, 40) == (not bitmap.any())
        empty += not bitmap.any()
    assert 50 < empty < 350
    empty = {"size": [40, 40], "counts": encoded(np.zeros((40, 40)))}
    assert covers_nothing(empty, extent(empty), 40, 40)
