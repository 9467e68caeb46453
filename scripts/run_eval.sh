#!/usr/bin/env bash
# Evaluates Mask R-CNN on one Ascend; COCO_ROOT, BACKBONE, DEVICE_ID and DEVICE_TARGET come from the environment.
# usage: bash scripts/run_eval.sh [VALIDATION_JSON_FILE] [CHECKPOINT_PATH]
# usage: bash scripts/run_eval.sh [CONFIG_PATH] [VAL_DATA] [CHECKPOINT_PATH] [PREDICTION_PATH](optional)
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

default_evaluate "$@"
