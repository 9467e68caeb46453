"""The report of an evaluation: what it shows of perfect, wrong and missing detections, in one file."""

import base64
import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from src.data.mindrecord import ensure_mindrecord, read_index
from src.evaluation.coco import evaluate
from src.evaluation.inference import Timing
from src.evaluation.report import match_all, match_image, write_report
from src.evaluation.truth import read_annotations
from src.runtime.errors import UserError


def box(category, x, y=0, w=10, h=10, **other):
    return {"category_id": category, "bbox": [x, y, w, h], "iscrowd": 0} | other


def found(category, x, y=0, w=10, h=10, score=0.9):
    return {"category_id": category, "bbox": [x, y, w, h], "score": score}


def test_matches_of_an_image():
    objects = [box(1, 0), box(2, 20), box(3, 40), box(1, 60)]
    results = [
        found(1, 0),  # right
        found(5, 20),  # another class
        found(3, 44),  # IoU 6 / 14: too far
        found(1, 60, score=0.4),  # too unsure
        found(4, 100),  # nothing there
    ]
    m = match_image(objects, results)
    assert sorted(m.pairs, key=str) == sorted([(1, 1), (2, 5), (3, None), (1, None), (None, 3), (None, 4)], key=str)
    # one right, at IoU 1; missed or false: 2 by the wrong class, and 4 alone
    assert m.quality == pytest.approx(1 / (1 + 6 / 2))


def test_a_second_detection_of_an_object_is_false():
    m = match_image([box(1, 0)], [found(1, 1), found(1, 0)])
    assert m.pairs == [(1, 1), (None, 1)]
    assert m.ious[0] == 1


def test_of_equal_boxes_the_right_class_matches():
    assert match_image([box(1, 0)], [found(2, 0), found(1, 0)]).pairs == [(1, 1), (None, 2)]


def test_detections_in_a_crowd_are_not_counted():
    crowd = box(1, 0, w=50, h=50, iscrowd=1)
    assert match_image([crowd], [found(1, 5), found(2, 20)]).pairs == []
    assert match_image([crowd], [found(1, 5), found(1, 48)]).pairs == [(None, 1)]
    assert match_image([crowd], []).quality is None


# ---------------------------------------------------------------------------------------------------------
# the file


class Page(HTMLParser):
    """A page's texts, and what its tags refer to."""

    def __init__(self, text):
        super().__init__()
        self.links, self.cells, self.pictures = [], [], {}
        self.text = text
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [v for k, v in attributes.items() if k in ("src", "href", "action", "data", "srcset")]
        if tag == "img":
            data = np.frombuffer(base64.b64decode(attributes["src"].split(",")[1]), np.uint8)
            self.pictures[attributes["alt"]] = cv2.imdecode(data, cv2.IMREAD_COLOR)

    def handle_data(self, data):
        self.cells.append(data)

    def row(self, head):
        """The two numbers after a row's head."""
        i = self.cells.index(head)
        return [c for c in self.cells[i + 1 :] if c.strip()][:2]


@pytest.fixture(scope="module")
def truth(shapes_root):
    return json.loads((shapes_root / "annotations/instances_val2017.json").read_text())


@pytest.fixture(scope="module")
def perfect(truth):
    """The annotations as results."""
    sizes = {i["id"]: (i["height"], i["width"]) for i in truth["images"]}
    results = []
    for a in truth["annotations"]:
        if a["iscrowd"]:
            continue
        mask = rle.merge(rle.frPyObjects(a["segmentation"], *sizes[a["image_id"]]))
        mask = {"size": list(mask["size"]), "counts": mask["counts"].decode()}
        row = {k: a[k] for k in ("image_id", "category_id", "bbox")}
        results.append(row | {"score": 0.9, "segmentation": mask})
    return results


@pytest.fixture
def report(shapes_config, tmp_path):
    """Makes the report of some results; returns the page."""

    def make(results, timing=None, config=None, kinds=("bbox", "segm"), **measured):
        config = config or shapes_config()
        records = ensure_mindrecord(config, "val", training=False)
        summary = evaluate(read_index(records)["annotations"], results, kinds, **measured)
        path = write_report(tmp_path / "report", config, records, results, summary, "some.ckpt", timing)
        assert [p.name for p in path.parent.iterdir()] == ["report.html"]
        return Page(path.read_text())

    return make


def test_perfect_detections(report, perfect):
    page = report(perfect, Timing(2, [5.0, 0.4, 0.6], [0.01] * 6, 7.5))
    assert page.row("AP, mean over IoU 0.50 to 0.95") == ["1.000", "1.000"]
    for name in ("circle", "square", "triangle", "star", "cross"):
        assert page.row(name) == ["1.000", "1.000"]
    assert "some.ckpt" in page.cells
    # of batches of 2, after the first
    assert page.row("network, an image (median of the batches after the first)")[0] == "0.250"
    assert page.row("everything, an image")[0] == "1.250"
    assert page.text.count("quality 1.00") == 8
    for text in ("AP by the size of objects", "confusion matrix", "precision over recall, masks"):
        assert page.pictures[text].std() > 5


