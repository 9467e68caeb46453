"""Every parser of what comes from outside, with its inputs: for python -m benchmarks.fuzz --parsers.

A kind is set up once in a folder. Then it makes cases there: a changed file, bytes of a valid one or what it says, and
what reads it.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import shutil
import subprocess
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from mindspore.train import mind_ir_pb2 as ir

from benchmarks.fuzz import config_of
from benchmarks.mutations import applicable, checkpoints, config, contents, make_set, pick, pictures, raw, results
from benchmarks.mutations import sidecar as sidecars
from benchmarks.mutations.sets import DataSet
from src.checkpoints.convert.conventions import said_of_itself
from src.checkpoints.convert.conversion import fits_a_layout
from src.checkpoints.convert.readers import read_state
from src.config import load_config
from src.data.formats import formats_at, read_split, resolve_classes
from src.data.images import check_decodes, dark_16bit, file_header, image_header, is_image, read_image
from src.data.import_labels import import_labels
from src.data.truth import read_truth, truth_dict, write_truth
from src.evaluation.coco import evaluate
from src.evaluation.cpp_results import HEADER, read_result, read_summary
from src.evaluation.results import load_results
from src.evaluation.truth import Truth, read_annotations
from src.export import sidecar
from src.runtime.errors import UserError
from tests.ascend310_infer import test_image, test_sidecar

__all__ = ["KINDS", "Case", "DiedError"]

Random = np.random.Generator
SANITIZED = {"ASAN_OPTIONS": "hard_rss_limit_mb=1024:allocator_may_return_null=0", "PATH": "/usr/bin:/bin"}


class DiedError(Exception):
    """A program that ended in no way that it may."""


@dataclass
class Case:
    """read: reads the changed input; same: where a checksum covers what was changed, whether what was read is what the
    valid file holds; named: what a refusal must name, "" where it can't."""

    read: Callable[[], object]
    same: Callable[[object], bool] | None = None
    named: str = ""


@dataclass
class Kind:
    """set_up(folder) -> make(random, structured) -> Case; summed: whether the format has a checksum."""

    set_up: Callable[[Path], Callable[[Random, bool], Case]]
    summed: bool = False


KINDS: dict[str, Kind] = {}


def kind(name: str, summed: bool = False):
    def register(set_up):
        KINDS[name] = Kind(set_up, summed)
        return set_up

    return register


# ---------------------------------------------------------------------------------------------------------
# checkpoints


