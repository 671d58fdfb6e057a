#!/usr/bin/env bash
# Checks vae-edge on a machine with an NVIDIA GPU, in at most eight minutes and without a network: `make check-gpu`.
#   PYTHON=.venv/bin/python   with the packages; without .venv: python3
#   WHEELS=DIR                wheels that this Python lacks: they go into a temporary folder, and nothing is fetched
#   OUT=gpu-check             folder for summary.md, log.txt and selfcheck.zip; they are written as it goes
#   STEPS="machine tests"     which of the steps in tests/gpu/check.py; empty: all
#   LIMIT_S=480               all steps together; each has a limit of its own too
# Ends with 0 if every step that could run did so, 3 if one failed, 1 if nothing could run, as without a GPU, 2 if the usage is wrong.
set -euo pipefail
out=$(realpath -m "${OUT:-gpu-check}") wheels=${WHEELS:+$(realpath -m "$WHEELS")}
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

if [ -n "$wheels" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl || {
        echo "the wheels in $wheels do not install" >&2
        exit 2
    }
    export PYTHONPATH=$PYTHONPATH:$site
fi
"$python" -m tests.gpu.check --out "$out" --limit "${LIMIT_S:-480}" ${STEPS:-}
