"""One checkpoint in anomalib and as bundles: `python -m vae_edge.benchmarks.anomalib_check DATA --out DIR`.

Makes torchvision importable first, which Lightning asks for as soon as it is loaded.
"""

from __future__ import annotations

import importlib
import sys

import typer

from vae_edge.benchmarks.peers.measured_process import declare_torchvision_operators, keep_telemetry_off
from vae_edge.errors import MissingDependencyError, VaeEdgeError


def main() -> None:
    """Run the comparison of `vae_edge.benchmarks.anomalib_comparison`.

    Raises:
        MissingDependencyError: anomalib is not installed.
    """
    keep_telemetry_off()  # anomalib imports OpenVINO.
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "anomalib is not installed; make an environment with it: make bench-anomalib DATA=DIR"
        ) from error
    except RuntimeError:
        declare_torchvision_operators()
    typer.run(importlib.import_module("vae_edge.benchmarks.anomalib_comparison").compare)


if __name__ == "__main__":
    try:
        main()
    except VaeEdgeError as error:
        sys.exit(f"error: {error}")
