"""Builds one graph for Ascend and runs it once: the child of benchmarks/ascend_dry_run.py, in its surroundings.

python -m benchmarks.ascend.graph train|infer|export CONFIG [KEY=VALUE ...]
"""

import os
import sys

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from benchmarks.synthetic import synthetic_batch
from src.config import Config, load_config
from src.models.build import build_detector, build_loss
from src.ops.device import set_device
from src.training.loop import step_inputs
from src.training.step import SamplerKeys, build_step


def training(config: Config, ranks: int) -> tuple[nn.Cell, list[Tensor]]:
    """The training step, and its inputs."""
    detector = build_detector(config)
    step = build_step(config, build_loss(config, detector, ranks), np.full(10, 0.01, np.float32), ranks)
    keys = SamplerKeys(config)(0, np.arange(config.batch_size))
    return step, step_inputs(synthetic_batch(config), keys)


def inference(config: Config, whole: bool) -> tuple[nn.Cell, list[Tensor]]:
    """The detector, or the graph that is exported, and their inputs."""
    detector = build_detector(config).set_train(False)
    image = np.zeros((1, 3, config.img_height, config.img_width), np.float32)
    if not whole:
        return detector, [Tensor(image), Tensor(np.full((1, 2), 64, np.float32))]
    from src.export.whole import WholeGraph, standard, with_sampling

    plain = with_sampling(config, {"roi": config.roi.roi_layer.sampling_ratio or 2})
    graph = WholeGraph(standard(plain, build_detector(plain))).set_train(False)
    return graph, [Tensor(image), Tensor(np.full((1, 4), 64, np.float32))]


def main() -> None:
    what, path, *options = sys.argv[1:]
    # what MindSpore takes for the host's, our own code shall, too
    cores = range(int(os.environ["DRY_RUN_CORES"]))
    os.sched_getaffinity = lambda _: set(cores)
    config = load_config(path, {"device_target": "Ascend", **dict(o.split("=", 1) for o in options)})
    set_device(config)
    ranks = int(os.environ["RANK_SIZE"])
    if ranks > 1:
        from mindspore.communication import init

        init()
        ms.set_auto_parallel_context(
            parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True, device_num=ranks, global_rank=0
        )
    net, inputs = training(config, ranks) if what == "train" else inference(config, what == "export")
    # with several ranks nobody answers
    net.compile(*inputs) if ranks > 1 else net(*inputs)
    print(f"dry run: built {what} for {ms.get_context('device_target')}", flush=True)


if __name__ == "__main__":
    main()
