#!/usr/bin/env bash
# Builds the C++ program, runs an exported model on a folder of images, and evaluates what it detects.
# usage: bash scripts/run_infer_cpp.sh [MINDIR_PATH] [DATA_PATH] [ANNO_PATH] [DEVICE_TYPE] [IMAGE_WIDTH] [IMAGE_HEIGHT]
#            [KEEP_RATIO] [DEVICE_ID]    (the last four are optional; '' for the model's own)
#
# MINDIR_PATH: what export.py wrote; of the split form (--split), its sidecar NAME.json or NAME.mindir. DATA_PATH: the
# images, or a COCO root with val2017/. DEVICE_TYPE: CPU, for the split form, or Ascend.
# Environment: MS_LITE_HOME, MindSpore Lite (else its wheel is fetched from PyPI, once); PYTHON, an interpreter that has
# requirements.txt (default: the checkout's .venv, made once); TRAIN_OUTPUTS, folder of results and acc.log (default:
# train_outputs in the checkout); EXTRA_ARGS, further options of the program, as '--threads 2 --batch_size 4'.
# Exit status: 0; 2 nothing or not all was done; 3 done, but some images are unreadable.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if (($# < 4 || $# > 8)); then
    echo "usage: bash scripts/run_infer_cpp.sh [MINDIR_PATH] [DATA_PATH] [ANNO_PATH] [DEVICE_TYPE]" \
        "[IMAGE_WIDTH] [IMAGE_HEIGHT] [KEEP_RATIO] [DEVICE_ID] (the last four are optional)" >&2
    exit 2
fi
[ -d "$2" ] || die "DATA_PATH: no such folder: $2"
[ -f "$3" ] || die "ANNO_PATH: no such file: $3"
case $4 in CPU | Ascend) ;; *) die "DEVICE_TYPE: '$4' is neither CPU nor Ascend" ;; esac
model=$(realpath -m "$1") images=$(realpath "$2") annotations=$(realpath "$3")
if [ -d "$images/val2017" ]; then images=$images/val2017; fi
options=(--device_type "$4")
[ -z "${5:-}" ] || options+=(--width "$5")
[ -z "${6:-}" ] || options+=(--height "$6")
[ -z "${7:-}" ] || options+=(--keep_ratio "$7")
[ -z "${8:-}" ] || options+=(--device_id "$8")
read -ra extra <<<"${EXTRA_ARGS:-}"

name=$(basename "$model")
outputs=$(realpath -m "${TRAIN_OUTPUTS:-$ROOT/train_outputs}")/infer_${name%.*}_$4
mkdir -p "$outputs" || die "TRAIN_OUTPUTS: can't write to $outputs"
if [ -n "${PYTHON:-}" ]; then
    python=$(command -v "$PYTHON") || die "PYTHON: no such interpreter: $PYTHON"
    python=$(realpath -s "$python")
else
    set_up requirements.txt
    python=$VENV_PYTHON
fi
PYTHON=$python bash "$ROOT/ascend310_infer/build.sh" --fetch >"$outputs/build.log" 2>&1 || {
    cat "$outputs/build.log" >&2
    exit 2
}

# 3: some images are unreadable, and count as missed
status=0
"$ROOT/ascend310_infer/build/rcnn_infer" --model "$model" --input "$images" --output "$outputs/results" \
    "${options[@]}" "${extra[@]}" || status=$?
((status == 0 || status == 3)) || exit "$status"
cd "$ROOT"
"$python" postprocess.py --results "$outputs/results" --annotations "$annotations" >"$outputs/acc.log.writing"
mv "$outputs/acc.log.writing" "$outputs/acc.log"
cat "$outputs/acc.log"
echo "-> $outputs/acc.log"
exit "$status"
