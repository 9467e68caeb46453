"""The C++ program's reading of images, against training's reader."""

import io
import re
import struct
import subprocess
import zlib
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
from PIL import Image, ImageOps

from src.config import Config
from src.data.images import MAX_PIXELS, MOST_SCANNED, decode_image, image_header, safe_decode
from src.data.records import DataError
from src.data.transforms import canvas_size, fit_size, prepare_image
from src.export import sidecar

ROOT = Path(__file__).parents[2]
SOURCES = ["ascend310_infer/src/image.cc", "ascend310_infer/src/files.cc", "tests/ascend310_infer/prepare_main.cc"]
# what reads sidecars: their branches with it, but no MindSpore Lite
WITHOUT = ("annotations", "detector", "graph", "graph_lite", "image", "main", "proposals", "results")
READER = sorted(f"ascend310_infer/src/{p.name}" for p in ROOT.glob("ascend310_infer/src/*.cc") if p.stem not in WITHOUT)
READER += ["src/ops/csrc/tiles.cc", "src/ops/csrc/winograd.cc", "tests/ascend310_infer/no_graph.cc"]
SIZES = [SOURCES[0], *READER, "tests/ascend310_infer/sizes_main.cc"]


@pytest.fixture(scope="module")
def prepare(compiled, tmp_path_factory):
    """prepare(bytes, height, width, keep_ratio, exif, filter) -> (height and width before the resize, resized RGB
    picture, but not where filter is unrounded), with prepare.canvas; or None: refused, with prepare.told."""
    folder = tmp_path_factory.mktemp("prepare")
    program = compiled(SOURCES)

    def run(data, height=192, width=256, keep_ratio=True, exif="stored", filter="bilinear"):
        path = folder / "image"
        path.write_bytes(data)
        arguments = [program, path, str(height), str(width), str(int(keep_ratio)), exif, filter]
        result = subprocess.run(arguments, capture_output=True)
        if result.returncode != 0:
            message = result.stderr.decode()
            assert message.startswith("error: ") and message.count("\n") == 1, message
            run.told = message
            return None
        sizes = np.frombuffer(result.stdout, np.int64, 4)
        values = 3 * int(sizes[2] * sizes[3])
        run.canvas = np.frombuffer(result.stdout[-4 * values :], np.float32).reshape(3, *sizes[2:])
        pixels = result.stdout[32 : -4 * values]
        return tuple(sizes[:2]), np.frombuffer(pixels, np.uint8).reshape(*sizes[2:], 3) if pixels else None

    return run


def expected(data, height=192, width=256, keep_ratio=True, exif="stored"):
    """What training's reader makes of it, before normalisation."""
    image = decode_image(data, "image") if exif == "stored" else safe_decode(data, "image", exif)
    size = fit_size(*image.shape[:2], Config(img_height=height, img_width=width, keep_ratio=keep_ratio))
    resized = mmcv.imresize(image, size[::-1], interpolation="bilinear", backend="cv2")
    return image.shape[:2], resized[..., ::-1]


