"""What a checkpoint says of itself besides weights, as keys of our config: colours, mean, deviation, strides, classes.

mmdetection writes its whole config, as Python text, and the class names (mmcv's and mmengine's `save_checkpoint`);
Detectron2 keeps pixel_mean and pixel_std among the weights (modeling/meta_arch/rcnn.py there).
"""

import ast
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from src.config import Config

__all__ = ["differing", "said_of_itself"]

LONGEST = 1 << 20  # characters of a config that is read
CAFFE_MEAN, CLOSE = (103.53, 116.28, 123.675), 3.0  # ImageNet's means of blue, green, red, and what others differ by


def said_of_itself(meta: Mapping, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Keys of our config with the values that a checkpoint's `meta` and its `arrays` (by plain names) say."""
    said: dict[str, Any] = {}
    text = next((meta[k] for k in ("cfg", "config") if isinstance(meta.get(k), str)), "")
    written = assignments(text) if len(text) <= LONGEST else {}
    model = written.get("model")
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


def differing(said: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Those keys of `said` of which the config has another value; class names where there are as many of them."""
    differ = {}
    for key, value in said.items():
        ours: Any = config
        for part in key.split("."):
            ours = getattr(ours, part)
        if key == "coco_classes" and len(value) != len(ours):
            continue
        if key == "backbone.stride_in_1x1" and not config.backbone.type.startswith("resne"):
            continue
        same = close(value, ours, 0.01) if key in ("img_mean", "img_std") else value == ours
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
    match node:
        case ast.Constant():
            return node.value
        case ast.List() | ast.Tuple():
            return [literal(e) for e in node.elts]
        case ast.Dict():
            return {
                k.value: literal(v) for k, v in zip(node.keys, node.values, strict=True) if isinstance(k, ast.Constant)
            }
        case ast.Call(func=ast.Name(id="dict"), args=[]):
            return {k.arg: literal(k.value) for k in node.keywords if k.arg}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
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
    return len(first) == len(second) and all(abs(a - b) < by for a, b in zip(first, second, strict=True))
