"""Pictures of a results file beside the ground truth, and the loss curve.

python -m src.evaluation.pictures --annotations JSON --images DIR --results RESULTS.json --out DIR
                                  [--count 8] [--score 0.5] [--loss_log loss_0.log]
"""

import argparse
import math
import os
from pathlib import Path

import cv2
from tqdm import tqdm

from src.data.segmentations import normal_segmentation
from src.errors import UserError, run_command
from src.evaluation.coco import load_results, read_annotations
from src.visualize import draw_records, plot_loss_curve, side_by_side

__all__ = ["draw_results"]

SMALL = 480  # pictures with a longer side below this are enlarged, so that labels can be read


def draw_results(
    annotations: str | Path,
    images: str | Path,
    results: str | Path,
    out: str | Path,
    count: int = 8,
    score: float = 0.5,
) -> list[Path]:
    """Writes ground truth | prediction of the first `count` images of an annotation file as PNGs to `out`.

    `results` is a COCO results file of which detections of at least `score` are drawn. Raises UserError.
    """
    if count < 1:
        raise UserError(f"count is {count}; at least one picture")
    truth, found = read_annotations(annotations, with_masks=False), load_results(results)
    names = {k: str(c.get("name", f"class {k}")) for k, c in truth.cats.items()}
    by_image: dict[int, list[tuple[int, dict]]] = {i: [] for i in truth.imgs}
    for i, r in enumerate(found):
        if not isinstance(r["image_id"], int) or r["image_id"] not in by_image:
            raise UserError(f"{annotations}: has no image {r['image_id']}, which {results} names; not its results?")
        by_image[r["image_id"]].append((i, r))
    out, written = Path(out), []
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"{out}: can't write pictures there: {e.strerror}") from None
    for image_id in tqdm(sorted(truth.imgs)[:count], unit="picture", desc="drawing"):
        name = truth.imgs[image_id].get("file_name")
        if not isinstance(name, str):
            raise UserError(f"{annotations}: image {image_id} lacks file_name")
        path = Path(images) / name
        image = cv2.imread(os.fspath(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None:
            raise UserError(f"{path}: no such image, or damaged")
        zoom = 2.0 if max(image.shape[:2]) < SMALL else 1.0
        for a in truth.imgToAnns[image_id]:
            check_record(a, *image.shape[:2], f"{annotations}: annotation {a.get('id')} of image {image_id}")
        for i, r in by_image[image_id]:
            check_record(r, *image.shape[:2], f"{results}: entry {i}, of image {image_id}")
        left = draw_records(image, truth.imgToAnns[image_id], names, zoom=zoom)
        right = draw_records(image, [r for _, r in by_image[image_id]], names, score, zoom)
        target = out / f"{path.stem}.png"
        if not cv2.imwrite(os.fspath(target), side_by_side(left, right)):
            raise UserError(f"{target}: can't write the picture; free space or name another folder")
        written.append(target)
    return written


def check_record(record: dict, height: int, width: int, where: str) -> None:
    """Raises UserError, which begins with `where`, for a result or annotation of a (height, width) image that can't be
    drawn: a box or score that isn't a finite number, a category that isn't an integer, a damaged mask.
    """
    numbers = [*record["bbox"], record.get("score", 0.0)]
    if len(numbers) != 5 or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in numbers):
        raise UserError(f"{where}: bbox {record['bbox']} or score {record.get('score')} isn't finite numbers")
    if not isinstance(record["category_id"], int):
        raise UserError(f"{where}: category_id {record['category_id']!r} isn't an integer")
    # a detector without masks leaves it out
    if record.get("segmentation"):
        normal_segmentation(record["segmentation"], height, width, where)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", required=True, help="COCO instances JSON")
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("--results", required=True, help="COCO results JSON, as eval.py writes it")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--count", type=int, default=8, help="how many images")
    parser.add_argument("--score", type=float, default=0.5, help="least score that is drawn")
    parser.add_argument("--loss_log", help="loss_{rank}.log to draw as loss_curve.png too")
    a = parser.parse_args()
    written = draw_results(a.annotations, a.images, a.results, a.out, a.count, a.score)
    if a.loss_log:
        plot_loss_curve(a.loss_log, a.out / "loss_curve.png")
    print(f"{len(written)} pictures in {a.out}")
    return 0


if __name__ == "__main__":
    run_command(main)
