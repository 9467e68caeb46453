"""Labels from one format to another: what is kept, what is told, and what is refused."""

import base64
import json
import os

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from src.data.formats import read_split, resolve_classes
from src.data.import_labels import import_labels
from src.data.records import DataError
from src.data.segmentations import as_rle
from src.runtime.newer import zip_equal
from tests.data.formats.reading import load as load_data
from tests.data.formats.reading import picture

SQUARE = [[10, 10], [30, 10], [30, 25], [10, 25]]


def shape(label="dog", points=SQUARE, **other):
    return {"label": label, "points": points, "group_id": None, "shape_type": "polygon", "flags": {}} | other


class Labelme:
    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()

    def add(self, name, *shapes, image=True, **other):
        """One image of 60 x 40 pixels and its file."""
        picture = cv2.imencode(".jpg", np.full((40, 60, 3), 90, np.uint8))[1].tobytes()
        if image:
            (self.folder / f"{name}.jpg").write_bytes(picture)
        data = {"version": "5.4.1", "shapes": list(shapes), "imagePath": f"{name}.jpg", "imageData": None} | other
        (self.folder / f"{name}.json").write_text(json.dumps(data))
        return picture


@pytest.fixture
def labelme(tmp_path):
    return Labelme(tmp_path / "labels")


def split(out, name="train"):
    return json.loads((out / f"annotations/instances_{name}2017.json").read_text())


def test_shapes_become_objects(labelme, tmp_path):
    labelme.add(
        "one",
        shape(),
        shape("cat", [[40, 30], [20, 5]], shape_type="rectangle"),
        shape("cat", [[30, 20], [30, 30]], shape_type="circle"),
        shape("dog", [[0, 0], [9, 0], [9, 9]], group_id=1),
        shape("dog", [[50, 30], [70, 30], [70, 50]], group_id=1),
    )
    assert import_labels(labelme.folder, tmp_path / "out", val=0) == []
    data = split(tmp_path / "out")
    assert [c["name"] for c in data["categories"]] == ["cat", "dog"]
    boxes = [(a["category_id"], a["bbox"]) for a in data["annotations"]]
    # two shapes of one group are one object; what leaves the image is clipped
    assert boxes == [
        (2, [10, 10, 20, 15]),
        (1, [20, 5, 20, 25]),
        (1, [20, 10, 20, 20]),
        (2, [0, 0, 60, 40]),
    ]
    assert [len(a["segmentation"]) for a in data["annotations"]] == [1, 1, 1, 2]
    assert data["annotations"][2]["area"] == pytest.approx(np.pi * 100, rel=0.03)  # drawn in pixels
    assert len({a["id"] for a in data["annotations"]}) == 4


def test_it_loads_as_coco(labelme, tmp_path, shapes_config):
    for i in range(10):
        labelme.add(f"{i}", shape("dog" if i % 2 else "cat"))
    import_labels(labelme.folder, tmp_path / "out", val=0.3, seed=4)
    names = {}
    for part in ("train", "val"):
        root = str(tmp_path / "out")
        places = {"train_dataset": root, "val_dataset": root, "coco_classes": "auto"}
        config = resolve_classes(shapes_config(**places), training=True)
        data = load_data(config, part)
        names[part] = {r.path.name for r in data.records}
        assert config.coco_classes == ["background", "cat", "dog"]
    assert len(names["val"]) == 3
    assert names["train"] | names["val"] == {f"{i}.jpg" for i in range(10)}


def test_the_split_repeats(labelme, tmp_path):
    for i in range(10):
        labelme.add(f"{i}", shape())

    def val(seed, out):
        import_labels(labelme.folder, tmp_path / out, seed=seed)
        return [i["file_name"] for i in split(tmp_path / out, "val")["images"]]

    first = val(1, "a")
    assert first == val(1, "b")
    assert first != val(2, "c")


def test_an_image_kept_in_the_file(labelme, tmp_path):
    picture = labelme.add("one", shape())
    labelme.add("two", shape(), image=False, imageData=base64.b64encode(picture).decode())
    import_labels(labelme.folder, tmp_path / "out", val=0)
    assert (tmp_path / "out/train2017/two.jpg").read_bytes() == picture


