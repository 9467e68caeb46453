#!/usr/bin/env bash
# Writes requirements.lock anew: what requirements.txt comes to on Python 3.11 and 3.12, pinned, with the SHA-256 of every
# file of each release, so that it serves x86-64 and aarch64. Versions in the lock stay unless requirements.txt has others.
# usage: bash scripts/lock_requirements.sh [--upgrade]
#   --upgrade   the newest releases that fit
# UV names a uv to use; without it one is fetched, and thrown away.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage="usage: bash scripts/lock_requirements.sh [--upgrade]"
options=()
if (($# == 1)) && [ "$1" = --upgrade ]; then
    options=(--upgrade)
elif (($# > 0)); then
    echo "$usage" >&2
    exit 2
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ -z "${UV:-}" ]; then
    python=$(find_python) || exit 2
    "$python" -m venv "$scratch/uv" || die "can't make a virtual environment for uv"
    "$scratch/uv/bin/pip" install --quiet --disable-pip-version-check uv==0.13.8 || die "pip could not install uv"
    UV=$scratch/uv/bin/uv
fi
command -v "$UV" >/dev/null || die "UV: no such program: $UV"

cd "$ROOT"
[ ! -f requirements.lock ] || cp requirements.lock "$scratch/requirements.lock"
# without its header, annotations and index, which would name this machine's
"$UV" pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
    --no-emit-index-url --no-emit-find-links "${options[@]}" --output-file "$scratch/requirements.lock" \
    requirements.txt >/dev/null || die "uv could not resolve requirements.txt; requirements.lock is as it was"
{
    echo "# What requirements.txt comes to, with hashes: pip install --require-hashes -r requirements.lock"
    echo "# Written by scripts/lock_requirements.sh."
    grep -v '^#' "$scratch/requirements.lock"
} >requirements.lock.writing
mv requirements.lock.writing requirements.lock
echo "requirements.lock: $(grep -c '==' requirements.lock) packages, $(grep -c -- '--hash=' requirements.lock) files"
