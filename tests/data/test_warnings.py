"""What inspect says beside the figures: warnings, the size of objects, and a config that would take the data."""

from pathlib import Path

import cv2
import numpy as np
import yaml
from PIL import Image

from src.config import load_config
from src.data.inspect import inspect_split

SHAPES = Path(__file__).parents[2] / "configs/shapes.yaml"


def inspected(config, tmp_path, capsys, split="train"):
    figures = inspect_split(config, split, tmp_path / "out", samples=0)
    return figures, capsys.readouterr().out


def test_the_config_that_takes_the_data_takes_it(coco_folder, coco_config, tmp_path, capsys):
    for _ in range(40):
        coco_folder.add_object(1, (5, 5, 20, 20), category_id=20)
    coco_folder.add_object(2, (0, 0, 0, 0))
    coco_folder.write()
    _, out = inspected(coco_config(on_bad_image="skip", max_instance_count=64), tmp_path, capsys)
    text = out[out.index("a config that takes this data:\n") :].split("\n", 1)[1]
    keys = yaml.safe_load(text)
    assert (keys["max_instance_count"], keys["on_bad_image"], keys["train_empty_images"]) == (48, "skip", True)
    assert (keys["num_classes"], keys["coco_classes"][0]) == (len(keys["coco_classes"]), "background")
    (tmp_path / "mine.yaml").write_text(f"base: {SHAPES}\n{text}")
    config = load_config(
        tmp_path / "mine.yaml", {"train_dataset": str(coco_folder.root), "train_outputs": str(tmp_path)}
    )
    figures, out = inspected(config, tmp_path, capsys)
    # the pictures are 3 to 2
    assert abs(config.img_width / config.img_height - 1.5) < 0.2
    assert (figures.images, figures.most) == (2, 41)


def test_the_config_that_takes_the_data_says_what_becomes_of_other_classes(coco_folder, coco_config, tmp_path, capsys):
    coco_folder.add_object(1, category_id=20)
    coco_folder.write()
    few = {"coco_classes": ["background", "circle"], "num_classes": 2}
    for policy in ("ignore", "background"):
        _, out = inspected(coco_config(**few, other_classes=policy), tmp_path, capsys)
        assert f"other_classes: {policy}\n" in out[out.index("a config that takes this data:\n") :]


def test_objects_that_no_anchor_reaches_are_told(coco_folder, coco_config, tmp_path, capsys):
    coco_folder.data["annotations"].clear()
    for _ in range(5):
        coco_folder.add_object(1, (5, 5, 1, 1))
    coco_folder.write()
    _, out = inspected(coco_config(), tmp_path, capsys)
    assert "100% of them reach 0.5 with none" in out
    assert "smaller" in out


def test_each_problem_comes_once(coco_folder, coco_config, tmp_path, capsys):
    (coco_folder.images / "000000000002.jpg").unlink()
    _, out = inspected(coco_config(on_bad_image="skip"), tmp_path, capsys)
    assert out.count("000000000002.jpg") == 1


def test_few_bits_in_sixteen_are_told(coco_folder, coco_config, tmp_path, capsys):
    dark = np.random.RandomState(1).randint(0, 1024, (40, 60)).astype(np.uint16)
    coco_folder.add_image(name="dark.png", content=cv2.imencode(".png", dark)[1].tobytes())
    coco_folder.write()
    _, out = inspected(coco_config(), tmp_path, capsys)
    assert "1 pictures hold 10 bits in 16" in out


def test_turned_pictures_are_counted(coco_folder, coco_config, tmp_path, capsys):
    for name, size in (("a.jpg", (60, 40)), ("b.jpg", (60, 40))):
        image = Image.new("RGB", size)
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(coco_folder.images / name, exif=exif)
    coco_folder.data["images"] += [
        {"id": 8, "file_name": "a.jpg", "height": 60, "width": 40},
        {"id": 9, "file_name": "b.jpg", "height": 40, "width": 60},
    ]
    coco_folder.write()
    _, out = inspected(coco_config(), tmp_path, capsys)
    assert "1 pictures are turned upright" in out
    assert "1 pictures that their EXIF says to turn are used as stored" in out


def test_boxes_of_the_validation_split_are_drawn(shapes_config, tmp_path, capsys):
    """A picture of the sheet with its objects isn't the same without."""
    config = shapes_config()
    inspect_split(config, "val", tmp_path / "a", samples=1)
    sheet = cv2.imread(str(tmp_path / "a/val_samples.png"))
    coloured = (np.ptp(sheet.astype(int), axis=2) > 80).mean()
    assert coloured > 0.005
