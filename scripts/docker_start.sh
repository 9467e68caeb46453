#!/usr/bin/env bash
# Starts a container of IMAGE with a shell, this host's Ascends or GPUs, and both folders under their own names.
# usage: bash scripts/docker_start.sh [IMAGE] [DATA_DIR] [MODEL_DIR]
# DRY_RUN=1 prints the command and starts nothing; DOCKER names another program that understands it (podman).
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

(($# == 3)) || usage "[IMAGE] [DATA_DIR] [MODEL_DIR]"
[[ -n $1 && $1 != -* ]] || die "IMAGE: the name of an image, not '$1'"
check_folder DATA_DIR "$2"
check_folder MODEL_DIR "$3"
data=$(absolute "$2") model=$(absolute "$3")
command=("${DOCKER:-docker}" run --rm --ipc=host --network=host)
if [ -t 0 ] && [ -t 1 ]; then command+=(--interactive --tty); else command+=(--interactive); fi

# Ascend: its devices, what manages them, and the host's driver
ascend=0
for device in "${DEV_ROOT:-/dev}"/davinci[0-9]*; do
    if [ -e "$device" ]; then
        command+=(--device="$device")
        ascend=1
    fi
done
if ((ascend)); then
    for device in davinci_manager devmm_svm hisi_hdc; do command+=(--device="${DEV_ROOT:-/dev}/$device"); done
    for folder in /usr/local/Ascend/driver /usr/local/Ascend/add-ons /usr/local/dcmi; do
        if [ -e "$folder" ]; then command+=(--volume "$folder:$folder:ro"); fi
    done
    for file in /usr/local/bin/npu-smi /usr/local/sbin/npu-smi /etc/ascend_install.info /etc/hccn.conf; do
        if [ -e "$file" ]; then command+=(--volume "$file:$file:ro"); fi
    done
elif [ -e "${DEV_ROOT:-/dev}/nvidiactl" ]; then
    command+=(--gpus all)
fi
command+=(--volume "$data:$data" --volume "$model:$model" "$1" /bin/bash)

if [ "${DRY_RUN:-}" = 1 ]; then
    printf '%q ' "${command[@]}" | sed 's/ $/\n/'
    exit 0
fi
command -v "${command[0]}" >/dev/null || die "DOCKER: no such program: ${command[0]}"
exec "${command[@]}"
