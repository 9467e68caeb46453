"""train.py and eval.py as a user runs them, on real photographs."""

import json
import subprocess
import sys

import pytest

from benchmarks.overfit import make_subset

SMALL = ["--img_width", "192", "--img_height", "128", "--backbone.norm_eval", "false", "--backbone.frozen_stages", "-1"]
SMALL += ["--neck.fpn.out_channels", "32", "--mask_head.conv_out_channels", "32", "--bbox_head.fc_out_channels", "64"]
SMALL += ["--train_cfg.rpn_proposal.max_per_img", "100", "--train_cfg.rcnn.mask_buckets", "1", "--lr", "0.01"]


def run(script, *arguments):
    command = [sys.executable, script, "--config_path", "configs/mask_rcnn_mobilenetv1_fpn.yaml", *SMALL, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.full
def test_train_then_evaluate(coco_root, tmp_path):
    root = make_subset(str(coco_root), tmp_path, 6)
    places = ["--train_dataset", str(root), "--val_dataset", str(root), "--train_outputs", str(tmp_path / "out")]
    trained = run("train.py", *places, "--epoch_size", "2", "--brief", "photographs")
    assert trained.returncode == 0, trained.stderr
    out = tmp_path / "out/photographs"
    assert len((out / "loss_0.log").read_text().splitlines()) == 2 * 3
    checkpoint = out / "checkpoints/mask_rcnn-2_3.ckpt"
    assert checkpoint.is_file()
    evaluated = run("eval.py", *places, "--checkpoint_path", str(checkpoint), "--results", str(tmp_path / "r.json"))
    assert evaluated.returncode == 0, evaluated.stderr
    assert evaluated.stdout.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all") == 2
    assert "person" in evaluated.stdout
    results = json.loads((tmp_path / "r.json").read_text())
    ids = {i["id"] for i in json.loads((root / "annotations/instances_val2017.json").read_text())["images"]}
    assert {r["image_id"] for r in results} <= ids
