"""labelme's files as records: frames, shapes, and what is refused or passed over."""

import base64
import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from src.data.formats import read_split, resolve_classes
from src.data.mindrecord import ground_truth
from src.data.records import DataError
from src.data.segmentations import as_rle
from src.data.truth import read_truth
from tests.data.formats.reading import picture

SQUARE = [[10, 10], [30, 10], [30, 25], [10, 25]]


def shape(label="dog", points=SQUARE, kind="polygon", **other):
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}} | other


def bitmap(pixels):
    return base64.b64encode(cv2.imencode(".png", pixels.astype(np.uint8) * 255)[1].tobytes()).decode()


class LabelmeFolder:
    def __init__(self, root, shapes_config):
        self.root, self.make = root, shapes_config
        root.mkdir()

    def add(self, name, *shapes, content=None, **other):
        """An image of 60 x 40 pixels, or `content`, and its file."""
        path = self.root / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".jpg").write_bytes(picture() if content is None else content)
        data = {"version": "5.4.1", "shapes": list(shapes), "imagePath": path.with_suffix(".jpg").name}
        data |= {"imageData": None, "imageHeight": 40, "imageWidth": 60} | other
        path.write_text(json.dumps({k: v for k, v in data.items() if v != "absent"}))
        return path

    def config(self, **other):
        places = {"dataset": "labelme", "train_dataset": str(self.root), "val_dataset": str(self.root)}
        config = self.make(**{**places, "coco_classes": "auto", "val_share": 0.0, **other})
        return resolve_classes(config, True)

    def read(self, split="train", **other):
        return read_split(self.config(**other), split)

    def mask(self, *shapes, **other):
        """The pixels of the only object of these shapes."""
        self.add("a", *shapes)
        (instance,) = self.read(**other).usable("stop")[0].instances
        return rle.decode(as_rle(instance.segmentation, 40, 60)), instance


@pytest.fixture
def labelme(tmp_path, shapes_config):
    return LabelmeFolder(tmp_path / "labels", shapes_config)


def iou(a, b):
    return (a.astype(bool) & b.astype(bool)).sum() / (a.astype(bool) | b.astype(bool)).sum()


def test_files_become_records(labelme):
    labelme.add("sub/b", shape("cat"), shape("dog", [[40, 30], [20, 5]], "rectangle"))
    labelme.add("a", shape(7))
    data = labelme.read()
    assert [c["name"] for c in data.categories] == ["7", "cat", "dog"]
    assert [(r.image_id, r.file_name, r.faults) for r in data.images] == [(1, "a.jpg", []), (2, "sub/b.jpg", [])]
    assert data.images[1].labels.tolist() == [2, 3]
    np.testing.assert_array_equal(data.images[1].boxes, [[10, 10, 30, 25], [20, 5, 40, 30]])
    assert data.with_masks
    assert [i.area for i in data.images[1].instances] == [300, 500]


# ---------------------------------------------------------------------------------------------------------
# frames


@pytest.mark.parametrize("orientation", range(1, 9))
def test_shapes_are_drawn_on_the_upright_picture(labelme, orientation):
    size = (40, 60) if orientation < 5 else (60, 40)
    labelme.add("a", shape(), content=picture(orientation), imageHeight=size[0], imageWidth=size[1])
    record = labelme.read().usable("stop")[0]
    assert (record.height, record.width, record.orientation) == (*size, orientation)


def test_no_annotated_size_is_the_upright_one(labelme):
    labelme.add("a", shape(), content=picture(6), imageHeight="absent", imageWidth=None)
    record = labelme.read().usable("stop")[0]
    assert (record.height, record.width, record.orientation) == (60, 40, 6)


def test_labels_of_the_stored_picture(labelme):
    labelme.add("a", shape(), content=picture(6))
    record = labelme.read().usable("stop")[0]
    assert (record.height, record.width, record.orientation) == (40, 60, 1)
    assert "60 x 40" in labelme.read(exif="upright").images[0].faults[0]


def test_pictures_resized_since(labelme):
    path = labelme.add("a", shape(), imageHeight=20, imageWidth=30)
    (fault,) = labelme.read().images[0].faults
    for part in (path, "30 x 20", "60 x 40"):
        assert str(part) in fault


# ---------------------------------------------------------------------------------------------------------
# shapes


TILTED = [[30, 5], [45, 20], [35, 30], [20, 15]]
POLYGONS = {
    "rotation": shape(points=TILTED, kind="rotation", direction=0.78),
    "oriented_rectangle": shape(points=TILTED, kind="oriented_rectangle"),
    "four corners": shape(points=TILTED, kind="rectangle"),
    "no kind": shape(points=TILTED, kind=None),
    "as text": shape(points=[[str(x), str(y)] for x, y in TILTED]),
}


@pytest.mark.parametrize("drawn", POLYGONS.values(), ids=POLYGONS)
def test_shapes_of_four_corners(labelme, drawn):
    mask, instance = labelme.mask(drawn)
    np.testing.assert_array_equal(mask, rle.decode(rle.frPyObjects([np.ravel(TILTED).tolist()], 40, 60))[..., 0])
    assert instance.box == (20, 5, 45, 30)