BROKEN = {
    "cut short": ("{", "line 1"),
    "not UTF-8": (b"\xff\xfe", "JSON"),
    "no shapes": ('{"imagePath": "one.jpg"}', "labelme"),
    "a line": (shape(shape_type="line", points=[[1, 1], [9, 9]]), "shape 2 (dog): a line has no area"),
    "two points": (shape(points=[[1, 1], [9, 9]]), "shape 2 (dog): no area"),
    "beside the image": (shape(points=[[70, 50], [80, 50], [80, 60]]), "shape 2 (dog): no area"),
    "no label": (shape(label=""), "shape 2: has no label"),
    "words": (shape(points=[["a", 1], [2, 3], [4, 5]]), "shape 2 (dog)"),
    "not finite": (shape(points=[[float("nan"), 1], [2, 3], [4, 5]]), "finite"),
    "no points": (shape(points=[]), "shape 2 (dog)"),
    "a list": ([], "shape 2: has no label"),
}


@pytest.mark.parametrize(("content", "told"), BROKEN.values(), ids=BROKEN)
def test_broken_labels_are_refused_or_skipped(labelme, tmp_path, refusal, content, told):
    labelme.add("one", shape())
    if isinstance(content, (dict, list)):
        labelme.add("two", shape(), content)
    else:
        (labelme.folder / "two.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with refusal(DataError, labelme.folder / "two.json", told, "--on_bad_image skip"):
        import_labels(labelme.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    skipped = import_labels(labelme.folder, tmp_path / "out", skip=True)
    assert len(skipped) == 1
    assert [i["file_name"] for i in split(tmp_path / "out")["images"]] == ["one.jpg"]


def test_a_missing_image(labelme, tmp_path, refusal):
    labelme.add("one", shape(), image=False)
    with refusal(DataError, "one.json", "one.jpg", "missing"):
        import_labels(labelme.folder, tmp_path / "out")


def test_two_files_of_one_image(labelme, tmp_path, refusal):
    labelme.add("one", shape())
    labelme.add("two", shape(), image=False, imagePath="one.jpg")
    with refusal(DataError, "two.json", "one.json", "one.jpg"):
        import_labels(labelme.folder, tmp_path / "out")


def test_a_coco_file_is_split(coco_folder, tmp_path):
    import_labels(coco_folder.json, tmp_path / "out", coco_folder.images, val=0.34)
    train, val = split(tmp_path / "out"), split(tmp_path / "out", "val")
    assert sorted(i["id"] for d in (train, val) for i in d["images"]) == [1, 2, 3]
    assert len(val["images"]) == 1
    assert len(train["annotations"]) + len(val["annotations"]) == 2
    assert train["categories"] == coco_folder.data["categories"]
    for d, name in ((train, "train"), (val, "val")):
        listed = {i["file_name"] for i in d["images"]}
        assert {p.name for p in (tmp_path / f"out/{name}2017").iterdir()} == listed


@pytest.mark.parametrize("name", ["../outside.jpg", "/etc/hostname", ""])
def test_images_outside_their_folder(coco_folder, tmp_path, refusal, name):
    coco_folder.data["images"][0]["file_name"] = name
    coco_folder.write()
    with refusal(DataError, coco_folder.json, "file_name"):
        import_labels(coco_folder.json, tmp_path / "out", coco_folder.images)


def test_a_folder_that_is_there_stays(labelme, tmp_path, refusal):
    labelme.add("one", shape())
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    with refusal(DataError, tmp_path / "out", "there already"):
        import_labels(labelme.folder, tmp_path / "out")
    assert (tmp_path / "out/mine").read_text() == "mine"


def test_foreign_files_are_passed_over(labelme, tmp_path, capsys):
    labelme.add("one", shape())
    (labelme.folder / "package.json").write_text("[]")
    assert import_labels(labelme.folder, tmp_path / "out", val=0) == []
    assert "passed over: 1 (package.json)" in capsys.readouterr().out
    assert [i["file_name"] for i in split(tmp_path / "out")["images"]] == ["one.jpg"]


# ---------------------------------------------------------------------------------------------------------
# pictures


@pytest.mark.parametrize(("kind", "orientation"), [("JPEG", 6), ("PNG", 8), ("JPEG", 3), ("PNG", 5)])
def test_turned_pictures_are_written_upright(labelme, tmp_path, capsys, kind, orientation):
    """The object is where the labels say, for tools that turn pictures and for those that don't."""
    upright = np.full((60, 40, 3), 90, np.uint8) if orientation >= 5 else np.full((40, 60, 3), 90, np.uint8)
    upright[8:24, 4:20] = 250
    back = {3: 2, 6: 1, 8: 3}
    stored = np.rot90(upright, back[orientation]) if orientation in back else upright.transpose(1, 0, 2)
    name = "one.jpg" if kind == "JPEG" else "one.png"
    size = {"imageHeight": upright.shape[0], "imageWidth": upright.shape[1]}
    labelme.add("one", shape(points=[[4, 8], [20, 8], [20, 24], [4, 24]]), image=False, imagePath=name, **size)
    (labelme.folder / name).write_bytes(picture(orientation, kind, np.ascontiguousarray(stored)))
    import_labels(labelme.folder, tmp_path / "out", val=0)
    assert "1 pictures are written upright" in capsys.readouterr().out
    written = tmp_path / "out/train2017" / name
    with Image.open(written) as image:
        assert image.format == kind
        assert 0x0112 not in image.getexif()
        # a JPEG of quality 95
        np.testing.assert_allclose(np.array(image), upright, atol=0 if kind == "PNG" else 40)
    entry = split(tmp_path / "out")["images"][0]
    assert (entry["height"], entry["width"]) == upright.shape[:2]


def test_other_pictures_are_copied(labelme, tmp_path):
    content = picture(6)
    labelme.add("one", shape(), image=False, imageHeight=40, imageWidth=60)
    (labelme.folder / "one.jpg").write_bytes(content)
    import_labels(labelme.folder, tmp_path / "out", val=0)
    assert (tmp_path / "out/train2017/one.jpg").read_bytes() == content


def test_a_coco_file_of_upright_sizes(coco_folder, tmp_path):
    (coco_folder.images / "000000000001.jpg").write_bytes(picture(6))
    coco_folder.data["images"][0].update(height=60, width=40)
    coco_folder.write()
    import_labels(coco_folder.json, tmp_path / "out", coco_folder.images, val=0)
    with Image.open(tmp_path / "out/train2017/000000000001.jpg") as image:
        assert image.size == (40, 60)


def test_a_picture_resized_since_is_refused(coco_folder, tmp_path, refusal):
    coco_folder.data["images"][0].update(height=20, width=30)
    coco_folder.data["annotations"][0].update(bbox=[1, 1, 5, 5], segmentation=[[1, 1, 6, 1, 6, 6]])
    coco_folder.write()
    with refusal(DataError, "000000000001.jpg", "60 x 40", "30 x 20"):
        import_labels(coco_folder.json, tmp_path / "out", coco_folder.images)


def test_a_picture_listed_over_and_over(coco_folder, coco_config, tmp_path, refusal):
    """A small file doesn't fill a disk with copies of one picture; some images of one are as they were."""
    first = coco_folder.data["images"][0]
    coco_folder.data["images"] += [{**first, "id": 1000 + i} for i in range(99)]
    coco_folder.write()
    import_labels(coco_folder.json, tmp_path / "out", coco_folder.images, val=0)
    coco_folder.data["images"].append({**first, "id": 2000})
    coco_folder.write()
    with refusal(DataError, first["file_name"], "101 times", "list it once"):
        import_labels(coco_folder.json, tmp_path / "more", coco_folder.images)
    assert not (tmp_path / "more").exists()
    with refusal(DataError, first["file_name"], "101 times"):
        read_split(coco_config(), "train")


OUTSIDE = {
    "above": lambda folder, secret: "../secrets/secret.png",
    "a whole path": lambda folder, secret: str(secret),
    "a link": lambda folder, secret: os.symlink(secret, folder / "link.png") or "link.png",
    "below a link": lambda folder, secret: os.symlink(secret.parent, folder / "sub") or "sub/secret.png",
}


@pytest.mark.parametrize("lead", OUTSIDE.values(), ids=OUTSIDE)
@pytest.mark.parametrize("kind", ["labelme", "coco", "yolo"])
def test_images_from_outside_are_not_copied(tmp_path, refusal, kind, lead):
    (tmp_path / "away/secrets").mkdir(parents=True)
    secret = tmp_path / "away/secrets/secret.png"
    secret.write_bytes(picture(kind="PNG"))
    folder = tmp_path / "away/labels"
    folder.mkdir()
    name = lead(folder, secret)
    if kind == "labelme":
        (folder / "a.json").write_text(json.dumps({"shapes": [shape()], "imagePath": name}))
    elif kind == "coco":
        image = {"id": 1, "file_name": name, "height": 40, "width": 60}
        data = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "dog"}]}
        (folder / "_annotations.coco.json").write_text(json.dumps(data))
    else:
        secret.with_suffix(".txt").write_text("0 0.5 0.5 0.2 0.2")
        (folder / "link.txt").write_text("0 0.5 0.5 0.2 0.2")
        (folder / "data.yaml").write_text("train: train.txt\nnames: [dog]\n")
        (folder / "train.txt").write_text(name)
    with refusal(DataError, folder, "secret.png", "--images"):
        import_labels(folder, tmp_path / "out", source=kind)
    assert not (tmp_path / "out").exists()
    import_labels(folder, tmp_path / "out", tmp_path / "away", source=kind, val=0)
    assert [p.name for p in (tmp_path / "out/train2017").rglob("*.png")]


