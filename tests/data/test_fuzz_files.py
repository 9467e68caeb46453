"""Seeded changes to the bytes of configs, results, pictures and annotations: read, or refused in a line that names the
file."""

import base64
import json
from collections import Counter

import numpy as np
import pytest

from benchmarks.mutations import FORMATS, config, make_set, pictures, raw, results
from src.config import load_config
from src.data.formats import read_split, resolve_classes
from src.data.images import check_decodes, dark_16bit, file_header, image_header, is_image, read_image
from src.data.import_labels import import_labels
from src.evaluation.coco import evaluate
from src.evaluation.results import load_results
from src.evaluation.truth import Truth
from src.runtime.errors import UserError

SEED = 5


def outcomes(cases, read, place, make):
    """Counts of read files and refused ones. make(random, number) -> bytes; read(path) reads them."""
    found = Counter()
    for number in range(cases):
        content = make(np.random.default_rng([SEED, number]), number)
        path = place(content)
        try:
            read(path)
            found["read"] += 1
        except UserError as e:
            assert str(path) in str(e) and "\n" not in str(e), (number, str(e))
            found["refused"] += 1
    # both are met
    assert min(found["read"], found["refused"]) > cases // 20, found


@pytest.fixture
def place(tmp_path):
    """Writes bytes to a file of that name."""

    def write(name):
        def to(content):
            (tmp_path / name).write_bytes(content)
            return tmp_path / name

        return to

    return write


def test_configs(place):
    outcomes(150, load_config, place("mine.yaml"), lambda random, _: config.mutate(random, config.make(random)))


@pytest.fixture(scope="module")
def truth():
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 40, "width": 60} for i in (1, 2, 3)]
    annotation = {"id": 1, "image_id": 1, "category_id": 10, "bbox": [1, 1, 20, 20], "area": 400, "iscrowd": 0}
    annotation["segmentation"] = [[1, 1, 21, 1, 21, 21, 1, 21]]
    categories = [{"id": 10, "name": "a"}, {"id": 20, "name": "b"}]
    return Truth("truth.json", {"images": images, "annotations": [annotation], "categories": categories})


def test_results(place, truth):
    def read(path):
        rows = load_results(path, truth)
        kinds = ("bbox", "segm") if rows and all("segmentation" in r for r in rows) else ("bbox",)
        evaluate(truth, rows, kinds)

    make = results.make
    outcomes(150, read, place("r.json"), lambda random, _: results.mutate(random, make(random, [1, 2, 3], [10, 20])))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pictures(place):
    def read(path):
        data = path.read_bytes()
        assert isinstance(is_image(path), bool)
        header = image_header(data, str(path))
        assert file_header(path) == header
        assert read_image(path, "upright").shape == (*header.upright, 3)
        check_decodes(data, str(path), header)
        assert dark_16bit(data, str(path), header) in (0, 10, 12)

    def make(random, number):
        return pictures.mutate(random, pictures.make(random, pictures.KINDS[number % len(pictures.KINDS)]))

    outcomes(300, read, place("a"), make)


def test_pictures_in_labelme_files(tmp_path):
    def read(path):
        import_labels(tmp_path / "in", path.with_name("out") / str(next(count)), val=0, source="labelme")

    def place(content):
        shape = {"label": "a", "points": [[0, 0], [1, 0], [1, 1], [0, 1]]}
        (tmp_path / "in/a.json").write_text(
            json.dumps({"shapes": [shape], "imagePath": "a.png", "imageData": content.decode("latin-1")})
        )
        return tmp_path / "in/a.json"

    def make(random, number):
        data = base64.b64encode(pictures.mutate(random, pictures.make(random, ("PNG", "JPEG")[number % 2])))
        return raw.mutate(random, data) if random.random() < 0.2 else data

    count = iter(range(1000))
    (tmp_path / "in").mkdir()
    outcomes(40, read, place, make)


@pytest.mark.parametrize("form", FORMATS)
def test_bytes_of_annotations(form, tmp_path, shapes_config):
    data = make_set(form, np.random.default_rng(SEED))
    keys = {k: v for k, v in data.write(tmp_path).items() if k != "detector"}
    detector = "faster_rcnn" if form in ("voc", "txt") else "mask_rcnn"
    asked = shapes_config(**keys, coco_classes="auto", detector=detector)
    refused = 0
    for number in range(40):
        random = np.random.default_rng([SEED, number])
        path = tmp_path / sorted(data.docs)[number % len(data.docs)]
        whole = path.read_bytes()
        path.write_bytes(raw.mutate(random, whole))
        try:
            records = read_split(resolve_classes(asked, training=True), "train")
            for fault in records.skipped():
                assert str(tmp_path) in fault
            refused += bool(records.skipped())
        except UserError as e:
            assert str(tmp_path) in str(e) and "\n" not in str(e), (number, str(e))
            refused += 1
        path.write_bytes(whole)
    assert 2 < refused < 40
