"""The launchers of scripts/: their documented arguments, what DRY_RUN=1 prints, refusals, and how they run commands."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.hccl_tools import make_table, save
from src.config import load_config, parse_overrides
from src.config.reading import BACKBONES, describe_keys

ROOT = Path(__file__).parents[2]
TRAIN_FIRST = "[CONFIG_PATH] [TRAIN_DATA] [VAL_DATA] [TRAIN_OUT] [BRIEF] [PRETRAINED_PATH](optional)"
DISTRIBUTE_FIRST = TRAIN_FIRST.replace("[TRAIN_DATA]", "[DEVICE_NUM] [TRAIN_DATA]")
EVAL_FIRST = "[CONFIG_PATH] [VAL_DATA] [CHECKPOINT_PATH] [PREDICTION_PATH](optional)"
MODEL = "[PRETRAINED_MODEL] [BACKBONE] [COCO_ROOT]"
EVAL = "[VALIDATION_JSON_FILE] [CHECKPOINT_PATH] [BACKBONE] [COCO_ROOT]"
INFER = "[CONFIG_PATH] [CHECKPOINT_PATH] [PRED_INPUT] [PRED_OUTPUT]"
MINDRECORD = "[MINDRECORD_DIR](optional)"

# script, device, form: as docs/launchers.md tells them
FORMS = [
    ("run_standalone_train.sh", "Ascend", "[PRETRAINED_CKPT]"),
    ("run_standalone_train_ascend.sh", "Ascend", f"{MODEL} [DEVICE_ID] {MINDRECORD}"),
    ("run_standalone_train_gpu.sh", "GPU", f"{MODEL} [DEVICE_ID] {MINDRECORD}"),
    ("run_standalone_train_cpu.sh", "CPU", f"{MODEL} {MINDRECORD}"),
    ("run_distribute_train.sh", "Ascend", "[RANK_TABLE_FILE] [PRETRAINED_CKPT]"),
    ("run_distribute_train_ascend.sh", "Ascend", f"[RANK_TABLE_FILE] {MODEL} {MINDRECORD}"),
    ("run_distribute_train_gpu.sh", "GPU", f"[DEVICE_NUM] {MODEL} {MINDRECORD}"),
    ("run_distribute_train_cpu.sh", "CPU", f"[DEVICE_NUM] {MODEL} {MINDRECORD}"),
    ("run_eval.sh", "Ascend", "[VALIDATION_JSON_FILE] [CHECKPOINT_PATH]"),
    ("run_eval_ascend.sh", "Ascend", f"{EVAL} [DEVICE_ID] {MINDRECORD}"),
    ("run_eval_gpu.sh", "GPU", f"{EVAL} [DEVICE_ID] {MINDRECORD}"),
    ("run_eval_cpu.sh", "CPU", f"{EVAL} [DEVICE_ID](optional) {MINDRECORD}"),
    ("run_infer_gpu.sh", "GPU", INFER),
    ("run_infer_cpu.sh", "CPU", INFER),
]
for target in ("", "_ascend", "_gpu", "_cpu"):
    kind = {"": "Ascend", "_ascend": "Ascend", "_gpu": "GPU", "_cpu": "CPU"}[target]
    FORMS.append((f"run_standalone_train{target}.sh", kind, TRAIN_FIRST))
    FORMS.append((f"run_distribute_train{target}.sh", kind, DISTRIBUTE_FIRST))
    FORMS.append((f"run_eval{target}.sh", kind, EVAL_FIRST))

every_form = pytest.mark.parametrize(("script", "device", "form"), FORMS, ids=lambda v: str(v).partition(".")[0])
# a form that several scripts have is read by the same function: of one of them, and in --full of all
SEEN = [form for _, _, form in FORMS]
each_form_once = pytest.mark.parametrize(
    ("script", "device", "form"),
    [pytest.param(*f, marks=pytest.mark.full if f[2] in SEEN[:i] else ()) for i, f in enumerate(FORMS)],
    ids=lambda v: str(v).partition(".")[0],
)


def names_of(form):
    """The arguments' names, and those of them that may be left out."""
    words = re.findall(r"\[(\w+)\](\(optional\))?", form)
    return [name for name, _ in words], [name for name, optional in words if optional]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A value for each argument; `whole` and `table2` besides."""
    folder = tmp_path_factory.mktemp("a folder")
    for name in ("coco", "val"):
        (folder / name).mkdir()
    (folder / "backbone.ckpt").write_bytes(b"\n\x0econv1.weight\x12")
    (folder / "whole.ckpt").write_bytes(b"\n\x0frpn.cls.weight\x12")
    (folder / "labels.json").write_text("{}")
    config = folder / "mine.yaml"
    config.write_text(f"base: {ROOT}/configs/shapes.yaml\n")
    tables = {}
    for servers in (1, 2):
        listed = [(f"10.0.0.{s}", [(d, f"192.{d + 1}.0.{s}") for d in range(4)]) for s in range(1, servers + 1)]
        tables[servers] = folder / f"table{servers}.json"
        save(make_table(listed), tables[servers])
    values = {
        "PRETRAINED_CKPT": folder / "backbone.ckpt",
        "PRETRAINED_MODEL": folder / "backbone.ckpt",
        "PRETRAINED_PATH": folder / "whole.ckpt",
        "CHECKPOINT_PATH": folder / "whole.ckpt",
        "BACKBONE": "resnet_v1_101",
        "COCO_ROOT": folder / "coco",
        "TRAIN_DATA": folder / "coco",
        "VAL_DATA": folder / "val",
        "DEVICE_ID": 3,
        "DEVICE_NUM": 2,
        "MINDRECORD_DIR": folder / "records",
        "RANK_TABLE_FILE": tables[1],
        "VALIDATION_JSON_FILE": folder / "labels.json",
        "CONFIG_PATH": config,
        "TRAIN_OUT": folder / "out",
        "BRIEF": "first try",
        "PREDICTION_PATH": folder / "predictions.json",
        "PRED_INPUT": folder / "val",
        "PRED_OUTPUT": folder / "out.json",
    }
    return {name: str(value) for name, value in values.items()} | {
        "whole": str(folder / "whole.ckpt"),
        "table2": str(tables[2]),
    }


def launch(script, *arguments, cwd=ROOT, timeout=60, **environment):
    env = {k: v for k, v in os.environ.items() if k not in ("COCO_ROOT", "RANK_TABLE_FILE", "DEVICE_ID", "PYTHON")}
    env |= {"DRY_RUN": "1"} | {k: str(v) for k, v in environment.items()}
    command = ["bash", str(ROOT / "scripts" / script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def dry(script, *arguments, **environment):
    """What DRY_RUN=1 prints: the variables that are set, and the words of each command."""
    done = launch(script, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    exported = [line.removeprefix("export ") for line in lines if line.startswith("export ")]
    assert exported == sorted(exported, key=lambda line: line.partition("=")[0])
    variables = dict(shlex.split(line)[0].split("=", 1) for line in exported)
    rest = lines[len(exported) :]
    assert shlex.split(rest[0]) == ["cd", str(ROOT)]
    return variables, [shlex.split(line) for line in rest[1:]]


def options(command):
    """{--name: value} of the words after the entry script; the last of several wins, as for the script itself."""
    begin = next(i for i, word in enumerate(command) if word.endswith(".py")) + 1
    return parse_overrides(command[begin:])


def refused(done, *parts):
    assert done.returncode == 2, done.stdout
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for part in parts:
        assert str(part) in done.stderr


# ---------------------------------------------------------------------------------------------------------
# arguments


@each_form_once
def test_wrong_number_of_arguments(script, device, form, given):
    names, optional = names_of(form)
    values = [given[name] for name in names]
    for wrong in ([], values[: len(names) - len(optional) - 1], [*values, "more"]):
        done = launch(script, *wrong)
        assert done.returncode == 2
        assert done.stdout == ""
        assert f"usage: bash scripts/{script} [" in done.stderr
        assert f"bash scripts/{script} {form}\n" in done.stderr


@every_form
def test_dry_run_starts_nothing(script, device, form, given, tmp_path):
    names, optional = names_of(form)
    for count in {len(names) - len(optional), len(names)}:
        variables, commands = dry(script, *(given[name] for name in names[:count]), TRAIN_OUTPUTS=tmp_path / "no")
        assert variables["GLOG_v"] == "3"
        for command in commands:
            assert options(command)["device_target"] == device
            assert any(word in ("train.py", "eval.py", "infer.py") for word in command)
    assert not (tmp_path / "no").exists()
    assert not Path(given["TRAIN_OUT"]).exists()


@each_form_once
def test_what_isnt_there_is_named(script, device, form, given):
    """Every argument that must be there already, one after the other."""
    names, _ = names_of(form)
    missing = str(Path(given["COCO_ROOT"]).parent / "nowhere")
    for name in names:
        if name in ("MINDRECORD_DIR", "TRAIN_OUT", "PREDICTION_PATH", "PRED_OUTPUT", "BRIEF"):
            continue
        wrong = missing + ".yaml" if name == "CONFIG_PATH" else missing
        refused(launch(script, *(wrong if n == name else given[n] for n in names)), name, wrong)


@each_form_once
def test_a_file_for_a_folder_and_the_other_way_round(script, device, form, given):
    names, _ = names_of(form)
    for name in names:
        wrong = {
            "COCO_ROOT": given["whole"],
            "TRAIN_OUT": given["whole"],
            "MINDRECORD_DIR": given["whole"],
            "CHECKPOINT_PATH": given["COCO_ROOT"],
            "PRETRAINED_MODEL": given["COCO_ROOT"],
            "PREDICTION_PATH": given["COCO_ROOT"],
            "PRED_OUTPUT": given["COCO_ROOT"],
        }.get(name)
        if wrong:
            refused(launch(script, *(wrong if n == name else given[n] for n in names)), name, wrong)


@pytest.mark.parametrize("wrong", ["resnet50", "resnet_v1_51", "", "resnet_v1_50 --lr 1"])
def test_unknown_backbone(given, wrong):
    done = launch("run_standalone_train_cpu.sh", given["PRETRAINED_MODEL"], wrong, given["COCO_ROOT"])
    refused(done, f"BACKBONE: '{wrong}'", "resnet_v1.5_50", "mobilenet_v1")


def test_names_of_backbones_and_detectors_are_the_configs(given):
    """What the config's table names, a launcher takes, says in its usage, and knows the nearest of."""
    for name in BACKBONES:
        _, [command] = dry("run_standalone_train_cpu.sh", "none", name, given["COCO_ROOT"])
        assert options(command)["backbone"] == name
    usage = launch("run_standalone_train_cpu.sh").stderr
    assert usage.splitlines()[-1] == "BACKBONE: " + ", ".join(BACKBONES)
    # but for the one that scripts without a device in their name begin with
    text = (ROOT / "scripts/launch.sh").read_text()
    assert [name for name in BACKBONES if name in text] == ["resnet_v1.5_50"]
    done = launch("run_standalone_train_cpu.sh", "none", "resnet50", given["COCO_ROOT"])
    refused(done, "BACKBONE: 'resnet50'", "did you mean resnet_v1_50?")
    done = launch("run_standalone_train_cpu.sh", "none", "mobilenet_v1", given["COCO_ROOT"], DETECTOR="mask_rcn")
    refused(done, "DETECTOR: 'mask_rcn'", "did you mean mask_rcnn?")


