"""Batches: the same however they are made, every image in its place, faults told."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from src.data import reader
from src.data import workers as workers_module
from src.data.loader import EvalLoader, TrainLoader
from src.data.mindrecord import ensure_mindrecord, record_files
from src.data.records import DataError
from src.data.transforms import fit_size
from src.data.workers import WorkerDied
from src.runtime.errors import InternalError
from src.runtime.newer import zip_equal
from tests.conftest import all_cores


@pytest.fixture(autouse=True)
def cores():
    """No test of several workers would have them on the one core of a test process."""
    with all_cores():
        yield


@pytest.fixture(scope="module")
def records(shapes_root, tmp_path_factory):
    """The training shapes converted, and what their annotations say by image id."""
    from src.config import load_config

    overrides = {"train_dataset": str(shapes_root), "mindrecord_dir": str(tmp_path_factory.mktemp("records"))}
    config = load_config(Path(__file__).parents[2] / "configs/shapes.yaml", overrides)
    folder = ensure_mindrecord(config, "train", training=True)
    truth = json.loads((shapes_root / "annotations/instances_train2017.json").read_text())
    by_image = {i["id"]: {**i, "objects": [], "crowds": []} for i in truth["images"]}
    for a in truth["annotations"]:
        by_image[a["image_id"]]["crowds" if a["iscrowd"] else "objects"].append(a)
    return folder, by_image


def same(first, second):
    assert len(first) == len(second)
    for a, b in zip_equal(first, second):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def ids(batches):
    return [int(i) for b in batches for i in b["image_id"]]


# The order


@pytest.mark.parametrize("overrides", [{}, {"python_multiprocessing": True}], ids=["threads", "processes"])
def test_same_batches_with_one_worker_and_two(records, shapes_config, overrides):
    one = list(TrainLoader(shapes_config(num_parallel_workers=1), records[0]).epoch(0))
    two = list(TrainLoader(shapes_config(num_parallel_workers=2, **overrides), records[0]).epoch(0))
    same(one, two)


def test_starting_within_an_epoch_gives_its_tail(records, shapes_config):
    loader = TrainLoader(shapes_config(batch_size=4), records[0])
    whole = list(loader.epoch(3))
    assert len(whole) == len(loader) == 5
    same(list(loader.epoch(3, start_step=2)), whole[2:])
    assert list(loader.epoch(3, start_step=len(loader))) == []


def test_epochs_and_seeds_differ(records, shapes_config):
    loader = TrainLoader(shapes_config(), records[0])
    first, second = ids(loader.epoch(0)), ids(loader.epoch(1))
    assert first != second
    assert first != ids(TrainLoader(shapes_config(seed=2), records[0]).epoch(0))
    # an epoch repeats, also from another loader
    assert first == ids(TrainLoader(shapes_config(), records[0]).epoch(0))


def test_an_epoch_has_no_image_twice(records, shapes_config):
    seen = ids(TrainLoader(shapes_config(batch_size=4), records[0]).epoch(0))
    assert len(set(seen)) == len(seen) == 20


def test_ranks_share_an_epoch(records, shapes_config):
    config = shapes_config(batch_size=5)
    one = set(ids(TrainLoader(shapes_config(batch_size=10), records[0]).epoch(0)))
    parts = [ids(TrainLoader(config, records[0], rank, ranks=2).epoch(0)) for rank in (0, 1)]
    assert [len(p) for p in parts] == [10, 10]
    assert set(parts[0]).isdisjoint(parts[1])
    assert set(parts[0]) | set(parts[1]) == one


def test_about_half_of_the_images_are_flipped(records, shapes_config):
    def flips(ratio, epoch=0):
        plain = {}
        for b in TrainLoader(shapes_config(batch_size=1, flip_ratio=0), records[0]).epoch(epoch):
            plain[int(b["image_id"][0])] = b["gt_boxes"]
        loader = TrainLoader(shapes_config(batch_size=1, flip_ratio=ratio), records[0])
        return {
            int(b["image_id"][0]): not np.array_equal(b["gt_boxes"], plain[int(b["image_id"][0])])
            for b in loader.epoch(epoch)
        }

    first = flips(0.5)
    assert 0 < sum(first.values()) < len(first)
    assert all(flips(1).values())
    assert first != flips(0.5, epoch=1)


# What is in a batch


def test_images_without_objects(records, shapes_config):
    folder, truth = records
    empty = {i for i, t in truth.items() if not t["objects"]}
    assert empty
    loader = TrainLoader(shapes_config(batch_size=1), folder)
    assert loader.left_out == len(empty)
    assert set(ids(loader.epoch(0))) == set(truth) - empty
    loader = TrainLoader(shapes_config(batch_size=1, train_empty_images=True), folder)
    batches = {int(b["image_id"][0]): b for b in loader.epoch(0)}
    assert set(batches) == set(truth)
    for i in empty:
        assert not batches[i]["gt_valid"].any()
        assert not batches[i]["gt_boxes"].any()


def test_shapes_and_types(records, shapes_config):
    c = shapes_config(batch_size=8)
    batch = next(TrainLoader(c, records[0]).epoch(0))
    assert {name: (v.shape, v.dtype) for name, v in batch.items()} == {
        "image_id": ((8,), np.int64),
        "occurrence": ((8,), np.int64),
        "image": ((8, 3, 192, 256), np.float32),
        "image_size": ((8, 2), np.float32),
        "gt_boxes": ((8, 16, 4), np.float32),
        "gt_labels": ((8, 16), np.int32),
        "gt_valid": ((8, 16), bool),
        "gt_masks": ((8, 16, 112, 112), np.uint8),
        "ignore_boxes": ((8, 8, 4), np.float32),
    }


@pytest.mark.parametrize("flip", [0, 1])
def test_objects_and_crowds(records, shapes_config, flip):
    """Boxes in canvas pixels; crowds among the boxes to ignore, never among the objects."""
    folder, truth = records
    config = shapes_config(batch_size=1, flip_ratio=flip)
    crowds = 0
    for batch in TrainLoader(config, folder).epoch(0):
        image = truth[int(batch["image_id"][0])]
        height, width = fit_size(image["height"], image["width"], config)
        assert batch["image_size"][0].tolist() == [height, width]
        scale = np.array([width / image["width"], height / image["height"]] * 2)

        def moved(annotations, scale=scale, width=width):
            xywh = np.reshape([a["bbox"] for a in annotations], (-1, 4))
            boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1) * scale
            return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1) if flip else boxes

        valid = batch["gt_valid"][0]
        # boxes are stored to 1e-4 pixels, in float32
        np.testing.assert_allclose(batch["gt_boxes"][0][valid], moved(image["objects"]), atol=1e-3)
        assert batch["gt_labels"][0][valid].tolist() == [a["category_id"] for a in image["objects"]]
        ignored = batch["ignore_boxes"][0]
        np.testing.assert_allclose(ignored[ignored.any(1)], moved(image["crowds"]).reshape(-1, 4), atol=1e-3)
        crowds += len(image["crowds"])
    assert crowds


def test_masks_are_flipped_with_their_image(records, shapes_config):
    def masks(ratio):
        loader = TrainLoader(shapes_config(batch_size=1, flip_ratio=ratio), records[0])
        return {int(b["image_id"][0]): b["gt_masks"][0] for b in loader.epoch(0)}

    plain, flipped = masks(0), masks(1)
    for i in plain:
        np.testing.assert_array_equal(plain[i], flipped[i][..., ::-1])
    # a mask that its own mirror image equals would hide a flip left out
    assert any(not np.array_equal(plain[i], flipped[i]) for i in plain)


def test_masks_fill_their_boxes(records, shapes_config):
    for batch in TrainLoader(shapes_config(), records[0]).epoch(0):
        share = (batch["gt_masks"] > 127).mean((2, 3))
        # the least is a star turned on its tip with parts hidden
        assert (share[batch["gt_valid"]] > 0.1).all()
        assert (share[~batch["gt_valid"]] == 0).all()


def test_only_the_largest_crowds_are_kept(coco_folder, coco_config):
    runs = {"size": [40, 60], "counts": [2400]}
    for size in (5, 20, 10):
        coco_folder.add_object(1, (0, 0, size, size), iscrowd=1, segmentation=runs)
    coco_folder.write()
    config = coco_config(max_crowd_count=2, keep_ratio=False, flip_ratio=0, batch_size=1)
    folder = ensure_mindrecord(config, "train", training=True)
    batch = next(b for b in TrainLoader(config, folder).epoch(0) if b["image_id"][0] == 1)
    assert batch["gt_valid"].sum() == 1
    np.testing.assert_allclose(batch["ignore_boxes"][0, :, 2], np.array([20, 10]) * 256 / 60, rtol=1e-6)


def test_boxes_alone_carry_no_masks(records, shapes_config):
    batch = next(TrainLoader(shapes_config(detector="faster_rcnn"), records[0]).epoch(0))
    assert batch["gt_valid"].any()
    assert "gt_masks" not in batch


# Evaluation


@pytest.mark.parametrize("batch_size", [5, 8, 24, 30])
def test_evaluation_gives_every_image_once(records, shapes_config, batch_size):
    folder, truth = records
    loader = EvalLoader(shapes_config(test_batch_size=batch_size), folder)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert all(len(v) == batch_size for b in batches for v in b.values())
    seen = [int(i) for b in batches for i in b["image_id"][b["valid"]]]
    # images without objects too
    assert sorted(seen) == sorted(truth)
    assert sum((~b["valid"]).sum() for b in batches) == len(batches) * batch_size - len(truth)


def test_evaluation_sizes(records, shapes_config):
    folder, truth = records
    for batch in EvalLoader(shapes_config(img_width=512, img_height=384), folder):
        for i in range(4):
            image = truth[int(batch["image_id"][i])]
            assert batch["original_size"][i].tolist() == [image["height"], image["width"]]
            # float32 rounding
            np.testing.assert_allclose(batch["original_size"][i] * batch["scale"][i], batch["image_size"][i], rtol=1e-6)
            assert (batch["scale"][i] > 1.5).all()


# Faults


def test_fewer_images_than_a_batch(records, shapes_config, shapes_root, refusal):
    with refusal(DataError, shapes_root, "22 images with objects", "one batch of 23 x 1", "batch_size"):
        TrainLoader(shapes_config(batch_size=23), records[0])
    with refusal(DataError, "one batch of 12 x 2", "batch_size"):
        TrainLoader(shapes_config(batch_size=12), records[0], rank=1, ranks=2)
    with refusal(DataError, "one batch of 24 x 1", "batch_size or accumulate"):
        TrainLoader(shapes_config(batch_size=12, accumulate=2), records[0])


def test_a_step_of_parts_has_the_images_of_one_batch(records, shapes_config):
    whole = TrainLoader(shapes_config(batch_size=4), records[0])
    parts = TrainLoader(shapes_config(batch_size=2, accumulate=2), records[0])
    assert len(parts) == len(whole)
    for a, b in zip_equal(parts.epoch(1, 2), whole.epoch(1, 2)):
        assert a["image_id"].tolist() == b["image_id"].tolist()


@pytest.fixture
def damaged(coco_folder, coco_config):
    """A conversion of six images with objects, the second's bytes spoilt afterwards: (folder, config factory)."""
    for _ in range(4):
        coco_folder.add_object(coco_folder.add_image())
    coco_folder.add_object(3)
    coco_folder.write()
    folder = ensure_mindrecord(coco_config(), "train", training=True)
    spoil(folder, coco_folder.images / "000000000002.jpg")
    return folder, coco_config


