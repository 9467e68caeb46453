"""eval_onnx.py and its launcher: the detections of eval.py, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

import eval_onnx
from src.evaluation.inference import Evaluator
from src.export import sidecar
from src.export.compare import compare_detections
from src.export.folding import fold_batch_norms
from src.export.onnx_graph import onnx_model
from src.export.whole import export_whole
from src.runtime.errors import UserError
from tests.conftest import CocoFolder

ROOT = Path(eval_onnx.__file__).parent
CONFIG = """base: {root}/configs/shapes.yaml
backbone: {{width_multiplier: 0.25}}
test_cfg: {{rcnn: {{score_thr: 0.0, max_per_img: 20}}}}
"""


@pytest.fixture
def exported(small_config, make_detector, tmp_path):
    """The small detector, its config, and its export with three images a call."""
    config = small_config(test_cfg__rcnn__max_per_img=20, test_batch_size=4)
    detector, graph = make_detector(config), make_detector(config)
    fold_batch_norms(graph)
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_model(config, graph, 3).SerializeToString())
    sidecar.write(f"{path}.json", sidecar.describe(config, "whole", "ONNX", {"model": sidecar.file_entry(path)}, 3))
    (tmp_path / "model.yaml").write_text(CONFIG.format(root=ROOT))
    return config, detector, path


@pytest.fixture
def command(exported, shapes_root, tmp_path, monkeypatch):
    """Runs eval_onnx.py's main."""
    options = ["--config_path", tmp_path / "model.yaml", "--onnx_file", exported[2], "--val_dataset", shapes_root]
    options += ["--train_outputs", tmp_path / "outputs"]

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["eval_onnx.py", *map(str, [*options, *arguments])])
        return eval_onnx.main()

    return run


def by_image(results, ids):
    """COCO results as arrays of one row an image, without masks."""
    out = [np.zeros((len(ids), 20, 4)), np.zeros((len(ids), 20)), np.zeros((len(ids), 20), int)]
    valid = np.zeros((len(ids), 20), bool)
    for i, image in enumerate(ids):
        for k, r in enumerate(r for r in results if r["image_id"] == image):
            x, y, w, h = r["bbox"]
            out[0][i, k], out[1][i, k], out[2][i, k] = (x, y, x + w, y + h), r["score"], r["category_id"]
            valid[i, k] = True
    return [*out, valid]


def test_the_detections_of_eval_py(exported, command, tmp_path, capsys):
    config, detector, path = exported
    assert command("--results", tmp_path / "onnx.json", "--threads", 1) == 0
    told = capsys.readouterr().out
    assert told.count("IoU=0.50:0.95 | area=   all | maxDets=100") == 4  # AP and AR of boxes and of masks
    assert "ms an image" in told
    Evaluator(config, detector).run(tmp_path / "python.json")
    results = [json.loads((tmp_path / f"{n}.json").read_text()) for n in ("onnx", "python")]
    ids = sorted({r["image_id"] for r in results[1]})
    agreement = compare_detections(*(by_image(r, ids) for r in results))
    assert agreement.total == 20 * 8
    assert agreement.passed, str(agreement)
    assert all(r["segmentation"] for r in results[0])


@pytest.fixture
def mixed_root(tmp_path):
    """A COCO root of lying, upright and square pictures, in no order, with an object each."""
    folder = CocoFolder(tmp_path / "mixed", "val")
    for size in ((60, 100), (100, 60), (80, 80), (97, 50), (50, 97), (230, 100), (64, 64)):
        folder.add_object(folder.add_image(*size))
    return folder.write().root


@pytest.mark.full
def test_pictures_of_both_orientations(small_config, make_detector, mixed_root, tmp_path, monkeypatch, refusal):
    turning = {"resize": "short_side", "short_side": 90, "long_side": 155, "img_height": 96, "img_width": 160}
    turning |= {"resize_rounding": "floor", "resize_filter": "antialias"}
    config = small_config(
        **turning,
        test_cfg__rcnn__max_per_img=20,
        test_batch_size=2,
        val_dataset=str(mixed_root),
        num_classes=3,
        coco_classes=["background", "circle", "star"],
    )
    detector, path = make_detector(config), tmp_path / "model.onnx"
    agreement = export_whole(config, detector, path, "ONNX")
    assert (agreement.total, agreement.passed) == (2 * 2 * 20, True)
    Evaluator(config, detector).run(tmp_path / "python.json")
    (tmp_path / "model.yaml").write_text(CONFIG.format(root=ROOT) + yaml.safe_dump(turning))
    words = ["eval_onnx.py", "--config_path", tmp_path / "model.yaml", "--val_dataset", mixed_root, "--threads", 1]
    words += ["--train_outputs", tmp_path / "outputs", "--coco_classes", "[background, circle, star]"]
    words += ["--num_classes", 3, "--results", tmp_path / "onnx.json", "--onnx_file"]
    # either of the two names the other
    monkeypatch.setattr("sys.argv", [str(w) for w in (*words, tmp_path / "model-upright.onnx")])
    assert eval_onnx.main() == 0
    results = [json.loads((tmp_path / f"{n}.json").read_text()) for n in ("onnx", "python")]
    images = [[r["image_id"] for r in of] for of in results]
    # both in the data set's order
    assert list(dict.fromkeys(images[0])) == list(dict.fromkeys(images[1])) == list(range(1, 8))
    agreement = compare_detections(*(by_image(r, range(1, 8)) for r in results))
    assert agreement.total == 7 * 20
    assert agreement.passed, str(agreement)
    path.rename(tmp_path / "elsewhere.onnx")
    with refusal(UserError, path, "no such model"):
        eval_onnx.main()


