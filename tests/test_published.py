"""The table of published checkpoints, and the command that proves one of them."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks import published
from benchmarks.published import judge, read_models
from src.checkpoints.convert.conversion import config_name, convert, recognise, renamed
from src.config import COCO_CLASSES, load_config, parse_overrides
from src.config.keys import COCO_KEYPOINTS
from src.runtime.errors import UserError
from tests.checkpoints.convert.foreign import write_zip
from tests.checkpoints.convert.published import made_up, shapes_of, targets_of
from tests.conftest import CocoFolder, all_cores
from tests.reference.reference_weights import reference_state_dict

ROOT = Path(__file__).resolve().parents[1]
MODELS = read_models()
SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"
# one of each config, the others under --full
FIRST = {m.config: m.name for m in reversed(MODELS.values())}


def cells(text: str) -> list[list[str]]:
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]


def test_the_page_shows_the_record(capsys):
    assert published.main(["--list"]) == 0
    printed = cells(capsys.readouterr().out)
    assert len(printed) > len(MODELS)
    page = (ROOT / "docs/published.md").read_text(encoding="utf-8")
    assert cells(page) == printed
    for model in MODELS.values():
        assert model.page in page


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FIRST.values() else pytest.mark.full) for n in MODELS]
)
def test_a_published_checkpoint_fits_its_config(name):
    """By the names and shapes that the project's own code gives its parameters."""
    model = MODELS[name]
    config = load_config(ROOT / f"configs/{model.config}.yaml", parse_overrides(published.words(model.keys)))
    state = made_up(shapes_of(name))
    assert recognise(state) == model.layout
    out = convert(state, model.layout, config, targets_of(model.config))
    assert out.unfilled == out.mismatched == out.extra == []
    assert len(out.params) == len(targets_of(model.config))
    # and who names no config gets one of the same parts
    ours = renamed(state, model.layout).params
    told = config_name(model.layout, {n: v.shape for n, v in ours.items()})
    assert targets_of(told.removesuffix(".yaml")) == targets_of(model.config)


def test_golden_files_are_there_for_what_says_so():
    found = set()
    for path in (ROOT / "tests/reference").glob("*.npz"):
        with np.load(path) as golden:
            if "det_boxes_0" not in golden:
                continue
            shapes = {
                str(n): tuple(int(i) for i in str(s).split(",") if i) for n, s in zip(golden["names"], golden["shapes"])
            }
        layout = recognise(shapes)
        ours = renamed(made_up(shapes), layout).params
        found.add(config_name(layout, {n: v.shape for n, v in ours.items()}).removesuffix(".yaml"))
    record = json.loads(published.RECORD.read_text())
    assert found == set(record["golden"])
    assert not found & set(record["not_kept"])
    assert set(record["not_kept"]) <= {m.config for m in MODELS.values()}


@pytest.mark.parametrize(("mask", "said"), [(0.3479, "pass"), (0.3441, "pass"), (0.3494, "FAIL"), (None, "FAIL")])
def test_an_ap_passes_within_two_tenths(mask, said):
    metrics = {"bbox": {"metrics": {"AP": 0.3791}}, "segm": {"metrics": {"AP": mask}}}
    rows = judge(MODELS["maskrcnn_resnet50_fpn"], metrics)  # of 37.9 and 34.6
    assert [row[0] for row in rows] == ["box", "mask"]
    assert [row[-1] for row in rows] == ["pass", said]


def test_an_unknown_model_is_answered_with_the_nearest(refusal, tmp_path):
    with refusal(UserError, "mask_rcnn_r50_1x_coco", "did you mean mask_rcnn_r50_fpn_1x_coco"):
        published.main(["mask_rcnn_r50_1x_coco"])
    with refusal(UserError, "model_final_a54504.pkl", "--coco_root"):
        published.main(["mask_rcnn_R_50_FPN_1x"])
    with refusal(UserError, "absent.pkl", "published as https://", "model_final_a54504.pkl"):
        published.main(["mask_rcnn_R_50_FPN_1x", "--coco_root", str(tmp_path), "--ckpt", str(tmp_path / "absent.pkl")])


