#!/usr/bin/env bash
# Makes an environment with anomalib and runs the tests that need it, or with `-- ARGUMENTS` python with these.
#     run.sh PYTHON FOLDER [-- ARGUMENTS]
OPTIONAL=1 exec bash "$(dirname "$0")/../own_environment.sh" "$1" "$2" "anomalib (several GB the first time)" \
    "--editable .[anomalib,features,export,openvino,onnxruntime,bench] pytest pytest-timeout" "tests/anomalib" "${@:3}"
