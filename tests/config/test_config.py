"""The config: what is refused, and how the message helps."""

import argparse
import os
from pathlib import Path

import pytest

from src.config import (
    Config,
    ConfigError,
    add_config_arguments,
    config_from_arguments,
    describe_keys,
    load_config,
    parse_overrides,
    save_config,
)
from src.config.__main__ import main
from src.config.keys import DETECTORS
from src.config.reading import BACKBONES
from src.runtime.errors import run_command, shown

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.fixture
def refused(tmp_path):
    """Writes a config, expects it refused in one line that names the file, and returns that line."""

    def check(text, **overrides):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError) as error:
            load_config(path, {k.replace("__", "."): v for k, v in overrides.items()})
        message = str(error.value)
        assert message.isprintable()
        assert len(message) <= 2100
        assert overrides or str(path) in message
        return message

    return check


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_config_loads(path):
    assert isinstance(load_config(path), Config)


def test_configs_were_found():
    assert {"mask_rcnn_r50_fpn.yaml", "shapes.yaml"} <= {p.name for p in CONFIGS}


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("momentom: 0.9", "momentom", "momentum"),
        ("rpn: {feet_channels: 3}", "rpn.feet_channels", "rpn.feat_channels"),
        ("train_cfg: {rpn: {assigner: {pos_iou: 0.5}}}", "train_cfg.rpn.assigner.pos_iou", "pos_iou_thr"),
    ],
)
def test_unknown_key_names_the_nearest(refused, text, key, nearest):
    message = refused(text)
    assert f"{key}: unknown key" in message
    assert nearest in message.split("did you mean")[1]


def test_unknown_key_unlike_any_lists_those_there(refused):
    message = refused("neck: {fpn: {zzzz: 1}}")
    assert "neck.fpn.zzzz" in message
    assert "num_outs" in message


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--batchsize 2", "batchsize: unknown key; did you mean batch_size?"),
        # options of the command itself are meant too
        ("--chekpoint_path a", "chekpoint_path: unknown key; did you mean checkpoint_path?"),
        ("--no_such 1", "no_such: unknown key; python -m src.config lists all keys, --help the options"),
        ("--learning_rate 1", "learning_rate: unknown key; python -m src.config lists all keys, --help the options"),
    ],
)
def test_unknown_words_of_a_command_line(words, told):
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint_path")
    add_config_arguments(parser, str(CONFIGS[0]))
    with pytest.raises(ConfigError) as error:
        config_from_arguments(parser, words.split())
    assert str(error.value) == f"command line: {told}"


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("batch_size: two", "batch_size", "integer"),
        ("batch_size: 2.5", "batch_size", "integer"),
        ("batch_size: true", "batch_size", "integer"),
        ("lr: fast", "lr", "number"),
        ("keep_ratio: maybe", "keep_ratio", "true/false"),
        ("brief: 7", "brief", "text"),
        ("lr_steps: 8", "lr_steps", "list of integer"),
        ("lr_steps: [8, x]", "lr_steps", "integer"),
        ("rpn: 5", "rpn", "rpn"),
        ("rpn:", "rpn", "rpn"),
        ("lr:", "lr", "number"),
        ("epoch_size: 1:30", "epoch_size", "got 1:30"),
        ("epoch_size: 0x10", "epoch_size", "got 0x10"),
        ("epoch_size: 010", "epoch_size", "got 010"),
        ("lr: 1_000", "lr", "got 1_000"),
        ("lr: .inf", "lr", "got .inf"),
        ("lr: inf", "lr", "got 'inf'"),
        ("lr: 1e999", "lr", "got '1e999'"),
        ("img_mean: [1, .nan, 1]", "img_mean", "got .nan"),
        ("train_cfg: {rcnn: {sampler: {neg_pos_ub: -.inf}}}", "neg_pos_ub", "got -.inf"),
        ("brief: 2001-99-99", "brief", "in quotes"),
        ("brief: null", "brief", "got null"),
        ('brief: "a\\0b"', "brief", r"a\x00b"),
        ("base: 2001-01-01", "base", "text"),
        ("keep_ratio: !!bool perhaps", "keep_ratio", "true/false"),
        ("coco_classes: [background, {a: 1}]", "coco_classes", "text"),
    ],
)
def test_wrong_type(refused, text, key, expected):
    message = refused(text)
    assert key in message
    assert expected in message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("lr: -0.1", "lr"),
        ("lr: .nan", "lr"),
        ("batch_size: 0", "batch_size"),
        ("flip_ratio: 1.5", "flip_ratio"),
        ("lr_steps: [8, 0]", "lr_steps"),
        ("detector: yolo", "detector"),
        ("backbone: {depth: 34}", "backbone.depth"),
    ],
)
def test_out_of_range(refused, text, key):
    assert key in refused(text)


