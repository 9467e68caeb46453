"""Image files: their headers, how they are turned, what is refused; against Pillow's and OpenCV's own turning."""

import io
import itertools
import struct

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from src.data.images import (
    check_decodes,
    dark_16bit,
    decode_image,
    file_header,
    frame_of,
    image_header,
    is_image,
    orientation_for,
    read_image,
    safe_decode,
    sorted_files,
    turn,
    turn_points,
    turned_size,
)
from src.data.records import DataError

HEIGHT, WIDTH = 22, 37
PICTURE = cv2.resize(np.random.default_rng(0).integers(0, 255, (8, 12, 3)).astype(np.uint8), (WIDTH, HEIGHT))


def decoded_size(data, name):
    """As a conversion looks at an image."""
    header = image_header(data, name)
    check_decodes(data, name, header)
    return header.stored


def bits_of(data, name="a"):
    return dark_16bit(data, name, image_header(data, name))


def saved(kind, orientation=None, picture=PICTURE, **options):
    """Bytes of an RGB picture, with an orientation in EXIF (TIFF: its own tag)."""
    if orientation is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    if kind == "WEBP":
        options["lossless"] = True
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_stored_and_upright(kind, orientation, tmp_path):
    data = saved(kind, orientation)
    header = image_header(data, "a")
    assert header == (kind, HEIGHT, WIDTH, orientation)
    (tmp_path / "a").write_bytes(data)
    assert file_header(tmp_path / "a") == header
    assert frame_of(tmp_path / "a", "stored")[:2] == header.stored == (HEIGHT, WIDTH)
    # nothing turns by itself, a TIFF neither
    stored = decode_image(saved(kind), "a")
    np.testing.assert_array_equal(decode_image(data, "a"), stored)
    np.testing.assert_array_equal(safe_decode(data, "a"), stored)
    upright = read_image(tmp_path / "a", "upright")
    shown = Image.open(io.BytesIO(data))
    # Pillow turns a TIFF when it is loaded
    shown = np.asarray(shown if kind == "TIFF" else ImageOps.exif_transpose(shown))[..., ::-1]
    assert header.upright == upright.shape[:2] == shown.shape[:2]
    if kind == "JPEG":
        shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)  # Pillow's decoder may round otherwise
    np.testing.assert_array_equal(upright, shown)


