"""One training step: time, peak memory, compile time, and where the time goes; torchvision at the same work.

python -m benchmarks.train_step [--height H --width W --batch B --objects N] [--positives N] [--threads N] [--json OUT]
                                [--torchvision [PYTHON]] [--KEY VALUE of the config]

Noise images with N objects each, learning rate 0, and the same weights on both sides (of ResNet-50 the golden ones), so
that both see the same proposals and positives. torchvision runs in a process of its own after MindSpore's, over
ResNet-50 or, with such a config, over MobileNetV1.
"""

import argparse
import time

import numpy as np

from benchmarks.common import measure, peak_memory_mib, print_table, set_threads, write_json
from benchmarks.network import add_arguments, load_golden_weights, peer_options, read_config
from benchmarks.torchvision_child import SAMPLED, run_elsewhere
from src.runtime.newer import zip_equal


def stage_times(config, loss, batch: dict, repeats: int) -> dict[str, float]:
    """Median milliseconds of the forward pass up to and with each stage, cumulative."""
    from mindspore import Tensor, nn

    detector = loss.detector

    class UpTo(nn.Cell):
        """backbone, then + neck, then + RPN head, then + proposals."""

        def __init__(self, stages: int):
            super().__init__(auto_prefix=False)
            self.detector, self.proposals, self.stages = detector, loss.rpn_loss.proposals, stages

        def construct(self, image, image_size):
            d = self.detector
            x = d.backbone(image)
            if self.stages == 1:
                return x
            x = d.neck(x)
            if self.stages == 2:
                return x
            logits, deltas = d.rpn.head(x)
            if self.stages == 3:
                return logits, deltas
            anchors, _, inside = d.rpn.grid(x, image_size)
            return self.proposals(logits, deltas, anchors, inside, image_size)

    image, size = Tensor(batch["image"]), Tensor(batch["image_size"])
    times = {}
    for i, name in enumerate(("backbone", "neck", "rpn head", "proposals"), 1):
        net = UpTo(i).set_train()
        times[name] = measure(lambda net=net: net(image, size), repeats, 1).median
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, batch=2)
    parser.add_argument("--objects", type=int, default=8, help="objects an image")
    parser.add_argument("--positives", type=int, help="RoIs an image that may be positive (default: a quarter of all)")
    parser.add_argument("--stages", action="store_true", help="also time the forward pass stage by stage")
    a, rest = parser.parse_known_args()
    threads = set_threads(a.threads)

    from benchmarks.synthetic import synthetic_batch
    from src.models.build import build_detector, build_loss
    from src.ops.device import set_device
    from src.training.loop import step_inputs
    from src.training.step import SamplerKeys, build_step, compile_step

    if a.positives is not None:
        # of torchvision's number of RoIs, whatever the config has
        rest += ["--train_cfg.rcnn.sampler.num", str(SAMPLED)]
        rest += ["--train_cfg.rcnn.sampler.pos_fraction", str(a.positives / SAMPLED)]
    config = read_config(a, rest)
    set_device(config)
    detector = build_detector(config)
    load_golden_weights(detector)
    loss = build_loss(config, detector)
    rates = np.zeros(1000, np.float32)
    step = build_step(config, loss, rates)
    batch = synthetic_batch(config, a.objects)
    keys = SamplerKeys(config)

    def call():
        return step(*step_inputs(batch, keys(0, batch["image_id"])))[0].asnumpy()

    start = time.perf_counter()
    compile_step(config, step, rates, step_inputs(batch, keys(0, batch["image_id"])))
    losses = call()
    first = time.perf_counter() - start
    timing = measure(call, a.repeats, 1)
    peak = peak_memory_mib()
    compile_s = first - timing.median / 1e3
    results = {"step": timing, "peak_mib": peak, "compile_s": compile_s}
    results["losses"] = dict(zip_equal(loss.names, losses.tolist()))
    rows = [["MindSpore", timing.median / 1e3, timing.low / 1e3, f"{timing.spread:.0%}", timing.cpu / 1e3, peak, 1.0]]
    if a.stages:
        results["stages_ms"] = stage_times(config, loss, batch, a.repeats)
    if a.torchvision:
        sizes = {"height": a.height, "width": a.width, "batch": a.batch, "objects": a.objects}
        if a.positives is not None:
            sizes["positives"] = a.positives
        with peer_options(config, detector) as options:
            reference = run_elsewhere(
                a.torchvision, "train", threads, a.repeats, a.channels_last, config.device_target, **sizes, **options
            )
        if reference is not None:
            t = reference["timing"]
            results["torchvision"] = reference
            results["ratio"] = timing.median / t.median
            results["memory_ratio"] = peak / reference["peak_mib"]
            row = [t.median / 1e3, t.low / 1e3, f"{t.spread:.0%}", t.cpu / 1e3, reference["peak_mib"]]
            rows.append(["torchvision", *row, t.median / timing.median])
    title = f"training step, {a.batch} x {a.height} x {a.width}, {a.objects} objects an image, {threads} threads"
    if a.positives is not None:
        title += f", at most {a.positives} positives an image"
    print_table(title, ["", "median s", "min s", "spread", "CPU s", "peak MiB", "of MindSpore's"], rows)
    print(f"\ngraph compile: {compile_s:.1f} s; losses {results['losses']}")
    if "ratio" in results:
        print(f"MindSpore / torchvision: time {results['ratio']:.2f}, peak memory {results['memory_ratio']:.2f}")
    if a.stages:
        previous = 0.0
        shares = []
        for name, ms in results["stages_ms"].items():
            shares.append([name, ms - previous, f"{(ms - previous) / timing.median:.0%}"])
            previous = ms
        shares.append(
            ["second stage, backward, update", timing.median - previous, f"{1 - previous / timing.median:.0%}"]
        )
        print_table("where the time goes", ["stage", "ms", "share"], shares)
    write_json(a.json, results | {"threads": threads, "title": title})


if __name__ == "__main__":
    main()
