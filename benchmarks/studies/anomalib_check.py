"""One checkpoint in anomalib and as bundles: `python -m vae_edge.benchmarks.studies.anomalib_check DATA --out DIR`.

Makes torchvision importable first, because Lightning imports it as soon as it is loaded.
"""

from __future__ import annotations

import importlib
import sys

from vae_edge.benchmarks.studies import run_study
from vae_edge.benchmarks.studies.peers.measured_process import keep_telemetry_off, make_torchvision_importable
from vae_edge.cli.console import print_error

if __name__ == "__main__":
    keep_telemetry_off()  # anomalib imports OpenVINO.
    try:
        make_torchvision_importable()
    except ModuleNotFoundError:
        print_error("anomalib is not installed; make an environment with it: make bench-anomalib DATA=DIR")
        sys.exit(1)
    run_study(importlib.import_module("vae_edge.benchmarks.studies.anomalib_comparison").compare)
