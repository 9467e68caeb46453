# Shared by the launchers of this folder, which source it: arguments, checks, the commands, and how they are run.
# shellcheck shell=bash
#
# Environment that all of them take:
#   DRY_RUN=1       print the exact commands and their environment, start and write nothing
#   PYTHON          an interpreter that has MindSpore; default: on CPU the checkout's .venv (made once), elsewhere python3
#   EXTRA_ARGS      further '--KEY VALUE' for train.py or eval.py, quoted as in a shell; they win over the script's own
#   TRAIN_OUTPUTS   folder of experiments (default: train_outputs in the checkout); config-first training names its own
#   BRIEF           name of the experiment, a folder in it
#   DETECTOR        mask_rcnn (default), faster_rcnn, cascade_rcnn, cascade_mask_rcnn; config-first: the config's
# of distributed training, see distribute_train.

HERE=$(pwd)
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=scripts/processes.sh
source "$(dirname "${BASH_SOURCE[0]}")/processes.sh"
SCRIPT=scripts/$(basename "$0")
WEIGHTS_NAME=PRETRAINED_MODEL

# ---------------------------------------------------------------------------------------------------------
# arguments

# Prints the forms that the script takes, and ends it.
usage() {
    local form word=usage: told
    for form in "$@"; do
        echo "$word bash $SCRIPT $form" >&2
        word="   or:"
    done
    if [[ $* == *"[BACKBONE]"* ]] && told=$(names backbone); then echo "BACKBONE: ${told//$'\n'/, }" >&2; fi
    exit 2
}

is_config() {
    [[ $1 == *.yaml || $1 == *.yml ]]
}

# A path of the caller's as an absolute one: the project runs from its own folder. Links stay links: a virtual
# environment's interpreter is one.
absolute() {
    (cd "$HERE" && realpath -ms -- "$1")
}

# check_file NAME PATH, check_folder NAME PATH: must be there. check_new_folder: may be missing, but nothing else.
check_file() {
    [ -n "$2" ] || die "$1 is empty"
    [ -e "$(absolute "$2")" ] || die "$1: no such file: $2"
    [ -f "$(absolute "$2")" ] || die "$1: not a file: $2"
    [ -r "$(absolute "$2")" ] || die "$1: can't be read: $2"
}

check_folder() {
    [ -n "$2" ] || die "$1 is empty"
    [ -e "$(absolute "$2")" ] || die "$1: no such folder: $2"
    [ -d "$(absolute "$2")" ] || die "$1: not a folder: $2"
}

check_new_folder() {
    [ -n "$2" ] || die "$1 is empty"
    if [ -e "$(absolute "$2")" ]; then check_folder "$1" "$2"; fi
}

check_new_file() {
    [ -n "$2" ] || die "$1 is empty"
    [ ! -d "$(absolute "$2")" ] || die "$1: a folder, not a file: $2"
}

