"""Jobs on ModelArts, with a stand-in for the one module that isn't here: folders are its storage."""

import dataclasses
import os
import shutil
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path

import pytest

import train
from src.config import Config
from src.runtime.errors import UserError
from src.training import modelarts
from src.training.modelarts import FETCHED, ModelArtsError, fetch_run, local_checkpoint, on_modelarts


class Moxing(types.ModuleType):
    """moxing.file.copy and copy_parallel between obs:// addresses, kept in `root`, and local paths."""

    def __init__(self, root):
        super().__init__("moxing")
        self.root, self.file, self.calls = root, self, []

    def path(self, address):
        return self.root / address.removeprefix("obs://") if address.startswith("obs://") else Path(address)

    def copy(self, source, target):
        self.calls.append((source, target))
        if target.startswith("obs://"):
            self.path(target).parent.mkdir(parents=True, exist_ok=True)  # storage has no folders
        if not self.path(target).parent.is_dir():
            raise OSError(f"no folder for {target}")
        shutil.copyfile(self.path(source), self.path(target))

    def copy_parallel(self, source, target):
        self.calls.append((source, target))
        if not self.path(source).is_dir():
            raise ValueError("No files to copy.\nsecond line")
        shutil.copytree(self.path(source), self.path(target), dirs_exist_ok=True)

    def remove(self, target):
        self.path(target).unlink()


@pytest.fixture
def storage(tmp_path, monkeypatch):
    """Storage with a data set, plain and as zip, and checkpoints; the module stands in sys.modules."""
    root = tmp_path / "storage"
    (root / "bucket/coco/annotations").mkdir(parents=True)
    (root / "bucket/coco/annotations/instances_train2017.json").write_text("{}")
    (root / "bucket/zipped").mkdir()
    with zipfile.ZipFile(root / "bucket/zipped/coco.zip", "w") as archive:
        archive.writestr("annotations/instances_train2017.json", "{}")
    (root / "bucket/weights").mkdir()
    (root / "bucket/weights/r50.ckpt").write_text("weights")
    module = Moxing(root)
    monkeypatch.setitem(sys.modules, "moxing", module)
    monkeypatch.delenv("RANK_ID", raising=False)
    return module


@pytest.fixture
def config(tmp_path):
    cache = tmp_path / "cache"
    return Config(
        enable_modelarts=True,
        data_url="obs://bucket/coco",
        train_url="obs://bucket/out",
        data_path=str(cache / "data"),
        load_path=str(cache / "checkpoint_path"),
        output_path=str(cache / "train"),
    )


def write_outputs(config):
    config.output_dir.mkdir(parents=True)
    (config.output_dir / "loss_0.log").write_text("epoch: 1")


def test_without_the_key_nothing_happens(storage, config):
    plain = dataclasses.replace(config, enable_modelarts=False)
    with on_modelarts(plain) as got:
        assert got is plain
    assert storage.calls == []
    assert local_checkpoint(plain, "r50.ckpt") == "r50.ckpt"


def test_data_come_and_outputs_go(storage, config):
    with on_modelarts(config) as local:
        assert (Path(local.train_dataset) / "annotations/instances_train2017.json").is_file()
        assert local.val_dataset == local.train_dataset == config.data_path
        assert local.train_outputs == config.output_path
        assert local.pre_trained == local.backbone.pretrained == ""
        write_outputs(local)
    sent = storage.root / "bucket/out" / config.brief / "loss_0.log"
    assert sent.read_text() == "epoch: 1"


def test_relative_data_sets_lie_in_the_data(storage, config):
    wanted = dataclasses.replace(config, train_dataset="train", val_dataset="/elsewhere/val", val_annotations="a.json")
    with on_modelarts(wanted) as local:
        assert local.train_dataset == f"{config.data_path}/train"
        assert local.val_dataset == "/elsewhere/val"
        assert local.val_annotations == f"{config.data_path}/a.json"


