"""Predictions of image files and videos: JSON, COCO results, pictures. Every input is accounted for."""

from __future__ import annotations

import contextlib
import glob
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from src.config import Config
from src.data.formats import read_split
from src.data.images import MAX_PIXELS, is_image
from src.evaluation.detections import Detections
from src.inference.annotated import AnnotatedImage, Annotations
from src.inference.labels import coco_labels, labelme_labels
from src.inference.predictor import Prediction, Predictor
from src.runtime.errors import UserError
from src.runtime.files import open_regular, whole
from src.runtime.newer import zip_equal

__all__ = [
    "Annotations",
    "Inputs",
    "PredictionError",
    "find_inputs",
    "predict_images",
    "predict_video",
    "split_inputs",
]

LONG_SIDE = 480, 4096  # pictures with a longer side outside this are enlarged or reduced, so that text stays legible
PICTURE_SCORE = 0.5
VIDEO_KINDS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp")
IMAGE_KINDS = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".png",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".ppm",
    ".pgm",
    ".gif",
    ".avif",
    ".heic",
    ".jp2",
)
FRAMES_AT_LEAST = 0.9  # of those that a video announces, often by its length and rate


class PredictionError(UserError):
    """Inputs that can't be read or outputs that can't be written; the message names the file and the remedy."""


@dataclass
class Inputs:
    """Images and videos to predict, in order; `root`: the folder that pictures' names are relative to; `passed_over`:
    files of folders that are neither; `folders`: those in folders, not looked into."""

    images: list[Path] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)
    passed_over: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    root: Path = Path()

    def video_targets(self, folder: Path) -> dict[Path, Path]:
        """Where each video's outputs go, without suffix; its whole name where two differ in nothing else."""
        stems = [v.stem for v in self.videos]
        return {v: folder / (v.stem if stems.count(v.stem) == 1 else v.name) for v in self.videos}


def split_inputs(config: Config, split: str) -> tuple[Inputs, Annotations, list[str]]:
    """The images of a split ("train", "val", "test", or a file that lists one, beside val_dataset), what is annotated
    of them, and why some were left out. Raises DataError."""
    data = read_split(config, split, training=False)
    usable = data.usable("skip")
    if not usable:
        raise PredictionError(f"{data.split.annotations}: no usable image; {'; '.join(data.skipped()[:1])}")
    files = {}
    for r in usable:
        image_id = r.image_id if r.source_id is None else r.source_id
        files[r.path] = AnnotatedImage(str(r.path), image_id, (r.height, r.width))
    inputs = Inputs(images=list(files), root=common_folder(files))
    categories = {c["name"]: c.get("source_id", c["id"]) for c in data.categories}
    return inputs, Annotations(data.split.annotations, list(files.values()), categories, files), data.skipped()


def find_inputs(patterns: Iterable[str], recursive: bool = False, outputs: Iterable[Path] = ()) -> Inputs:
    """Files of each pattern: an image, a video, a folder (its images; `recursive`: those of folders in it, too, but for
    hidden ones and `outputs`), or a glob.

    What a file is, its content tells; only a file that isn't an image and is named as a video is one. A file named
    outright is always kept, to be told of where it can't be read. Raises PredictionError where a pattern finds nothing.
    """
    found, seen = Inputs(), {Path(p).resolve() for p in outputs}
    for pattern in patterns:
        path = Path(pattern)
        if os.path.isdir(path):
            files, outright = folder_files(path, found, recursive, seen), False
        elif os.path.exists(path):
            files, outright = [path], True
        else:
            files = sorted(Path(p) for p in glob.glob(pattern, recursive=True) if os.path.isfile(p))
            outright = True
            if not files:
                raise PredictionError(f"{pattern}: no such image, video or folder, and no file of that pattern")
        for file in files:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                sort_file(found, file, outright)
    if found.images:
        found.root = common_folder(found.images)
    elif not found.videos:
        below = f", but {len(found.folders)} folders; --recursive looks into them" if found.folders else ""
        raise PredictionError(f"{' '.join(patterns)}: no image or video in there{below}")
    return found


