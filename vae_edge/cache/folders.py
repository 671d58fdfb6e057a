"""Where vae-edge keeps what it can recreate, such as the sample images."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from vae_edge.errors import InputError
from vae_edge.platform.outside import user_folder


def cache_folder() -> Path:
    """Return the user's cache folder for vae-edge; it need not exist yet.

    `$VAE_EDGE_CACHE` where it is set, else `$XDG_CACHE_HOME/vae-edge`, else `~/.cache/vae-edge`.

    Raises:
        InputError: neither is set, and this user has no home folder, as some services' users.
    """
    folder = user_folder("VAE_EDGE_CACHE", "XDG_CACHE_HOME", ".cache")
    if folder is None:
        raise InputError(
            "there is no place for a cache because this user has no home folder; set VAE_EDGE_CACHE to a folder"
        )
    return folder


def compiled_cache_folder() -> Path:
    """Return the part of the cache that holds compiled models; see `vae_edge.cache.compiled`."""
    return cache_folder() / "compiled"


def sample_cache_folder() -> Path:
    """Return the part of the cache that holds sample inspection sets."""
    return cache_folder() / "sample"


@dataclass(frozen=True)
class SampleSet:
    """One product's sample images."""

    folder: Path
    size_bytes: int
    drawn_utc: str

    @property
    def name(self) -> str:
        """Product and version of the drawing, such as `dial v1`."""
        return f"{self.folder.name} {self.folder.parent.name}"

    def remove(self) -> bool:
        """Remove the images and return whether that worked; they are drawn again when needed."""
        shutil.rmtree(self.folder, ignore_errors=True)
        return not self.folder.exists()


def sample_sets() -> list[SampleSet]:
    """List the sample images in the cache, by version and product."""
    found = []
    # The file that the drawing leaves in each of its folders: nothing else here is ours to remove.
    for marker in sorted(sample_cache_folder().glob("v*/*/sample.json")):
        folder = marker.parent
        if re.fullmatch(r"v\d+", folder.parent.name):
            facts = [path.stat() for path in folder.rglob("*") if path.is_file()]
            drawn = max((fact.st_mtime for fact in facts), default=folder.stat().st_mtime)
            drawn_utc = datetime.fromtimestamp(drawn, timezone.utc).isoformat(timespec="seconds")
            found.append(SampleSet(folder, sum(fact.st_size for fact in facts), drawn_utc))
    return found
