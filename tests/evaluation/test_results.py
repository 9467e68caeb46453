"""Results files from anywhere: what is legal is read, all else is told by entry, and nothing hangs."""

import json

import numpy as np
import pytest
from pycocotools import mask as rle

from src.config import RcnnTest
from src.config.keys import Nms
from src.evaluation.coco import EvaluationError, evaluate
from src.evaluation.results import apply_options, load_results, save_results, saved_results
from src.evaluation.truth import Truth, read_annotations

HEIGHT, WIDTH = 60, 80
BOXES = [(5, 6, 20, 15), (40, 10, 30, 40)]


def corners(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def truth_data(image_ids=(1, 2), category_ids=(10, 20)) -> dict:
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in image_ids],
        "categories": [{"id": c, "name": f"class {c}"} for c in category_ids],
        "annotations": [
            {
                "id": 1 + i,
                "image_id": image_ids[i],
                "category_id": category_ids[i],
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": 0,
                "segmentation": [corners(*box)],
            }
            for i, box in enumerate(BOXES)
        ],
    }


@pytest.fixture
def truth(tmp_path):
    (tmp_path / "truth.json").write_text(json.dumps(truth_data()))
    return read_annotations(tmp_path / "truth.json")


def perfect() -> list[dict]:
    out = []
    for i, box in enumerate(BOXES):
        mask = rle.frPyObjects([corners(*box)], HEIGHT, WIDTH)[0]
        mask = {"size": [HEIGHT, WIDTH], "counts": mask["counts"].decode()}
        out.append(
            {"image_id": i + 1, "category_id": 10 * (i + 1), "bbox": list(box), "score": 0.5, "segmentation": mask}
        )
    return out


def written(tmp_path, results):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    return path


def runs(mask: dict) -> list[int]:
    flat = rle.decode(mask).ravel("F")
    return np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()


FORMS = {
    "as written by eval.py": lambda r: r,
    "polygons": lambda r: r | {"segmentation": [corners(*r["bbox"])]},
    "a list of runs": lambda r: r | {"segmentation": {"size": [HEIGHT, WIDTH], "counts": runs(r["segmentation"])}},
    "a mask without its box": lambda r: {k: v for k, v in r.items() if k != "bbox"},
    "box null": lambda r: r | {"bbox": None},
    "whole numbers as floats": lambda r: r | {"image_id": float(r["image_id"]), "category_id": float(r["category_id"])},
    "score as integer": lambda r: r | {"score": 1},
    "more keys": lambda r: r | {"caption": "x", "id": 0, "area": -5, "iscrowd": 1},
}


@pytest.mark.parametrize("form", FORMS)
def test_legal_forms_are_read(truth, tmp_path, form):
    results = load_results(written(tmp_path, [FORMS[form](r) for r in perfect()]), truth)
    summary = evaluate(truth, results)
    assert summary.metrics["bbox"]["AP"] == summary.metrics["segm"]["AP"] == pytest.approx(1)


def test_boxes_without_masks(truth, tmp_path):
    for empty in (None, [], ""):
        results = load_results(written(tmp_path, [r | {"segmentation": empty} for r in perfect()]), truth)
        assert evaluate(truth, results, ("bbox",)).metrics["bbox"]["AP"] == pytest.approx(1)


def test_an_encoding_of_utf8_with_a_mark(truth, tmp_path):
    path = tmp_path / "results.json"
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_bytes(json.dumps(perfect()).encode(encoding))
        assert len(load_results(path, truth)) == 2


