"""COCO's size: what a made-up set of 118,000 images and 860,000 objects costs to read, check and evaluate.

python -m benchmarks.scale --out DIR [--images 118000] [--objects 860000] [--val 5000] [--project DIR] [--keep]

The pictures are small and few, linked under all names, so that the annotations weigh as COCO's do. Each stage runs in a
process of its own, whose peak memory is told. --project names another checkout (an earlier version) to measure on the
same files; stages that it lacks are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
SIDES = (96, 128)  # height, width of the pictures
POINTS = 25  # of a polygon, about as many as COCO's have
CATEGORIES = 80


def make_split(root: Path, split: str, images: int, objects: int, seed: int) -> None:
    """A COCO split with `objects` objects in `images` linked pictures."""
    folder = root / f"{split}2017"
    folder.mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    random = np.random.default_rng(seed)
    pool = []
    for i in range(16):
        path = root / f"pool_{i}.jpg"
        if not path.exists():
            noise = cv2.resize(random.integers(0, 256, (12, 16, 3), np.uint8), SIDES[::-1])
            cv2.imwrite(str(path), noise)
        pool.append(path)
    for i in tqdm(range(1, images + 1), unit="link", desc=split):
        os.link(pool[i % 16], folder / f"{i:012d}.jpg")
    with (root / f"annotations/instances_{split}2017.json").open("w") as f:
        f.write('{"images": [')
        for i in range(1, images + 1):
            entry = {"id": i, "file_name": f"{i:012d}.jpg", "height": SIDES[0], "width": SIDES[1], "license": 1}
            f.write((", " if i > 1 else "") + json.dumps(entry))
        f.write('], "annotations": [')
        angles = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
        for i in tqdm(range(1, objects + 1), unit="object", desc=split):
            radius = random.uniform(5, 30, (POINTS, 1)) * np.column_stack([np.cos(angles), np.sin(angles)])
            points = np.round(radius + random.uniform([30, 30], [SIDES[1] - 30, SIDES[0] - 30]), 2)
            (x1, y1), (x2, y2) = points.min(0), points.max(0)
            box = [round(float(v), 2) for v in (x1, y1, x2 - x1, y2 - y1)]
            entry = {
                "segmentation": [points.ravel().tolist()],
                "area": round(box[2] * box[3] * 0.6, 4),
                "iscrowd": 0,
                "image_id": int(random.integers(1, images + 1)),
                "bbox": box,
                "category_id": int(random.integers(1, CATEGORIES + 1)),
                "id": i,
            }
            f.write((", " if i > 1 else "") + json.dumps(entry))
        names = [{"id": i, "name": f"class {i}", "supercategory": "thing"} for i in range(1, CATEGORIES + 1)]
        f.write('], "categories": ' + json.dumps(names) + "}")


def make_results(root: Path, images: int, path: Path) -> None:
    """100 detections in every validation image, one in five of them near an object."""
    data = json.loads((root / "annotations/instances_val2017.json").read_bytes())
    random = np.random.default_rng(9)
    by_image: dict[int, list[dict]] = {}
    for a in data["annotations"]:
        by_image.setdefault(a["image_id"], []).append(a)
    results = []
    for image_id in range(1, images + 1):
        near = by_image.get(image_id, [])
        for k in range(100):
            if near and k % 5 == 0:
                a = near[k // 5 % len(near)]
                box = (np.array(a["bbox"]) + random.normal(0, 1.5, 4)).round(2).tolist()
                category = a["category_id"]
            else:
                box = np.concatenate([random.uniform(0, 60, 2), random.uniform(5, 35, 2)]).round(2).tolist()
                category = int(random.integers(1, CATEGORIES + 1))
            score = round(float(random.random()), 6)
            results.append({"image_id": image_id, "category_id": category, "bbox": box, "score": score})
    path.write_text(json.dumps(results))


CONVERT = "from src.data.mindrecord import ensure_mindrecord; ensure_mindrecord(config, '{}', training={})"
STAGES = {
    "convert": CONVERT.format("train", True),
    "check": CONVERT.format("train", True),
    "read": "from src.data.formats import read_split; read_split(config, 'train')",
    "normalise": (
        "from pathlib import Path; from src.data.formats import read_split; from src.data.truth import write_truth;"
        " write_truth(Path(config.train_outputs) / 'truth.json', read_split(config, 'train'))"
    ),
    "convert val": CONVERT.format("val", False),
    "evaluate": """
from src.data.mindrecord import ground_truth
from src.evaluation.coco import evaluate
try:
    from src.evaluation.results import load_results
except ImportError:  # an earlier version
    from src.evaluation.coco import load_results
evaluate(ground_truth(config), load_results(results), ("bbox",))""",
}


def run_stage(project: Path, stage: str, root: Path, outputs: Path, results: Path) -> dict | None:
    """Seconds, CPU seconds and peak MiB of a stage in a process of its own; None where `project` lacks it."""
    names = [f"class {i}" for i in range(1, CATEGORIES + 1)]
    values = {
        "train_dataset": str(root),
        "val_dataset": str(root),
        "train_outputs": str(outputs),
        "coco_classes": ["background", *names],
        "num_classes": CATEGORIES + 1,
    }
    program = (
        "import resource, sys\nfrom src.config import load_config\n"
        f"config = load_config('configs/mask_rcnn_r50_fpn.yaml', {values!r})\nresults = {str(results)!r}\n"
        f"import time; begin = time.perf_counter()\n{STAGES[stage]}\n"
        "usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print('MEASURED', time.perf_counter() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=project, capture_output=True, text=True)
    line = next((x for x in done.stdout.splitlines() if x.startswith("MEASURED")), None)
    if line is None:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"  {stage}: not measured ({reason[:150]})")
        return None
    seconds, cpu, memory = map(float, line.split()[1:])
    return {"seconds": seconds, "cpu": cpu, "MiB": memory}


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--objects", type=int, default=860_000)
    parser.add_argument("--val", type=int, default=5_000)
    parser.add_argument("--project", type=Path, default=ROOT, help="checkout to measure (default: this one)")
    parser.add_argument("--keep", action="store_true", help="keep what the stages wrote")
    a = parser.parse_args()
    root, results = a.out / f"set_{a.images}_{a.objects}", a.out / f"results_{a.val}.json"
    if not root.exists():
        beside = root.with_name(root.name + ".writing")
        shutil.rmtree(beside, ignore_errors=True)
        make_split(beside, "train", a.images, a.objects, 1)
        make_split(beside, "val", a.val, a.val * 7, 2)
        beside.rename(root)
    if not results.exists():
        make_results(root, a.val, results)
    json_size = (root / "annotations/instances_train2017.json").stat().st_size
    print(f"{a.images} images, {a.objects} objects, annotations of {json_size / 1e6:.0f} MB; {a.project}")
    outputs = a.out / f"outputs_{os.getpid()}"
    print(f"{'stage':12s} {'seconds':>9s} {'CPU':>9s} {'peak MiB':>9s}")
    begin = time.perf_counter()
    for stage in STAGES:
        m = run_stage(a.project, stage, root, outputs, results)
        if m:
            print(f"{stage:12s} {m['seconds']:9.1f} {m['cpu']:9.1f} {m['MiB']:9.0f}", flush=True)
    print(f"disk: {size_of(outputs) / 1e6:.0f} MB; in all {time.perf_counter() - begin:.0f} s")
    if not a.keep:
        shutil.rmtree(outputs, ignore_errors=True)


if __name__ == "__main__":
    main()