def spoil(folder, image):
    path, content = Path(record_files(folder)[0]), image.read_bytes()
    data = path.read_bytes()
    middle = data.find(content) + len(content) // 2
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :])


def test_damaged_record_stops(damaged, refusal):
    folder, make_config = damaged
    with refusal(DataError, "image 2", "on_bad_image: skip"):
        list(TrainLoader(make_config(batch_size=1), folder).epoch(0))


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7])
def test_damaged_record_is_left_out_by_option(damaged, capsys, batch_size):
    folder, make_config = damaged
    loader = TrainLoader(make_config(batch_size=batch_size, on_bad_image="skip"), folder)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == 7 // batch_size
    assert 2 not in ids(batches)
    for b in batches:
        assert len(b["image_id"]) == batch_size
    if batch_size in (1, 7):
        assert len(loader.maker.skipped) == 1
        assert "image 2" in loader.maker.skipped[0]
        assert "image 2" in capsys.readouterr().out
    if batch_size == 1:
        assert set(ids(batches)) == {1, 3, 4, 5, 6, 7}


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_starting_past_a_damaged_record_gives_the_epochs_tail(damaged, batch_size):
    folder, make_config = damaged
    spoil(folder, Path(make_config().train_dataset) / "train2017/000000000005.jpg")
    config = make_config(batch_size=batch_size, on_bad_image="skip")
    for epoch in range(6):
        whole = list(TrainLoader(config, folder).epoch(epoch))
        for step in range(1, len(whole)):
            same(list(TrainLoader(config, folder).epoch(epoch, step)), whole[step:])


