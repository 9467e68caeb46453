#!/usr/bin/env bash
# Builds the C++ operators (RoIAlign, NMS, matching) into build/custom_ops/ for this machine's CPU.
# Usage: scripts/build_custom.sh [--force] [PYTHON]
# PYTHON: any Python 3.11 interpreter; the environment's CXX and NVCC choose the compilers. Exit status: 0 built or up to date, 1 failed.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}"
cxx="${CXX:-g++}"
nvcc="${NVCC:-nvcc}"
force=0

for argument in "$@"; do
  case "$argument" in
    --force) force=1 ;;
    -*)
      echo "usage: $0 [--force] [PYTHON]" >&2
      exit 2
      ;;
    *) python="$argument" ;;
  esac
done

fail() {
  echo "build_custom: $1" >&2
  exit 1
}

command -v "$python" > /dev/null || fail "no Python interpreter '$python' (name one as an argument)"
command -v "$cxx" > /dev/null || fail "no C++ compiler '$cxx' (set CXX); the operators of standard MindSpore are used"

target="$("$python" "$root/src/ops/library.py" path)"
mapfile -t sources < <("$python" "$root/src/ops/library.py" sources)
mapfile -t flags < <("$python" "$root/src/ops/library.py" flags)
((${#sources[@]} > 0 && ${#flags[@]} > 0)) || fail "src/ops/library.py named no sources"
mkdir -p "$(dirname "$target")"

scratch="$(mktemp -d "$(dirname "$target")/.build-XXXXXX")"
trap 'rm -rf "$scratch"' EXIT

if [[ -f "$target" && "$force" == 0 ]]; then
  echo "build_custom: up to date: $target"
else
  objects=()
  for line in "${sources[@]}"; do
    rule="${line%% *}" source="${line#* }"
    object="$scratch/$(basename "$source" .cc).o"
    "$cxx" "${flags[@]}" "$rule" -c "$source" -o "$object" || fail "$cxx could not compile $source (see above)"
    objects+=("$object")
  done
  "$cxx" -shared -pthread -o "$scratch/library.so" "${objects[@]}" || fail "$cxx could not link (see above)"
  # A rename is atomic: a process that looks meanwhile sees no library or a whole one.
  mv -f "$scratch/library.so" "$target"
  echo "build_custom: built $target"
fi

# The CUDA operator is compiled to see that it compiles: MindSpore 2.8's GPU back end wants CUDA 11.6.
if command -v "$nvcc" > /dev/null; then
  cuda="$root/src/ops/roi_align/csrc/roi_align_cuda.cu"
  if "$nvcc" -std=c++17 -O3 -Xcompiler -fPIC -c "$cuda" -o "$scratch/roi_align_cuda.o" > "$scratch/nvcc.log" 2>&1; then
    mv -f "$scratch/roi_align_cuda.o" "$(dirname "$target")/roi_align_cuda.o"
    echo "build_custom: compiled build/custom_ops/roi_align_cuda.o"
  else
    echo "build_custom: $nvcc could not compile roi_align_cuda.cu ($(head -n 1 "$scratch/nvcc.log")); CPU operators only" >&2
  fi
else
  echo "build_custom: no nvcc: CUDA operator not compiled"
fi