@pytest.mark.parametrize("wrong", ["-1", "first", "", "1.5", "08"])
def test_numbers_that_are_none(given, wrong):
    done = launch("run_standalone_train_gpu.sh", given["whole"], "mobilenet_v1", given["COCO_ROOT"], wrong)
    refused(done, f"DEVICE_ID: a whole number from 0 to 1023, not '{wrong}'")
    done = launch("run_distribute_train_gpu.sh", wrong, given["whole"], "mobilenet_v1", given["COCO_ROOT"])
    refused(done, f"DEVICE_NUM: a whole number from 1 to 1024, not '{wrong}'")


@pytest.mark.parametrize("wrong", ["", ".", "..", "a/b"])
def test_brief_that_is_no_folders_name(given, wrong):
    names, _ = names_of(TRAIN_FIRST)
    arguments = [wrong if n == "BRIEF" else given[n] for n in names]
    refused(launch("run_standalone_train_cpu.sh", *arguments), f"BRIEF: the name of a folder, not '{wrong}'")


def test_relative_paths_are_the_callers(given):
    folder = Path(given["COCO_ROOT"]).parent
    done = launch("run_standalone_train_cpu.sh", "whole.ckpt", "mobilenet_v1", "coco", "records", cwd=folder)
    assert done.returncode == 0, done.stderr
    wanted = options(shlex.split(done.stdout.splitlines()[-1]))
    assert wanted["train_dataset"] == wanted["val_dataset"] == str(folder / "coco")
    assert wanted["mindrecord_dir"] == str(folder / "records")
    assert wanted["pre_trained"] == str(folder / "whole.ckpt")


