"""postprocess.py on results and annotations that a user may hand it."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def result(height, width, boxes=(), labels=(), masks=True):
    """A result file's bytes: detections of score 0.9, masks all set."""
    n, side = len(boxes), 28 if masks else 0
    data = struct.pack("<8s4I", b"RCNNDET1", height, width, n, side)
    data += np.array(boxes, "<f4").tobytes() + np.full(n, 0.9, "<f4").tobytes() + np.array(labels, "<u4").tobytes()
    return data + bytes([255]) * (n * side * side)


@pytest.fixture
def run_folder(coco_folder, tmp_path):
    """Results of coco_folder's three images: its two objects found exactly. With the folder, the summary to change."""
    out = tmp_path / "results"
    out.mkdir()
    names = [i["file_name"] for i in coco_folder.data["images"]]
    for name in names:
        objects = [a for a in coco_folder.data["annotations"] if f"{a['image_id']:012d}.jpg" == name]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in objects)]
        (out / f"{name}.det").write_bytes(result(40, 60, boxes, [1] * len(boxes)))
    summary = {"format": "rcnn-mindspore results", "version": 1, "images": names}
    summary |= {"classes": ["background", "circle", "star"]}
    summary |= {"mask_paste": {"convention": "torchvision", "threshold": 0.5}}
    (out / "summary.json").write_text(json.dumps(summary))
    return out, summary


def postprocess(folder, annotations, *words):
    command = [sys.executable, "postprocess.py", "--results", folder, "--annotations", annotations, *words]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)


def test_what_was_found_exactly_has_ap_1(run_folder, coco_folder, tmp_path):
    run = postprocess(run_folder[0], coco_folder.json, "--output", tmp_path / "coco.json")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("area=   all | maxDets=100 ] = 1.000") == 2 * 4
    assert "bbox:" in run.stdout and "segm:" in run.stdout
    results = json.loads((tmp_path / "coco.json").read_text())
    assert [r["bbox"] for r in results] == [[10, 10, 20, 15]] * 2
    assert {r["category_id"] for r in results} == {10}


def test_results_without_masks(run_folder, coco_folder):
    folder, summary = run_folder
    del summary["mask_paste"]
    (folder / "summary.json").write_text(json.dumps(summary))
    for file in folder.glob("*.det"):
        file.write_bytes(result(40, 60, masks=False))
    run = postprocess(folder, coco_folder.json)
    assert run.returncode == 0, run.stderr
    assert "bbox:" in run.stdout and "segm:" not in run.stdout


def test_an_image_without_a_result_counts_as_missed(run_folder, coco_folder):
    folder, summary = run_folder
    missed = summary["images"].pop(0)
    (folder / "summary.json").write_text(json.dumps(summary))
    run = postprocess(folder, coco_folder.json)
    assert run.returncode == 0, run.stderr
    assert f"1 annotated images without a result count as missed: {missed}" in run.stdout
    # half of the objects: precision 1 up to recall 0.5, of COCO's 101 points
    assert "area=   all | maxDets=100 ] = 0.505" in run.stdout


def test_a_class_that_the_annotations_lack_counts_for_nothing(run_folder, coco_folder):
    """What was computed isn't lost for it."""
    folder, summary = run_folder
    summary["classes"].insert(1, "hexagon")
    (folder / "summary.json").write_text(json.dumps(summary))
    boxes = [[10, 10, 30, 25], [10, 10, 30, 25]]
    for name in summary["images"][:2]:
        (folder / f"{name}.det").write_bytes(result(40, 60, boxes, [2, 1]))
    run = postprocess(folder, coco_folder.json)
    assert run.returncode == 0, run.stderr
    assert "2 detections of categories that the annotations lack" in run.stdout
    assert run.stdout.count("area=   all | maxDets=100 ] = 1.000") == 2 * 4


def test_annotations_without_masks(run_folder, coco_folder):
    for a in coco_folder.data["annotations"]:
        del a["segmentation"]
    coco_folder.write()
    run = postprocess(run_folder[0], coco_folder.json)
    assert run.returncode == 0, run.stderr
    assert "boxes alone are measured: the annotations have no masks" in run.stdout
    assert "bbox:" in run.stdout and "segm:" not in run.stdout


def rename(coco_folder, *names):
    for image, name in zip(coco_folder.data["images"], names):
        image["file_name"] = name
    coco_folder.write()


def test_images_of_one_name_in_two_folders(run_folder, coco_folder):
    """Results that know their folders find each its own; the third goes by its name alone."""
    folder, summary = run_folder
    names = ["a/1.jpg", "b/1.jpg", summary["images"][2]]
    rename(coco_folder, "sets\\a\\1.jpg", "sets/b/1.jpg", f"elsewhere/{names[2]}")
    # the second image's object alone is found
    (folder / "b").mkdir()
    (folder / "a").mkdir()
    (folder / "b/1.jpg.det").write_bytes(result(40, 60, [[10, 10, 30, 25]], [1]))
    (folder / "a/1.jpg.det").write_bytes(result(40, 60))
    (folder / "summary.json").write_text(json.dumps(summary | {"images": names}))
    run = postprocess(folder, coco_folder.json)
    assert run.returncode == 0, run.stderr
    (found,) = json.loads((folder / "results.json").read_text())
    assert found["image_id"] == 2
    assert "area=   all | maxDets=100 ] = 0.505" in run.stdout


