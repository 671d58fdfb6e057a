#!/usr/bin/env bash
# Makes two environments, one with uv and CycloneDX's tool and one with what constraints-hashed.txt pins, and runs:
#     supply_chain.sh PYTHON FOLDER constraints-hashed   write constraints-hashed.txt
#     supply_chain.sh PYTHON FOLDER licences             write LICENSES.md
#     supply_chain.sh PYTHON FOLDER sbom                 write dist/vae-edge.cdx.json, valid by CycloneDX's schema
set -euo pipefail
python=$1
folder=$2
cd "$(dirname "$0")/../.."

tools=$folder/tools
if [ ! -f "$tools/installed" ] || [ constraints.txt -nt "$tools/installed" ]; then
    rm -rf "$tools"
    "$python" -m venv "$tools"
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt cyclonedx-bom packaging uv
    touch "$tools/installed"
fi
if [ "$3" = constraints-hashed ]; then
    exec "$tools/bin/python" -m tests.packaging.hashed_constraints --write
fi

runtime=$folder/runtime
if [ ! -f "$runtime/installed" ] || [ constraints-hashed.txt -nt "$runtime/installed" ]; then
    echo "==> installing everything that constraints-hashed.txt pins into $runtime: 1 GB"
    rm -rf "$runtime"
    "$python" -m venv "$runtime"
    pip=("$runtime/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r)
    "${pip[@]}" <(sed -n '/^pip==/,/[^\]$/p' constraints-hashed.txt) # An older one does not know extras in such a file.
    "${pip[@]}" constraints-hashed.txt
    touch "$runtime/installed"
fi
case $3 in
licences) exec "$tools/bin/python" -m tests.packaging.licences "$runtime/bin/python" ;;
sbom)
    mkdir -p dist
    "$tools/bin/cyclonedx-py" environment "$runtime/bin/python" --pyproject pyproject.toml --mc-type library \
        --spec-version 1.6 --output-reproducible --validate --output-file dist/vae-edge.cdx.json
    echo "dist/vae-edge.cdx.json: $(grep -c '"purl":' dist/vae-edge.cdx.json) packages, valid by CycloneDX 1.6"
    ;;
*) echo "supply_chain.sh: $3 is not a step; expected constraints-hashed, licences or sbom" >&2 && exit 2 ;;
esac
