"""Which file an annotation means: by the path that it gives, by the same path written otherwise, by name last."""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from src.data.images import sorted_files
from src.data.records import DataError, ImageRecord

__all__ = ["ImageFinder", "name_parts", "plain_name", "refuse_shared"]


def plain_name(name: str) -> str:
    """A path or name without what tools and file systems write differently: separators, case, composed accents, and
    bytes that aren't UTF-8."""
    text = name.replace("\\", "/")
    with contextlib.suppress(UnicodeEncodeError):
        raw = text.encode("utf-8", "surrogateescape")
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
    return unicodedata.normalize("NFC", text).casefold()


def name_parts(name: str | Path) -> tuple[str, ...]:
    """The folders and the file of a name: slashes either way, accented letters composed (NFC), no dots."""
    text = unicodedata.normalize("NFC", str(name).replace("\\", "/"))
    return tuple(p for p in text.split("/") if p not in ("", ".", ".."))


def endings(name: str) -> Iterator[str]:
    """The path as given, with forward slashes, then without its first folders, one more at a time."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    start = 1 if parts and parts[0] == "/" else 0
    for i in range(start, len(parts)):
        yield "/".join(parts[i:])


class ImageFinder:
    """Finds images below `folders`, the likeliest first.

    A path below one of them comes before everything else; then the path less its leading folders (`images/`, what an
    upload added), backslashes as slashes; then the file below the first folder whose path or name differs in nothing
    but case, accents' encoding or bytes that aren't UTF-8. Two that fit alike are refused.
    """

    def __init__(self, folders: Sequence[Path]):
        self.folders = list(dict.fromkeys(folders))
        self.loose: set[Path] = set()
        self._by_name: dict[str, list[Path]] | None = None

    @property
    def listed(self) -> list[Path]:
        """Folders that were searched by name."""
        return [] if self._by_name is None else self.folders[:1]

    def find(self, name: str) -> Path:
        """The image of that path. Raises DataError, which tells what was tried."""
        if not name or "\0" in name:
            raise DataError(f"{name!r} is no file name")
        for folder in self.folders:
            if os.path.isfile(folder / name):
                return folder / name
        for ending in endings(name):
            for folder in self.folders:
                path = folder / ending
                if os.path.isfile(path):
                    self.loose.add(path)
                    return path
        wanted = plain_name(name)
        found = self.names().get(PurePosixPath(wanted).name, [])
        # of several, those whose path ends like it
        longest = [p for p in found if ("/" + plain_name(os.fspath(p))).endswith("/" + wanted)]
        best = longest or found
        if len(best) == 1:
            self.loose.add(best[0])
            return best[0]
        if best:
            raise DataError(f"{name} may be {best[0]} or {best[1]}; name it by its path")
        tried = "".join(f", nor in {f}" for f in self.folders[1:])
        raise DataError(f"{self.folders[0] / name}: no such image{tried}, nor one called like it below the first")

    def names(self) -> dict[str, list[Path]]:
        """Every file below the first folder, by its plain name; but those in hidden folders, which are copies."""
        if self._by_name is None:
            self._by_name = {}
            with contextlib.suppress(OSError):
                images, others = sorted_files(self.folders[0])
                for path in (*images, *filter(os.path.isfile, others)):
                    self._by_name.setdefault(plain_name(path.name), []).append(path)
        return self._by_name


def refuse_shared(records: Sequence[ImageRecord], finder: ImageFinder) -> None:
    """Gives a fault to each image whose file was found by less than its path and belongs to another one, too."""
    owners: dict[Path, list[ImageRecord]] = {}
    for record in records:
        if record.path in finder.loose:
            owners[record.path] = []
    if not owners:
        return
    for record in records:
        if record.path in owners:
            owners[record.path].append(record)
    for path, shared in owners.items():
        for record in shared if len(shared) > 1 else ():
            names = " and ".join(repr(r.file_name) for r in shared[:2])
            record.faults.append(f"{path}: {names} would both be it; put the images where their paths lead")
