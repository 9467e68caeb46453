"""Files made to do harm: what is no file, and what is small and would take much time or memory; each told in a line."""

import base64
import io
import json
import os
import signal
import socket
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from src.checkpoints.convert.readers import read_state
from src.checkpoints.files import load_checkpoint
from src.config import load_config
from src.data.formats import read_split, resolve_classes
from src.data.formats.base import load_json, read_lines
from src.data.formats.voc import read_xml
from src.data.formats.yolo import class_names
from src.data.images import file_header, is_image, read_bytes, read_image, safe_decode
from src.data.import_labels import import_labels
from src.data.truth import is_truth, read_truth, truth_of
from src.drawing.curves import read_loss_log
from src.evaluation.cpp_results import read_result, read_summary
from src.evaluation.results import load_results
from src.export import sidecar
from src.inference.files import predict_video
from src.runtime.errors import UserError
from src.runtime.files import open_regular, read_regular

SECONDS = 60  # runaway work takes hours


@pytest.fixture(autouse=True)
def in_time():
    """Ends a test that doesn't come to its end."""

    def end(*_):
        raise TimeoutError(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------------------------------------------------
# what is no file

READERS = {
    "config": ("a.yaml", load_config),
    "annotations": ("a.json", load_json),
    "truth": ("a.json", is_truth),
    "converted truth": ("a.json", read_truth),
    "evaluated annotations": ("a.json", truth_of),
    "list": ("a.txt", read_lines),
    "VOC": ("a.xml", read_xml),
    "data.yaml": ("data.yaml", class_names),
    "classes.txt": ("classes.txt", class_names),
    "image's head": ("a.png", file_header),
    "image": ("a.png", read_bytes),
    "results": ("a.json", load_results),
    "result of C++": ("a.det", read_result),
    "summary of C++": ("summary.json", lambda path: read_summary(path.parent)),
    "sidecar": ("a.json", sidecar.read),
    "model": ("a.mindir", sidecar.checksum),
    "checkpoint": ("a.ckpt", load_checkpoint),
    "safetensors": ("a.safetensors", load_checkpoint),
    "converted checkpoint": ("a.pth", read_state),
    "losses": ("loss_0.log", read_loss_log),
}


def make_irregular(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(str(path))


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "socket"])
def test_what_is_no_file_is_told_at_once(kind, tmp_path, monkeypatch, refusal):
    """By every reader: a pipe would be waited for, a device has no end."""
    monkeypatch.chdir(tmp_path)
    for i, (name, read) in enumerate(READERS.values()):
        path = Path(str(i), name)
        path.parent.mkdir()
        make_irregular(path, kind)
        with refusal(UserError, path if "summary" not in name else path.parent):
            read(path)
        assert not is_image(path)
    make_irregular(Path("a.mp4"), kind)
    assert "a.mp4: can't read: not a file but a" in predict_video(None, Path("a.mp4"), tmp_path / "out")


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_a_split_that_is_no_file(kind, tmp_path, monkeypatch, shapes_config, refusal):
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "a.yaml", "a.txt"):
        make_irregular(Path(name), kind)
        with refusal(UserError, f"{name}: not a file but a"):
            import_labels(Path(name), Path("out"), Path("."))
    asked = {
        "coco": {"train_dataset": "a.json"},
        "yolo": {"train_dataset": "a.yaml"},
        "other": {"anno_path": "a.txt", "image_dir": "."},
    }
    for form, keys in asked.items():
        config = shapes_config(dataset=form, coco_classes="auto", detector="faster_rcnn", **keys)
        with refusal(UserError, next(iter(keys.values())), "not a file but a"):
            resolve_classes(config, training=True)


def test_a_pipe_of_the_shell_says_what_helps(tmp_path, refusal):
    read, write = os.pipe()
    with refusal(UserError, f"/dev/fd/{read}", "a pipe", "write what it gives to a file"):
        load_config(f"/dev/fd/{read}")
    os.close(read)
    os.close(write)


def test_a_file_that_is_but_a_length(tmp_path, refusal):
    """Nothing of it is read."""
    path = tmp_path / "a.json"
    path.touch()
    os.truncate(path, 1 << 40)
    for read in (load_json, load_results, read_lines, read_xml, read_bytes, read_truth, file_header):
        with refusal(UserError, path, "larger than"):
            read(path)
    with pytest.raises(OSError, match="larger than 3 KiB"):
        read_regular(path, 3 << 10)


