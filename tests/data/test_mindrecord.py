"""Conversion to MindRecord: once, whole or not at all, re-made when its source changes."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from src.data import mindrecord
from src.data.loader import EvalLoader, TrainLoader
from src.data.mindrecord import ensure_mindrecord, read_index, record_files
from src.data.records import DataError

ROOT = Path(__file__).parents[2]


def convert(config):
    return ensure_mindrecord(config, "train", training=True)


def state(folder):
    """What changes when a data set is written anew."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.iterdir()}


def contents(folder):
    """Every file there is, with its bytes."""
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# Re-used and re-made


def test_index(coco_folder, coco_config):
    runs = {"size": [40, 60], "counts": [400, 100, 1900]}
    coco_folder.add_object(2, iscrowd=1, segmentation=runs)
    coco_folder.write()
    index = read_index(convert(coco_config()))
    assert index["image_ids"] == [1, 2, 3]
    assert (index["objects"], index["crowds"]) == ([1, 1, 0], [0, 1, 0])
    assert index["skipped"] == []
    # classes that the file lacks have ids of their own
    assert index["category_ids"] == {"1": 10, "2": 21, "3": 22, "4": 20, "5": 23}
    assert index["source"] == str(coco_folder.json)
    assert index["annotations"] == str(convert(coco_config()) / "truth.json")


def test_reused_when_nothing_changed(coco_config):
    folder = convert(coco_config())
    before = state(folder)
    # what doesn't shape the records doesn't re-make them
    assert convert(coco_config(batch_size=1, img_width=512, lr=1)) == folder
    assert state(folder) == before


def change_json(folder):
    folder.data["annotations"][0]["bbox"][2] = 19
    folder.write()


def change_image(folder):
    path = folder.images / "000000000001.jpg"
    stat = path.stat()
    noise = np.random.RandomState(9).randint(0, 256, (40, 60, 3)).astype(np.uint8)
    cv2.imwrite(str(path), noise)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


@pytest.mark.parametrize("change", [change_json, change_image])
def test_remade_when_the_source_changes(coco_folder, coco_config, change):
    folder = convert(coco_config())
    before = read_index(folder)["fingerprint"], next(iter(EvalLoader(coco_config(test_batch_size=3), folder)))
    change(coco_folder)
    anew = convert(coco_config())
    assert read_index(anew)["fingerprint"] != before[0] == read_index(folder)["fingerprint"]
    if change is change_image:
        after = next(iter(EvalLoader(coco_config(test_batch_size=3), anew)))
        assert not np.array_equal(before[1]["image"][0], after["image"][0])
        assert np.array_equal(before[1]["image"][1], after["image"][1])


def test_two_configs_in_turn_convert_once_each(coco_config):
    first, second = (convert(coco_config(max_instance_count=n)) for n in (2, 3))
    before = state(first), state(second)
    assert first != second
    for _ in range(2):
        assert convert(coco_config(max_instance_count=2)) == first
        assert convert(coco_config(max_instance_count=3)) == second
    assert (state(first), state(second)) == before


def test_what_a_run_reads_does_not_change(coco_folder, coco_config):
    """A second run with other classes converts while the first reads; then an image changes."""
    config = coco_config(batch_size=1, flip_ratio=0)
    loader = TrainLoader(config, convert(config))

    def labels():
        return {int(b["image_id"][0]): b["gt_labels"][b["gt_valid"]].tolist() for b in loader.epoch(0)}

    before = labels()
    assert set(before) == {1, 2}
    other = convert(coco_config(coco_classes=["background", "star", "circle"], num_classes=3))
    assert labels() == before
    change_image(coco_folder)
    changed = convert(config)
    assert labels() == before
    assert len({loader.folder, other, changed}) == 3


def test_other_images_of_the_same_file(coco_folder, coco_config):
    """image_dir leads elsewhere, where files of the same names are."""
    elsewhere = coco_folder.root / "elsewhere"
    shutil.copytree(coco_folder.images, elsewhere)
    cv2.imwrite(str(elsewhere / "000000000001.jpg"), np.zeros((40, 60, 3), np.uint8))
    file = str(coco_folder.json)
    folders = [convert(coco_config(train_dataset=file, image_dir=str(d))) for d in (coco_folder.images, elsewhere)]
    images = [next(iter(EvalLoader(coco_config(test_batch_size=3), f)))["image"][0] for f in folders]
    assert not np.array_equal(*images)


