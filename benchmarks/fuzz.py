"""Random changes to valid data sets: python -m benchmarks.fuzz [--seed 0] [--count 100] [--format coco voc ...]

Each changed set goes through inspect, an epoch of the loader without the network, and evaluation of perfect
predictions, with equal counts, or is refused in one line that names a file of it. One in two runs with on_bad_image:
skip. Each case runs in a process of its own, with limits on time and memory. --train N: of each format N accepted ones
also train a step. Prints counts by kind of mutation, and how each failure is made again. Ends with status 1 if there
are any, or if fewer than four in ten are accepted.

--parsers: changed inputs of every parser in place of data sets; see benchmarks/fuzz_parsers.py.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.common import print_table
from benchmarks.mutations import FORMATS, JSON_DIRT, DataSet, applicable, make_set, pick
from benchmarks.truth import perfect_results
from src.config import Config, load_config
from src.data.formats import resolve_classes
from src.data.inspect import inspect_split
from src.data.loader import TrainLoader
from src.data.mindrecord import ensure_mindrecord, ground_truth, read_index
from src.data.truth import read_truth, truth_of, truth_of_split
from src.evaluation.coco import evaluate
from src.evaluation.kinds import KINDS
from src.evaluation.results import load_results, save_results
from src.evaluation.truth import read_annotations
from src.inference.files import split_inputs
from src.runtime.errors import UserError

__all__ = ["Outcome", "make_case", "run_case"]

ROOT = Path(__file__).resolve().parents[1]
SECONDS, MEMORY = 120, 2 << 30  # of a case; bytes beyond what the process begins with
CLASS_COUNT = 12  # of the networks that train a step
TINY = {
    "img_height": 128,
    "img_width": 128,
    "batch_size": 1,
    "num_parallel_workers": 1,
    "flip_ratio": 0.0,
    "train_empty_images": True,
    "max_instance_count": 32,
    "backbone.width_multiplier": 0.25,
    "train_cfg.rpn_proposal.nms_pre": 200,
    "train_cfg.rpn_proposal.max_per_img": 100,
    "train_cfg.rcnn.sampler.num": 64,
}


class DifferenceError(Exception):
    """Two readers of one data set that don't agree, or something that was lost without a word."""


@dataclass
class Outcome:
    """What became of a case. status: accepted, skipped (accepted without some images), refused or FAILED."""

    mutations: list[str] = field(default_factory=list)
    status: str = ""
    told: str = ""
    objects: int = 0


def make_case(form: str, seed: int, number: int, root: Path) -> tuple[dict[str, object], list, DataSet]:
    """Writes a changed data set below `root`; returns its config's keys, the mutations, and what was written."""
    random = np.random.default_rng([seed, FORMATS.index(form), number])
    kinds = applicable(form)
    chosen = []
    data = make_set(form, random)
    for _ in range(1 + (random.random() < 0.3)):
        # every kind in turn, so that each is met
        kind = list(kinds)[(number + len(chosen) * int(random.integers(len(kinds)))) % len(kinds)]
        for _ in range(20):
            mutation = kinds[kind][int(random.integers(len(kinds[kind])))]
            with contextlib.suppress(LookupError, AttributeError, TypeError, ValueError, IndexError):
                # a second one may find what the first has broken
                mutation.change(data, random)
                chosen.append(mutation)
                break
    keys = data.write(root / "data")
    keys["on_bad_image"] = "skip" if number % 2 else "stop"
    return keys, chosen, data


def config_of(keys: dict[str, object], root: Path) -> Config:
    places = {"mindrecord_dir": str(root / "records"), "train_outputs": str(root / "outputs"), "coco_classes": "auto"}
    return load_config(ROOT / "configs/shapes.yaml", TINY | places | keys)


def run_case(form: str, seed: int, number: int, root: Path) -> Outcome:
    """One case, in this process; an exception other than a user's error, and a difference, propagates."""
    keys, mutations, data = make_case(form, seed, number, root)
    out = Outcome([f"{m.kind}/{m.name}" for m in mutations])
    config = config_of(keys, root)
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        try:
            check(config, root / "outputs", number % 5 == 0, out, np.random.default_rng([seed, number]))
        except UserError as e:
            out.status, out.told = "refused", str(e)
            if str(root) not in out.told:
                raise DifferenceError(f"a refusal that names no file: {out.told}") from None
    if mutations and all(m.benign for m in mutations) and (out.status, out.objects) != ("accepted", data.objects):
        raise DifferenceError(f"benign, but {out.status}: {out.objects} of {data.objects} objects; {out.told}")
    return out


