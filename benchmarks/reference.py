"""Every stage of the detector against golden values that another project computed.

    python -m benchmarks.reference --npz tests/reference/maskrcnn_r50_fpn.npz [--salt N] [--config CONFIG] [--json OUT]
                                  [--device_target GPU]

Weights and inputs are made from names and the salt (tests/reference/reference_weights.py); the file holds what
torchvision, Detectron2 or mmdetection gave for them, with that project's parameter names, which pass through the
converter. What the file holds is compared: feature maps, proposals, detections and masks of every one; of torchvision's
the stages between too, of theirs and Swin's losses and gradients. Exits with status 1 if a stage is past its tolerance.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from pycocotools import mask as rle

from src.checkpoints.convert.conversion import LAYOUTS, config_name, convert, recognise, renamed, target_shapes
from src.config import Config, load_config
from src.data.transforms import View, crop_mask, mask_window
from src.evaluation.keypoints import decode_heatmaps
from src.evaluation.masks import paste_masks
from src.models.build import build_detector, build_loss
from src.models.rcnn import RCNN, RCNNLoss
from src.ops.device import set_device
from src.runtime.errors import UserError, run_command
from src.runtime.newer import zip_equal
from tests.reference.reference_weights import reference_inputs, reference_state_dict

__all__ = ["Row", "compare", "match_boxes"]

ROOT = Path(__file__).resolve().parent.parent
MAPS = 1e-4  # float32 sums in another order: some 1e-6 measured; 1e-4 still tells any convention apart
BOX, SCORE = 0.05, 1e-4  # pixels; probability
MATCHED = 0.99  # a pair at a threshold may fall either way in float32
POINT = 0.1  # pixels: of a box that differs by BOX at either end; a heatmap of two equal heights may show the other
PASTED = 0.98  # IoU of a bitmap: a pixel whose probability is the threshold may fall either way, a few an outline
PIXELS = 1  # and of a bitmap of less than 50 pixels that one alone is more than PASTED allows
NO_GRAD = (
    1e-5  # a bias of whole heatmaps has none, as softmax doesn't see it: 2e-8, rounding; others have 4e-4 and more
)
GRAD = 1e-2  # relative norms
LOSSES = {
    "rpn_cls_loss": "loss_objectness",
    "rpn_reg_loss": "loss_rpn_box_reg",
    "rcnn_cls_loss": "loss_classifier",
    "rcnn_reg_loss": "loss_box_reg",
    "rcnn_mask_loss": "loss_mask",
    "rcnn_keypoint_loss": "loss_keypoint",
}


@dataclass
class Row:
    """One comparison: passes if `value` <= `limit` (errors) or >= `limit` (matched shares)."""

    stage: str
    value: float
    limit: float
    share: bool = False

    @property
    def passed(self) -> bool:
        return bool(self.value >= self.limit if self.share else self.value <= self.limit)


class FirstStage(nn.Cell):
    """The detector's feature maps and proposals."""

    def __init__(self, detector: RCNN):
        super().__init__(auto_prefix=False)
        self.detector = detector

    def construct(self, image: Tensor, image_size: Tensor) -> tuple:
        d = self.detector
        features = d.features(image)
        proposals = d.rpn(features, image_size)
        return features, proposals["boxes"], proposals["valid"]


class Stages(nn.Cell):
    """The detector's intermediate results on given RoIs, and its proposals."""

    def __init__(self, detector: RCNN):
        super().__init__(auto_prefix=False)
        self.detector = detector

    def construct(self, image: Tensor, image_size: Tensor, rois: Tensor) -> tuple:
        d = self.detector
        features = d.features(image)
        logits, deltas = d.rpn.head(features)
        proposals = d.rpn(features, image_size)
        heads = d.roi_heads
        box_features = heads.extractor(features, rois, ops.ones(rois.shape[:2], ms.bool_))
        cls, reg = heads.box(box_features)
        return features, logits, deltas, proposals["boxes"], proposals["valid"], box_features, cls, reg


