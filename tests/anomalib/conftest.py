"""Tests that need anomalib, in an environment of their own: `make test-anomalib`."""

from __future__ import annotations

import importlib.util

from vae_edge.benchmarks.studies.peers.measured_process import make_torchvision_importable

if importlib.util.find_spec("torchvision") is not None:
    # On a machine without a GPU torch may be a build that torchvision's compiled operators do not fit.
    make_torchvision_importable()
