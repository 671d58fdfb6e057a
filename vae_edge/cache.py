"""Where vae-edge keeps what it can make again, such as the sample images."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the user's cache folder for vae-edge; it need not exist yet.

    `$VAE_EDGE_CACHE` where it is set, else `$XDG_CACHE_HOME/vae-edge`, else `~/.cache/vae-edge`. A relative
    `$XDG_CACHE_HOME` is ignored, as the XDG Base Directory Specification asks.
    """
    own = os.environ.get("VAE_EDGE_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    if shared and Path(shared).is_absolute():
        return Path(shared) / "vae-edge"
    return Path.home() / ".cache" / "vae-edge"


def sample_cache_folder() -> Path:
    """Return the part of the cache that holds sample inspection sets."""
    return cache_folder() / "sample"