def test_choices_are_named(refused):
    message = refused("device_target: TPU")
    assert "CPU, GPU, Ascend" in message


def test_numbers_that_yaml_takes_for_text(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("weight_decay: 1e-4\nrpn: {anchor_generator: {scales: [8]}}")
    config = load_config(path)
    assert config.weight_decay == 1e-4
    assert config.rpn.anchor_generator.scales == [8.0]


def test_malformed_yaml_names_the_line(refused):
    assert "line 3" in refused("lr: 0.1\nbatch_size: 2\nbrief: ]\nseed: 3\n")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seed: 1\nlr: 0.5\nlr: 0.001\n", ("line 3", "lr comes twice", "line 2")),
        ("rpn: {feat_channels: 3,\n  feat_channels: 4}\n", ("line 2", "feat_channels comes twice")),
        ("IMAGE_DIR: a\nimage_dir: b\n", ("IMAGE_DIR", "image_dir")),
        ("seed: 1\nbrief: " + "[" * 20000, ("line 2", "levels")),
        ("a: &a [1, 1]\nb: &b [*a, *a]\nbrief: [*b, *b]\n", ("line 2", "*a")),
        ("a: &a [*a]\n", ("line 1", "*a")),
        ("lr: 1\n---\nlr: 2\n", ("line 2", "document")),
        ("brief: !!python/object:os.system x\n", ("line 1", "python/object")),
        ("lr: 0.5 # " + "x" * 2**18, ("256 KiB",)),
        ('brief: ["' + "x" * 200000 + '", 5]', ("brief", "expected text")),
        ('"x\\e]0;gone\\a": 1', (r"x\x1b]0;gone\x07: unknown key",)),
        (f"{'k' * 1000}: 1", ("unknown key", "python -m src.config")),
    ],
    ids=lambda v: None if isinstance(v, tuple) else v[:20].strip(),
)
def test_yaml_that_could_be_misread_or_take_all_memory(refused, text, parts):
    message = refused(text)
    assert all(part in message for part in parts)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file(tmp_path, kind):
    name = {"pipe": str(tmp_path / "pipe"), "device": "/dev/zero", "folder": str(tmp_path)}[kind]
    if kind == "pipe":
        os.mkfifo(name)
    (tmp_path / "mine.yaml").write_text(f"base: {name}")
    for path, named in ((name, name), (tmp_path / "mine.yaml", f"{tmp_path}/mine.yaml: base: {name}")):
        with pytest.raises(ConfigError, match=f"^{named}: (not a file|can't read)"):
            load_config(path)


def test_an_alias_of_a_word_is_read(tmp_path):
    (tmp_path / "mine.yaml").write_text("train_dataset: &data photos\nval_dataset: *data\n")
    assert load_config(tmp_path / "mine.yaml").val_dataset == "photos"


def test_class_names_are_those_written(tmp_path):
    names = ["background", "012", "on", "1:30", "null", "2024-01-01", "1.50", "0x10"]
    (tmp_path / "mine.yaml").write_text(f"coco_classes: [{', '.join(names)}]\nnum_classes: 8\n")
    assert load_config(tmp_path / "mine.yaml").coco_classes == names
    given = parse_overrides(["--coco_classes", f"[{', '.join(names)}]"])
    assert load_config(tmp_path / "mine.yaml", given).coco_classes == names


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_not_a_mapping(refused, text):
    assert "expected a mapping" in refused(text)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: can't read"):
        load_config(tmp_path / "nowhere.yaml")


def test_not_text(tmp_path):
    (tmp_path / "picture.yaml").write_bytes(b"\xff\xd8\xff\xe0\x00")
    with pytest.raises(ConfigError, match=r"picture\.yaml"):
        load_config(tmp_path / "picture.yaml")


def test_base_chain(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "first.yaml").write_text("lr: 0.5\nepoch_size: 3\nrpn: {loss_cls: {loss_weight: 2}}")
    (tmp_path / "second.yaml").write_text("base: first.yaml\nepoch_size: 4\nrpn: {loss_bbox: {beta: 0.5}}")
    (tmp_path / "sub/third.yaml").write_text("base: ../second.yaml\nbrief: third")
    config = load_config(tmp_path / "sub/third.yaml")
    assert (config.lr, config.epoch_size, config.brief) == (0.5, 4, "third")
    assert (config.rpn.loss_cls.loss_weight, config.rpn.loss_bbox.beta) == (2.0, 0.5)


