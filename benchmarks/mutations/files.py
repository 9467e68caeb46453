"""Changes to data sets of any format: pictures, names, encodings, files."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from benchmarks.mutations.sets import DataSet, mutation, pick


def annotation_docs(s: DataSet) -> list[str]:
    """Documents with objects, by path."""
    return [p for p in s.docs if p != "data.yaml"]


def replace_image(s: DataSet, random: np.random.Generator, change: Callable[[np.ndarray, str], bytes]) -> None:
    path = pick(random, s.images)
    image = cv2.imdecode(np.frombuffer(s.images[path], np.uint8), cv2.IMREAD_COLOR)
    s.images[path] = change(image, Path(path).suffix.lower())


def encode(image: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


@mutation("images")
def image_of_other_size(s, random):
    factor = float(pick(random, (0.5, 2.0, 1.01)))
    replace_image(s, random, lambda im, suffix: encode(cv2.resize(im, None, fx=factor, fy=factor), suffix))


@mutation("images", benign=True)
def image_grey(s, random):
    replace_image(s, random, lambda im, suffix: encode(im[:, :, 0], suffix))


@mutation("images", benign=True)
def image_16_bit(s, random):
    shift = int(random.integers(2, 9))
    replace_image(s, random, lambda im, _: encode(im.astype(np.uint16) << shift, ".png"))


@mutation("images", benign=True)
def image_rgba(s, random):
    replace_image(s, random, lambda im, _: encode(cv2.cvtColor(im, cv2.COLOR_BGR2BGRA), ".png"))


@mutation("images", benign=True)
def image_of_other_kind(s, random):
    kind = pick(random, (".bmp", ".webp", ".tif", ".png", ".jpg"))
    replace_image(s, random, lambda im, _: encode(im, kind))


@mutation("images")
def image_tiny(s, random):
    side = int(random.integers(1, 9))
    replace_image(s, random, lambda im, suffix: encode(im[:side, :side], suffix))


@mutation("images")
def image_cut_short(s, random):
    path = pick(random, s.images)
    s.images[path] = s.images[path][: int(len(s.images[path]) * random.uniform(0, 1))]


@mutation("images")
def image_bytes_spoilt(s, random):
    path = pick(random, s.images)
    data = bytearray(s.images[path])
    for _ in range(int(random.integers(1, 12))):
        data[int(random.integers(len(data)))] = int(random.integers(256))
    s.images[path] = bytes(data)


@mutation("images")
def image_is_something_else(s, random):
    path = pick(random, s.images)
    s.images[path] = pick(random, (b"", b"GIF89a" + bytes(40), b"<html>404</html>", b"version https://git-lfs\n"))


@mutation("images")
def image_with_exif(s, random):
    orientation = int(random.integers(2, 9))

    def change(image, _):
        out, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(image[:, :, ::-1]).save(out, "JPEG", exif=exif)
        return out.getvalue()

    replace_image(s, random, change)


@mutation("images")
def image_turned_by_exif(s, random):
    """Stored on its side, as phones do: the annotated size is the upright one."""

    def change(image, _):
        out, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.ascontiguousarray(np.rot90(image)[:, :, ::-1])).save(out, "JPEG", exif=exif)
        return out.getvalue()

    replace_image(s, random, change)


@mutation("names")
def image_missing(s, random):
    del s.images[pick(random, s.images)]


def rename(s: DataSet, random: np.random.Generator, change: Callable[[Path], Path | str], which=None) -> None:
    path = pick(random, [p for p in s.images if which is None or which(p)])
    new = str(change(Path(path)))
    if new in s.images:
        raise LookupError("there already")
    s.images[new] = s.images.pop(path)


@mutation("names", benign=True)
def suffix_in_other_case(s, random):
    rename(s, random, lambda p: p.with_suffix(p.suffix.swapcase()))


@mutation("names", "coco", "txt", "labelme", benign=True)
def name_in_other_case(s, random):
    rename(s, random, lambda p: p.with_name(p.name.swapcase()))


@mutation("names", "voc", "yolo")
def name_in_other_case_than_its_labels(s, random):
    rename(s, random, lambda p: p.with_name(p.name.swapcase()))


@mutation("names", "coco", "txt", "labelme", benign=True)
def accents_decomposed(s, random):
    rename(s, random, lambda p: unicodedata.normalize("NFD", str(p)), lambda p: not p.isascii())


@mutation("names", "voc", "yolo")
def accents_decomposed_beside_labels(s, random):
    rename(s, random, lambda p: unicodedata.normalize("NFD", str(p)), lambda p: not p.isascii())


@mutation("names")
def suffix_of_another_kind(s, random):
    rename(s, random, lambda p: p.with_suffix(pick(random, (".jpeg", ".JPG", ".bmp", ".jfif", ".gif", ""))))


@mutation("names")
def image_in_a_folder(s, random):
    rename(s, random, lambda p: p.parent / "deeper" / p.name)


@mutation("names")
def same_name_in_two_folders(s, random):
    path = Path(pick(random, s.images))
    s.images[str(path.parent / "other" / path.name)] = s.images[str(path)]


@mutation("names")
def two_images_of_one_stem(s, random):
    path = Path(pick(random, s.images))
    suffix = ".png" if path.suffix == ".jpg" else ".jpg"
    image = cv2.imdecode(np.frombuffer(s.images[str(path)], np.uint8), cv2.IMREAD_COLOR)
    s.images[str(path.with_suffix(suffix))] = encode(image, suffix)


@mutation("names")
def name_not_utf8(s, random):
    path = pick(random, [p for p in s.images if not p.isascii()])
    s.images[path.replace("é", "\udce9")] = s.images.pop(path)


@mutation("encodings", benign=True)
def byte_order_mark(s, random):
    s.encodings[pick(random, annotation_docs(s))] = "utf-8-sig"


@mutation("encodings", "coco", "txt", "labelme", "yolo", benign=True)
def utf_16(s, random):
    path = pick(random, annotation_docs(s))
    if s.docs[path] == []:
        raise LookupError("empty")
    s.encodings[path] = "utf-16"


@mutation("encodings")
def latin_1(s, random):
    s.encodings[pick(random, annotation_docs(s))] = "latin-1"


@mutation("encodings", benign=True)
def line_ends_of_windows(s, random):
    s.text_edits[pick(random, s.docs)] = lambda text: text.replace("\n", "\r\n")


@mutation("encodings")
def zero_bytes(s, random):
    path = pick(random, s.docs)
    at = random.uniform(0, 1)
    s.byte_edits[path] = lambda data: data[: int(at * len(data))] + b"\0\0" + data[int(at * len(data)) :]


@mutation("truncation")
def document_cut_short(s, random):
    share = float(random.uniform(0, 1))
    s.byte_edits[pick(random, s.docs)] = lambda data: data[: int(share * len(data))]


@mutation("truncation")
def document_missing(s, random):
    del s.docs[pick(random, s.docs)]


@mutation("truncation")
def document_twice_in_one(s, random):
    s.text_edits[pick(random, s.docs)] = lambda text: text + text


@mutation("truncation")
def document_is_a_web_page(s, random):
    s.text_edits[pick(random, s.docs)] = lambda _: "<html><body>404 not found</body></html>"


@mutation("files", benign=True)
def files_that_nothing_names(s, random):
    folder = str(Path(pick(random, s.images)).parent)
    for name in ("Thumbs.db", ".DS_Store", "notes.md", "._a1.jpg", "README"):
        s.files[f"{folder}/{name}"] = b"\0\1\2notes"


@mutation("files", benign=True)
def copies_of_apple_double(s, random):
    for path in annotation_docs(s)[:3]:
        s.files[str(Path(path).with_name("._" + Path(path).name))] = b"\0\5\26\7" + bytes(60)


@mutation("files", "coco", "txt", "labelme", "voc", "yolo", benign=True)
def dangling_link(s, random):
    s.links[str(Path(pick(random, s.images)).parent / "gone.jpg")] = "/nowhere/gone.jpg"


@mutation("files", benign=True)
def image_is_a_link(s, random):
    path = pick(random, s.images)
    s.images["pool/" + Path(path).name] = s.images.pop(path)
    s.links[path] = "../" * path.count("/") + "pool/" + Path(path).name
    if s.format == "labelme":
        # the pool would lie below the folder of the labels
        raise LookupError("nothing to change")


@mutation("files", benign=True)
def hidden_folders(s, random):
    for path in annotation_docs(s)[:2]:
        s.files[str(Path(path).parent / ".ipynb_checkpoints" / Path(path).name)] = s.encoded(path)


@mutation("files", benign=True)
def copies_of_images_in_hidden_folders(s, random):
    for path in list(s.images)[:3]:
        s.files[f"{Path(path).parent}/.thumbnails/{Path(path).name}"] = s.images[path]
        s.files[f"{Path(path).parent}/.ipynb_checkpoints/{Path(path).stem}-checkpoint.png"] = s.images[path]


@mutation("files", "coco", "txt")
def image_that_nothing_names(s, random):
    path = Path(pick(random, s.images))
    s.images[str(path.with_name("extra.png"))] = encode(np.full((20, 30, 3), 9, np.uint8), ".png")


@mutation("files", "voc", "labelme", "yolo")
def image_without_labels(s, random):
    path = Path(pick(random, s.images))
    s.images[str(path.with_name("extra.png"))] = encode(np.full((20, 30, 3), 9, np.uint8), ".png")