class MaskStages(nn.Cell):
    """The mask head's features of given RoIs, and its masks of the first eight."""

    def __init__(self, detector: RCNN):
        super().__init__(auto_prefix=False)
        self.detector = detector

    def construct(self, image: Tensor, rois: Tensor) -> tuple:
        (branch,) = self.detector.roi_heads.more
        found = branch.extractor(self.detector.features(image), rois, ops.ones(rois.shape[:2], ms.bool_))
        head = branch.heads[0]
        return found, head.logits(head.features(found[:8]))


class GivenProposals(nn.Cell):
    """RCNNLoss with the second stage's proposals given instead of the network's own."""

    def __init__(self, loss: RCNNLoss):
        super().__init__(auto_prefix=False)
        self.loss = loss

    def construct(self, rois, *inputs):
        image, image_size, last = inputs[0], inputs[1], len(self.loss.inputs)
        features = self.loss.detector.features(image)
        truth = {"boxes": inputs[2], "labels": inputs[3], "valid": inputs[4], "ignore": inputs[last - 1]}
        for i in range(len(self.loss.fields)):
            truth[self.loss.fields[i]] = inputs[5 + i]
        rpn = self.loss.rpn_loss(features, image_size, truth, inputs[last])
        given = {"boxes": rois, "valid": ops.ones(rois.shape[:2], ms.bool_)}
        parts = rpn[1] + self.loss.roi_loss(features, given, image_size, truth, inputs[last + 1])[0]
        total = parts[0]
        for i in range(1, len(parts)):
            total = total + parts[i]
        return ops.stack((total,) + parts)


class Gradients(nn.Cell):
    """Losses and their gradients."""

    def __init__(self, loss: GivenProposals):
        super().__init__(auto_prefix=False)
        self.loss, self.weights = loss, ms.ParameterTuple(loss.trainable_params())
        self.grad = ops.GradOperation(get_by_list=True, sens_param=True)
        self.sens = Tensor(np.eye(1, len(loss.loss.names), dtype=np.float32)[0])

    def construct(self, *batch: Tensor) -> tuple:
        return self.loss(*batch), self.grad(self.loss, self.weights)(*batch, self.sens)


def relative(ours: np.ndarray, golden: np.ndarray) -> float:
    """||ours - golden|| / ||golden||"""
    ours, golden = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    return float(np.linalg.norm(ours - golden) / max(np.linalg.norm(golden), 1e-30))


def match_boxes(
    ours: np.ndarray,
    golden: np.ndarray,
    box_tolerance: float = BOX,
    our_scores: np.ndarray | None = None,
    golden_scores: np.ndarray | None = None,
    our_labels: np.ndarray | None = None,
    golden_labels: np.ndarray | None = None,
    score_tolerance: float = SCORE,
) -> np.ndarray:
    """One-to-one pairs of boxes (N, 4) and (M, 4) whose corners differ by at most `box_tolerance` pixels, scores by
    at most `score_tolerance`, labels not at all: (K, 2) indices, nearest pairs first.
    """
    if not len(ours) or not len(golden):
        return np.zeros((0, 2), np.int64)
    distance = np.abs(ours[:, None].astype(np.float64) - golden[None]).max(-1)
    allowed = distance <= box_tolerance
    if our_scores is not None:
        allowed &= np.abs(our_scores[:, None].astype(np.float64) - golden_scores[None]) <= score_tolerance
    if our_labels is not None:
        allowed &= our_labels[:, None] == golden_labels[None]
    i, j = np.nonzero(allowed)
    used_i, used_j, pairs = set(), set(), []
    for k in np.argsort(distance[i, j], kind="stable"):
        if i[k] not in used_i and j[k] not in used_j:
            used_i.add(i[k])
            used_j.add(j[k])
            pairs.append((i[k], j[k]))
    return np.array(pairs, np.int64).reshape(-1, 2)


def matched_share(pairs: np.ndarray, ours: np.ndarray, golden: np.ndarray) -> float:
    """Pairs over the longer of the two lists."""
    return len(pairs) / max(len(ours), len(golden), 1)