def test_a_damaged_record_is_named_once(damaged, capsys):
    folder, make_config = damaged
    loader = TrainLoader(make_config(batch_size=1, on_bad_image="skip"), folder)
    for epoch in range(3):
        list(loader.epoch(epoch))
    assert len(loader.maker.skipped) == 1
    assert capsys.readouterr().out.count("image 2") == 1


def test_damaged_record_is_left_out_of_evaluation(damaged):
    folder, make_config = damaged
    loader = EvalLoader(make_config(test_batch_size=4, on_bad_image="skip"), folder)
    assert [int(i) for b in loader for i in b["image_id"][b["valid"]]] == [1, 3, 4, 5, 6, 7]
    assert len(loader.maker.skipped) == 1


def test_every_record_damaged(coco_folder, coco_config, refusal):
    config = coco_config(batch_size=1, on_bad_image="skip")
    folder = ensure_mindrecord(config, "train", training=True)
    for i in (1, 2):
        spoil(folder, coco_folder.images / f"{i:012d}.jpg")
    with refusal(DataError, folder, "no usable image"):
        list(TrainLoader(config, folder).epoch(0))


def test_truncated_record_file(coco_config, refusal):
    folder = ensure_mindrecord(coco_config(), "train", training=True)
    path = Path(record_files(folder)[0])
    path.write_bytes(path.read_bytes()[:1000])
    with refusal(DataError, folder, "data.mindrecord has 1000 bytes", "converted again"):
        list(EvalLoader(coco_config(), folder))