def test_a_name_that_may_be_either_of_two_images_is_refused(run_folder, coco_folder):
    folder, summary = run_folder
    first = summary["images"][0]
    rename(coco_folder, f"a/{first}", f"b/{first}")
    run = postprocess(folder, coco_folder.json)
    assert run.returncode == 2
    assert f"{first!r} may be of any of 2 images ('a/{first}', 'b/{first}')" in run.stderr
    # the whole path comes before the name
    rename(coco_folder, first, f"b/{first}")
    (folder / "summary.json").write_text(json.dumps(summary | {"images": [first]}))
    run = postprocess(folder, coco_folder.json)
    assert run.returncode == 0, run.stderr
    assert {r["image_id"] for r in json.loads((folder / "results.json").read_text())} == {1}


def test_two_results_of_one_image_are_refused(run_folder, coco_folder):
    folder, summary = run_folder
    first = summary["images"][0]
    (folder / "summary.json").write_text(json.dumps(summary | {"images": [f"a/{first}", f"b/{first}"]}))
    run = postprocess(folder, coco_folder.json)
    assert run.returncode == 2
    assert f"'a/{first}' and 'b/{first}' both" in run.stderr


FAULTS = {
    "no summary": (lambda f, s: (f / "summary.json").unlink(), "summary.json"),
    "summary cut": (lambda f, s: (f / "summary.json").write_text("{"), "summary.json"),
    "another summary": (lambda f, s: (f / "summary.json").write_text("{}"), "summary.json"),
    "result missing": (lambda f, s: (f / f"{s['images'][1]}.det").unlink(), "000000000002.jpg.det"),
    "result cut": (lambda f, s: (f / f"{s['images'][1]}.det").write_bytes(b"RCNN"), "000000000002.jpg.det"),
    "of another size": (lambda f, s: (f / f"{s['images'][1]}.det").write_bytes(result(41, 60)), "annotated as 60 x 40"),
    "unknown image": (
        lambda f, s: (f / "summary.json").write_text(json.dumps(s | {"images": ["other.jpg"]})),
        "other.jpg",
    ),
    "nested without end": (lambda f, s: (f / "summary.json").write_text("[" * 20_000), "not whole JSON"),
    "summary of a gigabyte": (lambda f, s: os.truncate(f / "summary.json", 2**30), "summary.json"),
    "a result elsewhere": (
        lambda f, s: (f / "summary.json").write_text(json.dumps(s | {"images": ["../000000000001.jpg"]})),
        "images isn't what",
    ),
    "images of no names": (
        lambda f, s: (f / "summary.json").write_text(json.dumps(s | {"images": [["a"], 3]})),
        "images isn't what",
    ),
    "classes of no names": (
        lambda f, s: (f / "summary.json").write_text(json.dumps(s | {"classes": {"circle": 1}})),
        "classes isn't what",
    ),
    "masks pasted by no convention": (
        lambda f, s: (f / "summary.json").write_text(json.dumps(s | {"mask_paste": {"convention": "x"}})),
        "mask_paste isn't what",
    ),
    "no masks to paste": (
        lambda f, s: (f / f"{s['images'][0]}.det").write_bytes(result(40, 60, masks=False)),
        "has no masks",
    ),
    "a result that is a pipe": (
        lambda f, s: ((f / f"{s['images'][0]}.det").unlink(), os.mkfifo(f / f"{s['images'][0]}.det")),
        "a pipe",
    ),
    "more detections than there can be": (
        lambda f, s: (f / f"{s['images'][0]}.det").write_bytes(
            struct.pack("<8s4I", b"RCNNDET1", 40, 60, 2**20, 0) + bytes(24 << 20)
        ),
        "not a whole result",
    ),
    "unknown class": (
        lambda f, s: (f / "summary.json").write_text(json.dumps(s | {"classes": ["background", "cat"]})),
        "'cat'",
    ),
    "unknown label": (
        lambda f, s: (f / f"{s['images'][0]}.det").write_bytes(result(40, 60, [[0, 0, 9, 9]], [7])),
        "label 7",
    ),
    "not finite": (
        lambda f, s: (f / f"{s['images'][0]}.det").write_bytes(result(40, 60, [[0, 0, np.nan, 9]], [1])),
        "finite",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told_in_one_line(fault, run_folder, coco_folder):
    spoil, part = FAULTS[fault]
    spoil(*run_folder)
    run = postprocess(run_folder[0], coco_folder.json)
    assert run.returncode == 2
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and part in last
    assert "Traceback" not in run.stderr


def test_annotations_that_cannot_be_used(run_folder, tmp_path):
    (tmp_path / "list.json").write_text("[]")
    for path in (tmp_path / "missing.json", tmp_path / "list.json"):
        run = postprocess(run_folder[0], path)
        assert run.returncode == 2
        assert run.stderr.startswith(f"error: {path}")
