"""What a sidecar's keys may hold, and what of them must agree, as the C++ program checks it too
(ascend310_infer/src/sidecar.cc).
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from src.runtime.errors import UserError, shown
from src.runtime.files import read_regular

__all__ = ["ExportError", "check", "parse"]

Check = Callable[[Any, str], None]  # of a value, and what it is called; raises ExportError

MOST_BYTES = 8 << 20  # of a sidecar; 65536 classes take a few MiB
# bounds as in src/config/
SIDES, STRIDES, BOXES, INTEGERS, LARGEST = (64, 2**14), (1, 2**13), (1, 10**5), 2**31 - 1, 3e38
MOST_CLASSES = 2**16
MASKS, CASCADES = ("mask_rcnn", "cascade_mask_rcnn"), ("cascade_rcnn", "cascade_mask_rcnn")
AGAIN = "export the model again"


class ExportError(UserError):
    """An exported model or its sidecar that can't be written, read or used; the message names file and remedy."""


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


def demand(ok: bool, where: str, what: str) -> None:
    if not ok:
        raise ExportError(f"{where} {what}; {AGAIN}")


def number(low: float, high: float) -> Check:
    def run(value: Any, where: str) -> None:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        ok = is_number and low <= value <= high and math.isfinite(value)
        demand(ok, where, f"is not a number from {low:g} to {high:g}")

    return run


def integer(low: int, high: int) -> Check:
    def run(value: Any, where: str) -> None:
        ok = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        demand(ok, where, f"is not an integer from {low} to {high}")

    return run


def flag(value: Any, where: str) -> None:
    demand(isinstance(value, bool), where, "is not true or false")


def text(value: Any, where: str) -> None:
    # half of a surrogate pair; \udc80 to \udcff stand for bytes that are no UTF-8
    ok = isinstance(value, str) and not re.search("[\ud800-\udc7f\udd00-\udfff]", value)
    demand(ok, where, "is not a text")


def one_of(*known: Any) -> Check:
    def run(value: Any, where: str) -> None:
        ok = type(value) is type(known[0]) and value in known
        demand(ok, where, f"is not one of {', '.join(map(str, known))}, but {shown(value)}")

    return run


def hexadecimal(value: Any, where: str) -> None:
    ok = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    demand(bool(ok), where, "is not 64 hexadecimal digits")


def own_name(value: Any, where: str) -> None:
    text(value, where)
    ok = value not in ("", ".", "..") and not {"/", "\0"} & set(value)
    demand(ok, where, f"is not the name of a file of the sidecar's own folder, but {shown(value)}")


def list_of(item: Check, count: int = 0) -> Check:
    """count: how many items; 0: one or more."""

    def run(value: Any, where: str) -> None:
        demand(isinstance(value, list), where, "is not a list")
        demand(len(value) == count if count else bool(value), where, f"is not a list of {count or 'one or more'} items")
        for i, v in enumerate(value):
            item(v, f"{where}[{i}]")

    return run


def none_or(item: Check) -> Check:
    """A list that may be empty."""

    def run(value: Any, where: str) -> None:
        if value != []:
            list_of(item)(value, where)

    return run


