#!/usr/bin/env bash
# Runs the tests of what runs on a device, in an environment of its own without torch:
#   bash tests/packaging/runtime_tests.sh 3.12            # the newest versions of everything
#   bash tests/packaging/runtime_tests.sh 3.10 lowest     # the lowest that pyproject.toml allows
# MARKS="not slow" leaves out the slow ones. Where that Python is not installed they are skipped with the reason; with REQUIRE_PYTHONS set that is a failure.
set -euo pipefail

version=$1 versions=${2:-newest}
cd "$(dirname "$0")/../.."

python=$(command -v "python$version" || true)
if [ -z "$python" ] || ! "$python" -c '' 2>/dev/null; then # pyenv puts a script in place of a Python that is not chosen.
    python=$(ls "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python 2>/dev/null | tail -n 1 || true)
fi
if [ -z "$python" ]; then
    echo "skipped: the runtime's tests on Python $version, for it is neither on the path nor in pyenv"
    [ -z "${REQUIRE_PYTHONS:-}" ]
    exit
fi

environment=.venv-runtime/$version-$versions
mark=$environment/installed
programs=$environment/$(if [ "${OS:-}" = Windows_NT ]; then echo Scripts; else echo bin; fi)
if ! [ "$mark" -nt pyproject.toml ] || ! [ "$mark" -nt constraints-lowest.txt ]; then
    rm -rf "$environment"
    "$python" -m venv "$environment"
    # Not this package: an editable one would write into the checkout while CI builds the wheel from it.
    wanted=($(sed -n 's/==.*//p' constraints-lowest.txt) pytest onnx)
    if [ "$versions" = lowest ]; then wanted+=(--constraint constraints-lowest.txt); fi
    "$programs/python" -m pip install --quiet --disable-pip-version-check "${wanted[@]}"
    touch "$mark"
fi
# A test is skipped where its runtime is not installed; so they are imported here, and the versions held against the file.
"$programs/python" - "$versions" <<'PY'
import importlib.util, sys
from importlib.metadata import version
import cv2, numpy, onnx, onnxruntime, openvino
assert importlib.util.find_spec("torch") is None, "torch is installed, but nothing here needs it"
lines = [line.strip() for line in open("constraints-lowest.txt") if "==" in line and not line.startswith("#")]
assert len(lines) > 5, lines
for name, lowest in (line.split("==") for line in lines):
    found = version(name)
    assert sys.argv[1] != "lowest" or (found + ".").startswith(lowest + "."), f"{name} is {found}, not {lowest}"
print("Python", sys.version)
PY
"$programs/python" -m pip list --disable-pip-version-check 2>/dev/null |
    grep -iE '^(numpy|onnxruntime|opencv|openvino|pydantic|rich|typer|click) ' | tr -s ' ' | paste -sd ',' -
PYTHONPATH=$PWD "$programs/python" -m pytest -q -p no:cacheprovider -m "not gpu${MARKS:+ and $MARKS}" tests/vae_edge tests/train/sample
