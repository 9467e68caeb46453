"""A folder of links that MindSpore takes for CUDA, from packages as pip lays them out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARIES = {
    "cuda_runtime": "libcudart.so.11.0",
    "cublas": "libcublas.so.11",
    "cudnn": "libcudnn.so.8",
    "cuda_nvrtc": "libnvrtc.so.11.2",
    "cufft": "libcufft.so.10",
    "curand": "libcurand.so.10",
    "cusolver": "libcusolver.so.11",
    "cusparse": "libcusparse.so.11",
}


def install(site: Path, name: str) -> None:
    """A package with one library."""
    library = site / "nvidia" / name / "lib" / LIBRARIES[name]
    library.parent.mkdir(parents=True)
    library.touch()
    info = site / f"nvidia_{name}_cu11-11.8.89.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: nvidia-{name.replace('_', '-')}-cu11\nVersion: 11.8.89\n"
    )
    (info / "RECORD").write_text(f"{library.relative_to(site)},,\n")


@pytest.fixture
def site(tmp_path):
    for name in LIBRARIES:
        install(tmp_path / "site", name)
    return tmp_path / "site"


def run(site, folder):
    env = os.environ | {"PYTHONPATH": str(site), "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "scripts/cuda_from_pip.sh"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def test_every_library_is_found_and_nvcc_says_the_runtimes_version(site, tmp_path):
    folder = tmp_path / "a cuda"
    for _ in range(2):  # again, over what it made
        made = run(site, folder)
        assert (made.returncode, made.stderr) == (0, "")
    told = subprocess.run(
        ["bash", "-c", f'{made.stdout}\nls "$LD_LIBRARY_PATH"; "$CUDA_HOME/bin/nvcc" --version'],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
        check=True,
    ).stdout
    *libraries, nvcc = told.splitlines()
    assert set(libraries) == {*LIBRARIES.values(), "libcudart.so.11.8.89"}
    assert all((folder / "lib64" / name).is_file() for name in libraries)
    # what MindSpore looks for in it
    assert "Cuda compilation tools, release 11.8," in nvcc


def test_a_package_that_is_missing_is_named_and_nothing_made(site, tmp_path):
    (site / "nvidia_cufft_cu11-11.8.89.dist-info/METADATA").unlink()
    (site / "nvidia_cufft_cu11-11.8.89.dist-info/RECORD").unlink()
    (site / "nvidia_cufft_cu11-11.8.89.dist-info").rmdir()
    made = run(site, tmp_path / "cuda")
    assert made.returncode == 2
    assert made.stderr.strip().endswith("has no nvidia-cufft-cu11; pip install it")
    assert not (tmp_path / "cuda").exists()


def test_another_folder_stays_as_it_was(site, tmp_path):
    (tmp_path / "mine").mkdir()
    made = run(site, tmp_path / "mine")
    assert made.returncode == 2 and "name another folder" in made.stderr
    assert list((tmp_path / "mine").iterdir()) == []
