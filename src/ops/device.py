"""Where the network runs."""

import dataclasses
import hashlib
import importlib.metadata
import sys
import textwrap
from pathlib import Path

import mindspore as ms

from src.config import Config
from src.ops.library import find_library
from src.runtime.errors import UserError, quiet_logging
from src.runtime.ranks import local_device

__all__ = ["compile_cache_folder", "set_device", "use_local_device"]

REMEDY = {
    "GPU": "install CUDA 11.6 and cuDNN 8 and put them on LD_LIBRARY_PATH",
    "Ascend": "install the Ascend driver and CANN, source their set_env.sh, and reinstall MindSpore for Ascend",
}


def compile_cache_folder(config: Config) -> Path:
    """Where the graphs of this program, code and config are kept.

    MindSpore takes a kept graph by its number in the program, whatever the network: so no two programs or configs may
    share a folder.
    """
    digest = hashlib.sha256(importlib.metadata.version("mindspore").encode())
    digest.update(f"{Path(sys.argv[0]).name} {dataclasses.asdict(config)}".encode())
    for source in sorted(p for p in Path(__file__).parents[1].rglob("*") if p.suffix in (".py", ".cc", ".h")):
        digest.update(source.read_bytes())
    # a kept graph names the library of operators
    digest.update(str(find_library()).encode())
    return (Path(config.train_outputs) / "compile_cache" / digest.hexdigest()[:16]).absolute()


def use_local_device(config: Config) -> Config:
    """With run_distribute: the config for the device that the launcher gave this process.

    Without a compile cache, which several processes can't share.
    """
    if not config.run_distribute:
        return config
    return dataclasses.replace(config, device_id=local_device(config.device_id), compile_cache=False)


def set_device(config: Config) -> None:
    """Selects device and execution mode, and seeds MindSpore. Raises UserError where the device isn't there."""
    mode = ms.GRAPH_MODE if config.mode == "graph" else ms.PYNATIVE_MODE
    try:
        with quiet_logging():
            ms.set_context(mode=mode, enable_compile_cache=config.compile_cache)
            if config.compile_cache:
                ms.set_context(compile_cache_path=str(compile_cache_folder(config)))
            # MindSpore refuses a second set_device once a kernel has run, even for the device it runs on.
            if config.device_target != "CPU" or ms.get_context("device_target") != "CPU":
                ms.set_device(config.device_target, config.device_id if config.device_target != "CPU" else 0)
    except (RuntimeError, ValueError) as e:
        version = importlib.metadata.version("mindspore")
        reason = textwrap.shorten(str(e).strip().splitlines()[0], 120, placeholder=" ...")
        raise UserError(
            f"device_target {config.device_target} isn't available to MindSpore {version} here"
            f" ({reason}); {REMEDY.get(config.device_target, 'reinstall requirements.txt')},"
            " or run with --device_target CPU"
        ) from None
    ms.set_seed(config.seed)
