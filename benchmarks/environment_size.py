"""The size of a virtual environment that holds this package and one runtime, and nothing else."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from vae_edge.benchmarks.peers.environments import make_own, packages_of, size_of

_RUNTIMES = {"onnxruntime": "onnxruntime", "openvino": "openvino"}
"""Extra of this package, and the folder of the runtime in site-packages."""


def environment_sizes(console: Console) -> list[str]:
    """Make the environments with pip and return a row of a table for each.

    Raises:
        UsageError: this package runs from a wheel and not from a checkout.
        DeviceError: pip failed; the message is its reason.
    """
    rows = []
    for extra, folder in _RUNTIMES.items():
        with tempfile.TemporaryDirectory(prefix="vae-edge-environment-") as place:
            made = make_own(Path(place, "environment"), extra, lambda text: console.print(text, markup=False))
            packages = packages_of(made.folder)
            runtime = sum(size_of(packages / name) for name in (folder, f"{folder}.libs"))
            rows.append(f"| `{made.name}` | {made.size_bytes / 1e6:.0f} | {runtime / 1e6:.0f} |")
    return rows