@pytest.mark.parametrize("name", ["coco", "coco.zip", ""])
def test_a_zip_file_is_unpacked(storage, config, name):
    zipped = dataclasses.replace(
        config,
        data_url="obs://bucket/zipped",
        need_modelarts_dataset_unzip=True,
        modelarts_dataset_unzip_name=name,
    )
    with on_modelarts(zipped) as local:
        assert (Path(local.train_dataset) / "annotations/instances_train2017.json").is_file()


def test_a_zip_file_with_a_folder_of_its_name(storage, config):
    with zipfile.ZipFile(storage.root / "bucket/zipped/coco.zip", "w") as archive:
        archive.writestr("coco/annotations/instances_train2017.json", "{}")
    zipped = dataclasses.replace(
        config, data_url="obs://bucket/zipped", need_modelarts_dataset_unzip=True, modelarts_dataset_unzip_name="coco"
    )
    with on_modelarts(zipped) as local:
        assert local.train_dataset == f"{config.data_path}/coco"


@pytest.mark.parametrize("url", ["obs://bucket/weights", "obs://bucket/weights/r50.ckpt"])
def test_checkpoints_come_from_a_folder_or_a_file(storage, config, url):
    config = dataclasses.replace(
        config, checkpoint_url=url, backbone=dataclasses.replace(config.backbone, pretrained="r50.ckpt")
    )
    with on_modelarts(config) as local:
        assert Path(local.backbone.pretrained).read_text() == "weights"
        assert Path(local_checkpoint(local, "r50.ckpt")).read_text() == "weights"
        assert local.pre_trained == ""


def test_of_several_processes_one_fetches(storage, config, monkeypatch):
    for rank in ("0", "1", "2"):
        monkeypatch.setenv("RANK_ID", rank)
        with on_modelarts(config) as local:
            if rank == "0":
                write_outputs(local)
    assert [call[0] for call in storage.calls] == ["obs://bucket/coco", config.output_path]


def test_msruns_scheduler_transfers_nothing(storage, config, monkeypatch):
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    Path(config.output_path).mkdir(parents=True)
    with on_modelarts(config):
        pass
    assert storage.calls == []


def test_an_interrupted_or_another_fetch_is_done_again(storage, config):
    with on_modelarts(config):
        pass
    (Path(config.data_path) / FETCHED).unlink()
    with on_modelarts(config):
        pass
    assert [call[0] for call in storage.calls].count("obs://bucket/coco") == 2
    other = dataclasses.replace(config, data_url="obs://bucket/weights")
    with on_modelarts(other):
        assert (Path(config.data_path) / "r50.ckpt").is_file()


def test_outputs_go_also_after_an_error(storage, config):
    with pytest.raises(SystemExit), on_modelarts(config) as local:
        write_outputs(local)
        raise SystemExit(143)
    assert (storage.root / "bucket/out" / config.brief / "loss_0.log").is_file()


def soon(condition):
    """Waits for `condition`; whether it came."""
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_outputs_go_as_they_appear(storage, config, monkeypatch):
    monkeypatch.setattr(modelarts, "PERIOD", 0.05)
    there = storage.root / "bucket/out" / config.brief
    with pytest.raises(SystemExit), on_modelarts(config) as local:
        write_outputs(local)
        weights = local.output_dir / "checkpoints/mask_rcnn-1_5.ckpt"
        weights.parent.mkdir()
        (weights.parent / "mask_rcnn-1_6.writing-7.ckpt").write_text("half")
        weights.write_text("first")
        assert soon(lambda: (there / "checkpoints/mask_rcnn-1_5.ckpt").is_file())
        # one too many goes, a log grows
        weights.rename(weights.with_name("mask_rcnn-1_7.ckpt"))
        (local.output_dir / "loss_0.log").write_text("epoch: 1\nepoch: 2")
        assert soon(lambda: "epoch: 2" in (there / "loss_0.log").read_text())
        assert soon(lambda: [p.name for p in (there / "checkpoints").iterdir()] == ["mask_rcnn-1_7.ckpt"])
        before = len(storage.calls)
        (local.output_dir / "last.json").write_text("{}")
        raise SystemExit(1)
    assert (there / "last.json").is_file() and not list(there.rglob("*.writing*"))
    assert [Path(source).name for source, _ in storage.calls[before:]] == ["last.json"]


