#!/usr/bin/env bash
# Trains on the Ascends of a rank table, or on DEVICE_NUM of them.
# usage: bash scripts/run_distribute_train_ascend.sh [RANK_TABLE_FILE] [PRETRAINED_MODEL] [BACKBONE] [COCO_ROOT] [MINDRECORD_DIR](optional)
# usage: bash scripts/run_distribute_train_ascend.sh [CONFIG_PATH] [DEVICE_NUM] [TRAIN_DATA] [VAL_DATA] [TRAIN_OUT] [BRIEF] [PRETRAINED_PATH](optional)
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

distribute_train Ascend "$@"
