"""Prediction of files, folders, videos and arrays: the same detections as evaluation, every input accounted for."""

import copy
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

import eval as eval_script
import infer
from src.config import load_config
from src.data import images
from src.data.import_labels import import_labels
from src.data.polygons import mask_polygons
from src.evaluation.inference import Evaluator
from src.inference import files as predict_files
from src.inference import predictor as predictor_module
from src.inference.annotated import AnnotatedImage, Annotations
from src.inference.files import find_inputs, predict_images, predict_video, split_inputs
from src.inference.predictor import Predictor, coco_category_ids
from src.runtime.errors import UserError, run_command
from src.runtime.files import beside
from src.runtime.newer import zip_equal
from tests.conftest import TINY

ROOT = Path(__file__).parents[1]


def run(script, *arguments, cwd=ROOT):
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def photograph(shapes_root):
    """An image (H, W, 3) uint8 RGB."""
    return cv2.imread(str(shapes_root / "val2017/000000000001.jpg"))[:, :, ::-1]


@pytest.fixture(scope="module")
def expected(tiny_predictor, photograph):
    return tiny_predictor(photograph).to_dict()


# ---------------------------------------------------------------------------------------------------------
# the command


@pytest.fixture(scope="module")
def folder(shapes_root, tmp_path_factory):
    """The validation images, a text named as a photograph, and notes."""
    folder = tmp_path_factory.mktemp("input") / "my photographs"
    shutil.copytree(shapes_root / "val2017", folder)
    (folder / "broken.jpg").write_text("no image")
    (folder / "notes.txt").write_text("notes")
    return folder


@pytest.fixture(scope="module")
def commands(shapes_root, folder, tiny_arguments, tiny_model, tiny_predictor, tmp_path_factory):
    """What infer.py says and writes of images, and of the same eval.py, here with tiny_predictor's network."""
    out = tmp_path_factory.mktemp("commands")
    annotations = shapes_root / "annotations/instances_val2017.json"
    places = [f"--train_outputs={out}", f"--val_dataset={shapes_root}", "--results", out / "eval.json"]
    options = ["--checkpoint_path", tiny_model[1], "--report", out / "report"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [*map(str, ("eval.py", *tiny_arguments, *places, *options))])
        patch.setattr("src.models.build.build_detector", lambda *_, **__: tiny_predictor._detector)
        try:
            assert eval_script.main() == 0
        finally:
            tiny_predictor._detector.set_train(False)
    options = ["--coco_results", out / "infer.json", "--annotations", annotations]
    model = [*tiny_arguments, "--ckpt_file", tiny_model[1]]
    done = run("infer.py", *model, "--input", folder, "--output", out / "out", *options)
    return done, out


def test_the_same_results_as_evaluation(commands):
    _, out = commands
    evaluated, inferred = (json.loads((out / name).read_text()) for name in ("eval.json", "infer.json"))
    assert len(evaluated) > 50
    assert len({r["image_id"] for r in evaluated}) == 8
    assert inferred == evaluated


@pytest.mark.full
def test_soft_nms_gives_the_same_results_as_evaluation(tiny_model, shapes_root, tmp_path):
    """Also those whose score fell below what boxes enter with."""
    keys = {"type": "soft_nms", "method": "gaussian", "sigma": "0.1"}
    keys = {f"test_cfg.rcnn.nms.{k}": v for k, v in keys.items()} | {"test_cfg.rcnn.max_per_img": "200"}
    places = {"val_dataset": str(shapes_root), "mindrecord_dir": str(tmp_path / "records")}
    config = load_config(ROOT / "configs/shapes.yaml", {**TINY, **keys, **places})
    predictor = Predictor(config, tiny_model[1])
    evaluator = Evaluator(config, predictor._detector)
    predictor.category_ids = {int(k): v for k, v in evaluator.loader.index["category_ids"].items()}
    found = predictor(sorted((shapes_root / "val2017").iterdir()))
    evaluator.run(tmp_path / "results.json")
    rows = [r for i, f in zip_equal(evaluator.loader.index["image_ids"], found) for r in f.to_coco(i)]
    assert rows == evaluator.results
    assert min(r["score"] for r in rows) < config.test_cfg.rcnn.score_thr


def test_evaluation_leaves_a_report(commands):
    _, out = commands
    page = (out / "report/report.html").read_text()
    assert "network, an image" in page
    assert "tiny.ckpt" in page
    assert page.count("<figure>") == 8


def test_the_json_holds_the_same(commands, folder):
    _, out = commands
    entries = json.loads((out / "out/predictions.json").read_text())
    assert list(entries) == [str(folder / f"{i:012d}.jpg") for i in range(1, 9)]
    flat = []
    for i, (path, entry) in enumerate(entries.items(), 1):
        height, width = cv2.imread(path).shape[:2]
        assert (entry["height"], entry["width"], entry["image_id"]) == (height, width, i)
        for p in entry["predictions"]:
            box, category = p["bbox"], p["class"]
            assert category["name"] == "circle square triangle star cross".split()[category["label"]]
            assert p["mask"]["size"] == [height, width]
            xywh = [box[k] for k in ("x_min", "y_min", "width", "height")]
            row = {"image_id": i, "category_id": category["category_id"], "bbox": xywh, "score": p["score"]}
            flat.append(row | {"segmentation": p["mask"]})
    assert flat == json.loads((out / "eval.json").read_text())


def test_unreadable_images_are_counted_and_named(commands):
    done, out = commands
    assert done.returncode == 2
    assert "8 of 9 inputs predicted" in done.stdout
    assert "passed over, neither image nor video: 1 (notes.txt)" in done.stdout
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: 1 of 9 inputs couldn't be read: ")
    assert "broken.jpg: not an image" in last
    assert "Traceback" not in done.stderr
    assert not list(out.rglob("*.writing*"))


