#!/usr/bin/env bash
# Trains Mask R-CNN on the Ascends of a rank table; COCO_ROOT and BACKBONE come from the environment.
# usage: bash scripts/run_distribute_train.sh [RANK_TABLE_FILE] [PRETRAINED_CKPT]
# usage: bash scripts/run_distribute_train.sh [CONFIG_PATH] [DEVICE_NUM] [TRAIN_DATA] [VAL_DATA] [TRAIN_OUT] [BRIEF] [PRETRAINED_PATH](optional)
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

default_distribute_train "$@"
