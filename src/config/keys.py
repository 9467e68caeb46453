"""The schema of a configuration: every key, its type, default, bounds and meaning, in groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from src.config.backbones import FAMILIES
from src.runtime.errors import UserError

__all__ = ["DETECTORS", "COCO_CLASSES", "Config", "ConfigError"]


class ConfigError(UserError):
    """A configuration that can't be used; the message names the file, the key and the remedy."""


# what numbers without bounds of their own are held to: what MindSpore's and NumPy's integers and float32 hold
LARGEST = {int: 2**31 - 1, float: 3e38}
WIDEST, MOST_CLASSES, MOST_BOXES = 2**12, 2**16, 10**5  # past these no memory would do
MOST_STAGES = max(len(family.channels) for family in FAMILIES.values())


def key(default: Any, doc: str, choices: tuple = (), low: float | None = None, high: float | None = None) -> Any:
    """One documented key of the schema; `low` and `high` bound numbers (and list elements) inclusively."""
    meta = {"doc": doc, "choices": choices, "low": low, "high": high}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=meta)
    return field(default=default, metadata=meta)


def group(cls: type, doc: str, **defaults: Any) -> Any:
    """A nested group of keys, with defaults that differ from the group's own."""
    return field(default_factory=lambda: cls(**defaults), metadata={"doc": doc, "defaults": defaults})


LEVEL_RULES = ("torchvision", "detectron2", "mmdetection", "maskrcnn_benchmark")
# The heads that each detector has on what its box head finds.
DETECTORS: dict[str, tuple[str, ...]] = {
    "mask_rcnn": ("mask",),
    "faster_rcnn": (),
    "cascade_rcnn": (),
    "cascade_mask_rcnn": ("mask",),
    "keypoint_rcnn": ("keypoint",),
}
# Names that older configs give the same keys.
ALIASES = {"IMAGE_DIR": "image_dir", "ANNO_PATH": "anno_path"}


@dataclass
class Backbone:
    type: str = key("resnet", "backbone family", choices=tuple(FAMILIES))
    depth: int = key(50, "ResNet and ResNeXt depth", choices=(50, 101, 152))
    stride_in_1x1: bool = key(False, "stride of a stage in its first 1x1 convolution (v1) or in its 3x3 (v1.5)")
    pretrained: str = key("", "checkpoint with the backbone's weights; empty: random weights")
    frozen_stages: int = key(
        1, "stages without training: -1 none, 0 the stem, 1 stem and stage 1, ...", low=-1, high=MOST_STAGES
    )
    norm: str = key(
        "batch",
        "batch norm; over all ranks' images together (sync); or group norm, of ResNet and ResNeXt; transformers have"
        " layer norm alone, and leave this at batch",
        choices=("batch", "sync", "group"),
    )
    norm_eval: bool = key(True, "batch norm uses its running statistics in training")
    norm_grad: bool = key(True, "batch norm's scale and shift are trained (outside frozen stages)")
    norm_eps: float = key(1e-5, "epsilon of norms, in neck and heads too", low=1e-12, high=1)
    norm_momentum: float = key(
        0.9, "share of the old running statistics kept at each step, in neck and heads too", low=0, high=1
    )
    num_stages: int = key(4, "number of stages", low=1, high=MOST_STAGES)
    out_indices: list[int] = key([0, 1, 2, 3], "stages whose output the neck takes", low=0, high=MOST_STAGES - 1)
    groups: int = key(1, "ResNeXt groups of the 3x3 convolution", low=1, high=256)
    base_width: int = key(64, "ResNeXt width of one group at stage 1", low=1, high=256)
    width_multiplier: float = key(1.0, "MobileNetV1 width multiplier", low=0.05, high=8)
    same_padding: bool = key(False, "ResNet's stem pool, MobileNetV1's convolutions: padded right and below alone")
    relu6: bool = key(False, "MobileNetV1's activation is ReLU6")
    drop_path: float = key(
        0.0,
        "probability that in training an image leaves out a part of the transformer's last layer, rising from 0 at the"
        " first",
        low=0,
        high=0.9,
    )


def norm(where: str) -> Any:
    """The key `norm` of a neck or a head."""
    return key(
        "",
        f"norm after each of {where}, in place of its bias: none; batch norm, in training on its running statistics,"
        " constant (frozen) or with scale and shift that train (running), or on the batch's (batch) or those of all"
        " ranks' images (sync); group norm, of 32 groups; or layer norm over channels",
        choices=("", "frozen", "running", "batch", "sync", "group", "layer"),
    )


@dataclass
class Fpn:
    in_channels: list[int] = key(
        [256, 512, 1024, 2048], "channels of each backbone output; follows from the backbone", low=1, high=WIDEST
    )
    out_channels: int = key(256, "channels of each FPN output", low=1, high=WIDEST)
    num_outs: int = key(
        5, "number of FPN outputs; those past the backbone's come by stride-2 subsampling", low=1, high=5
    )
    upsample: str = key(
        "nearest",
        "interpolation of the top-down path; none: there is no such path (ViTDet's simple feature pyramid)",
        choices=("nearest", "bilinear", "none"),
    )
    norm: str = norm("the convolutions")