def whole_crop(height: int, width: int) -> int:
    """The mask_crop_size with which a cell of any object's crop is a pixel of the canvas."""
    return max(height, width) + 2


def crop_masks(masks: np.ndarray, boxes: np.ndarray, size: int, crop: str = "box") -> np.ndarray:
    """Crops (B, G, size, size) uint8 of bitmaps (B, G, H, W), see train_cfg.rcnn.mask_crop."""
    height, width = masks.shape[2:]
    view = View((0, 0, width, height), (height, width))
    out = np.zeros(boxes.shape[:2] + (size, size), np.uint8)
    for b, g in np.ndindex(*boxes.shape[:2]):
        segmentation, box = rle.encode(np.asfortranarray(masks[b, g])), boxes[b, g].astype(np.float32)
        if crop == "pixels":
            out[b, g] = mask_window(segmentation, box, view, height, width, size)
        else:
            out[b, g] = crop_mask(segmentation, box, height, width, size)
    return out


def golden_shapes(golden: np.lib.npyio.NpzFile) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the project's parameters."""
    return {
        str(n): tuple(int(i) for i in str(s).split(",") if i) for n, s in zip_equal(golden["names"], golden["shapes"])
    }


def reference_config(layout: str, shapes: dict, height: int, width: int, given: str | None = None) -> Config:
    """The project's conventions on the golden canvas, nothing frozen, samplers that take all there is.

    given: the config's path; by default the one that the shapes tell.
    """
    overrides = {
        "img_height": height,
        "img_width": width,
        "backbone.frozen_stages": -1,
        "backbone.norm_grad": True,
        "backbone.drop_path": 0.0,
        "max_instance_count": 6,
        "mask_crop_size": whole_crop(height, width),
        "train_cfg.rpn.sampler.num": 100_000,
        "train_cfg.rcnn.sampler.num": 100_000,
        "train_cfg.rcnn.sampler.pos_fraction": 0.5,
    }
    # only shapes matter for the config's name
    ours = renamed({n: np.broadcast_to(np.float32(0), s) for n, s in shapes.items()}, layout).params
    name = config_name(layout, {n: v.shape for n, v in ours.items()})
    path = given or ROOT / "configs" / name
    # batch norms use their running statistics, as theirs in eval()
    for part in ("neck.fpn", "bbox_head", "mask_head"):
        if attrgetter(f"{part}.norm")(load_config(path)) in ("batch", "sync"):
            overrides[f"{part}.norm"] = "running"
    return load_config(path, overrides | {"backbone.norm_eval": True})


def load_weights(
    config: Config, detector: RCNN, golden: np.lib.npyio.NpzFile, salt: int, layout: str = "torchvision"
) -> None:
    """Gives `detector` the golden weights; raises UserError if any parameter has no place or no value."""
    out = convert(reference_state_dict(golden_shapes(golden), salt), layout, config, target_shapes(detector))
    if out.unused or out.unfilled or out.mismatched:
        raise UserError(f"golden names don't fit: unused {out.unused}, not filled {out.unfilled + out.mismatched}")
    ms.load_param_into_net(detector, {n: ms.Parameter(v, name=n) for n, v in out.params.items()})


def compare_first_stage(detector: RCNN, inputs: dict, golden: np.lib.npyio.NpzFile) -> list[Row]:
    """Feature maps and proposals."""
    image = inputs["image"]
    size = Tensor(np.array([image.shape[2:]] * len(image), np.float32))
    features, proposals, valid = FirstStage(detector)(Tensor(image), size)
    rows = []
    for i, f in enumerate(features):
        rows.append(Row(f"fpn_p{i + 2}", relative(f.asnumpy()[:, ::16, ::2, ::2], golden[f"fpn_p{i + 2}"]), MAPS))
    return rows + compare_proposals(proposals.asnumpy(), valid.asnumpy(), golden)