def test_evaluation_takes_any_number_of_objects(coco_folder, coco_config):
    coco_folder.add_object(2)
    shutil.copytree(coco_folder.images, coco_folder.root / "val2017")
    coco_folder.json = coco_folder.json.with_name("instances_val2017.json")
    coco_folder.write()
    config = coco_config(val_dataset=str(coco_folder.root), max_instance_count=1)
    folder = ensure_mindrecord(config, "val", training=False)
    assert read_index(folder)["objects"] == [1, 2, 0]


def test_remade_when_a_file_is_gone(coco_config):
    folder = convert(coco_config())
    Path(record_files(folder)[0]).unlink()
    assert len(record_files(convert(coco_config()))) == 1


def test_remade_when_the_index_is_damaged(coco_config):
    config = coco_config()
    whole = (convert(config) / "index.json").read_text()
    for content in ("", "[1, 2]", "{}", whole[:-1], whole.replace('"objects": [1, 1, 0]', '"objects": [1, 1, 1]')):
        (convert(config) / "index.json").write_text(content)
        assert read_index(convert(config))["objects"] == [1, 1, 0]


def flip(path, place):
    """Changes one bit of a file."""
    with path.open("r+b") as f:
        f.seek(place)
        byte = f.read(1)[0]
        f.seek(place)
        f.write(bytes([byte ^ 0x10]))


HEADER, IMAGES, NUMBERS = 40, (1 << 24) + 900, (1 << 24) + (1 << 25) + 5  # places in a MindRecord file


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("data.mindrecord", HEADER),
        ("data.mindrecord", IMAGES),
        ("data.mindrecord", NUMBERS),
        ("data.mindrecord.db", 3),
        ("data.mindrecord.db", 9000),
        ("truth.json", 300),
    ],
)
def test_a_flipped_bit_is_told_and_converted_again(coco_config, capsys, name, place):
    config = coco_config(test_batch_size=3)
    folder = convert(config)
    before, source = next(iter(EvalLoader(config, folder))), read_index(folder)["settings"]
    flip(folder / name, place)
    anew = convert(config)
    told = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert told == [f"{folder}: damaged ({name}: checksum); converting it again"]
    assert read_index(anew)["settings"] == source
    np.testing.assert_array_equal(next(iter(EvalLoader(config, anew)))["image"], before["image"])
    # once: what was converted again is whole
    assert convert(config) == anew
    assert "damaged" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["data.mindrecord", "data.mindrecord.db", "truth.json", "index.json"])
def test_an_empty_file_is_converted_again(coco_config, capsys, name):
    config = coco_config(test_batch_size=3)
    folder = convert(config)
    (folder / name).write_bytes(b"")
    assert len(list(EvalLoader(config, convert(config)))) == 1
    assert f"{folder}: damaged (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "place"), [("data.mindrecord", HEADER), ("data.mindrecord.db", 9000), ("truth.json", 300)]
)
def test_damage_that_changes_no_time(coco_config, capsys, name, place):
    """As a disk does it: what MindRecord's reader believes unseen, and the truth, is compared at each start."""
    config = coco_config()
    folder = convert(config)
    flip(folder / name, place)
    mindrecord.note_checked(folder, mindrecord.file_stamps(folder, read_index(folder)["parts"]))
    assert convert(config) != folder
    assert f"{folder}: damaged ({name}: checksum)" in capsys.readouterr().out


def test_files_that_were_only_touched_are_used(coco_config):
    folder = convert(coco_config())
    for path in record_files(folder):
        os.utime(path)
    assert convert(coco_config()) == folder


def test_a_folder_that_was_moved(coco_config, tmp_path):
    folder = convert(coco_config())
    place = tmp_path / "moved"
    shutil.copytree(folder.parent, place)
    shutil.rmtree(folder.parent)
    moved = convert(coco_config(mindrecord_dir=str(place)))
    assert moved == place / folder.name
    assert read_index(moved)["annotations"] == str(moved / "truth.json")


def test_flushed_before_it_has_its_name(coco_config, monkeypatch):
    def note(path):
        flushed.append((path.name, path.parent.name.partition(".")[2] != ""))

    flushed = []
    monkeypatch.setattr(mindrecord, "flush", note)
    folder = convert(coco_config())
    assert {name for name, beside in flushed if beside} == {p.name for p in folder.iterdir()}
    assert flushed[-1] == (folder.parent.name, False)


# Removed


