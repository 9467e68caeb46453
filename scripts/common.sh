# Shared by the scripts of this folder, which source it: where the checkout is, and its virtual environment.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

die() {
    echo "error: $*" >&2
    exit 2
}

# A Python 3.11: MindSpore 2.8 has no wheel for 3.12, and this code is tested on 3.11 alone.
find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3 python; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    die "no Python 3.11 found; install it, or name it: PYTHON=/path/to/python3.11 bash $0"
}

# Makes .venv with the given requirements file, once for each of its versions, and builds the C++ operators.
# After it, $VENV_PYTHON runs the project.
set_up() {
    local requirements=$1 stamp wanted python
    VENV_PYTHON=$ROOT/.venv/bin/python
    stamp=$ROOT/.venv/installed-$requirements
    # all of them: one may include another
    wanted=$(cat "$ROOT"/requirements*.txt | cksum)
    if [ ! -x "$VENV_PYTHON" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        python=$(find_python) || exit 2
        echo "installing $requirements into .venv (some minutes, once)"
        "$python" -m venv "$ROOT/.venv" || die "can't make $ROOT/.venv"
        "$VENV_PYTHON" -m pip install --quiet --disable-pip-version-check -r "$ROOT/$requirements" ||
            die "pip could not install $requirements"
        use_headless_opencv_if_needed
        echo "$wanted" >"$stamp"
    fi
    build_operators "$VENV_PYTHON" "$ROOT/.venv/build_custom.log"
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
