"""Write and read `constraints-hashed.txt`: `python -m tests.packaging.hashed_constraints --write`, by make.

It pins, with the hashes of all their files, the packages of the extras for devices, for every system and every Python
that `pyproject.toml` allows. Where `constraints.txt` has a version that exists there, it is that one. `uv` resolves,
and then says for each system and Python whether there are wheels: that needs the network.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[2]
FILE = REPOSITORY / "constraints-hashed.txt"
EXTRAS = ("onnxruntime", "openvino", "tensorrt-rtx", "cuda-bindings", "line", "serve", "verify", "sign")
"""What runs on a device and is installed from an index, and what signs for it."""
OTHERS = ("tensorrt", "pycuda", "torch", "train", "features", "export", "bench", "anomalib", "archive", "all", "dev")
"""Extras without hashes: what trains and exports, a TensorRT that comes with the device, and what is compiled on it."""
INSTALLERS = ("pip", "setuptools")
"""Pinned, too: what installs the others, and what builds the two that have no wheel."""
WITHOUT_WHEEL = {"tensorrt-rtx": "", "tensorrt-rtx-cu13": "", "gevent": "aarch64"}
"""What pip builds from source: everywhere, or on systems whose names begin so. The first two hold nothing but the names
of other packages; the third, of [serve], is compiled."""
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PLATFORMS = {
    "x86_64-manylinux_2_28": {"sys_platform": "linux", "platform_machine": "x86_64"},
    "aarch64-manylinux_2_35": {"sys_platform": "linux", "platform_machine": "aarch64"},
    "x86_64-pc-windows-msvc": {"sys_platform": "win32", "platform_machine": "AMD64"},
    "aarch64-apple-darwin": {"sys_platform": "darwin", "platform_machine": "arm64"},
}
"""Name for uv to what markers ask for. On Arm, OpenVINO needs the glibc of Ubuntu 22.04, as in JetPack 6."""

HEADER = """\
# What the extras for devices install, with the SHA-256 of every file of it, for all systems and Pythons:
#   pip install --require-hashes -c constraints-hashed.txt "vae-edge[openvino] @ file:///WHEEL#sha256=HASH"
# `make constraints-hashed` writes this file; SECURITY.md says how to use it, LICENSES.md has the licences.
# constraints.txt has no hashes, because pip then refuses packages without one, such as this one in a checkout.
"""


@dataclass(frozen=True)
class Pin:
    """A version of a package, where it applies, and the hashes of its files."""

    name: str
    """In the normal form: small letters, digits and `-`."""
    version: str
    marker: str
    hashes: tuple[str, ...]
    """SHA-256, 64 hexadecimal digits each."""

    def applies(self, python: str, platform: str) -> bool:
        """Return whether it is the version for a Python, such as 3.12, on one of `PLATFORMS`."""
        if not self.marker:
            return True
        facts = PLATFORMS[platform] | {
            "python_version": python,
            "python_full_version": f"{python}.9",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
        }
        return Marker(self.marker).evaluate(dict(facts))


def read(text: str) -> list[Pin]:
    """Return the pins of a file.

    Raises:
        ValueError: a line is something else than a comment, a pin or a hash; such as the address of an index.
    """
    pins = []
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        found = re.fullmatch(
            r"([A-Za-z0-9._-]+)==([^\s;]+)(?: ?; ([^#]*?))?((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", line
        )
        if found is None:
            raise ValueError(f"{line[:100]!r} is not a pinned package with its hashes")
        hashes = tuple(word.partition("sha256:")[2] for word in found[4].split())
        pins.append(Pin(canonicalize_name(found[1]), found[2], (found[3] or "").strip(), hashes))
    return pins


def plain_pins(text: str) -> dict[str, str]:
    """Return the versions in a file of constraints without hashes, by normal name."""
    lines = (line.split("==") for line in text.splitlines() if line and not line.startswith("#"))
    return {canonicalize_name(name): version.strip() for name, version in lines}


def _uv(*words: str) -> str:
    uv = Path(sys.executable).with_name("uv")
    done = subprocess.run(
        [str(uv), "pip", *words, "--no-config", "--no-python-downloads"],
        cwd=REPOSITORY,
        env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"},  # The oldest for which ONNX Runtime has a wheel.
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"uv pip {' '.join(words[:2])} ended with {done.returncode}: {done.stderr[-3000:]}")
    return done.stdout


def _resolve(extras: Iterable[str], *more: str) -> str:
    """Return what uv writes for some extras; what the files pin is taken where it can be had."""
    preferred = plain_pins((REPOSITORY / "constraints.txt").read_text(encoding="utf-8"))
    lines = [f"{name}=={version}\n" for name, version in preferred.items()]
    if FILE.exists():  # What only this file pins stays as it is, too.
        pins = [pin for pin in read(FILE.read_text(encoding="utf-8")) if preferred.get(pin.name) != pin.version]
        lines += [f"{pin.name}=={pin.version}{f' ; {pin.marker}' if pin.marker else ''}\n" for pin in pins]
    with tempfile.TemporaryDirectory() as folder:
        out, installers = Path(folder) / "out.txt", Path(folder) / "installers.in"
        out.write_text("".join(lines), encoding="utf-8")
        installers.write_text("".join(f"{name}\n" for name in INSTALLERS), encoding="utf-8")
        _uv(
            *("compile", "pyproject.toml", *(f"--extra={extra}" for extra in extras)),
            *("--universal", f"--python-version={PYTHONS[0]}", f"--output-file={out}", "--no-header", "--no-annotate"),
            *("--no-emit-index-url", "--no-emit-find-links"),
            *(str(installers) if word == "INSTALLERS" else word for word in more),
        )
        return out.read_text(encoding="utf-8")


def compile_text() -> str:
    """Resolve everything and return the text of the file.

    Raises:
        SystemExit: there are no versions that go together, or no network.
    """
    return HEADER + _resolve(EXTRAS, "INSTALLERS", "--generate-hashes")


def packages_of(extra: str | None) -> set[str]:
    """Return the normal names of what an extra installs, on any system; None: of what is installed without one."""
    lines = _resolve([] if extra is None else [extra]).splitlines()
    return {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}


def missing_wheels(text: str) -> Iterator[str]:
    """Yield for each system and Python what has no wheel there, though it should."""
    pins = read(text)
    for platform in PLATFORMS:
        built = {name for name, where in WITHOUT_WHEEL.items() if platform.startswith(where)}
        lines = [
            f"{pin.name}=={pin.version}{f' ; {pin.marker}' if pin.marker else ''} "
            + " ".join(f"--hash=sha256:{each}" for each in pin.hashes)
            for pin in pins
            if pin.name not in built
        ]
        for python in PYTHONS:
            with tempfile.TemporaryDirectory() as folder:
                wanted = Path(folder) / "wanted.txt"
                wanted.write_text("\n".join(lines) + "\n", encoding="utf-8")
                try:
                    _uv(
                        *("install", "--dry-run", "--require-hashes", "--no-deps", "--only-binary=:all:"),
                        *(f"--target={folder}/site", f"--python-platform={platform}", f"--python-version={python}"),
                        *("-r", str(wanted)),
                    )
                except SystemExit as error:
                    yield f"Python {python} on {platform}: {error}"


def main() -> int:
    """Print the file, or write it and check that there are wheels."""
    text = compile_text()
    read(text)
    if "--write" not in sys.argv:
        sys.stdout.write(text)
        return 0
    FILE.write_text(text, encoding="utf-8")
    problems = list(missing_wheels(text))
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    sys.stdout.write(f"{FILE.name}: {len(read(text))} pins, {len(PLATFORMS) * len(PYTHONS)} systems and Pythons\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