def check(config: Config, outputs: Path, draw: bool, out: Outcome, random: np.random.Generator) -> None:
    """Inspects, trains without a network, evaluates.

    Raises DifferenceError, and UserError for what is refused before any step.
    """
    figures = inspect_split(config, "train", outputs, 2 if draw else 0)
    config = resolve_classes(config, training=True)
    folder = ensure_mindrecord(config, "train", training=True, quiet=True)
    index = read_index(folder)
    left_out = len(index["skipped"])
    if left_out != len(figures.problems):
        raise DifferenceError(f"inspect leaves out {len(figures.problems)} images, training {left_out}")
    # what can't be matched is told, and then not expected to be
    whole = not any("don't overlap" in n or "cover no pixel" in n for n in index["notes"])
    loader = TrainLoader(config, folder)
    trained, images = 0, 0
    try:
        for batch in loader.epoch(0):
            trained += int(batch["gt_valid"].sum())
            images += len(batch["image_id"])
            if not all(np.isfinite(v).all() for v in batch.values() if v.dtype.kind == "f"):
                raise DifferenceError("a batch that isn't finite")
            if (
                whole
                and config.with_mask
                and not batch["gt_masks"][batch["gt_valid"]].reshape(-1, 112 * 112).any(1).all()
            ):
                raise DifferenceError("an object with an empty mask is trained on")
    except UserError as e:
        raise DifferenceError(f"refused in the epoch, not before: {e}") from None
    if loader.maker.skipped:
        raise DifferenceError(f"left out in the epoch, not before: {loader.maker.skipped[0]}")
    out.objects = sum(figures.instances.values())
    if (out.objects, figures.images) != (trained, images):
        raise DifferenceError(
            f"inspect says {out.objects} objects in {figures.images} images, trained {trained} in {images}"
        )
    path = ground_truth(config)
    truth = read_truth(path)
    usable = set(index["image_ids"])
    counted = sum(not a["iscrowd"] and a["image_id"] in usable for a in truth["annotations"])
    if counted != out.objects:
        raise DifferenceError(f"inspect says {out.objects} objects, the truth has {counted} of the same images")
    if len(truth["images"]) != len(usable) + left_out:
        raise DifferenceError(f"{len(usable)} images and {left_out} left out, the truth has {len(truth['images'])}")
    direct = truth_of_split(config, "val", "if_any" if config.with_mask else "unneeded")
    if config.dataset == "coco":
        check_file(config, direct)
    if json.dumps(direct["annotations"]) != json.dumps(truth["annotations"]):
        raise DifferenceError("eval.py --predictions measures against another truth than the network's evaluation")
    results = perfect_results(truth)
    measure(path, results, config, whole)
    check_results(path, results, outputs, random)
    check_prediction(config, len(usable))
    out.status, out.told = ("skipped", index["skipped"][0]) if left_out else ("accepted", "")


def check_file(config: Config, direct: dict) -> None:
    """Raises DifferenceError where the annotation file alone, as postprocess.py reads it, has other objects."""
    alone = truth_of(config.val_dataset, "skip", "if_any" if config.with_mask else "unneeded")
    names = set(config.coco_classes)
    ids = {c["id"] for c in alone["categories"] if c["name"] in names}
    objects = [sum(not a["iscrowd"] for a in d["annotations"] if a["category_id"] in ids) for d in (alone, direct)]
    if objects[0] != objects[1]:
        raise DifferenceError(f"postprocess.py reads {objects[0]} objects, evaluation {objects[1]}")


def measure(path: Path, results: list[dict], config: Config, whole: bool) -> None:
    """Raises DifferenceError where perfect predictions aren't perfect; of masks if those are `whole`."""
    truth = read_annotations(path)
    kinds = ("bbox", "segm") if KINDS["segm"].annotated(truth) and config.with_mask else ("bbox",)
    summary = evaluate(truth, results, kinds)
    expected = 1.0 if results else -1.0
    for kind, metrics in summary.metrics.items():
        if abs(metrics["AP"] - expected) > 1e-6 and (whole or kind == "bbox"):
            raise DifferenceError(f"perfect predictions have {kind} AP {metrics['AP']:.4f}, not {expected:.0f}")


