"""The C++ program against the detector in Python, and on whatever a user may hand it."""

import dataclasses
import io
import json
import os
import resource
import shutil
import struct
import subprocess

import cv2
import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from PIL import Image

from src.data.images import turn
from src.evaluation.cpp_results import read_result, read_summary
from src.export import sidecar
from src.export.mindir_v1 import rewrite_as_version_1
from src.export.split import export_split
from src.models.build import build_detector
from src.models.roi_extractor import level_sides
from src.ops.library import runnable_marches
from src.runtime.newer import zip_equal
from tests.ascend310_infer.conftest import ROOT, Exported, build_program, random_detector
from tests.export.conftest import spread

LARGEST = 96 * 1024  # bytes of an image's result


def share(pairs):
    """Matched detections over all of them."""
    matched, total = map(sum, zip_equal(*pairs))
    assert total > 0
    return matched / total


class StandIn(nn.Cell):
    """Inputs and outputs of a whole graph, from operators that Lite's CPU has: two images, three rows of detections.

    An image's boxes are multiples, `times` over, of the mean of its four sizes; its second row isn't valid.
    """

    def __init__(self, times=1):
        super().__init__()
        self.mean, self.image_mean = ops.ReduceMean(keep_dims=True), ops.ReduceMean(keep_dims=True)
        self.boxes = Parameter(np.array([[[1, 2, 3, 4], [0, 0, 0, 0], [0.5, 0.25, 2, 1]]], np.float32) * times, "boxes")
        self.scores = Parameter(np.array([[0.9, 0.0, 0.3]], np.float32), "scores")
        self.labels = Parameter(np.array([[3, 0, 1], [2, 0, 5]], np.int32), "labels")
        # scalars become operators that Lite 2.0 doesn't know
        self.zero = Parameter(np.zeros(1, np.float32), "zero")
        self.least = Parameter(np.full(1, 0.1, np.float32), "least")
        self.none = Parameter(np.zeros((2, 3), np.int32), "none")
        self.masks = Parameter(np.linspace(0, 1, 3 * 28 * 28, dtype=np.float32).reshape(1, 3, 28, 28), "masks")

    def construct(self, image, image_shape):
        size = self.mean(image_shape, 1)
        still = self.image_mean(image, (1, 2, 3)) * self.zero
        boxes = self.boxes * size.reshape(2, 1, 1)
        scores = self.scores + still.reshape(2, 1)
        return boxes, scores, self.labels + self.none, scores > self.least, self.masks + still


