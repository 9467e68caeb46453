"""An evaluation as one HTML file that needs nothing else: tables, curves, confusion, pictures, speed, losses."""

from __future__ import annotations

import base64
import html
import io
import string
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import mindspore.dataset as ds
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from pycocotools import mask as rle

from src.config import Config
from src.data.mindrecord import read_index, record_files
from src.drawing.curves import plot_loss_curve
from src.drawing.objects import side_by_side
from src.evaluation.classes import OperatingPoint
from src.evaluation.coco import Summary
from src.evaluation.inference import Timing, open_truth
from src.evaluation.kinds import KINDS, branch_kinds
from src.evaluation.pictures import draw_records, picture_of
from src.evaluation.truth import EvaluationError, Truth
from src.runtime.errors import UserError
from src.runtime.files import whole
from src.runtime.newer import zip_equal

__all__ = ["Matches", "match_image", "write_report"]

TEMPLATE = Path(__file__).with_name("report.html")
MOST_UNLABELLED, UNLABELLED_IOU = 20, 0.1  # detections without truth; IoU with any object from which one isn't
SHOWN = 4  # best and worst images, each
PICTURE_SIDE = 420, 720  # longer sides that pictures are enlarged or reduced to
MOST_CLASSES = 40  # in the confusion matrix; the commonest


@dataclass
class Matches:
    """One image's objects and detections, matched: pairs of (object's category, detection's), None on a side without
    a partner, and the IoU of each pair (0 without a partner)."""

    pairs: list[tuple[int | None, int | None]]
    ious: list[float]

    @property
    def quality(self) -> float | None:
        """Panoptic quality (arXiv:1801.00868) on boxes: the IoUs of matches in the right class, over matches plus
        half the false and missed ones. None where there is nothing to find and nothing found."""
        right = [iou for (a, b), iou in zip_equal(self.pairs, self.ious) if a == b]
        # a match in the wrong class is a missed object and a false detection
        wrong = sum((a is not None) + (b is not None) for a, b in self.pairs if a != b)
        return sum(right) / (len(right) + wrong / 2) if self.pairs else None


def match_image(
    annotations: Sequence[dict], results: Sequence[dict], score: float = 0.5, least_iou: float = 0.5
) -> Matches:
    """Matches results of at least `score` with annotations of any class, where their boxes' IoU is at least least_iou.

    Greedily by IoU, pairs of the same class first among equals. An unmatched detection that lies half in a crowd region
    isn't counted.
    """
    objects = [a for a in annotations if not a.get("iscrowd")]
    crowds = [a["bbox"] for a in annotations if a.get("iscrowd")]
    found = [r for r in results if r["score"] >= score]
    pairs, ious, used_a, used_r = [], [], set(), set()
    if objects and found:
        boxes = [np.array([x["bbox"] for x in rows], np.float64) for rows in (found, objects)]
        iou = rle.iou(*boxes, np.zeros(len(objects), np.uint8))
        same = np.array([[r["category_id"] == a["category_id"] for a in objects] for r in found])
        rows, columns = np.nonzero(iou >= least_iou)
        order = np.lexsort((~same[rows, columns], -np.round(iou[rows, columns], 3)))
        for i in order:
            r, a = int(rows[i]), int(columns[i])
            if r not in used_r and a not in used_a:
                used_r.add(r)
                used_a.add(a)
                pairs.append((objects[a]["category_id"], found[r]["category_id"]))
                ious.append(float(iou[r, a]))
    for a in set(range(len(objects))) - used_a:
        pairs.append((objects[a]["category_id"], None))
    for r in set(range(len(found))) - used_r:
        boxes = [np.array(b, np.float64) for b in ([found[r]["bbox"]], crowds)]
        if crowds and rle.iou(*boxes, np.ones(len(crowds), np.uint8)).max() >= 0.5:
            continue
        pairs.append((None, found[r]["category_id"]))
    return Matches(pairs, ious + [0.0] * (len(pairs) - len(ious)))


