"""Jobs on Huawei Cloud's ModelArts: data and checkpoints from object storage before, outputs to it after.

ModelArts gives a job two addresses, data_url and train_url, and a local disk, /cache. Its images bring the one package
that reads and writes such addresses, moxing (https://support.huaweicloud.com/intl/en-us/develop-modelarts/
develop-moxing-0002.html); nothing else here knows of it.

Outputs are sent while they appear, so that of a node that is lost the last minutes alone are; and data sets converted
here stay here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import stat
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from src.config import Config
from src.runtime.errors import UserError
from src.runtime.masking import MASK, masked, without_secrets

__all__ = ["ModelArtsError", "fetch_run", "local_checkpoint", "on_modelarts"]

FETCHED = ".fetched"  # in a folder that was fetched whole: from where, and what was unpacked
LOCAL = ("mindrecord", "compile_cache", "run.lock", FETCHED)  # of the outputs' folder what isn't sent
PERIOD = 10.0  # seconds between looks for new outputs


class ModelArtsError(UserError):
    """A transfer that failed; the message names the address and the remedy."""


class Storage:
    """Object storage, by moxing. Raises ModelArtsError where that isn't installed."""

    def __init__(self) -> None:
        try:
            import moxing
        except ImportError:
            raise ModelArtsError(
                "enable_modelarts: the moxing package isn't there; run in one of ModelArts' images, or set it to false"
            ) from None
        self.files = moxing.file

    def copy(self, source: str, target: str, is_file: bool = False) -> None:
        """Copies a file (also a name that ends in .ckpt) or a folder, to or from storage. Raises ModelArtsError."""
        try:
            if is_file or source.endswith(".ckpt"):
                self.files.copy(source, target)
            else:
                self.files.copy_parallel(source, target)
        except Exception as e:  # moxing raises several kinds, some of them its client's own
            reason = (without_secrets(str(e), source, target).strip() or type(e).__name__).splitlines()[0]
            raise ModelArtsError(f"{masked(source)} -> {masked(target)}: the transfer failed: {reason[:200]}") from None


@contextlib.contextmanager
def on_modelarts(config: Config) -> Iterator[Config]:
    """The config to work with. With enable_modelarts: fetches data_url to data_path and checkpoint_url to load_path,
    unpacks the data set, and yields a config with those local paths; meanwhile, and at the end, also after an error,
    rank 0 sends what output_path has to train_url. Without: yields the config as it is.

    Of several processes on a server one fetches, the others wait. Raises ModelArtsError.
    """
    # msrun's scheduler runs the script too, only to wait for the workers
    if not config.enable_modelarts or os.environ.get("MS_ROLE") == "MS_SCHED":
        yield config
        return
    for name in ("data_url", "train_url", "checkpoint_url"):
        if f"={MASK}" in getattr(config, name) or f"{MASK}@" in getattr(config, name):
            raise ModelArtsError(f"{name}: a run's config.yaml keeps no passwords; give --{name} as the run had it")
    storage = Storage()
    if config.data_url:
        fetch(storage, config.data_url, Path(config.data_path), archive_name(config))
    if config.checkpoint_url:
        fetch(storage, config.checkpoint_url, Path(config.load_path))
    outputs = None
    if config.train_url and int(os.environ.get("RANK_ID") or 0) == 0:
        outputs = Outputs(storage, Path(config.output_path), config.train_url)
    try:
        with outputs.sent_as_they_appear() if outputs else contextlib.nullcontext():
            yield localized(config)
    finally:
        if outputs:
            deliver(outputs)


def fetch_run(config: Config, url: str) -> str:
    """Fetches the run that `url` names, its output folder or one of its checkpoints in storage, once, to where this
    job's outputs go, and returns its local path; that of a local one is `url` itself. Raises ModelArtsError.
    """
    if "://" not in url:
        return url
    if not config.enable_modelarts:
        raise ModelArtsError(f"--resume {masked(url)}: an address; it is fetched with --enable_modelarts true")
    folder, _, inside = url.rstrip("/").partition("/checkpoints")
    local = Path(config.output_path) / folder.rpartition("/")[2]
    fetch(Storage(), folder, local)
    return str(local) + (f"/checkpoints{inside}" if inside else "")


def archive_name(config: Config) -> str | None:
    """Which zip file of the data is to be unpacked: "" the only one there, None none."""
    return config.modelarts_dataset_unzip_name if config.need_modelarts_dataset_unzip else None


def fetch(storage: Storage, url: str, folder: Path, archive: str | None = None) -> None:
    """Copies `url` into `folder`, once, and unpacks `archive` there. Raises ModelArtsError."""
    wanted = f"{masked(url)} {archive}"
    marker = folder / FETCHED
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as e:
        raise ModelArtsError(f"{folder}: can't write there: {e.strerror}; set data_path and load_path") from None
    try:
        # a process that dies frees the lock
        fcntl.flock(handle, fcntl.LOCK_EX)
        if marker.is_file() and marker.read_text() == wanted:
            return
        print(f"fetching {masked(url)} -> {folder}")
        storage.copy(url, str(folder / url.rpartition("/")[2]) if url.endswith(".ckpt") else str(folder))
        if archive is not None:
            unpack(find_archive(folder, archive), folder)
        marker.write_text(wanted)
    finally:
        os.close(handle)


