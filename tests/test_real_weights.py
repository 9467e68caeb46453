"""Published weights and photographs: RCNN_TEST_DATA names a folder with mobilenet_v1/ (TensorFlow-Slim's MobileNetV1,
and what OpenCV's dnn computes with it), coco_mini/, and raccoon/ (photographs in Pascal VOC's XML).
"""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import mindspore as ms
import numpy as np
import pytest

from benchmarks.real_data import listed
from src.checkpoints.files import load_backbone
from src.config import load_config
from src.convert_checkpoint import run
from src.data.import_labels import import_labels
from src.evaluation.coco import evaluate
from src.evaluation.results import load_results
from src.models.build import build_detector

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/tensorflow_slim_faster_rcnn_mobilenetv1_fpn.yaml"
CLOSE = 1e-4  # of the largest value: float32 sums in another order through 27 layers
WEIGHTS = "mobilenet_v1/mobilenet_v1_1.0_224_imagenet.safetensors"


def data_folder(*needed: str) -> Path:
    """The folder of real data. Skips without it, or without one of the files needed."""
    if not (named := os.environ.get("RCNN_TEST_DATA")):
        pytest.skip("RCNN_TEST_DATA isn't set: no published weights and photographs to test on")
    for name in needed:
        if not (Path(named) / name).exists():
            pytest.skip(f"RCNN_TEST_DATA: {Path(named) / name} isn't there")
    return Path(named)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """The converted checkpoint of the published weights."""
    path = tmp_path_factory.mktemp("slim") / "mobilenet_v1.ckpt"
    run(data_folder(WEIGHTS) / WEIGHTS, path, "auto", None, None, {})
    return path


def close(found, expected):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= CLOSE * np.abs(expected).max()


def test_published_mobilenet(backbone, operator_by_operator):
    import safetensors.numpy

    folder = data_folder("mobilenet_v1/reference.npz", "coco_mini/val2017")
    reference = np.load(folder / "mobilenet_v1/reference.npz")
    config = load_config(CONFIG)
    pixels = [cv2.imread(str(folder / "coco_mini/val2017" / str(name))) for name in reference["images"]]
    pixels = [cv2.resize(image, (224, 224), interpolation=cv2.INTER_LINEAR)[:, :, ::-1] for image in pixels]
    x = (np.array(pixels, np.float32) - config.img_mean) / config.img_std
    network = build_detector(config).set_train(False)
    load_backbone(network, backbone)
    found = [m.asnumpy() for m in network.backbone(ms.Tensor(x.transpose(0, 3, 1, 2).astype(np.float32)))]
    for name, maps in zip(("c2", "c3", "c4", "c5"), found):
        close(maps[:, ::16], reference[name])
    # the file's own classifier on our last map
    layer = "MobilenetV1/Logits/Conv2d_1c_1x1/"
    state = safetensors.numpy.load_file(folder / WEIGHTS)
    logits = found[3].mean((2, 3)) @ state[layer + "weights"][0, 0] + state[layer + "biases"]
    close(logits, reference["logits"])
    # in the reference's order: best first
    np.testing.assert_array_equal(np.argsort(-logits, 1)[:, :5], reference["top5"])


@pytest.mark.full
def test_learns_raccoons_in_a_minute(backbone, tmp_path):
    """160 photographs, three epochs on a small canvas: AP50 was 0.72 with seed 1."""
    folder = data_folder("raccoon/annotations")
    data = tmp_path / "data"
    import_labels(listed(folder / "raccoon", tmp_path / "voc"), data, source="voc", boxes=True)
    small = {"img_width": 256, "img_height": 256, "bbox_head.fc_out_channels": 256, "neck.fpn.out_channels": 64}
    small |= {"rpn.feat_channels": 64, "train_cfg.rcnn.sampler.num": 64, "lr": 0.0005, "epoch_size": 3}
    places = {"train_dataset": data, "val_dataset": data, "backbone.pretrained": backbone, "train_outputs": tmp_path}
    words = [f"--{k}={v}" for k, v in {**small, **places, "early_stop_epochs": 0, "brief": "run"}.items()]
    finetune = ROOT / "configs/finetune_faster_rcnn_mobilenetv1_fpn.yaml"
    trained = subprocess.run(
        [sys.executable, "train.py", "--config_path", finetune, *words], cwd=ROOT, capture_output=True, text=True
    )
    assert trained.returncode == 0, trained.stderr
    results = load_results(tmp_path / "run/results_epoch_3.json")
    found = evaluate(data / "annotations/instances_val2017.json", results, ("bbox",)).metrics["bbox"]
    assert found["AP50"] >= 0.5