def test_paths_in_extra_arguments_are_the_callers(given, tmp_path):
    here = Path(given["COCO_ROOT"]).parent
    extra = (
        "--mindrecord_dir records --pre_trained=whole.ckpt --brief b --lr 1 --transform mine.py:turn --resume ../run"
    )
    extra += " --mlflow_tracking_uri http://host/x --val_dataset '' --train_outputs /absolute"
    arguments = ["none", "mobilenet_v1", "coco"]
    done = launch("run_standalone_train_cpu.sh", *arguments, cwd=here, EXTRA_ARGS=extra)
    assert done.returncode == 0, done.stderr
    wanted = options(shlex.split(done.stdout.splitlines()[-1]))
    assert wanted["mindrecord_dir"] == str(here / "records")
    assert wanted["pre_trained"] == str(here / "whole.ckpt")
    assert wanted["transform"] == str(here / "mine.py:turn")
    assert wanted["resume"] == str(here.parent / "run")
    assert (wanted["brief"], wanted["lr"], wanted["val_dataset"]) == ("b", "1", "")
    assert (wanted["mlflow_tracking_uri"], wanted["train_outputs"]) == ("http://host/x", "/absolute")
    given_files = ["labels.json", "whole.ckpt", "mobilenet_v1", "coco"]
    extra = "--report r --metrics m.json --split val --split=mine.json --iou_types bbox segm --transform own.mine:turn"
    done = launch("run_eval_cpu.sh", *given_files, cwd=here, EXTRA_ARGS=extra)
    words = shlex.split(done.stdout.splitlines()[-1])[-12:]
    assert words == [
        *("--report", f"{here}/r", "--metrics", f"{here}/m.json", "--split", "val", f"--split={here}/mine.json"),
        *("--iou_types", "bbox", "segm", "--transform", "own.mine:turn"),
    ]


