"""Large-scale jitter: a picture whose colours tell where each of its points went is shown by the loader."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from src.config import ConfigError, load_config
from src.data.augment.geometry import draw_view
from src.data.inspect import restored
from src.data.loader import TrainLoader
from src.data.mindrecord import ensure_mindrecord
from src.data.transforms import View, visible_objects
from src.runtime.newer import zip_equal
from tests.conftest import ROOT, CocoFolder, all_cores

HEIGHT, WIDTH, CANVAS = 100, 160, 192
TRIANGLE = np.array([[20.0, 10], [120, 30], [50, 80]])
STAR = (120, 70, 36, 26)  # x y w h, in a corner
CROWD = (2, 60, 30, 38)
POINTS = np.array([[30.0, 20, 2], [100, 32, 1], [52, 75, 2]])
JITTER = {
    "img_width": CANVAS,
    "img_height": CANVAS,
    "ratio_range": [0.1, 2.0],
    "fixed_size_crop": True,
    "flip_ratio": 0.5,
    "batch_size": 1,
}


@pytest.fixture
def gradients(tmp_path):
    """Three pictures whose blue is a pixel's column and whose green is twice its row, with the objects above."""
    folder = CocoFolder(tmp_path / "gradients")
    folder.data["categories"] = [{"id": i, "name": n, "keypoints": ["a", "b", "c"]} for i, n in ((10, "t"), (20, "s"))]
    y, x = np.indices((HEIGHT, WIDTH))
    encoded = cv2.imencode(".png", np.stack([x, 2 * y, np.full_like(x, 40)], -1).astype(np.uint8))[1].tobytes()
    for _ in range(3):
        image = folder.add_image(HEIGHT, WIDTH, f"{len(folder.data['images'])}.png", encoded)
        low, high = TRIANGLE.min(0), TRIANGLE.max(0)
        outline = [TRIANGLE.ravel().tolist()]
        folder.add_object(image, (*low, *(high - low)), segmentation=outline, keypoints=POINTS.ravel().tolist())
        folder.add_object(image, STAR, 20, keypoints=[0] * 9)
        inside = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
        inside[CROWD[1] : CROWD[1] + CROWD[3], CROWD[0] : CROWD[0] + CROWD[2]] = 1
        runs = rle.encode(inside)
        folder.add_object(image, CROWD, iscrowd=1, segmentation={**runs, "counts": runs["counts"].decode()})
    return folder.write()


@pytest.fixture
def jitter_config(shapes_config, gradients):
    def make(**overrides):
        places = {"train_dataset": str(gradients.root), "coco_classes": ["background", "t", "s"], "num_classes": 3}
        return shapes_config(**places | JITTER | overrides)

    return make


def loader(config):
    return TrainLoader(config, ensure_mindrecord(config, "train", training=True))


class Shown:
    """What a canvas shows, told from its colours alone: `move` takes points of the picture there."""

    def __init__(self, batch, config):
        pixels = restored(batch["image"][0], config).astype(float)
        self.left, top, width, self.height = cv2.boundingRect((pixels[..., 2] < 80).astype(np.uint8))
        self.right = self.left + width
        part = pixels[: self.height, self.left : self.right]
        mirrored = part[0, 0, 0] > part[0, -1, 0]
        # mirrored after it was filled up
        assert top == 0 and (self.right == CANVAS if mirrored else self.left == 0)
        self.slopes = []
        for channel, per_pixel in ((0, 1), (1, 2)):
            line = part[..., channel].mean(channel) / per_pixel + 0.5
            # where an enlarged picture ends, its last pixels repeat
            inner = slice(len(line) // 8, max(len(line) - len(line) // 8, len(line) // 8 + 2))
            start = 0.5 + (self.left if channel == 0 else 0)
            self.slopes.append(np.polyfit(np.arange(len(line))[inner] + start, line[inner], 1))

    def move(self, points):
        return np.stack([(points[:, i] - b) / a for i, (a, b) in enumerate(self.slopes)], 1)

    def box(self, corners):
        """x1 y1 x2 y2 of what the canvas shows of the points' outline's box."""
        moved = self.move(np.asarray(corners, float))
        moved = np.concatenate([moved.min(0), moved.max(0)])
        return np.clip(moved, [self.left, 0] * 2, [self.right, self.height] * 2)

    def triangle(self):
        """(CANVAS, CANVAS) bool: pixels whose centres lie in the triangle."""
        a, b, c = self.move(TRIANGLE)
        y, x = np.indices((CANVAS, CANVAS)) + 0.5

        def side(p, q):
            return (q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0])

        sides = np.stack([side(a, b), side(b, c), side(c, a)])
        inside = (sides > 0).all(0) | (sides < 0).all(0)
        inside[self.height :] = inside[:, self.right :] = inside[:, : self.left] = False
        return inside


