"""The split form: three graphs of standard operators, for a host program that does what lies between them.

    image (B, 3, H, W) -> FPN maps that RoIs are taken from; RPN logits (B, A, h, w) and deltas (B, 4 A, h, w) a level
    RoI features (R, C, s, s) -> class logits (R, num_classes); deltas (R, 4 num_classes) or (R, 4)
    RoI features (R, C, S, S) -> mask logits (R, num_classes, 2 S, 2 S)

Every graph takes any batch, and the first any canvas, through MindSpore Lite's Model::Resize. Proposals, NMS and
RoIAlign are the host's (ascend310_infer/), which reads the sidecar for their settings.
"""

import copy
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.config import Config
from src.errors import quiet_logging
from src.export import sidecar
from src.export.folding import fold_batch_norms
from src.export.mindir_v1 import rewrite_as_version_1
from src.export.reference import Case, uniform, write_reference
from src.models.bbox_head import BBoxHead
from src.models.mask_head import MaskHead
from src.models.rpn import RPNHead
from src.models.two_stage import TwoStageDetector

__all__ = ["PROGRAM", "export_split"]

PROGRAM = Path(__file__).resolve().parents[2] / "ascend310_infer/build/rcnn_infer"
# float32 sums in another order: some 1e-5 of the largest value measured; what goes wrong in Lite is off by far more
TOLERANCE = 1e-4


class StemPool(nn.Cell):
    """The backbone's 3x3 max pool of stride 2 and padding 1, after ReLU, without a constant of the map's size."""

    def __init__(self):
        super().__init__()
        self.pad = ops.Pad(((0, 0), (0, 0), (1, 1), (1, 1)))
        self.pool = nn.MaxPool2d(3, 2, pad_mode="valid")

    def construct(self, x: Tensor) -> Tensor:
        return self.pool(self.pad(x))


class FeatureGraph(nn.Cell):
    """image (B, 3, H, W) -> `num_maps` FPN maps, then the logits of every level, then the deltas of every level."""

    def __init__(self, backbone: nn.Cell, neck: nn.Cell, rpn: RPNHead, num_levels: int, num_maps: int):
        super().__init__(auto_prefix=False)
        self.backbone, self.neck, self.num_maps = backbone, neck, num_maps
        # Lite 2.0 gives wrong numbers, without an error, where 3x3 weights serve inputs of several sizes
        self.heads = nn.CellList([copy.deepcopy(rpn) for _ in range(num_levels)])
        for i, head in enumerate(self.heads):
            for p in head.get_parameters():
                p.name = f"heads.{i}.{p.name}"

    def construct(self, image: Tensor) -> tuple[Tensor, ...]:
        features = self.neck(self.backbone(image))
        logits, deltas = (), ()
        for i in range(len(features)):
            head = self.heads[i]
            hidden = head.relu(head.conv(features[i]))
            logits += (head.cls(hidden),)
            deltas += (head.reg(hidden),)
        return features[: self.num_maps] + logits + deltas


class BoxGraph(nn.Cell):
    """RoI features (R, C, s, s) -> class logits and deltas."""

    def __init__(self, head: BBoxHead):
        super().__init__(auto_prefix=False)
        self.head, self.flat = head, head.fc1.in_channels

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # the head's own reshape would write R into the graph
        x = self.head.relu(self.head.fc1(x.reshape(-1, self.flat)))
        x = self.head.relu(self.head.fc2(x))
        return self.head.cls(x), self.head.reg(x)


class MaskGraph(nn.Cell):
    """RoI features (R, C, S, S) -> the mask logits of every class."""

    def __init__(self, head: MaskHead):
        super().__init__(auto_prefix=False)
        self.head = head

    def construct(self, x: Tensor) -> Tensor:
        return self.head.logits(self.head.features(x))


