"""What a checkpoint says of itself besides weights, as keys of our config: colours, mean, deviation, strides, anchors,
box coders, classes; and parts of a model that aren't here.

mmdetection writes its whole config, as Python text, and the class names (mmcv's and mmengine's `save_checkpoint`);
Detectron2 keeps pixel_mean and pixel_std among the weights (modeling/meta_arch/rcnn.py there).
"""

import ast
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from src.checkpoints.convert.pickles import shown
from src.config import Config
from src.config.backbones import FAMILIES
from src.models.anchors import base_anchors
from src.runtime.newer import zip_equal

__all__ = ["EPSILON", "differing", "said_of_itself", "unlike"]

LONGEST = 1 << 20  # characters of a config that is read
CAFFE_MEAN, CLOSE = (103.53, 116.28, 123.675), 3.0  # ImageNet's means of blue, green, red, and what others differ by
MOST = 64  # values of a list that is read
EPSILON = "backbone.norm_eps"  # made up for in the weights, so never a key that differs

# where mmdetection's configs say what our keys say; heads of 1.x lie beside the backbone
NUMBERS = (
    ("rpn_head.anchor_generator.ratios", "rpn.anchor_generator.ratios"),
    ("rpn_head.anchor_ratios", "rpn.anchor_generator.ratios"),
    ("rpn_head.anchor_generator.scales", "rpn.anchor_generator.scales"),
    ("rpn_head.anchor_scales", "rpn.anchor_generator.scales"),
    ("rpn_head.bbox_coder.target_means", "rpn.bbox_coder.target_means"),
    ("rpn_head.bbox_coder.target_stds", "rpn.bbox_coder.target_stds"),
    ("rpn_head.target_stds", "rpn.bbox_coder.target_stds"),
    ("bbox_head.bbox_coder.target_means", "bbox_head.bbox_coder.target_means"),
    ("bbox_head.bbox_coder.target_stds", "bbox_head.bbox_coder.target_stds"),
    ("bbox_head.target_stds", "bbox_head.bbox_coder.target_stds"),
    ("bbox_roi_extractor.finest_scale", "roi.finest_scale"),
    ("mask_roi_extractor.finest_scale", "mask_roi.finest_scale"),
    ("bbox_roi_extractor.roi_layer.sampling_ratio", "roi.roi_layer.sampling_ratio"),
    ("mask_roi_extractor.roi_layer.sampling_ratio", "mask_roi.roi_layer.sampling_ratio"),
)
OCTAVE = "anchor_generator.octave_base_scale", "anchor_generator.scales_per_octave"
# and what they may say where it is computed here; layers that have weights of their own are told by those, too
BATCH_NORMS = {"BN", "BN2d", "SyncBN", "MMSyncBN", "naiveSyncBN"}
TYPES = {
    "backbone": {"ResNet", "ResNeXt", "SwinTransformer"},
    "backbone.act_cfg": {"GELU"},
    "backbone.norm_cfg": BATCH_NORMS,
    "neck.norm_cfg": BATCH_NORMS,
    "bbox_head.norm_cfg": BATCH_NORMS,
    "mask_head.norm_cfg": BATCH_NORMS,
    "neck": {"FPN"},
    "rpn_head": {"RPNHead"},
    "rpn_head.anchor_generator": {"AnchorGenerator"},
    "rpn_head.bbox_coder": {"DeltaXYWHBBoxCoder"},
    "roi_head": {"StandardRoIHead", "CascadeRoIHead", "DynamicRoIHead", "PISARoIHead"},
    "bbox_roi_extractor": {"SingleRoIExtractor"},
    "mask_roi_extractor": {"SingleRoIExtractor"},
    "bbox_roi_extractor.roi_layer": {"RoIAlign"},
    "mask_roi_extractor.roi_layer": {"RoIAlign"},
    "bbox_head": {"Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead", "SharedFCBBoxHead", "ConvFCBBoxHead"},
    "bbox_head.bbox_coder": {"DeltaXYWHBBoxCoder"},
    "bbox_head.cls_predictor_cfg": {"Linear"},
    "bbox_head.reg_predictor_cfg": {"Linear"},
    "mask_head": {"FCNMaskHead"},
    "mask_head.upsample_cfg": {"deconv"},
    "mask_head.predictor_cfg": {"Conv", "Conv2d"},
}
CONVOLUTIONS = {"Conv", "Conv2d"}
PLAIN: dict[str, tuple] = {
    "backbone.strides": ([1, 2, 2, 2],),
    "backbone.dilations": ([1, 1, 1, 1],),
    "backbone.deep_stem": (False,),
    "backbone.avg_down": (False,),
    "backbone.dcn": (None,),
    "backbone.plugins": (None, []),
    "backbone.qk_scale": (None,),
    "neck.add_extra_convs": (False,),
    "neck.upsample_cfg.mode": ("nearest",),
    "neck.start_level": (0,),
    "rpn_head.anchor_generator.center_offset": (0,),
    "rpn_head.anchor_generator.strides": ([4, 8, 16, 32, 64],),
    "rpn_head.anchor_strides": ([4, 8, 16, 32, 64],),
    "bbox_roi_extractor.featmap_strides": ([4, 8, 16, 32],),
    "mask_roi_extractor.featmap_strides": ([4, 8, 16, 32],),
    "shared_head": (None,),
}
SCORES = {"SeesawLoss"}  # losses whose scores aren't a softmax of the logits


