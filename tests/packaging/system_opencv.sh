#!/usr/bin/env bash
# Installs a wheel by the two commands for JetPack 6, beside an OpenCV that pip does not know, and runs a prediction with it:
#   bash tests/packaging/system_opencv.sh dist/vae_edge-*.whl
# On Python 3.10, as JetPack 6 has. That OpenCV is 4.8 in a folder behind the environment's own, as the system's is with --system-site-packages.
set -euo pipefail

wheel=$(realpath "$1")
repository=$(cd "$(dirname "$0")/../.." && pwd)
python=$(command -v python3.10 || true)
if [ -z "$python" ] || ! "$python" -c '' 2>/dev/null; then
    python=$(ls "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.10.*/bin/python 2>/dev/null | tail -n 1 || true)
fi
[ -n "$python" ] || { echo "Python 3.10 is neither on the path nor in pyenv" >&2 && exit 1; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
(cd "$repository" && "${PYTHON:-.venv/bin/python}" -m tests.packaging.make_prediction_input "$scratch/input")

"$python" -m venv "$scratch/jetson"
pip=("$scratch/jetson/bin/python" -m pip --quiet --disable-pip-version-check)
"${pip[@]}" install --no-deps --target "$scratch/system" opencv-python-headless==4.8.0.76
rm -rf "$scratch"/system/opencv_python_headless-*.dist-info
echo "$scratch/system" >"$scratch/jetson/lib/python3.10/site-packages/system.pth"

"${pip[@]}" install -r "$repository/requirements-jetpack6.txt"
"${pip[@]}" install --no-deps "$wheel"
# In place of JetPack's TensorRT, as it is no wheel and has no GPU here.
"${pip[@]}" install -c "$repository/constraints-jetpack6.txt" openvino

cd "$scratch"
jetson/bin/vae-edge doctor | grep -A3 -E '^ *OpenCV +4\.8\.0, not from pip'
jetson/bin/vae-run input/bundle input/images --out predictions
jetson/bin/python - <<'PY'
import json
import cv2
records = [json.loads(line) for line in open("predictions/predictions.jsonl", encoding="utf-8")]
verdicts = {record["source"].rsplit("/", 1)[-1]: record["is_anomalous"] for record in records}
assert verdicts == {"dark.png": False, "spotted.png": True}, verdicts
print("a prediction with the OpenCV", cv2.__version__, "that pip does not know:", verdicts)
PY
