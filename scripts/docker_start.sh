#!/usr/bin/env bash
# Starts a container of IMAGE with a shell: as the user who calls, with this host's Ascends or GPUs, and both folders
# under their own names; DATA_DIR can only be read there.
# usage: bash scripts/docker_start.sh [IMAGE] [DATA_DIR] [MODEL_DIR]
# DRY_RUN=1 prints the command and starts nothing; DOCKER names another program that understands it (podman);
# NETWORK=host shares the host's network, for several hosts; SHM_SIZE is what data workers share (default 8g).
set -euo pipefail
# shellcheck source=scripts/launch.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

(($# == 3)) || usage "[IMAGE] [DATA_DIR] [MODEL_DIR]"
[[ -n $1 && $1 != -* ]] || die "IMAGE: the name of an image, not '$1'"
check_folder DATA_DIR "$2"
check_folder MODEL_DIR "$3"
data=$(absolute "$2") model=$(absolute "$3")
command=("${DOCKER:-docker}" run --rm --user "$(id -u):$(id -g)" --cap-drop=ALL --security-opt=no-new-privileges)
command+=(--shm-size="${SHM_SIZE:-8g}")
if [ -n "${NETWORK:-}" ]; then command+=(--network="$NETWORK"); fi
if [ -t 0 ] && [ -t 1 ]; then command+=(--interactive --tty); else command+=(--interactive); fi

# add_mount PATH [,readonly]: the host's PATH in the container, which must be there: --volume would make it, as root's.
# The option is a line of CSV.
add_mount() {
    local field=$1
    case $field in
        *$'\n'*) die "'$1': a folder with a line break in its name can't be mounted; rename it" ;;
        *[,\"]*) field=${field//\"/\"\"} && command+=(--mount "type=bind,\"source=$field\",\"target=$field\"${2:-}") ;;
        *) command+=(--mount "type=bind,source=$field,target=$field${2:-}") ;;
    esac
}

# Ascend: its devices, what manages them, the group that may open them, and the host's driver
ascend=0
groups=()
for device in "${DEV_ROOT:-/dev}"/davinci[0-9]*; do
    if [ -e "$device" ]; then
        command+=(--device="$device")
        groups+=("$(stat -c %g "$device")")
        ascend=1
    fi
done
if ((ascend)); then
    for device in davinci_manager devmm_svm hisi_hdc; do command+=(--device="${DEV_ROOT:-/dev}/$device"); done
    for group in $(printf '%s\n' "${groups[@]}" | sort -un); do command+=(--group-add="$group"); done
    for path in driver/lib64 driver/tools driver/version.info add-ons; do
        if [ -e "/usr/local/Ascend/$path" ]; then add_mount "/usr/local/Ascend/$path" ,readonly; fi
    done
    for path in /usr/local/dcmi /usr/local/bin/npu-smi /usr/local/sbin/npu-smi /etc/ascend_install.info /etc/hccn.conf; do
        if [ -e "$path" ]; then add_mount "$path" ,readonly; fi
    done
elif [ -e "${DEV_ROOT:-/dev}/nvidiactl" ]; then
    command+=(--gpus all)
fi
# two mounts of one folder would be refused
if [ "$data" != "$model" ]; then add_mount "$data" ,readonly; fi
add_mount "$model"
command+=("$1" /bin/bash)

if [ "${DRY_RUN:-}" = 1 ]; then
    printf '%q ' "${command[@]}" | sed 's/ $/\n/'
    exit 0
fi
command -v "${command[0]}" >/dev/null || die "DOCKER: no such program: ${command[0]}"
exec "${command[@]}"
