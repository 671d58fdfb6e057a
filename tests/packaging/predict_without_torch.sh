#!/usr/bin/env bash
# Installs a wheel with only the [openvino] extra into an empty environment and runs a prediction there:
#   bash tests/packaging/predict_without_torch.sh dist/vae_edge-*.whl
# The bundle is a tiny real one that the developers' environment (.venv, or $PYTHON) makes.
set -euo pipefail

wheel=$(realpath "$1")
repository=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-$repository/.venv/bin/python}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

(cd "$repository" && "$python" -m tests.packaging.make_prediction_input "$scratch/input")

"$python" -m venv "$scratch/empty"
"$scratch/empty/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$repository/constraints.txt" "vae-edge[openvino] @ file://$wheel"

cd "$scratch"
"$scratch/empty/bin/python" - <<'PY'
import importlib.util
for name in ("torch", "lightning", "onnx", "onnxruntime"):
    assert importlib.util.find_spec(name) is None, f"{name} is installed, but nothing here needs it"
PY
"$scratch/empty/bin/vae-edge" --version
"$scratch/empty/bin/vae-run" input/bundle input/images --out predictions
"$scratch/empty/bin/python" - <<'PY'
import json, sys
records = [json.loads(line) for line in open("predictions/predictions.jsonl", encoding="utf-8")]
verdicts = {record["source"].rsplit("/", 1)[-1]: record["is_anomalous"] for record in records}
assert verdicts == {"dark.png": False, "spotted.png": True}, verdicts
assert "torch" not in sys.modules
print("a prediction without torch:", verdicts)
PY
du -sh "$scratch/empty" | sed 's/\t.*/ in the environment/'
