"""The C++ program's keypoints, against Python's and torchvision's."""

import subprocess

import cv2
import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from src.config import load_config
from src.data.transforms import fit_size
from src.evaluation.cpp_results import read_result, read_summary
from src.evaluation.keypoints import decode_heatmaps
from src.evaluation.kinds import branch_kinds
from src.export import sidecar
from src.export.mindir_v1 import rewrite_as_version_1
from src.export.split import export_split
from src.runtime.newer import zip_equal
from tests.ascend310_infer.conftest import ROOT, Exported, random_detector
from tests.evaluation.golden_keypoints import BOXES, GOLDEN, heatmaps

KIND = branch_kinds()["keypoint"]
SMALL = {
    "detector": "keypoint_rcnn",
    "backbone.width_multiplier": 0.25,
    "keypoint_head.names": ["nose", "left_eye", "right_eye"],
    "keypoint_head.num_convs": 2,
    "keypoint_head.conv_out_channels": 32,
    "test_cfg.rpn.max_per_img": 60,
    "test_cfg.rcnn.max_per_img": 20,
}


@pytest.fixture(scope="module")
def find(compiled):
    """find(maps (K, S, S), box, score) -> (K, 3), or why not."""
    sources = [f"ascend310_infer/src/{name}.cc" for name in ("files", "keypoints")]
    program = compiled([*sources, "tests/ascend310_infer/keypoints_main.cc"])

    def run(maps, box, score="logit"):
        words = [program, *maps.shape[:2], score, *(np.float32(v) for v in box)]
        done = subprocess.run([*map(str, words)], input=np.float32(maps).tobytes(), capture_output=True)
        return np.frombuffer(done.stdout, np.float32).reshape(-1, 3) if done.returncode == 0 else done.stderr.decode()

    return run


