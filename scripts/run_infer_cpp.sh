#!/usr/bin/env bash
# Builds the C++ program, runs an exported model on a folder of images, and evaluates what it detects.
# usage: bash scripts/run_infer_cpp.sh [MINDIR_PATH] [DATA_PATH] [ANNO_PATH] [DEVICE_TYPE] [IMAGE_WIDTH] [IMAGE_HEIGHT]
#            [KEEP_RATIO] [DEVICE_ID]    (the last four are optional; '' for the model's own)
#
# MINDIR_PATH: what export.py wrote; of the split form (--split), NAME.mindir or its sidecar NAME.json; of two models, one
# for each orientation of pictures, either. DATA_PATH: the images, or a COCO root with val2017/. DEVICE_TYPE: CPU, for the
# split form, or Ascend. IMAGE_WIDTH and IMAGE_HEIGHT: of the lying canvas, where upright pictures have it turned.
# Environment, beyond launch.sh's: MS_LITE_HOME, MindSpore Lite (else for Ascend its wheel is fetched from PyPI, once).
# EXTRA_ARGS are options of the program, as '--threads 2 --batch_size 4', '--exif upright', or '--recursive' where images lie in
# folders.
# Written: results/, acc.log (both tables of AP) and build.log. Exit status: 0; 2 nothing or not all was done; 3 done, but
# some images are unreadable and count as missed.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

# The model, or what stands for it: the split form is called by the name of its sidecar, NAME.json, of which NAME.mindir
# and NAME_features.mindir are parts.
check_model() {
    local stem=${model%.mindir}
    stem=${stem%_features}
    [ ! -d "$model" ] || die "MINDIR_PATH: a folder, not a model: $model"
    [ -e "$model" ] || [ -e "$model.json" ] || [ -e "$stem.json" ] || die "MINDIR_PATH: no such model: $model"
}

(($# >= 4 && $# <= 8)) || usage "[MINDIR_PATH] [DATA_PATH] [ANNO_PATH] [DEVICE_TYPE] [IMAGE_WIDTH] [IMAGE_HEIGHT]\
 [KEEP_RATIO] [DEVICE_ID] (the last four are optional)"
[ -n "$1" ] || die "MINDIR_PATH is empty"
check_folder DATA_PATH "$2"
check_file ANNO_PATH "$3"
[[ $4 =~ ^(CPU|Ascend)$ ]] || die "DEVICE_TYPE: '$4' is neither CPU nor Ascend"
model=$(absolute "$1") images=$(absolute "$2") annotations=$(absolute "$3") name=$(basename "$1")
if [ -d "$images/val2017" ]; then images=$images/val2017; fi
options=(--device_type "$4")
[ -z "${5:-}" ] || options+=(--width "$5")
[ -z "${6:-}" ] || options+=(--height "$6")
[ -z "${7:-}" ] || options+=(--keep_ratio "$7")
[ -z "${8:-}" ] || options+=(--device_id "$8")
# what the program itself would tell once it is built
if [ "${DRY_RUN:-}" != 1 ]; then check_model; fi
BRIEF=${BRIEF:-infer_${name%.*}_$4}
check_brief "$BRIEF"
choose_outputs TRAIN_OUTPUTS "${TRAIN_OUTPUTS:-$ROOT/train_outputs}"
choose_extra
# evaluation alone needs it, which runs on the host whatever the device
choose_python CPU
build=(bash "$ROOT/ascend310_infer/build.sh")
[ "$4" = CPU ] || build+=(--fetch)
infer=("$ROOT/ascend310_infer/build/rcnn_infer" --model "$model" --input "$images" --output "$OUTPUTS/results"
    --annotations "$annotations" "${options[@]}" "${EXTRA[@]}")
evaluate=("$PYTHON" postprocess.py --results "$OUTPUTS/results" --annotations "$annotations")

if [ "${DRY_RUN:-}" = 1 ]; then
    print_dry "${build[*]@Q}" "${infer[*]@Q}" "${evaluate[*]@Q} > $OUTPUTS/acc.log"
    exit 0
fi
mkdir -p "$OUTPUTS" || die "TRAIN_OUTPUTS: can't write to $OUTPUTS"
rm -f "$OUTPUTS/acc.log"
cd "$ROOT"
PYTHON=$PYTHON "${build[@]}" >"$OUTPUTS/build.log" 2>&1 || {
    cat "$OUTPUTS/build.log" >&2
    exit 2
}
status=0
"${infer[@]}" || status=$?
((status == 0 || status == 3)) || exit "$status"
"${evaluate[@]}" >"$OUTPUTS/acc.log.writing"
mv "$OUTPUTS/acc.log.writing" "$OUTPUTS/acc.log"
cat "$OUTPUTS/acc.log"
echo "-> $OUTPUTS/acc.log"
exit "$status"
