"""InstaBoost: what moves, what is left behind, what the options do."""

import dataclasses

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from src.config import Config, ConfigError, load_config
from src.data.augment.instaboost import instaboost
from src.data.loader import TrainLoader
from src.data.mindrecord import ensure_mindrecord
from src.data.scene import Scene
from src.data.transforms import to_bitmap
from src.runtime.newer import zip_equal

HEIGHT, WIDTH = 120, 160


def options(**values):
    """InstaBoost on every image, its colours left alone."""
    return dataclasses.replace(Config(), **{"aug_prob": 1.0, "color_prob": 0.0, **values})


def rectangle(x1, y1, x2, y2):
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def scene_of(*boxes, as_rle=False):
    """A grey scene with a white rectangle, its upper half red, at each box."""
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    for x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] = 255
        image[y1 : (y1 + y2) // 2, x1:x2] = (0, 0, 255)
    masks = [rectangle(*map(float, b)) for b in boxes]
    if as_rle:
        masks = [rle.merge(rle.frPyObjects(m, HEIGHT, WIDTH)) for m in masks]
    return Scene(image, np.array(boxes, np.float32).reshape(-1, 4), masks)


def painted(image):
    """Where an object shows: white or red on grey."""
    return (np.abs(image.astype(int) - 128).max(2) > 60).astype(np.uint8)


def run(scene, config, seed=0):
    return instaboost(scene, config, np.random.default_rng(seed))


@pytest.mark.parametrize("as_rle", [False, True], ids=["polygons", "rle"])
@pytest.mark.parametrize("heatmap", [False, True], ids=["jitter", "heat map"])
def test_image_mask_and_box_move_together(as_rle, heatmap):
    scene = scene_of((50, 40, 90, 70), as_rle=as_rle)
    moved = 0
    for seed in range(20):
        out, kept = run(scene, options(theta=[-15.0, 15.0], heatmap_flag=heatmap), seed)
        assert kept.tolist() == [0]
        shown = painted(out.image)
        mask = to_bitmap(out.masks[0], HEIGHT, WIDTH)
        # the pasted object's edge is half transparent for a pixel to both sides
        kernel = np.ones((5, 5), np.uint8)
        assert not (mask & (1 - cv2.dilate(shown, kernel))).any()
        assert not (shown & (1 - cv2.dilate(mask, kernel))).any()
        x, y, w, h = cv2.boundingRect(mask)
        assert np.abs(out.boxes[0] - [x, y, x + w, y + h]).max() <= 1
        moved += not np.array_equal(out.boxes, scene.boxes)
    assert moved == 20


def test_limits_of_the_jitter():
    scene, config = scene_of((40, 30, 100, 90)), options(scale=[0.8, 1.2], dx=6.0, dy=12.0, theta=[0.0, 0.0])
    boxes = np.array([run(scene, config, s)[0].boxes[0] for s in range(60)])
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.min() >= 60 * 0.8 - 0.01
    assert sides.max() <= 60 * 1.2 + 0.01
    assert sides.min() < 60 * 0.85
    assert sides.max() > 60 * 1.15
    shift = np.abs((boxes[:, :2] + boxes[:, 2:]) / 2 - [70, 60]).max(0)
    # a sixth and a twelfth of 60 pixels
    assert 9 < shift[0] <= 10
    assert 4.5 < shift[1] <= 5


def test_nothing_is_left_where_the_object_was():
    scene = scene_of((50, 40, 90, 70))
    out, _ = run(scene, options(dx=1.0, dy=1.0, scale=[0.5, 0.5]), seed=3)
    mask = to_bitmap(out.masks[0], HEIGHT, WIDTH)
    left = painted(out.image) & (1 - cv2.dilate(mask, np.ones((5, 5), np.uint8)))
    assert not left.any()
    # where nothing was, and nothing is, the image is untouched
    away = 1 - cv2.dilate(mask | painted(scene.image), np.ones((9, 9), np.uint8))
    np.testing.assert_array_equal(out.image[away > 0], scene.image[away > 0])


def test_the_scene_given_stays_as_it_was():
    scene = scene_of((50, 40, 90, 70), (100, 80, 120, 100))
    image, boxes, masks = scene.image.copy(), scene.boxes.copy(), [[list(p) for p in m] for m in scene.masks]
    run(scene, options(color_prob=1.0))
    np.testing.assert_array_equal(scene.image, image)
    np.testing.assert_array_equal(scene.boxes, boxes)
    assert scene.masks == masks


def test_draws_repeat_and_differ():
    scene = scene_of((50, 40, 90, 70))
    first, again, other = (run(scene, options(color_prob=0.5), s)[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.boxes, again.boxes)
    assert not np.array_equal(first.boxes, other.boxes)


def test_skip_moves_nothing():
    scene = scene_of((50, 40, 90, 70))
    out, kept = run(scene, options(action_prob=[0.0, 0.0, 1.0]))
    np.testing.assert_array_equal(out.image, scene.image)
    np.testing.assert_array_equal(out.boxes, scene.boxes)
    assert kept.tolist() == [0]


@pytest.mark.parametrize("action", ["horizontal", "vertical", "normal"])
def test_flips(action):
    """An object whose upper left corner is cut off shows which way it was turned."""
    scene = scene_of((50, 40, 90, 70))
    scene.masks[0] = [[65, 40, 90, 40, 90, 70, 50, 70, 50, 55]]
    still = {"scale": [1.0, 1.0], "theta": [0.0, 0.0], "dx": 1e6, "dy": 1e6}
    out, _ = run(scene, options(action_candidate=[action], action_prob=[1.0], **still))
    mask = to_bitmap(out.masks[0], HEIGHT, WIDTH)
    corners = {"upper left": mask[42, 52], "upper right": mask[42, 87], "lower left": mask[67, 52]}
    missing = {"horizontal": "upper right", "vertical": "lower left", "normal": "upper left"}[action]
    assert [n for n, v in corners.items() if not v] == [missing]
    red = np.abs(out.image.astype(int) - (0, 0, 255)).max(2) < 30
    assert red[:55].sum() > red[55:].sum() if action != "vertical" else red[55:].sum() > red[:55].sum()


def test_objects_that_overlap_move_as_one():
    scene = scene_of((30, 30, 70, 70), (60, 50, 90, 90), (120, 10, 140, 30))
    out, _ = run(scene, options(scale=[1.0, 1.0], theta=[0.0, 0.0], dx=4.0, dy=4.0), seed=5)
    shift = out.boxes - scene.boxes
    np.testing.assert_allclose(shift[0], shift[1], atol=1e-3)
    assert np.abs(shift[0] - shift[2]).max() > 0.5


def test_objects_at_the_border_stay_cut_by_it():
    """A cut object may move towards its border, never away: there is no more of it to show."""
    scene = scene_of((0, 40, 40, 80))
    for seed in range(20):
        config = options(dx=2.0, dy=8.0, theta=[-20.0, 20.0], action_prob=[0.5, 0.5, 0.0])
        out, _ = run(scene, config, seed)
        assert out.boxes[0, 0] == 0
        assert painted(out.image)[45:75, 0].all()


def test_an_object_as_large_as_the_image():
    scene = scene_of((0, 0, WIDTH, HEIGHT))
    out, kept = run(scene, options())
    assert kept.tolist() == [0]
    np.testing.assert_allclose(out.boxes[0], [0, 0, WIDTH, HEIGHT], atol=1)


def test_what_is_covered_leaves_the_mask():
    scene = scene_of((40, 40, 70, 70), (72, 40, 100, 70))
    hidden = 0
    for seed in range(40):
        out, kept = run(scene, options(dx=3.0, scale=[1.0, 1.2], theta=[0.0, 0.0]), seed)
        first, second = (to_bitmap(out.masks[i], HEIGHT, WIDTH) for i in range(2))
        assert kept.tolist() == [0, 1]
        # an edge pixel may be in both
        assert (first & second).sum() <= 2 * HEIGHT
        hidden += isinstance(out.masks[0], dict)
        for bitmap, box in ((first, out.boxes[0]), (second, out.boxes[1])):
            x, y, w, h = cv2.boundingRect(bitmap)
            assert np.abs(box - [x, y, x + w, y + h]).max() <= 1
    assert hidden > 5


def test_nothing_is_hidden_by_more_than_half():
    scene = scene_of((40, 40, 80, 80), (84, 58, 90, 64))
    for seed in range(40):
        out, kept = run(scene, options(dx=1.0, dy=1.0, scale=[1.0, 1.0], theta=[0.0, 0.0]), seed)
        assert kept.tolist() == [0, 1]
        assert to_bitmap(out.masks[1], HEIGHT, WIDTH).sum() >= 18 - 6


def test_likeness_decides_where_an_object_goes():
    """Left is dark, right is bright: with the heat map an object from the left stays on the left."""
    scene = scene_of((30, 50, 50, 70))
    scene.image[:, WIDTH // 2 :] = 250
    x = []
    for seed in range(30):
        out, _ = run(scene, options(heatmap_flag=True), seed)
        x.append((out.boxes[0, 0] + out.boxes[0, 2]) / 2)
    assert max(x) < WIDTH // 2
    assert max(x) - min(x) > 20


def test_colours_change_with_their_probability():
    scene = scene_of((50, 40, 90, 70))
    scene.image[:] = np.random.default_rng(0).integers(60, 120, scene.image.shape)
    never = options(color_prob=0.0, action_prob=[0.0, 0.0, 1.0])
    always = options(color_prob=1.0, action_prob=[0.0, 0.0, 1.0])
    np.testing.assert_array_equal(run(scene, never)[0].image, scene.image)
    means = [run(scene, always, s)[0].image.mean() for s in range(10)]
    # brightness is multiplied by one to two
    assert min(means) > 85
    assert max(means) > 130


def test_scenes_without_objects_and_with_many():
    empty = scene_of()
    out, kept = run(empty, options())
    assert (len(kept), out.boxes.shape) == (0, (0, 4))
    boxes = [(x, y, x + 3, y + 3) for x in range(12, 148, 7) for y in range(12, 108, 7)]
    assert len(boxes) > 255
    out, kept = run(scene_of(*boxes), options())
    assert len(kept) > 0.9 * len(boxes)


def test_tiny_images():
    for height, width in ((1, 1), (3, 2), (1, 40)):
        mask = rle.encode(np.asfortranarray(np.ones((height, width), np.uint8)))
        scene = Scene(np.full((height, width, 3), 7, np.uint8), np.float32([[0, 0, width, height]]), [mask])
        for heatmap in (False, True):
            out, _ = run(scene, options(heatmap_flag=heatmap, color_prob=1.0))
            assert out.image.shape == scene.image.shape


# In the loader


def batches_of(config, folder):
    return list(TrainLoader(config, folder).epoch(0))


def test_in_the_loader(shapes_config):
    boosted = {"aug_prob": 1.0, "color_prob": 0.0, "ratio_range": [0.7, 1.4], "photo_ratio": 0.5}
    config = shapes_config(**boosted)
    folder = ensure_mindrecord(config, "train", training=True)
    first = batches_of(config, folder)
    for same in (shapes_config(num_parallel_workers=1, **boosted), shapes_config(batch_size=2, **boosted)):
        by_id = {}
        for b in batches_of(same, folder):
            for i, image_id in enumerate(b["image_id"]):
                by_id[int(image_id)] = {k: v[i] for k, v in b.items()}
        for b in first:
            for i, image_id in enumerate(b["image_id"]):
                for k, v in b.items():
                    np.testing.assert_array_equal(v[i], by_id[int(image_id)][k])
    # from within an epoch on, as resumed training reads it
    tail = list(TrainLoader(config, folder).epoch(0, start_step=2))
    for a, b in zip_equal(tail, first[2:]):
        for k in a:
            np.testing.assert_array_equal(a[k], b[k])
    plain = {int(i): x for b in batches_of(shapes_config(), folder) for i, x in zip_equal(b["image_id"], b["image"])}
    changed = [not np.array_equal(x, plain[int(i)]) for b in first for i, x in zip_equal(b["image_id"], b["image"])]
    assert all(changed)
    assert not np.array_equal(first[0]["image"], list(TrainLoader(config, folder).epoch(1))[0]["image"])


def test_boxes_alone_need_the_masks_too(coco_folder, coco_config, refusal):
    """InstaBoost cuts by masks also where the detector predicts none."""
    del coco_folder.data["annotations"][0]["segmentation"]
    coco_folder.write()
    ensure_mindrecord(coco_config(detector="faster_rcnn"), "train", training=True)
    with refusal(ValueError, "annotation 101", "no segmentation"):
        ensure_mindrecord(coco_config(detector="faster_rcnn", aug_prob=0.5), "train", training=True)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"action_prob": [1.0]}, "action_candidate"),
        ({"action_prob": [0.5, 0.2, 0.2]}, "adds up to 0.9"),
        ({"action_candidate": ["normal", "spin", "skip"]}, "spin"),
        ({"scale": [1.2, 0.8]}, "scale"),
        ({"theta": [1.0]}, "theta"),
        ({"dx": 0}, "dx"),
        ({"aug_prob": 1.5}, "aug_prob"),
        ({"ratio_range": [2.0, 0.5]}, "ratio_range"),
    ],
    ids=str,
)
def test_options_are_checked(shapes_config, refusal, values, told):
    with refusal(ConfigError, told):
        shapes_config(**values)