def compare_proposals(proposals: np.ndarray, valid: np.ndarray, golden: np.lib.npyio.NpzFile) -> list[Row]:
    """Proposals (B, P, 4), of which `valid` (B, P), one to one."""
    rows = []
    for i, own in enumerate(proposals):
        ours, want = own[valid[i]], golden[f"proposals_{i}"]
        rows.append(Row(f"proposals_{i} matched", matched_share(match_boxes(ours, want), ours, want), MATCHED, True))
    return rows


def level_names(golden: np.lib.npyio.NpzFile) -> list[tuple[str, str]]:
    """What the file calls each level's map, and its RPN outputs."""
    maps = [n.removeprefix("fpn_") for n in golden.files if n.startswith("fpn_")]
    return [(name, name if name.startswith("p") and name != "pool" else str(i)) for i, name in enumerate(maps)]


def compare_stages(detector: RCNN, inputs: dict, golden: np.lib.npyio.NpzFile) -> list[Row]:
    """Feature maps, RPN, RoI features, heads on given RoIs, and proposals."""
    image = inputs["image"]
    b, _, h, w = image.shape
    size = Tensor(np.array([[h, w]] * b, np.float32))
    out = Stages(detector)(Tensor(image), size, Tensor(inputs["rois"]))
    features, logits, deltas, proposals, valid, box_features, cls, reg = out
    rows = []
    for i, (level, rpn) in enumerate(level_names(golden)):
        f = features[i].asnumpy()
        rows.append(Row(f"fpn_{level}", relative(f[:, ::16, ::2, ::2], golden[f"fpn_{level}"]), MAPS))
        grid = f.shape[2:]
        o = logits[i].asnumpy().reshape(b, *grid, -1).transpose(0, 3, 1, 2)
        d = deltas[i].asnumpy().reshape(b, *grid, -1).transpose(0, 3, 1, 2)
        rows.append(Row(f"rpn_logits_{level}", relative(o[:, :, ::2, ::2], golden[f"rpn_logits_{rpn}"]), MAPS))
        rows.append(Row(f"rpn_deltas_{level}", relative(d[:, :, ::2, ::2], golden[f"rpn_deltas_{rpn}"]), MAPS))
    found = {"roi_feats_7": box_features.asnumpy()[:, ::16], "box_logits": cls.asnumpy(), "box_deltas": reg.asnumpy()}
    if "mask_logits" in golden:
        mask_features, masks = MaskStages(detector)(Tensor(image), Tensor(inputs["rois"]))
        found["roi_feats_14"] = mask_features.asnumpy()[:, ::16, ::2, ::2]
        found["mask_logits"] = masks.asnumpy()[:, ::10]
    rows += [Row(name, relative(ours, golden[name]), MAPS) for name, ours in found.items() if name in golden]
    return rows + compare_proposals(proposals.asnumpy(), valid.asnumpy(), golden)


def compare_detections(
    detector: RCNN, inputs: dict, golden: np.lib.npyio.NpzFile, labels_from: int = 0, keypoint_score: str = "logit"
) -> list[Row]:
    """Final detections and their masks or keypoints, if any; a file may have masks of the first ones alone.

    labels_from: our label of the project's class 0.  keypoint_score: see decode_heatmaps.
    """
    image = inputs["image"]
    b, _, h, w = image.shape
    size = Tensor(np.array([[h, w]] * b, np.float32))
    boxes, scores, labels, valid, *more = (x.asnumpy() for x in detector(Tensor(image), size))
    rows = []
    for i in range(b):
        v = valid[i]
        want = golden[f"det_boxes_{i}"]
        pairs = match_boxes(
            boxes[i][v],
            want,
            BOX,
            scores[i][v],
            golden[f"det_scores_{i}"],
            labels[i][v],
            golden[f"det_labels_{i}"] + labels_from,
        )
        rows.append(Row(f"detections_{i} matched", matched_share(pairs, boxes[i][v], want), MATCHED, True))
        if f"det_masks_{i}" in golden:
            (masks,) = more
            kept = pairs[pairs[:, 1] < len(golden[f"det_masks_{i}"])]
            ours_masks, want_masks = masks[i][v][kept[:, 0]], golden[f"det_masks_{i}"][kept[:, 1]]
            # masks hang on boxes that differ by up to 0.05 px
            rows.append(Row(f"det_masks_{i}", relative(ours_masks, want_masks), 1e-3))
        elif f"det_masks_packed_{i}" in golden:
            (masks,) = more
            want_masks = np.unpackbits(golden[f"det_masks_packed_{i}"], axis=-1)[pairs[:, 1], :, :w]
            rows.append(
                Row(
                    f"det_masks_{i} pasted, worst IoU",
                    worst_iou(masks[i][v], boxes[i][v], pairs, want_masks),
                    PASTED,
                    True,
                )
            )
        if f"det_keypoints_{i}" in golden:
            ours_maps, ours_boxes = more[0][i][v][pairs[:, 0]], boxes[i][v][pairs[:, 0]]
            rows += compare_keypoints(ours_maps, ours_boxes, golden, i, pairs[:, 1], keypoint_score)
    return rows


