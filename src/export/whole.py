"""The whole detector in one file: image and its sizes in, detections in pixels of the original image out."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import glob
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.config import Config, Roi
from src.export import SUFFIX, sidecar
from src.export.branches import rois
from src.export.compare import SEED, Agreement, compare_detections, reference_input, together
from src.export.folding import fold_batch_norms
from src.export.sidecar import ExportError
from src.models.build import build_detector
from src.models.rcnn import RCNN
from src.models.roi_extractor import build_roi_extractor
from src.runtime.errors import quiet_logging
from src.runtime.files import cure
from src.runtime.interrupts import own_interrupts
from src.runtime.newer import zip_equal

__all__ = ["WholeGraph", "canvases", "export_whole", "import_onnx_runtime", "model_path"]

SAMPLES = (1, 2, 3, 4)  # candidates for the fixed number that is nearest to an adaptive one
# detections of graphs that sample differently are still the same objects within this many pixels, and this score
LOOSE_BOX, LOOSE_SCORE = 16.0, 0.2


class WholeGraph(nn.Cell):
    """A detector with the inputs and outputs of an exported file (`inputs` and `outputs` of its sidecar).

    Inputs: image (N, 3, H, W) float32; image_shape (N, 4) float32, height and width that the picture takes of the
    canvas, height and width of the original. Outputs: boxes (N, D, 4) in pixels of the original; scores, labels, valid
    (N, D); and what each branch gives, (N, D, ...). Rows that aren't valid are zero.
    """

    def __init__(self, detector: RCNN):
        super().__init__(auto_prefix=False)
        self.detector = detector

    def construct(self, image: Tensor, image_shape: Tensor) -> tuple[Tensor, ...]:
        out = self.detector(image, image_shape[:, :2])
        scale = image_shape[:, :2] / image_shape[:, 2:]
        scale = ops.concat((scale[:, 1:], scale[:, :1]), 1)
        boxes = out[0] / ops.concat((scale, scale), 1).expand_dims(1)
        found = (boxes, out[1], out[2], out[3])  # type: tuple[Tensor, ...]
        for more in out[4:]:
            valid = out[3].astype(boxes.dtype)
            found += (more * valid.reshape(valid.shape + (1,) * (more.ndim - 2)),)
        return found


def model_path(file_name: str, file_format: str) -> Path:
    """`file_name` with the format's suffix, unless it has it already."""
    suffix = SUFFIX[file_format]
    return Path(file_name if file_name.endswith(suffix) else file_name + suffix)


def export_whole(config: Config, detector: RCNN, path: Path, file_format: str) -> Agreement | None:
    """Writes `detector` as `path` and `path`.json: beside, compared with the detector, then renamed.

    Where config.turns_canvas, `path` is the model for lying pictures, and one for upright ones, sidecar.upright_path,
    is written with it, or neither.

    config: the detector's, with the batch size in test_batch_size. file_format: MINDIR, AIR or ONNX. Returns how the
    files agree with `detector` on a reference input of each canvas (None for AIR, which only Ascend can load). Raises
    ExportError, also where they don't agree.
    """
    sidecar.demand_exportable(config)
    if file_format == "AIR" and ms.get_context("device_target") != "Ascend":
        raise ExportError(
            "AIR needs an Ascend backend: run with --device_target Ascend where there is one, or export MINDIR"
        )
    if file_format == "ONNX":
        import_onnx(), import_onnx_runtime()  # told before any work is done
    with folder_beside(path) as folder:
        made, reports = [], []
        sampling: dict[str, int] = {}
        for view, name in zip(canvases(config), (path.name, sidecar.upright_path(path).name)):
            made.append(folder / name)
            reports.append(export_canvas(view, detector, made[-1], file_format, sampling))
        entries = [sidecar.file_entry(file) for file in made]
        ratios = {k: sampling.get(k, roi.roi_layer.sampling_ratio) for k, roi in rois(config).items()}
        for i, (entry, (_, reference)) in enumerate(zip_equal(entries, reports)):
            about = sidecar.describe(
                config,
                "whole",
                file_format,
                {"model": entry},
                config.test_batch_size,
                reference,
                ratios,
                upright=i == 1,
                pair=entries[1 - i] if len(entries) == 2 else None,
            )
            made.append(folder / f"{entry['name']}.json")
            try:
                made[-1].write_text(sidecar.text(about))
            except OSError as e:
                raise cannot_write(path, e) from None
        # the sidecars last: with them the export is whole
        put_in_place(made, path.parent)
    agreements = [agreement for agreement, _ in reports if agreement]
    return together(agreements) if agreements else None


