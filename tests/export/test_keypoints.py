"""Keypoints in exported models and in their sidecars."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.export import sidecar
from src.export.branches import BRANCHES
from src.export.compare import compare_detections, reference_input
from src.export.onnx_runtime import OnnxModel
from src.export.sidecar import ExportError
from src.export.whole import WholeGraph, export_whole

NAMES = ["nose", "left_eye", "right_eye"]
KEYPOINTS = {
    "detector": "keypoint_rcnn",
    "keypoint_head__names": NAMES,
    "keypoint_head__num_convs": 2,
    "keypoint_head__conv_out_channels": 32,
    "test_cfg__rcnn__max_per_img": 20,
}


@pytest.fixture
def written(shapes_config, tmp_path):
    """The sidecar of an ONNX export, beside a file of some bytes."""
    model = tmp_path / "m.onnx"
    model.write_bytes(b"weights" * 1000)
    about = sidecar.describe(shapes_config(**KEYPOINTS), "whole", "ONNX", {"model": sidecar.file_entry(model)}, 2)
    sidecar.write(tmp_path / "m.onnx.json", about)
    return tmp_path / "m.onnx.json"


def test_a_sidecar_says_what_decoding_needs(shapes_config, written):
    about = sidecar.read(written)
    assert about["keypoints"] == {"names": NAMES, "size": 56, "half_pixel": False, "score": "logit"}
    assert about["keypoint_roi"]["out_size"] == 14
    heatmaps = about["outputs"][-1]
    assert (heatmaps["name"], heatmaps["shape"]) == ("heatmaps", [2, 20, 3, 56, 56])
    assert not about["with_mask"] and "mask_roi" not in about
    sidecar.check_config(written, about, shapes_config(**KEYPOINTS))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"keypoint_head__half_pixel": True}, "keypoints.half_pixel False, not True"),
        ({"keypoint_head__score": "probability"}, "keypoints.score logit, not probability"),
        ({"keypoint_head__names": NAMES[::-1]}, "keypoint_head, keypoint_roi"),
        ({"keypoint_roi__roi_layer__aligned": True}, "keypoint_roi.aligned"),
        ({"detector": "faster_rcnn"}, "detector keypoint_rcnn, not faster_rcnn"),
    ],
)
def test_a_config_of_another_detector_is_refused(shapes_config, written, refusal, change, told):
    with refusal(ExportError, written, told):
        sidecar.check_config(written, sidecar.read(written), shapes_config(**KEYPOINTS | change))


@pytest.mark.full
@pytest.mark.parametrize("file_format", ["ONNX", "MINDIR"])
def test_files_give_the_heatmaps_of_the_detector(file_format, small_config, make_detector, tmp_path):
    config = small_config(**KEYPOINTS, test_batch_size=2)
    detector, path = make_detector(config), tmp_path / f"model.{file_format.lower()}"
    agreement = export_whole(config, detector, path, file_format)
    assert (agreement.matched, agreement.total) == (40, 40)
    # logits of some hundredths
    assert 0 < agreement.max_errors["keypoint"] < 1e-5
    about = sidecar.read(f"{path}.json")
    assert about["reference"]["max_keypoint_error"] == agreement.max_errors["keypoint"]
    # of other pictures, too
    inputs = reference_input(config, 2, seed=3)
    runs = {"ONNX": lambda: OnnxModel(path), "MINDIR": lambda: nn.GraphCell(ms.load(str(path)))}
    got = runs[file_format]()(*(inputs if file_format == "ONNX" else map(Tensor, inputs)))
    got = [np.asarray(x) if file_format == "ONNX" else x.asnumpy() for x in got]
    wanted = [x.asnumpy() for x in WholeGraph(detector)(*map(Tensor, inputs))]
    assert got[4].shape == (2, 20, 3, 56, 56)
    other = compare_detections(got, wanted, branches=config.branches)
    assert other.passed, str(other)


def test_the_host_enlarges_what_its_graph_gives(small_config, make_detector):
    head = make_detector(small_config(**KEYPOINTS)).roi_heads.more[0].heads[0]
    branch = BRANCHES["keypoint"]
    features = Tensor(np.random.default_rng(0).standard_normal((3, 64, 14, 14)).astype(np.float32))
    small, large = (part(head)(features).asnumpy() for part in (branch.graph, branch.reference))
    assert (small.shape, large.shape) == ((3, 3, 28, 28), (3, 3, 56, 56))
    # bilinearly between the cells' centres: within the map, each is 9 16ths of the nearest, and so on
    inner = (9 * small[..., 1:, 1:] + 3 * small[..., :-1, 1:] + 3 * small[..., 1:, :-1] + small[..., :-1, :-1]) / 16
    np.testing.assert_allclose(large[..., 2::2, 2::2], inner, rtol=0, atol=1e-5 * np.abs(large).max())
    np.testing.assert_allclose(large[..., 0, 0], small[..., 0, 0], rtol=0, atol=1e-5 * np.abs(large).max())