def corners_of(xywh):
    x, y, w, h = xywh
    return [[x, y], [x + w, y + h]]


def test_objects_are_where_the_colours_say(jitter_config):
    config = jitter_config()
    data, seen = loader(config), {"whole": 0, "cut": 0, "gone": 0, "masks": 0, "crowds": 0}
    for batch in (b for epoch in range(20) for b in data.epoch(epoch)):
        shown = Shown(batch, config)
        # the rest of the canvas counts as picture, of mean colour
        assert batch["image_size"][0].tolist() == [CANVAS, CANVAS]
        rest = np.ones((CANVAS, CANVAS), bool)
        rest[: shown.height, shown.left : shown.right] = False
        assert not batch["image"][0][:, rest].any()
        ignored = batch["ignore_boxes"][0][batch["ignore_boxes"][0].any(1)]
        expected = shown.box(corners_of(CROWD))
        if (expected[2:] - expected[:2]).min() > 1:
            np.testing.assert_allclose(ignored, [expected], atol=1)
            seen["crowds"] += 1
        for label, outline in ((1, TRIANGLE), (2, corners_of(STAR))):
            rows = np.flatnonzero(batch["gt_valid"][0] & (batch["gt_labels"][0] == label))
            whole = shown.move(np.asarray(outline))
            expected = shown.box(outline)
            uncut = np.abs(np.concatenate([whole.min(0), whole.max(0)]) - expected).max() < 0.25
            if (expected[2:] <= expected[:2]).any():
                assert not len(rows)
                seen["gone"] += 1
            elif uncut:
                np.testing.assert_allclose(batch["gt_boxes"][0][rows], [expected], atol=0.6)
                seen["whole"] += 1
            elif label == 2 and (expected[2:] - expected[:2]).min() > 1:
                np.testing.assert_allclose(batch["gt_boxes"][0][rows], [expected], atol=1)
                seen["cut"] += 1
            if label == 1 and shown.triangle().sum() > 200:
                box, crop = batch["gt_boxes"][0][rows[0]], batch["gt_masks"][0][rows[0]]
                step = (box[2:] - box[:2]) / len(crop)
                to_canvas = np.array(
                    [[step[0], 0, box[0] + step[0] / 2 - 0.5], [0, step[1], box[1] + step[1] / 2 - 0.5]]
                )
                got = cv2.warpAffine(crop, to_canvas, (CANVAS, CANVAS), flags=cv2.INTER_LINEAR) > 127
                # along the outline they may differ, by a cell of the crop and a pixel
                inside, kernel = shown.triangle().astype(np.uint8), np.ones((2 * int(np.ceil(step.max())) + 3,) * 2)
                assert not (got & (cv2.dilate(inside, kernel) == 0)).any()
                assert not (~got & (cv2.erode(inside, kernel, borderValue=0) > 0)).any()
                y, x = np.nonzero(inside)
                np.testing.assert_allclose(box, [x.min(), y.min(), x.max() + 1, y.max() + 1], atol=2)
                seen["masks"] += 1
    assert min(seen.values()) > 3, seen


def test_keypoints_are_where_the_colours_say(jitter_config):
    config = jitter_config(detector="keypoint_rcnn", keypoint_head__names=["a", "b", "c"])
    data, seen, gone = loader(config), 0, 0
    for batch in (b for epoch in range(10) for b in data.epoch(epoch)):
        shown = Shown(batch, config)
        rows = np.flatnonzero(batch["gt_valid"][0] & (batch["gt_labels"][0] == 1))
        for row in rows:
            moved = shown.move(POINTS)
            for got, place, point in zip_equal(batch["gt_keypoints"][0][row], moved, POINTS):
                low, high = np.array([shown.left, 0]), np.array([shown.right, shown.height])
                if got[2]:
                    np.testing.assert_allclose(got, [*place, point[2]], atol=0.6)
                    seen += 1
                else:
                    assert (place < low + 1).any() or (place > high - 1).any()
                    gone += 1
    assert seen > 20 and gone > 3


