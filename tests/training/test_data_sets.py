"""Data sets of each format, from their files to AP."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from src.checkpoints.files import load_checkpoint, load_detector, save_checkpoint
from src.config import load_config
from src.data.formats import resolve_classes
from src.data.loader import TrainLoader
from src.data.mindrecord import ensure_mindrecord, read_index
from src.evaluation.coco import evaluate
from src.evaluation.inference import Evaluator
from src.models.build import build_detector, build_loss
from src.ops.device import set_device
from src.training.loop import step_inputs
from src.training.step import SamplerKeys, TrainStep
from src.training.update import Update, build_optimizer

ROOT = Path(__file__).parents[2]
SMALL = {
    "detector": "faster_rcnn",
    "img_width": 128,
    "img_height": 128,
    "batch_size": 2,
    "epoch_size": 1,
    "save_every_epochs": 1,
    "backbone.width_multiplier": 0.25,
    "train_cfg.rpn_proposal.max_per_img": 100,
    "test_cfg.rpn.max_per_img": 50,
    "test_cfg.rcnn.max_per_img": 20,
    "coco_classes": "auto",
}


def read_shapes(root, split):
    """Images of the shapes data set with objects, and their whole-pixel boxes x1 y1 x2 y2 by class name."""
    data = json.loads((root / f"annotations/instances_{split}2017.json").read_text())
    names = {c["id"]: c["name"] for c in data["categories"]}
    objects = {}
    for a in data["annotations"]:
        x, y, w, h = a["bbox"]
        if not a["iscrowd"]:
            box = [int(x), int(y), int(np.ceil(x + w)), int(np.ceil(y + h))]
            objects.setdefault(a["image_id"], []).append((names[a["category_id"]], box, a))
    return [(i, objects[i["id"]]) for i in data["images"] if i["id"] in objects], sorted(names.values())


def make_txt(root, shapes_root):
    for split in ("train", "val"):
        images, names = read_shapes(shapes_root, split)
        rows = []
        for image, objects in images:
            columns = [",".join(map(str, [*box, names.index(name) + 1])) for name, box, _ in objects]
            rows.append(" ".join([f"{split}2017/{image['file_name']}", *columns]))
        (root / f"{split}.txt").write_text("\n".join(rows))
    return {
        "dataset": "other",
        "image_dir": str(shapes_root),
        "anno_path": str(root / "train.txt"),
        "val_annotations": str(root / "val.txt"),
    }


def make_voc(root, shapes_root):
    """FaceMaskDetection's layout, with lists of the splits."""
    for folder in ("annotations", "images", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split in ("train", "val"):
        listed = []
        for image, objects in read_shapes(shapes_root, split)[0]:
            stem = f"{split}{image['id']}"
            listed.append(stem)
            picture = cv2.imread(str(shapes_root / f"{split}2017" / image["file_name"]))
            cv2.imwrite(str(root / f"images/{stem}.png"), picture)
            parts = []
            for name, (x1, y1, x2, y2), _ in objects:
                box = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
                parts.append(f"<object><name>{name}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>")
            size = f"<size><width>{image['width']}</width><height>{image['height']}</height><depth>3</depth></size>"
            text = f"<annotation><filename>{stem}.png</filename>{size}{''.join(parts)}</annotation>"
            (root / f"annotations/{stem}.xml").write_text(text)
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(listed))
    return {"dataset": "voc", "train_dataset": str(root), "val_dataset": str(root)}


def make_coco(root, shapes_root):
    """One annotation file a split, named as it pleases, with category ids of its own."""
    places = {}
    for split in ("train", "val"):
        images, names = read_shapes(shapes_root, split)
        ids = {name: 100 - 7 * i for i, name in enumerate(names)}
        annotations = [{**a, "category_id": ids[name]} for _, objects in images for name, _, a in objects]
        categories = [{"id": i, "name": n} for n, i in ids.items()]
        data = {"images": [i for i, _ in images], "annotations": annotations, "categories": categories}
        (root / f"my_{split}.json").write_text(json.dumps(data))
        shutil.copytree(shapes_root / f"{split}2017", root / f"my_{split}")
        places[f"{split}_dataset"] = str(root / f"my_{split}.json")
    return places


FORMATS = {"txt": make_txt, "voc": make_voc, "coco": make_coco}


@pytest.fixture(scope="module")
def configs(shapes_root, tmp_path_factory):
    """A config a format, its classes read from the data."""
    out = {}
    for name, make in FORMATS.items():
        root = tmp_path_factory.mktemp(name)
        places = {"train_outputs": str(root / "outputs"), "mindrecord_dir": str(root / "records")}
        values = SMALL | places | make(root, shapes_root)
        out[name] = resolve_classes(load_config(ROOT / "configs/shapes.yaml", values), training=True)
    return out


