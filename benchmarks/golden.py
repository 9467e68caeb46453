"""Golden values: what another project's own code gives for weights and inputs that are made from names and a salt.

    PYTHON -m benchmarks.golden PROJECT MODEL --out FILE.npz [--salt N] [--score_thresh X] [--masks N] [--double]

PYTHON has that project installed: torchvision, detectron2 or mmdet, which this one doesn't need. MODEL is torchvision's
function (fasterrcnn_resnet50_fpn), a config of Detectron2's model zoo or the path of a lazy one, or a config of mmdet's
package (cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py). `python -m benchmarks.reference --npz FILE.npz`
compares. Without mmcv's compiled operators, torchvision's serve mmdet, of the same definitions.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tests.reference.reference_weights import NUM_CLASSES, reference_inputs, reference_state_dict

__all__ = ["main"]

KEYPOINTS = 17
# not the network's: counters, and what normalises or is made of the config
LEFT_OUT = ("num_batches_tracked", "pixel_mean", "pixel_std")


def with_weights(model: Any, salt: int) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The model at inference with weights made from names, and its parameters' shapes by these names."""
    import torch

    shapes = {
        k: tuple(v.shape)
        for k, v in model.state_dict().items()
        if not k.endswith(LEFT_OUT) and "cell_anchors" not in k and not k.endswith("relative_position_index")
    }
    state = {k: torch.from_numpy(v) for k, v in reference_state_dict(shapes, salt).items()}
    unexpected = model.load_state_dict(state, strict=False).unexpected_keys
    assert not unexpected, unexpected
    return model.to(torch.get_default_dtype()).eval(), shapes


def maps_of(features: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Every sixteenth channel and second cell of each level's map."""
    return {f"fpn_{k}": f[:, ::16, ::2, ::2].numpy() for k, f in features.items()}


def of_torchvision(options: argparse.Namespace, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every stage of torchvision's model, its losses and the norms of their gradients, with all boxes sampled."""
    import torch
    import torchvision
    from torchvision.models.detection.image_list import ImageList

    kinds = {"num_classes": 2, "num_keypoints": KEYPOINTS} if options.model.startswith("keypoint") else {}
    make = getattr(torchvision.models.detection, options.model)
    model, shapes = with_weights(
        make(**{"weights": None, "weights_backbone": None, "num_classes": NUM_CLASSES} | kinds), options.salt
    )
    if options.score_thresh is not None:
        model.roi_heads.score_thresh = options.score_thresh
    image = torch.from_numpy(inputs["image"])
    images = ImageList(image, [tuple(image.shape[2:])] * len(image))
    with torch.no_grad():
        out = torchvision_inference(model, options, images, [torch.from_numpy(r) for r in inputs["rois"]])
    targets = []
    for i in range(len(image)):
        target = {n: torch.from_numpy(inputs[f"gt_{n}"][i]) for n in ("boxes", "labels", "masks")}
        if kinds:
            out[f"gt_keypoints_{i}"] = keypoints_of(inputs["gt_boxes"][i], options.salt + i)
            target["labels"] = torch.ones_like(target["labels"])
            target["keypoints"] = torch.from_numpy(out[f"gt_keypoints_{i}"])
        targets.append(target)
    model.train()
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.eval()
    for sampler in (model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler):
        sampler.batch_size_per_image, sampler.positive_fraction = 2 * 10**6, 0.5
    features = model.backbone(image)
    losses = dict(model.rpn(images, features, targets)[1])
    rois = [torch.from_numpy(r) for r in inputs["rois"]]
    losses |= model.roi_heads(features, rois, images.image_sizes, targets)[1]
    out |= {k: np.float64(v.item()) for k, v in losses.items()}
    sum(losses.values()).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            out[f"grad_norm/{name}"] = np.float64(p.grad.double().norm().item())
    return out | described(shapes)


def torchvision_inference(model: Any, options: argparse.Namespace, images: Any, rois: list) -> dict[str, np.ndarray]:
    """What each part gives at inference; the box head for `rois` too."""
    features = model.backbone(images.tensors)
    out = maps_of(features)
    for i, (logits, deltas) in enumerate(zip(*model.rpn.head(list(features.values())))):
        out[f"rpn_logits_{i}"], out[f"rpn_deltas_{i}"] = logits.numpy()[:, :, ::2, ::2], deltas.numpy()[:, :, ::2, ::2]
    heads = model.roi_heads
    classes, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, rois, images.image_sizes)))
    out["box_logits"], out["box_deltas"] = classes.numpy(), deltas.numpy()
    proposals, _ = model.rpn(images, features, None)
    out |= {f"proposals_{i}": q.numpy() for i, q in enumerate(proposals)}
    for i, d in enumerate(heads(features, proposals, images.image_sizes, None)[0]):
        out |= {f"det_{n}_{i}": d[n].numpy() for n in ("boxes", "scores", "labels")}
        if "masks" in d:
            out[f"det_masks_{i}"] = d["masks"][: options.masks, 0].numpy()
        if "keypoints" in d:
            out[f"det_keypoints_{i}"] = d["keypoints"].numpy()
            out[f"det_keypoint_scores_{i}"] = d["keypoints_scores"].numpy()
    return out