def find_archive(folder: Path, name: str) -> Path:
    """The zip file `name` (with or without .zip) of `folder`, or its only one. Raises ModelArtsError."""
    if name:
        path = folder / f"{name.removesuffix('.zip')}.zip"
        if not path.is_file():
            raise ModelArtsError(f"{path}: no such file in data_url; check modelarts_dataset_unzip_name")
        return path
    found = sorted(folder.glob("*.zip"))
    if len(found) != 1:
        raise ModelArtsError(f"{folder}: {len(found)} zip files; name the data set's: modelarts_dataset_unzip_name")
    return found[0]


def unpack(path: Path, folder: Path) -> None:
    """Unpacks a zip file. Raises ModelArtsError."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in tqdm(archive.namelist(), unit="file", desc=f"unpacking {path.name}"):
                archive.extract(name, folder)
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as e:
        raise ModelArtsError(f"{path}: not a whole zip file ({e}); send it to data_url again") from None
    except OSError as e:
        raise ModelArtsError(f"{folder}: can't unpack {path.name}: {e.strerror or e}") from None


def localized(config: Config) -> Config:
    """The config with local paths: data in data_path, checkpoints in load_path, outputs in output_path."""
    data = Path(config.data_path)
    name = (archive_name(config) or "").removesuffix(".zip")
    if name and (data / name).is_dir():
        data = data / name
    return dataclasses.replace(
        config,
        train_dataset=str(data / config.train_dataset),
        val_dataset=str(data / config.val_dataset),
        val_annotations=config.val_annotations and str(data / config.val_annotations),
        image_dir=config.image_dir and str(data / config.image_dir),
        anno_path=config.anno_path and str(data / config.anno_path),
        pre_trained=str(local_checkpoint(config, config.pre_trained)),
        backbone=dataclasses.replace(
            config.backbone, pretrained=str(local_checkpoint(config, config.backbone.pretrained))
        ),
        train_outputs=config.output_path,
        # beside the outputs, which go to storage
        mindrecord_dir=config.mindrecord_dir or str(Path(config.data_path).parent / "mindrecord"),
    )


def local_checkpoint(config: Config, path: str) -> str:
    """A checkpoint that isn't here under that name is one of those that checkpoint_url brought to load_path."""
    if not (config.enable_modelarts and path) or Path(path).is_file():
        return path
    return str(Path(config.load_path) / path)


class Outputs:
    """What lies in `folder`, and of it what storage at `url` has."""

    def __init__(self, storage: Storage, folder: Path, url: str):
        self.storage, self.folder, self.url = storage, folder, url
        self.sent: dict[str, tuple[int, int]] = {}

    def place(self, name: str) -> str:
        """A file's address; what grants access follows the name."""
        base, mark, access = self.url.partition("?")
        return f"{base.rstrip('/')}/{name}{mark}{access}"

    def found(self) -> dict[str, tuple[int, int]]:
        """Time of writing and size of every whole file, the oldest first: a checkpoint's weights before its state."""
        out = {}
        for path in self.folder.rglob("*"):
            name = str(path.relative_to(self.folder))
            if ".writing" in path.name or path.name in LOCAL or name.split("/")[0] in LOCAL:
                continue
            # a checkpoint that was one too many may have gone meanwhile
            with contextlib.suppress(OSError):
                if stat.S_ISREG((about := path.stat()).st_mode):
                    out[name] = about.st_mtime_ns, about.st_size
        return dict(sorted(out.items(), key=lambda item: item[1]))

    def send(self) -> None:
        """Sends what is new or has changed, and removes from storage what it had sent and isn't here any more.

        Raises ModelArtsError.
        """
        found = self.found()
        for name, about in found.items():
            if self.sent.get(name) != about:
                try:
                    self.storage.copy(str(self.folder / name), self.place(name), is_file=True)
                except ModelArtsError:
                    if (self.folder / name).exists():
                        raise
                    continue
                self.sent[name] = about
        for name in self.sent.keys() - found.keys():
            del self.sent[name]
            # what can't be removed is one checkpoint more
            with contextlib.suppress(Exception):
                self.storage.files.remove(self.place(name))

    @contextlib.contextmanager
    def sent_as_they_appear(self) -> Iterator[None]:
        """Sends during the block, every PERIOD seconds; what fails is told once and tried again."""
        over, told = threading.Event(), set()

        def keep_sending() -> None:
            while not over.wait(PERIOD):
                try:
                    self.send()
                except ModelArtsError as e:
                    if str(e) not in told:
                        print(f"{e}; trying again", file=sys.stderr)
                    told.add(str(e))

        thread = threading.Thread(target=keep_sending, name="outputs", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def deliver(outputs: Outputs) -> None:
    """Sends what train_url lacks. Raises ModelArtsError, or only tells it where another error is under way."""
    if not outputs.folder.is_dir():
        return
    under_way = sys.exc_info()[0] is not None
    print(f"sending {outputs.folder} -> {masked(outputs.url)}")
    try:
        if outputs.sent or any((outputs.folder / name).exists() for name in LOCAL):
            outputs.send()
        else:
            # all at once, and several files at a time
            outputs.storage.copy(str(outputs.folder), outputs.url)
    except ModelArtsError as e:
        if not under_way:
            raise
        print(f"error: {e}", file=sys.stderr)
