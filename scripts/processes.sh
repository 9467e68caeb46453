# Shared by the launchers, by way of launch.sh: which interpreter, which processors, and how commands run and end.
# shellcheck shell=bash

# give NAME VALUE: environment of what is started.
declare -A GIVEN=()
give() {
    GIVEN[$1]=$2
    export "$1=$2"
}

# Sets PYTHON to an interpreter that has MindSpore. Ascend and GPU need a MindSpore that fits their driver, which the
# user's environment has; for CPU the checkout has its own, made from the requirements file that is named second.
choose_python() {
    local device=$1 requirements=${2:-requirements.txt}
    give GLOG_v "${GLOG_v:-3}" # MindSpore's advice would bury the progress bars
    if [[ ${PYTHON:-} == */* ]]; then PYTHON=$(absolute "$PYTHON"); fi
    if [ "${DRY_RUN:-}" = 1 ]; then
        if [ -z "${PYTHON:-}" ]; then
            if [ "$device" = CPU ]; then PYTHON=$ROOT/.venv/bin/python; else PYTHON=python3; fi
        fi
    elif [ "$device" != CPU ]; then
        PYTHON=${PYTHON:-python3}
        has_mindspore "$PYTHON" ||
            die "PYTHON: '$PYTHON' has no MindSpore; install it for $device and name its interpreter: PYTHON=/path/to/python"
        PYTHON=$(command -v "$PYTHON")
    elif [ -n "${PYTHON:-}" ] && has_mindspore "$PYTHON"; then
        PYTHON=$(command -v "$PYTHON")
        build_operators "$PYTHON" "$ROOT/build/build_custom.log"
    else
        set_up "$requirements"
        PYTHON=$VENV_PYTHON
    fi
}

has_mindspore() {
    command -v "$1" >/dev/null &&
        "$1" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("mindspore") is None)' 2>/dev/null
}

# Any Python, for tools that need no package.
plain_python() {
    command -v "$PYTHON" || command -v python3 || command -v python || die "PYTHON: no such interpreter: $PYTHON"
}

# Sets CORES to a list of processors for each of COUNT processes, out of those that this shell may use; to nothing where
# there are fewer processors than processes.
share_processors() {
    local allowed part all=() each i
    CORES=()
    if [ "${BIND_CORES:-true}" = false ]; then return; fi
    allowed=$(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status 2>/dev/null) || return 0
    for part in ${allowed//,/ }; do
        mapfile -t -O "${#all[@]}" all < <(seq "${part%-*}" "${part#*-}")
    done
    each=$((${#all[@]} / $1))
    if ((each == 0)); then return; fi
    for ((i = 0; i < $1; i++)); do
        CORES+=("$(IFS=,; echo "${all[*]:i*each:each}")")
    done
}

# CORES as msrun's --bind_core takes it.
core_map() {
    local i out="" comma=""
    for i in "${!CORES[@]}"; do
        out+="$comma\"device$i\": [\"${CORES[i]//,/\", \"}\"]"
        comma=", "
    done
    echo "{$out}"
}

# add_command LOG WORD...: one of several commands that run_all starts at once.
add_command() {
    LOGS+=("$1")
    shift
    COMMANDS+=("$(printf '%q ' "$@")")
}

# What would be run, one command or variable a line.
print_dry() {
    local name
    for name in $(printf '%s\n' "${!GIVEN[@]}" | LC_ALL=C sort); do
        printf 'export %s=%q\n' "$name" "${GIVEN[$name]}"
    done
    printf 'cd %q\n' "$ROOT"
    printf '%s\n' "$@"
}

# run LOG WORD...: runs one command in the checkout, its output on the console and in LOG, and ends with its status.
run() {
    local log=$1
    shift
    if [ "${DRY_RUN:-}" = 1 ]; then
        print_dry "$(printf '%q ' "$@" | sed 's/ $//')"
        exit 0
    fi
    open_log "$log"
    cd "$ROOT" || exit 2
    # with job control the command isn't deaf to Ctrl-C
    set -m
    "$@" >&3 2>&4 3>&- 4>&- &
    CHILDREN=($!)
    set +m
    trap 'forward TERM' TERM HUP
    trap 'forward INT' INT
    wait_for "${CHILDREN[0]}"
    close_log
    exit "$STATUS"
}

# run_all LOG: runs all of COMMANDS at once, each into its file of LOGS and the first on the console too. As soon as one
# fails, the others are ended. Ends with the status of the first to fail.
run_all() {
    local log=$1 i status
    local -a words running=()
    if [ "${DRY_RUN:-}" = 1 ]; then
        print_dry "${COMMANDS[@]% }"
        exit 0
    fi
    open_log "$log"
    cd "$ROOT" || exit 2
    mkdir -p "$(dirname "${LOGS[0]}")" || die "can't write to $(dirname "${LOGS[0]}")"
    CHILDREN=() STATUS=0 STOPPING=
    set -m
    for i in "${!COMMANDS[@]}"; do
        declare -a words="(${COMMANDS[i]})"
        if ((i == 0)); then
            "${words[@]}" > >(trap '' TERM INT HUP && exec tee "${LOGS[i]}" >&3) 2>&1 3>&- 4>&- &
        else
            "${words[@]}" >"${LOGS[i]}" 2>&1 3>&- 4>&- &
        fi
        CHILDREN+=($!)
    done
    set +m
    trap 'forward TERM' TERM HUP
    trap 'forward INT' INT
    running=("${!CHILDREN[@]}")
    while ((${#running[@]})); do
        sleep 0.2 || true
        for i in "${running[@]}"; do
            if kill -0 "${CHILDREN[i]}" 2>/dev/null; then continue; fi
            wait "${CHILDREN[i]}" && status=0 || status=$?
            if ((status != 0 && STATUS == 0)); then
                STATUS=$status
                if [ -z "$STOPPING" ]; then
                    echo "error: $(basename "${LOGS[i]}" .log) ended with status $status; the end of ${LOGS[i]}:" >&4
                    tail -n 20 "${LOGS[i]}" >&4
                fi
                end_children
            fi
            unset "running[i]"
        done
    done
    close_log
    exit "$STATUS"
}

# The log, on descriptor 3 with the console's output and 4 with its errors. The writers outlive a Ctrl-C.
open_log() {
    { mkdir -p "$(dirname "$1")" && true >>"$1"; } 2>/dev/null || die "can't write the log $1"
    exec 3> >(trap '' TERM INT HUP && exec tee -a "$1")
    WRITERS=($!)
    exec 4> >(trap '' TERM INT HUP && exec tee -a "$1" >&2)
    WRITERS+=($!)
    echo "log: $1" >&3
}

# The writers end with the last process that writes; one that was left behind isn't waited for.
close_log() {
    local i
    exec 3>&- 4>&-
    for ((i = 0; i < 100; i++)); do
        kill -0 "${WRITERS[@]}" 2>/dev/null || break
        sleep 0.05
    done
    kill -s KILL "${WRITERS[@]}" 2>/dev/null || true
}

# wait_for PID: sets STATUS. A wait that a signal interrupts isn't the end of the process.
wait_for() {
    while true; do
        wait "$1" && STATUS=0 || STATUS=$?
        kill -0 "$1" 2>/dev/null || break
    done
}

forward() {
    STOPPING=1
    kill -s "$1" "${CHILDREN[@]}" 2>/dev/null || true
}

# Ends what is left of CHILDREN, first kindly: a rank that saves gets a minute, one that waits for a dead one 10 s.
end_children() {
    local i
    kill -s TERM "${CHILDREN[@]}" 2>/dev/null || true
    for ((i = 0; i < ${STOPPING:+5}00 + 100; i++)); do
        kill -0 "${CHILDREN[@]}" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -s KILL "${CHILDREN[@]}" 2>/dev/null || true
}