def check_results(path: Path, results: list[dict], outputs: Path, random: np.random.Generator) -> None:
    """Writes results with the user's own ids and reads them; then with a value spoilt, which may be refused.

    Raises DifferenceError.
    """
    truth = read_annotations(path)
    place = outputs / "results.json"
    save_results(place, results, truth)
    kinds = ("bbox", "segm") if results and all("segmentation" in r for r in results) else ("bbox",)
    expected = evaluate(truth, results, kinds).metrics
    if evaluate(truth, load_results(place, truth), kinds).metrics != expected:
        raise DifferenceError("a results file is worth other numbers than the results")
    if not results:
        return
    rows = json.loads(place.read_text())
    row = pick(random, rows)
    key = pick(random, row)
    row[key] = pick(random, JSON_DIRT)
    place.write_text(json.dumps(rows))
    with contextlib.suppress(UserError):
        found = evaluate(truth, load_results(place, truth), ("bbox",)).metrics["bbox"]["AP"]
        if len(rows) > 9 and found < 0.3:
            raise DifferenceError(f"one {key} spoilt to {row[key]!r} takes AP to {found:.3f} without a word")


def check_prediction(config: Config, usable: int) -> None:
    """Raises DifferenceError where prediction reads another data set."""
    found, known, left_out = split_inputs(config, "val")
    # an image that doesn't decode is met where it is opened
    if len(found.images) < usable or len(known.files) != len(found.images):
        raise DifferenceError(f"infer.py --split has {len(found.images)} images, evaluation {usable}; {left_out[:1]}")


# ---------------------------------------------------------------------------------------------------------
# processes of their own


def in_process(call: Callable[[], object], seconds: float, memory: int) -> tuple[object, str]:
    """What `call` returns in a forked process, or what went wrong."""
    read, write = os.pipe()
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pid = os.fork()
    if not pid:
        os.close(read)
        os.setpgid(0, 0)
        for number in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        try:
            answer = (call(), "")
        except DifferenceError as e:
            answer = (None, f"silent difference: {e}")
        except BaseException:
            answer = (None, "traceback: " + traceback.format_exc())
        with os.fdopen(write, "wb") as f:
            pickle.dump(answer, f)
        # the framework's threads would be waited for
        os._exit(0)
    os.close(write)
    data, until = b"", time.monotonic() + seconds
    with os.fdopen(read, "rb", 0) as f:
        while (left := until - time.monotonic()) > 0 and select.select([f], [], [], left)[0]:
            if not (block := f.read(1 << 16)):
                break
            data += block
        else:
            os.kill(pid, signal.SIGKILL)
    _, status, used = os.wait4(pid, 0)
    if not data:
        return None, f"hang: not done after {seconds} s" if time.monotonic() >= until else f"crash: status {status}"
    if (used.ru_maxrss - begin) * 1024 > memory:
        return None, f"memory: {(used.ru_maxrss - begin) >> 10} MiB"
    return pickle.loads(data)


def isolated(form: str, seed: int, number: int, out: Path | None) -> Outcome:
    """run_case in a forked process; its data set is kept in `out`, if that is given."""
    root = (out or Path(tempfile.mkdtemp(prefix="fuzz"))) / f"{form}-{seed}-{number}"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    outcome, fault = in_process(lambda: run_case(form, seed, number, root), SECONDS, MEMORY)
    if fault:
        with tempfile.TemporaryDirectory() as again:
            mutations = make_case(form, seed, number, Path(again))[1]
        outcome = Outcome([f"{m.kind}/{m.name}" for m in mutations], "FAILED", fault)
    shutil.rmtree(root if out else root.parent, ignore_errors=True)
    return outcome


# ---------------------------------------------------------------------------------------------------------
# a step


def train_steps(cases: list[tuple[str, int, int]]) -> list[str]:
    """Trains one step on each case, with one network for all; returns the faults."""
    from src.models.build import build_detector, build_loss
    from src.ops.device import set_device
    from src.training.loop import step_inputs
    from src.training.step import SamplerKeys, build_step

    step = None
    faults = []
    for form, seed, number in cases:
        with tempfile.TemporaryDirectory() as place:
            keys, *_ = make_case(form, seed, number, Path(place))
            config = resolve_classes(config_of(keys, Path(place)), training=True)
            spare = [f"spare_{i}" for i in range(config.num_classes, CLASS_COUNT)]
            keys |= {"coco_classes": config.coco_classes + spare, "num_classes": CLASS_COUNT}
            config = config_of(keys, Path(place))
            loader = TrainLoader(config, ensure_mindrecord(config, "train", training=True, quiet=True))
            if step is None:
                set_device(config)
                detector = build_detector(config)
                step = build_step(config, build_loss(config, detector), np.full(1000, 1e-3, np.float32))
                sampler = SamplerKeys(config)
            batch = next(iter(loader.epoch(0)))
            values = step(*step_inputs(batch, sampler(0, batch["image_id"])))[0].asnumpy()
            if not np.isfinite(values).all():
                faults.append(f"{form} --seed {seed} --only {number}: losses {values}")
    return faults