def equal(arrays: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return arrays.keys() == wanted.keys() and all(
        (arrays[n].dtype, arrays[n].shape, arrays[n].tobytes()) == (v.dtype, v.shape, v.tobytes())
        for n, v in wanted.items()
    )


def checkpoint(name: str) -> Callable[[Path], Callable[[Random, bool], Case]]:
    def set_up(folder):
        seed = checkpoints.seeds(folder)[name]
        originals = {part: part.read_bytes() for part in seed.parts}
        wanted = checkpoints.state()

        def read():
            found = read_state(seed.file, fits_a_layout)
            said_of_itself(found.meta, found.arrays)
            return found

        def make(random, structured):
            part = pick(random, seed.parts)
            change = contents.rewritten if structured else lambda _, random, data: checkpoints.mutate(random, data)
            for path, data in originals.items():
                path.write_bytes(change(name, random, data) if path == part else data)
            # a .ckpt that lost its checksum says so
            same = None if structured or not seed.summed else lambda s: not s.whole or equal(s.arrays, wanted)
            return Case(read, same, str(seed.file.parent))

        return make

    return set_up


for _name in ("zip", "legacy", "pickle", "npz", "safetensors", "shards", "ckpt"):
    kind(f"checkpoint {_name}", _name in ("zip", "safetensors", "shards", "ckpt"))(checkpoint(_name))


# ---------------------------------------------------------------------------------------------------------
# data sets


def listed_voc(random: Random) -> DataSet:
    data = make_set("voc", random)
    names = [Path(n).relative_to("JPEGImages").with_suffix("").as_posix() for n in data.images]
    for part in ("train", "val"):
        data.docs[f"ImageSets/Main/{part}.txt"] = [[n] for n in names]
    return data


def listed_yolo(random: Random) -> DataSet:
    data = make_set("yolo", random)
    data.docs["train.txt"] = [[f"./{n}"] for n in data.images]
    data.docs["data.yaml"] |= {"train": "train.txt", "val": "train.txt"}
    return data


def lines_changed(random: Random, data: bytes) -> bytes:
    """YAML with one to three changes of lines."""
    lines = data.decode().splitlines()
    for _ in range(int(random.integers(1, 4))):
        with contextlib.suppress(LookupError):
            pick(random, config.CHANGES)(random, lines)
    return "\n".join(lines).encode()


def data_set(form: str, suffix: str, build=make_set) -> Callable[[Path], Callable[[Random, bool], Case]]:
    """Of sets of a format, whose documents with that suffix are changed."""

    def set_up(folder):
        kinds = [m for several in applicable(form).values() for m in several]
        root = folder / "data"

        def make(random, structured):
            shutil.rmtree(folder, ignore_errors=True)
            data = build(form, random) if build is make_set else build(random)
            docs = [d for d in data.docs if d.endswith(suffix)]
            if not structured:
                seed = int(random.integers(1 << 32))
                data.byte_edits[pick(random, docs)] = lambda b: raw.mutate(np.random.default_rng(seed), b)
            elif suffix == ".yaml":
                seed = int(random.integers(1 << 32))
                data.byte_edits[pick(random, docs)] = lambda b: lines_changed(np.random.default_rng(seed), b)
            else:
                for _ in range(int(random.integers(1, 4))):
                    # one may find what another has broken
                    with contextlib.suppress(LookupError, AttributeError, TypeError, ValueError, cv2.error):
                        pick(random, kinds).change(data, random)
            keys = data.write(root)

            def read():
                asked = config_of(keys, folder)
                formats_at(root)
                records = read_split(resolve_classes(asked, training=True), "train")
                if form == "coco":
                    read_annotations(root / "annotations/instances_train2017.json")
                told = records.skipped()
                truth_dict(dataclasses.replace(records, images=records.usable("skip")))
                for line in told:
                    # names may hold bytes that are no text, which where it is printed come as escapes
                    if str(root) not in line or any(unicodedata.category(c) == "Cc" for c in line):
                        raise DiedError(f"a fault of no one line with the file's name: {line!r}")
                if told:
                    raise UserError(told[0])

            return Case(read, None, str(root))

        return make

    return set_up


kind("COCO JSON")(data_set("coco", ".json"))
kind("labelme JSON")(data_set("labelme", ".json"))
kind("VOC XML")(data_set("voc", ".xml"))
kind("VOC list")(data_set("voc", ".txt", listed_voc))
kind("YOLO data.yaml")(data_set("yolo", ".yaml"))
kind("YOLO labels")(data_set("yolo", ".txt"))
kind("YOLO list")(data_set("yolo", "train.txt", listed_yolo))
kind("TXT boxes")(data_set("txt", ".txt"))


@kind("labelme imageData")
def image_data(folder: Path):
    def make(random, structured):
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "in").mkdir(parents=True)
        form = pick(random, ("PNG", "JPEG"))
        data = pictures.make(random, form)
        if structured:
            text = base64.b64encode(pictures.mutate(random, data)).decode()
        else:
            text = raw.mutate(random, base64.b64encode(data)).decode("latin-1")
        shape = {"label": "a", "points": [[0, 0], [1, 0], [1, 1], [0, 1]]}
        content = {"shapes": [shape], "imagePath": "a.png", "imageData": text}
        (folder / "in/a.json").write_text(json.dumps(content))
        return Case(lambda: import_labels(folder / "in", folder / "out", val=0, source="labelme"), None, str(folder))

    return make


@kind("truth", summed=True)
def truth(folder: Path):
    data = make_set("coco", np.random.default_rng(0))
    records = read_split(resolve_classes(config_of(data.write(folder), folder), training=True), "train")
    path = folder / "truth.json"
    write_truth(path, records)
    whole = path.read_bytes()
    wanted = read_truth(path)

    def make(random, structured):
        path.write_bytes((checkpoints.mutate if structured else raw.mutate)(random, whole))
        return Case(lambda: read_truth(path), lambda found: found == wanted, str(path))

    return make


