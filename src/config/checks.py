"""What of a configuration concerns more than one key: contradictions that could only fail later."""

import os
from collections.abc import Callable, Sequence

from src.config.backbones import FAMILIES, backbone_channels, backbone_strides
from src.config.keys import Config, ConfigError
from src.runtime.errors import shown

__all__ = ["check_together", "doubling", "level_strides"]


def level_strides(c: Config) -> list[int]:
    """Strides of the neck's outputs: the backbone's, then each twice the one before."""
    strides = backbone_strides(c.backbone)
    while strides and len(strides) < c.neck.fpn.num_outs:
        strides.append(2 * strides[-1])
    return strides


def doubling(strides: Sequence[int]) -> list[int]:
    """The first of these strides, as far as each is twice the one before: RoIs choose among levels by factors of 2."""
    end = next((i for i in range(1, len(strides)) if strides[i] != 2 * strides[i - 1]), len(strides))
    return list(strides[:end])


def check_together(c: Config, source: str) -> None:
    """Checks that concern more than one key."""

    def demand(ok: bool, message: str) -> None:
        if not ok:
            raise ConfigError(f"{source}: {message}")

    checks = (_check_classes, _check_backbone, _check_network, _check_images, _check_samplers, _check_views)
    for check in (*checks, _check_places):
        check(c, demand)


def _check_classes(c: Config, demand: Callable[[bool, str], None]) -> None:
    # an empty list is filled from the data, and num_classes with it
    demand(
        not c.coco_classes or c.num_classes == len(c.coco_classes),
        f"num_classes is {c.num_classes} but coco_classes names {len(c.coco_classes)} (the background included); give"
        " both, or coco_classes: auto, which reads them from the data",
    )
    demand(len(set(c.coco_classes)) == len(c.coco_classes), "coco_classes names a class twice")


def _check_backbone(c: Config, demand: Callable[[bool, str], None]) -> None:
    """The backbone, and that the neck and the anchors are of its outputs."""
    fpn, bb = c.neck.fpn, c.backbone
    demand(
        len(fpn.in_channels) == len(bb.out_indices),
        f"neck.fpn.in_channels has {len(fpn.in_channels)} entries, backbone.out_indices {len(bb.out_indices)}",
    )
    demand(len(bb.out_indices) > 0, "backbone.out_indices is empty")
    outs, family = len(bb.out_indices), FAMILIES[bb.type]
    first = bb.out_indices[0]
    demand(bb.out_indices == list(range(first, first + outs)), "backbone.out_indices must rise one by one")
    most = len(family.channels)
    demand(bb.num_stages <= most, f"backbone.num_stages is {bb.num_stages}, but {bb.type} has {most}")
    demand(bb.frozen_stages <= most, f"backbone.frozen_stages is {bb.frozen_stages}, but {bb.type} has {most} stages")
    demand(bb.out_indices[-1] < bb.num_stages, "backbone.out_indices names a stage past backbone.num_stages")
    for kind, other in FAMILIES.items():
        for name, plain in other.options.items():
            demand(
                name in family.options or getattr(bb, name) == plain,
                f"backbone.{name} is {kind}'s, backbone.type {bb.type}; leave it at {plain} or set the type",
            )
    demand(
        fpn.in_channels == backbone_channels(bb),
        f"neck.fpn.in_channels is {fpn.in_channels}, but the backbone's outputs have {backbone_channels(bb)} channels",
    )
    demand(bb.norm != "group" or bb.type.startswith("resne"), f"backbone.norm: group isn't here for {bb.type}")
    if family.transformer:
        demand(
            bb.norm == "batch", f"backbone.norm: {bb.norm} isn't here for {bb.type}, which has layer norm; leave it out"
        )
        demand(
            bb.frozen_stages == -1,
            f"backbone.frozen_stages isn't here for {bb.type}; set it to -1, or freeze: [backbone]",
        )
        demand(bb.out_indices == [0, 1, 2, 3], f"backbone.out_indices must be [0, 1, 2, 3] for {bb.type}")
    demand(
        not (family.one_canvas and c.turns_canvas),
        f"resize: {c.resize} turns the canvas for upright pictures, and {bb.type}'s positions are those of one; set"
        " resize: canvas, or img_width and img_height alike",
    )
    demand(
        c.test_canvas == "config" or not (family.one_canvas or c.test_flip or c.test_scales != [1.0]),
        f"test_canvas: {c.test_canvas} isn't here for {bb.type if family.one_canvas else 'test_scales and test_flip'};"
        " set it to config",
    )
    demand(
        c.layer_decay == 1 or family.transformer,
        f"layer_decay is of a transformer's layers, and backbone.type is {bb.type}; leave it at 1",
    )
    demand(
        c.layer_decay == 1 or not bb.type.startswith("swin"),
        f"layer_decay isn't here for {bb.type}, whose published recipes have none; leave it at 1",
    )
    demand(fpn.num_outs >= outs, "neck.fpn.num_outs is less than the number of its inputs")
    strides, given = c.rpn.anchor_generator.strides, level_strides(c)
    demand(strides == given, f"rpn.anchor_generator.strides is {strides}, but the neck's outputs have strides {given}")
    own = given[:outs]
    demand(
        fpn.upsample != "bilinear" or doubling(own) == own,
        f"neck.fpn.upsample: {fpn.upsample} is between maps of which each has twice the stride of the one before; the"
        f" backbone's have {own}",
    )
    # levels past the backbone's subsample, and round up
    last = own[-1]
    demand(
        c.img_width % last == 0 and c.img_height % last == 0,
        f"img_width and img_height must be multiples of the backbone's last stride, {last}",
    )


