"""Pictures of a results file beside the ground truth, and the loss curve.

python -m src.evaluation.pictures --annotations JSON --images DIR --results RESULTS.json --out DIR
                                  [--count 8] [--score 0.5] [--loss_log loss_0.log]
"""

import argparse
import os
from pathlib import Path

import cv2
from tqdm import tqdm

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
    truth, found = read_annotations(annotations), load_results(results)
    names = {k: c["name"] for k, c in truth.cats.items()}
    out, written = Path(out), []
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"{out}: can't write pictures there: {e.strerror}") from None
    for image_id in tqdm(sorted(truth.imgs)[:count], unit="picture", desc="drawing"):
        path = Path(images) / truth.imgs[image_id]["file_name"]
        image = cv2.imread(os.fspath(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None:
            raise UserError(f"{path}: no such image, or damaged")
        zoom = 2.0 if max(image.shape[:2]) < SMALL else 1.0
        left = draw_records(image, truth.imgToAnns[image_id], names, zoom=zoom)
        right = draw_records(image, [r for r in found if r["image_id"] == image_id], names, score, zoom)
        target = out / f"{path.stem}.png"
        if not cv2.imwrite(os.fspath(target), side_by_side(left, right)):
            raise UserError(f"{target}: can't write the picture; free space or name another folder")
        written.append(target)
    return written


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