@pytest.mark.parametrize("score", ["logit", "probability"])
def test_points_are_those_of_torchvision(score, find):
    golden = np.load(GOLDEN)
    for maps, box, points, shares in zip_equal(heatmaps(), BOXES, golden["points"], golden["probability"]):
        got = find(maps, box, score)
        np.testing.assert_allclose(got[:, :2], points[:, :2], rtol=0, atol=1e-3)
        # float32 of weights to which others come in other ways
        np.testing.assert_allclose(got[:, 2], points[:, 2] if score == "logit" else shares, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", [4, 28, 56])
def test_points_are_those_of_python(side, find):
    random = np.random.default_rng(side)
    for _ in range(20):
        start, size = random.uniform(-50, 400, 2), 10 ** random.uniform(-0.5, 2.8, 2)
        box = np.float32([*start, *(start + size)])
        # flat maps too, whose rows could all hold the largest value
        maps = np.float32(random.standard_normal((3, side, side)) * [[[0.01]], [[1]], [[20]]] + random.uniform(-9, 9))
        for score in ("logit", "probability"):
            wanted = decode_heatmaps(maps[None], box[None], score)[0]
            np.testing.assert_allclose(find(maps, box, score), wanted, rtol=1e-4, atol=1e-4)
    # above a step by hundreds, of which float32 holds no exponential
    step = np.where(np.arange(side) < side // 2, 2000, -2000) * np.ones((1, side, 1))
    assert find(step, (0, 0, 300, 300), "probability")[0, 2] == np.float32(1e12)


def test_what_is_no_number_is_told(find):
    maps, box = np.zeros((2, 56, 56)), (0, 0, 30, 30)
    assert find(maps, box).shape == (2, 3)
    for value in (np.nan, np.inf, -np.inf):
        for i in range(4):
            assert "no numbers" in find(maps, [*box[:i], value, *box[i + 1 :]])
        maps[1, 5, 5] = value
        assert "no numbers" in find(maps, box)
        maps[1, 5, 5] = 0
    assert "larger than any picture" in find(maps, (0, 0, 1e9, 30))


def in_python(config, maps, result):
    """The points of heatmaps of a result of the C++ program, or of Python's like it."""
    fitted = fit_size(result.height, result.width, config)
    scale = np.float32([[fitted[0] / result.height, fitted[1] / result.width]] * len(maps))
    return KIND.values(maps, result.boxes, scale, result.height, result.width, KIND.options(config))


class StandIn(nn.Cell):
    """Inputs and outputs of a whole graph, from operators that Lite's CPU has: two images, three rows of detections, of
    which the second isn't valid.
    """

    def __init__(self, maps):
        super().__init__()
        self.mean = ops.ReduceMean(keep_dims=True)
        self.boxes = Parameter(np.array([[[10, 20, 33.3, 64], [0] * 4, [5, 1, 60, 9.5]]] * 2, np.float32), "boxes")
        self.scores = Parameter(np.array([[0.9, 0.0, 0.3]] * 2, np.float32), "scores")
        self.labels = Parameter(np.array([[3, 0, 1], [2, 0, 5]], np.int32), "labels")
        # scalars become operators that Lite 2.0 doesn't know
        self.zero = Parameter(np.zeros(1, np.float32), "zero")
        self.least = Parameter(np.full(1, 0.1, np.float32), "least")
        self.none = Parameter(np.zeros((2, 3), np.int32), "none")
        self.maps = Parameter(maps, "maps")

    def construct(self, image, image_shape):
        still = self.mean(image, (1, 2, 3)) * self.zero
        still_too = self.mean(image_shape, 1).reshape(2, 1, 1) * self.zero
        scores = self.scores + still.reshape(2, 1)
        return (
            self.boxes + still_too,
            scores,
            self.labels + self.none,
            scores > self.least,
            self.maps + still.reshape(2, 1, 1, 1, 1),
        )


@pytest.mark.parametrize("convention", [{}, {"keypoint_head.half_pixel": True, "keypoint_head.score": "probability"}])
def test_the_whole_form(convention, infer, tmp_path):
    options = SMALL | {"img_width": 192, "img_height": 128, "test_batch_size": 2, "test_cfg.rcnn.max_per_img": 3}
    config = load_config(ROOT / "configs/shapes.yaml", options | convention)
    path = tmp_path / "whole.mindir"
    maps = np.random.default_rng(0).standard_normal((2, 3, 3, 56, 56)).astype(np.float32) * 3
    net = StandIn(maps)
    image = np.zeros((2, 3, config.img_height, config.img_width), np.float32)
    ms.export(net, Tensor(image), Tensor(np.ones((2, 4), np.float32)), file_name=str(path), file_format="MINDIR")
    path.chmod(0o644)
    rewrite_as_version_1(path)
    about = sidecar.describe(config, "whole", "MINDIR", {"model": sidecar.file_entry(path)}, 2)
    sidecar.write(tmp_path / "whole.mindir.json", about)

    (tmp_path / "images").mkdir()
    sizes = [(60, 100), (128, 77)]
    for i, (height, width) in enumerate(sizes):
        cv2.imwrite(str(tmp_path / f"images/{i}.png"), np.full((height, width, 3), 90, np.uint8))
    run = infer("--model", path, "--input", tmp_path / "images", "--output", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert KIND.told(read_summary(tmp_path / "out")) == {"names": config.keypoint_head.names}
    for i, (height, width) in enumerate(sizes):
        result = read_result(tmp_path / f"out/{i}.png.det")
        wanted = in_python(config, maps[i, [0, 2]], result)
        assert (result.height, result.width, list(result.fields)) == (height, width, ["keypoint"])
        np.testing.assert_allclose(result.fields["keypoint"], wanted, rtol=1e-5, atol=1e-3)


@pytest.fixture(scope="module")
def split(tmp_path_factory, program):
    """The split form of a small keypoint detector; not to be changed by a test."""
    config, detector = random_detector(**SMALL)
    random = np.random.default_rng(0)
    # of a size that keypoints' places don't hang on rounding
    weight = detector.roi_heads.more[0].heads[0].upsample.weight
    weight.set_data(Tensor(random.standard_normal(weight.shape).astype(np.float32)))
    path = export_split(config, detector, tmp_path_factory.mktemp("split") / "net", program=program)
    return Exported(config, detector, path)


@pytest.mark.full
def test_the_split_form(split, infer, pictures, tmp_path):
    content = sidecar.read(split.sidecar)
    assert content["reference"]["compared"] is True
    assert [e["name"] for e in content["files"]["keypoint"]] == ["net_keypoint0.mindir"]
    images = sorted((pictures / "val2017").iterdir())
    words = ("--model", split.sidecar, "--self_check", "--input", images[0].parent, "--output", tmp_path / "out")
    run = infer(*words)
    assert run.returncode == 0, run.stderr
    assert "keypoint head   0, input (20, 64, 14, 14)" in run.stdout
    assert {"keypoint_head", "heatmaps"} <= read_summary(tmp_path / "out")["median_ms"].keys()
    apart, total = [], 0
    for image in images:
        ours, wanted = read_result(tmp_path / f"out/{image.name}.det"), split.detect(image)
        points = in_python(split.config, wanted.fields["keypoint"], wanted)
        total += max(len(ours.boxes), len(wanted.boxes))
        for i in range(len(ours.boxes)):
            far = np.abs(wanted.boxes - ours.boxes[i]).max(1) + 1e3 * np.abs(wanted.scores - ours.scores[i])
            j = int(np.where(wanted.labels == ours.labels[i], far, np.inf).argmin())
            if far[j] < 0.5:
                apart.append(np.abs(ours.fields["keypoint"][i] - points[j]).max())
    assert total > 0
    assert (np.array(apart) < 1e-3).sum() >= 0.99 * total
