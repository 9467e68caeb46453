"""What several tests share: a small shapes data set, its config, and real photographs where there are some."""

import contextlib
import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from src.config import load_config
from src.data.shapes import make_shapes
from src.ops.library import MARCHES, describe_operators

ROOT = Path(__file__).parents[1]
LEFT_OUT = pytest.StashKey[int]()
# first, longest first: a long file that starts last leaves the other test process without work (scripts/run_tests.sh)
LONGEST = [
    *("ascend310_infer/test_program.py", "test_reference.py", "test_infer.py", "scripts/test_launchers.py"),
    *("checkpoints/convert/test_files.py", "ascend310_infer/test_image.py", "training/test_training.py"),
    *("training/test_step.py", "training/test_launch.py", "ascend310_infer/test_keypoints.py", "data/test_loader.py"),
    *("export/test_onnx_graph.py", "data/test_bounds.py", "scripts/test_demo.py", "ops/test_roi_align.py"),
]

# what --fast leaves out, as its names begin: half of the suite's time, for few of its tests
NOT_FAST = (
    "tests/ascend310_infer/",
    "tests/checkpoints/convert/test_files.py::test_what_a_file_says_of_itself",
    "tests/data/augment/test_custom.py",
    "tests/data/test_bounds.py",
    "tests/data/test_fuzz",
    "tests/evaluation/test_report.py",
    "tests/export/test_eval_onnx.py",
    "tests/export/test_keypoints.py",
    "tests/export/test_onnx_graph.py::test_backbones",
    "tests/export/test_onnx_graph.py::test_mobilenet_v3",
    "tests/export/test_operators.py",
    "tests/models/test_family.py",
    "tests/models/test_padding.py",
    "tests/models/test_turned.py",
    "tests/scripts/",
    "tests/test_commands.py",
    "tests/test_fuzz_parsers.py",
    "tests/test_hub.py",
    "tests/test_infer.py",
    "tests/test_postprocess.py",
    "tests/test_published.py::test_made_up_weights_on_noise",
    "tests/test_serve",
    "tests/training/test_choosing.py",
    "tests/training/test_launch.py",
    "tests/training/test_step.py::test_parts_make_the_step_of_their_whole_batch",
)
# and what it takes although it is marked full
FAST_TOO = "tests/test_float16.py::test_float16_detects_what_float32_does"


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also the long tests, which are marked full")
    parser.addoption("--fast", action="store_true", help="the quick half, for other versions of Python and MindSpore")


def pytest_collection_modifyitems(config, items):
    """Longest files first; leaves the long tests out, and counts them, unless they are asked for."""
    ranks = {ROOT / "tests" / name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))
    if config.getoption("--full"):
        return
    fast = config.getoption("--fast")
    lesser = set(MARCHES) - {"native"}

    def is_long(item):
        if fast and item.nodeid == FAST_TOO:
            return False
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        left = fast and (item.nodeid.startswith(NOT_FAST) or any(isinstance(v, str) and v in lesser for v in values))
        return left or item.get_closest_marker("full")

    long = [item for item in items if is_long(item)]
    items[:] = [item for item in items if not is_long(item)]
    config.hook.pytest_deselected(items=long)
    config.stash[LEFT_OUT] = len(long)
    if hasattr(config, "workeroutput"):
        config.workeroutput["left_out"] = len(long)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Takes the count from one of several test processes; all have the same tests."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_sessionstart(session):
    """Says, also where -q leaves out pytest's header, what the tests are about to test."""
    if reporter := session.config.pluginmanager.get_plugin("terminalreporter"):
        reporter.write_line(describe_operators())


def pytest_terminal_summary(terminalreporter, config):
    if count := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{count} long tests left out (with them: bash scripts/run_tests.sh --full)")


def pytest_configure(config):
    """Gives each of several test processes a core: MindSpore's threads spin while they wait, and would fight."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker.startswith("gw"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker[2:]) % len(cores)]})


@pytest.fixture(scope="module", autouse=True)
def quick(request):
    """Graphs, which compile for seconds, only where a module's tests want them, not because an earlier one's did; and
    no threads that hand operators to each other, which share a core here. In the full run as users have it."""
    if "mindspore" in sys.modules and not request.config.getoption("--full"):
        import mindspore as ms

        ms.runtime.launch_blocking()
        ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture
def operator_by_operator(request):
    """Without a graph, whose compiling would take most of the time, whatever mode an earlier test left; as a graph, as
    users run it, in the full run."""
    import mindspore as ms

    before = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE if request.config.getoption("--full") else ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=before)


@pytest.fixture
def graph_mode():
    """As a graph, whatever mode an earlier test left."""
    import mindspore as ms

    before = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE)
    yield
    ms.set_context(mode=before)


@contextlib.contextmanager
def all_cores():
    """What is started within may use every core of the machine, where this test process has one alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count()))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory):
    """A shapes data set of 24 training and 8 validation images. Not to be changed by a test."""
    return make_shapes(tmp_path_factory.mktemp("shapes") / "root", train=24, val=8, seed=5)


