"""Pictures of detections and ground truth, and the curve of the losses. Arrays in, arrays or files out."""

import colorsys
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from pycocotools import mask as rle

from src.runtime.errors import UserError
from src.runtime.files import read_regular

__all__ = [
    "VisualizeError",
    "draw_detections",
    "draw_ground_truth",
    "draw_records",
    "plot_loss_curve",
    "read_loss_log",
    "side_by_side",
]

FONT = cv2.FONT_HERSHEY_SIMPLEX
FILL = 0.45  # opacity of masks


class VisualizeError(UserError):
    """A loss log that can't be read or a picture that can't be written; the message names the file."""


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray | None,
    labels: np.ndarray,
    masks: Sequence | np.ndarray | None = None,
    class_names: Sequence[str] | Mapping[int, str] = (),
    score_thr: float = 0.5,
    zoom: float = 1.0,
) -> np.ndarray:
    """A copy of `image` (H, W, 3) uint8 BGR, enlarged (or reduced) `zoom` times, with its detections.

    boxes (N, 4) x1 y1 x2 y2 in the image's pixels, finite, which may leave it; scores (N,), or None: no numbers,
    everything is drawn; labels (N,) int, named by class_names[label] where it has one; masks: N RLEs ({"size",
    "counts"}), (N, H, W) bitmaps, or None. Detections under score_thr are left out. A class has its hue, its instances
    have shades of it.
    """
    boxes, labels = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(labels, np.int64)
    # OpenCV takes no coordinates past its integers
    far = 2 * max(image.shape[:2])
    boxes = np.clip(boxes, -far, far)
    order = range(len(boxes)) if scores is None else np.flatnonzero(np.asarray(scores) >= score_thr)
    # small ones over large ones
    order = sorted(order, key=lambda i: -np.prod(np.maximum(boxes[i, 2:] - boxes[i, :2], 0)))
    if zoom != 1:
        smooth = cv2.INTER_CUBIC if zoom > 1 else cv2.INTER_AREA
        size = [max(1, round(v * zoom)) for v in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=smooth)
    canvas = np.ascontiguousarray(image).copy()
    line = max(1, round(max(canvas.shape[:2]) / 500))
    seen: dict[int, int] = {}
    colours = {}
    for i in order:
        label = int(labels[i])
        colours[i] = colour(label, seen.setdefault(label, 0))
        seen[label] += 1
        if masks is not None and masks[i] is not None:
            draw_mask(canvas, masks[i], colours[i], line)
    for i in order:
        x1, y1, x2, y2 = (round(float(v) * zoom) for v in boxes[i])
        cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), colours[i], line, cv2.LINE_AA)
    taken: list[tuple[int, int, int, int]] = []
    for i in order:
        text = name_of(class_names, int(labels[i]))
        draw_label(canvas, text if scores is None else f"{text} {scores[i]:.2f}", boxes[i] * zoom, colours[i], taken)
    return canvas


def draw_ground_truth(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    masks: Sequence | np.ndarray | None = None,
    class_names: Sequence[str] | Mapping[int, str] = (),
    zoom: float = 1.0,
) -> np.ndarray:
    """As draw_detections, of annotated objects."""
    return draw_detections(image, boxes, None, labels, masks, class_names, zoom=zoom)


