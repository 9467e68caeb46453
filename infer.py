"""Predicts images and videos, or serves a page to try it.

python infer.py --config_path CFG --ckpt_file CKPT --input FILE|FOLDER|GLOB|VIDEO --output DIR
python infer.py --config_path CFG --ckpt_file CKPT --split train|val|FILE --output DIR
python infer.py --config_path CFG --ckpt_file CKPT --serve
"""

from __future__ import annotations

import _thread
import argparse
import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from pathlib import Path

from src.config import Config, add_config_arguments, config_from_arguments
from src.data.formats import resolve_classes
from src.runtime.errors import UserError, run_command
from src.runtime.files import hold

LONGEST_CLEANING = 30.0  # seconds after a signal
ECHO = 0.1  # seconds until one that isn't answered is sent again


def main() -> int:
    parser = argparse.ArgumentParser(description="Predict images and videos, or serve a page to try it.")
    add_config_arguments(parser, "configs/mask_rcnn_r50_fpn.yaml")
    parser.add_argument(
        "--ckpt_file", "--checkpoint_path", required=True, help="checkpoint of the whole detector (.ckpt, .safetensors)"
    )
    parser.add_argument("--input", nargs="+", help="image, video, folder of images, or quoted glob; several of them")
    parser.add_argument(
        "--recursive", action="store_true", help="also what lies in folders in a folder (but the output's)"
    )
    parser.add_argument("--split", help="train, val or an annotation file, in --input's place: that split's images")
    parser.add_argument("--output", type=Path, help="folder to write, or a .json file: then no pictures")
    parser.add_argument(
        "--score_thr", type=float, help="least score (default: the config's in the JSON, 0.5 in pictures)"
    )
    parser.add_argument(
        "--class_score_thr",
        nargs="+",
        default=[],
        metavar="NAME=SCORE",
        help="least score of a class, in --score_thr's place",
    )
    parser.add_argument("--tile", type=int, help="larger pictures also in squares of this side (pixels), merged by NMS")
    parser.add_argument("--overlap", type=float, help="share of it that they overlap (default: 0.2)")
    parser.add_argument("--batch", type=int, help="images a step (default: test_batch_size)")
    parser.add_argument("--pictures", help="folder of the pictures, or none (default: pictures/ in the output folder)")
    parser.add_argument("--coco_results", type=Path, help="COCO results file to write too")
    parser.add_argument("--annotations", help="COCO annotation file with the ids and sizes of images, and categories")
    parser.add_argument("--upright", action="store_true", help="turn images by their EXIF orientation: exif=upright")
    parser.add_argument("--classes", nargs="+", help="names of the only classes to detect (default: all)")
    parser.add_argument(
        "--labels",
        choices=("coco", "labelme"),
        help="labels to correct by hand: labels.json or labels/",
    )
    parser.add_argument("--serve", action="store_true", help="serve a page to try it instead")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at (default: %(default)s, this machine)")
    parser.add_argument(
        "--allow_host",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="names that the page answers to beside this machine's own and the address served at",
    )
    parser.add_argument("--port", type=int, default=7860, help="port to serve at (default: %(default)s)")
    config, arguments = config_from_arguments(parser)
    # names of files may be any bytes
    sys.stdout.reconfigure(errors="backslashreplace")
    for number in (signal.SIGINT, signal.SIGTERM):
        # what was started in the background ignores Ctrl-C
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
    wake_main_thread()
    try:
        if arguments.serve:
            from src.inference.page.serve import serve

            serve(config, arguments.ckpt_file, arguments.host, arguments.port, arguments.allow_host)
        else:
            predict(config, arguments)
    except BaseException:
        # also what a lock, say, makes of Stopped where it comes at a bad moment
        if Stopped.by is None:
            raise
        print(f"stopped by {Stopped.by.name}: nothing half written is left", file=sys.stderr)
        sys.stdout.flush(), sys.stderr.flush()
        # the network's thread, which may compile for a minute, would be waited for
        os._exit(128 + Stopped.by)
    return 0


class Stopped(KeyboardInterrupt):
    """A signal, `by`, asked to stop."""

    by: signal.Signals | None = None


