"""The truth that everything is evaluated against: perfect predictions are perfect, whatever the annotations look like,
and a clean file gives the very numbers that it gives by itself.
"""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from src.data.formats import read_split
from src.data.mindrecord import ensure_mindrecord, ground_truth, read_index
from src.data.records import DataError
from src.data.truth import read_truth, truth_of, truth_of_split
from src.evaluation.coco import evaluate
from src.runtime.newer import zip_equal


def truth_file(config):
    return ground_truth(config)


def perfect(truth):
    """Results equal to a truth's objects."""
    sizes = {i["id"]: (i["height"], i["width"]) for i in truth["images"]}
    out = []
    for a in truth["annotations"]:
        if not a["iscrowd"]:
            row = {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
            if "segmentation" in a:
                parts = a["segmentation"]
                if isinstance(parts, list):
                    parts = rle.merge(rle.frPyObjects(parts, *sizes[a["image_id"]]))
                    parts["counts"] = parts["counts"].decode()
                row["segmentation"] = parts
            out.append(row)
    return out


def ap(path, results, kinds=("bbox", "segm")):
    metrics = evaluate(path, results, kinds).metrics
    return [metrics[k]["AP"] for k in kinds]


@pytest.fixture
def val(coco_folder, coco_config):
    """Writes `coco_folder` as the validation split, spoilt by the test; returns the truth's path and content."""

    def make(**overrides):
        coco_folder.write()
        config = coco_config(val_dataset=str(coco_folder.root / "annotations/instances_train2017.json"), **overrides)
        path = truth_file(config)
        return path, read_truth(path)

    return make


@pytest.mark.parametrize("ids", [[0, 1], [5, 5], ["a-1", "a-2"], [None, None], [1 << 70, -3]], ids=str)
def test_annotation_ids_do_not_matter(coco_folder, val, ids):
    for a, i in zip_equal(coco_folder.data["annotations"], ids):
        a["id"] = i
        if i is None:
            del a["id"]
    path, truth = val()
    assert [a["id"] for a in truth["annotations"]] == [1, 2]
    assert ap(path, perfect(truth)) == [1.0, 1.0]


@pytest.mark.parametrize(("given", "crowd"), [("0", 0), ("1", 1), (None, 0), (False, 0), (True, 1), (1.0, 1), ("", 0)])
def test_iscrowd_in_other_words(coco_folder, val, given, crowd):
    coco_folder.data["annotations"][0]["iscrowd"] = given
    assert [a["iscrowd"] for a in val()[1]["annotations"]] == [crowd, 0]


@pytest.mark.parametrize("given", ["no", 2, -1, [0], "0.5"])
def test_iscrowd_that_is_neither(coco_folder, val, refusal, given):
    coco_folder.data["annotations"][0]["iscrowd"] = given
    with refusal(DataError, coco_folder.json, "annotation 101", "iscrowd"):
        val()


def test_area_is_the_masks_where_it_is_missing(coco_folder, val):
    """A thin bar of 100 pixels in a box of 20 x 15: COCO's area is the mask's."""
    bar = [[10, 10, 30, 10, 30, 15, 10, 15]]
    for a, area in zip_equal(coco_folder.data["annotations"], ("12.5", None)):
        a |= {"area": area, "segmentation": bar}
    path, truth = val()
    assert [a["area"] for a in truth["annotations"]] == [12.5, 100.0]
    assert any("area" in n for n in read_index(path.parent)["notes"])


def test_a_missing_box_is_the_masks(coco_folder, val):
    del coco_folder.data["annotations"][0]["bbox"]
    assert val()[1]["annotations"][0]["bbox"] == [10, 10, 20, 15]


def test_numbers_as_text(coco_folder, val):
    coco_folder.data["annotations"][0] |= {"bbox": ["10", "10.0", "2e1", "15"], "area": "300"}
    coco_folder.data["images"][0] |= {"height": "40", "width": "60"}
    path, truth = val()
    assert truth["annotations"][0]["bbox"] == [10, 10, 20, 15]
    assert ap(path, perfect(truth)) == [1.0, 1.0]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_encodings(coco_folder, coco_config, encoding):
    coco_folder.data["categories"][0]["name"] = "kr\u00e4he"
    text = json.dumps(coco_folder.data, ensure_ascii=False)
    coco_folder.json.write_bytes(text.encode(encoding))
    assert len(read_split(coco_config(other_classes="background"), "train").images) == 3


def test_stray_points_before_a_polygon(coco_folder, val):
    coco_folder.data["annotations"][0]["segmentation"].insert(0, [10, 10, 11, 11])
    path, truth = val()
    assert [len(p) for p in truth["annotations"][0]["segmentation"]] == [8]
    assert ap(path, perfect(truth)) == [1.0, 1.0]


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_run_lengths_that_do_not_fill_the_image(coco_folder, val, refusal, cut):
    bitmap = np.zeros((40, 60), np.uint8)
    bitmap[10:25, 10:30] = 1
    counts = rle.encode(np.asfortranarray(bitmap))["counts"].decode()
    coco_folder.data["annotations"][0]["segmentation"] = {"size": [40, 60], "counts": counts[:-cut]}
    with refusal(DataError, coco_folder.json, "annotation 101", "RLE"):
        val()


def test_run_lengths_that_claim_a_vast_image(coco_folder, val, refusal):
    """Told by its size, before anything of that size is made."""
    coco_folder.data["annotations"][0]["segmentation"] = {"size": [60000, 60000], "counts": "PPYo0"}
    with refusal(DataError, coco_folder.json, "annotation 101", "60000"):
        val()


@pytest.mark.parametrize("ids", [["0001", "b"], ["1", "2"], [1.0, 2.0], [1.5, 2.5], [1 << 63, 7], ["u-1", 2]], ids=str)
def test_ids_of_images_and_categories(coco_folder, val, ids):
    """Every kind that JSON has; also where the annotations give as text what the images give as a number."""
    folder = coco_folder
    for image, a, i in zip(folder.data["images"], folder.data["annotations"], ids):
        image["id"] = i
        a["image_id"] = i if isinstance(i, float) else str(i)
    for category, i in zip_equal(folder.data["categories"], ids):
        category["id"] = i
    folder.data["annotations"][0]["category_id"] = folder.data["annotations"][1]["category_id"] = ids[0]
    path, truth = val()
    assert all(isinstance(v["id"], int) for k in ("images", "categories") for v in truth[k])
    names = {i["id"]: i["file_name"] for i in truth["images"]}
    assert [names[a["image_id"]] for a in truth["annotations"]] == ["000000000001.jpg", "000000000002.jpg"]
    if not all(float(i).is_integer() and float(i) < 2**63 for i in ids if not isinstance(i, str)) or "b" in ids:
        assert [i["source_id"] for i in truth["images"]][:2] == [repr(i) if i in (1.5, 2.5) else i for i in ids]
    assert ap(path, perfect(truth)) == [1.0, 1.0]


def test_an_image_that_is_left_out_counts_as_missed(coco_folder, val):
    (coco_folder.images / "000000000002.jpg").unlink()
    path, truth = val(on_bad_image="skip")
    assert [i["id"] for i in truth["images"]] == [1, 2, 3]
    seen = [r for r in perfect(truth) if r["image_id"] == 1]
    assert ap(path, seen)[0] == pytest.approx(0.505, abs=0.001)


def test_a_bad_object_leaves_its_image_out_and_the_others_in_the_truth(coco_folder, val):
    coco_folder.add_object(1, (30, 5, 0, 9))
    path, truth = val(on_bad_image="skip")
    assert read_index(path.parent)["image_ids"] == [2, 3]
    assert [a["image_id"] for a in truth["annotations"]] == [1, 2]


def test_classes_that_the_file_lacks_have_ids_of_their_own(coco_folder, val):
    path, truth = val()
    names = {c["name"]: c["id"] for c in truth["categories"]}
    assert (names["circle"], names["star"]) == (10, 20)
    assert len(set(names.values())) == 5
    # detections of them cost nothing that is measured
    results = perfect(truth)
    extra = [{**results[0], "category_id": i, "score": 0.99} for i in names.values() if i not in (10, 20)]
    assert ap(path, results + extra) == [1.0, 1.0]


@pytest.mark.parametrize("how", ["background", "ignore"])
def test_some_of_the_classes_alone(coco_folder, coco_config, how):
    coco_folder.data["categories"].append({"id": 30, "name": "zebra"})
    coco_folder.add_object(1, (2, 2, 9, 9), category_id=30)
    coco_folder.write()
    config = coco_config(other_classes=how, val_dataset=str(coco_folder.json))
    record = read_split(config, "train").images[0]
    assert record.crowd.tolist() == ([False] if how == "background" else [False, True])
    truth = read_truth(ground_truth(config))
    zebras = [a for a in truth["annotations"] if a["bbox"] == [2, 2, 9, 9]]
    # a region that is neither object nor background is so for every class
    assert [a["iscrowd"] for a in zebras] == ([] if how == "background" else [1] * 5)


def test_a_damaged_truth_is_told(coco_folder, coco_config, val, refusal):
    path, _ = val()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with refusal(DataError, path, "checksum"):
        truth_of(path)


def test_any_coco_file_as_truth(coco_folder, refusal):
    """As postprocess.py and pictures read one: by the same reader, without looking for the images."""
    for path in coco_folder.images.iterdir():
        path.unlink()
    coco_folder.data["annotations"][0] |= {"id": 0, "iscrowd": "0", "area": None}
    coco_folder.write()
    truth = truth_of(coco_folder.json)
    assert [(a["id"], a["iscrowd"], a["area"]) for a in truth["annotations"]] == [(1, 0, 300.0), (2, 0, 300)]
    coco_folder.data["annotations"][0]["segmentation"] = []
    coco_folder.write()
    with refusal(DataError, coco_folder.json, "annotation 0", "no segmentation"):
        truth_of(coco_folder.json)


def by_pycocotools(raw, results, kind):
    """The twelve numbers of the file as it is, without any code of ours."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(raw))
        # with a box at hand loadRes would take its area, not the mask's, for small, medium and large
        left_out = "bbox" if kind == "segm" else "segmentation"
        run = COCOeval(truth, truth.loadRes([{k: v for k, v in r.items() if k != left_out} for r in results]), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats.tolist()


def same_numbers(raw, config):
    """AP of noisy predictions, by our truth and by pycocotools on the raw file."""
    path = truth_file(config)
    random = np.random.default_rng(3)
    results = perfect(read_truth(path))
    for r in results:
        moved = np.array(r["bbox"]) + random.normal(0, 3, 4)
        r["bbox"] = [*moved[:2].tolist(), *np.maximum(moved[2:], 1).tolist()]
        r["score"] = float(random.random())
        r["category_id"] = int(random.choice([r["category_id"], results[0]["category_id"]], p=[0.9, 0.1]))
    results = [r for r in results if random.random() < 0.9]
    metrics = evaluate(path, results).metrics
    for kind in ("bbox", "segm"):
        assert list(metrics[kind].values()) == by_pycocotools(raw, results, kind)
    return metrics["segm"]["AP"]


def test_a_clean_file_gives_the_same_numbers(shapes_root, shapes_config):
    assert 0.3 < same_numbers(shapes_root / "annotations/instances_val2017.json", shapes_config()) < 0.99


def test_real_annotations_give_the_same_numbers(coco_root, shapes_config):
    from src.config import load_config

    places = {"val_dataset": str(coco_root), "mindrecord_dir": shapes_config().mindrecord_dir}
    config = load_config("configs/mask_rcnn_r50_fpn.yaml", places)
    assert 0.3 < same_numbers(coco_root / "annotations/instances_val2017.json", config) < 0.99


def test_boxes_alone_can_be_the_truth_of_a_mask_detector(coco_folder, val):
    for a in coco_folder.data["annotations"]:
        del a["segmentation"]
    path, truth = val()
    assert not read_index(path.parent)["with_masks"]
    assert ap(path, perfect(truth), ["bbox"]) == [1.0]


def test_masks_here_and_there_are_a_fault(coco_folder, val, refusal):
    del coco_folder.data["annotations"][1]["segmentation"]
    with refusal(DataError, "annotation 102", "no segmentation"):
        val()


def test_training_needs_the_masks(coco_folder, coco_config, refusal):
    for a in coco_folder.data["annotations"]:
        del a["segmentation"]
    coco_folder.write()
    with refusal(DataError, "annotation 101", "no segmentation"):
        ensure_mindrecord(coco_config(), "train", training=True)


def test_box_and_mask_of_different_objects_are_told(coco_folder, val):
    coco_folder.data["annotations"][0]["bbox"] = [40, 2, 8, 5]
    path, _ = val()
    assert any("don't overlap" in n and "101" in n for n in read_index(path.parent)["notes"])


def test_boxes_apart_from_their_masks_take_one_line(coco_folder, val):
    for a in coco_folder.data["annotations"]:
        a["bbox"] = [0, 0, 1, 1]
    path, _ = val()
    told = [n for n in read_index(path.parent)["notes"] if "don't overlap" in n]
    assert len(told) == 1
    assert "annotation 101" in told[0]
    assert "1 more" in told[0]


def test_masks_without_a_pixel_are_told(coco_folder, val):
    """A sliver between two rows of pixels' centres: its box can be found, its mask can't."""
    coco_folder.data["annotations"][0]["segmentation"] = [[10, 12, 29, 12, 29, 12.2]]
    path, truth = val()
    assert ap(path, perfect(truth), ["bbox"]) == [1.0]
    assert any("no pixel" in n for n in read_index(path.parent)["notes"])


def test_saved_results_are_measured_without_annotated_sizes(coco_folder, val, coco_config):
    """`eval.py --predictions` reads no images but for what the annotations lack, as the network's evaluation does."""
    for image in coco_folder.data["images"]:
        del image["height"], image["width"]
    path, truth = val()
    config = coco_config(val_dataset=str(coco_folder.root / "annotations/instances_train2017.json"))
    direct = truth_of_split(config, "val", "if_any")
    assert {k: direct[k] for k in ("images", "annotations")} == {k: truth[k] for k in ("images", "annotations")}
    assert truth_of(coco_folder.json)["annotations"] == truth["annotations"]


@pytest.mark.parametrize(("box", "told"), [((30, 20, 50, 38), "x1, y1, x2, y2"), ((0.3, 0.2, 0.5, 0.4), "shares")])
def test_boxes_in_other_conventions_are_told(coco_folder, val, box, told):
    for _ in range(6):
        coco_folder.add_object(3, box)
    coco_folder.data["annotations"] = coco_folder.data["annotations"][2:]
    path, _ = val()
    assert any(told in n for n in read_index(path.parent)["notes"])