def test_the_whole_form(exported, infer, pictures, tmp_path):
    path = tmp_path / "whole.mindir"
    config = dataclasses.replace(exported.config, test_batch_size=2)
    config.test_cfg = dataclasses.replace(
        config.test_cfg, rcnn=dataclasses.replace(config.test_cfg.rcnn, max_per_img=3)
    )
    image = np.zeros((2, 3, config.img_height, config.img_width), np.float32)
    net = StandIn()
    ms.export(net, Tensor(image), Tensor(np.ones((2, 4), np.float32)), file_name=str(path), file_format="MINDIR")
    path.chmod(0o644)
    rewrite_as_version_1(path)
    files = {"model": sidecar.file_entry(path)}
    sidecar.write(tmp_path / "whole.mindir.json", sidecar.describe(config, "whole", "MINDIR", files, 2))

    # an odd number of images: the last batch has room left
    (tmp_path / "images").mkdir()
    shapes = [(60, 100), (100, 60), (128, 192)]
    for i, (height, width) in enumerate(shapes):
        cv2.imwrite(str(tmp_path / f"images/{i}.png"), np.full((height, width, 3), 90, np.uint8))
    run = infer("--model", path, "--input", tmp_path / "images", "--output", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    masks = np.linspace(0, 1, 3 * 28 * 28).reshape(3, 28, 28)[[0, 2]]
    for i, (height, width) in enumerate(shapes):
        result = read_result(tmp_path / f"out/{i}.png.det")
        scale = min(config.img_height / height, config.img_width / width)
        size = (round(height * scale) + round(width * scale) + height + width) / 4
        # float32 of numbers up to 1000
        np.testing.assert_allclose(result.boxes, size * net.boxes.asnumpy()[0, [0, 2]], rtol=1e-5)
        np.testing.assert_allclose(result.scores, [0.9, 0.3], rtol=1e-6)
        assert result.labels.tolist() == [[3, 1], [2, 5], [3, 1]][i]
        assert np.abs(result.masks / 255 - masks).max() <= 0.5 / 255 + 1e-6


@pytest.fixture
def whole_pair(exported, tmp_path):
    """A stand-in for each orientation, of 96 x 160: paths of the lying and the upright one, whose boxes are doubled."""
    config = dataclasses.replace(exported.config, test_batch_size=2, img_height=96, img_width=160, resize="short_side")
    config.short_side, config.long_side = 90, 150
    config.test_cfg = dataclasses.replace(
        config.test_cfg, rcnn=dataclasses.replace(config.test_cfg.rcnn, max_per_img=3)
    )
    paths = [tmp_path / "model/whole.mindir", tmp_path / "model/whole-upright.mindir"]
    paths[0].parent.mkdir()
    for path, size, times in zip_equal(paths, ((96, 160), (160, 96)), (1, 2)):
        inputs = (Tensor(np.zeros((2, 3, *size), np.float32)), Tensor(np.ones((2, 4), np.float32)))
        ms.export(StandIn(times), *inputs, file_name=str(path), file_format="MINDIR")
        path.chmod(0o644)
        rewrite_as_version_1(path)
    entries = [sidecar.file_entry(path) for path in paths]
    for i, path in enumerate(paths):
        files, pair = {"model": entries[i]}, entries[1 - i]
        about = sidecar.describe(config, "whole", "MINDIR", files, 2, upright=i == 1, pair=pair)
        sidecar.write(f"{path}.json", about)
    return paths


def test_the_whole_form_of_both_orientations(whole_pair, infer, tmp_path):
    (tmp_path / "images").mkdir()
    # file, (height, width) shown by EXIF, the part of the canvas that it takes with a short side of 90, at most 150
    shapes = {
        "a.png": ((60, 100), (90, 150)),
        "b.png": ((100, 60), (150, 90)),
        "c.png": ((60, 240), (38, 150)),
        "d.png": ((80, 80), (90, 90)),
    }
    for name, ((height, width), _) in shapes.items():
        cv2.imwrite(str(tmp_path / "images" / name), np.full((height, width, 3), 90, np.uint8))
    store_turned(tmp_path / "images/e.png", np.full((100, 60, 3), 90, np.uint8), 6)
    shapes["e.png"] = shapes["b.png"]
    for model in whole_pair:
        out = tmp_path / model.stem
        words = ("--model", model, "--input", tmp_path / "images", "--exif", "upright", "--output")
        run = infer(*words, out)
        assert run.returncode == 0, run.stderr
        assert read_summary(out)["images"] == sorted(shapes)
        for name, (size, fitted) in shapes.items():
            result = read_result(out / f"{name}.det")
            assert (result.height, result.width) == size
            times = 2 if size[0] > size[1] else 1
            mean = (sum(size) + sum(fitted)) / 4 * times
            # float32 of numbers up to 1000
            np.testing.assert_allclose(result.boxes, mean * np.array([[1, 2, 3, 4], [0.5, 0.25, 2, 1]]), rtol=1e-5)
    refused(infer(*words, out, "--width", 128), "96", "160", "--width")
    refused(infer(*words, out, "--device_type", "Ascend", "--aipp_config", tmp_path / "aipp.cfg"), "aipp.cfg")
    (tmp_path / "aipp.cfg").write_text("aipp_op {}")
    refused(infer(*words, out, "--device_type", "Ascend", "--aipp_config", tmp_path / "aipp.cfg"), "aipp-upright.cfg")
    # of the other orientation, found wrong when the first upright picture comes
    about = sidecar.read(f"{whole_pair[0]}.json")
    whole_pair[1].write_bytes(b"not a MINDIR" * 100)
    words = ("--model", whole_pair[0], *words[2:])
    refused(infer(*words, out), "whole-upright.mindir", "1200 bytes")
    sidecar.write(f"{whole_pair[0]}.json", about | {"pair": sidecar.file_entry(whole_pair[1])})
    refused(infer(*words, out), "whole-upright.mindir", "can't build")
    whole_pair[1].unlink()
    refused(infer(*words, out), "whole-upright.mindir", "can't read")
    del about["pair"]
    sidecar.write(f"{whole_pair[0]}.json", about)
    refused(infer(*words, out), "whole.mindir.json", "other orientation")


@pytest.fixture(scope="session")
def turning(tmp_path_factory, program):
    """A small model for pictures of both orientations, resized as maskrcnn-benchmark does; not to be changed."""
    config, detector = random_detector(
        **{"backbone.width_multiplier": 0.25},
        **{"img_width": 160, "img_height": 96, "resize": "short_side", "short_side": 90, "long_side": 150},
        **{"resize_rounding": "short_first", "resize_filter": "antialias", "rpn.anchor_generator.grid_strides": True},
    )
    path = export_split(config, detector, tmp_path_factory.mktemp("turning") / "net", program=program)
    return Exported(config, detector, path)


@pytest.fixture(scope="session")
def mixed(tmp_path_factory, pictures):
    """A folder of pictures, lying, upright, square, large, and turned by EXIF."""
    folder = tmp_path_factory.mktemp("mixed")
    whole = [np.asarray(Image.open(p).convert("RGB")) for p in sorted((pictures / "val2017").iterdir())]
    upright = np.ascontiguousarray(whole[1].transpose(1, 0, 2))
    large = cv2.resize(whole[2], (401, 977), interpolation=cv2.INTER_CUBIC)
    shown = {"a.png": whole[0], "b.png": upright, "c.png": whole[3][:100, :100], "d.png": large, "e.png": whole[4]}
    for name, picture in shown.items():
        Image.fromarray(picture).save(folder / name)
    store_turned(folder / "f.png", upright[:, ::-1], 6)
    return folder


@pytest.mark.full
def test_pictures_of_both_orientations(turning, mixed, infer, agree, tmp_path):
    folder = turning.sidecar.parent
    assert sidecar.read(turning.sidecar)["reference"]["compared"] is True
    for name in ("net_features.mindir", "net-upright_features.mindir", "net-upright.json"):
        assert (folder / name).is_file()
    words = ("--input", mixed, "--exif", "upright", "--output")
    run = infer("--model", turning.sidecar, "--self_check", *words, tmp_path / "out")
    assert run.returncode == 0, run.stderr
    # each graph on its own canvas, and both on a small one
    assert [run.stdout.count(f"(1, 3, {s})") for s in ("96, 160", "160, 96", "128, 128")] == [1, 1, 2]
    names = sorted(p.name for p in mixed.iterdir())
    assert read_summary(tmp_path / "out")["images"] == names
    config = dataclasses.replace(turning.config, exif="upright")
    pairs = [agree(tmp_path / f"out/{n}.det", mixed / n, config, turning.detector) for n in names]
    assert share(pairs) >= 0.99
    # from the other sidecar, and with other pictures beside them in a batch, the same to the bit
    for model, batch in (("net-upright.json", 1), ("net-upright.mindir", 4)):
        other = tmp_path / f"other{batch}"
        run = infer("--model", folder / model, "--batch_size", batch, *words, other)
        assert run.returncode == 0, run.stderr
        for n in names:
            assert (other / f"{n}.det").read_bytes() == (tmp_path / f"out/{n}.det").read_bytes()


@pytest.mark.full
def test_another_canvas_for_both_orientations(turning, mixed, infer, agree, tmp_path):
    config = dataclasses.replace(turning.config, exif="upright", img_width=192, img_height=128)
    detector = build_detector(config).set_train(False)
    ms.load_param_into_net(detector, {p.name: p for p in turning.detector.get_parameters()})
    words = ("--input", mixed, "--exif", "upright", "--output", tmp_path / "out", "--width", 192, "--height", 128)
    run = infer("--model", turning.sidecar.with_name("net-upright.json"), *words)
    assert run.returncode == 0, run.stderr
    names = sorted(p.name for p in mixed.iterdir())
    assert share([agree(tmp_path / f"out/{n}.det", mixed / n, config, detector) for n in names]) >= 0.99
    refused(infer("--model", turning.sidecar, *words[:-3], 96, "--height", 128), "96 x 128 stands")


@pytest.mark.full
def test_the_other_orientations_graph_is_missing_or_another(turning, mixed, infer, tmp_path):
    shutil.copytree(turning.sidecar.parent, tmp_path / "model")
    path = tmp_path / "model/net.json"
    words = ("--model", path, "--input", mixed, "--output", tmp_path / "out")
    flip(path, "net-upright_features.mindir")
    refused(infer(*words), "net-upright_features.mindir", "checksum")
    path.with_name("net-upright_features.mindir").unlink()
    refused(infer(*words), "net-upright_features.mindir")
    change(path, pair__name="net_box0.mindir")
    refused(infer(*words), "net_box0.mindir")
    change(path, resize_filter="bicubic")
    refused(infer(*words), "resize_filter", "bicubic")


def odd_images(folder, good):
    """Images of every kind beside ones that can't be read; the names of both."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (90, 140, 3)).astype(np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)

    def pillow(name, picture, mode=None, **options):
        Image.fromarray(picture, mode).save(folder / name, **options)

    turned = Image.Exif()
    turned[0x0112] = 6
    (folder / "a photograph.jpg").write_bytes(good)
    pillow('gr"ey,\n\u00e4.jpg', smooth[..., 0])
    (folder / os.fsdecode(b"not UTF-8 \xff.jpg")).write_bytes(good)
    pillow("cmyk.jpeg", np.dstack([smooth, smooth[..., :1]]), "CMYK")
    pillow("turned.JPG", smooth, format="JPEG", exif=turned.tobytes())
    pillow("one pixel.png", smooth[:1, :1])
    pillow("transparent.png", np.dstack([smooth, smooth[..., :1]]))
    cv2.imwrite(str(folder / "sixteen.png"), smooth.astype(np.uint16) * 257)
    readable = sorted(p.name for p in folder.iterdir())

    whole = io.BytesIO()
    Image.fromarray(smooth).save(whole, "JPEG")
    (folder / "truncated.jpg").write_bytes(whole.getvalue()[:-300])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    (folder / "notes.txt").write_text("no image, and not taken for one")
    (folder / ".hidden.jpg").write_text("")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.png")
    return readable, ["empty.png", "pipe.png", "text.jpg", "truncated.jpg"]


@pytest.mark.parametrize("runtime", ["own", "lite"])
def test_the_export_was_compared(runtime, exported, infer):
    assert sidecar.read(exported.sidecar)["reference"]["compared"] is True
    run = infer("--model", exported.sidecar, "--self_check", "--runtime", runtime)
    assert run.returncode == 0, run.stderr
    # on the canvas and off it, with many RoIs and few
    for part in ("(1, 3, 128, 192)", "(1, 3, 128, 128)", "(200, 64, 7, 7)", "(3, 64, 7, 7)", "(50, 64, 14, 14)"):
        assert part in run.stdout


@pytest.mark.parametrize("runtime", ["own", "lite"])
def test_detections_are_those_of_python(runtime, exported, infer, pictures, agree, tmp_path):
    images = sorted((pictures / "val2017").iterdir())
    words = ("--input", images[0].parent, "--output", tmp_path / "out", "--runtime", runtime)
    run = infer("--model", exported.sidecar, *words)
    assert run.returncode == 0, run.stderr
    assert share([agree(tmp_path / "out" / f"{p.name}.det", p) for p in images]) >= 0.99
    summary = read_summary(tmp_path / "out")
    assert summary["images"] == [p.name for p in images]
    assert summary["classes"] == exported.config.coco_classes
    assert {"reading", "features", "box_head", "mask_head", "batch"} <= summary["median_ms"].keys()
    assert "images/s" in run.stdout
    assert max(p.stat().st_size for p in (tmp_path / "out").glob("*.det")) <= LARGEST


def test_levels_of_rois_begin_where_the_sidecar_says(spoilt, infer, pictures, tmp_path):
    """By torchvision's rule where it says nothing, as older exports."""
    image = min((pictures / "val2017").iterdir())

    def detected(sides):
        change(spoilt, **({"roi__level_sides": sides} if sides else {}))
        run = infer("--model", spoilt, "--input", image.parent, "--output", tmp_path / f"{sides}")
        assert run.returncode == 0, run.stderr
        return (tmp_path / f"{sides}" / f"{image.name}.det").read_bytes()

    usual = detected(None)
    assert detected(level_sides("torchvision", 56.0, 4)) == usual
    assert detected([1.0, 2.0, 4.0]) != usual


def test_every_kind_of_image(exported, infer, pictures, agree, tmp_path):
    good = min((pictures / "val2017").iterdir()).read_bytes()
    readable, unreadable = odd_images(tmp_path / "images", good)
    run = infer("--model", exported.sidecar, "--input", tmp_path / "images", "--output", tmp_path / "out")
    assert run.returncode == 3
    last = run.stderr.strip().splitlines()[-1]
    assert last == f"error: 4 of {len(readable) + 4} images unreadable: {', '.join(unreadable)}"
    assert "notes.txt" in run.stdout
    summary = read_summary(tmp_path / "out")
    assert summary["images"] == readable
    assert [u["name"] for u in summary["unreadable"]] == unreadable
    assert summary["not_images"] == ["notes.txt"]
    results = sorted(p.name.removesuffix(".det") for p in (tmp_path / "out").glob("*.det"))
    assert results == readable
    assert share([agree(tmp_path / "out" / f"{n}.det", tmp_path / "images" / n) for n in readable]) >= 0.99


def store_turned(path, picture, orientation):
    """Writes a PNG that viewers show as `picture` (H, W, 3), stored otherwise."""
    tag = Image.Exif()
    tag[0x0112] = orientation
    back = {1: 1, 3: 3, 6: 8, 8: 6}[orientation]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(turn(picture, back)).save(path, exif=tag)


def coco_file(path, names_and_sizes):
    """A COCO file of images by name and (height, width), with much else that no program needs."""
    images = [
        {"id": i, "file_name": n, "height": h, "width": w} for i, (n, (h, w)) in enumerate(names_and_sizes.items())
    ]
    polygon = {
        "id": 1,
        "image_id": 0,
        "segmentation": [[1.5, -2e3, 0]],
        "area": float("nan"),
        "attributes": {"a": None},
    }
    path.write_text(json.dumps({"info": {}, "annotations": [polygon] * 3, "images": images}), encoding="utf-8-sig")
    return path


@pytest.fixture
def turned(pictures, tmp_path):
    """Pictures of one name in three folders, and others; a COCO file with the sizes of what a viewer shows."""
    whole = [np.asarray(Image.open(p).convert("RGB")) for p in sorted((pictures / "val2017").iterdir())[:4]]
    places = dict(zip_equal(["a/x.PNG", "b/x.PNG", "b/c/x.PNG", os.fsdecode(b"\xff.png")], whole))
    for (name, picture), orientation in zip_equal(places.items(), (6, 1, 8, 6)):
        store_turned(tmp_path / "turned" / name, picture, orientation)
        store_turned(tmp_path / "upright" / name, picture, 1)
    sizes = {n.replace("/", "\\").replace("PNG", "png"): p.shape[:2] for n, p in places.items()}
    return tmp_path, list(places), coco_file(tmp_path / "instances.json", sizes)


def test_pictures_annotated_upright_are_turned(exported, infer, turned):
    folder, names, annotations = turned
    words = ("--model", exported.sidecar, "--recursive")
    runs = {
        "wanted": infer(*words, "--input", folder / "upright", "--output", folder / "wanted"),
        "auto": infer(*words, "--input", folder / "turned", "--output", folder / "auto", "--annotations", annotations),
        "option": infer(*words, "--input", folder / "turned", "--output", folder / "option", "--exif", "upright"),
    }
    for name, run in runs.items():
        assert run.returncode == 0, run.stderr
        assert read_summary(folder / name)["images"] == sorted(names, key=os.fsencode)
        for image in names:
            # two pictures of one name keep apart, and each is taken as its viewer shows it, to the bit
            wanted = (folder / "wanted" / f"{image}.det").read_bytes()
            assert (folder / name / f"{image}.det").read_bytes() == wanted
    assert len({(folder / "wanted" / f"{n}.det").read_bytes() for n in names}) == 4
    plain = infer(*words, "--input", folder / "turned", "--output", folder / "plain")
    assert plain.returncode == 0, plain.stderr
    upright = read_result(folder / "wanted/a/x.PNG.det")
    stored = read_result(folder / "plain/a/x.PNG.det")
    assert (stored.height, stored.width) == (upright.width, upright.height)


def test_annotations_of_another_size(exported, infer, turned):
    folder, _, annotations = turned
    words = ("--model", exported.sidecar, "--input", folder / "turned", "--output", folder / "out", "--recursive")
    run = infer(*words, "--annotations", annotations, "--exif", "stored")
    assert run.returncode == 3
    # x.PNG of b has no orientation
    assert "error: 3 of 4 images unreadable: a/x.PNG, b/c/x.PNG, " in run.stderr
    assert "but annotated as" in run.stderr and "use --exif auto" in run.stderr
    coco_file(annotations, {"other.png": (5, 5)})
    run = infer(*words, "--annotations", annotations)
    assert run.returncode == 0
    assert f"4 of 4 images have no size in {annotations}" in run.stderr
    # two of one name, neither nearer to a/x.PNG
    coco_file(annotations, {"p/x.PNG": (5, 5), "q/x.PNG": (5, 6)})
    refused(infer(*words, "--annotations", annotations), "x.PNG", annotations, "equally well")


def test_folders_in_the_folder_are_told_of(exported, infer, turned):
    folder, names, _ = turned
    (folder / "turned" / names[-1]).unlink()
    words = ("--model", exported.sidecar, "--input", folder / "turned", "--output", folder / "none")
    refused(
        infer(*words), folder / "turned", "no .jpg, .jpeg or .png image itself, but folders (a, ...)", "--recursive"
    )
    (folder / "some").mkdir()
    shutil.copytree(folder / "turned/a", folder / "some/a")
    shutil.copy(folder / "turned/a/x.PNG", folder / "some")
    run = infer("--model", exported.sidecar, "--input", folder / "some", "--output", folder / "out")
    assert run.returncode == 0, run.stderr
    assert "1 folders passed over, whose images --recursive takes: a\n" in run.stdout


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"images": 3}', b'{"images": [3]}', b"\xff\xfe{", b'{"images": [{}]}']
)
def test_other_files_are_no_annotations(content, exported, infer, pictures, tmp_path):
    path = tmp_path / "instances.json"
    path.write_bytes(content)
    words = ("--model", exported.sidecar, "--input", pictures / "val2017", "--output", tmp_path / "out")
    run = infer(*words, "--annotations", path)
    refused(run, path)
    assert "export the model" not in run.stderr
    refused(infer(*words, "--annotations", tmp_path / "none.json"), "none.json", "can't read")


