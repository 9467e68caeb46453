#!/usr/bin/env bash
# The test suite, after the linters, the formatters and the type checker. usage: bash scripts/run_tests.sh [--full] [PYTEST ARGUMENT]...
#   --full  also the long tests
# Arguments go to pytest: bash scripts/run_tests.sh tests/models -k fpn
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

set_up requirements-dev.txt
cd "$ROOT"
if [ -z "${COCO_ROOT:-}" ] && [ -d ../shared/data/coco_mini ]; then
    COCO_ROOT=$(cd ../shared/data/coco_mini && pwd)
    export COCO_ROOT
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
find ascend310_infer/src src/ops tests -regex '.*\.\(cc\|h\|cu\)' -exec .venv/bin/clang-format --dry-run --Werror {} +
.venv/bin/mypy
.venv/bin/shellcheck -x scripts/*.sh
.venv/bin/hadolint Dockerfile
# before the tests, which run in two processes, either of which would build it
bash scripts/build_custom.sh --march all "$VENV_PYTHON" >.venv/build_custom.log 2>&1 ||
    echo "warning: not built for every instruction set that this CPU has ($(tail -n 1 .venv/build_custom.log))" >&2
PYTHON=$VENV_PYTHON bash ascend310_infer/build.sh --fetch >.venv/build_infer.log 2>&1 ||
    echo "warning: the C++ inference program wasn't built ($(tail -n 1 .venv/build_infer.log)); its tests skip" >&2
exec "$VENV_PYTHON" -m pytest -q --durations=15 -n 2 --dist loadfile "$@"
