#!/usr/bin/env bash
# Makes the shapes data set, trains Mask R-CNN on it from random weights, evaluates, and draws what it predicts.
# usage: bash scripts/run_demo.sh [OUTPUT_FOLDER] [--KEY VALUE of the config ...]
# TRAIN_IMAGES and VAL_IMAGES, from the environment: how many are made (800 and 100).
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    echo "usage: bash scripts/run_demo.sh [OUTPUT_FOLDER] [--KEY VALUE of the config ...]" >&2
    exit 2
}

out=$ROOT/demo_outputs
if [ $# -gt 0 ] && [[ $1 != --* ]]; then
    [ -n "$1" ] || usage
    out=$(realpath -m "$1")
    shift
fi

set_up requirements.txt
cd "$ROOT"
data=$out/shapes_data
begin=$SECONDS
"$VENV_PYTHON" -m src.data.shapes --out "$data" --train "${TRAIN_IMAGES:-800}" --val "${VAL_IMAGES:-100}"
made=$SECONDS
"$VENV_PYTHON" train.py --config_path configs/shapes.yaml --train_dataset "$data" --val_dataset "$data" \
    --train_outputs "$out" --overwrite true "$@" --brief shapes
trained=$SECONDS
newest=$(find "$out/shapes/checkpoints" -maxdepth 1 -name 'mask_rcnn-*.ckpt' -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2-)
"$VENV_PYTHON" eval.py --config_path configs/shapes.yaml --checkpoint_path "$newest" --val_dataset "$data" \
    --train_outputs "$out" "$@" --brief shapes
evaluated=$SECONDS
"$VENV_PYTHON" -m src.evaluation.pictures --annotations "$data/annotations/instances_val2017.json" \
    --images "$data/val2017" --results "$out/shapes/results.json" --loss_log "$out/shapes/loss_0.log" \
    --out "$out/shapes/pictures" --count 12
cat <<END

data       $((made - begin)) s   $data
training   $((trained - made)) s   $newest
evaluation $((evaluated - trained)) s   $out/shapes/results.json
pictures   $((SECONDS - evaluated)) s   $out/shapes/pictures (loss_curve.png among them)
END