def clean(config):
    command = [sys.executable, "-m", "src.data.mindrecord", "--clean", "--config_path", "configs/shapes.yaml"]
    command += ["--mindrecord_dir", config.mindrecord_dir]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_clean_removes_what_nobody_reads(coco_config):
    config = coco_config()
    read = convert(config)
    unread = read.with_name("train-0123456789ab")
    shutil.copytree(read, unread)
    (config.record_dir / "train-of-the-user").mkdir()
    (config.record_dir / "train-0123456789ac").mkdir()
    (config.record_dir / "train-0123456789ac/notes.txt").write_text("mine")
    before = contents(read)
    told = clean(config)
    assert [line for line in told if str(read) in line] == [line for line in told if line.endswith("in use: stays")]
    assert [line for line in told if str(unread) in line] == [line for line in told if line.endswith(" MB, removed")]
    assert len(told) == 2
    assert not unread.exists()
    assert contents(read) == before
    assert (config.record_dir / "train-0123456789ac/notes.txt").read_text() == "mine"
    assert (config.record_dir / "train-of-the-user").is_dir()


def test_a_short_disk_takes_what_nobody_reads(coco_config, monkeypatch, capsys):
    config = coco_config()
    read = convert(config)
    unread = read.with_name("train-0123456789ab")
    shutil.copytree(read, unread)

    def usage(_):
        free = (10 if unread.exists() else 1000) << 20
        return shutil._ntuple_diskusage(1 << 40, 0, free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(mindrecord, "size_of", lambda folder: 1 << 30)
    other = convert(coco_config(max_instance_count=7))
    assert f"{unread}: removed to make room" in capsys.readouterr().out
    assert sorted(config.record_dir.iterdir()) == sorted([read, other])


def test_a_disk_too_small_for_it_loses_nothing(coco_config, monkeypatch, refusal):
    config = coco_config()
    unread = convert(config).with_name("train-0123456789ab")
    shutil.copytree(convert(config), unread)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 0, 1 << 20))
    with refusal(DataError, "1 MB free", "needed"):
        convert(coco_config(max_instance_count=7))
    assert unread.is_dir()


def test_removed_or_replaced_while_it_is_read(coco_folder, coco_config, refusal):
    config = coco_config(batch_size=1)
    folder = convert(config)
    loaders = TrainLoader(config, folder), EvalLoader(config, folder)
    shutil.rmtree(folder)
    for i in (0, 1):
        with refusal(DataError, folder, "removed or replaced", "--resume"):
            list(loaders[0].epoch(0) if i == 0 else loaders[1])
    change_image(coco_folder)
    convert(config).rename(folder) if convert(config) != folder else None
    with refusal(DataError, folder, "removed or replaced", "--resume"):
        list(loaders[0].epoch(0))


def test_damaged_while_it_is_read(coco_config, refusal):
    config = coco_config(batch_size=1)
    folder = convert(config)
    loader = TrainLoader(config, folder)
    assert len(list(loader.epoch(0))) == 2
    flip(folder / "data.mindrecord", IMAGES)
    with refusal(DataError, folder, "damaged while it was read", "--resume"):
        list(loader.epoch(1))


def test_several_files(shapes_config):
    folder = convert(shapes_config(mindrecord_shards=3))
    assert len(record_files(folder)) == 3
    index = read_index(folder)
    assert sorted(index["image_ids"]) == list(range(1, 25))
    config = shapes_config(mindrecord_shards=3, test_batch_size=8)
    seen = np.concatenate([b["image_id"] for b in EvalLoader(config, folder)])
    # the index tells the rows in the order that they are read in
    assert seen.tolist() == index["image_ids"]


# Damaged images


