"""Whether predictions equal to the truth are perfect on every way to an AP: python -m benchmarks.truth [--data DIR ...]

For each data set and each of its splits: `eval.py --predictions` and its report, the evaluation of eval_onnx.py,
postprocess.py on result files as the C++ program writes them, and infer.py's results with --annotations. Of COCO sets
also: detections with errors have the twelve numbers that pycocotools alone gives for the file itself. Ends with status
1 where a box AP isn't 1.000, or a number differs. A grid of MASK_SIDE cells over a box can't hold every mask, so the
mask AP of result files is told, and at least LEAST_GRID_AP.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.common import print_table
from src.config import Config, load_config
from src.data.formats import resolve_classes
from src.data.formats.base import NoSplitError
from src.data.mindrecord import ensure_mindrecord, read_index
from src.data.records import DataError
from src.data.segmentations import as_rle
from src.data.shapes import make_shapes
from src.data.transforms import crop_mask
from src.data.truth import read_truth
from src.evaluation.coco import evaluate
from src.evaluation.inference import EvalLoader, collect_results, kinds_of, open_truth, records_of, report
from src.evaluation.kinds import KINDS
from src.evaluation.results import load_results, save_results
from src.evaluation.truth import Truth, read_annotations
from src.runtime.newer import zip_equal

__all__ = ["noisy_results", "perfect_results", "plain_numbers"]

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared/data"
MASK_SIDE = 224
LEAST_GRID_AP = 0.95  # thin parts and hundredths of small boxes are lost in cells
MOST = 300  # objects of an image

Pair = dict[str, float]


def perfect_results(truth: dict, score: float = 0.9) -> list[dict]:
    """COCO results equal to the objects of a truth, crowds left out."""
    sizes = {i["id"]: (i["height"], i["width"]) for i in truth["images"]}
    out = []
    for a in truth["annotations"]:
        if a["iscrowd"]:
            continue
        row = {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": score}
        if a.get("segmentation"):
            mask = a["segmentation"]
            mask = [np.array(p) for p in mask] if isinstance(mask, list) else mask
            row["segmentation"] = as_rle(mask, *sizes[a["image_id"]])
        out.append(row)
    return out


def noisy_results(truth: dict, seed: int = 0) -> list[dict]:
    """Results with errors of every kind: moved boxes and masks, other classes, missed and false ones."""
    random = np.random.default_rng(seed)
    sizes = {i["id"]: (i["height"], i["width"]) for i in truth["images"]}
    categories = [c["id"] for c in truth["categories"]]
    out = []
    for r in perfect_results(truth):
        if random.random() < 0.15:
            continue
        for _ in range(1 + (random.random() < 0.2)):
            height, width = sizes[r["image_id"]]
            new, (x, y, w, h) = copy.deepcopy(r), r["bbox"]
            move = random.normal(0, 0.06, 4) * [w, h, w, h]
            new["bbox"] = np.round([x + move[0], y + move[1], max(w + move[2], 1), max(h + move[3], 1)], 2).tolist()
            if random.random() < 0.1:
                new["category_id"] = int(random.choice(categories))
            new["score"] = round(float(random.random()), 6)
            if "segmentation" in r:
                shift = np.round(move[:2]).astype(int)
                bitmap = np.roll(rle.decode(r["segmentation"]), (shift[1], shift[0]), (0, 1))
                encoded = rle.encode(np.asfortranarray(bitmap))
                new["segmentation"] = {"size": [height, width], "counts": encoded["counts"].decode()}
            out.append(new)
    return out


def plain_numbers(annotations: Path, results: list[dict], kind: str) -> list[float]:
    """COCO's twelve numbers by pycocotools alone, of the file as it is.

    A result with box and mask would be small, medium or large by its box: for masks the boxes are left out, as
    Detectron2 and mmdetection do.
    """
    if kind == "segm":
        results = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        run = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats.tolist()


# ---------------------------------------------------------------------------------------------------------
# the ways to an AP


def by_eval(config: Config, split: str, out: Path) -> tuple[Pair, Pair]:
    """AP by eval.py in a process of its own, and in its report."""
    words = [
        *("--config_path", str(ROOT / "configs/shapes.yaml"), "--checkpoint_path", "none.ckpt", "--split", split),
        *("--predictions", str(out / "perfect.json"), "--metrics", str(out / "metrics.json"), "--report", str(out)),
        *(f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in overrides_of(config).items()),
    ]
    done = subprocess.run([sys.executable, ROOT / "eval.py", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise DataError(f"eval.py: {done.stderr.strip()[-400:]}")
    numbers = json.loads((out / "metrics.json").read_text())
    evaluated = {k: numbers[k]["metrics"]["AP"] for k in ("bbox", "segm") if k in numbers}
    row = re.search(r"<td>AP, mean over IoU 0.50 to 0.95</td>(.*?)</tr>", (out / "report.html").read_text())[1]
    shown = [float(v) for v in re.findall(r'<td class="n">([0-9.]+)</td>', row)]
    return evaluated, dict(zip_equal(evaluated, shown))


def by_onnx(config: Config, split: str, truth: dict, out: Path) -> Pair:
    """AP by what eval_onnx.py does with a model's detections; masks, which leave a model as grids, as they are."""
    records = records_of(config, split=split)
    loader = EvalLoader(config, records)
    kinds = kinds_of(config, loader.index, tell=False)
    opened = open_truth(records, kinds)
    labels = {c["id"]: label for label, c in enumerate(truth["categories"], 1)}
    rows = rows_by_image(truth)

    def run(batch: dict) -> list[np.ndarray]:
        size = len(batch["image_id"])
        boxes, scores = np.zeros((size, MOST, 4), np.float32), np.zeros((size, MOST), np.float32)
        classes, valid = np.zeros((size, MOST), np.int32), np.zeros((size, MOST), bool)
        for i, image_id in enumerate(batch["image_id"].tolist()):
            for j, r in enumerate(rows.get(image_id, [])):
                boxes[i, j], scores[i, j], classes[i, j] = corners(r["bbox"]), r["score"], labels[r["category_id"]]
                valid[i, j] = True
        return [boxes, scores, classes, valid]

    results = collect_results(config, run, loader, original=True, quiet=True)
    left = {image: iter(found) for image, found in rows.items()}
    for r in results:
        twin = next(left[r["image_id"]])
        r |= {"segmentation": twin["segmentation"]} if "segmentation" in twin else {}
    metrics = report(config, loader, opened, results, out / "onnx.json", iou_types=kinds).metrics
    return {k: m["AP"] for k, m in metrics.items()}