def test_every_key_that_takes_a_path_is_known_as_one():
    """By what the keys' descriptions say; addresses and the names of a run or a zip file are none."""
    text = (ROOT / "scripts/launch.sh").read_text()
    known = set(re.search(r'PATH_KEYS="([^"]*)"', text)[1].split())
    told = re.compile(r"\b(file|folder|checkpoint|root|where MindRecord)", re.I)
    other = {
        "brief",
        "data_url",
        "train_url",
        "checkpoint_url",
        "modelarts_dataset_unzip_name",
        "conventions",
        "dataset",
    }
    for name, kind, default, doc in describe_keys():
        if kind == "text" and told.search(doc) and name not in other:
            assert isinstance(default, str) and name in known, name


# ---------------------------------------------------------------------------------------------------------
# the commands


@pytest.mark.parametrize(
    ("backbone", "depth", "stride_in_1x1"),
    [
        ("resnet_v1_50", 50, True),
        ("resnet_v1.5_50", 50, False),
        ("resnet_v1_101", 101, False),
        ("resnet_v1_152", 152, False),
        ("mobilenet_v1", None, None),
    ],
)
def test_backbones_give_usable_configs(given, backbone, depth, stride_in_1x1):
    _, [command] = dry("run_standalone_train_cpu.sh", "none", backbone, given["COCO_ROOT"])
    wanted = options(command)
    config = load_config(ROOT / wanted.pop("config_path"), wanted)
    assert config.backbone.type == ("mobilenet_v1" if depth is None else "resnet")
    if depth:
        assert (config.backbone.depth, config.backbone.stride_in_1x1) == (depth, stride_in_1x1)
    assert config.output_dir == ROOT / f"train_outputs/mask_rcnn_{backbone}"
    assert config.backbone.pretrained == config.pre_trained == ""


@pytest.mark.parametrize("detector", ["mask_rcnn", "faster_rcnn", "cascade_rcnn", "cascade_mask_rcnn"])
@pytest.mark.parametrize("backbone", ["resnet_v1_101", "mobilenet_v1"])
def test_detectors_give_usable_configs(given, detector, backbone):
    _, [command] = dry(
        "run_eval.sh", given["VALIDATION_JSON_FILE"], given["whole"], DETECTOR=detector, BACKBONE=backbone
    )
    wanted = options(command)
    checkpoint, config = wanted.pop("checkpoint_path"), load_config(ROOT / wanted.pop("config_path"), wanted)
    assert checkpoint == given["whole"]
    assert config.detector == detector
    assert config.brief == f"{detector}_{backbone}"
    assert config.backbone.type == backbone.partition("_v1")[0] + ("_v1" if backbone == "mobilenet_v1" else "")


@pytest.mark.parametrize("wrong", ["rcnn", "yolo", "cascade_faster_rcnn"])
def test_unknown_detector(given, wrong):
    refused(launch("run_standalone_train.sh", given["whole"], DETECTOR=wrong), f"DETECTOR: '{wrong}'")


