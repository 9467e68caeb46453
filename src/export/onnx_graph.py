"""The detector as an ONNX graph, of standard operators alone (opset 16).

The graph is put together here, operator by operator, from the detector's parameters, and not by MindSpore's exporter:
that one has no NonMaxSuppression but a fixed-size one of its own, reads transposed convolutions and small RoIs wrongly,
and knows opset 11, whose RoiAlign isn't aligned. ONNX's own operators say exactly what the detector does: suppression
class by class and level by level without moving boxes apart, RoiAlign aligned or not, with any sampling ratio. The
numbers of RoIs at each level, and of detections whose masks are wanted, are free, so nothing is computed for padding.

Opset 16 is the first with an aligned RoiAlign. Where RoIs are chosen, the first row of all always is, wanted or not: an
image without a single detection gives no empty tensors to operators that might not bear them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Union

import numpy as np
import onnx
from mindspore import nn
from onnx import TensorProto, helper, numpy_helper

from src.config import Config
from src.export.sidecar import describe
from src.models.anchors import cell_steps, map_size
from src.models.box_coder import BoxCoder
from src.models.fpn import FPN
from src.models.heads.box import BBoxHead
from src.models.norms import ConvNorm, GroupNorm, LayerNorm
from src.models.proposals import LEAST_LOGIT, NO_LOGIT
from src.models.rcnn import RCNN
from src.models.roi_extractor import RoIExtractor
from src.models.roi_heads.cascade import CascadeRoIHeads
from src.models.rpn import RPNHead
from src.ops.nms import float32_below
from src.runtime.newer import zip_equal

__all__ = ["OPSET", "onnx_model"]

OPSET, IR_VERSION = 16, 8
UNUSABLE = NO_LOGIT  # the score of a box that takes no part, below every probability and logit
TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "bool": TensorProto.BOOL}


Constant = Union[np.ndarray, np.generic, Sequence, float, int]


class Graph:
    """Operators and constants; values are known by their names."""

    def __init__(self):
        self.nodes, self.constants, self.known = [], {}, {}

    def constant(self, value: Constant, name: str = "") -> str:
        """A constant's name. Python's numbers are float32 or int64; equal constants without a name are one."""
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        name = name or self.known.setdefault((str(array.dtype), array.shape, array.tobytes()), f"c{len(self.known)}")
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def op(self, kind: str, *inputs: str | Constant, outputs: int = 1, **attributes):
        """Adds an operator; an input that isn't a name is a constant. Returns the name of its output, or a list."""
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        number = len(self.nodes)
        out = [f"{kind}_{number}" + (f"_{i}" if i else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, names, out, name=f"{kind}_{number}", **attributes))
        return out[0] if outputs == 1 else out

    def columns(self, x: str, which: Sequence[int]) -> str:
        """Columns `which` of the last axis."""
        return self.op("Gather", x, list(which), axis=-1)

    def reshape(self, x: str, *shape: int) -> str:
        return self.op("Reshape", x, list(shape))

    def rows(self, x: str, index: str) -> str:
        """x (N, M, ...) and index (N, K) int64 -> (N, K, ...): each image's own rows."""
        return self.op("GatherND", x, self.op("Unsqueeze", index, [-1]), batch_dims=1)

    def zeros(self, *shape: int) -> str:
        return self.op("ConstantOfShape", list(shape), value=helper.make_tensor("value", TensorProto.FLOAT, [1], [0]))

    def put(self, shape: Sequence[int], index: str, rows: str) -> str:
        """Zeros of `shape`, but `rows` at places `index` (R,) of the first axis."""
        return self.op("ScatterND", self.zeros(*shape), self.op("Unsqueeze", index, [-1]), rows)


def onnx_model(config: Config, detector: RCNN, batch_size: int = 1) -> onnx.ModelProto:
    """The model of `detector`, whose batch norms have been folded; inputs and outputs are those of the sidecar."""
    g = DetectorGraph(config, detector, batch_size)
    made = g.build("image", "image_shape")
    ports = describe(config, "whole", "ONNX", {}, batch_size)
    for port, name in zip_equal(ports["outputs"], made):
        g.nodes.append(helper.make_node("Identity", [name], [port["name"]], name=port["name"]))
    graph = helper.make_graph(g.nodes, config.detector, values(ports["inputs"]), values(ports["outputs"]))
    graph.initializer.extend(g.constants.values())
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="rcnn-mindspore")
    # as the sidecar, for whoever has the file alone
    helper.set_model_props(model, {"classes": json.dumps(ports["classes"])})
    onnx.checker.check_model(model, full_check=True)
    return model


