"""Vertical flips and quarter turns: picture, boxes and masks are those of bitmaps that numpy turns."""

import hashlib

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from src.data.augment.geometry import turned_scene
from src.data.loader import TrainLoader
from src.data.mindrecord import ensure_mindrecord
from src.data.scene import Scene
from src.data.transforms import prepare_image, to_bitmap
from src.runtime.newer import zip_equal

# Rectangles and an L, from which no flip or turn makes the same; corners on whole pixels, away from the border
OUTLINES = [
    [[20, 12, 60, 12, 60, 22, 32, 22, 32, 52, 20, 52]],
    [[70, 30, 82, 30, 82, 56, 70, 56], [84, 40, 96, 40, 96, 46, 84, 46]],
]
COLOURS = [(40, 60, 250), (60, 250, 40)]  # BGR
CROWD = (6, 60, 20, 8)  # x y width height
BACK, CROWDED = (20, 20, 20), (250, 20, 20)


def filled(outline, height, width):
    """A bitmap of polygons with corners on whole pixels, without pycocotools."""
    out = np.zeros((height, width), np.uint8)
    for polygon in outline:
        points = np.reshape(polygon, (-1, 2))
        # the even-odd rule at the pixels' centres
        y, x = np.mgrid[:height, :width] + 0.5
        inside = np.zeros((height, width), bool)
        for (x1, y1), (x2, y2) in zip_equal(points, np.roll(points, -1, 0)):
            if y1 != y2:
                inside ^= ((y1 > y) != (y2 > y)) & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
        out |= inside
    return out


def painting(height, width, both=True):
    image = np.empty((height, width, 3), np.uint8)
    image[:] = BACK
    for outline, colour in list(zip_equal(OUTLINES, COLOURS))[: 1 + both]:
        image[filled(outline, height, width) > 0] = colour
    x, y, w, h = CROWD
    image[y : y + h, x : x + w] = CROWDED
    return image


@pytest.fixture
def painted(coco_folder, coco_config):
    """Makes a config of painted pictures, lying and upright, of which each object has a colour."""

    def make(as_rle=False, sizes=((80, 120), (120, 100), (80, 120), (110, 110)), count=12, **overrides):
        coco_folder.data["images"].clear()
        coco_folder.data["annotations"].clear()
        for i in range(count):
            height, width = sizes[i % len(sizes)]
            content = cv2.imencode(".png", painting(height, width, i % 3 == 0))[1].tobytes()
            image_id = coco_folder.add_image(height, width, f"{i}.png", content)
            # the second is rarer
            for outline, category in list(zip_equal(OUTLINES, (10, 20)))[: 1 if i % 3 else 2]:
                bitmap = filled(outline, height, width)
                mask = [list(map(float, p)) for p in outline]
                if as_rle:
                    coded = rle.encode(np.asfortranarray(bitmap))
                    mask = {"size": [height, width], "counts": coded["counts"].decode()}
                coco_folder.add_object(image_id, cv2.boundingRect(bitmap), category, segmentation=mask)
            coco_folder.add_object(image_id, CROWD, iscrowd=1, segmentation={"size": [height, width], "counts": []})
            coco_folder.data["annotations"][-1]["segmentation"]["counts"] = [height * width]
        coco_folder.write()
        named = {"img_height": 128, "img_width": 192, "batch_size": 1, "flip_ratio": 0.5, "mask_crop_size": 56}
        return coco_config(**named | overrides)

    return make


def batches(config, epoch=0, start=0, rank=0, ranks=1):
    folder = ensure_mindrecord(config, "train", training=True, quiet=True)
    return list(TrainLoader(config, folder, rank, ranks).epoch(epoch, start))


def picture_of(batch, config, i=0):
    """The network's input as BGR, without the padding."""
    height, width = batch["image_size"][i].astype(int)
    pixels = batch["image"][i] * np.reshape(config.img_std, (3, 1, 1)) + np.reshape(config.img_mean, (3, 1, 1))
    return np.round(pixels[::-1, :height, :width].transpose(1, 2, 0)).clip(0, 255).astype(np.uint8)


def of_colour(picture, colour):
    return (np.abs(picture.astype(int) - colour).max(2) < 100).astype(np.uint8)