@dataclass
class Neck:
    fpn: Fpn = group(Fpn, "feature pyramid network")


@dataclass
class BoxCoder:
    target_means: list[float] = key([0.0, 0.0, 0.0, 0.0], "subtracted from dx, dy, dw, dh", low=-1e3, high=1e3)
    target_stds: list[float] = key([1.0, 1.0, 1.0, 1.0], "dx, dy, dw, dh are divided by these", low=1e-6, high=1e3)
    wh_ratio_clip: float = key(0.016, "dw and dh are clamped to at most |ln(wh_ratio_clip)|", low=1e-9, high=1)
    delta_clamp: str = key(
        "upper",
        "dw and dh are clamped from above alone; or to -|ln(wh_ratio_clip)| too (mmdetection, MindSpore's zoo)",
        choices=("upper", "both"),
    )


@dataclass
class ClassLoss:
    loss_weight: float = key(1.0, "weight of the loss", low=0)


@dataclass
class BoxLoss:
    loss_weight: float = key(1.0, "weight of the loss", low=0)
    beta: float = key(0.1111111111111111, "smooth-L1 turning point; 0: plain L1", low=0)


@dataclass
class AnchorGenerator:
    scales: list[float] = key([8], "anchor side in strides", low=1e-3, high=1e3)
    sizes: list[list[float]] = key(
        [],
        "anchor sides in pixels, a list a level, as many in each; empty: scales * stride",
        low=1e-3,
        high=1e5,
    )
    ratios: list[float] = key([0.5, 1.0, 2.0], "anchor height / width", low=1e-3, high=1e3)
    strides: list[int] = key(
        [4, 8, 16, 32, 64], "pixels between anchors, one per FPN level; follow from the neck", low=1, high=2**13
    )
    rounded: bool = key(False, "base anchors rounded to whole pixels, as torchvision's")
    legacy: str = key(
        "",
        "older anchors, centred on the cell: caffe2 (also maskrcnn-benchmark), mmdet1 (also MindSpore's model zoo)",
        choices=("", "caffe2", "mmdet1"),
    )
    grid_strides: bool = key(
        False, "anchors lie canvas side // map side apart, as torchvision's: 61, not 64, for 13 rows on a side of 800"
    )
    size_divisor: int = key(
        32,
        "anchors take part that begin in the picture, its sides rounded up to multiples of this: so far torchvision,"
        " Detectron2 and mmdetection pad a picture, and use all anchors on that; 1: in the picture itself",
        low=1,
        high=2**14,
    )


@dataclass
class Rpn:
    in_channels: int = key(256, "input channels; follows from neck.fpn.out_channels", low=1, high=WIDEST)
    num_convs: int = key(1, "number of 3x3 convolutions", low=1, high=64)
    feat_channels: int = key(256, "channels of the 3x3 convolutions", low=1, high=WIDEST)
    bbox_coder: BoxCoder = group(BoxCoder, "box coder of the RPN")
    loss_cls: ClassLoss = group(ClassLoss, "objectness loss (binary cross entropy)")
    loss_bbox: BoxLoss = group(BoxLoss, "box loss (smooth L1)")
    loss_normaliser: str = key(
        "sampled",
        "both losses are divided by the sampled anchors; these, but at least one positive and one negative an image"
        " (mmdet); or train_cfg.rpn.sampler.num an image (Detectron2, MindSpore's zoo)",
        choices=("sampled", "mmdet", "num"),
    )
    rank_by: str = key(
        "logits_first",
        "what proposals are ranked by, of equal ones the first coming first: logits in each level and probabilities in"
        " NMS (torchvision); logits (Detectron2); probabilities, of which those of logits beyond 17 are equal"
        " (mmdetection, maskrcnn-benchmark, MindSpore's zoo)",
        choices=("logits_first", "logits", "probabilities"),
    )
    anchor_generator: AnchorGenerator = group(AnchorGenerator, "anchors")


@dataclass
class BboxHead:
    in_channels: int = key(256, "input channels; follows from neck.fpn.out_channels", low=1, high=WIDEST)
    num_convs: int = key(0, "number of 3x3 convolutions before the fully connected layers", low=0, high=64)
    conv_out_channels: int = key(256, "channels of the 3x3 convolutions", low=1, high=WIDEST)
    norm: str = norm("the 3x3 convolutions")
    num_fcs: int = key(2, "number of fully connected layers", low=1, high=64)
    fc_out_channels: int = key(1024, "width of the fully connected layers", low=1, high=2**14)
    roi_feat_size: int = key(7, "side of the RoI features; follows from roi.roi_layer", low=1, high=128)
    reg_class_agnostic: bool = key(False, "one box regression for all classes")
    bbox_coder: BoxCoder = group(BoxCoder, "box coder of the second stage", target_stds=[0.1, 0.1, 0.2, 0.2])
    loss_cls: ClassLoss = group(ClassLoss, "classification loss (cross entropy)")
    loss_bbox: BoxLoss = group(BoxLoss, "box loss (smooth L1)")