def folder_files(folder: Path, found: Inputs, recursive: bool, seen: set[Path]) -> list[Path]:
    """A folder's files in order, and those of folders in it, or these noted in found.folders; none is entered twice."""
    files: list[Path] = []
    folders: list[Path] = []
    try:
        for path in sorted(folder.iterdir()):
            (folders if path.is_dir() else files).append(path)
    except OSError as e:
        raise PredictionError(f"{folder}: can't read the folder: {e.strerror}") from None
    files = [f for f in files if f.is_file()]
    seen.add(folder.resolve())
    for below in folders:
        if below.resolve() in seen:
            continue
        if recursive and not below.name.startswith("."):
            files += folder_files(below, found, recursive, seen)
        else:
            found.folders.append(below)
    return files


def common_folder(images: Iterable[Path]) -> Path:
    """The folder that all the images lie below."""
    return Path(os.path.commonpath({os.path.dirname(os.path.abspath(p)) for p in images}))


def sort_file(found: Inputs, file: Path, outright: bool) -> None:
    """Adds a file where it belongs: in a folder, notes and the like are passed over, damaged images aren't."""
    suffix = file.suffix.lower()
    if is_image(file):
        found.images.append(file)
    elif suffix in VIDEO_KINDS:
        found.videos.append(file)
    elif outright or suffix in IMAGE_KINDS:
        found.images.append(file)
    else:
        found.passed_over.append(file)


@contextlib.contextmanager
def json_entries(path: Path, brackets: str) -> Iterator[Callable[[str], None]]:
    """A function that adds an entry to the JSON list or object at `path`, so that none of it is held in memory."""
    with whole(path) as beside, beside.open("w") as f:
        f.write(brackets[0])
        separator = "\n"

        def add(text: str) -> None:
            nonlocal separator
            f.write(separator + text)
            separator = ",\n"

        yield add
        f.write(f"\n{brackets[1]}\n")


def predict_images(
    predictor: Predictor,
    inputs: Inputs,
    json_path: Path,
    pictures: Path | None = None,
    coco_path: Path | None = None,
    annotations: Annotations | None = None,
    picture_score: float = PICTURE_SCORE,
    labels: tuple[str, Path] | None = None,
) -> list[str]:
    """Predicts inputs.images and writes `json_path`, {path: Detections.to_entry()} in the order of the inputs.

    pictures: folder of drawn pictures, with detections of at least picture_score, or of their class's own threshold;
    coco_path: COCO results of all images, with the image ids of `annotations`, else of file names that are numbers,
    else numbered from 1; each entry of the JSON then says its image_id. annotations: also the images' sizes, by which
    exif: auto turns them. labels: the kind of LABEL_KINDS and the place (folder of labelme's, COCO's file) of labels to
    correct by hand, of the detections that are drawn. Returns what couldn't be read, a line each. Raises UserError.
    """
    known = annotations.find(inputs.images) if annotations else {}
    if annotations and (coco_path or (labels and labels[0] == "coco")):
        annotations.demand(inputs.images, known)
    elif annotations and (unknown := len(inputs.images) - len(known)):
        print(f"{unknown} of {len(inputs.images)} images aren't in {annotations.path}: no ids, taken as without it")
    sizes = {p: known[p].size for p in known}
    ids = image_ids(inputs, known) if annotations or coco_path or labels else {}
    names = picture_names(inputs, pictures) if pictures else {}
    others = {p for p in pictures.rglob("*") if is_image(p)} - set(names.values()) if pictures else ()
    if others:
        print(f"{pictures}: {len(others)} other pictures, as of an earlier run, stay there")
    faults = []
    with contextlib.ExitStack() as files:
        label = files.enter_context(label_writer(*labels, inputs, ids, predictor)) if labels else None
        add = files.enter_context(json_entries(json_path, "{}"))
        add_result = files.enter_context(json_entries(coco_path, "[]")) if coco_path else None
        stream = predictor.stream(inputs.images, keep_images=pictures is not None, sizes=sizes)
        told = tqdm(stream, total=len(inputs.images), unit="image", desc="predicting")
        for path, p in zip_equal(inputs.images, told):
            if p.fault:
                faults.append(p.fault)
                continue
            entry = p.found.to_entry()
            if add_result or path in known:
                entry = {"image_id": ids[path]} | entry
            if add_result:
                for row in p.found.to_coco(ids[path]):
                    add_result(json.dumps(row, separators=(",", ":")))
            add(f"{json.dumps(os.fspath(path))}: {json.dumps(entry)}")
            if label:
                label(path, p.found.above(picture_score, predictor.class_score_thr), p.orientation)
            if pictures:
                write_picture(names[path], p, picture_score, predictor.class_score_thr)
    return faults


