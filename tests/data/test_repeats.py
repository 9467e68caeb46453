"""Repeat factors: images of rare classes come more often, as often in every epoch, each time otherwise."""

from collections import Counter

import numpy as np
import pytest

from src.data.loader import TrainLoader
from src.data.mindrecord import ensure_mindrecord
from src.data.repeats import UNIT, draw_copies, repeat_factors
from src.runtime.newer import zip_equal
from src.training.step import SamplerKeys


def test_factors_are_those_of_the_paper():
    """Gupta et al. (2019), section 5: r(c) = max(1, sqrt(t / f(c))), of an image the largest of its classes'."""
    classes = [[1], [1], [1, 2], [1], [1, 3], [1, 2], [], [1], [1], [1]]
    factors = repeat_factors(classes, 0.4) / UNIT
    rare, rarest = (0.4 / 0.2) ** 0.5, (0.4 / 0.1) ** 0.5
    np.testing.assert_allclose(factors, [1, 1, rare, 1, rarest, rare, 1, 1, 1, 1], atol=1e-6)
    assert (repeat_factors(classes, 0.1) == UNIT).all()


def test_copies_are_as_many_as_factors_say():
    factors = np.round(np.array([1.0, 1.25, 2.5, 1.0, 3.9, 1.3]) * UNIT).astype(int)
    counts, totals = np.zeros(6), set()
    for seed in range(4000):
        copies = draw_copies(factors, np.random.default_rng(seed))
        count = np.bincount(copies, minlength=6)
        totals.add(len(copies))
        # down, or up by one; one place of them all may have been left out
        low, high = np.floor(factors / UNIT), np.ceil(factors / UNIT)
        assert (count <= high).all()
        assert np.maximum(low - count, 0).sum() <= 1
        counts += count
    assert totals == {10}
    # 10.95 places are drawn on average, of which 10 are kept, whichever
    np.testing.assert_allclose(counts / 4000, factors / UNIT * 10 / 10.95, atol=0.04)


@pytest.fixture
def unbalanced(coco_folder, coco_config):
    """Makes a config of 20 images of circles, two of which have a star too."""
    for _ in range(17):
        coco_folder.add_object(coco_folder.add_image())
    coco_folder.add_object(3)
    for image_id in (5, 9):
        coco_folder.add_object(image_id, (30, 20, 15, 15), 20)
    coco_folder.write()

    def make(**overrides):
        named = {"img_height": 128, "img_width": 192, "batch_size": 1, "repeat_threshold": 0.625}
        return coco_config(**named | overrides)

    return make


def loader_of(config, *rank):
    return TrainLoader(config, ensure_mindrecord(config, "train", training=True, quiet=True), *rank)


def test_rare_classes_come_more_often(unbalanced):
    """sqrt(0.625 / 0.1) = 2.5: two images come twice or three times."""
    loader = loader_of(unbalanced())
    assert len(loader) == 18 + 5
    assert loader.repeats() == ["2 of 20 images come more than once, up to 2.50 times: 23 an epoch"]
    assert loader_of(unbalanced(repeat_threshold=0)).repeats() == []
    counts = [Counter(loader.epoch_rows(epoch).rows.tolist()) for epoch in range(40)]
    assert {sum(c.values()) for c in counts} == {23}
    often = Counter(tuple(sorted((c[4], c[8]))) for c in counts)
    # one of the two has the third
    assert often == {(2, 3): 40}
    assert 8 < sum(c[4] == 3 for c in counts) < 32
    assert all(v == 1 for c in counts for row, v in c.items() if row not in (4, 8))


@pytest.mark.parametrize("turns", [{"flip_ratio": 0.0}, {"flip_ratio": 0.5, "rotate90_ratio": 0.5}], ids=str)
def test_each_time_an_image_is_changed_otherwise(unbalanced, turns):
    changes = {"photo_ratio": 1.0, "crop_ratio": 1.0} | turns
    plain = {int(b["image_id"][0]): b for b in loader_of(unbalanced(repeat_threshold=0.0, **changes)).epoch(0)}
    seen = {}
    for b in loader_of(unbalanced(**changes)).epoch(0):
        seen.setdefault(int(b["image_id"][0]), []).append(b)
    assert sorted(map(len, seen.values()))[-3:] == [1, 2, 3]
    for image_id, times in seen.items():
        assert [int(b["occurrence"][0]) for b in times] == list(range(len(times)))
        # the first time as without repeats
        np.testing.assert_array_equal(times[0]["image"], plain[image_id]["image"])
        assert len({b["image"].tobytes() for b in times}) == len(times)


def test_samplers_draw_otherwise_too(unbalanced):
    keys = SamplerKeys(unbalanced())
    ids = np.array([5, 5, 6])
    rpn, rcnn = keys(2, ids, np.array([0, 1, 0]))
    assert not np.array_equal(rpn[0], rpn[1])
    assert not np.array_equal(rcnn[0], rcnn[1])
    for a, b in zip_equal(keys(2, ids), keys(2, ids, np.zeros(3, int))):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a[0], a[1])


def test_ranks_share_the_places(unbalanced):
    alone = loader_of(unbalanced(batch_size=4)).epoch_rows(3)
    parts = [loader_of(unbalanced(batch_size=2), rank, 2).epoch_rows(3) for rank in (0, 1)]
    for whole, first, second in zip_equal(alone, *parts):
        np.testing.assert_array_equal(whole, np.stack([first, second], 1).reshape(whole.shape))


def test_one_image_often_enough_for_a_batch(coco_folder, coco_config):
    """Of upright pictures there is one, too few for a batch, unless it comes twice."""
    for _ in range(8):
        coco_folder.add_object(coco_folder.add_image())
    coco_folder.add_object(coco_folder.add_image(60, 40), category_id=20)
    coco_folder.write()
    named = {"resize": "short_side", "img_height": 128, "img_width": 192, "batch_size": 2}
    once = loader_of(coco_config(**named))
    assert any("1 upright images never train" in line for line in once.never_trained())
    # 11 images with objects; sqrt(0.4 / (1 / 11)) = 2.1
    twice = loader_of(coco_config(repeat_threshold=0.4, **named))
    assert twice.never_trained() == []
    assert len(twice) == len(once) + 1
    assert any(b["image"].shape[2:] == (192, 128) for b in twice.epoch(0))


def test_classes_of_a_converted_set(unbalanced):
    """Crowds count for no class."""
    from src.data.mindrecord import read_index

    index = read_index(ensure_mindrecord(unbalanced(), "train", training=True))
    by_image = dict(zip_equal(index["image_ids"], index["classes"]))
    assert by_image[5] == by_image[9] == [1, 4]
    assert by_image[1] == [1]
