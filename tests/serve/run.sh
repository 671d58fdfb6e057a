#!/usr/bin/env bash
# Makes an environment with MLServer and runs the tests that need it, or with `-- ARGUMENTS` python with these.
#     run.sh PYTHON FOLDER [-- ARGUMENTS]
set -euo pipefail
python=$1
folder=$2
shift 2
cd "$(dirname "$0")/../.."

if [ ! -f "$folder/installed" ] || [ pyproject.toml -nt "$folder/installed" ] || [ constraints.txt -nt "$folder/installed" ]; then
    echo "==> installing MLServer into $folder: 0.5 GB the first time"
    "$python" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade --constraint constraints.txt pip setuptools
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
        --editable '.[serve,onnxruntime,openvino]' 'tritonclient[http]' onnx psutil pytest
    touch "$folder/installed"
fi

if [ "${1:-}" = "--" ]; then
    shift
    exec "$folder/bin/python" "$@"
fi
exec "$folder/bin/python" -m pytest tests/serve tests/vae_edge/serve tests/vae_edge/cli/test_serve.py
