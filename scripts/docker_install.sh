#!/usr/bin/env bash
# The Dockerfile's steps: into PYTHON's environment, which is the image's own. Run elsewhere, into a virtual environment.
# usage: PYTHON=/path/to/python bash scripts/docker_install.sh packages | operators
#   packages    those of requirements.txt that PYTHON lacks
#   operators   the C++ operators; not where MindSpore is one for Ascend or GPU, which has its own
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

has_mindspore() {
    "$VENV_PYTHON" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("mindspore") is None)'
}

packages() {
    local requirements
    # an Ascend image's MindSpore and its numpy stay as they are
    if has_mindspore; then
        requirements=$(sed '/^mindspore==/d; /^numpy==/d' "$ROOT/requirements.txt")
    else
        requirements=$(cat "$ROOT/requirements.txt")
    fi
    "$VENV_PYTHON" -m pip install --no-cache-dir --disable-pip-version-check -r /dev/stdin <<<"$requirements"
    use_headless_opencv_if_needed
    "$VENV_PYTHON" -c 'import cv2, mindspore, pycocotools.mask'
}

VENV_PYTHON=$(find_python)
case ${1:-} in
    packages) packages ;;
    operators) bash "$ROOT/scripts/build_custom.sh" "$VENV_PYTHON" ;;
    *)
        echo "usage: PYTHON=/path/to/python bash scripts/docker_install.sh packages | operators" >&2
        exit 2
        ;;
esac