def test_a_circle(labelme):
    mask, instance = labelme.mask(shape(points=[[30, 20], [30, 30]], kind="circle"))
    y, x = np.mgrid[:40, :60] + 0.5
    assert iou(mask, (x - 30) ** 2 + (y - 20) ** 2 < 100) > 0.97
    np.testing.assert_allclose(instance.box, [20, 10, 40, 30], atol=0.05)


def test_a_polygon_is_clipped_not_its_corners(labelme):
    mask, instance = labelme.mask(shape(points=[[-60, 20], [20, -10], [20, 50]]))
    unclipped = rle.decode(rle.frPyObjects([[-60, 20, 20, -10, 20, 50]], 40, 60))[..., 0]
    # COCO's rasteriser clips by itself; it rounds corners to fifths of a pixel
    assert iou(mask, unclipped) > 0.99
    assert instance.box == (0, 0, 20, 40)
    assert all(0 <= v <= 60 for p in instance.segmentation for v in p)


def test_a_bow_tie_has_area(labelme):
    mask, instance = labelme.mask(shape(points=[[10, 10], [30, 30], [30, 10], [10, 30]]))
    assert instance.area == mask.sum() == pytest.approx(200, rel=0.06)


def test_a_mask(labelme):
    pixels = np.zeros((12, 20), bool)
    pixels[2:, :8] = pixels[5, 12:] = True
    mask, instance = labelme.mask(shape(points=[[5, 6], [24, 17]], kind="mask", mask=bitmap(pixels)))
    expected = np.zeros((40, 60), bool)
    expected[6:18, 5:25] = pixels
    np.testing.assert_array_equal(mask, expected)
    assert instance.box == (5, 8, 25, 18)
    assert instance.area == pixels.sum()


def test_a_mask_that_leaves_the_picture(labelme):
    mask, _ = labelme.mask(shape(points=[[-5, 30], [14, 49]], kind="mask", mask=bitmap(np.ones((20, 20)))))
    expected = np.zeros((40, 60), bool)
    expected[30:, :15] = True
    np.testing.assert_array_equal(mask, expected)


def test_groups_are_one_object(labelme):
    parts = [shape(points=[[0, 0], [9, 0], [9, 9], [0, 9]], group_id=1), shape("cat", group_id=1)]
    corner = shape(points=[[50, 30], [59, 39]], kind="mask", mask=bitmap(np.ones((10, 10))), group_id=1)
    labelme.add("a", *parts, corner)
    dog, cat = labelme.read().usable("stop")[0].instances
    assert (dog.box, dog.area) == ((0, 0, 60, 40), 181)
    assert (cat.box, cat.area) == ((10, 10, 30, 25), 300)


def test_background_cuts_what_lies_under_it(labelme):
    hole = shape("_background_", [[15, 12], [25, 12], [25, 20], [15, 20]])
    mask, instance = labelme.mask(shape(), hole)
    expected = np.zeros((40, 60), bool)
    expected[10:25, 10:30] = True
    expected[12:20, 15:25] = False
    np.testing.assert_array_equal(mask, expected)
    assert instance.area == 220
    data = labelme.read()
    assert [c["name"] for c in data.categories] == ["dog"]
    assert any("_background_" in n and n.endswith(": 1") for n in data.notes)


def test_background_below_an_object_cuts_nothing(labelme):
    assert labelme.mask(shape("_background_"), shape())[1].area == 300


def test_ignored_regions(labelme):
    labelme.add("a", shape(), shape("__ignore__", [[40, 5], [50, 15]], "rectangle"))
    data = labelme.read()
    assert [c["name"] for c in data.categories] == ["dog"]
    assert [i.crowd for i in data.images[0].instances] == [False]
    assert any("__ignore__" in n and n.endswith(": 1") for n in data.notes)
    ignored = labelme.read(labelme_ignore="crowd").images[0].instances[1]
    assert (ignored.label, ignored.crowd, ignored.box) == (0, True, (40, 5, 50, 15))


def test_points_are_counted(labelme):
    labelme.add("a", shape(), shape("tip", [[1, 1]], "point"), shape("tip", [[1, 1], [2, 2]], "points"))
    data = labelme.read()
    assert len(data.usable("stop")[0].instances) == 1
    assert "points have no area and are passed over: 2" in data.notes
    assert [c["name"] for c in data.categories] == ["dog"]