def test_sizes_are_drawn_evenly(jitter_config):
    """Of a picture that fits the canvas at 1.2 times its size, 0.1 to 2.0 times that, each size equally likely."""
    config, factors, places = jitter_config(), [], []
    for seed in range(4000):
        view = draw_view(config, HEIGHT, WIDTH, np.zeros((0, 4)), False, np.random.default_rng(seed), (CANVAS, CANVAS))
        factors.append(view.scale[0] / (CANVAS / WIDTH))
        if factors[-1] > 1.8:
            # both sides exceed the canvas where a picture is more than 1.6 times as large
            x1, y1, x2, y2 = view.window
            places.append([x1 / (WIDTH - x2 + x1), y1 / (HEIGHT - y2 + y1)])
    assert 0.09 < min(factors) < 0.11 and 1.98 < max(factors) < 2.02
    counts = np.histogram(factors, np.linspace(0.1, 2.0, 11))[0]
    # 400 each, of which a standard deviation is 19
    assert counts.min() > 320 and counts.max() < 480
    places = np.array(places)
    assert np.histogram(places[:, 0], 4, (0, 1))[0].min() > 0.15 * len(places)
    # one share of what is left over is cut off above and at the left, as in Detectron2
    assert np.abs(places[:, 0] - places[:, 1]).max() < 0.06


def test_pictures_that_lose_their_objects_train(jitter_config):
    """A crop need not show an object; the picture is then background, and comes all the same."""
    data = loader(jitter_config(ratio_range=[16.0, 16.0]))
    empty = 0
    for epoch in range(10):
        batches = list(data.epoch(epoch))
        assert sorted(int(b["image_id"][0]) for b in batches) == [1, 2, 3]
        empty += sum(not b["gt_valid"].any() for b in batches)
    assert empty > 3
    kept = loader(jitter_config(ratio_range=[16.0, 16.0], fixed_size_crop=False))
    assert all(b["gt_valid"].any() for epoch in range(10) for b in kept.epoch(epoch))


def test_of_a_cut_object_a_part_of_a_pixel_stays():
    """Detectron2's filter_empty_instances drops boxes of less than 1e-5 pixels, and masks without a part."""
    boxes = np.float32([[0, 0, 50, 50], [0, 0, 50, 50.000001], [0, 0, 50, 49]])
    squares = [[[0.0, 0.0, 50.0, 0.0, 50.0, 50.0, 0.0, 50.0]]] * 3
    view = View((0, 49, 100, 99), (25, 50))
    for masks in (squares, None):
        rows, seen = visible_objects(view, boxes, masks, 100, 100, least=1e-5)
        assert rows.tolist() == [0, 1]
        np.testing.assert_allclose(seen, [[0, 49, 50, 50]] * 2, atol=1e-4)


def test_draws_repeat_and_resume(jitter_config):
    with all_cores():
        one = loader(jitter_config())
        two = loader(jitter_config(num_parallel_workers=2, python_multiprocessing=True))
        first, tail = list(one.epoch(4)), list(two.epoch(4, start_step=1))
    for a, b in zip_equal(first[1:], tail):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    by_id = [{int(b["image_id"][0]): b["image"] for b in batches} for batches in (first, one.epoch(5))]
    assert not any(np.array_equal(by_id[0][i], by_id[1][i]) for i in by_id[0])


def test_two_canvases_cant_be_filled(shapes_config, refusal):
    with refusal(ConfigError, "fixed_size_crop", "set resize: canvas"):
        shapes_config(fixed_size_crop=True, resize="short_side")


@pytest.mark.parametrize(
    "name",
    [
        "detectron2_mask_rcnn_r50_fpn_lsj_1024",
        "detectron2_mask_rcnn_vitdet_b",
        "detectron2_cascade_mask_rcnn_vitdet_b",
        "torchvision_mask_rcnn_r50_fpn_v2_lsj_1024",
    ],
)
def test_published_recipes_of_large_scale_jitter(name):
    """Of Detectron2's new_baselines and ViTDet (coco_loader_lsj.py), and torchvision's references/detection, `lsj`."""
    c = load_config(ROOT / f"configs/{name}.yaml")
    assert (c.img_height, c.img_width, c.resize, c.ratio_range) == (1024, 1024, "canvas", [0.1, 2.0])
    assert (c.fixed_size_crop, c.flip_ratio) == (True, 0.5)


def test_the_published_recipe():
    """Detectron2's configs/new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py: 184375 steps."""
    c = load_config(ROOT / "configs/detectron2_mask_rcnn_r50_fpn_lsj_1024.yaml")
    assert (c.img_height, c.img_width, c.ratio_range, c.fixed_size_crop, c.flip_ratio) == (
        1024,
        1024,
        [0.1, 2.0],
        True,
        0.5,
    )
    assert (c.base_batch_size, c.lr, c.weight_decay, c.warmup_step, c.warmup_ratio) == (64, 0.1, 4e-5, 500, 0.067)
    steps_an_epoch = 184375 / c.epoch_size
    np.testing.assert_allclose(np.array(c.lr_steps) * steps_an_epoch, [163889, 177546], rtol=0.005)