def test_pretrained_is_a_backbone_or_a_whole_detector(given):
    for file, key, other in (
        ("PRETRAINED_MODEL", "backbone.pretrained", "pre_trained"),
        ("whole", "pre_trained", "backbone.pretrained"),
    ):
        _, [command] = dry("run_standalone_train_gpu.sh", given[file], "mobilenet_v1", given["COCO_ROOT"], 1)
        assert options(command)[key] == given[file]
        assert other not in options(command)
    refused(launch("run_standalone_train_cpu.sh", "", "mobilenet_v1", given["COCO_ROOT"]), "PRETRAINED_MODEL", "none")


def test_config_first_training(given):
    names, _ = names_of(TRAIN_FIRST)
    _, [command] = dry("run_standalone_train_gpu.sh", *(given[n] for n in names), DEVICE_ID=5)
    wanted = options(command)
    config = load_config(wanted.pop("config_path"), wanted)
    assert config.coco_classes[1] == "circle"
    assert config.device_target == "GPU"
    assert config.device_id == 5
    assert (config.train_dataset, config.val_dataset) == (given["TRAIN_DATA"], given["VAL_DATA"])
    assert config.output_dir == Path(given["TRAIN_OUT"]) / "first try"
    assert config.pre_trained == given["PRETRAINED_PATH"]


def test_extra_arguments_come_last_and_keep_their_quotes(given):
    extra = "--lr 0.5 --brief other --lr_steps '[8, 11]' --coco_classes \"['background', 'a; $(touch x)']\""
    for script, first in (("run_standalone_train_cpu.sh", []), ("run_distribute_train_cpu.sh", [2])):
        arguments = [*first, "none", "mobilenet_v1", given["COCO_ROOT"]]
        _, [command] = dry(script, *arguments, EXTRA_ARGS=extra)
        wanted = options(command)
        assert wanted["lr"] == "0.5"
        assert wanted["brief"] == "other"
        assert wanted["lr_steps"] == "[8, 11]"
        assert wanted["coco_classes"] == "['background', 'a; $(touch x)']"
    done = launch("run_standalone_train_cpu.sh", "none", "mobilenet_v1", given["COCO_ROOT"], EXTRA_ARGS="--lr '1")
    refused(done, "EXTRA_ARGS")


def test_ascend_defaults_take_the_data_from_the_environment(given):
    _, [command] = dry("run_standalone_train.sh", given["whole"], COCO_ROOT=given["COCO_ROOT"], DETECTOR="faster_rcnn")
    wanted = options(command)
    assert wanted["config_path"] == "configs/faster_rcnn_r50_fpn.yaml"
    assert wanted["train_dataset"] == given["COCO_ROOT"]
    _, [command] = dry("run_standalone_train.sh", given["whole"])
    assert "train_dataset" not in options(command)
    refused(launch("run_standalone_train.sh", given["whole"], COCO_ROOT="/nowhere"), "COCO_ROOT", "/nowhere")
    refused(launch("run_eval.sh", given["VALIDATION_JSON_FILE"], given["whole"], DEVICE_TARGET="NPU"), "DEVICE_TARGET")


def test_evaluation(given, tmp_path):
    _, [command] = dry("run_eval_gpu.sh", *(given[n] for n in names_of(FORMS[10][2])[0]))
    wanted = options(command)
    assert wanted["val_annotations"] == given["VALIDATION_JSON_FILE"]
    assert wanted["val_dataset"] == given["COCO_ROOT"]
    assert wanted["checkpoint_path"] == given["whole"]
    assert wanted["device_id"] == "3"
    assert wanted["mindrecord_dir"] == given["MINDRECORD_DIR"]
    _, [command] = dry("run_eval_cpu.sh", *(given[n] for n in names_of(EVAL_FIRST)[0]))
    assert options(command)["predictions"] == given["PREDICTION_PATH"]
    # the images of an annotation file lie where its layout has them
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_val2017.json").write_text("{}")
    _, [command] = dry("run_eval.sh", tmp_path / "annotations/instances_val2017.json", given["whole"])
    assert options(command)["val_dataset"] == str(tmp_path)


def test_evaluation_on_cpu_needs_no_device(given):
    first = [given[n] for n in names_of(EVAL)[0]]
    for more, records in (([], None), (["0"], None), (["md"], "md"), (["0", "md"], "md")):
        _, [command] = dry("run_eval_cpu.sh", *first, *more)
        assert options(command).get("mindrecord_dir") == (records and str(ROOT / records))