def test_a_pasted_object_fills_its_box():
    """An object that shrank or grew where it is pasted would teach boxes that are wrong by that much."""
    config = load_config("configs/shapes.yaml", {"aug_prob": 1.0, "color_prob": 0.0})
    corner_angles = np.arange(4) * np.pi / 2
    beyond = []
    for seed in range(100):
        r = np.random.default_rng(seed)
        angles = corner_angles + r.uniform(0, 2)
        corners = r.uniform(60, 130, 2) + r.uniform(20, 40) * np.stack([np.cos(angles), np.sin(angles)], 1)
        fine = np.zeros((192 * 8, 256 * 8), np.uint8)
        cv2.fillPoly(fine, [np.round(corners * 8 - 0.5).astype(np.int32)], 255)
        share = cv2.resize(fine, (256, 192), interpolation=cv2.INTER_AREA)[..., None] / 255
        image = (40 + 190 * share + np.zeros(3)).astype(np.uint8)
        box = np.concatenate([corners.min(0), corners.max(0)])[None].astype(np.float32)
        after = instaboost(Scene(image, box, [[corners.ravel().tolist()]]), config, r)[0]
        for scene_image, scene_box in ((image, box[0]), (after.image, after.boxes[0])):
            y, x = np.nonzero(scene_image[..., 0] > 135)
            beyond.append(np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) - scene_box)
    before, after = np.reshape(beyond, (100, 2, 4)).mean(0)
    # half-covered corners are darker than the threshold before too; interpolation takes a little more off them
    assert np.abs(after - before).max() < 0.3
