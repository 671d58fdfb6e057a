#!/usr/bin/env bash
# Installs a wheel with only the [openvino] extra into an empty environment, every file of it by its hash in
# constraints-hashed.txt, and runs a prediction there:
#   bash tests/packaging/predict_without_torch.sh dist/vae_edge-*.whl
# The bundle is a tiny real one that the developers' environment (.venv, or $PYTHON) makes.
set -euo pipefail
unset PYTHONPATH # pip would take a checkout in it for an installed vae-edge.

wheel=$(realpath "$1")
repository=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-$repository/.venv/bin/python}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

(cd "$repository" && "$python" -m tests.packaging.make_prediction_input "$scratch/input")

"$python" -m venv "$scratch/empty"
pip=("$scratch/empty/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes)
# The pip that the environment came with may be too old to take hashes from constraints.
sed -n '/^pip==/,/[^\\]$/p' "$repository/constraints-hashed.txt" >"$scratch/pip.txt"
"${pip[@]}" -r "$scratch/pip.txt"
"${pip[@]}" -c "$repository/constraints-hashed.txt" "vae-edge[openvino] @ file://$wheel#sha256=$(sha256sum "$wheel" | cut -d' ' -f1)"
if sed "s/sha256:./sha256:0/" "$repository/constraints-hashed.txt" >"$scratch/wrong.txt" &&
    "${pip[@]}" --force-reinstall --no-deps --dry-run --no-cache-dir -c "$scratch/wrong.txt" rich 2>"$scratch/refusal"; then
    echo "pip installs a package whose hash is another one" >&2 && exit 1
fi
grep -q "DO NOT MATCH THE HASHES" "$scratch/refusal"

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
