"""eval.py's options: what is measured, of which classes, at which thresholds, and where the numbers go."""

import importlib
import json
import sys

import numpy as np
import pytest
from pycocotools import mask as rle

from src.checkpoints.files import CheckpointError
from src.config import ConfigError, load_config
from src.data.formats import check_training
from src.data.mindrecord import read_index
from src.evaluation.coco import EvaluationError
from src.evaluation.inference import Evaluator, kinds_of
from src.models.build import build_detector
from src.runtime.errors import UserError


@pytest.fixture
def predictions(shapes_root, tmp_path):
    """A file of the validation split's objects as predictions of score 0.9, but for the last, of score 0.2."""
    data = json.loads((shapes_root / "annotations/instances_val2017.json").read_text())
    sizes = {i["id"]: (i["height"], i["width"]) for i in data["images"]}
    rows = []
    for a in data["annotations"]:
        if not a["iscrowd"]:
            mask = rle.merge(rle.frPyObjects(a["segmentation"], *sizes[a["image_id"]]))
            row = {k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9}
            rows.append(row | {"segmentation": {"size": mask["size"], "counts": mask["counts"].decode()}})
    rows[-1]["score"] = 0.2
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def evaluate_here(shapes_root, tmp_path, monkeypatch, capsys):
    """Runs eval.py on saved predictions in this process; returns what it printed, and metrics.json."""

    def run(path, *words, root=shapes_root):
        command = ["eval.py", "--config_path=configs/shapes.yaml", "--checkpoint_path=none.ckpt"]
        command += [f"--val_dataset={root}", f"--train_outputs={tmp_path / 'out'}", f"--predictions={path}"]
        monkeypatch.setattr(sys, "argv", [*command, *map(str, words)])
        assert importlib.import_module("eval").main() == 0
        return capsys.readouterr().out, json.loads((tmp_path / "out/shapes/metrics.json").read_text())

    return run


def edited(shapes_root, tmp_path, edit):
    """A data set of the same images whose validation annotations `edit` changes."""
    data = json.loads((shapes_root / "annotations/instances_val2017.json").read_text())
    edit(data)
    root = tmp_path / "edited"
    (root / "annotations").mkdir(parents=True)
    (root / "annotations/instances_val2017.json").write_text(json.dumps(data))
    (root / "val2017").symlink_to(shapes_root / "val2017")
    return root


def without_masks(data):
    for a in data["annotations"]:
        del a["segmentation"]


def test_numbers_of_each_class_are_written(predictions, evaluate_here, tmp_path):
    out, numbers = evaluate_here(predictions)
    assert str(tmp_path / "out/shapes/metrics.json") in out
    for kind in ("bbox", "segm"):
        assert numbers[kind]["metrics"]["AP"] == pytest.approx(1)
        for row in numbers[kind]["classes"].values():
            assert row["AP"] == row["AR"] == row["best"]["f1"] == pytest.approx(1)
        assert numbers[kind]["micro"]["best"] == {"score": 0.2, "precision": 1, "recall": 1, "f1": 1}
        assert numbers[kind]["micro"]["at_score"]["recall"] < 1


def test_thresholds_are_options(predictions, evaluate_here, tmp_path):
    _, numbers = evaluate_here(predictions, "--report_score", 0.1, "--report_iou", 0.3, "--report", tmp_path / "page")
    assert (numbers["score"], numbers["iou"]) == (0.1, 0.3)
    assert numbers["segm"]["micro"]["at_score"] == {"score": 0.1, "precision": 1, "recall": 1, "f1": 1}
    page = (tmp_path / "page/report.html").read_text()
    assert "Detections of at least 0.1, matched" in page and "IoU is at least 0.3" in page


def test_some_of_the_classes(predictions, evaluate_here, tmp_path, refusal):
    # of the other classes nothing is found
    rows = [r for r in json.loads(predictions.read_text()) if r["category_id"] in (1, 3)]
    predictions.write_text(json.dumps(rows))
    whole = evaluate_here(predictions)[1]
    assert whole["bbox"]["metrics"]["AP"] < 0.5
    _, some = evaluate_here(predictions, "--classes", "circle", "triangle", "--report", tmp_path / "page")
    assert some["segm"]["metrics"]["AP"] == pytest.approx(1)
    assert list(some["segm"]["classes"]) == ["circle", "triangle"]
    page = (tmp_path / "page/report.html").read_text()
    assert "<td>circle<" in page and "<td>star<" not in page
    with refusal(EvaluationError, "'hexagon'", "circle, square"):
        evaluate_here(predictions, "--classes", "hexagon")