def by_cpp(config: Config, truth: dict, annotations: Path, out: Path) -> Pair:
    """AP by postprocess.py, in a process of its own, of files as the C++ program writes them."""
    folder = out / "cpp"
    rows = rows_by_image(truth)
    labels = {c["id"]: label for label, c in enumerate(truth["categories"], 1)}
    for image in truth["images"]:
        write_det(folder / f"{image['file_name']}.det", image, rows.get(image["id"], []), labels, config.with_mask)
    summary = {
        "format": "rcnn-mindspore results",
        "images": [i["file_name"] for i in truth["images"]],
        "classes": config.coco_classes,
    }
    if config.with_mask:
        summary["mask_paste"] = {"threshold": 0.5, "convention": "grid"}
    (folder / "summary.json").write_text(json.dumps(summary))
    words = ["--results", str(folder), "--annotations", str(annotations), "--output", str(out / "cpp.json")]
    done = subprocess.run([sys.executable, ROOT / "postprocess.py", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise DataError(f"postprocess.py: {done.stderr.strip()[-400:]}")
    found = re.findall(r"(bbox|segm):\n [^\n]*maxDets=[0-9 ]+\] = (-?[0-9.]+)", done.stdout)
    return {kind: float(ap) for kind, ap in found}


def write_det(path: Path, image: dict, rows: list[dict], labels: dict[int, int], with_mask: bool) -> None:
    """One result file, see src.evaluation.cpp_results."""
    side = MASK_SIDE if with_mask else 0
    boxes = np.array([corners(r["bbox"]) for r in rows], "<f4").reshape(-1, 4)
    parts = [struct.pack("<8s4I", b"RCNNDET1", image["height"], image["width"], len(rows), side), boxes.tobytes()]
    parts += [np.array([r["score"] for r in rows], "<f4").tobytes()]
    parts += [np.array([labels[r["category_id"]] for r in rows], "<u4").tobytes()]
    for r, box in zip(rows if side else (), boxes):
        parts.append(crop_mask(r["segmentation"], box, image["height"], image["width"], side).tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(parts))


def by_infer(truth: Truth, index: dict, annotations: Path, out: Path) -> Pair:
    """AP of what infer.py --annotations writes, with a stand-in that detects what the truth holds."""
    from src.evaluation.detections import Detections
    from src.inference.files import Annotations, Inputs, common_folder, predict_images
    from src.inference.predictor import Prediction

    names = {Path(path).resolve(): None for path, *_ in index["opened"]}
    known = Annotations.read(annotations)
    files = known.find(list(names))
    data = truth.dataset
    ids = {i.get("source_id", i["id"]): i["id"] for i in data["images"]}
    images = {i["id"]: i for i in data["images"]}
    category_names = {c["id"]: c["name"] for c in data["categories"]}
    classes = list(category_names.values())
    rows = rows_by_image(data)

    class StandIn:
        class_names = ["background", *classes]
        category_ids = known.labels(class_names)

        def stream(self, sources: list[Path], keep_images: bool, sizes: dict) -> Iterator[Prediction]:
            for source in sources:
                image = images[ids[files[source].image_id]]
                if sizes[source] != (image["height"], image["width"]):
                    raise DataError(f"{source}: annotated as {sizes[source]}")
                found = rows.get(image["id"], [])
                called = [category_names[r["category_id"]] for r in found]
                yield Prediction(
                    source,
                    Detections(
                        image["height"],
                        image["width"],
                        np.array([corners(r["bbox"]) for r in found], np.float32).reshape(-1, 4),
                        np.array([r["score"] for r in found], np.float32),
                        np.array([1 + classes.index(n) for n in called], np.int32),
                        called,
                        [self.category_ids[1 + classes.index(n)] for n in called],
                        [r["segmentation"] for r in found] if KINDS["segm"].annotated(truth) else None,
                    ),
                )

    inputs = Inputs(images=list(names), root=common_folder(names))
    predict_images(StandIn(), inputs, out / "infer.json", None, out / "infer_coco.json", known)
    kinds = tuple(name for name, kind in KINDS.items() if kind.annotated(truth))
    results = load_results(out / "infer_coco.json", truth)
    return {k: m["AP"] for k, m in evaluate(truth, results, kinds, max_per_img=MOST).metrics.items()}


def rows_by_image(truth: dict) -> dict[int, list[dict]]:
    """Perfect results of each image."""
    out: dict[int, list[dict]] = {}
    for r in perfect_results(truth):
        out.setdefault(r["image_id"], []).append(r)
    return out


def corners(bbox: list[float]) -> list[float]:
    x, y, w, h = bbox
    return [x, y, x + w, y + h]


# ---------------------------------------------------------------------------------------------------------
# the data sets


def overrides_of(config: Config) -> dict[str, object]:
    """What of the shapes config is another for a data set."""
    keys = ("dataset", "detector", "train_dataset", "val_dataset", "val_share", "mindrecord_dir", "train_outputs")
    values = {k: getattr(config, k) for k in (*keys, "coco_classes", "num_classes")}
    return values | {"test_cfg.rcnn.max_per_img": MOST, "test_cfg.rcnn.score_thr": 0.0}


def config_for(root: Path, out: Path) -> Config:
    """The shapes config for a data set of COCO's or VOC's layout."""
    is_coco = any(root.glob("annotations/*.json"))
    values = {
        "dataset": "coco" if is_coco else "voc",
        "detector": "mask_rcnn" if is_coco else "faster_rcnn",
        "train_dataset": str(root),
        "val_dataset": str(root),
        "mindrecord_dir": str(out / "records"),
        "train_outputs": str(out / "outputs"),
        "test_cfg.rcnn.max_per_img": MOST,
        "test_cfg.rcnn.score_thr": 0.0,
    }
    return resolve_classes(load_config(ROOT / "configs/shapes.yaml", values | {"coco_classes": "auto"}), training=True)


def check_split(name: str, config: Config, split: str, out: Path) -> tuple[list[list[object]], list[str]]:
    """Rows of the table, and what is wrong. Raises DataError."""
    index = read_index(ensure_mindrecord(config, split, training=False, quiet=True))
    path = Path(index["annotations"])
    truth = Truth(path, read_truth(path))
    out.mkdir(parents=True)
    save_results(out / "perfect.json", perfect_results(truth.dataset), truth)
    own_file = Path(index["source"])
    annotations = own_file if config.dataset == "coco" else path
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        evaluated, shown = by_eval(config, split, out)
        ways = {
            "eval.py --predictions": evaluated,
            "its report": shown,
            "eval_onnx.py": by_onnx(config, split, truth.dataset, out),
            "postprocess.py": by_cpp(config, truth.dataset, annotations, out),
            "infer.py --annotations": by_infer(truth, index, annotations, out),
        }
    rows, wrong = [], []
    images, objects = len(truth.imgs), sum(not a["iscrowd"] for a in truth.dataset["annotations"])
    for way, pair in ways.items():
        rows.append([name, split, images, objects, way, *(ap_text(pair.get(k)) for k in ("bbox", "segm"))])
        least = LEAST_GRID_AP if way == "postprocess.py" else 0.9995
        if not pair.get("bbox", 0) >= 0.9995 or not pair.get("segm", 1.0) >= least:
            wrong.append(f"{name} {split}: {way}: {pair}")
    if config.dataset == "coco":
        wrong += compare_plain(name, split, truth, own_file)
    return rows, wrong


def compare_plain(name: str, split: str, truth: Truth, annotations: Path) -> list[str]:
    """Differences between our twelve numbers of noisy results and pycocotools' of the file itself."""
    results = noisy_results(truth.dataset)
    summary = evaluate(read_annotations(annotations), results)
    wrong = []
    for kind, numbers in summary.metrics.items():
        plain = plain_numbers(annotations, results, kind)
        ours = list(numbers.values())
        print(f"{name} {split}: noisy {kind} AP {ours[0]:.6f}, pycocotools on the file itself {plain[0]:.6f};", end=" ")
        print("all 12 equal" if ours == plain else "NOT equal")
        if ours != plain:
            wrong.append(f"{name} {split}: {kind} of noisy results: {ours}, pycocotools {plain}")
    return wrong


def ap_text(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data",
        nargs="*",
        type=Path,
        default=[DATA / n for n in ("coco_mini", "bccd", "raccoon")],
        help="data sets in COCO's or VOC's layout (default: those beside this repository)",
    )
    parser.add_argument("--shapes", type=Path, help="a shapes data set (default: a small one is made)")
    a = parser.parse_args()
    rows, wrong = [], []
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            shapes = a.shapes or make_shapes(out / "shapes", train=24, val=12)
        for root in [*a.data, shapes]:
            config = config_for(root.resolve(), out / root.name)
            for split in ("train", "val", "test"):
                try:
                    with contextlib.redirect_stderr(io.StringIO()):
                        found, faults = check_split(root.name, config, split, out / root.name / split)
                except NoSplitError:
                    continue
                rows += found
                wrong += faults
    print_table(
        "Predictions equal to the truth", ["data", "split", "images", "objects", "way", "AP bbox", "AP segm"], rows
    )
    for line in wrong:
        print(f"WRONG: {line}")
    print("every box AP is 1.000" if not wrong else f"{len(wrong)} wrong")
    return 1 if wrong or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