@pytest.mark.parametrize("batch", [2, 4, 9])
def test_batches_change_nothing(batch, exported, infer, pictures, tmp_path):
    results = []
    # the last batch is smaller. On this canvas Lite 2.0's numbers for batches of 4 were wrong on 2 threads
    canvas = ("--width", 256, "--height", 192)
    for size, threads in ((1, 2), (batch, 2), (batch, 1)):
        out = tmp_path / f"{size}_{threads}"
        words = ("--model", exported.sidecar, "--input", pictures / "val2017", "--output", out)
        run = infer(*words, *canvas, "--batch_size", size, "--threads", threads)
        assert run.returncode == 0, run.stderr
        results.append({p.name: read_result(p) for p in sorted(out.glob("*.det"))})
    assert len(results[0]) == 6
    for other in results[1:]:
        for name, wanted in results[0].items():
            np.testing.assert_array_equal(other[name].scores, wanted.scores)
            np.testing.assert_array_equal(other[name].boxes, wanted.boxes)


def test_another_canvas(exported, infer, pictures, agree, tmp_path):
    images = sorted((pictures / "val2017").iterdir())[:3]
    config, detector = random_detector(img_width=256, img_height=192, keep_ratio=False)
    for theirs, ours in zip_equal(detector.get_parameters(), exported.detector.get_parameters()):
        theirs.set_data(ours)
    words = ("--model", exported.sidecar, "--input", images[0].parent, "--output", tmp_path / "out")
    run = infer(*words, "--width", 256, "--height", 192, "--keep_ratio", "false")
    assert run.returncode == 0, run.stderr
    assert share([agree(tmp_path / "out" / f"{p.name}.det", p, config, detector) for p in images]) >= 0.99