def test_refusals(exported, command, tmp_path, refusal):
    path = exported[2]
    with refusal(UserError, f"{path}.json", "canvas.width 256, not 320"):
        command("--img_width", "320")
    with refusal(UserError, "--threads many"):
        command("--threads", "many")
    with refusal(UserError, tmp_path / "none.onnx", "no such model"):
        command("--onnx_file", tmp_path / "none.onnx")
    about = sidecar.read(f"{path}.json")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with refusal(UserError, path, "bytes"):
        command()
    # of the right checksum, yet nothing that ONNX Runtime knows
    path.write_bytes(b"not a model")
    sidecar.write(f"{path}.json", about | {"files": {"model": sidecar.file_entry(path)}})
    with refusal(UserError, path, "ONNX Runtime can't load it"):
        command()
    sidecar.write(f"{path}.json", about | {"file_format": "MINDIR"})
    with refusal(UserError, f"{path}.json", "MINDIR"):
        command()
    Path(f"{path}.json").unlink()
    with refusal(UserError, f"{path}.json", "export.py"):
        command()


def with_metadata(path, **entries):
    """Gives a model other metadata, with its sidecar's blessing."""
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, entries)
    onnx.save(model, path)
    about = sidecar.read(f"{path}.json")
    sidecar.write(f"{path}.json", about | {"files": {"model": sidecar.file_entry(path)}})


def test_the_files_own_class_names(exported, command, refusal, monkeypatch):
    config, _, path = exported
    swapped = [config.coco_classes[i] for i in (0, 2, 1, 3, 4, 5)]
    with_metadata(path, classes=json.dumps(swapped))
    with refusal(UserError, path, "class 1 'square', not 'circle'", "coco_classes"):
        command()
    with_metadata(path, classes='["background", "thing"]')
    with refusal(UserError, path, "2 classes, not 6"):
        command()
    with_metadata(path, classes="circle, square")
    with refusal(UserError, path, "export it again"):
        command()
    # files of before have none
    with_metadata(path)

    class AcceptedError(Exception):
        pass

    def accept(_):
        raise AcceptedError

    monkeypatch.setattr(eval_onnx, "records_of", accept)
    with pytest.raises(AcceptedError):
        command()


def launch(*arguments, outputs):
    env = {**os.environ, "PYTHON": sys.executable, "TRAIN_OUTPUTS": str(outputs)}
    script = ["bash", str(ROOT / "scripts/run_eval_onnx.sh"), *map(str, arguments)]
    return subprocess.run(script, capture_output=True, text=True, timeout=300, check=False, env=env)


def test_launcher(exported, shapes_root, tmp_path):
    annotations, model = shapes_root / "annotations/instances_val2017.json", exported[2]
    arguments = [annotations, model, tmp_path / "model.yaml", shapes_root, tmp_path / "records"]
    done = launch(*arguments, outputs=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "out/model/eval_onnx.log").read_text()
    assert log.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all") == 2
    assert list((tmp_path / "records").iterdir())
    for changed, told in (
        ([], "usage"),
        (arguments + ["more"], "usage"),
        ([tmp_path / "none.json", *arguments[1:]], "ANNO_PATH"),
        ([annotations, tmp_path / "none.onnx", *arguments[2:]], "ONNX_MODEL"),
        ([annotations, model, "resnet_v9", *arguments[3:]], "BACKBONE"),
        ([*arguments[:3], tmp_path / "nowhere"], "COCO_ROOT"),
        ([*arguments[:4], model], "MINDRECORD_DIR"),
    ):
        done = launch(*changed, outputs=tmp_path / "other")
        assert done.returncode == 2
        # the usage names the backbones in a line of its own
        assert len(done.stderr.splitlines()) == (2 if told == "usage" else 1)
        assert told in done.stderr
    assert not (tmp_path / "other").exists()
    # what eval_onnx.py refuses, the launcher does
    done = launch(annotations, model, "resnet_v1_50", shapes_root, outputs=tmp_path / "other")
    assert done.returncode == 2
    assert "config" in done.stdout + done.stderr
