#!/usr/bin/env bash
# The test suite, after the linters, the formatters and the type checker. usage: bash scripts/run_tests.sh [--full|--fast] [PYTEST ARGUMENT]...
#   --full  also the long tests
#   --fast  the quick half: no launchers, commands or C++ program, and of the operators this CPU's own instruction set alone
# Arguments go to pytest: bash scripts/run_tests.sh tests/models -k fpn
# MINDSPORE=2.10.0 PYTHON=python3.10, before it, run it on other versions, in an environment of their own (3 GB). What came out is
# left in build/matrix/, for python -m benchmarks.versions.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

cd "$ROOT"
trap wait EXIT
builds=()
if [[ " $* " != *" --fast "* ]]; then
    # before the tests, which run in two processes, either of which would build it; from the start, as installing waits for
    # the network
    python=$(find_python) || exit 2
    mkdir -p build
    {
        bash scripts/build_custom.sh --march all "$python" >build/build_custom.log 2>&1 ||
            echo "warning: not built for every instruction set that this CPU has ($(tail -n 1 build/build_custom.log))" >&2
    } &
    builds+=($!)
fi
set_up requirements-dev.txt
if [ -z "${COCO_ROOT:-}" ] && [ -d ../shared/data/coco_mini ]; then
    COCO_ROOT=$(cd ../shared/data/coco_mini && pwd)
    export COCO_ROOT
fi
if [ -z "${RCNN_TEST_DATA:-}" ] && [ -d ../shared/data/mobilenet_v1 ]; then
    RCNN_TEST_DATA=$(cd ../shared/data && pwd)
    export RCNN_TEST_DATA
fi
if [[ " $* " != *" --fast "* ]]; then
    # beside the linters
    {
        PYTHON=$VENV_PYTHON bash ascend310_infer/build.sh --fetch >build/build_infer.log 2>&1 ||
            echo "warning: the C++ inference program wasn't built ($(tail -n 1 build/build_infer.log)); its tests skip" >&2
    } &
    builds+=($!)
fi
# they judge the source, whatever runs it; Python 3.9 has no such mypy
if [ "$VENV" = "$ROOT/.venv" ] && [ -x "$VENV/bin/mypy" ]; then
    "$VENV/bin/ruff" check .
    "$VENV/bin/ruff" format --check .
    find ascend310_infer/src src/ops tests -regex '.*\.\(cc\|h\|cu\)' -exec "$VENV/bin/clang-format" --dry-run --Werror {} +
    "$VENV/bin/mypy"
    "$VENV/bin/vermin" --quiet --no-tips --target=3.9- --eval-annotations --violations --exclude str.decode \
        src benchmarks tests ./*.py scripts
    "$VENV/bin/shellcheck" -x scripts/*.sh
    "$VENV/bin/hadolint" Dockerfile
fi
wait ${builds[@]+"${builds[@]}"}
limit=300 # seconds a test
if [[ " $* " == *" --full "* ]]; then
    limit=3600
fi
versions="Python $(python_version "$VENV_PYTHON"), MindSpore $("$VENV_PYTHON" -c \
    'import importlib.metadata as m; print(m.version("mindspore"))')"
# run FILE PYTEST_ARGUMENT...: the launchers that are tested choose versions for themselves
run() {
    local file=$1
    shift
    mkdir -p "${file%/*}"
    env -u PYTHON -u MINDSPORE "$VENV_PYTHON" -m pytest -q --durations=15 -n 2 --dist loadfile --no-loadscope-reorder --timeout "$limit" \
        -o "junit_suite_name=$versions: ${*:-all}" --junitxml "$file" "$@"
}
if [[ "$*" != "--full" ]]; then
    run "build/matrix/${versions//[ ,]/}.xml" "$@"
    exit
fi
# one after the other, in new processes: MindSpore keeps what it compiled, ten gigabytes after half of the long tests
status=0
for part in tests/*/ tests; do
    files=("$part"/test_*.py)
    if [ "$part" != tests ]; then
        mapfile -t files < <(find "$part" -name 'test_*.py' | sort)
    fi
    if ((${#files[@]} > 0)); then
        echo "== $part"
        part=${part%/}
        run "build/full/${part//\//-}.xml" --full "${files[@]}" || status=$?
    fi
done
exit "$status"
