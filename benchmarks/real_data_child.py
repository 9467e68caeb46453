"""torchvision's Faster R-CNN on a MobileNetV1 of this file's own, trained as a job of benchmarks.real_data says.

Needs torch and torchvision, not MindSpore. Writes COCO results of the validation split.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.io import ImageReadMode, read_image
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

# (output channels, stride) of the separable blocks of each stage
STAGES = (
    ((64, 1), (128, 2), (128, 1)),
    ((256, 2), (256, 1)),
    ((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)),
    ((1024, 2), (1024, 1)),
)
NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def same(x: torch.Tensor, stride: int) -> torch.Tensor:
    """Padding of TensorFlow's SAME for a 3x3 kernel: of odd amounts the larger part is right and below."""
    pads: list[int] = []
    for side in (x.shape[3], x.shape[2]):
        total = max((-(-side // stride) - 1) * stride + 3 - side, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


class Block(nn.Module):
    """A depthwise and a pointwise convolution, each with a norm that stays as it is and ReLU6."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride = stride
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, groups=inputs, bias=False)
        self.bn1 = FrozenBatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = FrozenBatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.bn1(self.depthwise(same(x, self.stride))))
        return F.relu6(self.bn2(self.pointwise(x)))


class Backbone(nn.Module):
    """MobileNetV1 with a feature pyramid; stem and first stage frozen, as in the config."""

    def __init__(self, channels: int, weights: str):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 32, 3, 2, bias=False), FrozenBatchNorm2d(32)
        inputs = 32
        for i, plan in enumerate(STAGES, 1):
            blocks = []
            for outputs, stride in plan:
                blocks.append(Block(inputs, outputs, stride))
                inputs = outputs
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        with np.load(weights) as values:
            state = self.state_dict()
            for name in state:
                layer, _, part = name.rpartition(".")
                norm = "bn" in layer.rpartition(".")[2]
                state[name] = torch.from_numpy(values[f"backbone.{layer}.{NORM[part] if norm else part}"])
        self.load_state_dict(state)
        for frozen in (self.conv1, self.layer1):
            frozen.requires_grad_(False)
        self.fpn = FeaturePyramidNetwork([plan[-1][0] for plan in STAGES], channels, LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = F.relu6(self.bn1(self.conv1(same(x, 2))))
        maps = {}
        for i in range(len(STAGES)):
            x = getattr(self, f"layer{i + 1}")(x)
            maps[str(i)] = x
        return self.fpn(maps)


def build(job: dict[str, Any], classes: int) -> FasterRCNN:
    roi_align = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2, canonical_scale=4 * job["finest"], canonical_level=4)
    return FasterRCNN(
        Backbone(job["channels"], job["weights"]),
        min_size=min(job["sides"]),
        max_size=max(job["sides"]),
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        rpn_anchor_generator=AnchorGenerator(
            tuple((side,) for side in job["anchors"]), (tuple(job["ratios"]),) * len(job["anchors"])
        ),
        rpn_pre_nms_top_n_train=job["train"][0],
        rpn_post_nms_top_n_train=job["train"][1],
        rpn_pre_nms_top_n_test=job["test"][0],
        rpn_post_nms_top_n_test=job["test"][1],
        box_roi_pool=roi_align,
        box_head=TwoMLPHead(job["channels"] * 49, job["width"]),
        box_predictor=FastRCNNPredictor(job["width"], classes),
        box_batch_size_per_image=job["rois"],
    )


def split(root: Path, name: str) -> tuple[list[dict], dict[int, list[dict]], list[int]]:
    """Images, annotations by image, category ids of a COCO split."""
    truth = json.loads((root / f"annotations/instances_{name}2017.json").read_text())
    objects: dict[int, list[dict]] = {image["id"]: [] for image in truth["images"]}
    for a in truth["annotations"]:
        if not a.get("iscrowd"):
            objects[a["image_id"]].append(a)
    return truth["images"], objects, [c["id"] for c in truth["categories"]]


def picture(root: Path, name: str, image: dict) -> torch.Tensor:
    return read_image(str(root / f"{name}2017" / image["file_name"]), ImageReadMode.RGB).float() / 255


def target_of(objects: list[dict], categories: list[int], width: int, flip: bool) -> dict[str, torch.Tensor]:
    boxes = torch.tensor([a["bbox"] for a in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    if flip:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    labels = torch.tensor([categories.index(a["category_id"]) + 1 for a in objects], dtype=torch.int64)
    return {"boxes": boxes, "labels": labels}


def train(model: FasterRCNN, job: dict[str, Any]) -> None:
    root, random = Path(job["data"]), np.random.default_rng(job["seed"])
    images, objects, categories = split(root, "train")
    images = [i for i in images if objects[i["id"]]]
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=job["rates"][0])
    order: list[int] = []
    for step, rate in enumerate(job["rates"]):
        if step % job["steps_an_epoch"] == 0:
            order = random.permutation(len(images)).tolist()
        chosen = [order.pop() for _ in range(min(job["batch"], len(order)))]
        inputs, targets = [], []
        for i in chosen:
            x, flip = picture(root, "train", images[i]), random.random() < job["flip"]
            inputs.append(x.flip(2) if flip else x)
            targets.append(target_of(objects[images[i]["id"]], categories, x.shape[2], flip))
        loss = sum(model(inputs, targets).values())
        optimizer.zero_grad()
        loss.backward()
        if job["grad_clip"]:
            nn.utils.clip_grad_norm_(weights, job["grad_clip"])
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        print(f"torchvision: step {step + 1} of {len(job['rates'])}, loss {float(loss):.4f}", flush=True)


def detect(model: FasterRCNN, job: dict[str, Any]) -> list[dict]:
    root, out = Path(job["data"]), []
    images, _, categories = split(root, "val")
    for image in images:
        with torch.no_grad():
            found = model([picture(root, "val", image)])[0]
        for (x1, y1, x2, y2), label, score in zip(*(found[k].tolist() for k in ("boxes", "labels", "scores"))):
            box = [x1, y1, x2 - x1, y2 - y1]
            category = categories[label - 1]
            out.append({"image_id": image["id"], "category_id": category, "bbox": box, "score": score})
    return out


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.manual_seed(job["seed"])
    model = build(job, len(split(Path(job["data"]), "train")[2]) + 1)
    train(model.train(), job)
    Path(job["results"]).write_text(json.dumps(detect(model.eval(), job)))


if __name__ == "__main__":
    main()
