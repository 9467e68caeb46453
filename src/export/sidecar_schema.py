"""What a sidecar's keys may hold, and what of them must agree, as the C++ program checks it too
(ascend310_infer/src/sidecar.cc).
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

from src.config import DETECTORS
from src.export.branches import BRANCHES, file_lists
from src.export.branches.base import ROI, STRIDES, Branch, Fits
from src.export.sidecar_values import (
    AGAIN,
    Check,
    ExportError,
    demand,
    flag,
    group,
    hexadecimal,
    integer,
    list_of,
    none_or,
    number,
    one_of,
    own_name,
    plain,
    text,
)
from src.runtime.errors import shown
from src.runtime.files import read_regular

__all__ = ["MOST_PIXELS", "ExportError", "check", "parse"]

MOST_BYTES = 8 << 20  # of a sidecar; 65536 classes take a few MiB
# bounds as in src/config/
SIDES, BOXES, INTEGERS, LARGEST = (64, 2**14), (1, 10**5), 2**31 - 1, 3e38
MOST_CLASSES = 2**16
# of a canvas: its largest maps, 256 channels at stride 4 or 64 bytes a pixel, stay below 2 GiB
MOST_PIXELS = 2**25 - 1


def parse(path: str | Path) -> tuple[dict[str, Any], bytes]:
    """The JSON object in file `path`, and its bytes. Raises ExportError, for what is larger than a sidecar too."""
    try:
        data = read_regular(path, MOST_BYTES)
    except OSError as e:
        raise ExportError(f"{path}: can't read the model's sidecar: {e.strerror}; export.py writes both") from None

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ExportError(f"{path}: {shown(twice)} comes twice in an object; {AGAIN}")
        return out

    def constant(name: str) -> None:
        raise ExportError(f"{path}: holds {name}, which is no JSON; {AGAIN}")

    try:
        content = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=constant)
    except ExportError:
        raise
    except RecursionError:
        raise ExportError(f"{path}: nested too deep for a sidecar; {AGAIN}") from None
    except ValueError:
        raise ExportError(f"{path}: not whole JSON; {AGAIN}") from None
    return content, data


FILE = {"name": own_name, "sha256": hexadecimal, "bytes": integer(1, 2**50)}
CODER = {
    "means": list_of(number(-1e3, 1e3), 4),
    "stds": list_of(number(1e-6, 1e3), 4),
    "max_log": number(0, 20.8),  # |ln(1e-9)|, the most that the config allows
    "delta_clamp": one_of("upper", "both"),
}
PROPOSALS = {
    "nms_pre": integer(*BOXES),
    "max_per_img": integer(*BOXES),
    "iou_threshold": number(0, 1),
    "min_bbox_size": number(0, LARGEST),
}
RPN = {
    "strides": list_of(integer(*STRIDES)),
    "scales": list_of(number(1e-3, 1e3)),
    "ratios": list_of(number(1e-3, 1e3)),
    "rounded": flag,
    "legacy": one_of("", "caffe2", "mmdet1"),
    "grid_strides": flag,
    "size_divisor": integer(1, 2**14),
    "rank_by": one_of("logits_first", "logits", "probabilities"),
    "sizes": list_of(list_of(number(1e-3, LARGEST))),
    "score_thr": number(0, 1),
}
# what an export says only where it isn't what it always was: anchors of scales times the stride, and no threshold
RPN_OPTIONAL = ("sizes", "score_thr")
RCNN = {"reg_class_agnostic": flag, "score_thr": number(0, 1), "agnostic_nms": flag}
CASCADE = {"stages": integer(1, 100), "average_scores": one_of("logits", "probabilities")}
PORT = {"name": text, "shape": list_of(integer(1, INTEGERS)), "dtype": text, "meaning": text}
AGREEMENT = {
    "detections": integer(0, INTEGERS),
    "matched": integer(0, INTEGERS),
    "max_error": number(0, LARGEST),
    "max_score_error": number(0, LARGEST),
    **{f"max_{name}_error": number(0, LARGEST) for name in BRANCHES},
}
PLAIN: dict[str, Check] = {
    "format": text,
    "form": one_of("whole", "split"),
    "file_format": one_of("MINDIR", "AIR", "ONNX"),
    "mindspore": text,
    "detector": one_of(*DETECTORS),
    "canvas": group({"width": integer(*SIDES), "height": integer(*SIDES)}),
    "canvas_step": integer(*STRIDES),
    "batch_size": integer(1, 1024),
    "resize": one_of("canvas", "short_side"),
    "resize_rounding": one_of("nearest", "floor", "short_first"),
    "resize_filter": one_of("bilinear", "unrounded", "antialias"),
    "keep_ratio": flag,
    "to_rgb": flag,
    "mean": list_of(number(-LARGEST, LARGEST), 3),
    "std": list_of(number(1e-9, LARGEST), 3),
    "classes": list_of(text),
    "box_plus_one": flag,
    "rpn": group(RPN | CODER | PROPOSALS, RPN_OPTIONAL),
    "roi": ROI,
}
# informative keys that older exports lack
OLDER = ("mindspore", "backbone", "inputs", "outputs")


def check(path: str | Path, content: dict[str, Any], older: bool = False) -> None:
    """Raises ExportError for a key too much or too few, a value out of bounds, and what doesn't fit together.

    older: informative keys may be missing. The sidecar's version and checksum are the caller's.
    """
    where = f"{path}:"
    for name in ("form", "resize", "detector"):
        # which other keys there are depends on these
        demand(name in content, where, f'has no "{name}"')
        PLAIN[name](content[name], f"{where} {name}")
    optional = (*OLDER, "reference", "pair") if older else ("reference", "pair")
    group(_keys(content, where), optional)(content, where)
    _check_together(content, str(path))


def _keys(c: dict[str, Any], where: str) -> dict[str, Check]:
    """The keys of a sidecar of this form, resizing and detector, but for version and checksum."""
    entry, cascade, own = group(FILE), c["detector"].startswith("cascade"), _branches(c)
    lists = {k: list_of(v) for k, v in CODER.items() if k in ("means", "stds")} if cascade else {}
    keys = PLAIN | {"rcnn": group(RCNN | CODER | lists | PROPOSALS), "pair": entry, "backbone": _check_backbone}
    if c["resize"] == "short_side":
        keys |= {k: integer(1, INTEGERS) for k in ("short_side", "long_side")}
    if cascade:
        keys["cascade"] = group(dict(itertools.chain(CASCADE.items(), *(b.cascade.items() for b in BRANCHES.values()))))
    for branch in BRANCHES.values():
        keys |= branch.everywhere
    for branch in own:
        keys |= branch.keys
    if c["form"] == "whole":
        ports = list_of(group(PORT))
        agreement = group(AGREEMENT, AGREEMENT)
        reference = AGREEMENT | {"seed": integer(0, INTEGERS), "adaptive_sampling": agreement}
        return keys | {
            "files": group({"model": entry}),
            "inputs": ports,
            "outputs": ports,
            "reference": group(reference, reference),
        }
    return keys | {
        "files": group({"features": entry} | {k: none_or(entry) for k in ("box", *file_lists(own))}),
        "mindir_version": one_of(1, 3),
        "base_anchors": list_of(list_of(list_of(number(-1e9, 1e9), 4))),
        "reference": group({"file": entry, "tolerance": number(0, 1), "compared": flag}),
    }


def _branches(c: dict[str, Any]) -> list[Branch]:
    """Those of a sidecar's detector."""
    return [BRANCHES[name] for name in DETECTORS[c["detector"]]]


