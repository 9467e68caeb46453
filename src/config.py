"""The configuration: one schema, checked key by key.

`load_config(path, overrides)` reads a YAML file, follows its `base:` chain, applies command-line
overrides and returns a `Config`. A key that the schema doesn't know, or a value of the wrong type, raises
`ConfigError` with the file, the key and, for unknown keys, the nearest right name. A value that could only fail later
is refused here.
"""

import argparse
import contextlib
import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from src.runtime.errors import UserError, one_line, run_command, shown
from src.runtime.files import whole
from src.runtime.masking import masked_keys
from src.runtime.strict_yaml import Word, number, parse_yaml, read_yaml

__all__ = [
    "Config",
    "ConfigError",
    "backbone_channels",
    "load_config",
    "load_nameless_config",
    "save_config",
    "add_config_arguments",
    "config_from_arguments",
    "describe_keys",
]


class ConfigError(UserError):
    """A configuration that can't be used; the message names the file, the key and the remedy."""


# what numbers without bounds of their own are held to: what MindSpore's and NumPy's integers and float32 hold
LARGEST = {int: 2**31 - 1, float: 3e38}
WIDEST, MOST_CLASSES, MOST_BOXES = 2**12, 2**16, 10**5  # past these no memory would do


def key(default: Any, doc: str, choices: tuple = (), low: float | None = None, high: float | None = None) -> Any:
    """One documented key of the schema; `low` and `high` bound numbers (and list elements) inclusively."""
    meta = {"doc": doc, "choices": choices, "low": low, "high": high}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=meta)
    return field(default=default, metadata=meta)


def group(cls: type, doc: str, **defaults: Any) -> Any:
    """A nested group of keys, with defaults that differ from the group's own."""
    return field(default_factory=lambda: cls(**defaults), metadata={"doc": doc, "defaults": defaults})


# The names that the launchers and older configs give backbones: `backbone: resnet_v1_50`. Only resnet_v1_50 was ever
# v1: the model zoo's 101 and 152, and the classifiers that they start from, stride in the 3x3 convolution.
BACKBONES = {
    "resnet_v1_50": {"type": "resnet", "depth": 50, "stride_in_1x1": True},
    "resnet_v1.5_50": {"type": "resnet", "depth": 50, "stride_in_1x1": False},
    "resnet_v1_101": {"type": "resnet", "depth": 101, "stride_in_1x1": False},
    "resnet_v1_152": {"type": "resnet", "depth": 152, "stride_in_1x1": False},
    "mobilenet_v1": {"type": "mobilenet_v1"},
}
# Names that older configs give the same keys.
ALIASES = {"IMAGE_DIR": "image_dir", "ANNO_PATH": "anno_path"}
# what these don't name is as of a ResNet or MobileNet of full width
PLAIN = {"groups": 1, "base_width": 64, "width_multiplier": 1.0, "relu6": False}
BACKBONE_CHANNELS = {"resnet": [256, 512, 1024, 2048], "mobilenet_v1": [128, 256, 512, 1024]}


@dataclass
class Backbone:
    type: str = key("resnet", "backbone family", choices=("resnet", "resnext", "mobilenet_v1"))
    depth: int = key(50, "ResNet and ResNeXt depth", choices=(50, 101, 152))
    stride_in_1x1: bool = key(False, "stride of a stage in its first 1x1 convolution (v1) or in its 3x3 (v1.5)")
    pretrained: str = key("", "checkpoint with the backbone's weights; empty: random weights")
    frozen_stages: int = key(1, "stages without training: -1 none, 0 the stem, 1 stem and stage 1, ...", low=-1, high=4)
    norm_eval: bool = key(True, "batch norm uses its running statistics in training")
    norm_grad: bool = key(True, "batch norm's scale and shift are trained (outside frozen stages)")
    norm_eps: float = key(1e-5, "batch norm epsilon", low=1e-12, high=1)
    norm_momentum: float = key(0.9, "share of the old running statistics kept at each step", low=0, high=1)
    num_stages: int = key(4, "number of stages", low=1, high=4)
    out_indices: list[int] = key([0, 1, 2, 3], "stages whose output the neck takes", low=0, high=3)
    groups: int = key(1, "ResNeXt groups of the 3x3 convolution", low=1, high=256)
    base_width: int = key(64, "ResNeXt width of one group at stage 1", low=1, high=256)
    width_multiplier: float = key(1.0, "MobileNetV1 width multiplier", low=0.05, high=8)
    same_padding: bool = key(False, "ResNet's stem pool, MobileNetV1's convolutions: padded right and below alone")
    relu6: bool = key(False, "MobileNetV1's activation is ReLU6")


