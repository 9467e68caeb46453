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
    """The checkpoint isn't there, and nothing is converted."""
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
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["metrics.json"]


def test_predictions_of_other_images_are_refused(tmp_path, shapes_root):
    save_results(tmp_path / "p.json", [{"image_id": 999999, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}])
    done = run_eval("--val_dataset", shapes_root, "--predictions", tmp_path / "p.json")
    assert done.returncode == 2
    assert "999999" in done.stderr.splitlines()[-1]


def test_predictions_not_there_yet(tmp_path):
    assert saved_results(tmp_path / "none.json") is None
    save_results(tmp_path / "p.json", [])
    assert saved_results(tmp_path / "p.json") == []


def test_predictions_cut_short_anywhere_are_told_and_made_again(tmp_path, capsys):
    path = tmp_path / "p.json"
    mask = {"size": [20, 30], "counts": 'a\\b"0'}
    result = {"image_id": 1, "category_id": 1, "bbox": [0, -1.5, 1, 1e-07], "score": 1, "segmentation": mask}
    save_results(path, [result, result | {"image_id": 22}])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert saved_results(path) is None
        assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [
        b'{"images": []}',
        b"weights",
        b"[1, 2]",
        b'{"half": ',
        b"[1, 2",
        b"[section]\nkey = 1\n",
        b"[\n",
        b'[{"image": 3, "label": "cat"}, {"image": 4, "la',
        b'[{"image_id": 1, "caption": "a cat"}, {"image_',
        b'[{"image_id":1,"category_id":1,"bbox":[0,0,1,1],"score":1} {"image_id":1,',
        b'[{"image_id":1,"category_id":1,"bbox":[0,0,1,1],"score":oops},{"image_id":1,"sco',
        b'[{"image_id":1,"category_id":1,"bbox":[0,0,1,1],"score":1}] and my notes',
        b"[\xff\xfe",
    ],
)
def test_files_that_are_no_predictions_stay_as_they_are(tmp_path, refusal, content):
    path = tmp_path / "mine"
    path.write_bytes(content)
    with refusal(EvaluationError, path):
        saved_results(path)
    assert path.read_bytes() == content


def test_a_folder_is_no_predictions(tmp_path, refusal):
    with refusal(EvaluationError, tmp_path):
        saved_results(tmp_path)