def test_a_file_is_read_whole(tmp_path):
    path = tmp_path / "a"
    for size in (0, 1, 65536, 65537, 200_000):
        path.write_bytes(bytes(range(256)) * (size // 256) + bytes(size % 256))
        assert read_regular(path) == read_regular(path, size) == path.read_bytes()
    with pytest.raises(OSError), open_regular("a\0b"):
        pass
    with pytest.raises(FileNotFoundError), open_regular(tmp_path / "none"):
        pass


# ---------------------------------------------------------------------------------------------------------
# text

LAUGHS = "<!DOCTYPE a [<!ENTITY b0 'lol'>" + "".join(f"<!ENTITY b{i + 1} '{f'&b{i};' * 10}'>" for i in range(9))
XML = {
    "entities": (LAUGHS + "]><annotation>&b9;</annotation>", "line 1: has a DOCTYPE"),
    "a file as an entity": ("<!DOCTYPE a [<!ENTITY b SYSTEM '/dev/zero'>]>\n<annotation>&b;</annotation>", "DOCTYPE"),
    "parameter entities": ("\n<!DOCTYPE a [<!ENTITY % b '%b;'>%b;]><annotation/>", "line 2: has a DOCTYPE"),
    "a document type alone": ("<!DOCTYPE annotation SYSTEM 'voc.dtd'><annotation/>", "DOCTYPE"),
    "depth": ("<annotation>" + "<a>" * 20_000 + "</a>" * 20_000 + "</annotation>", "in each other"),
    "elements": ("<annotation>" + "<a/>" * 600_000 + "</annotation>", "more than 500,000 elements"),
}


@pytest.mark.parametrize(("text", "told"), XML.values(), ids=XML)
def test_xml(text, told, tmp_path, refusal):
    (tmp_path / "a.xml").write_text(text)
    with refusal(UserError, tmp_path / "a.xml", told):
        read_xml(tmp_path / "a.xml")


def test_long_text_in_xml_is_read_whole(tmp_path):
    text = "a & b\n" * 300_000
    (tmp_path / "a.xml").write_text(f"<annotation><name>{text.replace('&', '&amp;')}</name></annotation>")
    assert read_xml(tmp_path / "a.xml").find("name").text == text


NUMBER = "9" * 5000
JSON = {
    "depth": ("[" * 20_000, "nested too deeply"),
    "much depth": ("[" * 10_000_000, "nested too deeply"),
    "depth of mappings": ('{"a":' * 20_000, "nested too deeply"),
    "a number": (f'{{"images": [{{"id": {NUMBER}}}]}}', "thousands of digits"),
    "a negative number": (f"[-{NUMBER}]", "thousands of digits"),
}


@pytest.mark.parametrize("read", [load_json, load_results, truth_of])
@pytest.mark.parametrize(("text", "told"), JSON.values(), ids=JSON)
def test_json(text, told, read, tmp_path, refusal):
    (tmp_path / "a.json").write_text(text)
    with refusal(UserError, tmp_path / "a.json", told):
        read(tmp_path / "a.json")


YAML = {
    "aliases": (
        "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}, *a{i}]\n" for i in range(30)) + "names: *a30",
        "line 2",
    ),
    "merged aliases": ("a: &a {b: 1}\nnames: {<<: [*a, *a]}", "line 2: *a"),
    "itself": ("names: &a [*a]", "*a"),
    "depth": ("names: " + "[" * 20_000, "more than 20 levels"),
    "depth of mappings": ("{a: " * 20_000, "more than 20 levels"),
    "length": ("names: [" + "x, " * 200_000 + "]", "longer than 256 KiB"),
    "a number": (f"nc: {NUMBER}", "nc is '9999"),
    "a number after zeros": (f"nc: 000000000{NUMBER}", "nc is '0000"),
    "a program": ("names: !!python/object/apply:os.getcwd []", "line 1"),
    "a key twice": ("names: [a]\nnames: [b]", "line 2: names comes twice"),
}


@pytest.mark.parametrize(("text", "told"), YAML.values(), ids=YAML)
def test_data_yaml_and_a_runs_config(text, told, tmp_path, shapes_config, refusal):
    (tmp_path / "data.yaml").write_text(text)
    with refusal(UserError, tmp_path / "data.yaml", told):
        class_names(tmp_path / "data.yaml")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(text)
    with refusal(UserError, tmp_path / "run/config.yaml", "coco_classes"):
        resolve_classes(shapes_config(coco_classes="auto"), False, tmp_path / "run/a.ckpt")


@pytest.mark.parametrize("word", ["no", "1e3", "2024-01-01", "null", "=", "<<", "0x10", "~", "1:30"])
def test_names_of_classes_are_text(word, tmp_path):
    for text in (f"names: [{word}]", f"names: {{0: {word}}}", f"names:\n- {word}\n"):
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            (tmp_path / "data.yaml").write_text(text, encoding)
            assert class_names(tmp_path / "data.yaml") == [word]


# ---------------------------------------------------------------------------------------------------------
# annotations


def png(height, width, chunks=b"", pixels=None):
    """A grey PNG of ones, or of these compressed pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    if isinstance(chunks, dict):
        chunks = b"".join(chunk(k, v) for k, v in chunks.items())
    pixels = zlib.compress((b"\0" + b"\1" * width) * height, 9) if pixels is None else pixels
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def large_picture():
    return png(9000, 9000)


def refuse_split(config, refusal, *parts):
    with refusal(UserError, *parts):
        read_split(resolve_classes(config, training=True), "train").usable("stop")


def zigzag(height, width, times):
    return [0, 0, width, height, 0, height, width, 0] * times


CLAIMED = {
    "RLE": ((40, 60), {"segmentation": {"size": [60000, 60000], "counts": [0, 3_600_000_000]}}, "RLE of size [60000"),
    "RLE of such an image": ((60000, 60000), {"segmentation": {"size": [60000, 60000], "counts": "P" * 9}}, "RLE cou"),
    "RLE of 10^18": ((10**9, 10**9), {"segmentation": {"size": [10**9, 10**9], "counts": "PPYo0"}}, "RLE counts add"),
    "runs past the end": ((40, 60), {"segmentation": {"size": [40, 60], "counts": "o" * 10**6}}, "RLE counts that"),
    "10^6 points": ((40, 60), {"segmentation": [[(7 * i) % 40 for i in range(2 * 10**6)]]}, "pixels around"),
    "sides of 4000 digits": ((10**4000, 60), {}, "lacks a size"),
    "a box of 4000 digits": ((40, 60), {"bbox": [10**4000] * 4}, "four finite numbers"),
    "an id of 4000 digits": ((40, 60), {"image_id": 10**4000}, "doesn't list"),
    "a deep box": ((40, 60), {"bbox": json.loads("[" * 900 + "]" * 900)}, "bbox [[[["),
}


@pytest.mark.parametrize(("size", "changed", "told"), CLAIMED.values(), ids=CLAIMED)
def test_coco(size, changed, told, coco_folder, coco_config, refusal):
    coco_folder.data["images"][0] |= {"height": size[0], "width": size[1]}
    coco_folder.data["annotations"][0] |= changed
    coco_folder.write()
    refuse_split(coco_config(), refusal, coco_folder.json, told)
    with refusal(UserError, coco_folder.json, told):
        truth_of(coco_folder.json)


@pytest.mark.parametrize(("times", "count"), [(25, 3000), (1, 30_000)])
def test_the_polygons_of_a_coco_file_in_sum(times, count, coco_folder, coco_config, monkeypatch, refusal):
    """Each is within the bounds of one."""
    # a tenth of what it is, and so of the time
    monkeypatch.setattr("src.data.formats.coco.WORK", 5e6)
    monkeypatch.setattr("src.data.formats.coco.WORK_OF_ANNOTATION", 2e2)
    coco_folder.data["images"][0] |= {"height": 9000, "width": 9000}
    polygon = zigzag(9000, 9000, times)
    annotation = {"image_id": 1, "category_id": 10, "segmentation": [polygon], "iscrowd": 0}
    coco_folder.data["annotations"] = [annotation] * count
    coco_folder.write()
    refuse_split(coco_config(), refusal, coco_folder.json, "polygons are longer than")


def test_a_mask_of_many_parts(coco_folder, coco_config):
    parts = [[x, y, x + 2, y, x + 2, y + 2] for x in range(0, 50) for y in range(0, 35)] * 20
    coco_folder.data["annotations"][0] |= {"segmentation": parts, "area": None}
    coco_folder.write()
    records = read_split(resolve_classes(coco_config(), training=True), "train")
    assert 1000 < records.images[0].instances[0].area < 52 * 37


def labelme(folder, *shapes, image=None, size=(9000, 9000), **more):
    folder.mkdir()
    if image:
        (folder / "a.png").write_bytes(image)
    content = {"shapes": shapes, "imagePath": "a.png", "imageHeight": size[0], "imageWidth": size[1]} | more
    (folder / "a.json").write_text(json.dumps(content))
    return {"dataset": "labelme", "train_dataset": str(folder), "coco_classes": "auto", "val_share": 0.0}


def mask(data, height, width):
    content = base64.b64encode(data).decode()
    points = [[0, 0], [width - 1, height - 1]]
    return {"label": "a", "shape_type": "mask", "points": points, "mask": content}


@pytest.mark.parametrize("case", ["bitmap", "bitmaps", "zigzag", "zigzags", "cuts", "number"])
def test_labelme(case, large_picture, tmp_path, shapes_config, monkeypatch, refusal):
    if case == "bitmaps":
        # a tenth of what it is, and so of the time
        monkeypatch.setattr("src.data.formats.labelme.BITMAPS", 2e7)
    small = {"image": png(64, 64), "size": (64, 64)}
    triangle = [[5, 5], [25, 5], [25, 25]]
    shapes, told, of = {
        "bitmap": ([mask(large_picture, 9000, 9000)], "its bitmap is 9000 x 9000, its picture 64 x 64", small),
        "bitmaps": ([mask(png(64, 64), 64, 64)] * 6000, "bitmaps of its file are too many", small),
        "zigzag": ([{"label": "a", "points": [[0, 0], [9000, 9000]] * 10**5}], "pixels around", {}),
        "zigzags": ([{"label": "a", "points": [[0, 0], [9000, 9000]] * 100}] * 100, "pixels around", {}),
        "cuts": (
            [{"label": n, "points": triangle} for n in ["a"] * 1100 + ["_background_"] * 1000],
            "too many shapes called _background_",
            small,
        ),
        "number": ([{"label": "a", "points": [[10**4000, 1], *triangle]}], "finite numbers", small),
    }[case]
    config = shapes_config(**labelme(tmp_path / "in", *shapes, **({"image": large_picture} | of)))
    refuse_split(config, refusal, tmp_path / "in/a.json", told)


def test_labelme_masks_of_a_large_picture(large_picture, tmp_path, shapes_config):
    """Held by their runs, as each pixel of each would fill the memory."""
    small = mask(png(20, 30), 20, 30)
    config = shapes_config(**labelme(tmp_path / "in", *[small] * 400, image=large_picture), max_instance_count=500)
    records = read_split(resolve_classes(config, training=True), "train")
    assert [i.area for i in records.images[0].instances] == [600.0] * 400


def test_a_picture_in_a_labelme_file_is_told_by_its_head(tmp_path, refusal):
    content = base64.b64encode(png(60000, 60000, pixels=b"")).decode()
    labelme(tmp_path / "in", {"label": "a", "points": [[5, 5], [25, 5], [25, 25]]}, imageData=content)
    with refusal(UserError, tmp_path / "in/a.json", "more than 100,000,000 pixels"):
        import_labels(tmp_path / "in", tmp_path / "out", source="labelme")


ROWS = {
    "class": (f"1,1,20,20,{NUMBER}", "a box of class 9999"),
    "class of a listed box": (f"1,1,20,20,1 1,1,20,20,1,{NUMBER}", "line 1: '1,1,20,20,1,9999"),
    "place": (f"1,1,20,{NUMBER},1", "line 1: '1,1,20,9999"),
    "many boxes": ("1,1,20,20,1 " * 100_000, "100000 objects"),
}


@pytest.mark.parametrize(("row", "told"), ROWS.values(), ids=ROWS)
def test_rows(row, told, coco_folder, shapes_config, refusal):
    rows = coco_folder.root / "rows.txt"
    rows.write_text(f"000000000001.jpg {row}")
    places = {"dataset": "other", "anno_path": str(rows), "image_dir": str(coco_folder.images)}
    refuse_split(shapes_config(**places, coco_classes="auto", detector="faster_rcnn"), refusal, rows, told)


@pytest.mark.parametrize(
    ("row", "told"), [(f"{NUMBER} 0.5 0.5 0.1 0.1", "isn't a number"), ("0 " + "0 0 1 1 " * 300_000, "pixels around")]
)
def test_yolo(row, told, tmp_path, shapes_config, refusal):
    for folder in ("images", "labels"):
        (tmp_path / "in" / folder).mkdir(parents=True)
    (tmp_path / "in/images/a.png").write_bytes(png(64, 64))
    (tmp_path / "in/labels/a.txt").write_text(row)
    (tmp_path / "in/data.yaml").write_text("names: [a]\ntrain: images\n")
    config = shapes_config(dataset="yolo", train_dataset=str(tmp_path / "in"), coco_classes="auto")
    refuse_split(config, refusal, tmp_path / "in/labels/a.txt", told)


# ---------------------------------------------------------------------------------------------------------
# pictures


def jpeg(*segments, size=(64, 64)):
    """A JPEG with these (marker, data) before its own."""
    out = io.BytesIO()
    Image.new("RGB", (64, 64)).save(out, "JPEG")
    data = bytearray(out.getvalue())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", *size)
    more = b"".join(bytes([255, m]) + struct.pack(">H", len(d) + 2) + d for m, d in segments)
    return bytes(data[:2]) + more + bytes(data[2:])


def directory(count, length, orientation=1):
    """EXIF whose entries, but for the first, all are the same `length` bytes."""
    rows = [struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)]
    rows += [struct.pack("<HHII", 0x1000 + i, 1, length, 8) for i in range(count)]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(rows)) + b"".join(rows) + bytes(4)


BOMB = zlib.compress(bytes(1 << 28), 9)
FINE = {
    "text": lambda: png(64, 64, {b"zTXt": b"a\0\0" + BOMB}),
    "profile": lambda: png(64, 64, {b"iCCP": b"a\0\0" + BOMB}),
    "EXIF of marks": lambda: png(64, 64, {b"eXIf": b"Exif\0\0" * 10**6}),
    "EXIF": lambda: png(64, 64, {b"eXIf": directory(50_000, 600_000)}),
    "chunks": lambda: png(64, 64, (bytes(4) + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd"))) * 500_000),
    "pixels": lambda: png(64, 64, pixels=zlib.compress(bytes(1 << 28), 9)),
    "JPEG's EXIF": lambda: jpeg((0xE1, b"Exif\0\0" + directory(5000, 60_000))),
    "JPEG's second pictures": lambda: jpeg((0xE2, b"MPF\0" + directory(5000, 60_000))),
    "JPEG's profiles": lambda: jpeg(*[(0xE2, b"ICC_PROFILE\0\1\1" + bytes(65_000))] * 200),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("make", FINE.values(), ids=FINE)
def test_pictures_with_too_much_beside(make, tmp_path):
    (tmp_path / "a").write_bytes(make())
    assert file_header(tmp_path / "a").stored == (64, 64)
    assert read_image(tmp_path / "a").shape == (64, 64, 3)


def tiff(*entries):
    rows = b"".join(struct.pack("<HHII", *e) for e in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + bytes(4)


def webp(height, width):
    chunk = b"VP8X" + struct.pack("<II", 10, 2) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


LARGE = {
    "PNG": lambda: png(2**31 - 1, 2**31 - 1, pixels=b""),
    "JPEG": lambda: jpeg(size=(65500, 65500)),
    "WebP": lambda: webp(1 << 24, 1 << 24),
    "BMP": lambda: b"BM" + struct.pack("<IHHIIiiHH", 54, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24) + bytes(24),
    "PPM": lambda: b"P6\n99999 99999\n255\n",
    "TIFF": lambda: tiff((256, 4, 1, 4 * 10**9), (257, 4, 1, 4 * 10**9), (258, 3, 1, 8), (262, 3, 1, 1)),
    "TIFF of many tags": lambda: tiff(
        (256, 4, 1, 64), (257, 4, 1, 64), *((1000 + i, 1, 700_000, 8) for i in range(60_000))
    ),
    "JPEG of 2000 EXIF": lambda: jpeg(*[(0xE1, b"Exif\0\0" + bytes(65_000))] * 2000),
    "PPM of remarks": lambda: b"P6\n#" + b"a" * (1 << 25) + b"\n8 8\n255\n" + bytes(192),
    "GIF": lambda: b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(100),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE)
def test_pictures_that_are_refused_by_their_head(make, tmp_path, monkeypatch, refusal):
    monkeypatch.setattr("src.data.images.cv2.imdecode", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    (tmp_path / "a").write_bytes(make())
    for read in (file_header, read_image):
        with refusal(UserError, f"{tmp_path / 'a'}: "):
            read(tmp_path / "a")


@pytest.mark.parametrize("claimed", [7, 1 << 16, (1 << 31) - 1, (1 << 32) - 1])
@pytest.mark.parametrize("kind", [b"tEXt", b"PLTE", b"IDAT", b"abCd", b"fdAT"])
def test_a_chunk_that_claims_more_than_there_is(claimed, kind, monkeypatch, refusal):
    """OpenCV would set that memory aside."""
    monkeypatch.setattr("src.data.images.cv2.imdecode", lambda *_: pytest.fail("decoded"))
    data = png(64, 64)
    for at in (33, len(data) - 12):
        spoilt = data[:at] + struct.pack(">I", claimed) + kind + bytes(4)
        with refusal(UserError, "a: ", "damaged"):
            safe_decode(spoilt, "a")


@pytest.mark.parametrize("length", [0, 1 << 16, (1 << 32) - 1])
def test_a_picture_whose_pixels_are_of_no_known_chunk(length, monkeypatch, refusal):
    """OpenCV would look for them beyond the end, and set aside what the bytes there claim."""
    monkeypatch.setattr("src.data.images.cv2.imdecode", lambda *_: pytest.fail("decoded"))
    data = png(64, 64).replace(b"IDAT", b"IDA\0") + struct.pack(">I", length) + b"abCd"
    with refusal(UserError, "a: ", "damaged"):
        safe_decode(data, "a")


# ---------------------------------------------------------------------------------------------------------
# names that lead outside


@pytest.mark.parametrize("lead", ["{away}/a.png", "../away/a.png", "sub/../../away/a.png"])
@pytest.mark.parametrize("form", ["coco", "txt", "yolo", "labelme"])
def test_images_from_outside_train_and_are_told(form, lead, tmp_path, shapes_config):
    root, away = tmp_path / "in", tmp_path / "away"
    for folder in (root / "sub", away):
        folder.mkdir(parents=True)
    for place in (root / "b.png", away / "a.png"):
        place.write_bytes(png(64, 64))
        place.with_suffix(".txt").write_text("0 0.5 0.5 0.4 0.4")
    name = lead.format(away=away)
    if form == "coco":
        images = [{"id": i, "file_name": n, "height": 64, "width": 64} for i, n in enumerate((name, "b.png"))]
        data = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
        (root / "_annotations.coco.json").write_text(json.dumps(data))
        keys = {"dataset": "coco", "train_dataset": str(root)}
    elif form == "txt":
        (root / "rows").write_text(f"{name} 1,1,20,20,1\nb.png 1,1,20,20,1\n")
        keys = {"dataset": "other", "anno_path": str(root / "rows"), "image_dir": str(root)}
    elif form == "yolo":
        (root / "train.txt").write_text(f"{name}\nb.png\n")
        (root / "data.yaml").write_text("names: [a]\ntrain: train.txt\n")
        keys = {"dataset": "yolo", "train_dataset": str(root)}
    else:
        shape = {"label": "a", "points": [[5, 5], [25, 5], [25, 25]]}
        for file, image in (("a.json", name), ("b.json", "b.png")):
            (root / file).write_text(json.dumps({"shapes": [shape], "imagePath": image}))
        keys = {"dataset": "labelme", "train_dataset": str(root), "val_share": 0.0}
    config = resolve_classes(shapes_config(**keys, coco_classes="auto", detector="faster_rcnn"), training=True)
    records = read_split(config, "train")
    assert len(records.usable("stop")) == 2
    told = [n for n in records.notes if "outside" in n]
    assert len(told) == 1 and told[0].startswith(f"{root}: its annotations lead to 1 images outside of it, the first ")
    assert os.path.samefile(told[0].rpartition(" ")[2], away / "a.png")