def draw_records(
    image: np.ndarray,
    records: Sequence[dict],
    names: Mapping[int, str],
    score_thr: float = 0.5,
    zoom: float = 1.0,
) -> np.ndarray:
    """As draw_detections, of one image's COCO results, or annotations (polygons or RLE; without scores).

    names: category id to class name; crowd regions are called so.
    """
    height, width = image.shape[:2]
    boxes = np.array([r["bbox"] for r in records], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = [to_rle(r.get("segmentation"), height, width) for r in records]
    labels = np.array([r["category_id"] for r in records], np.int64)
    scores = np.array([r["score"] for r in records]) if records and "score" in records[0] else None
    if any(r.get("iscrowd") for r in records):
        # a crowd is drawn as one more class of its own, below zero, also that of category 0
        names = dict(names) | {-1 - k: f"{v} crowd" for k, v in names.items()}
        labels = np.array([-1 - c if r.get("iscrowd") else c for c, r in zip(labels, records, strict=True)])
    return draw_detections(image, boxes, scores, labels, masks, names, score_thr, zoom)


def side_by_side(
    left: np.ndarray, right: np.ndarray, captions: tuple[str, str] = ("ground truth", "prediction")
) -> np.ndarray:
    """Two pictures (H, W, 3) uint8 BGR of the same height next to each other, a caption over each."""
    scale, thickness = text_size(left)
    scale *= 1.2
    (_, high), low = cv2.getTextSize("Ag", FONT, scale, thickness)
    bar, gap = high + low + max(8, high), max(4, left.shape[1] // 100)
    columns = []
    for picture, caption in zip((left, right), captions, strict=True):
        head = np.full((bar, picture.shape[1], 3), 255, np.uint8)
        (wide, _), _ = cv2.getTextSize(caption, FONT, scale, thickness)
        place = (max((picture.shape[1] - wide) // 2, 2), (bar + high) // 2)
        cv2.putText(head, caption, place, FONT, scale, (40, 40, 40), thickness, cv2.LINE_AA)
        columns.append(np.vstack([head, picture]))
    return np.hstack([columns[0], np.full((columns[0].shape[0], gap, 3), 255, np.uint8), columns[1]])


# ---------------------------------------------------------------------------------------------------------
# parts of a picture


def colour(label: int, instance: int = 0) -> tuple[int, int, int]:
    """BGR: hues of consecutive labels lie far apart; instances differ in lightness. Grey for crowds, below zero."""
    if label < 0:
        return 150, 150, 150
    hue = (0.02 + label * 0.6180339887) % 1
    lightness = (0.55, 0.42, 0.68)[instance % 3]
    r, g, b = colorsys.hls_to_rgb(hue, lightness, 0.85)
    return round(b * 255), round(g * 255), round(r * 255)


def name_of(class_names: Sequence[str] | Mapping[int, str], label: int) -> str:
    known = label in class_names if isinstance(class_names, Mapping) else 0 <= label < len(class_names)
    return class_names[label] if known else f"class {label}"


def to_rle(segmentation: list | dict | None, height: int, width: int) -> dict | None:
    """COCO polygons, uncompressed or compressed RLE, as compressed RLE; None for none."""
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        # COCO holds stray polygons of one or two points, which pycocotools would take for boxes
        whole = [p for p in segmentation if len(p) >= 6]
        return rle.merge(rle.frPyObjects(whole, height, width)) if whole else None
    return rle.frPyObjects(segmentation, height, width) if isinstance(segmentation["counts"], list) else segmentation


def draw_mask(canvas: np.ndarray, mask: dict | np.ndarray, shade: tuple[int, int, int], line: int) -> None:
    """Fills a mask (RLE or bitmap, of the canvas's proportions) translucently and outlines it, in place."""
    bitmap = rle.decode(mask) if isinstance(mask, dict) else (np.asarray(mask) > 0).astype(np.uint8)
    height, width = canvas.shape[:2]
    if bitmap.shape != (height, width):
        if bitmap.shape[0] > height or bitmap.shape[1] > width:
            # pycocotools' bitmaps lie in memory by columns
            bitmap = cv2.resize(bitmap.T, (height, width), interpolation=cv2.INTER_NEAREST).T
        else:
            smooth = cv2.resize(bitmap.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
            bitmap = (smooth > 0.5).astype(np.uint8)
    bitmap = np.ascontiguousarray(bitmap)
    x, y, w, h = cv2.boundingRect(bitmap)
    if not w:
        return
    part = canvas[y : y + h, x : x + w]
    mixed = cv2.addWeighted(part, 1 - FILL, np.full_like(part, shade), FILL, 0)
    cv2.copyTo(mixed, bitmap[y : y + h, x : x + w], part)
    outlines, _ = cv2.findContours(bitmap, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, outlines, -1, tuple(int(v * 0.65) for v in shade), line, cv2.LINE_AA)


def text_size(canvas: np.ndarray) -> tuple[float, int]:
    """Font scale and thickness for a picture of this size."""
    scale = float(np.clip(max(canvas.shape[:2]) / 1500, 0.33, 2.5))
    return scale, max(1, round(scale * 1.4))


def draw_label(
    canvas: np.ndarray, text: str, box: np.ndarray, shade: tuple[int, int, int], taken: list[tuple[int, int, int, int]]
) -> None:
    """Writes `text` on a plate at `box` (pixels of the canvas), where it covers none of the plates `taken`."""
    height, width = canvas.shape[:2]
    scale, thickness = text_size(canvas)
    (wide, high), low = cv2.getTextSize(text, FONT, scale, thickness)
    edge = max(2, high // 4)
    w, h = wide + 2 * edge, high + low + edge
    x1, y1, x2, y2 = (int(round(float(v))) for v in box)
    # above the box, inside it, at its other corners, below it
    places = [(x1, y1 - h), (x1, y1), (x2 - w, y1 - h), (x2 - w, y1), (x1, y2 - h), (x2 - w, y2 - h), (x1, y2)]
    places = [(min(max(x, 0), max(width - w, 0)), min(max(y, 0), max(height - h, 0))) for x, y in places]

    def covers(place: tuple[int, int]) -> int:
        x, y = place
        return sum(
            max(0, min(x + w, tx + tw) - max(x, tx)) * max(0, min(y + h, ty + th) - max(y, ty))
            for tx, ty, tw, th in taken
        )

    x, y = min(places, key=covers)
    taken.append((x, y, w, h))
    cv2.rectangle(canvas, (x, y), (x + w - 1, y + h - 1), shade, cv2.FILLED)
    bright = shade[0] * 0.114 + shade[1] * 0.587 + shade[2] * 0.299
    ink = (0, 0, 0) if bright > 110 else (255, 255, 255)
    cv2.putText(canvas, text, (x + edge, y + high + edge // 2 + 1), FONT, scale, ink, thickness, cv2.LINE_AA)


# ---------------------------------------------------------------------------------------------------------
# losses


def read_loss_log(path: str | Path) -> list[dict]:
    """loss_{rank}.log as a dictionary a line: epoch, step, and each loss by name. Raises VisualizeError.

    A last line that training is still writing, or was killed in, is left out.
    """
    try:
        text = read_regular(path).decode()
    except OSError as e:
        raise VisualizeError(f"{path}: can't read the loss log: {e.strerror}") from None
    except UnicodeDecodeError:
        raise VisualizeError(f"{path}: not text, so no loss log") from None
    rows = []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        head = re.match(r"epoch: (\d+) step: (\d+), ", line)
        try:
            losses = dict(part.split(": ") for part in line[head.end() :].split(", ")) if head else {}
            values = {name: float(value) for name, value in losses.items()}
        except ValueError:
            values = {}
        if values:
            rows.append({"epoch": int(head[1]), "step": int(head[2]), **values})
        elif head or (rows and line.strip()):
            raise VisualizeError(f"{path}, line {number}: damaged; remove the line: {line[:60]!r}")
    if not rows:
        raise VisualizeError(f"{path}: no line of losses (epoch: 1 step: 1, total_loss: ...)")
    return rows


def plot_loss_curve(
    losses: str | Path | Sequence[dict],
    out: str | Path,
    ap: Mapping[float, Mapping[str, float]] | None = None,
    validation: Mapping[int, float | None] | None = None,
) -> None:
    """Total and component losses over the steps, log scale, smoothed over their scatter, as a PNG at `out`.

    losses: a loss_{rank}.log, or dictionaries as read_loss_log returns; a step is counted within its epoch. ap: epochs
    done (1.0: after the first) to metrics by name ({"bbox AP": 0.31}), drawn below. validation: total loss on the
    validation split, by epoch. Raises VisualizeError.
    """
    rows = list(losses) if not isinstance(losses, (str, Path)) else read_loss_log(losses)
    if not rows:
        raise VisualizeError(f"{out}: no losses to draw")
    steps, epoch_ends = running_steps(rows)
    total = {"total_loss": 0, "rpn_loss": 1, "rcnn_loss": 1}
    names = sorted((n for n in rows[0] if n.endswith("_loss")), key=lambda n: total.get(n, 2))
    # the stages' sums say nothing beside their parts
    names = [n for n in names if n not in ("rpn_loss", "rcnn_loss") or len(names) <= 3]
    figure = Figure(figsize=(9, 7.5 if ap else 5), dpi=120, layout="tight")
    axes = figure.subplots(2 if ap else 1, 1, squeeze=False, height_ratios=[2.2, 1] if ap else [1])
    upper = axes[0, 0]
    shades = ["#222222", *matplotlib.colormaps["tab10"].colors]
    for name, shade in zip(names, shades, strict=False):
        values = np.array([r.get(name, np.nan) for r in rows], float)
        values[values <= 0] = np.nan  # no place on a log scale
        strong = name == "total_loss"
        upper.plot(steps, values, color=shade, alpha=0.18, linewidth=0.7)
        upper.plot(
            steps, smooth(values), color=shade, linewidth=2.2 if strong else 1.4, label=name.removesuffix("_loss")
        )
    upper.set(yscale="log", xlabel="step", ylabel="loss (log scale)", xlim=(0, max(steps[-1], 1)))
    shown = np.concatenate([smooth(np.array([r.get(n, np.nan) for r in rows], float)) for n in names])
    shown = shown[np.isfinite(shown) & (shown > 0)]
    if len(shown):
        # single steps without a positive box or mask would stretch the scale to nothing
        upper.set_ylim(shown.min() / 2, shown.max() * 2)
    points = [(epoch_ends[e - 1], v) for e, v in sorted((validation or {}).items()) if v and e <= len(epoch_ends)]
    if points:
        upper.plot(*zip(*points, strict=True), color=shades[0], marker="o", linestyle="--", label="total, validation")
    upper.grid(True, which="major", alpha=0.3)
    upper.legend(ncols=3, fontsize=9, framealpha=0.9)
    if len(epoch_ends) > 1:
        above = upper.secondary_xaxis("top")
        every = max(1, round(len(epoch_ends) / 12))
        above.set_xticks(
            epoch_ends[every - 1 :: every], [str(i + 1) for i in range(len(epoch_ends))][every - 1 :: every]
        )
        above.set_xlabel("epochs done")
    if ap:
        lower = axes[1, 0]
        epochs = sorted(ap)
        for kind in sorted({k for e in epochs for k in ap[e]}):
            points = [(e, ap[e][kind]) for e in epochs if kind in ap[e]]
            lower.plot(*zip(*points, strict=True), marker="o", label=kind)
        lower.set(xlabel="epochs done", ylabel="AP", ylim=(0, 1), xlim=(0, max(len(epoch_ends), epochs[-1])))
        lower.grid(True, alpha=0.3)
        lower.legend(fontsize=9, loc="upper left")
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out)
    except OSError as e:
        raise VisualizeError(f"{out}: can't write the picture: {e.strerror}") from None


def running_steps(rows: Sequence[dict]) -> tuple[np.ndarray, list[float]]:
    """Steps since the start (rows,), and the step at the end of each whole epoch, from steps counted within epochs."""
    steps, ends, before, last = [], [], 0, (rows[0].get("epoch", 1), 0)
    for i, row in enumerate(rows):
        epoch, step = row.get("epoch", 1), row.get("step", i + 1)
        if epoch != last[0]:
            ends.append(before + last[1])
            # a log whose steps run through isn't counted twice
            before = before + last[1] if step <= last[1] else 0
        last = (epoch, step)
        steps.append(before + step)
    # a log of a run that goes on, or was stopped, ends within an epoch
    if not ends or steps[-1] - ends[-1] >= max(np.diff([0, *ends])):
        ends.append(steps[-1])
    return np.array(steps, float), [float(end) for end in ends]


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean over about a fortieth of the points, on either side; points that aren't finite are left out."""
    reach = max(1, len(values) // 40)
    kernel = np.ones(2 * reach + 1)
    good = np.isfinite(values)
    if not good.any():
        return values
    count = np.convolve(good, kernel, "full")[reach : reach + len(values)]
    total = np.convolve(np.where(good, values, 0), kernel, "full")[reach : reach + len(values)]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
