#!/usr/bin/env bash
# Builds the C++ operators (convolution, RoIAlign, NMS, matching) into build/custom_ops/.
# Usage: scripts/build_custom.sh [--force] [--march NAME]... [PYTHON]
# NAME: an instruction set: native (this machine's CPU; the default, unless RCNN_OPS_MARCH is set), haswell, x86-64-v2,
# armv8-a (elsewhere than on aarch64 by the cross compiler); or all, those that this CPU can run. Which library a run
# loads is RCNN_OPS_MARCH's choice.
# PYTHON: any Python interpreter from 3.9 on; the environment's CXX chooses the compiler. Exit status: 0 built or up to date, 1 failed.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}"
force=0
marches=()

usage() {
  echo "usage: $0 [--force] [--march native|haswell|x86-64-v2|armv8-a|all]... [PYTHON]" >&2
  exit 2
}

while (($# > 0)); do
  case "$1" in
    --force) force=1 ;;
    --march)
      (($# > 1)) || usage
      marches+=("$2")
      shift
      ;;
    -*) usage ;;
    *) python="$1" ;;
  esac
  shift
done

fail() {
  echo "build_custom: $1" >&2
  exit 1
}

command -v "$python" > /dev/null || fail "no Python interpreter '$python' (name one as an argument)"

# from the checkout: -m puts the folder that it is called in before all others
python="$(realpath -s "$(command -v "$python")")"
library() { (cd "$root" && "$python" -m src.ops.library "$@"); }

if ((${#marches[@]} == 0)); then marches=("${RCNN_OPS_MARCH:-native}"); fi
if [[ " ${marches[*]} " == *" all "* ]]; then mapfile -t marches < <(library marches); fi
mapfile -t sources < <(library sources)
((${#sources[@]} > 0)) || fail "src/ops/library.py named no sources"

folder="$root/build/custom_ops" scratch=
trap '[[ -z "$scratch" ]] || rm -rf "$scratch"' EXIT

# Makes the folder to compile in. A checkout that can't be written, but has its libraries, needs none.
make_scratch() {
  [[ -n "$scratch" ]] && return
  mkdir -p "$folder" && scratch="$(mktemp -d "$folder/.build-XXXXXX")"
}

# Sets cxx to the compiler for MARCH.
find_compiler() {
  local remedy="set CXX); the operators of standard MindSpore are used"
  cxx="${CXX:-g++}"
  if [[ "$1" == armv8-a && "$(uname -m)" != aarch64 ]]; then
    cxx="${CXX:-aarch64-linux-gnu-g++}" remedy="Debian, Ubuntu: apt-get install g++-aarch64-linux-gnu; or set CXX)"
  fi
  command -v "$cxx" > /dev/null || fail "no C++ compiler '$cxx' ($remedy"
}

# compile MARCH TARGET
compile() {
  find_compiler "$1"
  make_scratch || fail "can't write to $folder"
  local flags lines=("${sources[@]}") objects=() jobs=() i
  mapfile -t flags < <(library flags "$1")
  # Of Intel's Skylake and its successors up to Cascade Lake, a loop whose jump lies across 32 bytes isn't kept decoded
  # (Intel, "Mitigations for Jump Conditional Code Erratum", 2019): products took a tenth longer.
  local aligned=-Wa,-mbranches-within-32B-boundaries
  if "$cxx" "$aligned" -x c++ -c /dev/null -o "$scratch/probe.o" 2> /dev/null; then flags+=("$aligned"); fi
  for i in "${!lines[@]}"; do
    objects+=("$scratch/$1-$i.o")
    "$cxx" "${flags[@]}" "${lines[i]%% *}" -c "${lines[i]#* }" -o "${objects[i]}" &
    jobs+=($!)
    # as many at a time as there are processors
    if ((i + 1 >= $(nproc))); then wait "${jobs[i + 1 - $(nproc)]}" || failed "${lines[i + 1 - $(nproc)]#* }"; fi
  done
  for i in "${!jobs[@]}"; do
    wait "${jobs[i]}" || failed "${lines[i]#* }"
  done
  "$cxx" -shared -pthread -o "$scratch/$1.so" "${objects[@]}" || fail "$cxx could not link (see above)"
  # A rename is atomic: a process that looks meanwhile sees no library or a whole one.
  mv -f "$scratch/$1.so" "$2"
}

# Waits while another build makes libraries here, until the one at TARGET is there or it is this build's turn.
wait_for_turn() {
  if ! mkdir -p "$folder" 2> /dev/null || [[ ! -w "$folder" ]] || ! command -v flock > /dev/null; then return; fi
  exec 9> "$folder/.building"
  until [[ -f "$1" && "$force" == 0 ]] || flock -w 1 9; do :; done
}

failed() {
  wait
  fail "$cxx could not compile $1 (see above)"
}

for march in "${marches[@]}"; do
  target="$(library path "$march")" || usage
  [[ -f "$target" && "$force" == 0 ]] || wait_for_turn "$target"
  if [[ -f "$target" && "$force" == 0 ]]; then
    echo "build_custom: up to date: $target"
  else
    compile "$march" "$target"
    echo "build_custom: built $target"
  fi
  exec 9>&-
done
