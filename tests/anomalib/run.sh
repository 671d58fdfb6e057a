#!/usr/bin/env bash
# Makes an environment with anomalib and runs the tests that need it, or with `-- ARGUMENTS` python with these.
#     run.sh PYTHON FOLDER [-- ARGUMENTS]
set -euo pipefail
python=$1
folder=$2
shift 2
cd "$(dirname "$0")/../.."

if [ ! -f "$folder/installed" ] || [ pyproject.toml -nt "$folder/installed" ] || [ constraints.txt -nt "$folder/installed" ]; then
    echo "==> installing anomalib into $folder: several GB the first time"
    "$python" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade --constraint constraints.txt pip setuptools
    if ! "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
        --editable '.[anomalib,features,export,openvino,onnxruntime,bench]' pytest >"$folder/install.log" 2>&1; then
        echo "SKIPPED: anomalib cannot be installed here:"
        tail -n 5 "$folder/install.log"
        exit 0
    fi
    touch "$folder/installed"
fi

if [ "${1:-}" = "--" ]; then
    shift
    exec "$folder/bin/python" "$@"
fi
exec "$folder/bin/python" -m pytest tests/anomalib