def test_inference(given):
    _, [command] = dry("run_infer_cpu.sh", *(given[n] for n in names_of(INFER)[0]), PYTHON="/opt/my python")
    assert command[:2] == ["/opt/my python", "infer.py"]
    wanted = options(command)
    assert wanted["ckpt_file"] == given["whole"]
    assert wanted["input"] == given["PRED_INPUT"]
    assert wanted["output"] == given["PRED_OUTPUT"]


# ---------------------------------------------------------------------------------------------------------
# distributed


def test_msrun_on_one_host(given):
    variables, [command] = dry(
        "run_distribute_train_cpu.sh",
        2,
        "none",
        "mobilenet_v1",
        given["COCO_ROOT"],
        BIND_CORES="false",
        PYTHON="/v/python",
    )
    assert variables["PATH"].startswith("/v:")
    assert command[: command.index("train.py")] == [
        *("/v/python", "-m", "src.runtime.launch"),
        "--any_port",
        "msrun",
        "--worker_num=2",
        "--local_worker_num=2",
        "--master_addr=127.0.0.1",
        "--master_port=8118",
        "--node_rank=0",
        f"--log_dir={ROOT}/train_outputs/mask_rcnn_mobilenet_v1/workers",
        "--join=True",
    ]
    assert options(command)["run_distribute"] == "true"
    assert "device_id" not in options(command)