@dataclass
class Cascade:
    pos_iou_thr: list[float] = key([0.5, 0.6, 0.7], "IoU of a stage's positives; one a stage", low=0, high=1)
    target_stds: list[list[float]] = key(
        [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]],
        "bbox_head.bbox_coder.target_stds of each stage",
        low=1e-6,
        high=1e3,
    )
    loss_weights: list[float] = key([1.0, 0.5, 0.25], "weights of the stages' losses", low=0)
    mask_head_per_stage: bool = key(True, "a mask head a stage, averaged; else one, trained on the first stage's boxes")
    resample: bool = key(True, "each stage draws its own sample; else all train on the first one's, refined")
    feature_gradient: float = key(1.0, "factor on the gradient from the box heads to the feature maps", low=0)
    average_scores: str = key(
        "logits", "what of the stages is averaged for the classes", choices=("logits", "probabilities")
    )
    average_masks: str = key("logits", "what of the stages is averaged for masks", choices=("logits", "probabilities"))


@dataclass
class MaskHead:
    num_convs: int = key(4, "number of 3x3 convolutions", low=0, high=64)
    in_channels: int = key(256, "input channels; follows from neck.fpn.out_channels", low=1, high=WIDEST)
    conv_out_channels: int = key(256, "channels of the convolutions", low=1, high=WIDEST)
    norm: str = norm("the 3x3 convolutions")
    loss_mask: ClassLoss = group(ClassLoss, "mask loss (binary cross entropy)")


COCO_KEYPOINTS = (
    "nose,left_eye,right_eye,left_ear,right_ear,left_shoulder,right_shoulder,left_elbow,right_elbow,left_wrist,"
    "right_wrist,left_hip,right_hip,left_knee,right_knee,left_ankle,right_ankle"
).split(",")


@dataclass
class KeypointHead:
    names: list[str] = key(
        COCO_KEYPOINTS, "names of the keypoints; left_NAME and right_NAME change places where a picture is mirrored"
    )
    skeleton: list[list[int]] = key(
        [],
        "pairs of keypoint_head.names, counted from 1, that pictures join; []: what the training data say, else COCO's",
        low=1,
    )
    num_convs: int = key(8, "number of 3x3 convolutions", low=0, high=64)
    in_channels: int = key(256, "input channels; follows from neck.fpn.out_channels", low=1, high=WIDEST)
    conv_out_channels: int = key(512, "channels of the convolutions", low=1, high=WIDEST)
    half_pixel: bool = key(
        False, "annotations count pixels' centres as whole numbers (Detectron2), not their corners (torchvision)"
    )
    score: str = key(
        "logit",
        "a keypoint's score: its heatmap's largest value, or the share of it after softmax (Detectron2)",
        choices=("logit", "probability"),
    )
    loss_keypoint: ClassLoss = group(ClassLoss, "keypoint loss (cross entropy over the heatmap's cells)")


@dataclass
class RoiLayer:
    type: str = key("RoIAlign", "RoI pooling", choices=("RoIAlign",))
    out_size: int = key(7, "side of the RoI features", low=1, high=128)
    sampling_ratio: int = key(2, "samples per bin and axis; 0: adaptive, ceil(RoI size / out_size)", low=0, high=32)
    aligned: bool = key(False, "half-pixel shift (Detectron2, mmdetection) or none (torchvision)")
    last_pixel_end: bool = key(False, "a RoI ends at its last pixel, x2 - 1 (maskrcnn-benchmark)")
    level_rule: str = key(
        "torchvision",
        "whose rounding decides on the level of a RoI whose size is within some millionths of where one begins",
        choices=LEVEL_RULES,
    )


@dataclass
class Roi:
    roi_layer: RoiLayer = group(RoiLayer, "RoI pooling")
    featmap_strides: list[int] = key(
        [4, 8, 16, 32],
        "strides of the FPN levels that RoIs are taken from (default: the backbone's, as far as they double)",
        low=1,
    )
    finest_scale: float = key(56.0, "RoIs of up to twice this size (square root of area) go to the finest level", low=1)


@dataclass
class Assigner:
    pos_iou_thr: float = key(0.5, "a box of at least this IoU with an object is positive", low=0, high=1)
    neg_iou_thr: float = key(0.5, "a box below this IoU with every object is negative", low=0, high=1)
    min_pos_iou: float = key(
        0.0, "least IoU of a low-quality match with the object whose best box it is", low=0, high=1
    )
    match_low_quality: bool = key(False, "each object's best boxes are positive too, whatever their IoU")
    matcher: str = key(
        "torchvision",
        "a low-quality match trains on the box's own best object (torchvision, Detectron2), or on the last one whose"
        " best it is, and ground truth that joins the proposals isn't matched (mmdet, also MindSpore's zoo)",
        choices=("torchvision", "mmdet"),
    )
    ignore_iof_thr: float = key(0.5, "negatives with this share of their area in a crowd region are ignored", low=0)