def write_report(
    folder: str | Path,
    config: Config,
    records: Path,
    results: list[dict],
    summary: Summary,
    checkpoint: str = "",
    timing: Timing | None = None,
) -> Path:
    """Writes report.html into `folder`, beside and then renamed, and returns its path.

    records: the split's MindRecord folder, of which the images are drawn; results: COCO results of the split, which
    `summary` measures, with the thresholds of what is counted and drawn; timing: what the run took, None if it wasn't
    run. The losses are those of config.output_dir's loss_0.log. Raises UserError.
    """
    index = read_index(records)
    truth, results = measured_classes(open_truth(records), results, summary)
    matches = match_all(truth, results, summary)
    parts = {
        "title": html.escape(f"{config.brief}: evaluation"),
        "facts": facts(config, index, truth, results, checkpoint, summary),
        "metrics": metrics_table(summary),
        "sizes": picture(size_chart(summary), "AP by the size of objects"),
        "curves": "".join(
            picture(curve_chart(summary.precision[k], KINDS[k].noun), f"precision over recall, {KINDS[k].noun}")
            for k in summary.precision
        ),
        "classes": class_table(summary),
        "confusion": confusion(matches, truth),
        "unlabelled": without_truth(truth, results, summary),
        "images": best_and_worst(matches, truth, results, records, summary, config.exif),
        "speed": speed(timing, [kind.noun for kind in branch_kinds(config.branches).values()]),
        "losses": losses(config),
        # as the charts colour them; boxes have the style sheet's own
        "bars": "".join(f" .bar.{k} {{ background: {to_hex(f'C{i}')}; }}" for i, k in enumerate(KINDS) if i),
        "score": f"{summary.score:g}",
        "iou": f"{summary.iou:g}",
    }
    path = Path(folder) / "report.html"
    with whole(path, EvaluationError, "name another folder") as beside:
        beside.write_text(string.Template(TEMPLATE.read_text()).substitute(parts))
    return path


def measured_classes(truth: Truth, results: list[dict], summary: Summary) -> tuple[Truth, list[dict]]:
    """Objects and detections of the classes that `summary` measures."""
    names = truth.class_names()
    chosen = {k for rows in summary.classes.values() for k, name in names.items() if name in rows}
    if chosen >= names.keys():
        return truth, results
    objects = [a for a in truth.dataset["annotations"] if a["category_id"] in chosen]
    return Truth(truth.path, truth.dataset | {"annotations": objects}), [
        r for r in results if r["category_id"] in chosen
    ]


def match_all(truth: Truth, results: list[dict], summary: Summary) -> dict[int, Matches]:
    """Matches of each image; those that were left out of the data count, as missed."""
    found: dict[int, list[dict]] = {i: [] for i in truth.imgs}
    for r in results:
        found[r["image_id"]].append(r)
    return {i: match_image(truth.imgToAnns[i], found[i], summary.score, summary.iou) for i in truth.imgs}


# ---------------------------------------------------------------------------------------------------------
# tables and texts


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An HTML table; cells that aren't text are numbers, to three digits, and none where not measurable."""
    out = ["<table><thead><tr>", *(f"<th>{html.escape(h)}</th>" for h in head), "</tr></thead><tbody>"]
    for row in rows:
        out.append("<tr>")
        for cell in row:
            if isinstance(cell, str):
                out.append(f"<td>{html.escape(cell)}</td>")
            elif isinstance(cell, int):
                out.append(f'<td class="n">{cell:,}</td>')
            else:
                out.append(f'<td class="n">{"–" if not cell >= 0 else f"{cell:.3f}"}</td>')
        out.append("</tr>")
    return "".join([*out, "</tbody></table>"])


def facts(config: Config, index: dict, truth: Truth, results: list[dict], checkpoint: str, summary: Summary) -> str:
    rows: list[list[Any]] = [
        ["detector", f"{config.detector}, {config.img_width} x {config.img_height} pixels"],
        ["checkpoint", Path(checkpoint).name or "–"],
        ["annotations", truth.path.name],
        ["images", len(truth.imgs)],
        ["images left out, counted as missed", len(index["skipped"])],
        ["objects", sum(not a["iscrowd"] for a in truth.dataset["annotations"])],
        ["detections", len(results)],
    ]
    return table(["", ""], rows) + "".join(f"<p>{html.escape(note)}</p>" for note in summary.notes)