@pytest.mark.parametrize("layout", ["root", "file", "beside"])
def test_a_folder_of_images_that_is_a_link(coco_folder, tmp_path, refusal, layout):
    """It leads out of what was named; the named folder may itself be one."""
    stray = tmp_path / "elsewhere"
    if layout == "beside":
        (coco_folder.root / "labels").mkdir()
        place = coco_folder.json.rename(coco_folder.root / "labels/mine.json")
        images, labels = coco_folder.images.rename(coco_folder.root / "images"), place
    else:
        images, labels = coco_folder.images, coco_folder.root if layout == "root" else coco_folder.json
    (tmp_path / "named").symlink_to(coco_folder.root)
    assert import_labels(tmp_path / "named" / labels.relative_to(coco_folder.root), tmp_path / "before") == []
    images.rename(stray)
    images.symlink_to(stray)
    with refusal(DataError, stray / "000000000001.jpg", "--images"):
        import_labels(labels, tmp_path / "out")
    assert import_labels(labels, tmp_path / "out", images) == []


def test_a_file_that_is_no_picture(coco_folder, tmp_path, refusal):
    (coco_folder.images / "000000000001.jpg").write_text("secret")
    with refusal(DataError, "000000000001.jpg", "not an image"):
        import_labels(coco_folder.json, tmp_path / "out", coco_folder.images)