def canvases(config: Config) -> list[Config]:
    """The config for each canvas: itself, or where it turns the canvas, one for lying pictures and one for upright."""
    if not config.turns_canvas:
        return [config]
    sizes = ((config.img_width, config.img_height), (config.img_height, config.img_width))
    return [dataclasses.replace(config, resize="canvas", img_width=w, img_height=h) for w, h in sizes]


def export_canvas(
    config: Config, detector: RCNN, path: Path, file_format: str, sampling: dict[str, int]
) -> tuple[Agreement | None, dict]:
    """Writes the file of one canvas, `config`'s; returns how it agrees with `detector`, and what its sidecar says of
    that. `sampling`: the ratios in place of adaptive ones, filled by the first canvas for all.
    """
    inputs, nearest = reference_input(config, config.test_batch_size), None
    wanted = every_detection(config, detector, inputs)
    if file_format == "ONNX":
        agreement: Agreement | None = write_onnx(config, standard(config, detector), path, inputs, wanted)
    else:
        exported = config
        if adaptive(config):
            # what the file is compared with samples as it does; how far that is from the config is told
            if not sampling:
                sampling |= nearest_sampling(config, detector, inputs, file_format)
            exported = with_sampling(config, sampling)
            adaptively, wanted = wanted, every_detection(exported, standard(exported, detector), inputs)
            nearest = compare_detections(wanted, adaptively, LOOSE_BOX, LOOSE_SCORE, config.branches)
            print(f"adaptive against exported sampling on the reference input: {nearest}")
        agreement = write_mindspore(exported, standard(exported, detector), path, file_format, inputs, wanted)
    reference = {"seed": SEED} | (reference_of(agreement) if agreement else {})
    return agreement, reference | ({"adaptive_sampling": reference_of(nearest)} if nearest else {})


# ---- what an export is compared with


def standard(config: Config, detector: RCNN) -> RCNN:
    """The detector made of MindSpore's own operators, batch norms folded, with the same weights."""
    out = build_detector(config, builtin_ops=True, weights=False)
    ms.load_param_into_net(out, {p.name: p for p in detector.get_parameters()})
    out.set_train(False)
    fold_batch_norms(out)
    return out


