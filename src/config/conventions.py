"""What each project does in its own way, and its checkpoints have learnt: one record a project.

`conventions: detectron2` in a config stands for the keys of that record; any of them may follow and differ.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from src.config.keys import DETECTORS, ConfigError

__all__ = ["CONVENTIONS", "Conventions", "keys_of", "table"]


def choice(doc: str, *keys: str) -> Any:
    """A choice that stands in `keys`; one of "roi" stands for the branches' too."""
    branches = sorted({branch for names in DETECTORS.values() for branch in names})
    same = [f"{b}_{k}" for k in keys if k.startswith("roi.") for b in branches]
    return dataclasses.field(metadata={"doc": doc, "keys": (*keys, *same)})


@dataclass(frozen=True)
class Conventions:
    """The choices of one project."""

    anchors_rounded: bool = choice("anchors' corners are whole pixels", "rpn.anchor_generator.rounded")
    anchors_legacy: str = choice("anchors of older code, centred on the cell", "rpn.anchor_generator.legacy")
    anchor_grid: bool = choice("anchors lie canvas side // map side apart", "rpn.anchor_generator.grid_strides")
    box_end: bool = choice("boxes are clipped by their last pixel", "box_plus_one")
    delta_clamp: str = choice(
        "dw and dh are clamped at one end or both", "rpn.bbox_coder.delta_clamp", "bbox_head.bbox_coder.delta_clamp"
    )
    rank_by: str = choice("what proposals are ranked by", "rpn.rank_by")
    loss_normaliser: str = choice("what the RPN's losses are divided by", "rpn.loss_normaliser")
    matcher: str = choice(
        "whom a low-quality match trains on", "train_cfg.rpn.assigner.matcher", "train_cfg.rcnn.assigner.matcher"
    )
    roi_shift: bool = choice("RoIAlign is shifted by half a pixel", "roi.roi_layer.aligned")
    roi_samples: int = choice("RoIAlign's samples, 0: adaptive", "roi.roi_layer.sampling_ratio")
    roi_end: bool = choice("a RoI ends at its last pixel", "roi.roi_layer.last_pixel_end")
    level_rule: str = choice("how a RoI's level is rounded", "roi.roi_layer.level_rule")
    mask_targets: str = choice("a mask target's cell is a share, or 0 or 1", "train_cfg.rcnn.mask_targets")
    mask_crop: str = choice("what mask targets are cut from", "train_cfg.rcnn.mask_crop")
    mask_target_box: str = choice("what of the mask is the target", "train_cfg.rcnn.mask_target_box")
    mask_paste: str = choice("how masks are drawn into the image", "test_cfg.rcnn.mask_paste")
    background_last: bool = choice("the background is a classifier's last row; conversion makes it the first")
    stride_in_1x1: bool = choice("where a ResNet stage strides", "backbone.stride_in_1x1")
    to_rgb: bool = choice("channels in order RGB, else BGR", "to_rgb")
    img_mean: tuple[float, ...] = choice("subtracted from the channels", "img_mean")
    img_std: tuple[float, ...] = choice("the channels are divided by it", "img_std")
    resize: str = choice("every picture at one scale, or into one canvas", "resize")
    resize_rounding: str = choice("whole pixels of resized sides", "resize_rounding")
    resize_filter: str = choice("resizing", "resize_filter")


IMAGENET: dict[str, Any] = {"to_rgb": True, "img_mean": (123.675, 116.28, 103.53), "img_std": (58.395, 57.12, 57.375)}
PLAIN_ANCHORS: dict[str, Any] = {"anchors_legacy": "", "anchor_grid": False}
ALIGNED: dict[str, Any] = {
    "roi_shift": True,
    "roi_samples": 0,
    "roi_end": False,
    "mask_target_box": "box",
    "mask_paste": "grid",
}

