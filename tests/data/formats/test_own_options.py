"""A format on its own: what the others' modules ask of it, they ask by its class."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from src.data.formats import FORMATS, find_split, formats_at, source_digest
from src.data.formats.base import Format, split_source, truth_categories
from src.data.formats.coco import Coco
from src.data.import_labels import import_labels, main
from src.data.records import NO_FIELDS, ImageRecord, Instance, Records, Split


class Whole(Format):
    """A folder with things.one beside images, each of which is one object."""

    name = "whole"
    suffixes = (".one",)
    # stands for a key of its own
    options = ("brief",)

    def locate(self, config, split):
        root = Path(split_source(config, split))
        if not (root / "things.one").is_file():
            raise FileNotFoundError(root)
        return Split(root / "things.one", root)

    def classes(self, where):
        return ["thing"]

    def records(self, where, config, masks, files=True):
        box = (0.0, 0.0, 208.0, 170.0)
        images = [
            ImageRecord(i, p.name, p, 200, 300, [Instance(1, False, box, box, 208.0 * 170)])
            for i, p in enumerate(sorted(where.images.glob("*.png")), 1)
        ]
        return Records(where, images, truth_categories(config))

    def lies_in(self, folder):
        return (folder / "things.one").is_file()


@pytest.fixture
def whole(monkeypatch, tmp_path):
    """Registers the format; the folder of a data set."""
    monkeypatch.setitem(FORMATS, "whole", Whole())
    (tmp_path / "set").mkdir()
    (tmp_path / "set/things.one").write_text("all")
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"set/{i}.png"), np.full((200, 300, 3), i, np.uint8))
    return tmp_path / "set"


def test_it_is_told_by_what_lies_there(whole):
    assert formats_at(whole) == ["whole"]
    assert formats_at(whole / "things.one") == ["whole"]


def test_conversions_depend_on_its_options_alone(whole, shapes_config):
    digests = []
    for name in ("a", "b"):
        config = shapes_config(dataset="whole", train_dataset=str(whole), brief=name)
        digests.append(source_digest(config, find_split(config, "train")))
        config = shapes_config(brief=name)
        digests.append(source_digest(config, Coco().locate(config, "train")))
    assert digests[0] != digests[2] and digests[1] == digests[3]


def test_its_labels_become_anothers(whole, tmp_path, capsys, monkeypatch):
    import_labels(whole, tmp_path / "out", val=0)
    assert formats_at(tmp_path / "out") == ["coco"]
    monkeypatch.setattr("sys.argv", ["import_labels", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "--brief" in capsys.readouterr().out


def test_objects_without_fields_share_one_mapping():
    first, second = (Instance(1, False, (0, 0, 1, 1), (0, 0, 1, 1), 1.0) for _ in range(2))
    assert first.fields is second.fields is NO_FIELDS
