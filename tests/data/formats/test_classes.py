"""COCO files with classes of their own: where they lie, what their classes are, what is refused."""

import json
import shutil

import pytest

from src.config import load_config, save_config
from src.data.formats import resolve_classes
from src.data.formats.coco import resolve_split
from src.data.records import DataError
from tests.data.formats.reading import load


def rename(folder, *names):
    folder.data["categories"] = [{"id": i, "name": n} for i, n in names]
    return folder.write()


def test_an_annotation_file_on_its_own(tmp_path, coco_folder):
    mine = tmp_path / "mine"
    shutil.copytree(coco_folder.images, mine / "photos")
    shutil.copy(coco_folder.json, mine / "photos.json")
    assert resolve_split(mine / "photos.json", "train").images == mine / "photos"
    (mine / "photos").rename(mine / "images")
    assert resolve_split(mine / "photos.json", "train").images == mine / "images"
    assert resolve_split(mine / "photos.json", "train", images=tmp_path / "x").images == tmp_path / "x"
    shutil.copy(coco_folder.json, mine / "images/all.json")
    assert resolve_split(mine / "images/all.json", "val").images == mine / "images"


def test_annotations_beside_the_images(tmp_path, coco_folder):
    for split in ("train", "valid"):
        shutil.copytree(coco_folder.images, tmp_path / "export" / split)
        shutil.copy(coco_folder.json, tmp_path / "export" / split / "_annotations.coco.json")
    assert resolve_split(tmp_path / "export", "train").images == tmp_path / "export/train"
    assert resolve_split(tmp_path / "export", "val").images == tmp_path / "export/valid"


def test_a_missing_annotation_file(tmp_path, coco_config, refusal):
    with refusal(DataError, tmp_path / "none.json", "can't read"):
        resolve_classes(coco_config(train_dataset=str(tmp_path / "none.json"), coco_classes="auto"), training=True)


def test_classes_come_from_the_file(coco_folder, coco_config):
    rename(coco_folder, (20, "moon"), (10, "sun"))
    config = resolve_classes(coco_config(coco_classes="auto"), training=True)
    assert (config.coco_classes, config.num_classes) == (["background", "sun", "moon"], 3)
    data = load(config)
    assert data.records[0].labels.tolist() == [1]
    assert data.category_ids == {1: 10, 2: 20}


def test_named_classes_stay(coco_config):
    config = coco_config()
    assert resolve_classes(config, training=True) is config


def test_auto_in_a_file_and_on_the_command_line(tmp_path, coco_config):
    (tmp_path / "mine.yaml").write_text("coco_classes: auto\nnum_classes: 3\n")
    assert load_config(tmp_path / "mine.yaml").coco_classes == []
    assert coco_config(coco_classes="auto").coco_classes == []


def test_a_checkpoint_brings_its_classes(tmp_path, coco_folder, coco_config, refusal):
    """What was trained decides, though the data at hand have their classes in another order."""
    rename(coco_folder, (20, "moon"), (10, "sun"))
    trained = coco_config(coco_classes=["background", "moon", "sun"], num_classes=3)
    save_config(trained, tmp_path / "run/config.yaml")
    asked = coco_config(coco_classes="auto")

    def classes(path):
        return resolve_classes(asked, training=False, checkpoint=tmp_path / path).coco_classes[1:]

    for path in ("run/a.ckpt", "run/checkpoints/a.ckpt", "run/checkpoints/best/a.ckpt"):
        assert classes(path) == ["moon", "sun"]
    assert classes("a.ckpt") == ["sun", "moon"]
    nowhere = coco_config(coco_classes="auto", train_dataset="", val_dataset="")
    with refusal(DataError, tmp_path / "a.ckpt", "config.yaml", "coco_classes"):
        resolve_classes(nowhere, training=False, checkpoint=tmp_path / "a.ckpt")
    for content in ("[", "{}", "coco_classes: []", "coco_classes: [background, 3]", "words"):
        (tmp_path / "run/config.yaml").write_text(content)
        with refusal(DataError, tmp_path / "run/config.yaml", "coco_classes"):
            classes("run/checkpoints/a.ckpt")


def test_a_class_listed_again_as_the_supercategory(coco_folder, coco_config):
    """Exports of some tools: category 0 bears the name of the set, or of a class, and nothing uses it."""
    rename(coco_folder, (0, "sun"), (10, "sun"), (20, "moon"))
    config = resolve_classes(coco_config(coco_classes="auto"), training=True)
    assert config.coco_classes == ["background", "sun", "moon"]
    assert load(config).category_ids == {1: 10, 2: 20}


def refuse_names(coco_folder, coco_config, refusal, *parts, names=None):
    if names:
        rename(coco_folder, *names)
    with refusal(DataError, coco_folder.json, *parts):
        config = resolve_classes(coco_config(coco_classes="auto"), training=True)
        load(config)


def test_two_used_classes_of_one_name(coco_folder, coco_config, refusal):
    coco_folder.add_object(1, category_id=20)
    refuse_names(coco_folder, coco_config, refusal, "10", "20", "'sun'", names=[(10, "sun"), (20, "sun")])


@pytest.mark.parametrize(
    ("categories", "told"),
    [
        ([], "'categories' is empty"),
        ([{"id": 1}], "lacks id or name"),
        ([{"name": "sun"}], "lacks id or name"),
        ([{"id": 1, "name": 7.5}], "isn't text"),
        ([{"id": [1], "name": "sun"}], "isn't text"),
        ([{"id": 1, "name": ""}], "isn't text"),
        ([{"id": 10, "name": "background"}, {"id": 20, "name": "moon"}], "reserved"),
        (["sun"], "categories"),
    ],
    ids=str,
)
def test_broken_categories(coco_folder, coco_config, refusal, categories, told):
    coco_folder.data["categories"] = categories
    coco_folder.json.write_text(json.dumps(coco_folder.data))
    refuse_names(coco_folder, coco_config, refusal, told)


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_ids_that_are_lists(coco_folder, coco_config, refusal, key):
    coco_folder.data["annotations"][0][key] = [1]
    coco_folder.write()
    refuse_names(coco_folder, coco_config, refusal)


def test_two_images_of_one_id(coco_folder, coco_config, refusal):
    coco_folder.data["images"][1]["id"] = 1
    coco_folder.write()
    refuse_names(coco_folder, coco_config, refusal, "two images have the id 1")


@pytest.mark.parametrize("value", ["1e999", "1" + "0" * 400], ids=["infinite", "four hundred digits"])
@pytest.mark.parametrize("place", ['"height": 40', '"bbox": [10', '"segmentation": [[10'])
def test_numbers_beyond_all_bounds(coco_folder, coco_config, refusal, place, value):
    text = coco_folder.json.read_text()
    assert place in text
    coco_folder.json.write_text(text.replace(place, place[: -len("40")] + value))
    with refusal(DataError, coco_folder.json):
        load(coco_config(detector="mask_rcnn"))