def noise(height, width, channels=3, dtype=np.uint8, seed=0):
    top = np.iinfo(dtype).max
    # smooth enough for JPEG's chroma to matter, rough enough for every pixel to differ
    small = np.random.default_rng(seed).integers(0, top, (height // 4 + 2, width // 4 + 2, channels)).astype(np.float32)
    grown = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)
    return np.clip(grown, 0, top).astype(dtype)


def saved(picture, mode=None, kind="PNG", **options):
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture, mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


def png(picture, **parameters):
    return cv2.imencode(".png", picture, [v for pair in parameters.items() for v in pair])[1].tobytes()


def interlaced(picture):
    """A PNG in Adam7 order, which neither OpenCV nor Pillow writes."""
    height, width = picture.shape[:2]
    rows = b""
    for y, x, dy, dx in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        rows += b"".join(b"\0" + row.tobytes() for row in picture[y::dy, x::dx])

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


RGB = noise(93, 131)
IMAGES = {
    "jpeg": lambda: saved(RGB, kind="JPEG", quality=90),
    "jpeg without chroma subsampling": lambda: saved(RGB, kind="JPEG", subsampling=0),
    "jpeg, chroma halved across": lambda: saved(RGB, kind="JPEG", subsampling=1),
    "progressive jpeg": lambda: saved(RGB, kind="JPEG", progressive=True),
    "grey jpeg": lambda: saved(RGB[..., 0], kind="JPEG"),
    "CMYK jpeg": lambda: saved(Image.fromarray(noise(50, 70, 4), "CMYK"), kind="JPEG"),
    **{f"jpeg, EXIF {o}": lambda o=o: saved(RGB, kind="JPEG", exif=exif(o)) for o in (3, 6, 8)},
    "png": lambda: png(RGB),
    "png with EXIF": lambda: saved(RGB, exif=exif(6)),
    "interlaced png": lambda: interlaced(RGB),
    "grey png": lambda: png(RGB[..., 0]),
    "1-bit png": lambda: saved(Image.fromarray(RGB[..., 0]).convert("1")),
    "png with transparency": lambda: png(noise(40, 60, 4)),
    "grey png with transparency": lambda: saved(Image.fromarray(noise(40, 60, 2), "LA")),
    "palette png": lambda: saved(Image.fromarray(RGB).quantize(13)),
    "palette png with transparency": lambda: saved(Image.fromarray(RGB).quantize(200), transparency=3),
    "16-bit png": lambda: png(noise(40, 60, 3, np.uint16)),
    "16-bit grey png": lambda: png(noise(40, 60, 1, np.uint16)),
    "16-bit png with transparency": lambda: png(noise(40, 60, 4, np.uint16)),
    "one pixel": lambda: png(RGB[:1, :1]),
    "one pixel, jpeg": lambda: saved(RGB[:1, :1], kind="JPEG"),
    "one row": lambda: png(noise(1, 300)),
    "one column": lambda: png(noise(300, 1)),
    "as large as the canvas": lambda: png(noise(192, 256)),
    "twice as large": lambda: png(noise(384, 512)),
    "much larger": lambda: png(noise(1201, 997)),
}


@pytest.mark.parametrize("keep_ratio", [True, False])
@pytest.mark.parametrize("name", IMAGES)
def test_pixels_are_those_of_training(name, keep_ratio, prepare):
    data = IMAGES[name]()
    size, picture = prepare(data, keep_ratio=keep_ratio)
    want_size, want = expected(data, keep_ratio=keep_ratio)
    assert size == want_size
    # bit for bit: a grey level here or there would move detections at a threshold
    np.testing.assert_array_equal(picture, want)
    mean, std = np.array(Config().img_mean), np.array(Config().img_std)
    np.testing.assert_array_equal(prepare.canvas, mmcv.imnormalize(want, mean, std, to_rgb=False).transpose(2, 0, 1))


def pictures_to_resize():
    """(height, width) to be had, and a picture."""
    random = np.random.default_rng(7)
    # by a little, by much, one side alone, neither, one larger and one smaller, rows and columns of one pixel
    sizes = [((60, 91), (59, 90)), ((301, 97), (13, 11)), ((50, 70), (50, 23)), ((50, 70), (31, 70)), ((9, 9), (9, 9))]
    sizes += [((40, 200), (77, 33)), ((1, 50), (20, 7)), ((50, 1), (7, 20)), ((64, 80), (1, 1)), ((1, 1), (5, 9))]
    sizes += [tuple(map(tuple, random.integers(1, 160, (2, 2)))) for _ in range(20)]
    for i, (before, after) in enumerate(sizes):
        # single pixels of every value; every other time black and white alone, whose sums end at the ends
        picture = random.integers(0, 256, (*before, 3)).astype(np.uint8)
        yield after, picture if i % 2 == 0 else (picture > 99) * np.uint8(255)


def test_unrounded_canvases_are_those_of_training(prepare):
    for (height, width), picture in pictures_to_resize():
        prepare(saved(picture), int(height), int(width), keep_ratio=False, filter="unrounded")
        config = Config(img_height=height, img_width=width, keep_ratio=False, resize_filter="unrounded")
        wanted, _ = prepare_image(picture[..., ::-1], config)
        # bit for bit
        np.testing.assert_array_equal(prepare.canvas, wanted, str((picture.shape, height, width)))


def test_antialiased_pixels_are_pillows(prepare):
    for after, picture in pictures_to_resize():
        _, got = prepare(saved(picture), *map(int, after), keep_ratio=False, filter="antialias")
        wanted = Image.fromarray(picture).resize(after[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(got, np.asarray(wanted), str((picture.shape, after)))


@pytest.fixture(scope="module")
def sizes_program(compiled):
    return compiled(SIZES)


@pytest.mark.parametrize("rounding", ["nearest", "floor", "short_first"])
@pytest.mark.parametrize(
    ("resize", "height", "width", "short_side", "long_side"),
    [
        ("short_side", 800, 1344, 800, 1333),
        ("short_side", 96, 160, 100, 159),
        ("short_side", 640, 640, 640, 640),
        ("canvas", 768, 1280, 800, 1333),
    ],
)
def test_sizes_are_those_of_training(resize, height, width, short_side, long_side, rounding, sizes_program, tmp_path):
    config = Config(img_height=height, img_width=width, resize=resize, resize_rounding=rounding)
    config.short_side, config.long_side, config.coco_classes = short_side, long_side, ["background", "x"]
    random = np.random.default_rng(3)
    small, large = random.integers(1, 1500, (4000, 2)), random.integers(1, 9000, (2000, 2))
    pictures = np.concatenate([small, large, small[:500, :1].repeat(2, 1), [[1, 9000], [9000, 1], [1, 1]]])
    wanted = [(*canvas_size(h, w, config), *fit_size(h, w, config)) for h, w in pictures.tolist()]
    entry = {"name": "m.mindir", "sha256": "0" * 64, "bytes": 1}
    pair = entry if config.turns_canvas else None
    # either sidecar of two says the same
    for upright in [False, True][: 1 + config.turns_canvas]:
        about = sidecar.describe(config, "whole", "MINDIR", {"model": entry}, upright=upright, pair=pair)
        sidecar.write(tmp_path / "m.mindir.json", about)
        command, given = [sizes_program, tmp_path / "m.mindir.json"], pictures.astype(np.int64).tobytes()
        run = subprocess.run(command, input=given, capture_output=True)
        assert run.returncode == 0, run.stderr
        np.testing.assert_array_equal(np.frombuffer(run.stdout, np.int64).reshape(-1, 4), wanted)


def jpeg_with(*segments):
    """A small JPEG with APP1 segments of this content."""
    plain = saved(noise(20, 32), kind="JPEG")
    whole = b"".join(b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments)
    return plain[:2] + whole + plain[2:]


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(exif_data, after_pixels=False):
    """A small PNG with an eXIf chunk before or after its pixels."""
    plain, chunk = png(noise(20, 32)), png_chunk(b"eXIf", exif_data)
    at = len(plain) - 12 if after_pixels else 33
    return plain[:at] + chunk + plain[at:]


def directory(value=6, order=">", kind=3, tag=0x0112, start=8, count=1, magic=42):
    """EXIF data (TIFF 6.0) with one entry."""
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", magic, start)
    field = struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value)
    return head + struct.pack(order + "HHHI", count, tag, kind, 1) + field + bytes(4)


HEADER = b"Exif\0\0"
TURNED = {
    **{f"jpeg {o}": lambda o=o: saved(RGB, kind="JPEG", exif=exif(o)) for o in range(1, 9)},
    **{f"png {o}": lambda o=o: saved(RGB, exif=exif(o)) for o in range(1, 9)},
    "little endian": lambda: jpeg_with(HEADER + directory(8, "<")),
    "a long": lambda: jpeg_with(HEADER + directory(7, kind=4)),
    "after another segment": lambda: jpeg_with(b"http://ns.adobe.com/xap/1.0/\0<x/>", HEADER + directory()),
    "png, after the pixels": lambda: png_with(directory(5), after_pixels=True),
    "png, with EXIF's own header": lambda: png_with(HEADER + directory(3)),
}
NO_ORIENTATION = {
    "none": lambda: jpeg_with(),
    "0": lambda: jpeg_with(HEADER + directory(0)),
    "9": lambda: jpeg_with(HEADER + directory(9)),
    "a text": lambda: jpeg_with(HEADER + directory(kind=2)),
    "another tag": lambda: jpeg_with(HEADER + directory(tag=0x0113)),
    "a directory past the end": lambda: jpeg_with(HEADER + directory(start=1 << 31)),
    "a directory at the end": lambda: jpeg_with(HEADER + directory(start=24)),
    "more entries than bytes": lambda: jpeg_with(HEADER + directory(tag=1, count=65535)),
    "cut": lambda: jpeg_with(HEADER + directory()[:19]),
    "no TIFF": lambda: jpeg_with(HEADER + directory(magic=7)),
    "nothing": lambda: jpeg_with(HEADER),
    "png, cut": lambda: png_with(directory()[:12]),
}


@pytest.mark.parametrize("policy", ["upright", "auto", "stored"])
@pytest.mark.parametrize("name", [*TURNED, *NO_ORIENTATION])
def test_pictures_are_turned_as_in_training(name, policy, prepare):
    data = (TURNED | NO_ORIENTATION)[name]()
    size, picture = prepare(data, exif=policy)
    want_size, want = expected(data, exif=policy)
    assert size == want_size
    np.testing.assert_array_equal(picture, want)
    assert (image_header(data, "image").orientation == 1) == (name in NO_ORIENTATION or name.endswith(" 1"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_what_a_viewer_shows(orientation, prepare):
    """Pillow's own turning is the reference."""
    data = saved(RGB, exif=exif(orientation))
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    size, picture = prepare(data, *shown.shape[:2], exif="upright")
    assert size == shown.shape[:2]
    np.testing.assert_array_equal(picture, shown)


@pytest.mark.parametrize("canvas", [(64, 64), (128, 384), (768, 1280)])
def test_photographs(canvas, prepare, coco_root):
    for path in sorted((coco_root / "val2017").iterdir())[:6]:
        data = path.read_bytes()
        np.testing.assert_array_equal(prepare(data, *canvas)[1], expected(data, *canvas)[1])


@pytest.mark.parametrize("name", ["jpeg", "progressive jpeg", "png", "palette png", "CMYK jpeg"])
def test_truncated_images_are_refused_as_training_does(name, prepare):
    data = IMAGES[name]()
    for kept in (0, 1, 3, 20, len(data) // 2, len(data) - 20):
        with pytest.raises(DataError):
            expected(data[:kept])
        assert prepare(data[:kept]) is None, kept


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(50)])
def test_other_files_are_refused(data, prepare):
    assert prepare(data) is None


def test_limits_are_those_of_training():
    source = (ROOT / SOURCES[0]).read_text()
    limits = dict(re.findall(r"constexpr int64_t (kMost\w+) = (\d+);", source))
    assert {k: int(v) for k, v in limits.items()} == {"kMostPixels": MAX_PIXELS, "kMostScanned": MOST_SCANNED}


def of_claimed_size(name, height, width):
    """A picture whose header says that it is larger than it is."""
    data = bytearray(IMAGES[name]())
    if name == "png":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    else:
        frame = data.index(b"\xff\xc0" if name == "jpeg" else b"\xff\xc2")
        data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("name", ["jpeg", "progressive jpeg", "png"])
def test_a_picture_over_the_limit_is_told_before_it_is_decoded(name, prepare):
    data = of_claimed_size(name, 20_000, 65_000)
    told = "65000 x 20000, more than 100"
    assert prepare(data) is None and told in prepare.told
    with pytest.raises(DataError, match="more than 100,000,000 pixels"):
        safe_decode(data, "a")


def test_a_jpeg_of_too_many_scans(prepare):
    """Each takes the time of a picture, of 9 million pixels here, and a few bytes."""
    data = saved(np.full((3000, 3000), 77, np.uint8), kind="JPEG", progressive=True)
    assert prepare(data) is not None
    last = data[data.rindex(b"\xff\xda") : -2]
    data = data[:-2] + last * 1500 + data[-2:]
    assert prepare(data) is None and "too many scans" in prepare.told
    with pytest.raises(DataError, match="a: a JPEG of too many scans"):
        safe_decode(data, "a")


def test_flipped_bytes_never_crash(prepare):
    r = np.random.default_rng(1)
    turned = {"jpeg 6": TURNED["jpeg 6"], "png, after the pixels": TURNED["png, after the pixels"]}
    for name, make in ({n: IMAGES[n] for n in ("jpeg", "progressive jpeg", "png", "CMYK jpeg")} | turned).items():
        good = make()
        # what says how a picture is turned lies at the ends
        ends = [*range(min(len(good), 120)), *range(max(len(good) - 80, 0), len(good))]
        for _ in range(12):
            data = bytearray(good)
            for place in r.integers(0, len(data), 4):
                data[place] = r.integers(256)
            # refused with one line or decoded; the sanitizers would end the program otherwise
            prepare(bytes(data), exif="upright")
            if name in turned:
                data = bytearray(good)
                for place in r.choice(ends, 4):
                    data[place] = r.integers(256)
                prepare(bytes(data), exif="upright")
