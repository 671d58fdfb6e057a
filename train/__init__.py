"""Training: data, network, fitting and metrics. What runs on a device lives in `vae_edge` and needs nothing of this.

    from vae_edge.train import fit

    run = fit("pictures/", "runs/tile")

Importing this package loads no torch; its names load when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vae_edge.train.api import fit as fit
    from vae_edge.train.data.sources import DataSource as DataSource
    from vae_edge.train.loop.settings import TrainSettings as TrainSettings
    from vae_edge.train.loop.watcher import Watcher as Watcher
    from vae_edge.train.run.fitting import resume_run as resume_run
    from vae_edge.train.run.folder import RunFolder as RunFolder

_HOME = {
    "fit": "vae_edge.train.api",
    "resume_run": "vae_edge.train.run.fitting",
    "RunFolder": "vae_edge.train.run.folder",
    "TrainSettings": "vae_edge.train.loop.settings",
    "DataSource": "vae_edge.train.data.sources",
    "Watcher": "vae_edge.train.loop.watcher",
}
"""The public names, as a reader looks for them: what is used first comes first."""

__all__ = [*_HOME]  # noqa: PLE0604 - the keys are strings


def __getattr__(name: str) -> object:
    """Load a public name when it is first asked for, so that importing the package stays quick."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'vae_edge.train' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
