"""Pictures of a results file beside the ground truth, and the loss curve.

python -m src.evaluation.pictures --annotations JSON --images DIR --results RESULTS.json --out DIR
                                  [--count 8] [--score 0.5] [--loss_log loss_0.log]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from src.data.finding import ImageFinder, name_parts
from src.data.images import EXIF_POLICIES, read_bytes, safe_decode
from src.drawing.curves import plot_loss_curve
from src.drawing.objects import draw_detections, side_by_side
from src.evaluation.kinds import branch_kinds, layers_of
from src.evaluation.results import load_results
from src.evaluation.truth import read_annotations
from src.runtime.errors import UserError, run_command
from src.runtime.newer import zip_equal

__all__ = ["draw_records", "draw_results", "picture_of"]

SMALL = 480  # pictures with a longer side below this are enlarged, so that labels can be read


def draw_results(
    annotations: str | Path,
    images: str | Path,
    results: str | Path,
    out: str | Path,
    count: int = 8,
    score: float = 0.5,
    exif: str = "auto",
) -> list[Path]:
    """Writes ground truth | prediction of the first `count` images of an annotation file as PNGs to `out`.

    `results` is a COCO results file of which detections of at least `score` are drawn; exif: as the config's. Raises
    UserError.
    """
    if count < 1:
        raise UserError(f"count is {count}; at least one picture")
    truth = read_annotations(annotations)
    by_image: dict[int, list[dict]] = {i: [] for i in truth.imgs}
    for r in load_results(results, truth):
        by_image[r["image_id"]].append(r)
    names, chosen = truth.class_names(), sorted(truth.imgs)[:count]
    finder = ImageFinder([Path(images)])
    targets = picture_names([truth.imgs[i]["file_name"] for i in chosen])
    out, written = Path(out), []
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"{out}: can't write pictures there: {e.strerror}") from None
    for image_id, target in zip_equal(tqdm(chosen, unit="picture", desc="drawing"), targets):
        path = finder.find(truth.imgs[image_id]["file_name"])
        image = picture_of(read_bytes(path), str(path), truth.imgs[image_id], exif)
        zoom = 2.0 if max(image.shape[:2]) < SMALL else 1.0
        left = draw_records(image, truth.imgToAnns[image_id], names, zoom=zoom, categories=truth.cats)
        right = draw_records(image, by_image[image_id], names, score, zoom, truth.cats)
        target = out / target
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(cv2.imencode(".png", side_by_side(left, right))[1].tobytes())
        except OSError as e:
            raise UserError(f"{target}: can't write the picture: {e.strerror}; name another folder") from None
        written.append(target)
    return written


def draw_records(
    image: np.ndarray,
    records: Sequence[dict],
    names: Mapping[int, str],
    score_thr: float = 0.5,
    zoom: float = 1.0,
    categories: Mapping[int, dict] | None = None,
) -> np.ndarray:
    """As src.drawing.objects.draw_detections, of one image's COCO results, or annotations (polygons or RLE;
    without scores).

    names: category id to class name; crowd regions are called so. categories: the truth's, by id.
    """
    height, width = image.shape[:2]
    boxes = np.array([r["bbox"] for r in records], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    fields, known = {}, categories or {}
    for branch, kind in branch_kinds().items():
        fields[branch] = [kind.drawable(r, known.get(r["category_id"], {}), height, width) for r in records]
    labels = np.array([r["category_id"] for r in records], np.int64)
    scores = np.array([r["score"] for r in records]) if records and "score" in records[0] else None
    if any(r.get("iscrowd") for r in records):
        # a crowd is drawn as one more class of its own, below zero, also that of category 0
        names = dict(names) | {-1 - k: f"{v} crowd" for k, v in names.items()}
        labels = np.array([-1 - c if r.get("iscrowd") else c for c, r in zip_equal(labels, records)])
    return draw_detections(image, boxes, scores, labels, layers_of(fields), names, score_thr, zoom)


def picture_of(data: bytes, name: str, image: dict, exif: str) -> np.ndarray:
    """The pixels (H, W, 3) uint8 BGR that evaluation saw of an image file's bytes; `image`: its entry in the truth;
    exif: as the config's.

    Raises UserError for bytes that don't decode, and for pixels of another size than annotated.
    """
    return safe_decode(data, name, exif, (image["height"], image["width"]))


def picture_names(files: list[str]) -> list[Path]:
    """Where each image's picture goes: under its name as PNG, in its folders too where two share that name."""
    stems = [Path(*name_parts(f)[-1:]).stem for f in files]
    if len(set(stems)) == len(stems):
        return [Path(f"{s}.png") for s in stems]
    # the suffix stays, as two images may differ in nothing else
    return [Path(*name_parts(f)).with_name(f"{name_parts(f)[-1]}.png") for f in files]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--annotations", required=True, help="COCO instances JSON")
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("--results", required=True, help="COCO results JSON, as eval.py writes it")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--count", type=int, default=8, help="how many images")
    parser.add_argument("--score", type=float, default=0.5, help="least score that is drawn")
    parser.add_argument("--exif", choices=EXIF_POLICIES, default="auto", help="as the config's key (default: auto)")
    parser.add_argument("--loss_log", help="loss_{rank}.log to draw as loss_curve.png too")
    a = parser.parse_args()
    written = draw_results(a.annotations, a.images, a.results, a.out, a.count, a.score, a.exif)
    if a.loss_log:
        plot_loss_curve(a.loss_log, a.out / "loss_curve.png")
    print(f"{len(written)} pictures in {a.out}")
    return 0


if __name__ == "__main__":
    run_command(main)