@pytest.fixture
def shapes_config(shapes_root, tmp_path):
    """Makes the shapes config, its outputs in this test's folder; keywords with __ for dots override."""

    def make(**overrides):
        places = {
            "train_dataset": str(shapes_root),
            "val_dataset": str(shapes_root),
            "mindrecord_dir": str(tmp_path / "mindrecord"),
            "train_outputs": str(tmp_path / "outputs"),
        }
        named = {name.replace("__", "."): value for name, value in overrides.items()}
        return load_config(ROOT / "configs/shapes.yaml", places | named)

    return make


@pytest.fixture(scope="session")
def coco_root():
    """Photographs in COCO's layout."""
    root = os.environ.get("COCO_ROOT")
    if not root:
        pytest.skip("COCO_ROOT isn't set: no real photographs to test on")
    return Path(root)


TINY = {
    "img_width": 192,
    "img_height": 128,
    "backbone.width_multiplier": 0.25,
    "test_batch_size": 2,
    "test_cfg.rcnn.max_per_img": 20,
}


@pytest.fixture(scope="session")
def tiny_arguments(tiny_model):
    """Command-line words of the tiny model's config."""
    return ["--config_path", str(ROOT / "configs/shapes.yaml"), *(f"--{k}={v}" for k, v in TINY.items())]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Config and checkpoint of a small detector with random weights that detects much, of several scores."""
    import mindspore as ms

    from src.checkpoints.files import save_checkpoint
    from src.models.build import build_detector

    ms.set_seed(3)
    config = load_config(ROOT / "configs/shapes.yaml", TINY)
    detector = build_detector(config)
    parameters = {p.name: p.asnumpy() for p in detector.get_parameters()}
    # random weights answer the same for every box, and nearly background
    weight = parameters["bbox_head.cls.weight"]
    parameters["bbox_head.cls.weight"] = weight / np.abs(weight).max() * 1.5
    path = tmp_path_factory.mktemp("tiny") / "tiny.ckpt"
    save_checkpoint(parameters, path)
    return config, path


@pytest.fixture(scope="session")
def compiled_predictor(tiny_model):
    """A Predictor of the tiny model, compiled once for all tests."""
    from src import Predictor

    return Predictor(*tiny_model)


@pytest.fixture(scope="module")
def tiny_predictor(compiled_predictor):
    """The compiled Predictor of the tiny model, as a graph in every module."""
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    return compiled_predictor


class CocoFolder:
    """A COCO root that a test writes and spoils."""

    def __init__(self, root, split="train"):
        self.root = root
        self.json = root / f"annotations/instances_{split}2017.json"
        self.images = root / f"{split}2017"
        self.images.mkdir(parents=True)
        self.json.parent.mkdir(exist_ok=True)
        self.data = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 10, "name": "circle"}, {"id": 20, "name": "star"}],
        }

    def add_image(self, height=40, width=60, name=None, content=None):
        """An image of noise, or of the bytes `content`; returns its id."""
        image_id = len(self.data["images"]) + 1
        name = name or f"{image_id:012d}.jpg"
        if content is None:
            noise = np.random.RandomState(image_id).randint(0, 256, (height, width, 3)).astype(np.uint8)
            content = cv2.imencode(Path(name).suffix, noise)[1].tobytes()
        (self.images / name).write_bytes(content)
        self.data["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
        return image_id

    def add_object(self, image_id, bbox=(10, 10, 20, 15), category_id=10, **other):
        """An object whose mask is its box; `segmentation=None` leaves the key out. Returns the annotation."""
        x, y, w, h = bbox
        annotation = {
            "id": 101 + len(self.data["annotations"]),
            "image_id": image_id,
            "category_id": category_id,
            "bbox": list(bbox),
            "area": w * h,
            "iscrowd": 0,
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        } | other
        if annotation["segmentation"] is None:
            del annotation["segmentation"]
        self.data["annotations"].append(annotation)
        return annotation

    def write(self):
        self.json.write_text(json.dumps(self.data))
        return self


@pytest.fixture
def coco_folder(tmp_path):
    """Two images of 60 x 40 pixels with an object each (annotations 101 and 102), written; and a third without."""
    folder = CocoFolder(tmp_path / "coco")
    for _ in range(2):
        folder.add_object(folder.add_image())
    folder.add_image()
    return folder.write()


@pytest.fixture
def coco_config(shapes_config, coco_folder):
    """Makes a config that trains on `coco_folder`."""

    def make(**overrides):
        return shapes_config(**{"train_dataset": str(coco_folder.root), **overrides})

    return make


@pytest.fixture
def refusal():
    """`with refusal(ErrorType, *parts):` expects the block to raise one line that holds every one of `parts`."""

    @contextlib.contextmanager
    def expect(kind, *parts):
        with pytest.raises(kind) as error:
            yield
        message = str(error.value)
        assert message.strip()
        assert "\n" not in message
        for part in parts:
            assert str(part) in message

    return expect