def backbone_channels(backbone: Backbone) -> list[int]:
    """Channels of the maps that a backbone gives the neck, as src.models.backbones make them."""
    if backbone.type == "mobilenet_v1":
        each = [max(8, int(c * backbone.width_multiplier + 4) // 8 * 8) for c in BACKBONE_CHANNELS["mobilenet_v1"]]
    else:
        each = BACKBONE_CHANNELS["resnet"]
    return [each[i] for i in backbone.out_indices]


@dataclass
class Fpn:
    in_channels: list[int] = key([256, 512, 1024, 2048], "channels of each backbone output", low=1, high=WIDEST)
    out_channels: int = key(256, "channels of each FPN output", low=1, high=WIDEST)
    num_outs: int = key(
        5, "number of FPN outputs; those past the backbone's come by stride-2 subsampling", low=1, high=5
    )
    upsample: str = key("nearest", "interpolation of the top-down path", choices=("nearest", "bilinear"))


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
    ratios: list[float] = key([0.5, 1.0, 2.0], "anchor height / width", low=1e-3, high=1e3)
    strides: list[int] = key([4, 8, 16, 32, 64], "pixels between anchors, one per FPN level", low=1, high=2**13)
    rounded: bool = key(False, "base anchors rounded to whole pixels, as torchvision's")
    legacy: str = key(
        "",
        "older anchors, centred on the cell: caffe2 (also maskrcnn-benchmark), mmdet1 (also MindSpore's model zoo)",
        choices=("", "caffe2", "mmdet1"),
    )
    grid_strides: bool = key(
        False, "anchors lie canvas side // map side apart, as torchvision's: 61, not 64, for 13 rows on a side of 800"
    )


@dataclass
class Rpn:
    in_channels: int = key(256, "input channels", low=1, high=WIDEST)
    feat_channels: int = key(256, "channels of the hidden convolution", low=1, high=WIDEST)
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
    in_channels: int = key(256, "input channels", low=1, high=WIDEST)
    fc_out_channels: int = key(1024, "width of the two fully connected layers", low=1, high=2**14)
    roi_feat_size: int = key(7, "side of the RoI features", low=1, high=128)
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
    in_channels: int = key(256, "input channels", low=1, high=WIDEST)
    conv_out_channels: int = key(256, "channels of the convolutions", low=1, high=WIDEST)
    loss_mask: ClassLoss = group(ClassLoss, "mask loss (binary cross entropy)")


@dataclass
class RoiLayer:
    type: str = key("RoIAlign", "RoI pooling", choices=("RoIAlign",))
    out_size: int = key(7, "side of the RoI features", low=1, high=128)
    sampling_ratio: int = key(2, "samples per bin and axis; 0: adaptive, ceil(RoI size / out_size)", low=0, high=32)
    aligned: bool = key(False, "half-pixel shift (Detectron2, mmdetection) or none (torchvision)")
    last_pixel_end: bool = key(False, "a RoI ends at its last pixel, x2 - 1 (maskrcnn-benchmark)")


@dataclass
class Roi:
    roi_layer: RoiLayer = group(RoiLayer, "RoI pooling")
    featmap_strides: list[int] = key([4, 8, 16, 32], "strides of the FPN levels that RoIs are taken from", low=1)
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


@dataclass
class RcnnTrain:
    assigner: Assigner = group(Assigner, "assigner of proposals")
    sampler: Sampler = group(Sampler, "sampler of proposals", add_gt_as_proposals=True)
    mask_buckets: int = key(
        4, "sizes that the mask head is compiled for: all positives, half, a quarter, ...", low=1, high=16
    )
    mask_size: int = key(28, "side of the mask targets and of the mask head's output", low=2, high=256)
    mask_targets: str = key(
        "soft",
        "a target's cell is the share of it that the object covers, or 1 from one half on, else 0 (Detectron2,"
        " mmdetection, maskrcnn-benchmark, MindSpore's zoo)",
        choices=("soft", "binary"),
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
class RcnnTest:
    score_thr: float = key(0.05, "least score of a detection", low=0, high=1)
    iou_threshold: float = key(0.5, "NMS threshold", low=0, high=1)
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
        False, "keep compiled graphs in train_outputs/compile_cache for the next start with this code and config"
    )
    run_distribute: bool = key(False, "train and evaluate on several devices; started by msrun or mpirun")
    compute_type: str = key(
        "auto",
        "precision of backbone, neck and heads; auto: float16 on Ascend, else float32",
        choices=("auto", "float32", "float16"),
    )
    seed: int = key(1, "seed of weights, data order, augmentation and samplers", low=0, high=2**32 - 1)
    detector: str = key(
        "mask_rcnn", "which detector", choices=("mask_rcnn", "faster_rcnn", "cascade_rcnn", "cascade_mask_rcnn")
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
    roi: Roi = group(Roi, "RoI features of the box head")
    mask_roi: Roi = field(
        default_factory=lambda: Roi(roi_layer=RoiLayer(out_size=14)),
        metadata={"doc": "RoI features of the mask head"},
    )
    train_cfg: TrainCfg = group(TrainCfg, "assigners, samplers, proposals in training")
    test_cfg: TestCfg = group(TestCfg, "proposals and detections at inference")

    opt_type: str = key("sgd", "optimizer", choices=("sgd", "adam"))
    lr: float = key(0.02, "learning rate for base_batch_size images a step", low=0)
    base_batch_size: int = key(16, "lr is scaled by (images a step) / base_batch_size; 0: not scaled", low=0)
    min_lr: float = key(0.0, "least learning rate", low=0)
    lr_type: str = key("multistep", "schedule", choices=("multistep", "cosine"))
    lr_steps: list[int] = key([8, 11], "epochs after which the learning rate is divided by 10", low=1)
    warmup_step: int = key(500, "steps of linear warm-up", low=0)
    warmup_ratio: float = key(0.3333333333333333, "learning rate of the first step / learning rate", low=0, high=1)
    momentum: float = key(0.9, "momentum", low=0, high=1)
    weight_decay: float = key(1e-4, "weight decay", low=0)
    weight_decay_norm: bool = key(True, "weight decay on batch norm's scale and shift")
    weight_decay_bias: bool = key(True, "weight decay on biases")
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
    epoch_size: int = key(12, "epochs", low=1, high=10**4)
    pre_trained: str = key("", "whole checkpoint to start from")
    freeze: list[str] = key(
        [],
        "parts that don't train, their batch norms on running statistics; for stages alone: backbone.frozen_stages",
        choices=("backbone", "neck", "rpn", "bbox_head", "mask_head"),
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
    mask_crop_size: int = key(112, "side of a ground-truth mask's box-relative crop", low=7, high=1024)

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
        "resizing between the nearest pixels, or over all that a smaller one covers (antialias: Pillow, so Detectron2)",
        choices=("bilinear", "antialias"),
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
    def with_mask(self) -> bool:
        """Whether the detector predicts masks."""
        return self.detector in ("mask_rcnn", "cascade_mask_rcnn")

    @property
    def mask_paste(self) -> str:
        """test_cfg.rcnn.mask_paste, decided."""
        chosen = self.test_cfg.rcnn.mask_paste
        return ("grid" if self.mask_roi.roi_layer.aligned else "torchvision") if chosen == "auto" else chosen

    @property
    def mask_target_box(self) -> str:
        """train_cfg.rcnn.mask_target_box, decided."""
        chosen = self.train_cfg.rcnn.mask_target_box
        return ("box" if self.mask_roi.roi_layer.aligned else "shifted") if chosen == "auto" else chosen

    @property
    def needs_masks(self) -> bool:
        """Whether training reads the objects' masks: to learn them, or to cut objects out."""
        return self.with_mask or self.aug_prob > 0

    @property
    def turns_canvas(self) -> bool:
        """Whether upright pictures have the canvas turned; a square one has no other side."""
        return self.resize == "short_side" and self.img_height != self.img_width

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


# ---------------------------------------------------------------------------------------------------------
# reading and checking


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is list:
        return f"list of {_type_name(typing.get_args(hint)[0])}"
    return {int: "integer", float: "number", bool: "true/false", str: "text"}.get(hint, str(hint))


def _convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as `hint`, or ConfigError; YAML's `1e-4` (a string) is taken for a number."""
    if typing.get_origin(hint) is list:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a {_type_name(hint)}, got {shown(value)}")
        return [_convert(v, typing.get_args(hint)[0], where) for v in value]
    meant = value.value if isinstance(value, Word) else value
    if hint is float:
        meant = number(meant) if isinstance(meant, str) else meant
        if isinstance(meant, (int, float)) and not isinstance(meant, bool) and math.isfinite(meant):
            return float(meant)
    if hint is bool and isinstance(meant, (int, bool)) and meant in (0, 1):
        return bool(meant)
    if hint is int and isinstance(meant, int) and not isinstance(meant, bool):
        return meant
    if hint is str and isinstance(meant, str) and "\0" not in meant:
        return meant
    remedy = ""
    if isinstance(value, Word) and value.value is None and hint in (int, float) and value:
        remedy = "; write numbers plainly: 90, 0.5, 1e-4"
    elif isinstance(value, Word) and hint is str and value:
        remedy = "; put text like this in quotes"
    raise ConfigError(f"{where}: expected {_type_name(hint)}, got {shown(value)}{remedy}")


def _check_bounds(value: Any, meta: types.MappingProxyType, where: str) -> None:
    if isinstance(value, list):
        for v in value:
            _check_bounds(v, meta, where)
        return
    if meta.get("choices") and value not in meta["choices"]:
        raise ConfigError(f"{where}: {shown(value)} is not one of {', '.join(map(str, filter(None, meta['choices'])))}")
    if type(value) not in LARGEST:
        return
    low, high = meta["low"], meta["high"]
    low = -LARGEST[type(value)] if low is None else low
    high = LARGEST[type(value)] if high is None else high
    if not low <= value <= high:
        passed = f"below {low}" if value < low else f"above {high}"
        raise ConfigError(f"{where}: {shown(value)} is {passed}")


def _apply(obj: Any, values: Any, source: str, prefix: str = "") -> None:
    """Write the mapping `values` into the dataclass `obj`, checking each key."""
    if not isinstance(values, dict):
        where = prefix.rstrip(".") or "the file"
        raise ConfigError(f"{source}: {where}: expected a mapping of keys, got {shown(values)}")
    hints = typing.get_type_hints(type(obj))
    fields = {f.name: f for f in dataclasses.fields(obj)}
    for name, value in values.items():
        where = f"{source}: {prefix}{name}"
        if name in ALIASES and not prefix:
            name = ALIASES[name]
            if name in values:
                raise ConfigError(f"{where}: an older name of {name}, which is given too; leave one")
        if name == "coco_classes":
            value = _class_names(value)
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1, cutoff=0.5)
            there = f"keys here: {', '.join(fields)}" if prefix else "python -m src.config lists all keys"
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; {there}"
            raise ConfigError(f"{where}: unknown key{hint}")
        if hints[name] is Backbone and isinstance(value, str):
            _apply_backbone(obj, value, where, source)
        elif dataclasses.is_dataclass(hints[name]):
            _apply(getattr(obj, name), value, source, f"{prefix}{name}.")
        else:
            converted = _convert(value, hints[name], where)
            _check_bounds(converted, fields[name].metadata, where)
            setattr(obj, name, converted)


def _class_names(value: Any) -> Any:
    """Names of classes as they're written, though YAML takes some for numbers; auto is an empty list."""
    if value == "auto":
        return []
    if isinstance(value, list):
        return [
            str(v) if isinstance(v, (Word, int, float)) and not isinstance(v, bool) and str(v) else v for v in value
        ]
    return value


def _apply_backbone(config: Any, name: str, where: str, source: str) -> None:
    """`backbone: NAME`: one of BACKBONES, and the neck that fits it."""
    if name not in BACKBONES:
        raise ConfigError(f"{where}: {shown(name)} is not one of {', '.join(BACKBONES)}")
    values = BACKBONES[name]
    _apply(config.backbone, PLAIN | values, source, "backbone.")
    config.neck.fpn.in_channels = list(BACKBONE_CHANNELS[values["type"]])


def _load_file(config: Config, path: Path, above: tuple[Path, ...] = ()) -> None:
    if len(above) > 20 or path in above:
        raise ConfigError(f"{path}: base: files name each other in a circle, or more than 20 in a row")
    try:
        values = read_yaml(path, ConfigError)
    except ConfigError as e:
        raise ConfigError(f"{above[-1]}: base: {e}" if above else str(e)) from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, got {shown(values)}")
    base = values.pop("base", None)
    if base is not None:
        _load_file(config, path.parent / _convert(base, str, f"{path}: base"), (*above, path))
    _apply(config, values, str(path))


def _check_together(c: Config, source: str) -> None:
    """Checks that concern more than one key."""

    def demand(ok: bool, message: str) -> None:
        if not ok:
            raise ConfigError(f"{source}: {message}")

    for check in (_check_classes, _check_backbone, _check_network, _check_images, _check_samplers, _check_places):
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
    first, outs = bb.out_indices[0], len(bb.out_indices)
    demand(bb.out_indices == list(range(first, first + outs)), "backbone.out_indices must rise one by one")
    demand(bb.out_indices[-1] < bb.num_stages, "backbone.out_indices names a stage past backbone.num_stages")
    for names, kind in ((("groups", "base_width"), "resnext"), (("width_multiplier", "relu6"), "mobilenet_v1")):
        for name in names if bb.type != kind else ():
            demand(
                getattr(bb, name) == PLAIN[name],
                f"backbone.{name} is {kind}'s, backbone.type {bb.type}; leave it at {PLAIN[name]} or set the type",
            )
    demand(
        fpn.in_channels == backbone_channels(bb),
        f"neck.fpn.in_channels is {fpn.in_channels}, but the backbone's outputs have {backbone_channels(bb)} channels",
    )
    demand(fpn.num_outs >= outs, "neck.fpn.num_outs is less than the number of its inputs")
    strides = c.rpn.anchor_generator.strides
    given = [2 ** (2 + first + i) for i in range(fpn.num_outs)]
    demand(strides == given, f"rpn.anchor_generator.strides is {strides}, but the neck's outputs have strides {given}")
    # levels past the backbone's subsample, and round up
    last = given[outs - 1]
    demand(
        c.img_width % last == 0 and c.img_height % last == 0,
        f"img_width and img_height must be multiples of the backbone's last stride, {last}",
    )


def _check_network(c: Config, demand: Callable[[bool, str], None]) -> None:
    """What comes after the neck; parts that the detector lacks aren't looked at."""
    for name in ("scales", "ratios"):
        demand(len(getattr(c.rpn.anchor_generator, name)) > 0, f"rpn.anchor_generator.{name} is empty")
    mask = (("mask_roi", c.mask_roi),) if c.with_mask else ()
    for name, roi in (("roi", c.roi), *mask):
        levels = len(roi.featmap_strides)
        demand(
            levels > 0 and roi.featmap_strides == c.rpn.anchor_generator.strides[:levels],
            f"{name}.featmap_strides must be the first of rpn.anchor_generator.strides, one or more",
        )
    demand(
        c.bbox_head.roi_feat_size == c.roi.roi_layer.out_size,
        "bbox_head.roi_feat_size isn't roi.roi_layer.out_size",
    )
    demand(
        not c.with_mask or c.train_cfg.rcnn.mask_size == 2 * c.mask_roi.roi_layer.out_size,
        "train_cfg.rcnn.mask_size must be twice mask_roi.roi_layer.out_size",
    )
    mask = (("mask_head", c.mask_head),) if c.with_mask else ()
    for name, got in (("rpn", c.rpn), ("bbox_head", c.bbox_head), *mask):
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
        not c.with_mask or rows >> (buckets - 1) > 0,
        f"train_cfg.rcnn.mask_buckets {buckets} halves {rows} positives a step to none; {rows.bit_length()} at most",
    )


def parse_overrides(arguments: list[str]) -> dict[str, str]:
    """`--a.b=V`, `--a.b V` or `a.b=V` words as {"a.b": "V"}; ConfigError for words that are neither."""
    out, i = {}, 0
    while i < len(arguments):
        word = arguments[i]
        name, eq, value = word.lstrip("-").partition("=")
        if not eq:
            if not word.startswith("--") or i + 1 >= len(arguments):
                raise ConfigError(f"argument {shown(word)}: expected --KEY VALUE or --KEY=VALUE")
            value, i = arguments[i + 1], i + 1
        out.pop(name, None)
        out[name] = value
        i += 1
    return out


def _nested(name: str, value: Any) -> dict:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def _hint(name: str) -> Any:
    """The type of a key by its dotted name; None for an unknown one."""
    hint: Any = Config
    for part in ALIASES.get(name, name).split("."):
        hint = typing.get_type_hints(hint).get(part) if dataclasses.is_dataclass(hint) else None
    return hint


def load_config(path: str | Path, overrides: dict[str, str] | None = None) -> Config:
    """Read `path` and its `base:` chain, then `overrides` ({"train_cfg.rpn.sampler.num": "128"}).

    An override of a text key is taken as it is; text for any other key is read as YAML. Raises ConfigError.
    """
    config = Config()
    _load_file(config, Path(path))
    source = str(path)
    for name, value in (overrides or {}).items():
        source = "command line"
        if isinstance(value, str) and _hint(name) is not str:
            # what isn't YAML is refused below, as not of the key's type
            with contextlib.suppress(ConfigError):
                value = parse_yaml(value, source, ConfigError)
        _apply(config, _nested(name, value), source)
    _check_together(config, source if not overrides else f"{path} and command line")
    return config


def load_nameless_config(path: str | Path, overrides: dict[str, Any]) -> Config:
    """load_config for a network alone: num_classes needs no names, class_1, class_2, ... stand for those not given."""
    count = str(overrides.get("num_classes", ""))
    nameless = count.isdecimal() and "coco_classes" not in overrides and int(count) <= MOST_CLASSES
    if nameless and int(count) != len(load_config(path).coco_classes):
        overrides = overrides | {"coco_classes": ["background", *(f"class_{i}" for i in range(1, int(count)))]}
    return load_config(path, overrides)


def save_config(config: Config, path: str | Path) -> None:
    """Writes every key as YAML that load_config reads; beside, then renamed; passwords in addresses as ***.

    Raises ConfigError.
    """
    with whole(Path(path), ConfigError, "set train_outputs to a folder that can") as beside:
        beside.write_text(yaml.safe_dump(masked_keys(dataclasses.asdict(config)), sort_keys=False), encoding="utf-8")


def add_config_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds --config_path; every other `--key value` of the command line overrides that key."""
    parser.add_argument("--config_path", default=default, help="YAML config file (default: %(default)s)")
    parser.epilog = "Any key of the config can follow as --KEY VALUE, e.g. --lr 0.01 --train_cfg.rpn.sampler.num 128"


def config_from_arguments(
    parser: argparse.ArgumentParser, arguments: list[str] | None = None
) -> tuple[Config, argparse.Namespace]:
    """Parses the command line into the config and the parser's own options. Raises ConfigError."""
    known, rest = parser.parse_known_args(arguments)
    return load_config(known.config_path, parse_overrides(rest)), known


def describe_keys(obj: Any = None, prefix: str = "") -> list[tuple[str, str, Any, str]]:
    """(key, type, default, meaning) of every key, in order: the README's table."""
    obj = Config() if obj is None else obj
    hints, rows = typing.get_type_hints(type(obj)), []
    for f in dataclasses.fields(obj):
        value = getattr(obj, f.name)
        if dataclasses.is_dataclass(value):
            rows += describe_keys(value, f"{prefix}{f.name}.")
        else:
            rows.append((prefix + f.name, _type_name(hints[f.name]), value, f.metadata["doc"]))
    return rows


def main() -> None:
    """Prints every key: python -m src.config [CONFIG]; with a file, that file's values instead of the defaults."""
    parser = argparse.ArgumentParser(prog="python -m src.config", description="Lists every key of the config.")
    parser.add_argument("config", nargs="?", help="YAML config file, whose values are listed (default: the defaults)")
    config = parser.parse_args().config
    for name, kind, value, doc in describe_keys(load_config(config) if config else None):
        text = one_line(str(masked_keys({name: value})[name]))
        print(f"{name} ({kind}) = {text if len(text) <= 60 else f'{text[:57]}...'}\n    {doc}")


if __name__ == "__main__":
    run_command(main)