def stop(number: int, _frame: object) -> None:
    """Stops once: what follows must not stop the cleaning up."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    Stopped.by = signal.Signals(number)
    # threading's own threads start with a lock, which what was interrupted may hold
    _thread.start_new_thread(end_late, ())
    raise Stopped


def wake_main_thread() -> None:
    """From now on a signal is sent to the main thread again until that has answered. Python runs handlers there alone:
    one that another thread gets, or that comes just before the main thread waits for a lock, wakes nobody.
    """
    inbox, outbox = os.pipe()
    os.set_blocking(outbox, False)
    signal.set_wakeup_fd(outbox, warn_on_full_buffer=False)
    # a forked process has signals of its own
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    main_thread = threading.main_thread().ident

    def listen() -> None:
        while True:
            number = os.read(inbox, 1)[0]
            time.sleep(ECHO)
            if signal.getsignal(number) is stop:
                signal.pthread_kill(main_thread, number)

    threading.Thread(target=listen, name="signals", daemon=True).start()


def end_late() -> None:
    """Ends the process where Stopped got lost, as Python loses what is raised in a finalizer."""
    time.sleep(LONGEST_CLEANING)
    number = Stopped.by or signal.SIGTERM
    os.write(2, f"stopped by {number.name}: what is half written, the next run removes\n".encode())
    os._exit(128 + number)


def class_scores(words: list[str]) -> dict[str, float]:
    """{name: score} of words as "name=score" or "name=score,name=score". Raises UserError."""
    out = {}
    for word in (part for w in words for part in w.split(",")):
        name, _, score = word.rpartition("=")
        if name.strip() in out:
            raise UserError(f"--class_score_thr {word}: {name.strip()} has a score already, {out[name.strip()]:g}")
        try:
            out[name.strip()] = float(score)
        except ValueError:
            raise UserError(f"--class_score_thr {word}: not a class and its score, as cat=0.3") from None
        if not name.strip():
            raise UserError(f"--class_score_thr {word}: names no class; write it as cat=0.3")
    return out


def predict(config: Config, a: argparse.Namespace) -> None:
    """Predicts every input, tells what was left out, and raises UserError if anything was."""
    if not (a.input or a.split) or not a.output:
        raise UserError("--input (or --split) and --output are needed (or --serve)")
    if a.overlap is not None and a.tile is None:
        raise UserError("--overlap is that of --tile's squares, and there is no --tile")
    if a.split and (a.input or a.annotations):
        raise UserError("--split names images and annotations itself: leave --input and --annotations out")
    # MindSpore, seconds to load, isn't needed for --help and the mistakes above
    from src.inference.files import PICTURE_SCORE, Annotations, find_inputs, predict_images, predict_video, split_inputs
    from src.inference.predictor import Predictor

    if a.upright:
        config = dataclasses.replace(config, exif="upright")
    to_file = a.output.suffix == ".json"
    folder = a.output.parent if to_file else a.output
    pictures = folder / "pictures" if a.pictures is None and not to_file else Path(a.pictures or "none")
    left_out = []
    if a.split:
        config = resolve_classes(config, training=False, checkpoint=a.ckpt_file)
        inputs, annotations, left_out = split_inputs(config, a.split)
    else:
        inputs = find_inputs(a.input, a.recursive, [pictures] if to_file else [folder, pictures])
        config = resolve_classes(config, training=False, checkpoint=a.ckpt_file)
        annotations = Annotations.read(a.annotations) if a.annotations else None
    categories = annotations.labels(config.coco_classes, a.classes) if annotations else None
    if a.labels and not inputs.images:
        raise UserError(f"--labels {a.labels}: of images alone, and --input names none")
    predictor = Predictor(
        config,
        a.ckpt_file,
        a.batch,
        a.score_thr,
        category_ids=categories,
        classes=a.classes,
        class_score_thr=class_scores(a.class_score_thr),
        tile=a.tile,
        overlap=0.2 if a.overlap is None else a.overlap,
    )
    picture_score = PICTURE_SCORE if a.score_thr is None else a.score_thr
    faults = []
    with contextlib.ExitStack() as locks:
        remedy = "wait until it has ended, or name another"
        name = f".{a.output.name}.lock" if to_file else ".infer.lock"
        locks.enter_context(hold(folder / name, str(a.output), f"{remedy} --output"))
        if a.pictures and pictures.name != "none":
            locks.enter_context(hold(pictures / ".pictures.lock", str(pictures), f"{remedy} --pictures"))
        if inputs.images:
            faults = predict_images(
                predictor,
                inputs,
                a.output if to_file else folder / "predictions.json",
                pictures if pictures.name != "none" else None,
                a.coco_results,
                annotations,
                picture_score,
                (a.labels, folder / ("labels.json" if a.labels == "coco" else "labels")) if a.labels else None,
            )
        for video, target in inputs.video_targets(folder).items():
            fault = predict_video(predictor, video, target, picture_score, pictures.name != "none")
            faults += [fault] if fault else []
    total = len(inputs.images) + len(inputs.videos)
    print(f"{total - len(faults)} of {total} inputs predicted -> {a.output}")
    if inputs.passed_over:
        names = ", ".join(p.name for p in inputs.passed_over)
        print(f"passed over, neither image nor video: {len(inputs.passed_over)} ({names})")
    if inputs.folders:
        names = ", ".join(p.name for p in inputs.folders)
        advice = "hidden" if a.recursive else "--recursive does, but for hidden ones"
        print(f"not looked into, folders in a folder: {len(inputs.folders)} ({names}); {advice}")
    for fault in left_out + faults:
        print(f"left out: {fault}")
    if faults:
        raise UserError(f"{len(faults)} of {total} inputs couldn't be read: {faults[0]}")


if __name__ == "__main__":
    run_command(main)