@pytest.fixture(scope="module")
def network(configs):
    """One detector and its training step, for all formats: they have the same shapes."""
    config = configs["txt"]
    set_device(config)
    detector = build_detector(config)
    loss = build_loss(config, detector)
    step = TrainStep(loss, Update(build_optimizer(config, loss, np.full(100, 1e-3, np.float32)), 1.0, 10.0))
    return detector, step


@pytest.mark.full
@pytest.mark.parametrize("name", FORMATS)
def test_trains_and_evaluates(configs, network, tmp_path, capfd, name):
    config, (detector, step) = configs[name], network
    loader, keys = TrainLoader(config, ensure_mindrecord(config, "train", training=True)), SamplerKeys(config)
    detector.set_train()
    for batch, _ in zip(loader.epoch(0), range(3)):
        losses = step(*step_inputs(batch, keys(0, batch["image_id"])))[0].asnumpy()
        assert np.isfinite(losses).all()
        assert losses[0] > 0
    summary = Evaluator(config, detector).run(tmp_path / "results.json")
    assert 0 <= summary.metrics["bbox"]["AP"] <= 1
    assert set(summary.per_class["bbox"]) == set(config.coco_classes[1:])
    assert "bbox" in capfd.readouterr().out


@pytest.mark.parametrize("name", FORMATS)
def test_perfect_detections_have_ap_1(configs, shapes_root, name):
    """What the format's own files say of the validation images, under its ids, is found by its evaluation."""
    config = configs[name]
    index = read_index(ensure_mindrecord(config, "val", training=False))
    truth = json.loads(Path(index["annotations"]).read_text())
    ids = {Path(i["file_name"]).stem: i["id"] for i in truth["images"]}
    categories = {c: int(index["category_ids"][str(i)]) for i, c in enumerate(config.coco_classes) if i}
    results = []
    for image, objects in read_shapes(shapes_root, "val")[0]:
        stem = f"val{image['id']}" if name == "voc" else Path(image["file_name"]).stem
        for label, box, a in objects:
            xywh = a["bbox"] if name == "coco" else [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            class_name = f"class_{configs['voc'].coco_classes[1:].index(label) + 1}" if name == "txt" else label
            common = {"image_id": ids[stem], "bbox": xywh, "score": 0.9}
            results.append({**common, "category_id": categories[class_name]})
    assert evaluate(index["annotations"], results, ("bbox",)).metrics["bbox"]["AP"] == pytest.approx(1.0)


def test_classes_by_category_id_and_by_name(configs):
    names = ["circle", "cross", "square", "star", "triangle"]
    assert configs["voc"].coco_classes == ["background", *names]
    # the file's ids fall where the alphabet rises
    assert configs["coco"].coco_classes == ["background", *names[::-1]]
    assert configs["txt"].coco_classes == ["background", *(f"class_{i}" for i in range(1, 6))]


def test_transfer_drops_the_layers_of_other_classes(configs, network, tmp_path):
    """Equally many classes aren't the same ones: class logits and box deltas start anew, all else is loaded."""
    save_checkpoint(network[0], tmp_path / "five.ckpt")
    saved = load_checkpoint(tmp_path / "five.ckpt")
    for classes in (6, 4):
        config = dataclasses.replace(
            configs["txt"], num_classes=classes, coco_classes=["background", *"abcde"][:classes]
        )
        detector = build_detector(config)
        left = load_detector(detector, tmp_path / "five.ckpt", finetune=True)
        assert sorted(left) == [f"bbox_head.{n}.{p}" for n in ("cls", "reg") for p in ("bias", "weight")]
        for p in detector.get_parameters():
            if p.name not in left:
                np.testing.assert_array_equal(p.asnumpy(), saved[p.name])
            elif classes == 6 and p.name.endswith("weight"):
                assert not np.array_equal(p.asnumpy(), saved[p.name])


@pytest.mark.full
def test_from_the_command_line(configs, tmp_path):
    """train.py finds the classes in the XML files; eval.py finds them in the run of the checkpoint."""
    voc = configs["voc"]
    common = {**SMALL, "dataset": "voc", "train_outputs": str(tmp_path / "out"), "mindrecord_dir": voc.mindrecord_dir}
    words = [w for k, v in common.items() for w in (f"--{k}", str(v))]

    def run(script, *more):
        command = [sys.executable, script, "--config_path", "configs/shapes.yaml", *words, *more]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("train.py", "--train_dataset", voc.train_dataset)
    checkpoint = next((tmp_path / "out/shapes/checkpoints").glob("*.ckpt"))
    assert load_config(tmp_path / "out/shapes/config.yaml").coco_classes == voc.coco_classes
    out = run("eval.py", "--val_dataset", voc.val_dataset, "--checkpoint_path", str(checkpoint))
    assert all(name in out for name in voc.coco_classes[1:])
