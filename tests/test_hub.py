"""MindSpore Hub's entry."""

import shutil

import numpy as np
import pytest
import yaml
from mindspore import Tensor

from mindspore_hub_conf import create_network
from src.config import load_config
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
    assert network.bbox_head.cls.weight.shape[0] == 6


@pytest.mark.parametrize(
    ("name", "arguments", "options", "part"),
    [
        ("resnet50", (), {}, "mask_rcnn_r50_fpn"),
        ("../configs/shapes", (), {}, "isn't a network"),
        ("shapes", (5,), {}, "by name"),
        ("shapes", (), {"nms": 0.5}, "unknown key"),
        ("shapes", (), {"checkpoint": "none.ckpt"}, "no such checkpoint"),
    ],
)
def test_mistakes(name, arguments, options, part, refusal):
    with refusal(UserError, part):
        create_network(name, *arguments, **options)