# Workers


def failing(monkeypatch, error):
    """Has the reading of one picture of image 3 end with `error`."""

    def decode(data, name, orientation=1):
        if name == "000000000003.jpg":
            raise error
        return whole(data, name, orientation)

    whole = reader.decode_image
    monkeypatch.setattr(reader, "decode_image", decode)


WORKERS = [{"num_parallel_workers": 1}, {"num_parallel_workers": 2, "python_multiprocessing": True}]


@pytest.mark.parametrize("workers", WORKERS, ids=["threads", "processes"])
def test_our_own_bug_is_told_as_ours_with_its_cause(coco_config, monkeypatch, refusal, workers):
    """Also where faulty images may be left out."""
    failing(monkeypatch, KeyError("orientation"))
    config = coco_config(on_bad_image="skip", **workers)
    folder = ensure_mindrecord(config, "train", training=True)
    with refusal(InternalError, "reading image 3: KeyError: 'orientation'", "test_loader.py, line "):
        list(EvalLoader(config, folder))
    # nothing says that the data set is at fault
    assert ensure_mindrecord(config, "train", training=True) == folder


@pytest.mark.parametrize("workers", WORKERS, ids=["threads", "processes"])
def test_too_little_memory(coco_config, monkeypatch, refusal, workers):
    config = coco_config(**workers)
    folder = ensure_mindrecord(config, "train", training=True)
    with monkeypatch.context() as patch:
        failing(patch, MemoryError())
        with refusal(WorkerDied, "too little memory", "num_parallel_workers", "--resume"):
            list(EvalLoader(config, folder))
    assert len(list(EvalLoader(config, folder))) == 1


