"""The split form: three graphs of standard operators, for a host program that does what lies between them.

    image (B, 3, H, W) -> FPN maps that RoIs are taken from; RPN logits (B, A, h, w) and deltas (B, 4 A, h, w) a level
    RoI features (R, C, s, s) -> class logits (R, num_classes); deltas (R, 4 num_classes) or (R, 4)
    RoI features (R, C, S, S) -> what each branch's module says (src/export/branches/)

The heads take any number of RoIs, the first graph any canvas, through MindSpore Lite's Model::Resize. Proposals, NMS
and RoIAlign are the host's (ascend310_infer/), which reads the sidecar for their settings.

Where pictures of either orientation have a canvas of their own (config.turns_canvas), the first graph comes once for
each, so that none is resized from picture to picture, and the heads serve both.
"""

from __future__ import annotations

import copy
import math
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.config import Config, Roi
from src.config.backbones import FAMILIES
from src.export import sidecar
from src.export.branches import branches_of, file_lists, rois
from src.export.branches.base import Branch
from src.export.lite import for_lite
from src.export.mindir_v1 import rewrite_as_version_1
from src.export.reference import BOX, FEATURES, FIRST_BRANCH, Case, uniform, write_reference
from src.export.sidecar import ExportError
from src.export.whole import cannot_write, canvases, folder_beside, put_in_place, standard
from src.models.anchors import map_size
from src.models.heads.box import BBoxHead
from src.models.rcnn import RCNN
from src.models.roi_heads.cascade import CascadeRoIHeads
from src.models.rpn import RPNHead
from src.runtime.errors import quiet_logging
from src.runtime.newer import zip_equal

__all__ = ["PROGRAM", "export_split"]

PROGRAM = Path(__file__).resolve().parents[2] / "ascend310_infer/build/rcnn_infer"
FIRST = ("features", "features1")  # the first graph: of the canvas, and of the upright one
# float32 sums in another order: some 1e-5 of the largest value measured; what goes wrong in Lite is off by far more
TOLERANCE = 1e-4


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
        logits, deltas = (), ()  # type: tuple[Tensor, ...], tuple[Tensor, ...]
        for i in range(len(features)):
            head = self.heads[i]
            hidden = head.hidden(features[i])
            logits += (head.cls(hidden),)
            deltas += (head.reg(hidden),)
        return features[: self.num_maps] + logits + deltas


def export_split(
    config: Config, detector: RCNN, path: str | Path, mindir_version: int = 1, program: Path | None = None
) -> Path:
    """Writes NAME_features.mindir, NAME_box*.mindir, each branch's NAME_BRANCH*.mindir and other files,
    NAME_reference.bin, and the sidecar NAME.json. Where config.turns_canvas, also NAME-upright_features.mindir and its
    sidecar NAME-upright.json.

    path: NAME, or NAME.mindir.  detector: `config`'s, with its weights.  mindir_version: 1, which MindSpore Lite 2.0
    reads, or 3, as MindSpore 2.8 writes it.  program: the C++ program, which compares every graph with Python before
    anything gets its final name; default PROGRAM, and without one the sidecar says that nothing was compared.

    Returns the sidecar's path. Raises ExportError.
    """
    sidecar.demand_exportable(config)
    if FAMILIES[config.backbone.type].transformer:
        raise ExportError(
            f"backbone.type: {config.backbone.type} has no split form here, as nobody ran one in MindSpore Lite; export"
            " ONNX, or MINDIR without --split"
        )
    path = Path(path)
    path = path.with_suffix("") if path.suffix.lower() in (".mindir", ".json") else path
    with folder_beside(path) as folder:
        try:
            files = {"reference": folder / f"{path.name}_reference.bin"}
            cases = reference_cases(config, detector)
            write_reference(files["reference"], cases, TOLERANCE)
            files |= write_graphs(config, detector, folder / path.name, mindir_version)
        except OSError as e:
            raise cannot_write(path, e) from None
        made = write_sidecars(config, detector, files, folder / path.name, mindir_version)
        compare(made, program or PROGRAM)
        size = sum(f.stat().st_size for f in files.values())
        # the sidecars last: with them the export is whole
        put_in_place([*files.values(), *made], path.parent)
    final = [path.with_name(m.name) for m in made]
    print(f"{', '.join(map(str, final))}, with {len(files)} files beside ({size / 1e6:.1f} MB)")
    return final[0]


def stems(name: Path) -> tuple[Path, Path]:
    """NAME, which the lying canvas's files begin with, and the upright one's, as sidecar.upright_path has it."""
    return name, name.with_name(f"{name.name}-upright")


