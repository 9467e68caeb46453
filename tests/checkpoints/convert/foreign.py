"""Files and names of other projects, made without their code."""

from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile
from pathlib import Path

import numpy as np

from src.runtime.newer import zip_equal

STORAGES = {"f4": "FloatStorage", "f8": "DoubleStorage", "f2": "HalfStorage", "i8": "LongStorage", "u1": "ByteStorage"}


class Raw(bytes):
    """Opcodes of a pickle, ready."""


def op(value) -> bytes:
    """Opcodes that put `value` on the stack (protocol 2)."""
    if isinstance(value, Raw):
        return value
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value) if abs(value) < 2**31 else pickle.dumps(value, 2)[2:-1]
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, tuple):
        return b"(" + b"".join(map(op, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(op, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(op(k) + op(v) for k, v in value.items()) + b"u"
    raise TypeError(type(value))


def name(module: str, attribute: str) -> Raw:
    return Raw(f"c{module}\n{attribute}\n".encode())


def call(function: Raw, *arguments) -> Raw:
    return Raw(function + op(arguments) + b"R")


def dump(value) -> bytes:
    return b"\x80\x02" + op(value) + b"."


def tensor(key: str, array: np.ndarray, shape=None, stride=None, offset=0, numel=None) -> Raw:
    """A tensor in the storage `key` that `array` fills; by default all of it."""
    storage = name("torch", STORAGES[array.dtype.str[1:]])
    pid = Raw(op(("storage", storage, key, "cpu", array.size if numel is None else numel)) + b"Q")
    steps = tuple(s // array.itemsize for s in array.strides)
    if shape is None:
        shape, stride = array.shape, steps
    hooks = call(name("collections", "OrderedDict"))
    return call(name("torch._utils", "_rebuild_tensor_v2"), pid, offset, shape, stride, False, hooks)


def state_opcodes(state: dict) -> dict:
    return {n: tensor(str(i), v) for i, (n, v) in enumerate(state.items())}


def write_zip(path: Path, state: dict, wrap=lambda content: content) -> Path:
    """As torch.save writes since 1.6. `wrap` puts the state dict's opcodes into something."""
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("archive/data.pkl", dump(wrap(state_opcodes(state))))
        z.writestr("archive/byteorder", "little")
        for i, v in enumerate(state.values()):
            z.writestr(f"archive/data/{i}", v.ravel("K").tobytes())
        z.writestr("archive/version", "3\n")
    return path


def write_legacy(path: Path, state: dict, wrap=lambda content: content) -> Path:
    """As torch.save wrote before 1.6."""
    out = io.BytesIO()
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    for part in (0x1950A86A20F9469CFC6C, 1001, system):
        out.write(dump(part))
    legacy = {
        n: Raw(bytes(t).replace(op(v.size) + b"tQ", op(v.size) + b"NtQ"))  # the view that it isn't
        for (n, t), v in zip_equal(state_opcodes(state).items(), state.values())
    }
    out.write(dump(wrap(legacy)))
    out.write(dump([str(i) for i in range(len(state))]))
    for v in state.values():
        out.write(struct.pack("<q", v.size) + v.ravel("K").tobytes())
    path.write_bytes(out.getvalue())
    return path


def write_pkl(path: Path, content, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


# ---------------------------------------------------------------------------------------------------------
# names and shapes

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def resnet(stem: str, block: str, parts: dict, norm: tuple, depth: int = 50, groups: int = 1, base: int = 64) -> dict:
    """A ResNet's names and shapes. stem, block: name patterns with {part}, {stage} from 1, {index}; `parts`: names of
    conv1, bn1, conv2, ... there; norm: names of its four parts."""
    shapes = {}

    def add(pattern, conv, bn, shape, **where):
        shapes[pattern.format(part=parts[conv], **where) + parts.get("weight", ".weight")] = shape
        for n in norm:
            shapes[pattern.format(part=parts[bn], **where) + n] = (shape[0],)

    add(stem, "conv1", "bn1", (64, 3, 7, 7))
    inputs = 64
    for s, count in enumerate(BLOCKS[depth]):
        width, outputs = groups * base * 2**s, 256 * 2**s
        for i in range(count):
            where = {"stage": s + 1, "res": s + 2, "index": i}
            add(block, "conv1", "bn1", (width, inputs, 1, 1), **where)
            add(block, "conv2", "bn2", (width, width // groups, 3, 3), **where)
            add(block, "conv3", "bn3", (outputs, width, 1, 1), **where)
            if i == 0:
                add(block, "conv0", "bn0", (outputs, inputs, 1, 1), **where)
            inputs = outputs
    return shapes


TORCH_NORM = (".weight", ".bias", ".running_mean", ".running_var")
MS_NORM = (".gamma", ".beta", ".moving_mean", ".moving_variance")
SAME = {f"{kind}{i}": f"{kind}{i}" for kind in ("conv", "bn") for i in (1, 2, 3)}
TORCH = SAME | {"conv0": "downsample.0", "bn0": "downsample.1"}


def torchvision_backbone(prefix: str = "", **kind) -> dict:
    return resnet(prefix + "{part}", prefix + "layer{stage}.{index}.{part}", TORCH, TORCH_NORM, **kind)


def caffe2_backbone(**kind) -> dict:
    """MSRA's R-50.pkl: scale and shift alone, and the classifier."""
    parts = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "conv0": "branch1", "weight": "_w"}
    parts |= {f"bn{i}": parts[f"conv{i}"] + "_bn" for i in range(4)}
    shapes = resnet("STEM_{part}", "res{res}_{index}_{part}", parts, ("_s", "_b"), **kind)
    stem = {
        "STEM_branch2a_w": "conv1_w",
        "STEM_branch2a_bn_s": "res_conv1_bn_s",
        "STEM_branch2a_bn_b": "res_conv1_bn_b",
    }
    return {stem.get(n, n): s for n, s in shapes.items()} | {"fc1000_w": (1000, 2048), "fc1000_b": (1000,)}


def zoo_backbone(prefix: str, down: tuple[str, str], **kind) -> dict:
    """MindSpore's: `down` names the shortcut's convolution and batch norm."""
    parts = SAME | {"conv0": down[0], "bn0": down[1]}
    return resnet(prefix + "{part}", prefix + "layer{stage}.{index}.{part}", parts, MS_NORM, **kind)


def layer(shapes: dict, prefix: str, *shape: int, bias: int | None = None) -> None:
    shapes[prefix + ".weight"], shapes[prefix + ".bias"] = shape, (shape[0] if bias is None else bias,)


def fpn_rpn(shapes: dict, lateral: str, output: str, conv: str, cls: str, reg: str, channels: int = 8, first=0) -> None:
    """Feature pyramid on a ResNet and RPN of three anchors a cell."""
    for i in range(4):
        layer(shapes, lateral.format(i + first), channels, 256 * 2**i, 1, 1)
        layer(shapes, output.format(i + first), channels, channels, 3, 3)
    layer(shapes, conv, channels, channels, 3, 3)
    layer(shapes, cls, 3, channels, 1, 1)
    layer(shapes, reg, 12, channels, 1, 1)


def maskrcnn_benchmark(classes: int = 81, channels: int = 8, hidden: int = 16, masks: bool = True, **kind) -> dict:
    """e2e_mask_rcnn_R_50_FPN, or e2e_faster_rcnn, by default with 8 channels and fully connected layers of 16."""
    body = "backbone.body."
    shapes = resnet(body + "stem.{part}", body + "layer{stage}.{index}.{part}", TORCH, TORCH_NORM, **kind)
    inner, outer = "backbone.fpn.fpn_inner{}", "backbone.fpn.fpn_layer{}"
    fpn_rpn(shapes, inner, outer, "rpn.head.conv", "rpn.head.cls_logits", "rpn.head.bbox_pred", channels, first=1)
    layer(shapes, "roi_heads.box.feature_extractor.fc6", hidden, channels * 49)
    layer(shapes, "roi_heads.box.feature_extractor.fc7", hidden, hidden)
    layer(shapes, "roi_heads.box.predictor.cls_score", classes, hidden)
    layer(shapes, "roi_heads.box.predictor.bbox_pred", 4 * classes, hidden)
    for i in range(4 if masks else 0):
        layer(shapes, f"roi_heads.mask.feature_extractor.mask_fcn{i + 1}", channels, channels, 3, 3)
    if masks:
        layer(shapes, "roi_heads.mask.predictor.conv5_mask", channels, channels, 2, 2)
        layer(shapes, "roi_heads.mask.predictor.mask_fcn_logits", classes, channels, 1, 1)
    return shapes


def mmdetection(classes: int = 80) -> dict:
    """mask_rcnn_r50_fpn with 8 channels and fully connected layers of 16."""
    shapes = torchvision_backbone("backbone.")
    rpn, roi = "rpn_head.rpn_", "roi_head."
    fpn_rpn(shapes, "neck.lateral_convs.{}.conv", "neck.fpn_convs.{}.conv", rpn + "conv", rpn + "cls", rpn + "reg")
    heads(shapes, roi + "bbox_head.shared_fcs.0", roi + "bbox_head.shared_fcs.1", classes)
    layer(shapes, roi + "bbox_head.fc_cls", classes + 1, 16)
    layer(shapes, roi + "bbox_head.fc_reg", 4 * classes, 16)
    for i in range(4):
        layer(shapes, roi + f"mask_head.convs.{i}.conv", 8, 8, 3, 3)
    layer(shapes, roi + "mask_head.upsample", 8, 8, 2, 2)
    layer(shapes, roi + "mask_head.conv_logits", classes, 8, 1, 1)
    return shapes


def mmdetection_gn(classes: int = 80, channels: int = 32) -> dict:
    """mask_rcnn_r50_fpn_gn-all, its convolutions of few channels."""
    shapes = {
        re.sub(r"\bbn(\d)", r"gn\1", n): s
        for n, s in torchvision_backbone("backbone.").items()
        if not n.endswith((".running_mean", ".running_var"))
    }
    rpn, roi = "rpn_head.rpn_", "roi_head."
    convs: dict = {}
    lateral, output = "neck.lateral_convs.{}.conv", "neck.fpn_convs.{}.conv"
    fpn_rpn(convs, lateral, output, rpn + "conv", rpn + "cls", rpn + "reg", channels)
    for part in ("bbox_head.shared_convs", "mask_head.convs"):
        for i in range(4):
            layer(convs, f"{roi}{part}.{i}.conv", channels, channels, 3, 3)
    # convolutions with a norm have no bias
    for name, shape in convs.items():
        stem, _, part = name.rpartition(".conv.")
        if not stem or "rpn" in stem:
            shapes[name] = shape
        elif part == "weight":
            shapes[name] = shape
            shapes |= {f"{stem}.gn.{p}": (channels,) for p in ("weight", "bias")}
    layer(shapes, roi + "bbox_head.shared_fcs.0", 16, channels * 49)
    layer(shapes, roi + "bbox_head.fc_cls", classes + 1, 16)
    layer(shapes, roi + "bbox_head.fc_reg", 4 * classes, 16)
    layer(shapes, roi + "mask_head.upsample", channels, channels, 2, 2)
    layer(shapes, roi + "mask_head.conv_logits", classes, channels, 1, 1)
    return shapes


def heads(shapes: dict, fc1: str, fc2: str, classes: int) -> None:
    layer(shapes, fc1, 16, 8 * 49)
    layer(shapes, fc2, 16, 16)


def torchvision_of_2019(classes: int = 91) -> dict:
    """maskrcnn_resnet50_fpn_coco's names, which are older than torchvision's present ones; small heads."""
    shapes = torchvision_backbone("backbone.body.")
    inner, outer = "backbone.fpn.inner_blocks.{}", "backbone.fpn.layer_blocks.{}"
    fpn_rpn(shapes, inner, outer, "rpn.head.conv", "rpn.head.cls_logits", "rpn.head.bbox_pred")
    heads(shapes, "roi_heads.box_head.fc6", "roi_heads.box_head.fc7", classes)
    layer(shapes, "roi_heads.box_predictor.cls_score", classes, 16)
    layer(shapes, "roi_heads.box_predictor.bbox_pred", 4 * classes, 16)
    for i in range(4):
        layer(shapes, f"roi_heads.mask_head.mask_fcn{i + 1}", 8, 8, 3, 3)
    layer(shapes, "roi_heads.mask_predictor.conv5_mask", 8, 8, 2, 2)
    layer(shapes, "roi_heads.mask_predictor.mask_fcn_logits", classes, 8, 1, 1)
    return shapes


def mindspore_zoo(with_mask: bool, neck: str = "fpn_ncek", reg_classes: int = 81) -> dict:
    """The model zoo's Faster or Mask R-CNN, ResNet-50, with small heads; dense layers (inputs, outputs)."""
    shapes = zoo_backbone("backbone.", ("conv_down_sample", "bn_down_sample"))
    rpn = "rpn_with_loss.rpn_convs_list.0.rpn_"
    lateral, output = f"{neck}.lateral_convs_list.{{}}", f"{neck}.fpn_convs_list.{{}}"
    fpn_rpn(shapes, lateral, output, rpn + "conv", rpn + "cls", rpn + "reg")
    head = "rcnn_cls.fpn_cls." if with_mask else "rcnn."
    layer(shapes, head + "shared_fc_0", 8 * 49, 16, bias=16)
    layer(shapes, head + "shared_fc_1", 16, 16)
    layer(shapes, head + "cls_scores", 16, 81, bias=81)
    layer(shapes, head + "reg_scores", 16, 4 * reg_classes, bias=4 * reg_classes)
    if with_mask:
        for i in range(4):
            layer(shapes, f"rcnn_mask.fpn_mask.mask_conv{i + 1}", 8, 8, 3, 3)
        layer(shapes, "rcnn_mask.fpn_mask.mask_deconv5", 8, 8, 2, 2)
        layer(shapes, "rcnn_mask.fpn_mask.mask_conv6", 81, 8, 1, 1)
    return shapes


MOBILE = ((64, 128, 128), (256, 256), (512,) * 6, (1024, 1024))


def zoo_mobilenet(prefix: str = "network.", width: float = 1.0) -> dict:
    """The model zoo's MobileNetV1: convolution and batch norm pairs, one after the other."""
    shapes, channels, index = {}, int(32 * width), 0

    def pair(shape):
        nonlocal index
        shapes[f"{prefix}{index}.0.weight"] = shape
        shapes.update({f"{prefix}{index}.1{n}": (shape[0],) for n in MS_NORM})
        index += 1

    pair((channels, 3, 3, 3))
    for outputs in (int(c * width) for stage in MOBILE for c in stage):
        pair((channels, 1, 3, 3))
        pair((outputs, channels, 1, 1))
        channels = outputs
    return shapes


def mindcv_mobilenet(width: float = 1.0) -> dict:
    """mindcv's: the same in blocks of `features`."""
    out = {}
    for n, shape in zoo_mobilenet("", width).items():
        layer_index, part, rest = n.split(".", 2)
        number, part = int(layer_index), int(part)
        if number == 0:
            out[f"features.{part}.{rest}"] = shape
        else:
            block, second = divmod(number - 1, 2)
            out[f"features.{block + 3}.{3 * second + part}.{rest}"] = shape
    return out | {"classifier.weight": (1000, out["features.15.3.weight"][0]), "classifier.bias": (1000,)}


def slim_mobilenet(width: float = 1.0, body: str = "MobilenetV1/") -> dict:
    """TensorFlow-Slim's, from its mobilenet_v1.py: kernels (H, W, I, O), blocks counted from 1; its classifier and what
    its training kept."""
    shapes, channels = {body + "Conv2d_0/weights": (3, 3, 3, int(32 * width))}, int(32 * width)
    norms = [("Conv2d_0", channels)]
    for index, outputs in enumerate((int(c * width) for stage in MOBILE for c in stage), 1):
        shapes[f"{body}Conv2d_{index}_depthwise/depthwise_weights"] = (3, 3, channels, 1)
        shapes[f"{body}Conv2d_{index}_pointwise/weights"] = (1, 1, channels, outputs)
        norms += [(f"Conv2d_{index}_depthwise", channels), (f"Conv2d_{index}_pointwise", outputs)]
        channels = outputs
    shapes |= {f"{body}{layer}/BatchNorm{n.replace('.', '/')}": (c,) for layer, c in norms for n in MS_NORM}
    shapes |= {f"{n}/ExponentialMovingAverage": s for n, s in shapes.items()}
    logits = {"weights": (1, 1, channels, 1001), "biases": (1001,)}
    return shapes | {f"{body}Logits/Conv2d_1c_1x1/{n}": s for n, s in logits.items()} | {"global_step": ()}


def values(shapes: dict, seed: int = 0) -> dict:
    """Some values, float32; variances positive."""
    r = np.random.default_rng(seed)
    out = {n: r.standard_normal(s, np.float32) for n, s in shapes.items()}
    return {n: np.abs(v) + 0.1 if n.endswith(("running_var", "moving_variance")) else v for n, v in out.items()}
