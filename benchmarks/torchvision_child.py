"""torchvision's Mask R-CNN R50-FPN, or one over MobileNetV1, at the same work, in a process of its own; started by the
other benchmarks.

Prints one JSON line: timings, peak memory, and what was detected. Needs torch and torchvision, not MindSpore.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from benchmarks.common import Timing, child_result, measure, peak_memory_mib, set_threads
from src.runtime.newer import zip_equal

__all__ = ["golden_shapes", "objects", "run_elsewhere"]

ROOT = Path(__file__).resolve().parents[1]
SAMPLED = 512  # RoIs an image in training


def golden_shapes() -> dict[str, tuple[int, ...]]:
    """torchvision's parameter names and shapes, 81 classes."""
    golden = np.load(ROOT / "tests/reference/maskrcnn_r50_fpn.npz")
    pairs = zip_equal(golden["names"], golden["shapes"])
    return {str(n): tuple(int(i) for i in str(s).split(",") if i) for n, s in pairs}


def objects(batch: int, height: int, width: int, count: int, classes: int = 81) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (B, N, 4) float32 in pixels, sides 5 to 50 % of the canvas's, log-uniform, and labels (B, N)."""
    r = np.random.default_rng(0)
    sides = np.exp(r.uniform(np.log(0.05), np.log(0.5), (batch, count, 2))) * [width, height]
    corner = r.uniform(0, 1, (batch, count, 2)) * ([width, height] - sides)
    return np.concatenate([corner, corner + sides], -1).astype(np.float32), r.integers(1, classes, (batch, count))


def run_elsewhere(
    python: str,
    work: str,
    threads: int,
    repeats: int,
    channels_last: bool = False,
    device: str = "CPU",
    **options: int | str,
) -> dict | None:
    """The child's result under interpreter `python`, or None, saying why, where it can't run. device: MindSpore's;
    options: further ones of the child.
    """
    words = [work, "--threads", str(threads), "--repeats", str(repeats)]
    words += ["--device", "cuda" if device == "GPU" else "cpu"]
    words += [word for k, v in options.items() for word in (f"--{k}", str(v))] + ["--channels_last"] * channels_last
    out = child_result(python, "benchmarks.torchvision_child", words, "torchvision")
    return out and out | {"timing": Timing(**out["timing"])}


def resnet():
    """ResNet-50 with a feature pyramid, stem, stage 1 and all batch norms frozen."""
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.misc import FrozenBatchNorm2d

    return resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3)


def mobilenet():
    """MobileNetV1 with one, of which the same is frozen."""
    from benchmarks.torch_mobilenet import MobileNetV1FPN

    return MobileNetV1FPN(256, relu6=False, same_padding=False)


def build(a: argparse.Namespace):
    """Weights from names, as the golden values', or a.weights', which has them by our names."""
    import torch
    from torchvision.models.detection import MaskRCNN

    from tests.reference.reference_weights import reference_state_dict

    model = MaskRCNN(
        mobilenet() if a.weights else resnet(),
        81,
        min_size=a.height,
        max_size=a.width,
        image_mean=[0.0, 0.0, 0.0],
        image_std=[1.0, 1.0, 1.0],
        box_positive_fraction=a.positives / SAMPLED,
    )
    state = given(model, a.weights) if a.weights else reference_state_dict(golden_shapes())
    model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    if a.channels_last:
        model = model.to(memory_format=torch.channels_last)
        as_one = model.transform.batch_images
        model.transform.batch_images = lambda *a, **k: as_one(*a, **k).contiguous(memory_format=torch.channels_last)
    return model


def given(model, weights: str) -> dict[str, np.ndarray]:
    """The weights of MaskRCNN over a MobileNetV1FPN in a .npz by our names."""
    from benchmarks.torch_mobilenet import our_name
    from src.checkpoints.convert.torchvision import rename

    with np.load(weights) as values:
        return {k: values[rename(k) or our_name(k.removeprefix("backbone."))] for k in model.state_dict()}


def train(a: argparse.Namespace) -> tuple[Timing, dict]:
    import torch

    model = build(a).train().to(a.device)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.0, momentum=0.9, weight_decay=1e-4)
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((a.batch, 3, a.height, a.width), np.float32))
    boxes, labels = objects(a.batch, a.height, a.width, a.objects)
    targets = []
    y, x = np.mgrid[: a.height, : a.width]
    for b, label in zip_equal(boxes, labels):
        masks = []
        for x1, y1, x2, y2 in b:
            u, v = (x + 0.5 - (x1 + x2) / 2) / ((x2 - x1) / 2), (y + 0.5 - (y1 + y2) / 2) / ((y2 - y1) / 2)
            masks.append(u * u + v * v <= 1)
        mask = torch.from_numpy(np.array(masks, np.uint8))
        targets.append({"boxes": torch.from_numpy(b), "labels": torch.from_numpy(label), "masks": mask})

    def step():
        there = [{k: v.to(a.device) for k, v in t.items()} for t in targets]
        losses = model(list(images.to(a.device)), there)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        return {k: float(v) for k, v in losses.items()}

    return measure(step, a.repeats, 1), step()


def infer(a: argparse.Namespace) -> tuple[Timing, dict]:
    import torch

    model = build(a).eval().to(a.device)
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((a.batch, 3, a.height, a.width), np.float32))
    # masks are pasted by the data set's evaluation, not by the network: left out on both sides
    model.transform.postprocess = lambda result, *_: result

    def run():
        with torch.no_grad():
            found = model(list(images.to(a.device)))
        return [{k: v.cpu() for k, v in d.items()} for d in found]

    timing = measure(run, a.repeats, 1)
    begin = time.process_time()
    found = run()
    return timing, {"detections": [len(d["scores"]) for d in found], "processor_s": time.process_time() - begin}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=("train", "infer"))
    for name, default in (("height", 768), ("width", 1280), ("batch", 2), ("objects", 8), ("positives", SAMPLED // 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--channels_last", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", help="of a Mask R-CNN over MobileNetV1, instead of one over ResNet-50")
    a = parser.parse_args()
    threads = set_threads(a.threads)
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    timing, what = (train if a.work == "train" else infer)(a)
    print(json.dumps({"timing": vars(timing), "peak_mib": peak_memory_mib(), **what}))


if __name__ == "__main__":
    main()
