#!/usr/bin/env bash
# Makes a folder that MindSpore takes for CUDA 11, of NVIDIA's packages on PyPI, and prints the two lines to export. The
# packages, 1.7 GB: pip install nvidia-cuda-runtime-cu11 nvidia-cublas-cu11 'nvidia-cudnn-cu11<9' nvidia-cuda-nvrtc-cu11
# nvidia-cufft-cu11 nvidia-curand-cu11 nvidia-cusolver-cu11 nvidia-cusparse-cu11
# usage: eval "$(PYTHON=.venv/bin/python bash scripts/cuda_from_pip.sh FOLDER)"
# PYTHON: the interpreter that has them (default: python3). FOLDER: new, or made by this before.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ $# -eq 1 ] && [ -n "$1" ] || die "usage: bash scripts/cuda_from_pip.sh FOLDER"
python=${PYTHON:-python3}
folder=$(realpath -m "$1")
marker=.made_by_cuda_from_pip
if [ -e "$folder" ] && [ ! -e "$folder/$marker" ]; then
    die "$1: there already, and not made by this script; name another folder"
fi

packages=(cuda_runtime cublas cudnn cuda_nvrtc cufft curand cusolver cusparse)
# where the packages lie, a line each, and the runtime's version
found=$("$python" - "${packages[@]}" <<'END'
import importlib.metadata
import sys
from pathlib import Path

for name in sys.argv[1:]:
    package = f"nvidia-{name.replace('_', '-')}-cu11"
    try:
        files = importlib.metadata.files(package) or []
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"error: {sys.executable} has no {package}; pip install it")
    libraries = [Path(f.locate()).resolve() for f in files if ".so" in Path(f).name]
    print(libraries[0].parent if libraries else sys.exit(f"error: {package} {version} holds no library"))
    if name == "cuda_runtime":
        release = version
print(release)
END
) || exit 2
mapfile -t lines <<<"$found"
version=${lines[-1]}
unset 'lines[-1]'

mkdir -p "$folder/lib64" "$folder/bin"
touch "$folder/$marker"
for place in "${lines[@]}"; do
    ln -sf "$place"/*.so* "$folder/lib64/"
done
# MindSpore reads the version from this name, and from what nvcc says of itself; it compiles nothing with it
ln -sf "$folder/lib64/libcudart.so.11.0" "$folder/lib64/libcudart.so.$version"
cat >"$folder/bin/nvcc" <<END
#!/bin/sh
echo "Cuda compilation tools, release ${version%.*}, V$version"
END
chmod +x "$folder/bin/nvcc"
echo "export CUDA_HOME=$(printf %q "$folder")"
echo "export LD_LIBRARY_PATH=$(printf %q "$folder/lib64")\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