def test_fault_in_a_base_names_the_base(tmp_path):
    (tmp_path / "first.yaml").write_text("lrr: 0.5")
    (tmp_path / "second.yaml").write_text("base: first.yaml")
    with pytest.raises(ConfigError, match=r"first\.yaml: lrr"):
        load_config(tmp_path / "second.yaml")


def test_base_circle(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml")
    (tmp_path / "b.yaml").write_text("base: a.yaml")
    with pytest.raises(ConfigError, match="circle"):
        load_config(tmp_path / "a.yaml")


def test_base_missing_or_not_a_name(refused, tmp_path):
    assert "base" in refused("base: 5")
    (tmp_path / "mine.yaml").write_text("base: none.yaml")
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load_config(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("num_classes: 5", "num_classes"),
        ("coco_classes: [background, a, a]\nnum_classes: 3", "coco_classes"),
        ("neck: {fpn: {in_channels: [1, 2, 3]}}", "neck.fpn.in_channels"),
        ("backbone: {out_indices: [0, 2, 1, 3]}", "backbone.out_indices"),
        ("backbone: {out_indices: []}\nneck: {fpn: {in_channels: []}}", "backbone.out_indices"),
        ("backbone: {num_stages: 3}", "backbone.num_stages"),
        ("neck: {fpn: {num_outs: 3}}", "neck.fpn.num_outs"),
        ("rpn: {anchor_generator: {strides: [4, 8]}}", "rpn.anchor_generator.strides"),
        ("roi: {featmap_strides: [8, 16]}", "roi.featmap_strides"),
        ("bbox_head: {roi_feat_size: 5}", "bbox_head.roi_feat_size"),
        ("train_cfg: {rcnn: {mask_size: 14}}", "train_cfg.rcnn.mask_size"),
        ("mask_head: {in_channels: 8}", "mask_head.in_channels"),
        ("img_mean: [1, 2]", "img_mean"),
        ("rpn: {bbox_coder: {target_stds: [1, 1]}}", "rpn.bbox_coder.target_stds"),
        ("img_width: 1000", "img_width"),
        ("train_cfg: {rcnn: {assigner: {neg_iou_thr: 0.9}}}", "train_cfg.rcnn.assigner"),
        # what would fail only when the network is built, compiled or run
        ("backbone: {type: mobilenet_v1}\nneck: {fpn: {in_channels: [256, 512, 1024, 2048]}}", "neck.fpn.in_channels"),
        (
            "backbone: {type: mobilenet_v1, width_multiplier: 0.5}\nneck: {fpn: {in_channels: [128, 256, 512, 1024]}}",
            "[64, 128, 256, 512]",
        ),
        ("backbone: {groups: 32}", "backbone.groups"),
        ("backbone: {base_width: 4}", "backbone.base_width"),
        ("backbone: {width_multiplier: 0.5}", "backbone.width_multiplier"),
        ("backbone: {out_indices: [0, 2, 3]}\nneck: {fpn: {in_channels: [256, 1024, 2048]}}", "backbone.out_indices"),
        ("backbone: {norm_eps: 0}", "backbone.norm_eps"),
        ("rpn: {anchor_generator: {strides: [8, 16, 32, 64, 128]}}", "rpn.anchor_generator.strides"),
        ("rpn: {anchor_generator: {scales: []}}", "rpn.anchor_generator.scales"),
        ("rpn: {anchor_generator: {ratios: []}}", "rpn.anchor_generator.ratios"),
        ("mask_roi: {featmap_strides: []}", "mask_roi.featmap_strides"),
        ("neck: {fpn: {num_outs: 6}}", "neck.fpn.num_outs"),
        ("train_cfg: {rpn: {sampler: {pos_fraction: 0}}}", "train_cfg.rpn.sampler.pos_fraction"),
        ("train_cfg: {rcnn: {sampler: {num: 3}}}", "train_cfg.rcnn.sampler.pos_fraction"),
        ("train_cfg: {rcnn: {sampler: {num: 8}}}", "train_cfg.rcnn.mask_buckets"),
        ("seed: 1099511627776", "seed"),
        ("epoch_size: 3000000000", "epoch_size"),
        ("keypoint_head: {skeleton: [[1, 18]]}", "keypoint_head.skeleton"),
        ("keypoint_head: {skeleton: [[1, 2, 3]]}", "keypoint_head.skeleton"),
        ("keypoint_head: {skeleton: [[0, 1]]}", "keypoint_head.skeleton"),
        ("detector: cascade_rcnn\ncascade: {pos_iou_thr: [0.5]}", "cascade.target_stds"),
    ],
)
def test_keys_that_contradict_each_other(refused, text, part):
    assert part in refused(text)


