#!/usr/bin/env bash
# Trains Mask R-CNN on one Ascend; COCO_ROOT, BACKBONE, DEVICE_ID and DEVICE_TARGET come from the environment.
# usage: bash scripts/run_standalone_train.sh [PRETRAINED_CKPT]
# usage: bash scripts/run_standalone_train.sh [CONFIG_PATH] [TRAIN_DATA] [VAL_DATA] [TRAIN_OUT] [BRIEF] [PRETRAINED_PATH](optional)
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

default_train "$@"