def _check_network(c: Config, demand: Callable[[bool, str], None]) -> None:
    """What comes after the neck; parts that the detector lacks aren't looked at."""
    anchors = c.rpn.anchor_generator
    for name in ("scales", "ratios"):
        demand(len(getattr(anchors, name)) > 0, f"rpn.anchor_generator.{name} is empty")
    if anchors.sizes:
        given, levels = [len(sizes) for sizes in anchors.sizes], c.neck.fpn.num_outs
        demand(
            len(given) == levels and len(set(given)) == 1 and given[0] > 0,
            f"rpn.anchor_generator.sizes has {given} sides a level; as many, one or more, in each of {levels} levels",
        )
        demand(not anchors.legacy, f"rpn.anchor_generator.legacy {anchors.legacy} goes by scales; leave out sizes")
    for name, roi in (("roi", c.roi), *((f"{b}_roi", getattr(c, f"{b}_roi")) for b in c.branches)):
        levels = len(roi.featmap_strides)
        demand(
            levels > 0 and roi.featmap_strides == anchors.strides[:levels],
            f"{name}.featmap_strides must be the first of rpn.anchor_generator.strides, one or more",
        )
        demand(
            doubling(roi.featmap_strides) == roi.featmap_strides,
            f"{name}.featmap_strides: each must be twice the one before, as RoIs choose their level by factors of 2",
        )
    demand(
        c.bbox_head.roi_feat_size == c.roi.roi_layer.out_size,
        "bbox_head.roi_feat_size isn't roi.roi_layer.out_size",
    )
    demand(
        not c.with_mask or c.train_cfg.rcnn.mask_size == 2 * c.mask_roi.roi_layer.out_size,
        "train_cfg.rcnn.mask_size must be twice mask_roi.roi_layer.out_size",
    )
    wide = (
        ("neck.fpn", c.neck.fpn.norm, c.neck.fpn.out_channels, "out_channels"),
        ("bbox_head", c.bbox_head.norm, c.bbox_head.conv_out_channels, "conv_out_channels"),
        ("mask_head", c.mask_head.norm, c.mask_head.conv_out_channels, "conv_out_channels"),
    )
    for name, norm, channels, key in wide:
        demand(
            norm != "group" or channels % 32 == 0,
            f"{name}.norm: group has 32 groups, which {name}.{key} {channels} can't be divided into",
        )
    demand(
        not c.bbox_head.norm or c.bbox_head.num_convs > 0,
        f"bbox_head.norm: {c.bbox_head.norm} follows convolutions; set bbox_head.num_convs",
    )
    count = len(c.keypoint_head.names)
    demand(
        all(len(pair) == 2 and max(pair) <= count for pair in c.keypoint_head.skeleton),
        f"keypoint_head.skeleton holds pairs of places in keypoint_head.names, 1 to {count}",
    )
    heads = ((f"{b}_head", getattr(c, f"{b}_head")) for b in c.branches)
    for name, got in (("rpn", c.rpn), ("bbox_head", c.bbox_head), *heads):
        demand(got.in_channels == c.neck.fpn.out_channels, f"{name}.in_channels isn't neck.fpn.out_channels")
    for name, coder in (("rpn", c.rpn.bbox_coder), ("bbox_head", c.bbox_head.bbox_coder)):
        for part in ("target_means", "target_stds"):
            demand(len(getattr(coder, part)) == 4, f"{name}.bbox_coder.{part} needs 4 values")
    if c.is_cascade:
        stages = len(c.cascade.pos_iou_thr)
        for name in ("target_stds", "loss_weights"):
            got = len(getattr(c.cascade, name))
            demand(got == stages, f"cascade.{name} has {got} entries, cascade.pos_iou_thr {stages}")
        demand(stages > 0, "cascade.pos_iou_thr is empty")
        demand(all(len(v) == 4 for v in c.cascade.target_stds), "cascade.target_stds needs 4 values a stage")


