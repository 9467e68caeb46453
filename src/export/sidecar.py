"""The JSON beside an exported model: all that a consumer needs to feed it and to read its answer.

Written as `<model file>.json`. Everything that isn't in the graph itself (how an image is prepared, what the classes
are called) and, so that the split form's host code and its Python agree, everything that is.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from src.config import Backbone, BoxCoder, Config, Proposals, RcnnTest
from src.config.backbones import FAMILIES
from src.export.branches import BRANCHES, branches_of, rois
from src.export.branches.base import Output, describe_roi
from src.export.sidecar_schema import MOST_PIXELS, ExportError, check, parse
from src.runtime.errors import shown
from src.runtime.files import open_regular, whole, why_unread

__all__ = [
    "ExportError",
    "check_config",
    "check_file",
    "demand_exportable",
    "checksum",
    "describe",
    "file_entry",
    "is_upright",
    "read",
    "signed",
    "text",
    "upright_path",
    "write",
]

FORMAT, VERSION = "rcnn-mindspore", 2
OLDEST = 1  # which has no checksum, and lacks some keys
# what of a sidecar an evaluation's config must say too
AGREED = (
    *("detector", "backbone", "resize", "canvas", "short_side", "long_side", "resize_rounding", "resize_filter"),
    *("keep_ratio", "to_rgb", "mean", "std", "classes"),
    *(key for branch in BRANCHES.values() for key in (*branch.everywhere, *branch.keys)),
    *("rpn", "roi", "rcnn", "cascade", "box_plus_one"),
)
# what older exports, which don't say so, did
UNSAID_AT_ALL = {"resize": "canvas", "resize_rounding": "nearest", "resize_filter": "bilinear", "box_plus_one": False}
UNSAID = {
    "rpn": {"legacy": "", "grid_strides": False, "size_divisor": 1, "rank_by": "logits_first", "delta_clamp": "upper"},
    "rcnn": {"delta_clamp": "upper", "agnostic_nms": False},
    **{name: {"last_pixel_end": False} for name in ("roi", *(branch.roi for branch in BRANCHES.values()))},
}
UNSIGNED = "0" * 64  # what stands for the checksum's own digits where it is made
KEYS = {
    "canvas": "img_width, img_height",
    "mean": "img_mean",
    "std": "img_std",
    "classes": "coco_classes",
    "rpn": "rpn, test_cfg.rpn",
    "rcnn": "bbox_head, test_cfg.rcnn",
}
for _branch in BRANCHES.values():
    KEYS |= _branch.config_keys


def demand_exportable(config: Config) -> None:
    """Raises ExportError for a config that has what exports don't do: they would find other boxes than eval.py."""
    if config.test_cfg.rcnn.nms.type != "nms":
        raise ExportError(
            f"test_cfg.rcnn.nms.type: {config.test_cfg.rcnn.nms.type} isn't in exports; export with"
            " --test_cfg.rcnn.nms.type nms"
        )
    if config.test_scales != [1.0] or config.test_flip:
        raise ExportError(
            "test_scales and test_flip aren't in exports; export with --test_scales '[1.0]' --test_flip false"
        )
    if config.test_canvas != "config":
        raise ExportError(
            f"test_canvas: {config.test_canvas} isn't in exports, which have one; export with --test_canvas config"
        )