def every_detection(config: Config, detector: RCNN, inputs: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    """WholeGraph's outputs without a score threshold.

    Suppression goes from the best score down, so those above a threshold are what a detector with it gives: there is
    something to compare whatever the weights.
    """
    detector.set_train(False)
    selector = detector.roi_heads.selector
    threshold = selector.score_thr
    try:
        selector.score_thr = 0.0
        return [x.asnumpy() for x in WholeGraph(detector)(*(Tensor(x) for x in inputs))]
    finally:
        selector.score_thr = threshold
        detector.compile_cache.clear()


def above(outputs: list[np.ndarray], threshold: float) -> list[np.ndarray]:
    """The same outputs of a detector with this score threshold."""
    return [*outputs[:3], outputs[3] & (outputs[1] > np.float32(threshold)), *outputs[4:]]


def reference_of(agreement: Agreement) -> dict:
    """What the sidecar says of a comparison."""
    a = agreement
    return {
        "detections": a.total,
        "matched": a.matched,
        "max_error": a.max_box_error,
        "max_score_error": a.max_score_error,
        **{f"max_{name}_error": error for name, error in a.max_errors.items()},
    }


def demand(agreement: Agreement, path: Path, runtime: str) -> Agreement:
    if not agreement.passed:
        raise ExportError(f"{path}: {runtime} gives other detections than the checkpoint ({agreement}); not written")
    return agreement


# ---- writing


def cannot_write(place: Path | str, e: OSError) -> ExportError:
    """What to tell of an export of which a file couldn't be written."""
    remedy = "give another --file_name"
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = f"free space, or {remedy}"
    return ExportError(f"{place}: can't write the export: {e.strerror or e}; {cure(e, remedy)}")


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A folder on the same disk as `path`, gone afterwards, also after SIGTERM; a killed process's goes, too.

    Raises ExportError if there can be none.
    """
    folder = path.with_name(f".{path.name}.writing-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise ExportError(f"{path}: is a folder; give another --file_name")
        remove_left_folders(path)
        folder.mkdir()
    except OSError as e:
        raise cannot_write(path, e) from None
    try:
        with removed_at_signals(folder):
            yield folder
    except ExportError as e:
        # by the names that the files would have had
        raise ExportError(str(e).replace(f"{folder}/", f"{path.parent}/" if path.parent.name else "")) from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_left_folders(path: Path) -> None:
    """Removes the folders that killed processes made beside `path`; what one had moved out of the way goes back."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.writing-*"):
        pid = left.name.rpartition("-")[2]
        if not pid.isdigit() or Path(f"/proc/{pid}").exists():
            continue
        for kept in left.glob("*.before"):
            place = path.parent / kept.name.removesuffix(".before")
            if not place.exists():
                os.replace(kept, place)
        shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def removed_at_signals(folder: Path) -> Iterator[None]:
    """Within, SIGTERM and SIGINT end the process, and `folder` goes."""

    def end(signum: int, frame: FrameType | None) -> None:
        while frame:
            # what is raised through MindSpore, it tells as a fault of the network, over a page
            if "mindspore" in frame.f_code.co_filename:
                shutil.rmtree(folder, ignore_errors=True)
                os._exit(128 + signum)
            frame = frame.f_back
        raise SystemExit(128 + signum)

    # elsewhere Python lets nobody handle signals
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, end) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        with own_interrupts():
            yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def put_in_place(made: Sequence[Path], folder: Path) -> None:
    """Moves files into `folder`, in order: all, or none and what was there stays. Raises ExportError."""
    before: dict[Path, Path] = {}
    done: list[Path] = []
    try:
        for file in made:
            place = folder / file.name
            # MindSpore lets only the owner read what it exports
            os.chmod(file, 0o644)
            if place.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if place.exists():
                before[place] = file.with_name(f"{file.name}.before")
                os.replace(place, before[place])
            os.replace(file, place)
            done.append(place)
    except BaseException as e:
        for new in done:
            new.unlink()
        for old, kept in before.items():
            if kept.exists():
                os.replace(kept, old)
        if isinstance(e, OSError):
            raise cannot_write(place, e) from None
        raise


def write_mindspore(
    config: Config,
    detector: RCNN,
    path: Path,
    file_format: str,
    inputs: tuple[np.ndarray, ...],
    wanted: list[np.ndarray],
) -> Agreement | None:
    """MINDIR or AIR; a MINDIR is loaded again and run."""
    net = WholeGraph(detector).set_train(False)
    tensors = [Tensor(x) for x in inputs]
    try:
        with quiet_logging():
            ms.export(net, *tensors, file_name=str(path.with_suffix("")), file_format=file_format)
            if file_format == "AIR":
                return None
            got = nn.GraphCell(ms.load(str(path)))(*tensors)
    except OSError as e:
        raise cannot_write(path, e) from None
    except (RuntimeError, ValueError) as e:
        reason = str(e).strip().splitlines()[0][:200] if str(e).strip() else type(e).__name__
        raise ExportError(f"{path}: MindSpore can't export the model: {reason}") from e
    got = [x.asnumpy() for x in got]
    wanted = above(wanted, config.test_cfg.rcnn.score_thr)
    return demand(compare_detections(got, wanted, branches=config.branches), path, "MindSpore")


