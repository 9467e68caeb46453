"""The table of benchmarks/augmentation.py grows by runs; training itself is stood in for."""

import json
import sys

import pytest

from benchmarks import augmentation
from src.runtime.errors import UserError

AP = {("neither", 1): 0.5, ("neither", 2): 0.7, ("copy-paste", 1): 0.6, ("copy-paste", 2): 0.65}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Runs the program with some words; returns the (row, seed) that it trained, in order."""

    def run(*words):
        trained = []

        def train(name, data, out, overrides):
            assert (name, (data / "annotations/instances_val2017.json").is_file()) == ("shapes", True)
            keys = dict(w[2:].split("=") for w in overrides if "=" in w)
            both = ("copy_paste_ratio" in keys, "aug_prob" in keys)
            row = {(False, False): "neither", (True, False): "copy-paste", (False, True): "InstaBoost"}.get(
                both, "both"
            )
            trained.append((row, int(keys["seed"])))
            if len(trained) > run.most:
                raise UserError("training failed")
            return dict.fromkeys(augmentation.METRICS, AP.get(trained[-1], 0.4)) | {"training s": 1.0}

        monkeypatch.setattr(augmentation, "train_and_evaluate", train)
        monkeypatch.setattr(sys, "argv", ["augmentation", "--out", str(tmp_path), "--train", "2", "--val", "1", *words])
        augmentation.main()
        return trained

    run.most = 100
    return run


def test_a_run_is_made_once(bench, tmp_path, capsys):
    bench.most = 1
    with pytest.raises(UserError):
        bench("--seeds", "1")
    assert [(r["row"], r["seed"]) for r in json.loads((tmp_path / "runs.json").read_text())] == [("neither", 1)]
    bench.most = 100
    rest = [("InstaBoost", 1), ("copy-paste", 1), ("both", 1)]
    assert bench("--seeds", "1") == rest
    capsys.readouterr()
    assert bench("--seeds", "1", "2") == [("neither", 2), ("InstaBoost", 2), ("copy-paste", 2), ("both", 2)]
    table = capsys.readouterr().out
    assert f"| neither | 2 |{' 0.600 (0.500 to 0.700) |' * 4}" in table
    assert f"| copy-paste | 2 |{' 0.625 (0.600 to 0.650) |' * 4}" in table
    # other keys are another table
    assert len(bench("--seeds", "1", "--epoch_size", "2")) == 4
    assert f"| neither | 1 |{' 0.500 (0.500 to 0.500) |' * 4}" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "runs.json").read_text())) == 12


def test_a_file_of_runs_that_is_none_stays(bench, tmp_path, refusal):
    (tmp_path / "runs.json").write_text("{")
    with refusal(UserError, "runs.json: not JSON"):
        bench()
    assert (tmp_path / "runs.json").read_text() == "{"
