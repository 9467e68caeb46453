"""Copy-paste: pictures of flat colours, of which each pixel tells what object shows there."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from src.data.augment.copy_paste import copy_paste, draw_objects, on_canvas
from src.data.augment.geometry import draw_view
from src.data.fields import fields_of
from src.data.inspect import restored
from src.data.loader import TrainLoader
from src.data.mindrecord import ensure_mindrecord, record_files
from src.data.records import DataError
from src.data.scene import Scene
from src.data.transforms import prepare_image, to_bitmap
from src.runtime.newer import zip_equal
from tests.conftest import CocoFolder, all_cores

HEIGHT, WIDTH = 192, 256  # the canvas of configs/shapes.yaml, so that nothing is resized
PICTURES, OBJECTS = 4, 3


def shade(number):
    """A colour (3,) for each number up to 64, none near another."""
    return np.array([60 * (number % 4), 60 * (number // 4 % 4), 60 * (number // 16)]) + 20


def background(picture):
    return 40 + picture


def number_of(picture, place):
    return picture * OBJECTS + place


def outline(random):
    centre, angles = random.uniform([50, 50], [WIDTH - 50, HEIGHT - 50]), np.arange(8) * np.pi / 4
    radius = random.uniform(15, 45) * random.uniform(0.8, 1.2, 8)
    return np.round(centre + radius[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])).ravel().tolist()


def bitmaps_of(annotation):
    return to_bitmap(annotation["segmentation"], HEIGHT, WIDTH).astype(bool)


@pytest.fixture
def flat(tmp_path, shapes_config):
    """Makes a config of pictures of a flat background with three objects and a crowd, each of a colour and, but for
    the crowds, a class of its own, every other mask as RLE; what their masks are, by class; and the annotations.
    """
    folder, random = CocoFolder(tmp_path / "flat"), np.random.default_rng(3)
    count = PICTURES * OBJECTS
    folder.data["categories"] = [{"id": i + 1, "name": f"c{i}", "keypoints": ["a", "b"]} for i in range(count)]
    masks = {}
    for picture in range(PICTURES):
        pixels = np.empty((HEIGHT, WIDTH, 3), np.uint8)
        pixels[:] = shade(background(picture))
        folder.add_image(HEIGHT, WIDTH, f"{picture}.png", b"")
        crowd = folder.add_object(picture + 1, (10 + 40 * picture, 2, 30, 12), 1, iscrowd=1)
        crowd["segmentation"] = text(rle.encode(np.asfortranarray(bitmaps_of(crowd).astype(np.uint8))))
        pixels[bitmaps_of(crowd)] = shade(50 + picture)
        seen = []
        for place in range(OBJECTS):
            points = outline(random)
            seen = [m & ~to_bitmap([points], HEIGHT, WIDTH).astype(bool) for m in seen]
            seen.append(to_bitmap([points], HEIGHT, WIDTH).astype(bool))
            pixels[seen[-1]] = shade(number_of(picture, place))
        for place, mask in enumerate(seen):
            number = number_of(picture, place)
            y, x = np.nonzero(mask)
            box = [int(v) for v in (x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min())]
            points = [float(x[0]), float(y[0]), 2, float(x[-1]), float(y[-1]), 1]
            coded = text(rle.encode(np.asfortranarray(mask.astype(np.uint8))))
            folder.add_object(picture + 1, box, number + 1, segmentation=coded, keypoints=points)
            masks[number + 1] = mask
        (folder.images / f"{picture}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    folder.write()

    def make(**overrides):
        names = ["background", *(c["name"] for c in folder.data["categories"])]
        places = {"train_dataset": str(folder.root), "coco_classes": names, "num_classes": count + 1}
        plain = {"batch_size": 1, "flip_ratio": 0.0, "copy_paste_ratio": 1.0}
        return shapes_config(**places | plain | overrides)

    return make, masks, folder


def text(runs):
    return {**runs, "counts": runs["counts"].decode()}


def loader(config):
    return TrainLoader(config, ensure_mindrecord(config, "train", training=True))


def numbers_in(batch, config):
    """(H, W): whose colour each pixel has."""
    pixels = restored(batch["image"][0], config).astype(int)
    levels = (pixels - 20) // 60
    assert (levels * 60 + 20 == pixels).all()
    return levels @ [1, 4, 16]


def box_of(mask):
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], float)


def drawn(crop, box):
    """A crop (S, S) stretched over its box."""
    step = (box[2:] - box[:2]) / len(crop)
    to_canvas = np.column_stack([np.diag(step), box[:2] + step / 2 - 0.5])
    return cv2.warpAffine(crop, to_canvas, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR) > 127


# What a batch holds


def test_pixels_masks_and_boxes_tell_the_same(flat):
    make, masks, _ = flat
    config = make()
    data, seen = loader(config), {"pasted": 0, "covered": 0, "gone": 0, "alone": 0}
    for batch in (b for epoch in range(8) for b in data.epoch(epoch)):
        own = int(batch["image_id"][0]) - 1
        found = numbers_in(batch, config)
        # of the other picture its objects alone: neither its background nor its crowd
        assert set(np.unique(found)) <= {*range(PICTURES * OBJECTS), background(own), 50 + own}
        valid = batch["gt_valid"][0]
        labels, boxes = batch["gt_labels"][0][valid], batch["gt_boxes"][0][valid]
        assert batch["ignore_boxes"][0].tolist()[0] == [10 + 40 * own, 2, 40 + 40 * own, 14]
        assert not batch["ignore_boxes"][0][1:].any()
        others = {(int(label) - 1) // OBJECTS for label in labels} - {own}
        assert len(others) <= 1
        seen["alone"] += not others and len(labels) == OBJECTS
        for label, box, crop in zip_equal(labels, boxes, batch["gt_masks"][0][valid]):
            pasted = (label - 1) // OBJECTS != own
            # a picture may be pasted on itself, which changes nothing that is seen
            shows = found == label - 1
            seen["pasted"] += pasted
            seen["covered"] += shows.sum() < masks[int(label)].sum()
            np.testing.assert_allclose(box, box_of(shows), atol=1e-3)
            cell = int(np.ceil((box[2:] - box[:2]).max() / len(crop)))
            inside, kernel = shows.astype(np.uint8), np.ones((2 * cell + 1,) * 2)
            assert not (drawn(crop, box) & (cv2.dilate(inside, kernel) == 0)).any()
            assert not (~drawn(crop, box) & (cv2.erode(inside, kernel, borderValue=0) > 0)).any()
        for place in range(OBJECTS):
            number = number_of(own, place)
            left, before = found == number, masks[number + 1]
            if number + 1 not in labels:
                # nothing, or little beside a box of which a side has moved
                assert left.sum() <= 300 and (not left.any() or np.abs(box_of(left) - box_of(before)).max() > 10)
                seen["gone"] += 1
            elif left.any() and left.sum() < before.sum():
                assert left.sum() > 300 or np.abs(box_of(left) - box_of(before)).max() <= 10
    assert min(seen.values()) > 0, seen


def test_keypoints_come_with_their_objects(flat):
    make, _, folder = flat
    config = make(detector="keypoint_rcnn", keypoint_head__names=["a", "b"])
    objects = [a for a in folder.data["annotations"] if not a["iscrowd"]]
    annotated = {a["category_id"]: np.reshape(a["keypoints"], (-1, 3)) for a in objects}
    pasted = 0
    data = loader(config)
    for batch in (b for epoch in range(6) for b in data.epoch(epoch)):
        valid = batch["gt_valid"][0]
        for label, points in zip_equal(batch["gt_labels"][0][valid], batch["gt_keypoints"][0][valid]):
            np.testing.assert_array_equal(points, annotated[int(label)])
            pasted += (label - 1) // OBJECTS != int(batch["image_id"][0]) - 1
    assert pasted > 5


def test_boxes_alone_follow_masks(flat):
    """A detector of boxes takes its objects from masks too."""
    make, _, _ = flat
    for a, b in zip_equal(loader(make()).epoch(1), loader(make(detector="faster_rcnn")).epoch(1)):
        assert "gt_masks" not in b
        for name in b:
            np.testing.assert_array_equal(a[name], b[name])


def test_a_users_function_changes_both(flat, tmp_path):
    (tmp_path / "own.py").write_text(
        "def first(image, boxes, labels, masks, random):\n    return image, *(v[:1] for v in (boxes, labels, masks))\n"
    )
    make, _, _ = flat
    data, pasted = loader(make(transform=f"{tmp_path}/own.py:first")), 0
    for batch in (b for epoch in range(4) for b in data.epoch(epoch)):
        labels = batch["gt_labels"][0][batch["gt_valid"][0]]
        assert ((labels - 1) % OBJECTS == 0).all() and len(labels) <= 2
        pasted += len(labels) == 2
    assert pasted > 2


def test_no_more_objects_than_may_be(flat):
    make, _, _ = flat
    for most in (OBJECTS, OBJECTS + 1):
        data = loader(make(max_instance_count=most))
        assert max(int(b["gt_valid"].sum()) for e in range(4) for b in data.epoch(e)) == most


# What is covered


def block(x1, y1, x2, y2):
    out = np.zeros((100, 100), np.uint8, order="F")
    out[y1:y2, x1:x2] = 1
    return out


def scene_of(*bitmaps, colour=0):
    boxes = np.array([box_of(b) for b in bitmaps], np.float32).reshape(-1, 4)
    return Scene(np.full((100, 100, 3), colour, np.uint8), boxes, [rle.encode(b) for b in bitmaps])


@pytest.mark.parametrize(
    ("cover", "left"),
    [
        ((0, 0, 60, 60), None),
        ((20, 0, 40, 40), [0, 0, 20, 40]),  # beside it
        ((5, 20, 100, 100), [0, 0, 20, 40]),  # its sides stay
        ((0, 0, 20, 24), [0, 24, 20, 40]),  # 320 pixels are left
        ((0, 0, 20, 25), None),  # 300, and a side has moved by 25
        ((2, 2, 18, 38), [0, 0, 20, 40]),  # 224, around it
        ((0, 0, 20, 10), [0, 10, 20, 40]),  # 600, the side by 10
    ],
)
def test_what_is_left(cover, left):
    own, above = block(0, 0, 20, 40), block(*cover)
    scene, rows = copy_paste(scene_of(own), scene_of(above, colour=9))
    assert rows.tolist() == ([] if left is None else [0])
    assert scene.image[..., 0].tolist() == (9 * above).tolist()
    if left is not None:
        assert scene.boxes[0].tolist() == left
        assert to_bitmap(scene.masks[0], 100, 100).tolist() == (own * (1 - above)).tolist()
    assert scene.boxes[-1].tolist() == box_of(above).tolist()


def test_any_number_of_objects_is_as_likely():
    drawn_rows = [draw_objects(4, 9, np.random.default_rng(s)) for s in range(2000)]
    counts = np.bincount([len(r) for r in drawn_rows], minlength=5)
    assert counts.min() > 340 and counts.max() < 460
    each = np.bincount(np.concatenate(drawn_rows), minlength=4)
    assert each.min() > 930 and each.max() < 1070
    assert all((np.diff(r) > 0).all() for r in drawn_rows)
    assert max(len(draw_objects(4, 2, np.random.default_rng(s))) for s in range(50)) == 2
    assert not len(draw_objects(4, -1, np.random.default_rng(0)))


# Where the two come from


CHAINS = {
    "jitter": {"ratio_range": [0.3, 2.0], "fixed_size_crop": True},
    "windows": {"ratio_range": [0.5, 2.0], "crop_ratio": 0.5, "expand_ratio": 0.5},
}


@pytest.mark.parametrize("as_rle", [False, True], ids=["polygons", "rle"])
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_a_canvas_shows_what_the_network_would_get(shapes_config, chain, as_rle):
    config, compared = shapes_config(**chain), 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        image = random.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        outlines = [[outline(random)] for _ in range(3)]
        bitmaps = [to_bitmap(o, HEIGHT, WIDTH) for o in outlines]
        masks = [rle.encode(b) for b in bitmaps] if as_rle else outlines
        scene = Scene(image, np.array([box_of(b) for b in bitmaps], np.float32), masks)
        view = draw_view(config, HEIGHT, WIDTH, scene.boxes, bool(seed % 2), random)
        shown, rows = on_canvas(scene, view, (HEIGHT, WIDTH), config, fields_of(config)[:0], 1.0)
        usual, (high, wide) = prepare_image(image, config, view=view)
        picture = slice(view.left, view.left + wide)
        expected = restored(usual[:, :high, picture], config)
        np.testing.assert_array_equal(shown.image[:high, picture], expected)
        for row, mask, box in zip_equal(rows, shown.masks, shown.boxes):
            # the independent route: the bitmap moved by one warp of pixels' centres
            move = view.move @ np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]) - [[0, 0, 0.5], [0, 0, 0.5]]
            warped = cv2.warpAffine(bitmaps[row] * np.float32(1), move, (WIDTH, HEIGHT)) > 0.5
            warped[high:] = warped[:, picture.stop :] = warped[:, : picture.start] = False
            if warped.sum() < 100:
                continue
            got = to_bitmap(mask, HEIGHT, WIDTH) > 0
            pixel = int(np.ceil(max(1.0, *view.scale.tolist())))
            kernel = np.ones((2 * pixel + 1,) * 2)
            assert not (got & (cv2.dilate(warped.astype(np.uint8), kernel) == 0)).any()
            assert not (~got & (cv2.erode(warped.astype(np.uint8), kernel, borderValue=0) > 0)).any()
            np.testing.assert_allclose(box, box_of(got), atol=1.5 * pixel)
            compared += 1
    assert compared > 15


def test_unrounded_pictures_stay_so(shapes_config):
    """Where nothing is pasted each pixel is what it is without."""
    more = {"resize_filter": "unrounded", "img_width": 224}
    pasted, plain = (loader(shapes_config(copy_paste_ratio=r, **more)) for r in (1.0, 0.0))
    shares = []
    for a, b in zip_equal(pasted.epoch(0), plain.epoch(0)):
        grey = b["image"][0].transpose(1, 2, 0) * np.array(pasted.config.img_std) + pasted.config.img_mean
        broken = np.abs(grey - np.round(grey)).max(-1) > 0.01
        assert broken.mean() > 0.3
        shares.append((a["image"][0] == b["image"][0]).all(0)[broken].mean())
    assert min(shares) > 0.2 and np.mean(shares) > 0.6


def test_how_often_and_of_whom(flat):
    make, _, folder = flat
    folder.add_image(HEIGHT, WIDTH, "empty.png", (folder.images / "0.png").read_bytes())
    folder.write()
    data = loader(make(copy_paste_ratio=0.4, train_empty_images=True))
    pasted = np.concatenate([data.epoch_rows(e).pasted[:, 0] for e in range(200)])
    assert 0.35 < (pasted >= 0).mean() < 0.45
    # one without objects has nothing to give
    counts = np.bincount(pasted[pasted >= 0], minlength=PICTURES + 1)
    assert counts[PICTURES] == 0 and counts[:PICTURES].min() > 0.8 * counts.sum() / PICTURES
    assert (loader(make(copy_paste_ratio=0.0)).epoch_rows(3).pasted[:, 0] == -1).all()


def test_the_rest_of_training_is_drawn_as_without(flat):
    """Whom nothing is pasted on is seen as ever."""
    make, _, _ = flat
    more = {"flip_ratio": 0.5, "ratio_range": [0.5, 2.0], "photo_ratio": 0.5}
    same = 0
    data, plain = loader(make(copy_paste_ratio=0.5, **more)), loader(make(copy_paste_ratio=0.0, **more))
    for epoch in range(8):
        alone = data.epoch_rows(epoch).pasted[:, 0] < 0
        for a, b, untouched in zip_equal(data.epoch(epoch), plain.epoch(epoch), alone):
            assert a["image_id"] == b["image_id"]
            if untouched:
                np.testing.assert_array_equal(a["image"], b["image"])
                same += 1
    assert same > 5


def test_draws_repeat_and_resume(flat):
    make, _, _ = flat
    more = {"flip_ratio": 0.5, "ratio_range": [0.1, 2.0], "fixed_size_crop": True, "photo_ratio": 0.5}
    with all_cores():
        one = list(loader(make(num_parallel_workers=1, **more)).epoch(2))
        two = list(loader(make(num_parallel_workers=2, python_multiprocessing=True, **more)).epoch(2, start_step=1))
    for a, b in zip_equal(one[1:], two):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


# What can't be used


@pytest.fixture
def spoilt(flat):
    """The config factory above, the second picture's bytes spoilt after its conversion."""
    make, _, folder = flat
    path = Path(record_files(ensure_mindrecord(make(), "train", training=True))[0])
    data, content = path.read_bytes(), (folder.images / "1.png").read_bytes()
    middle = data.find(content) + len(content) // 2
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :])
    return path.parent, make


