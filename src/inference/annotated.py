"""Which entry of an annotation file an image file is: by its path first, then by its name where that is one alone."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from src.data.finding import name_parts
from src.data.images import is_image
from src.data.truth import truth_of
from src.runtime.errors import UserError
from src.runtime.newer import zip_equal

__all__ = ["AnnotatedImage", "Annotations", "MatchError"]


class MatchError(UserError):
    """Annotations that don't fit the images; the message names both, and what was tried."""


@dataclass(frozen=True)
class AnnotatedImage:
    """An image as an annotation file has it: its file_name, its id there, and its (height, width) where it says one."""

    name: str
    image_id: int | str
    size: tuple[int, int] | None = None


@dataclass
class Annotations:
    """What an annotation file says of images and of categories' ids, by class name; `files`: images whose files are
    known already, and aren't looked for by name."""

    path: Path
    images: list[AnnotatedImage]
    category_ids: dict[str, int | str]
    files: dict[Path, AnnotatedImage] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> Annotations:
        """Of a COCO file; ids are those that the file itself has. Raises DataError for a file that isn't COCO's."""
        path, data = Path(path), truth_of(path, "skip")
        images = [AnnotatedImage(str(i["file_name"]), source_id(i), size_of(i)) for i in data["images"]]
        categories = {str(c["name"]): source_id(c) for c in data["categories"]}
        return cls(path, images, categories)

    def labels(self, class_names: Sequence[str], wanted: Iterable[str] | None = None) -> dict[int, int | str]:
        """The category id of each label, of the classes in `wanted` (default: all). Raises MatchError for one that the
        file doesn't have."""
        wanted = set(class_names[1:] if wanted is None else wanted)
        lacking = [n for n in class_names[1:] if n in wanted and n not in self.category_ids]
        if lacking:
            raise MatchError(f"{self.path}: has no category {lacking[0]!r}, which the config's coco_classes names")
        return {i: self.category_ids[n] for i, n in enumerate(class_names) if i and n in self.category_ids}

    def find(self, paths: Sequence[Path]) -> dict[Path, AnnotatedImage]:
        """The entry of each file that has one.

        A file is the entry whose file_name ends its path, the longest such; else the one of its name that shares most
        folders with it. Raises MatchError where two entries fit a file equally well, or two files an entry.
        """
        if self.files:
            return {p: self.files[p] for p in paths if p in self.files}
        index = NameIndex(self.images)
        found: dict[int, list[tuple[tuple[bool, int], Path]]] = {}
        for path in paths:
            best, score = index.best(path)
            if len(best) > 1:
                names = " and ".join(repr(self.images[i].name) for i in best[:2])
                raise MatchError(
                    f"{path}: {names} of {self.path} fit it equally well ({index.tried(path)}); name the folder above"
                    " them as --input, or give the images names of their own"
                )
            for i in best:
                found.setdefault(i, []).append((score, path))
        out = {}
        for i, files in found.items():
            files.sort(key=lambda f: f[0], reverse=True)
            if len(files) > 1 and files[0][0] == files[1][0]:
                raise MatchError(
                    f"{files[0][1]} and {files[1][1]}: both would be image {self.images[i].image_id}"
                    f" ({self.images[i].name!r}) of {self.path}; predict one of the folders alone"
                )
            out[files[0][1]] = self.images[i]
        return {p: out[p] for p in paths if p in out}

    def demand(self, paths: Sequence[Path], found: dict[Path, AnnotatedImage]) -> None:
        """Raises MatchError for an image file that `found` lacks, and lists what was tried."""
        lacking = [p for p in paths if p not in found and is_image(p)]
        if lacking:
            tried = "" if self.files else f"; tried {NameIndex(self.images[:1]).tried(lacking[0])}"
            like = f"; it names images like {self.images[0].name!r}" if self.images else ""
            raise MatchError(
                f"{self.path}: has no image {lacking[0].name} ({lacking[0]}{tried}{like}); predict its images alone"
            )


def source_id(entry: dict) -> int | str:
    """The id that the user's file gives an image or category, whatever it was mapped to."""
    return entry.get("source_id", entry["id"])


def size_of(entry: dict) -> tuple[int, int] | None:
    """An image's annotated (height, width); None without a usable one."""
    size = entry["height"], entry["width"]
    return size if all(size) else None


def plain_suffix(name: str) -> str:
    """A name with its suffix in small letters."""
    stem, suffix = os.path.splitext(name)
    return stem + suffix.lower()


def latin_1(name: str) -> str:
    """A name whose bytes aren't UTF-8, read as Latin-1."""
    try:
        name.encode()
    except UnicodeEncodeError:
        name = os.fsencode(name).decode("latin-1")
    return plain_suffix(unicodedata.normalize("NFC", name))


class NameIndex:
    """Entries by their file's name, in forms of it that are tried in turn."""

    FORMS: dict[str, Callable[[str], str]] = {
        "": lambda name: name,
        "with any case of the suffix": plain_suffix,
        "read as Latin-1": latin_1,
    }

    def __init__(self, images: Sequence[AnnotatedImage]):
        self.parts = [name_parts(i.name) for i in images]
        self.by_form: list[dict[str, list[int]]] = []
        for form in self.FORMS.values():
            index: dict[str, list[int]] = {}
            for i, parts in enumerate(self.parts):
                if parts:
                    index.setdefault(form(parts[-1]), []).append(i)
            self.by_form.append(index)

    def best(self, path: Path) -> tuple[list[int], tuple[bool, int]]:
        """Places of the entries that fit a file best, and how well: whether the whole file_name ends its path, and how
        many folders and names agree, from the end."""
        parts = name_parts(os.path.abspath(path))
        for form, index in zip_equal(self.FORMS.values(), self.by_form):
            if found := index.get(form(parts[-1])):
                scores = [self.agreement(self.parts[i], parts) for i in found]
                return [i for i, s in zip_equal(found, scores) if s == max(scores)], max(scores)
        return [], (False, 0)

    @staticmethod
    def agreement(entry: tuple[str, ...], path: tuple[str, ...]) -> tuple[bool, int]:
        """As `best` says, of one entry whose last part agrees."""
        same = 1
        while same < min(len(entry), len(path)) and entry[-same - 1] == path[-same - 1]:
            same += 1
        return same == len(entry), same

    def tried(self, path: Path) -> str:
        """The forms that are tried, in words."""
        name = name_parts(path)[-1]
        return ", ".join(["its path", f"the name {name!r}", *(f"that {form}" for form in list(self.FORMS)[1:])])
