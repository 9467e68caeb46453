#!/usr/bin/env bash
# The Dockerfile's steps: into PYTHON's environment, which is the image's own. Run elsewhere, into a virtual environment.
# usage: PYTHON=/path/to/python bash scripts/docker_install.sh packages | operators
#   packages    those of requirements.lock that PYTHON lacks, each checked against its hashes
#   operators   the C++ operators; not where MindSpore is one for Ascend or GPU, which has its own
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

has_mindspore() {
    "$VENV_PYTHON" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("mindspore") is None)'
}

packages() {
    local kept=none
    # an Ascend image's MindSpore and its numpy stay as they are
    if has_mindspore; then kept='mindspore|numpy'; else refuse_foreign_wheels; fi
    # a package's hashes follow it
    awk -v kept="^($kept)==" '/^[^ ]/ { left_out = $0 ~ kept } !left_out' "$ROOT/requirements.lock" |
        "$VENV_PYTHON" -m pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /dev/stdin
    "$VENV_PYTHON" -c 'import cv2' || die "OpenCV can't be imported: install libGL and glib in the base image"
    "$VENV_PYTHON" -c 'import mindspore, pycocotools.mask'
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
