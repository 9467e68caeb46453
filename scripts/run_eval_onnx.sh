#!/usr/bin/env bash
# Evaluates an ONNX model that export.py wrote, in ONNX Runtime on CPU.
# usage: bash scripts/run_eval_onnx.sh [ANNO_PATH] [ONNX_MODEL] [BACKBONE] [COCO_ROOT] [MINDRECORD_DIR](optional)
# BACKBONE may also be the config (.yaml) that the model was exported with.
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

(($# == 4 || $# == 5)) || usage "[ANNO_PATH] [ONNX_MODEL] [BACKBONE] [COCO_ROOT] [MINDRECORD_DIR](optional)"
check_file ANNO_PATH "$1"
check_file ONNX_MODEL "$2"
check_file "ONNX_MODEL's sidecar" "$2.json"
check_folder COCO_ROOT "$4"
DATA=(--val_dataset "$(absolute "$4")" --val_annotations "$(absolute "$1")")
if (($# == 5)); then
    check_new_folder MINDRECORD_DIR "$5"
    DATA+=(--mindrecord_dir "$(absolute "$5")")
fi
if is_config "$3"; then
    check_file BACKBONE "$3"
    choose_config "$3"
else
    choose_model "$3"
fi
choose_outputs TRAIN_OUTPUTS "${TRAIN_OUTPUTS:-$ROOT/train_outputs}"
choose_extra
choose_python CPU requirements-onnx.txt
run "$OUTPUTS/eval_onnx.log" "$PYTHON" eval_onnx.py --config_path "$CONFIG" "${MODEL[@]}" \
    --onnx_file "$(absolute "$2")" "${DATA[@]}" "${PLACES[@]}" "${EXTRA[@]}"
