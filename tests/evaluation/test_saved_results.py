"""Evaluation of predictions that are there already, and against another annotation file than the data set's own."""

import subprocess
import sys
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from src.evaluation.coco import EvaluationError
from src.evaluation.results import save_results, saved_results

ROOT = Path(__file__).parents[2]


def perfect(annotations):
    """Results that are the ground truth."""
    truth = COCO(str(annotations))
    return [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": a["bbox"],
            "score": 0.9,
            "segmentation": {k: v if k == "size" else v.decode() for k, v in truth.annToRLE(a).items()},
        }
        for a in truth.dataset["annotations"]
    ]


def run_eval(*arguments):
    command = [sys.executable, "eval.py", "--config_path", "configs/shapes.yaml", "--checkpoint_path", "none.ckpt"]
    command += map(str, arguments)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_whole_predictions_need_no_network(tmp_path, shapes_root):
    """The checkpoint isn't there."""
    annotations = tmp_path / "elsewhere.json"
    annotations.write_bytes((shapes_root / "annotations/instances_val2017.json").read_bytes())
    save_results(tmp_path / "p.json", perfect(annotations))
    places = ["--train_outputs", tmp_path / "out", "--predictions", tmp_path / "p.json"]
    done = run_eval("--val_dataset", shapes_root, "--val_annotations", annotations, *places)
    assert done.returncode == 0, done.stderr
    assert "the network isn't run" in done.stdout
    tables = done.stdout.split("bbox:")[1].split("segm:")
    for table in tables:
        assert "IoU=0.50:0.95 | area=   all | maxDets=100 ] = 1.000" in table
    assert [p.name for p in (tmp_path / "out/shapes").iterdir()] == ["metrics.json"]


def test_predictions_of_other_images_are_refused(tmp_path, shapes_root):
    save_results(tmp_path / "p.json", [{"image_id": 999999, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}])
    done = run_eval("--val_dataset", shapes_root, "--train_outputs", tmp_path, "--predictions", tmp_path / "p.json")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path / 'p.json'}: entry 0")
    assert f"{shapes_root / 'annotations/instances_val2017.json'} has no image 999999" in last
    assert "Traceback" not in done.stderr


def test_predictions_not_there_yet(tmp_path):
    assert saved_results(tmp_path / "none.json") is None
    save_results(tmp_path / "p.json", [])
    assert saved_results(tmp_path / "p.json") == []


@pytest.mark.parametrize("length", [0, 1, 40])
def test_predictions_cut_short_are_told_and_made_again(tmp_path, capsys, length):
    path = tmp_path / "p.json"
    save_results(path, [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}])
    path.write_bytes(path.read_bytes()[:length])
    assert saved_results(path) is None
    assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize("content", [b'{"images": []}', b"weights", b"[1, 2]", b'{"half": '])
def test_files_that_are_no_predictions_stay_as_they_are(tmp_path, refusal, content):
    path = tmp_path / "mine"
    path.write_bytes(content)
    with refusal(EvaluationError, path):
        saved_results(path)
    assert path.read_bytes() == content


def test_a_folder_is_no_predictions(tmp_path, refusal):
    with refusal(EvaluationError, tmp_path):
        saved_results(tmp_path)
