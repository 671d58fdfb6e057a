#!/usr/bin/env bash
# Makes an environment with MLServer and runs the tests that need it, or with `-- ARGUMENTS` python with these.
#     run.sh PYTHON FOLDER [-- ARGUMENTS]
exec bash "$(dirname "$0")/../own_environment.sh" "$1" "$2" "MLServer (0.5 GB the first time)" \
    "--editable .[serve,onnxruntime,openvino] tritonclient[http] onnx psutil pytest pytest-timeout" \
    "tests/serve tests/vae_edge/serve tests/vae_edge/cli/test_serve.py" "${@:3}"