# ---------------------------------------------------------------------------------------------------------
# from one format to another and back


RING = np.zeros((40, 60), np.uint8)
RING[5:30, 10:50] = 1
RING[12:20, 20:30] = 0


@pytest.fixture
def varied(coco_folder):
    """Boxes with fractions, an object of two parts, one with a hole, a crowd, one without a mask, and an image without
    objects; of categories 10 and 20.
    """
    objects = coco_folder.data["annotations"]
    objects[0].update(bbox=[3.37, 4.21, 20.5, 11.13], segmentation=None, area=228.1)
    corners = [[2, 2, 12, 2, 12, 9, 2, 9], [30, 20, 50, 20, 50, 35]]
    objects[1].update(bbox=[2, 2, 48, 33], segmentation=corners, area=220, category_id=20)
    ring = rle.encode(np.asfortranarray(RING))
    hole = {"size": [40, 60], "counts": ring["counts"].decode()}
    coco_folder.add_object(2, [10, 5, 40, 25], 10, segmentation=hole, area=int(RING.sum()))
    coco_folder.add_object(2, [0, 0, 30, 30], 20, iscrowd=1)
    return coco_folder.write()


def objects_of(shapes_config, root, dataset):
    """(class, crowd, box, mask) of each object by the image's name, as the format's reader takes them."""
    places = {"dataset": dataset, "train_dataset": str(root), "coco_classes": "auto", "detector": "faster_rcnn"}
    config = resolve_classes(shapes_config(**places, val_share=0.0, labelme_ignore="crowd"), True)
    data = read_split(config, "train")
    out = {}
    for r in data.usable("stop"):
        masks = [None if i.segmentation is None else rle.decode(as_rle(i.segmentation, 40, 60)) for i in r.instances]
        rows = zip_equal(r.instances, masks)
        out[r.path.stem] = [(config.coco_classes[i.label], i.crowd, i.box, mask) for i, mask in rows]
    return out, data


