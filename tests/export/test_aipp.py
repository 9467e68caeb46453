"""The AIPP configuration: what the Ascend chip computes is what training's reader computes."""

import re
from pathlib import Path

import mmcv
import numpy as np
import pytest

from src.config import load_config
from src.export import aipp
from src.export.aipp import aipp_config
from src.runtime.errors import UserError

ROOT = Path(__file__).parents[2]


def constants(text):
    """{"mean_chn_0": 0.0, ...} of an AIPP configuration."""
    return {k: float(v) for k, v in re.findall(r"(\w+): (-?[\d.eE+-]+)$", text, re.MULTILINE)}


def test_the_file_is_the_training_configs():
    config = load_config(ROOT / "configs/mask_rcnn_r50_fpn.yaml")
    assert (ROOT / "ascend310_infer/aipp.cfg").read_text() == aipp_config(config)


@pytest.mark.parametrize("name", ["mask_rcnn_r50_fpn", "detectron2_mask_rcnn_r50_fpn", "shapes"])
def test_every_byte_is_normalised_as_in_training(name):
    config = load_config(ROOT / f"configs/{name}.yaml")
    c = constants(aipp_config(config))
    assert (c["src_image_size_w"], c["src_image_size_h"]) == (config.img_width, config.img_height)
    # every value in each channel, handed over in the network's order of channels
    values = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)
    trained = mmcv.imnormalize(values, np.array(config.img_mean), np.array(config.img_std), to_rgb=False)
    for i in range(3):
        chip = (values[0, :, i] - c[f"mean_chn_{i}"] - c[f"min_chn_{i}"]) * c[f"var_reci_chn_{i}"]
        # float32's rounding of numbers up to 152
        np.testing.assert_allclose(chip, trained[0, :, i], rtol=0, atol=1.6e-5)
        assert c[f"mean_chn_{i}"] == int(c[f"mean_chn_{i}"])


def test_bytes_hold_no_unrounded_pictures(refusal):
    with refusal(UserError, "resize_filter: unrounded", "bilinear"):
        aipp_config(load_config(ROOT / "configs/torchvision_mask_rcnn_r50_fpn.yaml"))


def test_upright_pictures_have_a_file_of_their_own(monkeypatch, capsys, refusal):
    def written(name, *words):
        monkeypatch.setattr("sys.argv", ["aipp", "--config_path", str(ROOT / f"configs/{name}.yaml"), *words])
        aipp.main()
        return capsys.readouterr().out

    lying, upright = (written("detectron2_mask_rcnn_r50_fpn", *w) for w in ([], ["--upright"]))
    sizes = [[constants(text)[f"src_image_size_{k}"] for k in "wh"] for text in (lying, upright)]
    assert sizes == [[1344, 800], [800, 1344]]
    with refusal(UserError, "--upright", "resize: canvas"):
        written("mask_rcnn_r50_fpn", "--upright")