@dataclass
class Sampler:
    num: int = key(512, "boxes sampled an image", low=1, high=MOST_BOXES)
    pos_fraction: float = key(0.25, "largest share of positives", low=0, high=1)
    neg_pos_ub: float = key(-1.0, "at most this many negatives for each positive; -1: no bound", low=-1)
    add_gt_as_proposals: bool = key(False, "ground-truth boxes join the proposals")


@dataclass
class RpnTrain:
    assigner: Assigner = group(
        Assigner,
        "assigner of anchors",
        pos_iou_thr=0.7,
        neg_iou_thr=0.3,
        min_pos_iou=0.0,
        match_low_quality=True,
    )
    sampler: Sampler = group(Sampler, "sampler of anchors", num=256, pos_fraction=0.5)


@dataclass
class Proposals:
    nms_pre: int = key(2000, "boxes per level before NMS", low=1, high=MOST_BOXES)
    max_per_img: int = key(1000, "proposals an image", low=1, high=MOST_BOXES)
    iou_threshold: float = key(0.7, "NMS threshold", low=0, high=1)
    min_bbox_size: float = key(1e-3, "boxes with a smaller side are dropped (pixels)", low=0)
    score_thr: float = key(0.0, "boxes of a lower probability are dropped before NMS", low=0, high=1)


@dataclass
class RcnnTrain:
    assigner: Assigner = group(Assigner, "assigner of proposals")
    sampler: Sampler = group(Sampler, "sampler of proposals", add_gt_as_proposals=True)
    mask_buckets: int = key(
        4, "sizes that the heads of branches are compiled for: all positives, half, a quarter, ...", low=1, high=16
    )
    mask_size: int = key(
        28, "side of the mask targets and of the mask head's output; follows from mask_roi.roi_layer", low=2, high=256
    )
    mask_targets: str = key(
        "soft",
        "a target's cell is the share of it that the object covers, or 1 from one half on, else 0 (Detectron2,"
        " mmdetection, maskrcnn-benchmark, MindSpore's zoo)",
        choices=("soft", "binary"),
    )
    mask_crop: str = key(
        "box",
        "targets are cut from the object's box in mask_crop_size cells, whose outline is finer than pixels; or from the"
        " canvas' bitmap around it, to the last digit as torchvision and mmdetection do it if mask_crop_size pixels"
        " hold it, else by blocks of pixels",
        choices=("box", "pixels"),
    )
    mask_target_box: str = key(
        "auto",
        "what of the mask is the target: half a pixel beside the box (torchvision), the box (Detectron2, mmdetection),"
        " the box up to its last pixel (maskrcnn-benchmark), in whole pixels (MindSpore's zoo); auto: box where"
        " mask_roi is aligned, else shifted",
        choices=("auto", "shifted", "box", "last_pixel", "whole_pixels"),
    )


@dataclass
class TrainCfg:
    rpn: RpnTrain = group(RpnTrain, "training of the RPN")
    rpn_proposal: Proposals = group(Proposals, "proposals in training", nms_pre=2000, max_per_img=2000)
    rcnn: RcnnTrain = group(RcnnTrain, "training of the second stage")


@dataclass
class Nms:
    type: str = key(
        "nms",
        "boxes that overlap a better one of their class go, or lose score (soft_nms, arXiv:1704.04503; Python alone)",
        choices=("nms", "soft_nms"),
    )
    method: str = key(
        "linear",
        "soft_nms: a score is multiplied by 1 - IoU, from iou_threshold on; or by exp(-IoU^2 / sigma)",
        choices=("linear", "gaussian"),
    )
    sigma: float = key(0.5, "soft_nms: of method: gaussian", low=1e-3, high=1e3)
    min_score: float = key(1e-3, "soft_nms: detections of which a lower score is left are dropped", low=0, high=1)


@dataclass
class RcnnTest:
    score_thr: float = key(0.05, "least score of a detection", low=0, high=1)
    iou_threshold: float = key(0.5, "NMS threshold", low=0, high=1)
    nms: Nms = group(Nms, "kind of NMS")
    agnostic_nms: bool = key(
        False, "NMS across classes: of boxes on one object the best alone stays, whatever its class"
    )
    max_per_img: int = key(100, "detections an image", low=1, high=MOST_BOXES)
    nms_pre: int = key(
        4096, "(box, class) candidates above score_thr that enter NMS, best first", low=1, high=MOST_BOXES
    )
    min_bbox_size: float = key(1e-2, "detections with a smaller side are dropped (pixels)", low=0)
    mask_thr_binary: float = key(0.5, "mask threshold", low=0, high=1)
    mask_paste: str = key(
        "auto",
        "how masks are drawn into the image: torchvision (also maskrcnn-benchmark), grid (Detectron2, mmdetection);"
        " auto: grid where mask_roi is aligned",
        choices=("auto", "torchvision", "grid"),
    )

    @property
    def least_score(self) -> float:
        """Of a detection: soft_nms leaves some less than score_thr."""
        return min(self.score_thr, self.nms.min_score) if self.nms.type == "soft_nms" else self.score_thr