OTHERS = {
    "Faster R-CNN": {"detector": "faster_rcnn"},
    "a mask head a stage": {"detector": "cascade_mask_rcnn", "cascade.average_masks": "probabilities"},
    "one mask head": {"detector": "cascade_mask_rcnn", "cascade.mask_head_per_stage": False}
    | {"cascade.average_scores": "probabilities", "cascade.resample": False, "bbox_head.reg_class_agnostic": True},
    "a small mask head, many detections": {"mask_head.num_convs": 0, "mask_head.conv_out_channels": 24}
    | {"mask_roi.roi_layer.out_size": 9, "train_cfg.rcnn.mask_size": 18, "test_cfg.rcnn.max_per_img": 150},
}

NORMS = {"neck.fpn.norm": "batch", "rpn.num_convs": 2, "bbox_head.num_convs": 2, "bbox_head.conv_out_channels": 64}
NORMS |= {"bbox_head.num_fcs": 1, "bbox_head.norm": "batch", "mask_head.norm": "batch"}
NORMED = {"batch norms": NORMS}
for kind in ("group", "layer"):
    NORMED[f"{kind} norms"] = NORMS | {f"{part}.norm": kind for part in ("neck.fpn", "bbox_head", "mask_head")}


@pytest.mark.full
@pytest.mark.parametrize("kind", [*OTHERS, *NORMED])
def test_other_detectors(kind, program, infer, pictures, agree, tmp_path):
    config, detector = random_detector(**(OTHERS | NORMED)[kind])
    if kind in NORMED:
        # norms that do something
        detector = spread(detector)
    model = export_split(config, detector, tmp_path / "model/other", program=program)
    images = sorted((pictures / "val2017").iterdir())[:3]
    run = infer("--model", model, "--input", images[0].parent, "--output", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert share([agree(tmp_path / "out" / f"{p.name}.det", p, config, detector) for p in images]) >= 0.99


CONVENTIONS = {
    "Detectron2": {"rpn.rank_by": "logits", "test_cfg.rpn.max_per_img": 8},
    "mmdetection": {"rpn.rank_by": "probabilities"}
    | {f"{part}.bbox_coder.delta_clamp": "both" for part in ("rpn", "bbox_head")},
    # the last level's anchors lie 53 pixels apart and not 64
    "torchvision": {"rpn.anchor_generator.grid_strides": True, "img_height": 160, "img_width": 160},
}


def loud_detector(**overrides):
    """Logits beyond 17 on several levels, anchors that shrink to nothing, and every proposal among the detections."""
    all_of_few = {"test_cfg.rpn.nms_pre": 20, "test_cfg.rcnn.iou_threshold": 0.99, "test_cfg.rcnn.max_per_img": 500}
    config, detector = random_detector(**{"detector": "faster_rcnn"} | all_of_few | overrides)
    for cell, size in ((detector.rpn.head.cls, 3e4), (detector.rpn.head.reg, 2e3), (detector.neck.fpn_convs[0], 0.5)):
        cell.weight.set_data(Tensor(cell.weight.asnumpy() * np.float32(size)))
    bias = np.zeros((3, 4), np.float32)
    bias[1, 2] = -6.0
    detector.rpn.head.reg.bias.set_data(Tensor(bias.ravel()))
    return config, detector


@pytest.mark.full
@pytest.mark.parametrize("project", CONVENTIONS)
def test_what_other_projects_do_otherwise(project, program, infer, pictures, agree, tmp_path):
    config, detector = loud_detector(**CONVENTIONS[project])
    model = export_split(config, detector, tmp_path / "model/other", program=program)
    images = sorted((pictures / "val2017").iterdir())[:3]

    def detected(out):
        run = infer("--model", model, "--input", images[0].parent, "--output", out)
        assert run.returncode == 0, run.stderr
        return share([agree(out / f"{p.name}.det", p, config, detector) for p in images])

    assert detected(tmp_path / "out") >= 0.99
    # and it matters: as an older export, which didn't say so
    content = json.loads(model.read_text()) | {"version": 1}
    del content["checksum"]
    for part, key in (("rpn", "rank_by"), ("rpn", "delta_clamp"), ("rpn", "grid_strides"), ("rcnn", "delta_clamp")):
        del content[part][key]
    model.write_text(json.dumps(content))
    assert detected(tmp_path / "older") < 0.97


def test_suppression_across_classes(spoilt, infer, pictures, tmp_path):
    image = sorted((pictures / "val2017").iterdir())[0]

    def overlaps():
        run = infer("--model", spoilt, "--input", image.parent, "--output", tmp_path / "out")
        assert run.returncode == 0, run.stderr
        boxes = read_result(tmp_path / f"out/{image.name}.det").boxes.astype(float)
        size = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        shared, area = np.maximum(size, 0).prod(-1), (boxes[:, 2:] - boxes[:, :2]).prod(-1)
        iou = shared / (area[:, None] + area[None] - shared)
        return int((iou > 0.51).sum()) - len(boxes)

    assert overlaps() > 0
    content = json.loads(spoilt.read_text())
    content["rcnn"]["agnostic_nms"] = True
    spoilt.write_text(sidecar.signed(content))
    assert overlaps() == 0


RESNEXT = {"backbone.type": "resnext", "backbone.depth": 50, "backbone.groups": 32, "backbone.base_width": 4}
RESNEXT |= {"backbone.width_multiplier": 1.0}
ZOO = {"backbone.same_padding": True, "backbone.relu6": True, "neck.fpn.upsample": "bilinear"}


LACKING = {"grouped convolutions": RESNEXT, "model zoo": ZOO}


@pytest.mark.full
@pytest.mark.parametrize("kind", LACKING)
def test_what_lite_lacks_or_has_wrong(kind, program, tmp_path):
    # compared with Python on the canvas and on another one, or nothing is written
    model = export_split(*random_detector(**LACKING[kind]), tmp_path / "net", program=program)
    assert sidecar.read(model)["reference"]["compared"] is True


@pytest.mark.full
@pytest.mark.parametrize("march", runnable_marches()[1:])
def test_the_program_for_another_instruction_set(march, exported, infer, pictures, agree, tmp_path):
    images = sorted((pictures / "val2017").iterdir())
    words = ("--model", exported.sidecar, "--input", images[0].parent, "--output", tmp_path / "out", "--self_check")
    run = infer(*words, executable=build_program("--march", march))
    assert run.returncode == 0, run.stderr
    assert share([agree(tmp_path / "out" / f"{p.name}.det", p) for p in images]) >= 0.99


@pytest.mark.full
def test_the_program_without_lite(exported, infer, pictures, agree, tmp_path):
    program = build_program("--no-lite", str(tmp_path / "build"))
    assert b"mindspore" not in subprocess.run(["ldd", program], capture_output=True, check=True).stdout
    images = sorted((pictures / "val2017").iterdir())
    words = ("--model", exported.sidecar, "--input", images[0].parent, "--output", tmp_path / "out", "--self_check")
    run = infer(*words, executable=program)
    assert run.returncode == 0, run.stderr
    assert share([agree(tmp_path / "out" / f"{p.name}.det", p) for p in images]) >= 0.99
    for more in (("--runtime", "lite"), ("--device_type", "Ascend")):
        refused(infer(*words, *more, executable=program), more[0], "--fetch")


@pytest.mark.full
def test_under_the_sanitizers(exported, turning, mixed, infer, pictures, tmp_path):
    # the runtime keeps what it has until the process ends
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    good = min((pictures / "val2017").iterdir()).read_bytes()
    readable, _ = odd_images(tmp_path / "images", good)
    coco_file(tmp_path / "instances.json", {"x/turned.jpg": (140, 90), "x\\one pixel.png": (1, 1)})
    words = ("--model", exported.sidecar, "--input", tmp_path / "images", "--output", tmp_path / "out", "--self_check")
    words += ("--annotations", tmp_path / "instances.json", "--recursive")
    run = infer(*words, "--batch_size", 3, executable=build_program("--sanitize"), env=environment)
    assert run.returncode == 3, run.stderr
    assert "Sanitizer" not in run.stderr and "runtime error" not in run.stderr
    assert read_summary(tmp_path / "out")["images"] == readable
    words = ("--model", turning.sidecar, "--input", mixed, "--output", tmp_path / "mixed", "--exif", "upright")
    run = infer(*words, "--batch_size", 2, "--self_check", executable=build_program("--sanitize"), env=environment)
    assert run.returncode == 0, run.stderr
    assert "Sanitizer" not in run.stderr and "runtime error" not in run.stderr


def refused(run, *parts):
    """Status 2 and one line that holds every one of `parts`."""
    assert run.returncode == 2, run.stdout + run.stderr
    lines = run.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), run.stderr
    for part in parts:
        assert str(part) in lines[0]