LARGER = rle.encode(np.ones((2 * HEIGHT, WIDTH), np.uint8, order="F"))["counts"].decode()
SMALLER = rle.encode(np.ones((HEIGHT // 2, WIDTH), np.uint8, order="F"))["counts"].decode()
UNUSABLE = [
    ({"image_id": 77}, "has no image 77"),
    ({"image_id": "1"}, "has no image '1'"),
    ({"image_id": 1.5}, "has no image 1.5"),
    ({"image_id": [1]}, "has no image [1]"),
    ({"image_id": True}, "has no image True"),
    ({"category_id": 1}, "has no category 1; it has 10, 20"),
    ({"category_id": "class 10"}, "has no category 'class 10'"),
    ({"category_id": {}}, "has no category {}"),
    ({"score": float("nan")}, "score nan"),
    ({"score": float("inf")}, "score inf"),
    ({"score": "0.9"}, "score 0.9"),
    ({"score": [0.9]}, "score [0.9]"),
    ({"score": True}, "score True"),
    ({"bbox": [1, 2, 3]}, "bbox [1, 2, 3]"),
    ({"bbox": 5}, "bbox 5"),
    ({"bbox": "1234"}, "bbox 1234"),
    ({"bbox": [1, 2, 3, None]}, "bbox [1, 2, 3, None]"),
    ({"bbox": [1, 2, 3, float("nan")]}, "bbox [1, 2, 3, nan]"),
    ({"bbox": [1, 2, 1e300, 4]}, "bbox [1, 2, 1e+300, 4]"),
    ({"bbox": [30, 30, -5, 4]}, "negative side"),
    ({"segmentation": {"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}}, f"RLE of size [{WIDTH}, {HEIGHT}]"),
    ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [5]}}, "add up to 5"),
    ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": SMALLER}}, f"cover {HEIGHT // 2 * WIDTH} pixels"),
    ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": LARGER}}, f"cover {2 * HEIGHT * WIDTH} pixels"),
    ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "zé"}}, "can't be decoded"),
    ({"segmentation": {"size": [60000, 60000], "counts": [3600000000]}}, "RLE of size [60000, 60000]"),
    ({"segmentation": "mask.png"}, "'mask.png' is neither"),
    ({"segmentation": [[1, 2, 3, 4]]}, "no polygon of three points"),
]


@pytest.mark.parametrize(("changes", "told"), UNUSABLE)
def test_what_cannot_be_read_is_told_by_entry(truth, tmp_path, refusal, changes, told):
    results = perfect()
    results[1] |= changes
    path = written(tmp_path, results)
    with refusal(EvaluationError, f"{path}: entry 1", told):
        load_results(path, truth)


@pytest.mark.parametrize("key", ["image_id", "category_id", "score", "bbox"])
def test_a_list_of_results_without_a_key(truth, tmp_path, refusal, key):
    """Read from a file or handed over by a program."""
    results = [{k: v for k, v in r.items() if k != "segmentation"} for r in perfect()]
    del results[1][key]
    path = written(tmp_path, results)
    with refusal(EvaluationError, f"{path}: entry 1", f"lacks {key}"):
        load_results(path)
    with refusal(EvaluationError, f"{path}: entry 1", f"lacks {key}"):
        load_results(path, truth)
    with refusal(EvaluationError, "results: entry 1", f"lacks {key}"):
        evaluate(truth, results, ("bbox",))


@pytest.mark.parametrize("content", ["[1]", "[[]]", "[null]", "{}", "7", "[" * 100_000, "[1" + "0" * 5000 + "]"])
def test_json_that_is_no_list_of_results(truth, tmp_path, refusal, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with refusal(EvaluationError, path):
        load_results(path, truth)


def test_a_file_with_a_mistake_is_not_replaced(truth, tmp_path, refusal):
    """One that was cut short is made again; one that is whole but for a comma is a person's."""
    text = json.dumps(perfect())
    path = tmp_path / "results.json"
    for cut in range(1, len(text), 37):
        path.write_text(text[:cut])
        assert saved_results(path, truth) is None
    path.write_text(text.replace('"score"', ',"score"', 1))
    with refusal(EvaluationError, path, "mend it"):
        saved_results(path, truth)


# ---- ids of the user's own file


def test_results_go_by_the_ids_of_the_users_file(tmp_path):
    """Text and float ids that the truth replaced are written and read as the user's tools have them."""
    data = truth_data()
    data["images"][0]["source_id"], data["images"][1]["source_id"] = "0001", "e3b0-c442"
    data["categories"][1]["source_id"] = 2.5
    truth = Truth(tmp_path / "truth.json", data)
    save_results(tmp_path / "results.json", perfect(), truth)
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [(r["image_id"], r["category_id"]) for r in rows] == [("0001", 10), ("e3b0-c442", 2.5)]
    assert load_results(tmp_path / "results.json", truth) == perfect()
    assert evaluate(truth, load_results(tmp_path / "results.json", truth)).metrics["segm"]["AP"] == pytest.approx(1)


def test_a_source_id_comes_before_an_equal_id(tmp_path):
    """Image 1 of the user's file is image 2 here, and the other way round."""
    data = truth_data()
    data["images"][0]["source_id"], data["images"][1]["source_id"] = 2, 1
    truth = Truth(tmp_path / "truth.json", data)
    save_results(tmp_path / "results.json", perfect(), truth)
    assert [r["image_id"] for r in json.loads((tmp_path / "results.json").read_text())] == [2, 1]
    assert load_results(tmp_path / "results.json", truth) == perfect()
    assert evaluate(truth, perfect()).metrics["segm"]["AP"] == pytest.approx(1)


# ---- the options of detection


def test_options_apply_to_results_from_a_file():
    results = [{"image_id": i, "score": s} for i, s in ((1, 0.2), (1, 0.9), (2, 0.05), (1, 0.5), (1, 0.5), (2, 0.01))]
    kept, said = apply_options(results, RcnnTest(score_thr=0.05, max_per_img=2))
    assert kept == [{"image_id": 1, "score": 0.9}, {"image_id": 2, "score": 0.05}, {"image_id": 1, "score": 0.5}]
    assert "1 below test_cfg.rcnn.score_thr 0.05" in said and "2 beyond test_cfg.rcnn.max_per_img 2" in said
    assert apply_options(results, RcnnTest(score_thr=0.0)) == (results, "")
    assert apply_options(results, RcnnTest(score_thr=1.0))[0] == []


# ---- random damage

SPOILERS = [None, True, "x", "", -1, 0, 3, 1e308, float("nan"), float("-inf"), 1 << 70, [], {}, [[]], [1, 2], "1" * 200]


def spoil(value, random):
    """The value with something in it replaced, dropped, repeated or cut."""
    if isinstance(value, dict) and value and random.rand() < 0.8:
        key = random.choice(sorted(value))
        changed = dict(value)
        if random.rand() < 0.2:
            del changed[key]
        else:
            changed[key] = spoil(value[key], random)
        return changed
    if isinstance(value, list) and value and random.rand() < 0.8:
        place = random.randint(len(value))
        return value[:place] + [spoil(value[place], random)] * random.randint(0, 3) + value[place + 1 :]
    if isinstance(value, str) and value and random.rand() < 0.7:
        place = random.randint(len(value))
        return value[:place] + chr(random.randint(40, 130)) * random.randint(0, 2) + value[place + 1 :]
    return SPOILERS[random.randint(len(SPOILERS))]


def test_random_damage_is_read_or_told(truth, tmp_path):
    """Never another kind of error; what is read can be evaluated."""
    random = np.random.RandomState(0)
    read = 0
    for _ in range(400):
        results = perfect()
        results[0]["segmentation"] = [corners(*BOXES[0])]
        path = written(tmp_path, spoil(results, random))
        try:
            found = load_results(path, truth)
        except EvaluationError as e:
            assert "\n" not in str(e) and len(str(e)) < 400
            continue
        read += 1
        kinds = ("bbox", "segm") if all("segmentation" in r for r in found) else ("bbox",)
        evaluate(truth, found, kinds)
    assert 20 < read < 380


def test_soft_nms_leaves_scores_below_those_that_entered():
    results = [{"image_id": 1, "score": s} for s in (0.9, 0.03, 0.01)]
    kept, said = apply_options(results, RcnnTest(score_thr=0.05, nms=Nms(type="soft_nms", min_score=0.02)))
    assert kept == results[:2] and "1 below test_cfg.rcnn.nms.min_score 0.02" in said