CONVENTIONS = {
    # torchvision/models/detection, 0.3 to today
    "torchvision": Conventions(
        anchors_rounded=True,
        anchors_legacy="",
        anchor_grid=True,
        box_end=False,
        delta_clamp="upper",
        rank_by="logits_first",
        loss_normaliser="sampled",
        matcher="torchvision",
        roi_shift=False,
        roi_samples=2,
        roi_end=False,
        level_rule="torchvision",
        mask_targets="soft",
        mask_crop="pixels",
        mask_target_box="shifted",
        mask_paste="torchvision",
        background_last=False,
        stride_in_1x1=False,
        resize="short_side",
        resize_rounding="floor",
        resize_filter="unrounded",
        **IMAGENET,
    ),
    # its model zoo of Caffe2's images: BGR, not scaled
    "detectron2": Conventions(
        anchors_rounded=False,
        box_end=False,
        delta_clamp="upper",
        rank_by="logits",
        loss_normaliser="num",
        matcher="torchvision",
        level_rule="detectron2",
        mask_targets="binary",
        mask_crop="box",
        background_last=True,
        stride_in_1x1=True,
        to_rgb=False,
        img_mean=(103.53, 116.28, 123.675),
        img_std=(1.0, 1.0, 1.0),
        resize="short_side",
        resize_rounding="nearest",
        resize_filter="antialias",
        **PLAIN_ANCHORS,
        **ALIGNED,
    ),
    # 2.x and 3.x
    "mmdetection": Conventions(
        anchors_rounded=False,
        box_end=False,
        delta_clamp="both",
        rank_by="probabilities",
        loss_normaliser="mmdet",
        matcher="mmdet",
        level_rule="mmdetection",
        mask_targets="binary",
        mask_crop="pixels",
        background_last=True,
        stride_in_1x1=False,
        resize="short_side",
        resize_rounding="nearest",
        resize_filter="bilinear",
        **PLAIN_ANCHORS,
        **ALIGNED,
        **IMAGENET,
    ),
    # Caffe2's images, boxes by their last pixel
    "maskrcnn_benchmark": Conventions(
        anchors_rounded=False,
        anchors_legacy="caffe2",
        anchor_grid=False,
        box_end=True,
        delta_clamp="upper",
        rank_by="probabilities",
        loss_normaliser="sampled",
        matcher="torchvision",
        roi_shift=False,
        roi_samples=2,
        roi_end=True,
        level_rule="maskrcnn_benchmark",
        mask_targets="binary",
        mask_crop="box",
        mask_target_box="last_pixel",
        mask_paste="torchvision",
        background_last=False,
        stride_in_1x1=True,
        to_rgb=False,
        img_mean=(102.9801, 115.9465, 122.7717),
        img_std=(1.0, 1.0, 1.0),
        resize="short_side",
        resize_rounding="short_first",
        resize_filter="antialias",
    ),
    # and mmdetection 1.x, which it follows
    "mindspore_zoo": Conventions(
        anchors_rounded=False,
        anchors_legacy="mmdet1",
        anchor_grid=False,
        box_end=True,
        delta_clamp="both",
        rank_by="probabilities",
        loss_normaliser="num",
        matcher="mmdet",
        roi_shift=False,
        roi_samples=2,
        roi_end=True,
        level_rule="mmdetection",
        mask_targets="binary",
        mask_crop="box",
        mask_target_box="whole_pixels",
        # it resizes a mask to its box in whole pixels; this is the nearer of the two
        mask_paste="torchvision",
        background_last=False,
        stride_in_1x1=False,
        resize="canvas",
        resize_rounding="nearest",
        resize_filter="bilinear",
        **IMAGENET,
    ),
}


def keys_of(name: str, where: str) -> dict[str, Any]:
    """The keys, by dotted name, that the record of `name` stands for. Raises ConfigError."""
    if name not in CONVENTIONS:
        raise ConfigError(f"{where}: {name!r} is not one of {', '.join(CONVENTIONS)}")
    record = CONVENTIONS[name]
    out: dict[str, Any] = {}
    for f in dataclasses.fields(record):
        value = getattr(record, f.name)
        out |= dict.fromkeys(f.metadata["keys"], list(value) if isinstance(value, tuple) else value)
    return out


def table() -> str:
    """Every choice as Markdown: what it is, its keys, and what each project does."""
    lines = [f"| choice | keys | {' | '.join(CONVENTIONS)} |", f"| {' | '.join(['---'] * (2 + len(CONVENTIONS)))} |"]
    for f in dataclasses.fields(Conventions):
        values = (getattr(record, f.name) for record in CONVENTIONS.values())
        told = (", ".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values)
        lines.append(
            f"| {f.metadata['doc']} | {', '.join(f'`{k}`' for k in f.metadata['keys'])} | {' | '.join(told)} |"
        )
    return "\n".join(lines)
