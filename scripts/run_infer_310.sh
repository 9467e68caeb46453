#!/usr/bin/env bash
# Builds the C++ program, runs an exported model on an Ascend 310 or 310P, and evaluates what it detects.
# usage: bash scripts/run_infer_310.sh [MINDIR_OR_AIR_PATH] [DATA_PATH] [ANN_FILE_PATH] [DEVICE_ID](optional)
#
# The model is the whole graph, as export.py writes it without --split. The rest as for run_infer_cpp.sh; MS_LITE_HOME is
# MindSpore Lite for Ascend. EXTRA_ARGS='--aipp_config ascend310_infer/aipp.cfg' normalises on the chip; of
# two models, one for each orientation, aipp-upright.cfg beside it is the upright one's (python -m src.export.aipp).
set -euo pipefail

if (($# != 3 && $# != 4)); then
    echo "usage: bash scripts/run_infer_310.sh [MINDIR_OR_AIR_PATH] [DATA_PATH] [ANN_FILE_PATH] [DEVICE_ID](optional)" >&2
    exit 2
fi
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_infer_cpp.sh" "$1" "$2" "$3" Ascend '' '' '' "${4:-}"
