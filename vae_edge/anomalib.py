"""The network as a model of anomalib: `from vae_edge.anomalib import Vae`, for anomalib's `Engine`.

Needs the extra `anomalib`. See `vae_edge.train.anomalib.module`.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from vae_edge.errors import MissingDependencyError

try:
    from vae_edge.train.anomalib.module import ConformalPostProcessor, DevicePreProcessor, Vae
except ImportError as error:
    try:
        found = f"anomalib {version('anomalib')} is installed"
    except PackageNotFoundError:
        found = "anomalib is not installed"
    raise MissingDependencyError(
        f"vae_edge.anomalib needs anomalib 2.7 or later and torch, and {found} ({error}); install them with: "
        'pip install "vae-edge[anomalib]"'
    ) from error

__all__ = ["ConformalPostProcessor", "DevicePreProcessor", "Vae"]