def pasted(crop, box, shape):
    """A crop (S, S) stretched over its box."""
    step = (box[2:] - box[:2]) / crop.shape[0]
    to_canvas = np.array([[step[0], 0, box[0] + 0.5 * step[0] - 0.5], [0, step[1], box[1] + 0.5 * step[1] - 0.5]])
    return (cv2.warpAffine(crop, to_canvas, shape[::-1], flags=cv2.INTER_LINEAR) > 127).astype(np.uint8)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_scene_turns_as_numpy_turns_it(quarters):
    height, width = 70, 100
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    bitmaps = [filled(o, height, width) for o in OUTLINES]
    boxes = np.float32([[x, y, x + w, y + h] for x, y, w, h in map(cv2.boundingRect, bitmaps)])
    coded = rle.encode(np.asfortranarray(bitmaps[1]))
    polygons = [list(map(float, p)) for p in OUTLINES[0]]
    scene = turned_scene(Scene(image, boxes, [polygons, coded]), quarters)
    np.testing.assert_array_equal(scene.image, np.rot90(image, quarters))
    assert isinstance(scene.masks[0], list)
    for bitmap, box, mask in zip_equal(bitmaps, scene.boxes, scene.masks):
        wanted = np.rot90(bitmap, quarters)
        np.testing.assert_array_equal(to_bitmap(mask, *wanted.shape), wanted)
        x, y, w, h = cv2.boundingRect(np.ascontiguousarray(wanted))
        assert box.tolist() == [x, y, x + w, y + h]
    assert turned_scene(Scene(image, boxes[:1], [None]), quarters).masks == [None]


ALONE = {"flip_ratio": 0.0}


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (ALONE | {"flip_vertical_ratio": 1.0}, {"down"}),
        ({"flip_ratio": 1.0, "flip_vertical_ratio": 1.0}, {"half"}),
        (ALONE | {"rotate90_ratio": 1.0}, {"quarter", "half", "three quarters"}),
        (ALONE | {"flip_vertical_ratio": 0.5, "rotate90_ratio": 0.5}, None),
    ],
    ids=["vertical", "both", "turns", "some"],
)
@pytest.mark.parametrize("resize", ["canvas", "short_side"])
def test_pictures_are_those_that_numpy_turns(painted, overrides, wanted, resize):
    config = painted(resize=resize, count=16, **overrides)
    changes = {
        "as it is": lambda v: v,
        "down": np.flipud,
        "half": lambda v: np.rot90(v, 2),
        "quarter": lambda v: np.rot90(v, 1),
        "three quarters": lambda v: np.rot90(v, 3),
        "quarter down": lambda v: np.flipud(np.rot90(v, 1)),
        "three quarters down": lambda v: np.flipud(np.rot90(v, 3)),
        "across": np.fliplr,
    }
    found = set()
    for batch in batches(config) + batches(config, 1):
        height, width = [(80, 120), (120, 100), (80, 120), (110, 110)][(int(batch["image_id"][0]) - 1) % 4]
        image = painting(height, width, (int(batch["image_id"][0]) - 1) % 3 == 0)
        shown = {n: prepare_image(np.ascontiguousarray(f(image)), config) for n, f in changes.items()}
        # resizing and flipping round differently by 1 in 255
        same = [
            n
            for n, (image, _) in shown.items()
            if image.shape == batch["image"][0].shape and np.abs(image - batch["image"][0]).max() < 0.05
        ]
        assert len(same) == 1
        assert batch["image_size"][0].tolist() == list(shown[same[0]][1])
        found.update(same)
    assert found == wanted or (wanted is None and len(found) > 5)