def export_split(
    config: Config, detector: TwoStageDetector, name: str | Path, mindir_version: int = 1, program: Path | None = None
) -> Path:
    """Writes NAME_features.mindir, NAME_box*.mindir, NAME_mask*.mindir, NAME_reference.bin and the sidecar NAME.json.

    detector: with its weights; it is used up (its batch norms are folded).  mindir_version: 1, which MindSpore Lite 2.0
    reads, or 3, as MindSpore 2.8 writes it.  program: the C++ program, which compares every graph with Python before
    anything gets its final name; default PROGRAM, and without one the sidecar says that nothing was compared.

    Returns the sidecar's path. Raises UserError.
    """
    name = Path(name)
    name = name.with_suffix("") if name.suffix.lower() in (".mindir", ".json") else name
    refuse_unknown(config)
    program = program or PROGRAM
    try:
        name.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{name.name}-", dir=name.parent))
        try:
            paths = write_graphs(config, detector, beside / name.name, mindir_version)
            final = write_sidecar(config, detector, paths, beside / f"{name.name}.json", mindir_version, program)
            # the sidecar last: with it the export is whole
            for path in [*paths.values(), final]:
                os.replace(path, name.parent / path.name)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as e:
        raise sidecar.ExportError(f"{name}: can't write the export: {e.strerror}; free space or name another") from None
    return name.with_name(f"{name.name}.json")


def refuse_unknown(config: Config) -> None:
    """Raises ExportError for what the host program doesn't do."""
    for path in ("box_plus_one", "roi.roi_layer.last_pixel_end", "mask_roi.roi_layer.last_pixel_end"):
        value: Any = config
        for part in path.split("."):
            value = getattr(value, part, False)
        if value:
            raise sidecar.ExportError(f"{path}: the split form has no such boxes; export the whole graph, as ONNX")


def stages(detector: TwoStageDetector) -> tuple[list[BBoxHead], list[MaskHead]]:
    """The box heads and mask heads, one each, or one a stage of a cascade."""
    boxes = list(getattr(detector, "bbox_heads", None) or [detector.bbox_head])
    if not detector.with_mask:
        return boxes, []
    return boxes, list(getattr(detector, "mask_heads", None) or [detector.mask_head])


def write_graphs(config: Config, detector: TwoStageDetector, name: Path, mindir_version: int) -> dict[str, Path]:
    """The graphs and the reference file, by name in the sidecar: "features", "box0", ..., "mask0", ..., "reference"."""
    detector.set_train(False)
    boxes, masks = stages(detector)
    maps = max(len(r.featmap_strides) for r in (config.roi, config.mask_roi))
    channels, side, mask_side = config.neck.fpn.out_channels, config.roi.roi_layer.out_size, config.mask_roi.roi_layer
    rois, most = config.test_cfg.rpn.max_per_img, config.test_cfg.rcnn.max_per_img

    # the reference is the detector itself, before anything is changed for the export
    reference = FeatureReference(detector, maps)
    cases, small = [], [2 * config.rpn.anchor_generator.strides[-1]] * 2
    for i, size in enumerate([[config.img_height, config.img_width], small]):
        cases.append(run_case(reference, "features", 0, 1 + i, 2.0, (1, 3, *size)))
    scale = 2 * float(np.abs(cases[0].outputs[0]).mean())
    for i, head in enumerate(boxes):
        cases += [run_case(head, "box", i, 10 + n, scale, (n, channels, side, side)) for n in (rois, 3)]
    for i, head in enumerate(masks):
        shapes = [(n, channels, mask_side.out_size, mask_side.out_size) for n in (most, 3)]
        cases += [run_case(MaskGraph(head), "mask", i, 20 + s[0], scale, s) for s in shapes]
    paths = {"reference": name.with_name(f"{name.name}_reference.bin")}
    write_reference(paths["reference"], cases, TOLERANCE)

    fold_batch_norms(detector.backbone)
    if hasattr(detector.backbone, "maxpool"):
        detector.backbone.maxpool = StemPool()
    levels = len(config.rpn.anchor_generator.strides)
    graphs = {"features": FeatureGraph(detector.backbone, detector.neck, detector.rpn, levels, maps)}
    graphs |= {f"box{i}": BoxGraph(head) for i, head in enumerate(boxes)}
    graphs |= {f"mask{i}": MaskGraph(head) for i, head in enumerate(masks)}
    # the heads take any number of RoIs; of the one that they are exported with, Lite keeps memory from the start
    shapes = {"features": (1, 3, config.img_height, config.img_width), "box": (8, channels, side, side)}
    shapes["mask"] = (8, channels, mask_side.out_size, mask_side.out_size)
    for role, graph in graphs.items():
        paths[role] = name.with_name(f"{name.name}_{role}.mindir")
        export_graph(graph.set_train(False), shapes[role.rstrip("0123456789")], paths[role], mindir_version)
    return paths