def test_options_of_detection_apply_to_predictions(predictions, evaluate_here):
    out, numbers = evaluate_here(predictions, "--test_cfg.rcnn.score_thr", 0.95)
    count = len(json.loads(predictions.read_text()))
    assert f"left out of {count} detections: {count} below test_cfg.rcnn.score_thr 0.95" in out
    assert numbers["detections"] == 0 and numbers["bbox"]["metrics"]["AP"] == 0
    out, numbers = evaluate_here(predictions, "--test_cfg.rcnn.max_per_img", 1)
    assert "beyond test_cfg.rcnn.max_per_img 1" in out and "images with more objects" in out
    assert numbers["detections"] == 8
    assert "left out" not in evaluate_here(predictions)[0]


def test_boxes_of_a_mask_detector_on_box_truth(predictions, evaluate_here, shapes_root, tmp_path, refusal):
    root = edited(shapes_root, tmp_path, without_masks)
    out, numbers = evaluate_here(predictions, root=root)
    assert "boxes alone are measured: the annotations have no masks" in out
    assert numbers["bbox"]["metrics"]["AP"] == pytest.approx(1) and "segm" not in numbers
    out, numbers = evaluate_here(predictions, "--iou_types", "bbox", root=root)
    assert "boxes alone" not in out and "segm" not in numbers
    with refusal(EvaluationError, "lacks segmentation", "--iou_types bbox"):
        evaluate_here(predictions, "--iou_types", "segm", root=root)


def test_predictions_without_masks(predictions, evaluate_here):
    rows = [{k: v for k, v in r.items() if k != "segmentation"} for r in json.loads(predictions.read_text())]
    predictions.write_text(json.dumps(rows))
    out, numbers = evaluate_here(predictions)
    assert "boxes alone are measured: the detections have no masks" in out
    assert numbers["bbox"]["metrics"]["AP"] == pytest.approx(1) and "segm" not in numbers


def test_the_network_s_evaluation_needs_no_masks_in_box_truth(shapes_config, shapes_root, tmp_path, capsys):
    """The same before the network runs; the split is converted without a word on masks that it lacks."""
    root = edited(shapes_root, tmp_path, without_masks)
    config = shapes_config(val_dataset=str(root))
    evaluator = Evaluator(config, None)
    assert evaluator.kinds == ("bbox",)
    assert "boxes alone are measured" in capsys.readouterr().out
    assert len(read_index(evaluator.loader.folder)["image_ids"]) == 8
    assert Evaluator(shapes_config(), None).kinds == ("bbox", "segm")
    assert Evaluator(shapes_config(), None, iou_types=["bbox"]).kinds == ("bbox",)


def test_a_class_that_is_not_there_is_told_before_detecting(shapes_config, refusal):
    with refusal(EvaluationError, "'hexagon'"):
        Evaluator(shapes_config(), None, class_names=["hexagon"])


def test_masks_asked_of_a_detector_without(shapes_config, refusal):
    with refusal(UserError, "--iou_types segm", "faster_rcnn has no masks"):
        kinds_of(shapes_config(detector="faster_rcnn"), {"with_masks": True}, ["segm"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [({}, "use detector: faster_rcnn"), ({"detector": "faster_rcnn", "aug_prob": 0.5}, "InstaBoost needs masks")],
)
def test_a_format_without_masks_stops_training_alone(changes, told, refusal):
    config = load_config("configs/shapes.yaml", {"dataset": "voc", "val_dataset": "voc"} | changes)
    with refusal(ConfigError, "dataset: voc", told):
        check_training(config)


def test_weights_that_diverged_are_told_before_detecting(shapes_config, tmp_path, refusal):
    config = shapes_config(backbone__width_multiplier=0.25)
    detector = build_detector(config)
    parameter = next(p for p in detector.get_parameters() if p.name == "rpn.cls.weight")
    parameter.set_data(parameter * np.nan)
    with refusal(CheckpointError, "rpn.cls.weight", "diverged"):
        Evaluator(config, detector).run(tmp_path / "results.json")
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--report_score", "1.5"], "'1.5': not a number from 0 to 1"),
        (["--report_iou", "nan"], "'nan': not a number from 0 to 1"),
        (["--iou_types", "mask"], "choose from bbox, segm"),
    ],
)
def test_options_that_cannot_be(predictions, evaluate_here, words, told, capsys):
    with pytest.raises(SystemExit) as error:
        evaluate_here(predictions, *words)
    assert error.value.code == 2
    assert told in capsys.readouterr().err.replace("'bbox', 'segm'", "bbox, segm")


def test_numbers_of_another_split_replace_none(predictions, evaluate_here, shapes_root, tmp_path):
    _, numbers = evaluate_here(predictions)
    (tmp_path / "train.json").write_text("[]")
    _, again = evaluate_here(tmp_path / "train.json", "--split", "train", "--train_dataset", shapes_root)
    assert again == numbers
    other = json.loads((tmp_path / "out/shapes/metrics_train.json").read_text())
    assert (numbers["images"], other["images"]) == (8, 24)