# ---------------------------------------------------------------------------------------------------------
# configs, results


@kind("config YAML")
def config_file(folder: Path):
    path = folder / "mine.yaml"

    def make(random, structured):
        data = config.make(random)
        path.write_bytes(config.mutate(random, data) if structured else raw.mutate(random, data))
        return Case(lambda: load_config(path), None, str(folder))

    return make


def small_truth() -> Truth:
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 40, "width": 60} for i in (1, 2, 3)]
    annotation = {"id": 1, "image_id": 1, "category_id": 10, "bbox": [1, 1, 20, 20], "area": 400, "iscrowd": 0}
    annotation["segmentation"] = [[1, 1, 21, 1, 21, 21, 1, 21]]
    categories = [{"id": 10, "name": "a"}, {"id": 20, "name": "b"}]
    return Truth("truth.json", {"images": images, "annotations": [annotation], "categories": categories})


@kind("results JSON")
def results_file(folder: Path):
    path, known = folder / "results.json", small_truth()

    def read():
        rows = load_results(path, known)
        masks = rows and all("segmentation" in r for r in rows)
        evaluate(known, rows, ("bbox", "segm") if masks else ("bbox",))

    def make(random, structured):
        rows = results.make(random, [1, 2, 3], [10, 20])
        path.write_bytes(results.mutate(random, rows) if structured else raw.mutate(random, json.dumps(rows).encode()))
        return Case(read, None, str(path))

    return make


@kind("C++ summary")
def summary(folder: Path):
    path = folder / "summary.json"
    content = {"format": "rcnn-mindspore results", "images": ["a.jpg", "b/c.jpg"], "classes": ["background", "ant"]}
    content["mask_paste"] = {"threshold": 0.5, "convention": "grid"}

    def make(random, structured):
        changed = json.loads(json.dumps(content))
        for _ in range(int(random.integers(1, 3)) if structured else 0):
            with contextlib.suppress(LookupError, ValueError, TypeError, OverflowError):
                pick(random, sidecars.CONTENTS)(changed, random)
        data = json.dumps(changed).encode()
        path.write_bytes(data if structured else raw.mutate(random, data))
        return Case(lambda: read_summary(folder), None, str(path))

    return make


@kind("C++ result")
def result(folder: Path):
    path = folder / "a.det"

    def make(random, structured):
        count, side = int(random.integers(4)), int(random.integers(5))
        numbers = [40, 60, count, side]
        body = random.bytes(count * (24 + side * side))
        if structured:
            numbers[int(random.integers(4))] = int(pick(random, pictures.NUMBERS))
        data = HEADER.pack(b"RCNNDET1", *numbers) + body
        path.write_bytes(data if structured else raw.mutate(random, data))
        return Case(lambda: read_result(path, {"height": 40, "width": 60}), None, str(path))

    return make


# ---------------------------------------------------------------------------------------------------------
# pictures


def picture(form: str) -> Callable[[Path], Callable[[Random, bool], Case]]:
    def set_up(folder):
        path = folder / f"a.{form.lower()}"

        def read():
            data = path.read_bytes()
            is_image(path)
            header = image_header(data, str(path))
            if file_header(path) != header:
                raise DiedError("the file's header and that of its bytes differ")
            image = read_image(path, "stored")
            if read_image(path, "upright").shape != (*header.upright, 3):
                raise DiedError("not of the size that its header says")
            check_decodes(data, str(path), header)
            dark_16bit(data, str(path), header)
            return image

        def make(random, structured):
            data = pictures.make(random, form)
            path.write_bytes(data)
            wanted = None if structured or form != "PNG" else read_image(path, "stored")
            path.write_bytes(pictures.mutate(random, data) if structured else raw.mutate(random, data))
            same = None if wanted is None else lambda image: np.array_equal(image, wanted)
            return Case(read, same, str(path))

        return make

    return set_up


