"""Where the network runs."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import mindspore as ms
from mindspore._c_expression import MSContext
from mindspore.common import api

from src.config import Config
from src.ops.library import find_library
from src.runtime.errors import UserError, quiet_logging
from src.runtime.ranks import local_device

__all__ = ["ascend_chip", "can_keep", "compile_cache_folder", "is_kept", "kept_in", "set_device", "use_local_device"]

REMEDY = {
    "GPU": "install CUDA 11 and cuDNN 8, set CUDA_HOME and put them on LD_LIBRARY_PATH (docs/versions.md)",
    "Ascend": "install the Ascend driver and CANN, source their set_env.sh, and reinstall MindSpore for Ascend",
}


def compile_cache_folder(config: Config, *about: object) -> Path:
    """Where a graph of this program, code and config is kept. about: all else that it depends on, told by `repr`.

    MindSpore takes a kept graph by its number in the program, whatever the network or the sizes of what it is given: so
    each has a folder of its own.
    """
    digest = hashlib.sha256(importlib.metadata.version("mindspore").encode())
    digest.update(f"{Path(sys.argv[0]).name} {dataclasses.asdict(config)} {about}".encode())
    for source in sorted(p for p in Path(__file__).parents[1].rglob("*") if p.suffix in (".py", ".cc", ".h")):
        digest.update(source.read_bytes())
    # a kept graph names the library of operators
    digest.update(str(find_library()).encode())
    return (Path(config.train_outputs) / "compile_cache" / digest.hexdigest()[:16]).absolute()


_kept: list[Path] = []


@contextlib.contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """The one graph that is compiled within is kept in `folder`, or taken from there, if it is this process's first."""
    if not can_keep():
        yield
        return
    _kept.append(folder)
    # MindSpore refuses a graph that another program kept, by the files that the program imports. The folder's name is
    # of our sources already, so that a file that imports nothing stands for every program.
    program = getattr(api, "entry_script_path", None)
    with quiet_logging():
        ms.set_context(enable_compile_cache=True, compile_cache_path=str(folder))
    try:
        api.entry_script_path = str(Path(__file__).parents[1] / "runtime/newer.py")
        yield
    finally:
        api.entry_script_path = program
        with quiet_logging():
            ms.set_context(enable_compile_cache=False)


def can_keep() -> bool:
    """Whether `kept_in` can still do so in this process: MindSpore stays with the first folder, and tells graphs there
    apart by their number alone.
    """
    return not _kept


def is_kept(folder: Path) -> bool:
    """Whether `kept_in` has left a graph there."""
    return any(folder.glob("**/*.mindir"))


def use_local_device(config: Config) -> Config:
    """With run_distribute: the config for the device that the launcher gave this process.

    Without kept graphs, which several processes can't share.
    """
    if not config.run_distribute:
        return config
    device = local_device(config.device_id)
    return dataclasses.replace(config, device_id=device, compile_cache=False, compile_apart=False)


def ascend_chip() -> str:
    """MindSpore's name of the Ascend chip that it runs on ("ascend910" is 910A, "ascend910b" is 910B), or ""."""
    if ms.get_context("device_target") != "Ascend":
        return ""
    return str(MSContext.get_instance().get_ascend_soc_version())


def set_ascend_numbers() -> None:
    """Has Ascend compute in the types that the network says, as far as it can, and alike each time."""
    # 910A multiplies matrices in float16 alone, and would take float16 wherever it can unless it is told
    mode = "allow_fp32_to_fp16" if ascend_chip() == "ascend910" else "must_keep_origin_dtype"
    # it can be set once: one that the user's own code has set stays
    with contextlib.suppress(RuntimeError):
        ms.device_context.ascend.op_precision.precision_mode(mode)
    ms.set_deterministic(True)


def set_gpu_numbers(config: Config) -> None:
    """Has a GPU compute float32 as such, or round the factors of convolutions and products to TF32 as the config says.

    MindSpore's own default is TF32 for convolutions alone.
    """
    precision = ms.device_context.gpu.op_precision
    precision.conv_allow_tf32(config.compute_type == "tf32")
    precision.matmul_allow_tf32(config.compute_type == "tf32")


def set_device(config: Config) -> None:
    """Selects device and execution mode, and seeds MindSpore. Raises UserError where the device isn't there."""
    mode = ms.GRAPH_MODE if config.mode == "graph" else ms.PYNATIVE_MODE
    try:
        with quiet_logging():
            ms.set_context(mode=mode)
            # MindSpore refuses a second set_device once a kernel has run, even for the device it runs on.
            if config.device_target != "CPU" or ms.get_context("device_target") != "CPU":
                ms.set_device(config.device_target, config.device_id if config.device_target != "CPU" else 0)
            if config.device_target == "Ascend":
                set_ascend_numbers()
            if config.device_target == "GPU":
                set_gpu_numbers(config)
    except (RuntimeError, ValueError) as e:
        version = importlib.metadata.version("mindspore")
        reason = textwrap.shorten(str(e).strip().splitlines()[0], 120, placeholder=" ...")
        raise UserError(
            f"device_target {config.device_target} isn't available to MindSpore {version} here"
            f" ({reason}); {REMEDY.get(config.device_target, 'reinstall requirements.txt')},"
            " or run with --device_target CPU"
        ) from None
    ms.set_seed(config.seed)