def test_a_transfer_that_fails_meanwhile_is_told_once_and_tried_again(storage, config, monkeypatch, capsys):
    monkeypatch.setattr(modelarts, "PERIOD", 0.02)
    copy, tries = storage.copy, []

    def fail(source, target):
        tries.append(target)
        raise ConnectionError("timed out")

    monkeypatch.setattr(storage, "copy", fail)
    with on_modelarts(config) as local:
        write_outputs(local)
        assert soon(lambda: len(tries) > 3)
        monkeypatch.setattr(storage, "copy", copy)
    assert (storage.root / "bucket/out" / config.brief / "loss_0.log").is_file()
    assert capsys.readouterr().err.count("timed out") == 1


def test_converted_data_stay_here(storage, config):
    with on_modelarts(config) as local:
        write_outputs(local)
        assert config.output_path not in local.mindrecord_dir
        # where it was asked for, too
        for name in ("mindrecord", "compile_cache"):
            (Path(local.output_path) / name).mkdir()
            (Path(local.output_path) / name / "large").write_text("x")
    sent = [str(p.relative_to(storage.root / "bucket/out")) for p in (storage.root / "bucket/out").rglob("*")]
    assert sorted(sent) == [config.brief, f"{config.brief}/loss_0.log"]
    with on_modelarts(dataclasses.replace(config, mindrecord_dir="/elsewhere")) as local:
        assert local.mindrecord_dir == "/elsewhere"


def test_a_run_in_storage_is_fetched_before_it_is_looked_at(storage, config, refusal):
    run = storage.root / "bucket/runs/first/checkpoints/state"
    run.mkdir(parents=True)
    for path in (run / "mask_rcnn-1_5.ckpt", run.parent / "mask_rcnn-1_5.ckpt"):
        path.write_text("x")
    (run.parents[1] / "config.yaml").write_text(f"base: {Path(__file__).parents[1]}/configs/shapes.yaml\n")
    words = ["--enable_modelarts", "true", "--output_path", config.output_path]
    got, resumed = train.read_arguments(["--resume", "obs://bucket/runs/first", *words])
    assert resumed.folder == Path(config.output_path) / "first" and got.brief == "shapes"
    _, resumed = train.read_arguments(["--resume", "obs://bucket/runs/first/checkpoints/mask_rcnn-1_5.ckpt", *words])
    assert (resumed.folder, resumed.position) == (Path(config.output_path) / "first", (1, 5))
    assert len(storage.calls) == 1
    with refusal(UserError, "obs://bucket/runs/none", "transfer failed"):
        train.read_arguments(["--resume", "obs://bucket/runs/none", *words])
    with refusal(UserError, "--enable_modelarts true"):
        fetch_run(dataclasses.replace(config, enable_modelarts=False), "obs://bucket/runs/first")


def test_a_failed_delivery_is_told_and_hides_no_error(storage, config, refusal, monkeypatch, capsys):
    def fail(source, target):
        raise ConnectionError("timed out")

    with refusal(ModelArtsError, config.output_path, "obs://bucket/out", "timed out"), on_modelarts(config) as local:
        write_outputs(local)
        monkeypatch.setattr(storage, "copy_parallel", fail)
    with pytest.raises(KeyError), on_modelarts(config):
        raise KeyError
    assert "timed out" in capsys.readouterr().err


def test_storage_that_lacks_it_or_fails(storage, config, refusal):
    wrong = dataclasses.replace(config, data_url="obs://bucket/nowhere")
    with refusal(ModelArtsError, "obs://bucket/nowhere", "No files to copy"), on_modelarts(wrong):
        pass
    wrong = dataclasses.replace(config, checkpoint_url="obs://bucket/none.ckpt")
    with refusal(ModelArtsError, "obs://bucket/none.ckpt"), on_modelarts(wrong):
        pass