for _form in pictures.KINDS:
    kind(f"picture {_form}", _form == "PNG")(picture(_form))


# ---------------------------------------------------------------------------------------------------------
# exports


@kind("sidecar", summed=True)
def sidecar_python(folder: Path):
    return sidecar_cases(folder, None)


@kind("sidecar, C++", summed=True)
def sidecar_cpp(folder: Path):
    program = test_image.compiled(test_sidecar.SOURCES, folder)

    def read(path):
        said = ended(program, path).decode("utf-8", "replace").rstrip("\n")
        if said != "read":
            raise UserError(said) if "\n" not in said else DiedError(f"more than a line: {said!r}")

    return sidecar_cases(folder, read)


def sidecar_cases(folder: Path, reader: Callable[[Path], object] | None):
    path = folder / "m.json"
    described = {k: test_sidecar.described(k, form) for k in test_sidecar.KINDS for form in ("split", "whole")}

    def make(random, structured):
        about = described[pick(random, described)]
        data = sidecar.text(about).encode()
        if structured:
            changed = sidecars.mutated(data, random)[1]
        elif random.random() < 0.5:
            changed = pick(random, sidecars.BYTES)(data, random)
        else:
            changed = raw.mutate(random, data)
        path.write_bytes(changed)
        # what C++ takes must be what Python takes, and that must be what was written
        same = None if structured else (lambda _: sidecar.read(path) == json.loads(data, object_hook=unsigned))
        return Case(lambda: (reader or sidecar.read)(path), same, str(path))

    return make


def unsigned(content: dict) -> dict:
    return {k: v for k, v in content.items() if k != "checksum"}


def picture_cpp(form: str) -> Callable[[Path], Callable[[Random, bool], Case]]:
    def set_up(folder):
        program, path = test_image.compiled(test_image.SOURCES, folder), folder / "picture"

        def read():
            return ended(program, path, "64", "64", "1", "upright", "bilinear")

        def make(random, structured):
            data = pictures.make(random, form)
            path.write_bytes(pictures.mutate(random, data) if structured else raw.mutate(random, data))
            # the program itself adds the file's name
            return Case(read)

        return make

    return set_up


for _form in ("PNG", "JPEG"):
    kind(f"picture {_form}, C++")(picture_cpp(_form))


def ended(program: Path, *words: object) -> bytes:
    """What a sanitized program writes. Raises UserError for its line, and DiedError for any other end."""
    # without the limit of addresses, which the sanitizers' shadow memory is beyond
    command = ["bash", "-c", 'ulimit -S -v unlimited; exec "$@"', "-", program, *words]
    done = subprocess.run(command, capture_output=True, env=SANITIZED, timeout=60)
    said = done.stderr.decode("utf-8", "replace")
    if done.returncode == 2 and said.startswith("error: ") and said.count("\n") == 1:
        raise UserError(said[len("error: ") : -1])
    if done.returncode or said:
        raise DiedError(f"status {done.returncode}: {said[-1500:]}")
    return done.stdout


@kind("MINDIR", summed=True)
def mindir(folder: Path):
    path = folder / "m.mindir"
    model = ir.ModelProto(ir_version="0.1.1", producer_name="MindSpore")
    for i in range(6):
        model.graph.node.add(input=[f"x{i}"], output=[f"x{i + 1}"], op_type="REF::MatMul", name=f"node{i}")
        model.graph.parameter.add(dims=[2, 3], data_type=1, name=f"w{i}", raw_data=bytes(range(24)))
    whole = model.SerializeToString()
    path.write_bytes(whole)
    entry = sidecar.file_entry(path)

    def make(random, structured):
        changed = ir.ModelProto.FromString(whole)
        if structured:
            part = pick(random, (changed.graph.node, changed.graph.parameter))
            i = int(random.integers(len(part)))
            if random.random() < 0.5:
                del part[i]
            else:
                part[i].name = part[i].name[::-1]
        path.write_bytes(changed.SerializeToString() if structured else raw.mutate(random, whole))
        return Case(lambda: sidecar.check_file(path, entry), lambda _: path.read_bytes() == whole, str(path))

    return make