def metrics_table(summary: Summary) -> str:
    kinds = list(summary.metrics)
    numbers = {n.name: n for k in kinds for n in KINDS[k].numbers(KINDS[k].limit(summary.max_dets))}
    rows = [[n.meaning, *(summary.metrics[k].get(n.name, -1.0) for k in kinds)] for n in numbers.values()]
    for k, standard in summary.standard.items():
        kind = KINDS[k]
        text = f"AP of {kind.noun} with COCO's {kind.standard} detections a class, beside {summary.max_dets}"
        rows.append([text, *(standard["AP"] if k == other else -1.0 for other in kinds)])
    return table(["COCO's metrics", *(KINDS[k].noun for k in kinds)], rows)


def class_table(summary: Summary) -> str:
    """AP of each class, best first, with a bar each; then what each is worth at its best score, and at the given."""
    kinds = list(summary.classes)
    names = sorted(summary.per_class[kinds[0]], key=lambda n: -np.nan_to_num(summary.per_class[kinds[0]][n], nan=-1))
    out = [
        "<table><thead><tr><th>class</th>",
        *(f"<th>AP, {KINDS[k].noun}</th><th></th>" for k in kinds),
        "</tr></thead>",
    ]
    for n in names:
        out.append(f"<tr><td>{html.escape(n)}</td>")
        for k in kinds:
            ap = summary.per_class[k][n]
            bar = "" if ap != ap else f'<i class="bar {k}" style="width:{max(ap, 0) * 10:.2f}rem"></i>'
            out.append(f'<td class="n">{"–" if ap != ap else f"{ap:.3f}"}</td><td class="track">{bar}</td>')
        out.append("</tr>")
    out.append("</table>")
    at = f"from {summary.score:g}"
    columns = ["precision", "recall", "F1"]
    for k in kinds:
        head = [f"class, {KINDS[k].noun}", "objects", "detections", "AP", "AP50", "AR", "best score", *columns]
        rows = []
        for n in names:
            c = summary.classes[k][n]
            rows.append([n, c.objects, c.detections, c.AP, c.AP50, c.AR, *point(c.best, True), *point(c.at_score)])
        counts = [sum(getattr(c, f) for c in summary.classes[k].values()) for f in ("objects", "detections")]
        for title, name in (("all together (micro)", "micro"), ("mean of the classes (macro)", "macro")):
            p, nan = summary.totals[k][name], float("nan")
            rows.append([title, *counts, nan, nan, nan, *point(p["best"], name == "micro", nan), *point(p["at_score"])])
        out.append(table([*head, *(f"{c} {at}" for c in columns)], rows))
    return "".join(out)


def point(p: OperatingPoint, score: bool = False, instead: float | None = None) -> list[float]:
    """Cells of an operating point; `score`: its score first, else `instead` of it, if that is given."""
    first = [p.score] if score else [] if instead is None else [instead]
    return [*first, p.precision, p.recall, p.f1]


def speed(timing: Timing | None, nouns: Sequence[str]) -> str:
    """Seconds an image, network apart from what comes after it: `nouns` and results."""
    if timing is None or not timing.network:
        return "<p>Not measured: the detections were read from a file.</p>"
    later = np.array(timing.network[1:]) / timing.batch_size
    images = len(timing.pasting)
    rows = [
        ["network, an image (median of the batches after the first)", float(np.median(later)) if len(later) else -1.0],
        [
            f"{' and '.join([*nouns, 'results'])}, an image (median; by threads, beside the network)",
            float(np.median(timing.pasting)),
        ],
        ["first batch, with compiling", timing.network[0]],
        ["everything, with reading the images", timing.total],
        ["everything, an image", timing.total / max(images, 1)],
    ]
    return table([f"batches of {timing.batch_size}", "seconds"], rows)


def losses(config: Config) -> str:
    """The curve of training's losses, or why there is none."""
    log = config.output_dir / "loss_0.log"
    if not log.is_file():
        return f"<p>No {html.escape(log.name)} in the outputs of this experiment.</p>"
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "curve.png"
        try:
            plot_loss_curve(log, target)
        except UserError as e:
            return f"<p>{html.escape(str(e))}</p>"
        return picture(target.read_bytes(), "losses of training")