def test_what_opencv_refuses_is_that_pictures_fault(coco_config, monkeypatch, capsys):
    failing(monkeypatch, cv2.error("resize"))
    config = coco_config(test_batch_size=3, on_bad_image="skip")
    (batch,) = EvalLoader(config, ensure_mindrecord(config, "train", training=True))
    assert batch["image_id"][batch["valid"]].tolist() == [1, 2]
    assert "left out: image 3: OpenCV can't use it" in capsys.readouterr().out


def test_a_killed_worker(records, shapes_config, refusal):
    config = shapes_config(num_parallel_workers=2, python_multiprocessing=True, batch_size=1)
    batches = TrainLoader(config, records[0]).epoch(0)
    next(batches)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with refusal(WorkerDied, "ended by SIGKILL", "num_parallel_workers"):
        list(batches)
    assert multiprocessing.active_children() == []


def test_more_workers_than_cores(records, shapes_config, monkeypatch, capsys):
    monkeypatch.setattr(workers_module, "told", set())
    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0})
        one = list(TrainLoader(shapes_config(num_parallel_workers=64), records[0]).epoch(0))
        same(one, list(TrainLoader(shapes_config(num_parallel_workers=64), records[0]).epoch(0)))
    # once
    assert capsys.readouterr().out == "num_parallel_workers: 64 on 1 core: 1 read pictures\n"
    same(one, list(TrainLoader(shapes_config(), records[0]).epoch(0)))


def living(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids, seconds=60):
    end = time.monotonic() + seconds
    while any(living(p) for p in pids) and time.monotonic() < end:
        time.sleep(0.1)
    return not any(living(p) for p in pids)


PROGRAM = """
import sys
from src.config import load_config
from src.data.loader import TrainLoader
overrides = {"python_multiprocessing": True, "num_parallel_workers": 2, "batch_size": 1}
batches = TrainLoader(load_config("configs/shapes.yaml", overrides), sys.argv[1]).epoch(0)
next(batches)
print("running", flush=True)
if sys.stdin.readline() == "close\\n":
    batches.close()
    print("closed", flush=True)
    sys.stdin.readline()
"""


def children(pid):
    """Processes that a process began, by any of its threads; one that is ending has none."""
    out = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            out += (thread / "children").read_text().split()
    return out


@pytest.mark.parametrize("how", ["close", "end", "SIGINT", "SIGTERM", "SIGKILL"])
def test_no_worker_is_left_behind(records, how):
    """Neither by an iterator that is closed nor by a program that ends, however it does."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    command = [sys.executable, "-c", PROGRAM, str(records[0])]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], **pipes) as program:
        try:
            assert program.stdout.readline() == "running\n"
            workers = children(program.pid)
            assert len(workers) >= 2
            if how.startswith("SIG"):
                program.send_signal(getattr(signal, how))
            else:
                program.stdin.write(f"{how}\n")
                program.stdin.flush()
            if how == "close":
                assert program.stdout.readline() == "closed\n"
                assert gone(workers)
                assert living(program.pid)
            program.stdin.close()
            assert gone([*workers, program.pid])
        finally:
            program.kill()