def group(keys: Mapping[str, Check], optional: Iterable[str] = ()) -> Check:
    """An object with these keys and no others; `optional` ones may be missing."""

    def run(value: Any, where: str) -> None:
        demand(isinstance(value, dict), where, "is not an object")
        missing = next((k for k in keys if k not in value and k not in optional), None)
        demand(missing is None, where, f'has no "{missing}"')
        within = f"{where} " if where.endswith(":") else f"{where}."
        for name, v in value.items():
            demand(name in keys, f"{within}{name}:", "no key of a sidecar")
            keys[name](v, f"{within}{name}")

    return run


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
    "rank_by": one_of("logits_first", "logits", "probabilities"),
}
RCNN = {"reg_class_agnostic": flag, "score_thr": number(0, 1), "agnostic_nms": flag}
ROI = {
    "out_size": integer(1, 128),
    "sampling_ratio": integer(0, 32),
    "trained_sampling_ratio": integer(0, 32),
    "aligned": flag,
    "last_pixel_end": flag,
    "strides": list_of(integer(*STRIDES)),
    "finest_scale": number(1, LARGEST),
}
AVERAGED = one_of("logits", "probabilities")
CASCADE = {
    "stages": integer(1, 100),
    "mask_heads": integer(0, 100),
    "average_scores": AVERAGED,
    "average_masks": AVERAGED,
}
PASTE = {"convention": one_of("torchvision", "grid"), "size": integer(2, 256), "threshold": number(0, 1)}
PORT = {"name": text, "shape": list_of(integer(1, INTEGERS)), "dtype": text, "meaning": text}
AGREEMENT = {
    "detections": integer(0, INTEGERS),
    "matched": integer(0, INTEGERS),
    "max_error": number(0, LARGEST),
    "max_score_error": number(0, LARGEST),
    "max_mask_error": number(0, LARGEST),
}
BACKBONES: dict[str, dict[str, Check]] = {
    "mobilenet_v1": {"width_multiplier": number(0.05, 8)},
    "resnet": {"depth": integer(50, 152), "stride_in_1x1": flag},
    "resnext": {
        "depth": integer(50, 152),
        "stride_in_1x1": flag,
        "groups": integer(1, 256),
        "base_width": integer(1, 256),
    },
}
PLAIN = {
    "format": text,
    "form": one_of("whole", "split"),
    "file_format": one_of("MINDIR", "AIR", "ONNX"),
    "mindspore": text,
    "detector": one_of("mask_rcnn", "faster_rcnn", "cascade_rcnn", "cascade_mask_rcnn"),
    "canvas": group({"width": integer(*SIDES), "height": integer(*SIDES)}),
    "canvas_step": integer(*STRIDES),
    "batch_size": integer(1, 1024),
    "resize": one_of("canvas", "short_side"),
    "resize_rounding": one_of("nearest", "floor", "short_first"),
    "resize_filter": one_of("bilinear", "antialias"),
    "keep_ratio": flag,
    "to_rgb": flag,
    "mean": list_of(number(-LARGEST, LARGEST), 3),
    "std": list_of(number(1e-9, LARGEST), 3),
    "classes": list_of(text),
    "with_mask": flag,
    "box_plus_one": flag,
    "rpn": group(RPN | CODER | PROPOSALS),
    "roi": group(ROI),
}
# informative keys that older exports lack
OLDER = ("mindspore", "backbone", "inputs", "outputs")


def check(path: str | Path, content: dict[str, Any], older: bool = False) -> None:
    """Raises ExportError for a key too much or too few, a value out of bounds, and what doesn't fit together.

    older: informative keys may be missing. The sidecar's version and checksum are the caller's.
    """
    where = f"{path}:"
    for name in ("form", "resize", "detector", "with_mask"):
        # which other keys there are depends on these
        demand(name in content, where, f'has no "{name}"')
        PLAIN[name](content[name], f"{where} {name}")
    if content["with_mask"] != (content["detector"] in MASKS):
        raise ExportError(f"{where} its parts don't fit together: with_mask, and the detector; {AGAIN}")
    optional = (*OLDER, "reference", "pair") if older else ("reference", "pair")
    group(_keys(content, where), optional)(content, where)
    _check_together(content, str(path))


def _keys(c: dict[str, Any], where: str) -> dict[str, Check]:
    """The keys of a sidecar of this form, resizing and detector, but for version and checksum."""
    entry, cascade = group(FILE), c["detector"] in CASCADES
    lists = {k: list_of(v) for k, v in CODER.items() if k in ("means", "stds")} if cascade else {}
    keys = PLAIN | {"rcnn": group(RCNN | CODER | lists | PROPOSALS), "pair": entry, "backbone": _check_backbone}
    if c["resize"] == "short_side":
        keys |= {k: integer(1, INTEGERS) for k in ("short_side", "long_side")}
    if cascade:
        keys["cascade"] = group(CASCADE)
    if c["with_mask"]:
        keys |= {"mask_roi": group(ROI), "mask_paste": group(PASTE)}
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
        "files": group({"features": entry} | {k: none_or(entry) for k in ("box", "mask", "mask_weights")}),
        "mindir_version": one_of(1, 3),
        "base_anchors": list_of(list_of(list_of(number(-1e9, 1e9), 4))),
        "reference": group({"file": entry, "tolerance": number(0, 1), "compared": flag}),
    }