def import_to(varied, out, to, **options):
    import_labels(varied.json, out, varied.images, val=0, to=to, **options)
    return out


FIRST, SECOND = (3.37, 4.21, 23.87, 15.34), (2, 2, 50, 35)


def test_to_voc_and_back(varied, tmp_path, shapes_config, capsys):
    out = import_to(varied, tmp_path / "voc", "voc")
    told = capsys.readouterr().out
    assert "masks, which VOC's XML doesn't hold, are left out: 3" in told
    found, _ = objects_of(shapes_config, out, "voc")
    assert [o[:2] for o in found["000000000002"]] == [("star", False), ("circle", False), ("star", True)]
    # VOC counts pixels from 1
    xml = (out / "Annotations/000000000002.xml").read_text()
    assert "<xmin>3</xmin><ymin>3</ymin><xmax>50</xmax><ymax>35</ymax>" in xml
    assert found["000000000003"] == []
    import_labels(out, tmp_path / "again", val=0)
    again, _ = objects_of(shapes_config, tmp_path / "again", "coco")
    for boxes in (found, again):
        # hundredths of a pixel are written
        np.testing.assert_allclose(boxes["000000000001"][0][2], FIRST, atol=0.005)
        np.testing.assert_allclose(boxes["000000000002"][0][2], SECOND, atol=0.005)


def test_to_yolo_and_back(varied, tmp_path, shapes_config, capsys):
    out = import_to(varied, tmp_path / "yolo", "yolo")
    told = capsys.readouterr().out
    assert "crowd regions or difficult objects, which YOLO can't tell, are left out: 1" in told
    assert "category ids aren't kept" in told
    found, _ = objects_of(shapes_config, out, "yolo")
    import_labels(out, tmp_path / "again", val=0)
    again, data = objects_of(shapes_config, tmp_path / "again", "coco")
    assert [c["name"] for c in data.categories] == ["circle", "star"]
    masks = rle.decode(as_rle([np.array(p, float) for p in varied.data["annotations"][1]["segmentation"]], 40, 60))
    for objects in (found, again):
        (first,) = objects["000000000001"]
        assert (first[0], first[3]) == ("circle", None)
        np.testing.assert_allclose(first[2], FIRST, atol=1e-4)  # eight digits of a share
        star, ring = objects["000000000002"]
        np.testing.assert_allclose(star[2], SECOND, atol=1e-4)
        # parts are joined, and the hole is, by lines that enclose nothing
        np.testing.assert_array_equal(star[3], masks)
        np.testing.assert_array_equal(ring[3], RING)
    assert found["000000000003"] == []


def test_to_yolo_without_masks(varied, tmp_path, shapes_config, capsys):
    out = import_to(varied, tmp_path / "yolo", "yolo", boxes=True)
    assert "masks, left out (boxes alone): 2" in capsys.readouterr().out
    found, data = objects_of(shapes_config, out, "yolo")
    assert not data.with_masks
    np.testing.assert_allclose(found["000000000002"][1][2], (10, 5, 50, 30), atol=1e-4)


def test_to_labelme_and_back(varied, tmp_path, shapes_config, capsys):
    out = import_to(varied, tmp_path / "labelme", "labelme")
    assert "__ignore__" in capsys.readouterr().out
    found, _ = objects_of(shapes_config, out, "labelme")
    (first,) = found["000000000001"]
    np.testing.assert_allclose(first[2], FIRST, atol=0.005)
    star, ring, crowd = found["000000000002"]
    assert (star[0], ring[0], crowd[1]) == ("star", "circle", True)
    np.testing.assert_allclose(star[2], SECOND, atol=0.005)
    np.testing.assert_array_equal(ring[3], RING)


