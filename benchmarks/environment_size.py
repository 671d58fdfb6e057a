"""The size of a virtual environment that holds this package and one runtime, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from vae_edge.errors import DeviceError

_RUNTIMES = {"onnxruntime": "onnxruntime", "openvino": "openvino"}
"""Extra of this package, and the folder of the runtime in site-packages."""


def environment_sizes(console: Console) -> list[str]:
    """Make the environments with pip and return a row of a table for each.

    Raises:
        DeviceError: it cannot be made; this package must lie here as sources, and pip must reach an index.
    """
    sources = Path(__file__).resolve().parents[1]
    if not (sources / "pyproject.toml").is_file():
        raise DeviceError("the environments are made from the package's sources, which are not here; clone them")
    rows = []
    for extra, folder in _RUNTIMES.items():
        with tempfile.TemporaryDirectory(prefix="vae-edge-environment-") as place:
            console.print(f"environment with only {extra}: installing", markup=False)
            _run(sys.executable, "-m", "venv", "--without-pip", place)
            python = str(Path(place, "bin", "python"))
            packages = next(Path(place).glob("lib/python*/site-packages"))
            install = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile")
            _run(*install, "--constraint", str(sources / "constraints.txt"), f"{sources}[{extra}]")
            runtime = sum(size_bytes(packages / name) for name in (folder, f"{folder}.libs"))
            rows.append(f"| `vae-edge[{extra}]` | {size_bytes(packages) / 1e6:.0f} | {runtime / 1e6:.0f} |")
    return rows


def size_bytes(folder: Path) -> int:
    """Return the size of all files in a folder; 0 if there is none."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeviceError(f"{' '.join(command[:4])} ... failed: {done.stderr.strip()[-400:]}")