def _check_views(c: Config, demand: Callable[[bool, str], None]) -> None:
    """Pictures at several sizes, or mirrored."""
    scales = c.test_scales
    demand(len(scales) > 0, "test_scales is empty; [1] is the canvas alone")
    demand(len(set(scales)) == len(scales), f"test_scales names a scale twice: {scales}")
    least = min(c.img_width, c.img_height) * min(scales, default=1)
    demand(least >= 64, f"test_scales: {min(scales, default=1):g} makes a canvas of less than 64 pixels")
    demand(
        scales == [1.0] or not FAMILIES[c.backbone.type].one_canvas,
        f"test_scales: {c.backbone.type} is built for one canvas; leave [1], and test_flip is possible",
    )
    if len(scales) > 1 or c.test_flip:
        wanted = "test_flip" if c.test_flip else "test_scales"
        demand("keypoint" not in c.branches, f"{wanted}: heatmaps of keypoints aren't merged; leave it out")
        demand(c.test_cfg.rcnn.nms.type == "nms", f"{wanted} merges by NMS: test_cfg.rcnn.nms.type must be nms")


def _check_places(c: Config, demand: Callable[[bool, str], None]) -> None:
    place = os.path.normpath(c.brief)
    demand(
        not os.path.isabs(c.brief) and place.split(os.sep)[0] not in (".", ".."),
        f"brief: {shown(c.brief)} is no folder in train_outputs; name one, and set train_outputs for another place",
    )
    for name in ("train_outputs", "brief", "mindrecord_dir"):
        demand(
            not any("\ud800" <= x <= "\udfff" for x in getattr(c, name)),
            f"{name} {shown(getattr(c, name))} isn't UTF-8, and MindSpore can't write there; name another folder",
        )


def _check_images(c: Config, demand: Callable[[bool, str], None]) -> None:
    for name, v in (("img_mean", c.img_mean), ("img_std", c.img_std)):
        demand(len(v) == 3, f"{name} needs 3 values")
    demand(
        c.resize == "canvas" or c.img_width >= c.img_height,
        f"resize: {c.resize} turns the canvas for upright pictures; give it lying: img_width at least img_height",
    )
    demand(
        c.resize == "canvas" or not c.fixed_size_crop,
        f"fixed_size_crop fills the canvas, of which resize: {c.resize} has two; set resize: canvas",
    )
    for name in ("ratio_range", "expand_range", "crop_range", "scale", "theta"):
        v = getattr(c, name)
        demand(len(v) == 2 and v[0] <= v[1], f"{name} needs 2 values, least and largest; got {v}")
    demand(
        len(c.action_prob) == len(c.action_candidate) > 0,
        f"action_prob has {len(c.action_prob)} entries, action_candidate {len(c.action_candidate)}",
    )
    demand(abs(sum(c.action_prob) - 1) < 1e-6, f"action_prob adds up to {sum(c.action_prob):g}, not 1")
    demand(c.run_eval or not c.early_stop_epochs, "early_stop_epochs goes by evaluations: set run_eval: true")


def _check_samplers(c: Config, demand: Callable[[bool, str], None]) -> None:
    for name in ("rpn", "rcnn"):
        a = getattr(c.train_cfg, name).assigner
        demand(a.neg_iou_thr <= a.pos_iou_thr, f"train_cfg.{name}.assigner: neg_iou_thr is above pos_iou_thr")
        sampler = getattr(c.train_cfg, name).sampler
        demand(
            int(sampler.num * sampler.pos_fraction) > 0,
            f"train_cfg.{name}.sampler.pos_fraction {sampler.pos_fraction:g} of num {sampler.num} is no positive",
        )
    boxes = min(sampler.num, c.train_cfg.rpn_proposal.max_per_img + c.max_instance_count * sampler.add_gt_as_proposals)
    rows, buckets = c.batch_size * min(boxes, int(sampler.num * sampler.pos_fraction)), c.train_cfg.rcnn.mask_buckets
    demand(
        not c.branches or rows >> (buckets - 1) > 0,
        f"train_cfg.rcnn.mask_buckets {buckets} halves {rows} positives a step to none; {rows.bit_length()} at most",
    )
