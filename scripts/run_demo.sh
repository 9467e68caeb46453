#!/usr/bin/env bash
# Makes the shapes data set, trains Mask R-CNN on it from random weights, evaluates, and draws what it predicts. With
# --data, the same with photographs and boxes of one's own, and Faster R-CNN.
# usage: bash scripts/run_demo.sh [OUTPUT_FOLDER] [--data FOLDER [--weights FILE]] [--KEY VALUE of the config ...]
# FOLDER: labels of any format with their images; without splits of its own a fifth validates. FILE: the backbone to
# start from, TensorFlow-Slim's MobileNetV1 as .safetensors or .npz; without it, weights are random.
# TRAIN_IMAGES and VAL_IMAGES, from the environment: how many shapes are made (800 and 100).
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    echo "usage: bash scripts/run_demo.sh [OUTPUT_FOLDER] [--data FOLDER [--weights FILE]] [--KEY VALUE of the config ...]" >&2
    exit 2
}

out=$ROOT/demo_outputs
if [ $# -gt 0 ] && [[ $1 != --* ]]; then
    [ -n "$1" ] || usage
    out=$(realpath -m "$1")
    shift
fi
own="" weights="" options=()
while [ $# -gt 0 ]; do
    case $1 in
    --data | --weights)
        [ $# -gt 1 ] && [ -n "$2" ] || usage
        [ -e "$2" ] || die "$1 $2: no such file or folder"
        if [ "$1" = --data ]; then own=$(realpath "$2"); else weights=$(realpath "$2"); fi
        shift 2
        ;;
    *)
        options+=("$1")
        shift
        ;;
    esac
done
if [ -n "$weights" ] && [ -z "$own" ]; then
    die "--weights goes with --data: the demo on shapes begins with random weights"
fi

set_up requirements.txt
cd "$ROOT"
begin=$SECONDS
if [ -n "$own" ]; then
    name=finetune config=configs/finetune_faster_rcnn_mobilenetv1_fpn.yaml detector=faster_rcnn
    trained_config=$out/$name/config.yaml # its classes are those of the data
    data=$out/finetune_data
    made_here=$out/.finetune_data_made
    case $own/ in
    "$data"/*) die "--data $own: lies where the demo writes; name another OUTPUT_FOLDER" ;;
    esac
    # an earlier demo's alone; whatever else is there is refused
    [ ! -e "$made_here" ] || rm -rf "$data"
    "$VENV_PYTHON" -m src.data.import_labels --labels "$own" --out "$data" --boxes
    touch "$made_here"
    if [ -n "$weights" ]; then
        "$VENV_PYTHON" -m src.convert_checkpoint --ckpt_file "$weights" --out "$out/backbone.ckpt"
        options=(--backbone.pretrained "$out/backbone.ckpt" ${options[@]+"${options[@]}"})
    fi
else
    name=shapes config=configs/shapes.yaml detector=mask_rcnn
    trained_config=$config
    data=$out/shapes_data
    "$VENV_PYTHON" -m src.data.shapes --out "$data" --train "${TRAIN_IMAGES:-800}" --val "${VAL_IMAGES:-100}"
fi
made=$SECONDS
"$VENV_PYTHON" train.py --config_path "$config" --train_dataset "$data" --val_dataset "$data" \
    --train_outputs "$out" --overwrite true ${options[@]+"${options[@]}"} --brief "$name"
trained=$SECONDS
newest=$(find "$out/$name/checkpoints" -maxdepth 1 -name "$detector-*.ckpt" -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2-)
"$VENV_PYTHON" eval.py --config_path "$trained_config" --checkpoint_path "$newest" --val_dataset "$data" \
    --train_outputs "$out" ${options[@]+"${options[@]}"} --brief "$name"
evaluated=$SECONDS
"$VENV_PYTHON" -m src.evaluation.pictures --annotations "$data/annotations/instances_val2017.json" \
    --images "$data/val2017" --results "$out/$name/results.json" --loss_log "$out/$name/loss_0.log" \
    --out "$out/$name/pictures" --count 12
cat <<END

data       $((made - begin)) s   $data
training   $((trained - made)) s   $newest
evaluation $((evaluated - trained)) s   $out/$name/results.json
pictures   $((SECONDS - evaluated)) s   $out/$name/pictures (loss_curve.png among them)
END