@pytest.mark.parametrize("mode", ["L", "1", "P", "I;16"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_tiff_of_other_depths(mode, orientation):
    grey = Image.fromarray(PICTURE[..., 0])
    image = Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    data = saved("TIFF", picture=image, tiffinfo={0x0112: orientation})
    assert image_header(data, "a") == ("TIFF", HEIGHT, WIDTH, orientation)
    np.testing.assert_array_equal(decode_image(data, "a"), decode_image(saved("TIFF", picture=image), "a"))


def big_endian_tiff(orientation):
    """An uncompressed grey TIFF, MM, whose orientation is a LONG."""
    entries = [(256, 4, WIDTH), (257, 4, HEIGHT), (258, 3, 8 << 16), (259, 3, 1 << 16), (262, 3, 1 << 16)]
    place = 8 + 2 + 12 * 10 + 4
    entries += [
        (273, 4, place),
        (0x0112, 4, orientation),
        (277, 3, 1 << 16),
        (278, 4, HEIGHT),
        (279, 4, HEIGHT * WIDTH),
    ]
    rows = b"".join(struct.pack(">HHII", tag, kind, 1, value) for tag, kind, value in sorted(entries))
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + rows + bytes(4) + PICTURE[..., 0].tobytes()


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_big_endian_tiff(orientation):
    data = big_endian_tiff(orientation)
    assert image_header(data, "a") == ("TIFF", HEIGHT, WIDTH, orientation)
    np.testing.assert_array_equal(decode_image(data, "a")[..., 0], PICTURE[..., 0])


SIZES = (HEIGHT, WIDTH), (WIDTH, HEIGHT), (10, 10), None


@pytest.mark.parametrize(("orientation", "annotated"), itertools.product(range(1, 9), SIZES))
def test_the_rule(orientation, annotated):
    stored = (HEIGHT, WIDTH)
    assert orientation_for("stored", stored, orientation, annotated) == 1
    assert orientation_for("upright", stored, orientation, annotated) == orientation
    lies = orientation >= 5 and annotated == (WIDTH, HEIGHT)
    assert orientation_for("auto", stored, orientation, annotated) == (orientation if lies else 1)
    # where turning keeps the size, nothing says that it was annotated upright
    assert orientation_for("auto", (20, 20), orientation, (20, 20)) == 1


def test_a_policy_that_is_none():
    with pytest.raises(ValueError, match="sideways"):
        orientation_for("sideways", (1, 2), 6)


def test_the_annotated_size_decides_or_is_refused(refusal):
    data = saved("PNG", 6)
    upright = cv2.rotate(decode_image(data, "a"), cv2.ROTATE_90_CLOCKWISE)
    np.testing.assert_array_equal(safe_decode(data, "a", "auto", (WIDTH, HEIGHT)), upright)
    np.testing.assert_array_equal(safe_decode(data, "a", "auto", (HEIGHT, WIDTH)), decode_image(data, "a"))
    np.testing.assert_array_equal(safe_decode(data, "a", "auto"), decode_image(data, "a"))
    with refusal(DataError, "a: 37 x 22", "annotated as 22 x 37", "exif: auto"):
        safe_decode(data, "a", "stored", (WIDTH, HEIGHT))
    with refusal(DataError, "a: 22 x 37", "annotated as 37 x 22", "exif: auto"):
        safe_decode(data, "a", "upright", (HEIGHT, WIDTH))
    with refusal(DataError, "a: 37 x 22", "annotated as 36 x 22", "resized"):
        safe_decode(data, "a", "auto", (HEIGHT, WIDTH - 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_points_turn_with_their_pixels(orientation):
    for y, x in ((0, 0), (5, 3), (HEIGHT - 1, 9)):
        dot = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
        dot[y, x] = 1
        turned = turn(dot, orientation)
        assert turned.shape[:2] == turned_size((HEIGHT, WIDTH), orientation)
        [[row, column]] = np.argwhere(turned[..., 0])
        np.testing.assert_array_equal(
            turn_points([[x + 0.5, y + 0.5]], (HEIGHT, WIDTH), orientation), [[column + 0.5, row + 0.5]]
        )


def test_a_header_decodes_nothing(monkeypatch, refusal):
    """A PNG keeps EXIF before or after its pixels; Pillow alone would decode it to look."""
    large = saved("PNG", picture=Image.new("1", (12_000, 8_000)))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert image_header(large, "a")[:3] == ("PNG", 8_000, 12_000)
    with refusal(DataError, "a: 12000 x 8000", "more than 1,000,000 pixels"):
        image_header(large, "a", max_pixels=1_000_000)


def pictures_of_a_phone():
    """A JPEG with a second picture behind the first, upright at a quarter turn."""
    second = Image.fromarray(PICTURE[::-1])
    return saved("MPO", 6, save_all=True, append_images=[second])


def test_of_several_pictures_the_first():
    data = pictures_of_a_phone()
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert image_header(data, "a") == ("JPEG", HEIGHT, WIDTH, 6)
    assert decoded_size(data, "a") == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(decode_image(data, "a"), decode_image(saved("JPEG"), "a"))
    for kind in ("WEBP", "PNG", "TIFF"):
        data = saved(kind, save_all=True, append_images=[Image.fromarray(255 - PICTURE)])
        np.testing.assert_array_equal(safe_decode(data, "a")[..., ::-1], PICTURE)


@pytest.mark.parametrize("side", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "JPEG", "TIFF", "PPM"])
def test_whole_files_of_small_sides(kind, side, refusal):
    for shape in ((side, 30), (30, side), (side, side)):
        data = saved(kind, picture=cv2.resize(PICTURE, shape[::-1]))
        assert decoded_size(data, "a") == shape
    large = saved(kind, picture=cv2.resize(PICTURE, (200, side)))
    for cut in (b"", large[:5], large[:-20]):
        with refusal(DataError, "a: "):
            decoded_size(cut, "a")


def test_a_size_off_by_one_is_told():
    assert decoded_size(saved("JPEG", picture=cv2.resize(PICTURE, (256, 192))), "a") == (192, 256)
    assert decoded_size(saved("JPEG", picture=cv2.resize(PICTURE, (257, 191))), "a") == (191, 257)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "empty"),
        (b"text", "not an image"),
        (saved("GIF"), "a GIF file, which isn't read; save it as PNG or JPEG"),
        (b"\0\0\0\x18ftypheic" + bytes(30), "a HEIC file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "not an image"),
        (b"II*\0\xff\xff\xff\xff", "image"),
    ],
)
def test_what_is_no_image(content, part, tmp_path, refusal):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert not is_image(path)
    for read in (lambda: image_header(content, path), lambda: file_header(path), lambda: decoded_size(content, path)):
        with refusal(DataError, path, part):
            read()
    with refusal(DataError, "none.jpg", "no such image"):
        file_header(tmp_path / "none.jpg")
    with refusal(DataError, tmp_path, "not a file"):
        file_header(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_headers_are_refused_or_read():
    r = np.random.default_rng(3)
    for data in (saved("JPEG", 6), saved("PNG", 6), saved("TIFF", 6), saved("WEBP", 6)):
        for _ in range(60):
            spoilt = bytearray(data)
            for place in r.integers(0, min(len(data), 200), 3):
                spoilt[place] = r.integers(256)
            try:
                header = image_header(bytes(spoilt), "a")
                image = safe_decode(bytes(spoilt), "a", "upright")
                assert image.shape == (*header.upright, 3)
            except DataError as e:
                assert str(e).startswith("a: ")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm", ".ppm"])
@pytest.mark.parametrize(("highest", "bits"), [(1023, 10), (1024, 12), (4095, 12), (4096, 0), (65535, 0), (0, 0)])
def test_few_bits_in_a_16_bit_file(suffix, highest, bits):
    image = np.zeros((5, 6) if suffix == ".pgm" else (5, 6, 3), np.uint16)
    image[2, 5] = highest
    assert bits_of(cv2.imencode(suffix, image)[1].tobytes(), "a") == bits
    if suffix == ".png":
        alpha = np.dstack([np.broadcast_to(image, (5, 6, 3)), np.full((5, 6), 65535, np.uint16)])
        assert bits_of(cv2.imencode(suffix, alpha)[1].tobytes(), "a") == bits


def test_a_dark_8_bit_file_is_a_dark_picture():
    assert bits_of(saved("PNG", picture=PICTURE // 100), "a") == bits_of(saved("JPEG"), "a") == 0


def test_channels():
    """Grey, transparency, palettes and inks: three channels, as Pillow's own conversion has them."""
    image = Image.fromarray(PICTURE)
    grey = np.asarray(image.convert("L"))
    alpha = Image.fromarray(np.dstack([grey, 255 - grey]), "LA")
    np.testing.assert_array_equal(safe_decode(saved("PNG", picture=alpha), "a"), np.dstack([grey] * 3))
    palette = image.quantize(20)
    np.testing.assert_array_equal(
        safe_decode(saved("PNG", picture=palette, transparency=3), "a")[..., ::-1], np.asarray(palette.convert("RGB"))
    )
    for kind in ("CMYK", "YCbCr"):
        data = saved("JPEG", picture=image.convert(kind), quality=98)
        # JPEG's loss, and the rounding of inks
        assert np.abs(safe_decode(data, "a")[..., ::-1].astype(int) - PICTURE).mean() < 12


def test_a_link_to_the_folder_above(tmp_path):
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "sub/a.jpg")
    (tmp_path / "sub/loop").symlink_to(tmp_path)
    assert sorted_files(tmp_path) == ([tmp_path / "sub/a.jpg"], [tmp_path / "sub/loop"])