def test_a_damaged_picture_stops_where_it_is_pasted(spoilt, refusal):
    folder, make = spoilt
    data = TrainLoader(make(), folder)
    # an epoch that has it pasted before its own turn
    for epoch in range(20):
        places = data.epoch_rows(epoch)
        pasted, own = np.flatnonzero(places.pasted[:, 0] == 1), np.flatnonzero(places.rows == 1)
        if len(pasted) and pasted[0] < own[0]:
            break
    batches = data.epoch(epoch)
    with refusal(DataError, "image 2: its MindRecord row is damaged", "on_bad_image: skip"):
        for _ in range(pasted[0] + 1):
            next(batches)


def test_a_damaged_picture_is_left_out_by_option(spoilt, capsys):
    folder, make = spoilt
    data = TrainLoader(make(on_bad_image="skip"), folder)
    for epoch in range(5):
        batches = list(data.epoch(epoch))
        assert len(batches) == PICTURES
        for b in batches:
            labels = b["gt_labels"][0][b["gt_valid"][0]]
            assert len(labels) and not ((labels - 1) // OBJECTS == 1).any()
    assert capsys.readouterr().out.count("left out: image 2") == 1
    assert json.loads((folder / "index.json").read_text())["objects"] == [OBJECTS] * PICTURES