def test_numbers_of_each_class(report, perfect):
    """What the summary holds of each class, and in all, at the best score and at the given."""
    results = [r | {"score": 0.3} if r["category_id"] == 1 else r for r in perfect]
    page = report(results)
    at = page.cells.index("class, boxes")
    cells = [c for c in page.cells[at : page.cells.index("class, masks")] if c.strip()]

    def numbers(name):
        return cells[cells.index(name) + 1 :][:11]

    circles = str(sum(r["category_id"] == 1 for r in perfect))
    # best at 0.3; from 0.5 on nothing is left
    assert numbers("circle") == [circles] * 2 + ["1.000"] * 3 + ["0.300"] + ["1.000"] * 3 + ["–", "0.000"]
    others = str(sum(r["category_id"] == 2 for r in perfect))
    assert numbers("square") == [others] * 2 + ["1.000"] * 3 + ["0.900"] + ["1.000"] * 5
    assert numbers("all together (micro)")[:6] == [str(len(perfect))] * 2 + ["–"] * 3 + ["0.300"]
    assert numbers("mean of the classes (macro)")[6:] == ["1.000"] * 4 + ["0.800"]


def test_thresholds_are_those_of_the_summary(report, perfect):
    results = [r | {"score": 0.3} for r in perfect]
    assert "quality 0.00" in report(results).text
    assert report(results, score=0.2).text.count("quality 1.00") == 8


def test_an_image_that_was_left_out_counts_as_missed(shapes_config, truth, perfect, tmp_path):
    """Its objects stand in the confusion matrix, though there is no picture of it to draw."""
    config = shapes_config()
    records = ensure_mindrecord(config, "val", training=False)
    index = read_index(records)
    gone = index["image_ids"][0]
    matches = match_all(
        read_annotations(index["annotations"]),
        [r for r in perfect if r["image_id"] != gone],
        evaluate(index["annotations"], []),
    )
    objects = sum(a["image_id"] == gone and not a["iscrowd"] for a in truth["annotations"])
    assert len(matches[gone].pairs) == objects
    assert all(found is None for _, found in matches[gone].pairs)


def test_the_file_stands_alone(report, perfect):
    page = report(perfect)
    assert all(link.startswith("data:") for link in page.links)
    assert len(page.links) > 10
    assert not re.search(r"https?://|@import|url\(|<script", page.text)
    assert "default-src 'none'" in page.text


def test_best_and_worst_images(report, perfect, truth):
    """Wrong detections in one image make it the first of the worst, drawn beside what it should be."""
    spoilt = max({r["image_id"] for r in perfect}, key=lambda i: sum(r["image_id"] == i for r in perfect))
    results = [r | {"category_id": r["category_id"] % 5 + 1} if r["image_id"] == spoilt else r for r in perfect]
    page = report(results)
    name = next(i["file_name"] for i in truth["images"] if i["id"] == spoilt)
    best, worst = page.text.split("<h3>Worst</h3>")
    assert re.findall(r"<figcaption>(\S+): quality ([\d.]+)", worst)[0] == (name, "0.00")
    assert name not in best.split("<h3>Best</h3>")[1]
    picture = page.pictures[name]
    left, right = picture[40:, : picture.shape[1] // 2 - 8], picture[40:, -(picture.shape[1] // 2 - 8) :]
    assert (np.abs(left.astype(int) - right) > 60).any(2).mean() > 0.01
    assert page.row("AP, mean over IoU 0.50 to 0.95")[0] < "1.000"


def test_confident_detections_without_truth(report, perfect, truth):
    assert "None of at least 0.5" in report(perfect).text.split("without truth")[1]
    image = truth["images"][0]
    # left of everything
    alone = {"image_id": image["id"], "category_id": 1, "bbox": [-40.0, -40.0, 20.0, 20.0], "score": 0.987}
    page = report([*perfect, alone, alone | {"score": 0.4}], kinds=("bbox",))
    told = page.text.split("without truth")[1].split("<h2>Speed")[0]
    assert told.count(image["file_name"]) == 1
    assert "0.987" in told and "-40, -40, 20, 20" in told


def test_no_detections(report):
    page = report([])
    assert page.row("AP, mean over IoU 0.50 to 0.95") == ["0.000", "0.000"]
    assert "quality 0.00" in page.text
    assert "read from a file" in page.text


def test_boxes_alone(report, perfect):
    page = report([{k: v for k, v in r.items() if k != "segmentation"} for r in perfect], kinds=("bbox",))
    assert page.row("AP at IoU 0.75")[0] == "1.000"
    assert "precision over recall, masks" not in page.pictures


def test_losses(report, perfect, shapes_config):
    config = shapes_config()
    assert "No loss_0.log" in report(perfect, config=config).text
    config.output_dir.mkdir(parents=True)
    log = config.output_dir / "loss_0.log"
    log.write_text("".join(f"epoch: 1 step: {i}, rpn_cls_loss: 0.5, total_loss: {1 / i}\n" for i in range(1, 30)))
    assert report(perfect, config=config).pictures["losses of training"].std() > 5
    log.write_text(log.read_text() + "epoch: 1 step: 30, total\n")
    assert "loss_0.log, line 30: damaged" in report(perfect, config=config).text


def test_a_folder_that_is_a_file(shapes_config, perfect, tmp_path, refusal):
    (tmp_path / "taken").write_text("mine")
    config = shapes_config()
    records = ensure_mindrecord(config, "val", training=False)
    summary = evaluate(read_index(records)["annotations"], perfect)
    with refusal(UserError, "taken", "can't write"):
        write_report(tmp_path / "taken", config, records, perfect, summary)


def test_names_are_escaped(report, perfect, shapes_config):
    page = report(perfect, config=shapes_config(brief="<b>bold</b>"))
    assert "<b>" not in page.text
    assert "&lt;b&gt;bold" in page.text