def compare_keypoints(
    heatmaps: np.ndarray, boxes: np.ndarray, golden: np.lib.npyio.NpzFile, i: int, which: np.ndarray, score: str
) -> list[Row]:
    """Keypoints of detections that are paired with those at `which` of image i."""
    points = decode_heatmaps(heatmaps, boxes, score)
    want, scores = golden[f"det_keypoints_{i}"][which], golden[f"det_keypoint_scores_{i}"][which]
    near = np.abs(points[..., :2] - want[..., :2]).max(-1) <= POINT
    return [
        Row(f"det_keypoints_{i} within {POINT} px", float(near.mean()), MATCHED, True),
        Row(f"det_keypoint_scores_{i}", relative(points[..., 2], scores), 1e-3),
    ]


def worst_iou(masks: np.ndarray, boxes: np.ndarray, pairs: np.ndarray, want: np.ndarray) -> float:
    """Least IoU of pasted masks with the bitmaps (K, H, W) that they are paired with, of those that differ in more than
    PIXELS pixels; 1 where none does, 0 where there is none.
    """
    if not len(pairs):
        return 0.0
    encoded = paste_masks(masks[pairs[:, 0]], boxes[pairs[:, 0]], *want.shape[1:], convention="grid")
    ours = np.stack([rle.decode(r) for r in encoded])
    differ, union = (ours != want).sum((1, 2)), (ours | want).sum((1, 2))
    return float((1 - differ / np.maximum(union, 1))[differ > PIXELS].min(initial=1.0))


def compare_training(
    config: Config, detector: RCNN, inputs: dict, golden: np.lib.npyio.NpzFile, layout: str = "torchvision"
) -> list[Row]:
    """The losses, and the norm of each parameter's gradient, which `layout` names."""
    loss = GivenProposals(build_loss(config, detector))
    image = inputs["image"]
    b, _, h, w = image.shape
    anchors = detector.rpn.anchors.shape[0]
    given, objects = inputs["rois"].shape[1], inputs["gt_boxes"].shape[1]
    fields = {
        "masks": lambda: crop_masks(
            inputs["gt_masks"], inputs["gt_boxes"], config.mask_crop_size, config.train_cfg.rcnn.mask_crop
        ),
        "keypoints": lambda: np.stack([golden[f"gt_keypoints_{i}"] for i in range(b)]),
    }
    # one class alone where there are keypoints
    labels = np.minimum(inputs["gt_labels"], config.num_classes - 1).astype(np.int32)
    losses, grads = Gradients(loss).set_train()(
        Tensor(inputs["rois"]),
        Tensor(image),
        Tensor(np.array([[h, w]] * b, np.float32)),
        Tensor(inputs["gt_boxes"]),
        Tensor(labels),
        Tensor(np.ones((b, objects), bool)),
        *(Tensor(fields[name]()) for name in loss.loss.fields),
        Tensor(np.zeros((b, config.max_crowd_count, 4), np.float32)),
        Tensor(np.full((b, anchors), 0.5, np.float32)),
        Tensor(np.full((b, given + objects), 0.5, np.float32)),
    )
    rows = []
    for name, value in zip_equal(loss.loss.names[1:], losses.asnumpy()[1:]):
        rows.append(Row(LOSSES[name], relative(value, golden[LOSSES[name]]), MAPS))
    norms = {p.name: g.asnumpy() for p, g in zip_equal(loss.trainable_params(), grads)}
    worst = {}
    count = 0
    for key in golden.files:
        if key.startswith("grad_norm/"):
            name = LAYOUTS[layout].rename(key.removeprefix("grad_norm/"))
            branch = "mask branch" if name.startswith("mask_head") else "other"
            ours = np.linalg.norm(norms[name].astype(np.float64))
            error = abs(ours - golden[key]) / max(abs(float(golden[key])), NO_GRAD)
            worst[branch] = max(worst.get(branch, (0.0, "")), (float(error), name))
            count += 1
    for branch, (error, name) in worst.items():
        rows.append(Row(f"gradient norms, {branch}, worst: {name}", error, GRAD))
    rows.append(Row("gradients compared", count / len(norms), 1.0, True))
    return rows


