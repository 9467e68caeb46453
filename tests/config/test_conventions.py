"""Keys that follow from others, and conventions as one word; today's configs against what they were with every key."""

import dataclasses
import functools
import gzip
import json
from pathlib import Path

import pytest

from src.config import ConfigError, load_config, save_config
from src.config.conventions import CONVENTIONS, Conventions, keys_of, table

ROOT = Path(__file__).resolve().parents[2]
# of each config, every key's value before conventions and derived keys
RESOLVED = json.loads(gzip.decompress(Path(__file__).with_name("resolved.json.gz").read_bytes()))
# meant otherwise since
CHANGED = {
    name: {"resize_filter": "unrounded"}
    for name in ("torchvision_faster_rcnn_r50_fpn", "torchvision_mask_rcnn_r50_fpn")
}


def value_of(config, name):
    return functools.reduce(getattr, name.split("."), config)


def without_new(values, old):
    return {k: without_new(v, old[k]) if isinstance(v, dict) else v for k, v in values.items() if k in old}


@pytest.mark.parametrize("name", RESOLVED)
def test_a_config_says_what_it_said(name):
    now = dataclasses.asdict(load_config(ROOT / f"configs/{name}.yaml"))
    assert without_new(now, RESOLVED[name]) == RESOLVED[name] | CHANGED.get(name, {})


@pytest.mark.parametrize("name", RESOLVED)
def test_a_config_of_every_key_still_loads(name, tmp_path):
    """As older runs saved theirs: keys that follow from others among them."""
    (tmp_path / "old.yaml").write_text(json.dumps(RESOLVED[name]))
    now = dataclasses.asdict(load_config(tmp_path / "old.yaml"))
    assert without_new(now, RESOLVED[name]) == RESOLVED[name]


def test_what_follows(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "backbone: {type: mobilenet_v1, width_multiplier: 0.25, out_indices: [1, 2, 3]}\n"
        "neck: {fpn: {out_channels: 32, num_outs: 4}}\n"
        "roi: {roi_layer: {out_size: 5}}\n"
        "mask_roi: {roi_layer: {out_size: 10}}\n"
        "coco_classes: [background, cat, dog]\n"
    )
    c = load_config(tmp_path / "mine.yaml")
    assert (c.neck.fpn.in_channels, c.rpn.anchor_generator.strides) == ([64, 128, 256], [8, 16, 32, 64])
    assert c.roi.featmap_strides == c.mask_roi.featmap_strides == [8, 16, 32]
    assert (c.rpn.in_channels, c.bbox_head.in_channels, c.mask_head.in_channels) == (32, 32, 32)
    assert (c.bbox_head.roi_feat_size, c.train_cfg.rcnn.mask_size, c.num_classes) == (5, 20, 3)


def test_a_saved_config_takes_another_backbone(tmp_path):
    save_config(load_config(ROOT / "configs/shapes.yaml"), tmp_path / "run.yaml")
    c = load_config(tmp_path / "run.yaml", {"backbone": "resnet_v1.5_50"})
    assert c.neck.fpn.in_channels == [256, 512, 1024, 2048]


@pytest.mark.parametrize("project", CONVENTIONS)
def test_a_project_s_name_stands_for_its_choices(project, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"conventions: {project}\nimg_width: 1344\n")
    given = load_config(tmp_path / "mine.yaml")
    for name, value in keys_of(project, "mine.yaml").items():
        assert value_of(given, name) == value, name
    # a command line is asked for them first, wherever it names them
    (tmp_path / "plain.yaml").write_text("img_width: 1344\n")
    there = load_config(tmp_path / "plain.yaml", {"seed": "1", "conventions": project})
    assert dataclasses.asdict(there) == dataclasses.asdict(given)


OTHER = {bool: lambda v: not v, int: lambda v: v + 1, tuple: lambda v: [x + 1 for x in v]}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Conventions)])
def test_every_choice_can_be_made_otherwise(field, tmp_path):
    """The key beside the name wins, whichever comes first, and changes no other."""
    record = CONVENTIONS["detectron2"]
    was = getattr(record, field)
    others = {getattr(r, field) for r in CONVENTIONS.values()} - {was}
    other = next(iter(sorted(others, key=str))) if others else OTHER[type(was)](was)
    other = list(other) if isinstance(other, tuple) else other
    (keys,) = (f.metadata["keys"] for f in dataclasses.fields(Conventions) if f.name == field)
    (tmp_path / "mine.yaml").write_text("conventions: detectron2\nimg_width: 1344\n")
    plain = load_config(tmp_path / "mine.yaml")
    changed = load_config(tmp_path / "mine.yaml", {k: json.dumps(other).strip('"') for k in keys})
    for name, value in keys_of("detectron2", "mine.yaml").items():
        assert value_of(changed, name) == (other if name in keys else value), name
        assert value_of(plain, name) == value


def test_an_unknown_project_is_told(tmp_path, refusal):
    (tmp_path / "mine.yaml").write_text("conventions: torchvison\n")
    with refusal(ConfigError, "mine.yaml", "conventions", "torchvison", "torchvision, detectron2"):
        load_config(tmp_path / "mine.yaml")


def test_the_table_has_every_choice():
    lines = table().splitlines()
    assert len(lines) == 2 + len(dataclasses.fields(Conventions))
    assert all(line.count("|") == 3 + len(CONVENTIONS) for line in lines)
    assert "102.9801, 115.9465, 122.7717" in table()