@dataclass
class TestCfg:
    rpn: Proposals = group(Proposals, "proposals at inference", nms_pre=1000, max_per_img=1000)
    rcnn: RcnnTest = group(RcnnTest, "detections")


COCO_CLASSES = (
    "background,person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,"
    "parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,"
    "suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,"
    "tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,"
    "hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,"
    "cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
).split(",")


@dataclass
class Config:
    """Every key, with its default: the published Mask R-CNN R50-FPN 1x recipe in torchvision's conventions."""

    train_outputs: str = key("train_outputs", "folder of experiments")
    brief: str = key("mask_rcnn_r50_fpn", "name of this experiment, a folder in train_outputs")
    device_target: str = key("CPU", "where to run", choices=("CPU", "GPU", "Ascend"))
    device_id: int = key(0, "which device", low=0)
    mode: str = key("graph", "compile the network, or run it operator by operator", choices=("graph", "pynative"))
    compile_cache: bool = key(
        False,
        "keep the compiled training step in train_outputs/compile_cache for the next such start",
    )
    compile_apart: bool = key(
        True,
        "on CPU, compile the training step in a process of its own, whose memory is then free again",
    )
    run_distribute: bool = key(False, "train and evaluate on several devices; started by msrun or mpirun")
    compute_type: str = key(
        "auto",
        "precision of backbone, neck and heads; auto: float16 on Ascend, else float32; tf32: float32, but GPUs round"
        " factors to 10 bits",
        choices=("auto", "float32", "tf32", "float16"),
    )
    seed: int = key(1, "seed of weights, data order, augmentation and samplers", low=0, high=2**32 - 1)
    detector: str = key("mask_rcnn", "which detector", choices=tuple(DETECTORS))
    conventions: str = key(
        "",
        "the project whose checkpoints this is for: stands for the keys in which it has a way of its own"
        " (python -m src.config --conventions lists them), of which any may follow and differ",
        choices=("", "torchvision", "detectron2", "mmdetection", "maskrcnn_benchmark", "mindspore_zoo"),
    )
    box_plus_one: bool = key(
        False, "boxes were kept by their last pixel (width = x2 - x1 + 1) where the weights come from"
    )

    backbone: Backbone = group(Backbone, "backbone")
    neck: Neck = group(Neck, "neck")
    rpn: Rpn = group(Rpn, "region proposal network")
    bbox_head: BboxHead = group(BboxHead, "box head")
    cascade: Cascade = group(Cascade, "stages of cascade_rcnn and cascade_mask_rcnn")
    mask_head: MaskHead = group(MaskHead, "mask head")
    keypoint_head: KeypointHead = group(KeypointHead, "keypoint head")
    roi: Roi = group(Roi, "RoI features of the box head")
    mask_roi: Roi = field(
        default_factory=lambda: Roi(roi_layer=RoiLayer(out_size=14)),
        metadata={"doc": "RoI features of the mask head"},
    )
    keypoint_roi: Roi = field(
        default_factory=lambda: Roi(roi_layer=RoiLayer(out_size=14)),
        metadata={"doc": "RoI features of the keypoint head"},
    )
    train_cfg: TrainCfg = group(TrainCfg, "assigners, samplers, proposals in training")
    test_cfg: TestCfg = group(TestCfg, "proposals and detections at inference")

    opt_type: str = key(
        "sgd",
        "optimizer; adamw is Adam whose weight decay doesn't go through the gradient (arXiv:1711.05101)",
        choices=("sgd", "adam", "adamw"),
    )
    lr: float = key(0.02, "learning rate for base_batch_size images a step", low=0)
    base_batch_size: int = key(16, "lr is scaled by (images a step) / base_batch_size; 0: not scaled", low=0)
    min_lr: float = key(0.0, "least learning rate", low=0)
    lr_type: str = key("multistep", "schedule", choices=("multistep", "cosine"))
    lr_steps: list[int] = key([8, 11], "epochs after which the learning rate is divided by 10", low=1)
    warmup_step: int = key(500, "steps of linear warm-up", low=0)
    warmup_share: float = key(
        0.0,
        "linear warm-up as a share of the run's steps, not by warmup_step; 0: by warmup_step",
        low=0,
        high=1,
    )
    warmup_ratio: float = key(0.3333333333333333, "learning rate of the first step / learning rate", low=0, high=1)
    momentum: float = key(0.9, "momentum", low=0, high=1)
    weight_decay: float = key(1e-4, "weight decay", low=0)
    weight_decay_norm: bool = key(True, "weight decay on norms' scale and shift")
    layer_decay: float = key(
        1.0,
        "learning rate of each of a transformer's layers / that of the next one; patches and positions come below the"
        " first, all else above the last",
        low=0.01,
        high=1,
    )
    weight_decay_bias: bool = key(True, "weight decay on biases")
    ema_decay: float = key(
        0.0,
        "share of the weights' moving average that each step keeps, 0.9998 say, less in the first ones; checkpoints"
        " hold the average and evaluations use it; 0: none is kept",
        low=0,
        high=1,
    )
    grad_clip: float = key(0.0, "largest global gradient norm; 0: no clipping", low=0)
    loss_scale: float = key(1.0, "the loss is multiplied by this before the gradient, the gradient divided", low=1e-9)
    loss_scale_type: str = key(
        "auto",
        "loss scale fixed, or halved where gradients overflow; auto: dynamic in float16, else fixed",
        choices=("auto", "fixed", "dynamic"),
    )
    loss_scale_start: float = key(65536.0, "a dynamic loss scale's first value", low=1)
    loss_scale_window: int = key(1000, "steps without overflow after which a dynamic loss scale is doubled", low=1)

    max_loss_ratio: float = key(
        1000.0, "training stops at a loss over this multiple of the first 100 steps' median; 0: at none", low=0
    )

    batch_size: int = key(2, "images in memory at once, a device, in training", low=1, high=1024)
    accumulate: int = key(
        1,
        "parts of batch_size images that make one step, as if they were one batch of batch_size * accumulate",
        low=1,
        high=1024,
    )
    test_batch_size: int = key(1, "images a step at inference", low=1, high=1024)
    test_canvas: str = key(
        "config",
        "canvas at inference: the config's, or picture: each picture's own size rounded up to multiples of"
        " rpn.anchor_generator.size_divisor, as other projects have it; a graph is compiled for each such size",
        choices=("config", "picture"),
    )
    test_scales: list[float] = key(
        [1.0],
        "at inference pictures are detected in on the canvas (short_side, long_side) times each of these, and what all"
        " find is merged; not in exports",
        low=0.1,
        high=8,
    )
    test_flip: bool = key(False, "pictures are detected in mirrored, too, at each of test_scales")
    epoch_size: int = key(12, "epochs", low=1, high=10**4)
    pre_trained: str = key("", "whole checkpoint to start from")
    freeze: list[str] = key(
        [],
        "parts that don't train, their batch norms on running statistics; for stages alone: backbone.frozen_stages",
        choices=("backbone", "neck", "rpn", "bbox_head", "mask_head", "keypoint_head"),
    )
    overwrite: bool = key(
        False, "train where another run has ended; its checkpoints and logs move to before.1, before.2, ... there"
    )
    finetune: bool = key(False, "leave out the layers of pre_trained that depend on its classes, or differ in shape")
    run_eval: bool = key(False, "evaluate during training")
    eval_every: int = key(1, "epochs between evaluations", low=1)
    val_loss: bool = key(False, "log the losses on the validation split after each epoch; compiles a second graph")
    early_stop_epochs: int = key(
        0,
        "training ends at an evaluation so many epochs after that of best AP (of masks, if there are); 0: never",
        low=0,
    )
    save_every: int = key(0, "steps between checkpoints; 0: none by steps", low=0)
    save_every_epochs: int = key(1, "epochs between checkpoints; 0: none by epochs", low=0)
    keep_checkpoint_max: int = key(5, "checkpoints kept, each with the state to resume from", low=1)
    keep_best_checkpoints_max: int = key(1, "checkpoints of best AP kept as well, in checkpoints/best", low=0)
    log_every: int = key(1, "steps between lines of loss_0.log and metrics.jsonl", low=1)
    tensorboard: bool = key(False, "TensorBoard event files in tensorboard/ of the experiment")
    mlflow: bool = key(False, "log to MLflow")
    mlflow_tracking_uri: str = key("", "MLflow server; empty: the folder mlruns in train_outputs")

    num_parallel_workers: int = key(2, "workers that decode and resize images", low=1)
    python_multiprocessing: bool = key(
        False, "workers are processes; threads are faster, as OpenCV frees the interpreter"
    )
    dataset: str = key(
        "coco",
        "format of the data: coco (JSON); yolo (Ultralytics' data.yaml, images/, labels/); labelme (JSON beside the"
        " images); voc (XML); other (rows 'image.jpg x1,y1,x2,y2,class ...' of anno_path)",
    )
    train_dataset: str = key(
        "",
        "training split: a COCO root, a folder with labels.json and data/, an annotation file, a VOC or labelme folder,"
        " or YOLO's data.yaml or its folder",
    )
    val_dataset: str = key("", "validation split, as train_dataset")
    val_annotations: str = key(
        "", "annotation file of the validation split; empty: the one in val_dataset (dataset: other: anno_path)"
    )
    image_dir: str = key("", "folder that the images' paths start from (dataset: other, or an annotation file)")
    anno_path: str = key("", "TXT file of dataset: other")
    val_share: float = key(
        0.2,
        "share of a folder that tells no splits apart (VOC's without ImageSets/Main, labelme's, YOLO's) that validates,"
        " drawn by seed; 0: train and validate on all",
        low=0,
        high=0.9,
    )
    voc_difficult: str = key(
        "ignore", "VOC's difficult objects: neither object nor background, or objects", choices=("ignore", "train")
    )
    labelme_ignore: str = key(
        "skip", "labelme's shapes called __ignore__: nothing, or crowd regions of no class", choices=("skip", "crowd")
    )
    voc_first_pixel: int = key(1, "coordinate of the first pixel in VOC files", choices=(0, 1))
    mindrecord_dir: str = key("", "where MindRecord files go; empty: mindrecord/ in train_outputs")
    mindrecord_shards: int = key(1, "files a split is written to", low=1, high=1000)
    coco_classes: list[str] = key(
        COCO_CLASSES, "class names; the first is the background; auto: read from the data, num_classes follows"
    )
    num_classes: int = key(81, "classes with the background", low=2, high=MOST_CLASSES)
    other_classes: str = key(
        "stop",
        "objects of classes that coco_classes leaves out: stop; they are background; or neither object nor background",
        choices=("stop", "background", "ignore"),
    )
    train_empty_images: bool = key(False, "images without objects train too")
    repeat_threshold: float = key(
        0.0,
        "an image comes max(1, sqrt(repeat_threshold / f)) times an epoch, f being the share of images that its rarest"
        " class is in (LVIS's repeat factors, 0.001 there); 0: once",
        low=0,
        high=1,
    )
    exif: str = key(
        "auto",
        "turn images as their EXIF orientation says: upright always, stored never, auto where the annotated size is"
        " that of the upright picture and not of the stored one (without annotations never); videos are always upright",
        choices=("auto", "upright", "stored"),
    )
    on_bad_image: str = key("stop", "an image or annotation that can't be used", choices=("stop", "skip"))
    max_instance_count: int = key(128, "most objects in an image", low=1, high=10**4)
    max_crowd_count: int = key(8, "most crowd regions in an image; the largest are kept", low=1, high=10**4)
    mask_crop_size: int = key(112, "side of a ground-truth mask's crop, see train_cfg.rcnn.mask_crop", low=7, high=1024)

    enable_modelarts: bool = key(False, "a job on ModelArts: data and checkpoints come from storage, outputs go there")
    data_url: str = key("", "ModelArts: address of the data set")
    train_url: str = key("", "ModelArts: address that the outputs go to")
    checkpoint_url: str = key("", "ModelArts: address of a checkpoint, or of a folder of them")
    data_path: str = key("/cache/data", "ModelArts: local folder of the data set")
    load_path: str = key("/cache/checkpoint_path", "ModelArts: local folder of the checkpoints")
    output_path: str = key("/cache/train", "ModelArts: local folder of the outputs")
    need_modelarts_dataset_unzip: bool = key(False, "ModelArts: the data set is a zip file")
    modelarts_dataset_unzip_name: str = key("", "ModelArts: the zip file's name; empty: there is only one")

    img_width: int = key(1280, "canvas width", low=64, high=2**14)
    img_height: int = key(768, "canvas height", low=64, high=2**14)
    resize: str = key(
        "canvas",
        "pictures fill the canvas as far as they fit; or have short_side whatever their orientation, and upright ones"
        " the canvas turned",
        choices=("canvas", "short_side"),
    )
    short_side: int = key(800, "resize: short_side: pixels of a picture's shorter side", low=1)
    long_side: int = key(1333, "resize: short_side: most pixels of its longer side", low=1)
    resize_rounding: str = key(
        "nearest",
        "whole pixels of resized sides: nearest (Detectron2, mmdetection); floor (torchvision); short_first: the long"
        " side, down, of the rounded short one (maskrcnn-benchmark)",
        choices=("nearest", "floor", "short_first"),
    )
    resize_filter: str = key(
        "bilinear",
        "resizing between the nearest pixels, in whole grey levels (mmdetection, MindSpore's zoo) or unrounded"
        " (torchvision); or over all pixels that a smaller one covers (antialias: Pillow, so Detectron2)",
        choices=("bilinear", "unrounded", "antialias"),
    )
    keep_ratio: bool = key(True, "resize keeps the image's proportions, and pads")
    img_mean: list[float] = key([123.675, 116.28, 103.53], "mean of each channel, subtracted")
    img_std: list[float] = key([58.395, 57.12, 57.375], "standard deviation of each channel", low=1e-9)
    to_rgb: bool = key(True, "channels in order RGB (else BGR)")
    flip_ratio: float = key(0.5, "probability of a horizontal flip in training", low=0, high=1)
    flip_vertical_ratio: float = key(0.0, "probability of a vertical flip in training", low=0, high=1)
    rotate90_ratio: float = key(
        0.0, "probability of a turn by 90, 180 or 270 degrees, equally likely, in training", low=0, high=1
    )
    ratio_range: list[float] = key(
        [1.0, 1.0],
        "training images are resized to the canvas times a factor from here; what exceeds it is cropped",
        low=0.05,
        high=20,
    )
    fixed_size_crop: bool = key(
        False,
        "ratio_range crops anywhere, and what a smaller picture leaves of the canvas is background of mean colour"
        " (large-scale jitter, arXiv:2012.07177; Detectron2's FixedSizeCrop); else an object's centre stays in sight,"
        " and the rest is padding, which no loss sees",
    )
    expand_ratio: float = key(0.0, "probability that an image is put into a larger one of mean colour", low=0, high=1)
    expand_range: list[float] = key([1.0, 4.0], "sides of that larger image / sides of the image", low=1, high=10)
    crop_ratio: float = key(0.0, "probability of a random crop", low=0, high=1)
    crop_range: list[float] = key([0.3, 1.0], "sides of the crop / sides of the image", low=0.01, high=1)
    photo_ratio: float = key(
        0.0,
        "probability of photometric distortion: brightness, contrast, saturation, hue, order of channels",
        low=0,
        high=1,
    )
    transform: str = key(
        "",
        "a function of one's own that changes training images before all else, as path/to/file.py:function or"
        " module:function; src/data/augment/custom.py says what it takes and returns; empty: none",
    )

    copy_paste_ratio: float = key(
        0.0,
        "copy-paste (arXiv:2012.07177): probability that objects of another training image are put on this one; 0: off",
        low=0,
        high=1,
    )
    aug_prob: float = key(0.0, "InstaBoost: probability for an image; 0: off", low=0, high=1)
    action_candidate: list[str] = key(
        ["normal", "horizontal", "skip"],
        "InstaBoost: what may happen to an object: jitter, jitter with a flip, nothing",
        choices=("normal", "horizontal", "vertical", "skip"),
    )
    action_prob: list[float] = key([1.0, 0.0, 0.0], "InstaBoost: probability of each action_candidate", low=0, high=1)
    scale: list[float] = key([0.8, 1.2], "InstaBoost: least and largest factor on an object's size", low=0.1, high=10)
    dx: float = key(15.0, "InstaBoost: an object moves sideways by at most its width / dx", low=0.1)
    dy: float = key(15.0, "InstaBoost: an object moves up or down by at most its height / dy", low=0.1)
    theta: list[float] = key([-1.0, 1.0], "InstaBoost: least and largest rotation, degrees", low=-180, high=180)
    color_prob: float = key(
        0.0, "InstaBoost: probability that the image's colours change too; 0.5 in the published run", low=0, high=1
    )
    heatmap_flag: bool = key(False, "InstaBoost: objects go where the surroundings look like their own")

    @property
    def branches(self) -> tuple[str, ...]:
        """The heads on what the box head finds, in the order of their outputs."""
        return DETECTORS[self.detector]

    @property
    def with_mask(self) -> bool:
        """Whether the detector predicts masks."""
        return "mask" in self.branches

    @property
    def mask_paste(self) -> Literal["torchvision", "grid"]:
        """test_cfg.rcnn.mask_paste, decided."""
        chosen = self.test_cfg.rcnn.mask_paste
        grid = self.mask_roi.roi_layer.aligned if chosen == "auto" else chosen == "grid"
        return "grid" if grid else "torchvision"

    @property
    def mask_target_box(self) -> str:
        """train_cfg.rcnn.mask_target_box, decided."""
        chosen = self.train_cfg.rcnn.mask_target_box
        return ("box" if self.mask_roi.roi_layer.aligned else "shifted") if chosen == "auto" else chosen

    @property
    def needs_masks(self) -> bool:
        """Whether training reads the objects' masks: to learn them, or to cut objects out."""
        return self.with_mask or self.aug_prob > 0 or self.copy_paste_ratio > 0

    @property
    def turns_canvas(self) -> bool:
        """Whether upright pictures have the canvas turned; a square one has no other side."""
        return self.resize == "short_side" and self.img_height != self.img_width

    @property
    def anchors_a_cell(self) -> int:
        """Anchors of each cell of each level."""
        a = self.rpn.anchor_generator
        return len(a.sizes[0] if a.sizes else a.scales) * len(a.ratios)

    @property
    def is_cascade(self) -> bool:
        """Whether the detector is a cascade."""
        return self.detector.startswith("cascade")

    @property
    def images_a_step(self) -> int:
        """Images of one device in a training step."""
        return self.batch_size * self.accumulate

    @property
    def is_half(self) -> bool:
        """Whether backbone, neck and heads compute in float16."""
        return self.compute_type == "float16" or (self.compute_type == "auto" and self.device_target == "Ascend")

    @property
    def has_dynamic_loss_scale(self) -> bool:
        return self.loss_scale_type == "dynamic" or (self.loss_scale_type == "auto" and self.is_half)

    @property
    def output_dir(self) -> Path:
        """Folder of this experiment."""
        return Path(self.train_outputs) / self.brief

    @property
    def record_dir(self) -> Path:
        """Folder of the MindRecord files."""
        return Path(self.mindrecord_dir) if self.mindrecord_dir else Path(self.train_outputs) / "mindrecord"