def test_coco_keeps_what_it_was_given(varied, tmp_path):
    out = import_to(varied, tmp_path / "out", "coco")
    written = {a["id"]: a for a in split(out)["annotations"]}
    assert split(out)["categories"] == varied.data["categories"]
    for i, a in enumerate(varied.data["annotations"], 1):
        kept = {k: written[i].get(k) for k in ("image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")}
        assert kept == {k: a[k] for k in kept}


def test_boxes_of_less_than_a_pixel(coco_folder, tmp_path, shapes_config, capsys):
    coco_folder.data["annotations"][0].update(bbox=[59.5, 20, 0.4, 10], segmentation=None)
    coco_folder.write()
    out = import_to(coco_folder, tmp_path / "voc", "voc")
    assert "widened to one: 1" in capsys.readouterr().out
    assert objects_of(shapes_config, out, "voc")[0]["000000000001"][0][2] == (59, 20, 60, 30)


def test_voc_parts_stay(tmp_path, shapes_config):
    xml = "<annotation><size><width>60</width><height>40</height></size><object><name>dog</name><bndbox><xmin>11</xmin>"
    xml += "<ymin>11</ymin><xmax>30</xmax><ymax>25</ymax></bndbox></object></annotation>"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / "voc" / name).mkdir(parents=True)
    for i in range(6):
        (tmp_path / f"voc/Annotations/{i}.xml").write_text(xml)
        (tmp_path / f"voc/JPEGImages/{i}.jpg").write_bytes(picture())
    parts = {"train": "012", "val": "34", "test": "5"}
    for part, names in parts.items():
        (tmp_path / f"voc/ImageSets/Main/{part}.txt").write_text("\n".join(names))
    import_labels(tmp_path / "voc", tmp_path / "yolo", to="yolo")
    import_labels(tmp_path / "yolo", tmp_path / "again")
    for part, names in parts.items():
        assert {i["file_name"] for i in split(tmp_path / "again", part)["images"]} == {f"{n}.jpg" for n in names}
        assert all(a["bbox"] == [10, 10, 20, 15] for a in split(tmp_path / "again", part)["annotations"])


@pytest.mark.parametrize("to", ["voc", "yolo", "labelme"])
def test_images_that_share_a_stem(coco_folder, tmp_path, shapes_config, to):
    coco_folder.add_object(coco_folder.add_image(name="000000000001.png"), [1, 2, 30, 30])
    coco_folder.write()
    out = import_to(coco_folder, tmp_path / "out", to, boxes=True)
    found, _ = objects_of(shapes_config, out, to)
    boxes = {name: [np.round(o[2]).tolist() for o in objects] for name, objects in found.items()}
    assert boxes.pop("000000000001_png") == [[1, 2, 31, 32]]
    assert boxes.pop("000000000001") == [[10, 10, 30, 25]]


def test_names_that_a_tool_could_not_write(coco_folder, tmp_path, shapes_config):
    names = [os.fsdecode(b"\xe9.jpg"), "images/train/a.jpg", "a\nb.jpg"]
    for name in names:
        (coco_folder.images / name).parent.mkdir(parents=True, exist_ok=True)
        coco_folder.add_object(coco_folder.add_image(name=name))
    coco_folder.write()
    for to in ("voc", "yolo", "coco", "labelme"):
        out = import_to(coco_folder, tmp_path / f"to_{to}", to)
        found, _ = objects_of(shapes_config, out, to)
        assert len(found) == 6
        assert sum(len(objects) for objects in found.values()) == 5


# ---------------------------------------------------------------------------------------------------------
# what is there, and detections


def test_the_format_is_told(labelme, tmp_path, refusal):
    labelme.add("one", shape())
    (labelme.folder / "one.xml").write_text("<annotation></annotation>")
    with refusal(DataError, labelme.folder, "voc and labelme", "--from"):
        import_labels(labelme.folder, tmp_path / "out")
    import_labels(labelme.folder, tmp_path / "out", source="labelme", val=0)
    (tmp_path / "empty").mkdir()
    with refusal(DataError, tmp_path / "empty", "labelme"):
        import_labels(tmp_path / "empty", tmp_path / "out2")