def test_a_token_in_an_address_is_used_and_not_told(storage, config, refusal, monkeypatch, capsys):
    secret = dataclasses.replace(
        config, data_url="obs://bucket/coco?token=hidden", train_url="obs://me:hidden@bucket/x"
    )
    with refusal(ModelArtsError, "obs://bucket/coco?token=*** -> "), on_modelarts(secret):
        pass
    assert storage.calls[0][0] == secret.data_url
    secret = dataclasses.replace(config, train_url="obs://me:hidden@bucket/x")

    def fail(source, target):
        raise OSError(f"{target}: no entry with hidden")

    with refusal(ModelArtsError, "-> obs://me:***@bucket/x: the transfer failed"), on_modelarts(secret) as local:
        write_outputs(local)
        monkeypatch.setattr(storage, "copy_parallel", fail)
    kept = dataclasses.replace(config, data_url="obs://bucket/coco?token=***")
    with refusal(ModelArtsError, "data_url", "give --data_url"), on_modelarts(kept):
        pass
    told = capsys.readouterr()
    assert "hidden" not in told.out + told.err


def test_zip_files_that_cant_be_used(storage, config, refusal):
    zipped = dataclasses.replace(config, data_url="obs://bucket/zipped", need_modelarts_dataset_unzip=True)
    wrong = dataclasses.replace(zipped, modelarts_dataset_unzip_name="voc")
    with refusal(ModelArtsError, "voc.zip", "modelarts_dataset_unzip_name"), on_modelarts(wrong):
        pass
    whole = (storage.root / "bucket/zipped/coco.zip").read_bytes()
    (storage.root / "bucket/zipped/coco.zip").write_bytes(whole[:-30])
    with refusal(ModelArtsError, "coco.zip", "not a whole zip file"), on_modelarts(zipped):
        pass
    (storage.root / "bucket/zipped/other.zip").write_bytes(whole)
    with refusal(ModelArtsError, "2 zip files"), on_modelarts(zipped):
        pass


def test_a_zip_file_writes_nowhere_else(storage, config):
    with zipfile.ZipFile(storage.root / "bucket/zipped/coco.zip", "w") as archive:
        archive.writestr("../../escaped", "x")
    zipped = dataclasses.replace(config, data_url="obs://bucket/zipped", need_modelarts_dataset_unzip=True)
    with on_modelarts(zipped):
        assert (Path(config.data_path) / "escaped").is_file()
    assert not (Path(config.data_path).parents[1] / "escaped").exists()


def test_without_moxing_one_line_says_so(config, refusal, monkeypatch):
    monkeypatch.setitem(sys.modules, "moxing", None)
    with refusal(ModelArtsError, "enable_modelarts", "moxing"), on_modelarts(config):
        pass


MODULE = """
import shutil, types

def copy_parallel(source, target):
    shutil.copytree(source.replace("obs://", "{root}/"), target.replace("obs://", "{root}/"), dirs_exist_ok=True)

file = types.SimpleNamespace(copy_parallel=copy_parallel)
"""


def test_a_whole_job(tmp_path, shapes_root):
    """eval.py with the parameters that ModelArts gives: saved predictions, none of them, against data from storage."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/moxing.py").write_text(MODULE.format(root=tmp_path))
    shutil.copytree(shapes_root, tmp_path / "bucket/shapes")
    (tmp_path / "none.json").write_text("[]")
    (tmp_path / "train").mkdir()
    (tmp_path / "train/kept.log").write_text("to be sent")
    keys = {
        "config_path": "configs/shapes.yaml",
        "checkpoint_path": "none.ckpt",
        "predictions": tmp_path / "none.json",
        "enable_modelarts": True,
        "data_url": "obs://bucket/shapes",
        "train_url": "obs://bucket/out",
        "data_path": tmp_path / "data",
        "output_path": tmp_path / "train",
    }
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "eval.py", *(f"--{name}={value}" for name, value in keys.items())],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "modules"), "RANK_ID": "0"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "maxDets=100 ] = 0.000" in done.stdout
    assert (tmp_path / "bucket/out/kept.log").read_text() == "to be sent"
