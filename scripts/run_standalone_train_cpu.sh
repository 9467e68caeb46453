#!/usr/bin/env bash
# Trains on CPU.
# usage: bash scripts/run_standalone_train_cpu.sh [PRETRAINED_MODEL] [BACKBONE] [COCO_ROOT] [MINDRECORD_DIR](optional)
# usage: bash scripts/run_standalone_train_cpu.sh [CONFIG_PATH] [TRAIN_DATA] [VAL_DATA] [TRAIN_OUT] [BRIEF] [PRETRAINED_PATH](optional)
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

standalone_train CPU "$@"