def box_heads(detector: RCNN) -> list[BBoxHead]:
    """One, or one a stage of a cascade."""
    roi_heads = detector.roi_heads
    return list(roi_heads.boxes) if isinstance(roi_heads, CascadeRoIHeads) else [roi_heads.box]


def branch_heads(config: Config, detector: RCNN) -> list[tuple[Branch, list[nn.Cell]]]:
    """The branches, with one head each, or one a stage of a cascade."""
    return [(b, list(cell.heads)) for b, cell in zip_equal(branches_of(config), detector.roi_heads.more)]


def head_shape(config: Config, roi: Roi, count: int) -> tuple[int, ...]:
    """Of the RoI features that heads take."""
    side = roi.roi_layer.out_size
    return count, config.neck.fpn.out_channels, side, side


def num_maps(config: Config) -> int:
    """FPN maps that RoIs are taken from."""
    return max(len(r.featmap_strides) for r in rois(config).values())


def small_canvas(config: Config) -> tuple[int, int]:
    """A height and width that every level divides."""
    return (2 * math.lcm(*config.rpn.anchor_generator.strides),) * 2


def reference_cases(config: Config, detector: RCNN) -> list[Case]:
    """What the detector itself gives, on each canvas and on a small one, for as many RoIs as can be and for few."""
    detector.set_train(False)
    net = FeatureReference(detector, num_maps(config))
    sizes = [*((c.img_height, c.img_width) for c in canvases(config)), small_canvas(config)]
    cases = [run_case(net, FEATURES, 0, 1 + i, 2.0, (1, 3, *size)) for i, size in enumerate(sizes)]
    # RoI features of the size that the maps have
    scale = 2 * float(np.abs(cases[0].outputs[0]).mean())
    cells: list[tuple[int, Roi, int, nn.Cell]] = []
    for i, box in enumerate(box_heads(detector)):
        cells.append((BOX, config.roi, i, box))
    for k, (branch, heads) in enumerate(branch_heads(config, detector)):
        for i, head in enumerate(heads):
            cells.append((FIRST_BRANCH + k, rois(config)[branch.roi], i, branch.reference(head)))
    for role, roi, i, cell in cells:
        test = config.test_cfg.rpn if role == BOX else config.test_cfg.rcnn
        for n in (test.max_per_img, 3, 1):
            cases.append(run_case(cell, role, i, n, scale, head_shape(config, roi, n)))
    return cases


def write_graphs(config: Config, detector: RCNN, name: Path, mindir_version: int) -> dict[str, Path]:
    """The graphs' files NAME_ROLE.mindir, by role: "features", and "features1" of the upright canvas, "box0", ..., and
    those of the branches, by the names in Branch.files: "mask0", ..., "mask_weights0", ...
    """
    plain = for_lite(standard(config, detector))
    levels = len(config.rpn.anchor_generator.strides)
    paths: dict[str, Path] = {}
    graphs: dict[str, nn.Cell] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    # any canvas and number of RoIs will do, but Lite chooses its kernels for the shapes that it finds here: with
    # ResNet-50 at 768 x 1280, those for a small canvas take a tenth less memory and a tenth more time
    for view, role, stem in zip(canvases(config), FIRST, stems(name)):
        graphs[role] = FeatureGraph(plain.backbone, plain.neck, plain.rpn.head, levels, num_maps(config))
        shapes[role] = (1, 3, view.img_height, view.img_width)
        paths[role] = stem.with_name(f"{stem.name}_features.mindir")
    own = rois(config)
    heads = [("box", config.test_cfg.rpn.max_per_img, own["roi"], box_heads(plain))]
    for branch, cells in branch_heads(config, plain):
        graph_of = [branch.graph(h) for h in cells]
        heads.append((branch.files[0], config.test_cfg.rcnn.max_per_img, own[branch.roi], graph_of))
    for role, most, roi, parts in heads:
        for i, part in enumerate(parts):
            graphs[f"{role}{i}"] = part
            shapes[f"{role}{i}"] = head_shape(config, roi, most)
            paths[f"{role}{i}"] = name.with_name(f"{name.name}_{role}{i}.mindir")
    for role, graph in graphs.items():
        with quiet_logging():
            zeros = Tensor(np.zeros(shapes[role], np.float32))
            ms.export(graph.set_train(False), zeros, file_name=str(paths[role]), file_format="MINDIR")
        os.chmod(paths[role], 0o644)
        if mindir_version == 1:
            rewrite_as_version_1(paths[role])
    for branch, cells in branch_heads(config, plain):
        for i, head in enumerate(cells):
            written = branch.write_files(head, name.with_name(f"{name.name}_{branch.files[0]}{i}"))
            paths |= {f"{role}{i}": path for role, path in zip(branch.files[1:], written)}
    return paths