def keypoints_of(boxes: np.ndarray, seed: int) -> np.ndarray:
    """(N, 17, 3) x, y, visibility: a point of each kind in each box, of which every fifth isn't visible."""
    r = np.random.default_rng([seed, 5])
    part = r.uniform(0.05, 0.95, (len(boxes), KEYPOINTS, 2))
    places = boxes[:, None, :2] + part * (boxes[:, None, 2:] - boxes[:, None, :2])
    seen = (np.arange(KEYPOINTS) % 5 != 4)[None, :, None] * np.ones((len(boxes), 1, 1))
    return np.concatenate([places, seen], -1).astype(np.float32)


def of_detectron2(options: argparse.Namespace, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Maps, proposals and detections of Detectron2's."""
    import torch
    from detectron2.structures import ImageList

    image = torch.from_numpy(inputs["image"])
    model, shapes = with_weights(detectron2_model(options.model), options.salt)
    if options.score_thresh is not None:
        predictors = model.roi_heads.box_predictor
        for predictor in predictors if hasattr(predictors, "__len__") else [predictors]:
            predictor.test_score_thresh = options.score_thresh
    images = ImageList(image, [tuple(image.shape[2:])] * len(image))
    with torch.no_grad():
        features = model.backbone(image)
        proposals, _ = model.proposal_generator(images, features, None)
        found, _ = model.roi_heads(images, features, proposals, None)
    out = maps_of(features) | {f"proposals_{i}": q.proposal_boxes.tensor.numpy() for i, q in enumerate(proposals)}
    for i, d in enumerate(found):
        out[f"det_boxes_{i}"], out[f"det_scores_{i}"] = d.pred_boxes.tensor.numpy(), d.scores.numpy()
        out[f"det_labels_{i}"] = d.pred_classes.numpy()
        if d.has("pred_masks"):
            out[f"det_masks_{i}"] = d.pred_masks[: options.masks, 0].numpy()
        if d.has("pred_keypoints"):
            points = d.pred_keypoints.numpy()
            out[f"det_keypoints_{i}"], out[f"det_keypoint_scores_{i}"] = points, points[..., 2]
    return out | described(shapes)


def detectron2_model(config: str) -> Any:
    """Detectron2's model of a YAML config of its zoo or a lazy one."""
    from detectron2 import model_zoo
    from detectron2.config import LazyConfig, instantiate
    from detectron2.modeling import build_model

    if config.endswith(".py"):
        return instantiate(LazyConfig.load(config).model)
    c = model_zoo.get_config(config)
    c.MODEL.DEVICE, c.MODEL.WEIGHTS = "cpu", ""
    return build_model(c)


def of_mmdetection(options: argparse.Namespace, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same of mmdetection's, whose masks are pasted: det_masks_packed_i, bits."""
    stand_in_for_mmcv()
    import mmdet
    import torch
    from mmdet.models.roi_heads.mask_heads import fcn_mask_head
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    paste = fcn_mask_head._do_paste_mask
    fcn_mask_head._do_paste_mask = lambda masks, boxes, *more, **options: paste(
        masks.float(), boxes.float(), *more, **options
    )
    register_all_modules(init_default_scope=True)
    config = Config.fromfile(os.path.join(os.path.dirname(mmdet.__file__), ".mim", "configs", options.model))
    config.model.backbone.init_cfg = None
    model, shapes = with_weights(MODELS.build(config.model), options.salt)
    if options.score_thresh is not None:
        model.roi_head.test_cfg.score_thr = options.score_thresh
    image = torch.from_numpy(inputs["image"])
    size = tuple(image.shape[2:])
    samples = [DetDataSample() for _ in image]
    for s in samples:
        s.set_metainfo(dict.fromkeys(("img_shape", "ori_shape", "batch_input_shape", "pad_shape"), size))
        s.set_metainfo({"scale_factor": (1.0, 1.0)})
    with torch.no_grad():
        features = model.extract_feat(image)
        proposals = model.rpn_head.predict(features, samples, rescale=False)
        found = model.roi_head.predict(features, proposals, samples, rescale=False)
    out = maps_of({f"p{i + 2}": f for i, f in enumerate(features)})
    out |= {f"proposals_{i}": q.bboxes.numpy() for i, q in enumerate(proposals)}
    for i, d in enumerate(found):
        for name in ("bboxes", "scores", "labels"):
            out[f"det_{name.replace('bb', 'b')}_{i}"] = d[name].numpy()
        if "masks" in d:
            out[f"det_masks_packed_{i}"] = np.packbits(d.masks.numpy()[: options.masks].astype(bool), axis=-1)
    return out | described(shapes)


def stand_in_for_mmcv() -> None:
    """Has torchvision's NMS and RoIAlign serve where mmcv's own aren't compiled (mmcv-lite)."""
    import torchvision

    try:
        importlib.import_module("mmcv._ext")
        return
    except ImportError:
        pass

    class Extension(types.ModuleType):
        def __getattr__(self, name: str) -> Callable:
            if name.startswith("__"):
                raise AttributeError(name)

            def absent(*_: Any, **__: Any) -> None:
                raise NotImplementedError(f"mmcv's {name} isn't compiled")

            return absent

    extension = Extension("mmcv._ext")

    def nms(boxes: Any, scores: Any, iou_threshold: float, offset: int) -> Any:
        assert offset == 0, offset
        return torchvision.ops.nms(boxes, scores, iou_threshold)

    extension.nms = nms  # type: ignore[attr-defined]
    sys.modules["mmcv._ext"] = extension
    from mmcv.ops import RoIAlign

    def forward(self: Any, features: Any, rois: Any) -> Any:
        assert self.pool_mode == "avg", self.pool_mode
        sampling = (self.spatial_scale, self.sampling_ratio, self.aligned)
        return torchvision.ops.roi_align(features, rois, self.output_size, *sampling)

    RoIAlign.forward = forward


def described(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The parameters' names and shapes, as a file keeps them."""
    return {"names": np.array(list(shapes)), "shapes": np.array([",".join(map(str, s)) for s in shapes.values()])}


PROJECTS = {"torchvision": of_torchvision, "detectron2": of_detectron2, "mmdetection": of_mmdetection}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("project", choices=tuple(PROJECTS))
    parser.add_argument("model", help="its function, or its config")
    parser.add_argument("--out", required=True, help="file to write")
    parser.add_argument("--salt", type=int, default=0, help="other weights and inputs")
    parser.add_argument(
        "--score_thresh", type=float, help="in place of the model's, where these weights' scores are low"
    )
    parser.add_argument("--double", action="store_true", help="compute in float64: how near the project is to itself")
    parser.add_argument("--masks", type=int, help="masks kept an image, those of highest score (default: all)")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(2)
    inputs = reference_inputs(options.salt)
    if options.double:
        torch.set_default_dtype(torch.float64)
        inputs = {n: v.astype(np.float64) if v.dtype == np.float32 else v for n, v in inputs.items()}
    out = PROJECTS[options.project](options, inputs) | {"salt": np.int64(options.salt)}
    np.savez_compressed(options.out, **out)
    for k, v in out.items():
        if k not in ("names", "shapes", "salt") and not k.startswith("grad_norm/"):
            print(f"{k:24s} {str(np.shape(v)):20s} mean|x| {np.abs(np.asarray(v, np.float64)).mean():.5g}")
    print("parameters:", len(out["names"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