def _check_backbone(value: Any, where: str) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    keys = BACKBONES.get(kind) if isinstance(kind, str) else None
    if keys is None:
        raise ExportError(f"{where}.type is not one of {', '.join(BACKBONES)}; {AGAIN}")
    group({"type": text, **keys})(value, where)


def _check_together(c: dict[str, Any], path: str) -> None:
    """What concerns more than one key."""

    def fits(ok: bool, what: str) -> None:
        if not ok:
            raise ExportError(f"{path}: its parts don't fit together: {what}; {AGAIN}")

    split, cascade, width, height = c["form"] == "split", c.get("cascade"), c["canvas"]["width"], c["canvas"]["height"]
    strides, step = c["rpn"]["strides"], c["canvas_step"]
    fits(1 < len(c["classes"]) <= MOST_CLASSES, f"{len(c['classes'])} classes, not 2 to {MOST_CLASSES}")
    fits(len(set(c["classes"])) == len(c["classes"]), "two classes of one name")
    fits(all(b == 2 * a for a, b in itertools.pairwise(strides)), "rpn.strides, each of which is twice the one before")
    fits(step in strides, f"canvas_step {step}, which is none of rpn.strides")
    fits(width % step == height % step == 0, f"the model's canvas, {width} x {height}, isn't in steps of {step}")
    for name in ("roi", "mask_roi") if c["with_mask"] else ("roi",):
        own = c[name]["strides"]
        fits(own == strides[: len(own)], f"{name}.strides, which aren't the first of rpn.strides")
    if c["with_mask"]:
        fits(c["mask_paste"]["size"] == 2 * c["mask_roi"]["out_size"], "mask_paste.size, and mask_roi.out_size")
    turns = c["resize"] == "short_side" and width != height
    if turns and "pair" not in c:
        raise ExportError(f"{path}: names no model for pictures of the other orientation (pair); export both again")
    fits(turns or "pair" not in c, "pair, and one canvas for all pictures")
    stages, mask_heads = (cascade["stages"], cascade["mask_heads"]) if cascade else (1, int(c["with_mask"]))
    if cascade:
        fits(len(c["rcnn"]["means"]) == len(c["rcnn"]["stds"]) == stages, "cascade.stages, rcnn.means and rcnn.stds")
        fits(mask_heads in ((1, stages) if c["with_mask"] else (0,)), "cascade.mask_heads, stages and with_mask")
    if not split:
        _check_ports(c, fits)
        return
    fits(c["file_format"] == "MINDIR", f"form split, and file_format {c['file_format']}")
    fits("reference" in c, "form split, and no reference")
    fits(len(c["files"]["box"]) == stages, "files.box, one for each stage")
    for name in ("mask", "mask_weights"):
        fits(len(c["files"][name]) == mask_heads, f"files.{name}, one for each mask head")
    anchors, each = c["base_anchors"], len(c["rpn"]["scales"]) * len(c["rpn"]["ratios"])
    fits(len(anchors) == len(strides), "base_anchors, one list for each of rpn.strides")
    fits({len(level) for level in anchors} == {each}, "base_anchors, as many a level as rpn.scales times rpn.ratios")
    boxes = (box for level in anchors for box in level)
    fits(all(x1 <= x2 and y1 <= y2 for x1, y1, x2, y2 in boxes), "base_anchors, each a box x1 y1 x2 y2")


def _check_ports(c: dict[str, Any], fits: Callable[[bool, str], None]) -> None:
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
    if c["with_mask"]:
        wanted["outputs"].append(("masks", [n, d, *[c["mask_paste"]["size"]] * 2], "float32"))
    for key, ports in wanted.items():
        if key in c:
            got = [(p["name"], p["shape"], p["dtype"]) for p in c[key]]
            fits(got == ports, f"{key}, which are not of the shapes that the rest says")
