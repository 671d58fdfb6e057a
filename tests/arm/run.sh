#!/usr/bin/env bash
# Runs vae-edge on an emulated Arm processor and compares it with this machine: `make test-arm`.
#   SETS="jetpack6 jetpack7"   versions of packages: constraints-SET.txt
#   PICTURES=200               pictures that bundles of a small network judge on both, in multiples of 10
#   TESTS="tests/vae_edge"     tests to run in the emulation; empty: none
# Ends with 1 if a verdict, a score or a map differs, a test fails, or the emulation is not available.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python} folder=.venv-arm
sets=${SETS:-jetpack6 jetpack7} pictures=${PICTURES:-200} tests=${TESTS-tests/vae_edge tests/train/sample}
export OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1

for set in $sets; do bash tests/arm/prepare.sh "$python" "$folder" "$set"; done
root=$PWD
on_arm() { # SET ARGUMENTS: Python with the packages of a set; the two lines about an unknown processor are the emulation's.
    local site=$root/$folder/$1
    shift
    PYTHONPATH="$root:$site" "$folder/python" "$@" 2> >(grep -vE 'cpuid_info warning|MIDR_EL1' >&2)
}

echo "==> arm: a small network, trained and exported here (${SECONDS}s)"
work=$folder/work
rm -rf "$work"
mkdir -p "$work"
vae_edge=("$python" -m vae_edge)
{
    "${vae_edge[@]}" sample "$work/pictures" --product dial --image-size 96 --train 200 \
        --test-good $((pictures * 3 / 10)) --per-defect $((pictures / 10))
    "${vae_edge[@]}" train --data "$work/pictures/dial" --out "$work/dial" --preset nano --image-size 64 --n-features 8 --max-features 32 \
        --latent-vec-size 16 --epochs 25 --scoring default --photometric local --calibration split
    "${vae_edge[@]}" export "$work/dial" --target onnx,openvino --precision fp32,int8 --calibration-images 64 --out "$work/bundles"
} >"$work/log" 2>&1 || {
    cat "$work/log" >&2
    exit 1
}

echo "==> arm: $pictures pictures on this machine (${SECONDS}s)"
judged=("$work/bundles" "$work/pictures/dial/test")
"$python" -m tests.arm.judge "${judged[@]}" "$work/x86"
for set in $sets; do
    echo "==> arm: the same with constraints-$set.txt in the emulation (${SECONDS}s)"
    on_arm "$set" -m tests.arm.judge "${judged[@]}" "$work/$set"
    "$python" -m tests.arm.compare "$work/x86" "$work/$set"
done

for set in ${tests:+$sets}; do
    echo "==> arm: the runtime's tests with constraints-$set.txt in the emulation (${SECONDS}s)"
    on_arm "$set" -m pytest -q -p no:cacheprovider -p tests.arm.not_in_emulation -m "${MARKS:-not gpu and not slow}" $tests
done
echo "==> arm: done (${SECONDS}s)"
