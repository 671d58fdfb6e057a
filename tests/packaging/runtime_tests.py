"""Runs the tests of what runs on a device, in an environment of its own without torch, on any system:

    python tests/packaging/runtime_tests.py 3.12            # the newest versions of everything
    python tests/packaging/runtime_tests.py 3.10 lowest     # the lowest that pyproject.toml allows

MARKS="not slow" leaves out the slow ones. Where that Python is not installed they are skipped with the reason; with
REQUIRE_PYTHONS set that is a failure. It is run by any Python, and needs none of the packages.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOWEST = ROOT / "constraints-lowest.txt"

WITH_OPENVINO = "3.12"
"""The Python whose newest environment has the build of ONNX Runtime with OpenVINO's provider, for its tests."""

# A test is skipped where its runtime is not installed; so they are imported here, and their versions compared with the
# file.
CHECK = """
import importlib.util, sys
from importlib.metadata import PackageNotFoundError, version
import asyncua, cryptography, cv2, numpy, onnx, onnxruntime, openvino, paho.mqtt, pymodbus
assert importlib.util.find_spec("torch") is None, "torch is installed, but nothing here needs it"
lines = [line.strip() for line in open("constraints-lowest.txt", encoding="utf-8") if "==" in line and line[0] != "#"]
assert len(lines) > 5, lines
try:
    build = "onnxruntime-openvino" if version("onnxruntime-openvino") else ""
    assert "OpenVINOExecutionProvider" in onnxruntime.get_available_providers()
except PackageNotFoundError:
    build = "onnxruntime"
for name, lowest in (line.split("==") for line in lines):
    found = version(build if name == "onnxruntime" else name)
    assert sys.argv[1] != "lowest" or (found + ".").startswith(lowest + "."), f"{name} is {found}, not {lowest}"
shown = ("numpy", build, "opencv-python-headless", "openvino", "pydantic", "rich", "typer")
print("Python " + sys.version.split()[0], *(f"{name} {version(name)}" for name in shown), sep=", ", flush=True)
"""


def find_python(version: str) -> str | None:
    """Return a Python of that version: this one, one on the path, the Windows launcher's, or pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = [
        [sys.executable],
        [f"python{version}"],
        ["py", f"-{version}"],
        *([str(path)] for path in sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)),
    ]
    ask = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"
    for command in candidates:
        if shutil.which(command[0]) is None:
            continue
        # pyenv puts a script in place of a Python that is not chosen.
        done = subprocess.run([*command, "-c", ask], capture_output=True, encoding="utf-8", check=False)
        found, _, path = done.stdout.strip().partition(" ")
        if done.returncode == 0 and found == version:
            return path
    return None


def make_environment(folder: Path, python: str, version: str, *, lowest: bool) -> Path:
    """Make the environment unless it is there, and return its Python."""
    program = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    mark = folder / "installed"
    sources = (ROOT / "pyproject.toml", LOWEST)
    if mark.exists() and all(mark.stat().st_mtime > path.stat().st_mtime for path in sources):
        return program
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    # Not this package: an editable one would write into the checkout while CI builds the wheel from it.
    named = [line.partition("==")[0] for line in LOWEST.read_text(encoding="utf-8").splitlines() if "==" in line]
    wanted = [name for name in named if not name.startswith("#")] + ["pytest", "pytest-timeout", "onnx"]
    if version == WITH_OPENVINO and not lowest and _has_openvino_build():
        wanted = ["onnxruntime-openvino" if name == "onnxruntime" else name for name in wanted]
    constraint = ["--constraint", str(LOWEST)] if lowest else []
    pip = [str(program), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *wanted, *constraint], check=True)
    mark.touch()
    return program


def _has_openvino_build() -> bool:
    return sys.platform in ("linux", "win32") and platform.machine().lower() in ("x86_64", "amd64")


def main(arguments: list[str]) -> int:
    """Run the tests and return the exit code."""
    version, versions = arguments[0], arguments[1] if len(arguments) > 1 else "newest"
    python = find_python(version)
    if python is None:
        sys.stderr.write(f"skipped: tests on Python {version}, which is neither on the path nor in pyenv\n")
        return int(bool(os.environ.get("REQUIRE_PYTHONS")))
    folder = ROOT / ".venv-runtime" / f"{version}-{versions}"
    program = str(make_environment(folder, python, version, lowest=versions == "lowest"))
    subprocess.run([program, "-c", CHECK, versions], check=True, cwd=ROOT)
    marks = "not gpu" + (f" and {os.environ['MARKS']}" if os.environ.get("MARKS") else "")
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marks, "tests/vae_edge", "tests/train/sample"]
    return subprocess.run(
        [program, *tests], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