def label_writer(kind: str, place: Path, inputs: Inputs, ids: dict[Path, int | str], predictor: Predictor):
    """The context of a writer of labels, see predict_labels."""
    relative = {p: Path(os.path.abspath(p)).relative_to(inputs.root) for p in inputs.images}
    if kind == "coco":
        images = {p: (name.as_posix(), ids[p]) for p, name in relative.items()}
        return coco_labels(place, images, predictor.class_names, predictor.category_ids)
    stems = Counter(name.with_suffix("") for name in relative.values())
    targets = {}
    for p, name in relative.items():
        alone = stems[name.with_suffix("")] == 1
        targets[p] = place / (name.with_suffix(".json") if alone else name.with_name(name.name + ".json"))
    return labelme_labels(targets)


def image_ids(inputs: Inputs, known: dict[Path, AnnotatedImage]) -> dict[Path, int | str]:
    """COCO's image id of each input, -1 for one that isn't in the annotations."""
    if known:
        return {p: known[p].image_id if p in known else -1 for p in inputs.images}
    stems = [p.stem for p in inputs.images]
    if all(s.isascii() and s.isdigit() for s in stems) and len({int(s) for s in stems}) == len(stems):
        return {p: int(p.stem) for p in inputs.images}
    return {p: i for i, p in enumerate(inputs.images, 1)}


def picture_names(inputs: Inputs, folder: Path) -> dict[Path, Path]:
    """Where each image's picture goes: below `folder` as the image lies below the inputs' root."""
    out: dict[Path, Path] = {}
    taken = {p.resolve() for p in inputs.images}
    for image in inputs.images:
        relative = Path(os.path.abspath(image)).relative_to(inputs.root)
        target = folder / relative
        if relative.suffix.lower() not in (".jpg", ".jpeg", ".png"):
            target = target.with_name(target.name + ".png")
        if target.resolve() in taken:
            raise PredictionError(f"{target}: the picture would replace an input, or another; name another --output")
        taken.add(target.resolve())
        out[image] = target
    return out


def write_picture(path: Path, prediction: Prediction, score: float, by_class: Mapping[str, float]) -> None:
    """Draws a prediction whose image was kept."""
    d, image = prediction.found.above(score, by_class), prediction.image
    assert image is not None, "asked for without keep_images"
    long = max(image.shape[:2])
    zoom = min(max(1.0, math.ceil(LONG_SIDE[0] / long)), 16.0) if long < LONG_SIDE[1] else LONG_SIDE[1] / long
    write_image(path, draw(d, image, zoom))


def draw(detections: Detections, bgr: np.ndarray, zoom: float = 1.0) -> np.ndarray:
    """Detections.draw, of BGR, of all of them."""
    return np.ascontiguousarray(detections.draw(bgr[:, :, ::-1], 0.0, zoom)[:, :, ::-1])


def write_image(path: Path, bgr: np.ndarray) -> None:
    """Encodes by the suffix, writes beside, renames. Raises PredictionError."""
    _, data = cv2.imencode(path.suffix.lower(), bgr)
    with whole(path) as beside:
        beside.write_bytes(data.tobytes())


# ---------------------------------------------------------------------------------------------------------
# video