def test_pictures_show_the_detections(commands, folder):
    _, out = commands
    pictures = sorted((out / "out/pictures").iterdir())
    assert [p.name for p in pictures] == [f"{i:012d}.jpg" for i in range(1, 9)]
    entries = json.loads((out / "out/predictions.json").read_text())
    for path in pictures:
        before, after = cv2.imread(str(folder / path.name)), cv2.imread(str(path))
        assert max(after.shape) >= 480  # small images are enlarged, so that names can be read
        before = cv2.resize(before, after.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        changed = (np.abs(before.astype(int) - after) > 60).any(2)
        drawn = [p for p in entries[str(folder / path.name)]["predictions"] if p["score"] >= 0.5]
        assert changed.mean() > 0.01 if drawn else changed.mean() < 0.01


@pytest.fixture
def call_main(monkeypatch):
    """Runs infer.py's main in this process."""

    def call(*arguments, main=lambda: run_command(infer.main)):
        monkeypatch.setattr("sys.argv", ["infer.py", *map(str, arguments)])
        before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
        try:
            main()
        finally:
            for number, handler in zip_equal((signal.SIGINT, signal.SIGTERM), before):
                signal.signal(number, handler)

    return call


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--input", "none*.jpg", "--output", "out"], ["none*.jpg", "no file of that pattern"]),
        (["--output", "out"], ["--input"]),
        (["--input", "a.png"], ["--output"]),
        (["--input", "a.png", "--split", "val", "--output", "out"], ["--split", "--input"]),
        (
            ["--split", "vla", "--output", "out", "--coco_classes", "[background, a]", "--num_classes", "2"],
            ["--split vla"],
        ),
        (["--input", "a.png", "--output", "out", "--exif", "sideways"], ["exif", "auto, upright, stored"]),
        (["--input", "a.png", "--output", "out", "--scor_thr", "1"], ["scor_thr", "unknown key"]),
    ],
)
def test_mistakes_are_refused_in_one_line(arguments, parts, call_main, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes())
    config = ["--config_path", ROOT / "configs/shapes.yaml", "--ckpt_file", "none.ckpt"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        call_main(*config, *arguments)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    for part in parts:
        assert part in line


@pytest.fixture
def stubbed(monkeypatch, call_main, tiny_predictor, tiny_model, tiny_arguments):
    """Runs infer.py's main in this process, with tiny_predictor's network, compiled already."""
    made = []

    def stand_in(*_, **options):
        made.append(options)
        return tiny_predictor

    monkeypatch.setattr(predictor_module, "Predictor", stand_in)

    def call(*arguments):
        call_main(*tiny_arguments, "--ckpt_file", tiny_model[1], *arguments, main=infer.main)
        return made[-1]

    return call


def test_options_reach_the_predictor(stubbed, folder, tmp_path, refusal):
    image = next(folder.glob("*1.jpg"))
    words = ["--input", image, "--output", tmp_path / "p.json", "--tile", 640, "--overlap", 0.3]
    options = stubbed(*words, "--class_score_thr", "star=0.3,cross=1", "square = 0.5")
    assert options["class_score_thr"] == {"star": 0.3, "cross": 1.0, "square": 0.5}
    assert (options["tile"], options["overlap"]) == (640, 0.3)
    with refusal(UserError, "--overlap", "--tile"):
        stubbed("--input", image, "--output", tmp_path / "p.json", "--overlap", 0.3)
    for word in ("star", "star=high", "=0.5", "cross=0.3,star=0.4,star=0.5"):
        with refusal(UserError, "--class_score_thr", word.rpartition(",")[2]):
            stubbed(*words, "--class_score_thr", word)


def test_a_second_run_into_one_output_is_refused(stubbed, folder, tmp_path, refusal):
    image = next(folder.glob("*1.jpg"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/predictions.json").write_text("the other's")
    holder = f"""
import sys, time
from pathlib import Path
from src.runtime.files import hold
with hold(Path({str(tmp_path / "out/.infer.lock")!r}), "", ""):
    print("held", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", holder]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with refusal(UserError, tmp_path / "out", f"process {other.pid}", "name another --output"):
            stubbed("--input", image, "--output", tmp_path / "out")
        assert (tmp_path / "out/predictions.json").read_text() == "the other's"
        # another file beside is another output
        stubbed("--input", image, "--output", tmp_path / "out/p.json")
    stubbed("--input", image, "--output", tmp_path / "out")
    assert list(json.loads((tmp_path / "out/predictions.json").read_text())) == [str(image)]


def test_folders_that_are_not_looked_into_are_told(stubbed, folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "in/deep", ignore=lambda *_: ["broken.jpg"])
    shutil.copy(next(folder.glob("*1.jpg")), tmp_path / "in")
    stubbed("--input", tmp_path / "in", "--output", tmp_path / "p.json")
    told = capsys.readouterr().out
    assert "1 of 1 inputs predicted" in told
    assert "not looked into, folders in a folder: 1 (deep); --recursive does" in told
    stubbed("--input", tmp_path / "in", "--output", tmp_path / "p.json", "--recursive")
    told = capsys.readouterr().out
    assert "9 of 9 inputs predicted" in told
    assert "not looked into" not in told


def stopped(code, ready, number):
    """Status and standard error of Python code that is sent a signal once it has said `ready`."""
    # what a background job ignores, its children do, too; where it hangs is told
    before = (
        f"import faulthandler, signal; signal.signal({number}, signal.SIG_DFL); faulthandler.dump_traceback_later(50)"
    )
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", f"{before}\n{code}"], **options) as child:
        try:
            while ready not in (line := child.stdout.readline()):
                assert line, child.stderr.read()
            child.send_signal(number)
            return child.wait(60), child.stderr.read()
        except subprocess.TimeoutExpired:
            child.kill()
            raise AssertionError(child.stderr.read()) from None


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_in_one_line(number, status, tiny_arguments, tiny_model, folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/predictions.json").write_text("older")
    # the network that never ends is ready to be stopped as soon as its first image has come
    code = f"""
import os, sys, time
sys.argv = {["infer.py", *map(str, tiny_arguments), "--ckpt_file", str(tiny_model[1]), "--input", str(folder)]!r}
sys.argv += ["--output", {str(tmp_path / "out")!r}]
import infer
from src.inference import predictor
from src.runtime.errors import run_command

def detect(self, views):
    print("detecting", flush=True)
    time.sleep(600)

predictor.Predictor._detect = detect
run_command(infer.main)
"""
    ended, told = stopped(code, "detecting", number)
    assert ended == status
    assert told.splitlines()[-1] == f"stopped by {number.name}: nothing half written is left"
    assert "Traceback" not in told
    assert (tmp_path / "out/predictions.json").read_text() == "older"
    assert not list(tmp_path.rglob("*.writing*"))


def test_a_signal_that_another_thread_gets_stops():
    code = """
import signal, sys, threading, time
import infer
from src.runtime.errors import run_command

def get():
    time.sleep(1)
    print("getting", flush=True)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    time.sleep(600)

def predict(config, arguments):
    threading.Thread(target=get, daemon=True).start()
    threading.Event().wait()

infer.predict = predict
sys.argv = ["infer.py", "--ckpt_file", "none"]
run_command(infer.main)
"""
    # the signal is the thread's own: from here comes one that does nothing
    ended, told = stopped(code, "getting", signal.SIGCONT)
    assert ended == 143
    assert told == "stopped by SIGTERM: nothing half written is left\n"


@pytest.mark.parametrize(
    ("then", "told"),
    [
        ("raise RuntimeError('release unlocked lock')", "nothing half written is left"),
        ("time.sleep(600)", "what is half written, the next run removes"),
    ],
    ids=["another error in its place", "lost"],
)
def test_a_signal_stops_whatever_becomes_of_its_exception(then, told):
    code = f"""
import sys, time
import infer
from src.runtime.errors import run_command

def predict(config, arguments):
    try:
        print("predicting", flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        {then}

infer.predict = predict
infer.LONGEST_CLEANING = 0.2
sys.argv = ["infer.py", "--ckpt_file", "none"]
run_command(infer.main)
"""
    assert stopped(code, "predicting", signal.SIGTERM) == (143, f"stopped by SIGTERM: {told}\n")


# ---------------------------------------------------------------------------------------------------------
# Predictor


def test_src_is_imported_without_mindspore():
    code = "import sys, src; from src.config import Config; assert 'mindspore' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_paths_and_arrays_alone_and_in_lists(tiny_predictor, shapes_root, photograph, expected):
    paths = sorted((shapes_root / "val2017").iterdir())[:3]
    alone = [tiny_predictor(p).to_dict() for p in paths]
    assert alone[0] == expected
    assert expected["predictions"]
    assert [d.to_dict() for d in tiny_predictor([*paths, str(paths[0]), photograph])] == [*alone, expected, expected]
    assert tiny_predictor([]) == []


@pytest.fixture
def variants(tmp_path, photograph):
    """Writes `photograph` in a form that has the same colours; returns the file."""

    def write(form):
        bgr = np.ascontiguousarray(photograph[:, :, ::-1])
        path = tmp_path / f"image.{'tif' if form == 'tiff' else 'jpg' if form == 'exif' else 'png'}"
        if form == "rgba":
            alpha = np.random.RandomState(0).randint(0, 256, bgr.shape[:2]).astype(np.uint8)
            cv2.imwrite(str(path), np.dstack([bgr, alpha]))
        elif form in ("deep", "tiff"):
            cv2.imwrite(str(path), bgr.astype(np.uint16) * 257)
        else:
            cv2.imwrite(str(path), bgr)
        return path

    return write


@pytest.mark.parametrize("form", ["png", "rgba", "deep", "tiff"])
def test_files_of_every_depth(form, variants, tiny_predictor, expected):
    assert tiny_predictor(variants(form)).to_dict() == expected


def test_grey_images_have_three_equal_channels(tmp_path, photograph, tiny_predictor):
    grey = cv2.cvtColor(photograph, cv2.COLOR_RGB2GRAY)
    for bits, image in ((8, grey), (16, grey.astype(np.uint16) * 257)):
        path = tmp_path / f"{bits}.png"
        cv2.imwrite(str(path), image)
        assert tiny_predictor(path).to_dict() == tiny_predictor(np.dstack([grey] * 3)).to_dict()


def test_cmyk_is_read(tmp_path, photograph, tiny_predictor):
    Image.fromarray(photograph).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    found = tiny_predictor(tmp_path / "cmyk.jpg")
    assert (found.height, found.width) == photograph.shape[:2]
    assert np.abs(images.read_image(tmp_path / "cmyk.jpg")[:, :, ::-1].astype(int) - photograph).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, photograph, tiny_predictor, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    Image.fromarray(photograph).save(path, exif=exif, quality=95)
    # as COCO annotates them, images are taken as stored; OpenCV's own turning is the reference for the upright ones
    np.testing.assert_array_equal(
        images.read_image(path), cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    )
    np.testing.assert_array_equal(images.read_image(path, "upright"), cv2.imread(str(path), cv2.IMREAD_COLOR))


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (2, 5)])
def test_extreme_shapes(tmp_path, tiny_predictor, shape):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((*shape, 3), 77, np.uint8))
    found = tiny_predictor(tmp_path / "a.png")
    assert (found.height, found.width) == shape
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [shape[1], shape[0]] * 2).all()
    assert found.bitmaps().shape == (len(found), *shape)
    predict_images(tiny_predictor, find_inputs([str(tmp_path / "a.png")]), tmp_path / "p.json", tmp_path / "pictures")
    assert cv2.imread(str(tmp_path / "pictures/a.png")) is not None


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_large_image_is_predicted_and_drawn_smaller(tmp_path, tiny_predictor):
    Image.new("L", (10_000, 10_000), 99).save(tmp_path / "large.png")
    inputs = find_inputs([str(tmp_path / "large.png")])
    assert predict_images(tiny_predictor, inputs, tmp_path / "p.json", tmp_path / "pictures", picture_score=0.95) == []
    [entry] = json.loads((tmp_path / "p.json").read_text()).values()
    assert (entry["height"], entry["width"]) == (10_000, 10_000)
    assert cv2.imread(str(tmp_path / "pictures/large.png")).shape == (4096, 4096, 3)


def bomb(path):
    Image.new("1", (20_000, 20_000)).save(path)
    assert path.stat().st_size < 100_000


@pytest.mark.parametrize(
    ("name", "write", "part"),
    [
        ("bomb.png", bomb, "more than 100,000,000 pixels"),
        ("empty.jpg", lambda p: p.write_bytes(b""), "empty"),
        ("text.jpg", lambda p: p.write_text("hello"), "not an image"),
        ("page.png", lambda p: p.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"), "not an image"),
        ("header.png", lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40), "not an image"),
        ("none.jpg", lambda p: None, "can't read"),
        ("folder.jpg", lambda p: p.mkdir(), "can't read"),
        ("pipe.jpg", os.mkfifo, "can't read"),
    ],
)
def test_unreadable_files_are_refused_in_one_line(name, write, part, tmp_path, tiny_predictor, refusal):
    path = tmp_path / name
    write(path)
    with refusal(UserError, path, part):
        tiny_predictor(path)


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_cut_files_are_refused(kept, tmp_path, shapes_root, tiny_predictor, refusal):
    data = (shapes_root / "val2017/000000000002.jpg").read_bytes()
    path = tmp_path / "cut.jpg"
    path.write_bytes(data[: int(len(data) * kept)])
    with refusal(UserError, path, "damaged"):
        tiny_predictor(path)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        np.zeros((0, 5, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(image, tiny_predictor, refusal):
    with refusal(UserError, image.shape, image.dtype, "uint8, RGB"):
        tiny_predictor(image)


def test_a_refusal_leaves_no_thread_to_whoever_keeps_it(tiny_predictor, photograph):
    """Which the garbage collector would wait for, in the worst case without end."""
    tiny_predictor(photograph)
    before = threading.active_count()
    with pytest.raises(UserError) as kept:
        tiny_predictor(np.zeros((5, 5), np.uint8))
    end = time.monotonic() + 20
    while threading.active_count() > before:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert "RGB" in str(kept.value)


def test_results_may_be_dropped_while_a_thread_starts(tiny_predictor, photograph):
    """As when the garbage collector runs there: Python holds this lock then, which threads that end need, too."""
    left = tiny_predictor.stream([photograph] * 8)
    next(left)

    def drop():
        with threading._active_limbo_lock:
            left.close()

    dropping = threading.Thread(target=drop, daemon=True)
    dropping.start()
    dropping.join(20)
    assert not dropping.is_alive()


def test_a_refused_image_leaves_the_others_in_their_places(tiny_predictor, photograph, expected, tmp_path):
    found = list(tiny_predictor.stream([tmp_path / "a", photograph, tmp_path / "b", tmp_path / "c", photograph]))
    assert [bool(p.fault) for p in found] == [True, False, True, True, False]
    assert found[1].detections.to_dict() == found[4].detections.to_dict() == expected


def test_threads_share_a_predictor(tiny_predictor, photograph, expected):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(tiny_predictor(photograph).to_dict())) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert answers == [expected] * 4


def test_a_forked_child_is_told(tiny_predictor, photograph):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            tiny_predictor(photograph)
        except UserError as e:
            os.write(write, str(e).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as told:
        assert "make one in the child" in told.read()


def test_a_predictor_made_where_mindspores_threads_are_missing(tiny_model, monkeypatch, refusal):
    monkeypatch.setattr(predictor_module, "_ran_in", os.getppid())
    with refusal(UserError, "forked", 'multiprocessing.get_context("spawn")'):
        Predictor(*tiny_model)


def test_pickling_is_told(tiny_predictor, refusal):
    for send in (pickle.dumps, copy.deepcopy):
        with refusal(UserError, "can't be pickled", "send config and checkpoint"):
            send(tiny_predictor)
    with pytest.raises(TypeError):
        pickle.dumps(tiny_predictor)


def test_pil_images(tiny_predictor, photograph, expected, tmp_path):
    assert tiny_predictor(Image.fromarray(photograph)).to_dict() == expected
    transparent = Image.fromarray(np.dstack([photograph, np.full(photograph.shape[:2], 9, np.uint8)]))
    Image.fromarray(photograph).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as lazy:
        assert [d.to_dict() for d in tiny_predictor([transparent, lazy])] == [expected] * 2
    grey = photograph[:, :, 0]
    wanted = tiny_predictor(np.dstack([grey] * 3)).to_dict()
    for image in (Image.fromarray(grey), Image.fromarray((grey.astype(np.uint16) << 8) + 77)):
        assert tiny_predictor(image).to_dict() == wanted


def test_pil_images_are_turned_as_files_are(tiny_predictor, photograph, tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photograph).save(tmp_path / "turned.png", exif=exif)
    for policy in ("auto", "upright", "stored"):
        monkeypatch.setattr(tiny_predictor.config, "exif", policy)
        with Image.open(tmp_path / "turned.png") as image:
            of_pil, of_file = tiny_predictor([image, tmp_path / "turned.png"])
        assert of_pil.to_dict() == of_file.to_dict()
        assert of_pil.orientation == of_file.orientation == (1 if policy == "upright" else 6)


def test_pil_images_that_cannot_be_taken(tiny_predictor, photograph, tmp_path, refusal):
    with refusal(UserError, "mode F", "convert to RGB"):
        tiny_predictor(Image.fromarray(photograph[:, :, 0].astype(np.float32)))
    Image.fromarray(photograph).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:3000])
    with Image.open(tmp_path / "cut.png") as image, refusal(UserError, "cut.png", "can't be decoded"):
        tiny_predictor(image)


@pytest.mark.parametrize("source", [None, 7, b"bytes", [None]])
def test_what_is_no_image_is_told(source, tiny_predictor, refusal):
    with refusal(UserError, "not an image; give a path"):
        tiny_predictor(source)


def test_one_convention_of_labels_and_no_rounding_but_in_files(tiny_predictor, photograph):
    found = tiny_predictor(photograph)
    rows, entries, results = found.to_dict()["predictions"], found.to_entry()["predictions"], found.to_coco(5)
    assert found.labels.min() >= 1
    assert [r["class"]["label"] for r in rows] == found.labels.tolist()
    assert [r["class"]["label"] for r in entries] == (found.labels - 1).tolist()
    assert [tiny_predictor.class_names[i] for i in found.labels] == [r["class"]["name"] for r in rows]
    x = np.array([r["bbox"]["x_min"] for r in rows])
    np.testing.assert_array_equal(x, found.boxes[:, 0].astype(float))
    assert np.abs(x - x.round(2)).max() > 1e-4
    assert [r["bbox"]["x_min"] for r in entries] == [r["bbox"][0] for r in results] == x.round(2).tolist()
    assert [r["score"] for r in entries] == [round(float(s), 6) for s in found.scores]


def test_drawn_on_a_path(tiny_predictor, photograph, tmp_path, refusal):
    Image.fromarray(photograph).save(tmp_path / "a.png")
    found = tiny_predictor(tmp_path / "a.png")
    wanted = found.draw(photograph, 0.1)
    assert (wanted != photograph).any()
    for source in (str(tmp_path / "a.png"), tmp_path / "a.png", Image.fromarray(photograph)):
        np.testing.assert_array_equal(found.draw(source, 0.1), wanted)
    with refusal(UserError, "none.png", "No such file"):
        found.draw(tmp_path / "none.png")
    with refusal(UserError, "these detections are of"):
        found.draw(Image.fromarray(photograph[1:]))


def test_a_path_is_drawn_on_as_it_was_turned(tiny_predictor, photograph, tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(photograph).save(tmp_path / "turned.png", exif=exif)
    for policy, frame in (("stored", photograph), ("upright", photograph[::-1, ::-1])):
        monkeypatch.setattr(tiny_predictor.config, "exif", policy)
        found = tiny_predictor(tmp_path / "turned.png")
        np.testing.assert_array_equal(found.draw(tmp_path / "turned.png", 1.1), frame)


@pytest.fixture
def variant(tiny_predictor, tiny_model):
    """variant(**options): another Predictor of the tiny model, with tiny_predictor's network, compiled already."""

    def make(**options):
        out = Predictor(*tiny_model, **options)
        out._network.shutdown()
        out._network, out._detector = tiny_predictor._network, tiny_predictor._detector
        return out

    return make


def test_a_threshold_for_each_class(variant, tiny_predictor, shapes_root, refusal):
    paths = sorted((shapes_root / "val2017").iterdir())
    path, found = max(zip_equal(paths, tiny_predictor(paths)), key=lambda item: len(set(item[1].names)))
    first, other = found.names[0], next(n for n in found.names if n != found.names[0])
    of_first = found.scores[np.array(found.names) == first]
    least = float(of_first[len(of_first) // 2])
    kept = variant(score_thr=0.99, class_score_thr={first: least})(path)
    assert set(kept.names) == {first}
    assert len(kept) == (of_first >= least).sum() > 0
    kept = variant(class_score_thr={other: 1.0})(path)
    assert kept.to_dict()["predictions"] == [p for p in found.to_dict()["predictions"] if p["class"]["name"] != other]
    with refusal(UserError, "class_score_thr", "'sta'", "did you mean 'star'"):
        variant(class_score_thr={"sta": 0.5})
    with refusal(UserError, "star", "0..1"):
        variant(class_score_thr={"star": 30})


def test_a_class_threshold_below_the_configs_reaches_the_network(tiny_model):
    predictor = Predictor(*tiny_model, class_score_thr={"star": 0.01})
    assert predictor.config.test_cfg.rcnn.score_thr == 0.01
    assert predictor.score_thr == tiny_model[0].test_cfg.rcnn.score_thr > 0.01


def test_interrupts_stay_pythons(variant, photograph, expected):
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        predictor = variant()
        assert predictor(photograph).to_dict() == expected
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert predictor(photograph).to_dict() == expected
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.full
def test_interrupts_stay_pythons_where_mindspore_starts(tiny_model, tiny_arguments, tmp_path):
    program = f"""
import signal
import numpy as np
from src import Predictor
from src.config import load_config
signal.signal(signal.SIGINT, signal.default_int_handler)
predictor = Predictor(load_config({tiny_arguments[1]!r}, {TINY!r}), {str(tiny_model[1])!r}, batch_size=1)
predictor(np.zeros((64, 64, 3), np.uint8))
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("caught", len(predictor(np.zeros((64, 64, 3), np.uint8))))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("caught ")


def test_detections(tiny_predictor, photograph):
    found = tiny_predictor(photograph)
    assert found.boxes.shape == (len(found), 4)
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert (np.diff(found.scores) <= 0).all()
    assert [found.names[i] for i in range(3)] == [tiny_predictor.class_names[i] for i in found.labels[:3]]
    bitmaps = found.bitmaps()
    assert bitmaps.dtype == bool
    for bitmap, mask in zip_equal(bitmaps, found.masks):
        np.testing.assert_array_equal(bitmap, rle.decode(mask).astype(bool))
    middle = float(found.scores[len(found) // 2])
    assert len(found.above(middle)) == (found.scores >= middle).sum()
    assert found.above(1.1).to_dict()["predictions"] == []
    drawn, empty = found.draw(photograph, middle), found.draw(photograph, 1.1)
    np.testing.assert_array_equal(empty, photograph)
    x1, y1, x2, y2 = found.boxes[0].round().astype(int)
    assert (drawn != photograph).any(2)[y1:y2, x1:x2].any()
    with pytest.raises(UserError, match="these detections are of"):
        found.draw(photograph[1:])


def test_classes_of_coco_have_cocos_ids():
    ids = coco_category_ids(["background", "person", "stop sign", "toothbrush"])
    assert ids == {1: 1, 2: 13, 3: 90}
    assert coco_category_ids(["background", "person", "star"]) == {}


def test_unknown_ids(tiny_predictor, expected):
    assert {p["class"]["category_id"] for p in expected["predictions"]} == {"unknown"}


# ---------------------------------------------------------------------------------------------------------
# inputs and outputs


def test_inputs_are_told_by_their_content(tmp_path):
    image = cv2.imencode(".png", np.zeros((3, 3, 3), np.uint8))[1].tobytes()
    for name in ("b.png", "a.dat", "sub/c.png", "clip.mp4", "x.txt", "broken.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(image if name[0] in "abc" and name != "clip.mp4" and "ok" not in name else b"-")
    found = find_inputs([str(tmp_path)])
    assert [p.name for p in found.images] == ["a.dat", "b.png", "broken.jpeg"]
    assert [p.name for p in found.videos] == ["clip.mp4"]
    assert [p.name for p in found.passed_over] == ["x.txt"]
    # a glob goes deeper, and nothing is taken twice
    found = find_inputs([str(tmp_path / "**/*.png"), str(tmp_path / "b.png")])
    assert [str(p.relative_to(tmp_path)) for p in found.images] == ["b.png", "sub/c.png"]


def test_folders_in_a_folder(tmp_path, refusal):
    for name in ("a.png", "in/b.png", "in/deep/c.png", ".hidden/d.png", "out/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "in/loop").symlink_to(tmp_path)
    names = ["a.png", "in/b.png", "in/deep/c.png"]
    found = find_inputs([str(tmp_path)], outputs=[tmp_path / "out"])
    assert [str(p.relative_to(tmp_path)) for p in found.images] == names[:1]
    assert [p.name for p in found.folders] == [".hidden", "in"]
    found = find_inputs([str(tmp_path)], recursive=True, outputs=[tmp_path / "out"])
    assert [str(p.relative_to(tmp_path)) for p in found.images] == names
    assert [p.name for p in found.folders] == [".hidden"]
    (tmp_path / "a.png").unlink()
    with refusal(UserError, tmp_path, "no image", "3 folders", "--recursive"):
        find_inputs([str(tmp_path)])


@pytest.mark.parametrize("name", ["9" * 300, "a/" * 3000])
def test_a_name_that_no_file_can_have(name, refusal):
    with refusal(UserError, name[:200], "no such image"):
        find_inputs([name])


def test_a_name_with_brackets_is_a_name(tmp_path):
    path = tmp_path / "a[1].png"
    path.write_bytes(cv2.imencode(".png", np.zeros((3, 3, 3), np.uint8))[1].tobytes())
    assert find_inputs([str(path)]).images == [path]


def test_pictures_never_replace_an_input(tmp_path, shapes_root, tiny_predictor, refusal):
    shutil.copy(shapes_root / "val2017/000000000001.jpg", tmp_path / "a.jpg")
    before = (tmp_path / "a.jpg").read_bytes()
    inputs = find_inputs([str(tmp_path)])
    with refusal(UserError, "a.jpg", "replace an input"):
        predict_images(tiny_predictor, inputs, tmp_path / "p.json", tmp_path)
    assert (tmp_path / "a.jpg").read_bytes() == before
    assert not (tmp_path / "p.json").exists()


def test_an_output_that_cannot_be_written(tmp_path, shapes_root, tiny_predictor, refusal):
    (tmp_path / "taken").write_text("mine")
    inputs = find_inputs([str(shapes_root / "val2017/000000000001.jpg")])
    with refusal(UserError, "taken", "can't write"):
        predict_images(tiny_predictor, inputs, tmp_path / "taken/p.json")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full to stand for a full disk")
def test_a_full_disk_leaves_no_half_file(tmp_path, shapes_root, tiny_predictor, refusal, monkeypatch):
    inputs = find_inputs([str(shapes_root / "val2017/000000000001.jpg")])
    beside(tmp_path / "p.json").symlink_to("/dev/full")
    with refusal(UserError, "p.json", "No space left"):
        predict_images(tiny_predictor, inputs, tmp_path / "p.json")
    assert not list(tmp_path.iterdir())


def test_ids_of_images_without_annotations(tmp_path, shapes_root, tiny_predictor):
    for source, name in ((1, "7.jpg"), (2, "00012.jpg")):
        shutil.copy(shapes_root / f"val2017/{source:012d}.jpg", tmp_path / name)
    inputs = find_inputs([str(tmp_path)])
    predict_images(tiny_predictor, inputs, tmp_path / "p.json", coco_path=tmp_path / "coco.json")
    assert {r["image_id"] for r in json.loads((tmp_path / "coco.json").read_text())} == {7, 12}
    # labels stand for ids that nobody knows
    assert {r["category_id"] for r in json.loads((tmp_path / "coco.json").read_text())} <= {1, 2, 3, 4, 5}
    (tmp_path / "7.jpg").rename(tmp_path / "b.jpg")
    predict_images(tiny_predictor, find_inputs([str(tmp_path)]), tmp_path / "p.json", coco_path=tmp_path / "coco.json")
    entries = json.loads((tmp_path / "p.json").read_text())
    assert {Path(p).name: e["image_id"] for p, e in entries.items()} == {"00012.jpg": 1, "b.jpg": 2}


def test_annotations_of_other_images_or_classes(shapes_root, tmp_path, tiny_predictor, refusal):
    annotations = Annotations.read(shapes_root / "annotations/instances_val2017.json")
    shutil.copy(shapes_root / "val2017/000000000001.jpg", tmp_path / "other.jpg")
    with refusal(UserError, annotations.path, "other.jpg"):
        predict_images(
            tiny_predictor,
            find_inputs([str(tmp_path)]),
            tmp_path / "p.json",
            coco_path=tmp_path / "c.json",
            annotations=annotations,
        )
    with refusal(UserError, annotations.path, "'dog'"):
        annotations.labels(["background", "circle", "dog"])


# ---------------------------------------------------------------------------------------------------------
# annotations: which image is which, and how it was looked at


def annotated(*names, **sizes):
    """Annotations of images of these names, with ids from 1."""
    entries = [AnnotatedImage(name, i, sizes.get(name)) for i, name in enumerate(names, 1)]
    return Annotations(Path("instances.json"), entries, {})


@pytest.mark.parametrize(
    ("names", "found"),
    [
        # the path decides between two of one name
        (["train/a.jpg", "val/a.jpg"], {"/x/val/a.jpg": 2, "/x/train/a.jpg": 1}),
        (["a.jpg", "sub/a.jpg"], {"/x/sub/a.jpg": 2, "/x/a.jpg": 1}),
        (["images/train/a.jpg", "images/val/a.jpg"], {"/data/train/a.jpg": 1, "/data/val/a.jpg": 2}),
        # exports of other tools
        (["images\\a.jpg"], {"/x/a.jpg": 1}),
        (["images\\upload\\a.jpg", "images\\other\\a.jpg"], {"/x/upload/a.jpg": 1}),
        (["images/train/a.jpg"], {"/elsewhere/a.jpg": 1}),
        (["./a.jpg"], {"/x/a.jpg": 1}),
        (["../pool/a.jpg"], {"/x/pool/a.jpg": 1}),
        (["/home/someone/else/a.jpg"], {"/x/a.jpg": 1}),
        # accents in one character or two, suffixes in any case, names in other bytes
        (["u\u0308ber.jpg"], {"/x/\u00fcber.jpg": 1}),
        (["\u00fcber.jpg"], {"/x/u\u0308ber.jpg": 1}),
        (["a.jpg"], {"/x/a.JPG": 1}),
        (["a.jpg", "a.JPG"], {"/x/a.JPG": 2, "/x/a.jpg": 1}),
        (["\u00e9.jpg"], {os.fsdecode(b"/x/\xe9.jpg"): 1}),
        (["\udce9.jpg"], {os.fsdecode(b"/x/\xe9.jpg"): 1}),
        # one entry, two files: the one whose path says so
        (["train/a.jpg"], {"/x/train/a.jpg": 1, "/x/val/a.jpg": None}),
        (["a.jpg"], {"/x/b.jpg": None}),
    ],
)
def test_images_are_found_by_path_then_by_name(names, found):
    known = annotated(*names).find([Path(p) for p in found])
    assert {str(p): i.image_id for p, i in known.items()} == {p: i for p, i in found.items() if i}


@pytest.mark.parametrize(
    ("names", "paths", "parts"),
    [
        (["train/a.jpg", "val/a.jpg"], ["/x/a.jpg"], ["'train/a.jpg' and 'val/a.jpg'", "its path, the name 'a.jpg'"]),
        (["a.jpg"], ["/x/1/a.jpg", "/x/2/a.jpg"], ["/x/1/a.jpg and /x/2/a.jpg", "image 1"]),
        (["a.jpg", "a.jpg"], ["/x/a.jpg"], ["'a.jpg' and 'a.jpg'"]),
    ],
)
def test_ambiguous_images_are_refused(names, paths, parts, refusal):
    with refusal(UserError, "instances.json", *parts):
        annotated(*names).find([Path(p) for p in paths])


def turned_copy(source, target, orientation):
    """Stores the picture of `source` so that viewers turn it back."""
    tag = Image.Exif()
    tag[0x0112] = orientation
    back = {1: 1, 3: 3, 6: 8, 8: 6}[orientation]
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(images.turn(np.asarray(Image.open(source).convert("RGB")), back)).save(target, exif=tag)


@pytest.fixture
def turned(shapes_root, tmp_path):
    """Images of one name in two folders, a turned one of them annotated upright: the folder, and the COCO file, whose
    ids are text."""
    for i, (name, orientation) in enumerate({"a/x.png": 6, "b/x.png": 1, "b/y.png": 8}.items(), 1):
        turned_copy(shapes_root / f"val2017/{i:012d}.jpg", tmp_path / "images" / name, orientation)
    data = json.loads((shapes_root / "annotations/instances_val2017.json").read_text())
    sizes = [(i["height"], i["width"]) for i in data["images"][:3]]
    names = ["images\\a\\x.png", "images\\b\\x.png", "images\\b\\y.png"]
    data["annotations"] = []
    data["images"] = [
        {"id": f"id {name}", "file_name": name, "height": h, "width": w} for name, (h, w) in zip_equal(names, sizes)
    ]
    # as its pixels are stored
    last = data["images"][2]
    last["height"], last["width"] = last["width"], last["height"]
    (tmp_path / "instances.json").write_text(json.dumps(data))
    return tmp_path / "images", tmp_path / "instances.json"


def test_the_annotated_size_decides_how_a_picture_is_turned(turned, tmp_path, tiny_predictor):
    folder, path = turned
    found = find_inputs([str(folder / "**/*.png")])
    annotations = Annotations.read(path)
    out = tmp_path / "out"
    assert predict_images(tiny_predictor, found, out / "p.json", out / "pictures", out / "r.json", annotations) == []
    entries = {Path(k).relative_to(folder).as_posix(): v for k, v in json.loads((out / "p.json").read_text()).items()}
    assert [e["image_id"] for e in entries.values()] == [f"id images\\{n[0]}\\{n[2:]}" for n in entries]
    assert {r["image_id"] for r in json.loads((out / "r.json").read_text())} == {
        e["image_id"] for e in entries.values()
    }
    for name, policy in {"a/x.png": "upright", "b/x.png": "stored", "b/y.png": "stored"}.items():
        image = images.read_image(folder / name, policy)
        wanted = tiny_predictor(np.ascontiguousarray(image[:, :, ::-1])).to_entry()
        assert entries[name] == {"image_id": entries[name]["image_id"]} | wanted
        picture = cv2.imread(str(out / "pictures" / name), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        height, width = image.shape[:2]
        assert picture.shape[0] * width == pytest.approx(picture.shape[1] * height, rel=0.02)


def test_a_picture_of_another_size_than_annotated(turned, tmp_path, variant):
    folder, path = turned
    data = json.loads(path.read_text())
    data["images"][1]["width"] -= 1
    path.write_text(json.dumps(data))
    predictor = variant()
    predictor.config.exif = "stored"
    found = find_inputs([str(folder / "**/*.png")])
    faults = predict_images(predictor, found, tmp_path / "p.json", annotations=Annotations.read(path))
    assert len(faults) == 2
    assert "a/x.png" in faults[0] and "use exif: auto" in faults[0]
    assert "b/x.png" in faults[1] and "resized" in faults[1]


def test_names_in_any_bytes(tmp_path, shapes_root, tiny_predictor, capsys):
    source = shapes_root / "val2017/000000000001.jpg"
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9.jpg"))
    shutil.copy(source, path)
    name = path.name
    content = {"images": [{"id": 7, "file_name": name}], "annotations": [], "categories": []}
    (tmp_path / "c.json").write_text(json.dumps(content))
    out = tmp_path / "out"
    labels = ("coco", out / "labels.json")
    annotations = Annotations.read(tmp_path / "c.json")
    predict_images(
        tiny_predictor, find_inputs([str(path)]), out / "p.json", out, out / "r.json", annotations, 0.3, labels
    )
    for file in out.glob("*.json"):
        json.loads(file.read_bytes().decode("ascii"))
    assert list(json.loads((out / "p.json").read_text())) == [str(path)]
    assert {r["image_id"] for r in json.loads((out / "r.json").read_text())} == {7}


# ---------------------------------------------------------------------------------------------------------
# a split, some classes, labels


def test_a_split_in_place_of_files(shapes_root, shapes_config, tmp_path, tiny_predictor):
    config = shapes_config()
    found, annotations, skipped = split_inputs(config, "val")
    assert [p.name for p in found.images] == [f"{i:012d}.jpg" for i in range(1, 9)]
    assert skipped == []
    assert annotations.labels(config.coco_classes) == {i: i for i in range(1, 6)}
    assert len(split_inputs(config, "train")[0].images) == 24
    data = json.loads((shapes_root / "annotations/instances_val2017.json").read_text())
    data["images"] = [i for i in data["images"] if i["id"] in (3, 5)]
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in (3, 5)]
    part = tmp_path / "instances_val2017.json"
    part.write_text(json.dumps(data))
    found, annotations, _ = split_inputs(config, str(part))
    assert [p.name for p in found.images] == ["000000000003.jpg", "000000000005.jpg"]
    predict_images(tiny_predictor, found, tmp_path / "p.json", None, tmp_path / "r.json", annotations)
    assert {r["image_id"] for r in json.loads((tmp_path / "r.json").read_text())} == {3, 5}


def test_a_split_that_is_none(shapes_config, refusal):
    with refusal(UserError, "--split tset"):
        split_inputs(shapes_config(), "tset")


def test_some_classes_alone(variant, tiny_predictor, shapes_root):
    paths = sorted((shapes_root / "val2017").iterdir())
    everything = [tiny_predictor(p).to_dict() for p in paths]
    names = Counter(p["class"]["name"] for d in everything for p in d["predictions"])
    assert len(names) > 1
    rare = min(names, key=names.get)
    for found, whole in zip_equal(variant(classes=[rare])(paths), everything):
        assert found.to_dict()["predictions"] == [p for p in whole["predictions"] if p["class"]["name"] == rare]


def test_an_unknown_class_is_named(tiny_model, refusal):
    with refusal(UserError, "'sta'", "did you mean 'star'", "circle, square, triangle, star, cross"):
        Predictor(*tiny_model, classes=["sta"])
    with refusal(UserError, "'elephant'", "circle"):
        Predictor(*tiny_model, classes=["circle", "elephant"])


def ring(height=60, width=80):
    """A mask of a ring, a bar apart from it, and a pixel."""
    mask = np.zeros((height, width), np.uint8)
    cv2.circle(mask, (30, 30), 20, 1, -1)
    cv2.circle(mask, (32, 31), 9, 0, -1)
    mask[5:50, 60:66] = 1
    mask[0, 0] = 1
    return mask.astype(bool)


@pytest.mark.parametrize(
    "mask",
    [
        ring(),
        np.ones((7, 9), bool),
        np.eye(6, dtype=bool),
        ~np.eye(40, dtype=bool)[::-1],
        np.pad(np.ones((1, 1), bool), 3),
        np.random.default_rng(0).random((30, 40)) < 0.3,
    ],
)
def test_polygons_of_a_mask(mask):
    polygons = mask_polygons(mask, 0.5)
    assert all(len(p) >= 3 for p in polygons)
    drawn = rle.decode(rle.merge(rle.frPyObjects([p.ravel().tolist() for p in polygons], *mask.shape))).astype(bool)
    # fewer corners may cost a fiftieth; holes of less than 4 pixels are filled
    holes = 4 * (cv2.connectedComponents((~mask).astype(np.uint8), connectivity=4)[0] - 1)
    assert (drawn ^ mask).sum() <= 0.02 * mask.sum() + holes
    assert (mask & ~drawn).sum() <= 0.02 * mask.sum()


def test_an_empty_mask_has_no_polygon():
    assert mask_polygons(np.zeros((5, 5), bool)) == []


def object_masks(entries, annotations, image_id):
    """{category name: union of the objects' masks} of one image of a COCO file."""
    image = next(i for i in entries["images"] if i["id"] == image_id)
    names = {c["id"]: c["name"] for c in entries["categories"]}
    out = {}
    for a in annotations:
        if a["image_id"] == image_id:
            drawn = rle.decode(rle.merge(rle.frPyObjects(a["segmentation"], image["height"], image["width"])))
            out.setdefault(names[a["category_id"]], np.zeros(drawn.shape, bool))
            out[names[a["category_id"]]] |= drawn.astype(bool)
    return out


SCORE = 0.3


@pytest.mark.parametrize("kind", ["labelme", "coco"])
def test_labels_go_back_into_a_data_set(kind, turned, tmp_path, tiny_predictor):
    """What labels say, read by the importer, is what was detected."""
    folder, _ = turned
    found = find_inputs([str(folder / "**/*.png")])
    place = tmp_path / ("labels" if kind == "labelme" else "labels.json")
    predict_images(tiny_predictor, found, tmp_path / "p.json", labels=(kind, place), picture_score=SCORE)
    detections = {p.relative_to(folder).as_posix(): tiny_predictor(p).above(SCORE) for p in found.images}
    if kind == "labelme":
        files = {p.relative_to(place).with_suffix(".png").as_posix(): p for p in sorted(place.rglob("*.json"))}
        assert list(files) == list(detections)
        for name, path in files.items():
            content, detected = json.loads(path.read_text()), detections[name]
            image = images.read_image(path.parent / content["imagePath"], "upright")
            # labelme shows the picture upright, whatever the detector was given
            assert (content["imageHeight"], content["imageWidth"]) == image.shape[:2]
            orientation = images.file_header(folder / name).orientation
            parts = {}
            for shape in content["shapes"]:
                assert shape["label"] in detected.names
                assert shape["description"][:7] in ("score 0", "score 1")
                parts.setdefault(shape["group_id"] or id(shape), []).append(np.ravel(shape["points"]).tolist())
            assert len(parts) == len(detected)
            wanted = images.turn(np.stack(list(detected.bitmaps()), 2).astype(np.uint8), orientation)
            for i, polygons in enumerate(parts.values()):
                drawn = rle.decode(rle.merge(rle.frPyObjects(polygons, *image.shape[:2])))
                assert (drawn ^ wanted[..., i]).sum() <= max(0.05 * wanted[..., i].sum(), 4)
        return
    entries = json.loads(place.read_text())
    assert [i["file_name"] for i in entries["images"]] == list(detections)
    assert [a["id"] for a in entries["annotations"]] == list(range(1, len(entries["annotations"]) + 1))
    assert all({"bbox", "area", "iscrowd", "score"} <= a.keys() for a in entries["annotations"])
    import_labels(place, tmp_path / "root", folder, val=0)
    again = json.loads((tmp_path / "root/annotations/instances_train2017.json").read_text())
    for image in again["images"]:
        detected = detections[image["file_name"]]
        assert (image["height"], image["width"]) == (detected.height, detected.width)
        rows = [a for a in again["annotations"] if a["image_id"] == image["id"]]
        assert len(rows) == len(detected) > 0
        for a, bitmap, label in zip_equal(rows, detected.bitmaps(), detected.labels):
            assert a["category_id"] == label
            assert a["area"] == bitmap.sum()
            drawn = rle.decode(rle.merge(rle.frPyObjects(a["segmentation"], *bitmap.shape))).astype(bool)
            assert (drawn ^ bitmap).sum() <= max(0.05 * bitmap.sum(), 4)


def test_labels_that_may_be_corrected_stay(turned, tmp_path, tiny_predictor, refusal):
    folder, _ = turned
    found = find_inputs([str(folder / "b/*.png")])
    for kind, place, taken in (("coco", "l.json", "l.json"), ("labelme", "l", "l/x.json")):
        (tmp_path / taken).parent.mkdir(exist_ok=True)
        (tmp_path / taken).write_text("mine")
        with refusal(UserError, taken, "corrected by hand"):
            predict_images(tiny_predictor, found, tmp_path / "p.json", labels=(kind, tmp_path / place))
        assert (tmp_path / taken).read_text() == "mine"
        assert not (tmp_path / "p.json").exists()


# ---------------------------------------------------------------------------------------------------------
# video


@pytest.fixture
def film(tmp_path, photograph):
    """A video of 6 frames of odd sides, the photograph moving."""
    path = tmp_path / "film.avi"
    frame = np.ascontiguousarray(photograph[:161, :201, ::-1])
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 8, (frame.shape[1], frame.shape[0]))
    assert writer.isOpened()
    for i in range(6):
        writer.write(np.roll(frame, 10 * i, 1))
    writer.release()
    return path


def test_a_video(film, tmp_path, tiny_predictor):
    assert predict_video(tiny_predictor, film, tmp_path / "out/film") == ""
    capture, frames = cv2.VideoCapture(str(film)), []
    while (read := capture.read())[0]:
        frames.append(read[1])
    lines = [json.loads(line) for line in (tmp_path / "out/film.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(6))
    assert [line["seconds"] for line in lines] == [i / 8 for i in range(6)]
    for line, frame in zip_equal(lines, frames):
        found = tiny_predictor(np.ascontiguousarray(frame[:, :, ::-1])).to_entry()
        assert {k: line[k] for k in found} == found
    drawn = cv2.VideoCapture(str(tmp_path / "out/film.mp4"))
    assert drawn.get(cv2.CAP_PROP_FPS) == 8
    count = 0
    while (read := drawn.read())[0]:
        # the codec has even sides only
        assert abs(read[1].shape[0] - frames[0].shape[0]) <= 1
        count += 1
    assert count == 6
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["film.jsonl", "film.mp4"]


def small_disk(folder, size):
    """A disk of so many bytes at `folder`; skips where none can be had."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")


@pytest.fixture
def disk(tmp_path):
    """Makes a small disk, which goes after the test."""
    yield lambda size: small_disk(tmp_path / "disk", size) or tmp_path / "disk"
    subprocess.run(["umount", str(tmp_path / "disk")], capture_output=True, check=False)


def noise_frames(count, side=320):
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (side, side, 3), np.uint8) for _ in range(count)]


def test_a_video_on_a_disk_that_fills_leaves_the_older(disk, refusal):
    path = disk("300k") / "film.mp4"
    with predict_files.film_frames(path, 5) as add:
        for frame in noise_frames(1):
            add(frame)
    older = path.read_bytes()
    with refusal(UserError, path, "No space left", "free space"), predict_files.film_frames(path, 5) as add:
        for frame in noise_frames(30):
            add(frame)
    assert path.read_bytes() == older
    assert [p.name for p in path.parent.iterdir()] == ["film.mp4"]


def test_a_video_over_the_limit_of_a_files_size(tmp_path, refusal):
    path, before = tmp_path / "film.mp4", resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
        with (
            refusal(UserError, "film.mp4: can't write: File too large; raise the limit"),
            predict_files.film_frames(path, 5) as add,
        ):
            for frame in noise_frames(30):
                add(frame)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_video_whose_end_is_missing_is_not_kept(tmp_path, refusal):
    whole = tmp_path / "whole.mp4"
    with predict_files.film_frames(whole, 5) as add:
        for frame in noise_frames(4, 64):
            add(frame)
    predict_files.demand_frames(whole, tmp_path / "film.mp4", 4)
    with refusal(UserError, "film.mp4", "4 of 5 frames"):
        predict_files.demand_frames(whole, tmp_path / "film.mp4", 5)


def test_an_empty_video_leaves_the_older_outputs(film, tmp_path, tiny_predictor, monkeypatch):
    (tmp_path / "film.jsonl").write_text("older")
    monkeypatch.setattr(predict_files, "frames", lambda _: iter(()))
    assert "no frame" in predict_video(tiny_predictor, film, tmp_path / "film")
    assert (tmp_path / "film.jsonl").read_text() == "older"


def test_videos_that_cannot_be_read(film, tmp_path, tiny_predictor):
    (tmp_path / "text.mp4").write_text("no video")
    assert "not a video" in predict_video(tiny_predictor, tmp_path / "text.mp4", tmp_path / "out/text")
    data = film.read_bytes()
    film.write_bytes(data[: len(data) // 2])
    assert "cut short" in predict_video(tiny_predictor, film, tmp_path / "out/film", with_picture=False)
    assert not (tmp_path / "out/text.jsonl").exists()


def test_videos_of_one_name_keep_apart(tmp_path):
    found = predict_files.Inputs(videos=[Path("a/x.mp4"), Path("a/x.avi"), Path("a/y.avi")])
    assert [t.name for t in found.video_targets(tmp_path).values()] == ["x.mp4", "x.avi", "y"]


def phone_video(path, matrix):
    """A video of 5 frames of 64 x 48 pixels with a display matrix, as phones write them; the stored frame."""
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:24, :32], frame[24:, 32:] = (0, 0, 255), (0, 255, 0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 5, (64, 48))
    assert writer.isOpened()
    for _ in range(5):
        writer.write(frame)
    writer.release()
    data = bytearray(path.read_bytes())
    # ISO/IEC 14496-12: the track header's matrix comes 44 bytes after its name
    at = data.index(b"tkhd") + 44
    assert data[at : at + 4] == (1 << 16).to_bytes(4, "big")
    numbers = [v << 16 for v in matrix]
    data[at : at + 20] = b"".join(v.to_bytes(4, "big", signed=True) for v in (*numbers[:2], 0, *numbers[2:]))
    path.write_bytes(data)
    return frame


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((1, 0, 0, 1), None),
        ((0, 1, -1, 0), cv2.ROTATE_90_CLOCKWISE),
        ((-1, 0, 0, -1), cv2.ROTATE_180),
        ((0, -1, 1, 0), cv2.ROTATE_90_COUNTERCLOCKWISE),
    ],
)
def test_videos_are_upright(matrix, turn, tmp_path, tiny_predictor):
    frame = phone_video(tmp_path / "phone.mp4", matrix)
    shown = frame if turn is None else cv2.rotate(frame, turn)
    assert predict_video(tiny_predictor, tmp_path / "phone.mp4", tmp_path / "out/phone", score=1.0) == ""
    lines = [json.loads(line) for line in (tmp_path / "out/phone.jsonl").read_text().splitlines()]
    assert [(line["height"], line["width"]) for line in lines] == [shown.shape[:2]] * 5
    capture, count = cv2.VideoCapture(str(tmp_path / "out/phone.mp4")), 0
    while (read := capture.read())[0]:
        # compressed twice
        assert np.abs(read[1].astype(int) - shown).mean() < 12
        count += 1
    assert count == 5


def test_a_stream_of_one_file(tiny_predictor, shapes_root):
    path = shapes_root / "val2017/000000000001.jpg"
    for source in (path, str(path)):
        (only,) = tiny_predictor.stream(source)
        assert only.source == source and not only.fault


@pytest.mark.parametrize("score", [float("nan"), None, [0.1], "0.5"])
def test_what_is_no_score(tiny_predictor, photograph, refusal, score):
    with refusal(UserError, "no score", "0..1"):
        tiny_predictor(photograph).above(score)
