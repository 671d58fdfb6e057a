"""Resolve the packages of a Jetson against the wheels that exist for it: `resolve_jetpack.py WHEEL`.

For JetPack 6 and 7, with the constraints of each: the wheel with the extras [onnxruntime], [openvino],
[cuda-bindings] and [verify], and requirements-jetpack6.txt. `tensorrt` is a part of JetPack and has no wheel, so
[tensorrt] adds nothing there. Exit code 1 if something has no wheel, or a package comes that the constraints do not
pin.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

GLIBC = {"jetpack6": 35, "jetpack7": 39}
"""The minor version of glibc 2 in Ubuntu 22.04 and 24.04."""
PYTHON = {"jetpack6": "3.10", "jetpack7": "3.12"}


def resolve(name: str, wanted: list[str]) -> dict[str, str]:
    """Return the versions that pip would install on a Jetson, by package.

    Raises:
        SystemExit: it finds no wheels that go together; with pip's reason.
    """
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(17, GLIBC[name] + 1)] + ["manylinux2014_aarch64"]
    with tempfile.TemporaryDirectory() as target:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
            + ["--ignore-installed", "--report", "-", "--target", target, "--only-binary=:all:"]
            + ["--python-version", PYTHON[name], "--implementation", "cp"]
            + [word for platform in platforms for word in ("--platform", platform)]
            + ["--constraint", str(REPOSITORY / f"constraints-{name}.txt"), *wanted],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{name}: pip cannot resolve {' '.join(wanted)}: {done.stderr[-2000:]}")
    found = (entry["metadata"] for entry in json.loads(done.stdout)["install"])
    return {re.sub(r"[-_.]+", "-", each["name"]).lower(): each["version"] for each in found}


def pinned(name: str) -> dict[str, str]:
    """Return the versions in a file of constraints, by package."""
    lines = (REPOSITORY / f"constraints-{name}.txt").read_text(encoding="utf-8").splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in pins}


def main() -> int:
    """Resolve everything; return the exit code."""
    wheel = Path(sys.argv[1]).resolve()
    requirement = f"vae-edge[onnxruntime,openvino,cuda-bindings,verify] @ {wheel.as_uri()}"
    problems = []
    for name in PYTHON:
        found, pins = resolve(name, [requirement]), pinned(name)
        found.pop("vae-edge")
        problems += [f"{name}: {package} {found[package]} is not pinned" for package in sorted(found.keys() - pins)]
        problems += [f"{name}: the pin of {package} is not needed" for package in sorted(pins.keys() - found)]
        sys.stdout.write(f"{name}: Python {PYTHON[name]} on aarch64: wheels for all of {len(found)} packages\n")
    found = resolve("jetpack6", ["--requirement", str(REPOSITORY / "requirements-jetpack6.txt")])
    if any(package.startswith("opencv") for package in found):
        problems.append("requirements-jetpack6.txt brings an OpenCV, which would hide the system's")
    sys.stdout.write(f"requirements-jetpack6.txt: {', '.join(f'{each} {found[each]}' for each in sorted(found))}\n")
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