def change(path, **values):
    """Writes keys of the sidecar anew, `a__b` for b in a."""
    content = json.loads(path.read_text())
    for name, value in values.items():
        *outer, last = name.split("__")
        place = content
        for key in outer:
            place = place[key]
        place[last] = value
    path.write_text(sidecar.signed(content))


def sign(path):
    """Makes the sidecar's checksums those of the files as they are."""
    content = json.loads(path.read_text())
    files = content["files"]
    heads = [*files["box"], *files["mask"], *files["mask_weights"]]
    for entry in [files["features"], *heads, content["reference"]["file"]]:
        entry.update(sidecar.file_entry(path.with_name(entry["name"])))
    path.write_text(sidecar.signed(content))


def cut(path, name="shapes_features.mindir"):
    file = path.with_name(name)
    file.write_bytes(file.read_bytes()[:-1000])


def flip(path, name="shapes_box0.mindir"):
    file = path.with_name(name)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def foreign(path, name="shapes_box0.mindir"):
    """A model file of another kind, for which the sidecar was made to vouch."""
    path.with_name(name).write_bytes(b"not a MINDIR" * 100)
    sign(path)


def poke(path, at, number):
    """Another number among those that the mask head's file says of itself, with a checksum that fits."""
    file = path.with_name("shapes_mask0.bin")
    data = bytearray(file.read_bytes())
    data[at : at + 4] = struct.pack("<I", number)
    file.write_bytes(bytes(data))
    sign(path)