def predict_video(
    predictor: Predictor, video: Path, target: Path, score: float = PICTURE_SCORE, with_picture: bool = True
) -> str:
    """Writes {target}.jsonl, a line a frame ({"frame", "seconds", "height", "width", "predictions"}), and {target}.mp4
    with the detections of at least `score` drawn.

    Frames are upright, as players show them. Returns what is wrong with the video, "" for nothing: one that doesn't
    open, or ends early. Raises UserError for outputs that can't be written.
    """
    try:
        open_regular(video).close()
    except OSError as e:
        return f"{video}: can't read: {e.strerror}"
    capture = cv2.VideoCapture(os.fspath(video), cv2.CAP_FFMPEG)
    # phones store frames on their side, with a matrix that turns them; OpenCV heeds it only when told
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    height, width = (int(capture.get(k)) for k in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
    if not capture.isOpened() or height < 1 or width < 1:
        return f"{video}: not a video that can be read, or damaged"
    if height * width > MAX_PIXELS:
        return f"{video}: frames of {width} x {height}, more than {MAX_PIXELS:,} pixels"
    lines, film = (target.with_name(target.name + suffix) for suffix in (".jsonl", ".mp4"))
    if with_picture and film.resolve() == video.resolve():
        raise PredictionError(f"{film}: the annotated video would replace its input; name another --output")
    rate = capture.get(cv2.CAP_PROP_FPS)
    rate = rate if 0 < rate <= 1000 else 25.0
    announced, count = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))), 0
    stream = predictor.stream(frames(capture), keep_images=with_picture)
    first = next(stream, None)
    if first is None:
        return f"{video}: no frame that can be read"
    with contextlib.ExitStack() as files:
        add = files.enter_context(film_frames(film, rate)) if with_picture else None
        # the inner of both, so that what can't be written of it is told of it
        out = files.enter_context(files.enter_context(whole(lines)).open("w"))
        for p in tqdm(itertools.chain([first], stream), total=announced or None, unit="frame", desc=video.name):
            entry = {"frame": count, "seconds": round(count / rate, 4)} | p.found.to_entry()
            out.write(json.dumps(entry) + "\n")
            if add:
                assert p.image is not None, "asked for without keep_images"
                add(draw(p.found.above(score, predictor.class_score_thr), p.image))
            count += 1
    capture.release()
    if count < FRAMES_AT_LEAST * announced:
        return f"{video}: ends after {count} of {announced} frames; cut short or damaged"
    return ""


def frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 RGB."""
    while True:
        good, frame = capture.read()
        if not good:
            return
        yield np.ascontiguousarray(frame[:, :, ::-1])


@contextlib.contextmanager
def film_frames(path: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that adds a frame (H, W, 3) uint8 BGR to the MP4 at `path`; all of one size, the first one's.

    A last row or column is repeated where a side is odd, which the codec would cut. Raises PredictionError where the
    frames can't be written, or aren't there when they are read again.
    """
    writer, count = None, 0

    def add(frame: np.ndarray) -> None:
        nonlocal writer, count
        height, width = frame.shape[:2]
        frame = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        size = frame.shape[1], frame.shape[0]
        if writer is None:
            writer = cv2.VideoWriter(os.fspath(beside), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
            if not writer.isOpened():
                raise PredictionError(f"{path}: can't write a video of {size[0]} x {size[1]} there")
        writer.write(frame)
        count += 1

    with whole(path) as beside:
        try:
            yield add
        finally:
            if writer is not None:
                writer.release()
        demand_frames(beside, path, count)


def demand_frames(written: Path, path: Path, count: int) -> None:
    """Raises OSError or PredictionError, of `path`, unless the video `written` has `count` frames, the last one whole.

    OpenCV's writer doesn't tell of a disk that is full.
    """
    capture = cv2.VideoCapture(os.fspath(written), cv2.CAP_FFMPEG)
    held = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.set(cv2.CAP_PROP_POS_FRAMES, count - 1)
    if held == count and capture.read()[0]:
        return
    # the system says why
    with written.open("ab") as f:
        f.write(bytes(1 << 20))
        f.flush()
        os.fsync(f.fileno())
    raise PredictionError(f"{path}: the video couldn't be written whole ({held} of {count} frames); was the disk full?")
