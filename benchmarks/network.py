"""What the training and inference benchmarks share: the arguments, and the network with the golden weights."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.torchvision_child import golden_shapes

if TYPE_CHECKING:
    from src.config import Config

__all__ = ["add_arguments", "load_golden_weights", "peer_options", "read_config"]


def add_arguments(parser: argparse.ArgumentParser, batch: int) -> None:
    parser.add_argument("--config_path", default="configs/mask_rcnn_r50_fpn.yaml")
    parser.add_argument("--height", type=int, default=768, help="canvas height")
    parser.add_argument("--width", type=int, default=1280, help="canvas width")
    parser.add_argument("--batch", type=int, default=batch, help="images a call")
    parser.add_argument("--threads", type=int, help="cores to use (default: all)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="file to write")
    parser.add_argument("--torchvision", nargs="?", const=sys.executable, metavar="PYTHON", help="compare with it")
    parser.add_argument("--channels_last", action="store_true", help="torchvision with channels innermost")


def read_config(arguments: argparse.Namespace, rest: list[str]):
    """The config at the benchmark's size."""
    from src.config import load_config, parse_overrides

    sizes = {"img_height": arguments.height, "img_width": arguments.width}
    sizes |= {"batch_size": arguments.batch, "test_batch_size": arguments.batch}
    return load_config(arguments.config_path, sizes | parse_overrides(rest))


def load_golden_weights(detector) -> bool:
    """Gives an R50 detector of 81 classes the weights that torchvision gets; False (random weights) for another."""
    import mindspore as ms

    from src.checkpoints.convert.conversion import renamed
    from tests.reference.reference_weights import reference_state_dict

    shapes = {p.name: tuple(p.shape) for p in detector.get_parameters()}
    ours = renamed(reference_state_dict(golden_shapes()), "torchvision").params
    if shapes != {k: v.shape for k, v in ours.items()}:
        print("not torchvision's network: random weights", file=sys.stderr)
        return False
    ms.load_param_into_net(detector, {k: ms.Parameter(v, name=k) for k, v in ours.items()})
    return True


@contextlib.contextmanager
def peer_options(config: Config, detector) -> Iterator[dict[str, str]]:
    """What torchvision_child needs to be told besides sizes, to run the same backbone: nothing of ResNet-50; of a
    MobileNetV1 the weights that the detector has, so that both see the same proposals.
    """
    if config.backbone.type != "mobilenet_v1":
        yield {}
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "weights.npz"
        np.savez(path, **{p.name: p.asnumpy() for p in detector.get_parameters()})
        yield {"weights": str(path)}
