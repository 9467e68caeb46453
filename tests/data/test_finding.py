"""Which file an annotation means, and that a conversion follows the files that it read."""

import os
import shutil
import unicodedata

import cv2
import numpy as np
import pytest

from src.data.finding import ImageFinder
from src.data.formats import find_split, read_split
from src.data.loader import EvalLoader
from src.data.mindrecord import ensure_mindrecord, read_index
from src.data.records import DataError


@pytest.fixture
def files(tmp_path):
    """Makes empty files below a folder; returns a finder of them."""

    def make(*names):
        for name in names:
            path = tmp_path / os.fsdecode(name) if isinstance(name, bytes) else tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return ImageFinder([tmp_path])

    return make


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        ("a.jpg", "a.jpg"),
        ("sub/a.jpg", "sub\\a.jpg"),
        ("a.jpg", "images/a.jpg"),
        ("train/a.jpg", "images\\train\\a.jpg"),
        ("a.JPG", "a.jpg"),
        ("a.jpg", "A.JPEG".replace("E", "")),
        (unicodedata.normalize("NFD", "kr\u00e4he.jpg"), unicodedata.normalize("NFC", "kr\u00e4he.jpg")),
        (unicodedata.normalize("NFC", "kr\u00e4he.jpg"), unicodedata.normalize("NFD", "kr\u00e4he.jpg")),
        (b"kr\xe4he.jpg", "kr\u00e4he.jpg"),
        ("deep/down/a.jpg", "a.jpg"),
    ],
    ids=ascii,
)
def test_a_path_that_is_written_otherwise(files, tmp_path, there, asked):
    assert os.fsencode(files(there, "b/other.jpg").find(asked)) == os.fsencode(tmp_path) + b"/" + os.fsencode(there)


def test_whole_paths_come_before_names(files, tmp_path):
    finder = files("a/x.jpg", "b/x.jpg", "x.jpg")
    assert [finder.find(n) for n in ("a/x.jpg", "b\\x.jpg", "x.jpg")] == [
        tmp_path / "a/x.jpg",
        tmp_path / "b/x.jpg",
        tmp_path / "x.jpg",
    ]


def test_two_that_fit_alike_are_refused(files, refusal):
    finder = files("a/x.jpg", "b/x.jpg")
    with refusal(DataError, "a/x.jpg", "b/x.jpg", "path"):
        finder.find("x.jpg")


@pytest.mark.parametrize("name", ["gone.jpg", "", "a\0b.jpg", "../" * 40 + "gone.jpg", "x" * 5000])
def test_what_was_tried_is_told(files, refusal, name):
    with refusal(DataError, "no " if name and "\0" not in name else "no file name"):
        files("a.jpg").find(name)


def test_two_entries_of_one_file_are_refused(coco_folder, coco_config, refusal):
    """Two folders' pictures of one name, of which one is there: which of the two entries is it?"""
    for image, name in zip(coco_folder.data["images"], ("a/x.jpg", "b/x.jpg")):
        image["file_name"] = name
    (coco_folder.images / "000000000001.jpg").rename(coco_folder.images / "x.jpg")
    coco_folder.write()
    with refusal(DataError, "a/x.jpg", "b/x.jpg"):
        read_split(coco_config(), "train").usable("stop")


def changed(coco_folder, coco_config, path):
    """Whether replacing the picture at `path` is noticed, and the new one is what training sees."""
    config = coco_config(test_batch_size=3)
    before = next(iter(EvalLoader(config, ensure_mindrecord(config, "train", training=True))))
    stat = path.stat()
    noise = np.random.RandomState(9).randint(0, 256, (40, 60, 3)).astype(np.uint8)
    path.write_bytes(cv2.imencode(".jpg", noise)[1].tobytes())
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    after = next(iter(EvalLoader(config, ensure_mindrecord(config, "train", training=True))))
    return not np.array_equal(before["image"], after["image"])


def test_a_replaced_picture_of_any_suffix_is_noticed(coco_folder, coco_config):
    (coco_folder.images / "000000000001.jpg").rename(coco_folder.images / "one.jfif")
    coco_folder.data["images"][0]["file_name"] = "one.jfif"
    coco_folder.write()
    assert changed(coco_folder, coco_config, coco_folder.images / "one.jfif")


def test_a_replaced_picture_outside_the_folder_is_noticed(coco_folder, coco_config):
    pool = coco_folder.root / "pool"
    pool.mkdir()
    (coco_folder.images / "000000000001.jpg").rename(pool / "one.jpg")
    coco_folder.data["images"][0]["file_name"] = "../pool/one.jpg"
    coco_folder.write()
    assert changed(coco_folder, coco_config, pool / "one.jpg")


def test_a_replaced_target_of_a_link_is_noticed(coco_folder, coco_config, tmp_path):
    target = tmp_path / "elsewhere.jpg"
    (coco_folder.images / "000000000001.jpg").rename(target)
    (coco_folder.images / "000000000001.jpg").symlink_to(target)
    assert changed(coco_folder, coco_config, target)


def test_a_picture_that_was_missing_and_comes_is_noticed(coco_folder, coco_config):
    path = coco_folder.images / "000000000002.jpg"
    content = path.read_bytes()
    path.unlink()
    config = coco_config(on_bad_image="skip")
    assert read_index(ensure_mindrecord(config, "train", training=True))["image_ids"] == [1, 3]
    path.write_bytes(content)
    assert read_index(ensure_mindrecord(config, "train", training=True))["image_ids"] == [1, 2, 3]


def test_what_no_annotation_names_is_passed_over(coco_folder, coco_config):
    (coco_folder.images / "dangling.jpg").symlink_to("nowhere.jpg")
    (coco_folder.images / "notes.txt").write_text("mine")
    folder = ensure_mindrecord(coco_config(), "train", training=True)
    before = (folder / "index.json").stat().st_mtime_ns
    (coco_folder.images / "more.txt").write_text("mine")
    assert ensure_mindrecord(coco_config(), "train", training=True) == folder
    assert (folder / "index.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("annotations", "images", "prefix"),
    [
        ("annotations/instances_default.json", "images/default", ""),
        ("annotations/instances_Train.json", "images/Train", "Train/"),
        ("annotations/instances_train2014.json", "train2014", ""),
        ("result.json", "images", "images\\"),
        ("_annotations.coco.json", ".", ""),
        ("labels.json", "data", ""),
    ],
    ids=["CVAT", "CVAT, a subset", "COCO 2014", "Label Studio", "Roboflow", "FiftyOne"],
)
def test_what_tools_export_loads_as_it_is(coco_folder, coco_config, tmp_path, annotations, images, prefix):
    root = tmp_path / "export"
    (root / annotations).parent.mkdir(parents=True)
    for image in coco_folder.data["images"]:
        image["file_name"] = prefix + image["file_name"]
    coco_folder.write()
    shutil.copytree(coco_folder.images, root / images, dirs_exist_ok=True)
    shutil.copy(coco_folder.json, root / annotations)
    config = coco_config(train_dataset=str(root))
    assert find_split(config, "train").annotations == root / annotations
    assert [r.path.is_file() for r in read_split(config, "train").usable("stop")] == [True] * 3
