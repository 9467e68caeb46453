#!/usr/bin/env bash
# Builds the C++ operators for aarch64 by the cross compiler, and what of libjpeg and libpng the C++ program needs for it.
# usage: bash scripts/build_aarch64.sh [--sysroot]
#   --sysroot  only the libraries, build/aarch64/sysroot (Debian's packages for arm64, unpacked; nothing is installed).
#              AARCH64_SYSROOT names another folder that has usr/include and usr/lib/aarch64-linux-gnu.
# PYTHON: the interpreter that says what is compiled (python3). Needed (Debian, Ubuntu): apt-get install g++-aarch64-linux-gnu
# and, to run the tests, qemu-user.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

sysroot=${AARCH64_SYSROOT:-$ROOT/build/aarch64/sysroot}
packages=(libjpeg62-turbo-dev libpng-dev zlib1g-dev)
elsewhere="unpack libjpeg's, libpng's and zlib's development packages for arm64 into a folder, and set AARCH64_SYSROOT to it"

has_libraries() {
    [ -f "$sysroot/usr/include/jpeglib.h" ] && [ -f "$sysroot/usr/include/png.h" ]
}

make_sysroot() {
    local scratch apt package
    has_libraries && return
    [ -z "${AARCH64_SYSROOT:-}" ] || die "AARCH64_SYSROOT=$sysroot has no usr/include/jpeglib.h and usr/include/png.h; $elsewhere"
    command -v apt-get >/dev/null || die "no apt-get to fetch packages with; $elsewhere"
    mkdir -p "${sysroot%/*}"
    scratch=$(mktemp -d "${sysroot%/*}/.sysroot-XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$scratch'" EXIT
    mkdir -p "$scratch/lists/partial" "$scratch/cache/archives/partial" "$scratch/root"
    # lists and a state of its own: the machine's packages and architectures stay as they are
    apt=(apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User= -o Dir::Cache="$scratch/cache"
        -o Dir::State::lists="$scratch/lists" -o Dir::State::status=/dev/null)
    (cd "$scratch" && "${apt[@]}" update && "${apt[@]}" download "${packages[@]}") ||
        die "apt-get could not fetch ${packages[*]} for arm64 (see above); $elsewhere"
    for package in "$scratch"/*.deb; do
        dpkg-deb --extract "$package" "$scratch/root"
    done
    # the static libraries serve, so that a program needs none but the compiler's
    find "$scratch/root" -name '*.so*' -delete
    rm -rf "$sysroot"
    mv "$scratch/root" "$sysroot"
}

only_sysroot=
case ${1:-} in
    "") ;;
    --sysroot) only_sysroot=1 ;;
    *) die "$1: no such option; usage: bash scripts/build_aarch64.sh [--sysroot]" ;;
esac
make_sysroot
echo "sysroot: $sysroot"
[ -z "$only_sysroot" ] || exit 0
bash "$ROOT/scripts/build_custom.sh" --march armv8-a