class FeatureReference(nn.Cell):
    """What FeatureGraph has to give, by the detector's own parts."""

    def __init__(self, detector: RCNN, num_maps: int):
        super().__init__(auto_prefix=False)
        self.detector, self.num_maps = detector, num_maps
        self.anchors = detector.rpn.head.cls.out_channels

    def construct(self, image: Tensor) -> tuple[Tensor, ...]:
        features = self.detector.features(image)
        rows, vectors = self.detector.rpn.head(features)
        logits, deltas = (), ()  # type: tuple[Tensor, ...], tuple[Tensor, ...]
        for i in range(len(features)):
            b, _, h, w = features[i].shape
            logits += (rows[i].reshape(b, h, w, self.anchors).transpose(0, 3, 1, 2),)
            deltas += (vectors[i].reshape(b, h, w, 4 * self.anchors).transpose(0, 3, 1, 2),)
        return features[: self.num_maps] + logits + deltas


def run_case(net: nn.Cell, role: int, stage: int, seed: int, scale: float, shape: Sequence[int]) -> Case:
    """`net`'s answer to the input that (seed, shape, scale) name."""
    out = net.set_train(False)(Tensor(uniform(seed, tuple(shape), scale)))
    out = out if isinstance(out, tuple) else (out,)
    return Case(role, stage, seed, scale, tuple(shape), [x.asnumpy() for x in out])


def write_sidecars(
    config: Config, detector: RCNN, files: dict[str, Path], name: Path, mindir_version: int
) -> list[Path]:
    """The sidecars of `files`, one or one a canvas, not compared yet."""
    entries = {role: sidecar.file_entry(file) for role, file in files.items()}
    reference = {"file": entries["reference"], "tolerance": TOLERANCE, "compared": False}
    heads_of = {
        kind: [e for role, e in entries.items() if role.rstrip("0123456789") == kind]
        for kind in ("box", *file_lists(branches_of(config)))
    }
    features, paths = [entries[role] for role in FIRST if role in entries], []
    for i, own in enumerate(features):
        content = sidecar.describe(
            config,
            "split",
            "MINDIR",
            {"features": own, **heads_of},
            config.test_batch_size,
            reference,
            upright=i == 1,
            pair=features[1 - i] if len(features) == 2 else None,
        )
        content |= {"mindir_version": mindir_version, "base_anchors": base_anchors(config, detector)}
        stem = stems(name)[i]
        paths.append(stem.with_name(f"{stem.name}.json"))
        sidecar.write(paths[-1], content)
    return paths


def compare(paths: list[Path], program: Path) -> None:
    """Lets the C++ program compare the graphs of the sidecars with Python, and notes it there. Raises ExportError."""
    contents = [sidecar.read(path) for path in paths]
    why = "" if program.is_file() else f"{program} isn't built (bash ascend310_infer/build.sh)"
    version = contents[0]["mindir_version"]
    if version != 1:
        why = f"MindSpore Lite 2.0 doesn't read version {version}"
    if why:
        print(f"not compared with Python: {why}; on the target, the program's --self_check compares")
        return
    # which takes the other canvas's graph along
    try:
        run = subprocess.run(
            [program, "--model", paths[0], "--self_check"], capture_output=True, text=True, check=False
        )
    except OSError as e:
        raise ExportError(f"{program}: can't be run: {e.strerror}; build it again (ascend310_infer/build.sh)") from None
    print(run.stdout, end="")
    if run.returncode != 0:
        reason = (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1].removeprefix("error: ")
        raise ExportError(f"the export isn't what the detector is in Python: {reason}")
    for path, content in zip_equal(paths, contents):
        content["reference"]["compared"] = True
        sidecar.write(path, content)


def base_anchors(config: Config, detector: RCNN) -> list[list[list[float]]]:
    """Each level's anchors of the canvas's first cell: those of other cells lie whole strides away."""
    anchors, start, levels = detector.rpn.anchors.asnumpy(), 0, []
    each = detector.rpn.head.cls.out_channels
    for stride in config.rpn.anchor_generator.strides:
        levels.append(anchors[start : start + each].tolist())
        start += each * math.prod(map_size(config.img_height, config.img_width, stride))
    return levels