SPOILT = {
    "no features": (lambda p: p.with_name("shapes_features.mindir").unlink(), "shapes_features.mindir"),
    "truncated": (cut, "shapes_features.mindir"),
    "another model": (flip, "shapes_box0.mindir"),
    "foreign file": (foreign, "shapes_box0.mindir"),
    "no mask head": (lambda p: p.with_name("shapes_mask0.bin").unlink(), "shapes_mask0.bin"),
    "mask head truncated": (lambda p: cut(p, "shapes_mask0.bin"), "shapes_mask0.bin"),
    "another mask head": (lambda p: flip(p, "shapes_mask0.bin"), "shapes_mask0.bin"),
    "foreign mask head": (lambda p: foreign(p, "shapes_mask0.bin"), "shapes_mask0.bin"),
    "truncated mask head, checksum made to fit": (lambda p: (cut(p, "shapes_mask0.bin"), sign(p)), "shapes_mask0.bin"),
    "mask head of no layers": (lambda p: poke(p, 8, 0), "shapes_mask0.bin"),
    "mask head of a huge layer": (lambda p: poke(p, 12, 2**31), "shapes_mask0.bin"),
    "mask head of other channels": (lambda p: poke(p, 12, 32), "shapes_mask0.bin"),
    "other mask size": (lambda p: change(p, mask_paste__size=14), "fit together"),
    "truncated, checksum made to fit": (lambda p: (cut(p), sign(p)), "shapes_features.mindir"),
    "heads swapped": (
        lambda p: change(p, files__box=json.loads(p.read_text())["files"]["mask"]),
        "shapes_mask0.mindir",
    ),
    "no sidecar": (lambda p: p.unlink(), "shapes.json"),
    "sidecar cut": (lambda p: p.write_text(p.read_text()[:-30]), "not whole JSON"),
    "sidecar is text": (lambda p: p.write_text("hello"), "not whole JSON"),
    "sidecar is a list": (lambda p: p.write_text("[]"), "not the sidecar"),
    "another format": (lambda p: change(p, format="coco"), "not the sidecar"),
    "later version": (lambda p: change(p, version=3), "another version"),
    "no deviation": (lambda p: change(p, std=[58.4, 0, 57.4]), "std[1]"),
    "a threshold below zero": (lambda p: change(p, rcnn__iou_threshold=-0.5), "rcnn.iou_threshold"),
    "levels without anchors": (lambda p: change(p, base_anchors=[[]] * 5), "base_anchors"),
    "changed by hand": (
        lambda p: p.write_text(p.read_text().replace('"score_thr": 0.1', '"score_thr": 0.2')),
        "changed or damaged since its export (checksum)",
    ),
    "nested without end": (lambda p: p.write_text('{"format": ' + "[" * 20_000), "nested deeper than 64 levels"),
    "a number of 5000 digits": (
        lambda p: p.write_text(p.read_text().replace('"batch_size": ', '"batch_size": ' + "9" * 5000)),
        "not whole JSON",
    ),
    "no number": (lambda p: p.write_text(p.read_text().replace('"batch_size": ', '"batch_size": NaN')), "not whole"),
    "a key twice": (
        lambda p: p.write_text(p.read_text().replace('"batch_size": ', '"batch_size": 1, "batch_size": ')),
        '"batch_size" comes twice',
    ),
    "a sidecar of a gigabyte": (lambda p: os.truncate(p, 2**30), "more than the 8388608"),
    "a sidecar that is a pipe": (lambda p: (p.unlink(), os.mkfifo(p)), "it is no file"),
    "no canvas": (lambda p: change(p, canvas={}), "canvas"),
    "canvas of text": (lambda p: change(p, canvas__width="wide"), "canvas.width"),
    "canvas between strides": (lambda p: change(p, canvas__width=200), "200"),
    "other classes": (lambda p: change(p, classes=["background", "cat"]), "disagree"),
    "other anchors": (
        lambda p: change(p, base_anchors=[[[0, 0, 1, 1]]] * 5, rpn__scales=[1], rpn__ratios=[1]),
        "disagree",
    ),
    "other RoI size": (lambda p: change(p, roi__out_size=9), "shapes_box0.mindir"),
    "files elsewhere": (lambda p: change(p, files__features__name="../shapes_features.mindir"), "own folder"),
    "a stage too many": (lambda p: change(p, files__box=[]), "fit together"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_spoilt_model_is_refused(fault, spoilt, infer, pictures, tmp_path):
    spoil, part = SPOILT[fault]
    spoil(spoilt)
    words = ("--model", spoilt, "--input", pictures / "val2017", "--output", tmp_path / "out")
    refused(infer(*words), part)
    assert not (tmp_path / "out/summary.json").exists()


def test_a_canvas_for_which_there_is_no_memory(spoilt, infer, pictures, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))

    words = ("--model", spoilt, "--input", pictures / "val2017", "--output", tmp_path / "out")
    # of the model, not of the pictures
    refused(infer(*words, "--width", 2**14, "--height", 2**14, preexec_fn=limit), "16384 x 16384", "lower --width")
    change(spoilt, canvas={"width": 8128, "height": 2**12})
    refused(infer(*words, preexec_fn=limit), spoilt, "the model's canvas, 8128 x 4096", "a smaller canvas")
    # whatever the memory
    change(spoilt, canvas={"width": 2**13, "height": 2**12})
    refused(infer(*words), spoilt, "the model's canvas, 8192 x 4096", "more than 33554431 pixels", "a smaller canvas")
    assert not (tmp_path / "out").exists()


def test_a_wrong_graph_fails_the_self_check(spoilt, infer):
    reference = spoilt.with_name("shapes_reference.bin")
    data = bytearray(reference.read_bytes())
    # the last value that Python gave for the last mask
    data[-4:] = struct.pack("<f", 1e3)
    reference.write_bytes(bytes(data))
    refused(infer("--model", spoilt, "--self_check"), "shapes_reference.bin")
    sign(spoilt)
    refused(infer("--model", spoilt, "--self_check"), "mask head", "Python")
    reference.write_bytes(bytes(data[:1000]))
    sign(spoilt)
    refused(infer("--model", spoilt, "--self_check"), "shapes_reference.bin")


def test_names_that_stand_for_the_sidecar(exported, infer, pictures, tmp_path):
    folder = exported.sidecar.parent
    for name in ("shapes.mindir", "shapes_features.mindir"):
        assert infer("--model", folder / name, "--self_check").returncode == 0
    refused(infer("--model", folder / "other.mindir", "--self_check"), "other.mindir: no such model")
    refused(infer("--model", folder / "shapes_reference.bin", "--self_check"), "no sidecar")


def test_folders_of_images_that_hold_none(exported, infer, tmp_path):
    words = ("--model", exported.sidecar, "--output", tmp_path / "out", "--input")
    refused(infer(*words, tmp_path / "missing"), tmp_path / "missing")
    (tmp_path / "images").mkdir()
    refused(infer(*words, tmp_path / "images"), "no .jpg, .jpeg or .png")
    (tmp_path / "images/notes.txt").write_text("")
    refused(infer(*words, tmp_path / "images"), "no .jpg, .jpeg or .png")


def test_only_unreadable_images(exported, infer, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_text("")
    run = infer("--model", exported.sidecar, "--input", tmp_path / "images", "--output", tmp_path / "out")
    assert run.returncode == 3
    assert run.stderr.strip().splitlines()[-1] == "error: 1 of 1 images unreadable: a.jpg"
    assert read_summary(tmp_path / "out")["images"] == []


@pytest.mark.parametrize("at", ["result", "summary"])
def test_full_disk(at, exported, infer, pictures, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    # an older run's summary must not pass for this one's
    (out / "summary.json").write_text("{}")
    first = min((pictures / "val2017").iterdir()).name
    name = f"{first}.det" if at == "result" else "summary.json"
    (out / f"{name}.writing").symlink_to("/dev/full")
    run = infer("--model", exported.sidecar, "--input", pictures / "val2017", "--output", out)
    refused(run, out / name, "No space left")
    assert not (out / "summary.json").exists()


def test_files_that_may_not_grow(exported, infer, pictures, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    words = ("--model", exported.sidecar, "--input", pictures / "val2017", "--output", tmp_path / "out")
    refused(infer(*words, preexec_fn=limit), "can't write", "too large")


def test_an_output_that_cannot_be(exported, infer, pictures, tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file/below"):
        refused(infer("--model", exported.sidecar, "--input", pictures / "val2017", "--output", output), output)


def test_devices(exported, spoilt, infer, pictures, tmp_path):
    words = ("--input", pictures / "val2017", "--output", tmp_path / "out", "--model")
    refused(infer(*words, exported.sidecar, "--device_type", "Ascend"), "Ascend", "CANN")
    # the whole graph needs operators that Lite has on Ascend alone: what MindSpore 2.8 writes isn't built
    spoilt.with_name("whole.mindir").write_bytes(b"not a MINDIR" * 100)
    files = {"model": sidecar.file_entry(spoilt.with_name("whole.mindir"))}
    content = sidecar.describe(exported.config, "whole", "MINDIR", files, exported.config.test_batch_size)
    sidecar.write(spoilt, content)
    refused(infer(*words, spoilt), "whole.mindir", "--split", "Ascend")
    refused(infer(*words, spoilt, "--device_type", "Ascend"), "Ascend")
    refused(infer(*words, spoilt, "--device_type", "Ascend", "--batch_size", 2), "--batch_size")
    sidecar.write(spoilt, content | {"file_format": "ONNX"})
    refused(infer(*words, spoilt), "ONNX Runtime")


@pytest.mark.parametrize(
    "words",
    [
        ["--device_type", "GPU"],
        ["--threads", "0"],
        ["--threads", "two"],
        ["--runtime", "fast"],
        ["--runtime", "own", "--device_type", "Ascend"],
        ["--batch_size", "-1"],
        ["--width", "100"],
        ["--keep_ratio", "perhaps"],
        ["--aipp_config", "aipp.cfg"],
        ["--exif", "sideways"],
        ["--colour", "red"],
        ["--device_id"],
    ],
)
def test_options_that_are_refused(words, exported, infer, pictures, tmp_path):
    run = infer("--model", exported.sidecar, "--input", pictures / "val2017", "--output", tmp_path / "out", *words)
    refused(run, words[0])


def test_options_that_are_missing(exported, infer, tmp_path):
    refused(infer(), "--model")
    refused(infer("--model", exported.sidecar), "--input")
    refused(infer("--model", exported.sidecar, "--input", tmp_path), "--output")
    help_text = infer("--help")
    assert help_text.returncode == 0 and "--batch_size" in help_text.stdout


def test_results_that_are_not_whole(exported, infer, pictures, refusal, tmp_path):
    run = infer("--model", exported.sidecar, "--input", pictures / "val2017", "--output", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    result = min((tmp_path / "out").glob("*.det"))
    data = result.read_bytes()
    for spoilt in (b"", data[:-1], data + b"\0", b"X" + data[1:]):
        result.write_bytes(spoilt)
        with refusal(ValueError, result):
            read_result(result)


def test_lite_is_asked_for_float32_on_ascend(exported, infer, pictures, tmp_path):
    """Its default is float16 wherever a kernel has it."""
    library, told = tmp_path / "precision.so", tmp_path / "told"
    source = "tests/ascend310_infer/precision.cc"
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", library], cwd=ROOT, check=True)
    words = ("--model", exported.sidecar, "--input", pictures / "val2017", "--output", tmp_path / "out")
    environment = {**os.environ, "LD_PRELOAD": str(library), "TOLD": str(told)}
    assert infer(*words, "--device_type", "CPU", env=environment).returncode == 0
    assert not told.exists()
    assert infer(*words, "--device_type", "Ascend", env=environment).returncode == 2
    assert told.read_text() == "preferred_fp32"