def test_no_number_is_beyond_what_computers_hold(tmp_path):
    (tmp_path / "mine.yaml").write_text("lr: 1")
    for name, kind, *_ in describe_keys():
        value = {"integer": "100000000000", "number": "1e39"}.get(kind.rpartition("list of ")[2])
        if value:
            for sign in ("", "-"):
                given = f"[{sign}{value}]" if "list" in kind else sign + value
                given = f"[{given}]" if kind.count("list") == 2 else given
                with pytest.raises(ConfigError, match=rf"^command line: {name}: \S+ is (below|above|not one of) "):
                    load_config(tmp_path / "mine.yaml", {name: given})


@pytest.mark.parametrize(
    "text",
    [
        "detector: faster_rcnn\nmask_head: {in_channels: 8}\nmask_roi: {featmap_strides: []}",
        "detector: faster_rcnn\ntrain_cfg: {rcnn: {mask_size: 5, mask_buckets: 16}}",
        "cascade: {pos_iou_thr: []}",
        "backbone: {type: resnext, groups: 32, base_width: 4}",
        "seed: 4294967295",
    ],
)
def test_what_a_detector_lacks_is_not_looked_at(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    assert isinstance(load_config(tmp_path / "mine.yaml"), Config)


def test_a_backbone_by_name_is_whole(tmp_path):
    narrow = "backbone: {type: mobilenet_v1, width_multiplier: 0.25, relu6: true}\n"
    (tmp_path / "mine.yaml").write_text(f"{narrow}neck: {{fpn: {{in_channels: [32, 64, 128, 256]}}}}")
    config = load_config(tmp_path / "mine.yaml", {"backbone": "resnet_v1_101"})
    assert (config.backbone.type, config.backbone.depth, config.backbone.width_multiplier) == ("resnet", 101, 1.0)
    assert config.neck.fpn.in_channels == [256, 512, 1024, 2048]


@pytest.mark.parametrize(("name", "first"), [("vit_b", 192), ("swin_t", 96), ("swin_s", 96)])
def test_a_transformer_goes_by_name_in_every_detector(name, first):
    for detector in DETECTORS:
        config = load_config(CONFIGS[0].parent / "mask_rcnn_r50_fpn.yaml", {"backbone": name, "detector": detector})
        assert (config.backbone.type, config.neck.fpn.in_channels[0], config.detector) == (name, first, detector)


def test_overrides(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("lr: 0.5")
    words = ["--lr", "0.25", "--train_cfg.rpn.sampler.num=64", "--lr_steps", "[3, 5]", "brief=x", "--keep_ratio=false"]
    config = load_config(path, parse_overrides(words))
    assert (config.lr, config.train_cfg.rpn.sampler.num, config.lr_steps) == (0.25, 64, [3, 5])
    assert (config.brief, config.keep_ratio) == ("x", False)


def test_overrides_can_empty_a_text_and_be_negative(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("pre_trained: some.ckpt")
    config = load_config(path, parse_overrides(["--pre_trained=", "--train_cfg.rcnn.sampler.neg_pos_ub", "-1"]))
    assert config.pre_trained == ""
    assert config.train_cfg.rcnn.sampler.neg_pos_ub == -1


WORDS = [" lead", "trail ", "null", "~", "012", "2024-01-01", "on", "1:30", "run: 2", "run #2", "&a b", "*a", "[a"]
WORDS += [
    "two\nlines",
    "it's",
    '"quoted"',
    "%",
    "@x",
    "!x",
    "---",
    "a=b",
    "-1",
    "\x1b[31m",
    "é",
    "1e-4",
    "{a: b}",
]


@pytest.mark.parametrize("word", WORDS)
def test_text_is_taken_as_it_is_and_kept(tmp_path, word):
    path = tmp_path / "mine.yaml"
    path.write_text("train_dataset: before\nbrief: before\nIMAGE_DIR: before")
    words = ["--train_dataset", word, f"--brief={word}", "--IMAGE_DIR", word, "--backbone.pretrained", word]
    parser = argparse.ArgumentParser()
    add_config_arguments(parser, str(path))
    config, _ = config_from_arguments(parser, words)
    save_config(config, tmp_path / "config.yaml")
    for c in (config, load_config(tmp_path / "config.yaml")):
        assert [c.train_dataset, c.brief, c.image_dir, c.backbone.pretrained] == [word] * 4


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/../../x", "a/..", "/x", "./../x", "//x", "..//"])
def test_a_brief_that_leaves_train_outputs(name, refusal):
    with refusal(ConfigError, "brief: ", shown(name), "train_outputs"):
        load_config("configs/shapes.yaml", {"brief": name})


@pytest.mark.parametrize("name", ["a/b", "a/../b", "..a", "./a", "a b/"])
def test_a_brief_in_train_outputs(name):
    config = load_config("configs/shapes.yaml", {"brief": name, "train_outputs": "out"})
    assert Path(os.path.normpath(config.output_dir)).is_relative_to("out")


def test_the_last_of_two_names_of_a_key_counts(tmp_path):
    (tmp_path / "mine.yaml").write_text("lr: 1")
    words = ["--IMAGE_DIR", "a", "--image_dir", "b", "--IMAGE_DIR", "c"]
    assert load_config(tmp_path / "mine.yaml", parse_overrides(words)).image_dir == "c"


@pytest.mark.parametrize("value", [".inf", "1:30", "[[[[", "*a", "", "null", "0x10", "2 # two\n3"])
def test_overrides_that_are_no_numbers(refused, value):
    assert "command line: epoch_size: expected integer" in refused("lr: 1", epoch_size=value)


def test_overrides_that_are_wrong(refused):
    assert "command line: rpn.feet_channels" in refused("lr: 1", rpn__feet_channels="3")
    assert "command line" in refused("lr: 1", batch_size="many")
    assert "command line" in refused("lr: 1", num_classes="7")
    assert "command line: lr" in refused("lr: 1", lr__x="7")


@pytest.mark.parametrize("words", [["lr"], ["--lr"], ["--lr", "0.1", "stray"]])
def test_words_that_are_no_override(words):
    with pytest.raises(ConfigError, match=f"'{words[-1]}'"):
        parse_overrides(words)


def test_command_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("lr: 0.5")
    parser = argparse.ArgumentParser()
    add_config_arguments(parser, "none.yaml")
    config, known = config_from_arguments(parser, ["--config_path", str(path), "--batch_size", "3"])
    assert (config.lr, config.batch_size, known.config_path) == (0.5, 3, str(path))


def test_two_configs_share_nothing():
    first, second = Config(), Config()
    first.lr_steps.append(99)
    first.rpn.anchor_generator.scales[0] = 1
    assert second.lr_steps == [8, 11]
    assert second.rpn.anchor_generator.scales == [8]


def test_listing_the_keys(tmp_path, monkeypatch, capsys):
    def listed(*words):
        monkeypatch.setattr("sys.argv", ["src.config", *words])
        with pytest.raises(SystemExit) as end:
            run_command(main)
        return end.value.code, capsys.readouterr()

    (tmp_path / "mine.yaml").write_text('brief: "a\\nb"\nlr: 0.25\n')
    assert listed()[1].out.startswith("train_outputs (text) = train_outputs\n    folder of experiments\n")
    status, printed = listed(str(tmp_path / "mine.yaml"))
    assert status == 0
    assert "\nbrief (text) = a\\nb\n" in printed.out
    assert "\nlr (number) = 0.25\n" in printed.out
    status, printed = listed("none.yaml")
    assert (status, printed.err) == (2, "error: none.yaml: can't read: No such file or directory\n")
    assert listed("--help")[1].out.startswith("usage: python -m src.config")
    # the names that launchers take
    assert listed("--names", "backbone")[1].out.splitlines() == list(BACKBONES)
    assert "faster_rcnn" in listed("--names", "detector")[1].out.splitlines()
    assert listed("--names", "backbone", "mobilenet_v1") == (0, ("", ""))
    status, printed = listed("--names", "backbone", "mobilenet")
    assert status == 2 and printed.err.endswith("; did you mean mobilenet_v1?\n")
    assert listed("--names", "lr")[0] == 2


def test_every_key_is_described():
    rows = {name: (kind, default, doc) for name, kind, default, doc in describe_keys()}
    assert rows["train_cfg.rpn.sampler.num"][:2] == ("integer", 256)
    assert rows["lr_steps"][0] == "list of integer"
    assert all(doc for _, _, doc in rows.values())


@pytest.mark.parametrize("key", ["train_outputs", "brief", "mindrecord_dir"])
def test_a_folder_that_mindspore_could_not_write(key, refusal):
    with refusal(ConfigError, key, "isn't UTF-8", "name another"):
        load_config("configs/shapes.yaml", {key: os.fsdecode(b"a\xff")})
