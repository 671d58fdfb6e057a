"""`python -m vae_edge.benchmarks.detection`: see `vae_edge.benchmarks.detection.command`."""

from __future__ import annotations

import typer

from vae_edge.benchmarks.detection.command import detection

if __name__ == "__main__":
    typer.run(detection)