def test_a_file_of_boxes(tmp_path, refusal):
    (tmp_path / "a.jpg").write_bytes(picture())
    (tmp_path / "rows.txt").write_text("a.jpg 1,2,31,22,2\n")
    with refusal(DataError, "rows.txt", "--images"):
        import_labels(tmp_path / "rows.txt", tmp_path / "out")
    import_labels(tmp_path / "rows.txt", tmp_path / "out", tmp_path, val=0)
    assert split(tmp_path / "out")["annotations"][0]["bbox"] == [1, 2, 30, 20]


def results_file(tmp_path, *rows):
    (tmp_path / "found.json").write_text(json.dumps(list(rows)))
    return tmp_path / "found.json"


def test_detections_become_labels(coco_folder, tmp_path, shapes_config, capsys):
    ring = rle.encode(np.asfortranarray(RING))
    ring = {"size": [40, 60], "counts": ring["counts"].decode()}
    rows = [
        {"image_id": 1, "category_id": 20, "bbox": [10, 5, 40, 25], "score": 0.9, "segmentation": ring},
        {"image_id": 1, "category_id": 10, "bbox": [1, 2, 3, 4], "score": 0.49},
        {"image_id": 2, "category_id": 10, "bbox": [1.5, 2, 3, 4], "score": 0.5},
    ]
    results = results_file(tmp_path, *rows)
    for to in ("labelme", "yolo", "coco", "voc"):
        import_labels(results, tmp_path / f"to_{to}", coco_folder.images, to=to, annotations=coco_folder.json)
        assert "2 of 3 detections have a score of 0.5 or more" in capsys.readouterr().out
        found, _ = objects_of(shapes_config, tmp_path / f"to_{to}", to)
        (star,), (circle,) = found["000000000001"], found["000000000002"]
        assert (star[0], circle[0], found["000000000003"]) == ("star", "circle", [])
        np.testing.assert_allclose(circle[2], [1.5, 2, 4.5, 6], atol=0.005)
        if to != "voc":
            np.testing.assert_array_equal(star[3], RING)


BAD_RESULTS = {
    "no score": ({"image_id": 1, "category_id": 10, "bbox": [1, 2, 3, 4]}, "score"),
    "an unknown image": ({"image_id": 9, "category_id": 10, "bbox": [1, 2, 3, 4], "score": 1}, "image 9"),
    "an unknown class": ({"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "score": 1}, "category id 7"),
    "no box": ({"image_id": 1, "category_id": 10, "score": 1}, "bbox"),
    "a text": ("x", "entry 1"),
}


@pytest.mark.parametrize(("row", "told"), BAD_RESULTS.values(), ids=BAD_RESULTS)
def test_detections_that_are_refused(coco_folder, tmp_path, refusal, row, told):
    results = results_file(tmp_path, row)
    with refusal(DataError, results, told):
        import_labels(results, tmp_path / "out", coco_folder.images, annotations=coco_folder.json)
    assert not (tmp_path / "out").exists()


def places(root):
    return {"train_dataset": str(root), "val_dataset": str(root), "coco_classes": "auto"}


def test_real_photographs(coco_root, tmp_path, shapes_config):
    """COCO's own, to YOLO and back: boxes to 1e-4 pixels, masks but for what the joining lines touch."""
    import_labels(coco_root, tmp_path / "yolo", to="yolo")
    import_labels(tmp_path / "yolo", tmp_path / "again")
    for part in ("train", "val"):
        first, again = (
            read_split(resolve_classes(shapes_config(**places(r)), True), part, training=False).usable("stop")
            for r in (coco_root, tmp_path / "again")
        )
        by_name = {r.path.name: r for r in again}
        assert len(by_name) == len(first)
        for r in first:
            known = [i for i in r.instances if not i.crowd]
            back = by_name[r.path.name].instances
            assert [i.label for i in back] == [i.label for i in known]
            for a, b in zip_equal(known, back):
                np.testing.assert_allclose(a.box, b.box, atol=1e-4)
                pair = (as_rle(i.segmentation, r.height, r.width) for i in (a, b))
                assert rle.iou([next(pair)], [next(pair)], [0])[0, 0] > 0.99
