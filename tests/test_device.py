"""Where compiled graphs are kept: MindSpore would take another config's for ours."""

from src.config import load_config
from src.ops.device import compile_cache_folder


def folder(**overrides):
    return compile_cache_folder(load_config("configs/shapes.yaml", overrides))


def test_a_kept_graph_is_found_again_by_the_same_config_alone(tmp_path):
    place = {"train_outputs": str(tmp_path)}
    assert folder(**place) == folder(**place)
    assert folder(**place).is_relative_to(tmp_path)
    others = [folder(lr=0.01, **place), folder(img_width=320, **place), folder(detector="faster_rcnn", **place)]
    assert len({folder(**place), *others}) == 4