# check_number NAME VALUE LEAST MOST
check_number() {
    if [[ ! $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] || (($2 < $3 || $2 > $4)); then
        die "$1: a whole number from $3 to $4, not '$2'"
    fi
}

check_brief() {
    [[ -n $1 && $1 != */* && $1 != . && $1 != .. ]] || die "BRIEF: the name of a folder, not '$1'"
}

# names KEY [VALUE]: the values that a key of the config takes, from its one table, or why VALUE is none of them, with
# status 2. Status 1 where no interpreter is there to ask: then what is started refuses it.
names() {
    local python told status
    for python in "$ROOT/.venv/bin/python" "${PYTHON:-}" python3 python; do
        if [[ $python == */* ]]; then python=$(absolute "$python"); fi
        command -v "$python" >/dev/null || continue
        told=$(cd "$ROOT" && "$python" -m src.config --names "$@" 2>&1) && status=0 || status=$?
        if ((status == 0 || status == 2)); then
            echo "${told#error: }"
            return "$status"
        fi
    done
    return 1
}

# choose_model BACKBONE: sets CONFIG and MODEL, its overrides.
choose_model() {
    local detector=${DETECTOR:-mask_rcnn} told
    if [ -n "${DETECTOR:-}" ]; then told=$(names detector "$detector") || (($? == 1)) || die "DETECTOR: $told"; fi
    told=$(names backbone "$1") || (($? == 1)) || die "BACKBONE: $told"
    CONFIG=configs/${detector}_r50_fpn.yaml MODEL=(--backbone "$1")
    [ -f "$ROOT/$CONFIG" ] || die "DETECTOR: '$detector' has no $CONFIG"
    : "${BRIEF:=${detector}_$1}"
    check_brief "$BRIEF"
}

# choose_config PATH: a config of the user's instead of the table.
choose_config() {
    CONFIG=$(absolute "$1") MODEL=()
    if [ -n "${DETECTOR:-}" ]; then MODEL+=(--detector "$DETECTOR"); fi
    if [ -z "${BRIEF:-}" ]; then
        BRIEF=$(basename "$1")
        BRIEF=${BRIEF%.*}
    fi
    check_brief "$BRIEF"
}

# Sets WEIGHTS from a pretrained checkpoint: whole detectors have an RPN, anything else is taken for a backbone.
choose_weights() {
    WEIGHTS=()
    if [ "$2" = none ]; then return; fi
    [ -n "$2" ] || die "$1 is empty; say none to train from random weights"
    check_file "$1" "$2"
    # names stand in a checkpoint as plain text
    if LC_ALL=C grep -qaF rpn.cls.weight -- "$(absolute "$2")"; then
        WEIGHTS=(--pre_trained "$(absolute "$2")")
    else
        WEIGHTS=(--backbone.pretrained "$(absolute "$2")")
    fi
}

# What takes paths: the config's keys, then options of the entry scripts and of the C++ program.
PATH_KEYS=" train_outputs mindrecord_dir train_dataset val_dataset val_annotations image_dir anno_path pre_trained
 backbone.pretrained mlflow_tracking_uri data_path load_path output_path transform
 config_path resume checkpoint_path results predictions metrics report split
 ckpt_file input output pictures coco_results annotations aipp_config "
PATH_KEYS=${PATH_KEYS//$'\n'/}

# Sets EXTRA from EXTRA_ARGS, without evaluating anything; paths in it are the caller's.
choose_extra() {
    local words i key="" value
    EXTRA=()
    if [ -z "${EXTRA_ARGS:-}" ]; then return; fi
    words=$(xargs -r printf '%s\n' <<<"$EXTRA_ARGS" 2>/dev/null) || die "EXTRA_ARGS: quotes don't match: $EXTRA_ARGS"
    if [ -n "$words" ]; then mapfile -t EXTRA <<<"$words"; fi
    for i in "${!EXTRA[@]}"; do
        value=${EXTRA[i]}
        if [[ $value != --* ]]; then
            if [[ $PATH_KEYS == *" ${key:-none} "* ]]; then EXTRA[i]=$(callers "$key" "$value"); fi
            continue
        fi
        key=${value#--}
        key=${key%%=*}
        if [[ $value == *=* ]]; then
            if [[ $PATH_KEYS == *" $key "* ]]; then EXTRA[i]=--$key=$(callers "$key" "${value#*=}"); fi
            key=""
        fi
    done
}

# callers KEY VALUE: the value of a key that takes paths, as an absolute one, where it is a path: no address, and not one
# of the words that such a key takes too.
callers() {
    case $1:$2 in
        *: | *:*://* | pictures:none | split:train | split:val | split:test) echo "$2" ;;
        transform:*/* | transform:*.py:*) absolute "$2" ;;
        transform:*) echo "$2" ;;
        *) absolute "$2" ;;
    esac
}

# Sets OUTPUTS, where everything is written, and PLACES, the options that say so.
choose_outputs() {
    check_new_folder "$1" "$2"
    OUTPUTS=$(absolute "$2")/$BRIEF
    PLACES=(--train_outputs "$(absolute "$2")" --brief "$BRIEF")
}

# ---------------------------------------------------------------------------------------------------------
# the commands

# standalone_train DEVICE ARGUMENT...
standalone_train() {
    local device=$1 device_id=${DEVICE_ID:-0} most=4 names="[PRETRAINED_MODEL] [BACKBONE] [COCO_ROOT]"
    shift
    if [ "$device" != CPU ]; then most=5 names+=" [DEVICE_ID]"; fi
    if [ $# -gt 0 ] && is_config "$1"; then
        (($# == 5 || $# == 6)) || train_usage "$names"
        config_first_train "$@"
    else
        (($# == most - 1 || $# == most)) || train_usage "$names"
        if [ "$device" = CPU ]; then
            classic_train "$1" "$2" "$3" "${@:4}"
        else
            classic_train "$1" "$2" "$3" "${@:5}"
            device_id=$4
        fi
    fi
    run_train "$device" "$device_id"
}

train_usage() {
    usage "$1 [MINDRECORD_DIR](optional)" \
        "[CONFIG_PATH] [TRAIN_DATA] [VAL_DATA] [TRAIN_OUT] [BRIEF] [PRETRAINED_PATH](optional)"
}

# default_train PRETRAINED_CKPT, or the config-first form: Mask R-CNN on one Ascend, or DEVICE_TARGET; data: COCO_ROOT.
default_train() {
    local words="[CONFIG_PATH] [TRAIN_DATA] [VAL_DATA] [TRAIN_OUT] [BRIEF] [PRETRAINED_PATH](optional)"
    choose_target
    if [ $# -gt 0 ] && is_config "$1"; then
        (($# == 5 || $# == 6)) || usage "[PRETRAINED_CKPT]" "$words"
        config_first_train "$@"
    else
        (($# == 1)) || usage "[PRETRAINED_CKPT]" "$words"
        WEIGHTS_NAME=PRETRAINED_CKPT
        classic_train "$1" "${BACKBONE:-resnet_v1.5_50}" "${COCO_ROOT:-}"
    fi
    run_train "$TARGET" "${DEVICE_ID:-0}"
}

choose_target() {
    TARGET=${DEVICE_TARGET:-Ascend}
    [[ $TARGET =~ ^(CPU|GPU|Ascend)$ ]] || die "DEVICE_TARGET: '$TARGET' is none of CPU, GPU, Ascend"
}

# classic_train PRETRAINED BACKBONE COCO_ROOT [MINDRECORD_DIR]
classic_train() {
    choose_weights "$WEIGHTS_NAME" "$1"
    DATA=()
    # only the scripts without a COCO_ROOT argument may leave it to the config
    if [ -n "$3" ] || [ "$WEIGHTS_NAME" = PRETRAINED_MODEL ]; then
        check_folder COCO_ROOT "$3"
        DATA=(--train_dataset "$(absolute "$3")" --val_dataset "$(absolute "$3")")
    fi
    if [ $# -gt 3 ]; then
        check_new_folder MINDRECORD_DIR "$4"
        DATA+=(--mindrecord_dir "$(absolute "$4")")
    fi
    choose_model "$2"
    choose_outputs TRAIN_OUTPUTS "${TRAIN_OUTPUTS:-$ROOT/train_outputs}"
}

# config_first_train CONFIG_PATH TRAIN_DATA VAL_DATA TRAIN_OUT BRIEF [PRETRAINED_PATH]
config_first_train() {
    check_file CONFIG_PATH "$1"
    check_folder TRAIN_DATA "$2"
    check_folder VAL_DATA "$3"
    check_brief "$5"
    BRIEF=$5
    choose_config "$1"
    choose_outputs TRAIN_OUT "$4"
    choose_weights PRETRAINED_PATH "${6-none}"
    DATA=(--train_dataset "$(absolute "$2")" --val_dataset "$(absolute "$3")")
}

# Sets TRAIN, the command after the interpreter.
train_command() {
    choose_extra
    TRAIN=(train.py --config_path "$CONFIG" --device_target "$1" "${MODEL[@]}" "${DATA[@]}" "${PLACES[@]}"
        "${WEIGHTS[@]}")
}

run_train() {
    check_number DEVICE_ID "$2" 0 1023
    train_command "$1"
    choose_python "$1"
    run "$OUTPUTS/train.log" "$PYTHON" "${TRAIN[@]}" --device_id "$2" "${EXTRA[@]}"
}

# distribute_train DEVICE ARGUMENT...
#
# Its environment: NODES hosts (1), each of which starts this script with its NODE_RANK and the MASTER_ADDR and
# MASTER_PORT (8118) of host 0, and trains on DEVICE_NUM devices; JOIN_TIMEOUT (600 s) for all of them to come; RESTARTS
# (0) after which a job that dies isn't started again from its last checkpoint; RANK_TABLE_FILE (Ascend) starts one process a device
# over HCCL instead of msrun, HCCL_CONNECT_TIMEOUT (600 s) for it; LAUNCHER=mpirun (GPU), HOSTFILE for several hosts;
# BIND_CORES=false leaves the processes on all processors.
distribute_train() {
    local device=$1 first="[DEVICE_NUM]" rest="[PRETRAINED_MODEL] [BACKBONE] [COCO_ROOT]"
    shift
    if [ "$device" = Ascend ]; then first="[RANK_TABLE_FILE]"; fi
    if [ $# -gt 0 ] && is_config "$1"; then
        (($# == 6 || $# == 7)) || distribute_usage "$first $rest [MINDRECORD_DIR](optional)"
        check_number DEVICE_NUM "$2" 1 1024
        DEVICE_NUM=$2
        config_first_train "$1" "${@:3}"
        if [ -n "${RANK_TABLE_FILE:-}" ] && [ "$device" != Ascend ]; then die "RANK_TABLE_FILE is for Ascend alone"; fi
    else
        (($# == 4 || $# == 5)) || distribute_usage "$first $rest [MINDRECORD_DIR](optional)"
        if [ "$device" = Ascend ]; then
            check_file RANK_TABLE_FILE "$1"
            RANK_TABLE_FILE=$1
            unset DEVICE_NUM # the table's
        else
            check_number DEVICE_NUM "$1" 1 1024
            DEVICE_NUM=$1
            unset RANK_TABLE_FILE
        fi
        classic_train "${@:2}"
    fi
    run_distributed "$device"
}

# default_distribute_train RANK_TABLE_FILE PRETRAINED_CKPT, or the config-first form.
default_distribute_train() {
    choose_target
    if [ $# -gt 0 ] && is_config "$1"; then
        (($# == 6 || $# == 7)) || distribute_usage "[RANK_TABLE_FILE] [PRETRAINED_CKPT]"
        distribute_train "$TARGET" "$@"
    else
        (($# == 2)) || distribute_usage "[RANK_TABLE_FILE] [PRETRAINED_CKPT]"
        [ "$TARGET" = Ascend ] || die "DEVICE_TARGET: a rank table is for Ascend alone, not $TARGET"
        check_file RANK_TABLE_FILE "$1"
        RANK_TABLE_FILE=$1
        unset DEVICE_NUM # the table's
        WEIGHTS_NAME=PRETRAINED_CKPT
        classic_train "$2" "${BACKBONE:-resnet_v1.5_50}" "${COCO_ROOT:-}"
        run_distributed Ascend
    fi
}

distribute_usage() {
    usage "$1" "[CONFIG_PATH] [DEVICE_NUM] [TRAIN_DATA] [VAL_DATA] [TRAIN_OUT] [BRIEF] [PRETRAINED_PATH](optional)"
}

run_distributed() {
    local device=$1
    NODES=${NODES:-1} NODE_RANK=${NODE_RANK:-0}
    check_number NODES "$NODES" 1 1024
    check_number RESTARTS "${RESTARTS:-0}" 0 1000
    check_number JOIN_TIMEOUT "${JOIN_TIMEOUT:-600}" 1 604800
    [ -z "${DEVICE_ID:-}" ] || die "DEVICE_ID: each process has a device of its own; unset it, and choose devices by the\
 rank table, CUDA_VISIBLE_DEVICES or ASCEND_RT_VISIBLE_DEVICES"
    WATCH=(-m src.runtime.launch)
    if [ -n "${RESTARTS:-}" ]; then WATCH+=(--restarts "$RESTARTS"); fi
    if [ -n "${JOIN_TIMEOUT:-}" ]; then WATCH+=(--wait "$JOIN_TIMEOUT"); fi
    # a rank table has its own number of hosts
    if [ -z "${RANK_TABLE_FILE:-}" ]; then check_number NODE_RANK "$NODE_RANK" 0 $((NODES - 1)); fi
    train_command "$device"
    TRAIN+=(--run_distribute true "${EXTRA[@]}")
    # compiling the network takes longer than HCCL's own 120 s
    if [ "$device" = Ascend ]; then give HCCL_CONNECT_TIMEOUT "${HCCL_CONNECT_TIMEOUT:-600}"; fi
    case ${LAUNCHER:-} in
        mpirun) [ "$device" = GPU ] || die "LAUNCHER: mpirun is for GPU alone, not $device" ;;
        msrun | "") ;;
        *) die "LAUNCHER: '$LAUNCHER' is neither msrun nor mpirun" ;;
    esac
    if [ -n "${RANK_TABLE_FILE:-}" ]; then
        run_rank_table
    elif [ "${LAUNCHER:-}" = mpirun ]; then
        run_mpirun
    else
        run_msrun "$device"
    fi
}

run_msrun() {
    local bind=() address=${MASTER_ADDR:-127.0.0.1} port=${MASTER_PORT:-8118}
    if ((NODES > 1)); then [ -n "${MASTER_ADDR:-}" ] || die "MASTER_ADDR: with NODES=$NODES, name host 0"; fi
    check_number MASTER_PORT "$port" 1024 65535
    # two jobs on one host each take a port of their own
    if [ -z "${MASTER_PORT:-}" ] && ((NODES == 1)); then WATCH+=(--any_port); fi
    choose_python "$1"
    # msrun starts its workers with the first python on PATH
    if [[ $PYTHON == */* ]]; then give PATH "$(dirname "$PYTHON"):$PATH"; fi
    if [ "${DRY_RUN:-}" != 1 ] && ! command -v msrun >/dev/null; then
        die "msrun isn't there; it comes with MindSpore: PYTHON=/path/to/python of its environment"
    fi
    share_processors "$DEVICE_NUM"
    if ((${#CORES[@]})); then bind=(--bind_core "$(core_map)"); fi
    # those of an earlier run with more workers would be taken for this one's
    if [ "${DRY_RUN:-}" != 1 ] && ((NODES == 1)); then rm -f "$OUTPUTS"/workers/worker_*.log*; fi
    run "$OUTPUTS/train.log" "$PYTHON" "${WATCH[@]}" msrun --worker_num=$((NODES * DEVICE_NUM)) \
        --local_worker_num="$DEVICE_NUM" --master_addr="$address" --master_port="$port" --node_rank="$NODE_RANK" \
        --log_dir="$OUTPUTS/workers" --join=True "${bind[@]}" "${TRAIN[@]}"
}

run_mpirun() {
    local hosts=()
    if ((NODES > 1)); then
        ((${RESTARTS:-0} == 0)) || die "RESTARTS: mpirun's jobs start again on one host alone; use msrun (LAUNCHER unset)"
        check_file HOSTFILE "${HOSTFILE:-}"
        hosts=(--hostfile "$(absolute "$HOSTFILE")")
    fi
    # OpenMPI wants to be told that root is meant
    if [ "$(id -u)" = 0 ]; then hosts+=(--allow-run-as-root); fi
    choose_python GPU
    if [ "${DRY_RUN:-}" != 1 ] && ! command -v mpirun >/dev/null; then die "mpirun isn't there; install OpenMPI"; fi
    run "$OUTPUTS/train.log" "$PYTHON" "${WATCH[@]}" mpirun -n $((NODES * DEVICE_NUM)) "${hosts[@]}" \
        "$PYTHON" "${TRAIN[@]}"
}

# One process for each device that the rank table gives this server (the NODE_RANK-th).
run_rank_table() {
    local table lines rank device size i bind
    ((${RESTARTS:-0} == 0)) || die "RESTARTS: jobs of msrun alone start again, which needs no rank table: unset RANK_TABLE_FILE"
    table=$(absolute "$RANK_TABLE_FILE")
    check_file RANK_TABLE_FILE "$table"
    choose_python Ascend
    lines=$("$(plain_python)" "$ROOT/scripts/hccl_tools.py" --list "$table" --server "$NODE_RANK") || exit 2
    mapfile -t lines <<<"$lines"
    if ((${DEVICE_NUM:-${#lines[@]}} != ${#lines[@]})); then
        die "RANK_TABLE_FILE: $RANK_TABLE_FILE has ${#lines[@]} devices for this server, DEVICE_NUM is $DEVICE_NUM; make a\
 table of as many (scripts/hccl_tools.py), or unset RANK_TABLE_FILE: msrun needs none"
    fi
    share_processors "${#lines[@]}"
    give RANK_TABLE_FILE "$table"
    COMMANDS=() LOGS=()
    for i in "${!lines[@]}"; do
        read -r rank device size <<<"${lines[i]}"
        bind=()
        if ((${#CORES[@]})); then bind=(taskset -c "${CORES[i]}"); fi
        add_command "$OUTPUTS/workers/worker_$rank.log" env "RANK_ID=$rank" "RANK_SIZE=$size" "DEVICE_ID=$device" \
            "${bind[@]}" "$PYTHON" "${TRAIN[@]}"
    done
    run_all "$OUTPUTS/train.log"
}

# evaluate DEVICE ARGUMENT...; on CPU DEVICE_ID may be left out.
evaluate() {
    local device=$1 device_id=${DEVICE_ID:-0} names="[VALIDATION_JSON_FILE] [CHECKPOINT_PATH] [BACKBONE] [COCO_ROOT]"
    shift
    if [ "$device" = CPU ]; then names+=" [DEVICE_ID](optional)"; else names+=" [DEVICE_ID]"; fi
    if [ $# -gt 0 ] && is_config "$1"; then
        config_first_evaluate "$names [MINDRECORD_DIR](optional)" "$@"
    else
        if [ "$device" = CPU ] && { (($# == 4)) || { (($# == 5)) && [[ ! $5 =~ ^[0-9]+$ ]]; }; }; then
            set -- "${@:1:4}" 0 "${@:5}"
        fi
        (($# == 5 || $# == 6)) || evaluate_usage "$names [MINDRECORD_DIR](optional)"
        classic_evaluate "$1" "$2" "$3" "$4" "${@:6}"
        device_id=$5
    fi
    run_evaluate "$device" "$device_id"
}

evaluate_usage() {
    usage "$1" "[CONFIG_PATH] [VAL_DATA] [CHECKPOINT_PATH] [PREDICTION_PATH](optional)"
}

# default_evaluate VALIDATION_JSON_FILE CHECKPOINT_PATH, or the config-first form; images: COCO_ROOT, or by the JSON.
default_evaluate() {
    local root=${COCO_ROOT:-}
    choose_target
    if [ $# -gt 0 ] && is_config "$1"; then
        config_first_evaluate "[VALIDATION_JSON_FILE] [CHECKPOINT_PATH]" "$@"
    else
        (($# == 2)) || evaluate_usage "[VALIDATION_JSON_FILE] [CHECKPOINT_PATH]"
        check_file VALIDATION_JSON_FILE "$1"
        if [ -z "$root" ]; then
            # ROOT/annotations/instances_val2017.json, or DIR/labels.json
            root=$(dirname "$(absolute "$1")")
            if [ "$(basename "$root")" = annotations ]; then root=$(dirname "$root"); fi
        fi
        classic_evaluate "$1" "$2" "${BACKBONE:-resnet_v1.5_50}" "$root"
    fi
    run_evaluate "$TARGET" "${DEVICE_ID:-0}"
}

# classic_evaluate VALIDATION_JSON_FILE CHECKPOINT_PATH BACKBONE COCO_ROOT [MINDRECORD_DIR]
classic_evaluate() {
    check_file VALIDATION_JSON_FILE "$1"
    check_file CHECKPOINT_PATH "$2"
    check_folder COCO_ROOT "$4"
    DATA=(--val_dataset "$(absolute "$4")" --val_annotations "$(absolute "$1")")
    if [ $# -gt 4 ]; then
        check_new_folder MINDRECORD_DIR "$5"
        DATA+=(--mindrecord_dir "$(absolute "$5")")
    fi
    choose_model "$3"
    CHECKPOINT=(--checkpoint_path "$(absolute "$2")")
}

# config_first_evaluate USAGE CONFIG_PATH VAL_DATA CHECKPOINT_PATH [PREDICTION_PATH]
config_first_evaluate() {
    local names=$1
    shift
    (($# == 3 || $# == 4)) || evaluate_usage "$names"
    check_file CONFIG_PATH "$1"
    check_folder VAL_DATA "$2"
    check_file CHECKPOINT_PATH "$3"
    choose_config "$1"
    DATA=(--val_dataset "$(absolute "$2")")
    CHECKPOINT=(--checkpoint_path "$(absolute "$3")")
    if [ $# -gt 3 ]; then
        check_new_file PREDICTION_PATH "$4"
        CHECKPOINT+=(--predictions "$(absolute "$4")")
    fi
}

run_evaluate() {
    check_number DEVICE_ID "$2" 0 1023
    choose_outputs TRAIN_OUTPUTS "${TRAIN_OUTPUTS:-$ROOT/train_outputs}"
    choose_extra
    choose_python "$1"
    run "$OUTPUTS/eval.log" "$PYTHON" eval.py --config_path "$CONFIG" --device_target "$1" "${MODEL[@]}" "${DATA[@]}" \
        "${PLACES[@]}" "${CHECKPOINT[@]}" --device_id "$2" "${EXTRA[@]}"
}

# infer DEVICE CONFIG_PATH CHECKPOINT_PATH PRED_INPUT PRED_OUTPUT
infer() {
    local device=$1 output
    shift
    (($# == 4)) || usage "[CONFIG_PATH] [CHECKPOINT_PATH] [PRED_INPUT] [PRED_OUTPUT]"
    check_file CONFIG_PATH "$1"
    check_file CHECKPOINT_PATH "$2"
    [ -n "$3" ] || die "PRED_INPUT is empty"
    [ -e "$(absolute "$3")" ] || die "PRED_INPUT: no such image or folder: $3"
    check_new_file PRED_OUTPUT "$4"
    choose_config "$1"
    choose_extra
    choose_python "$device"
    output=$(absolute "$4")
    run "${output%.json}.log" "$PYTHON" infer.py --config_path "$CONFIG" --device_target "$device" "${MODEL[@]}" \
        --ckpt_file "$(absolute "$2")" --input "$(absolute "$3")" --output "$output" "${EXTRA[@]}"
}