CHAINS = {
    "alone": {},
    "larger and smaller": {"ratio_range": [0.7, 1.5]},
    "crop": {"crop_ratio": 1.0, "crop_range": [0.5, 1.0]},
    "expand": {"expand_ratio": 1.0, "expand_range": [1.0, 2.0]},
    "instaboost": {"aug_prob": 1.0, "theta": [-10.0, 10.0], "action_prob": [0.6, 0.4, 0.0]},
    "all": {"aug_prob": 0.5, "ratio_range": [0.7, 1.5], "crop_ratio": 0.5, "expand_ratio": 0.5},
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("as_rle", [False, True], ids=["polygons", "rle"])
@pytest.mark.parametrize("resize", ["canvas", "short_side"])
def test_boxes_and_masks_are_where_the_picture_shows_them(painted, chain, as_rle, resize):
    """The truth is the picture that the network gets: each object has a colour of its own."""
    config = painted(as_rle, resize=resize, flip_vertical_ratio=0.5, rotate90_ratio=0.8, **chain)
    compared = 0
    for batch in batches(config):
        picture = picture_of(batch, config)
        # circle and star among the shapes' classes
        for label, colour in zip_equal((1, 4), COLOURS):
            seen = of_colour(picture, colour)
            rows = np.flatnonzero(batch["gt_valid"][0] & (batch["gt_labels"][0] == label))
            if not len(rows):
                # a sliver may have been left out
                assert min(cv2.boundingRect(seen)[2:]) <= 3
                continue
            box, crop = batch["gt_boxes"][0, rows[0]], batch["gt_masks"][0, rows[0]]
            x, y, w, h = cv2.boundingRect(seen)
            if min(w, h) < 8:
                continue
            # an image pixel is up to three canvas pixels; blurred edges and what InstaBoost blends are rounded
            pixel = max(1.0, 1.5 * 192 / 80) if "ratio_range" in chain or "crop_ratio" in chain else 192 / 110
            assert np.abs(box - [x, y, x + w, y + h]).max() <= pixel + 1
            got = pasted(crop, box, seen.shape)
            kernel = np.ones((2 * int(np.ceil(pixel)) + 1,) * 2, np.uint8)
            assert (got & ~cv2.dilate(seen, kernel)).sum() <= 0.01 * seen.sum()
            inner = cv2.erode(seen, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=1)
            assert (inner & (1 - got)).sum() <= 0.01 * seen.sum()
            compared += 1
        crowd = batch["ignore_boxes"][0, 0]
        seen = of_colour(picture, CROWDED)
        if crowd.any() and seen.any() and not chain.get("aug_prob"):
            x, y, w, h = cv2.boundingRect(seen)
            assert np.abs(crowd - [x, y, x + w, y + h]).max() <= 192 / 80 * 1.5 + 1
    assert compared > 8


# The order


EVERYTHING = {
    **{"rotate90_ratio": 0.5, "flip_vertical_ratio": 0.5, "aug_prob": 0.5, "copy_paste_ratio": 0.5},
    "repeat_threshold": 1.0,
}


def test_batches_hold_the_orientation_that_turns_give(painted):
    config = painted(resize="short_side", batch_size=2, rotate90_ratio=0.5)
    folder = ensure_mindrecord(config, "train", training=True)
    loader, upright, counts = TrainLoader(config, folder), set(), []
    for epoch in range(10):
        found = list(loader.epoch(epoch))
        assert len(found) == len(loader) == 12 // 2 - 1
        for b in found:
            turned = b["image"].shape[2] > b["image"].shape[3]
            height, width = b["image_size"].T
            assert (height >= width if turned else width >= height).all()
            upright |= {(int(i), turned) for i in b["image_id"]}
        counts.append(sum(b["image"].shape[2] > b["image"].shape[3] for b in found))
    # lying and upright pictures both ways, square ones never upright
    assert {i for i, turned in upright if turned} == {i for i in range(1, 13) if i % 4}
    assert len(set(counts)) > 1


@pytest.mark.parametrize("resize", ["canvas", "short_side"])
def test_training_goes_on_within_an_epoch_with_all_of_it(painted, resize):
    config = painted(resize=resize, batch_size=2, **EVERYTHING)
    whole = batches(config, 1)
    # the rarer object's images come sqrt(1 / (4 / 12)) = 1.73 times
    assert max(int(b["occurrence"].max()) for b in whole) == 1
    for start in range(len(whole)):
        for a, b in zip_equal(batches(config, 1, start), whole[start:]):
            assert all(np.array_equal(a[k], b[k]) for k in a)


def test_ranks_and_workers_change_nothing(painted):
    config = painted(resize="short_side", batch_size=2, num_parallel_workers=1, **EVERYTHING)
    alone = batches(config)
    parts = [batches(painted(resize="short_side", num_parallel_workers=2, **EVERYTHING), 0, 0, r, 2) for r in (0, 1)]
    assert len(alone) == len(parts[0]) == len(parts[1])
    for both, *single in zip_equal(alone, *parts):
        for k in both:
            np.testing.assert_array_equal(both[k], np.concatenate([s[k] for s in single]))


def test_too_few_images_to_turn(painted, refusal):
    config = painted(resize="short_side", batch_size=7, rotate90_ratio=0.5)
    folder = ensure_mindrecord(config, "train", training=True)
    with refusal(ValueError, "12 images with objects", "two batches of 7", "lower batch_size"):
        TrainLoader(config, folder)


def digest(config):
    """Of two epochs, in whole levels and hundredths of a pixel."""
    folder, found = ensure_mindrecord(config, "train", training=True), hashlib.sha256()
    for epoch in (0, 3):
        for batch in TrainLoader(config, folder).epoch(epoch):
            pixels = batch["image"] * np.reshape(config.img_std, (3, 1, 1)) + np.reshape(config.img_mean, (3, 1, 1))
            batch["image"] = np.round(pixels).astype(np.uint8)
            batch["gt_boxes"], batch["ignore_boxes"] = (np.round(batch[k], 2) for k in ("gt_boxes", "ignore_boxes"))
            for k in ("image_id", "image", "image_size", "gt_boxes", "gt_labels", "gt_valid", "gt_masks"):
                found.update(batch[k].tobytes())
            found.update(batch["ignore_boxes"].tobytes())
    return found.hexdigest()


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ({}, "0b35be6d163e8c7f8c5fb8e416cb2b61e59b83c7a5421fb30536e0909fe46981"),
        (
            {"aug_prob": 0.5, "photo_ratio": 0.5, "ratio_range": [0.5, 2.0], "crop_ratio": 0.5, "expand_ratio": 0.5},
            "85d7f975e6e93e14f6751706d3dc2eb27fdf0b3b5b721e5291a08e0ca9629da5",
        ),
    ],
    ids=["defaults", "all older ones"],
)
def test_draws_are_those_from_before_there_were_turns(shapes_config, overrides, wanted):
    """A run that was begun then goes on with the images that it would have seen."""
    assert digest(shapes_config(img_height=128, img_width=192, **overrides)) == wanted