def truncated_jpeg(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def jpeg_short_of_a_byte(path):
    path.write_bytes(path.read_bytes()[:-1])


def truncated_jpeg_with_thumbnail(path):
    """The thumbnail in an EXIF segment ends with an end marker of its own."""
    whole = path.read_bytes()
    thumbnail = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    exif = b"Exif\0\0" + thumbnail
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    path.write_bytes((whole[:2] + segment + whole[2:])[: len(segment) + len(whole) * 3 // 4])


def not_an_image(path):
    path.write_bytes(b"<html>404 Not Found</html>" * 20)


def empty_file(path):
    path.write_bytes(b"")


def another_size(path):
    cv2.imwrite(str(path), np.zeros((60, 40, 3), np.uint8))


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (truncated_jpeg, "cut short"),
        (jpeg_short_of_a_byte, "cut short"),
        (truncated_jpeg_with_thumbnail, "cut short"),
        (not_an_image, "not an image"),
        (empty_file, "empty"),
        (another_size, "40 x 60, annotated as 60 x 40"),
    ],
)
def test_damaged_image(coco_folder, coco_config, refusal, capsys, spoil, what):
    path = coco_folder.images / "000000000002.jpg"
    spoil(path)
    with refusal(DataError, path, what, "on_bad_image: skip"):
        convert(coco_config())
    config = coco_config(on_bad_image="skip")
    assert contents(config.record_dir) == {}
    capsys.readouterr()
    index = read_index(convert(config))
    assert index["image_ids"] == [1, 3]
    assert len(index["skipped"]) == 1
    told = capsys.readouterr().out
    assert "1 images left out" in told
    assert str(path) in told
    # and again when the conversion is re-used
    convert(config)
    assert str(path) in capsys.readouterr().out


def test_a_thumbnail_alone_is_no_fault(coco_folder, coco_config):
    path = coco_folder.images / "000000000002.jpg"
    whole = path.read_bytes()
    truncated_jpeg_with_thumbnail(path)
    path.write_bytes(path.read_bytes() + whole[-(len(whole) - len(whole) * 3 // 4) :])
    assert read_index(convert(coco_config()))["image_ids"] == [1, 2, 3]


def test_truncated_png(coco_folder, coco_config, refusal):
    image_id = coco_folder.add_image(name="four.png")
    coco_folder.write()
    assert read_index(convert(coco_config()))["image_ids"][-1] == image_id
    truncated_jpeg(coco_folder.images / "four.png")
    with refusal(DataError, "four.png", "damaged"):
        convert(coco_config())


@pytest.mark.parametrize("size", [(38, 60), (40, 61)])
def test_a_size_off_by_few_pixels(coco_folder, coco_config, refusal, size):
    entry = coco_folder.data["images"][1]
    entry["height"], entry["width"] = size
    coco_folder.write()
    with refusal(DataError, "000000000002.jpg", "60 x 40", f"{size[1]} x {size[0]}"):
        convert(coco_config())
    assert read_index(convert(coco_config(on_bad_image="skip")))["image_ids"] == [1, 3]


def test_no_usable_image(coco_folder, coco_config, refusal):
    for path in coco_folder.images.iterdir():
        not_an_image(path)
    config = coco_config(on_bad_image="skip")
    with refusal(DataError, "no usable image among"):
        convert(config)
    assert contents(config.record_dir) == {}


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".jpg", ".tif"])
@pytest.mark.parametrize("size", [(7, 60), (40, 1), (3, 5)])
def test_small_pictures_are_used(coco_folder, coco_config, suffix, size):
    height, width = size
    image_id = coco_folder.add_image(height, width, name=f"small{suffix}")
    coco_folder.add_object(image_id, (0, 0, width, height))
    coco_folder.write()
    config = coco_config(batch_size=1, test_batch_size=1)
    folder = convert(config)
    assert read_index(folder)["image_ids"] == [1, 2, 3, 4]
    assert 4 in [int(b["image_id"][0]) for b in TrainLoader(config, folder).epoch(0)]
    sizes = {int(b["image_id"][0]): b["original_size"][0].tolist() for b in EvalLoader(config, folder)}
    assert sizes[4] == [height, width]


# Several at once


def test_processes_that_start_together_convert_once(coco_config, monkeypatch):
    def count(*arguments):
        calls.append(arguments)
        time.sleep(0.3)
        return whole(*arguments)

    calls, whole = [], mindrecord.convert
    monkeypatch.setattr(mindrecord, "convert", count)
    config = coco_config()
    # each call takes a lock of its own, so threads stand for processes
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: convert(config), range(3)))
    assert len(calls) == 1
    assert len(set(folders)) == 1
    assert list(config.record_dir.iterdir()) == [folders[0]]


# Interrupted


