"""Light and contrast: bringing every image to the same, inside the graph and before the network.

Exposures differ from part to part, and a network that has to reproduce the exposure spends its residual on it. Where
brightness itself tells good from bad, normalizing it away is wrong: so it is offered, chosen like the scoring, and
never assumed. Loads no torch; `vae_edge.train.photometric_normalization` computes it.
"""

from __future__ import annotations

from enum import Enum


class Photometric(str, Enum):
    """How light and contrast are evened out."""

    NONE = "none"
    IMAGE = "image"
    """Each image less its mean brightness, divided by three standard deviations of its brightness."""
    LOCAL = "local"
    """Each pixel less the mean brightness around it, divided by three times the average of the standard deviation
    around it and that of the image (local contrast normalization, Jarrett et al., ICCV 2009)."""

    def __str__(self) -> str:
        return self.value

    def describe(self) -> str:
        """Return it in words."""
        return {
            Photometric.NONE: "brightness as it is",
            Photometric.IMAGE: "brightness and contrast normalized by the image's own",
            Photometric.LOCAL: "brightness and contrast normalized by the surroundings'",
        }[self]
