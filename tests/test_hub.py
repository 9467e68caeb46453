"""MindSpore Hub's entry."""

import dataclasses
import shutil

import numpy as np
import pytest
import yaml
from mindspore import Tensor

from mindspore_hub_conf import create_network
from src.checkpoints.files import load_checkpoint
from src.config import load_config, save_config
from src.runtime.errors import UserError
from tests.conftest import TINY


def test_a_network_with_its_checkpoint(tiny_model):
    network = create_network("shapes", checkpoint=tiny_model[1], **TINY)
    image = np.zeros((2, 3, 128, 192), np.float32)
    boxes, scores, labels, valid, masks = network(Tensor(image), Tensor(np.array([[128, 192]] * 2, np.float32)))
    assert boxes.shape == (2, 20, 4)
    assert scores.shape == labels.shape == valid.shape == (2, 20)
    assert masks.shape == (2, 20, 28, 28)


def test_classes_left_to_the_data_are_those_of_the_checkpoints_run(tiny_model, tmp_path):
    checkpoint = shutil.copy(tiny_model[1], tmp_path)
    classes = load_config("configs/shapes.yaml", {}).coco_classes
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"coco_classes": classes}))
    network = create_network("shapes", checkpoint=checkpoint, **(TINY | {"coco_classes": "auto"}))
    assert network.roi_heads.box.cls.weight.shape[0] == 6


def test_as_many_classes_as_one_says():
    network = create_network("shapes", num_classes=4, **TINY)
    assert network.roi_heads.box.cls.weight.shape[0] == 4
    assert network.roi_heads.more[0].heads[0].logits.weight.shape[0] == 4
    assert create_network("shapes", num_classes=6, **TINY).roi_heads.box.cls.weight.shape[0] == 6


def test_a_runs_own_config(tiny_model, tmp_path):
    config, checkpoint = tiny_model
    save_config(dataclasses.replace(config, detector="faster_rcnn"), tmp_path / "config.yaml")
    network = create_network(str(tmp_path / "config.yaml"), checkpoint=checkpoint)
    trained = load_checkpoint(checkpoint)["bbox_head.cls.weight"]
    np.testing.assert_array_equal(network.roi_heads.box.cls.weight.asnumpy(), trained)
    assert not network.roi_heads.more


@pytest.mark.parametrize(
    ("name", "arguments", "options", "part"),
    [
        ("resnet50", (), {}, "mask_rcnn_r50_fpn"),
        ("../configs/shapes", (), {}, "isn't a network"),
        ("none/config.yaml", (), {}, "none/config.yaml: can't read"),
        ("shapes", (5,), {}, "by name"),
        ("shapes", (), {"num_classes": 1}, "num_classes"),
        ("shapes", (), {"num_classes": 10**9}, "num_classes"),
        ("shapes", (), {"nms": 0.5}, "unknown key"),
        ("shapes", (), {"checkpoint": "none.ckpt"}, "no such checkpoint"),
    ],
)
def test_mistakes(name, arguments, options, part, refusal):
    with refusal(UserError, part):
        create_network(name, *arguments, **options)
