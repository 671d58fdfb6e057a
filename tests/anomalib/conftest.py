"""Tests that need anomalib, in an environment of their own: `make test-anomalib`."""

from __future__ import annotations

import importlib.util


def _declare_torchvision_operators() -> None:
    """On a machine without a GPU torch may be a build that torchvision's compiled operators do not fit."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        from vae_edge.benchmarks.peers.measured_process import declare_torchvision_operators

        declare_torchvision_operators()


_declare_torchvision_operators()