def test_killed_conversion_is_not_taken_for_whole(coco_config):
    config = coco_config()
    program = f"""
import time
from src.config import load_config
from src.data import mindrecord
whole = mindrecord.make_row
def slow(record, config):
    if record.image_id == 3:
        print("in the middle", flush=True)
        time.sleep(600)
    return whole(record, config)
mindrecord.make_row = slow
mindrecord.CHUNK = 1
config = load_config("configs/shapes.yaml",
    {{"train_dataset": {config.train_dataset!r}, "mindrecord_dir": {config.mindrecord_dir!r}}})
mindrecord.ensure_mindrecord(config, "train", training=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "in the middle\n"
        left = list(config.record_dir.iterdir())
        process.send_signal(signal.SIGKILL)
    assert left
    assert [p for p in left if ".writing-" not in p.name] == []
    assert list(config.record_dir.iterdir()) == left
    folder = convert(config)
    assert read_index(folder)["image_ids"] == [1, 2, 3]
    # what the killed one left is gone too
    assert list(config.record_dir.iterdir()) == [folder]


def test_interrupted_by_the_user(coco_config, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    config = coco_config()
    monkeypatch.setattr(mindrecord, "make_row", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(config)
    assert list(config.record_dir.iterdir()) == []


# Places that can't be written


def test_file_in_place_of_the_folder(coco_config, tmp_path, refusal):
    place = tmp_path / "taken"
    place.write_text("mine")
    with refusal(DataError, place, "mindrecord_dir"):
        convert(coco_config(mindrecord_dir=str(place)))
    assert place.read_text() == "mine"


def test_file_in_place_of_the_data_set(coco_config):
    config = coco_config()
    folder = convert(config)
    shutil.rmtree(folder)
    folder.write_text("mine")
    assert read_index(convert(config))["image_ids"] == [1, 2, 3]
    assert folder.read_text() == "mine"


@pytest.fixture
def converted(coco_folder, coco_config):
    """A whole conversion that must survive a failing one: (config, folder of all, its contents); source changed."""
    config = coco_config()
    convert(config)
    before = contents(config.record_dir)
    change_json(coco_folder)
    return config, config.record_dir, before


def test_too_little_space(converted, monkeypatch, refusal):
    config, place, before = converted
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10 << 20, 0, 10 << 20))
    with refusal(DataError, place, "10 MB free", "needed", "mindrecord_dir"):
        convert(config)
    assert contents(place) == before


@pytest.mark.parametrize(
    "fault",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("[MRMOpenError]: no\nmore")],
    ids=["OSError", "RuntimeError"],
)
def test_disk_fills_up_while_writing(converted, monkeypatch, refusal, fault):
    def fail(self, *rest):
        raise fault

    config, place, before = converted
    monkeypatch.setattr(mindrecord.FileWriter, "write_raw_data", fail)
    with refusal(DataError, place, "can't write", "mindrecord_dir"):
        convert(config)
    assert contents(place) == before


def test_really_full_disk(coco_folder, coco_config, tmp_path, monkeypatch, refusal):
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a small file system here")
    try:
        (place / "other").write_bytes(b"x" * 20000)
        # the check beforehand, that a disk filled meanwhile would pass
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40))
        for _ in range(5):
            coco_folder.add_object(coco_folder.add_image(200, 300))
        coco_folder.write()
        with refusal(DataError, place, "mindrecord_dir"):
            convert(coco_config(mindrecord_dir=str(place)))
        assert list(contents(place)) == [Path("other")]
    finally:
        # lazily: MindRecord's writer still holds its file open
        subprocess.run(["umount", "-l", place], check=True)


# Reading


def flip_image_byte(folder, image):
    """Changes one byte of `image`'s bytes inside the MindRecord file, in the JPEG's scan."""
    path = Path(record_files(folder)[0])
    data = bytearray(path.read_bytes())
    place = bytes(data).find(image)
    assert place > 0
    data[place + len(image) // 2] ^= 0x10
    path.write_bytes(data)


def test_flipped_byte_is_caught_at_reading(coco_folder, coco_config, refusal):
    config = coco_config()
    folder = convert(config)
    flip_image_byte(folder, (coco_folder.images / "000000000002.jpg").read_bytes())
    mindrecord.note_checked(folder, mindrecord.file_stamps(folder, read_index(folder)["parts"]))
    # the times say that nothing changed
    assert convert(config) == folder
    with refusal(DataError, "image 2", "checksum", "run again"):
        list(EvalLoader(config, folder))
    assert len(list(EvalLoader(config, convert(config)))) == 1


def test_not_a_converted_data_set(tmp_path, refusal):
    with refusal(DataError, tmp_path, "not a converted data set"):
        read_index(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps([1]))
    with refusal(DataError, tmp_path, "not a converted data set"):
        read_index(tmp_path)


def test_image_bytes_are_stored_as_they_are(coco_folder, coco_config):
    data = Path(record_files(convert(coco_config()))[0]).read_bytes()
    for path in coco_folder.images.iterdir():
        assert path.read_bytes() in data
