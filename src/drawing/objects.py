"""Detections and ground truth drawn on pictures. Arrays in, arrays out."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
from pycocotools import mask as rle

from src.runtime.newer import zip_equal

__all__ = [
    "Layer",
    "draw_detections",
    "draw_ground_truth",
    "mask_layer",
    "side_by_side",
]

Shade = tuple[int, int, int]
# layer(canvas, i, shade, line, zoom) paints what object i has beside its box, in place: in BGR `shade`, with lines of
# `line` pixels, on a picture that was enlarged `zoom` times
Layer = Callable[[np.ndarray, int, Shade, int, float], None]

FONT = cv2.FONT_HERSHEY_SIMPLEX
FILL = 0.45  # opacity of masks


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray | None,
    labels: np.ndarray,
    layers: Sequence[Layer] = (),
    class_names: Sequence[str] | Mapping[int, str] = (),
    score_thr: float = 0.5,
    zoom: float = 1.0,
) -> np.ndarray:
    """A copy of `image` (H, W, 3) uint8 BGR, enlarged (or reduced) `zoom` times, with its detections.

    boxes (N, 4) x1 y1 x2 y2 in the image's pixels, finite, which may leave it; scores (N,), or None: no numbers,
    everything is drawn; labels (N,) int, named by class_names[label] where it has one; layers: what is painted below
    the boxes, one after the other. Detections under score_thr are left out. A class has its hue, its instances have
    shades of it.
    """
    boxes, labels = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(labels, np.int64)
    # OpenCV takes no coordinates past its integers
    far = 2 * max(image.shape[:2])
    boxes = np.clip(boxes, -far, far)
    shown = np.arange(len(boxes)) if scores is None else np.flatnonzero(np.asarray(scores) >= score_thr)
    # small ones over large ones
    order = sorted(shown.tolist(), key=lambda i: -np.prod(np.maximum(boxes[i, 2:] - boxes[i, :2], 0)))
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
    for layer in layers:
        for i in order:
            layer(canvas, i, colours[i], line, zoom)
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
    layers: Sequence[Layer] = (),
    class_names: Sequence[str] | Mapping[int, str] = (),
    zoom: float = 1.0,
) -> np.ndarray:
    """As draw_detections, of annotated objects."""
    return draw_detections(image, boxes, None, labels, layers, class_names, zoom=zoom)


def side_by_side(
    left: np.ndarray, right: np.ndarray, captions: tuple[str, str] = ("ground truth", "prediction")
) -> np.ndarray:
    """Two pictures (H, W, 3) uint8 BGR of the same height next to each other, a caption over each."""
    scale, thickness = text_size(left)
    scale *= 1.2
    (_, high), low = cv2.getTextSize("Ag", FONT, scale, thickness)
    bar, gap = high + low + max(8, high), max(4, left.shape[1] // 100)
    columns = []
    for picture, caption in zip_equal((left, right), captions):
        head = np.full((bar, picture.shape[1], 3), 255, np.uint8)
        (wide, _), _ = cv2.getTextSize(caption, FONT, scale, thickness)
        place = (max((picture.shape[1] - wide) // 2, 2), (bar + high) // 2)
        cv2.putText(head, caption, place, FONT, scale, (40, 40, 40), thickness, cv2.LINE_AA)
        columns.append(np.vstack([head, picture]))
    return np.hstack([columns[0], np.full((columns[0].shape[0], gap, 3), 255, np.uint8), columns[1]])


# ---------------------------------------------------------------------------------------------------------
# parts of a picture


def colour(label: int, instance: int = 0) -> Shade:
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


def mask_layer(masks: Sequence | np.ndarray) -> Layer:
    """The layer of N masks: RLEs ({"size", "counts"}) or None, or (N, H, W) bitmaps."""

    def paint(canvas: np.ndarray, i: int, shade: Shade, line: int, zoom: float) -> None:
        if masks[i] is not None:
            draw_mask(canvas, masks[i], shade, line)

    return paint


def draw_mask(canvas: np.ndarray, mask: dict | np.ndarray, shade: Shade, line: int) -> None:
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
    canvas: np.ndarray, text: str, box: np.ndarray, shade: Shade, taken: list[tuple[int, int, int, int]]
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