# ---------------------------------------------------------------------------------------------------------
# charts


def picture(data: bytes, text: str, kind: str = "png") -> str:
    """An image inside the page."""
    code = base64.b64encode(data).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/{kind};base64,{code}">'


def png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def size_chart(summary: Summary) -> bytes:
    figure = Figure(figsize=(6, 2.8), dpi=110, layout="tight")
    axes = figure.subplots()
    names = ["APs", "APm", "APl", "AP"]
    kinds = list(summary.metrics)
    for i, k in enumerate(kinds):
        values = [summary.metrics[k].get(n, -1.0) for n in names]
        place = np.arange(len(names)) + (i - (len(kinds) - 1) / 2) * 0.35
        bars = axes.bar(place, np.maximum(values, 0), 0.33, label=KINDS[k].noun)
        axes.bar_label(bars, ["none" if v < 0 else f"{v:.2f}" for v in values], fontsize=8)
    axes.set_xticks(range(len(names)), ["small", "medium", "large", "all"])
    axes.set(ylabel="AP", ylim=(0, 1.08))
    axes.legend(fontsize=8)
    return png(figure)


def curve_chart(precision: np.ndarray, title: str) -> bytes:
    """Precision over recall, the mean of the classes, at each IoU threshold."""
    figure = Figure(figsize=(5, 3.8), dpi=110, layout="tight")
    axes = figure.subplots()
    recall = np.linspace(0, 1, precision.shape[1])
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, precision.shape[0]))
    measured = precision[:, :, (precision > -1).any((0, 1))]
    for i, shade in enumerate(shades if measured.size else ()):
        mean = measured[i].mean(1)
        axes.plot(recall, mean, color=shade, linewidth=1.4, label=f"IoU {0.5 + 0.05 * i:.2f}: {mean.mean():.3f}")
    axes.set(title=title, xlabel="recall", ylabel="precision, mean of classes", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    if measured.size:
        axes.legend(fontsize=7, title="area under it", title_fontsize=7, loc="lower left")
    return png(figure)


def confusion(matches: dict[int, Matches], truth: Truth) -> str:
    """The confusion matrix as a chart: shares of each class's objects, counts in the cells where there is room."""
    counts: dict[tuple[int | None, int | None], int] = {}
    for m in matches.values():
        for pair in m.pairs:
            counts[pair] = counts.get(pair, 0) + 1
    seen: dict[int, int] = {}
    for pair, n in counts.items():
        for category in {c for c in pair if c is not None}:
            seen[category] = seen.get(category, 0) + n
    if not seen:
        return "<p>No objects, and no detections of that score.</p>"
    shown = sorted(seen, key=lambda c: -seen[c])[:MOST_CLASSES]
    shown.sort()
    places = {c: i for i, c in enumerate(shown)} | {None: len(shown)}
    matrix = np.zeros((len(shown) + 1, len(shown) + 1), int)
    for (a, b), n in counts.items():
        if a in places and b in places:
            matrix[places[a], places[b]] += n
    note = ""
    if len(seen) > len(shown):
        note = f"<p>The {len(shown)} commonest of {len(seen)} classes.</p>"
    known = truth.class_names()
    names = [known.get(c, f"class {c}") for c in shown]
    return note + picture(confusion_chart(matrix, names), "confusion matrix")


def confusion_chart(matrix: np.ndarray, names: list[str]) -> bytes:
    side = min(3.2 + 0.42 * len(names), 12)
    figure = Figure(figsize=(side + 0.6, side), dpi=110, layout="tight")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 9
    axes.set_xticks(range(len(matrix)), [*names, "missed"], rotation=90, fontsize=size)
    axes.set_yticks(range(len(matrix)), [*names, "background"], fontsize=size)
    axes.set(xlabel="detected as", ylabel="object")
    for y, x in zip_equal(*np.nonzero(matrix)):
        ink = "white" if shares[y, x] > 0.5 else "black"
        axes.text(x, y, matrix[y, x], ha="center", va="center", fontsize=size - 1, color=ink)
    return png(figure)


# ---------------------------------------------------------------------------------------------------------
# images


def best_and_worst(
    matches: dict[int, Matches], truth: Truth, results: list[dict], records: Path, summary: Summary, exif: str
) -> str:
    """The images of the highest and of the lowest quality, ground truth beside prediction."""
    found_quality = ((i, matches[i].quality) for i in read_index(records)["image_ids"])
    quality = {i: q for i, q in found_quality if q is not None}
    # of equally good ones, those with more in them
    ranked = sorted(quality, key=lambda i: (-quality[i], -len(matches[i].pairs), i))
    if not ranked:
        return "<p>No image holds an object or a detection of that score.</p>"
    half = min(SHOWN, (len(ranked) + 1) // 2)
    best = ranked[:half]
    worst = sorted(ranked[half:], key=lambda i: (quality[i], -len(matches[i].pairs), i))[:SHOWN]
    pictures = read_pictures(records, truth, best + worst, exif)
    names = truth.class_names()
    out = []
    for title, ids in (("Best", best), ("Worst", worst)):
        out.append(f"<h3>{title}</h3>" if ids else "")
        for i in ids:
            found = [r for r in results if r["image_id"] == i]
            image = pictures[i]
            long = max(image.shape[:2])
            zoom = min(max(1.0, PICTURE_SIDE[0] / long), PICTURE_SIDE[1] / long)
            left = draw_records(image, truth.imgToAnns[i], names, zoom=zoom, categories=truth.cats)
            right = draw_records(image, found, names, summary.score, zoom, truth.cats)
            _, data = cv2.imencode(".jpg", side_by_side(left, right), [cv2.IMWRITE_JPEG_QUALITY, 85])
            name = html.escape(str(truth.imgs[i].get("file_name", i)))
            out.append(f"<figure>{picture(data.tobytes(), name, 'jpeg')}<figcaption>{name}: quality")
            objects = sum(not a["iscrowd"] for a in truth.imgToAnns[i])
            out.append(f" {quality[i]:.2f}, objects: {objects}</figcaption></figure>")
    return "".join(out)


def without_truth(truth: Truth, results: list[dict], summary: Summary) -> str:
    """The detections of highest score whose boxes meet no object of any class: labels that are missing, or mistakes."""
    found: list[dict] = []
    for r in sorted(results, key=lambda r: -r["score"]):
        if r["score"] < summary.score or len(found) == MOST_UNLABELLED:
            break
        objects = truth.imgToAnns[r["image_id"]]
        boxes = [np.array([x["bbox"] for x in rows], np.float64) for rows in ([r], objects)]
        crowds = np.array([bool(a.get("iscrowd")) for a in objects], np.uint8)
        if not objects or rle.iou(*boxes, crowds).max() < UNLABELLED_IOU:
            found.append(r)
    if not found:
        return f"<p>None of at least {summary.score:g}.</p>"
    names = truth.class_names()
    rows = [
        [
            str(truth.imgs[r["image_id"]].get("file_name", r["image_id"])),
            names.get(r["category_id"], f"class {r['category_id']}"),
            float(r["score"]),
            ", ".join(f"{v:.0f}" for v in r["bbox"]),
        ]
        for r in found
    ]
    return table(["image", "class", "score", "x, y, width, height"], rows)


def read_pictures(records: Path, truth: Truth, image_ids: list[int], exif: str) -> dict[int, np.ndarray]:
    """Images (H, W, 3) uint8 BGR of a converted split by id, as evaluation saw them."""
    held = read_index(records)["image_ids"]
    rows = [held.index(i) for i in image_ids]
    data = ds.MindDataset(
        record_files(records),
        columns_list=["image_id", "image"],
        sampler=ds.SubsetSampler(rows),
        num_parallel_workers=1,
    )
    out = {}
    for image_id, image in data.create_tuple_iterator(num_epochs=1, output_numpy=True):
        entry = truth.imgs[int(image_id)]
        out[int(image_id)] = picture_of(image.tobytes(), str(entry.get("file_name", image_id)), entry, exif)
    return out