def _check_backbone(value: Any, where: str) -> None:
    group({"type": text, **{k: plain for k in value if k != "type"}} if isinstance(value, dict) else {})(value, where)


def _check_together(c: dict[str, Any], path: str) -> None:
    """What concerns more than one key."""

    def fits(ok: bool, what: str) -> None:
        if not ok:
            raise ExportError(f"{path}: its parts don't fit together: {what}; {AGAIN}")

    split, cascade, width, height = c["form"] == "split", c.get("cascade"), c["canvas"]["width"], c["canvas"]["height"]
    strides, step, own = c["rpn"]["strides"], c["canvas_step"], _branches(c)
    fits(1 < len(c["classes"]) <= MOST_CLASSES, f"{len(c['classes'])} classes, not 2 to {MOST_CLASSES}")
    fits(len(set(c["classes"])) == len(c["classes"]), "two classes of one name")
    fits(all(a <= b for a, b in zip(strides, strides[1:])), "rpn.strides, none of which is less than the one before")
    steps = itertools.accumulate(strides, math.lcm)
    fits(step in steps, f"canvas_step {step}, no least common multiple of the first of rpn.strides")
    fits(width % step == height % step == 0, f"the model's canvas, {width} x {height}, isn't in steps of {step}")
    if width * height > MOST_PIXELS:
        raise ExportError(
            f"{path}: the model's canvas, {width} x {height}, has more than {MOST_PIXELS} pixels; {AGAIN} for a smaller"
            " canvas"
        )
    sizes = c["rpn"].get("sizes", [])
    if sizes:
        fits(len(sizes) == len(strides), "rpn.sizes, one list for each of rpn.strides")
        fits(len({len(level) for level in sizes}) == 1, "rpn.sizes, as many for each level")
    for name in ("roi", *(b.roi for b in own)):
        maps = c[name]["strides"]
        fits(maps == strides[: len(maps)], f"{name}.strides, which aren't the first of rpn.strides")
        sides = c[name].get("level_sides", [1] * (len(maps) - 1))
        fits(len(sides) == len(maps) - 1, f"{name}.level_sides, one for each of its strides but the first")
        fits(sides == sorted(sides), f"{name}.level_sides, which fall")
    turns = c["resize"] == "short_side" and width != height
    if turns and "pair" not in c:
        raise ExportError(f"{path}: names no model for pictures of the other orientation (pair); export both again")
    fits(turns or "pair" not in c, "pair, and one canvas for all pictures")
    stages = cascade["stages"] if cascade else 1
    if cascade:
        fits(len(c["rcnn"]["means"]) == len(c["rcnn"]["stds"]) == stages, "cascade.stages, rcnn.means and rcnn.stds")
    for branch in BRANCHES.values():
        branch.check(c, branch in own, fits)
    if not split:
        _check_ports(c, fits)
        return
    fits(c["file_format"] == "MINDIR", f"form split, and file_format {c['file_format']}")
    fits("reference" in c, "form split, and no reference")
    fits(len(c["files"]["box"]) == stages, "files.box, one for each stage")
    for branch in BRANCHES.values():
        heads = branch.heads(c) if branch in own else 0
        for i, name in enumerate(branch.files):
            # beside the graphs, a branch may write none for its heads
            known = (heads, 0) if i else (heads,)
            fits(len(c["files"].get(name, [])) in known, f"files.{name}, one for each {branch.name} head")
    anchors, each = c["base_anchors"], len(sizes[0] if sizes else c["rpn"]["scales"]) * len(c["rpn"]["ratios"])
    fits(len(anchors) == len(strides), "base_anchors, one list for each of rpn.strides")
    fits(
        {len(level) for level in anchors} == {each},
        f"base_anchors, as many a level as rpn.{'sizes' if sizes else 'scales'} times rpn.ratios",
    )
    boxes = (box for level in anchors for box in level)
    fits(all(x1 <= x2 and y1 <= y2 for x1, y1, x2, y2 in boxes), "base_anchors, each a box x1 y1 x2 y2")


def _check_ports(c: dict[str, Any], fits: Fits) -> None:
    """The whole graph's inputs and outputs, which are what the rest says."""
    n, d, size = c["batch_size"], c["rcnn"]["max_per_img"], [c["canvas"]["height"], c["canvas"]["width"]]
    wanted = {
        "inputs": [("image", [n, 3, *size], "float32"), ("image_shape", [n, 4], "float32")],
        "outputs": [
            ("boxes", [n, d, 4], "float32"),
            ("scores", [n, d], "float32"),
            ("labels", [n, d], "int32"),
            ("valid", [n, d], "bool"),
        ],
    }
    outputs = [b.output(c) for b in _branches(c)]
    wanted["outputs"] += [(o.name, [n, d, *o.shape], "float32") for o in outputs]
    for key, ports in wanted.items():
        if key in c:
            got = [(p["name"], p["shape"], p["dtype"]) for p in c[key]]
            fits(got == ports, f"{key}, which are not of the shapes that the rest says")
