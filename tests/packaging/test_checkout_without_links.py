"""Git on Windows checks links out as text files, unless it is told otherwise and allowed to: nothing may need them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINKED = ("train", "export", "benchmarks")
MODULES = (
    "vae_edge.train.model.network",
    "vae_edge.train.command",
    "vae_edge.export.command",
    "vae_edge.benchmarks.command",
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout as Git makes it on Windows."""
    copy = tmp_path_factory.mktemp("checkout") / "vae-edge"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    caches = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in LINKED:
        shutil.copytree(ROOT / name, copy / name, ignore=caches)
    shutil.copytree(
        ROOT / "vae_edge",
        copy / "vae_edge",
        ignore=lambda folder, names: caches(folder, names) | {*(LINKED if folder == str(ROOT / "vae_edge") else ())},
    )
    for name in LINKED:
        (copy / "vae_edge" / name).write_text(f"../{name}", encoding="utf-8")
    return copy


def built(checkout: Path, out: Path, *, editable: bool) -> Path:
    """Let setuptools make a wheel, as pip does, and return it; no network is needed."""
    hook = "build_editable" if editable else "build_wheel"
    out.mkdir()
    call = f"from setuptools.build_meta import {hook}; print({hook}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", call], cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


def imported(site_folder: Path, folder: Path) -> list[str]:
    """Import modules of each part in a Python that finds the package in one place only; return their files."""
    code = (
        "import importlib, site, sys\n"
        f"site.addsitedir({str(site_folder)!r})\n"  # Follows the .pth file of an editable installation.
        f"sys.path += {[sysconfig.get_path('purelib'), sysconfig.get_path('platlib')]!r}\n"  # Follows none.
        f"for name in {MODULES!r}: print(importlib.import_module(name).__file__)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_wheel_holds_every_package(checkout: Path, tmp_path: Path) -> None:
    wheel = built(checkout, tmp_path / "wheels", editable=False)
    with zipfile.ZipFile(wheel) as archive:
        assert not set(archive.namelist()) & {f"vae_edge/{name}" for name in LINKED}
        archive.extractall(tmp_path / "site")
    for file in imported(tmp_path / "site", tmp_path):
        assert Path(file).is_relative_to(tmp_path / "site" / "vae_edge")


def test_an_editable_installation_finds_every_package(checkout: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(built(checkout, tmp_path / "wheels", editable=True)) as archive:
        archive.extractall(tmp_path / "site")
    for folder in (tmp_path, checkout):  # Within the checkout, too, where `vae_edge` is found without the installation.
        for file in imported(tmp_path / "site", folder):
            assert Path(file).is_relative_to(checkout)
            assert not Path(file).is_relative_to(checkout / "vae_edge")
