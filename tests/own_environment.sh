#!/usr/bin/env bash
# Makes an environment of its own for tests that need packages which .venv has not, and runs them, or with
# `-- ARGUMENTS` python with these. It is installed again if pyproject.toml or constraints.txt changed.
#     own_environment.sh PYTHON FOLDER WHAT PACKAGES TESTS [-- ARGUMENTS]
# With OPTIONAL=1 a failed installation is a skip that says why.
set -euo pipefail
python=$1
folder=$2
what=$3
read -ra packages <<<"$4"
read -ra tests <<<"$5"
shift 5
cd "$(dirname "$0")/.."

pip() { "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "$@"; }

if [ ! -f "$folder/installed" ] || [ pyproject.toml -nt "$folder/installed" ] || [ constraints.txt -nt "$folder/installed" ]; then
    echo "==> installing $what into $folder"
    "$python" -m venv "$folder"
    pip --upgrade pip setuptools
    if ! pip "${packages[@]}" >"$folder/install.log" 2>&1; then
        [ -n "${OPTIONAL:-}" ] && echo "SKIPPED: it cannot be installed here:"
        tail -n 5 "$folder/install.log"
        [ -n "${OPTIONAL:-}" ] && exit 0
        exit 1
    fi
    touch "$folder/installed"
fi

if [ "${1:-}" = "--" ]; then
    shift
    exec "$folder/bin/python" "$@"
fi
exec "$folder/bin/python" -m pytest "${tests[@]}"
