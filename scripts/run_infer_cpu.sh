#!/usr/bin/env bash
# Predicts one image or a folder of them on CPU.
# usage: bash scripts/run_infer_cpu.sh [CONFIG_PATH] [CHECKPOINT_PATH] [PRED_INPUT] [PRED_OUTPUT]
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

infer CPU "$@"
