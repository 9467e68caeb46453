"""torchvision's Faster R-CNN on a MobileNetV1 in PyTorch, trained as a job of benchmarks.real_data says.

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
from torchvision.io import ImageReadMode, read_image
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from benchmarks.torch_mobilenet import MobileNetV1FPN


def build(job: dict[str, Any], classes: int) -> FasterRCNN:
    roi_align = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2, canonical_scale=4 * job["finest"], canonical_level=4)
    backbone = MobileNetV1FPN(job["channels"], relu6=True, same_padding=True)
    with np.load(job["weights"]) as values:
        backbone.take(values)
    return FasterRCNN(
        backbone,
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
