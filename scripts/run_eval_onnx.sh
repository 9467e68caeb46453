#!/usr/bin/env bash
# Evaluates an ONNX model that export.py wrote, in ONNX Runtime on CPU.
# usage: bash scripts/run_eval_onnx.sh [ANNO_PATH] [ONNX_MODEL] [BACKBONE] [COCO_ROOT] [MINDRECORD_DIR](optional)
#
# BACKBONE: resnet_v1_50, resnet_v1.5_50, resnet_v1_101, resnet_v1_152 or mobilenet_v1, or the config (.yaml) of the model.
# Environment: PYTHON, an interpreter that has requirements-onnx.txt (default: the checkout's .venv, made once);
# TRAIN_OUTPUTS, folder of results and of the log (default: train_outputs in the checkout); EXTRA_ARGS, further
# '--KEY VALUE' of the config, as '--detector faster_rcnn --img_width 1024'.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    echo "usage: bash scripts/run_eval_onnx.sh" \
        "[ANNO_PATH] [ONNX_MODEL] [BACKBONE] [COCO_ROOT] [MINDRECORD_DIR](optional)" >&2
    exit 2
}

check_file() {
    [ -f "$2" ] || die "$1: no such file: $2"
    [ -r "$2" ] || die "$1: can't be read: $2"
}

if (($# != 4 && $# != 5)); then usage; fi
check_file ANNO_PATH "$1"
check_file ONNX_MODEL "$2"
check_file "ONNX_MODEL's sidecar" "$2.json"
case $3 in
    resnet_v1_50 | resnet_v1.5_50 | resnet_v1_101 | resnet_v1_152)
        model=(--config_path configs/mask_rcnn_r50_fpn.yaml --backbone "$3") name=$3
        ;;
    mobilenet_v1) model=(--config_path configs/mask_rcnn_mobilenetv1_fpn.yaml) name=$3 ;;
    *.yaml | *.yml)
        check_file BACKBONE "$3"
        model=(--config_path "$(realpath "$3")") name=$(basename "${3%.*}")
        ;;
    *) die "BACKBONE: '$3' is none of resnet_v1_50, resnet_v1.5_50, resnet_v1_101, resnet_v1_152, mobilenet_v1" ;;
esac
[ -d "$4" ] || die "COCO_ROOT: no such folder: $4"
data=(--val_dataset "$(realpath "$4")")
if ! [ "$1" -ef "$4/annotations/instances_val2017.json" ]; then data+=(--val_annotations "$(realpath "$1")"); fi
if (($# == 5)); then
    if [ -e "$5" ] && [ ! -d "$5" ]; then die "MINDRECORD_DIR: not a folder: $5"; fi
    [ -n "$5" ] || die "MINDRECORD_DIR is empty"
    data+=(--mindrecord_dir "$(realpath -m "$5")")
fi
onnx=$(realpath "$2")
outputs=$(realpath -m "${TRAIN_OUTPUTS:-$ROOT/train_outputs}")
read -ra extra <<<"${EXTRA_ARGS:-}"
mkdir -p "$outputs/onnx_$name" || die "TRAIN_OUTPUTS: can't write to $outputs"
if [ -n "${PYTHON:-}" ]; then
    python=$(command -v "$PYTHON") || die "PYTHON: no such interpreter: $PYTHON"
    case $python in /*) ;; *) python=$PWD/$python ;; esac
else
    set_up requirements-onnx.txt
    python=$VENV_PYTHON
fi
cd "$ROOT"
# MindSpore's advice on Ascend and GPU set-ups would bury the tables
export GLOG_v=${GLOG_v:-3}
"$python" eval_onnx.py "${model[@]}" --onnx_file "$onnx" "${data[@]}" --train_outputs "$outputs" --brief "onnx_$name" \
    "${extra[@]}" 2>&1 | tee "$outputs/onnx_$name/eval_onnx.log"
