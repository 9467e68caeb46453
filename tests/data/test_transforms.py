"""Image and mask operations."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from src.config import Config
from src.data.images import decode_image
from src.data.records import DataError
from src.data.transforms import crop_mask, fit_size, prepare_image, transform_objects


@pytest.fixture
def config():
    config = Config()
    config.img_width, config.img_height = 128, 64
    return config


def noise(height, width, channels=3, dtype=np.uint8):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.RandomState(0).randint(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


# Size, padding, values


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((64, 128), (64, 128)),
        ((32, 64), (64, 128)),
        ((64, 64), (64, 64)),
        ((128, 64), (64, 32)),
        ((100, 400), (32, 128)),
        ((1, 5000), (1, 128)),
        ((5000, 1), (64, 1)),
        ((99, 128), (64, 83)),
    ],
)
def test_keep_ratio_size(config, size, fitted):
    assert fit_size(*size, config) == fitted


def test_without_keep_ratio_the_canvas_is_filled(config):
    config.keep_ratio = False
    assert fit_size(10, 1000, config) == (64, 128)


def test_padding_is_zero_right_and_below(config):
    wide, size = prepare_image(np.full((20, 80, 3), 200, np.uint8), config)
    assert (wide.shape, wide.dtype, size) == ((3, 64, 128), np.float32, (32, 128))
    assert (wide[:, 32:] == 0).all()
    assert (wide[:, :32] != 0).all()
    tall, size = prepare_image(np.full((80, 20, 3), 200, np.uint8), config)
    assert size == (64, 16)
    assert (tall[:, :, 16:] == 0).all()
    assert (tall[:, :, :16] != 0).all()


@pytest.mark.parametrize("to_rgb", [True, False])
def test_normalisation_and_channel_order(config, to_rgb):
    config.to_rgb = to_rgb
    config.img_mean, config.img_std = [10.0, 20.0, 30.0], [2.0, 4.0, 5.0]
    bgr = np.zeros((64, 128, 3), np.uint8)
    bgr[:] = (50, 100, 200)
    got, _ = prepare_image(bgr, config)
    expected = [(200 - 10) / 2, (100 - 20) / 4, (50 - 30) / 5] if to_rgb else [20.0, 20.0, 34.0]
    # float32 rounding
    np.testing.assert_allclose(got, np.broadcast_to(np.float32(expected)[:, None, None], got.shape), rtol=1e-6)


def test_the_image_given_stays_as_it_was(config):
    image = noise(64, 128)
    before = image.copy()
    prepare_image(image, config, flip=True)
    np.testing.assert_array_equal(image, before)


def test_flip_mirrors_the_picture_not_the_padding(config):
    image = noise(64, 50)
    plain, size = prepare_image(image, config)
    flipped, flipped_size = prepare_image(image, config, flip=True)
    assert size == flipped_size == (64, 50)
    np.testing.assert_array_equal(flipped[:, :, :50], plain[:, :, :50][:, :, ::-1])
    assert (flipped[:, :, 50:] == 0).all()


# Boxes


def test_boxes_follow_the_picture():
    boxes = np.float32([[0, 0, 60, 40], [10, 5, 20, 25]])
    np.testing.assert_array_equal(
        transform_objects(boxes, (40, 60), (80, 180), flip=False), [[0, 0, 180, 80], [30, 10, 60, 50]]
    )
    np.testing.assert_array_equal(
        transform_objects(boxes, (40, 60), (80, 180), flip=True), [[0, 0, 180, 80], [120, 10, 150, 50]]
    )
    assert transform_objects(np.zeros((0, 4), np.float32), (40, 60), (80, 180), flip=True).shape == (0, 4)


def test_a_flipped_box_still_holds_its_object(config):
    """A bright rectangle lies where its box says, before and after the flip."""
    image = np.zeros((32, 50, 3), np.uint8)
    image[8:20, 6:16] = 255
    boxes = np.float32([[6, 8, 16, 20]])
    for flip in (False, True):
        canvas, size = prepare_image(image, config, flip)
        x1, y1, x2, y2 = transform_objects(boxes, (32, 50), size, flip)[0]
        bright = canvas[0] > (255 / 2 - config.img_mean[0]) / config.img_std[0]
        bright[:, size[1] :] = False
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        # edges at half brightness fall on the box's, to the pixel
        assert (columns[0], columns[-1] + 1, rows[0], rows[-1] + 1) == (x1, x2, y1, y2)


# Masks


def crop_of_bitmap(bitmap, box, size):
    """The independent route: each cell is the bitmap's pixel under the cell's centre."""
    x1, y1, x2, y2 = box
    x = np.floor(x1 + (np.arange(size) + 0.5) * (x2 - x1) / size).astype(int).clip(0, bitmap.shape[1] - 1)
    y = np.floor(y1 + (np.arange(size) + 0.5) * (y2 - y1) / size).astype(int).clip(0, bitmap.shape[0] - 1)
    return bitmap[np.ix_(y, x)].astype(bool)


def near_outline(bitmap, radius):
    """Cells within `radius` cells of a change."""
    kernel = np.ones((2 * radius + 1,) * 2, np.uint8)
    b = bitmap.astype(np.uint8)
    padded = np.pad(b, radius)
    return (cv2.dilate(padded, kernel) != cv2.erode(padded, kernel))[radius:-radius, radius:-radius]


OUTLINES = {
    "triangle": [[100.0, 40.0, 420.0, 90.0, 230.0, 350.0]],
    "two parts": [[50.0, 50.0, 150.0, 60.0, 140.0, 180.0, 60.0, 170.0], [300.0, 200.0, 500.0, 210.0, 400.0, 380.0]],
    "beyond the image": [[-80.0, 30.0, 200.0, -50.0, 250.0, 300.0, 60.0, 460.0]],
}


@pytest.fixture(params=OUTLINES)
def outline(request):
    """(polygons, bitmap, box clipped to the image) of a (400, 600) image."""
    polygons = OUTLINES[request.param]
    bitmap = rle.decode(rle.merge(rle.frPyObjects(polygons, 400, 600)))
    xy = np.concatenate([np.reshape(p, (-1, 2)) for p in polygons])
    low, high = xy.min(0).clip(0), np.minimum(xy.max(0), [600, 400])
    return polygons, bitmap, np.array([*low, *high])


def test_crop_of_polygons_is_the_crop_of_their_bitmap(outline):
    polygons, bitmap, box = outline
    crop = crop_mask(polygons, box, 400, 600, 56)
    expected = crop_of_bitmap(bitmap, box, 56)
    assert set(np.unique(crop)) == {0, 255}
    # pycocotools rounds outlines to whole cells here and to whole pixels there: a cell either way
    sure = ~near_outline(expected, 1)
    assert sure.mean() > 0.5
    np.testing.assert_array_equal(crop[sure] > 127, expected[sure])


@pytest.mark.parametrize("compressed", [True, False], ids=["compressed", "counts"])
def test_crop_of_rle_is_the_crop_of_its_bitmap(outline, compressed):
    _, bitmap, box = outline
    if compressed:
        encoded = rle.encode(np.asfortranarray(bitmap))
        segmentation = {"size": [400, 600], "counts": encoded["counts"].decode()}
    else:
        flat = bitmap.ravel(order="F").astype(int)
        edges = np.flatnonzero(np.diff(flat, prepend=0))
        segmentation = {"size": [400, 600], "counts": np.diff([0, *edges, flat.size]).tolist()}
    crop = crop_mask(segmentation, box, 400, 600, 56)
    expected = crop_of_bitmap(bitmap, box, 56)
    # bilinear there, the nearest pixel here: they may differ beside the outline
    sure = ~near_outline(expected, 1)
    np.testing.assert_array_equal(crop[sure], expected[sure] * np.uint8(255))


def test_crop_of_a_whole_box_is_full():
    polygon = [[10.0, 20.0, 70.0, 20.0, 70.0, 50.0, 10.0, 50.0]]
    assert (crop_mask(polygon, np.array([10.0, 20.0, 70.0, 50.0]), 100, 100, 28) == 255).all()


def test_crop_of_half_a_box():
    polygon = [[10.0, 20.0, 40.0, 20.0, 40.0, 50.0, 10.0, 50.0]]
    crop = crop_mask(polygon, np.array([10.0, 20.0, 70.0, 50.0]), 100, 100, 28)
    assert (crop[:, :14] == 255).all()
    assert (crop[:, 14:] == 0).all()


def test_stray_polygons_of_two_points_add_nothing():
    polygon = [10.0, 20.0, 70.0, 20.0, 70.0, 50.0]
    box = np.array([10.0, 20.0, 70.0, 50.0])
    np.testing.assert_array_equal(
        crop_mask([polygon, [1.0, 1.0, 60.0, 40.0]], box, 100, 100, 28), crop_mask([polygon], box, 100, 100, 28)
    )


def test_outline_far_larger_than_its_box():
    """As a wrong annotation may have it; pycocotools alone overflows and takes the process down."""
    polygon = [[0.0, 0.0, 5000.0, 0.0, 5000.0, 5000.0, 0.0, 5000.0]]
    assert (crop_mask(polygon, np.array([10.0, 10.0, 10.005, 10.005]), 5000, 5000, 112) == 255).all()


# Decoding


def encode(image, suffix=".png"):
    return cv2.imencode(suffix, image)[1].tobytes()


def with_orientation(jpeg, value):
    """A JPEG with an EXIF segment that says how to turn it."""
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01" + value.to_bytes(2, "big") + b"\0\0"
    exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01" + entry + b"\0\0\0\0"
    return jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]


def test_colour_image():
    image = noise(20, 30)
    np.testing.assert_array_equal(decode_image(encode(image), "a.png"), image)


def test_exif_rotation_is_not_applied():
    jpeg = encode(noise(20, 30), ".jpg")
    turned = with_orientation(jpeg, 6)
    # the segment means something: OpenCV by itself turns the picture
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (30, 20, 3)
    np.testing.assert_array_equal(decode_image(turned, "a.jpg"), decode_image(jpeg, "a.jpg"))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_grey_image(suffix):
    got = decode_image(encode(noise(20, 30, 1), suffix), "a")
    assert (got.shape, got.dtype) == ((20, 30, 3), np.uint8)
    assert (got == got[:, :, :1]).all()


def test_alpha_is_dropped():
    image = noise(20, 30, 4)
    np.testing.assert_array_equal(decode_image(encode(image), "a.png"), image[:, :, :3])


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_png_is_scaled_down(channels):
    image = noise(20, 30, channels, np.uint16)
    got = decode_image(encode(image), "a.png")
    assert (got.shape, got.dtype) == ((20, 30, 3), np.uint8)
    # the upper byte; decoders round or truncate it
    difference = np.abs(got.astype(int) - image.reshape(20, 30, channels) / 257)
    assert difference.max() <= 1


def test_cmyk_jpeg(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    pillow.new("CMYK", (30, 20), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    got = decode_image((tmp_path / "a.jpg").read_bytes(), "a.jpg")
    assert (got.shape, got.dtype) == ((20, 30, 3), np.uint8)
    # no cyan, all magenta and yellow: red
    assert got[..., 2].min() > 200
    assert got[..., :2].max() < 60


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\xff\xd8\xff\xe0 not a picture", encode(noise(20, 30))[:300]])
def test_no_image(data, refusal):
    with refusal(DataError, "that.jpg", "not an image"):
        decode_image(data, "that.jpg")