def write_onnx(
    config: Config, detector: RCNN, path: Path, inputs: tuple[np.ndarray, ...], wanted: list[np.ndarray]
) -> Agreement:
    """ONNX, checked by onnx.checker, and run in ONNX Runtime."""
    runtime = import_onnx_runtime()
    model = import_onnx()(config, detector, config.test_batch_size)
    data = model.SerializeToString()
    threshold = next(c for c in model.graph.initializer if c.name == "score_thr")
    threshold.raw_data = np.float32(0).tobytes()
    got = runtime(model.SerializeToString())(*inputs)
    agreement = demand(compare_detections(got, wanted, branches=config.branches), path, "ONNX Runtime")
    try:
        path.write_bytes(data)
    except OSError as e:
        raise cannot_write(path, e) from None
    return agreement


def import_onnx() -> Callable:
    """onnx_model, from a module that needs a package which only users of ONNX have. Raises ExportError."""
    try:
        from src.export.onnx_graph import onnx_model
    except ImportError as e:
        raise missing_package(e) from None
    return onnx_model


def import_onnx_runtime() -> type:
    """OnnxModel; as import_onnx."""
    try:
        from src.export.onnx_runtime import OnnxModel
    except ImportError as e:
        raise missing_package(e) from None
    return OnnxModel


def missing_package(e: ImportError) -> ExportError:
    return ExportError(f"ONNX needs the package {e.name}: pip install -r requirements-onnx.txt")


# ---- adaptive sampling, which MINDIR's and AIR's RoIAlign doesn't have


def adaptive(config: Config) -> bool:
    return any(r.roi_layer.sampling_ratio == 0 for r in rois(config).values())


class Sampled(nn.Cell):
    """The feature maps, and the boxes that each head sees."""

    def __init__(self, detector: RCNN):
        super().__init__(auto_prefix=False)
        self.detector = detector

    def construct(self, image: Tensor, image_size: Tensor) -> tuple:
        maps = self.detector.features(image)
        proposals = self.detector.rpn(maps, image_size)
        return maps, proposals["boxes"], proposals["valid"]


def nearest_sampling(
    config: Config, detector: RCNN, inputs: tuple[np.ndarray, ...], file_format: str
) -> dict[str, int]:
    """For each adaptive RoIAlign the fixed number of samples whose features differ least on the reference input's
    proposals; prints them.
    """
    image, shape = Tensor(inputs[0]), Tensor(inputs[1][:, :2])
    maps, boxes, valid = Sampled(detector)(image, shape)
    out = {}
    for name, roi in rois(config).items():
        if roi.roi_layer.sampling_ratio:
            continue
        features = {n: roi_features(roi, n, maps, boxes, valid) for n in (0, *SAMPLES)}
        size = max(float(np.linalg.norm(features[0])), 1e-30)
        errors = {n: float(np.linalg.norm(features[n] - features[0])) / size for n in SAMPLES}
        out[name] = min(errors, key=errors.__getitem__)
        print(
            f"{name}.roi_layer.sampling_ratio 0 (adaptive) can't be said in {file_format}'s RoIAlign; exported with the"
            f" nearest, {out[name]}: RoI features differ by {min(errors.values()):.2g} (relative)"
        )
    return out


def with_sampling(config: Config, sampling: dict[str, int]) -> Config:
    """The config with these sampling ratios, by the RoIAlign's name."""
    out = copy.deepcopy(config)
    for name, samples in sampling.items():
        getattr(out, name).roi_layer.sampling_ratio = samples
    return out


def roi_features(roi: Roi, samples: int, maps: tuple, boxes: Tensor, valid: Tensor) -> np.ndarray:
    sampled = copy.deepcopy(roi)
    sampled.roi_layer.sampling_ratio = samples
    return build_roi_extractor(sampled, False)(maps, boxes, valid).asnumpy()