def said_of_itself(meta: Mapping, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Keys of our config with the values that a checkpoint's `meta` and its `arrays` (by plain names) say."""
    said: dict[str, Any] = {}
    written = config_of(meta)
    model = written.get("model")
    said |= geometry(model)
    backbone = model.get("backbone") if isinstance(model, dict) else None
    if isinstance(backbone, dict) and str(backbone.get("type")).startswith("ResNe"):
        said["backbone.stride_in_1x1"] = backbone.get("style", "pytorch") == "caffe"
    for norm in normalisations(written, model):
        mean, std = numbers(norm.get("mean")), numbers(norm.get("std"))
        if mean and std and min(std) > 0:
            rgb = norm.get("to_rgb", True) if norm.get("type") != PREPROCESSOR else norm.get("bgr_to_rgb", False)
            said |= {"to_rgb": rgb is True, "img_mean": mean, "img_std": std}
            break
    if "pixel_mean" in arrays and "pixel_std" in arrays:
        mean, std = numbers(arrays["pixel_mean"].ravel().tolist()), numbers(arrays["pixel_std"].ravel().tolist())
        if mean and std and min(std) > 0:
            said |= {"img_mean": mean, "img_std": std}
            if close(mean, CAFFE_MEAN) != close(mean[::-1], CAFFE_MEAN):
                said["to_rgb"] = not close(mean, CAFFE_MEAN)
    names = class_names(meta)
    if names:
        said["coco_classes"] = ["background", *names]
    return said


def config_of(meta: Mapping) -> dict[str, Any]:
    """mmdetection's config that a checkpoint holds, {} where it has none."""
    text = next((meta[k] for k in ("cfg", "config") if isinstance(meta.get(k), str)), "")
    return assignments(text) if len(text) <= LONGEST else {}


def at(model: Any, place: str) -> list:
    """What a model's config has at `place`, wherever its heads lie: a value each stage of a cascade, [] for none."""
    found = [model]
    for i, part in enumerate(place.split(".")):
        if not i and isinstance(model, dict) and part not in model and isinstance(model.get("roi_head"), dict):
            found = [model["roi_head"]]
        found = [v[part] for v in found if isinstance(v, dict) and part in v]
        if i < place.count("."):
            found = [w for v in found for w in (v[:MOST] if isinstance(v, list) else [v])]
    return found


def geometry(model: Any) -> dict[str, Any]:
    """Numbers of anchors, box coders and RoIs, as keys of ours."""
    said: dict[str, Any] = {}
    for place, key in NUMBERS:
        values = [v for v in at(model, place) if is_numbers(v) and isinstance(v, list) == key.endswith("s")]
        if not values:
            continue
        if key == "bbox_head.bbox_coder.target_stds" and len(values) > 1:
            said["cascade.target_stds"] = values
        else:
            said[key] = values[0]
    base, parts = (next(iter(at(model, f"rpn_head.{name}")), None) for name in OCTAVE)
    if isinstance(base, (int, float)) and is_numbers(base) and type(parts) is int and 0 < parts <= MOST:
        said["rpn.anchor_generator.scales"] = [base * 2 ** (i / parts) for i in range(parts)]
    epsilon = next(iter(at(model, "backbone.norm_cfg.eps")), None)
    if type(epsilon) is float and 0 < epsilon < 1:
        said[EPSILON] = epsilon
    return said


def is_numbers(value: Any) -> bool:
    """Whether this is a finite number, or a list of some."""
    values = value if isinstance(value, list) else [value]
    return 0 < len(values) <= MOST and all(type(v) in (int, float) and abs(v) < 1e6 for v in values)


def unlike(meta: Mapping, arrays: Mapping[str, np.ndarray], config: Config, backbone_only: bool) -> list[str]:
    """What a checkpoint says of its model that isn't computed here, in words: parts that its config names, where their
    names and shapes are those of others, and anchors that aren't `config`'s."""
    model = config_of(meta).get("model")
    told = []
    for place, kinds in TYPES.items():
        parts = [w for v in at(model, place) for w in (v[:MOST] if isinstance(v, list) else [v])]
        names = [v["type"].rpartition(".")[2] for v in parts if isinstance(v, dict) and isinstance(v.get("type"), str)]
        known = kinds | other_norms(place, config)
        told += [f"{place}.type {shown(n)}" for n in dict.fromkeys(names) if n not in known]
    for place, plain in PLAIN.items():
        told += [f"{place} {shown(str(v))}" for v in at(model, place) if v not in plain]
    for place in ("backbone", "neck", "rpn_head", "bbox_head", "mask_head"):
        used = [v.get("type") for v in at(model, f"{place}.conv_cfg") if isinstance(v, dict)]
        told += [f"{place}.conv_cfg.type {shown(str(k))}" for k in used if k not in list(CONVOLUTIONS)]
    told += [f"bbox_head.loss_cls.type {k}" for k in at(model, "bbox_head.loss_cls.type") if k in list(SCORES)]
    if backbone_only:
        return [t for t in told if t.startswith("backbone")]
    return told + other_anchors(arrays, config)


def other_norms(place: str, config: Config) -> set[str]:
    """What a group or layer norm is called there, if `place` says a part's norm, and the config has one there."""
    part, _, last = place.partition(".")
    if last != "norm_cfg":
        return set()
    if part == "backbone" and FAMILIES[config.backbone.type].transformer:
        return {"LN"}
    own = config.neck.fpn if part == "neck" else getattr(config, part, None)
    return {"GN"} if getattr(own, "norm", "") == "group" else set()


def other_anchors(arrays: Mapping[str, np.ndarray], config: Config) -> list[str]:
    """The first level of which a file's base anchors (Detectron2's and maskrcnn-benchmark's buffers) aren't ours."""
    ours = config.rpn.anchor_generator
    for name, theirs in arrays.items():
        found = re.fullmatch(r"(?:.*\.)?cell_anchors\.(\d)", name)
        if not found or theirs.dtype.kind != "f" or theirs.ndim != 2 or theirs.shape[1] != 4:
            continue
        level = int(found[1])
        if level < len(ours.strides):
            here = base_anchors(ours.strides[level], ours.scales, ours.ratios, ours.rounded, ours.legacy)
            sizes, wanted = (sorted((b[:, 2:] - b[:, :2]).tolist()) for b in (theirs.astype(np.float64), here))
            # whole pixels, and whether a box's end is its last one, aside
            if len(sizes) == len(wanted) and np.allclose(sizes, wanted, rtol=0.02, atol=2):
                continue
        return [f"{name}: other anchors than rpn.anchor_generator has (sides {sides(theirs)})"]
    return []


def sides(boxes: np.ndarray) -> str:
    """Widths and heights of some boxes, in words."""
    return ", ".join(f"{w:.4g} x {h:.4g}" for w, h in (boxes[:4, 2:] - boxes[:4, :2]).tolist())


def differing(said: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Those keys of `said` of which the config has another value; class names where there are as many of them."""
    differ = {}
    for key, value in said.items():
        if key == EPSILON:
            continue
        if key == "bbox_head.bbox_coder.target_stds" and config.detector.startswith("cascade"):
            continue
        ours: Any = config
        for part in key.split("."):
            ours = getattr(ours, part)
        if key == "coco_classes" and len(value) != len(ours):
            continue
        if key == "backbone.stride_in_1x1" and not config.backbone.type.startswith("resne"):
            continue
        if key in ("img_mean", "img_std"):
            same = close(value, ours, 0.01)
        elif is_numbers(value) and not isinstance(value, bool):
            same = np.shape(value) == np.shape(ours) and np.allclose(value, ours, rtol=1e-3)
        else:
            same = value == ours
        if not same:
            differ[key] = value
    return differ


PREPROCESSOR = "DetDataPreprocessor"


def normalisations(written: Mapping[str, Any], model: Any) -> Iterator[dict]:
    """The dicts of a config that normalise images: the model's own (3.x), then of pipelines, then by name (2.x)."""
    own = model.get("data_preprocessor", written.get("data_preprocessor")) if isinstance(model, dict) else None
    if isinstance(own, dict):
        yield own | {"type": PREPROCESSOR}
    left = [written.get("test_pipeline"), written.get("data"), written.get("train_pipeline")]
    for _ in range(10_000):
        if not left:
            break
        value = left.pop(0)
        if isinstance(value, dict):
            if value.get("type") == "Normalize":
                yield value
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    if isinstance(written.get("img_norm_cfg"), dict):
        yield written["img_norm_cfg"]


def assignments(text: str) -> dict[str, Any]:
    """Values of a config's assignments, of constants, lists, dicts and calls of dict(); what else there is is None."""
    try:
        statements = ast.parse(text).body
        return {
            s.targets[0].id: literal(s.value)
            for s in statements
            if isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def literal(node: ast.AST) -> Any:
    """The value of an expression; tuples as lists."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [literal(e) for e in node.elts]
    if isinstance(node, ast.Dict):
        return {k.value: literal(v) for k, v in zip_equal(node.keys, node.values) if isinstance(k, ast.Constant)}
    if isinstance(node, ast.Call):
        called_dict = isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args
        return {k.arg: literal(k.value) for k in node.keywords if k.arg} if called_dict else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        value = node.operand.value
        return -value if isinstance(value, (int, float)) else None
    return None


def class_names(meta: Mapping) -> list[str]:
    """The names of the classes, without the background; [] where there are none."""
    inner = meta.get("dataset_meta")
    for place in (inner if isinstance(inner, Mapping) else {}, meta):
        for key in ("CLASSES", "classes"):
            names = place.get(key)
            if isinstance(names, (list, tuple)) and names and all(isinstance(n, str) and n for n in names):
                return list(names) if len(set(names)) == len(names) else []
    return []


def numbers(values: Any) -> list[float]:
    """Three finite numbers, of an image's channels; [] for anything else."""
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        return []
    if not all(type(v) in (int, float) and abs(v) < 1e6 and math.isfinite(v) for v in values):
        return []
    # as they were written, not as float32 has them
    return [round(float(v), 4) for v in values]


def close(first: Any, second: Any, by: float = CLOSE) -> bool:
    return len(first) == len(second) and all(abs(a - b) < by for a, b in zip_equal(first, second))