def checksum(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal. Raises ExportError."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as f:
            while block := f.read(1 << 20):
                digest.update(block)
    except OSError as e:
        raise ExportError(f"{path}: can't read the model: {e.strerror}") from None
    return digest.hexdigest()


def file_entry(path: str | Path) -> dict[str, Any]:
    """A file as `files` lists it: name, sha256, bytes. Raises ExportError."""
    path = Path(path)
    return {"name": path.name, "sha256": checksum(path), "bytes": path.stat().st_size}


def check_file(path: str | Path, entry: dict[str, Any]) -> None:
    """Raises ExportError unless the file is, byte for byte, the one that `entry` describes."""
    path = Path(path)
    if why := why_unread(path, "no such model"):
        raise ExportError(f"{path}: {why}")
    if path.stat().st_size != entry["bytes"]:
        raise ExportError(f"{path}: {path.stat().st_size} bytes, its sidecar says {entry['bytes']}; export it again")
    if checksum(path) != entry["sha256"]:
        raise ExportError(f"{path}: not the model that its sidecar describes (checksum); export it again")


def describe(
    config: Config,
    form: str,
    file_format: str,
    files: dict[str, Any],
    batch_size: int = 1,
    reference: dict[str, Any] | None = None,
    sampling_ratio: dict[str, int] | None = None,
    upright: bool = False,
    pair: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The sidecar of an export of `config`'s detector.

    form: "whole" or "split".  file_format: "MINDIR", "AIR" or "ONNX".  files: file_entry's by role.  reference: how
    the file was compared with the detector, and the largest differences.  sampling_ratio: as exported, by the names of
    `rois`, where they differ from the config's.  Raises ExportError for a canvas too large.

    Where config.turns_canvas, an export is two of these. upright: of the model for upright pictures, whose canvas is
    the config's turned.  pair: file_entry of the other orientation's model (of the split form, of its features).
    """
    test, sampling = config.test_cfg, sampling_ratio or {}
    anchors, head, cascade = config.rpn.anchor_generator, config.bbox_head, config.cascade
    branches = branches_of(config)
    width, height = (config.img_height, config.img_width) if upright else (config.img_width, config.img_height)
    if width * height > MOST_PIXELS:
        raise ExportError(
            f"img_width, img_height: a canvas of {width} x {height} can't be exported, of {MOST_PIXELS} pixels at most;"
            " lower them"
        )
    out = {
        "format": FORMAT,
        "version": VERSION,
        "form": form,
        "file_format": file_format,
        "mindspore": importlib.metadata.version("mindspore"),
        "detector": config.detector,
        "backbone": _backbone(config.backbone),
        "files": files,
        "canvas": {"width": width, "height": height},
        "canvas_step": math.lcm(*anchors.strides[: len(config.neck.fpn.in_channels)]),
        "batch_size": batch_size,
        "resize": config.resize,
        **({k: getattr(config, k) for k in ("short_side", "long_side")} if config.resize == "short_side" else {}),
        "resize_rounding": config.resize_rounding,
        "resize_filter": config.resize_filter,
        "keep_ratio": config.keep_ratio,
        "to_rgb": config.to_rgb,
        "mean": list(config.img_mean),
        "std": list(config.img_std),
        "classes": list(config.coco_classes),
        **{k: v for branch in BRANCHES.values() for k, v in branch.describe_everywhere(config).items()},
        "box_plus_one": config.box_plus_one,
        "rpn": {
            "strides": list(anchors.strides),
            "scales": list(anchors.scales),
            "ratios": list(anchors.ratios),
            "rounded": anchors.rounded,
            "legacy": anchors.legacy,
            "grid_strides": anchors.grid_strides,
            "size_divisor": anchors.size_divisor,
            "rank_by": config.rpn.rank_by,
            **_coder(config.rpn.bbox_coder),
            **_proposals(test.rpn),
            **({"sizes": anchors.sizes} if anchors.sizes else {}),
            **({"score_thr": test.rpn.score_thr} if test.rpn.score_thr else {}),
        },
        "roi": describe_roi(config.roi, sampling.get("roi")),
        "rcnn": {
            **_coder(head.bbox_coder),
            "reg_class_agnostic": head.reg_class_agnostic,
            "score_thr": test.rcnn.score_thr,
            "agnostic_nms": test.rcnn.agnostic_nms,
            **_proposals(test.rcnn),
        },
    }
    if config.is_cascade:
        out["rcnn"]["means"] = [list(head.bbox_coder.target_means) for _ in cascade.target_stds]
        out["rcnn"]["stds"] = [list(v) for v in cascade.target_stds]
        out["cascade"] = {
            "stages": len(cascade.target_stds),
            "average_scores": cascade.average_scores,
            **{k: v for branch in BRANCHES.values() for k, v in branch.describe_cascade(config).items()},
        }
    for branch in branches:
        out |= branch.describe(config, sampling.get(branch.roi))
    if form == "whole":
        out |= _interface(config, batch_size, (height, width), [branch.output(out) for branch in branches])
    return out | ({"pair": pair} if pair else {}) | ({"reference": reference} if reference else {})


def _backbone(c: Backbone) -> dict[str, Any]:
    return {name: getattr(c, name) for name in ("type", *FAMILIES[c.type].told)}


def _coder(coder: BoxCoder) -> dict[str, Any]:
    return {
        "means": list(coder.target_means),
        "stds": list(coder.target_stds),
        "max_log": float(abs(np.log(coder.wh_ratio_clip))),
        "delta_clamp": coder.delta_clamp,
    }


def _proposals(c: Proposals | RcnnTest) -> dict[str, Any]:
    """Of test_cfg.rpn, or test_cfg.rcnn, which has the same four."""
    return {
        "nms_pre": c.nms_pre,
        "max_per_img": c.max_per_img,
        "iou_threshold": c.iou_threshold,
        "min_bbox_size": c.min_bbox_size,
    }


def _interface(config: Config, batch_size: int, canvas: tuple[int, int], more: list[Output]) -> dict[str, Any]:
    """Inputs and outputs of the whole graph; canvas: (height, width); more: the branches' outputs."""
    n, d = batch_size, config.test_cfg.rcnn.max_per_img

    def port(name: str, shape: list[int], dtype: str, meaning: str) -> dict[str, Any]:
        return {"name": name, "shape": shape, "dtype": dtype, "meaning": meaning}

    outputs = [
        port("boxes", [n, d, 4], "float32", "x1 y1 x2 y2 in pixels of the original image, best score first"),
        port("scores", [n, d], "float32", "score of each box, 0 where not valid"),
        port("labels", [n, d], "int32", "index into classes, 0 where not valid"),
        port("valid", [n, d], "bool", "whether the row is a detection; the others are zero"),
    ]
    outputs += [port(o.name, [n, d, *o.shape], "float32", o.meaning) for o in more]
    return {
        "inputs": [
            port(
                "image",
                [n, 3, *canvas],
                "float32",
                f"resized ({config.resize_filter}), (value - mean) / std of values 0 to 255, top left on the canvas, "
                "zero elsewhere",
            ),
            port(
                "image_shape",
                [n, 4],
                "float32",
                "height and width that the resized picture takes of the canvas, height and width of the original image",
            ),
        ],
        "outputs": outputs,
    }


def upright_path(path: Path) -> Path:
    """NAME-upright.SUFFIX, the upright pictures' model of NAME.SUFFIX."""
    return path.with_name(f"{path.stem}-upright{path.suffix}")


def is_upright(sidecar: dict[str, Any]) -> bool:
    """Whether the model is the one for upright pictures, of two."""
    return sidecar["resize"] == "short_side" and sidecar["canvas"]["height"] > sidecar["canvas"]["width"]


def text(sidecar: dict[str, Any]) -> str:
    """The file's content, as the current version, signed."""
    return signed(sidecar | {"version": VERSION})


def signed(content: dict[str, Any]) -> str:
    """`content` as JSON, with its checksum: the SHA-256 of the file with zeros for that."""
    unsigned = json.dumps(content | {"checksum": UNSIGNED}, indent=1, allow_nan=False) + "\n"
    digits = hashlib.sha256(unsigned.encode()).hexdigest()
    return unsigned.replace(_mark(UNSIGNED), _mark(digits), 1)


def _mark(digits: str) -> str:
    return f'"checksum": "{digits}"'


def _is_whole(data: bytes, digits: Any) -> bool:
    """Whether a file's bytes are those that its checksum was made of."""
    if not isinstance(digits, str) or len(digits) != len(UNSIGNED) or not digits.isascii():
        return False
    unsigned = data.replace(_mark(digits).encode(), _mark(UNSIGNED).encode(), 1)
    return hashlib.sha256(unsigned).hexdigest() == digits


def write(path: str | Path, sidecar: dict[str, Any]) -> None:
    """Writes the sidecar beside, then renames. Raises ExportError."""
    with whole(Path(path), ExportError, "free space or name another file") as beside:
        beside.write_text(text(sidecar))


def read(path: str | Path) -> dict[str, Any]:
    """The sidecar in file `path`, without its checksum.

    Raises ExportError for one that is missing, damaged, changed, foreign or too old or new, or whose parts don't fit.
    One of the oldest version has no checksum, which is told on standard error, and gets the keys that it lacks.
    """
    sidecar, data = parse(path)
    if not isinstance(sidecar, dict) or sidecar.get("format") != FORMAT:
        raise ExportError(f"{path}: not the sidecar of an exported model")
    version = sidecar.pop("version", None)
    if type(version) is not int or version not in (OLDEST, VERSION):
        raise ExportError(
            f"{path}: version {shown(version)}, this code reads {OLDEST} and {VERSION}; export the model again"
        )
    if version == OLDEST:
        print(f"{path}: of an older export, without a checksum of its own: not checked for damage", file=sys.stderr)
        _complete(sidecar)
        check(path, sidecar, older=True)
        return sidecar | {"version": VERSION}
    if "checksum" not in sidecar:
        raise ExportError(f'{path}: has no "checksum"; export the model again')
    digits = sidecar.pop("checksum")
    check(path, sidecar)
    if not _is_whole(data, digits):
        raise ExportError(
            f"{path}: changed or damaged since its export (checksum); export the model again, with the options that it"
            " is to have"
        )
    return sidecar | {"version": version}


def _complete(sidecar: dict[str, Any]) -> None:
    """Adds what older exports don't say."""
    for name, value in UNSAID_AT_ALL.items():
        sidecar.setdefault(name, value)
    for part, keys in UNSAID.items():
        if isinstance(sidecar.get(part), dict):
            sidecar[part] = keys | sidecar[part]
    strides = sidecar["rpn"].get("strides") if isinstance(sidecar.get("rpn"), dict) else None
    if isinstance(strides, list) and strides:
        sidecar.setdefault("canvas_step", strides[-1])


def check_config(path: str | Path, sidecar: dict[str, Any], config: Config) -> None:
    """Raises ExportError unless `config` describes the detector that was exported; `path` is the sidecar's."""
    demand_exportable(config)
    # as exported: the config's own are compared as trained_sampling_ratio
    sampling: dict[str, int] = {k: sidecar[k]["sampling_ratio"] for k in rois(config) if k in sidecar}
    upright = is_upright(sidecar) and config.turns_canvas
    wanted = describe(config, sidecar["form"], sidecar["file_format"], {}, sampling_ratio=sampling, upright=upright)
    for name in AGREED:
        if not _equal(sidecar.get(name), wanted.get(name)):
            raise ExportError(
                f"{path}: exported with {_difference(name, sidecar.get(name), wanted.get(name))} in the config;"
                f" give the config that it was exported with, or set {KEYS.get(name, name)}"
            )


def _equal(a: Any, b: Any) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(json.loads(json.dumps(b)), sort_keys=True)


def _difference(name: str, ours: Any, wanted: Any) -> str:
    """`name` and the first of its parts that differ, as text."""
    if isinstance(ours, dict) and isinstance(wanted, dict):
        part = next(k for k in [*ours, *wanted] if not _equal(ours.get(k), wanted.get(k)))
        return f"{name}.{part} {ours.get(part)}, not {wanted.get(part)} as"
    if isinstance(ours, list) and isinstance(wanted, list) and len(ours) != len(wanted):
        return f"{len(ours)} {name}, not {len(wanted)} as"
    return f"{name} {ours}, not {wanted} as"
