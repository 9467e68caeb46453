#!/usr/bin/env bash
# Builds the C++ inference program, ascend310_infer/build/rcnn_infer.
# usage: bash ascend310_infer/build.sh [--fetch | --no-lite] [--sanitize] [--march NAME | --portable | --aarch64] [BUILD_FOLDER]
#   --fetch     get MindSpore Lite's wheel from PyPI where there is no SDK (170 MB; with $PYTHON, else python3)
#   --no-lite   without MindSpore Lite, also where there is an SDK
#   --sanitize  with the address and undefined-behaviour sanitizers, into build-sanitize/
#   --march     for this instruction set, by the compiler's name (haswell, x86-64-v2, ...), into build-NAME/; without it
#               for all that this machine's CPU has (native)
#   --portable  for any CPU of this kind
#   --aarch64   for aarch64, by the cross compiler, without MindSpore Lite, into build-aarch64/
# On a CPU the program needs nothing more. MindSpore Lite, which Ascend needs, is built in where there is its SDK: in
# $MS_LITE_HOME, or a wheel unpacked into ascend310_infer/third_party/.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
wheel="mindspore-lite==2.0.0"
usage="usage: bash ascend310_infer/build.sh [--fetch | --no-lite] [--sanitize] [--march NAME | --portable | --aarch64] [BUILD_FOLDER]"
fetch=0 lite=ON aarch64="" build=$here/build march=native
options=(-DRCNN_SANITIZE=OFF)

die() {
    echo "error: $*" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
        --fetch) fetch=1 ;;
        --no-lite) lite=OFF ;;
        --sanitize)
            options=(-DRCNN_SANITIZE=ON)
            build+=-sanitize march=
            ;;
        --march)
            [ -n "${2:-}" ] || die "--march wants a name; $usage"
            build=$here/build-$2 march=$2
            shift
            ;;
        --portable) march= ;;
        --aarch64)
            aarch64=1 lite=OFF
            build+=-aarch64 march=
            ;;
        -*) die "$1: no such option; $usage" ;;
        *) build=$1 ;;
    esac
    shift
done

is_sdk() {
    [ -e "$1/include/api/model.h" ] || [ -e "$1/runtime/include/api/model.h" ]
}

fetch_sdk() {
    local python=${PYTHON:-python3} scratch
    command -v "$python" >/dev/null || die "no Python '$python' to fetch MindSpore Lite with; set PYTHON"
    mkdir -p "$here/third_party"
    scratch=$(mktemp -d "$here/third_party/.fetch-XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$scratch'" EXIT
    # a wheel for another Python: its libraries need none
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --python-version 37 \
        --only-binary=:all: --dest "$scratch" "$wheel" ||
        die "pip could not fetch $wheel; unpack its wheel into $here/third_party, or set MS_LITE_HOME"
    "$python" -m zipfile -e "$scratch"/mindspore_lite-*.whl "$scratch/unpacked" ||
        die "the wheel of $wheel can't be unpacked; is there space?"
    rm -rf "$here/third_party/mindspore_lite"
    mv "$scratch/unpacked/mindspore_lite" "$here/third_party/mindspore_lite"
}

sdk=${MS_LITE_HOME:-$here/third_party/mindspore_lite}
if [ "$lite" = ON ] && ! is_sdk "$sdk"; then
    [ -z "${MS_LITE_HOME:-}" ] || die "MS_LITE_HOME=$sdk holds no MindSpore Lite (include/api/model.h)"
    if [ "$fetch" = 1 ]; then fetch_sdk; else lite=OFF; fi
fi
command -v cmake >/dev/null || die "no cmake; install it (Debian, Ubuntu: apt-get install cmake g++ make)"
if [ -n "$aarch64" ]; then
    export CXX=${CXX:-aarch64-linux-gnu-g++}
    command -v "$CXX" >/dev/null || die "no C++ compiler '$CXX' (Debian, Ubuntu: apt-get install g++-aarch64-linux-gnu; or set CXX)"
    sysroot=$(bash "$here/../scripts/build_aarch64.sh" --sysroot) || exit 2
    sysroot=${sysroot##*sysroot: }
    options+=(-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_LIBRARY_ARCHITECTURE=aarch64-linux-gnu
        "-DCMAKE_FIND_ROOT_PATH=$sysroot" -DCMAKE_FIND_ROOT_PATH_MODE_{PROGRAM=NEVER,INCLUDE=ONLY,LIBRARY=ONLY}
        "-DCMAKE_CXX_FLAGS=-isystem $sysroot/usr/include/aarch64-linux-gnu")
fi
command -v "${CXX:-c++}" >/dev/null || die "no C++ compiler '${CXX:-c++}'; install one or set CXX"

# CMake refuses what a checkout that was moved or copied has kept of its former place
if [ -f "$build/CMakeCache.txt" ] &&
    [ "$(sed -n 's/^CMAKE_HOME_DIRECTORY:INTERNAL=//p' "$build/CMakeCache.txt")" != "$here" ]; then
    rm -rf "$build/CMakeCache.txt" "$build/CMakeFiles"
fi
log=$(mktemp)
if ! cmake -S "$here" -B "$build" -DRCNN_LITE="$lite" -DMS_LITE_HOME="$sdk" -DRCNN_MARCH="$march" "${options[@]}" >"$log" 2>&1; then
    cat "$log" >&2
    lacks=
    if grep -Eq 'Could NOT find (JPEG|PNG)' "$log"; then
        lacks="; decoding needs libjpeg and libpng (apt-get install libjpeg-dev libpng-dev)"
    fi
    rm -f "$log"
    die "cmake failed, see above$lacks"
fi
rm -f "$log"
cmake --build "$build" --parallel "$(nproc)" || die "the build failed, see above"
echo "built $build/rcnn_infer"