def test_msrun_on_several_hosts(given):
    arguments = [given[n] for n in names_of(DISTRIBUTE_FIRST)[0]]
    place = {"NODES": 4, "NODE_RANK": 3, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": 9000}
    variables, [command] = dry("run_distribute_train_ascend.sh", *arguments, **place)
    assert variables["HCCL_CONNECT_TIMEOUT"] == "600"
    for word in ("--worker_num=8", "--local_worker_num=2", "--node_rank=3", "--master_addr=10.0.0.1"):
        assert word in command
    assert "--master_port=9000" in command
    for wrong, name in (
        ({"NODE_RANK": 4}, "NODE_RANK"),
        ({"NODES": "many"}, "NODES"),
        ({"MASTER_PORT": 80}, "MASTER_PORT"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR"),
    ):
        refused(launch("run_distribute_train_ascend.sh", *arguments, **place | wrong), name)


def test_processors_are_shared_out_of_those_there_are(given):
    allowed = sorted(os.sched_getaffinity(0))
    script = ["run_distribute_train_cpu.sh", 1, "none", "mobilenet_v1", given["COCO_ROOT"]]
    _, [command] = dry(*script)
    bound = command[command.index("--bind_core") + 1]
    assert bound == '{"device0": [' + ", ".join(f'"{c}"' for c in allowed) + "]}"
    script[1] = len(allowed) + 1
    _, [command] = dry(*script)
    assert "--bind_core" not in command


def test_mpirun_on_gpu_alone(given):
    _, [command] = dry("run_distribute_train_gpu.sh", 4, "none", "mobilenet_v1", given["COCO_ROOT"], LAUNCHER="mpirun")
    assert command[1:6] == ["-m", "src.runtime.launch", "mpirun", "-n", "4"]
    assert options(command)["run_distribute"] == "true"
    for launcher in ("mpirun", "torchrun"):
        done = launch("run_distribute_train_cpu.sh", 2, "none", "mobilenet_v1", given["COCO_ROOT"], LAUNCHER=launcher)
        refused(done, "LAUNCHER", launcher)


def test_rank_table_starts_a_process_for_each_device_of_this_server(given):
    variables, commands = dry(
        "run_distribute_train_ascend.sh", given["table2"], "none", "resnet_v1_50", given["COCO_ROOT"], NODE_RANK=1
    )
    assert variables["RANK_TABLE_FILE"] == given["table2"]
    assert variables["HCCL_CONNECT_TIMEOUT"] == "600"
    for i, command in enumerate(commands):
        assert command[:4] == ["env", f"RANK_ID={4 + i}", "RANK_SIZE=8", f"DEVICE_ID={i}"]
        assert options(command)["run_distribute"] == "true"
    assert len(commands) == 4
    variables, _ = dry("run_distribute_train.sh", given["table2"], "none", HCCL_CONNECT_TIMEOUT=1200)
    assert variables["HCCL_CONNECT_TIMEOUT"] == "1200"
    done = launch("run_distribute_train.sh", given["table2"], "none", NODE_RANK=2)
    refused(done, given["table2"], "no server 2")


def test_rank_table_that_is_none(given, tmp_path):
    (tmp_path / "table.json").write_text('{"version": "1.0"}')
    done = launch("run_distribute_train_ascend.sh", tmp_path / "table.json", "none", "resnet_v1_50", given["COCO_ROOT"])
    refused(done, tmp_path / "table.json", "server_count")


def test_config_first_takes_the_rank_table_from_the_environment(given):
    arguments = [given[n] for n in names_of(DISTRIBUTE_FIRST)[0]]
    arguments[1] = "4"
    _, commands = dry("run_distribute_train_ascend.sh", *arguments, RANK_TABLE_FILE=given["RANK_TABLE_FILE"])
    assert [c[3] for c in commands] == [f"DEVICE_ID={i}" for i in range(4)]
    done = launch("run_distribute_train_gpu.sh", *arguments, RANK_TABLE_FILE=given["RANK_TABLE_FILE"])
    refused(done, "RANK_TABLE_FILE")


def test_a_rank_table_of_another_number_of_devices_is_refused(given):
    arguments = [given[n] for n in names_of(DISTRIBUTE_FIRST)[0]]
    for count in (2, 8):
        arguments[1] = str(count)
        done = launch("run_distribute_train_ascend.sh", *arguments, RANK_TABLE_FILE=given["RANK_TABLE_FILE"])
        refused(done, "RANK_TABLE_FILE", "has 4 devices for this server", f"DEVICE_NUM is {count}", "msrun needs none")


def test_what_a_distributed_job_would_pass_over_is_refused(given):
    arguments = [given[n] for n in names_of(DISTRIBUTE_FIRST)[0]]
    for script in ("run_distribute_train_ascend.sh", "run_distribute_train_gpu.sh"):
        refused(launch(script, *arguments, DEVICE_ID=3), "DEVICE_ID", "ASCEND_RT_VISIBLE_DEVICES")
    done = launch("run_distribute_train.sh", given["RANK_TABLE_FILE"], "none", RESTARTS=2)
    refused(done, "RESTARTS", "needs no rank table")


def test_a_newer_rank_table_isnt_needed(given, tmp_path):
    table = tmp_path / "table.json"
    table.write_text(Path(given["RANK_TABLE_FILE"]).read_text().replace('"version": "1.0"', '"version": "1.2"'))
    done = launch("run_distribute_train.sh", table, "none")
    refused(done, table, "version is '1.2', not '1.0'; msrun needs no rank table")


def test_restarts_and_the_time_to_join_go_to_the_supervisor(given):
    arguments = [2, "none", "mobilenet_v1", given["COCO_ROOT"]]
    _, [command] = dry("run_distribute_train_cpu.sh", *arguments, RESTARTS=3, JOIN_TIMEOUT=90, MASTER_PORT=9000)
    begin = command.index("src.runtime.launch") + 1
    assert command[begin : begin + 5] == ["--restarts", "3", "--wait", "90", "msrun"]
    for name in ("RESTARTS", "JOIN_TIMEOUT"):
        refused(launch("run_distribute_train_cpu.sh", *arguments, **{name: "many"}), name)


# ---------------------------------------------------------------------------------------------------------
# running

FAKE_PYTHON = """#!/bin/bash
# Stands for the interpreter of an environment with MindSpore.
case $1 in
    -c) exit 0 ;;
    *hccl_tools.py) exec {python} "$@" ;;
esac
echo "rank ${{RANK_ID:-none}} device ${{DEVICE_ID:-none}}: $1 $(pwd)"
echo "trouble" >&2
if [ -n "${{HANG:-}}" ] && [ "${{RANK_ID:-0}}" = "$HANG" ]; then
    trap 'echo saved; kill $!; exit 143' TERM
    sleep 60 &
    echo $$ >"$PIDS.$HANG"
    wait
fi
if [ "${{RANK_ID:-0}}" = "${{FAIL:-none}}" ]; then exit 7; fi
"""


@pytest.fixture
def fake(tmp_path):
    """The environment of a run with an interpreter that only pretends."""
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    return {"DRY_RUN": "0", "PYTHON": python, "TRAIN_OUTPUTS": tmp_path / "out", "PIDS": tmp_path / "pid"}


def test_run_writes_console_and_log_and_returns_the_status(given, fake, tmp_path):
    arguments = ["none", "mobilenet_v1", given["COCO_ROOT"], 2]
    done = launch("run_standalone_train_gpu.sh", *arguments, **fake)
    log = tmp_path / "out/mask_rcnn_mobilenet_v1/train.log"
    assert done.returncode == 0
    assert f"log: {log}" in done.stdout
    assert f"train.py {ROOT}" in done.stdout
    assert "trouble" in done.stderr
    assert "trouble" in log.read_text()
    assert "train.py" in log.read_text()
    assert launch("run_standalone_train_gpu.sh", *arguments, **fake, FAIL=0).returncode == 7


def test_evaluation_and_inference_return_the_status(given, fake, tmp_path):
    output = tmp_path / "new/out.json"
    arguments = [given["CONFIG_PATH"], given["whole"], given["PRED_INPUT"], output]
    assert launch("run_infer_gpu.sh", *arguments, **fake, FAIL=0).returncode == 7
    assert "infer.py" in output.with_suffix(".log").read_text()
    done = launch("run_eval.sh", given["VALIDATION_JSON_FILE"], given["whole"], **fake, FAIL=0)
    assert done.returncode == 7
    assert "eval.py" in (tmp_path / "out/mask_rcnn_resnet_v1.5_50/eval.log").read_text()


def test_without_mindspore_nothing_is_started(given, tmp_path):
    empty = tmp_path / "python"
    empty.write_text("#!/bin/bash\nexit 1\n")
    empty.chmod(0o755)
    arguments = ["none", "mobilenet_v1", given["COCO_ROOT"], 0]
    done = launch("run_standalone_train_ascend.sh", *arguments, DRY_RUN=0, PYTHON=empty, TRAIN_OUTPUTS=tmp_path / "out")
    refused(done, "PYTHON", empty, "no MindSpore")
    assert not (tmp_path / "out").exists()


def test_outputs_that_cant_be_written(given, fake):
    arguments = ["none", "mobilenet_v1", given["COCO_ROOT"], 0]
    refused(launch("run_standalone_train_gpu.sh", *arguments, **fake | {"TRAIN_OUTPUTS": "/proc/none"}), "/proc/none")


def test_rank_table_runs_all_and_logs_each(given, fake, tmp_path):
    done = launch("run_distribute_train.sh", given["RANK_TABLE_FILE"], "none", **fake)
    assert done.returncode == 0, done.stderr
    workers = tmp_path / "out/mask_rcnn_resnet_v1.5_50/workers"
    for i in range(4):
        assert f"rank {i} device {i}: train.py {ROOT}" in (workers / f"worker_{i}.log").read_text()
    assert "rank 0 device 0" in done.stdout
    assert "rank 1" not in done.stdout


def test_a_rank_that_fails_ends_the_others(given, fake):
    begin = time.monotonic()
    done = launch("run_distribute_train.sh", given["RANK_TABLE_FILE"], "none", **fake, FAIL=2, HANG=1)
    assert done.returncode == 7
    assert "worker_2 ended with status 7" in done.stderr
    assert "rank 2 device 2" in done.stderr
    pid = int(Path(f"{fake['PIDS']}.1").read_text())
    assert not Path(f"/proc/{pid}").exists()
    assert time.monotonic() - begin < 50  # the hanging rank would sleep for 60 s


def test_sigterm_reaches_what_was_started(given, fake, tmp_path):
    env = os.environ | {k: str(v) for k, v in fake.items()} | {"HANG": "0"}
    command = [
        "bash",
        str(ROOT / "scripts/run_standalone_train_gpu.sh"),
        "none",
        "mobilenet_v1",
        given["COCO_ROOT"],
        "0",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    pid_file = Path(f"{fake['PIDS']}.0")
    while process.poll() is None and not (pid_file.exists() and pid_file.read_text().strip()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "saved" in out
    assert not Path(f"/proc/{int(pid_file.read_text())}").exists()


def test_training_that_cant_start_passes_its_status_on(tmp_path, shapes_root):
    """With the real interpreter: a key that the config doesn't know."""
    environment = {"DRY_RUN": 0, "PYTHON": sys.executable, "EXTRA_ARGS": "--lerning_rate 1", "TRAIN_OUTPUTS": tmp_path}
    done = launch("run_standalone_train_cpu.sh", "none", "mobilenet_v1", shapes_root, timeout=120, **environment)
    assert done.returncode == 2
    assert "lerning_rate" in done.stderr
    assert "lerning_rate" in (tmp_path / "mask_rcnn_mobilenet_v1/train.log").read_text()