def run(
    record: Path, root: Path, file: Path, out: Path, model: str = SMALL, more: Sequence[str] = ()
) -> tuple[int, str]:
    """The command's exit status and output, at a small scale and without a least score; more: keys."""
    keys = ["--test_cfg.rcnn.score_thr", "0", "--mindrecord_dir", str(out / "mindrecord"), "--train_outputs", str(out)]
    command = [sys.executable, "-m", "benchmarks.published", model, "--record", record, "--coco_root", root]
    options = ["--ckpt", file, "--out", out, *keys, *more]
    with all_cores():
        done = subprocess.run([str(c) for c in (*command, *options)], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def record_of(path: Path, ap: float) -> Path:
    """The record of one model alone, with another published AP."""
    content = json.loads(published.RECORD.read_text())
    project = next(p for p in content["projects"] if p["project"] == "torchvision")
    (model,) = (m for m in project["models"] if m["name"] == SMALL)
    content["projects"] = [project | {"models": [model | {"ap": {"box": ap}}]}]
    path.write_text(json.dumps(content))
    return path


def made_up_file(path: Path, model: str = SMALL) -> Path:
    """A file with that model's names, and weights made from them."""
    return write_zip(path, reference_state_dict(shapes_of(model)))


def ap_of(annotations: Path, results: Path, kind: str = "bbox") -> float:
    """pycocotools' own AP, of 100."""
    truth = COCO(annotations)
    found = COCOeval(truth, truth.loadRes(str(results)), kind)
    found.evaluate()
    found.accumulate()
    found.summarize()
    return 100 * float(found.stats[0])


def coco_of_noise(root: Path) -> Path:
    """A COCO root of two pictures, with COCO's categories."""
    folder = CocoFolder(root, "val")
    folder.data["categories"] = [{"id": i, "name": n} for i, n in enumerate(COCO_CLASSES) if i]
    for category in (1, 17):
        folder.add_object(folder.add_image(), category_id=category)
    folder.write()
    return root


def check_failing(root: Path, tmp_path: Path) -> None:
    """Made-up weights fail against what torchvision published; their AP is what pycocotools finds."""
    file, out = made_up_file(tmp_path / "made_up.pth"), tmp_path / "out"
    status, told = run(record_of(tmp_path / "torchvision.json", 22.8), root, file, out)
    assert status == 1, told
    ap = ap_of(root / "annotations/instances_val2017.json", out / "results.json")
    (row,) = (c for c in cells(told) if c[0] == "box")
    assert row == ["box", f"{ap:.1f}", "22.8", f"{ap - 22.8:+.1f}", "FAIL"]


def test_made_up_weights_on_noise(tmp_path):
    check_failing(coco_of_noise(tmp_path / "coco"), tmp_path)


def some_photographs(coco_root: Path, root: Path) -> Path:
    """A COCO root of four photographs with persons, each of whom has keypoints that are made up."""
    truth = json.loads((coco_root / "annotations/instances_val2017.json").read_text())
    chosen = sorted({a["image_id"] for a in truth["annotations"] if a["category_id"] == 1 and not a["iscrowd"]})[:4]
    truth["images"] = [i for i in truth["images"] if i["id"] in chosen]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in chosen]
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").symlink_to(coco_root / "val2017")
    (root / "annotations/instances_val2017.json").write_text(json.dumps(truth))
    persons = [a for a in truth["annotations"] if a["category_id"] == 1]
    for a in persons:
        x, y, w, h = a["bbox"]
        points = [v for k in range(17) for v in (x + w * (k % 5 + 0.5) / 5, y + h * (k // 5 + 0.5) / 4, 2)]
        a |= {"keypoints": points, "num_keypoints": 17} if not a["iscrowd"] else {"keypoints": [0] * 51}
    person = {"id": 1, "name": "person", "keypoints": COCO_KEYPOINTS, "skeleton": [[16, 14]]}
    truth |= {"annotations": persons, "categories": [person]}
    (root / "annotations/person_keypoints_val2017.json").write_text(json.dumps(truth))
    return root


SQUARE = ["--img_width", "192", "--img_height", "192"]
SIDES = ["--img_width", "192", "--img_height", "128", "--short_side", "128", "--long_side", "192"]


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("keypointrcnn_resnet50_fpn", SIDES),
        ("keypoint_rcnn_R_50_FPN_1x", SIDES),
        ("mask_rcnn_swin-t-p4-w7_fpn_1x_coco", SIDES),
        ("cascade_mask_rcnn_vitdet_b_100ep", SQUARE),
    ],
)
def test_made_up_weights_of_other_kinds_on_photographs(name, keys, coco_root, tmp_path):
    """Of each kind the AP that pycocotools finds; small canvases."""
    root, out = some_photographs(coco_root, tmp_path / "coco"), tmp_path / "out"
    status, told = run(published.RECORD, root, made_up_file(tmp_path / "made_up.pth", name), out, name, keys)
    assert status == 1, told
    rows = {row[0]: row for row in cells(told) if row[0] in published.KINDS}
    assert rows.keys() == MODELS[name].ap.keys()
    split = "person_keypoints" if "keypoints" in rows else "instances"
    for kind, row in rows.items():
        ap = ap_of(root / f"annotations/{split}_val2017.json", out / "results.json", published.KINDS[kind])
        assert row[1:3] == [f"{ap:.1f}", f"{MODELS[name].ap[kind]:.1f}"]
        assert row[-1] == "FAIL"


@pytest.mark.full
def test_made_up_weights_on_photographs(coco_root, tmp_path):
    """And they pass where their own AP was published: on objects that are some of what they detect."""
    check_failing(coco_root, tmp_path)
    found = tmp_path / "out/results.json"
    results = json.loads(found.read_text())
    truth = json.loads((coco_root / "annotations/instances_val2017.json").read_text())
    truth["annotations"] = []
    for image in truth["images"]:
        best = sorted((r for r in results if r["image_id"] == image["id"]), key=lambda r: -r["score"])[:6:2]
        for r in best:
            x, y, w, h = r["bbox"]
            outline = [x, y, x + w, y, x + w, y + h, x, y + h]
            truth["annotations"].append(
                {k: r[k] for k in ("image_id", "category_id", "bbox")}
                | {"id": len(truth["annotations"]) + 1, "iscrowd": 0, "area": w * h, "segmentation": [outline]}
            )
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").symlink_to(coco_root / "val2017")
    (root / "annotations/instances_val2017.json").write_text(json.dumps(truth))
    ap = ap_of(root / "annotations/instances_val2017.json", found)
    assert ap > 5
    record = record_of(tmp_path / "own.json", round(ap, 1))
    status, told = run(record, root, tmp_path / "made_up.pth", tmp_path / "again")
    assert status == 0, told
    (row,) = (c for c in cells(told) if c[0] == "box")
    assert row == ["box", f"{ap:.1f}", f"{ap:.1f}", "+0.0", "pass"]