# ---------------------------------------------------------------------------------------------------------


def table(outcomes: list[Outcome]) -> list[list[object]]:
    """Rows of counts by kind of mutation."""
    counts: dict[str, Counter] = {}
    for o in outcomes:
        for kind in {m.split("/")[0] for m in o.mutations} or {"none"}:
            counts.setdefault(kind, Counter())[o.status] += 1
    return [[kind, *(c[s] for s in STATUSES), sum(c.values())] for kind, c in sorted(counts.items())]


STATUSES = ("accepted", "skipped", "refused", "FAILED")


def main() -> int:
    if "--parsers" in sys.argv[1:]:
        from benchmarks.fuzz_parsers import main as parsers

        return parsers()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100, help="cases of each format")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases, in place of --count; all is told")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--train", type=int, default=0, help="accepted cases of each format that train a step")
    parser.add_argument("--out", type=Path, help="folder that the data sets of failures are written to")
    parser.add_argument("--parsers", action="store_true", help="every parser in place of data sets; has its own --help")
    a = parser.parse_args()
    numbers = a.only if a.only else range(a.count)
    outcomes: dict[tuple[str, int], Outcome] = {}
    begin = time.monotonic()
    for form in a.format:
        for number in numbers:
            o = outcomes[form, number] = isolated(form, a.seed, number, None)
            if o.status == "FAILED" or a.only:
                print(f"{form} {number} ({', '.join(o.mutations)}): {o.status} {o.told}", flush=True)
            if o.status == "FAILED" and a.out:
                with contextlib.suppress(Exception):
                    make_case(form, a.seed, number, a.out / f"{form}-{a.seed}-{number}")
        found = Counter(o.status for (f, _), o in outcomes.items() if f == form)
        print(f"{form}: {dict(found)}, {time.monotonic() - begin:.0f} s", flush=True)
    faults = []
    for masks in (True, False) if a.train else ():
        cases = trained_cases(outcomes, a.seed, a.train, masks)
        told, fault = in_process(lambda c=cases: train_steps(c), 1200, 8 << 30) if cases else ([], "")
        faults += [fault] if fault else told
        print(f"{len(cases)} accepted cases {'with' if masks else 'without'} masks trained a step each")
    everything = list(outcomes.values())
    rows = table(everything)
    total = Counter(o.status for o in everything)
    rows.append(["cases", *(total[s] for s in STATUSES), sum(total.values())])
    print_table(f"Mutations, seed {a.seed}", ["kind", *STATUSES, "of"], rows)
    for (form, number), o in outcomes.items():
        if o.status == "FAILED":
            last = o.told.strip().splitlines()[-1]
            print(f"FAILED: python -m benchmarks.fuzz --seed {a.seed} --format {form} --only {number}: {last[:300]}")
    for fault in faults:
        print(f"FAILED step: {fault}")
    accepted = (total["accepted"] + total["skipped"]) / max(sum(total.values()), 1)
    print(f"{accepted:.0%} accepted, {total['skipped']} of them without some images")
    return 1 if total["FAILED"] or faults or accepted < 0.4 else 0


def trained_cases(outcomes: dict, seed: int, count: int, masks: bool) -> list[tuple[str, int, int]]:
    """Accepted cases with objects, `count` of each format, of detectors with or without masks."""
    out = []
    for form in FORMATS:
        if (form not in ("voc", "txt")) != masks:
            continue
        usable = []
        for (f, number), o in outcomes.items():
            if f == form and o.status in ("accepted", "skipped") and o.objects and len(usable) < count:
                with tempfile.TemporaryDirectory() as place:
                    keys = make_case(form, seed, number, Path(place))[0]
                if keys["detector"] == ("mask_rcnn" if masks else "faster_rcnn"):
                    usable.append((form, seed, number))
        out += usable
    return out


if __name__ == "__main__":
    sys.exit(main())
