#!/usr/bin/env bash
# Evaluates a checkpoint on CPU.
# usage: bash scripts/run_eval_cpu.sh [VALIDATION_JSON_FILE] [CHECKPOINT_PATH] [BACKBONE] [COCO_ROOT] [DEVICE_ID](optional) [MINDRECORD_DIR](optional)
# usage: bash scripts/run_eval_cpu.sh [CONFIG_PATH] [VAL_DATA] [CHECKPOINT_PATH] [PREDICTION_PATH](optional)
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

evaluate CPU "$@"