def values(ports: list[dict]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(p["name"], TYPES[p["dtype"]], p["shape"]) for p in ports]


class DetectorGraph(Graph):
    """The detector, its cells written as their `construct` says; a GraphWriter for those that write themselves."""

    def __init__(self, config: Config, detector: RCNN, batch_size: int):
        super().__init__()
        self.config, self.detector, self.n = config, detector, batch_size

    def build(self, image: str, image_shape: str) -> list[str]:
        """The names of the outputs."""
        d, test = self.detector, self.config.test_cfg
        # (height, width, original height, original width) of a picture to the limits of x1 y1 x2 y2
        limit = self.op("Unsqueeze", self.columns(image_shape, [1, 0, 1, 0]), [1])
        original = self.op("Unsqueeze", self.columns(image_shape, [3, 2, 3, 2]), [1])
        maps = self.fpn(d.neck, d.backbone.onnx(self, image))
        proposals, _, valid, _ = self.suppress(*self.rpn(d.rpn.head, maps, limit), sum(d.rpn.proposals.taken), test.rpn)
        scores, deltas, references = self.classify(maps, proposals, valid, limit)
        boxes, scores, labels, valid = self.detections(scores, deltas, references, valid, limit)
        outputs = [self.op("Div", boxes, self.op("Div", limit, original)), scores, labels, valid]
        for branch in d.roi_heads.more:
            outputs.append(branch.onnx(self, maps, boxes, labels, valid, test.rcnn.max_per_img))
        return outputs

    # ---- convolutions

    def weight(self, parameter) -> str:
        return self.constant(parameter.asnumpy(), parameter.name)

    def conv(self, x: str, cell: nn.Conv2d, norm: nn.Cell | None = None, relu: bool = False) -> str:
        """The convolution, and its own bias, the bias that its batch norm has left, or a norm; a ConvNorm has both."""
        if isinstance(cell, ConvNorm):
            norm = cell.norm
        pad = list(cell.padding) if isinstance(cell.padding, tuple) else [cell.padding] * 4
        pads: dict[str, Any] = {"pads": [pad[0], pad[2], pad[1], pad[3]]}  # MindSpore: top, bottom, left, right
        if cell.pad_mode != "pad":
            pads = {"auto_pad": "SAME_UPPER" if cell.pad_mode == "same" else "VALID"}
        kind, transposed = "Conv", isinstance(cell, nn.Conv2dTranspose)
        if transposed:
            kind = "ConvTranspose"
        inputs = [x, self.weight(cell.weight)]
        if norm is not None and not isinstance(norm, (GroupNorm, LayerNorm)):
            # one that isn't folded has no bias
            inputs.append(self.weight(norm.bias))
        elif cell.has_bias:
            inputs.append(self.weight(cell.bias))
        y = self.op(
            kind,
            *inputs,
            kernel_shape=list(cell.kernel_size),
            strides=list(cell.stride),
            **pads,
            dilations=list(cell.dilation),
            group=cell.group,
        )
        if isinstance(norm, (GroupNorm, LayerNorm)):
            y = norm.onnx(self, y)
        return self.op("Relu", y) if relu else y

    def relu6(self, x: str) -> str:
        return self.op("Clip", x, np.float32(0), np.float32(6))

    def fpn(self, neck: FPN, inputs: list[str]) -> list[str]:
        x = self.conv(inputs[-1], neck.lateral_convs[-1])
        outputs = [self.conv(x, neck.fpn_convs[-1])]
        how: dict[str, Any] = {"coordinate_transformation_mode": "asymmetric"}
        for i in range(len(inputs) - 2, -1, -1):
            if not neck.adds:
                outputs.insert(0, self.conv(self.conv(inputs[i], neck.lateral_convs[i]), neck.fpn_convs[i]))
                continue
            top_down = neck.upsample_add[i]
            mode: dict[str, Any] = (
                {"mode": "nearest", "nearest_mode": "floor"} if top_down.mean is None else {"mode": "linear"}
            )
            if top_down.factor > 1:
                x = self.op("Resize", x, "", np.array([1, 1] + 2 * [top_down.factor], np.float32), **how, **mode)
            x = self.op("Add", self.conv(inputs[i], neck.lateral_convs[i]), x)
            outputs.insert(0, self.conv(x, neck.fpn_convs[i]))
        for _ in range(neck.extra):
            outputs.append(self.op("MaxPool", outputs[-1], kernel_shape=[1, 1], strides=[2, 2]))
        return outputs

    # ---- boxes

    def decode(self, coder: BoxCoder, deltas: str, references: str, limit: str) -> str:
        """Boxes (N, K, 4), clipped to their pictures."""
        d = self.op("Add", self.op("Mul", deltas, coder.stds.asnumpy()), coder.means.asnumpy())
        low, high = self.columns(references, [0, 1]), self.columns(references, [2, 3])
        size = self.op("Sub", high, low)
        centre = self.op("Add", low, self.op("Mul", size, 0.5))
        centre = self.op("Add", self.op("Mul", self.columns(d, [0, 1]), size), centre)
        log_size = self.op("Min", self.columns(d, [2, 3]), coder.max_log)
        if coder.clamp_both:
            log_size = self.op("Max", log_size, -coder.max_log)
        half = self.op("Mul", self.op("Exp", log_size), size)
        half = self.op("Mul", half, 0.5)
        least = np.zeros(4, np.float32)
        if self.config.box_plus_one:
            least, limit = np.array([0, 0, 1, 1], np.float32), self.op("Sub", limit, np.array([1, 1, 0, 0], np.float32))
        boxes = self.op("Concat", self.op("Sub", centre, half), self.op("Add", centre, half), axis=-1)
        return self.op("Max", self.op("Min", boxes, limit), least)

    def large_enough(self, boxes: str, least: float) -> str:
        """(N, K) bool: neither side is less than `least`."""
        size = self.op("Sub", self.columns(boxes, [2, 3]), self.columns(boxes, [0, 1]))
        return self.op("GreaterOrEqual", self.op("ReduceMin", size, axes=[-1], keepdims=0), float(least))

    def rpn(self, head: RPNHead, maps: list[str], limit: str) -> tuple[str, str, str]:
        """Decoded boxes (N, T, 4) of all levels, their scores (N, T), and which level each is of, (1, L, T) bool."""
        c, d = self.config, self.detector
        anchors = d.rpn.anchors.asnumpy()
        logits, deltas, references, levels = [], [], [], []
        for i, (x, stride) in enumerate(zip_equal(maps, c.rpn.anchor_generator.strides)):
            (h, w), a = map_size(c.img_height, c.img_width, stride), head.cls.out_channels
            y = x
            for conv in head.convs:
                y = self.conv(y, conv, relu=True)
            logit = self.op("Transpose", self.conv(y, head.cls), perm=[0, 2, 3, 1])
            if d.rpn.proposals.rank_by == "probabilities":
                logit = self.op("Sigmoid", logit)
            logit = self.op("Where", self.inside(h, w, stride, limit), logit, NO_LOGIT)
            best, index = self.op("TopK", self.reshape(logit, self.n, h * w * a), [d.rpn.proposals.taken[i]], outputs=2)
            delta = self.op("Transpose", self.conv(y, head.reg), perm=[0, 2, 3, 1])
            logits.append(best)
            deltas.append(self.rows(self.reshape(delta, self.n, h * w * a, 4), index))
            own = anchors[d.rpn.proposals.starts[i] : d.rpn.proposals.starts[i] + h * w * a]
            references.append(self.op("Gather", self.constant(own, f"anchors_{i}"), index, axis=0))
            levels += [i] * d.rpn.proposals.taken[i]
        logit = self.op("Concat", *logits, axis=1)
        deltas, references = self.op("Concat", *deltas, axis=1), self.op("Concat", *references, axis=1)
        boxes = self.decode(d.rpn.proposals.coder, deltas, references, limit)
        usable = self.op(
            "And", self.large_enough(boxes, c.test_cfg.rpn.min_bbox_size), self.op("Greater", logit, LEAST_LOGIT)
        )
        if d.rpn.proposals.rank_by == "logits_first":
            logit = self.op("Sigmoid", logit)
        if c.test_cfg.rpn.score_thr > 0:
            probability = self.op("Sigmoid", logit) if d.rpn.proposals.rank_by == "logits" else logit
            likely = self.op("GreaterOrEqual", probability, np.float32(c.test_cfg.rpn.score_thr))
            usable = self.op("And", usable, likely)
        scores = self.op("Where", usable, logit, UNUSABLE)
        return boxes, scores, self.constant(np.array(levels)[None, None] == np.arange(len(maps))[None, :, None])

    def inside(self, h: int, w: int, stride: int, limit: str) -> str:
        """(N, h, w, 1) bool: the cell begins inside the picture, or what that is padded to."""
        c, block = self.config, self.config.rpn.anchor_generator.size_divisor
        down, across = cell_steps(c.img_height, c.img_width, stride, c.rpn.anchor_generator.grid_strides)
        x = (np.arange(w, dtype=np.float32) * across // block * block).reshape(1, 1, w, 1)
        y = (np.arange(h, dtype=np.float32) * down // block * block).reshape(1, h, 1, 1)
        right = self.op("Less", x, self.reshape(self.columns(limit, [0]), self.n, 1, 1, 1))
        return self.op("And", self.op("Less", y, self.reshape(self.columns(limit, [1]), self.n, 1, 1, 1)), right)

    def suppress(self, boxes: str, scores: str, members: str, total: int, c) -> tuple[str, str, str, str]:
        """The best of `total` = T boxes that non-maximum suppression leaves, group by group.

        boxes (N, T, 4); scores (N, T), UNUSABLE where a box takes no part; members (N or 1, groups, T) bool; c:
        test_cfg.rpn or test_cfg.rcnn. Returns, D = max_per_img, boxes (N, D, 4) and scores (N, D), zero where not
        valid, valid (N, D), and their index (N, D) into T.
        """
        most = c.max_per_img
        grouped = self.op("Where", members, self.op("Unsqueeze", scores, [1]), UNUSABLE)
        threshold = np.full(1, float32_below(c.iou_threshold), np.float32)
        picked = self.op("NonMaxSuppression", boxes, grouped, [most], threshold, [LEAST_LOGIT])
        picked = self.columns(picked, [0, 2])  # image and box; a box has but one group
        left = self.op("ConstantOfShape", [self.n, total], value=helper.make_tensor("value", 1, [1], [UNUSABLE]))
        left = self.op("ScatterND", left, picked, self.op("GatherND", scores, picked))
        score, index = self.op("TopK", left, [min(most, total)], outputs=2)
        if most > total:
            score = self.op("Pad", score, [0, 0, 0, most - total], UNUSABLE)
            index = self.op("Pad", index, [0, 0, 0, most - total], 0)
        valid = self.op("Greater", score, LEAST_LOGIT)
        boxes = self.op("Where", self.op("Unsqueeze", valid, [-1]), self.rows(boxes, index), 0.0)
        return boxes, self.op("Where", valid, score, 0.0), valid, index

    # ---- second stage

    def roi_features(
        self, maps: Sequence[str], boxes: str, valid: str, count: int, extractor: RoIExtractor
    ) -> tuple[str, str]:
        """Features (R, C, S, S) of the valid ones of `count` boxes an image, and their places (R,) among all N * count.

        Level by level, as RoIAlign gives them; the first box is always among them.
        """
        total, align = self.n * count, extractor.roi_align
        boxes = self.reshape(boxes, total, 4)
        wanted = self.op("Or", self.reshape(valid, total), np.arange(total) == 0)
        image = self.constant(np.repeat(np.arange(self.n), count))
        size = self.op("Sub", self.columns(boxes, [2, 3]), self.columns(boxes, [0, 1]))
        side = self.op("Sqrt", self.op("ReduceProd", size, axes=[-1], keepdims=0))
        above = [self.op("GreaterOrEqual", side, least) for least in extractor.level_sides]
        if extractor.last_pixel_end:
            boxes = self.op("Sub", boxes, np.array([0, 0, 1, 1], np.float32))
        features, places = [], []
        for k, stride in enumerate(align.strides):
            own = wanted
            if k > 0:
                own = self.op("And", own, above[k - 1])
            if k < len(above):
                own = self.op("And", own, self.op("Not", above[k]))
            place = self.reshape(self.op("NonZero", own), -1)
            places.append(place)
            features.append(
                self.op(
                    "RoiAlign",
                    maps[k],
                    self.op("Gather", boxes, place),
                    self.op("Gather", image, place),
                    output_height=align.output_size,
                    output_width=align.output_size,
                    sampling_ratio=align.sampling_ratio,
                    spatial_scale=1.0 / stride,
                    coordinate_transformation_mode="half_pixel" if align.aligned else "output_half_pixel",
                )
            )
        return self.op("Concat", *features, axis=0), self.op("Concat", *places, axis=0)

    def dense(self, x: str, cell: nn.Dense, relu: bool = False) -> str:
        y = self.op("Gemm", x, self.weight(cell.weight), self.weight(cell.bias), transB=1)
        return self.op("Relu", y) if relu else y

    def box_head(self, head: BBoxHead, maps: list[str], proposals: str, valid: str) -> tuple[str, str]:
        """Logits (N, P, classes) and deltas (N, P, 4 * classes or 4) of P proposals an image; zero where not valid."""
        count = self.config.test_cfg.rpn.max_per_img
        x, places = self.roi_features(maps, proposals, valid, count, self.detector.roi_heads.extractor)
        out = []
        for cell, y in zip_equal((head.cls, head.reg), head.onnx(self, x)):
            y = self.put([self.n * count, cell.out_channels], places, y)
            out.append(self.reshape(y, self.n, count, cell.out_channels))
        return out[0], out[1]

    def classify(self, maps: list[str], proposals: str, valid: str, limit: str) -> tuple[str, str, str]:
        """Class probabilities (N, P, classes), deltas, and the boxes (N, P, 4) that these refer to."""
        heads = self.detector.roi_heads
        if not isinstance(heads, CascadeRoIHeads):
            logits, deltas = self.box_head(heads.box, maps, proposals, valid)
            return self.op("Softmax", logits, axis=-1), deltas, proposals
        boxes, stages = proposals, []
        for stage, head in enumerate(heads.boxes):
            if stage > 0:
                boxes = self.refine(heads.coders[stage - 1], logits, deltas, boxes, limit)
            logits, deltas = self.box_head(head, maps, boxes, valid)
            stages.append(logits)
        return self.mean(stages, heads.average_probabilities, "Softmax", axis=-1), deltas, boxes

    def refine(self, coder: BoxCoder, logits: str, deltas: str, boxes: str, limit: str) -> str:
        """The boxes that follow by a stage's deltas, those of the likeliest class but the background if class-wise."""
        if not self.config.bbox_head.reg_class_agnostic:
            classes = self.config.num_classes
            label = self.op("ArgMax", self.columns(logits, range(1, classes)), axis=-1, keepdims=0)
            label = self.op("Unsqueeze", self.op("Add", label, 1), [-1])
            deltas = self.op("GatherND", self.reshape(deltas, self.n, -1, classes, 4), label, batch_dims=2)
        return self.decode(coder, deltas, boxes, limit)

    def mean(self, stages: list[str], after: bool, function: str, **attributes) -> str:
        """`function` of the mean of the stages' logits; `after`: the mean of its values."""
        if after:
            stages = [self.op(function, x, **attributes) for x in stages]
        total = stages[0]
        for x in stages[1:]:
            total = self.op("Add", total, x)
        mean = self.op("Div", total, float(len(stages)))
        return mean if after else self.op(function, mean, **attributes)

    def detections(
        self, scores: str, deltas: str, references: str, valid: str, limit: str
    ) -> tuple[str, str, str, str]:
        """Boxes (N, D, 4) in canvas pixels, scores, labels int32 and valid (N, D)."""
        c, classes = self.config.test_cfg.rcnn, self.config.num_classes - 1
        scores = self.columns(scores, range(1, classes + 1))
        scores = self.op("Where", self.op("Unsqueeze", valid, [-1]), scores, UNUSABLE)
        pairs = self.config.test_cfg.rpn.max_per_img * classes
        kept = min(c.nms_pre, pairs)
        score, pair = self.op("TopK", self.reshape(scores, self.n, pairs), [kept], outputs=2)
        row, label = self.op("Div", pair, classes), self.op("Add", self.op("Mod", pair, classes), 1)
        place = row
        if not self.config.bbox_head.reg_class_agnostic:
            place = self.op("Add", self.op("Mul", row, classes + 1), label)
        delta = self.rows(self.reshape(deltas, self.n, -1, 4), place)
        boxes = self.decode(self.detector.roi_heads.selector.coder, delta, self.rows(references, row), limit)
        # named, as the one constant that a user may want to change in the file
        usable = self.op("Greater", score, self.constant(np.float32(c.score_thr), "score_thr"))
        usable = self.op("And", usable, self.large_enough(boxes, c.min_bbox_size))
        score = self.op("Where", usable, score, UNUSABLE)
        if c.agnostic_nms:
            members = self.constant(np.ones((1, 1, kept), bool))
        else:
            members = self.op("Equal", self.op("Unsqueeze", label, [1]), np.arange(1, classes + 1).reshape(1, -1, 1))
        boxes, score, valid, index = self.suppress(boxes, score, members, kept, c)
        label = self.op("Where", valid, self.op("GatherElements", label, index, axis=1), 0)
        return boxes, score, self.op("Cast", label, to=TensorProto.INT32), valid