class FeatureReference(nn.Cell):
    """What FeatureGraph has to give, by the detector's own parts."""

    def __init__(self, detector: TwoStageDetector, num_maps: int):
        super().__init__(auto_prefix=False)
        self.detector, self.num_maps = detector, num_maps
        self.anchors = detector.rpn.cls.out_channels

    def construct(self, image: Tensor) -> tuple[Tensor, ...]:
        features = self.detector.neck(self.detector.backbone(image))
        rows, vectors = self.detector.rpn(features)
        logits, deltas = (), ()
        for i in range(len(features)):
            b, _, h, w = features[i].shape
            logits += (rows[i].reshape(b, h, w, self.anchors).transpose(0, 3, 1, 2),)
            deltas += (vectors[i].reshape(b, h, w, 4 * self.anchors).transpose(0, 3, 1, 2),)
        return features[: self.num_maps] + logits + deltas


def run_case(net: nn.Cell, role: str, stage: int, seed: int, scale: float, shape: Sequence[int]) -> Case:
    """`net`'s answer to the input that (seed, shape, scale) name."""
    out = net.set_train(False)(Tensor(uniform(seed, tuple(shape), scale)))
    out = out if isinstance(out, tuple) else (out,)
    return Case(role, stage, seed, scale, tuple(shape), [x.asnumpy() for x in out])


def export_graph(graph: nn.Cell, shape: Sequence[int], path: Path, mindir_version: int) -> None:
    with quiet_logging():
        ms.export(graph, Tensor(np.zeros(shape, np.float32)), file_name=str(path), file_format="MINDIR")
    os.chmod(path, 0o644)
    if mindir_version == 1:
        rewrite_as_version_1(path)


def write_sidecar(
    config: Config,
    detector: TwoStageDetector,
    paths: dict[str, Path],
    path: Path,
    mindir_version: int,
    program: Path,
) -> Path:
    """The sidecar, after the comparison. Raises ExportError where a graph isn't the detector's."""
    entries = {role: sidecar.file_entry(p) for role, p in paths.items()}
    files = {"features": entries["features"]}
    files |= {k: [e for role, e in entries.items() if role.rstrip("0123456789") == k] for k in ("box", "mask")}
    reference = {"file": entries["reference"], "tolerance": TOLERANCE, "compared": False}
    content = sidecar.describe(config, "split", "MINDIR", files, 1, reference)
    content |= {"mindir_version": mindir_version, "host": host_settings(config, detector)}
    sidecar.write(path, content)
    if not program.is_file():
        print(
            f"not compared with Python: {program} isn't built (bash ascend310_infer/build.sh); on the target,"
            " the program compares with --self_check"
        )
        return path
    result = subprocess.run(
        [program, "--model", path, "--self_check"], capture_output=True, text=True, check=False, timeout=3600
    )
    print(result.stdout, end="")
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise sidecar.ExportError(f"{path.name}: the export isn't the detector in Python: {reason}")
    content["reference"]["compared"] = True
    sidecar.write(path, content)
    return path


def host_settings(config: Config, detector: TwoStageDetector) -> dict[str, Any]:
    """What the host computes with, beyond the sidecar's other keys: base anchors (a list of boxes a level, around the
    cell's corner), the box coder of each stage, and what of a cascade's stages is averaged.
    """
    anchors, start, levels = detector.anchors.asnumpy(), 0, []
    each = detector.rpn.cls.out_channels
    for stride in config.rpn.anchor_generator.strides:
        levels.append(anchors[start : start + each].tolist())
        start += each * (config.img_height // stride) * (config.img_width // stride)
    coders = list(getattr(detector, "coders", None) or [detector.detections.coder])
    return {
        "base_anchors": levels,
        "stages": [{"means": c.means.asnumpy().tolist(), "stds": c.stds.asnumpy().tolist()} for c in coders],
        "average_scores": average(detector, "average_probabilities"),
        "average_masks": average(detector, "average_mask_probabilities"),
    }


def average(detector: TwoStageDetector, attribute: str) -> str:
    return "probabilities" if getattr(detector, attribute, False) else "logits"
