"""Exports of small detectors with random weights, whose heads and norms differ: how they agree with Python.

    python -m benchmarks.exports [--detectors mask_rcnn ...] [--backbones mobilenet_v1 ...] [--norms group ...]
                                 [--forms ONNX MINDIR split] [--json FILE]

Members as of `python -m benchmarks.family`. Of ONNX and MINDIR prints how many detections match within 0.5 px and 1e-3
in score, and the largest differences; of the split form the largest difference that the C++ program found when it ran
its graphs. FILE holds these rows; what it holds already isn't run again. Ends with status 1 where an export failed.
"""

import argparse
import contextlib
import functools
import io
import re
import sys
import tempfile
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from benchmarks.common import print_table
from benchmarks.family import BACKBONES, DETECTORS, NORMS, family_config, grown
from src.export.sidecar import ExportError
from src.export.split import export_split
from src.export.whole import export_whole
from src.models.build import build_detector
from src.ops.device import set_device
from src.runtime.errors import run_command

__all__ = ["run", "spread"]

FORMS = ("ONNX", "MINDIR", "split")


def spread(detector: nn.Cell, seed: int = 0) -> nn.Cell:
    """Weights of some size everywhere: scores and boxes that differ, norms that do something."""
    random = np.random.Generator(np.random.PCG64(seed))
    for p in detector.get_parameters():
        name = p.name.rsplit(".", 1)[-1]
        if name == "moving_variance":
            value = random.uniform(0.5, 1.5, p.shape)
        elif name == "gamma":
            value = random.normal(1.0, 0.1, p.shape)
        elif name in ("beta", "moving_mean"):
            value = random.normal(0.0, 0.1, p.shape)
        elif p.name.endswith(("cls.weight", "reg.weight")):
            value = random.normal(0.0, 0.04, p.shape)
        else:
            continue
        p.set_data(Tensor(value.astype(np.float32)))
    return detector


def run(folder: Path, detector_name: str, backbone: str, norm: str, form: str) -> dict[str, str]:
    """One member's export of one form."""
    config = family_config(detector_name, backbone, folder, norm)
    config.test_cfg.rcnn.score_thr, config.test_batch_size = 0.0, 1
    set_device(config)
    ms.set_seed(1)
    detector = spread(build_detector(config)).set_train(False)
    row = {"detector": detector_name, "backbone": backbone, "norm": norm, "form": form}
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            if form == "split":
                export_split(config, detector, folder / "split/net")
                found = re.findall(r"largest differences? ([0-9.e+-]+) of the largest value", said.getvalue())
                told = f"{len(found)} comparisons, largest difference {max(map(float, found), default=np.nan):.2g}"
                told += " of the largest value"
            else:
                told = str(export_whole(config, detector, folder / f"net.{form.lower()}", form))
    except ExportError as e:
        return row | {"result": "refused" if "no split form" in str(e) else "FAILED", "agreement": str(e)}
    return row | {"result": "agrees", "agreement": told}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--detectors", nargs="+", choices=tuple(DETECTORS), default=tuple(DETECTORS))
    parser.add_argument("--backbones", nargs="+", choices=tuple(BACKBONES), default=("mobilenet_v1",))
    parser.add_argument("--norms", nargs="+", choices=tuple(NORMS), default=tuple(NORMS))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--json", type=Path, help="the table is kept here, and goes on from what is there")
    a = parser.parse_args()
    members = [(d, b, n, f) for d in a.detectors for b in a.backbones for n in a.norms for f in a.forms]
    with tempfile.TemporaryDirectory() as folder:
        rows = grown(a.json, ("detector", "backbone", "norm", "form"), members, functools.partial(run, Path(folder)))
    print_table("exports", list(rows[0]), [list(r.values()) for r in rows])
    return int(any(row["result"] == "FAILED" for row in rows))


if __name__ == "__main__":
    sys.exit(run_command(main))
