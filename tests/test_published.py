"""The table of published checkpoints, and the command that proves one of them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks import published
from benchmarks.published import judge, read_models
from src.checkpoints.convert.conversion import config_name, convert, recognise, renamed
from src.config import COCO_CLASSES, load_config, parse_overrides
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
    assert found == set(json.loads(published.RECORD.read_text())["golden"])


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


def run(record: Path, root: Path, file: Path, out: Path) -> tuple[int, str]:
    """The command's exit status and output, at a small scale and without a least score."""
    keys = ["--test_cfg.rcnn.score_thr", "0", "--mindrecord_dir", str(out / "mindrecord"), "--train_outputs", str(out)]
    command = [sys.executable, "-m", "benchmarks.published", SMALL, "--record", record, "--coco_root", root]
    with all_cores():
        done = subprocess.run(
            [str(c) for c in (*command, "--ckpt", file, "--out", out, *keys)], cwd=ROOT, capture_output=True, text=True
        )
    return done.returncode, done.stdout + done.stderr


def record_of(path: Path, ap: float) -> Path:
    """The record of one model alone, with another published AP."""
    content = json.loads(published.RECORD.read_text())
    project = next(p for p in content["projects"] if p["project"] == "torchvision")
    (model,) = (m for m in project["models"] if m["name"] == SMALL)
    content["projects"] = [project | {"models": [model | {"ap": {"box": ap}}]}]
    path.write_text(json.dumps(content))
    return path


def made_up_file(path: Path) -> Path:
    """A file as torchvision's of that model, with weights made from names."""
    return write_zip(path, reference_state_dict(shapes_of(SMALL)))


def ap_of(annotations: Path, results: Path) -> float:
    """pycocotools' own box AP, of 100."""
    truth = COCO(annotations)
    found = COCOeval(truth, truth.loadRes(str(results)), "bbox")
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
