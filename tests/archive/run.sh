#!/usr/bin/env bash
# Makes an environment with Ray and runs the tests that need it, or with `-- ARGUMENTS` python with these.
#     run.sh PYTHON FOLDER [-- ARGUMENTS]
exec bash "$(dirname "$0")/../own_environment.sh" "$1" "$2" "Ray and pyarrow (1 GB the first time)" \
    "--editable .[archive,onnxruntime,openvino] onnx psutil pytest pytest-timeout" \
    "tests/archive tests/vae_edge/archive tests/vae_edge/cli/test_archive.py" "${@:3}"