def compare(
    npz: str | Path,
    salt: int | None = None,
    training: bool = True,
    builtin_ops: bool = False,
    config_path: str | None = None,
    compiled: bool = True,
) -> list[Row]:
    """Every comparison of the golden file `npz`; `builtin_ops`: without the C++ operators.

    salt: that the file was made with; by default what it says itself, 0 where it doesn't.
    config_path: of models whose weights don't tell them from others.
    compiled: false runs the stages and the training operator by operator, the detector as a graph all the same.
    """
    try:
        golden = np.load(npz)
    except (OSError, ValueError) as e:
        raise UserError(f"{npz}: can't read the golden values: {e}") from None
    if salt is None:
        salt = int(golden["salt"]) if "salt" in golden else 0
    ms.set_context(mode=ms.GRAPH_MODE)
    inputs = reference_inputs(salt)
    shapes = golden_shapes(golden)
    layout = recognise(shapes)
    config = reference_config(layout, shapes, *inputs["image"].shape[2:], config_path)
    if any((golden[n] <= config.test_cfg.rcnn.score_thr).any() for n in golden.files if n.startswith("det_scores")):
        # these weights' scores are low, and the file was made without a threshold
        config.test_cfg.rcnn.score_thr = 0.0
    detector = build_detector(config, builtin_ops)
    load_weights(config, detector, golden, salt, layout)
    detector.set_train(False)
    labels_from = 0 if layout == "torchvision" else 1
    rows = compare_detections(detector, inputs, golden, labels_from, config.keypoint_head.score)
    stages = compare_stages if "box_logits" in golden else compare_first_stage
    training = training and "loss_objectness" in golden
    try:
        ms.set_context(mode=ms.GRAPH_MODE if compiled else ms.PYNATIVE_MODE)
        rows = stages(detector, inputs, golden) + rows
        return rows + (compare_training(config, detector, inputs, golden, layout) if training else [])
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--npz", required=True, help="golden values")
    parser.add_argument("--salt", type=int, help="salt that they were made with (default: the file's, else 0)")
    parser.add_argument("--config", help="of a model whose weights don't tell it from others (default: by its weights)")
    parser.add_argument("--json", help="write the table here too")
    parser.add_argument("--device_target", default="CPU", choices=("CPU", "GPU", "Ascend"), help="where to compute")
    arguments = parser.parse_args()
    set_device(Config(device_target=arguments.device_target, compute_type="float32"))
    rows = compare(arguments.npz, arguments.salt, config_path=arguments.config)
    for r in rows:
        sign = ">=" if r.share else "<="
        print(f"{'ok  ' if r.passed else 'FAIL'} {r.stage:60s} {r.value:10.3g} {sign} {r.limit:g}")
    if arguments.json:
        table = [{"stage": r.stage, "value": r.value, "limit": r.limit, "passed": r.passed} for r in rows]
        Path(arguments.json).write_text(json.dumps(table, indent=1) + "\n")
    failed = sum(not r.passed for r in rows)
    print(f"{len(rows) - failed} of {len(rows)} comparisons within tolerance")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