REFUSED = {
    "a line": (shape(points=[[1, 1], [9, 9]], kind="line"), "a line has no area"),
    "a strip": (shape(points=[[1, 1], [9, 9], [12, 3]], kind="linestrip", width=5), "a linestrip has no area"),
    "an unknown kind": (shape(kind="cuboid"), "a cuboid has no area"),
    "a rectangle turned, of two corners": (shape(points=[[1, 1], [9, 9]], kind="rectangle", rotation=30), "rotation"),
    "a circle of three points": (shape(kind="circle"), "of a circle"),
    "a mask without bitmap": (shape(points=[[1, 1], [9, 9]], kind="mask"), "bitmap"),
    "a mask of another size": (shape(points=[[1, 1], [9, 9]], kind="mask", mask=bitmap(np.ones((4, 4)))), "4 x 4"),
    "a mask that is no image": (shape(points=[[1, 1], [9, 9]], kind="mask", mask="AAAA"), "not an image"),
    "a label of a list": (shape(["dog"]), "no label"),
    "no label": (shape(None), "no label"),
    "points of words": (shape(points=[["a", 1], [2, 3], [4, 5]]), "pairs of finite numbers"),
    "points of nothing": (shape(points=None), "pairs of finite numbers"),
    "triples": (shape(points=[[1, 2, 3]] * 3), "pairs of finite numbers"),
    "far away": (shape(points=[[1e300, 2], [2, 3], [4, 5]]), "pairs of finite numbers"),
    "a text": ("dog", "no label"),
}


@pytest.mark.parametrize(("broken", "told"), REFUSED.values(), ids=REFUSED)
def test_shapes_that_are_refused(labelme, broken, told):
    path = labelme.add("a", shape(), broken)
    (fault,) = labelme.read().images[0].faults
    assert fault.startswith(f"{path}: shape 2")
    assert told in fault


# ---------------------------------------------------------------------------------------------------------
# files


def test_foreign_and_hidden_files_are_counted(labelme):
    labelme.add("a", shape())
    labelme.add(".ipynb_checkpoints/a-checkpoint", shape("other"))
    (labelme.root / "._a.json").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    (labelme.root / "package.json").write_text('{"name": "mine"}')
    (labelme.root / "coco.json").write_text('{"images": [], "annotations": [], "categories": []}')
    data = labelme.read()
    assert [r.file_name for r in data.images] == ["a.jpg"]
    assert [c["name"] for c in data.categories] == ["dog"]
    assert any("passed over: 4" in n for n in data.notes)


def test_images_without_labels_are_counted(labelme):
    labelme.add("a", shape())
    (labelme.root / "b.jpg").write_bytes(picture())
    assert "1 images without labels are left out: b.jpg" in labelme.read().notes


def test_a_damaged_file_is_a_fault(labelme):
    labelme.add("a", shape())
    (labelme.root / "b.json").write_text('{\n"shapes": [')
    faults = [r.faults for r in labelme.read().images]
    assert faults[0] == []
    assert f"{labelme.root / 'b.json'}, line 2" in faults[1][0]


def test_an_image_kept_in_the_file(labelme):
    path = labelme.add("a", shape(), imageData=base64.b64encode(picture()).decode())
    path.with_suffix(".jpg").unlink()
    (fault,) = labelme.read().images[0].faults
    assert str(path) in fault
    assert "import_labels" in fault


def test_paths_of_windows_and_of_another_folder(labelme, tmp_path):
    labelme.add("a", shape(), imagePath="..\\images\\a.jpg")
    (labelme.root / "a.jpg").unlink()
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(picture())
    assert labelme.read().usable("stop")[0].path.samefile(tmp_path / "images/a.jpg")
    labelme.add("a", shape(), imagePath="C:\\Users\\me\\a.jpg")
    assert labelme.read().usable("stop")[0].path == labelme.root / "a.jpg"


def test_splits(labelme, refusal):
    for i in range(10):
        labelme.add(f"{i}", shape())
    drawn = {s: {r.file_name for r in labelme.read(s, val_share=0.3).images} for s in ("train", "val")}
    assert len(drawn["val"]) == 3
    assert drawn["train"] | drawn["val"] == {f"{i}.jpg" for i in range(10)}
    with refusal(DataError, labelme.root, "test"):
        labelme.read("test")
    for name in ("train/x", "valid/y"):
        labelme.add(name, shape())
    assert [r.file_name for r in labelme.read("val").images] == ["y.jpg"]


def test_a_list_names_the_split(labelme, tmp_path, refusal):
    for name in ("a", "b", "c"):
        labelme.add(name, shape())
    (tmp_path / "list.txt").write_text("b.jpg\n./c\n")
    assert [r.file_name for r in read_split(labelme.config(), str(tmp_path / "list.txt")).images] == ["b.jpg", "c.jpg"]
    (tmp_path / "list.txt").write_text("b\nz.jpg\n")
    with refusal(DataError, "list.txt, line 2", "z.jpg"):
        read_split(labelme.config(), str(tmp_path / "list.txt"))


def test_the_truth_of_evaluation(labelme):
    labelme.add("a", shape(), shape("cat", [[40, 5], [50, 15]], "rectangle"))
    truth = read_truth(ground_truth(labelme.config(), "val"))
    assert [(a["category_id"], a["bbox"], a["area"]) for a in truth["annotations"]] == [
        (2, [10, 10, 20, 15], 300),
        (1, [40, 5, 10, 10], 100),
    ]
