#!/usr/bin/env bash
# Prepares an Arm machine in a folder: Debian's Python 3.11 for arm64, a program that runs it in qemu's user emulation, and wheels.
#   bash tests/arm/prepare.sh PYTHON FOLDER SET     # writes FOLDER/root, FOLDER/python and FOLDER/SET
# Nothing is installed into this machine and no root rights are needed. PYTHON is this machine's, for pip; the versions of a SET are those of
# constraints-SET.txt. What is there already is kept.
set -euo pipefail
python=$1 folder=$(realpath -m "$2") set=$3
cd "$(dirname "$0")/../.."

fail() {
    echo "the tests on Arm cannot run: $1" >&2
    exit 1
}

[ "$(uname -m)" = x86_64 ] || fail "this machine is $(uname -m), and they compare an emulated Arm processor with x86-64"
command -v qemu-aarch64-static >/dev/null || fail "qemu-aarch64-static is missing; run: sudo apt-get install qemu-user-static"
mkdir -p "$folder"

if ! [ -f "$folder/root/ready" ]; then
    command -v apt-get >/dev/null || fail "there is no apt-get, which downloads Debian's Python for arm64"
    apt=$folder/apt
    rm -rf "$folder/root" "$apt"
    mkdir -p "$folder/root" "$apt/lists/partial" "$apt/cache/archives/partial"
    touch "$apt/status" # Empty: so that apt takes everything that Python needs for missing.
    settings=(-qq -o Dir::State="$apt" -o Dir::State::status="$apt/status" -o Dir::State::lists="$apt/lists" -o Dir::Cache="$apt/cache"
        -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Debug::NoLocking=1)
    apt-get "${settings[@]}" update >"$apt/log" 2>&1 || true # A source without arm64 does not matter if the packages come.
    apt-get "${settings[@]}" -y --download-only --no-install-recommends install python3.11 libstdc++6 libgomp1 >>"$apt/log" 2>&1 ||
        fail "apt-get cannot download python3.11 for arm64: $(grep '^E:' "$apt/log" | tail -n 1)"
    for package in "$apt"/cache/archives/*.deb; do dpkg -x "$package" "$folder/root"; done
    rm -rf "$apt"
    touch "$folder/root/ready"
fi

# argv[0] becomes sys.executable: so a test that starts Python again starts it in the emulation, and without binfmt.
# It lies where Python looks for its library; the Cortex-A72 has what every Jetson's processor has.
program=$folder/root/usr/bin/python-arm
cat >"$program" <<PROGRAM
#!/bin/sh
exec qemu-aarch64-static -cpu cortex-a72 -L '$folder/root' -0 '$program' '$folder/root/usr/bin/python3.11' "\$@"
PROGRAM
chmod +x "$program"
# What an earlier version put there for the runtimes to find an Arm processor: with it ONNX Runtime 1.23 aborts.
rm -rf "$folder/root/proc" "$folder/root/sys"
ln -sf "$program" "$folder/python"
"$program" -c 'import platform; assert platform.machine() == "aarch64"' || fail "Debian's Python for arm64 does not start in qemu"

site=$folder/$set
if ! [ "$site/ready" -nt "constraints-$set.txt" ] || ! [ "$site/ready" -nt pyproject.toml ]; then
    rm -rf "$site"
    platforms=(--platform manylinux2014_aarch64)
    for glibc in $(seq 17 36); do platforms+=(--platform "manylinux_2_${glibc}_aarch64"); done # Debian 12 has glibc 2.36.
    wanted=($(sed -n 's/==.*//p' constraints-lowest.txt | grep -vE 'asyncua|paho|pymodbus') pytest pytest-timeout onnx) # What the runtime's tests import.
    "$python" -m pip install --quiet --disable-pip-version-check --no-compile --target "$site" --only-binary=:all: "${platforms[@]}" \
        --python-version 3.11 --implementation cp --constraint "constraints-$set.txt" "${wanted[@]}" >"$folder/pip.log" 2>&1 ||
        fail "pip cannot install the wheels of constraints-$set.txt: $(grep '^ERROR' "$folder/pip.log" | tail -n 1)"
    touch "$site/ready"
fi
