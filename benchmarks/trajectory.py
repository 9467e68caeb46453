"""Twenty training steps against torchvision's: losses and weights' norms, step by step, nothing drawn by chance.

    python -m benchmarks.trajectory --npz tests/reference/trajectory_maskrcnn_r50_fpn.npz [--salt N] [--steps N]
                                   [--device_target GPU] [--operators]

The file holds what torchvision's Mask R-CNN gave: weights and four images made from names and the salt
(tests/reference/reference_weights.py), two images a step in turns, stem, stage 1 and batch norms frozen, SGD with
momentum and weight decay, samplers that take every box. So it shows optimizer, decay, momentum and freezing, which one
step doesn't. Exits with status 1 if a value is past its tolerance.

On a CPU convolutions are MindSpore's own here, oneDNN's sums as torchvision's are, which takes 12 GB; --operators has
them as training has. Of thousands of proposals some pair's IoU is the threshold to five digits, and other rounding lets
one fall the other way sooner, after which losses aren't those of the same boxes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from benchmarks.reference import LOSSES, ROOT, Row, crop_masks, load_weights, whole_crop
from src.checkpoints.convert import torchvision
from src.config import Config, load_config
from src.models.build import build_detector, build_loss, sampler_key_sizes
from src.ops.device import set_device
from src.ops.library import plain_sums
from src.runtime.errors import UserError, run_command
from src.training.step import build_step, step_inputs
from tests.reference.reference_weights import reference_inputs

__all__ = ["compare"]

NAMES = ROOT / "tests/reference/maskrcnn_r50_fpn.npz"  # of torchvision's parameters, with their shapes
# float32 sums in another order, which steps add up: 1e-3 and 2e-2 still tell another momentum, decay or layer apart
EARLY, LATE, FIRST = 1e-3, 2e-2, 5


def trajectory_config(rate: float, height: int, width: int) -> Config:
    return load_config(
        ROOT / "configs/torchvision_mask_rcnn_r50_fpn.yaml",
        {
            "img_height": height,
            "img_width": width,
            "max_instance_count": 6,
            "mask_crop_size": whole_crop(height, width),
            "train_cfg.rpn.sampler.num": 100_000,
            "train_cfg.rcnn.sampler.num": 100_000,
            "train_cfg.rcnn.sampler.pos_fraction": 0.5,
            "backbone.frozen_stages": 1,
            "backbone.norm_eval": True,
            "backbone.norm_grad": False,
            "opt_type": "sgd",
            "lr": rate,
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "loss_scale": 1.0,
            "compute_type": "float32",
        },
    )


def batch_of(config: Config, salt: int) -> list[Tensor]:
    """The inputs of a step: the two images of a salt; keys don't matter where every box is taken."""
    x = reference_inputs(salt)
    count, _, height, width = x["image"].shape
    boxes = x["gt_boxes"].astype(np.float32)
    batch = {
        "image": x["image"],
        "image_size": np.array([[height, width]] * count, np.float32),
        "gt_boxes": boxes,
        "gt_labels": x["gt_labels"].astype(np.int32),
        "gt_valid": np.ones(boxes.shape[:2], bool),
        "gt_masks": crop_masks(x["gt_masks"], x["gt_boxes"], config.mask_crop_size, config.train_cfg.rcnn.mask_crop),
        "ignore_boxes": np.zeros((count, config.max_crowd_count, 4), np.float32),
    }
    keys = tuple(np.full((count, size), 0.5, np.float32) for size in sampler_key_sizes(config))
    return step_inputs(batch, keys)


def compare(npz: str | Path, salt: int = 0, steps: int = 20, plain: bool = True) -> list[Row]:
    """The worst relative difference of each loss and each watched weight's norm, in the first steps and in all.

    plain: convolutions are MindSpore's own on a CPU, not our operators.
    """
    try:
        golden = np.load(npz)
    except (OSError, ValueError) as e:
        raise UserError(f"{npz}: can't read the golden values: {e}") from None
    steps = min(steps, len(golden["losses"]))
    ms.set_context(mode=ms.GRAPH_MODE)
    config = trajectory_config(float(golden["learning_rate"]), *reference_inputs(salt)["image"].shape[2:])
    with plain_sums(plain):
        detector = build_detector(config)
    load_weights(config, detector, np.load(NAMES), salt)
    loss = build_loss(config, detector)
    step = build_step(config, loss, np.full(steps, config.lr, np.float32))
    batches = [batch_of(config, s) for s in (salt, salt + 1)]
    weights = {p.name: p for p in detector.get_parameters()}
    watched = [torchvision.rename(str(name)) for name in golden["watched"]]
    order = [list(golden["names"]).index(LOSSES[name]) for name in loss.names[1:]]
    errors: dict[str, list[float]] = {}
    for i in range(steps):
        losses = step(*batches[i % 2])[0].asnumpy()[1:]
        for name, ours, theirs in zip(loss.names[1:], losses, golden["losses"][i][order]):
            errors.setdefault(name, []).append(abs(float(ours) / theirs - 1))
        for name, theirs in zip(watched, golden["norms"][i]):
            ours = np.linalg.norm(weights[name].asnumpy().astype(np.float64))
            errors.setdefault(f"norm of {name}", []).append(abs(ours / theirs - 1))
    rows = []
    for name, values in errors.items():
        rows.append(Row(f"{name}, steps 1 to {min(FIRST, steps)}", max(values[:FIRST]), EARLY))
        if steps > FIRST:
            rows.append(Row(f"{name}, steps 1 to {steps}", max(values), LATE))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--npz", required=True, help="golden values")
    parser.add_argument("--salt", type=int, default=0, help="salt that the golden values were made with")
    parser.add_argument("--steps", type=int, default=20, help="steps to compare (default: %(default)s)")
    parser.add_argument("--device_target", default="CPU", choices=("CPU", "GPU", "Ascend"), help="where to compute")
    parser.add_argument("--operators", action="store_true", help="our convolutions, as in training")
    arguments = parser.parse_args()
    set_device(Config(device_target=arguments.device_target, compute_type="float32"))
    rows = compare(arguments.npz, arguments.salt, arguments.steps, not arguments.operators)
    for r in rows:
        print(f"{'ok  ' if r.passed else 'FAIL'} {r.stage:70s} {r.value:10.3g} <= {r.limit:g}")
    failed = sum(not r.passed for r in rows)
    print(f"{len(rows) - failed} of {len(rows)} comparisons within tolerance")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
