# Shared by the scripts of this folder, which source it: where the checkout is, and its virtual environment.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

die() {
    echo "error: $*" >&2
    exit 2
}

# python_version PYTHON: prints 3.11, or fails where it isn't one that runs.
python_version() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'
}

# Prints the interpreter that PYTHON names, else the first that there is of those for which MindSpore has wheels.
find_python() {
    local candidate version reason
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.10 python3.9 python3 python; do
        version=$(python_version "$candidate" 2>/dev/null) || version=
        if [[ $version =~ ^3\.(9|1[0-2])$ ]]; then
            echo "$candidate"
            return
        fi
        reason="no Python 3.9 to 3.12 found"
        if [ -n "${PYTHON:-}" ]; then
            reason="PYTHON: '$PYTHON' ${version:+is Python $version, and MindSpore has wheels for 3.9 to 3.12}"
            [ -n "$version" ] || reason+="doesn't run"
            break
        fi
    done
    die "$reason; install one, or name it: PYTHON=/path/to/python3.11 bash $0"
}

# Sets VENV to the environment of the versions that PYTHON and MINDSPORE name: .venv where they are its own, or none is
# named, else one beside it, .venv-3.10-2.10.0. Sets MINDSPORE to its version.
choose_environment() {
    local python version own pinned
    VENV=$ROOT/.venv
    pinned=$(sed -n 's/^mindspore==//p' "$ROOT/requirements.txt")
    if [ -n "${PYTHON:-}${MINDSPORE:-}" ]; then
        [[ ${MINDSPORE:=$pinned} =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || die "MINDSPORE: a version as $pinned, not '$MINDSPORE'"
        python=$(find_python) || exit 2
        version=$(python_version "$python")
        own=$(python_version "$VENV/bin/python" 2>/dev/null) || own=3.11
        [ "$version $MINDSPORE" = "$own $pinned" ] || VENV=$ROOT/.venv-$version-$MINDSPORE
    fi
    MINDSPORE=${MINDSPORE:-$pinned}
}

# Makes the environment with the given requirements file, once for each of its versions, and builds the C++ operators.
# After it, $VENV_PYTHON runs the project.
set_up() {
    local requirements=$1 stamp wanted python scratch
    choose_environment
    VENV_PYTHON=$VENV/bin/python
    stamp=$VENV/installed-$requirements
    # all of them: one may include another
    wanted=$(cat "$ROOT"/requirements*.txt | wanted_mindspore | cksum)
    if [ ! -x "$VENV_PYTHON" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        refuse_foreign_wheels
        python=$(find_python) || exit 2
        echo "installing $requirements into ${VENV##*/} (some minutes, once)"
        "$python" -m venv "$VENV" || die "can't make $VENV"
        scratch=$(mktemp -d)
        for requirements in "$ROOT"/requirements*.txt; do
            wanted_mindspore <"$requirements" >"$scratch/${requirements##*/}"
        done
        requirements=$1
        "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check -r "$scratch/$requirements" || {
            rm -r "$scratch"
            die "pip could not install $requirements with MindSpore $MINDSPORE on Python $(python_version "$VENV_PYTHON")"
        }
        rm -r "$scratch"
        use_headless_opencv_if_needed
        # yapf, which mmcv imports, writes a file at its first import that another process may find half written
        "$VENV_PYTHON" -c "import yapf" 2>/dev/null || true
        echo "$wanted" >"$stamp"
    fi
    build_operators "$VENV_PYTHON" "$VENV/build_custom.log"
}

wanted_mindspore() {
    sed "s/^mindspore==.*/mindspore==$MINDSPORE/"
}

# pip takes them on any machine, where they can't load.
refuse_foreign_wheels() {
    [ "$(uname -m)" = x86_64 ] || die "MindSpore's wheels on PyPI are for x86-64, and this is $(uname -m);" \
        "install the vendor's for it, and name its interpreter: PYTHON=/path/to/python"
}

# build_operators PYTHON LOG
build_operators() {
    local log=$2
    # a read-only checkout keeps no log
    mkdir -p "$(dirname "$log")" 2>/dev/null && [ -w "$(dirname "$log")" ] || log=/dev/null
    if ! bash "$ROOT/scripts/build_custom.sh" "$1" >"$log" 2>&1; then
        echo "warning: the C++ operators weren't built ($log); MindSpore's own, slower, serve" >&2
    fi
}

# opencv-python needs libGL, which servers often lack; the headless build of the same version is the same otherwise.
use_headless_opencv_if_needed() {
    local version
    if ! "$VENV_PYTHON" -c 'import cv2' 2>/dev/null; then
        version=$(sed -n 's/^opencv-python==//p' "$ROOT/requirements.txt")
        "$VENV_PYTHON" -m pip uninstall --quiet -y opencv-python
        "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check "opencv-python-headless==$version" ||
            die "OpenCV can't be imported; install libgl1 and libglib2.0-0, then run this again"
    fi
}
